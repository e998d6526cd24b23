"""Names in a NIfTI's table of labels decide, as those of 3D Slicer's and MITK's segmentations do."""

from __future__ import annotations

from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.nifti1 import Nifti1Extension

from core.test_transforms import AFFINES, save_volume
from core.tiny import BALL
from iopfl.base.errors import SeriesError
from iopfl.core.transforms import open_label, read_image, read_label

SHAPE = (9, 8, 7)
AFFINE = AFFINES["oblique"]


def table(*names: tuple[object, str], cdata: bool = True) -> str:
    """As TotalSegmentator writes it (names as CDATA), or Connectome Workbench."""
    said = "".join(
        f'<Label Key="{key}" Red="1" Green="0" Blue="0.5" Alpha="1">{f"<![CDATA[{name}]]>" if cdata else escape(name)}'
        "</Label>\n"
        for key, name in names
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <Date><![CDATA[2013-07-14T05:45:09]]></Date>\n'
        f'<VolumeInformation Index="0">\n<LabelTable>{said}</LabelTable>\n<StudyMetaDataLinkSet/>\n'
        "<VolumeType><![CDATA[Label]]></VolumeType></VolumeInformation></CaretExtension>\n   "
    )


def image(folder):
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return read_image(save_volume(folder / "image.nii.gz", voxels, AFFINE), BALL)


def expected() -> torch.Tensor:
    classes = torch.zeros(SHAPE)
    classes[1:4, 2:6, 1:5], classes[4:8, 2:5, 3:6] = 1, 2
    return classes


def save(path, values: dict[int, int], content: str, *, code: int = 0):
    """Write the expected label with another value for each class, and a table."""
    label = np.array([0, values[1], values[2]], np.int16)[expected().int().numpy()]
    volume = nib.Nifti1Image(label, AFFINE)
    volume.header.extensions.append(Nifti1Extension(code, content.encode()))
    nib.save(volume, path)
    return path


@pytest.mark.parametrize("name", ["label.nii.gz", "label.nii"])
@pytest.mark.parametrize(("code", "cdata"), [(0, True), (30, False)])
@pytest.mark.parametrize("values", [(1, 2), (2, 1), (17, 4), (300, 2)])
def test_names_decide_whatever_the_values(tmp_path, name, code, cdata, values):
    front, back = values
    names = [(0, "???"), (back, "back"), (front, " Front "), (99, "spleen & liver")]
    path = save(tmp_path / name, {1: front, 2: back}, table(*names, cdata=cdata), code=code)
    read = open_label(path, BALL, like=image(tmp_path))
    assert torch.equal(read.classes[0].as_tensor(), expected())
    assert read.is_as_stored == (values == (1, 2))


def test_the_files_own_names_count_before_those_that_come_beside_it(tmp_path):
    path = save(tmp_path / "label.nii.gz", {1: 2, 2: 1}, table((1, "back"), (2, "front")))
    said = [{"name": "front", "idx": 1}, {"name": "back", "idx": 2}]
    read = open_label(path, BALL, like=image(tmp_path), said=said)
    assert torch.equal(read.classes[0].as_tensor(), expected())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table((1, "spleen"), (2, "back")), "task ball has the labels front, back, given 'spleen'"),
        (table((1, "front")), "holds the value 2, which the table of labels in its header does not name"),
        (table((1, "front"), (2, "???")), "holds the value 2, which the table of labels"),
        (table((1, "front"), (1, "back"), (2, "back")), "one name for each value"),
        (table(("one", "front"), (2, "back")), "a whole number and one name"),
        (table((1, "front"))[:120], "the table in its header says something else; save it again"),
        (table((1, "front"), (2, "x" * 401)), "a whole number and one name"),
        (table((1, "front"), (2, "a\nb")), "a whole number and one name"),
        (table((1, "front"), (10**400, "back")), "a whole number and one name"),
        ('<!DOCTYPE a [<!ENTITY b "front">]>' + table((1, "front"), (2, "back")), "a whole number and one name"),
    ],
)
def test_what_cannot_be_told_is_refused_in_plain_words(tmp_path, content, message):
    path = save(tmp_path / "label.nii.gz", {1: 1, 2: 2}, content)
    with pytest.raises(SeriesError, match=message):
        read_label(path, BALL, like=image(tmp_path))


@pytest.mark.parametrize("content", ["", "drawn by hand", table(), table((0, "???"))])
def test_values_count_where_no_value_has_a_name(tmp_path, content):
    path = save(tmp_path / "label.nii.gz", {1: 1, 2: 2}, content, code=6)
    assert torch.equal(read_label(path, BALL, like=image(tmp_path))[0].as_tensor(), expected())
