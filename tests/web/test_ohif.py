"""OHIF's files as this server gives them: the shipped ones, ours, and nothing of another host or folder."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from iopfl.web import ohif  # noqa: E402

LOADED = re.compile(r"""(?:src|href)\s*=\s*["']?(https?:)?//|url\(\s*["']?(https?:)?//|@import""")


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(ohif.router)
    return TestClient(app, follow_redirects=False)


def test_every_address_of_the_viewer_is_its_start_page(client):
    page = client.get("/ohif/")
    assert page.headers["content-type"].startswith("text/html") and "app.bundle" in page.text
    for path in ("monai-label?StudyInstanceUIDs=1.2.3", "viewer", "monai-label/dicomweb"):
        assert client.get(f"/ohif/{path}").text == page.text
    assert client.get("/ohif").headers["location"].endswith("ohif/")


@pytest.mark.parametrize("path", ["", "app.bundle.css", "app-config.js"])
def test_nothing_is_loaded_from_elsewhere(client, path):
    text = client.get(f"/ohif/{path}").text
    assert not LOADED.search(text)
    assert "googleapis" not in text and "gstatic" not in text


def test_files_in_subfolders_and_their_types(client):
    assert client.get("/ohif/assets/favicon.ico").content[:4] == b"\x00\x00\x01\x00"
    [bundle] = re.findall(r'src="(/ohif/app\.bundle\.[0-9a-f]+\.js)"', client.get("/ohif/").text)
    answer = client.get(bundle)
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    wasm = next(path.name for path in ohif.SHIPPED.glob("*.wasm"))
    assert client.get(f"/ohif/{wasm}").headers["content-type"] == "application/wasm"


def test_the_settings_and_the_start_page_are_asked_for_again_each_time(client):
    for name in ("app-config.js", ""):
        assert client.get(f"/ohif/{name}").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "assets/nothing.js",
        "%2e%2e/ohif.py",
        "%2e%2e/%2e%2e/ohif.py",
        "%00",
        "/etc/hostname",
        "x%00.js",
    ],
)
def test_what_is_not_there_is_not_found(client, path):
    assert client.get(f"/ohif/{path}").status_code == 404


def test_the_settings_are_ours_and_name_modules_that_are_there(client):
    config = client.get("/ohif/app-config.js").text
    assert "stowRoot" in config and "http" not in config.replace("httpErrorHandler", "")
    modules = re.findall(r'"/iopfl/static/ohif/([^"]+[.]js)"', config)
    assert modules == ["extension.js", "mode.js"]
    assert all((ohif.CONFIG.parent / module).is_file() for module in modules)
