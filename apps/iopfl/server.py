"""The label server: MONAI Label's, repaired, with our routes.

Two ways to start it, both without internet access:

- `iopfl serve --studies DIR`, or `serve(ServerSettings(...))`;
- `monailabel start_server --app apps/iopfl --studies DIR --uvicorn_app iopfl.server:app`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import logging.config
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from iopfl import compat
from iopfl.access.settings import AccessSettings, check_certificate, choose_mode, is_loopback, read_proxies
from iopfl.access.state import check_state
from iopfl.base.allocation import keep_blocks
from iopfl.base.errors import ConfigError, IOPFLError
from iopfl.base.files import drop_temporary, keep_others_out, keep_temporary_apart
from iopfl.base.private_files import make_private, read_secret
from iopfl.compat.logs_page import LOG_FILE_VARIABLE
from iopfl.lib.settings import AppSettings, check_device
from iopfl.server_options import DEFAULT_STATE, ServerSettings, add_arguments, settings_from

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["ServerSettings", "add_arguments", "build_app", "check_device", "main", "serve", "settings_from"]

logger = logging.getLogger(__name__)

_MAX_PORT = 65535

SHUTDOWN_SECONDS = 5
"""How long requests that are being answered may take once the server is told to stop."""


def build_app(access: AccessSettings | None = None) -> FastAPI:
    """Make the ASGI app. MONAI Label's settings must be in place; who may use it is in them, or given."""
    from monailabel.config import settings

    access = access or AccessSettings.from_environment(DEFAULT_STATE)
    keep_others_out()
    check_state(access.state)
    keep_temporary_apart()
    settings.MONAI_LABEL_AUTH_ENABLE = access.mode != "off"
    # MONAI Label prints its allowed origins, which are not those that `compat.cors` leaves.
    with contextlib.redirect_stdout(None):
        compat.apply_all()
    from monailabel.app import app

    from iopfl.access.gate import install
    from iopfl.access.identity import Access
    from iopfl.lib.federation_rounds import ROUND_KEY
    from iopfl.web.routes import router
    from iopfl.web.work_routes import Leaving

    app.include_router(router)
    install(app, Access(access))
    app.add_middleware(Leaving)  # outermost: it hears of a closed connection first
    compat.background_processes.stay_ready_after(lambda request: ROUND_KEY in request)

    return app


def __getattr__(name: str) -> Any:
    """Make `app` when it is first asked for: importing this module costs nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        globals()["app"] = build_app()
    except IOPFLError as error:
        raise SystemExit(str(error)) from error
    return globals()["app"]


def serve(settings: ServerSettings, *, check: Callable[[], None] = lambda: None) -> NoReturn:
    """Run a label server until it gets SIGTERM or SIGINT, then end this process with status 0.

    Prints its address on stdout once it answers. A request that is still being computed
    `SHUTDOWN_SECONDS` after the signal is given up, background tasks are ended at once.

    Args:
        settings: what to serve, where.
        check: checks what takes seconds, once all that is quick was right.

    Raises:
        ConfigError: there is no app, no study folder, or the port is taken.
    """
    _check(settings)
    access = _choose_access(settings)
    listener = _listen(settings.host, settings.port)
    check()
    port = listener.getsockname()[1]
    keep_others_out()
    _configure_monailabel(settings, port)
    logging.config.dictConfig(_log_config(settings))  # before the app is made, which says what it finds damaged

    import uvicorn

    from iopfl.access.connections import BoundedConnection

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                scheme = "https" if settings.ssl_certfile else "http"
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                print(f"{scheme}://{host}:{port}", flush=True)  # noqa: T201  # what the command is for
                if scheme == "http" and not is_loopback(settings.host):
                    logger.warning("images and passwords travel readable: give --ssl-certfile, or put HTTPS before it")

    config = uvicorn.Config(
        build_app(access),
        log_config=None,
        access_log=False,
        root_path=settings.root_path,
        proxy_headers=bool(access.proxies),
        forwarded_allow_ips=list(access.proxies),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        http=BoundedConnection,
        ws="none",  # no route has any
    )
    # uvicorn raises the signal that stopped it once more when it is done; the
    # process shall then end in the ordinary way.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = Server(config)
    try:
        server.run(sockets=[listener])
    finally:
        compat.background_processes.stop_all()
        listener.close()
        drop_temporary()
    if not server.started:
        raise IOPFLError(f"the label server did not start: see above, or {_log_file(settings)}")
    # Python would wait for an inference that nobody waits for any more, and take seconds to take torch apart.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m iopfl.server`; the options are those of `iopfl serve`."""
    keep_blocks()  # before anything starts a thread
    parser = argparse.ArgumentParser(prog="python -m iopfl.server", description=serve.__doc__)
    add_arguments(parser)
    try:
        serve(settings_from(parser.parse_args(arguments)))
    except IOPFLError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2


