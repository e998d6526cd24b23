"""A site folder as a datastore: many requests at once, what others do to it, a damaged index, and a large folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest

from iopfl.compat import apply_early
from label_server import write_volume

INDEX, CHANGES = "datastore_v2.json", "datastore_v2.changes.jsonl"


@pytest.fixture(autouse=True, scope="module")
def _importable() -> None:
    apply_early()


def open_folder(folder: Path, count: int = 0):
    """A datastore of empty files."""
    from iopfl.labels.folder import FolderDatastore

    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"case{number}.nii.gz").write_bytes(b"")
    return FolderDatastore(folder, extensions=["*.nii.gz", "*.png"])


@pytest.fixture
def label(tmp_path) -> Path:
    return write_volume(tmp_path / "label.nii.gz")


def test_the_index_survives_concurrent_readers_and_writers(tmp_path, label):
    store = open_folder(tmp_path / "images", 40)
    errors = []

    def repeat(action):
        try:
            for number in range(40):
                action(number)
        except Exception as error:
            errors.append(repr(error))

    def add_and_remove(number):
        store.add_image(f"new{number}", str(label), {})
        store.remove_image(f"new{number}")

    def save(number):
        store.save_label(f"case{number % 40}", str(label), f"tag{number % 5}", {})

    def read(_):
        store.status()
        store.datalist()
        store.json()

    threads = [threading.Thread(target=repeat, args=[a]) for a in (add_and_remove, save, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.status()["total"] == 40
    assert store.json() == open_folder(tmp_path / "images").json()


def test_files_that_others_add_and_remove_are_seen_at_once(tmp_path):
    store = open_folder(tmp_path, 1)
    assert store.list_images() == ["case0"]
    (tmp_path / "case9.nii.gz").write_bytes(b"")
    assert sorted(store.list_images()) == ["case0", "case9"]
    (tmp_path / "labels" / "final" / "case9.nii.gz").write_bytes(b"")
    assert store.get_labeled_images() == ["case9"]
    (tmp_path / "labels" / "mine").mkdir()
    (tmp_path / "labels" / "mine" / "case9.png").write_bytes(b"")
    assert store.status()["label_tags"] == {"final": 1, "mine": 1}
    shutil.rmtree(tmp_path / "labels" / "mine")
    (tmp_path / "labels" / "final" / "case9.nii.gz").unlink()
    assert store.get_labeled_images() == [] and store.get_labels_by_image_id("case9") == {}
    (tmp_path / "case0.nii.gz").unlink()
    assert store.list_images() == ["case9"]


def test_a_label_that_was_there_before_its_image_is_its_label(tmp_path):
    store = open_folder(tmp_path)
    (tmp_path / "labels" / "final" / "case9.nii.gz").write_bytes(b"")
    assert store.status()["total"] == 0
    (tmp_path / "case9.png").write_bytes(b"")
    assert store.get_labeled_images() == ["case9"]


def test_a_tag_may_be_one_of_monai_labels_enumeration(tmp_path, label):
    from monailabel.interfaces.datastore import DefaultLabelTag

    store = open_folder(tmp_path / "images", 1)
    store.save_label("case0", str(label), DefaultLabelTag.ORIGINAL, {"said": 1})
    assert store.get_label_info("case0", "original") == store.get_label_info("case0", DefaultLabelTag.ORIGINAL)
    assert store.get_label_uri("case0", DefaultLabelTag.ORIGINAL).endswith("labels/original/case0.nii.gz")
    store.remove_label("case0", DefaultLabelTag.ORIGINAL)
    assert not list((tmp_path / "images" / "labels").rglob("*.nii.gz"))


def test_what_is_no_image_is_not_listed(tmp_path):
    store = open_folder(tmp_path, 1)
    for name in (".case1.png", "notes.txt", "case2.png.part"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "case3.png").mkdir()
    (tmp_path / "case4.png").symlink_to(tmp_path / "nowhere.png")
    assert store.list_images() == ["case0"]


def test_the_server_takes_the_files_that_the_commands_take(tmp_path):
    from iopfl.core.sites import find_cases
    from iopfl.images.headers import IMAGE_SUFFIXES
    from iopfl.labels.folder import FolderDatastore

    folder, labels = tmp_path, tmp_path / "labels" / "final"
    extensions = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
    (folder / "case.nii").touch()
    (folder / "eye.png").touch()
    store = FolderDatastore(folder, extensions=extensions)
    for name in ("UPPER.NII.GZ", "Mixed.Nii.gz", "._case.nii.gz", "case.nii.gz", "eye.JPG", "eye.TIF", "notes.txt"):
        (folder / name).touch()
    for name in ("UPPER.NRRD", "eye.jpg", "eye.png", "._UPPER.nii.gz", "case.nii"):
        (labels / name).touch()
    for found in (store, FolderDatastore(folder, extensions=extensions)):  # as files come, and at a start
        images = {image: Path(found.get_image_uri(image)).name for image in found.list_images()}
        assert images == {case.stem: case.image.name for case in find_cases(folder)}
        assert images["eye"] == "eye.JPG" and images["UPPER"] == "UPPER.NII.GZ" and images["case"] == "case.nii.gz"
        pairs = {Path(pair["image"]).name: Path(pair["label"]).name for pair in found.datalist()}
        assert pairs == {case.image.name: case.label.name for case in find_cases(folder) if case.label}
        assert found.get_image_info("eye")["other_files"] == ["eye.TIF", "eye.png"]
    (folder / "eye.JPG").unlink()
    (folder / "UPPER.NII.GZ").unlink()
    assert Path(store.get_image_uri("eye")).name == "eye.TIF" and store.get_image_uri("UPPER") == ""


def test_what_another_process_saves_is_not_forgotten(tmp_path, label):
    here, there = open_folder(tmp_path / "images", 2), open_folder(tmp_path / "images")
    there.save_label("case0", str(label), "original", {"score": 0.5})
    here.save_label("case1", str(label), "final", {})
    here.update_image_info("case0", {"seen": 1})
    there.update_image_info("case0", {"read": 2})
    for store in (here, there, open_folder(tmp_path / "images")):
        assert store.get_label_info("case0", "original")["score"] == 0.5
        assert store.get_labels_by_image_id("case1") == {"final": "case1"}
        assert (store.get_image_info("case0")["seen"], store.get_image_info("case0")["read"]) == (1, 2)


def test_an_index_that_is_replaced_is_read(tmp_path):
    store = open_folder(tmp_path, 1)
    store.update_image_info("case0", {"said": "first"})
    values = json.loads((tmp_path / INDEX).read_text())
    values["objects"]["case0"]["image"]["info"]["said"] = "another"
    (tmp_path / "new").write_text(json.dumps(values))
    (tmp_path / "new").replace(tmp_path / INDEX)
    assert store.get_image_info("case0")["said"] == "another", "what was changed before it is of the index that is gone"
    store.update_image_info("case0", {"more": 1})
    assert open_folder(tmp_path).get_image_info("case0")["said"] == "another"


def test_the_index_holds_no_number_that_json_has_not(tmp_path):
    store = open_folder(tmp_path, 1)
    store.update_image_info("case0", {"dice": math.nan})
    assert store.get_image_info("case0")["dice"] is None
    assert "NaN" not in (tmp_path / INDEX).read_text() + (tmp_path / CHANGES).read_text()
    assert open_folder(tmp_path).get_image_info("case0")["dice"] is None


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"[7]", lambda b: b"\xff" * 9])
def test_a_damaged_index_is_set_aside_and_made_anew(tmp_path, caplog, label, damage):
    store = open_folder(tmp_path / "images", 3)
    store.save_label("case1", str(label), "final", {"said": "kept"})
    index = tmp_path / "images" / INDEX
    damaged = damage(index.read_bytes())
    index.write_bytes(damaged)
    again = open_folder(tmp_path / "images")
    assert sorted(again.list_images()) == ["case0", "case1", "case2"] and again.get_labeled_images() == ["case1"]
    assert again.get_label_info("case1", "final")["said"] == "kept", "the change was written beside it"
    (aside,) = (tmp_path / "images").glob(f"{INDEX}.damaged-*")
    assert aside.read_bytes() == damaged
    assert [record.message for record in caplog.records if aside.name in record.message], "one line says so"
    assert len(json.loads(index.read_text())["objects"]) == 3


def test_changes_that_were_cut_off_cost_no_more_than_themselves(tmp_path):
    store = open_folder(tmp_path, 3)
    for number in range(3):
        store.update_image_info(f"case{number}", {"said": number})
    changes = tmp_path / CHANGES
    changes.write_bytes(changes.read_bytes()[:-5])
    again = open_folder(tmp_path)
    assert [again.get_image_info(f"case{number}").get("said") for number in range(3)] == [0, 1, None]
    again.update_image_info("case2", {"said": 9})
    assert open_folder(tmp_path).get_image_info("case2")["said"] == 9


def test_many_changes_become_one_index(tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.labels.index_file._SPARE_BYTES", 1000)
    store, other = open_folder(tmp_path, 2), open_folder(tmp_path)
    sizes = []
    for number in range(40):
        store.update_image_info("case0", {"said": number})
        assert other.get_image_info("case0")["said"] == number
        sizes.append((tmp_path / CHANGES).stat().st_size if (tmp_path / CHANGES).exists() else 0)
    assert max(sizes) < 4000 and sizes.count(0) >= 2


def counting(original, counts: dict[str, int], name: str):
    def call(*arguments, **options):
        counts[name] += 1
        return original(*arguments, **options)

    return call


def count_calls(monkeypatch, action) -> dict[str, int]:
    """How often an action calls the system, by kind."""
    counts = dict.fromkeys(("stat", "lstat", "scandir", "listdir", "open", "rename", "replace", "fsync"), 0)
    with monkeypatch.context() as patch:
        for name in counts:
            patch.setattr(os, name, counting(getattr(os, name), counts, name))
        action()
    return counts


def test_no_request_costs_more_in_a_larger_folder(tmp_path, monkeypatch, label):
    """By calls of the system: none looks at each image, and no folder is listed for a change of our own."""
    from iopfl.lib.activelearning import RandomImage

    monkeypatch.setattr("iopfl.labels.folder_names.PATIENCE_SECONDS", 3600.0)
    found = []
    for count in (10, 400):
        images = tmp_path / f"of{count}"
        open_folder(images, count)
        for folder in (images, *images.glob("labels"), *images.glob("labels/*")):
            os.utime(folder, (10**9, 10**9))  # settled long ago
        store = open_folder(images)
        index = (images / INDEX).read_bytes()

        def save(store=store):
            store.save_label("case3", str(label), "final", {})

        def sample(store=store):
            chosen = RandomImage()({"strategy": "random"}, store)["id"]
            store.update_image_info(chosen, {"strategy": {"random": {"ts": 1}}})

        save()
        calls = [count_calls(monkeypatch, action) for action in (save, sample, store.status, store.list_images)]
        assert (images / INDEX).read_bytes() == index
        found.append(calls)
    assert found[0] == found[1], found
    assert not any(call["scandir"] or call["listdir"] for call in found[1])


def test_a_full_disk_refuses_no_request_for_the_index(tmp_path, label):
    store = open_folder(tmp_path / "images", 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iopfl.labels.index_file.IndexFile._append", full)
        store.update_image_info("case0", {"said": 1})
        assert store.get_image_info("case0")["said"] == 1
    assert "said" not in open_folder(tmp_path / "images").get_image_info("case0")
    store.update_image_info("case1", {"said": 2})
    again = open_folder(tmp_path / "images")
    assert [again.get_image_info(image)["said"] for image in ("case0", "case1")] == [1, 2]


def test_random_prefers_what_was_offered_longest_ago(tmp_path):
    from iopfl.lib.activelearning import RandomImage

    store = open_folder(tmp_path, 3)
    for number in range(3):
        store.update_image_info(f"case{number}", {"strategy": {"random": {"ts": 2**40 if number else 0}}})
    chosen = {RandomImage()({"strategy": "random"}, store)["id"] for _ in range(20)}
    assert chosen == {"case0"}
    store.update_image_info("case0", {"strategy": {"random": {"ts": 2**40}}})
    assert RandomImage()({"strategy": "random"}, store), "all of them just now"
