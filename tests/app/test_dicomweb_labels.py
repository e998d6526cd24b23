"""Labels in a real PACS, Orthanc: segmentations out and back, whoever made them, and whatever may go wrong between."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from dicomio.phantoms import build_photograph, series_uid
from dicomio.test_rtstruct import SQUARE, build_structure_set
from iopfl.base.errors import PACSAwayError, SeriesError
from iopfl.core.predictor import Predictor
from iopfl.dicomio.segmentation import read_segmentation, segments_of
from iopfl.dicomio.series import read_series
from iopfl.labels.log import LOG
from orthanc import running_orthanc

from .archive import (
    SERIES,
    TASK,
    columns_of,
    draw,
    find_id,
    later,
    put_segmentation,
    segmentations,
    send,
    until,
    upload,
    values_of,
)
from .site import SPOT, make_site_bank


def test_a_label_becomes_a_segmentation_and_comes_back_exactly(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    store.answers.note(
        {"client_id": "ann", "image": SERIES[0]}, {"task": "gland", "model": "routed", "bank": "gland-1a2b"}
    )
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


def test_all_that_is_asked_for_of_a_label_is_stored_with_it_once(pacs, gateway, open_store, tmp_path):
    bank = make_site_bank(tmp_path / "bank", TASK)
    models = SimpleNamespace(lock=lambda name: nullcontext(), predictor=lambda name: Predictor(bank))
    kinds = ("label_map", "report", "captures", "structures", "disagreement")
    from iopfl.pacs.results import Results

    store = open_store(gateway.url, results=Results(kinds, models))
    posts = []
    gateway.refuses = lambda method, path: method == "POST" and (posts.append(path), 500 * (len(posts) == 3))[1]
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    version = store.submit(SERIES[0], drawn, {"client_id": "ann"})
    assert not version.is_stored  # who submits waits for no expert
    assert store.outbox.waiting() == [(SERIES[0], 1)]
    with suppress(PACSAwayError):
        store.outbox.offer(SERIES[0], 1)
    store.outbox.offer(SERIES[0], 1)
    assert store.outbox.waiting() == []
    query = {"Level": "Series", "Query": {"PatientID": "P-0"}, "Expand": True}
    found = [one["MainDicomTags"] for one in pacs.request("POST", "/tools/find", json=query).json()]
    assert sorted(one["Modality"] for one in found) == ["MR", "OT", "RTSTRUCT", "SEG", "SEG", "SR"]
    assert "check here, gland, not for clinical use" in {one["SeriesDescription"] for one in found}
    assert not list((tmp_path / "state" / "labels" / SERIES[0]).glob("*.dcm"))
    until(lambda: len(store._list.refresh(wait=5) or store._labels._known) >= 3, "the segmentations to be seen")
    assert len(store.history(SERIES[0]).versions) == 1, "no other label than the one that was submitted"


def test_what_the_pacs_refuses_beside_a_label_does_not_hold_it_up(pacs, gateway, open_store, tmp_path, caplog):
    from iopfl.pacs.results import Results

    store = open_store(gateway.url, results=Results(("seg", "report")))
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    posts = []
    gateway.refuses = lambda method, path: method == "POST" and (posts.append(path), 409 * (len(posts) > 1))[1]
    assert store.submit(SERIES[0], drawn, {"client_id": "ann"}).is_stored
    assert "is in the PACS without its SR" in caplog.text
    assert len(segmentations(pacs)) == 1


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


def test_what_an_algorithm_alone_made_is_no_label(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), algorithm="iopfl gland", version="bank x")
    store = open_store(pacs.dicomweb_url)
    assert store.list_images() and store.get_labeled_images() == [] and store.datalist() == []


@pytest.mark.parametrize(("organ", "counts"), [("MANUAL", True), ("AUTOMATIC", False)])
def test_contours_of_a_planning_system_are_labels_too(pacs, open_store, tmp_path, organ, counts):
    """Where a person drew the task's region, whoever drew the others."""
    series = read_series(tmp_path / "sent-first")
    ds = build_structure_set(series, {"Left": [(2, SQUARE)], "BODY": [(2, SQUARE)]})
    for region, kind in zip(ds.StructureSetROISequence, (organ, "AUTOMATIC"), strict=True):
        region.ROIGenerationAlgorithm = kind
    ds.PatientID, ds.StudyInstanceUID = "P-0", series.study_instance_uid
    ds.SeriesInstanceUID, ds.SOPInstanceUID = series_uid("contours"), series_uid("contours instance")
    upload(pacs, [ds], tmp_path / "contours")
    store = open_store(pacs.dicomweb_url)
    assert store.get_labeled_images() == ([SERIES[0]] if counts else [])
    expected = [read_segmentation(ds, series, TASK.labels).mask] if counts else []
    pairs = store.datalist()
    assert [values_of(pair["label"]).tolist() for pair in pairs] == [mask.tolist() for mask in expected]
    if counts:
        (version,) = store.history(SERIES[0]).versions
        assert (version.annotator, version.when[:4]) == ("Reader2", "2024")


