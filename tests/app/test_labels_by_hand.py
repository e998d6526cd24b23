"""A label that somebody put into `labels/final` reaches viewers, which go by values, with its task's values."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from monailabel.client import MONAILabelClient

from images.test_label_tables import table
from iopfl.core.segment_writer import write_segmentation

from .site import GLAND, oblique_affine

IMAGE = "case07"
SHAPE = (28, 36, 5)
GLAND_OF_ONE = replace(GLAND, labels={"gland": 1})


def write_named(path, drawn):
    """With the value 1, and the name of what is 2 in the task."""
    mask = drawn.astype(np.uint8)
    if path.name.endswith(".seg.nrrd"):
        write_segmentation(path, mask, oblique_affine(), GLAND_OF_ONE)
        return
    volume = nib.Nifti2Image(mask, oblique_affine())
    volume.header.extensions.append(nib.nifti1.Nifti1Extension(0, table((1, "gland")).encode()))
    nib.save(volume, path)


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_client_version_and_archive_have_the_tasks_values(restarted, home, tmp_path, ending):
    drawn = np.zeros(SHAPE, bool)
    drawn[5:9, 10:20, 1:4] = True
    by_hand = home / "site_a" / "labels" / "final" / f"{IMAGE}{ending}"
    write_named(by_hand, drawn)
    kept = by_hand.read_bytes()
    try:
        client = MONAILabelClient(restarted.url, str(tmp_path), "viewer")
        got = tmp_path / f"got{ending}"
        got.write_bytes(Path(client.download_label(IMAGE, "final")).read_bytes())
        number = restarted.get(f"/iopfl/labels/{IMAGE}").json()["versions"][-1]["version"]
        version = tmp_path / f"version{ending}"
        version.write_bytes(restarted.get(f"/iopfl/labels/{IMAGE}/versions/{number}").content)
        with zipfile.ZipFile(io.BytesIO(restarted.get("/datastore/dataset").content)) as archive:
            name = next(name for name in archive.namelist() if name.startswith(f"label/{IMAGE}."))
            (tmp_path / f"archived{ending}").write_bytes(archive.read(name))
        for file in (got, version, tmp_path / f"archived{ending}"):
            values = nrrd.read(str(file))[0] if "nrrd" in ending else np.asarray(nib.load(file).dataobj)
            assert np.array_equal(values, 2 * drawn), file.name
        assert [file.read_bytes() for file in by_hand.parent.glob(f"{IMAGE}.*")] == [kept], "it stays as it is"
    finally:
        restarted.request("DELETE", f"/datastore/label?id={IMAGE}&tag=final").raise_for_status()
