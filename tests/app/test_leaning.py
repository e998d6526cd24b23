"""A volume of a folder whose slices shift sideways: a viewer has image, answers and labels in one place."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from iopfl.images.places import find_stack

from .site import oblique_affine

SHAPE = (28, 36, 5)


@pytest.fixture
def leaning(restarted, home, tmp_path):
    """Upload one; gives its file."""
    affine = oblique_affine()
    affine[:3, 2] += 2 * affine[:3, 0]  # two voxels from slice to slice
    volume = nib.Nifti1Image(np.random.default_rng(0).integers(9, 99, SHAPE).astype(np.int16), affine)
    volume.header["qform_code"] = 0
    nib.save(volume, tmp_path / "leaning.nii.gz")
    files = {"file": ("leaning.nii.gz", (tmp_path / "leaning.nii.gz").read_bytes())}
    restarted.request("PUT", "/datastore/image?image=leaning", files=files).raise_for_status()
    yield tmp_path / "leaning.nii.gz"
    restarted.request("DELETE", "/datastore/image?id=leaning").raise_for_status()


def fetch(server, path, file, method="GET", **options):
    answer = server.request(method, path, **options)
    answer.raise_for_status()
    file.write_bytes(answer.content)
    return sitk.ReadImage(str(file))


def same_grid(one: sitk.Image, other: sitk.Image) -> bool:
    places = [np.concatenate([image.GetOrigin(), image.GetSpacing(), image.GetDirection()]) for image in (one, other)]
    return one.GetSize() == other.GetSize() and np.allclose(*places, atol=1e-4)


def test_image_answers_and_labels_open_in_itk_and_nibabel_at_one_place(restarted, home, leaning, tmp_path):
    stack = find_stack(leaning)
    shown = fetch(restarted, "/datastore/image?image=leaning", tmp_path / "sent.nii.gz")
    sent = nib.load(tmp_path / "sent.nii.gz")
    assert np.array_equal(stack.take(np.asarray(sent.dataobj)), np.asarray(nib.load(leaning).dataobj))
    assert np.allclose(sent.get_qform(), sent.get_sform(), atol=1e-4)
    for form in (".nii.gz", ".seg.nrrd"):
        options = {"data": {"params": f'{{"result_extension": "{form}"}}'}}
        mask = fetch(restarted, "/infer/gland?image=leaning&output=image", tmp_path / f"m{form}", "POST", **options)
        assert same_grid(mask, shown)
    for form, name in (("percent", "p.nrrd"), ("regions", "r.seg.nrrd")):
        path = f"/iopfl/disagreement?task=gland&image=leaning&form={form}"
        assert same_grid(fetch(restarted, path, tmp_path / name), shown)

    drawn = 2 * np.random.default_rng(1).integers(0, 2, SHAPE).astype(np.uint8)
    own, laid = nib.load(leaning).affine, stack.lay(drawn)
    laid[tuple(np.argwhere(stack.lay(np.ones(SHAPE)) == 0)[:3].T)] = 2
    kept = home / "site_a" / "labels" / "final"
    for form in (".nii.gz", ".nrrd"):
        label = sitk.GetImageFromArray(np.ascontiguousarray(laid.T))
        label.CopyInformation(shown)  # Slicer's
        sitk.WriteImage(label, str(tmp_path / f"drawn{form}"))
        files = {"label": (f"drawn{form}", (tmp_path / f"drawn{form}").read_bytes())}
        said = restarted.request("PUT", "/datastore/label?image=leaning", files=files)
        assert said.ok and said.json()["left_out"][0].startswith("3 voxels drawn beside"), said.text
        if form == ".nii.gz":
            stored = nib.load(kept / "leaning.nii.gz")
            assert np.array_equal(np.asarray(stored.dataobj), drawn) and np.allclose(stored.affine, own, atol=1e-4)
        again = fetch(restarted, "/datastore/label?label=leaning&tag=final", tmp_path / f"again{form}")
        assert same_grid(again, shown)
        assert np.array_equal(sitk.GetArrayFromImage(again).T, stack.lay(drawn))

    nib.save(nib.Nifti1Image(drawn, own), tmp_path / "own.nii.gz")  # of somebody who has the file itself
    files = {"label": ("own.nii.gz", (tmp_path / "own.nii.gz").read_bytes())}
    said = restarted.request("PUT", "/datastore/label?image=leaning", files=files)
    assert said.ok and "left_out" not in said.json()
    again = fetch(restarted, "/datastore/label?label=leaning&tag=final", tmp_path / "again.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(again).T, stack.lay(drawn)) and same_grid(again, shown)