def test_a_photograph_is_labeled_too(pacs, open_store, tmp_path):
    colors = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    upload(pacs, [build_photograph(colors)], tmp_path / "photograph")
    task = replace(SPOT, modality="OP", channels=3)
    store = open_store(pacs.dicomweb_url, task=task)
    (image,) = store.list_images()
    source = nib.load(store.get_image_uri(image))
    assert source.shape[:2] == (32, 24)
    mask = np.zeros((32, 24, 1), np.uint8)
    mask[5:9, 10:20] = 255
    nib.save(nib.Nifti1Image(mask, source.affine), tmp_path / "drawn.nii.gz")
    assert store.submit(image, tmp_path / "drawn.nii.gz", {"client_id": "ann"}).is_stored
    again = open_store(pacs.dicomweb_url, task=task, state="other")
    assert np.array_equal(values_of(again.datalist()[0]["label"]), mask)


def test_labels_are_seen_in_a_pacs_that_gives_few_elements_of_a_series_headers(open_store, tmp_path):
    settings = {"DicomWeb": {"Enable": True, "Root": "/dicom-web/", "SeriesMetadata": "MainDicomTags"}}
    with running_orthanc(tmp_path / "orthanc", settings=settings) as pacs:
        send(pacs, tmp_path, "first")
        put_segmentation(pacs, tmp_path, slice(2, 6), annotator="ann")
        store = open_store(pacs.dicomweb_url)
        until(lambda: store.get_labeled_images() == [SERIES[0]], "the label")


def test_a_label_from_the_future_is_from_now(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann", changes=later(10**8))
    store = open_store(pacs.dicomweb_url)
    assert store.get_labeled_images() == [SERIES[0]]
    store.submit(SERIES[0], draw(tmp_path / "new.nii.gz", slice(6, 8), store.get_image_uri(SERIES[0])), {})
    assert columns_of(store.get_label_uri(SERIES[0], "final")) == [6, 7]


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


def test_a_filter_of_images_hides_no_label(pacs, open_store, tmp_path):
    """A segmentation has not its image's description, but its study's date."""
    send(pacs, tmp_path, "third", BodyPartExamined="PROSTATE", StudyDate="20250101")
    put_segmentation(pacs, tmp_path, slice(0, 2), series="third", annotator="ann")
    filters = {"BodyPartExamined": "PROSTATE", "StudyDate": "20250101"}
    store = open_store(pacs.dicomweb_url, filters=filters)
    assert store.list_images() == store.get_labeled_images() == [series_uid("third")]


def test_a_segmentation_that_went_while_nobody_could_note_it_counts_no_more(pacs, open_store, tmp_path, monkeypatch):
    _, ds = put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann")
    store = open_store(pacs.dicomweb_url)
    assert store.get_labeled_images() == [SERIES[0]]
    pacs.request("DELETE", f"/series/{find_id(pacs, ds.SeriesInstanceUID)}")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.versions, "withdraw", full)
        until(lambda: store.list_images() and store._list.problem, "a search to fail")
    again = open_store(pacs.dicomweb_url)
    until(lambda: not again.get_labeled_images(), "the label to go")
    until(lambda: not store.get_labeled_images(), "the label to go here as well")


