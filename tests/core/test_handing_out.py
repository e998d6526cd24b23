"""A NIfTI whose axes lean is handed out on a straight grid, and labels come back onto its own slices."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from images.test_places import LPS, affine_of, find_place, turn
from iopfl.base.errors import SeriesError
from iopfl.core import memory
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.disagreement import CHECK_HERE
from iopfl.core.handing_out import copy_label, to_straight, write_straight_image
from iopfl.core.transforms import open_label, read_image, read_label
from iopfl.core.writers import write_disagreement, write_mask, write_regions
from iopfl.images.notes import FileNotes
from iopfl.images.places import find_stack
from iopfl.images.segment_files import read_segmentation

from .tiny import BALL, DISK

SHAPE = (9, 8, 7)
FORMS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")


def leaning(x: float, y: float) -> np.ndarray:
    """Slices that shift by so many of their own thickness."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


AFFINES = {
    "along x": affine_of(leaning(0.4, 0)),
    "back along both, oblique": affine_of(turn(0) @ leaning(-0.3, -0.2)),
    "half a voxel": affine_of(leaning(0, 0.15)),
    "less than a voxel": affine_of(turn(4) @ leaning(0.01, 0)),
    "rows a little against columns": affine_of(np.array([[1, 0.01, 0.3], [0, 1, 0], [0, 0, 1]])),
    "rows against columns": affine_of(turn(2) @ np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 1]])),
    "rows and slices, back and forth": affine_of(np.array([[1, -0.7, 0.2], [0, 1, -0.15], [0, 0, 1]])),
}


@pytest.fixture(params=AFFINES)
def affine(request) -> np.ndarray:
    return AFFINES[request.param]


def write(path, affine, *, dtype=np.int16, unit="mm", slope=1.0, notes=None):
    voxels = np.random.default_rng(0).integers(3, 200, SHAPE).astype(dtype)
    factor = {"mm": 1, "meter": 1e-3}[unit]
    image = nib.Nifti1Image(voxels, np.diag([factor, factor, factor, 1]) @ affine)
    image.header.set_xyzt_units(unit)
    image.header.set_slope_inter(slope, 5.0 if slope != 1 else 0.0)
    image.header.extensions.extend((notes or FileNotes()).to_extensions())
    image.header["qform_code"] = 0
    nib.save(image, path)
    return path


def hand_out(path):
    sent = path.with_name(f"sent-{path.name}")
    write_straight_image(path, find_stack(path), sent)
    return sent


def answered(mask, path, **more) -> Segmentation:
    return Segmentation(torch.from_numpy(mask), read_image(path, BALL), Answer("", "", "", 0.0), **more)


