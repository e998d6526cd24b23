"""A log of labels that lost lines: no label is written over, none is lost, and no number is used twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from iopfl.base.errors import LabelVersionError, StorageError
from iopfl.labels.final_rule import MAJORITY
from iopfl.labels.log import DAMAGED, LOG, RECOVERED

from .labels import IMAGE, columns_of, draw, final, open_store, submit

NAMES = ("ann", "bob", "ann", "eve")


@pytest.fixture
def folder(studies, tmp_path) -> Path:
    """The versions of an image with four labels, each of other columns."""
    store = open_store(studies)
    for number, name in enumerate(NAMES):
        submit(store, draw(tmp_path / f"{number}.nii.gz", slice(number, number + 1)), name)
    return tmp_path / "state" / "labels" / IMAGE


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[0-9]*")}


def halved(log: bytes) -> bytes:
    return log[: len(log) // 2]


def without_third(log: bytes) -> bytes:
    """Third label's line, cut off in the middle of the log."""
    lines = log.splitlines(keepends=True)
    index = next(i for i, line in enumerate(lines) if json.loads(line).get("number") == 3)
    return b"".join([*lines[:index], lines[index][:30] + b"\n", *lines[index + 1 :]])


DAMAGES = [halved, without_third, lambda log: b"", lambda log: log[len(log) // 2 :], lambda log: b"\0" * len(log), None]


@pytest.mark.parametrize("rule", ["newest", MAJORITY])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_log_lost_is_found_again_and_nothing_is_written_over(studies, folder, tmp_path, caplog, damage, rule):
    before = files_of(folder)
    content = (folder / LOG).read_bytes()
    (folder / LOG).unlink()
    if damage is not None:
        (folder / LOG).write_bytes(damage(content))
    store = open_store(studies, rule)
    store.start()
    lost = {version.number for version in store.history(IMAGE).versions if version.kind == RECOVERED}
    assert lost and sum("who drew it is not known" in record.message for record in caplog.records) == len(lost)
    new = submit(store, draw(tmp_path / "new.nii.gz", slice(9, 12)), "joe")
    assert new.number > 4
    history = open_store(studies, rule).history(IMAGE)
    after = files_of(folder)
    assert {name: after[name] for name in before} == before
    for number, name in enumerate(NAMES, start=1):
        version = history.find(number)
        assert store.versions.file(IMAGE, version).read_bytes() == before[f"{number}.nii.gz"]
        assert version.annotator == ("" if number in lost else name)
        assert store.versions.is_whole(IMAGE, version)
    if rule == "newest":
        assert columns_of(final(studies)) == [9, 10, 11] and history.published == new.number


def test_who_submits_what_was_found_again_is_whose_it_is(studies, folder, tmp_path):
    (folder / LOG).unlink()
    store = open_store(studies)
    store.start()
    assert submit(store, tmp_path / "1.nii.gz", "bob").number == 2
    history = open_store(studies).history(IMAGE)
    assert [version.annotator for version in history.versions] == ["", "bob", "", ""]
    assert columns_of(final(studies)) == [1] and history.published == 2


def test_a_number_that_only_another_file_or_a_line_bears_is_not_used_again(studies, folder, tmp_path):
    (folder / LOG).unlink()
    (folder / "9.dcm").write_bytes(b"a SEG on its way to a PACS")
    store = open_store(studies)
    assert submit(store, draw(tmp_path / "new.nii.gz", slice(9, 12)), "joe").number == 10
    with store.versions.hold(IMAGE):
        store.versions.note(IMAGE, "withdrawn", numbers=[14], why="undone", by="eve")
    assert submit(store, draw(tmp_path / "newer.nii.gz", slice(8, 12)), "joe").number == 15


def test_what_was_decided_about_a_lost_label_holds_once_it_is_found(studies, folder):
    store = open_store(studies)
    store.choose(IMAGE, 3, "rev")
    store.undo(IMAGE, "eve")
    (folder / LOG).write_bytes(without_third((folder / LOG).read_bytes()))
    again = open_store(studies)
    again.start()
    history = again.history(IMAGE)
    assert (history.chosen, dict(history.withdrawn), history.find(3).kind) == (3, {4: "undone"}, RECOVERED)
    assert columns_of(final(studies)) == [2]


def test_a_crash_between_a_file_and_its_line_counts_it_once(studies, folder, tmp_path, monkeypatch):
    store = open_store(studies)
    label = draw(tmp_path / "new.nii.gz", slice(9, 12))

    class Crash(BaseException):
        pass

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("iopfl.labels.versions.write_line", crash)
        submit(store, label, "joe")
    again = open_store(studies)
    again.start()
    assert again.history(IMAGE).find(5).kind == RECOVERED
    assert submit(again, label, "joe").number == 5
    assert [version.annotator for version in again.history(IMAGE).versions] == [*NAMES, "joe"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", None])
def test_a_damaged_label_never_becomes_final(studies, folder, tmp_path, damage):
    path = folder / "3.nii.gz"
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    store = open_store(studies)
    store.undo(IMAGE, "eve")
    history = store.history(IMAGE)
    assert history.withdrawn[3] == DAMAGED and columns_of(final(studies)) == [1], "the newest that is whole: bob's"
    assert [file.read_bytes() for file in folder.glob("3.nii.gz.damaged-*")] == ([damage(content)] if damage else [])
    with pytest.raises(LabelVersionError, match="damaged or taken away"):
        store.versions.file(IMAGE, history.find(3))
    assert submit(store, draw(tmp_path / "new.nii.gz", slice(9, 12)), "joe").number == 5


def test_no_version_is_ever_written_over(studies, folder, tmp_path):
    """Not even by a file that comes between the choice of a number and its use."""
    store = open_store(studies)
    mine, fsync = folder / "5.nii.gz", os.fsync

    def intrude(descriptor):
        mine.write_bytes(b"mine")
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="not kept"):
        patch.setattr(os, "fsync", intrude)
        submit(store, draw(tmp_path / "new.nii.gz", slice(9, 12)), "joe")
    assert mine.read_bytes() == b"mine"
