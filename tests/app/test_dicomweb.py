"""A real PACS, Orthanc, as the datastore: series in, segmentations out and back, and whatever may go wrong between."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from pydicom import Dataset, dcmread

from dicomio.phantoms import build_slices, series_uid, volume, write
from iopfl.core.errors import ConfigError, PACSAwayError, PACSError, SeriesError
from iopfl.core.task import Task
from iopfl.dicomio.segmentation import Origin, build_segmentation, read_segmentation, segments_of
from iopfl.dicomio.series import read_series
from iopfl.lib.final_labels import FinalRule
from iopfl.lib.pacs import PACSAccess
from label_server import wait_until
from orthanc import Orthanc, running_orthanc

from .site import GLAND

TASK = replace(GLAND, labels={"left": 1, "right": 2}, codes={})
SHAPE = (13, 11, 6)
SERIES = [series_uid(name) for name in ("first", "second")]
SECONDS = 30.0


@pytest.fixture(scope="module", autouse=True)
def _patched() -> None:
    from iopfl.compat import apply_tasks

    apply_tasks()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), settings={"DicomWeb": {"Enable": True}}) as running:
        yield running


@pytest.fixture
def pacs(orthanc, tmp_path) -> Orthanc:
    """The PACS with two series of different patients, and nothing else."""
    for study in orthanc.request("GET", "/studies").json():
        orthanc.request("DELETE", f"/studies/{study}")
    for number, name in enumerate(("first", "second")):
        send(orthanc, tmp_path, name, patient=f"P-{number}", seed=number)
    return orthanc


@pytest.fixture
def open_store(tmp_path) -> Callable:
    """Open the datastore as a server does."""
    from iopfl.lib.dicomweb import PACSDatastore

    def open_store(url: str, *, task: Task = TASK, rule: str = "newest", state: str = "state", **options):
        folder = tmp_path / state / "pacs" / "here"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"cache_bytes": 10**9, "filters": {}, "tasks": {task.name: task}, "rule": FinalRule.parse(rule)}
        return PACSDatastore(PACSAccess(url), folder, labels=tmp_path / state / "labels", **{**settings, **options})

    return open_store


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


def test_series_of_the_tasks_modality_are_the_images(pacs, open_store, tmp_path):
    send(pacs, tmp_path, "computed", Modality="CT")
    store = open_store(pacs.dicomweb_url)
    assert sorted(store.list_images()) == sorted(SERIES)
    assert sorted(store.get_unlabeled_images()) == sorted(SERIES)
    status = store.status()
    assert (status["total"], status["completed"], status["pacs"]["problem"]) == (2, 0, "")
    both = open_store(pacs.dicomweb_url, tasks={"a": TASK, "b": replace(TASK, name="b", modality="CT")}, state="both")
    assert len(both.list_images()) == 3
    assert open_store(pacs.dicomweb_url, filters={"PatientID": "P-1"}, state="one").list_images() == [SERIES[1]]


def test_an_image_is_downloaded_once_whoever_asks(pacs, open_store):
    store = open_store(pacs.dicomweb_url)
    asked = Counter()
    original = store._pacs.retrieve

    def count(series):
        asked[series.uid] += 1
        return original(series)

    store._pacs.retrieve = count
    paths, ready = [], threading.Barrier(6)

    def work() -> None:
        ready.wait()
        paths.append(store.get_image_uri(SERIES[0]))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and asked == {SERIES[0]: 1}
    assert np.array_equal(values_of(paths[0]), volume(SHAPE, seed=0))
    before = Path(paths[0]).stat().st_mtime
    again = open_store(pacs.dicomweb_url, state="other")
    assert Path(again.get_image_uri(SERIES[0])).stat().st_mtime == before, "the same image, to whoever counts new ones"


def test_no_patient_is_named(pacs, open_store, tmp_path, caplog):
    caplog.set_level("DEBUG")
    store = open_store(pacs.dicomweb_url)
    store.get_image_uri(SERIES[0])
    info = store.get_image_info(SERIES[0])
    assert (info["SeriesInstanceUID"], info["StudyInstanceUID"]) == (SERIES[0], series_uid("first study"))
    assert set(info) == {"name", "path", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "instances"}
    kept = "".join(path.read_text() for path in (tmp_path / "state").rglob("*.json"))
    for text in (json.dumps(store.json(), default=str), kept, caplog.text):
        assert not any(name in text for name in ("P-0", "P-1", "Müller", "M\\u00fcller", "Jörg", "19600203", "A1"))
    store.get_image_uri(SERIES[1])
    subjects = [store.find_subject(uid) for uid in SERIES]
    assert all(subjects) and subjects[0] != subjects[1]


def test_images_of_one_patient_never_train_and_test(pacs, open_store, tmp_path):
    from iopfl.lib.datastore import split_labeled

    store = open_store(pacs.dicomweb_url)
    for number in range(6):
        send(pacs, tmp_path, f"more{number}", patient=f"P-{number % 3}", seed=number)
    until(lambda: len(store.list_images()) == 8, "the new series")
    for image in store.list_images():
        store.submit(image, draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(image)), {})
    split = split_labeled(store, TASK)
    sides = {side: {case.subject for case in split[side]} for side in ("train", "validation", "test")}
    assert len(split["all"]) == 8 and sum(map(len, sides.values())) == 3
    assert len(set().union(*sides.values())) == 3


def test_what_comes_and_goes_is_seen_within_seconds(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    assert len(store.list_images()) == 2
    path = Path(store.get_image_uri(SERIES[1]))
    send(pacs, tmp_path, "third")
    started = time.monotonic()
    until(lambda: len(store.list_images()) == 3, "the new series")
    assert time.monotonic() - started < 10
    pacs.request("DELETE", f"/series/{find_id(pacs, SERIES[1])}")
    until(lambda: SERIES[1] not in store.list_images(), "the series to go")
    until(lambda: not path.exists(), "its image to go")
    assert store.get_image_uri(SERIES[1]) == ""


def find_id(orthanc: Orthanc, uid: str) -> str:
    query = {"Level": "Series", "Query": {"SeriesInstanceUID": uid}}
    return orthanc.request("POST", "/tools/find", json=query).json()[0]


def test_a_series_that_grows_is_downloaded_again(pacs, open_store, tmp_path):
    slices = build_slices(volume(SHAPE, seed=7), series="growing")
    upload(pacs, slices[:4], tmp_path / "head")
    store = open_store(pacs.dicomweb_url)
    uid = series_uid("growing")
    assert values_of(store.get_image_uri(uid)).shape == (13, 11, 4)
    upload(pacs, slices[4:], tmp_path / "tail")
    until(lambda: store.list_images() and values_of(store.get_image_uri(uid)).shape == SHAPE, "all of it")


def test_pages_of_the_search_are_followed(pacs, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.lib.pacs._PAGE", 2)
    for number in range(5):
        send(pacs, tmp_path, f"page{number}")
    assert len(open_store(pacs.dicomweb_url).list_images()) == 7


def test_what_is_no_image_is_left_out_with_the_reason(pacs, open_store, tmp_path, caplog):
    send(pacs, tmp_path, "localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    slices = build_slices(volume(SHAPE, seed=3), series="gap")
    upload(pacs, [*slices[:2], *slices[4:]], tmp_path / "gap")
    store = open_store(pacs.dicomweb_url)
    assert series_uid("localizer") not in store.list_images()
    assert "localizer" in store.left_out()[series_uid("localizer")]
    with pytest.raises(SeriesError, match="is left out: it is a localizer"):
        store.get_image_uri(series_uid("localizer"))
    with pytest.raises(SeriesError):  # seen only by reading it
        store.get_image_uri(series_uid("gap"))
    until(lambda: series_uid("gap") not in store.list_images(), "the broken series to be left out")
    assert store.status()["pacs"]["left_out"] == 2
    assert sum(series_uid("localizer") in record.message for record in caplog.records) <= 2
    upload(pacs, slices[2:4], tmp_path / "rest")
    until(lambda: series_uid("gap") in store.list_images(), "the series to be whole")


def test_a_label_becomes_a_segmentation_and_comes_back_exactly(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    store.answers.note({"client_id": "ann", "image": SERIES[0]}, {"task": "gland", "model": "routed", "bank": "gland-1a2b"})
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    version = store.submit(SERIES[0], drawn, {"client_id": "ann"})
    assert version.is_stored and store.outbox.waiting() == []
    (ds,) = segmentations(pacs)
    assert (ds.SOPInstanceUID, ds.PatientID, ds.ContentCreatorName) == (version.sop_instance_uid, "P-0", "ann")
    described = ds.SegmentSequence[0]
    assert described.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert "gland-1a2b" in described.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    series = read_series(tmp_path / "sent-first")
    assert np.array_equal(read_segmentation(ds, series, TASK.labels).mask, values_of(drawn))
    other = open_store(pacs.dicomweb_url, state="other")  # a server that knows nothing
    assert other.get_labeled_images() == [SERIES[0]]
    (pair,) = other.datalist()
    assert np.array_equal(values_of(pair["label"]), values_of(drawn))
    assert [v.annotator for v in other.history(SERIES[0]).versions] == ["ann"]
    until(lambda: store._list.refresh(wait=5) or store._labels._known, "the first server to see it")
    assert len(store.history(SERIES[0]).versions) == 1, "one's own segmentation is no new version"


def test_nobody_by_name_still_counts_as_a_person(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    store.answers.note({"image": SERIES[0]}, {"task": "gland", "model": "routed", "bank": "b"})
    store.submit(SERIES[0], draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0])), {})
    other = open_store(pacs.dicomweb_url, state="other")
    assert other.get_labeled_images() == [SERIES[0]]
    assert [v.annotator for v in other.history(SERIES[0]).versions] == [""]


def test_the_newest_of_each_annotator_counts(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann", changes=later(-200))
    put_segmentation(pacs, tmp_path, slice(2, 4), annotator="bob", changes=later(-100))
    put_segmentation(pacs, tmp_path, slice(4, 6), annotator="ann", changes=later(-300))
    store = open_store(pacs.dicomweb_url)
    assert store.status() and store.get_labeled_images() == [SERIES[0]]
    history = store.history(SERIES[0])
    assert len(history.versions) == 3 and list(history.current) == ["bob", "ann"]
    assert columns_of(store.get_label_uri(SERIES[0], "final")) == [2, 3]
    reviewed = open_store(pacs.dicomweb_url, rule="reviewer:ann", state="reviewed")
    assert reviewed.get_labeled_images() and columns_of(reviewed.get_label_uri(SERIES[0], "final")) == [0, 1]
    agreed = open_store(pacs.dicomweb_url, rule="majority", state="agreed")
    assert agreed.get_labeled_images() and columns_of(agreed.get_label_uri(SERIES[0], "final")) == [2, 3]


def columns_of(path: str) -> list[int]:
    return sorted(set(np.nonzero(values_of(path))[0].tolist())) if path else []


def test_what_an_algorithm_alone_made_is_no_label(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), algorithm="iopfl gland", version="bank x")
    store = open_store(pacs.dicomweb_url)
    assert store.list_images() and store.get_labeled_images() == [] and store.datalist() == []


def test_values_go_by_segment_not_by_position(pacs, open_store, tmp_path):
    """Another order of segments, other letters, and a segment of which nothing is drawn."""
    left, right = segments_of(TASK)
    swapped = [replace(right, value=1, name="RIGHT"), replace(left, value=2, name=" Left ")]
    mask, _ = put_segmentation(pacs, tmp_path, slice(2, 6), value=2, annotator="ann", segments=swapped)
    store = open_store(pacs.dicomweb_url)
    (pair,) = store.datalist()
    assert np.array_equal(values_of(pair["label"]), (mask == 2).astype(np.uint8))


def test_one_unreadable_segmentation_is_named_and_the_rest_counts(pacs, open_store, tmp_path, caplog):
    foreign = [replace(segment, name=f"liver {segment.name}") for segment in segments_of(TASK)]
    put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann", changes=later(-200))
    _, bad = put_segmentation(pacs, tmp_path, slice(2, 4), annotator="bob", segments=foreign, changes=later(-100))
    put_segmentation(pacs, tmp_path, slice(0, 3), series="second", annotator="bob", segments=foreign)
    store = open_store(pacs.dicomweb_url)
    assert sorted(store.get_labeled_images()) == sorted(SERIES), "as far as the headers say"
    (pair,) = store.datalist()
    assert Path(pair["image"]).name.startswith(SERIES[0]) and columns_of(pair["label"]) == [0, 1]
    assert bad.SOPInstanceUID in caplog.text and "liver" in caplog.text
    assert "cannot be read by iopfl" in next(iter(store.history(SERIES[0]).withdrawn.values()))
    assert store.get_labeled_images() == [SERIES[0]]
    assert len(store.datalist()) == 1


def test_a_segmentation_that_goes_from_the_pacs_counts_no_more(pacs, open_store, tmp_path):
    _, ds = put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann")
    store = open_store(pacs.dicomweb_url)
    assert store.get_labeled_images() == [SERIES[0]]
    pacs.request("DELETE", f"/series/{find_id(pacs, ds.SeriesInstanceUID)}")
    until(lambda: not store.get_labeled_images(), "the label to go")
    assert store.status()["completed"] == 0
    pacs.upload(tmp_path / "other.dcm")
    until(lambda: store.get_labeled_images() == [SERIES[0]], "the label to come back")
    assert len(store.history(SERIES[0]).versions) == 1


def test_undo_goes_back_to_what_is_in_the_pacs(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann", changes=later(-100))
    store = open_store(pacs.dicomweb_url)
    store.submit(
        SERIES[0], draw(tmp_path / "new.nii.gz", slice(6, 8), store.get_image_uri(SERIES[0])), {"client_id": "ann"}
    )
    assert columns_of(store.get_label_uri(SERIES[0], "final")) == [6, 7]
    store.undo(SERIES[0], "ann")
    assert columns_of(store.get_label_uri(SERIES[0], "final")) == [0, 1]


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


@pytest.fixture
def gateway(pacs) -> Iterator[Gateway]:
    gateway = Gateway(pacs.url)
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()


def test_a_label_waits_for_a_pacs_that_does_not_take_it(pacs, gateway, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.lib.pacs_outbox._RETRY_SECONDS", 0.1)
    store = open_store(gateway.url)
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    gateway.refuses = lambda method, path: 500 if method == "POST" else 0
    version = store.submit(SERIES[0], drawn, {"client_id": "ann"})
    assert not version.is_stored and store.outbox.waiting() == [(SERIES[0], 1)]
    assert store.status()["pacs"]["waiting"] == 1
    assert store.get_labeled_images() == [SERIES[0]] and columns_of(store.datalist()[0]["label"]) == [2, 3, 4, 5]
    assert store.submit(SERIES[0], drawn, {"client_id": "ann"}).number == 1, "tried again by the client"
    again = open_store(gateway.url)  # after a restart
    again.start()
    gateway.refuses = lambda method, path: 0
    until(lambda: not again.outbox.waiting(), "the label to be stored")
    assert len(segmentations(pacs)) == 1
    assert np.array_equal(values_of(again.datalist()[0]["label"]), values_of(drawn))


def test_a_label_whose_receipt_was_lost_is_not_stored_twice(pacs, gateway, open_store, tmp_path):
    store = open_store(gateway.url)
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    original = store._pacs.store

    def lose(ds) -> None:
        original(ds)
        raise PACSAwayError("the line went dead")

    store._pacs.store = lose
    assert not store.submit(SERIES[0], drawn, {"client_id": "ann"}).is_stored
    again = open_store(gateway.url)
    until(lambda: again.get_labeled_images() and again._labels._known, "the segmentation to be seen")
    again.outbox.store(SERIES[0], 1)
    assert len(segmentations(pacs)) == 1 and len(again.history(SERIES[0]).versions) == 1


def test_without_the_pacs_what_is_here_is_still_served(gateway, open_store, tmp_path):
    store = open_store(gateway.url)
    path = store.get_image_uri(SERIES[0])
    store.submit(SERIES[0], draw(tmp_path / "drawn.nii.gz", slice(2, 6), path), {"client_id": "ann"})
    gateway.refuses = lambda *_: 503
    again = open_store(gateway.url)
    assert sorted(again.list_images()) == sorted(SERIES)
    assert again.get_image_uri(SERIES[0]) == path
    assert [columns_of(pair["label"]) for pair in again.datalist()] == [[2, 3, 4, 5]]
    with pytest.raises(PACSError, match="a series with status 503"):
        again.get_image_uri(SERIES[1])
    assert "503" in again.status()["pacs"]["problem"] or "does not answer" in again.status()["pacs"]["problem"]
    with pytest.raises(PACSAwayError):
        open_store(gateway.url, state="new").list_images()
    assert open_store(gateway.url, state="newer").status()["total"] == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (404, "refused a search for series with status 404"),
        (503, "with status 503"),
        (b"<html>", "something else than DICOM"),
        (b'[{"0020000D": 7}]', "something else than DICOM"),
        (b'[{"00080016": {"vr": "UI", "Value": [', "something else than DICOM"),
    ],
)
def test_an_answer_that_is_no_dicom_is_named(open_store, gateway, answer, message):
    gateway.refuses = lambda *_: answer
    store = open_store(gateway.url)
    with pytest.raises(PACSAwayError, match=message):
        store.list_images()
    gateway.refuses = lambda *_: 204  # nothing found
    until(lambda: not store._list.refresh(wait=5) and not store._list.problem, "an answer")
    assert store.list_images() == []


def test_a_slow_pacs_keeps_nobody_from_the_status(gateway, open_store):
    store = open_store(gateway.url)
    store.list_images()

    def slow(*_) -> int:
        time.sleep(1.5)
        return 0

    gateway.refuses = slow
    time.sleep(2.1)
    started = time.monotonic()
    assert store.status()["total"] == 2
    assert time.monotonic() - started < 0.5


def test_the_cache_keeps_its_bound_and_what_is_in_use(pacs, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.lib.pacs_cache._LEFT_ALONE_SECONDS", 0.0)
    for number in range(4):
        send(pacs, tmp_path, f"more{number}", seed=number)
    store = open_store(pacs.dicomweb_url, cache_bytes=1)
    first = Path(store.get_image_uri(SERIES[0]))
    store.submit(SERIES[0], draw(tmp_path / "drawn.nii.gz", slice(2, 6), first), {})
    for image in store.list_images():
        assert Path(store.get_image_uri(image)).exists()
    assert len(list(first.parent.glob("*.nii.gz"))) == 1, "the last one"
    (pair,) = store.datalist()  # held by a training, as far as the cache knows
    for image in store.list_images():
        store.get_image_uri(image)
    assert Path(pair["image"]).exists()
    assert len(list(first.parent.glob("*.nii.gz"))) <= 2


def test_a_full_disk_is_named(pacs, open_store, monkeypatch):
    from iopfl.core.errors import DatasetError

    store = open_store(pacs.dicomweb_url)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        store.get_image_uri(SERIES[0])
    monkeypatch.undo()
    assert Path(store.get_image_uri(SERIES[0])).exists()


def test_images_are_not_added_or_removed_here(pacs, open_store):
    from monailabel.interfaces.exception import MONAILabelException

    store = open_store(pacs.dicomweb_url)
    for change in (lambda: store.add_image("x", "x.nii.gz", {}), lambda: store.remove_image(SERIES[0])):
        with pytest.raises(MONAILabelException) as caught:
            change()
        assert "PACS" in caught.value.msg


def test_other_labels_follow_the_folder(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    store.save_label(SERIES[0], str(drawn), "original", {"model": "gland"})
    assert store.get_labels_by_image_id(SERIES[0]) == {"original": SERIES[0]}
    assert store.get_labeled_images() == []
    store.remove_label(SERIES[0], "original")
    assert store.get_labels_by_image_id(SERIES[0]) == {}
    assert sorted(store.list_images()) == sorted(SERIES)


@pytest.mark.parametrize("kind", ["user", "token", "environment"])
def test_the_server_signs_in(tmp_path, kind, monkeypatch):
    """A PACS that answers only to the right header; the credentials change while the server runs."""
    from iopfl.lib.pacs import PACS

    file = tmp_path / "pacs.yaml"
    texts = {"user": "username: ann\npassword: 'p: w'\n", "token": "token: t0\n"}
    headers = {"user": "Basic YW5uOnA6IHc=", "token": "Bearer t0", "environment": "Bearer t1"}
    file.write_text(texts.get(kind, ""))
    file.chmod(0o600)
    if kind == "environment":
        monkeypatch.setenv("IOPFL_PACS_TOKEN", "t1")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200 if seen[-1] == headers[kind] else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        pacs = PACS(PACSAccess(url, None if kind == "environment" else file))
        assert pacs.find_series({}, limit=9) == []
        if kind != "environment":
            file.write_text("token: expired\n")
            with pytest.raises(PACSError, match="status 401: check the user, password or token"):
                pacs.find_series({}, limit=9)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("url", "content", "message"),
    [
        ("http://ann:secret@pacs/dicom-web", None, "must not hold a password"),
        ("ftp://pacs", None, "expected the DICOMweb address"),
        ("http://", None, "expected the DICOMweb address"),
        ("http://pacs", "- a\n- b\n", "expected YAML with token, or username and password, found neither"),
        ("http://pacs", "a: [", "cannot be read"),
        ("http://pacs", "", "found neither"),
    ],
)
def test_access_that_cannot_be_is_refused(tmp_path, url, content, message):
    file = None
    if content is not None:
        file = tmp_path / "pacs.yaml"
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        PACSAccess(url, file).headers()
    assert "secret" not in str(caught.value)
