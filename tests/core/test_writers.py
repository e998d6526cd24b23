"""Masks lie where ITK, and so 3D Slicer, has the image."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from PIL import Image

from iopfl.core.answers import Answer, Segmentation
from iopfl.core.task import read_task
from iopfl.core.transforms import read_label
from iopfl.core.writers import write_mask
from iopfl.images.files import read_voxels
from iopfl.images.places import place_in_itk


@pytest.mark.parametrize("dpi", [None, (300, 150)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("form", [".nrrd", ".nii.gz", ".mha"])
def test_a_pictures_mask_lies_on_the_picture(tmp_path, suffix, form, dpi):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    picture, target = tmp_path / f"eye{suffix}", tmp_path / f"mask{form}"
    Image.fromarray(pixels).save(picture, **({"dpi": dpi} if dpi else {}))
    image = read_voxels(picture)
    mask = torch.zeros(image.shape[1:], dtype=torch.uint8)
    mask[50, 3, 0] = 1  # column 50, row 3
    write_mask(target, Segmentation(mask, MetaTensor(image), Answer("eye", "", "global", 0.0)))
    shown, drawn = SimpleITK.ReadImage(str(picture)), SimpleITK.ReadImage(str(target))
    (index,) = np.argwhere(SimpleITK.GetArrayFromImage(drawn))[:, ::-1]
    place = drawn.TransformIndexToPhysicalPoint(index.tolist())
    assert shown.TransformPhysicalPointToIndex(place[:2]) == (50, 3)
    corner = [size - 1 for size in shown.GetSize()]
    assert drawn.TransformIndexToPhysicalPoint([*corner, 0])[:2] == pytest.approx(
        shown.TransformIndexToPhysicalPoint(corner), abs=1e-4
    )
    if form == ".nii.gz":
        found = nib.load(target)
        (index,) = np.argwhere(np.asarray(found.dataobj))
        assert (found.affine @ [*index, 1])[:2] == pytest.approx([-place[0], -place[1]], abs=1e-4)


@pytest.mark.parametrize("form", [".nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("axis", range(3))
def test_one_slice_in_any_orientation_stays_a_volume_in_its_place(tmp_path, form, axis):
    shape = [1 if other == axis else 5 + other for other in range(3)]
    affine = np.array([[0.0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), affine), tmp_path / "image.nii.gz")
    image = read_voxels(tmp_path / "image.nii.gz")
    write_mask(
        tmp_path / f"mask{form}", Segmentation(torch.ones(shape, dtype=torch.uint8), image, Answer("t", "", "g", 0.0))
    )
    shown, drawn = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("image.nii.gz", f"mask{form}"))
    assert drawn.GetSize() == shown.GetSize() == tuple(shape)
    for read in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(drawn, read)() == pytest.approx(getattr(shown, read)(), abs=1e-5)
    if form == ".nii.gz":
        found = nib.load(tmp_path / f"mask{form}")
        assert found.shape == tuple(shape) and np.allclose(found.affine, affine)


FORMS = {
    "sform alone": (None, 0, np.diag([-2.0, -2.0, 3.0, 1.0]), 1),
    "qform alone": (np.diag([-2.0, -2.0, 3.0, 1.0]), 1, None, 0),
    "neither": (None, 0, None, 0),
    "both, apart": (
        np.diag([-2.0, -2.0, 3.0, 1.0]),
        1,
        np.array([[-2.0, 0, 0, 10], [0, -2.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]]),
        2,
    ),
}


@pytest.mark.parametrize("form", [".nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii"])
def test_a_mask_lies_on_its_nifti_for_itk_and_for_nibabel_whichever_form_they_follow(tmp_path, name, kind, form):
    made = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), None)
    made.header.set_zooms((2.0, 2.0, 3.0))
    qform, qcode, sform, scode = FORMS[kind]
    made.header.set_qform(qform, qcode)
    made.header.set_sform(sform, scode)
    source = tmp_path / name
    nib.save(nib.Nifti1Image(made.dataobj, None, made.header), source)
    mask = torch.zeros(3, 4, 5, dtype=torch.uint8)
    mask[2, 1, 4] = 1
    image = read_voxels(source)
    write_mask(tmp_path / f"mask{form}", Segmentation(mask, image, Answer("t", "", "g", 0.0)))
    shown, drawn = SimpleITK.ReadImage(str(source)), SimpleITK.ReadImage(str(tmp_path / f"mask{form}"))
    for read in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(drawn, read)() == pytest.approx(getattr(shown, read)(), abs=1e-5)
    if form == ".nii.gz":
        assert np.allclose(nib.load(tmp_path / f"mask{form}").affine, nib.load(source).affine)
    task = read_task("prostate")
    for place in (nib.load(source).affine, place_in_itk(image)):  # drawn by somebody who follows the one or the other
        nib.save(nib.Nifti1Image(mask.numpy(), place), tmp_path / "label.nii.gz")
        assert torch.equal(read_label(tmp_path / "label.nii.gz", task, like=image)[0].as_tensor(), mask.float())
