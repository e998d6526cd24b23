"""What the proxy passes on to a PACS, and what it does not: a real PACS, and one that misbehaves."""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests
import uvicorn
from fastapi import FastAPI
from pydicom import Dataset, uid

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from monailabel.config import settings  # noqa: E402

from dicomio.phantoms import build_slices, mask_in, series_uid, volume, write  # noqa: E402
from iopfl.access.gate import install  # noqa: E402
from iopfl.access.identity import Access  # noqa: E402
from iopfl.access.settings import AccessSettings  # noqa: E402
from iopfl.dicomio.segmentation import Origin, Segment, build_segmentation  # noqa: E402
from iopfl.dicomio.series import read_series  # noqa: E402
from iopfl.web import dicom_proxy  # noqa: E402
from label_server import wait_until  # noqa: E402
from orthanc import running_orthanc  # noqa: E402

SERIES = f"studies/{series_uid('a series study')}/series/{series_uid('a series')}"
SECONDS = 20


@contextmanager
def running_proxy(change: Callable[[FastAPI], None] = lambda app: None) -> Iterator[str]:
    """The proxy alone in a server of its own, or with what `change` puts in front; gives its address."""
    app = FastAPI()
    app.include_router(dicom_proxy.router)
    change(app)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, SECONDS, what="the proxy")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/proxy/dicom"
        server.should_exit = True
        thread.join(SECONDS)


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    with running_proxy() as url:
        yield url


@pytest.fixture
def point_at(monkeypatch, tmp_path) -> Callable[..., None]:
    """Make a PACS the one behind the proxy."""

    def point(url: str, *, password: str = "") -> None:
        file = tmp_path / "credentials.yaml"
        file.write_text(f"username: doc\npassword: {password}\n")
        file.chmod(0o600)
        known = SimpleNamespace(pacs_credentials=file if password else None, pacs_ca=None)
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", url)
        monkeypatch.setattr(
            dicom_proxy, "app_instance", lambda: SimpleNamespace(models=SimpleNamespace(settings=known))
        )

    return point


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """A PACS that asks for a password, with one series."""
    folder = tmp_path_factory.mktemp("pacs")
    with running_orthanc(folder / "orthanc", users={"doc": "secret"}) as orthanc:
        orthanc.upload(*write(build_slices(volume()), folder / "series").iterdir())
        yield orthanc


@pytest.fixture
def pacs(orthanc, point_at):
    point_at(orthanc.dicomweb_url, password="secret")
    return orthanc


def get(url: str, **options) -> requests.Response:
    return requests.get(url, timeout=SECONDS, **options)


# ---- a real PACS ----


def test_searches_pass_with_their_query_and_name_no_address_of_the_pacs(proxy, pacs):
    found = get(f"{proxy}/qido/studies?PatientID=P-1&includefield=00081030,00080061&limit=5")
    assert found.headers["content-type"].startswith("application/dicom+json")
    [study] = found.json()
    assert study["00081030"]["Value"] == ["Phantom study"], "fields in one list, which Orthanc alone would not see"
    assert study["00081190"]["Value"][0].startswith("/proxy/dicom/wado/studies/")
    assert pacs.url not in found.text
    assert get(f"{proxy}/qido/studies?PatientID=nobody").json() == []
    for pattern in ("%2A%5EJ%2A", "M*", "*^J*"):  # as browsers write wildcards and the sign between names
        assert len(get(f"{proxy}/qido/studies?PatientName={pattern}").json()) == 1, pattern


def test_what_is_retrieved_is_what_the_pacs_has(proxy, pacs):
    asked = {"headers": {"Accept": 'multipart/related; type="application/dicom"'}}
    mine = get(f"{proxy}/wado/{SERIES}", **asked)
    direct = get(f"{pacs.dicomweb_url}/{SERIES}", auth=pacs.auth, **asked)
    assert mine.headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert len(mine.content) == len(direct.content) > 1000
    metadata = get(f"{proxy}/wado/{SERIES}/metadata")
    assert len(metadata.json()) == 6 and pacs.url not in metadata.text
    assert get(f"{proxy}/qido/{SERIES}/metadata").json() == metadata.json()


