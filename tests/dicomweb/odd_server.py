"""A DICOMweb server on loopback that does what a test says, as servers do that people have."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword

Answer = tuple[int, bytes, str]
JSON = "application/dicom+json"
STORED, FAILED = "00081199", "00081198"
_AT_SERIES = ("Modality", "SeriesInstanceUID", "SeriesDescription", "BodyPartExamined", "StudyInstanceUID")
_AT_STUDY = ("StudyInstanceUID", "StudyDate", "PatientID")


class OddServer:
    """A server without habits, which a test gives it.

    Attributes:
        asked: method, path below the root and query of each request.
        before: may answer a request itself.
        change: changes a data set that a search found.
        write: an answer's data sets as bytes, and their media type.
        stow: answers what was sent, after it was kept or not.
    """

    def __init__(self) -> None:
        self.instances: dict[str, Dataset] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.before: Callable[[str, str, dict[str, str]], Answer | None] = lambda method, path, query: None
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda item: item
        self.write: Callable[[list[dict[str, Any]]], tuple[bytes, str]] = lambda items: (
            json.dumps(items).encode(),
            JSON,
        )
        self.stow: Callable[[Dataset], Answer] = self.keep
        self.url = ""

    def add(self, datasets: Sequence[Dataset]) -> None:
        self.instances |= {str(ds.SOPInstanceUID): ds for ds in datasets}

    def keep(self, ds: Dataset) -> Answer:
        self.add([ds])
        return 200, json.dumps(receipt(ds)).encode(), JSON

    def count(self, method: str) -> int:
        return sum(asked[0] == method for asked in self.asked)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        self.asked.append((method, path, query))
        if own := self.before(method, path, query):
            return own
        if method == "POST":
            return self.stow(dcmread(BytesIO(body.split(b"\r\n\r\n", 1)[1]), force=True))
        parts = path.strip("/").split("/")
        named = dict(zip(parts[::2], parts[1::2], strict=False))
        of = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        found = [ds for ds in self.instances.values() if all(ds[of[kind]].value == uid for kind, uid in named.items())]
        if parts[-1] == "metadata":
            return 200, *self.write([header(ds) for ds in found])
        if len(parts) % 2 == 0:  # an address of something, not of a search
            return (200, *multipart(found)) if found else (404, b"", "text/plain")
        return self.search(parts[-1], found, query)

    def search(self, level: str, found: list[Dataset], query: dict[str, str]) -> Answer:
        key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}[level]
        groups: dict[str, list[Dataset]] = {}
        asked = dict(query)
        modality = asked.pop("ModalitiesInStudy", "*") if level == "studies" else "*"
        for ds in found:
            filters = {
                "Modality": modality,
                **{name: text for name, text in asked.items() if tag_for_keyword(name) in ds},
            }
            if all(fnmatchcase(str(ds.get(name, "")), text) for name, text in filters.items()):
                groups.setdefault(str(ds[key].value), []).append(ds)
        items = [self.change(describe(level, group)) for group in groups.values()]
        start = int(query.get("offset", 0))
        return 200, *self.write(items[start : start + int(query.get("limit", len(items)))])


def describe(level: str, group: list[Dataset]) -> dict[str, Any]:
    """What a search says of a study, series or instance."""
    keywords = {"studies": _AT_STUDY, "series": _AT_SERIES, "instances": ("SOPClassUID", "SOPInstanceUID")}[level]
    ds = Dataset()
    for keyword in keywords:
        if keyword in group[0]:
            setattr(ds, keyword, group[0][keyword].value)
    if level == "series":
        ds.NumberOfSeriesRelatedInstances = len(group)
    if level == "studies":
        ds.NumberOfStudyRelatedInstances = len(group)
        ds.NumberOfStudyRelatedSeries = len({instance.SeriesInstanceUID for instance in group})
    return ds.to_json_dict()


def header(ds: Dataset) -> dict[str, Any]:
    return {tag: element for tag, element in ds.to_json_dict().items() if tag != "7FE00010"}


def multipart(datasets: list[Dataset]) -> tuple[bytes, str]:
    body = b"".join(b"--part\r\nContent-Type: application/dicom\r\n\r\n" + encode(ds) + b"\r\n" for ds in datasets)
    return body + b"--part--\r\n", 'multipart/related; type="application/dicom"; boundary="part"'


def encode(ds: Dataset) -> bytes:
    with BytesIO() as buffer:
        ds.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


def receipt(ds: Dataset, *, tag: str = STORED, reason: int = 0, uid: str = "") -> dict[str, Any]:
    """What STOW-RS says of an instance (PS3.18, 10.5.3)."""
    item = {"00081155": {"vr": "UI", "Value": [uid or str(ds.SOPInstanceUID)]}}
    if reason:
        item["00081197" if tag == FAILED else "00081196"] = {"vr": "US", "Value": [reason]}
    return {tag: {"vr": "SQ", "Value": [item]}}


def to_xml(items: list[dict[str, Any]]) -> list[str]:
    """Data sets as the Native DICOM Model (PS3.19 A.1)."""
    return [
        f'<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">{_inner(i)}</NativeDicomModel>'
        for i in items
    ]


def _inner(item: dict[str, Any]) -> str:
    text = ""
    for tag, element in item.items():
        values = ""
        for number, value in enumerate(element.get("Value", []), start=1):
            if element["vr"] == "SQ":
                values += f'<Item number="{number}">{_inner(value)}</Item>'
            elif element["vr"] == "PN":
                names = "".join(f"<{kind}><FamilyName>{name}</FamilyName></{kind}>" for kind, name in value.items())
                values += f'<PersonName number="{number}">{names}</PersonName>'
            else:
                values += f'<Value number="{number}">{value}</Value>'
        text += f'<DicomAttribute tag="{tag}" vr="{element["vr"]}">{values}</DicomAttribute>'
    return text


@contextmanager
def odd_server() -> Iterator[OddServer]:
    ours = OddServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content, kind = ours.answer(self.command, url.path, dict(parse_qsl(url.query)), body)
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815  # as http.server calls it

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    ours.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield ours
    finally:
        server.shutdown()
        server.server_close()
