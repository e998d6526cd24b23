"""`iopfl dicom listen`, `rules` and the answers: what is wrong is said in one line before anything listens."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.site import GLAND, SPOT, make_site_bank
from dicomio.phantoms import build_photograph, write
from dimse.nodes import make_slices
from iopfl.base.errors import CancelledError
from iopfl.cli import main
from iopfl.cli.listen import build_answer
from iopfl.core.task import Adaptation
from iopfl.dicomio.segmentation import build_segmentation, read_segmentation
from iopfl.dicomio.series import read_series, write_nifti
from iopfl.lib.models import SiteModels
from iopfl.lib.settings import AppSettings

RULES = """
rules:
  - {name: glands, match: {modality: MR, min_slices: 3}, answer: gland_routed, send_to: pacs}
destinations:
  pacs: {ae_title: PACS, host: 127.0.0.1, port: 104}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with two banks, their keys and a rule file."""
    folder = tmp_path_factory.mktemp("banks")
    make_site_bank(folder / "gland", replace(GLAND, modality="MR"))
    eye = replace(SPOT, name="eye", modality="OP", channels=3, adaptation=Adaptation(fast=True))
    make_site_bank(folder / "eye", eye)
    (folder / "rules.yaml").write_text(RULES)
    return folder


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """A command sets it up for its own process."""
    root, ours = logging.getLogger(), logging.getLogger("iopfl")
    before = list(root.handlers), root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def run(capsys, *words: object) -> tuple[int, str, str]:
    try:
        status = main(["dicom", *map(str, words)])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--host", "0.0.0.0"], "say who may call with --allow"),
        (["--host", "no.such.host.invalid", "--allow", "*"], "cannot listen on no.such.host.invalid"),
        (["--allow", "A_TITLE_THAT_IS_TOO_LONG"], "expected an AE title"),
        (["-aet", ""], "expected an AE title"),
        (["--rules", "none.yaml"], "rules none.yaml: No such file"),
        (["--bank", "nowhere"], "nowhere"),
        (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "TLS needs --tls-ca"),
        (["--tls-ca", "no.pem"], "there is no no.pem"),
        (["--quiet-seconds", "0"], "expected a positive quiet period"),
        (["--max-associations", "0"], "at least one association"),
        (["--port", "70000"], "70000"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said_in_a_line(place, tmp_path, capsys, words, text):
    whole = ["--rules", place / "rules.yaml", "--bank", place / "gland", "--keys", place / "keys"]
    status, out, err = run(capsys, "listen", *whole, "--state", tmp_path, *words)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1 and text in err


def test_a_rule_that_no_bank_answers_is_refused(place, tmp_path, capsys):
    words = ["--rules", place / "rules.yaml", "--bank", place / "eye", "--keys", place / "keys", "--state", tmp_path]
    status, _, err = run(capsys, "listen", *words)
    assert status == 2
    assert "rule glands: no answer 'gland_routed': the banks given answer eye, eye_routed" in err


def test_rules_are_checked_and_say_what_a_series_would_take(place, tmp_path, capsys):
    status, out, _ = run(capsys, "rules", "check", place / "rules.yaml")
    assert (status, out) == (0, "glands, modality MR, min_slices 3: gland_routed, seg to pacs\n")
    write(make_slices(3), tmp_path / "whole")
    status, out, _ = run(capsys, "rules", "check", place / "rules.yaml", tmp_path / "whole")
    assert (status, out) == (0, "glands: segmented by gland_routed, seg sent to pacs\n")
    bare = tmp_path / "bare.yaml"
    bare.write_text(RULES.replace("modality: MR, ", ""))
    scan = make_slices(3)
    for ds in scan:
        ds.Modality = "CT"
    write(scan, tmp_path / "ct")
    status, out, _ = run(capsys, "rules", "check", bare, tmp_path / "ct", "--bank", place / "gland")
    assert status == 1 and "not glands: modality CT is not 'MR' (asked by task gland" in out
    status, _, err = run(capsys, "rules", "check", place / "rules.yaml", "--bank", place / "eye")
    assert status == 2 and "rule glands: no answer 'gland_routed': the banks given answer eye, eye_routed" in err
    write(make_slices(2), tmp_path / "short")
    status, out, _ = run(capsys, "rules", "check", place / "rules.yaml", tmp_path / "short")
    assert status == 1 and "not glands: 2 slices, at least 3 expected" in out and "no rule matches" in out
    localizers = make_slices(3)
    for ds in localizers:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(localizers, tmp_path / "localizers")
    status, out, _ = run(capsys, "rules", "check", place / "rules.yaml", tmp_path / "localizers")
    assert status == 1 and out.startswith("not segmented, whatever the rules: it is a localizer")


@pytest.mark.parametrize("kind", ["", "_routed"])
def test_a_color_photograph_is_segmented_and_its_segmentation_read_back(place, tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 255, size=(40, 36, 3), dtype=np.uint8)
    series = read_series(write([build_photograph(pixels)], tmp_path / "photograph"))
    write_nifti(series, tmp_path / "image.nii")
    conf = {"bank": f"{place / 'gland'},{place / 'eye'}", "keys": str(place / "keys")}
    answer = build_answer(SiteModels(AppSettings.from_conf(conf, default_state=tmp_path)))
    answered = answer(f"eye{kind}", tmp_path / "image.nii", lambda: False, False)
    assert answered.mask.shape == series.shape and set(np.unique(answered.mask)) <= {0, 255}
    assert answered.origin.algorithm == "iopfl eye" and "bank 1-" in answered.origin.version
    ds = build_segmentation(answered.mask, series, answered.segments, answered.origin)
    assert (read_segmentation(ds, series, {"spot": 255}).mask == answered.mask).all()


def test_a_model_ends_when_the_service_does(place, tmp_path):
    series = read_series(write(make_slices(4, size=32), tmp_path / "series"))
    write_nifti(series, tmp_path / "image.nii")
    conf = {"bank": str(place / "gland"), "keys": str(place / "keys")}
    answer = build_answer(SiteModels(AppSettings.from_conf(conf, default_state=tmp_path)))
    with pytest.raises(CancelledError):
        answer("gland_routed", tmp_path / "image.nii", lambda: True, False)
