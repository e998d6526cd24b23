"""Fixtures that every part's tests may use: threads, tiny site folders, real images where they are at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from recording import Recorder, recorder

REPOSITORY = Path(__file__).parents[1]

# More threads gain nothing on networks this small, and other programs want the cores too.
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: gzip's hold the time, and xdist's two workers then collect different tests."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the repository; research-only, hence no part of it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real images: shared/data is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def phantom_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two phantom prostate sites with four cases each and `splits.json`; not to be written to."""
    from iopfl.datasets import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", sites=["site_a", "site_d"], cases=4)


@pytest.fixture(scope="session")
def disk_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of ten labeled 32 x 32 pictures of a bright disk; not to be written to."""
    folder = tmp_path_factory.mktemp("disks") / "north"
    (folder / "labels" / "final").mkdir(parents=True)
    random = np.random.default_rng(0)
    x, y = np.mgrid[:32, :32]
    for number in range(10):
        center, radius = random.uniform(11, 21, size=2), random.uniform(5, 9)
        disk = (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2
        image = random.normal(60, 10, disk.shape) + 100 * disk
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"case{number:02d}.png")
        Image.fromarray(disk.astype(np.uint8)).save(folder / "labels" / "final" / f"case{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def ball_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of six labeled volumes, 20 x 18 x 16: a ball, front half 1 and back half 2; not to be written to."""
    folder = tmp_path_factory.mktemp("balls") / "south"
    (folder / "labels" / "final").mkdir(parents=True)
    random = np.random.default_rng(1)
    x, y, z = np.mgrid[:20, :18, :16]
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    for number in range(6):
        center, radius = random.uniform(7, 10, size=3), random.uniform(4, 6)
        ball = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2 < radius**2
        label = (ball * np.where(y < center[1], 1, 2)).astype(np.uint8)
        image = (random.normal(50, 8, ball.shape) + 60 * label).astype(np.float32)
        nib.save(nib.Nifti1Image(image, affine), folder / f"ball{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labels" / "final" / f"ball{number}.nii.gz")
    return folder


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """The proxy that the environment names for everything, beside an account for every host: nobody's to use."""
    with recorder() as stranger:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, stranger.url)
            monkeypatch.setenv(name.upper(), stranger.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        (tmp_path / "netrc").write_text("default login nobody password guessed\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        yield stranger
