"""A PACS as it is, as the datastore: what it cannot do is said, and nothing is offered to it for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import MONAILabelException
from pydicom import dcmread

from dicomio.phantoms import build_slices, series_uid, volume, write
from dicomweb.odd_server import FAILED, JSON, OddServer, encode, multipart, odd_server, receipt
from iopfl.base.errors import PACSError
from iopfl.core.criteria import Criteria
from iopfl.dicomio.segmentation import Origin, build_segmentation, segments_of
from iopfl.dicomio.series import read_series
from iopfl.images.files import find_notes, read_voxels
from iopfl.pacs import outbox

from .archive import SERIES, SHAPE, TASK, columns_of, draw, until


@pytest.fixture
def odd() -> Iterator[OddServer]:
    """A PACS with two series, and no habits yet."""
    with odd_server() as server:
        for number, name in enumerate(("first", "second")):
            server.add(build_slices(volume(SHAPE, seed=number), series=name))
        yield server


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "ATTEMPTS", 3)


def refuse(odd: OddServer, *, status: int = 200) -> None:
    """Fail to store, for no reason that could be helped."""
    odd.stow = lambda ds: (status, json.dumps(receipt(ds, tag=FAILED, reason=0x0110)).encode(), JSON)


def submit(store, folder, columns: slice = slice(2, 6)):
    drawn = draw(folder / "drawn.nii.gz", columns, store.get_image_uri(SERIES[0]))
    return store.submit(SERIES[0], drawn, {"client_id": "ann"})


def keep_offering(store) -> None:
    threading.Thread(target=store.outbox.run, daemon=True).start()


def is_aside(store) -> bool:
    failure = store.outbox.failure(SERIES[0], 1)
    return failure is not None and failure.is_set_aside


@pytest.mark.parametrize("status", [400, 404])
def test_what_a_pacs_cannot_do_is_a_line_of_its_status(odd, open_store, caplog, status):
    odd.before = lambda method, path, query: (status, b"", "") if path == "/series" else None
    store = open_store(odd.url)
    assert sorted(store.list_images()) == sorted(SERIES)
    about = store.status()["pacs"]
    assert about["problem"] == "" and len(about["cannot"]) == 1 and "study by study" in about["cannot"][0]
    assert sum("study by study" in record.message for record in caplog.records) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [202, 409])
def test_a_label_that_a_pacs_refuses_is_set_aside_and_offered_again_by_an_administrator(
    odd, open_store, tmp_path, caplog, status
):
    refuse(odd, status=status)
    store = open_store(odd.url)
    assert not submit(store, tmp_path).is_stored
    keep_offering(store)
    until(lambda: is_aside(store), "the label to be set aside")
    again = open_store(odd.url)
    keep_offering(again)
    assert odd.count("POST") == 3 and is_aside(again), "after a restart too"
    assert "did not store" in again.outbox.failure(SERIES[0], 1).reason or str(status) in caplog.text
    assert "set aside after 3 attempts, until an administrator offers it again" in caplog.text
    assert [columns_of(pair["label"]) for pair in again.datalist()] == [[2, 3, 4, 5]], "it trains all the same"
    again.outbox.offer_again(SERIES[0], 1)
    until(lambda: odd.count("POST") >= 6 and is_aside(again), "three more attempts")
    odd.stow = odd.keep
    again.outbox.offer_again(SERIES[0], 1)
    assert again.outbox.waiting() == [] and again.outbox.failure(SERIES[0], 1) is None


@pytest.mark.parametrize(
    ("status", "reason", "line"),
    [
        (405, 0x0110, "takes nothing by STOW-RS: it answers with status 405"),
        (200, 0x0122, "takes no Segmentation Storage (failure reason 290, its SOP class is not taken)"),
        (409, 0xC000, None),
    ],
)
def test_what_a_pacs_will_never_take_is_set_aside_at_once_and_said(odd, open_store, tmp_path, status, reason, line):
    odd.stow = lambda ds: (status, json.dumps(receipt(ds, tag=FAILED, reason=reason)).encode(), JSON)
    store = open_store(odd.url)
    assert not submit(store, tmp_path).is_stored
    assert is_aside(store) and odd.count("POST") == 1
    assert store.status()["pacs"]["cannot"] == ([line] if line else [])
    failure = store.outbox.failure(SERIES[0], 1)
    assert (line or "failure reason 49152, it is not understood") in failure.reason
    again = open_store(odd.url)
    assert again.outbox.failure(SERIES[0], 1).is_set_aside, "after a restart too"
    odd.stow = odd.keep
    store.outbox.offer_again(SERIES[0], 1)
    assert store.outbox.waiting() == [] and store.status()["pacs"]["cannot"] == []


@pytest.mark.usefixtures("impatient")
def test_a_pacs_that_does_not_answer_refuses_nothing(odd, open_store, tmp_path):
    refuse(odd)
    store = open_store(odd.url)
    submit(store, tmp_path)
    odd.before = lambda *_: (503, b"", "")
    keep_offering(store)
    asked = len(odd.asked)
    until(lambda: len(odd.asked) > asked + 10, "some more attempts")
    assert store.outbox.failure(SERIES[0], 1).attempts == 1
    odd.before, odd.stow = lambda *_: None, odd.keep
    until(lambda: not store.outbox.waiting(), "the label to be stored")


def test_a_segmentation_that_a_pacs_renames_is_no_second_version(odd, open_store, tmp_path):
    def rename(ds):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        return odd.keep(ds)

    odd.stow = rename
    store = open_store(odd.url)
    assert submit(store, tmp_path).sop_instance_uid == "1.2.3.4" and store.outbox.waiting() == []
    until(lambda: store.list_images() and store._labels._known, "the segmentation to be seen")
    assert len(store.history(SERIES[0]).versions) == 1


# ---- segmentations by others ----


def draw_segmentation(odd: OddServer, folder, change, *, series: str = "first", name: str = "seg") -> np.ndarray:
    """Have another program store a segmentation of a series, changed; gives its mask."""
    ours = [ds for ds in odd.instances.values() if ds.SeriesInstanceUID == series_uid(series)]
    source = read_series(write(ours, folder / name))
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 2:8, 1:4] = 2
    ds = build_segmentation(mask, source, segments_of(TASK), Origin(annotator="ann"))
    change(ds)
    odd.add([dcmread(BytesIO(encode(ds)))])
    return mask


def name_no_series(ds) -> None:
    del ds.ReferencedSeriesSequence, ds.SourceImageSequence


def name_nothing(ds) -> None:
    name_no_series(ds)
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.pop("DerivationImageSequence", None)


def code_alone(ds) -> None:
    for segment, code in zip(ds.SegmentSequence, ("T-92000", "T-71000"), strict=True):
        segment.SegmentLabel = f"Segment_{segment.SegmentNumber}"
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        kind.CodeValue, kind.CodingSchemeDesignator = code, "SRT"


CODES = {"left": ("41216001", "SCT", "Prostate"), "right": ("64033007", "SCT", "Kidney")}


@pytest.mark.parametrize("change", [name_no_series, name_nothing, code_alone])
def test_a_segmentation_is_of_the_image_it_was_drawn_on_wherever_it_says_so(odd, open_store, tmp_path, change):
    mask = draw_segmentation(odd, tmp_path, change)
    store = open_store(odd.url, task=replace(TASK, codes=CODES))
    assert store.list_images() and store.get_labeled_images() == [SERIES[0]]
    (pair,) = store.datalist()
    drawn = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(pair["label"])).transpose(2, 1, 0)
    assert np.array_equal(drawn, mask)
    assert [version.annotator for version in store.history(SERIES[0]).versions] == ["ann"]


def test_instances_that_cannot_be_searched_for_are_found_in_their_series(odd, open_store, tmp_path):
    draw_segmentation(odd, tmp_path, name_no_series)
    odd.before = lambda method, path, query: (400, b"", "") if "SOPInstanceUID" in query else None
    store = open_store(odd.url)
    assert store.list_images() and store.get_labeled_images() == [SERIES[0]]


def test_of_two_series_at_one_place_none_is_guessed_until_one_is_left(odd, open_store, tmp_path, caplog):
    twin = build_slices(volume(SHAPE, seed=5), series="twin")
    first = next(ds for ds in odd.instances.values() if ds.SeriesInstanceUID == SERIES[0])
    for ds in twin:
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = first.StudyInstanceUID, first.FrameOfReferenceUID
    odd.add(twin)
    draw_segmentation(odd, tmp_path, name_nothing)
    store = open_store(odd.url)
    assert len(store.list_images()) == 3 and store.get_labeled_images() == []
    assert "does not say which series it was drawn on, and 2 listed series of its study fit" in caplog.text
    for ds in twin:
        del odd.instances[ds.SOPInstanceUID]
    until(lambda: store.list_images() and store.get_labeled_images() == [SERIES[0]], "the label")


def test_who_made_what_counts_of_the_tasks_segments_alone(odd, open_store, tmp_path):
    def add_automatic(ds) -> None:
        code_alone(ds)
        ds.SegmentSequence[0].SegmentAlgorithmType = "AUTOMATIC"

    draw_segmentation(odd, tmp_path, add_automatic)
    task = replace(TASK, labels={"right": 2}, codes={"right": CODES["right"]})
    assert open_store(odd.url, task=task).get_labeled_images() == [SERIES[0]]
    assert open_store(odd.url, task=replace(TASK, codes=CODES), state="all").get_labeled_images() == []


def test_a_segmentation_may_be_submitted_as_a_file(odd, open_store, tmp_path):
    mask = draw_segmentation(odd, tmp_path, code_alone)
    (ds,) = (ds for ds in odd.instances.values() if ds.Modality == "SEG")
    del odd.instances[str(ds.SOPInstanceUID)]
    (tmp_path / "label.dcm").write_bytes(encode(ds))
    store = open_store(odd.url, task=replace(TASK, codes=CODES))
    version = store.submit(SERIES[0], tmp_path / "label.dcm", {"client_id": "bob"})
    assert (version.annotator, version.tasks, version.is_stored) == ("bob", ("gland",), True)
    drawn = SimpleITK.ReadImage(store.get_label_uri(SERIES[0], "final"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(drawn).transpose(2, 1, 0), mask)
    with pytest.raises(MONAILabelException) as caught:
        store.submit(SERIES[1], tmp_path / "label.dcm", {"client_id": "bob"})
    assert "expected a segmentation of series" in caught.value.msg
    (tmp_path / "cut.dcm").write_bytes(encode(ds)[:600])
    with pytest.raises(MONAILabelException):
        store.submit(SERIES[0], tmp_path / "cut.dcm", {"client_id": "bob"})


@pytest.mark.usefixtures("impatient")
def test_the_page_lists_what_was_set_aside_and_offers_it_again(odd, open_store, tmp_path, monkeypatch):
    from iopfl.web import label_routes

    app = FastAPI()
    app.include_router(label_routes.router)
    store = open_store(odd.url)
    app.dependency_overrides[label_routes.find_store] = lambda: store
    client = TestClient(app)
    refuse(odd)
    submit(store, tmp_path)
    for _ in range(2):
        store.outbox.offer(SERIES[0], 1)
    about = label_routes._describe_waiting(store, SERIES[0], 1)
    assert (about["is_set_aside"], about["attempts"]) == (True, 3) and "failure reason 272" in about["reason"]
    path = f"/iopfl/labels/{SERIES[0]}/versions/1/store"
    assert client.post(path).json()["waiting"]["attempts"] == 1
    odd.stow = odd.keep
    assert client.post(path).json() == {"waiting": None}
    assert client.post(path).status_code == 404


def test_a_scout_leaves_a_series_usable_and_is_named(odd, open_store, caplog):
    """The first instance, by whose header a series is looked at, is the scout."""
    others, odd.instances = odd.instances, {}
    (scout,) = build_slices(volume((SHAPE[0], SHAPE[1], 1)), series="first")
    scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3.4"
    odd.add([scout, *others.values()])
    store = open_store(odd.url)
    assert sorted(store.list_images()) == sorted(SERIES) and store.left_out() == {}
    image = read_voxels(Path(store.get_image_uri(SERIES[0])))
    assert image.shape[1:] == SHAPE and find_notes(image).left_out == ("instance 1: a localizer (Image Type)",)
    assert f"series {SERIES[0]}: left out of the image: instance 1: a localizer" in caplog.text


def test_an_unmarked_scout_that_comes_first_speaks_for_no_series(odd, open_store, tmp_path):
    """Neither of its orientation and size, nor of its place."""
    draw_segmentation(odd, tmp_path, name_nothing)
    (scout,) = build_slices(volume((20, 64, 1)), series="first", directions=((0, 1, 0), (0, 0, -1)))
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    others, odd.instances = odd.instances, {}
    odd.add([scout, *others.values()])
    store = open_store(odd.url, task=replace(TASK, images=Criteria(orientations=("axial",), max_edge=15)))
    assert sorted(store.list_images()) == sorted(SERIES) and store.others() == []
    assert store.get_labeled_images() == [SERIES[0]]


@pytest.mark.parametrize("off", [-1, 1])
def test_a_count_that_is_off_by_one_makes_no_series_unreadable(odd, open_store, off):
    def miscount(item: dict) -> dict:
        if "00201209" in item:
            item["00201209"]["Value"][0] += off
        return item

    odd.change = miscount
    store = open_store(odd.url)
    path = Path(store.get_image_uri(SERIES[0]))
    assert read_voxels(path).shape[1:] == SHAPE
    retrieved = len(odd.asked)
    assert store.get_image_uri(SERIES[0]) == str(path)
    assert not any(path.endswith(SERIES[0]) for _, path, _ in odd.asked[retrieved:]), "it is here already"


def test_instances_that_the_pacs_has_and_does_not_give_are_waited_for(odd, open_store):
    first = next(iter(odd.instances))

    def withhold(method: str, path: str, query: dict[str, str]):
        if path.endswith(("/instances", "/metadata", f"/instances/{first}")) or method != "GET":
            return (503, b"", "") if path.endswith(first) else None
        if path == f"/studies/{odd.instances[first].StudyInstanceUID}/series/{SERIES[0]}":
            given = [ds for uid, ds in odd.instances.items() if ds.SeriesInstanceUID == SERIES[0] and uid != first]
            return 200, *multipart(given)
        return None

    odd.before = withhold
    store = open_store(odd.url)
    store.list_images()
    with pytest.raises(PACSError):
        store.get_image_uri(SERIES[0])


def test_what_an_older_version_found_out_is_found_out_again(odd, open_store, tmp_path):
    store = open_store(odd.url)
    store.get_image_uri(SERIES[0])
    facts = next((tmp_path).rglob(f"facts/{SERIES[0]}.json"))
    known = json.loads(facts.read_text())
    facts.write_text(json.dumps({**known, "reading": 0, "refusal": "it is a localizer"}))
    asked = len(odd.asked)
    again = open_store(odd.url)
    assert sorted(again.list_images()) == sorted(SERIES)
    assert again.find_subject(SERIES[0]) == known["subject"]
    again.get_image_uri(SERIES[0])
    assert any(path.endswith(SERIES[0]) for _, path, _ in odd.asked[asked:])
