"""What the tests of a PACS share: series and segmentations in Orthanc, and a gateway that fails as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
from pydicom import Dataset, dcmread

from dicomio.phantoms import build_slices, series_uid, volume, write
from iopfl.dicomio.segmentation import Origin, build_segmentation, segments_of
from iopfl.dicomio.series import read_series
from label_server import wait_until
from orthanc import Orthanc

from .site import GLAND

TASK = replace(GLAND, labels={"left": 1, "right": 2}, codes={})
CT = replace(TASK, name="ct", modality="CT")
SHAPE = (13, 11, 6)
SERIES = [series_uid(name) for name in ("first", "second")]
SECONDS = 30.0


def send(orthanc: Orthanc, folder: Path, name: str, *, patient: str = "P-1", seed: int = 0, **changes) -> list[Dataset]:
    """Store a series of slices."""
    slices = build_slices(volume(SHAPE, seed=seed), series=name)
    for ds in slices:
        ds.PatientID = patient
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    upload(orthanc, slices, folder / f"sent-{name}")
    return slices


def upload(orthanc: Orthanc, datasets: list[Dataset], folder: Path) -> None:
    orthanc.upload(*write(datasets, folder).iterdir())


def draw(path: Path, columns: slice, like: Path, *, value: int = 2) -> Path:
    """A label on an image's grid in which some columns are drawn."""
    image = nib.load(like)
    mask = np.zeros(image.shape[:3], np.uint8)
    mask[columns, 2:8, 1:4] = value
    nib.save(nib.Nifti1Image(mask, image.affine), path)
    return path


def values_of(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def columns_of(path: str) -> list[int]:
    return sorted(set(np.nonzero(values_of(path))[0].tolist())) if path else []


def find_id(orthanc: Orthanc, uid: str) -> str:
    query = {"Level": "Series", "Query": {"SeriesInstanceUID": uid}}
    return orthanc.request("POST", "/tools/find", json=query).json()[0]


def segmentations(orthanc: Orthanc) -> list[Dataset]:
    """All SEG that the PACS has."""
    found = orthanc.request("POST", "/tools/find", json={"Level": "Instance", "Query": {"Modality": "SEG"}}).json()
    return [dcmread(BytesIO(orthanc.request("GET", f"/instances/{uid}/file").content)) for uid in found]


def put_segmentation(orthanc: Orthanc, folder: Path, columns: slice, *, value: int = 1, series: str = "first", **about):
    """Have somebody else store a segmentation; gives its mask."""
    source = read_series(folder / f"sent-{series}")
    mask = np.zeros(SHAPE, np.uint8)
    mask[columns, 2:8, 1:4] = value
    changes = about.pop("changes", {})
    ds = build_segmentation(mask, source, about.pop("segments", segments_of(TASK)), Origin(**about))
    for keyword, changed in changes.items():
        setattr(ds, keyword, changed)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path = folder / "other.dcm"
    ds.save_as(path, enforce_file_format=True)
    orthanc.upload(path)
    return mask, ds


def later(seconds: int) -> dict[str, str]:
    """Content date and time so many seconds from now."""
    when = datetime.fromtimestamp(time.time() + seconds)
    return {"ContentDate": when.strftime("%Y%m%d"), "ContentTime": when.strftime("%H%M%S")}


def until(condition: Callable, what: str):
    return wait_until(condition, SECONDS, what=what)


class Gateway:
    """Stands before the PACS and lets pass what it is told to."""

    def __init__(self, target: str) -> None:
        self.refuses: Callable[[str, str], int | bytes] = lambda method, path: 0  # a status, or an answer of its own
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(iter(self.read_chunk, b""))
                refusal = gateway.refuses(self.command, self.path)
                if refusal:
                    content = refusal if isinstance(refusal, bytes) else b""
                    self.send_response(200 if content else refusal)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    return
                kept = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
                answer = requests.request(self.command, target + self.path, data=body, headers=kept, timeout=60)
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def read_chunk(self) -> bytes:
                size = int(self.rfile.readline(), 16)
                content = self.rfile.read(size)
                self.rfile.readline()
                return content

            do_GET = do_POST = pass_on  # noqa: N815

            def log_message(self, *_) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/dicom-web"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
