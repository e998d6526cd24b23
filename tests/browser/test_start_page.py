"""The start page in a real browser: what it says beside the mask."""

from __future__ import annotations

import json
import re

import pytest

from dicomio.phantoms import series_uid

from .clinic import await_rest

PACS = "iopfl/labels"


def answer_with(page, path, **changes):
    """Let the server's answer at a path come with other values in it."""

    def change(route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=json.dumps({**response.json(), **changes}))

    page.route(f"**/{path}", change)


def test_how_it_stands_with_the_pacs(clinic, page):
    page.goto(clinic.server.url)
    page.wait_for_selector("#pacs:has-text('The PACS answers.')")
    assert not page.is_visible("#pacs details")
    pacs = {"problem": "the PACS at https://pacs.example does not answer a search: is it running?"}
    left_out = [{"image": "1.2.3", "reason": "it is a secondary capture"}]
    waiting = [{"image": "1.2.4", "version": 2}, {"image": "1.2.5", "version": 1}]
    answer_with(page, PACS, pacs=pacs, left_out=left_out, waiting=waiting)
    page.reload()
    page.wait_for_selector("#pacs:has-text('What is listed here is what it had last.')")
    text = page.text_content("#pacs")
    assert "is it running?" in text and "Series 1.2.3: it is a secondary capture" in text
    assert "2 submitted labels not in the PACS yet" in text and "Series 1.2.4, version 2" in text


def test_what_the_pacs_cannot_do_and_what_it_refused(clinic, page):
    aside = {"image": "1.2.4", "version": 2, "is_set_aside": True, "attempts": 30, "reason": "refused with status 405"}
    pacs = {"problem": "", "cannot": ["ignores the filter Modality: what it finds is looked at again here"]}
    answer_with(page, PACS, pacs=pacs, left_out=[], waiting=[aside])
    page.goto(clinic.server.url)
    page.wait_for_selector("#pacs:has-text('The PACS ignores the filter Modality')")
    page.click("#pacs summary:has-text('1 submitted label that the PACS refused')")
    page.wait_for_selector("#pacs li:has-text('Series 1.2.4, version 2: refused with status 405')")
    page.click("#pacs button:has-text('Offer it again')")
    page.wait_for_selector("#problem:has-text('no version 2 of 1.2.4 waits for a PACS')")
    answers = [{"waiting": {**aside, "attempts": 1, "reason": "refused with status 409"}}, {"waiting": None}]
    page.route("**/versions/2/store", lambda route: route.fulfill(json=answers.pop(0)))
    for text in ("Still not: refused with status 409", "The PACS has it now."):
        page.click("#pacs button:has-text('Offer it again')")
        page.wait_for_selector(f"#pacs li:has-text('{text}')")


@pytest.mark.parametrize(("quality", "is_said"), [(0.49, True), (0.5, False)])
def test_experts_that_disagree_are_said_in_words(clinic, page, quality, is_said):
    image = {"task": "nodule", "image": series_uid("case5"), "model": "routed"}
    found = clinic.server.get("/iopfl/answer", params=image).json()
    answer_with(page, "iopfl/answer?*", params={**found["params"], "quality": quality})
    page.goto(f"{clinic.server.url}/?task=nodule&image={image['image']}&model=routed&beside=")
    page.wait_for_selector("#result .big")
    assert page.is_visible("text=The experts disagree on this image") == is_said


def test_images_of_other_tasks_are_gray_and_answered_with_a_warning(clinic, page):
    uids = [image["id"] for image in clinic.server.get("/iopfl/images").json()["images"]]
    gray = sorted(uids)[0]
    images = [
        {"id": u, "is_labeled": False, "not_of": {"nodule": "body part BRAIN"} if u == gray else {}} for u in uids
    ]
    answer_with(page, "iopfl/images", images=images)
    page.goto(f"{clinic.server.url}/?task=nodule&model=global&beside=")
    page.wait_for_selector("#images li")
    assert page.locator("#images li").last.inner_text() == f"{gray}\nnot nodule"
    assert page.locator("#images li button.other").get_attribute("title") == "body part BRAIN"
    assert page.inner_text("#count").endswith("; 1 other, not of this task")
    page.select_option("#task", "eye")
    assert page.locator("#images li button.other").count() == 0


def test_the_page_is_no_wider_than_a_phone(clinic, page):
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{clinic.server.url}/?task=nodule&image={series_uid('case5')}&model=global&beside=")
    page.wait_for_selector("#result .facts")
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_where_the_experts_disagree_is_shown_when_asked_for_and_given_to_take_away(clinic, page, visit):
    image = series_uid("case6")
    page.goto(f"{clinic.server.url}/?task=nodule&image={image}&model=routed&beside=")
    page.wait_for_selector("#result .big")
    page.wait_for_selector("#state:not(.working)", state="attached")
    plain = page.get_attribute("#figures img", "src")
    assert not page.is_visible("#legend") and not any("disagreement" in path for path in visit.sent)
    page.check("#heat")
    page.wait_for_selector(f"#figures img:not([src='{plain}'])")
    page.wait_for_selector("#state:not(.working)", state="attached")
    with page.expect_download() as started:
        page.click("#regions")
    assert started.value.suggested_filename == f"{image}-check-here.seg.nrrd"
    page.uncheck("#heat")
    page.wait_for_selector(f"#figures img[src='{plain}']")
    assert not page.is_visible("#legend") and visit.errors == []


def test_a_long_answer_says_what_it_takes_and_is_stopped(clinic, page):
    image = series_uid("case7")
    page.goto(f"{clinic.server.url}/?task=fine&image={image}&model=global&beside=")
    page.wait_for_selector("#passes:has-text('passes')")
    said = page.inner_text("#passes")
    assert re.fullmatch(r"\d+ of \d{4,} passes \(\d+ %\), \d+ s so far, about \d+ (s|min) in all", said)
    page.click("#stop")
    page.wait_for_selector("#problem:has-text('stopped; nothing of this image was kept')")
    await_rest(clinic.server)
    assert not page.is_visible("#stop")
    page.select_option("#task", "nodule")
    page.wait_for_selector("#result dt:has-text('From file to mask')")
    assert not page.is_visible("#problem")
