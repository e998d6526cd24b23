"""A person signs in with the hospital's account, in a real browser, at a service on another site."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.site import APP, SPOT, conf_of, make_site_bank, write_picture
from iopfl.access.audit import AuditLog
from label_server import running_server
from oidc_provider import CLIENT, PASSWORD, SECRET, running_provider

CHROMIUM = Path("/usr/bin/chromium")


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium: apt-get install chromium")
def test_from_the_first_page_to_the_hospitals_and_back(tmp_path):
    from playwright.sync_api import sync_playwright

    (tmp_path / "clinic").mkdir()
    write_picture(tmp_path / "clinic" / "eye1.png", 1)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    conf = conf_of(make_site_bank(tmp_path / "bank", SPOT))
    with running_provider(anna=["monailabel-annotator"], otto=["cleaner"]) as provider:
        args = ["--auth", "oidc", "--oidc-issuer", provider.issuer, "--oidc-client", CLIENT]
        args += ["--oidc-secret-file", str(secret)]
        with (
            running_server(APP, tmp_path / "clinic", state=tmp_path / "state", conf=conf, args=args) as server,
            sync_playwright() as playwright,
        ):
            url = server.url.replace("127.0.0.1", "localhost")  # for a browser another site than the service's
            provider.client.redirect_uri = f"{url}/iopfl/signin/callback"
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            page = browser.new_page()

            def sign_in(name: str) -> None:
                page.click("a.button")
                page.fill("[name=username]", name)
                page.fill("[name=password]", PASSWORD)
                page.click("button")

            page.goto(f"{url}/?image=eye1")
            sign_in("otto")
            page.wait_for_selector(".problem:has-text('no role here')")
            sign_in("anna")
            page.wait_for_selector("#who:has-text('anna')")
            assert page.url.startswith(f"{url}/?") and "image=eye1" in page.url, "where the person was going"
            # From a page of another site, such as a mail: the cookie does not come along, and nobody is asked again.
            page.goto(f"{provider.issuer}/elsewhere?to={url}/docs")
            page.wait_for_selector("h1:has-text('MONAILabel')")
            page.goto(f"{url}/")
            page.click("#who button")
            page.wait_for_selector("a.button")
            browser.close()
    entries = [(entry.who, entry.what, entry.about["status"]) for entry in AuditLog(tmp_path / "state/audit").entries()]
    assert ("", "GET /iopfl/signin/callback", "403") in entries
    assert ("anna", "GET /iopfl/signin/callback", "200") in entries
    assert ("anna", "POST /iopfl/signout", "303") in entries
