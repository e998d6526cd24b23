"""What an answer is said to take of the memory is not below what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app.site import make_site_bank
from iopfl.core import memory
from iopfl.core.task import read_task

SHAPE = (192, 192, 120)
AFFINE = np.diag([0.8, 0.8, 1.0, 1.0])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["global", "routed"])
@pytest.mark.parametrize("base", ["prostate", "hippocampus"])
def test_a_process_that_segments_stays_within_the_estimate(base, kind, tmp_path):
    labels = {f"organ_{number}": number for number in range(1, 6)}
    task = replace(read_task(base), labels=labels, codes={}, regions={})
    task = replace(task, size=(192, 192)) if task.spatial_dims == 2 else task
    bank = make_site_bank(tmp_path / "bank", task)
    voxels = np.random.default_rng(0).normal(40, 30, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "abdomen.nii.gz")
    words = [sys.executable, "-m", "iopfl.cli", "segment", tmp_path / "abdomen.nii.gz", "--bank", bank.folder]
    words += ["--keys", tmp_path / "keys", "-o", tmp_path / "masks", "--model", kind]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, process.stderr.read()
    process.stderr.close()
    estimate = memory.estimate(SHAPE, memory.find_grid(SHAPE, AFFINE, task), task)
    assert usage.ru_maxrss * 1024 <= estimate <= 3 * usage.ru_maxrss * 1024
