"""The wheel holds all that the packages need, and what is installed from it can be imported."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
PIP_SECONDS = 120
SOURCES = ("apps", "fl_bridge", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def pip(*words: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PIP_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy: building writes into the tree."""
    tree = tmp_path_factory.mktemp("tree")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info", "model", "logs", "bin")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=leave)
        elif source.is_file():
            shutil.copy(source, tree / name)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", target, ".", cwd=tree)
    return next(target.glob("iopfl-*.whl"))


def data_files() -> set[str]:
    """All files of both packages that are no bytecode, as a wheel names them."""
    found = set()
    for root, package in ((REPOSITORY / "apps", "iopfl"), (REPOSITORY, "fl_bridge")):
        for path in (root / package).rglob("*"):
            parts = path.relative_to(root).parts
            if path.is_file() and "__pycache__" not in parts and not {"model", "logs", "bin"} & set(parts):
                found.add("/".join(parts))
    return found


def test_the_wheel_holds_every_file_of_both_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    page = "iopfl/web/static/start/main.js"
    for name in ("iopfl/py.typed", "fl_bridge/py.typed", "iopfl/core/tasks/prostate.yaml", page):
        assert name in names
    assert not data_files() - names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"iopfl", "fl_bridge"}


def test_the_wheel_has_both_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(entry).decode()
    assert "iopfl = iopfl.cli:main" in text
    assert "fl-bridge = fl_bridge.cli:main" in text


def test_the_citation_is_of_this_version_and_names_the_paper():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["title"].startswith(f"{project['name']}: ")
    (paper,) = citation["references"]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert paper["doi"] in readme and paper["title"] in readme


def test_what_is_installed_from_the_wheel_works_alone(wheel, tmp_path):
    target = tmp_path / "target"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    program = """
import sys
from pathlib import Path
import iopfl, fl_bridge
from iopfl.core.task import builtin_tasks, read_task
target = Path(sys.argv[1])
for package in (iopfl, fl_bridge):
    assert target in Path(package.__file__).parents, package.__file__
assert [read_task(name).name for name in builtin_tasks()]
assert (Path(iopfl.__file__).parent / "main.py").is_file()
import fl_bridge.cli, iopfl.cli
iopfl.cli.build_parser()
"""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", program, str(target)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PIP_SECONDS)
    assert done.returncode == 0, done.stderr
    assert (target / "bin" / "iopfl").is_file() and (target / "bin" / "fl-bridge").is_file()


def test_the_editable_installation_exposes_both_packages(tmp_path):
    """As `make env` installs it; away from the tree, so that nothing is found by chance."""
    try:
        importlib.metadata.distribution("iopfl")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("iopfl is not installed: the tests run from the tree alone")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = "import iopfl, fl_bridge; print(iopfl.__file__); print(fl_bridge.__file__)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    packages = [Path(line).parent for line in done.stdout.split()]
    assert packages == [REPOSITORY / "apps" / "iopfl", REPOSITORY / "fl_bridge"]
