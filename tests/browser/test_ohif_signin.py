"""OHIF with authentication on: who is at work, and a session that ends while somebody draws."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from app.site import APP
from dicomio.phantoms import series_uid
from iopfl.access.users import Users
from label_server import LabelServer, running_server

from .clinic import READY, Clinic, await_viewer, draw, notes, read_mask
from .conftest import SIZE, make_banks

PASSWORD = "four words nobody guesses"


@pytest.fixture(scope="module")
def guarded(clinic, tmp_path_factory) -> Iterator[LabelServer]:
    """A second label server on the same PACS, where people have to sign in."""
    folder = tmp_path_factory.mktemp("guarded")
    Users(folder / "state").add("anna", "annotator", PASSWORD)
    conf = make_banks(folder)
    args = ["--auth", "local"]
    with running_server(APP, clinic.orthanc.dicomweb_url, state=folder / "state", conf=conf, args=args) as server:
        yield server


def sign_in(page) -> None:
    page.fill("#username", "anna")
    page.fill("#password", PASSWORD)
    page.click("button:has-text('Sign in')")


def test_a_session_that_ends_costs_nobody_a_mask(clinic, guarded, browser):
    context = browser.new_context(viewport=SIZE)
    context.set_default_timeout(READY)
    context.add_init_script("if (location.host) sessionStorage.setItem('investigationalUseDialog', 'hidden')")
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    address = Clinic(clinic.orthanc, guarded, clinic.folder).address("case6")

    page.goto(address)
    assert urlsplit(page.url).path == "/iopfl/signin"
    sign_in(page)
    await_viewer(page)
    assert page.url == address, "where it was going"
    assert page.is_visible("text=Signed in as anna") and not page.is_visible("#iopfl-annotator")

    page.click("text=Active Learning")
    page.click("button:has-text('Update Model')")
    page.wait_for_selector("iopfl-card .problem:has-text('Only an administrator of this server may start')")

    draw(page)
    drawn = read_mask(page)
    context.clear_cookies()
    page.click("button:has-text('Submit label')")
    page.wait_for_selector("text=Your session has ended. What you drew is still here")
    assert (read_mask(page) == drawn).all()
    with page.expect_popup() as opened:
        page.click("iopfl-card a:has-text('sign in in a new tab')")
    sign_in(opened.value)
    opened.value.wait_for_url(lambda url: urlsplit(url).path != "/iopfl/signin")
    opened.value.close()
    page.evaluate("window.dispatchEvent(new Event('focus'))")  # a headless browser has no focus to give back
    page.wait_for_selector("text=Your session has ended", state="hidden")
    page.click("button:has-text('Submit label')")
    page.wait_for_selector("button:has-text('Submitted')")
    assert "Saved as version" in notes(page)
    history = page.request.get(f"{guarded.url}/iopfl/labels/{series_uid('case6')}").json()
    assert [one["annotator"] for one in history["versions"] if one["is_current"]] == ["anna"]

    page.click("text=Sign out")
    page.wait_for_url(lambda url: urlsplit(url).path == "/iopfl/signin")
    context.close()
