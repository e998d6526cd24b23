"""The service: from received series to a segmentation at the PACS, through refusals, outages and restarts."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import threading
import time
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage
from pynetdicom import build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from dimse.nodes import HERE, eventually, make_slices, plain_association, send_plainly, storage_peer
from iopfl.access.audit import AuditLog
from iopfl.base.errors import AdaptationError, CancelledError, ConfigError
from iopfl.cli import main
from iopfl.dicomio.segmentation import Origin, Segment, read_segmentation
from iopfl.dicomio.series import read_series
from iopfl.dimse import listening
from iopfl.dimse.commitment import WELL_KNOWN_INSTANCE
from iopfl.dimse.listening import Answered, Listener, ListenSettings
from iopfl.dimse.peers import Peer
from iopfl.dimse.queue import State, list_jobs
from iopfl.dimse.rules import Rule, Rules
from iopfl.dimse.scp import SCPSettings, record_nothing
from iopfl.dimse.upkeep import ask, make_room
from orthanc import free_port

QUIET = 0.15
SEGMENTS = [Segment(1, "bright", "#ff0000")]
THRESHOLD, SECOND_THRESHOLD = 450, 100


class Model:
    """Marks what is bright; keeps what it was asked, and does what a test tells it to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.before = lambda cancelled: None
        self.tell = lambda progress: None

    def __call__(self, name: str, image: Path, cancelled, with_disagreement: bool, progress) -> Answered:
        started = time.monotonic()
        voxels = np.asarray(nib.load(image).dataobj)
        self.asked.append((name, voxels.shape[2]))
        self.tell(progress)
        self.before(cancelled)
        mask = (voxels > THRESHOLD).astype(np.uint8)
        origin = Origin("threshold", "1", description="what is bright")
        where = (voxels > SECOND_THRESHOLD).astype(np.uint8) * 50 - mask * 50 if with_disagreement else None
        return Answered(mask, SEGMENTS, origin, time.monotonic() - started, disagreement=where)


@pytest.fixture
def model():
    return Model()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(listening, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(listening, "SEND_ATTEMPTS", 3)
    monkeypatch.setattr(listening, "SEGMENT_ATTEMPTS", 3)
    monkeypatch.setattr("iopfl.dimse.commitment._WAIT_SECONDS", 0.3)


@contextmanager
def listening_node(
    folder: Path, model: Model, *ports: int, rule: dict | None = None, record=record_nothing, **settings
):
    """The service with one rule, that sends to peers on some ports."""
    places = {f"pacs{number}": Peer("PACS", HERE, port) for number, port in enumerate(ports)}
    rules = Rules((Rule("all", "bright", tuple(places), **(rule or {})),), places)
    values = {"folder": folder, "quiet_seconds": QUIET, "scp": SCPSettings(port=0), "min_free_bytes": 0, **settings}
    with Listener(ListenSettings(**values), rules, model, record) as listener:
        yield listener


def state_of(listener: Listener, series: str, *states: State):
    """The job of a series, when it is in one of some states."""

    def job():
        found = listener.queue.get(series)
        return found if found is not None and found.state in states else None

    return eventually(job, f"{' or '.join(states)}, is {listener.queue.get(series)}")


def test_a_series_comes_back_as_a_segmentation_and_the_steps_are_timed(tmp_path, model):
    datasets = make_slices(5)
    with storage_peer() as pacs, listening_node(tmp_path / "node", model, pacs.port) as listener:
        assert send_plainly(listener.port, datasets) == [0] * 5
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.DONE)
        (seg,) = pacs.received
        series = read_series(listener.inbox.files(job.series_instance_uid))
    assert seg.SOPClassUID == SegmentationStorage
    assert seg.SOPInstanceUID == job.segmentation
    assert (read_segmentation(seg, series).mask == (series.array > THRESHOLD)).all()
    assert str(seg.PatientName) == "Müller^Jörg"
    assert "not for clinical use" in seg.SeriesDescription
    assert (job.rule, job.answer, job.instances, job.waiting) == ("all", "bright", 5, ())
    steps = ("first", "last", "complete", "read", "model", "answered", "segmented", "sent")
    assert [job.times[step] for step in steps] == sorted(job.times[step] for step in steps)
    assert not list((tmp_path / "node" / "work").iterdir())


