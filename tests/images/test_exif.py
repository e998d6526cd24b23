"""Pictures that EXIF turns: seen as a viewer shows them, with masks and labels on them in either form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image, ImageOps

from core.tiny import DISK
from iopfl.base.errors import SeriesError
from iopfl.core.predictor import Answer, Segmentation
from iopfl.core.transforms import open_label, read_image, read_label
from iopfl.core.writers import write_mask
from iopfl.images.exif import to_stored, to_upright

EYE = replace(DISK, channels=3)
TURNS = range(1, 9)
SUFFIXES = (".jpg", ".png")


def said(orientation: int) -> dict:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def write_eye(path: Path, orientation: int, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    """A picture of (rows, columns), bright in one corner; as a viewer shows it."""
    rows = np.zeros((*size, 3), np.uint8)
    rows[2:8, 3:13] = (250, 200, 150)
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(rows).save(path, **said(orientation), **options)
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture))


def bright(shown: np.ndarray) -> np.ndarray:
    """What is bright of it, as a mask (X, Y, 1)."""
    return (shown.max(-1) > 125).astype(np.uint8).T[..., None]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", TURNS)
def test_a_network_sees_what_a_viewer_shows(tmp_path, orientation, suffix):
    shown = write_eye(tmp_path / f"eye{suffix}", orientation)
    seen = read_image(tmp_path / f"eye{suffix}", EYE)
    assert np.array_equal(seen[..., 0].numpy().transpose(2, 1, 0), shown)


@pytest.mark.parametrize("size", [(24, 40), (32, 32)], ids=["oblong", "square"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", TURNS)
def test_a_mask_lies_on_the_picture_for_a_viewer_and_for_itk_and_comes_back(tmp_path, orientation, suffix, size):
    source = tmp_path / f"eye{suffix}"
    shown = write_eye(source, orientation, size)
    mask = torch.from_numpy(bright(shown))
    image = read_image(source, EYE)
    answer = Segmentation(mask, image, Answer("", "", "", 0.0))
    for form in (".png", ".tif"):
        write_mask(tmp_path / f"mask{form}", answer, EYE)
        with Image.open(tmp_path / f"mask{form}") as picture:
            assert np.array_equal(np.asarray(ImageOps.exif_transpose(picture)).T, mask[..., 0].numpy())
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(source)))
    for form in (".nrrd", ".nii.gz", ".mha", ".seg.nrrd"):
        write_mask(tmp_path / f"mask{form}", answer, EYE)
        drawn = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"mask{form}")))[0]
        assert np.array_equal(drawn > 0, stored.max(-1) > 125), f"{form} is turned off its picture in ITK"
    for form in (".png", *((".tif",) if suffix == ".png" else ()), ".nrrd", ".nii.gz", ".mha", ".seg.nrrd"):
        if form == ".tif" and orientation > 1:
            continue  # a TIFF's readers turn it themselves: nothing is said of the rest
        assert torch.equal(read_label(tmp_path / f"mask{form}", EYE, like=image)[0].byte(), mask), form


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_label_that_says_nothing_is_told_by_its_size_or_refused(tmp_path, orientation):
    source, label = tmp_path / "eye.jpg", tmp_path / "label.png"
    upright = bright(write_eye(source, orientation))
    image = read_image(source, EYE)
    stored = to_stored(torch.from_numpy(upright), orientation).numpy()
    for rows in (upright, stored):
        Image.fromarray(np.ascontiguousarray(rows[..., 0].T)).save(label)
        if orientation >= 5:
            assert np.array_equal(read_label(label, EYE, like=image)[0].numpy(), upright)
            continue
        with pytest.raises(SeriesError, match="cannot be told by its size"):
            open_label(label, EYE, like=image)
        said_by = {"upright": 1, "stored": orientation}["upright" if rows is upright else "stored"]
        Image.fromarray(np.ascontiguousarray(rows[..., 0].T)).save(label, **said(said_by))
        assert np.array_equal(read_label(label, EYE, like=image)[0].numpy(), upright)


def test_a_square_label_that_is_the_same_either_way_is_taken(tmp_path):
    write_eye(tmp_path / "eye.jpg", 6, (32, 32))
    Image.new("L", (32, 32)).save(tmp_path / "empty.png")
    assert not read_label(tmp_path / "empty.png", EYE, like=read_image(tmp_path / "eye.jpg", EYE)).any()


@pytest.mark.parametrize("orientation", TURNS)
def test_there_and_back(orientation):
    values = torch.arange(2 * 3 * 4).reshape(2, 3, 4, 1)
    assert torch.equal(to_stored(to_upright(values, orientation), orientation), values)


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_tiff_is_upright_or_refused(tmp_path, orientation):
    rows = np.zeros((24, 40), np.uint8)
    rows[2:8, 3:13] = 250
    Image.fromarray(rows).save(tmp_path / "eye.tif", tiffinfo={0x0112: orientation})
    if orientation > 4:
        with pytest.raises(SeriesError, match="turns it by a quarter"):
            read_image(tmp_path / "eye.tif", DISK)
        return
    seen = read_image(tmp_path / "eye.tif", DISK)[0, ..., 0].numpy().T
    in_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "eye.tif")))  # in colors, if it is turned
    assert np.array_equal(seen, in_itk if in_itk.ndim == 2 else in_itk[..., 0])


@pytest.mark.parametrize("moved", [0, 5], ids=["in place", "elsewhere"])
def test_a_volume_as_a_pictures_label_lies_on_the_picture_or_is_refused(tmp_path, moved):
    shown = write_eye(tmp_path / "eye.png", 1)
    drawn = sitk.GetImageFromArray(bright(shown).T)
    drawn.SetOrigin((float(moved), 0.0, 0.0))
    sitk.WriteImage(drawn, str(tmp_path / "label.nrrd"))
    image = read_image(tmp_path / "eye.png", EYE)
    if moved:
        with pytest.raises(SeriesError, match="lies elsewhere"):
            read_label(tmp_path / "label.nrrd", EYE, like=image)
    else:
        assert np.array_equal(read_label(tmp_path / "label.nrrd", EYE, like=image)[0].numpy(), bright(shown))