def _is_url(studies: str) -> bool:
    return studies.startswith(("http://", "https://"))


def _check(settings: ServerSettings) -> None:
    if not (settings.app_dir / "main.py").is_file():
        raise ConfigError(f"an app folder holds main.py, {settings.app_dir} does not")
    if not _is_url(settings.studies) and not Path(settings.studies).is_dir():
        raise ConfigError(
            f"studies must be an existing folder or a DICOMweb URL, not {settings.studies}: "
            "create the folder, or correct --studies"
        )
    if not 0 <= settings.port <= _MAX_PORT:  # the system would take it modulo 65536
        raise ConfigError(f"a port is a number from 0 to {_MAX_PORT}, not {settings.port}")
    if settings.app_dir.resolve() == Path(__file__).resolve().parent:
        app = AppSettings.from_conf(settings.conf, default_state=settings.state)
        if _is_url(settings.studies):
            from iopfl.pacs.access import PACSAccess

            access = PACSAccess(settings.studies, app.pacs_credentials, app.pacs_ca)
            if access.credentials:
                access.headers()  # whether they can be read


def _choose_access(settings: ServerSettings) -> AccessSettings:
    """Who may use the server; the sign-in service's address goes where MONAI Label's child processes look, too."""
    from monailabel.config import settings as monailabel

    if settings.oidc_issuer:
        monailabel.MONAI_LABEL_AUTH_REALM_URI = settings.oidc_issuer.rstrip("/")
    if settings.oidc_client:
        monailabel.MONAI_LABEL_AUTH_CLIENT_ID = settings.oidc_client
    check_certificate(settings.ssl_certfile, settings.ssl_keyfile)
    state = settings.state.resolve()
    mode = choose_mode(settings.auth, settings.host, state)
    is_open = mode == "off" and not settings.ssl_certfile
    return AccessSettings(
        mode=mode,
        state=state,
        client_secret=read_secret(settings.oidc_secret_file) if settings.oidc_secret_file else "",
        oidc_ca=settings.oidc_ca.resolve() if settings.oidc_ca else None,
        oidc_proxy=settings.oidc_proxy,
        hosts=frozenset({settings.host, *settings.allow_hosts}) if is_open else None,
        max_upload_mb=settings.max_upload_mb,
        proxies=read_proxies(),
    )


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else: whoever loses it learns so in a moment, not in ten seconds."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol, without which asyncio sets no TCP_NODELAY, and each answer waits 40 ms for an ACK.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} is taken: another server listens there; stop it, or choose another "
                "port with --port (0 takes any that is free)"
            ) from error
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}") from error
    return listener


def _log_file(settings: ServerSettings) -> Path:
    return settings.state.resolve() / "logs" / "app.log"


def _configure_monailabel(settings: ServerSettings, port: int) -> None:
    """Put the settings where MONAI Label and its child processes look: its object, and the environment."""
    state = settings.state.resolve()
    try:
        make_private(_log_file(settings).parent)
    except OSError as error:
        raise ConfigError(
            f"the state folder {settings.state} cannot be written to ({error.strerror}): give another with --state"
        ) from error
    os.environ[LOG_FILE_VARIABLE] = str(_log_file(settings))

    from monailabel.config import settings as monailabel

    studies = settings.studies
    monailabel.MONAI_LABEL_APP_DIR = str(settings.app_dir.resolve())
    monailabel.MONAI_LABEL_STUDIES = studies if _is_url(studies) else str(Path(studies).resolve())
    monailabel.MONAI_LABEL_APP_CONF = {"state": str(state), **settings.conf}
    monailabel.MONAI_LABEL_SERVER_PORT = port
    if not monailabel.MONAI_LABEL_SESSION_PATH:
        monailabel.MONAI_LABEL_SESSION_PATH = str(state / "sessions")
    for name, value in monailabel.model_dump(mode="json").items():
        if value is not None:
            os.environ[name] = json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def _log_config(settings: ServerSettings) -> dict[str, Any]:
    """Log to the terminal and to a file that does not grow for ever."""
    rotating = {
        "class": "logging.handlers.RotatingFileHandler",
        "formatter": "line",
        "filename": str(_log_file(settings)),
        "maxBytes": 10 * 2**20,
        "backupCount": 10,
        "encoding": "utf-8",
    }
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": line}},
        "handlers": {
            "terminal": {"class": "logging.StreamHandler", "formatter": "line"},
            "file": rotating,
        },
        "root": {"level": settings.log_level, "handlers": ["terminal", "file"]},
        "loggers": {"urllib3.connectionpool": {"level": "ERROR"}},
    }


if __name__ == "__main__":
    sys.exit(main())
