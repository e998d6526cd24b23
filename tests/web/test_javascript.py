"""The pages' JavaScript: what it computes, by Node, and that its modules need no build step."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from iopfl import compat

compat.apply_early()  # before MONAI Label is imported

from iopfl.web import routes  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
FILES = sorted(path.relative_to(routes.STATIC).as_posix() for path in routes.STATIC.rglob("*.[cj]s*"))
MODULES = [name for name in FILES if name.endswith(".js")]
TESTS = sorted((REPOSITORY / "tests" / "web" / "js").glob("*.test.js"))
MAX_LINES = 350
SECONDS = 60
COMMENT = re.compile(r"/\*.*?\*/|^ *//[^\n]*", flags=re.MULTILINE | re.DOTALL)  # in which types are imported
IMPORTED = re.compile(r"""^(?:import|export)\b[^"';:=(]*["']([^"']+)["']""", flags=re.MULTILINE)


def imports_of(name: str) -> list[str]:
    return IMPORTED.findall(COMMENT.sub("", (routes.STATIC / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(routes.pages)
    return TestClient(app)


@pytest.mark.parametrize("test", TESTS, ids=lambda path: path.name)
def test_what_the_pages_compute(test):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node: scripts/debian.sh installs it")
    done = subprocess.run([node, "--test", str(test)], cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\S+ pass [1-9]", done.stdout, flags=re.MULTILINE), done.stdout


def test_there_is_something_to_check():
    assert {"start/main.js", "ohif/extension.js", "common/server.js"} <= set(MODULES)
    assert {"./bank.js", "../common/server.js"} <= set(imports_of("start/main.js"))
    assert {test.name for test in TESTS} >= {"nrrd.test.js", "grid.test.js", "voxels.test.js", "segs.test.js"}


@pytest.mark.parametrize("name", FILES)
def test_a_page_gets_its_files_as_they_lie_from_this_server_alone(client, name):
    answer = client.get(f"/iopfl/static/{name}")
    assert answer.text == (routes.STATIC / name).read_text(encoding="utf-8")
    kind = "text/javascript" if name in MODULES else "text/css"
    assert answer.headers["content-type"].startswith(kind) and answer.headers["cache-control"] == "no-cache"
    assert not re.search(r"""https?:|["'(]//|@import|[^.]\bimport\(""", COMMENT.sub("", answer.text))


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_each_other_alone(name):
    """By the path that the file has here, which is its address too: no build step, no list of addresses."""
    folder = (routes.STATIC / name).parent
    for imported in imports_of(name):
        assert imported.startswith(("./", "../")), imported
        assert (folder / imported).resolve().relative_to(routes.STATIC).as_posix() in MODULES, imported


@pytest.mark.parametrize("name", MODULES)
def test_pages_share_only_what_is_common(name):
    for imported in imports_of(name):
        assert imported.startswith("./") or imported.startswith("../common/"), imported
    assert not name.startswith("common/") or all(imported.startswith("./") for imported in imports_of(name))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short_enough_to_read(name):
    assert len((routes.STATIC / name).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "path",
    ["nothing.js", "start", "start/", "index.html", "globals.d.ts", "..%2froutes.py", "%2e%2e/routes.py", "x%00.js"],
)
def test_what_is_no_style_or_module_is_not_found(client, path):
    assert client.get(f"/iopfl/static/{path}").status_code == 404
