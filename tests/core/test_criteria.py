"""Which images are a task's: what an image says counts, what it does not say never does unless it is asked for."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import itk
import nibabel as nib
import nrrd
import numpy as np
import pytest
from PIL import Image

from iopfl.base.errors import ConfigError
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.exchange import diff_banks
from iopfl.core.bank.signing import Keyring
from iopfl.core.criteria import ORIENTATIONS, Criteria, ImageFacts, find_mismatch
from iopfl.core.image_facts import read_facts
from iopfl.core.task import Task, builtin_tasks, read_task

from .tiny import BALL, STACK, make_bank

WANTED = Criteria(
    body_parts=("*PROSTAT*", "pelvis"),
    description="t2(?!.*map)",
    orientations=("axial",),
    kind="volume",
    min_slices=5,
    max_slices=60,
    min_edge=64,
    max_edge=1024,
)
TASK = replace(STACK, modality="MR", images=WANTED)
FITS = ImageFacts("MR", "PROSTATE", "T2 tse TRA", "axial", "volume", 20, 320, 256, 1)
WRONG = {
    "modality": ("CT", "modality CT is not 'MR'"),
    "body_part": ("BRAIN", "body part BRAIN is none of *PROSTAT*, pelvis"),
    "description": ("ax T2 MAP", "its description is not like"),
    "orientation": ("sagittal", "its slices are sagittal, axial ones are expected"),
    "kind": ("picture", "it is a picture, a volume is expected"),
    "slices": (61, "it has 61 slices, at most 60 expected"),
    "rows": (63, "it has 63 rows or columns, at least 64 expected"),
    "columns": (1025, "it has 1025 rows or columns, at most 1024 expected"),
    "channels": (3, "its voxels have 3 values, 1 expected"),
}


def test_an_image_that_says_what_a_task_asks_for_or_nothing_is_one_of_its_images():
    assert find_mismatch(TASK, FITS) is None
    assert find_mismatch(TASK, ImageFacts()) is None
    for field in fields(ImageFacts):
        assert find_mismatch(TASK, replace(FITS, **{field.name: field.default})) is None
    for part in ("prostate", "Prostate gland", " PELVIS ", "UNKNOWN", "other"):
        assert find_mismatch(TASK, replace(FITS, body_part=part)) is None


@pytest.mark.parametrize("name", WRONG)
def test_each_fact_alone_speaks_against_an_image_unless_somebody_who_knows_said_so(name):
    value, words = WRONG[name]
    facts = replace(FITS, **{name: value})
    assert find_mismatch(TASK, facts).startswith(words)
    assert find_mismatch(TASK, facts, but=[name]) is None
    plain = replace(TASK, images=Criteria())
    assert (find_mismatch(plain, facts) is None) == (name not in ("modality", "channels"))


def test_what_people_write_is_not_told():
    for name in ("modality", "body_part", "description"):
        assert "Doe" not in find_mismatch(TASK, replace(FITS, **{name: "Doe^Jane"}))


@pytest.mark.parametrize("name", ["modality", "body_part", "description", "orientation"])
def test_what_a_task_asks_an_image_to_say_is_asked_for(name):
    task = replace(TASK, images=replace(WANTED, required=(name,)))
    assert find_mismatch(task, FITS) is None
    assert find_mismatch(task, replace(FITS, **{name: ""})) == f"it does not say its {name.replace('_', ' ')}"


def test_a_slice_is_none_of_a_task_in_3d():
    assert find_mismatch(BALL, ImageFacts(slices=1)) == "it is one slice, a volume is expected"
    assert find_mismatch(BALL, ImageFacts(slices=2)) is None


def test_built_in_tasks_take_what_they_are_for():
    prostate, hippocampus, vessel = (read_task(name) for name in ("prostate", "hippocampus", "vessel"))
    assert find_mismatch(prostate, FITS) is None
    for words in ("t2_tse_tra", "Ax FRFSE HR", "T2W TSE ax", "t2_spc_tra_iso", ""):
        assert find_mismatch(prostate, replace(FITS, description=words)) is None, words
    for words in ("ep2d_diff_b50_tra", "ADC (10^-6)", "DWI b1000", "t1_vibe_tra", "Ax DCE", "localizer"):
        assert find_mismatch(prostate, replace(FITS, description=words)), words
    brain = ImageFacts("MR", "BRAIN", "t1 mprage", "sagittal", "volume", 176, 256, 256, 1)
    assert find_mismatch(prostate, brain) and find_mismatch(hippocampus, brain) is None
    photograph = ImageFacts("OP", "", "", "", "picture", 1, 500, 500, 3)
    assert find_mismatch(vessel, photograph) is None and find_mismatch(prostate, photograph)
    assert all(Task.from_dict(read_task(name).to_dict()) == read_task(name) for name in builtin_tasks())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"orientations": ["transversal"]}, "orientations: one of sagittal, coronal, axial expected"),
        ({"kind": "photo"}, "kind: one of picture, volume expected"),
        ({"required": ["slices"]}, "required: one of modality, body_part"),
        ({"min_slices": 9, "max_slices": 5}, "min_slices, max_slices"),
        ({"min_edge": -1}, "min_edge, max_edge"),
        ({"body_parts": [""]}, "body_parts: patterns"),
        ({"description": "("}, "no regular expression"),
        ({"bodypart": "x"}, "unknown key bodypart"),
    ],
)
def test_criteria_that_cannot_be_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        Task.from_dict({**STACK.to_dict(), "images": values})


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("count", [1, 4])
def test_a_file_tells_its_slices_and_how_they_lie(tmp_path, suffix, orientation, count):
    order = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}[orientation]
    edges = np.zeros((3, 3))
    for column, (axis, edge) in enumerate(zip(order, (0.8, 0.9, 3.0), strict=True)):
        edges[axis, column] = -edge if column == 1 else edge
    edges = nib.eulerangles.euler2mat(0.2, 0.1, -0.2) @ edges
    voxels = np.zeros((7, 6, count), np.int16)
    path = tmp_path / f"image{suffix}"
    if suffix == ".nii.gz":
        nib.save(nib.Nifti1Image(voxels, nib.affines.from_matvec(edges)), path)
    elif suffix == ".nrrd":
        nrrd.write(str(path), voxels, {"space": "left-posterior-superior", "space directions": edges.T})
    else:
        image = itk.image_from_array(np.ascontiguousarray(voxels.T))
        image.SetSpacing([0.8, 0.9, 3.0])
        image.SetDirection(itk.matrix_from_array(edges / [0.8, 0.9, 3.0]))
        itk.imwrite(image, str(path))
    assert read_facts(path) == ImageFacts("", "", "", orientation, "volume", count, 6, 7, 1)


def test_a_volume_of_nearly_cubic_voxels_has_no_orientation_and_a_picture_neither(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.diag([1, 1, 1.2, 1])), tmp_path / "a.nii")
    assert read_facts(tmp_path / "a.nii").orientation == ""
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(tmp_path / "a.png")
    assert read_facts(tmp_path / "a.png") == ImageFacts("", "", "", "", "picture", 1, 6, 9, 3)
    (tmp_path / "b.nii").write_bytes(b"no image")
    assert read_facts(tmp_path / "b.nii") == ImageFacts() == read_facts(tmp_path / "gone.nii")


def test_a_bank_of_a_task_without_criteria_is_as_it_was_before_tasks_had_them(tmp_path):
    bank = make_bank(tmp_path / "bank", STACK)
    assert "images" not in json.loads((tmp_path / "bank" / "manifest.json").read_text())["task"]
    opened = ModelBank.open(tmp_path / "bank", keys=Keyring(tmp_path / "keys"), task=TASK)  # a site's own criteria
    assert (opened.label, opened.task.images) == (bank.label, Criteria())
    other = make_bank(tmp_path / "other", TASK)
    assert ModelBank.open(tmp_path / "other", keys=Keyring(tmp_path / "keys"), task=STACK).task == TASK
    assert diff_banks(bank, other)["task"] == {"images": [None, TASK.to_dict()["images"]]}


def test_a_bank_signed_before_a_field_was_there_verifies(tmp_path, monkeypatch):
    original = Task.to_dict
    monkeypatch.setattr(Task, "to_dict", lambda task: {k: v for k, v in original(task).items() if k != "rotations"})
    label = make_bank(tmp_path / "bank", STACK).label
    monkeypatch.undo()
    assert ModelBank.open(tmp_path / "bank", keys=Keyring(tmp_path / "keys")).label == label
