"""What is said of a label on a full disk is true: "not kept" is not there afterwards, what is kept becomes final."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomio.phantoms import series_uid
from full_disk import SmallDisk, small_disk
from iopfl.base.errors import StorageError
from iopfl.labels.final_rule import MAJORITY
from iopfl.labels.log import CONSENSUS

from .archive import TASK
from .labels import IMAGE, columns_of, draw, final, open_store, submit
from .site import write_scans


@pytest.fixture(scope="module", autouse=True)
def _patched() -> None:
    from iopfl.compat import apply_tasks

    apply_tasks()


@pytest.fixture
def studies_disk(tmp_path) -> Iterator[SmallDisk]:
    """The studies on a disk of their own."""
    with small_disk(tmp_path / "site_a") as disk:
        write_scans(disk.path, labeled=2, unlabeled=7)
        yield disk


@pytest.fixture
def state_disk(tmp_path) -> Iterator[SmallDisk]:
    """The state folder on a disk of its own."""
    write_scans(tmp_path / "site_a", labeled=2, unlabeled=7)
    with small_disk(tmp_path / "state") as disk:
        yield disk


def labels(tmp_path: Path) -> dict[str, Path]:
    return {name: draw(tmp_path / f"{name}.nii.gz", slice(n, n + 3)) for n, name in enumerate(("ann", "bob", "eve"))}


def numbers(store) -> list[int]:
    return [version.number for version in store.versions.history(IMAGE).versions]


@pytest.mark.parametrize("again", ["settle", "restart", "look"])
def test_a_label_that_finds_the_studies_disk_full_is_kept_and_final_once_there_is_room(studies_disk, tmp_path, again):
    store, drawn = open_store(studies_disk.path), labels(tmp_path)
    submit(store, drawn["ann"], "ann")
    studies_disk.fill()
    assert submit(store, drawn["bob"], "bob").number == 2
    assert "No space left on device" in store.unsettled[IMAGE] and "kept" in store.unsettled[IMAGE]
    assert [version.annotator for version in store.history(IMAGE).versions] == ["ann", "bob"]
    assert columns_of(final(studies_disk.path)) == [0, 1, 2]
    store.settle()
    assert IMAGE in store.unsettled, "still no room"
    studies_disk.clear()
    if again == "restart":
        store = open_store(studies_disk.path)
    {"settle": store.settle, "restart": store.repair, "look": lambda: store.history(IMAGE)}[again]()
    assert columns_of(final(studies_disk.path)) == [1, 2, 3] and store.unsettled == {}
    assert store.get_label_info(IMAGE, "final")["version"] == 2 and numbers(store) == [1, 2]


@pytest.mark.parametrize(
    ("action", "columns"),
    [
        (lambda store: store.undo(IMAGE, "bob"), [0, 1, 2]),
        (lambda store: store.choose(IMAGE, 1, "rev"), [0, 1, 2]),
        (lambda store: store.remove_label(IMAGE, "final"), []),
    ],
)
def test_what_is_decided_while_the_studies_disk_is_full_holds_once_there_is_room(
    studies_disk, tmp_path, action, columns
):
    store, drawn = open_store(studies_disk.path), labels(tmp_path)
    submit(store, drawn["ann"], "ann")
    submit(store, drawn["bob"], "bob")
    studies_disk.fill()
    action(store)
    again = open_store(studies_disk.path)
    again.history(IMAGE)
    studies_disk.clear()
    again.settle()
    assert columns_of(final(studies_disk.path)) == columns and again.unsettled == {}
    assert (IMAGE in again.get_labeled_images()) == bool(columns)


def test_a_consensus_waits_for_room(studies_disk, tmp_path):
    store, drawn = open_store(studies_disk.path, MAJORITY), labels(tmp_path)
    for name in ("ann", "bob"):
        submit(store, drawn[name], name)
    studies_disk.fill()
    submit(store, drawn["eve"], "eve")
    studies_disk.clear()
    store.settle()
    newest = store.history(IMAGE).versions[-1]
    assert (newest.kind, newest.sources) == (CONSENSUS, (4, 2, 1)) and columns_of(final(studies_disk.path)) == [1, 2, 3]


def test_a_refused_label_is_not_there_afterwards(state_disk, tmp_path):
    studies = tmp_path / "site_a"
    store, drawn = open_store(studies), labels(tmp_path)
    submit(store, drawn["ann"], "ann")
    state_disk.fill()
    for name, image in (("bob", IMAGE), ("eve", IMAGE), ("bob", IMAGE), ("eve", "case07")):
        with pytest.raises(StorageError, match=r"No space left on device.*the label is not kept.*submit it again"):
            submit(store, drawn[name], name, image=image)
    assert numbers(store) == [1] and columns_of(final(studies)) == [0, 1, 2]
    assert [version.annotator for version in store.history(IMAGE).versions] == ["ann"], "looking needs no room"
    state_disk.clear()
    again = open_store(studies)
    again.start()
    assert [version.annotator for version in again.history(IMAGE).versions] == ["ann"]
    assert again.history("case07").versions == () and final(studies, "case07") is None
    assert submit(again, drawn["eve"], "eve").number == 2


def test_a_label_whose_file_fits_and_whose_line_does_not_leaves_neither(state_disk, tmp_path):
    store, drawn = open_store(tmp_path / "site_a"), labels(tmp_path)
    submit(store, drawn["ann"], "ann")
    state_disk.fill()
    chosen = 0
    with pytest.raises(StorageError, match="nothing was changed"):
        while True:  # until the log needs another page
            store.choose(IMAGE, 1 if chosen % 2 else None, "rev")
            chosen += 1
    history = store.history(IMAGE)
    assert (history.chosen == 1) == (chosen > 0 and chosen % 2 == 0)
    state_disk.fill(leave=1)
    folder = tmp_path / "state" / "labels" / IMAGE
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StorageError, match="not kept"):
        submit(store, drawn["bob"], "bob")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert store.history(IMAGE) == history


def test_looking_at_labels_works_on_full_disks(state_disk, tmp_path):
    """Also of an image into whose folder somebody put a label by hand that cannot be taken in."""
    studies = tmp_path / "site_a"
    store = open_store(studies)
    state_disk.fill()
    shutil.copy(draw(tmp_path / "a.nii.gz", slice(0, 3)), studies / "labels" / "final" / f"{IMAGE}.nii.gz")
    assert store.history(IMAGE).versions == () and "No space left" in store.unsettled[IMAGE]
    state_disk.clear()
    store.settle()
    assert [version.kind for version in store.history(IMAGE).versions] == ["folder"] and store.unsettled == {}


def test_a_label_refused_beside_a_pacs_never_reaches_it(pacs, open_store, tmp_path):
    image = series_uid("first")
    with small_disk(tmp_path / "state", size="2m") as disk:
        store = open_store(pacs.dicomweb_url)
        store.list_images()
        like = store.get_image_uri(image)
        import nibabel as nib
        import numpy as np

        source = nib.load(like)
        value = next(iter(TASK.labels.values()))
        mask = nib.Nifti1Image(np.full(source.shape, value, np.uint8), source.affine)
        nib.save(mask, tmp_path / "drawn.nii.gz")
        disk.fill()
        with pytest.raises(StorageError, match="not kept"):
            store.submit(image, tmp_path / "drawn.nii.gz", {"client_id": "ann"})
        disk.clear()
        again = open_store(pacs.dicomweb_url)
        again.versions.recover()
        assert again.outbox.waiting() == [] and again.history(image).versions == ()
        assert store.submit(image, tmp_path / "drawn.nii.gz", {"client_id": "ann"}).number == 1
