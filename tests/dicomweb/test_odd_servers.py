"""Servers that do not all that QIDO-RS, WADO-RS and STOW-RS ask for: what can be had is had, and the rest is said."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO

import pytest

from dicomweb.odd_server import FAILED, JSON, OddServer, encode, header, multipart, odd_server, receipt, to_xml
from dimse.nodes import make_slices
from iopfl.base.errors import NotTakenError, PACSAwayError, PACSError
from iopfl.dicomio.series import read_series
from iopfl.dicomweb.client import DICOMweb, Endpoint, UnansweredError
from iopfl.dimse.outbox import send
from iopfl.dimse.rules import Stow

MR = {"Modality": "MR"}
NAMES = ("one", "two", "three", "four", "five")


@pytest.fixture
def server() -> Iterator[OddServer]:
    """Five series of MR, of a study each, and one of CT."""
    with odd_server() as server:
        for name in NAMES:
            server.add(make_slices(2, series=name))
        computed = make_slices(2, series="computed")
        for ds in computed:
            ds.Modality = "CT"
        server.add(computed)
        yield server


@pytest.fixture
def client(server) -> Iterator[DICOMweb]:
    with closing(DICOMweb(Endpoint(server.url, name="the PACS", attempts=1))) as client:
        yield client


def refuse(*statuses_and_conditions) -> Callable:
    """Answers requests to which a condition applies with its status."""

    def before(method, path, query):
        for status, applies in statuses_and_conditions:
            if applies(method, path, query):
                return status, b"refused", "text/plain"
        return None

    return before


def all_series(method, path, query) -> bool:
    return path == "/series"


def names_of(client, **filters) -> list[int]:
    return sorted(series.instances for series in client.find_series({**MR, **filters}, limit=100))


def without(*tags) -> Callable:
    return lambda item: {tag: element for tag, element in item.items() if tag not in tags}


ODD_SEARCHES = {
    "refuses more than 3": refuse((400, lambda m, p, q: int(q.get("limit", 100)) > 3)),
    "too large for 413": refuse((413, lambda m, p, q: int(q.get("limit", 100)) > 100)),
    "refuses any limit": refuse((400, lambda m, p, q: "limit" in q)),
    "refuses an offset": refuse((400, lambda m, p, q: "offset" in q)),
    "refuses further fields": refuse((400, lambda m, p, q: "includefield" in q)),
    "has no search over all series": refuse((404, all_series)),
    "wants the study": refuse((400, all_series)),
    "does not implement it": refuse((501, all_series)),
    "knows no modalities of a study": refuse((404, all_series), (400, lambda m, p, q: "ModalitiesInStudy" in q)),
}


@pytest.mark.parametrize("habit", ODD_SEARCHES)
def test_series_are_found_however_a_server_can_be_asked_and_it_is_remembered(server, client, habit):
    server.before = ODD_SEARCHES[habit]
    assert names_of(client) == [2] * 5
    assert len(client.cannot) <= 1 and all(len(line) < 150 for line in client.cannot), client.cannot
    first = len(server.asked)
    assert names_of(client) == [2] * 5
    assert len(server.asked) - first <= 1 + 5 + 1, "what was found out is not tried again"


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("200 with nothing", (200, b"", "")),
        ("204", (204, b"", "")),
        ("an empty list", (200, b"[]", JSON)),
        ("404", (404, b"no series", "text/plain")),
    ],
)
def test_nothing_is_found_in_many_forms(server, client, form, found):
    server.before = lambda method, path, query: found if query.get("Modality") == "SEG" else None
    assert client.find_series({"Modality": "SEG"}, limit=9) == [] and client.cannot == []


def test_no_address_at_all_is_no_empty_pacs(server, client):
    server.before = lambda *_: (404, b"", "")
    with pytest.raises(PACSError, match="refused a search for series with status 404"):
        client.find_series(MR, limit=9)


@pytest.mark.parametrize("status", [500, 502])
def test_what_failed_once_is_asked_again(server, client, status):
    server.before = refuse((status, all_series))
    assert names_of(client) == [2] * 5
    server.before = lambda *_: None
    server.asked.clear()
    assert names_of(client) == [2] * 5 and {path for _, path, _ in server.asked} == {"/series"}


def test_pages_are_followed_where_there_are_any(server, client):
    client._search._page = 2
    assert names_of(client) == [2] * 5
    server.asked.clear()
    server.before = lambda method, path, query: query.update(offset="0")  # the first page again and again
    assert names_of(client) == [2] * 5 and len(server.asked) == 3, "and then all at once"
    assert names_of(client) == [2] * 5 and len(server.asked) == 5
    assert client.cannot == []
    server.before = lambda method, path, query: query.update({"offset": "0", "limit": "2"})
    assert len(names_of(client)) == 2
    assert "the first 2 series alone" in client.cannot[0]


def test_a_server_that_knows_neither_limit_nor_offset_is_asked_twice(server, client):
    server.before = lambda method, path, query: query.update({"offset": "0", "limit": "99"})
    assert names_of(client) == [2] * 5 and len(server.asked) == 2 and client.cannot == []


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_pages_smaller_than_asked_for_are_followed_too(server, client, most):
    server.before = lambda method, path, query: query.update(limit=str(most))
    assert names_of(client) == [2] * 5 and client.cannot == []


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, 5),
        ({"SeriesDescription": "t2*"}, 2),
        ({"BodyPartExamined": "PROSTATE"}, 1),
        ({"StudyInstanceUID": "5"}, 0),
        ({"00080060": "MR"}, 5),
    ],
)
def test_what_a_server_should_not_have_found_is_left_out(server, client, filters, found):
    described = iter(["T2 axial", "T1", "t2 coronal", "", "ADC"])
    parts = iter(["BRAIN", "PROSTATE", "ABDOMEN", "KNEE", "HIP"])
    for name in NAMES:
        description, part = next(described), next(parts)
        for ds in server.instances.values():
            if ds.SeriesInstanceUID == make_slices(1, series=name)[0].SeriesInstanceUID:
                ds.SeriesDescription, ds.BodyPartExamined = description, part
    server.before = lambda method, path, query: [query.pop(key, None) for key in list(query)] and None
    asked = client.find_series({**MR, **filters}, limit=100)
    if "StudyInstanceUID" not in filters:
        assert {series.modality for series in asked} <= {"MR"}
    # What an empty description is like cannot be known.
    assert len(asked) - (filters.get("SeriesDescription") is not None) == found
    assert "ignores the filter" in client.cannot[0]
    assert not any("t2" in line for line in client.cannot), "its value may be a patient's"


def test_a_series_without_its_study_is_found_by_studies(server, client):
    server.change = without("0020000D")
    server.before = lambda method, path, query: None
    with pytest.raises(PACSError, match=r"without their Study Instance UID"):
        server.before = refuse((404, lambda m, p, q: p.startswith("/studies")))
        client.find_series(MR, limit=9)
    server.before = lambda *_: None
    server.change = lambda item: without("0020000D")(item) if "0020000E" in item else item
    found = client.find_series(MR, limit=9)
    assert {series.study for series in found} == {make_slices(1, series=n)[0].StudyInstanceUID for n in NAMES}
    assert "study by study" in client.cannot[0]


def test_studies_that_did_not_change_are_not_asked_again(server, client):
    server.before = refuse((404, all_series))
    names_of(client)
    server.asked.clear()
    names_of(client)
    assert [path for _, path, _ in server.asked] == ["/studies"] * 2
    server.add(make_slices(3, series="one"))
    assert names_of(client) == [2, 2, 2, 2, 3]


def in_json(
    change: Callable = lambda item: item, *, kind: str = JSON, encoding: str = "utf-8", times: int = 1
) -> Callable:
    """Data sets in JSON, changed."""
    return lambda items: (json.dumps([change(i) for i in items * times], ensure_ascii=False).encode(encoding), kind)


def in_parts(items) -> tuple[bytes, str]:
    head = "--x\r\nContent-Type: application/dicom+xml\r\n\r\n"
    return "".join(f"{head}{xml}\r\n" for xml in to_xml(items)).encode() + b"--x--", "multipart/related; boundary=x"


def with_nulls(item):
    return {**item, "0008103E": {"vr": "LO", "Value": [None]}, "00081030": {"vr": "LO", "Value": None}}


ODD_FORMS = {
    "small letters": in_json(lambda item: {tag.lower(): element for tag, element in item.items()}),
    "null": in_json(lambda item: {**item, "00081030": None, "00200011": {"vr": "IS"}}),
    "null values": in_json(with_nulls),
    "no media type": in_json(kind=""),
    "another media type": in_json(kind="text/html"),
    "a byte order mark": in_json(encoding="utf-8-sig"),
    "text that is no UTF-8": in_json(
        lambda item: {**item, "00081030": {"vr": "LO", "Value": ["B\xf6se"]}}, encoding="latin-1"
    ),
    "twice": in_json(times=2),
    "XML": lambda items: (f"<results>{''.join(to_xml(items))}</results>".encode(), "application/dicom+xml"),
    "XML in parts": in_parts,
}


@pytest.mark.parametrize("form", ODD_FORMS)
def test_answers_in_any_form_are_read(server, client, form):
    server.write = ODD_FORMS[form]
    assert names_of(client) == [2] * 5 and client.cannot == []
    series = client.find_series(MR, limit=1)[0]
    assert client.read_first_headers(series)[0].SOPClassUID == make_slices(1)[0].SOPClassUID
    assert {str(ds.PatientName) for ds in client.read_headers(series)}


@pytest.mark.parametrize(
    "body",
    [
        b"<html><body>Please sign in</body></html>",
        b"<!DOCTYPE html><html></html>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><NativeDicomModel/>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x><NativeDicomModel/>'.encode("utf-16"),
        b'{"error": "no session"}',
        b"[1, 2]",
        b"[" * 50_000,
        b"OK",
        b'[{"0020000D": 7}]',
    ],
)
def test_what_is_no_dicom_is_said_to_be_none(server, client, body):
    server.before = lambda *_: (200, body, JSON)
    with pytest.raises(PACSError, match="something else than DICOM"):
        client.find_series(MR, limit=9)


def test_counts_that_are_none_or_wrong_leave_the_series(server, client):
    for value in ("2", "two", -1, None, [], 2.0):
        server.change = lambda item, value=value: {**item, "00201209": {"vr": "IS", "Value": [value]}}
        assert names_of(client) in ([2] * 5, [0] * 5)


def whole(answer: Callable) -> Callable:
    """Answers requests for a whole series by what a function makes of its instances, and refuses single ones."""

    def make(ours: list) -> Callable:
        def before(method, path, query):
            if path.endswith(f"/series/{ours[0].SeriesInstanceUID}"):
                return answer(ours)
            return (404, b"", "") if path.rpartition("/")[0].endswith("/instances") else None

        return before

    return make


def one_by_one(answer: Callable) -> Callable:
    """Answers requests for one instance by what a function makes of it, and refuses whole series."""

    def make(ours: list) -> Callable:
        by_path = {f"/instances/{ds.SOPInstanceUID}": ds for ds in ours}

        def before(method, path, query):
            if path.endswith(f"/series/{ours[0].SeriesInstanceUID}"):
                return 406, b"", ""
            found = next((ds for end, ds in by_path.items() if path.endswith(end)), None)
            return answer([found]) if found else None

        return before

    return make


def in_zip(datasets) -> tuple[int, bytes, str]:
    with BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.txt", "a PACS")
            for ds in datasets:
                archive.writestr(f"DICOM/{ds.SOPInstanceUID}", encode(ds))
        return 200, buffer.getvalue(), "application/zip"


def in_parts_without_boundary(datasets) -> tuple[int, bytes, str]:
    return 200, multipart(datasets)[0], "multipart/related"


def alone(datasets) -> tuple[int, bytes, str]:
    return 200, encode(datasets[0]), "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"


def untyped(datasets) -> tuple[int, bytes, str]:
    return 200, encode(datasets[0]), ""


def study_alone(ours: list) -> Callable:
    return refuse((404, lambda m, p, q: "/series/" in p and not p.endswith(("/instances", "/metadata"))))


def few_elements_of_a_series(ours: list) -> Callable:
    """As Orthanc's plugin with `SeriesMetadata` set to `MainDicomTags`."""

    def before(method, path, query):
        few = [{tag: header(ds)[tag] for tag in ("00080018", "0020000E", "00200013")} for ds in ours]
        return (200, json.dumps(few).encode(), JSON) if path.endswith(f"{ours[0].SeriesInstanceUID}/metadata") else None

    return before


