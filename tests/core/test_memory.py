"""An image that would take more memory than an answer may is refused before it is read, with the figures."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from iopfl.base.errors import ConfigError, SeriesError
from iopfl.core import memory
from iopfl.core.predictor import Predictor
from iopfl.core.task import read_task
from iopfl.core.transforms import Preprocessing, read_image, read_label

from .tiny import BALL, DISK, make_bank

SPACED = replace(BALL, spacing=(1.0, 1.0, 1.0))


@pytest.fixture(autouse=True)
def a_small_machine():
    """What an answer may take; 1.15 GB of it are the process."""
    memory.limit_to(1.5)
    yield
    memory.limit_to(None)


def write_header(path, shape, affine=None) -> None:
    """A NIfTI of a few bytes that says it is large: what it says must be enough to refuse it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4) if affine is None else affine, code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(1000))


@pytest.mark.parametrize("shape", [(500, 500, 500), (30_000, 30_000, 30_000), (32_767, 32_767, 1)])
def test_a_volume_that_its_header_says_to_be_too_large_is_not_read(shape, tmp_path):
    write_header(tmp_path / "a.nii", shape)
    tracemalloc.start()
    try:
        with pytest.raises(
            SeriesError, match=r"^a.nii: its .* would take [\d.]+ GB .* may take 1.5 GB: .*--max-memory"
        ):
            read_image(tmp_path / "a.nii", SPACED)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("edge", [8.0, 1e3, 1e30])
def test_a_volume_that_becomes_too_large_on_the_tasks_grid_is_refused(edge, tmp_path):
    image = nib.Nifti1Image(np.ones((128, 128, 64), np.uint8), np.diag([edge, edge, edge, 1]))
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(SeriesError, match=r"a.nii: its 128 x 128 x 64 voxels, which become .* on the task's grid"):
        read_image(tmp_path / "a.nii", SPACED)
    assert tuple(read_image(tmp_path / "a.nii", replace(BALL, spacing=None)).shape) == (1, 128, 128, 64)


def test_masks_of_the_experts_take_memory_too(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40)), np.eye(4)), tmp_path / "a.nii")
    alone = memory.estimate((40, 40, 40), memory.find_grid((40, 40, 40), np.eye(4), SPACED), SPACED)
    predictor = Predictor(make_bank(tmp_path / "bank", SPACED))
    memory.limit_to((alone + 3 * 40**3) / 1e9)
    image = read_image(tmp_path / "a.nii", SPACED)
    monkeypatch.setattr(predictor, "_adapt", lambda *a, **k: pytest.fail("a pass"))
    for ask in (
        lambda: predictor.segment(tmp_path / "a.nii", "global", with_disagreement=True),
        lambda: predictor.find_disagreement(image),
    ):
        with pytest.raises(SeriesError, match=r"^a.nii: .* the masks of 3 experts, .*: ask for the mask alone, give"):
            ask()
    memory.limit_to((alone + 5 * 40**3) / 1e9)
    predictor.check_disagreement(image)


def test_a_picture_of_thousands_of_scans_is_not_decoded(tmp_path):
    """Each takes the time of a whole picture: an upload of less than a megabyte kept a thread for minutes."""
    file = tmp_path / "a.jpg"
    Image.new("L", (64, 64)).save(file, progressive=True)
    read_image(file, DISK)
    content = file.read_bytes()
    start = content.rindex(b"\xff\xda")
    file.write_bytes(content[:start] + content[start:-2] * 3000 + content[-2:])
    with pytest.raises(SeriesError, match="more than 200 scans"):
        read_image(file, DISK)


def test_a_picture_that_unpacks_to_too_much_is_not_decoded(tmp_path):
    Image.new("1", (16_000, 16_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(SeriesError, match=r"a.png: its 16000 x 16000 voxels would take"):
        read_image(tmp_path / "a.png", DISK)


def test_a_label_of_another_size_is_refused_unread(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii", BALL)
    write_header(tmp_path / "l.nii", (30_000, 30_000, 30_000))
    with pytest.raises(SeriesError, match=r"label l.nii: expected the image's grid \(8, 8, 8\), given \(30000"):
        read_label(tmp_path / "l.nii", BALL, like=image)


@pytest.mark.parametrize("task", [SPACED, replace(BALL, spacing=None), DISK, replace(DISK, spacing=(0.8, 0.8))])
@pytest.mark.parametrize("turned", [False, True])
def test_the_grid_is_the_one_that_preprocessing_makes(task, turned, tmp_path):
    affine = np.diag([2.1, 0.7, 1.6, 1])
    if turned:
        affine[:3, :3] = affine[:3, :3][[2, 0, 1]]
    nib.save(nib.Nifti1Image(np.ones((40, 30, 20), np.uint8), affine), tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii", task)
    made = Preprocessing(task)(image).shape[1:]
    assert np.abs(np.subtract(memory.find_grid((40, 30, 20), affine, task), made)).max() <= 1


def test_an_ordinary_ct_and_a_fundus_photograph_fit_into_an_ordinary_machine(monkeypatch):
    memory.limit_to(None)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 16 * 2**30)
    memory.check_room("ct.nii.gz", (512, 512, 300), read_task("prostate"), np.diag([0.8, 0.8, 1.5, 1]))
    memory.check_room("eye.jpg", (5000, 5000), read_task("vessel"), np.eye(4))


def test_the_default_is_half_of_what_the_machine_or_its_container_has(monkeypatch, tmp_path):
    memory.limit_to(None)
    assert 0 < memory.limit() <= memory.machine_bytes() / 2
    whole = memory.machine_bytes()
    for groups, file in [
        ("0::/a/b\n", "a/memory.max"),
        ("4:cpu,cpuacct:/\n3:memory:/a/b\n0::/\n", "memory/a/b/memory.limit_in_bytes"),
        ("0::/of/the/host\n", "memory.max"),
    ]:
        limit = tmp_path / file
        limit.parent.mkdir(parents=True, exist_ok=True)
        limit.write_text(f"{whole // 4}\n")
        (tmp_path / "cgroup").write_text(groups)
        monkeypatch.setattr(memory, "_CGROUP_ROOT", tmp_path)
        monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "cgroup")
        assert memory.machine_bytes() == whole // 4
        limit.write_text("max\n")
        assert memory.machine_bytes() == whole


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="max-memory-gb: expected a number above 0"):
        memory.limit_to(wrong)
