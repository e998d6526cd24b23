"""Prostate T2 MR phantoms of several hospitals, for trying a federation out.

`anatomy.py` draws a patient; this module scans that patient the way a site
does, with MONAI's transforms: coil, contrast, blur, voxel size, bias field,
noise. The same seed gives the same bytes, and a site is the same whether it
is written alone or among others.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    Compose,
    GaussianSmooth,
    RandBiasField,
    RandRicianNoise,
    ResizeWithPadOrCrop,
    Spacing,
)

from iopfl.base.errors import DatasetError
from iopfl.datasets.anatomy import Pelvis, draw_pelvis
from iopfl.datasets.site_folders import (
    make_site,
    make_volume,
    split_by_subject,
    staged,
    write_splits,
)

logger = logging.getLogger(__name__)

IN_PLANE = 96
"""Voxels along each in-plane axis, at every site."""


@dataclass(frozen=True)
class SiteStyle:
    """How one hospital scans.

    Attributes:
        name: the name of the site and of its folder.
        spacing: voxel size in mm; with `IN_PLANE` it gives the field of view.
        slices: number of axial slices.
        gamma: contrast curve, `signal ** gamma`; below 1 lifts dark tissue.
        fat_signal: factor on the signal of fat; below 1 is fat suppression.
        endorectal_coil: a balloon distends the rectum.
        coil_gain: how much brighter it is next to the rectum, as a factor
            added to 1; 0 for a surface coil.
        coil_reach: mm over which that falls to 1/e.
        blur: standard deviation of the point spread in-plane, mm.
        bias: largest coefficient of the bias field's polynomial.
        noise: standard deviation of Rician noise, in units of the brightest signal.
        brightness: stored intensity of the brightest signal.
    """

    name: str
    spacing: tuple[float, float, float]
    slices: int
    gamma: float
    fat_signal: float = 1.0
    endorectal_coil: bool = False
    coil_gain: float = 0.0
    coil_reach: float = 30.0
    blur: float = 0.0
    bias: float = 0.05
    noise: float = 0.01
    brightness: int = 1000


SITES: dict[str, SiteStyle] = {
    style.name: style
    for style in (
        SiteStyle("site_a", (1.5, 1.5, 3.0), 15, gamma=0.9, noise=0.015, brightness=900),
        SiteStyle(
            "site_b",
            (1.75, 1.75, 3.5),
            14,
            gamma=1.7,
            fat_signal=1.3,
            blur=1.0,
            bias=0.15,
            noise=0.03,
            brightness=420,
        ),
        SiteStyle(
            "site_c",
            (1.25, 1.25, 3.0),
            16,
            gamma=1.2,
            endorectal_coil=True,
            coil_gain=4.0,
            coil_reach=16.0,
            noise=0.012,
            brightness=2400,
        ),
        SiteStyle(
            "site_d",
            (1.9, 1.9, 3.6),
            13,
            gamma=0.8,
            fat_signal=0.8,
            coil_gain=0.8,
            coil_reach=40.0,
            blur=1.0,
            bias=0.2,
            noise=0.025,
            brightness=250,
        ),
    )
}
"""The hospitals, by name. `site_d` differs most, and makes a good outside site."""


def scan(pelvis: Pelvis, style: SiteStyle, rng: np.random.Generator) -> tuple[MetaTensor, MetaTensor]:
    """Scan a patient at a site.

    Args:
        pelvis: the patient.
        style: the site.
        rng: positioning, bias field and noise.

    Returns:
        Image and label, both (1, X, Y, Z) on one grid with one affine (RAS,
        mm); the image in units of the site's brightest signal, the label 0 or 1.
    """
    signal = pelvis.t2
    if style.coil_gain:
        signal = signal * (1 + style.coil_gain * _closeness(pelvis, style.coil_reach))
        signal = signal / signal.max()
    # Where the technician put the middle of the field of view.
    shift = np.round(rng.normal(0, [3.0, 3.0, 0.6])).clip([-6, -6, -1], [6, 6, 1]).astype(int)
    affine = torch.from_numpy(pelvis.affine)
    image, label = (
        MetaTensor(torch.from_numpy(np.roll(a, shift, axis=(0, 1, 2))[None].astype(np.float32)), affine)
        for a in (signal, pelvis.gland)
    )  # both (1, X, Y, Z)

    in_plane = [style.blur / pelvis.affine[axis, axis] for axis in (0, 1)]
    field_of_view = ResizeWithPadOrCrop((IN_PLANE, IN_PLANE, style.slices))
    acquire = Compose(
        [
            AdjustContrast(gamma=style.gamma),
            GaussianSmooth(sigma=[*in_plane, 0.0]),
            Spacing(style.spacing, mode="bilinear"),
            field_of_view,
            RandBiasField(degree=3, coeff_range=(-style.bias, style.bias), prob=1.0),
            RandRicianNoise(prob=1.0, std=style.noise, sample_std=False),
        ]
    )
    acquire.set_random_state(seed=int(rng.integers(2**31)))
    annotate = Compose([Spacing(style.spacing, mode="nearest"), field_of_view])
    return acquire(image), annotate(label)


def _closeness(pelvis: Pelvis, reach: float) -> np.ndarray:
    """1 at the rectum, falling to 1/e over `reach` mm; (X, Y, Z)."""
    index = np.indices(pelvis.t2.shape, dtype=np.float32, sparse=True)
    squares = [
        (index[axis] * pelvis.affine[axis, axis] + pelvis.affine[axis, 3] - center) ** 2
        for axis, center in enumerate(pelvis.rectum)
        if axis < 2
    ]
    return np.exp(-np.sqrt(squares[0] + squares[1]) / reach).astype(np.float32)


def draw_case(style: SiteStyle, case: int, *, seed: int = 0) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Make one case of a site: another patient for another number or seed.

    Args:
        style: the site.
        case: number of the case, from 1.
        seed: the seed of the whole set.

    Returns:
        Image (int16, the site's intensities) and label (uint8, 1 = prostate).

    >>> image, label = draw_case(SITES["site_a"], 1)
    >>> image.shape, label.header.get_zooms() == image.header.get_zooms()
    ((96, 96, 15), True)
    """
    rng = np.random.default_rng([seed, zlib.crc32(style.name.encode()), case])
    pelvis = draw_pelvis(rng, fat_signal=style.fat_signal, endorectal_coil=style.endorectal_coil)
    image, label = scan(pelvis, style, rng)
    brightness = style.brightness * rng.uniform(0.85, 1.15)
    stored = np.rint(image.numpy()[0] * brightness).clip(0, 32767).astype(np.int16)
    affine = image.affine.numpy()
    mask = label.numpy()[0].astype(np.uint8)
    return make_volume(stored, affine), make_volume(mask, affine)


