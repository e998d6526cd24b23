"""What a label server is started with: the options of `iopfl serve`, and the settings they become."""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path

from iopfl.access.settings import MAX_UPLOAD_MB, MODES

DEFAULT_STATE = Path.home() / ".iopfl"
ANSWER_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `serve` needs to know.

    Attributes:
        studies: a site folder, or the DICOMweb URL of a PACS.
        app_dir: the folder whose `main.py` holds the app.
        state: the state folder; logs and sessions go there, the app's folder stays untouched.
        conf: MONAI Label's `--conf`, by key. The app finds the state folder there as `state`.
        host: the address to listen on.
        port: the port to listen on; 0 for any that is free.
        ssl_certfile: PEM certificate; with it the server speaks HTTPS.
        ssl_keyfile: PEM key of that certificate.
        root_path: path prefix, behind a reverse proxy that removes one.
        log_level: DEBUG, INFO, WARNING or ERROR.
        auth: `local`, `oidc` or `off`; None = `off`, which is refused where others reach the host.
        oidc_issuer: address of the hospital's sign-in service; "" = MONAI_LABEL_AUTH_REALM_URI.
        oidc_client: the name that this server is registered by there; "" = MONAI_LABEL_AUTH_CLIENT_ID.
        oidc_secret_file: holds what this server proves that with; None = it is a public client.
        oidc_ca: PEM file of the authority that signed the sign-in service's certificate; None = the public ones count.
        oidc_proxy: URL of the proxy that leads to it; "" = none, whatever the environment says.
        allow_hosts: names by which a server without sign-in and HTTPS may be called, besides addresses and the host's.
        max_upload_mb: most that one request may bring.
    """

    studies: str
    app_dir: Path = Path(__file__).parent
    state: Path = DEFAULT_STATE
    conf: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    root_path: str = ""
    log_level: str = "INFO"
    auth: str | None = None
    oidc_issuer: str = ""
    oidc_client: str = ""
    oidc_secret_file: Path | None = None
    oidc_ca: Path | None = None
    oidc_proxy: str = ""
    allow_hosts: tuple[str, ...] = ()
    max_upload_mb: int = MAX_UPLOAD_MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `iopfl serve` to a parser."""
    defaults = ServerSettings(studies="")
    add = parser.add_argument
    add("--studies", required=True, help="site folder, or DICOMweb URL of a PACS")
    add("--state", type=Path, default=defaults.state, help="state folder (default: %(default)s)")
    add("--app", type=Path, default=defaults.app_dir, help="app folder (default: iopfl itself)")
    add("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="app option")
    add("--host", default=defaults.host, help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=defaults.port, help="0: any free one (default: %(default)s)")
    add("--ssl-certfile", type=Path, help="PEM certificate, for HTTPS")
    add("--ssl-keyfile", type=Path, help="PEM key of the certificate")
    add("--root-path", default="", help="path prefix, behind a reverse proxy")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    add("--log-level", default=defaults.log_level, choices=levels, help="(default: %(default)s)")
    text = (
        "who may use it: users of its own (iopfl users), the hospital's, or everybody (default on this machine alone)"
    )
    add("--auth", choices=MODES, help=text)
    add("--oidc-issuer", default="", metavar="URL", help="the hospital's OpenID Connect service, e.g. a Keycloak realm")
    add("--oidc-client", default="", metavar="ID", help="this server's client id there (default: monailabel-app)")
    add("--oidc-secret-file", type=Path, metavar="FILE", help="holds the client's secret, if it has one")
    add(
        "--oidc-ca", type=Path, metavar="FILE", help="authority of the service's certificate, if it is not a public one"
    )
    add("--oidc-proxy", default="", metavar="URL", help="proxy that leads there; none of the environment is used")
    text = "without sign-in and HTTPS: a name, besides addresses, by which it may be called; several times for several"
    add("--allow-host", action="append", default=[], metavar="NAME", help=text)
    text = "most that one request may bring (default: %(default)s)"
    add("--max-upload-mb", type=int, default=defaults.max_upload_mb, metavar="MB", help=text)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options that bound what one answer may take of the machine's memory and of time."""
    text = "memory that an answer may take; larger images are refused (default: half of the machine's or container's)"
    parser.add_argument("--max-memory-gb", type=float, metavar="GB", help=text)
    text = (
        "time for a routed answer, which has fewer views and votes where all would take longer (default: %(default)s)"
    )
    parser.add_argument("--answer-seconds", type=_read_seconds, default=ANSWER_SECONDS, metavar="S", help=text)


def _read_seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected seconds, above 0, given {text!r}")


def limits_conf(arguments: argparse.Namespace) -> dict[str, str]:
    """What `add_limits` added, as the app's `--conf`."""
    memory = {} if arguments.max_memory_gb is None else {"max_memory_gb": str(arguments.max_memory_gb)}
    return {"answer_seconds": str(arguments.answer_seconds), **memory}


def settings_from(arguments: argparse.Namespace) -> ServerSettings:
    """Make settings of parsed options."""
    return ServerSettings(
        studies=arguments.studies,
        app_dir=arguments.app,
        state=arguments.state,
        conf=dict(arguments.conf),
        host=arguments.host,
        port=arguments.port,
        ssl_certfile=arguments.ssl_certfile,
        ssl_keyfile=arguments.ssl_keyfile,
        root_path=arguments.root_path,
        log_level=arguments.log_level,
        auth=arguments.auth,
        oidc_issuer=arguments.oidc_issuer,
        oidc_client=arguments.oidc_client,
        oidc_secret_file=arguments.oidc_secret_file,
        oidc_ca=arguments.oidc_ca,
        oidc_proxy=arguments.oidc_proxy,
        allow_hosts=tuple(arguments.allow_host),
        max_upload_mb=arguments.max_upload_mb,
    )
