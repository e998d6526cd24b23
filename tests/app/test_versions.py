"""Every submitted label stays, the rule makes one of them final, and a crash loses or doubles none."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from PIL import Image

from core.segmentations import save_segmentation
from iopfl.base.errors import ConfigError, LabelVersionError, StorageError
from iopfl.core.transforms import read_image, read_label
from iopfl.labels.checked import MAX_TAGS
from iopfl.labels.final_rule import MAJORITY, STAPLE, FinalRule, find_consensus
from iopfl.labels.log import CONSENSUS, LOG
from iopfl.labels.versions import VersionStore

from .labels import IMAGE, SHAPE, columns_of, draw, final, open_store, submit
from .site import GLAND, SPOT, oblique_affine, write_picture


def test_every_annotators_label_stays_and_the_newest_is_final(studies, tmp_path):
    store = open_store(studies)
    files = [draw(tmp_path / f"{number}.nii.gz", slice(number, number + 3)) for number in range(3)]
    for annotator, file in zip(("ann", "bob", "ann"), files, strict=True):
        submit(store, file, annotator, label_info=[{"name": "gland", "idx": 2}])
    history = open_store(studies).history(IMAGE)
    assert [version.annotator for version in history.versions] == ["ann", "bob", "ann"]
    assert [version.when for version in history.versions] == sorted({version.when for version in history.versions})
    for version, file in zip(history.versions, files, strict=True):
        assert store.versions.file(IMAGE, version).read_bytes() == file.read_bytes()
    assert {name: version.number for name, version in history.current.items()} == {"ann": 3, "bob": 2}
    assert columns_of(final(studies)) == [2, 3, 4]
    info = store.get_label_info(IMAGE, "final")
    assert (info["version"], info["annotator"], info["label_info"][0]["idx"]) == (3, "ann", 2)
    assert IMAGE in store.get_labeled_images()
    assert store.get_label_uri(IMAGE, "final").endswith(f"labels/final/{IMAGE}.nii.gz")


def test_a_retry_is_the_same_version_and_displaces_nobody(studies, tmp_path):
    store = open_store(studies)
    anns, bobs = draw(tmp_path / "a.nii.gz", slice(0, 3)), draw(tmp_path / "b.nii.gz", slice(9, 12))
    first = submit(store, anns, "ann")
    submit(store, bobs, "bob")
    assert submit(store, anns, "ann") == first
    assert len(store.history(IMAGE).versions) == 2
    assert columns_of(final(studies)) == [9, 10, 11]


def test_what_does_not_fit_leaves_no_version(studies, tmp_path):
    from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException

    store = open_store(studies)
    wrong = draw(tmp_path / "wrong.nii.gz", slice(0, 3), value=9)
    with pytest.raises(MONAILabelException, match=r"") as caught:
        submit(store, wrong, "ann")
    assert "has values [0, 2]" in caught.value.msg
    assert store.history(IMAGE).versions == () and final(studies) is None
    with pytest.raises(ImageNotFoundException):
        submit(store, wrong, "ann", image="nobody")
    assert "nobody" not in store.versions.images()


def test_a_label_with_another_tag_is_looked_at_as_a_final_one(studies, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    store = open_store(studies)
    with pytest.raises(MONAILabelException) as caught:
        store.save_label(IMAGE, str(draw(tmp_path / "wrong.nii.gz", slice(0, 3), value=9)), "draft", {})
    assert "has values [0, 2]" in caught.value.msg
    named = draw(tmp_path / "named.nii.gz", slice(0, 3), value=7)
    store.save_label(IMAGE, str(named), "draft", {"label_info": [{"name": "gland", "idx": 7}]})
    kept = np.asarray(nib.load(store.get_label_uri(IMAGE, "draft")).dataobj)
    assert set(np.unique(kept)) == {0, 2} and columns_of(kept) == [0, 1, 2]


@pytest.mark.parametrize("is_running", [True, False])
def test_a_segmentation_of_slicer_put_by_hand_is_read_by_its_names(studies, tmp_path, is_running):
    """As through the door: with another value for the name, cropped; of a name that no task has, training says so."""
    store = open_store(studies, extensions=("*.nii.gz", "*.nrrd"))
    mask = np.zeros(SHAPE, bool)
    mask[3:6, 4:9, 1:3] = True
    layers = [{"gland": (1, mask)}]
    save_segmentation(studies / "labels" / "final" / f"{IMAGE}.seg.nrrd", layers, oblique_affine(), crop=True)
    store = store if is_running else open_store(studies, extensions=("*.nii.gz", "*.nrrd"))
    assert IMAGE in store.get_labeled_images()
    assert [version.kind for version in store.history(IMAGE).versions] == ["folder"]
    [label] = [pair["label"] for pair in store.datalist() if Path(pair["image"]).name.startswith(IMAGE)]
    read = read_label(Path(label), GLAND, like=read_image(Path(store.get_image_uri(IMAGE)), GLAND))
    assert columns_of(read[0].numpy()) == [3, 4, 5] and read.sum() == mask.sum()
    assert submit(store, draw(tmp_path / "a.nii.gz", slice(0, 3)), "ann").number == 2
    assert columns_of(final(studies)) == [0, 1, 2]


def test_tags_are_few_and_plain(studies, tmp_path):
    store, label = open_store(studies), draw(tmp_path / "a.nii.gz", slice(0, 3))
    for tag in (".iopfl-x", "final ", "original/", "Final", "a b"):
        with pytest.raises(ConfigError, match="expected a label's tag"):
            store.save_label(IMAGE, str(label), tag, {})
    for number in range(MAX_TAGS - 2):
        (studies / "labels" / f"tag{number}").mkdir()
    with pytest.raises(ConfigError, match=f"{MAX_TAGS} at most"):
        store.save_label(IMAGE, str(label), "one-more", {})
    store.save_label(IMAGE, str(label), "tag1", {})
    (studies / "labels" / ".hidden").mkdir()
    shutil.copy(label, studies / "labels" / ".hidden" / f"{IMAGE}.nii.gz")
    assert store.get_labels_by_image_id(IMAGE) == {"tag1": IMAGE}


def test_undo_brings_ones_own_label_before_back(studies, tmp_path):
    store = open_store(studies)
    for number in range(2):
        submit(store, draw(tmp_path / f"{number}.nii.gz", slice(number, number + 1)), "ann")
    assert store.undo(IMAGE, "ann").number == 2
    assert columns_of(final(studies)) == [0]
    redone = submit(store, tmp_path / "1.nii.gz", "ann")
    assert redone.number == 3 and columns_of(final(studies)) == [1]
    store.undo(IMAGE, "ann")
    store.undo(IMAGE, "ann")
    assert final(studies) is None and IMAGE in store.get_unlabeled_images()
    with pytest.raises(LabelVersionError, match="nothing to undo"):
        store.undo(IMAGE, "ann")
    with pytest.raises(LabelVersionError, match="nothing to undo"):
        store.undo(IMAGE, "bob")
    assert len(store.history(IMAGE).versions) == 3


def test_nobody_writes_over_another_ones_label_of_any_tag(studies, tmp_path):
    store = open_store(studies)
    mine, other = draw(tmp_path / "a.nii.gz", slice(0, 3)), draw(tmp_path / "b.nii.gz", slice(0, 9))

    def save(label: Path, who: str, **info) -> None:
        store.save_label(IMAGE, str(label), "draft", {"client_id": who, **info})

    save(mine, "ann")
    with pytest.raises(LabelVersionError, match="by somebody else"):
        save(other, "bob", annotator="ann")
    with pytest.raises(LabelVersionError, match="by somebody else"):
        save(other, "bob", model="gland")
    assert Path(store.get_label_uri(IMAGE, "draft")).read_bytes() == mine.read_bytes()
    save(other, "ann")
    assert Path(store.get_label_uri(IMAGE, "draft")).read_bytes() == other.read_bytes()


def test_a_models_label_of_another_tag_is_anybodys(studies, tmp_path):
    store = open_store(studies)
    for annotator in ("ann", "bob"):
        info = {"client_id": annotator, "model": "gland"}
        store.save_label(IMAGE, str(draw(tmp_path / "a.nii.gz", slice(0, 3))), "original", info)
    store.save_label(IMAGE, str(draw(tmp_path / "a.nii.gz", slice(0, 4))), "original", {"client_id": "bob"})
    assert store.get_label_info(IMAGE, "original")["annotator"] == "bob"


def test_a_deleted_label_is_withdrawn_not_lost(studies, tmp_path):
    store = open_store(studies)
    submit(store, draw(tmp_path / "a.nii.gz", slice(0, 3)), "ann")
    submit(store, draw(tmp_path / "b.nii.gz", slice(3, 6)), "bob")
    store.remove_label(IMAGE, "final")
    assert final(studies) is None and IMAGE not in store.get_labeled_images()
    history = store.history(IMAGE)
    assert set(history.withdrawn) == {1, 2} and store.versions.file(IMAGE, history.find(1)).is_file()
    store.remove_image(IMAGE)
    assert IMAGE not in store.list_images()


def test_the_named_reviewers_label_counts_once_there_is_one(studies, tmp_path):
    store = open_store(studies, "reviewer:rev")
    submit(store, draw(tmp_path / "a.nii.gz", slice(0, 1)), "ann")
    assert columns_of(final(studies)) == [0]
    submit(store, draw(tmp_path / "r.nii.gz", slice(1, 2)), "rev")
    submit(store, draw(tmp_path / "b.nii.gz", slice(2, 3)), "bob")
    assert columns_of(final(studies)) == [1]


def test_a_reviewers_choice_stands_until_it_is_lifted_or_withdrawn(studies, tmp_path):
    store = open_store(studies)
    for number, annotator in enumerate(("ann", "bob")):
        submit(store, draw(tmp_path / f"{number}.nii.gz", slice(number, number + 1)), annotator)
    store.choose(IMAGE, 1, "rev")
    submit(store, draw(tmp_path / "3.nii.gz", slice(3, 4)), "bob")
    assert columns_of(final(studies)) == [0]
    store.choose(IMAGE, None, "rev")
    assert columns_of(final(studies)) == [3]
    store.choose(IMAGE, 1, "rev")
    store.undo(IMAGE, "ann")
    assert columns_of(final(studies)) == [3]
    with pytest.raises(LabelVersionError, match="does not count any more"):
        store.choose(IMAGE, 1, "rev")
    with pytest.raises(LabelVersionError, match="no version 7"):
        store.choose(IMAGE, 7, "rev")


@pytest.mark.parametrize("rule", [MAJORITY, STAPLE])
def test_consensus_comes_with_each_version_and_names_its_sources(studies, tmp_path, rule):
    store = open_store(studies, rule)
    spans = {"ann": slice(4, 16), "bob": slice(5, 17), "eve": slice(6, 18)}
    for annotator, span in spans.items():
        submit(store, draw(tmp_path / f"{annotator}.nii.gz", span), annotator)
    assert columns_of(final(studies)) == list(range(5, 17))
    versions = store.history(IMAGE).versions
    assert [(v.kind, v.sources) for v in versions if v.kind == "consensus"][-1] == ("consensus", (4, 2, 1))
    assert store.history(IMAGE).published == versions[-1].number
    store.undo(IMAGE, "eve")
    store.undo(IMAGE, "bob")
    assert columns_of(final(studies)) == list(range(4, 16)), "one label is its own consensus"
    submit(store, tmp_path / "bob.nii.gz", "bob")
    consensus = [v for v in open_store(studies, rule).history(IMAGE).versions if v.kind == "consensus"]
    assert len({version.sources for version in consensus}) == len(consensus), "made once each"


def test_a_consensus_is_of_labels_for_one_task(studies, tmp_path):
    """Where two tasks have the same values, what one person drew for the other task has no vote."""
    lesion = replace(GLAND, name="lesion", labels={"lesion": 2})
    store = open_store(studies, MAJORITY, more={"lesion": lesion})
    drawn = {"ann": ("lesion", slice(0, 4)), "bob": ("gland", slice(10, 14)), "eve": ("lesion", slice(0, 6))}
    for annotator, (name, span) in drawn.items():
        label = draw(tmp_path / f"{annotator}.nii.gz", span)
        submit(store, label, annotator, label_info=[{"name": name, "idx": 2}])
    consensus = store.history(IMAGE).versions[-1]
    assert (consensus.kind, consensus.sources, consensus.tasks) == (CONSENSUS, (3, 1), ("lesion",))
    assert columns_of(final(studies)) == list(range(6))


def test_labels_without_a_task_in_common_leave_the_newest_and_a_short_log(studies, tmp_path, monkeypatch):
    store = open_store(studies, MAJORITY)
    submit(store, draw(tmp_path / "a.nii.gz", slice(0, 3)), "ann")
    monkeypatch.setattr(store, "_tasks", [replace(GLAND, labels={"gland": 3})])
    submit(store, draw(tmp_path / "b.nii.gz", slice(3, 6), value=3), "bob")
    log = tmp_path / "state" / "labels" / IMAGE / LOG
    before = log.read_bytes()
    assert store.history(IMAGE).published == store.history(IMAGE).versions[-1].number
    assert log.read_bytes() == before, "looking changes nothing"


def test_consensus_of_pictures(tmp_path):
    studies = tmp_path / "site_p"
    studies.mkdir()
    write_picture(studies / "eye.png", 0)
    store = open_store(studies, MAJORITY, task=SPOT)
    for number, annotator in enumerate(("ann", "bob", "eve")):
        mask = np.zeros((60, 40), np.uint8)
        mask[10:20, 10 + number : 20 + number] = 255
        Image.fromarray(mask).save(tmp_path / f"{annotator}.png")
        submit(store, tmp_path / f"{annotator}.png", annotator, image="eye")
    consensus = np.asarray(Image.open(studies / "labels" / "final" / "eye.png"))
    assert np.array_equal(np.nonzero(consensus.any(0))[0], np.arange(11, 21)) and consensus.max() == 255


def test_a_tie_goes_to_the_newest_label_that_is_part_of_it():
    shape = (4, 4, 1)
    newest, other, third = (np.full(shape, value, np.uint8) for value in (0, 3, 3))
    assert (find_consensus([newest, other], MAJORITY) == 0).all()
    assert (find_consensus([newest, other, third], MAJORITY) == 3).all()
    assert (find_consensus([newest, other, third, np.zeros(shape, np.uint8)], MAJORITY) == 0).all()
    assert (find_consensus([np.full(shape, 7, np.uint8), other], MAJORITY) == 7).all()


@pytest.mark.parametrize("rule", [MAJORITY, STAPLE])
def test_the_consensus_of_equal_labels_is_that_label(rule):
    random = np.random.default_rng(0)
    label = random.choice(np.array([0, 0, 0, 1, 200], np.uint8), (9, 8, 7))
    for count in (1, 2, 5):
        assert np.array_equal(find_consensus([label] * count, rule), label)
    assert not find_consensus([np.zeros_like(label)] * 3, rule).any()


@pytest.mark.parametrize("text", ["oldest", "reviewer", "reviewer:", "newest:ann", ""])
def test_a_rule_that_there_is_not_is_refused(text):
    with pytest.raises(ConfigError, match="expected newest, reviewer:NAME, majority, staple"):
        FinalRule.parse(text)


def test_labels_in_the_folder_become_versions_of_nobody(studies, tmp_path):
    store = open_store(studies)
    stored = studies / "labels" / "final" / "case00.nii.gz"
    before = stored.read_bytes()
    submit(store, draw(tmp_path / "a.nii.gz", slice(0, 3)), "ann", image="case00")
    versions = store.history("case00").versions
    assert [(version.kind, version.annotator) for version in versions] == [("folder", ""), ("submitted", "ann")]
    assert store.versions.file("case00", versions[0]).read_bytes() == before
    store.undo("case00", "ann")
    assert stored.read_bytes() == before
    shutil.copy(tmp_path / "a.nii.gz", stored)  # replaced by hand
    history = store.history("case00")
    assert (history.published, history.versions[-1].kind) == (3, "folder")
    stored.unlink()  # and taken away by hand
    assert set(store.history("case00").withdrawn) == {1, 2, 3}
    assert "case00" in store.get_unlabeled_images()


def test_a_training_says_which_versions_it_uses(studies, tmp_path):
    from iopfl.labels.checked import split_labeled
    from iopfl.labels.used import describe_used, summarize_used

    store = open_store(studies)
    submit(store, draw(tmp_path / "a.nii.gz", slice(0, 3)), "ann")
    stems = [case.stem for case in split_labeled(store, GLAND)["all"]]
    used = describe_used(store, stems)
    assert [(entry["image"], entry["version"]) for entry in used] == [("case00", 1), ("case01", 1), (IMAGE, 1)]
    before = summarize_used(used)
    submit(store, draw(tmp_path / "b.nii.gz", slice(3, 6)), "ann")
    after = summarize_used(describe_used(store, stems))
    assert before["count"] == after["count"] == 3 and before["digest"] != after["digest"]


class Crash(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("rule", ["newest", MAJORITY])
def test_a_crash_at_any_moment_loses_no_label_and_doubles_none(studies, tmp_path, monkeypatch, rule):
    """Each step that reaches the disk is the last one once."""
    clean = tmp_path / "clean"
    shutil.copytree(studies, clean / studies.name)
    olds, news = draw(tmp_path / "a.nii.gz", slice(0, 8)), draw(tmp_path / "b.nii.gz", slice(4, 12))
    crashes = 0
    while True:
        home = tmp_path / f"run{crashes}"
        shutil.copytree(clean, home)
        folder = home / studies.name
        submit(open_store(folder, rule), olds, "ann")
        store = open_store(folder, rule)
        left = crashes

        def step(original):
            def call(*arguments, **options):
                nonlocal left
                if left == 0:
                    raise Crash
                left -= 1
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", step(os.fsync))
            patch.setattr(Path, "replace", step(Path.replace))
            patch.setattr(Path, "unlink", step(Path.unlink))
            try:
                submit(store, news, "bob")
                accepted = True
            except Crash:
                accepted = False
        again = open_store(folder, rule)
        again.repair()
        check_whole(again, folder)
        submit(again, news, "bob")  # the client tries again
        versions = again.history(IMAGE).versions
        assert [v.annotator for v in versions if v.kind != CONSENSUS] == ["ann", "bob"]
        check_whole(again, folder)
        if accepted:
            break
        crashes += 1
    assert crashes >= 6


def check_whole(store, folder: Path) -> None:
    """The final label is one of the versions, and the one that is said."""
    history = store.history(IMAGE)
    published = history.find(history.published)
    stored = folder / "labels" / "final" / f"{IMAGE}.nii.gz"
    assert stored.read_bytes() == store.versions.file(IMAGE, published).read_bytes()
    expected = store.rule.select(history)
    assert published.sources == tuple(v.number for v in expected) if len(expected) > 1 else published == expected[0]


def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path):
    store = VersionStore(tmp_path)
    label = draw(tmp_path / "a.nii.gz", slice(0, 3))
    with store.hold(IMAGE):
        store.add(IMAGE, label, annotator="ann")
    log = tmp_path / IMAGE / LOG
    whole = log.read_bytes()
    for cut in (1, 20, len(whole) - 2):
        log.write_bytes(whole + whole[:cut])
        again = VersionStore(tmp_path)
        assert len(again.history(IMAGE).versions) == 1
        with again.hold(IMAGE):
            again.add(IMAGE, draw(tmp_path / "b.nii.gz", slice(3, 6)), annotator="bob")
        assert [version.annotator for version in VersionStore(tmp_path).history(IMAGE).versions] == ["ann", "bob"]
        assert all(json.loads(line)["what"] for line in log.read_bytes().splitlines()[-1:])


NEWER = [{"what": "praised"}, {"what": "version", "number": 1, "annotator": "ann", "when": "", "mood": "good"}, 7]


@pytest.mark.parametrize("event", NEWER)
def test_a_log_of_a_newer_iopfl_is_named_and_kept_and_stops_no_other_image(studies, tmp_path, caplog, event):
    from iopfl.labels.checked import split_labeled
    from iopfl.labels.used import describe_used

    store = open_store(studies)
    label = draw(tmp_path / "a.nii.gz", slice(0, 3))
    submit(store, label, "ann")
    submit(store, label, "ann", image="case07")
    log = tmp_path / "state" / "labels" / IMAGE / LOG
    log.write_bytes(log.read_bytes() + json.dumps(event).encode() + b"\n")
    before = {path: path.read_bytes() for path in log.parent.iterdir()}
    again = open_store(studies)
    again.repair()
    with pytest.raises(LabelVersionError, match=f"labels of {IMAGE}.*written by a newer iopfl.*update iopfl"):
        submit(again, draw(tmp_path / "b.nii.gz", slice(3, 6)), "bob")
    assert {path: path.read_bytes() for path in log.parent.iterdir()} == before
    assert again.versions.images() == ["case07"]
    stems = [case.stem for case in split_labeled(again, GLAND)["all"]]
    assert stems == ["case00", "case01", "case07"]
    assert len(describe_used(again, stems)) == 3
    assert sum(f"labels of {IMAGE}" in record.message for record in caplog.records) == 1


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    store = VersionStore(tmp_path)
    label = draw(tmp_path / "a.nii.gz", slice(0, 3))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with store.hold(IMAGE):
        store.add(IMAGE, label, annotator="ann")
        before = (tmp_path / IMAGE / LOG).read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, "fsync", full)
            store.note(IMAGE, "chosen", number=1)
    assert (tmp_path / IMAGE / LOG).read_bytes() == before


def test_a_full_disk_refuses_the_label_in_plain_words(studies, tmp_path, monkeypatch):
    store = open_store(studies)
    label = draw(tmp_path / "a.nii.gz", slice(0, 3))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=r"No space left on device.*submit it again"):
        patch.setattr(os, "fsync", full)
        submit(store, label, "ann")
    assert final(studies) is None and store.history(IMAGE).versions == ()
    assert submit(store, label, "ann").number == 1


def test_a_label_that_started_from_an_answer_says_so(studies, tmp_path):
    store = open_store(studies)
    store.answers.note(
        {"client_id": "ann", "image": IMAGE}, {"task": "gland", "model": "routed", "bank": "gland-1a2b", "seconds": 1.0}
    )
    label = draw(tmp_path / "a.nii.gz", slice(0, 3))
    assert submit(store, label, "ann").origin == {"task": "gland", "model": "routed", "bank": "gland-1a2b"}
    assert submit(store, label, "bob").origin == {}
    told = {"task": "gland", "model": "global", "bank": "b\n1", "edited": True, "seconds": 2}
    assert submit(store, label, "eve", origin=told).origin == {"task": "gland", "model": "global", "bank": "b1"}


def test_two_people_whose_viewer_has_no_name_are_told_apart(studies, tmp_path, monkeypatch):
    """Signed in, each has another answer for the same image; asked through the endpoints of the label server."""
    from monailabel.config import settings
    from monailabel.endpoints import datastore, infer
    from monailabel.endpoints.user import auth

    app = FastAPI()
    app.include_router(infer.router)
    app.include_router(datastore.router)
    import iopfl.web.label_routes  # noqa: F401  # after the routes are made, as in the server

    store = open_store(studies)

    class App:
        def info(self):
            return {}

        def datastore(self):
            return store

        def infer(self, request):
            params = {"task": "gland", "model": request["told"]}
            store.answers.note(request, params)
            return {"params": params}

        def on_save_label(self, image_id, label_id):
            return {}

    def find_user(request: Request) -> auth.User:
        roles = [settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR]
        return auth.User(username=request.headers["x-name"], roles=roles)

    app.dependency_overrides[auth.get_current_user] = find_user
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    for module in (infer, datastore):
        monkeypatch.setattr(module, "app_instance", App)
    client = TestClient(app)
    for name in ("ann", "bob"):
        told = {"params": json.dumps({"told": name})}
        client.post(f"/infer/gland?image={IMAGE}", data=told, headers={"x-name": name}).raise_for_status()
    for name in ("ann", "bob"):
        files = {"label": ("a.nii.gz", draw(tmp_path / "a.nii.gz", slice(0, 3)).read_bytes())}
        client.put(f"/datastore/label?image={IMAGE}", files=files, headers={"x-name": name}).raise_for_status()
    origins = {version.annotator: version.origin["model"] for version in store.history(IMAGE).versions}
    assert origins == {"ann": "ann", "bob": "bob"}


def test_nobody_can_have_the_origins_of_others_labels_forgotten(monkeypatch):
    """With a new client's name in each of a thousand requests somebody had all others' go."""
    from iopfl.labels import annotators

    def note(person: str, client: str, image: str) -> None:
        token = annotators._annotator.set(person)
        answers.note({"client_id": client, "image": image}, {"model": f"{client} {image}"})
        annotators._annotator.reset(token)

    def find(person: str, client: str, image: str) -> str | None:
        token = annotators._annotator.set(person)
        try:
            return answers.find(image, {"client_id": client}).get("model")
        finally:
            annotators._annotator.reset(token)

    monkeypatch.setattr(annotators, "_KEPT", 20)
    answers = annotators.RecentAnswers()
    for image in ("first", "second"):
        note("ann", "slicer", image)
    for number in range(100):
        note("eve", f"client-{number}", "first")
        note("eve", "slicer", f"image-{number}")
    assert [find("ann", "slicer", image) for image in ("first", "second")] == ["slicer first", "slicer second"]
    assert (find("eve", "client-99", "first"), find("eve", "client-9", "first")) == ("client-99 first", None)
    for number in range(100):
        note(f"person-{number}", "slicer", "first")
    assert sum(map(len, answers._answers.values())) == 20 and find("person-99", "slicer", "first")


@pytest.mark.parametrize("info", [7, [], "x", {"label_info": 7}, {"label_info": [7, {"name": {}, "idx": []}]}])
def test_whatever_a_client_says_with_a_label_does_no_harm(studies, tmp_path, info):
    store = open_store(studies)
    store.save_label(IMAGE, str(draw(tmp_path / "a.nii.gz", slice(0, 3))), "final", info)
    assert [version.tasks for version in store.history(IMAGE).versions] == [("gland",)]


def test_a_label_is_for_the_task_that_its_names_or_its_origin_tell(studies, tmp_path):
    from iopfl.labels.checked import split_labeled

    other = replace(GLAND, name="lesion", labels={"lesion": 2})
    store = open_store(studies, task=GLAND, more={"lesion": other})
    label = draw(tmp_path / "a.nii.gz", slice(0, 3))
    named = {"label_info": [{"name": "lesion", "idx": 2}]}
    assert submit(store, label, "ann", **named).tasks == ("lesion",)
    assert submit(store, label, "bob", origin={"task": "gland"}).tasks == ("gland",)
    assert submit(store, label, "eve").tasks == ("gland", "lesion")
    store.choose(IMAGE, 1, "rev")
    drawn = {task.name: [case.stem for case in split_labeled(store, task)["all"]] for task in (GLAND, other)}
    assert IMAGE in drawn["lesion"] and IMAGE not in drawn["gland"]


def test_a_clients_name_is_kept_short_and_printable():
    from iopfl.labels.annotators import find_annotator

    assert find_annotator({"client_id": "a\nb\x00" + "c" * 100}) == "ab" + "c" * 62
    assert find_annotator({"client_id": None}) == find_annotator(None) == ""