def test_all_that_a_rule_asks_for_arrives_in_one_association_and_again_after_a_refusal(tmp_path, model):
    datasets, results = make_slices(5), ("seg", "report", "captures", "structures", "disagreement")
    uid = datasets[0].SeriesInstanceUID
    rule = {"results": results}
    with storage_peer() as pacs, listening_node(tmp_path / "node", model, pacs.port, rule=rule) as listener:
        pacs.status = 0xA700
        send_plainly(listener.port, datasets)
        eventually(lambda: listener.queue.get(uid) and listener.queue.get(uid).attempts, "a refusal")
        pacs.status = 0
        job = state_of(listener, uid, State.DONE)
        assert [ds.Modality for ds in pacs.received] == ["SEG", "SR", *["OT"] * 5, "RTSTRUCT", "SEG"]
        assert pacs.received[-1].SegmentSequence[0].SegmentLabel == "check here"
        assert pacs.received[0].SOPInstanceUID == job.segmentation
        assert len(listener.outbox.paths(job.segmentation)) == 9
        listener.outbox.keep_only(set())
        assert not list(listener.outbox.folder.iterdir())


def test_a_destination_that_takes_segmentations_alone_is_named(tmp_path, model):
    datasets, rule = make_slices(2), {"results": ("seg", "report")}
    contexts = [build_context(kind) for kind in (SegmentationStorage,)]
    with (
        storage_peer(contexts=contexts) as pacs,
        listening_node(tmp_path / "node", model, pacs.port, rule=rule) as listener,
    ):
        send_plainly(listener.port, datasets)
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.FAILED)
        assert "takes no Comprehensive 3D SR Storage: leave it out of the rule's results" in job.reason


@pytest.mark.parametrize("kind", ["seg", "label_map"])
def test_the_sizes_of_all_that_was_segmented_are_a_table_without_a_patient(tmp_path, model, kind):
    datasets, other, state = make_slices(4), make_slices(3, series="other"), tmp_path / "state"
    uid = datasets[0].SeriesInstanceUID
    node = listening_node(state / "dimse", model, free_port(), rule={"results": (kind,)})
    with node as listener:
        send_plainly(listener.port, [*datasets, *other])
        job = state_of(listener, uid, State.SENDING)
        state_of(listener, other[0].SeriesInstanceUID, State.SENDING)
        listener.outbox.paths(listener.queue.get(other[0].SeriesInstanceUID).segmentation)[0].write_bytes(b"no DICOM")
        assert main(["dicom", "queue", "--state", str(state), "--csv", str(tmp_path / "sizes.csv")]) == 0
    text = (tmp_path / "sizes.csv").read_text()
    rows = {row["series"]: row for row in csv.DictReader(text.splitlines())}
    bright = sum(int((np.frombuffer(ds.PixelData, np.int16) > THRESHOLD).sum()) for ds in datasets)
    assert (rows[uid]["label"], rows[uid]["answer"], rows[uid]["problem"]) == ("bright", job.answer, "")
    assert float(rows[uid]["volume_ml"]) == pytest.approx(bright * 0.7 * 0.9 * 3.0 / 1000, abs=1e-3)
    assert 0 < float(rows[uid]["long_axis_mm"]) <= np.hypot(16 * 0.7, 16 * 0.9)
    assert "damaged" in rows[other[0].SeriesInstanceUID]["problem"]
    assert "ller" not in text and "P-1" not in text


def test_a_refusal_that_would_not_change_is_given_up_at_once(tmp_path, model, monkeypatch):
    monkeypatch.setattr(listening, "FIRST_PAUSE", 3600.0)
    datasets = make_slices(2)
    with storage_peer() as pacs, listening_node(tmp_path / "node", model, pacs.port) as listener:
        pacs.status = 0xA900
        send_plainly(listener.port, datasets)
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.FAILED)
        assert job.attempts == 0 and "status 0xA900 (it does not match its SOP class)" in job.reason