def as_bytes(ds: Dataset) -> bytes:
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def segmentation(tmp_path, **changes) -> Dataset:
    """A SEG of the series that the PACS has, as a viewer exports it."""
    folder = tmp_path / "source"
    mask = mask_in((13, 11, 6))
    source = read_series(folder if folder.is_dir() else write(build_slices(volume()), folder))
    ds = build_segmentation(
        mask, source, [Segment(1, "one", "#FF0000"), Segment(2, "two", "#00FF00")], Origin("model", "1")
    )
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    for of_file, of_object in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        setattr(ds.file_meta, of_file, ds[of_object].value)
    return ds


def store(
    url: str, *instances: bytes, kind: str = 'multipart/related; type="application/dicom"; boundary=x', **options
):
    head = b"--x\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + instance + b"\r\n" for instance in instances) + b"--x--\r\n"
    return requests.post(url, data=body, headers={"Content-Type": kind}, timeout=SECONDS)


def test_a_segmentation_is_stored_once_and_replaced_by_nobody(proxy, pacs, tmp_path):
    ds = segmentation(tmp_path)
    study = series_uid("a series study")
    content = as_bytes(ds)
    assert store(f"{proxy}/stow/studies/{study}", content).status_code == 200
    asked = {"headers": {"Accept": 'multipart/related; type="application/dicom"'}}
    place = f"wado/studies/{study}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    kept = get(f"{proxy}/{place}", **asked).content
    ds.PixelData = bytes(len(ds.PixelData))
    again = store(f"{proxy}/stow/studies", as_bytes(ds))
    assert (again.status_code, "has this instance already" in again.text) == (409, True)
    assert len(get(f"{proxy}/{place}", **asked).content) == len(kept)
    assert store(f"{proxy}/stow/studies", content, kind="text/plain").status_code == 415


def test_nothing_but_segmentations_of_the_pacs_own_studies_is_stored(proxy, pacs, tmp_path):
    """No image, no series that is an image's, no other patient, and nothing beside something that is refused."""
    [image] = build_slices(volume((9, 7, 1)), series="stored")
    report = segmentation(tmp_path, SOPClassUID=uid.EnhancedSRStorage)
    deflated = segmentation(tmp_path)
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    whole = as_bytes(segmentation(tmp_path))
    disguised = whole.replace(b".1.66.4", b".1.77.4", 1)  # in the file meta information
    before = pacs.request("GET", "/statistics").json()["CountInstances"]
    refused = [
        (403, "given MR Image Storage", as_bytes(image)),
        (403, "given Enhanced SR Storage", as_bytes(report)),
        (403, "another one", as_bytes(segmentation(tmp_path, StudyInstanceUID="1.2.3"))),
        (403, "Patient ID", as_bytes(segmentation(tmp_path, PatientID="P-2"))),
        (403, "series of its own", as_bytes(segmentation(tmp_path, SeriesInstanceUID=series_uid("a series")))),
        (400, "names several", disguised),
        (400, "not deflated", as_bytes(deflated)),
        (400, "several or none", whole[:700]),
        (400, "meta information", b"no DICOM"),
        (400, "meta information", b""),
    ]
    for status, words, content in refused:
        answer = store(f"{proxy}/stow/studies", whole, content)
        assert (answer.status_code, words in answer.text) == (status, True), (words, answer.text)
    assert store(f"{proxy}/stow/studies", whole, whole).status_code == 409
    assert store(f"{proxy}/stow/studies/1.2.3", whole).status_code == 403
    assert store(f"{proxy}/stow/studies").status_code == 400
    assert store(f"{proxy}/stow/studies", *[whole] * 65).status_code == 413
    assert pacs.request("GET", "/statistics").json()["CountInstances"] == before


def element(tag: int, kind: bytes, value: bytes) -> bytes:
    """In Explicit VR Little Endian, with a length of 16 bits."""
    value += (b" " if kind == b"LO" else b"\0") * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, kind, len(value)) + value


