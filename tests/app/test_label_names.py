"""Labels are stored under the names that come with them, whatever order and numbers a viewer gives its segments."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from iopfl.core.label_names import names_by_place

from .labels import IMAGE, SHAPE, final, open_store
from .site import GLAND, oblique_affine, write_scans

ODD = replace(GLAND, name="odd", labels={"core": 4, "rim": 7})
PAIR = replace(GLAND, name="pair", labels={"anterior": 1, "posterior": 2})
PLACES = {
    "anterior": np.s_[2:6],
    "posterior": np.s_[8:12],
    "core": np.s_[14:17],
    "rim": np.s_[18:20],
    "gland": np.s_[21:24],
    "lesion": np.s_[25:27],
}


@pytest.fixture(scope="module", autouse=True)
def _patched() -> None:
    from iopfl.compat import apply_tasks

    apply_tasks()


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("names") / "site_a", labeled=0, unlabeled=9)


@pytest.fixture(scope="module")
def store(studies):
    """Of three tasks."""
    return open_store(studies, task=GLAND, more={"odd": ODD, "pair": PAIR})


def export(folder: Path, scene, drawn, suffix: str = ".nii.gz") -> Path:
    """What 3D Slicer exports: the n-th segment of the scene has the value n."""
    mask = np.zeros(SHAPE, np.uint8)
    for number, name in enumerate(scene, 1):
        if name in drawn:
            mask[PLACES[name]] = number
    path = folder / f"label{suffix}"
    nib.save(nib.Nifti1Image(mask, oblique_affine()), path)
    return path


def listed(scene, first: int = 1):
    return [{"name": name, "idx": number} for number, name in enumerate(scene, first)]


def submit(store, label: Path, scene, first: int = 1, **info):
    return store.submit(IMAGE, label, {"client_id": "ann", "label_info": listed(scene, first), **info})


def stored(studies: Path) -> dict[str, int]:
    """Value at each place, of those that have one."""
    mask = final(studies)
    found = {name: set(np.unique(mask[place]).tolist()) for name, place in PLACES.items()}
    assert all(len(values) == 1 for values in found.values())
    return {name: values.pop() for name, values in found.items() if values != {0}}


def test_what_no_task_takes_is_refused_for_all_of_them_unless_one_is_meant(store, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    nib.save(nib.Nifti1Image(np.full(SHAPE, 9, np.uint8), oblique_affine()), tmp_path / "label.nii.gz")
    with pytest.raises(MONAILabelException) as refused:
        store.submit(IMAGE, tmp_path / "label.nii.gz", {})
    assert [f"task {name} has values" in refused.value.msg for name in ("gland", "odd", "pair")] == [True] * 3
    with pytest.raises(MONAILabelException) as refused:
        store.submit(IMAGE, tmp_path / "label.nii.gz", {"model": "odd_routed"})
    assert "task odd has values" in refused.value.msg and "gland" not in refused.value.msg
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 2), np.uint8), np.eye(4)), tmp_path / "image.nii.gz")
    with pytest.raises(MONAILabelException) as refused:
        store.add_image("fresh", str(tmp_path / "image.nii.gz"), {})
    assert [f"task {name} expects 1 channel" in refused.value.msg for name in ("gland", "odd", "pair")] == [True] * 3


@pytest.mark.parametrize("task", [PAIR, ODD], ids=["1, 2", "4, 7"])
@pytest.mark.parametrize("first", [1, 2, 5])
def test_names_decide_in_every_order_of_the_segments(store, studies, tmp_path, task, first):
    for count in (1, 2):
        for drawn in itertools.combinations(task.labels, count):
            for scene in [*itertools.permutations(task.labels), drawn, ("lesion", *drawn), ("gland", *task.labels)]:
                version = submit(store, export(tmp_path, scene, drawn), scene, first)
                assert version.tasks == (task.name,)
                assert stored(studies) == {name: task.labels[name] for name in drawn}


def test_the_drawn_names_say_which_task_even_against_the_model_that_is_chosen(store, studies, tmp_path):
    scene = ("gland", "core", "rim", "anterior", "posterior")  # as /info lists them
    for task in (GLAND, ODD, PAIR):
        for name in task.labels:
            version = submit(store, export(tmp_path, scene, [name]), scene, model="pair_routed")
            assert (version.tasks, stored(studies)) == ((task.name,), {name: task.labels[name]})


@pytest.mark.parametrize("scene", [("lesion", "posterior"), ("anterior", "lesion"), ("posterior", "gland")])
def test_a_foreign_name_is_refused_with_the_labels_there_are(store, tmp_path, scene):
    from monailabel.interfaces.exception import MONAILabelException

    before = len(store.history(IMAGE).versions)
    with pytest.raises(MONAILabelException) as refused:
        submit(store, export(tmp_path, scene, scene), scene, model="pair")
    assert "task pair has the labels anterior, posterior" in refused.value.msg
    assert repr((set(scene) - set(PAIR.labels)).pop()) in refused.value.msg
    assert len(store.history(IMAGE).versions) == before


def test_other_clients_say_the_value_itself(store, studies, tmp_path):
    for task in (GLAND, ODD):
        mask = np.zeros(SHAPE, np.uint8)
        for name, value in task.labels.items():
            mask[PLACES[name]] = value
        nib.save(nib.Nifti1Image(mask, oblique_affine()), tmp_path / "label.nii.gz")
        told = [{"name": name, "idx": value} for name, value in task.labels.items()]
        version = store.submit(IMAGE, tmp_path / "label.nii.gz", {"label_info": told})
        assert (version.tasks, stored(studies)) == ((task.name,), dict(task.labels))


def test_values_without_names_are_those_of_the_model_that_is_said(store, studies, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    label = export(tmp_path, ("anterior", "posterior"), ("posterior",))  # 2 is the gland's value too
    assert store.submit(IMAGE, label, {}).tasks == ("gland", "pair")
    assert store.submit(IMAGE, label, {"model": "pair"}).tasks == ("pair",)
    assert store.submit(IMAGE, label, {"model": "gland_routed"}).tasks == ("gland",)
    with pytest.raises(MONAILabelException, match=r"task odd has values \[0, 4, 7\]"):
        store.submit(IMAGE, label, {"model": "odd"})


def test_a_value_without_a_name_is_refused_unless_all_others_have_the_tasks_values(store, studies, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    label = export(tmp_path, ("anterior", "posterior", "gland"), ("gland",))
    with pytest.raises(MONAILabelException, match="holds 3, and with it came 'posterior', 'anterior'"):
        submit(store, label, ("posterior", "anterior"))
    label = export(tmp_path, PAIR.labels, PAIR.labels)
    with pytest.raises(MONAILabelException, match="holds 1, 2, and with it came 'posterior'"):
        submit(store, label, ["posterior"])
    submit(store, label, ["anterior"], model="pair")
    assert stored(studies) == dict(PAIR.labels)


def test_a_region_leaves_its_rest_to_the_label_that_is_not_drawn(studies, tmp_path):
    disc = replace(PAIR, name="disc", labels={"rim": 1, "cup": 2}, regions={"disc": ("rim", "cup"), "cup": ("cup",)})
    store = open_store(studies, task=disc)
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20], mask[8:12] = 1, 2
    nib.save(nib.Nifti1Image(mask, oblique_affine()), tmp_path / "label.nii.gz")
    submit(store, tmp_path / "label.nii.gz", ("disc", "cup"))
    assert np.array_equal(final(studies), mask)


@pytest.mark.parametrize(
    "task", [GLAND, ODD, PAIR, replace(PAIR, labels={"b": 2, "a": 1})], ids=lambda t: str(t.labels)
)
def test_slicer_shows_each_label_by_its_place(task):
    """It sorts the names by value; the n-th is shown where the mask is n, if there is a segment of that name."""
    told = names_by_place(task)
    places = enumerate((name for name, _ in sorted(told.items(), key=lambda item: item[1])), start=1)
    assert {name: place for place, name in places if name in task.labels} == dict(task.labels)
    assert list(told) == sorted(told, key=told.get)  # of a stored answer it takes them as they come


@pytest.mark.parametrize(
    "said",
    [
        {"posterior": 1, "anterior": 2},
        {"1": "posterior", "2": "anterior"},
        ["posterior", "anterior"],
        '[{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 2}]',
        [{"label": "posterior", "idx": 1}, {"label": "anterior", "idx": 2}],
        [{"name": "posterior", "idx": 1}, {"name": " ", "idx": 2}],
        [{"name": "posterior", "idx": 1}, None, {"name": "anterior", "idx": 2}],
    ],
)
def test_names_in_a_form_that_is_not_understood_are_refused_and_not_passed_over(store, tmp_path, said):
    from monailabel.interfaces.exception import MONAILabelException

    label = export(tmp_path, ("posterior", "anterior"), PAIR.labels)
    with pytest.raises(MONAILabelException) as refused:
        store.submit(IMAGE, label, {"label_info": said, "model": "pair"})
    assert "label_info: expected a list of" in refused.value.msg


@pytest.mark.parametrize("form", [float, str])
def test_an_index_counts_however_its_number_is_written(store, studies, tmp_path, form):
    label = export(tmp_path, ("posterior", "anterior"), PAIR.labels)
    told = [{"name": "anterior", "idx": form(2)}, {"name": "posterior", "idx": form(1)}]
    store.submit(IMAGE, label, {"label_info": told, "model": "pair"})
    assert stored(studies) == dict(PAIR.labels)


@pytest.mark.parametrize("drawn", [("posterior",), ("posterior", "anterior")])
def test_a_background_in_the_list_moves_no_label(store, studies, tmp_path, drawn):
    from monailabel.interfaces.exception import MONAILabelException

    scene = ("background", "posterior", "anterior")
    submit(store, export(tmp_path, scene, PAIR.labels), scene, model="pair")
    assert stored(studies) == dict(PAIR.labels)
    with pytest.raises(MONAILabelException) as refused:
        submit(store, export(tmp_path, scene[1:], drawn), scene, model="pair")
    assert "a segment named background" in refused.value.msg


@pytest.mark.parametrize("name", ["gr\u00f6\u00dfe", "gro\u0308\u00dfe", " GR\u00d6SSE "])
def test_a_name_is_the_same_however_its_letters_are_composed(studies, tmp_path, name):
    """macOS takes them apart."""
    from .labels import draw

    one = open_store(studies, task=replace(GLAND, name="size", labels={"gr\u00f6\u00dfe": 5}))
    version = one.submit(IMAGE, draw(tmp_path / "label.nii.gz", np.s_[2:6], value=1), {"label_info": listed([name])})
    assert version.tasks == ("size",) and set(np.unique(final(studies)).tolist()) == {0, 5}