def test_every_destination_gets_it_and_one_that_is_away_holds_up_nobody(tmp_path, model, caplog):
    datasets, away = make_slices(2), free_port()
    uid = datasets[0].SeriesInstanceUID
    with storage_peer() as pacs, listening_node(tmp_path, model, away, pacs.port) as listener:
        send_plainly(listener.port, datasets)
        eventually(lambda: pacs.received, "the one that is there")
        eventually(lambda: listener.queue.get(uid).waiting == ("pacs0",), "the note of it")
        with storage_peer(port=away) as back:
            job = state_of(listener, uid, State.DONE)
            assert [ds.SOPInstanceUID for ds in back.received] == [job.segmentation]
        assert len(pacs.received) == 1
    assert "no connection" in caplog.text


def test_a_destination_that_refuses_is_given_up_and_tried_again_when_asked(tmp_path, model, capsys):
    datasets = make_slices(2)
    uid, state = datasets[0].SeriesInstanceUID, tmp_path / "state"
    with storage_peer() as pacs, listening_node(state / "dimse", model, pacs.port) as listener:
        pacs.status = 0xA700
        send_plainly(listener.port, datasets)
        job = state_of(listener, uid, State.FAILED)
        assert "refused instance" in job.reason and "0xA700" in job.reason
        assert main(["dicom", "queue", "--state", str(state), "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert (shown["series_instance_uid"], shown["state"]) == (uid, "failed")
        assert main(["dicom", "queue", "--state", str(state)]) == 0
        assert "failed" in capsys.readouterr().out
        pacs.status = 0
        assert main(["dicom", "queue", "retry", uid, "--state", str(state)]) == 0
        assert "by the listener" in capsys.readouterr().out
        state_of(listener, uid, State.DONE)
        assert [ds.SOPInstanceUID for ds in pacs.received] == [job.segmentation]
        assert len(model.asked) == 1, "sent again, not segmented again"
        assert main(["dicom", "queue", "drop", uid, "--state", str(state)]) == 0
        eventually(lambda: listener.queue.get(uid) is None, "the drop")
    assert main(["dicom", "queue", "drop", uid, "--state", str(state)]) == 2
    assert "no series" in capsys.readouterr().err
    assert main(["dicom", "queue", "retry", "--state", str(state)]) == 2
    assert [(line.what, line.about) for line in AuditLog(state / "audit").entries()] == [
        (f"dicom queue {action}", {"series": uid}) for action in ("retry", "drop")
    ]


def secondary_capture():
    (ds,) = make_slices(1, series="capture")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    return [ds]


def localizer():
    datasets = make_slices(2, series="localizer")
    for ds in datasets:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return datasets


def mosaic():
    (ds,) = make_slices(1, series="mosaic")
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    return [ds]


def gap():
    datasets = make_slices(6, series="gap")
    return datasets[:3] + datasets[4:]


def partial():
    datasets = make_slices(6, series="partial")
    for ds in datasets:
        ds.NumberOfSeriesRelatedInstances = 6
    return datasets[:4]


def of_another_modality():
    datasets = make_slices(4, series="other modality")
    for ds in datasets:
        ds.Modality = "CT"
    return datasets


def too_few():
    return make_slices(1, series="too few")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (secondary_capture, "secondary capture"),
        (localizer, "localizer"),
        (mosaic, "mosaic"),
        (gap, "spac|gap|apart"),
        (partial, "partial: 4 of 6 instances came; send the rest"),
        (of_another_modality, "no rule matches: all: modality CT is not 'MR'"),
        (too_few, "no rule matches: all: 1 slices, at least 2 expected"),
    ],
)
def test_what_is_not_segmented_is_refused_with_the_reason(tmp_path, model, caplog, build, words):
    datasets = build()
    rule = {"patterns": {"modality": "MR"}, "min_slices": 2 if build is too_few else 1}
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, rule=rule) as listener:
        assert set(send_plainly(listener.port, datasets)) == {0}
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.REFUSED)
        assert re.search(words, job.reason), job.reason
        assert pacs.received == []
    assert f"series {job.series_instance_uid} is not segmented: " in caplog.text
    assert "ller" not in caplog.text


