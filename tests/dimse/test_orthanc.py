"""A real PACS sends series to `iopfl dicom listen`, and gets segmentations back, by C-STORE and by STOW-RS."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from app.site import GLAND, make_site_bank
from dicomio.phantoms import OBLIQUE, build_slices, volume, write
from dimse.nodes import HERE, eventually
from iopfl.access.audit import AuditLog
from iopfl.base.errors import PACSAwayError, PACSError
from iopfl.cli import main
from iopfl.core.predictor import Predictor
from iopfl.dicomio.segmentation import read_segmentation
from iopfl.dicomio.series import read_series, write_nifti
from iopfl.dimse.outbox import send
from iopfl.dimse.rules import Stow
from label_server import start_process, stop_process, wait_until
from orthanc import Orthanc, free_port, running_orthanc

AE_TITLE = "IOPFL"
SECONDS = 60.0
TASK = replace(GLAND, modality="MR")
RULES = """
rules:
  - {{name: dimse, match: {{modality: MR, description: "*Hippo*"}}, answer: gland_routed, send_to: pacs,
      results: [seg, report, captures, structures, disagreement]}}
  - {{name: web, match: {{modality: MR, calling: ORTHANC, min_slices: 3}}, answer: gland, send_to: [web]}}
destinations:
  pacs: {{ae_title: ORTHANC, host: 127.0.0.1, port: {dicom_port}}}
  web: {{stow: "{url}", user: iopfl, password_env: IOPFL_TEST_PASSWORD}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("clinic")


@pytest.fixture(scope="module")
def bank(place):
    return make_site_bank(place / "bank", TASK)


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def pacs(place, port):
    with running_orthanc(place / "pacs", users={"iopfl": "secret"}, modalities={AE_TITLE: port}) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def listener(place, bank, pacs, port):
    """The log of the service, in a process of its own."""
    (place / "rules.yaml").write_text(RULES.format(dicom_port=pacs.dicom_port, url=pacs.dicomweb_url))
    words = ["listen", "--rules", place / "rules.yaml", "--bank", bank.folder, "--keys", place / "keys"]
    words += ["--state", place / "state", "--port", port, "--quiet-seconds", 0.5, "--allow", "ORTHANC"]
    log = place / "listen.log"
    command = [sys.executable, "-m", "iopfl.cli", "dicom", *map(str, words)]
    process = start_process(command, log, env={"IOPFL_TEST_PASSWORD": "secret"})
    try:
        wait_until(lambda: f"listens on {HERE}:{port}" in log.read_text(), SECONDS, what=f"the listener: {log}")
        yield log
    finally:
        assert stop_process(process) == 0, log.read_text()


def find_instance(pacs: Orthanc, sop_instance_uid: str):
    found = pacs.request(
        "POST", "/tools/find", json={"Level": "Instance", "Query": {"SOPInstanceUID": sop_instance_uid}}
    ).json()
    return dcmread(BytesIO(pacs.request("GET", f"/instances/{found[0]}/file").content)) if found else None


def segment_here(bank, folder: Path, kind: str | None, target: Path):
    """A series, and the mask that the same bank makes of it in this process."""
    series = read_series(folder)
    write_nifti(series, target)
    return series, Predictor(bank).segment(target, kind).mask.numpy()


@pytest.mark.parametrize(
    ("source", "kind", "rule"), [("mr-hippocampus-crop", "routed", "dimse"), ("synthetic", None, "web")]
)
def test_a_pacs_sends_a_series_and_gets_its_segmentation(
    tmp_path, request, place, bank, pacs, listener, source, kind, rule, capsys
):
    if source == "synthetic":
        folder = write(build_slices(volume((20, 18, 5), low=0), directions=OBLIQUE), tmp_path / "series")
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"{number}.dcm")
    else:
        folder = request.getfixturevalue("shared_data") / "dicom" / source
    before = set(pacs.request("GET", "/series").json())
    pacs.upload(folder)
    (series_id,) = set(pacs.request("GET", "/series").json()) - before
    pacs.request("POST", f"/modalities/{AE_TITLE}/store", data=series_id)

    def job():
        main(["dicom", "queue", "--state", str(place / "state"), "--json"])
        jobs = [job for job in json.loads(capsys.readouterr().out) if job["rule"] == rule]
        return jobs[0] if jobs and jobs[0]["state"] != "sending" else None

    done = wait_until(job, SECONDS, what=f"the segmentation: {listener}")
    assert (done["reason"], done["rule"], done["calling_ae_title"]) == ("", rule, "ORTHANC")
    ds = eventually(lambda: find_instance(pacs, done["segmentation"]), "the segmentation in the PACS", SECONDS)
    series, mask = segment_here(bank, folder, kind, tmp_path / "series.nii")
    assert done["instances"] == len(series.datasets)
    assert mask.any() and (read_segmentation(ds, series, TASK.labels).mask == mask).all()
    beside = {"SR", "OT", "RTSTRUCT"} if rule == "dimse" else set()
    query = {"Level": "Series", "Query": {"StudyInstanceUID": series.study_instance_uid}, "Expand": True}
    found = pacs.request("POST", "/tools/find", json=query).json()
    assert {one["MainDicomTags"]["Modality"] for one in found} == {series.modality, "SEG", *beside}
    if beside:
        said = [one["MainDicomTags"]["SeriesDescription"] for one in found]
        assert any(text.startswith("check here, ") for text in said)
    algorithm = ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "iopfl gland" and bank.label in algorithm.AlgorithmVersion
    assert "not for clinical use" in ds.SeriesDescription
    text = listener.read_text()
    assert "Traceback" not in text and str(series.datasets[0].PatientName) not in text
    assert re.search(rf"series {series.series_instance_uid} segmented by {done['answer']}", text)
    lines = [
        line for line in AuditLog(place / "state" / "audit").entries() if done["segmentation"] in line.about.values()
    ]
    assert [(line.who, line.what) for line in lines] == [("ae:ORTHANC", "dicom segment"), ("ae:ORTHANC", "dicom send")]
    assert "secret" not in text and not os.environ.get("IOPFL_TEST_PASSWORD")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"password_env": "IOPFL_TEST_WRONG"}, PACSError, "refused storing with status 401"),
        ({"user": "", "password_env": ""}, PACSError, "status 401"),
        ({"url": "http://127.0.0.1:1/dicom-web"}, PACSAwayError, "does not answer storing"),
    ],
)
def test_a_web_that_does_not_take_it_is_named(tmp_path, monkeypatch, pacs, changes, error, words):
    monkeypatch.setenv("IOPFL_TEST_SECRET", "secret")
    monkeypatch.setenv("IOPFL_TEST_WRONG", "wrong")
    (ds,) = build_slices(volume((8, 8, 1)), series="stow")
    ds.save_as(tmp_path / "instance.dcm", enforce_file_format=True)
    right = Stow(pacs.dicomweb_url, "iopfl", "IOPFL_TEST_SECRET")
    with pytest.raises(error, match=words):
        send([tmp_path / "instance.dcm"], replace(right, **changes), ae_title=AE_TITLE)
    for _ in range(2):  # once more is once
        send([tmp_path / "instance.dcm"], right, ae_title=AE_TITLE)
    assert find_instance(pacs, ds.SOPInstanceUID) == ds
