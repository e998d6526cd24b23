"""A report is one file, holds the figures it was given, and says what they mean."""

from __future__ import annotations

import math
import re

import pytest

from iopfl.core.answers import Answer
from iopfl.core.evaluation import CaseScore, Evaluation
from iopfl.core.predictor import Predictor
from scripts.findings import Example, Report, SiteSummary, compare, summarize
from scripts.report import render_report, write_report

NAMES = ("global", "north", "south")


def make_evaluation(site: str, kind: str, dice: list[float], unit: str = "mm") -> Evaluation:
    weights = dict.fromkeys(NAMES, 1 / 3) if kind == "routed" else {}
    cases = [
        CaseScore(
            f"case{index}", {"disc": value, "cup": value}, {"disc": 4.25, "cup": math.nan}, {"disc": 1.5, "cup": 1.5},
            unit,
            Answer("fundus", "1-abc", kind, 0.5, weights, quality=0.77, share=float(index > 0), zooms=(1.0, 1.5)),
        )
        for index, value in enumerate(dice)
    ]  # fmt: skip
    return Evaluation(site, kind, tuple(cases))


def make_report(bank, routed: list[float], **changed) -> Report:
    outside = [
        make_evaluation("west", "global", [0.701, 0.702, 0.703, 0.704, 0.7025]),
        make_evaluation("west", "average", [0.7] * 5),
        make_evaluation("west", "routed", routed),
    ]
    inside = [make_evaluation("north", kind, [0.81, 0.82]) for kind in ("global", "local", "personalized")]
    sites = [SiteSummary("north", True, 10, 2, "scanner A"), SiteSummary("west", False, 0, 4)]
    values = {"title": "Benchmark", "task": bank.task, "created": "today", "sites": sites, "bank": bank.manifest}
    return Report(**{**values, "inside": inside, "outside": outside, "settings": {"Seed": "7"}} | changed)


@pytest.fixture(scope="module")
def example(banks, site_folder):
    predictor = Predictor(banks["fundus"])
    found = {kind: predictor.segment(site_folder / "eye1.png", kind) for kind in ("global", "routed")}
    return Example("west", "eye1", found, reference=found["global"].mask, dice={"routed": 0.7654})


def test_a_report_is_one_file_that_fetches_nothing(banks, example, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, make_report(banks["fundus"], [0.8, 0.8, 0.8, 0.8, 0.81], examples=[example]))
    page = path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]{30})', page)
    assert len(sources) == 6  # two charts, the image, two models, the reference
    assert all(source.startswith("data:image/") for source in sources)
    assert "not for clinical use" in page


def test_a_report_holds_the_figures(banks, example):
    page = render_report(make_report(banks["fundus"], [0.8, 0.8, 0.8, 0.8, 0.81], examples=[example]))
    for figure in ("0.802", "0.815", "4.250", "1.500", "0.50", "0.77", "33.3 %", "Dice 0.765", "scanner A"):
        assert figure in page, figure
    for word in ("average of the bank", "local training", "routed", "HD95, mm", "ASSD, mm", "Seed", "west"):
        assert word in page


@pytest.mark.parametrize(
    ("routed", "sentence"),
    [
        ([0.8, 0.81, 0.8, 0.82, 0.81], "Routing helped: 10.6 Dice points better than the global model"),
        ([0.6, 0.61, 0.6, 0.62, 0.61], "Routing did not help: 9.4 Dice points worse than the global model"),
        (
            [0.702, 0.701, 0.704, 0.703, 0.7025],
            "Routing did not clearly help: +0.0 Dice points against the global model",
        ),
        ([0.9, 0.9], "2 image(s) are too few to judge routing"),
        ([0.9, 0.5, 0.9, 0.55, 0.7], "Routing did not clearly help"),
    ],
)
def test_the_summary_says_whether_routing_helped(banks, routed, sentence):
    report = make_report(banks["fundus"], routed)
    assert any(sentence in line for line in summarize(report))
    assert sentence in render_report(report)
    assert len(routed) == 2 or any("own statistics for 4 of 5 images" in line for line in summarize(report))


def test_comparison_pairs_images_and_leaves_out_undefined_ones():
    one = make_evaluation("west", "routed", [0.8, math.nan, 0.7])
    other = make_evaluation("west", "global", [0.7, 0.9, 0.7])
    found = compare(one, other)
    assert (found.images, found.better, found.worse) == (2, 1, 0)
    assert found.difference == pytest.approx(0.05)
    nothing = compare(make_evaluation("west", "routed", [math.nan]), other)
    assert nothing.images == 0
    assert nothing.verdict == "no clear difference"


def test_names_cannot_become_markup(banks):
    wicked = "<script>alert(1)</script>\"'&"
    report = make_report(
        banks["fundus"], [0.8] * 4, title=wicked, sites=[SiteSummary(wicked, True, 1, 1, wicked)],
        outside=[make_evaluation(wicked, kind, [0.7, 0.8]) for kind in ("global", "routed")],
        settings={wicked: wicked}, notes=[wicked],
    )  # fmt: skip
    page = render_report(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_report_without_figures_says_so(banks):
    assert summarize(make_report(banks["fundus"], [0.8], inside=(), outside=())) == ["There are no figures to compare."]
