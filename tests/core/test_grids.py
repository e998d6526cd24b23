"""The way to the network's grid and back, in slabs, beside MONAI's own transforms on whole volumes."""

from __future__ import annotations

import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    NormalizeIntensity,
    Orientation,
    Resize,
    ScaleIntensityRangePercentiles,
    Spacing,
    SpatialPad,
)
from torch.utils._python_dispatch import TorchDispatchMode

from iopfl.core import grids
from iopfl.core.grids import Grid
from iopfl.core.inference import count_windows, predict, predict_slabs
from iopfl.core.networks import build_network
from iopfl.core.predictor import Predictor
from iopfl.core.sampling import sample_instances
from iopfl.core.transforms import Preprocessing, read_image
from iopfl.core.work import Work

from .test_transforms import AFFINES, SPACING, make_affine
from .tiny import BALL, DISK, STACK, make_bank

SHEARED = {
    "tilted gantry": make_affine(np.array([[1.3, 0, 0.1], [0, 0.9, 0.4], [0, 0, 1.6]])),
    "no affine": np.eye(4),
    "rounded": AFFINES["oblique"].astype(np.float32).astype(np.float64),
}
FLAT = replace(DISK, labels={"front": 1, "back": 2})
TASKS = {
    "3D, coarser": replace(BALL, spacing=(2.0, 2.0, 2.0)),
    "3D, finer": replace(BALL, spacing=(0.7, 0.8, 0.9)),
    "3D, resized": replace(BALL, spacing=None, size=(24, 48, 8)),
    "2D, resized": replace(FLAT, size=(16, 48)),
    "2D, in mm": replace(FLAT, spacing=(0.8, 1.1)),
}
SLABS = (1, 3, 1000)


def whole(task):
    """The same by MONAI, on a whole volume."""
    in_plane = task.spatial_dims == 2
    size = (*task.size, -1) if in_plane else task.size
    steps = [Orientation(axcodes="RAS", labels=None)]
    if task.spacing is None:
        return Compose([*steps, Resize(spatial_size=size, mode="trilinear", anti_aliasing=True)])
    pixdim = (*task.spacing, -1.0) if in_plane else task.spacing
    return Compose([*steps, Spacing(pixdim=pixdim, padding_mode="border"), SpatialPad(spatial_size=size)])


@pytest.fixture(autouse=True)
def thin_slabs(monkeypatch):
    """Small volumes take several slabs too."""
    monkeypatch.setattr(grids, "_ELEMENTS", 3000)


@pytest.mark.parametrize("affine", [*AFFINES.values(), *SHEARED.values()], ids=[*AFFINES, *SHEARED])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_slabs_give_what_whole_volumes_give(task, affine):
    random = torch.Generator().manual_seed(0)
    for shape in ((19, 15, 11), (9, 21, 1 + 5 * task.spatial_dims)):
        image = MetaTensor(torch.randn(1, *shape, generator=random), affine=torch.from_numpy(affine))
        transform, grid = whole(task), Grid(shape, affine, task)
        expected, prepared = transform(image), grid.to_network(image.as_tensor())
        assert prepared.shape[1:] == grid.size
        torch.testing.assert_close(prepared, expected.as_tensor(), atol=1e-4, rtol=1e-5)
        probabilities = (3 * torch.randn(3, *grid.size, generator=random)).softmax(0)
        carried = MetaTensor(probabilities, meta=expected.meta, applied_operations=expected.applied_operations)
        dense = transform.inverse(carried).as_tensor()
        top, second = dense.topk(2, dim=0).values
        for size in SLABS:
            mask = grid.to_mask(probabilities.split(size, dim=3), (0, 7, 255))
            wrong = mask != torch.tensor([0, 7, 255])[dense.argmax(0)]
            assert not wrong.any() or (top - second)[wrong].max() < 1e-4


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_slices_lie_one_after_the_other_in_memory_from_the_file_to_the_mask(affine, tmp_path):
    """As in the files: strided voxels took more seconds than the rest of an answer."""
    nib.save(nib.Nifti1Image(np.random.default_rng(2).normal(size=(19, 15, 11)), affine), tmp_path / "i.nii.gz")
    image, to_network = read_image(tmp_path / "i.nii.gz", FLAT), Preprocessing(FLAT)
    assert image.as_tensor()[0].permute(2, 1, 0).is_contiguous()
    prepared = to_network(image)
    assert prepared[0].permute(2, 0, 1).is_contiguous()
    slabs = torch.rand(3, *prepared.shape[1:], generator=torch.Generator().manual_seed(4)).split(2, dim=3)
    assert to_network.mask(slabs, like=image).permute(2, 1, 0).is_contiguous()


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_mask_of_few_regions_is_the_one_that_is_interpolated_everywhere(task, affine, monkeypatch):
    """Voxels are interpolated one by one where classes meet, and nowhere else."""
    grid = Grid((23, 19, 11), affine, task)
    places = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, edge) for edge in grid.size], indexing="ij"))
    regions = torch.stack([0.6 - 4 * (places - shift).square().sum(0) for shift in (0.2, -0.3)])
    logits = torch.cat([torch.zeros(1, *grid.size), 8 * regions])
    logits += 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    slabs = logits.softmax(0).split(4, dim=3)
    monkeypatch.setattr(grids, "_MOST_OPEN", 1.0)
    mask = grid.to_mask(slabs, (0, 7, 255))
    monkeypatch.setattr(grids, "_MOST_OPEN", -1.0)
    assert mask.any() and torch.equal(mask, grid.to_mask(slabs, (0, 7, 255)))


