"""What is installed: lists with hashes, of what runs, of tools, of the site; what runs needs no more than the first."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime_list import OWN, REPOSITORY, read_list, runtime_environment

LISTS = ("requirements.txt", "requirements-dev.txt", "requirements-docs.txt")
RUNTIME, TOOLS, DOCS = map(read_list, LISTS)
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LEFT_OUT = {canonicalize_name(name) for name in PYPROJECT["tool"]["uv"]["exclude-dependencies"]}
OVERRIDDEN = {Requirement(text).name for text in PYPROJECT["tool"]["uv"]["override-dependencies"]}
SECONDS = 120


def declared() -> list[Requirement]:
    """What pyproject.toml says that iopfl needs."""
    return [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]


def grouped(group: str) -> set[str]:
    """The packages of a dependency group and of those that it includes."""
    found = set()
    for entry in PYPROJECT["dependency-groups"][group]:
        is_group = isinstance(entry, dict)
        found |= grouped(entry["include-group"]) if is_group else {canonicalize_name(Requirement(entry).name)}
    return found


@pytest.mark.parametrize("name", LISTS)
def test_every_package_of_a_list_has_one_version_and_the_hashes_of_its_files(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith(("#", "--hash"))]
    assert [line.partition("==")[0] for line in lines] == sorted(read_list(name))
    assert "://" not in text, "where packages come from is said where they are installed"


def test_every_package_of_the_pages_tools_has_one_version_and_a_hash():
    read = lambda name: json.loads((REPOSITORY / name).read_text(encoding="utf-8"))  # noqa: E731
    tools = read("package.json")["devDependencies"]
    packages = read("package-lock.json")["packages"]
    assert packages.pop("")["devDependencies"] == tools and "dependencies" not in read("package.json")
    for name, version in tools.items():
        assert packages[f"node_modules/{name}"]["version"] == version, f"{name}: say one version"
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-") and package["dev"], name
        assert "resolved" not in package, "where packages come from is said where they are installed"


@pytest.mark.parametrize(("one", "other"), [(RUNTIME, TOOLS), (RUNTIME, DOCS), (TOOLS, DOCS)])
def test_two_lists_name_the_same_version_of_what_both_have(one, other):
    assert all(one[name] == other[name] for name in one.keys() & other.keys())


def test_the_list_holds_what_is_declared():
    for requirement in declared():
        version, _ = RUNTIME[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement


def test_what_runs_needs_no_tool_and_nothing_that_is_only_asked_for():
    # TensorBoard, which draws a federation's figures, serves its page with it.
    assert not RUNTIME.keys() & (grouped("dev") | LEFT_OUT) - {"werkzeug"}
    assert grouped("dev") <= TOOLS.keys() | {"werkzeug"}
    assert grouped("docs") <= DOCS.keys() and not grouped("docs") & (RUNTIME.keys() | TOOLS.keys())


def test_a_newer_python_is_still_impossible():
    """When this fails, pyproject.toml, the set-up and the documents give a reason that is gone."""
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.12"
    module = importlib.metadata.distribution("monailabel").locate_file("monailabel/utils/others/generic.py")
    assert "import distutils" in Path(str(module)).read_text(encoding="utf-8")
    needed = {Requirement(text) for text in importlib.metadata.requires("pydicom-seg") or ()}
    assert not any(requirement.specifier.contains("2.0") for requirement in needed if requirement.name == "numpy")


def test_the_list_is_whole():
    """All that its packages ask for is in it, but what is left out by name: nothing more is looked for."""
    for name, (version, _) in RUNTIME.items():
        found = next(importlib.metadata.distributions(name=name), None)
        if found is None or found.version != version:
            continue
        for requirement in map(Requirement, found.requires or ()):
            needed = canonicalize_name(requirement.name)
            is_asked = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_asked and needed not in LEFT_OUT | OVERRIDDEN:
                assert needed in RUNTIME, f"{name} asks for {requirement}"
                assert requirement.specifier.contains(RUNTIME[needed][0], prereleases=True), f"{name}: {requirement}"


def test_what_is_imported_is_declared():
    owners = importlib.metadata.packages_distributions()
    known = {canonicalize_name(requirement.name) for requirement in declared()}
    # Parts of FastAPI, requests, Matplotlib and MONAI Label, with which they come.
    known |= {"starlette", "pydantic", "anyio", "urllib3", "contourpy", "filelock"}
    for path in [*(REPOSITORY / "apps").rglob("*.py"), *(REPOSITORY / "fl_bridge").rglob("*.py")]:
        for root in imported(path) - set(sys.stdlib_module_names) - {*OWN}:
            found = {canonicalize_name(owner) for owner in owners.get(root, [root])}
            assert found & known, f"{path.name} imports {root}: name it in pyproject.toml, then make lock"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.long  # every server of the tests runs with this list alone, too
def test_everything_is_imported_with_the_list_alone(tmp_path):
    """Each module of ours, the app with all its routes, and what runs FLARE's jobs; see also what tests start."""
    program = """
import importlib, os, pkgutil, sys
from pathlib import Path
from iopfl import compat
os.environ.update(MONAI_LABEL_STUDIES=sys.argv[1])
compat.apply_tasks()
import fl_bridge, iopfl
for package in (iopfl, fl_bridge):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "_process")):
            importlib.import_module(module.name)
from iopfl.access.settings import AccessSettings
from iopfl.server import build_app
assert len(build_app(AccessSettings(mode="off", state=Path(sys.argv[1]))).openapi()["paths"]) > 40
import nvflare.private.fed.app.client.client_train
import nvflare.fuel.f3.drivers.aio_http_driver
import nvflare.private.fed.app.server.server_train
import nvflare.private.fed.app.simulator.simulator
try:
    import pytest
except ImportError:
    print("no tools")
"""
    path = os.pathsep.join([str(REPOSITORY / "apps"), str(REPOSITORY)])
    environment = runtime_environment({**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path)})
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "no tools"


@pytest.mark.long
def test_the_bill_of_materials_is_valid_whole_and_the_same_each_time(tmp_path):
    """As `make sbom` writes it, by the rules of CycloneDX."""
    pytest.importorskip("cyclonedx_py", reason="no CycloneDX: make tools")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    (command,) = (
        line.split()[1:] for line in (REPOSITORY / "Makefile").read_text().splitlines() if "cyclonedx" in line
    )
    written = []
    for number in range(2):
        words = [sys.executable, "-m", "cyclonedx_py", *command[:-1], str(tmp_path / f"{number}.json")]
        subprocess.run(words, cwd=REPOSITORY, check=True, timeout=SECONDS)
        written.append((tmp_path / f"{number}.json").read_text(encoding="utf-8"))
    assert written[0] == written[1]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written[0]) is None
    listed = {}
    for component in json.loads(written[0])["components"]:
        hashes = (item for reference in component["externalReferences"] for item in reference.get("hashes", ()))
        listed[component["name"]] = (component["version"], frozenset(item["content"] for item in hashes))
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
    assert listed == RUNTIME
