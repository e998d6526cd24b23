"""Preprocessing and its inverse, every file format, every broken file; and masks written on the source's grid."""

from __future__ import annotations

import itertools
from dataclasses import replace

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from iopfl.base.errors import ConfigError, SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.sites import find_cases
from iopfl.core.task import Task, read_task
from iopfl.core.transforms import (
    Preprocessing,
    from_instances,
    open_label,
    read_image,
    read_label,
    to_instances,
    to_windows,
)
from iopfl.core.writers import write_mask

from .tiny import BALL, DISK, STACK

SHAPE = (33, 27, 19)
COLOR = replace(DISK, channels=3)


def rotation(degrees: float, axis: int) -> np.ndarray:
    first, second = (other for other in range(3) if other != axis)
    turn = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[first, first], turn[first, second], turn[second, first], turn[second, second] = c, -s, s, c
    return turn


def make_affine(matrix: np.ndarray, origin=(-12.0, 30.0, 7.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = origin
    return affine


SPACING = np.diag([1.3, 0.9, 1.6])
AFFINES = {
    "plain": make_affine(SPACING),
    "flipped": make_affine(np.diag([-1, -1, 1]) @ SPACING),
    "all flipped": make_affine(-SPACING),
    "sagittal": make_affine(np.eye(3)[[2, 0, 1]] @ SPACING),
    "permuted and flipped": make_affine(np.diag([1, -1, -1]) @ np.eye(3)[[1, 0, 2]] @ SPACING),
    "oblique": make_affine(rotation(25, 0) @ rotation(-15, 2) @ SPACING),
}


def asymmetric_label(shape=SHAPE) -> np.ndarray:
    """An L-shaped solid off the center: no mirroring or turning maps it onto itself."""
    label = np.zeros(shape, np.uint8)
    x, y, z = shape
    label[4 : x // 2, 3 : y - 6, 3 : z // 2 + 3] = 1
    label[4 : x - 9, 3 : y // 2, 3 : z // 2 + 3] = 2
    return label


def save_volume(path, voxels: np.ndarray, affine: np.ndarray):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def dice(first, second) -> float:
    first, second = torch.as_tensor(first) > 0, torch.as_tensor(second) > 0
    return (2 * (first & second).sum() / (first.sum() + second.sum())).item()


TWO_LABELS = {"front": 1, "back": 2}
GRIDS = [
    BALL,
    replace(BALL, spacing=None, size=(24, 24, 16)),
    replace(DISK, labels=TWO_LABELS),
    replace(DISK, labels=TWO_LABELS, spacing=(0.8, 0.8)),
]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("task", GRIDS, ids=["3D mm", "3D resized", "2D resized", "2D mm"])
def test_the_inverse_brings_back_the_exact_grid_and_the_label(task, affine, tmp_path):
    voxels = asymmetric_label()
    image = read_image(save_volume(tmp_path / "i.nii.gz", voxels.astype(np.float32), affine), task)
    label = read_label(save_volume(tmp_path / "l.nii.gz", voxels, affine), task, like=image)
    prepare = Preprocessing(task)
    shares = prepare.label(label)
    assert shares.shape[1:] == prepare(image).shape[1:]
    mask = prepare.mask([shares], like=image).numpy()
    assert mask.shape == SHAPE
    for value in (1, 2):
        assert dice(mask == value, voxels == value) > 0.9


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_network_sees_the_patient_the_same_way_round_however_it_was_stored(affine, tmp_path):
    """The brighter end of an image is at the patient's head, in the network's grid too."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    height = (index @ affine[:3, :3].T + affine[:3, 3])[..., 2]
    image = read_image(save_volume(tmp_path / "i.nii.gz", height.astype(np.float32), affine), BALL)
    prepared = Preprocessing(BALL)(image)[0]
    rise = (prepared[..., 1:] - prepared[..., :-1]).mean()
    sideways = max((prepared.diff(dim=axis)).mean().abs() for axis in (0, 1))
    assert rise > 0
    assert rise > sideways


@pytest.mark.parametrize("intensity", ["zscore", "percentile"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_intensities_do_not_depend_on_the_scanners_scale(intensity, scale, tmp_path):
    voxels = np.random.default_rng(0).normal(5, 1, SHAPE).astype(np.float32)
    task = replace(BALL, intensity=intensity)
    one, other = (
        Preprocessing(task)(read_image(save_volume(tmp_path / f"{factor}.nii", voxels * factor, np.eye(4)), task))
        for factor in (1.0, scale)
    )
    torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)
    assert abs(one.mean().item()) < 1e-3
    assert abs(one.std().item() - 1) < 1e-2


def test_a_constant_image_is_all_zeros(tmp_path):
    image = read_image(save_volume(tmp_path / "i.nii", np.full(SHAPE, 7, np.float32), np.eye(4)), BALL)
    assert Preprocessing(BALL)(image).abs().max() < 1e-5


def picture(mode: str, folder, suffix: str = ".png"):
    """A dark picture, 7 wide and 5 high, with one bright pixel at column 4, row 1."""
    gray = np.full((5, 7), 10, np.uint8)
    gray[1, 4] = 200
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 256)
    elif mode == "1":
        image = Image.fromarray(gray > 100)
    elif mode == "P":
        image = Image.fromarray((gray > 100).astype(np.uint8), mode="P")
        image.putpalette([10, 10, 10, 200, 200, 200])
    else:
        image = Image.fromarray(gray).convert(mode)
    path = folder / f"{mode.replace(';', '')}{suffix}"
    image.save(path)
    return path


@pytest.mark.parametrize("task", [DISK, COLOR], ids=["gray task", "color task"])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, ".png") for mode in ("L", "LA", "RGB", "RGBA", "P", "1", "I;16")]
    + [("L", ".bmp"), ("RGB", ".tif"), ("CMYK", ".tif"), ("L", ".TIFF"), ("RGB", ".PNG")],
)
def test_every_kind_of_picture_is_read_for_gray_and_color_tasks(mode, suffix, task, tmp_path):
    image = read_image(picture(mode, tmp_path, suffix), task)
    assert tuple(image.shape) == (task.channels, 7, 5, 1)
    assert torch.equal(image.affine, torch.eye(4, dtype=image.affine.dtype))
    dark, bright = (0, 1) if mode == "1" else (2560, 51200) if mode == "I;16" else (10, 200)
    expected = torch.full((task.channels, 7, 5, 1), float(dark))
    expected[:, 4, 1] = bright
    torch.testing.assert_close(image.as_tensor(), expected, atol=1e-3, rtol=0)


def test_jpeg_is_read_for_gray_and_color_tasks(tmp_path):
    Image.fromarray(np.full((40, 24, 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.jpg", quality=95)
    color, gray = read_image(tmp_path / "a.jpg", COLOR), read_image(tmp_path / "a.jpg", DISK)
    assert tuple(color.shape) == (3, 24, 40, 1)
    assert (color.mean((1, 2, 3)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 3
    assert abs(gray.mean().item() - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) < 3


def test_a_label_is_read_by_its_values_whatever_the_pictures_kind(tmp_path):
    task = replace(DISK, labels={"disk": 1})
    values = np.zeros((5, 7), np.uint8)
    values[1, 4] = 1
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    kinds = {
        "gray.png": Image.fromarray(values),
        "palette.png": palette,
        "bits.png": Image.fromarray(values.astype(bool)),
        "color.png": Image.fromarray(np.repeat(values[..., None], 3, axis=2)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        classes = read_label(tmp_path / name, task, like=torch.zeros(1, 7, 5, 1))
        assert classes.sum() == 1, name
        assert classes[0, 4, 1, 0] == 1, name


@pytest.mark.parametrize("size", [(31, 45), (1, 9), (300, 7), (32, 32)])
def test_pictures_of_any_size_come_back(size, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", DISK)
    prepare = Preprocessing(DISK)
    assert tuple(prepare(image).shape) == (1, 32, 32, 1)
    assert tuple(prepare.mask([torch.rand(2, 32, 32, 1)], like=image).shape) == (size[1], size[0], 1)


def test_a_single_slice_is_repeated_into_the_channels_of_a_25d_task():
    volume = torch.rand(1, 4, 4, 1)
    instances = to_instances(volume, STACK)
    assert tuple(instances.shape) == (1, 3, 4, 4)
    assert all(torch.equal(instances[0, channel], volume[0, ..., 0]) for channel in range(3))


def test_slices_see_their_neighbors_and_the_outermost_themselves():
    volume = torch.arange(4.0).expand(1, 2, 2, 4)
    instances = to_instances(volume, STACK)
    assert instances[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_instances_of_color_keep_each_slices_channels_together():
    volume = torch.stack([torch.full((2, 2, 2), float(channel)) for channel in range(3)]) + torch.tensor([0.0, 10.0])
    instances = to_instances(volume, replace(COLOR, slices=3))
    assert instances[1, :, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 10, 11, 12]


@pytest.mark.parametrize("task", [DISK, BALL])
def test_outputs_of_instances_are_the_volume_again(task):
    volume = torch.rand(1, 5, 6, 7)
    assert torch.equal(from_instances(to_instances(volume, task), task), volume)


def test_windows_cover_the_volume_and_are_all_of_the_tasks_size():
    volume = torch.arange(20.0 * 18 * 16).reshape(1, 1, 20, 18, 16)
    windows = to_windows(volume, BALL)
    assert tuple(windows.shape[1:]) == (1, 16, 16, 16)
    assert torch.equal(windows.unique(), volume.unique())


def test_the_masks_values_are_the_tasks():
    task = replace(BALL, labels={"front": 7, "back": 3})
    classes = torch.arange(16**3).reshape(16, 16, 16) % 3
    probabilities = torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()
    image = MetaTensor(torch.zeros(1, 16, 16, 16), affine=torch.eye(4))
    mask = Preprocessing(task).mask([probabilities], like=image)
    assert torch.equal(mask, torch.tensor([0, 3, 7], dtype=torch.uint8)[classes])


def broken_files(folder):
    """File name -> task that should refuse it."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(8, 8, 8)).astype(np.float32)
    whole = save_volume(folder / "whole.nii.gz", voxels, np.eye(4)).read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "garbage.nii.gz").write_bytes(b"no image at all")
    (folder / "empty.nii.gz").touch()
    (folder / "garbage.nrrd").write_bytes(b"NRRD0004\nno header\n")
    (folder / "garbage.mha").write_bytes(b"ObjectType = Nothing")
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / "whole.png")
    png = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "garbage.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "folder.nii.gz").mkdir()


@pytest.mark.parametrize(
    "name",
    [
        "truncated.nii.gz",
        "garbage.nii.gz",
        "empty.nii.gz",
        "garbage.nrrd",
        "garbage.mha",
        "truncated.png",
        "garbage.jpg",
        "folder.nii.gz",
        "missing.nii.gz",
        "missing.png",
    ],
)
def test_a_broken_file_is_refused_plainly(name, tmp_path):
    broken_files(tmp_path)
    with pytest.raises(SeriesError, match=rf"{name}: cannot be read as an image .*; expected a whole") as error:
        read_image(tmp_path / name, DISK if name.endswith(("png", "jpg")) else BALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("times", [2, 3, 5])
def test_a_volume_over_time_is_refused(times, tmp_path):
    path = save_volume(tmp_path / "bold.nii.gz", np.ones((8, 8, 8, times), np.float32), np.eye(4))
    for task in (BALL, DISK):
        with pytest.raises(SeriesError, match=rf"bold.nii.gz: task .* expects 1 channel\(s\), the image has {times}"):
            read_image(path, task)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_refused(value, tmp_path):
    voxels = np.ones((8, 8, 8), np.float32)
    voxels[1, 2, 3] = value
    with pytest.raises(SeriesError, match="holds NaN or infinity; expected finite intensities"):
        read_image(save_volume(tmp_path / "a.nii", voxels, np.eye(4)), BALL)


def test_a_picture_given_to_a_3d_task_is_refused(tmp_path):
    with pytest.raises(SeriesError, match="expects a volume, the image is one slice"):
        read_image(picture("L", tmp_path), BALL)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((8, 8, 7), np.uint8), r"expected the image's grid \(8, 8, 8\), given \(8, 8, 7\)"),
        (np.full((8, 8, 8), 3, np.uint8), r"task ball has values \[0, 1, 2\], the label holds \[3.0\]; map them"),
        (np.full((8, 8, 8), 0.5, np.float32), r"the label holds \[0.5\]"),
        (np.full((8, 8, 8), np.nan, np.float32), r"the label holds \[nan"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(label, message, tmp_path):
    path = save_volume(tmp_path / "l.nii.gz", label, np.eye(4))
    with pytest.raises(SeriesError, match=rf"label l.nii.gz: .*{message}"):
        read_label(path, BALL, like=torch.zeros(1, 8, 8, 8))


@pytest.mark.parametrize(
    ("moved", "fits"), [((0.2, 0, 0), True), ((0, 0, 2), True), ((1, 0, 0), False), ((0, -2.4, 0), False)]
)
def test_a_label_some_pixels_beside_a_thick_slice_is_refused(moved, fits, tmp_path):
    """Half of a slice's distance, up to which it was taken, is many pixels."""
    affine = make_affine(np.diag([0.5, 0.5, 5.0]))
    voxels = np.zeros((16, 16, 6), np.uint8)
    image = read_image(save_volume(tmp_path / "i.nii", voxels + np.float32(1), affine), BALL)
    affine[:3, 3] += moved
    path = save_volume(tmp_path / "l.nii", voxels, affine)
    if fits:
        assert not read_label(path, BALL, like=image).any()
    else:
        with pytest.raises(SeriesError, match="lies elsewhere in the patient"):
            read_label(path, BALL, like=image)


@pytest.mark.parametrize("axes", ["".join(a) for a in itertools.product(*["RL", "AP", "SI"])] + ["PIR", "SLA", "IRP"])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 14, 6)])
def test_a_label_whose_axes_run_otherwise_lies_where_its_file_says(tmp_path, axes, size):
    """As programs save it that bring all images into one orientation: compared by index, left would be right."""
    voxels, affine = asymmetric_label(size), make_affine(SPACING, origin=(3, -20, 7))
    path = save_volume(tmp_path / "i.nii", voxels.astype(np.float32), affine)
    image = read_image(path, BALL)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    nib.save(nib.Nifti1Image(voxels, affine).as_reoriented(turn), tmp_path / "l.nii")
    label = open_label(tmp_path / "l.nii", BALL, like=image)
    assert np.array_equal(label.classes[0].numpy(), voxels)
    assert label.is_as_stored == (axes == "RAS")
    torch.testing.assert_close(label.classes.affine, image.affine)