def scatter(seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.mark.parametrize(
    "stored",
    [{}, {"dtype": ">i2"}, {"slope": -2.0}, {"unit": "meter"}, {"notes": FileNotes(padding=-7.0)}],
    ids=["plain", "big-endian", "scaled", "meters", "padded"],
)
def test_itk_and_nibabel_see_every_voxel_of_the_image_in_one_place_and_near_its_own(affine, stored, tmp_path):
    for name in ("image.nii.gz", "image.nii"):
        path = write(tmp_path / name, affine, **stored)
        with pytest.raises(RuntimeError):
            sitk.ReadImage(str(path))
        sent, stack = hand_out(path), find_stack(path)
        shown, seen, own = sitk.ReadImage(str(sent)), nib.load(sent), nib.load(path)
        for form in (seen.get_qform(), seen.get_sform()):
            assert np.allclose(form, seen.affine, atol=1e-4 * np.abs(own.affine[:3, :3]).max())
        assert shown.GetSize() == seen.shape
        values = seen.get_fdata()
        assert np.array_equal(stack.take(values), own.get_fdata()), "no value changes"
        rest = values[stack.lay(np.ones(SHAPE)) == 0]
        assert set(rest) <= {-7.0 if "notes" in stored else own.get_fdata().min()}
        assert seen.get_data_dtype() == own.get_data_dtype()
        assert seen.header.get_xyzt_units()[0] == stored.get("unit", "mm")
        for index in np.ndindex(2, 2, 2):
            corner = np.array(index) * (np.array(SHAPE) - 1)
            there = [int(i) for i in find_place(stack, corner)]
            place = np.array(shown.TransformIndexToPhysicalPoint(there))
            assert np.allclose(place, (LPS @ stack.straight_affine @ [*there, 1])[:3], atol=1e-3)
            apart = place - (LPS @ affine @ [*corner, 1])[:3]
            assert np.linalg.norm(apart) < 0.5 * np.hypot(0.8, 0.9) + 0.01
        assert read_image(sent, BALL).meta["notes"] == read_image(path, BALL).meta["notes"]


@pytest.mark.parametrize("form", FORMS)
def test_masks_lie_on_the_image_as_it_is_handed_out_and_come_back(affine, form, tmp_path):
    path = write(tmp_path / "image.nii.gz", affine)
    shown, mask, stack = sitk.ReadImage(str(hand_out(path))), scatter(), find_stack(path)
    target = tmp_path / f"mask{form}"
    write_mask(target, to_straight(answered(mask, path)), BALL)
    made = sitk.ReadImage(str(target))
    assert made.GetSize() == shown.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(made, get)(), getattr(shown, get)(), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(made).T, stack.lay(mask))
    if ".nii" in form:
        assert np.allclose(nib.load(target).affine, stack.straight_affine, atol=1e-4)
        assert np.allclose(nib.load(target).get_qform(), stack.straight_affine, atol=1e-4)

    read = open_label(target, BALL, like=read_image(path, BALL))
    assert np.array_equal(read.classes[0].numpy(), mask)
    assert (read.beside, read.is_as_stored) == (0, False), "it is kept on the image's own grid"
    kept = tmp_path / f"kept{form.replace('.seg', '')}"
    write_mask(kept, answered(mask, path), BALL)
    again = open_label(kept, BALL, like=read_image(path, BALL))
    assert np.array_equal(again.classes[0].numpy(), mask)
    copy = copy_label(kept, path, [BALL])
    out = sitk.ReadImage(str(copy))
    copy.unlink()
    assert np.array_equal(sitk.GetArrayFromImage(out).T, stack.lay(mask))
    assert np.allclose(out.GetOrigin(), shown.GetOrigin(), atol=1e-4)


def test_a_segmentation_of_the_command_line_on_the_slices_themselves_is_taken_too(affine, tmp_path):
    path, mask = write(tmp_path / "image.nii.gz", affine), scatter()
    write_mask(tmp_path / "mask.seg.nrrd", answered(mask, path), BALL)
    assert np.array_equal(read_label(tmp_path / "mask.seg.nrrd", BALL, like=read_image(path, BALL))[0].numpy(), mask)


@pytest.mark.parametrize("form", [".nrrd", ".seg.nrrd"])
def test_what_is_drawn_beside_the_slices_is_counted(form, tmp_path):
    path = write(tmp_path / "image.nii.gz", AFFINES["along x"])
    stack, mask = find_stack(path), scatter()
    laid = stack.lay(mask)
    beside = np.argwhere(stack.lay(np.ones(SHAPE)) == 0)[:5]
    laid[tuple(beside.T)] = 1
    straight = to_straight(answered(mask, path))
    drawn = Segmentation(torch.from_numpy(laid), straight.image, straight.answer)
    write_mask(tmp_path / f"drawn{form}", drawn, BALL)
    read = open_label(tmp_path / f"drawn{form}", BALL, like=read_image(path, BALL))
    assert (read.beside, np.array_equal(read.classes[0].numpy(), mask)) == (5, True)