def write_phantoms(
    folder: Path,
    *,
    sites: Sequence[str] | None = None,
    cases: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write phantom site folders and `splits.json`, all of it or nothing.

    Args:
        folder: to be made; may exist, if empty.
        sites: names from `SITES`; all of them if None.
        cases: cases per site, at least 2 (one to train, one to test).
        seed: the same seed writes the same volumes.
        progress: called with cases done and cases in all.

    Returns:
        `folder`.

    Raises:
        DatasetError: an unknown site, too few cases, a folder that is not
            empty, or a disk that refuses.
    """
    folder = Path(folder)
    names = list(dict.fromkeys(SITES if sites is None else sites))
    unknown = [name for name in names if name not in SITES]
    if unknown or not names:
        raise DatasetError(
            f"there is no phantom site {', '.join(unknown) or '(none given)'}: choose from {', '.join(SITES)}"
        )
    if cases < 2:
        raise DatasetError(f"at least 2 cases per site are needed to train and test, {cases} given")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} is not an empty folder: choose another, or remove what is there")

    splits = {}
    with staged(folder) as partial:
        for done, name in enumerate(names):
            images, labels = make_site(partial, name)
            stems = [f"{name}_case{case:02d}" for case in range(1, cases + 1)]
            for case, stem in enumerate(stems, start=1):
                image, label = draw_case(SITES[name], case, seed=seed)
                nib.save(image, images / f"{stem}.nii.gz")
                nib.save(label, labels / f"{stem}.nii.gz")
                if progress:
                    progress(done * cases + case, len(names) * cases)
            splits[name] = split_by_subject({stem: stem for stem in stems}, seed=seed, key=name)
        write_splits(partial, splits)
    logger.info("wrote %d phantom cases of %d sites", cases * len(names), len(names))
    return folder