RETRIEVED = {
    "few elements of a series' headers": few_elements_of_a_series,
    "no headers": lambda ours: refuse((501, lambda m, p, q: p.endswith("/metadata"))),
    "one by one": lambda ours: refuse((406, lambda m, p, q: p.endswith(ours[0].SeriesInstanceUID))),
    "the first alone": lambda ours: (
        lambda m, p, q: (200, *multipart(ours[:1])) if p.endswith(ours[0].SeriesInstanceUID) else None
    ),
    "the first alone, as one part": lambda ours: (
        lambda m, p, q: alone(ours) if p.endswith(ours[0].SeriesInstanceUID) else None
    ),
    "a zip": whole(in_zip),
    "parts without a boundary": whole(in_parts_without_boundary),
    "a zip each": one_by_one(in_zip),
    "one part each": one_by_one(alone),
    "one each without a type": one_by_one(untyped),
    "studies alone": study_alone,
}


def ours_of(server, series) -> list:
    return [ds for ds in server.instances.values() if ds.SeriesInstanceUID == series.uid]


@pytest.mark.parametrize("habit", RETRIEVED)
def test_images_come_in_whichever_form_a_server_gives_them(server, client, tmp_path, habit):
    (series, *_) = client.find_series(MR, limit=1)
    ours = ours_of(server, series)
    server.before = RETRIEVED[habit](ours)
    assert client.read_first_headers(series)[0].SOPClassUID == ours[0].SOPClassUID
    assert [ds.Rows for ds in client.read_headers(series)] == [ds.Rows for ds in ours]
    for ds in client.retrieve(series):
        ds.save_as(tmp_path / f"{ds.InstanceNumber}.dcm", enforce_file_format=True)
    assert read_series(tmp_path).shape[2] == 2 and client.cannot == []