@pytest.mark.parametrize(("said", "left_out"), [(7, "instance 1: a localizer"), (8, "1 that did not come")])
def test_a_scout_and_a_count_that_is_off_by_one_leave_a_series_usable(tmp_path, model, caplog, said, left_out):
    datasets = make_slices(7, series="with a scout")
    for ds in datasets:
        ds.NumberOfSeriesRelatedInstances = said
    datasets[0].ImageType, datasets[0].InstanceNumber = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 1
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, rule={"min_slices": 6}) as listener:
        assert set(send_plainly(listener.port, datasets)) == {0}
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.DONE)
        (seg,) = pacs.received
    assert left_out in job.left_out and left_out in caplog.text
    assert model.asked == [("bright", 6)]
    assert seg.SOPClassUID == SegmentationStorage


def test_a_rule_counts_the_slices_that_are_segmented(tmp_path, model):
    datasets = make_slices(4, series="with a scout")
    datasets[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, rule={"min_slices": 4}) as listener:
        send_plainly(listener.port, datasets)
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.REFUSED)
    assert "3 slices, at least 4 expected" in job.reason and model.asked == []


def test_the_rest_of_a_partial_series_has_it_segmented(tmp_path, model):
    whole = make_slices(6, series="partial")
    for ds in whole:
        ds.NumberOfSeriesRelatedInstances = 6
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port) as listener:
        send_plainly(listener.port, whole[:4])
        state_of(listener, whole[0].SeriesInstanceUID, State.REFUSED)
        send_plainly(listener.port, whole[4:])
        state_of(listener, whole[0].SeriesInstanceUID, State.DONE)
        assert len(pacs.received) == 1
    assert model.asked == [("bright", 6)]


def test_a_series_that_grows_is_segmented_once_more_and_resent_instances_change_nothing(tmp_path, model):
    datasets = make_slices(6)
    uid = datasets[0].SeriesInstanceUID
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port) as listener:
        send_plainly(listener.port, datasets[:4])
        state_of(listener, uid, State.DONE)
        send_plainly(listener.port, datasets[:4])
        time.sleep(3 * QUIET)
        assert len(pacs.received) == 1
        send_plainly(listener.port, datasets)
        eventually(lambda: len(pacs.received) == 2, "the second segmentation")
        job = state_of(listener, uid, State.DONE)
        assert pacs.received[1].SOPInstanceUID == job.segmentation != pacs.received[0].SOPInstanceUID
    assert [slices for _, slices in model.asked] == [4, 6]


def test_instances_that_come_while_it_is_segmented_count(tmp_path, model):
    datasets = make_slices(6)
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port) as listener:

        def send_the_rest(_):
            model.before = lambda _: None
            send_plainly(listener.port, datasets[4:])

        model.before = send_the_rest
        send_plainly(listener.port, datasets[:4])
        state_of(listener, datasets[0].SeriesInstanceUID, State.DONE)
        assert [ds.SOPInstanceUID for ds in pacs.received] == [listener.queue.jobs()[0].segmentation]
    assert [slices for _, slices in model.asked] == [4, 6]


def test_a_series_that_keeps_coming_is_not_segmented_again_and_again(tmp_path, model):
    datasets = make_slices(12)
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, quiet_seconds=1.0) as listener:

        def send_the_rest_slowly(_):
            model.before = lambda _: None
            for ds in datasets[2:6]:
                send_plainly(listener.port, [ds])

        model.before = send_the_rest_slowly
        send_plainly(listener.port, datasets[:2])
        eventually(lambda: model.asked, "the first attempt")
        for ds in datasets[6:]:
            send_plainly(listener.port, [ds])
        state_of(listener, datasets[0].SeriesInstanceUID, State.DONE)
        assert len(pacs.received) == 1
    assert [slices for _, slices in model.asked] == [2, 12]