def test_a_label_that_was_deleted_here_stays_so(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann", changes=later(-100))
    store = open_store(pacs.dicomweb_url)
    assert columns_of(store.datalist()[0]["label"]) == [0, 1]
    store.remove_label(SERIES[0], "final")
    assert store.get_labeled_images() == [] and store.get_label_uri(SERIES[0], "final") == ""
    again = open_store(pacs.dicomweb_url)
    assert sorted(again.get_unlabeled_images()) == sorted(SERIES)


def test_undo_goes_back_to_what_is_in_the_pacs(pacs, open_store, tmp_path):
    put_segmentation(pacs, tmp_path, slice(0, 2), annotator="ann", changes=later(-100))
    store = open_store(pacs.dicomweb_url)
    store.submit(
        SERIES[0], draw(tmp_path / "new.nii.gz", slice(6, 8), store.get_image_uri(SERIES[0])), {"client_id": "ann"}
    )
    assert columns_of(store.get_label_uri(SERIES[0], "final")) == [6, 7]
    store.undo(SERIES[0], "ann")
    assert columns_of(store.get_label_uri(SERIES[0], "final")) == [0, 1]


def test_a_label_waits_for_a_pacs_that_does_not_take_it(pacs, gateway, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.pacs.outbox._RETRY_SECONDS", 0.1)
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


def test_a_damaged_file_of_the_cache_or_the_outbox_is_made_again(pacs, gateway, open_store, tmp_path):
    """Each halved, emptied and gone, one at a time: the image is the same, and the label is stored once."""
    store = open_store(gateway.url)
    image = store.get_image_uri(SERIES[0])
    before, drawn = values_of(image), draw(tmp_path / "drawn.nii.gz", slice(2, 6), image)
    gateway.refuses = lambda method, path: 500 if method == "POST" else 0
    store.submit(SERIES[0], drawn, {"client_id": "ann"})
    gateway.refuses = lambda method, path: 0
    uid = store.history(SERIES[0]).versions[0].sop_instance_uid
    cache = sorted(path for path in (tmp_path / "state" / "pacs").rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.suffix for path in cache} >= {".gz", ".dcm", ".json", ".key"}, cache
    tried = [path for path in cache if path.suffix in (".gz", ".json") or path.name == "00001.dcm"]
    for path in tried:
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], b"", None):
            path.write_bytes(damaged) if damaged is not None else path.unlink(missing_ok=True)
            again = open_store(gateway.url)
            assert sorted(again.list_images()) == sorted(SERIES), path.name
            series = again._find(SERIES[0])
            assert np.array_equal(values_of(again.get_image_uri(SERIES[0])), before), path.name
            assert len(again._cache.read(series).datasets) == before.shape[2], path.name
    [waiting] = (tmp_path / "state" / "labels").rglob("1.dcm")
    for number, damaged in enumerate((waiting.read_bytes()[: waiting.stat().st_size // 2], b"", None), start=1):
        waiting.write_bytes(damaged) if damaged is not None else waiting.unlink(missing_ok=True)
        again = open_store(gateway.url)
        gateway.refuses = lambda method, path, number=number: 500 if method == "POST" and number < 3 else 0
        again.outbox.offer(SERIES[0], 1)
        assert again.history(SERIES[0]).versions[0].is_stored == (number == 3)
    assert again.history(SERIES[0]).versions[0].sop_instance_uid == uid and len(segmentations(pacs)) == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ValueError("Doe^Jane is no name")])
def test_a_label_that_cannot_be_stored_is_kept_and_holds_up_no_other(
    pacs, open_store, tmp_path, monkeypatch, caplog, failure
):
    monkeypatch.setattr("iopfl.pacs.outbox._RETRY_SECONDS", 0.1)
    store = open_store(pacs.dicomweb_url)
    build = store.outbox._build

    def fail(image, version):
        if image == min(SERIES):  # is asked for first
            raise failure
        return build(image, version)

    monkeypatch.setattr(store.outbox, "_build", fail)
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(min(SERIES)))
    assert not store.submit(min(SERIES), drawn, {"client_id": "ann"}).is_stored
    with store.versions.hold(max(SERIES)):
        store.versions.add(max(SERIES), drawn, annotator="ann", tasks=("gland",))
    store.start()
    until(lambda: store.versions.history(max(SERIES)).versions[0].is_stored, "the other label to be stored")
    monkeypatch.setattr(store.outbox, "_build", build)
    until(lambda: not store.outbox.waiting(), "the label to be stored")
    assert "Jane" not in caplog.text


def test_a_label_whose_receipt_was_lost_is_not_stored_twice(pacs, gateway, open_store, tmp_path):
    store = open_store(gateway.url)
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    original = store._pacs.store

    def lose(ds, **how) -> None:
        original(ds, **how)
        raise PACSAwayError("the line went dead")

    store._pacs.store = lose
    assert not store.submit(SERIES[0], drawn, {"client_id": "ann"}).is_stored
    again = open_store(gateway.url)
    until(lambda: again.get_labeled_images() and again._labels._known, "the segmentation to be seen")
    again.outbox.store(SERIES[0], 1)
    assert len(segmentations(pacs)) == 1 and len(again.history(SERIES[0]).versions) == 1


def test_one_log_of_a_newer_iopfl_leaves_its_image_out_and_no_other(pacs, gateway, open_store, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.pacs.outbox._RETRY_SECONDS", 0.1)
    store = open_store(gateway.url)
    gateway.refuses = lambda method, path: 500 if method == "POST" else 0
    for image in SERIES:
        drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(image))
        store.submit(image, drawn, {"client_id": "ann"})
    log = tmp_path / "state" / "labels" / SERIES[0] / LOG
    log.write_bytes(log.read_bytes() + b'{"what": "praised"}\n')
    before = log.read_bytes()
    again = open_store(gateway.url)
    assert again.list_images() == again.get_labeled_images() == [SERIES[1]]
    assert again.outbox.waiting() == [(SERIES[1], 1)]
    assert "written by a newer iopfl" in again.left_out()[SERIES[0]]
    with pytest.raises(SeriesError, match=r"left out: the labels of .* newer iopfl: update iopfl"):
        again.submit(SERIES[0], drawn, {"client_id": "bob"})
    gateway.refuses = lambda *_: 0
    again.start()
    until(lambda: not again.outbox.waiting(), "the other label to be stored")
    assert log.read_bytes() == before


def test_other_labels_follow_the_folder(pacs, open_store, tmp_path):
    store = open_store(pacs.dicomweb_url)
    drawn = draw(tmp_path / "drawn.nii.gz", slice(2, 6), store.get_image_uri(SERIES[0]))
    store.save_label(SERIES[0], str(drawn), "original", {"model": "gland"})
    assert store.get_labels_by_image_id(SERIES[0]) == {"original": SERIES[0]}
    assert store.get_labeled_images() == []
    store.remove_label(SERIES[0], "original")
    assert store.get_labels_by_image_id(SERIES[0]) == {}
    assert sorted(store.list_images()) == sorted(SERIES)
