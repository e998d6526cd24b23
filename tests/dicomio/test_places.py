"""Series of any geometry lie where they are, for SimpleITK and for nibabel, and so do the masks and labels on them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from core.tiny import BALL, DISK
from dicomio import phantoms
from iopfl.base.errors import SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.transforms import read_image
from iopfl.core.writers import write_mask
from iopfl.dicomio.captures import build_captures
from iopfl.dicomio.segmentation import Origin, read_segmentation, segments_of
from iopfl.dicomio.series import Series, read_series, write_nifti
from iopfl.dicomio.structures import build_structure_set
from iopfl.labels.log import LabelVersion
from iopfl.labels.submissions import Submission
from iopfl.pacs.segmentations import build_label, count_beside

SHAPE = (14, 12, 7)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPOT = (slice(5, 9), slice(4, 8), slice(2, 5))
SEGMENTS = segments_of(BALL)


def turned(seed: int, digits: int = 6) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Directions of rows and columns, at random, as a scanner writes them."""
    directions, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    row, column = np.round(directions[:, :2].T, digits)
    return tuple(row.tolist()), tuple(column.tolist())


GEOMETRIES = {
    "axial": {},
    "sagittal": {"directions": ((0, 1, 0), (0, 0, -1))},
    "coronal": {"directions": ((1, 0, 0), (0, 0, -1))},
    "left-handed rows": {"directions": ((-1, 0, 0), (0, 1, 0))},
    "anisotropic": {"spacing": (0.3, 1.7, 9.0), "directions": turned(1)},
    "in meters, nearly": {"spacing": (20.0, 30.0, 400.0)},
    "in micrometers, nearly": {"spacing": (0.004, 0.003, 0.01), "directions": turned(2)},
    **{f"oblique, {digits} digits": {"directions": turned(digits, digits)} for digits in (2, 3, 4, 6)},
    "sheared by 1 %": {"shift": (0.03, 0.0, 0.0)},
    "sheared by 0.01 %": {"shift": (0.0003, 0.0, 0.0)},
    "tilted by 2 degrees": {"shift": (0.0, 3 * np.tan(np.deg2rad(2)), 0.0)},
    "tilted by 20 degrees": {"shift": (0.0, -3 * np.tan(np.deg2rad(20)), 0.0)},
    "tilted by half a pixel": {"shift": (0.35, 0.45, 0.0)},
    "tilted and oblique, 2 digits": {"shift": (0.5, -0.9, 0.3), "directions": turned(9, 2)},
}


@pytest.fixture(params=GEOMETRIES)
def geometry(request) -> dict:
    return GEOMETRIES[request.param]


@pytest.fixture
def slices(geometry):
    return phantoms.build_slices(phantoms.volume(SHAPE, low=0), **geometry)


@pytest.fixture
def series(slices, tmp_path) -> Series:
    return read_series(phantoms.write(slices, tmp_path / "series"))