def test_a_segmentation_that_is_damaged_is_made_again_and_holds_up_no_other(tmp_path, model):
    away = free_port()
    first, second = make_slices(2, series="first"), make_slices(2, series="second")
    with listening_node(tmp_path, model, away) as listener:
        send_plainly(listener.port, first)
        job = state_of(listener, first[0].SeriesInstanceUID, State.SENDING)
        listener.outbox.paths(job.segmentation)[0].write_bytes(b"broken")
        with storage_peer(port=away) as pacs:
            send_plainly(listener.port, second)
            state_of(listener, second[0].SeriesInstanceUID, State.DONE)
            again = state_of(listener, first[0].SeriesInstanceUID, State.DONE)
            assert again.segmentation != job.segmentation and len(pacs.received) == 2


def test_what_was_segmented_and_sent_is_recorded_and_what_cannot_be_is_tried_again(tmp_path, model):
    datasets, lines, fails = make_slices(2), [], [True, False, True, False]

    def record(*line):
        if fails.pop(0):
            raise OSError(28, "No space left on device")
        lines.append(line)

    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, record=record) as listener:
        send_plainly(listener.port, datasets)
        job = state_of(listener, datasets[0].SeriesInstanceUID, State.DONE)
        assert {ds.SOPInstanceUID for ds in pacs.received} == {job.segmentation}
    about = {"series": job.series_instance_uid, "instance": job.segmentation}
    assert lines == [
        ("SCANNER", "dicom segment", {**about, "answer": "bright", "version": "1"}),
        ("SCANNER", "dicom send", {**about, "to": str(pacs.peer)}),
    ]


def test_a_model_that_fails_for_now_is_tried_again_and_one_that_cannot_is_not(tmp_path, model, caplog):
    failures = [MemoryError(), OSError(28, "No space left on device")]

    def fail(_):
        if failures:
            raise failures.pop()

    model.before = fail
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port) as listener:
        send_plainly(listener.port, make_slices(2))
        eventually(lambda: len(pacs.received) == 1, "the third attempt")
        failures += [MemoryError()] * 3
        other = make_slices(2, series="other")
        send_plainly(listener.port, other)
        job = state_of(listener, other[0].SeriesInstanceUID, State.FAILED)
        assert job.reason == "not segmented: MemoryError"
        failures += [AdaptationError("expected experts, given none")]
        third = make_slices(2, series="third")
        send_plainly(listener.port, third)
        assert state_of(listener, third[0].SeriesInstanceUID, State.REFUSED).reason == "expected experts, given none"
        before = len(model.asked)
        ask(tmp_path, "retry", job.series_instance_uid)
        state_of(listener, job.series_instance_uid, State.DONE)
        assert len(model.asked) == before + 1


def test_a_new_process_goes_on_where_the_last_one_ended(tmp_path, model):
    waiting, unsent = make_slices(3), make_slices(2, series="unsent")
    away = free_port()

    def be_cancelled(cancelled):
        eventually(cancelled, "the end")
        raise CancelledError("stopped")

    with listening_node(tmp_path, model, away) as listener:
        send_plainly(listener.port, unsent)
        job = state_of(listener, unsent[0].SeriesInstanceUID, State.SENDING)
        model.before = be_cancelled
        send_plainly(listener.port, waiting)
        state_of(listener, waiting[0].SeriesInstanceUID, State.SEGMENTING)
        eventually(lambda: len(model.asked) == 2, "the model")
    states = {job.series_instance_uid: job.state for job in list_jobs(tmp_path / "queue")}
    assert states[waiting[0].SeriesInstanceUID] is State.SEGMENTING
    model.before = lambda _: None
    with storage_peer(port=away) as pacs, listening_node(tmp_path, model, away) as listener:
        for series in (waiting, unsent):
            state_of(listener, series[0].SeriesInstanceUID, State.DONE)
        assert len(pacs.received) == 2
        assert job.segmentation in {ds.SOPInstanceUID for ds in pacs.received}
    assert [slices for _, slices in model.asked] == [2, 3, 3]


def test_two_listeners_do_not_share_a_folder(tmp_path, model):
    with listening_node(tmp_path, model), pytest.raises(ConfigError, match="another iopfl dicom listen"):
        Listener(ListenSettings(folder=tmp_path, scp=SCPSettings(port=0)), Rules((), {}), model)


