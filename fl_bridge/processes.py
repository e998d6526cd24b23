"""FLARE's own processes, from a kit: in the foreground, one at a time, and none left behind.

`fl-bridge server` and `fl-bridge site` are what systemd runs: FLARE's start-up
script would restart the process itself, out of systemd's sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from fl_bridge.kit_policy import MARK, SERVER, SITE, STARTUP, update_kit
from fl_bridge.leftovers import TEMPORARY, sweep_kit
from fl_bridge.process_tree import end_tree
from fl_bridge.site_policy import FILE, SitePolicy
from iopfl.base.errors import ConfigError
from iopfl.base.locks import try_hold

logger = logging.getLogger(__name__)

_MODULES = {
    SERVER: ("fl_bridge.server_process", "nvflare.private.fed.app.server.server_train"),
    SITE: ("fl_bridge.site_process", "nvflare.private.fed.app.client.client_train"),
}
_SERVER_BYTES = 2**30
_PR_SET_PDEATHSIG = 1


def run_kit(kit: Path, role: str) -> int:
    """Run the server or a site until it ends or is interrupted.

    Args:
        kit: its start-up kit.
        role: `server` or `site`.

    Returns:
        FLARE's exit status.

    Raises:
        ConfigError: the folder is no such kit, or runs already.
    """
    kit = kit.absolute()
    if not (kit / "startup" / STARTUP[role]).is_file():
        raise ConfigError(
            f"{kit}: expected the kit of a {role}, without startup/{STARTUP[role]} it is none: "
            "give a folder that fl-bridge provision made"
        )
    with try_hold(kit / "lock") as lock:
        if lock is None:
            raise ConfigError(f"{kit} runs already: stop that one first")
        end_leftovers(kit)
        sweep_kit(kit)
        for name in update_kit(kit):  # a kit that an older version made must not run with its policy
            logger.warning("%s: brought up to date", name)
        with _start(kit, role) as process:
            return process.wait()


def end_leftovers(kit: Path) -> None:
    """End the processes of a kit whose parents were killed: two of a site would train one round twice."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(kit):
                end_tree(process.pid)


@contextlib.contextmanager
def _start(kit: Path, role: str) -> Iterator[subprocess.Popen[bytes]]:
    (kit / "transfer").mkdir(exist_ok=True)
    for stray in ("shutdown.fl", "restart.fl", "pid.fl"):
        (kit / stray).unlink(missing_ok=True)
    # -P: no file in the folder that it runs in is taken for a module.
    command = [sys.executable, "-P", "-u", "-m", *_MODULES[role], "-m", str(kit), "-s", STARTUP[role], "--set"]
    command += ["secure_train=true", "org=consortium", "config_folder=config"]
    command += [f"uid={kit.name}"] if role == SITE else []
    path = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, MARK: str(kit), "PYTHONPATH": os.pathsep.join(filter(None, path))}
    environment["TMPDIR"] = str(kit / TEMPORARY)
    environment["NVFLARE_STREAMING_MAX_BLOB_SIZE"] = str(_find_limit(kit, role))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, preexec_fn=_end_with_parent)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        end_tree(process.pid)
        process.wait()
        end_leftovers(kit)


def _find_limit(kit: Path, role: str) -> int:
    """Bytes that a message may have beside its arrays, whose limit is in `server_process` and `site_process`."""
    is_site = role == SITE and (kit / "local" / FILE).is_file()
    return SitePolicy.read(kit / "local").max_message_bytes if is_site else _SERVER_BYTES


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, even by `kill -9`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
