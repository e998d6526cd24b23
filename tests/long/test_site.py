"""The site that `make docs` makes: every page and docstring, and nothing that a browser would fetch elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("furo", reason="no Sphinx: make docs")

REPOSITORY = Path(__file__).parents[2]
SECONDS = 600
LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""")
STYLED = re.compile(r"""(?:@import\s|url\()\s*["']?(?:https?:)?//[^"')]+""")

pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", folder / "trees", "."]
    done = subprocess.run(
        [*map(str, command), str(folder / "html")], cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


def test_every_page_and_module_is_on_it(site):
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    assert [
        page.name for page in pages if not (site / page.relative_to(REPOSITORY)).with_suffix(".html").exists()
    ] == []
    routing = (site / "docs" / "api" / "iopfl.core.routing.html").read_text(encoding="utf-8")
    assert 'id="iopfl.core.routing.mix_experts"' in routing
    assert (site / "docs" / "api" / "fl_bridge.controller.html").is_file()


def test_nothing_of_it_is_loaded_from_elsewhere(site):
    found = {
        f"{path.relative_to(site)}: {match[0]}"
        for path in site.rglob("*")
        if path.suffix in (".html", ".css")
        for match in (LOADED if path.suffix == ".html" else STYLED).finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()