def test_without_a_listener_what_is_asked_is_done_at_once(tmp_path, model):
    datasets = make_slices(2)
    uid = datasets[0].SeriesInstanceUID
    with listening_node(tmp_path, model, free_port()) as listener:
        send_plainly(listener.port, datasets)
        state_of(listener, uid, State.FAILED, State.SENDING)
    assert ask(tmp_path, "retry", uid)
    (job,) = list_jobs(tmp_path / "queue")
    assert (job.state, job.attempts, job.reason) == (State.SENDING, 0, "")
    assert ask(tmp_path, "drop", uid)
    assert list_jobs(tmp_path / "queue") == [] and not list((tmp_path / "series").iterdir())


def test_only_old_or_superfluous_series_that_are_done_are_deleted(tmp_path, model, monkeypatch):
    first, second, third = (make_slices(2, series=name, size=64) for name in ("first", "second", "third"))
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, max_bytes=40_000) as listener:
        for series in (first, second):
            assert send_plainly(listener.port, series) == [0, 0]
            state_of(listener, series[0].SeriesInstanceUID, State.DONE)
        pacs.status = 0xA700
        monkeypatch.setattr(listening, "_TIDY_SECONDS", 0.05)
        eventually(lambda: listener.inbox.size < 36_000, "the room")
        assert send_plainly(listener.port, third) == [0, 0]
        job = state_of(listener, third[0].SeriesInstanceUID, State.FAILED)
        make_room(listener.inbox, listener.outbox, keep_days=0.0)
        left = [job.series_instance_uid for job in listener.queue.jobs()]
        assert left == [third[0].SeriesInstanceUID], "what is owed stays"
        assert [path.stem for path in (tmp_path / "outbox").iterdir()] == [job.segmentation]


def test_settings_that_cannot_be_are_refused(tmp_path):
    for wrong in ({"quiet_seconds": 0}, {"keep_days": -1}, {"max_bytes": 0}):
        with pytest.raises(ConfigError, match="positive"):
            ListenSettings(folder=tmp_path, **wrong)


def test_a_part_of_the_disk_stays_free_unless_somebody_wants_otherwise(tmp_path, model):
    whole = shutil.disk_usage(tmp_path).total
    with listening_node(tmp_path / "a", model, min_free_bytes=None) as listener:
        assert listener.inbox.room.min_free == min(whole // 20, 10**10)
    with listening_node(tmp_path / "b", model, min_free_bytes=whole) as listener:
        assert send_plainly(listener.port, make_slices(1)) == [0xA700]
    with pytest.raises(ConfigError, match="to keep free"):
        ListenSettings(folder=tmp_path, min_free_bytes=-1)


def test_series_that_are_done_make_room_on_a_disk_that_is_full(tmp_path, model, monkeypatch):
    monkeypatch.setattr(listening, "_TIDY_SECONDS", 0.05)
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, min_free_bytes=1) as listener:
        assert send_plainly(listener.port, make_slices(2)) == [0, 0]
        eventually(lambda: listener.queue.jobs(State.DONE), "the segmentation")
        monkeypatch.setattr("iopfl.dimse.room.Room._free_bytes", lambda self: 0 if len(listener.queue) else 10**9)
        eventually(lambda: not listener.queue.jobs(), "the room")
        assert send_plainly(listener.port, make_slices(1, series="next")) == [0]


def request_commitment(assoc, datasets):
    asked = Dataset()
    asked.TransactionUID = "1.2.3.4"
    asked.ReferencedSOPSequence = []
    for ds in datasets:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        asked.ReferencedSOPSequence.append(item)
    status, _ = assoc.send_n_action(asked, 1, StorageCommitmentPushModel, WELL_KNOWN_INSTANCE)
    return status.Status