def test_a_label_that_is_mirrored_beside_the_image_is_refused(tmp_path):
    voxels = asymmetric_label((16, 16, 16))
    image = read_image(save_volume(tmp_path / "i.nii", voxels.astype(np.float32), np.eye(4)), BALL)
    path = save_volume(tmp_path / "l.nii", voxels, make_affine(np.diag([-1, 1, 1]), origin=(12, 0, 0)))
    with pytest.raises(SeriesError, match=r"label l.nii: .*lies elsewhere in the patient"):
        read_label(path, BALL, like=image)


def test_what_is_wrong_with_a_labels_voxels_is_said_as_it_is(tmp_path):
    image = read_image(save_volume(tmp_path / "i.nii", np.ones((16, 16, 6), np.float32), np.eye(4)), BALL)
    two = save_volume(tmp_path / "two.nii", np.ones((16, 16, 6, 2), np.uint8), np.eye(4))
    with pytest.raises(SeriesError, match="expected one value in a voxel, given 2"):
        read_label(two, BALL, like=image)
    near = save_volume(tmp_path / "near.nii", np.full((16, 16, 6), 1.0001, np.float32), np.eye(4))
    with pytest.raises(SeriesError, match=r"the label holds \[1.0001\]"):
        read_label(near, BALL, like=image)