def test_an_instance_that_says_something_twice_does_not_reach_the_pacs(proxy, pacs, tmp_path):
    """Of two, pydicom takes the last, Orthanc the first: it went to a study and a patient that nobody had checked."""
    whole = as_bytes(segmentation(tmp_path))
    before = pacs.request("GET", "/statistics").json()["CountInstances"]
    twice = {
        0x0020000D: (b"UI", b"1.2.3.4"),
        0x00100020: (b"LO", b"P-9"),
        0x00080016: (b"UI", uid.MRImageStorage.encode()),
        0x00080018: (b"UI", b"1.2.3.9"),
        0x0020000E: (b"UI", series_uid("a series").encode()),
        0x00020010: (b"UI", uid.ImplicitVRLittleEndian.encode()),
    }
    for tag, (kind, value) in twice.items():
        at = whole.index(struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, kind), 132)
        for place in (at, len(whole)):  # the last one counts for other programs
            answer = store(f"{proxy}/stow/studies", whole[:place] + element(tag, kind, value) + whole[place:])
            assert (answer.status_code, "each once and in order" in answer.text) == (400, True), (hex(tag), answer.text)
    for cut in (whole[:-1], whole + bytes(7)):
        assert store(f"{proxy}/stow/studies", cut).status_code == 400
    assert pacs.request("GET", "/statistics").json()["CountInstances"] == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", f"wado/{SERIES}", 405),
        ("PUT", "qido/studies", 405),
        ("POST", "qido/studies", 405),
        ("GET", "stow/studies", 405),
        ("GET", "qido/system", 404),
        ("GET", "qido/../instances", 404),
        ("GET", "qido/%2e%2e/instances", 404),
        ("GET", "wado/studies", 404),
        ("GET", f"wado/{SERIES}/reject", 404),
        ("POST", "stow/studies/1.2/rejected", 404),
        ("GET", "studies", 404),
        ("GET", "wado/studies/x", 404),
        ("GET", "wado/studies/1.2//instances", 404),
    ],
)
def test_nothing_but_dicomweb_reaches_the_pacs(proxy, pacs, method, path, status):
    request = requests.Request(method, f"{proxy}/{path}").prepare()
    request.url = f"{proxy}/{path}"  # as it stands, `..` too
    with requests.Session() as session:
        assert session.send(request, timeout=SECONDS).status_code == status


def test_a_refusal_of_the_servers_own_password_is_no_401(proxy, orthanc, point_at):
    point_at(orthanc.dicomweb_url, password="wrong")
    answer = get(f"{proxy}/qido/studies")
    assert answer.status_code == 502 and "see its credentials" in answer.text
    assert "wrong" not in answer.text


def test_no_search_is_logged(proxy, pacs, caplog):
    with caplog.at_level(logging.INFO):
        get(f"{proxy}/qido/studies?PatientID=P-1").raise_for_status()
    assert "P-1" not in caplog.text


def test_without_a_pacs_it_says_so(proxy, point_at, tmp_path):
    point_at(str(tmp_path))
    answer = get(f"{proxy}/qido/studies")
    assert answer.status_code == 404 and "no PACS" in answer.text


# ---- a PACS that misbehaves ----