def as_json(datasets) -> tuple[int, bytes, str]:
    return 200, json.dumps([header(ds) for ds in datasets]).encode(), "application/json; charset=utf-8"


UNABLE = {
    "JSON": (whole(as_json), "gives the images of a series as application/json; what is read is"),
    "JSON each": (one_by_one(as_json), "gives the images of a series as application/json; what is read is"),
    "a page": (whole(lambda _: (200, b"<html>", "text/html")), "gives the images of a series as text/html; what"),
    "half a zip": (
        whole(lambda ours: (200, in_zip(ours)[1][:-30], "application/zip")),
        "a zip archive that is damaged",
    ),
    "one of all": (whole(alone), "gives one instance where all of a series are asked for, and refuses the others"),
    "nothing": (lambda ours: refuse((406, lambda m, p, q: "?" not in p and p.count("/") in (2, 4, 6))), "status 406"),
}


@pytest.mark.parametrize("habit", UNABLE)
def test_a_server_that_gives_no_images_in_a_form_that_is_read_is_said_to_be_one(server, client, habit):
    (series, *_) = client.find_series(MR, limit=1)
    make, said = UNABLE[habit]
    forms = make(ours_of(server, series))
    server.before = lambda m, p, q: (404, b"", "") if p.count("/") == 2 else forms(m, p, q)
    with pytest.raises(PACSError, match=said):
        list(client.retrieve(series))
    (line,) = client.cannot
    assert said in line
    server.before = lambda *_: None
    assert len(list(client.retrieve(series))) == 2 and client.cannot == []