def test_a_photograph_costs_the_same_in_whatever_order_its_file_has_it(monkeypatch):
    """Pillow gives a pixel's colors side by side, which made smoothing twelve times as slow."""
    monkeypatch.undo()
    planes = torch.rand(3, 1600, 1600, 1, generator=torch.Generator().manual_seed(2))
    mixed = planes.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    grid = Grid(planes.shape[1:], np.eye(4), replace(FLAT, channels=3, size=(256, 256)))
    seconds = []
    for image in (planes, mixed) * 2:
        started = time.thread_time()
        prepared = grid.to_network(image)
        seconds.append(time.thread_time() - started)
        torch.testing.assert_close(prepared, grid.to_network(planes))
    assert min(seconds[1::2]) < 4 * min(seconds[::2])


@pytest.mark.parametrize("intensity", ["zscore", "percentile"])
@pytest.mark.parametrize("channels", [1, 3])
def test_intensities_are_normalized_as_monai_does(intensity, channels):
    task = replace(DISK, intensity=intensity, channels=channels)
    image = MetaTensor(100 * torch.rand(channels, 32, 32, 3) ** 2 + 7, affine=torch.eye(4))
    before = image.clone()
    steps = [ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)] if intensity == "percentile" else []
    expected = Compose([*steps, NormalizeIntensity(channel_wise=True)])(image.clone()).as_tensor()
    torch.testing.assert_close(Preprocessing(task)(image), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(image.as_tensor(), before.as_tensor())


@pytest.mark.parametrize("edges", [(16, 16, 16), (16, 25, 40), (33, 16, 17), (30, 21, 29)])
def test_windows_are_blended_as_monai_does(edges):
    volume = torch.randn(1, *edges, generator=torch.Generator().manual_seed(1))
    network = build_network(BALL, seed=0).eval()
    with torch.inference_mode():
        infer = SlidingWindowInferer(BALL.size, sw_batch_size=4, overlap=0.25, mode="gaussian")
        expected = infer(volume[None], lambda windows: network(windows).softmax(1))[0]
    torch.testing.assert_close(predict(network, volume, BALL), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", [STACK, BALL, replace(STACK, spacing=(1.0, 1.0))], ids=["2.5D", "3D", "2.5D, windows"])
def test_every_pass_is_counted_beforehand(task):
    volume = torch.randn(1, 40, 33, 20)
    seen = []
    work = Work(lambda done, total, expected: seen.append((done, total)))
    work.expect(count_windows(volume, task))
    for _ in predict_slabs(build_network(task, seed=0), volume, task, work=work):
        pass
    assert {total for _, total in seen} == {count_windows(volume, task)}
    assert seen[-1] == (count_windows(volume, task),) * 2


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor that was made in it."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("kind", ["global", "routed"])
@pytest.mark.parametrize("task", [STACK, BALL], ids=["2.5D", "3D"])
def test_no_tensor_of_all_classes_of_a_volume_is_ever_made(task, kind, tmp_path):
    task = replace(task, labels={str(value): value for value in range(1, 6)})
    shape = (40, 48, 200)
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, make_affine(np.diag([1.0, 1.0, 1.0]))), tmp_path / "long.nii")
    predictor = Predictor(make_bank(tmp_path / "bank", task))
    with _Largest() as largest:
        mask = predictor.segment(tmp_path / "long.nii", kind, with_quality=True).mask
    assert mask.shape == shape
    assert largest.bytes <= 1.5 * voxels.nbytes


@pytest.mark.parametrize("task", [STACK, BALL], ids=["2.5D", "3D"])
def test_quality_looks_at_the_same_places_of_the_answer(task, tmp_path):
    """As if it had been taken of the whole answer at once."""
    nib.save(
        nib.Nifti1Image(np.random.default_rng(1).normal(size=(35, 38, 30)), make_affine(SPACING)), tmp_path / "i.nii"
    )
    predictor = Predictor(make_bank(tmp_path / "bank", task))
    volume = predictor.prepare(tmp_path / "i.nii")
    answer = predict(predictor.bank.build(predictor.choose().weights), volume, task)
    at_once = sample_instances(answer, replace(task, slices=1), task.adaptation.max_instances)
    found = predictor.segment(tmp_path / "i.nii", with_quality=True).answer.quality
    assert found == pytest.approx(predictor.quality(volume, at_once), abs=1e-3)
