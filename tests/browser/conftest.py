"""One PACS, one label server and one browser for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: make tools")

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from app.site import APP, make_site_bank  # noqa: E402
from iopfl.core.bank.manifest import read_manifest  # noqa: E402
from iopfl.core.colors import label_colors  # noqa: E402
from iopfl.core.task import Task  # noqa: E402
from label_server import running_server, wait_until  # noqa: E402
from orthanc import running_orthanc  # noqa: E402

from .clinic import EYE, FINE, NODULE, READY, Clinic, fix_split, send, write_photograph, write_series  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LABELED = 5
SIZE = {"width": 1500, "height": 950}


@dataclass
class Visit:
    """What a page did.

    Attributes:
        called: hosts it sent requests to.
        sent: method and path of its requests.
        errors: the errors of its scripts.
    """

    called: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def make_banks(folder: Path) -> dict[str, str]:
    """The `--conf` of a site inside the federation with all tasks."""
    banks = [make_site_bank(folder / f"bank_{task.name}", task, keys=folder / "keys") for task in (NODULE, EYE, FINE)]
    return {"bank": ",".join(str(bank.folder) for bank in banks), "keys": str(folder / "keys"), "site": "site_a"}


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Series `case0` to `case4` with labels, `case5` to `case7` and the photograph `eye` without."""
    folder = tmp_path_factory.mktemp("clinic")
    conf = make_banks(folder)
    (folder / "tmp").mkdir()
    with running_orthanc(folder / "orthanc") as orthanc:
        for number in range(LABELED + 3):
            write_series(folder / "pushed" / f"case{number}", f"case{number}", number)
        write_photograph(folder / "pushed" / "eye", "eye", 9)
        send(folder / "pushed", orthanc)
        environment = {"TMPDIR": str(folder / "tmp")}
        with running_server(
            APP, orthanc.dicomweb_url, state=fix_split(folder / "state"), conf=conf, env=environment
        ) as server:
            clinic = Clinic(orthanc, server, folder)
            listed = lambda: server.get("/info/").json()["datastore"]["total"] == LABELED + 4  # noqa: E731
            wait_until(listed, 60, what="the PACS's series to be listed")
            for number in range(LABELED):
                clinic.submit(f"case{number}", number)
            yield clinic


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium: scripts/debian.sh installs it")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def context(browser):
    """One for all pages, so that OHIF is loaded once."""
    context = browser.new_context(viewport=SIZE, reduced_motion="reduce")
    # OHIF's banner, for investigational use only, lies over what is below until somebody confirms it.
    context.add_init_script("if (location.host) sessionStorage.setItem('investigationalUseDialog', 'hidden')")
    context.set_default_timeout(READY)
    yield context
    context.close()


@pytest.fixture
def visit() -> Visit:
    return Visit()


@pytest.fixture
def page(context, visit) -> Iterator[Page]:
    """A new tab, and in `visit` what it does."""
    page = context.new_page()

    def note(request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme.startswith("http"):
            visit.called.add(parts.netloc)
            visit.sent.append(f"{request.method} {parts.path}")

    page.on("request", note)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    yield page
    page.close()


@pytest.fixture(scope="session")
def nodule(clinic) -> Task:
    """The task as the server has it, from its bank."""
    return read_manifest(clinic.folder / f"bank_{NODULE.name}").task


@pytest.fixture(scope="session")
def colors(nodule) -> dict[str, str]:
    return label_colors(nodule)
