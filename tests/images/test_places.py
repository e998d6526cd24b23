"""Volumes of any geometry and unit in a folder: ITK opens what is handed out, and masks and labels lie on the image."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from core.tiny import BALL, DISK
from iopfl.base.errors import SeriesError
from iopfl.core.handing_out import to_straight, write_straight_image
from iopfl.core.measuring import measure
from iopfl.core.predictor import Answer, Segmentation
from iopfl.core.transforms import read_image, read_label
from iopfl.core.writers import write_mask
from iopfl.images.files import read_voxels
from iopfl.images.places import find_nifti_stack, find_stack, place_in_itk
from iopfl.images.straightening import Stack

SHAPE = (9, 8, 7)
SPOT = (slice(4, 7), slice(2, 5), slice(1, 3))
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNITS = {"mm": ("mm", 1.0, "mm"), "meters": ("meter", 1e-3, "m"), "micrometers": ("micron", 1e3, "um")}
FORMS = ("image.nii.gz", "image.nii", "image.nrrd", "image.mha")


def turn(seed: int) -> np.ndarray:
    directions, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return directions


def affine_of(matrix: np.ndarray, spacing=(0.8, 0.9, 3.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(spacing)
    affine[:3, 3] = (12.5, -40.0, 7.25)
    return affine


def shear(amount: float) -> np.ndarray:
    return np.array([[1, amount, -amount], [0, 1, amount / 2], [0, 0, 1.0]])


GEOMETRIES = {
    "straight": affine_of(np.eye(3)),
    "oblique": affine_of(turn(0)),
    "left-handed": affine_of(turn(1) @ np.diag([1, -1, 1]) * np.sign(np.linalg.det(turn(1)))),
    "right-handed": affine_of(turn(1) * np.sign(np.linalg.det(turn(1)))),
    "anisotropic": affine_of(turn(2), (0.3, 1.7, 12.0)),
    "tiny": affine_of(turn(3), (0.004, 0.003, 0.02)),
    "sheared by 1 %": affine_of(turn(4) @ shear(0.01)),
    "sheared by 20 %": affine_of(shear(0.2)),
    "rows against columns": affine_of(turn(5) @ np.array([[1, -0.4, 0], [0, 1, 0], [0, 0, 1.0]])),
}

LEANING = ("sheared by 1 %", "sheared by 20 %", "rows against columns")


def write_volume(path: Path, affine: np.ndarray, unit: str, *, with_qform: bool = False) -> None:
    """A volume whose file gives the affine, of RAS mm, in a unit."""
    named, factor, short = UNITS[unit]
    voxels = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.int16)
    given = np.diag([factor, factor, factor, 1]) @ affine
    lps = LPS @ given
    if ".nii" in path.name:
        image = nib.Nifti1Image(voxels, given)
        image.header.set_xyzt_units(named)
        if with_qform:
            image.set_qform(given, code="scanner")
        nib.save(image, path)
    elif path.suffix == ".nrrd":
        units = {} if unit == "mm" else {"space units": [short] * 3}
        space = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
        nrrd.write(str(path), voxels, {**space, **units})
    else:
        edges = np.linalg.norm(lps[:3, :3], axis=0)
        fields = {
            "ObjectType": "Image",
            "NDims": 3,
            "BinaryData": "True",
            "TransformMatrix": " ".join(f"{value:.12g}" for value in (lps[:3, :3] / edges).T.ravel()),
            "Offset": " ".join(f"{value:.12g}" for value in lps[:3, 3]),
            "ElementSpacing": " ".join(f"{value:.12g}" for value in edges),
            **({} if unit == "mm" else {"DistanceUnits": short}),
            "DimSize": " ".join(map(str, SHAPE)),
            "ElementType": "MET_SHORT",
            "ElementDataFile": "LOCAL",
        }
        header = "".join(f"{name} = {value}\n" for name, value in fields.items())
        path.write_bytes(header.encode() + voxels.tobytes(order="F"))


def hand_out(path: Path) -> sitk.Image:
    """An image as the server sends it."""
    sent = path.with_name(f"sent-{path.name}")
    if stack := find_stack(path):
        write_straight_image(path, stack, sent)
        path = sent
    return sitk.ReadImage(str(path))


def place_in(image: sitk.Image, index: list[int]) -> np.ndarray:
    return np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index]))


def find_place(stack: Stack, index: list[int]) -> np.ndarray:
    """Where one voxel lies on the straight grid."""
    one = np.zeros(SHAPE, bool)
    one[tuple(index)] = True
    return np.argwhere(stack.lay(one))[0]


CASES = [
    (geometry, unit, name)
    for geometry, unit, name in itertools.product(GEOMETRIES, UNITS, FORMS)
    if unit == "mm" or geometry in ("oblique", "sheared by 1 %")
]


@pytest.mark.parametrize(("geometry", "unit", "name"), CASES)
def test_what_is_handed_out_opens_in_itk_with_masks_and_labels_on_it(tmp_path, geometry, unit, name):
    affine, source = GEOMETRIES[geometry], tmp_path / name
    write_volume(source, affine, unit)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    image = read_image(source, BALL)
    assert np.allclose(image.affine.numpy(), affine, atol=1e-3 * min(1, edges.min())), "the network sees millimeters"

    shown = hand_out(source)
    mask = torch.zeros(SHAPE, dtype=torch.uint8)
    mask[SPOT] = 1
    for form in (".nii.gz", ".nrrd", ".mha", ".seg.nrrd"):
        target = tmp_path / f"mask{form}"
        write_mask(target, to_straight(Segmentation(mask, image, Answer("", "", "", 0.0))), BALL)
        drawn = sitk.ReadImage(str(target))
        # A NIfTI cannot lean in ITK: the mask of an NRRD that does lies on a straight grid, as NIfTI are handed out.
        beside = find_nifti_stack(image) if form == ".nii.gz" and "nii" not in name else None
        stack = beside or find_stack(source)
        assert np.array_equal(sitk.GetArrayFromImage(drawn).T, stack.lay(mask.numpy()) if stack else mask.numpy())
        reach = 0.5 * np.hypot(*edges[:2]) * UNITS[unit][1] if beside else 1e-4 * np.linalg.norm(edges * SHAPE)
        for index in ([0, 0, 0], [8, 7, 6], [8, 0, 6]):
            expected = place_in(shown, index)
            rounded = 1e-6 * np.abs(expected).max()
            there = find_place(beside, index) if beside else index
            assert np.linalg.norm(place_in(drawn, there) - expected) < reach + rounded
        if form == ".nii.gz" and "nii" not in name:
            found = nib.load(target)
            assert np.allclose(found.get_qform(), found.get_sform(), atol=1e-4 * edges.max())
        assert torch.equal(read_label(target, BALL, like=image)[0].as_tensor(), mask.float()), "as it would come back"
    write_mask(tmp_path / "mask.nii.gz", Segmentation(mask, image, Answer("", "", "", 0.0)))  # as `iopfl segment` does
    found = nib.load(tmp_path / "mask.nii.gz")
    if ".nii" in name:
        assert np.allclose(found.affine, nib.load(source).affine, rtol=1e-5)
        assert found.header.get_xyzt_units()[0] == UNITS[unit][0]

    stack = find_stack(source)
    laid = stack.lay(mask.numpy()) if stack else mask.numpy()
    label = sitk.GetImageFromArray(np.ascontiguousarray(laid.T))
    label.CopyInformation(shown)  # Slicer's
    sitk.WriteImage(label, str(tmp_path / "label.nrrd"))
    assert torch.equal(read_label(tmp_path / "label.nrrd", BALL, like=image)[0].as_tensor(), mask.float())
    (size, _) = measure(mask.numpy(), BALL.labels, image.affine.numpy())
    assert size.volume == pytest.approx(18 * abs(np.linalg.det(affine[:3, :3])) / 1000, rel=1e-3)


@pytest.mark.parametrize("turned", [False, True], ids=["by its size", "by its affine"])
@pytest.mark.parametrize(("axis", "plane"), enumerate(["sagittal", "coronal", ""]))
def test_one_slice_that_is_not_axial_is_refused_by_name_and_an_axial_one_is_seen(tmp_path, axis, plane, turned):
    shape, affine = [20, 20, 20], np.eye(4)
    shape[axis] = 1
    if turned:  # the slice is stored as rows and columns
        affine = affine[:, [*[other for other in range(3) if other != axis], axis, 3]]
        shape = [20, 20, 1]
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), affine), tmp_path / "slice.nii")
    if plane:
        with pytest.raises(SeriesError, match=f"sees axial slices, the image is one {plane} slice"):
            read_image(tmp_path / "slice.nii", DISK)
    else:
        assert read_image(tmp_path / "slice.nii", DISK).shape == (1, *shape)
    with pytest.raises(SeriesError, match="one slice"):
        read_image(tmp_path / "slice.nii", BALL)


VOLUMES = {
    "complex.nii": "no plain number",
    "colors.nii": "no plain number",
    "times.nii": r"expects 1 channel\(s\), the image has 5",
    "vectors.nii": "given 4 dimensions",
    "vectors.nrrd": "3 values in each voxel",
    "vectors.mha": r"expects 1 channel\(s\), the image has 3",
    "complex.mha": r"expects 1 channel\(s\), the image has 2",
}


@pytest.mark.parametrize(("name", "why"), VOLUMES.items())
def test_more_than_one_value_in_a_voxel_is_refused_and_not_halved(tmp_path, name, why):
    values = np.random.default_rng(0).normal(size=(9, 8, 7, 3)).astype(np.float32)
    path = tmp_path / name
    if name == "colors.nii":
        kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.save(nib.Nifti1Image(np.zeros((9, 8, 7), kind), np.eye(4)), path)
    elif name.endswith(".nii"):
        given = {
            "complex.nii": values[..., 0] + 1j,
            "times.nii": np.zeros((9, 8, 7, 5)),
            "vectors.nii": values[:, :, :, None],
        }
        array = given[name]
        nib.save(
            nib.Nifti1Image(array.astype(np.complex64 if array.dtype.kind == "c" else np.float32), np.eye(4)), path
        )
    else:
        image = sitk.GetImageFromArray(values, isVector=True)
        if name == "complex.mha":
            image = sitk.GetImageFromArray((values[..., 0] + 1j).astype(np.complex64))
        sitk.WriteImage(image, str(path))
    with pytest.raises(SeriesError, match=why):
        read_image(path, BALL)


@pytest.mark.parametrize("geometry", [name for name in GEOMETRIES if name not in LEANING])
def test_itk_and_nibabel_agree_on_a_volume_of_any_unit(tmp_path, geometry):
    for unit in UNITS:
        write_volume(tmp_path / "image.nii", GEOMETRIES[geometry], unit, with_qform=True)
        shown = hand_out(tmp_path / "image.nii")
        for index in ([0, 0, 0], [8, 7, 6]):
            expected = (LPS @ GEOMETRIES[geometry] @ [*index, 1])[:3]
            assert np.allclose(place_in(shown, index), expected, atol=1e-4)


@pytest.mark.parametrize("space", ["LPS", "RAS", "LAS", "left-anterior-superior", "scanner-xyz", None])
def test_an_nrrd_lies_where_itk_has_it_whatever_its_space_is_called(tmp_path, space):
    """A network saw others than `left-posterior-superior` and RAS as mirror images."""
    path, shape = tmp_path / "image.nrrd", (5, 6, 7)
    header = {"space directions": np.diag([1.0, 2.0, 3.0]), "space origin": [10.0, 20.0, 30.0]}
    header |= {"space": space} if space else {"space dimension": 3}
    nrrd.write(str(path), np.zeros(shape, np.float32), header)
    read = read_voxels(path)
    np.testing.assert_allclose(read.affine.numpy(), place_in_itk(read), atol=1e-6)
    nrrd.write(str(path), np.zeros(shape, np.float32), {"spacings": [1.0, 2.0, 3.0]})
    read = read_voxels(path)
    np.testing.assert_allclose(read.affine.numpy(), place_in_itk(read), atol=1e-6)