def test_a_label_with_a_rounded_header_takes_the_images_grid(tmp_path):
    voxels = asymmetric_label((16, 16, 16))
    image = read_image(save_volume(tmp_path / "i.nii", voxels.astype(np.float32), make_affine(1.0001 * SPACING)), BALL)
    label = read_label(save_volume(tmp_path / "l.nii", voxels, make_affine(SPACING)), BALL, like=image)
    torch.testing.assert_close(label.affine, image.affine)


def segmentation(path, voxels: np.ndarray, task: Task) -> Segmentation:
    answer = Answer(task=task.name, bank="1-0", model="global", seconds=0.0)
    return Segmentation(torch.from_numpy(voxels), read_image(path, task), answer)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_written_mask_lies_on_the_sources_grid(suffix, affine, tmp_path):
    voxels = asymmetric_label()
    source = save_volume(tmp_path / "i.nii.gz", voxels.astype(np.float32), affine)
    path = tmp_path / f"mask{suffix}"
    write_mask(path, segmentation(source, voxels, BALL))
    if suffix.startswith(".nii"):
        written = nib.load(path)
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(written.dataobj), voxels)
        np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    else:
        written = itk.imread(str(path))
        np.testing.assert_array_equal(itk.array_from_image(written).T, voxels)
        for index in ((0, 0, 0), (32, 0, 0), (0, 26, 0), (0, 0, 18)):
            lps = affine @ (*index, 1) * (-1, -1, 1, 1)
            np.testing.assert_allclose(written.TransformIndexToPhysicalPoint(index), lps[:3], atol=1e-4)
    again = read_label(path, BALL, like=read_image(source, BALL))
    np.testing.assert_array_equal(again[0].numpy(), voxels)
    assert sorted(tmp_path.iterdir()) == sorted([source, path])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_written_picture_has_the_sources_size_and_values(suffix, tmp_path):
    task = replace(DISK, labels={"a": 1, "b": 200})
    source = picture("L", tmp_path)
    voxels = np.zeros((7, 5, 1), np.uint8)
    voxels[4, 1], voxels[0, 3] = 1, 200
    write_mask(tmp_path / f"mask{suffix}", segmentation(source, voxels, task))
    with Image.open(tmp_path / f"mask{suffix}") as image:
        assert (image.size, image.mode) == ((7, 5), "L")
        assert (image.getpixel((4, 1)), image.getpixel((0, 3)), np.asarray(image).sum()) == (1, 200, 201)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mask.jpg", "masks are written as .nii.gz"),
        ("mask.txt", "masks are written as .nii.gz"),
        ("mask.png", "a volume of 19 slices does not fit a picture: use .nii.gz"),
    ],
)
def test_a_mask_is_not_written_where_it_would_be_lost(name, message, tmp_path):
    source = save_volume(tmp_path / "i.nii", asymmetric_label().astype(np.float32), np.eye(4))
    with pytest.raises(ConfigError, match=message):
        write_mask(tmp_path / name, segmentation(source, asymmetric_label(), BALL))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("site", "task", "least"),
    [
        ("hippocampus", "hippocampus", 0.95),
        ("retina-vessel/STARE", "vessel", 0.8),
        ("prostate-saml-mini/HK", "prostate", 0.95),
        ("fundus-odoc-mini/Drishti-GS", "optic_disc_cup", 0.95),
    ],
)
def test_real_labels_survive_the_networks_grid(site, task, least, shared_data):
    task = read_task(task)
    prepare = Preprocessing(task)
    for case in find_cases(shared_data / site)[:3]:
        image = read_image(case.image, task)
        label = read_label(case.label, task, like=image)
        prepared = prepare(image)
        assert prepared.shape[0] == task.channels
        assert torch.isfinite(prepared).all()
        mask = prepare.mask([prepare.label(label)], like=image)
        assert mask.shape == image.shape[1:]
        assert dice(mask, label[0]) > least