# ---- storing ----


def says(status: int, body: bytes = b"", kind: str = JSON, *, keeps: bool = True) -> Callable:
    def make(server: OddServer) -> Callable:
        def stow(ds):
            if keeps:
                server.add([ds])
            return status, body, kind

        return stow

    return make


def answers(status: int, *, keeps: bool = True, **about) -> Callable:
    def make(server: OddServer) -> Callable:
        def stow(ds):
            if keeps:
                server.add([ds])
            return status, json.dumps(receipt(ds, **about)).encode(), JSON

        return stow

    return make


def in_xml(server: OddServer) -> Callable:
    def stow(ds):
        server.add([ds])
        return 200, to_xml([receipt(ds)])[0].encode(), "application/dicom+xml"

    return stow


STORED_ALL_THE_SAME = {
    "XML": in_xml,
    "XML that says nothing": says(200, b"<NativeDicomModel/>", "application/dicom+xml"),
    "nothing": says(200),
    "204": says(204),
    "a page": says(200, b"<html>stored</html>", "text/html"),
    "202": says(202),
    "a list": says(200, b"[{}]"),
    "with a warning": answers(202, reason=0xB000),
    "exists, by status": says(409, b"exists", "text/plain"),
    "exists, by reason": answers(409, tag=FAILED, reason=0x0111, keeps=False),
    "failed, but is there": answers(200, tag=FAILED, reason=0x0110),
    "refuses what it has": says(400, b"duplicate", "text/plain"),
    "fails after it has it": says(500),
}
NOT_STORED = {
    "failed": answers(200, tag=FAILED, reason=0x0110, keeps=False),
    "failed, 202": answers(202, tag=FAILED, reason=0x0110, keeps=False),
    "conflict": answers(409, tag=FAILED, reason=0x0110, keeps=False),
    "a page to sign in": says(200, b"<html>sign in</html>", "text/html", keeps=False),
    "202, and nothing comes": says(202, keeps=False),
    "takes nothing": says(405, keeps=False),
}


