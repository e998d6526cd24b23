"""Start a real PACS, Debian's Orthanc, on free ports of loopback, and stop it by its id."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from label_server import start_process, stop_process, wait_until

SHIM = Path(__file__).with_name("loopback.c")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A running PACS.

    Attributes:
        url: the URL of its REST API, without a slash at its end.
        dicom_port: where it takes associations.
        ae_title: its own.
        auth: user and password, where it asks for one.
    """

    url: str
    dicom_port: int
    ae_title: str = "ORTHANC"
    auth: tuple[str, str] | None = None

    @property
    def dicomweb_url(self) -> str:
        """Root of QIDO, WADO and STOW."""
        return f"{self.url}/dicom-web"

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request of Orthanc's own API, `path` starting with a slash."""
        answer = requests.request(method, self.url + path, timeout=60, auth=self.auth, **options)
        answer.raise_for_status()
        return answer

    def upload(self, *sources: Path) -> None:
        """Store DICOM files, or all that a folder holds."""
        for source in sources:
            files = sorted(path for path in source.rglob("*.dcm")) if source.is_dir() else [source]
            for file in files:
                self.request("POST", "/instances", data=file.read_bytes())

    def count(self, level: str = "instances") -> int:
        """How many patients, studies, series or instances there are."""
        return len(self.request("GET", f"/{level}").json())


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running_orthanc(
    folder: Path,
    *,
    users: Mapping[str, str] | None = None,
    modalities: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Orthanc]:
    """Run a PACS for as long as the block lasts; skips the test where it is not installed.

    Args:
        folder: for its database and its log.
        users: name -> password; with them it asks everybody for one.
        modalities: AE title -> loopback port, those it may send to.
        settings: more of Orthanc's configuration.
    """
    compiler = shutil.which("cc")
    if shutil.which("Orthanc") is None or not PLUGIN.is_file():
        pytest.skip("no Orthanc with its DICOMweb plugin here: scripts/debian.sh installs them")
    if compiler is None:
        pytest.skip("no C compiler here, without which Orthanc would listen on every address: scripts/debian.sh")
    folder.mkdir(parents=True, exist_ok=True)
    shim = folder / "loopback.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, SHIM, "-ldl"], check=True)
    http_port, dicom_port = free_port(), free_port()
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {name: [name, "127.0.0.1", port] for name, port in (modalities or {}).items()},
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": dict(users or {}),
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "StableAge": 1,
        **(settings or {}),
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration, indent=1))
    log = folder / "orthanc.log"
    process = start_process(["Orthanc", str(folder / "orthanc.json")], log, env={"LD_PRELOAD": str(shim)})
    auth = next(iter(users.items())) if users else None
    orthanc = Orthanc(f"http://127.0.0.1:{http_port}", dicom_port, auth=auth)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"Orthanc ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            return requests.get(f"{orthanc.url}/system", auth=auth, timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers, START_SECONDS, what=f"Orthanc, see {log}")
        yield orthanc
    finally:
        stop_process(process)
