"""The listener's files halved, emptied, gone, one at a time: it starts, says what is wrong, and loses nothing else."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import SegmentationStorage

from dimse.nodes import make_slices, send_plainly, storage_peer
from dimse.test_inbox import SERIES, instance, open_inbox, store
from dimse.test_listening import Model, listening_node, state_of
from iopfl.base.errors import ConfigError
from iopfl.base.private_files import write_private
from iopfl.cli.listen import build_record
from iopfl.dimse.commitment import NO_SUCH_INSTANCE, Commitment
from iopfl.dimse.queue import Queue, State
from iopfl.dimse.rules import read_rules
from orthanc import free_port

DAMAGES = {
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink(),
}
RULE = {"results": ("seg", "report")}
RULES = """\
rules:
  - {name: all, answer: gland, send_to: [pacs]}
destinations:
  pacs: {ae_title: PACS, host: 127.0.0.1, port: 4242}
"""
FILES = {
    "job": "dimse/queue/{unsent}.json",
    "job that is done": "dimse/queue/{sent}.json",
    "segmentation": "dimse/outbox/{result}.dcm",
    "report": "dimse/outbox/{result}_0001.dcm",
    "instance": "dimse/series/{unsent}/{instance}.dcm",
    "instance of a series that is done": "dimse/series/{sent}/{other}.dcm",
    "audit log": "audit/{log}",
}
FOLDERS = {name: f"dimse/{name}" for name in ("incoming", "work", "outbox", "queue", "series")}


@dataclass
class Left:
    """What a listener left: a series that was sent, and one that was not, as its destination was away."""

    state: Path
    port: int
    names: dict[str, str]


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Left:
    state, port = tmp_path_factory.mktemp("left") / "state", free_port()
    sent, unsent = make_slices(3, series="sent"), make_slices(3, series="unsent")
    node = {"rule": RULE, "record": build_record(state)}
    with storage_peer(port=port), listening_node(state / "dimse", Model(), port, **node) as listener:
        send_plainly(listener.port, sent)
        state_of(listener, sent[0].SeriesInstanceUID, State.DONE)
    with listening_node(state / "dimse", Model(), port, **node) as listener:
        send_plainly(listener.port, unsent)
        job = state_of(listener, unsent[0].SeriesInstanceUID, State.SENDING)
    names = {"sent": sent[0].SeriesInstanceUID, "unsent": unsent[0].SeriesInstanceUID, "result": job.segmentation}
    names |= {"instance": unsent[-1].SOPInstanceUID, "other": sent[-1].SOPInstanceUID}
    names["log"] = next(path.name for path in (state / "audit").iterdir() if path.suffix == ".jsonl")
    return Left(state, port, {name: str(value) for name, value in names.items()})


def instances(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (state / "dimse" / "series").rglob("*.dcm")}


@pytest.mark.parametrize(
    ("what", "damage"),
    [*((what, damage) for what in FILES for damage in DAMAGES), *((what, "gone") for what in FOLDERS)],
)
def test_whatever_file_is_damaged_it_starts_says_so_and_loses_nothing_else(left, tmp_path, caplog, what, damage):
    state = shutil.copytree(left.state, tmp_path / "state")
    path = state / {**FILES, **FOLDERS}[what].format(**left.names)
    before = instances(state)
    DAMAGES[damage](path)
    before = {name: before[name] for name in instances(state) if name != path.name}
    caplog.set_level(logging.WARNING)
    more, unsent = make_slices(2, series="more"), left.names["unsent"]
    with (
        storage_peer(port=left.port) as pacs,
        listening_node(state / "dimse", Model(), left.port, rule=RULE, record=build_record(state)) as listener,
    ):
        assert send_plainly(listener.port, more) == [0, 0]
        state_of(listener, more[0].SeriesInstanceUID, State.DONE)
        if listener.queue.get(unsent) is not None:
            state_of(listener, unsent, State.DONE, State.REFUSED)
    came = [ds for ds in pacs.received if ds.SOPClassUID == SegmentationStorage]
    is_sent = unsent in {str(ds.ReferencedSeriesSequence[0].SeriesInstanceUID) for ds in came}
    assert is_sent or unsent in caplog.text, "it is sent, or it is said why not"
    assert len({str(ds.SeriesInstanceUID) for ds in pacs.received}) == len(pacs.received), "each result once"
    if what not in ("incoming", "work", "audit log"):
        assert any(name in caplog.text for name in left.names.values()), "a word of it"
    assert before.items() <= instances(state).items()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rules_are_refused_in_one_line(tmp_path, damage):
    (tmp_path / "rules.yaml").write_text(RULES)
    DAMAGES[damage](tmp_path / "rules.yaml")
    with pytest.raises(ConfigError, match=r"^rules .*rules\.yaml") as refusal:
        read_rules(tmp_path / "rules.yaml")
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_nothing_is_committed_to_that_is_not_held(tmp_path, damage):
    inbox = open_inbox(tmp_path)
    store(inbox, 1)
    DAMAGES[damage](inbox.files(SERIES)[0])
    result = Commitment(inbox, lambda title: None, ae_title="IOPFL").judge(
        "1.2", [("1.3", instance().sop_instance_uid)]
    )
    assert [item.FailureReason for item in result.FailedSOPSequence] == [NO_SUCH_INSTANCE]


def test_a_deletion_that_is_cut_off_leaves_no_half_of_a_series(tmp_path, monkeypatch):
    inbox = open_inbox(tmp_path)
    store(inbox, 1, 2)
    job = inbox.queue.change(inbox.begin(SERIES), state=State.DONE)

    def be_killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Queue, "remove", be_killed)
    with pytest.raises(KeyboardInterrupt):
        inbox.remove(job)
    monkeypatch.undo()
    again = open_inbox(tmp_path)
    assert again.files(SERIES) == [] and again.begin(SERIES) is None
    assert again.queue.jobs() == [] and not list((tmp_path / "incoming").iterdir())


def test_what_a_killed_process_left_of_a_file_is_swept_at_the_start(tmp_path):
    path = tmp_path / "dimse" / "queue" / f"{SERIES}.json"
    write_private(path, b"{}")
    code = "import os, sys; from pathlib import Path; from iopfl.base.private_files import write_private\n"
    code += "os.fsync = lambda _: os.kill(os.getpid(), 9)\nwrite_private(Path(sys.argv[1]), b'half')"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL
    assert len([*path.parent.iterdir()]) == 2
    path.unlink()
    outbox = tmp_path / "dimse" / "outbox"
    shutil.copytree(path.parent, outbox)
    with listening_node(tmp_path / "dimse", Model()):
        assert not list(path.parent.iterdir()) and not list(outbox.iterdir())
