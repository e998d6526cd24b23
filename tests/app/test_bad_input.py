"""What a label server answers to what it cannot use: plain words, and nothing lost."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from .site import oblique_affine

IMAGE = "case00"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", f"/infer/liver?image={IMAGE}", 404, "no model 'liver'"),
        ("POST", "/infer/gland?image=case77", 404, "no image 'case77'"),
        ("POST", "/infer/gland?image=../site_a/case00", 400, "plain name"),
        ("POST", "/infer/gland?image=/etc/passwd", 400, "plain name"),
        ("POST", "/infer/gland?image=broken", 400, "broken.nii.gz"),
        ("POST", "/infer/gland_routed?image=broken", 400, "broken.nii.gz"),
        ("POST", "/infer/gland", 400, "nothing to infer on"),
        ("POST", "/train/liver", 404, "no trainer 'liver'"),
        ("POST", "/activelearning/best", 404, "no strategy 'best'"),
        ("POST", "/scoring/best", 404, "no scoring method 'best'"),
        ("GET", f"/iopfl/answer?task=liver&image={IMAGE}", 404, "no task 'liver'"),
        ("GET", "/iopfl/answer?task=gland&image=broken", 422, "broken.nii.gz"),
        ("GET", f"/iopfl/answer?task=gland&image={IMAGE}&model=best", 400, "no model 'best'"),
    ],
)
def test_a_request_for_what_is_not_there_is_refused_by_name(restarted, method, path, status, words):
    refused = restarted.request(method, path)
    assert (refused.status_code, words in refused.json()["detail"]) == (status, True), refused.text
    assert "Traceback" not in refused.text


def test_parameters_that_are_too_deep_are_refused_plainly(restarted, home):
    label = {"label": (f"{IMAGE}.nii.gz", (home / "site_a" / f"{IMAGE}.nii.gz").read_bytes())}
    refused = restarted.request("PUT", f"/datastore/label?image={IMAGE}", files=label, data={"params": "[" * 100_000})
    assert (refused.status_code, "must be JSON" in refused.json()["detail"]) == (400, True), refused.text


def test_what_is_refused_is_logged_without_a_name_that_may_be_a_patients(restarted):
    for method, path in (("POST", "/iopfl/labels/Mueller_Hans/undo"), ("GET", "/iopfl/labels/Mueller_Hans")):
        assert "Mueller_Hans" in restarted.request(method, path).text
    log = restarted.log_path.read_text()
    assert "POST /iopfl/labels/{image}/undo: 404" in log
    assert "Mueller" not in log


@pytest.mark.parametrize("name", ["slide.svs", "slide.tif"])
def test_a_slide_of_pathology_is_refused_as_any_other_image_that_cannot_be_read(restarted, name):
    """It was an ImportError, as OpenSlide is not installed, with a bare 500."""
    refused = restarted.post("/infer/wsi_v2/gland", files={"file": (name, b"II*\0 no slide")})
    assert refused.status_code in (400, 422), refused.text
    assert "upload" in refused.json()["detail"]


def test_a_session_of_several_files_is_not_sent_as_one(restarted, home):
    content = (home / "site_a" / f"{IMAGE}.nii.gz").read_bytes()
    files = [("files", (f"{number}.nii.gz", content)) for number in range(2)]
    made = restarted.request("PUT", "/session/", files=files).json()["session_id"]
    refused = restarted.get(f"/session/{made}?image=true")
    assert (refused.status_code, "several files" in refused.json()["detail"]) == (400, True)
    for method, path in (
        ("POST", f"/infer/gland?session_id={made}"),
        ("POST", f"/infer/wsi_v2/gland?session_id={made}"),
    ):
        refused = restarted.request(method, path)
        assert refused.status_code in (400, 422), refused.text
        assert refused.json()["detail"]
    assert restarted.get(f"/session/{made}").ok
    assert restarted.request("DELETE", f"/session/{made}").ok


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("shape", np.full((28, 36, 4), 2), "expected the image's grid"),
        ("value", np.full((28, 36, 5), 7), "the label holds [7"),
        ("place", None, "lies elsewhere in the patient"),
        ("garbage", b"no label at all", "cannot be read"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_and_the_one_before_is_kept(
    restarted, home, tmp_path, name, values, words
):
    stored = home / "site_a" / "labels" / "final" / f"{IMAGE}.nii.gz"
    before = stored.read_bytes()
    submitted = tmp_path / f"{name}.nii.gz"
    if isinstance(values, bytes):
        submitted.write_bytes(values)
    else:
        affine = oblique_affine() if values is not None else np.eye(4)
        values = np.full((28, 36, 5), 2) if values is None else values
        nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), submitted)
    with submitted.open("rb") as file:
        refused = restarted.request("PUT", f"/datastore/label?image={IMAGE}&tag=final", files={"label": file})
    assert refused.status_code == 400, refused.text
    assert words in refused.json()["detail"]
    assert stored.read_bytes() == before
