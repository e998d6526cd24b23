"""Four simulated scanners out of one site's volumes, to see what a method does in 3D when intensities shift.

    python benchmarks/scanners.py ../shared/data/hippocampus results/scanners

Deals the labeled volumes out to four site folders, each with a scanner of its own: contrast, bias field, blur, noise.
Anatomy and labels stay as they are. The same volumes give the same folders.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.transforms import AdjustContrast, Compose, GaussianSmooth, RandBiasField, RandRicianNoise, ScaleIntensity
from tqdm import tqdm

from iopfl.core.sites import LABEL_FOLDER, find_cases, labeled
from iopfl.images.files import read_voxels

SCANNERS = {
    "plain": [],
    "dark": [AdjustContrast(gamma=2.0), RandRicianNoise(prob=1.0, std=0.03, sample_std=False)],
    "shaded": [AdjustContrast(gamma=0.6), RandBiasField(prob=1.0, degree=2, coeff_range=(0.3, 0.5))],
    "blurred": [GaussianSmooth(sigma=1.0), RandRicianNoise(prob=1.0, std=0.06, sample_std=False)],
}


def deal_out(source: Path, target: Path) -> None:
    """Write the four site folders that are not there yet."""
    cases = labeled(find_cases(source))
    for position, (name, steps) in enumerate(SCANNERS.items()):
        if (target / name).is_dir():
            continue
        folder = target / f".{name}"
        (folder / LABEL_FOLDER).mkdir(parents=True, exist_ok=True)
        scan = Compose([ScaleIntensity(minv=0.0, maxv=1.0), *steps]).set_random_state(seed=position)
        for case in tqdm(cases[position :: len(SCANNERS)], desc=name, unit="volume", disable=None):
            image = read_voxels(case.image)
            values = np.asarray(scan(image.numpy()))[0]
            nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine.numpy()), folder / case.image.name)
            shutil.copyfile(case.label, folder / LABEL_FOLDER / case.label.name)
        folder.rename(target / name)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a site folder of labeled volumes")
    parser.add_argument("target", type=Path, help="folder for the four site folders")
    arguments = parser.parse_args()
    deal_out(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