class _Faulty(BaseHTTPRequestHandler):
    """Does to each request what `server.behave` says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.behave(self)

    def do_POST(self) -> None:
        self.server.behave(self)

    def log_message(self, *_) -> None:
        pass

    def begin(self, length: int, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def misbehaving(behave: Callable[[_Faulty], None]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Faulty)
    server.behave = behave
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def answer_with(status: int, headers: dict[str, str], body: bytes = b"<script>alert(1)</script>"):
    def behave(handler: _Faulty) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


@pytest.mark.parametrize(
    "kind",
    ["text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml",
     "text/javascript", "application/pdf", "message/rfc822", "multipart/mixed; boundary=x",
     "text/html, image/png", "x"],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 404, 500])
def test_what_a_browser_might_run_is_not_handed_on_under_our_name(proxy, point_at, kind, status):
    with misbehaving(answer_with(status, {"Content-Type": kind})) as url:
        point_at(url)
        answer = get(f"{proxy}/wado/{SERIES}")
    assert answer.status_code == (502 if status == 200 else status)
    assert "alert" not in answer.text and answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "kind",
    ["application/dicom", "application/dicom+json", "application/json; charset=utf-8", "application/dicom+xml",
     'multipart/related; type="application/octet-stream"; boundary=x', "application/octet-stream", "image/jpeg",
     "image/x-dicom-rle", "image/jxl", "video/mp4", None],
)  # fmt: skip
def test_media_types_of_dicomweb_pass_and_run_nothing(proxy, point_at, kind):
    with misbehaving(answer_with(200, {"Content-Type": kind} if kind else {})) as url:
        point_at(url)
        answer = get(f"{proxy}/wado/{SERIES}")
    assert answer.status_code == 200 and "script" in answer.text
    assert answer.headers["content-type"] == (kind or "application/octet-stream")
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "attachment"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_nobody_is_led_from_the_pacs_to_elsewhere(proxy, point_at, status):
    asked = []

    def behave(handler: _Faulty) -> None:
        asked.append(handler.path)
        answer_with(status, {"Location": "/elsewhere", "Content-Type": "application/dicom+json"}, b"")(handler)

    with misbehaving(behave) as url:
        point_at(url)
        answer = get(f"{proxy}/wado/{SERIES}", allow_redirects=False)
    assert answer.status_code == 502 and "location" not in answer.headers and len(asked) == 1


def test_no_cookie_and_no_other_header_passes_in_either_direction(proxy, point_at):
    seen = []

    def behave(handler: _Faulty) -> None:
        seen.append(dict(handler.headers))
        answer_with(200, {
            "Content-Type": "application/dicom+json", "Set-Cookie": "session=of-the-pacs; Path=/", "Server": "PACS/1.0",
            "Access-Control-Allow-Origin": "*", "Refresh": "0;url=//evil.example", "Link": "<//evil.example>",
            "Clear-Site-Data": '"*"', "Content-Location": "//evil.example", "Trailer": "X", "Keep-Alive": "timeout=5",
        }, b"[]")(handler)  # fmt: skip

    with misbehaving(behave) as url:
        point_at(url)
        sent = {"Cookie": "iopfl_1=of-ours", "Authorization": "Bearer ours", "X-Other": "x", "Range": "bytes=0-1"}
        answers = [get(f"{proxy}/qido/studies", headers=sent) for _ in range(2)]
    passed = {name.lower() for answer in answers for name in answer.headers}
    assert passed <= {"content-type", "content-security-policy", "x-content-type-options", "content-disposition",
                      "date", "server", "transfer-encoding"}  # fmt: skip
    assert {answer.headers["server"] for answer in answers} == {"uvicorn"}
    brought = {name.lower() for headers in seen for name in headers}
    assert not brought & {"cookie", "authorization", "x-other", "range"}


def test_an_answer_is_passed_on_before_it_is_whole(proxy, point_at):
    seen = threading.Event()

    def behave(handler: _Faulty) -> None:
        handler.begin(2000)
        handler.wfile.write(b"a" * 1000)
        assert seen.wait(SECONDS), "the first half was held back"
        handler.wfile.write(b"b" * 1000)

    with misbehaving(behave) as url:
        point_at(url)
        with get(f"{proxy}/wado/{SERIES}", stream=True) as answer:
            pieces = answer.iter_content(1000)
            assert next(pieces) == b"a" * 1000
            seen.set()
            assert b"".join(pieces) == b"b" * 1000


def test_an_instance_that_is_being_stored_is_stored_by_nobody_else(proxy, point_at, tmp_path):
    """The PACS does not have it yet, and would keep what came last."""
    ds, arrived, go_on = segmentation(tmp_path), threading.Event(), threading.Event()
    known = {"0020000D": {"vr": "UI", "Value": [str(ds.StudyInstanceUID)]}}

    def behave(handler: _Faulty) -> None:
        text = json.dumps([known] if handler.path.split("?")[0].endswith("/studies") else []).encode()
        if handler.command == "POST":
            handler.rfile.read(int(handler.headers["content-length"]))
            arrived.set()
            go_on.wait(SECONDS)
            text = b"{}"
        handler.begin(len(text), "application/dicom+json")
        handler.wfile.write(text)

    with misbehaving(behave) as url, ThreadPoolExecutor(1) as pool:
        point_at(url)
        first = pool.submit(store, f"{proxy}/stow/studies", as_bytes(ds))
        assert arrived.wait(SECONDS)
        ds.PixelData = bytes(len(ds.PixelData))
        try:
            second = store(f"{proxy}/stow/studies", as_bytes(ds))
        finally:
            go_on.set()
        assert (second.status_code, "being stored" in second.text) == (409, True)
        assert first.result().status_code == 200
        assert store(f"{proxy}/stow/studies", as_bytes(ds)).status_code == 200, "no more on its way"


def test_what_is_stored_takes_no_memory_of_its_size(proxy, point_at, tmp_path):
    size, got = 2**26, []
    ds = segmentation(tmp_path)
    ds.PixelData = bytes(size)
    content = as_bytes(ds)

    def behave(handler: _Faulty) -> None:
        if handler.command == "GET":
            known = {"0020000D": {"vr": "UI", "Value": [str(ds.StudyInstanceUID)]}}
            text = json.dumps([known] if handler.path.split("?")[0].endswith("/studies") else []).encode()
        else:
            left, text = int(handler.headers["content-length"]), b"{}"
            while left:
                got.append(len(handler.rfile.read(min(left, 2**20))))
                left -= got[-1]
        handler.begin(len(text), "application/dicom+json")
        handler.wfile.write(text)

    def body() -> Iterator[bytes]:
        yield b"--x\r\nContent-Type: application/dicom\r\n\r\n"
        yield from (content[start : start + 2**20] for start in range(0, len(content), 2**20))
        yield b"\r\n--x--"

    with misbehaving(behave) as url:
        point_at(url)
        kind = {"Content-Type": "multipart/related; boundary=x"}
        tracemalloc.start()
        try:
            answer = requests.post(f"{proxy}/stow/studies", data=body(), headers=kind, timeout=60)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.status_code == 200 and sum(got) > size, answer.text
    assert peak < 2**24


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(proxy, point_at):
    def behave(handler: _Faulty) -> None:
        handler.begin(2000)
        handler.wfile.write(b"a" * 1000)
        handler.close_connection = True

    with misbehaving(behave) as url:
        point_at(url)
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            _ = get(f"{proxy}/wado/{SERIES}").content


def test_silence_is_given_up(proxy, point_at, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.3)
    release = threading.Event()
    with misbehaving(lambda handler: release.wait(SECONDS)) as url:
        point_at(url)
        answer = get(f"{proxy}/qido/studies")
        release.set()
    assert answer.status_code == 502 and "does not answer" in answer.text


def test_a_trickle_ends(proxy, point_at, monkeypatch):
    monkeypatch.setattr(dicom_proxy, "TOTAL_SECONDS", 0.5)
    ended = threading.Event()

    def behave(handler: _Faulty) -> None:
        handler.begin(10**9)
        while not ended.wait(0.05):
            handler.wfile.write(b"a")

    with misbehaving(behave) as url:
        point_at(url)
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            _ = get(f"{proxy}/wado/{SERIES}").content
        ended.set()


def test_who_does_not_wait_for_the_answer_keeps_no_connection_to_the_pacs(point_at, monkeypatch, tmp_path):
    """OHIF drops what it asked for when somebody closes the series; that it was opened is recorded all the same."""
    monkeypatch.setattr(dicom_proxy, "_MAX_CONNECTIONS", 2)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 2)
    asked, may_answer = threading.Semaphore(0), threading.Event()

    def behave(handler: _Faulty) -> None:
        asked.release()
        may_answer.wait(SECONDS)
        handler.begin(4)
        handler.wfile.write(b"done")

    access = Access(AccessSettings(mode="off", state=tmp_path))
    with misbehaving(behave) as url, running_proxy(lambda app: install(app, access)) as proxy:
        point_at(url)
        address = urlsplit(proxy)
        for _ in range(4):
            may_answer.clear()
            with socket.create_connection((address.hostname, address.port)) as person:
                person.sendall(f"GET {address.path}/wado/{SERIES}/metadata HTTP/1.1\r\nHost: here\r\n\r\n".encode())
                assert asked.acquire(timeout=SECONDS)
            time.sleep(0.1)  # the server has seen that nobody is there
            may_answer.set()
            time.sleep(0.1)
        assert get(f"{proxy}/wado/{SERIES}/metadata").content == b"done"


def test_an_address_on_the_border_of_two_pieces_is_replaced(proxy, point_at):
    def behave(handler: _Faulty) -> None:
        root = f"http://{handler.headers['host']}/dicom-web"
        text = json.dumps([{"BulkDataURI": f"{root}/studies/1/bulk/{number}"} for number in range(50)]).encode()
        handler.begin(len(text), "application/dicom+json")
        for start in range(0, len(text), 7):
            handler.wfile.write(text[start : start + 7])
            handler.wfile.flush()

    with misbehaving(behave) as url:
        point_at(url)
        found = get(f"{proxy}/wado/{SERIES}/metadata").json()
    assert [item["BulkDataURI"] for item in found] == [
        f"/proxy/dicom/wado/studies/1/bulk/{number}" for number in range(50)
    ]
