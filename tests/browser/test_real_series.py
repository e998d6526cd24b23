"""The whole way on real images: a PACS, OHIF, a trained bank's answer, a submitted SEG, the next training."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from app.site import APP, conf_of, finish
from dicomio.phantoms import build_slices, series_uid, write
from hippocampus import TASK, real_cases, train_bank
from iopfl.dicomio.segmentation import read_segmentation
from iopfl.dicomio.series import read_series
from label_server import params, running_server, wait_until
from orthanc import running_orthanc

from .clinic import await_viewer, draw, fix_split, notes, read_mask, run, send

CROPS = ("crop0", "crop1", "crop2", "crop3")
RAS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
"""Directions of rows and columns as the crops have them, in LPS."""


def write_crop(folder: Path, name: str, image: nib.Nifti1Image) -> None:
    """A real crop as a series."""
    voxels = np.asarray(image.dataobj, dtype=np.float64)
    scaled = (4000 * voxels / voxels.max()).astype(np.int16)
    spacing = [float(size) for size in image.header.get_zooms()]
    slices = build_slices(scaled, series=name, spacing=spacing, directions=RAS)
    for ds in slices:
        ds.PatientName, ds.PatientID = f"Crop^{name}", f"ID-{name}"
    write(slices, folder)


@pytest.fixture(scope="module")
def hospital(shared_data, tmp_path_factory):
    """A PACS with one scanner's series and four labeled crops, and a label server with a bank that has learned."""
    folder = tmp_path_factory.mktemp("hospital")
    scan = shared_data / "dicom" / "mr-hippocampus-crop"
    bank = train_bank(folder / "bank", shared_data)
    assert bank.manifest.entries[0].metrics["dice"] > 0.6
    with running_orthanc(folder / "orthanc") as orthanc:
        send(scan, orthanc)
        cases = real_cases(shared_data)[40 : 40 + len(CROPS)]
        for name, case in zip(CROPS, cases, strict=True):
            write_crop(folder / name, name, nib.load(case.image))
            send(folder / name, orthanc)
        environment = {"TMPDIR": str(folder)}
        conf = conf_of(bank, site="east")
        with running_server(
            APP, orthanc.dicomweb_url, state=fix_split(folder / "state"), conf=conf, env=environment
        ) as server:
            listed = lambda: server.get("/info/").json()["datastore"]["total"] == len(CROPS) + 1  # noqa: E731
            wait_until(listed, 60, what="the PACS's series to be listed")
            for name, case in zip(CROPS, cases, strict=True):
                image = folder / f"{name}.nii.gz"
                image.write_bytes(server.get(f"/datastore/image?image={series_uid(name)}").content)
                label = folder / f"{name}-label.nii.gz"
                label_values = np.asarray(nib.load(case.label).dataobj).astype(np.uint8)
                nib.save(nib.Nifti1Image(label_values, nib.load(image).affine), label)
                with label.open("rb") as content:
                    info = [{"name": key, "idx": value} for key, value in TASK.labels.items()]
                    answer = server.request(
                        "PUT",
                        f"/datastore/label?image={series_uid(name)}",
                        data=params(label_info=info, client_id="a program"),
                        files={"label": (label.name, content)},
                    )
                answer.raise_for_status()
            yield orthanc, server, folder, scan


def test_a_scanners_series_is_segmented_corrected_submitted_read_back_and_trained_on(hospital, page, visit):
    orthanc, server, folder, scan = hospital
    header = dcmread(next(scan.glob("*.dcm")), stop_before_pixels=True)
    uid, study = str(header.SeriesInstanceUID), str(header.StudyInstanceUID)
    series = read_series(scan)
    page.goto(f"{server.url}/ohif/monai-label?StudyInstanceUIDs={study}")
    await_viewer(page)
    for model in ("hippocampus", "hippocampus_routed"):
        run(page, model)
        mask = read_mask(page)
        voxel = abs(np.linalg.det(series.affine[:3, :3])) / 1000  # mL
        for name, value in TASK.labels.items():
            assert 0.3 < voxel * (mask == value).sum() < 6, f"{model}: a hippocampus' {name} part has 1 to 3 mL"
    for expert in ("global", "east", "west"):
        page.wait_for_selector(f"iopfl-card:has-text('{expert}')")
    draw(page)
    drawn = read_mask(page)
    page.click("button:has-text('Submit label')")
    page.wait_for_selector("button:has-text('Submitted')")
    assert "Saved as version 1" in notes(page)

    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}}
    [stored] = orthanc.request("POST", "/tools/find", json=query).json()
    (folder / "seg.dcm").write_bytes(orthanc.request("GET", f"/instances/{stored}/file").content)
    segmentation = dcmread(folder / "seg.dcm")
    assert (read_segmentation(segmentation, series, TASK.labels).mask == drawn).all()
    assert segmentation.PatientID == header.PatientID
    assert "not for clinical use" in segmentation.SeriesDescription

    server.post("/train/hippocampus", json={"epochs": 1}).raise_for_status()
    assert finish(server)["status"] == "DONE"
    used = json.loads((folder / "state" / "local" / "hippocampus.labels.json").read_text())
    assert uid in {label["image"] for label in used["labels"]}  # some of the others are set aside, to test on
    assert not visit.errors