@pytest.mark.parametrize("habit", STORED_ALL_THE_SAME)
def test_what_a_server_has_is_stored_whatever_it_answers(server, client, habit):
    (ds,) = make_slices(1, series="new")
    server.stow = STORED_ALL_THE_SAME[habit](server)
    assert client.store(ds) == ds.SOPInstanceUID and server.count("POST") == 1


@pytest.mark.parametrize("habit", NOT_STORED)
def test_what_it_has_not_is_offered_again_after_it_was_searched_for(server, client, habit):
    (ds,) = make_slices(1, series="new")
    server.stow = NOT_STORED[habit](server)
    for again in (False, True):
        with pytest.raises(PACSError):
            client.store(ds, again=again)
    assert server.count("POST") == 2
    server.add([ds])
    assert client.store(ds, again=True) == ds.SOPInstanceUID and server.count("POST") == 2


NEVER_STORED = {
    "no service": (says(405, keeps=False), "takes nothing by STOW-RS: it answers with status 405"),
    "not built": (says(501, keeps=False), "takes nothing by STOW-RS: it answers with status 501"),
    "no such class": (
        answers(200, tag=FAILED, reason=0x0122, keeps=False),
        "takes no MR Image Storage (failure reason 290, its SOP class is not taken)",
    ),
    "no such class, 409": (answers(409, tag=FAILED, reason=0x0122, keeps=False), "takes no MR Image Storage"),
    "not its class": (answers(202, tag=FAILED, reason=0xA900, keeps=False), ""),
    "not understood": (answers(409, tag=FAILED, reason=0xC000, keeps=False), ""),
}


@pytest.mark.parametrize("habit", NEVER_STORED)
def test_what_a_server_will_never_take_is_told_from_what_it_did_not_take_now(server, client, habit):
    (ds,) = make_slices(1, series="new")
    make, line = NEVER_STORED[habit]
    server.stow = make(server)
    with pytest.raises(NotTakenError) as caught:
        client.store(ds)
    assert caught.value.line.startswith(line) and client.cannot == ([caught.value.line] if line else [])
    for reason in (0x0110, 0xA700, 0x0124):
        server.stow = answers(200, tag=FAILED, reason=reason, keeps=False)(server)
        with pytest.raises(PACSError, match=f"failure reason {reason}, ") as caught:
            client.store(ds)
        assert not isinstance(caught.value, NotTakenError)
    server.stow = server.keep
    client.store(ds)
    assert client.cannot == []


def test_an_instance_that_a_server_renames_is_known_by_its_new_name(server, client):
    (ds,) = make_slices(1, series="new")
    server.stow = answers(200, uid="1.2.3", keeps=False)(server)
    assert client.store(ds) == "1.2.3"


def test_whether_it_was_sent_is_told_from_whether_it_was_answered(server, client):
    (ds,) = make_slices(1, series="new")
    server.before = lambda method, *_: (503, b"", "") if method == "POST" else None
    with pytest.raises(UnansweredError, match="storing with status 503"):
        client.store(ds, again=True)
    server.before = lambda *_: (503, b"", "")
    with pytest.raises(PACSAwayError) as caught:
        client.store(ds, again=True)
    assert not isinstance(caught.value, UnansweredError) and server.count("POST") == 1


def test_a_server_without_search_is_believed_in_what_it_answers(server, client):
    (ds,) = make_slices(1, series="new")
    server.before = lambda method, *_: (404, b"", "") if method == "GET" else None
    for stow in (says(200), says(202), answers(409, tag=FAILED, reason=0x0111)):
        server.stow = stow(server)
        assert client.store(ds, again=True) == ds.SOPInstanceUID


def test_the_listener_searches_too_before_it_sends_again(server, tmp_path):
    instances = make_slices(2, series="new")
    for ds in instances:
        ds.save_as(tmp_path / f"{ds.InstanceNumber}.dcm", enforce_file_format=True)
    paths = sorted(tmp_path.iterdir())
    server.stow = says(409, keeps=False)(server)
    with pytest.raises(PACSError, match="status 409"):
        send(paths, Stow(server.url), ae_title="IOPFL")
    server.add(instances[:1])
    server.stow = server.keep
    send(paths, Stow(server.url), ae_title="IOPFL", again=True)
    assert server.count("POST") == 2 and {ds.SOPInstanceUID for ds in instances} <= set(server.instances)
