"""What a label that somebody put into the folder says by names or colors, clients get as their task's values."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image

from core.test_transforms import AFFINES, save_volume
from images.test_label_tables import AFFINE, SHAPE, expected, save, table
from iopfl.base.errors import SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.handing_out import copy_image, copy_label
from iopfl.core.segment_writer import write_segmentation
from iopfl.core.transforms import read_image
from iopfl.core.writers import write_mask
from iopfl.images.segment_files import read_segmentation

from .tiny import BALL, DISK

TURNED = replace(BALL, name="turned", labels={"back": 1, "front": 2})
EYE = replace(DISK, name="eye", channels=3, labels={"cup": 2, "rim": 1})


@pytest.fixture
def image(tmp_path):
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return save_volume(tmp_path / "image.nii.gz", voxels, AFFINE)


def sent(label, image, *tasks):
    """The values that a client gets, and the copy's name; the copy is gone."""
    copy = copy_label(label, image, tasks)
    assert copy is not None
    try:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(copy))).T
        shown = sitk.ReadImage(str(image))
        if len(values.shape) == 3:
            made = sitk.ReadImage(str(copy))
            assert np.allclose(made.GetOrigin(), shown.GetOrigin(), atol=1e-3)
            assert np.allclose(made.GetDirection(), shown.GetDirection(), atol=1e-4)
        return values, copy.name, read_segmentation(copy).segments if copy.name.endswith(".seg.nrrd") else ()
    finally:
        copy.unlink()


@pytest.mark.parametrize("name", ["label.nii.gz", "label.nii"])
@pytest.mark.parametrize("values", [(2, 1), (17, 300)])
def test_a_table_of_labels_goes_out_as_the_tasks_values(tmp_path, image, name, values):
    front, back = values
    label = save(tmp_path / name, {1: front, 2: back}, table((front, "front"), (back, "back")))
    got, kept, _ = sent(label, image, BALL)
    assert np.array_equal(got, expected().numpy()) and kept.endswith(name.removeprefix("label"))


def test_segments_go_out_with_values_and_names_on_the_whole_image(tmp_path, image):
    label = tmp_path / "label.seg.nrrd"
    crop = (2 * (expected() == 1) + (expected() == 2)).numpy().astype(np.uint8)[1:]
    corner = AFFINE.copy()
    corner[:3, 3] += AFFINE[:3, 0]
    write_segmentation(label, crop, corner, TURNED)
    got, kept, segments = sent(label, image, BALL)
    assert np.array_equal(got, expected().numpy()) and kept.endswith(".seg.nrrd")
    assert {segment.name: segment.value for segment in segments} == {"front": 1, "back": 2}


def test_of_several_tasks_the_one_whose_values_it_has_counts(tmp_path, image):
    label = save(tmp_path / "label.nii.gz", {1: 2, 2: 1}, table((2, "front"), (1, "back")))
    assert copy_label(label, image, [BALL, TURNED]) is None
    assert np.array_equal(sent(label, image, BALL)[0], expected().numpy())


def test_colors_go_out_as_gray_values(tmp_path):
    photograph, label = tmp_path / "eye.png", tmp_path / "label.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)).save(photograph)
    drawn = np.zeros((8, 9, 3), np.uint8)
    drawn[2:5, 3:6] = (0, 0, 2)
    Image.fromarray(drawn).save(label)
    got, kept, _ = sent(label, photograph, EYE)
    assert np.array_equal(got.T, drawn[..., 2]) and kept.endswith(".png")


def test_what_has_the_values_already_or_no_names_goes_out_as_it_is(tmp_path, image):
    named = save(tmp_path / "named.nii.gz", {1: 1, 2: 2}, table((1, "front"), (2, "back")))
    assert copy_label(named, image, [BALL]) is None
    plain = tmp_path / "plain.nii.gz"
    drawn = Segmentation(expected().to(torch.uint8), read_image(image, BALL), Answer("", "", "", 0.0))
    for name in ("plain.nii.gz", "plain.nrrd", "plain.seg.nrrd"):
        write_mask(tmp_path / name, drawn, BALL)
        assert copy_label(tmp_path / name, image, [BALL]) is None
    assert copy_label(plain, tmp_path / "in-a-pacs", [BALL]) is None


def test_names_of_no_task_are_refused_and_not_shown_as_others(tmp_path, image):
    label = save(tmp_path / "label.nii.gz", {1: 1, 2: 2}, table((1, "spleen"), (2, "back")))
    with pytest.raises(SeriesError, match="has the labels front, back, given 'spleen'"):
        copy_label(label, image, [BALL])


def test_a_nifti_2_and_one_that_leans_beside_its_image_open_in_itk(tmp_path, image):
    mask = expected().numpy().astype(np.uint8)
    second, named = tmp_path / "second.nii.gz", tmp_path / "named.nii"
    nib.save(nib.Nifti2Image(mask, AFFINE), second)
    assert np.array_equal(sent(second, image, BALL)[0], mask)
    volume = nib.Nifti2Image((mask > 0).astype(np.uint8), AFFINE)
    volume.header.extensions.append(nib.nifti1.Nifti1Extension(0, table((1, "front")).encode()))
    nib.save(volume, named)
    assert np.array_equal(sent(named, image, BALL)[0], mask > 0), "named, and a NIfTI-2"

    leaning = AFFINES["oblique"].copy()
    leaning[:3, 2] += 0.3 * leaning[:3, 0]
    one = nib.Nifti1Image(np.random.default_rng(0).random(SHAPE, np.float32), leaning)
    one.set_qform(leaning, code=1)
    nib.save(one, tmp_path / "both.nii.gz")  # ITK goes by its qform
    label = nib.Nifti1Image(mask, leaning)
    label.header["qform_code"] = 0
    nib.save(label, tmp_path / "label.nii.gz")
    assert copy_image(tmp_path / "both.nii.gz") is None
    assert np.array_equal(sent(tmp_path / "label.nii.gz", tmp_path / "both.nii.gz", BALL)[0], mask)