@pytest.mark.parametrize("stays", [True, False], ids=["on the same association", "on one of our own"])
def test_what_is_held_is_committed_to_when_that_is_switched_on(tmp_path, model, stays):
    datasets = make_slices(3)
    strange = deepcopy(datasets[0])
    strange.SOPClassUID = SecondaryCaptureImageStorage
    reports = []

    def report(event):
        reports.append(event.event_information)
        return 0x0000, None

    contexts = [build_context(StorageCommitmentPushModel)]
    handlers = [(evt.EVT_N_EVENT_REPORT, report)]
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, commitment=True) as listener:
        send_plainly(listener.port, datasets[:2])
        with plain_association(listener.port, contexts, aet="PACS", evt_handlers=handlers) as assoc:
            assert request_commitment(assoc, [*datasets[:2], datasets[2], strange]) == 0
            if stays:
                eventually(lambda: reports, "the report")
        (result,) = reports if stays else eventually(lambda: pacs.reports, "the report")
    assert result.TransactionUID == "1.2.3.4"
    assert {item.ReferencedSOPInstanceUID for item in result.ReferencedSOPSequence} == {
        ds.SOPInstanceUID for ds in datasets[:2]
    }
    assert [item.FailureReason for item in result.FailedSOPSequence] == [0x0112, 0x0119]


def test_an_instance_that_cannot_be_read_whole_is_committed_to_as_well(tmp_path, model):
    (ds,) = make_slices(1)
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port, commitment=True) as listener:
        send_plainly(listener.port, [ds])
        path = listener.inbox.find(ds.SOPInstanceUID)
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"\x28\x00\x10\x00US")] + b"\x28\x00\x10\x00SQ\0\0\xff\xff\xff\xffbroken")
        with plain_association(listener.port, [build_context(StorageCommitmentPushModel)], aet="PACS") as assoc:
            assert request_commitment(assoc, [ds]) == 0
        (result,) = eventually(lambda: pacs.reports, "the report")
    assert [item.ReferencedSOPInstanceUID for item in result.ReferencedSOPSequence] == [ds.SOPInstanceUID]


def test_nothing_is_committed_to_otherwise(tmp_path, model):
    with (
        listening_node(tmp_path, model) as listener,
        plain_association(listener.port, [build_context(StorageCommitmentPushModel)]) as assoc,
    ):
        assert not assoc.accepted_contexts


TEXTS = ("Modality", "BodyPartExamined", "SeriesDescription", "ImageType", "PhotometricInterpretation")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_patient_in_whatever_element_is_in_no_answer_no_line_and_no_reason(tmp_path, model, caplog):
    caplog.set_level(logging.INFO)
    rule = {"patterns": {"modality": "MR", "body_part": "*", "description": "a*"}}
    comments, sent = [], 0
    with listening_node(tmp_path, model, free_port(), rule=rule) as listener:
        for keyword in (*TEXTS, *UIDS):
            (ds,) = make_slices(1, series=keyword)
            setattr(ds, keyword, "DOE^JANE")
            with plain_association(listener.port) as assoc:
                answer = assoc.send_c_store(ds)
                comments.append(str(answer))
                sent += answer.get("Status") == 0
        eventually(
            lambda: len(listener.queue.jobs(State.REFUSED, State.SENDING, State.FAILED)) == sent, "the end of each"
        )
        reasons = [job.reason for job in listener.queue.jobs()]
    assert sent and any("ErrorComment" in comment or "(0000,0902)" in comment for comment in comments)
    assert any(reasons)
    for text in (*comments, *reasons, caplog.text, *map(str, tmp_path.rglob("*"))):
        assert "DOE" not in text and "JANE" not in text
    kept = [path for path in (tmp_path / "queue").iterdir() if b"DOE" in path.read_bytes()]
    assert not kept


def test_the_log_names_no_patient(tmp_path, model, caplog):
    caplog.set_level(logging.INFO)
    with storage_peer() as pacs, listening_node(tmp_path, model, pacs.port) as listener:
        send_plainly(listener.port, make_slices(3))
        eventually(lambda: pacs.received, "the segmentation")
    for value in ("ller", "P-1", "19600203"):
        assert value not in caplog.text
    assert "is complete with 3 instances" in caplog.text
    assert all(
        threading.current_thread() is thread or not thread.name.startswith("dicom-") for thread in threading.enumerate()
    )