def test_where_experts_disagree_lies_on_the_image_too(tmp_path):
    path = write(tmp_path / "image.nii.gz", AFFINES["along x"])
    where = np.zeros(SHAPE, np.uint8)
    where[3:6, 2:6, 1:6] = 60
    stack, shown = find_stack(path), sitk.ReadImage(str(hand_out(path)))
    straight = to_straight(answered(scatter(), path, disagreement=torch.from_numpy(where)))
    write_disagreement(tmp_path / "percent.nrrd", straight)
    made = sitk.ReadImage(str(tmp_path / "percent.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(made).T, stack.lay(where))
    assert np.allclose(made.GetOrigin(), shown.GetOrigin(), atol=1e-4)
    write_regions(tmp_path / "regions.seg.nrrd", straight)
    regions = read_segmentation(tmp_path / "regions.seg.nrrd")
    assert regions.segments[0].name == CHECK_HERE
    assert np.allclose(regions.affine, stack.straight_affine, atol=1e-4)


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii"])
def test_a_nifti_2_is_handed_out_as_itk_opens_it(tmp_path, name):
    place = affine_of(turn(3))
    nib.save(nib.Nifti2Image(np.random.default_rng(0).integers(3, 200, SHAPE).astype(np.int16), place), tmp_path / name)
    path, mask = tmp_path / name, scatter()
    shown, own = sitk.ReadImage(str(hand_out(path))), nib.load(path)
    assert np.array_equal(sitk.GetArrayFromImage(shown).T, np.asarray(own.dataobj))
    assert np.allclose(nib.load(tmp_path / f"sent-{name}").affine, place, atol=1e-4)
    for form in FORMS:
        write_mask(tmp_path / f"mask{form}", to_straight(answered(mask, path)), BALL)
        made = sitk.ReadImage(str(tmp_path / f"mask{form}"))
        assert np.allclose(made.GetOrigin(), shown.GetOrigin(), atol=1e-4)
        assert np.array_equal(sitk.GetArrayFromImage(made).T, mask)
        assert np.array_equal(read_label(tmp_path / f"mask{form}", BALL, like=read_image(path, BALL))[0].numpy(), mask)


def test_a_slice_of_two_dimensions_has_a_mask_in_every_form(tmp_path):
    path, mask = tmp_path / "slice.nii.gz", scatter()[..., :1].clip(0, 1)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(SHAPE[:2], np.float32), affine_of(np.eye(3))), path)
    given = Segmentation(torch.from_numpy(mask), read_image(path, DISK), Answer("", "", "", 0.0))
    for form in FORMS:
        write_mask(tmp_path / f"mask{form}", to_straight(given), DISK)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"mask{form}"))).T, mask)
        assert np.array_equal(read_label(tmp_path / f"mask{form}", DISK, like=given.image)[0].numpy(), mask)


def test_a_label_of_another_place_is_still_refused(tmp_path):
    path = write(tmp_path / "image.nii.gz", AFFINES["along x"])
    straight = to_straight(answered(scatter(), path))
    moved = straight.image.affine.clone()
    moved[0, 3] += 3
    straight.image.affine = moved
    for form in (".nrrd", ".seg.nrrd"):
        write_mask(tmp_path / f"moved{form}", straight, BALL)
        with pytest.raises(SeriesError):
            read_label(tmp_path / f"moved{form}", BALL, like=read_image(path, BALL))


def test_what_is_damaged_or_too_large_on_the_straight_grid_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "image.nii.gz", AFFINES["along x"])
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.nii.gz").write_bytes(content)
    with pytest.raises(SeriesError, match="whole NIfTI"):
        write_straight_image(tmp_path / "flipped.nii.gz", find_stack(path), tmp_path / "x.nii.gz")
    given = answered(scatter(), path)
    monkeypatch.setattr(memory, "limit", lambda: 100.0)
    for ask in (lambda: hand_out(path), lambda: to_straight(given)):
        with pytest.raises(SeriesError, match="GB of memory"):
            ask()
