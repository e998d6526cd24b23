"""Pixel padding (PS3.3 C.7.5.1.1.2) is no image: not in what a network sees, and background in its mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from pydicom import Dataset, uid

from core.tiny import BALL, STACK, make_bank
from dicomio import phantoms
from dicomio.test_pixels import LOSSLESS
from iopfl.base.errors import SeriesError
from iopfl.core.agreement import expert_agreement, hide
from iopfl.core.predictor import Predictor
from iopfl.core.transforms import Preprocessing, read_image
from iopfl.dicomio.series import Series, read_series, write_nifti
from iopfl.images.files import find_notes

SHAPE = (24, 22, 12)
VALUE, LIMIT = 0x00280120, 0x00280121


def tissue(dtype: type = np.int16) -> np.ndarray:
    """Intensities (X, Y, Z) from 100 to 239."""
    return np.random.default_rng(3).integers(100, 240, SHAPE).astype(dtype)


def corners() -> np.ndarray:
    """What lies outside of a round field of view, (X, Y, Z) bool; nothing of one slice."""
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    outside = (x - 11.5) ** 2 + (y - 10.5) ** 2 > 11**2
    return np.repeat(outside[..., None], SHAPE[2], axis=2) & (np.arange(SHAPE[2]) != 4)


def build(dtype: type, stored: int, *elements: tuple[int, str, float], **changes: object) -> list[Dataset]:
    """Slices with padding in the corners, as it is stored, and what their headers say."""
    voxels = tissue(dtype)
    voxels[corners()] = stored
    slices = phantoms.build_slices(voxels, spacing=(1.0, 1.0, 1.0))
    for ds in slices:
        for tag, kind, value in elements:
            ds.add_new(tag, kind, value)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return slices


HEADERS: dict[str, Callable[[], list[Dataset]]] = {
    "signed": lambda: build(np.int16, -2000, (VALUE, "SS", -2000)),
    "signed, said unsigned": lambda: build(np.int16, -2000, (VALUE, "US", 63536)),
    "unsigned": lambda: build(np.uint16, 63536, (VALUE, "US", 63536)),
    "unsigned, said signed": lambda: build(np.uint16, 63536, (VALUE, "SS", -2000)),
    "above Bits Stored": lambda: build(np.uint16, 63536, (VALUE, "US", 63536), BitsStored=12, HighBit=11),
    "12 bits, signed": lambda: build(np.int16, -2000, (VALUE, "SS", -2000), BitsStored=12, HighBit=11),
    "bytes": lambda: build(np.uint8, 255, (VALUE, "US", 255)),
    "zero": lambda: build(np.uint16, 0, (VALUE, "US", 0)),
    "range": lambda: build(np.int16, -1900, (VALUE, "SS", -2000), (LIMIT, "SS", -1800)),
    "range from above": lambda: build(np.int16, -1900, (VALUE, "SS", -1800), (LIMIT, "SS", -2000)),
    "range, said unsigned": lambda: build(np.int16, -1900, (VALUE, "US", 63536), (LIMIT, "US", 63736)),
    "float": lambda: build(np.int16, -2000, (0x00280122, "FL", -2000.0)),
    "float range": lambda: build(np.int16, -1900, (0x00280122, "FL", -1800.5), (0x00280124, "FL", -2000.5)),
    "double": lambda: build(np.int16, -2000, (0x00280123, "FD", -2000.0)),
}


def read(slices: list[Dataset], folder: Path) -> Series:
    return read_series(phantoms.write(slices, folder))


def check(series: Series, expected: np.ndarray) -> None:
    outside = corners()
    assert series.padding is not None and series.padding < series.array[~outside].min()
    assert np.array_equal(series.array[~outside], expected[~outside])
    assert (series.array[outside] == series.padding).all()


@pytest.mark.parametrize("build", HEADERS.values(), ids=HEADERS)
def test_padding_is_told_from_pixels_however_it_is_said(tmp_path, build):
    series = read(build(), tmp_path)
    check(series, tissue())
    assert series.padding == 99


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.5, 3.25), (2, 0)])
@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_found_before_inversion_and_rescale(tmp_path, slope, intercept, interpretation):
    how = {"RescaleSlope": slope, "RescaleIntercept": intercept, "PhotometricInterpretation": interpretation}
    series = read(build(np.int16, -2000, (VALUE, "SS", -2000), **how), tmp_path)
    bright = tissue().astype(float)
    check(series, (-1 - bright if interpretation == "MONOCHROME1" else bright) * slope + intercept)


def test_each_slice_has_its_own_padding(tmp_path):
    slices = build(np.int16, -2000, (VALUE, "SS", -2000))
    other = build(np.int16, -1024, (VALUE, "SS", -1024))
    check(read([*slices[:5], *other[5:]], tmp_path), tissue())


@pytest.mark.parametrize("where", ["instance", "converted"])
def test_frames_of_a_multi_frame_instance_are_padded_too(tmp_path, where):
    slices = build(np.int16, -2000, (VALUE, "SS", -2000))
    enhanced = phantoms.build_enhanced(slices)
    if where == "converted":
        del enhanced[VALUE]
        for frame, ds in zip(enhanced.PerFrameFunctionalGroupsSequence, slices, strict=True):
            item = Dataset()
            item[VALUE] = ds[VALUE]
            frame.UnassignedPerFrameConvertedAttributesSequence = [item]
    check(read([enhanced], tmp_path), tissue())


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless], ids=lambda s: s.name)
def test_padding_survives_compression(tmp_path, syntax):
    for number, ds in enumerate(build(np.int16, -2000, (VALUE, "SS", -2000))):
        LOSSLESS[syntax](ds, tmp_path / f"{number}.dcm")
    check(read_series(tmp_path), tissue())


def test_a_series_without_padding_has_none(tmp_path):
    assert read(build(np.int16, 120, (VALUE, "SS", -2000)), tmp_path / "unused").padding is None
    assert read(phantoms.build_slices(tissue()), tmp_path / "unsaid").padding is None
    broken = build(np.int16, 120, (VALUE, "LO", "none"))
    assert read(broken, tmp_path / "broken").padding is None


def test_values_are_never_mixed_up_with_padding_whatever_room_there_is(tmp_path):
    for number, (dtype, low, high) in enumerate([(np.uint8, 0, 255), (np.uint16, 0, 65000), (np.int16, -32768, 32767)]):
        voxels = np.random.default_rng(1).integers(low, high, SHAPE).astype(dtype)
        voxels[0, 0, 1], voxels[0, 1, 1] = low, high
        voxels[5, 5, :], voxels[voxels == 77] = 77, 78
        voxels[5, 5, :] = 77
        slices = phantoms.build_slices(voxels)
        for ds in slices:
            ds.add_new(VALUE, "US", 77)
        series = read(slices, tmp_path / str(number))
        outside = voxels == 77
        assert np.array_equal(series.array[~outside], voxels[~outside])
        assert (series.array[outside] == series.padding).all() and series.padding < low


def test_a_series_of_padding_alone_is_refused(tmp_path):
    with pytest.raises(SeriesError, match="every pixel is padding"):
        read(build(np.int16, -2000, (VALUE, "SS", -2000), PixelPaddingRangeLimit=239), tmp_path)


def make_nifti(folder: Path, name: str, slices: list[Dataset]) -> Path:
    write_nifti(read(slices, folder / name), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


@pytest.mark.parametrize(
    "task", [STACK, BALL, replace(BALL, intensity="percentile"), replace(BALL, spacing=(1.3,) * 3)]
)
def test_what_a_network_sees_does_not_depend_on_the_value_of_padding(tmp_path, task):
    seen = []
    for stored in (-2000, 20000):
        path = make_nifti(tmp_path, f"s{stored}", build(np.int16, stored, (VALUE, "SS", stored)))
        image = read_image(path, task)
        assert find_notes(image).padding == 99
        volume, padding = Preprocessing(task).prepare(image)
        assert volume.isfinite().all() and padding.any()
        seen.append(volume)
        inside = volume[:, ~padding]
        assert (volume[:, padding] == inside.min()).all()
        assert inside.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(*seen)


def test_the_contrast_of_an_image_is_that_of_the_image_without_padding(tmp_path):
    """A task without spacing sees what it would if the padding were the tissue that is there."""
    task = replace(STACK, size=SHAPE[:2])
    with_padding = make_nifti(tmp_path, "with", build(np.int16, -2000, (VALUE, "SS", -2000)))
    without = make_nifti(tmp_path, "without", phantoms.build_slices(tissue(), spacing=(1.0, 1.0, 1.0)))
    prepare = Preprocessing(task)
    ours, padding = prepare.prepare(read_image(with_padding, task))
    plain = prepare(read_image(without, task))
    assert ours[:, ~padding].std().item() == pytest.approx(plain[:, ~padding].std().item(), rel=0.02)


@pytest.mark.parametrize(("task", "kind"), [(STACK, "routed"), (BALL, "global")], ids=["2.5D", "3D"])
def test_nothing_is_found_in_padding(tmp_path, task, kind):
    path = make_nifti(tmp_path, "series", build(np.int16, -2000, (VALUE, "SS", -2000)))
    predictor = Predictor(make_bank(tmp_path / "bank", task))
    result = predictor.segment(path, kind, with_quality=True)
    assert result.mask.shape == SHAPE
    assert result.mask[~torch.from_numpy(corners())].any()
    assert not result.mask[torch.from_numpy(corners())].any()
    assert 0 <= predictor.agreement(path) <= 1


def test_experts_are_not_judged_by_what_they_find_in_padding():
    padding = torch.zeros(2, 6, 6, dtype=torch.bool)
    padding[:, :3] = True
    answer = torch.rand(2, 3, 6, 6).softmax(1)
    confused = torch.where(padding[:, None], torch.rand(2, 3, 6, 6).softmax(1), answer)
    assert expert_agreement(hide(confused, padding)[None], hide(answer, padding)) == 1
    assert hide(answer, None) is answer


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_padding_is_known_from_the_file_and_shown_as_black(tmp_path, suffix):
    series = read(build(np.int16, -2000, (VALUE, "SS", -2000)), tmp_path / "series")
    path = tmp_path / f"image{suffix}"
    write_nifti(series, path)
    assert find_notes(read_image(path, BALL)).padding == 99
    seen = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    assert np.array_equal(seen, series.array) and seen.min() == 99


@pytest.mark.parametrize(
    "comment",
    [b"hello", b'{"iopfl": 3}', b'{"iopfl": {"padding": "x"}}', b'{"iopfl": {"padding": NaN}}', b'{"iopfl": '],
)
def test_comments_of_others_say_nothing(tmp_path, comment):
    image = nib.Nifti1Image(tissue(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, comment))
    nib.save(image, tmp_path / "image.nii")
    assert find_notes(read_image(tmp_path / "image.nii", BALL)).padding is None


def test_a_file_that_is_padding_alone_is_refused(tmp_path):
    image = nib.Nifti1Image(np.full(SHAPE, 3, np.int16), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b'{"iopfl": {"padding": 3}}'))
    nib.save(image, tmp_path / "image.nii")
    with pytest.raises(SeriesError, match="all of it is padding"):
        read_image(tmp_path / "image.nii", BALL)