@pytest.fixture
def image(series, tmp_path) -> Path:
    write_nifti(series, tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


def place_of(ds, x: float, y: float) -> np.ndarray:
    """Of a pixel, LPS in mm, by PS3.3 C.7.6.2.1.1 alone."""
    directions = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    spacing = [float(ds.PixelSpacing[1]), float(ds.PixelSpacing[0])]
    return np.array(ds.ImagePositionPatient, float) + x * spacing[0] * directions[0] + y * spacing[1] * directions[1]


def centers(mask: sitk.Image) -> np.ndarray:
    """Centers of each slice of what is drawn, LPS in mm, as ITK has it."""
    values = sitk.GetArrayViewFromImage(mask)
    found = [[*np.argwhere(plane > 0).mean(0)[::-1], z] for z, plane in enumerate(values) if plane.any()]
    return np.array([mask.TransformContinuousIndexToPhysicalPoint([float(i) for i in at]) for at in found])


def drawn_on_frames(ds) -> np.ndarray:
    """The same of a SEG, by what its frames say."""
    shared, frames = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence
    found = []
    for plane, frame in zip(np.atleast_3d(ds.pixel_array.T).T, frames, strict=True):
        shown = ds.copy()
        shown.ImagePositionPatient = frame.PlanePositionSequence[0].ImagePositionPatient
        shown.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        shown.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
        found.append(place_of(shown, *np.argwhere(plane > 0).mean(0)[::-1]))
    return np.array(found)


def half_a_pixel(geometry: dict) -> float:
    """In mm; more where two digits turn the far corner of an image."""
    rounded = any(len(str(abs(value))) <= 4 and value % 1 for row in geometry.get("directions", ()) for value in row)
    return 0.5 * np.hypot(*geometry.get("spacing", (0.7, 0.9))[:2]) + (0.06 if rounded else 1e-3)


def test_itk_and_nibabel_open_a_series_and_its_masks_at_one_place(series, image, tmp_path):
    shown = sitk.ReadImage(str(image))
    seen = nib.load(image)
    corner = np.array(shown.GetSize()) - 1
    assert shown.GetSize() == seen.shape == series.shape
    for index in ([0, 0, 0], corner.tolist(), [corner[0].item(), 0, corner[2].item()]):
        there = shown.TransformIndexToPhysicalPoint([int(i) for i in index])
        assert np.allclose(there, (LPS @ seen.affine @ [*index, 1])[:3], atol=1e-3)
        assert np.allclose(there, (LPS @ series.affine @ [*index, 1])[:3], atol=1e-3)
    mask = np.zeros(series.shape, np.uint8)
    mask[SPOT] = 1
    answered = Segmentation(torch.from_numpy(mask), read_image(image, BALL), Answer("", "", "", 0.0))
    for name in ("mask.nii.gz", "mask.nrrd", "mask.mha", "mask.seg.nrrd"):
        write_mask(tmp_path / name, answered, BALL)
        made = sitk.ReadImage(str(tmp_path / name))
        assert made.GetSize() == shown.GetSize()
        for get in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert np.allclose(getattr(made, get)(), getattr(shown, get)(), atol=1e-4), f"{name}: {get}"
        assert np.array_equal(sitk.GetArrayFromImage(made).T, mask)


def test_a_slice_lies_where_its_header_says_within_half_a_pixel(series, image, slices, geometry):
    shown = sitk.ReadImage(str(image))
    values = sitk.GetArrayFromImage(shown).T
    assert np.array_equal(series.to_frames(values), phantoms.volume(SHAPE, low=0)), "no value changes"
    for z, ds in enumerate(slices):
        laid = series.from_frames(np.eye(SHAPE[2])[z] * np.ones(SHAPE))
        first = np.argwhere(laid > 0)[0]
        for x, y in ((0, 0), (SHAPE[0] - 1, SHAPE[1] - 1)):
            index = [int(first[0] + x), int(first[1] + y), z]
            there = np.array(shown.TransformIndexToPhysicalPoint(index))
            assert np.linalg.norm(there - place_of(ds, x, y)) < half_a_pixel(geometry)


def test_a_label_drawn_in_slicer_comes_back_to_the_frames_that_it_was_drawn_on(series, image, geometry, tmp_path):
    shown = sitk.ReadImage(str(image))
    values = np.zeros(series.shape, np.uint8)
    values[series.from_frames(np.ones(SHAPE, np.uint8)) == 0] = 1  # beside the slices there is nothing to draw on
    values[SPOT] = 1
    drawn = sitk.GetImageFromArray(values.T)
    drawn.CopyInformation(shown)
    sitk.WriteImage(drawn, str(tmp_path / "drawn.nii.gz"))
    version = LabelVersion(number=1, annotator="ann", when="2026-01-01T00:00:00+00:00")
    (ds,) = build_label(tmp_path / "drawn.nii.gz", series, BALL, version)
    kept = series.to_frames(values)
    beside = count_beside(Submission(tmp_path / "drawn.nii.gz", (BALL.name,)), image, lambda: series).beside
    assert beside == np.prod(series.shape) - np.prod(SHAPE)
    expected = sitk.GetImageFromArray(series.from_frames(kept).T)
    expected.CopyInformation(shown)
    apart = np.linalg.norm(drawn_on_frames(ds)[:, None] - centers(expected), axis=2)
    assert apart.shape[0] == apart.shape[1]
    assert apart.min(axis=1).max() < half_a_pixel(geometry)
    assert np.array_equal(read_segmentation(ds, series, BALL.labels).mask, series.from_frames(kept))


def test_contours_and_captures_are_on_the_frames_too(series, slices, geometry):
    mask = np.zeros(series.shape, np.uint8)
    mask[SPOT] = 1
    mask = series.from_frames(series.to_frames(mask))
    structures = build_structure_set(mask, series, SEGMENTS, Origin())
    assert np.array_equal(read_segmentation(structures, series, BALL.labels).mask, mask)
    by_uid = {ds.SOPInstanceUID: ds for ds in slices}
    for contour in structures.ROIContourSequence[0].ContourSequence:
        ds = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        normal = np.cross(*np.array(ds.ImageOrientationPatient, float).reshape(2, 3))
        beside = (np.array(contour.ContourData, float).reshape(-1, 3) - ds.ImagePositionPatient) @ normal
        assert np.abs(beside).max() < 0.02 * max(geometry.get("spacing", (1,)))
    for capture in build_captures(mask, series, SEGMENTS, Origin()):
        assert capture.Columns % SHAPE[0] == 0


def test_what_is_drawn_on_slices_that_shift_is_taken_as_it_lies(tmp_path):
    """As OHIF's panel and dcm2niix write it: on the slices themselves, by a sheared affine."""
    slices = phantoms.build_slices(phantoms.volume(SHAPE, low=0), shift=(0.4, -0.8, 0.0))
    series = read_series(phantoms.write(slices, tmp_path / "series"))
    assert series.shape != SHAPE
    mask = np.zeros(SHAPE, np.uint8)
    mask[SPOT] = 1
    version = LabelVersion(number=1, annotator="ann", when="2026-01-01T00:00:00+00:00")
    nib.save(nib.Nifti1Image(mask, series.frames_affine), tmp_path / "label.nii.gz")
    (ds,) = build_label(tmp_path / "label.nii.gz", series, BALL, version)
    assert np.array_equal(series.to_frames(read_segmentation(ds, series, BALL.labels).mask), mask)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_a_single_slice_of_a_series_is_seen_if_it_is_axial_and_else_refused_by_name(tmp_path, plane):
    slices = phantoms.build_slices(phantoms.volume((14, 12, 1), low=0), **GEOMETRIES[plane])
    write_nifti(read_series(phantoms.write(slices, tmp_path / "series")), tmp_path / "image.nii.gz")
    if plane == "axial":
        assert read_image(tmp_path / "image.nii.gz", DISK).shape == (1, 14, 12, 1)
    else:
        with pytest.raises(SeriesError, match=f"the image is one {plane} slice"):
            read_image(tmp_path / "image.nii.gz", DISK)
