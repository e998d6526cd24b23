"""Who may import whom, how long a module may be, and that the algorithm prints nothing; read from the source."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MODULES = sorted([*(REPOSITORY / "apps").rglob("*.py"), *(REPOSITORY / "fl_bridge").rglob("*.py")])
MAX_LINES = 350

CORE_NEEDS = {"torch", "monai", "numpy", "nibabel", "nrrd", "PIL", "safetensors", "scipy", "SimpleITK", "yaml"} | {
    "cryptography",
    "pydicom",  # its table of SNOMED's codes
}
MONAILABEL_USERS = {"labels", "lib", "pacs", "app", "server", "access", "web", "compat"}
# Part of iopfl -> the parts it may import, besides itself; docs/developer.md says what each part is for.
ALGORITHM = {"base", "images", "core"}
LABEL_SERVER = ALGORITHM | {"dicomio", "labels", "lib", "pacs", "access", "web"}
MAY_IMPORT = {
    "base": set(),
    "images": {"base"},
    "core": {"base", "images"},
    "datasets": ALGORITHM,
    "dicomio": ALGORITHM,
    "dicomweb": {"base"},
    "dimse": ALGORITHM | {"dicomio", "dicomweb"},
    "compat": ALGORITHM,
    "labels": ALGORITHM,
    "lib": ALGORITHM | {"dicomio", "labels"},
    "pacs": ALGORITHM | {"dicomio", "dicomweb", "labels", "lib"},
    "access": {"base"},
    "web": ALGORITHM | {"dicomio", "labels", "lib", "pacs", "access"},
    "app": LABEL_SERVER | {"compat"},
    "server_options": {"access"},
    "server": LABEL_SERVER | {"server_options", "compat", "app"},
    "main": {"app", "compat"},
    "cli": LABEL_SERVER | {"dimse", "datasets", "server", "server_options"},
}


def name_of(path: Path) -> str:
    """Dotted name of a module: `iopfl.core.task`, `fl_bridge.job`."""
    root = REPOSITORY / "apps" if REPOSITORY / "apps" in path.parents else REPOSITORY
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(name: str) -> str:
    """The part of iopfl that a module belongs to."""
    return [*name.split("."), "iopfl"][1]


def imports_of(path: Path) -> set[str]:
    """Everything a module imports, inside functions too, relative imports resolved."""
    found = set()
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from iopfl import compat` imports a part; `from iopfl.core import bank` a module.
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def by_name(paths: list[Path]) -> dict[str, Path]:
    return {name_of(path): path for path in paths}


IOPFL = {name: path for name, path in by_name(MODULES).items() if name.split(".")[0] == "iopfl"}
CORE = {name: path for name, path in IOPFL.items() if part_of(name) == "core"}
BENEATH = CORE | {name: path for name, path in IOPFL.items() if part_of(name) == "images"}


def test_there_is_something_to_check():
    assert len(CORE) > 20
    assert "fl_bridge.job" in by_name(MODULES)
    assert imports_of(CORE["iopfl.core.predictor"]) >= {"torch.nn", "iopfl.core.task.Task"}


@pytest.mark.parametrize("name", IOPFL)
def test_imports_go_one_way(name):
    part = part_of(name)
    if part in ("iopfl", "_moved"):
        allowed = set()
    else:
        assert part in MAY_IMPORT, f"{name}: say in MAY_IMPORT what the new part {part} may import"
        allowed = MAY_IMPORT[part] | {part}
    used = {part_of(module) for module in imports_of(IOPFL[name]) if module.startswith("iopfl.")}
    used = {other for other in used if other in MAY_IMPORT}  # `from iopfl import __version__` is no part
    assert used <= allowed, f"{name} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("name", IOPFL)
def test_only_the_label_servers_parts_import_monailabel_and_none_the_federation(name):
    roots = {module.split(".")[0] for module in imports_of(IOPFL[name])}
    assert not roots & {"nvflare", "fl_bridge"}
    if part_of(name) not in MONAILABEL_USERS:
        assert "monailabel" not in roots


@pytest.mark.parametrize("name", BENEATH)
def test_the_algorithm_needs_few_libraries(name):
    roots = {module.split(".")[0] for module in imports_of(BENEATH[name])}
    foreign = roots - set(sys.stdlib_module_names) - CORE_NEEDS - {"iopfl"}
    assert not foreign, f"{name} imports {sorted(foreign)}"


@pytest.mark.parametrize("name", [name for name in IOPFL if name.startswith(("iopfl.base", "iopfl.images.headers"))])
def test_what_all_stand_on_needs_python_alone(name):
    roots = {module.split(".")[0] for module in imports_of(IOPFL[name])}
    assert not roots - set(sys.stdlib_module_names) - {"iopfl"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_bridge_uses_the_algorithm_alone(path):
    if name_of(path).split(".")[0] != "fl_bridge":
        return
    used = {part_of(module) for module in imports_of(path) if module.startswith("iopfl.")}
    assert used <= {"base", "core"}
    assert "monailabel" not in {module.split(".")[0] for module in imports_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", BENEATH)
def test_the_algorithm_prints_nothing(name):
    calls = (node for node in ast.walk(ast.parse(BENEATH[name].read_text())) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


OPENS_IMAGES = re.compile(r"nib\.load\(|Image\.open\(|from_filename\(|imread\(|ReadImage\(|nrrd\.read\(|LoadImaged?\b")


def test_image_files_are_opened_in_one_place():
    """Whoever opens one elsewhere follows its header wherever it leads; importers read formats of their own."""
    package = REPOSITORY / "apps" / "iopfl"
    allowed = {"images/files.py", "datasets/importers/common.py", "datasets/importers/prostate.py"}
    allowed.add("images/places.py")  # headers alone, after their check
    files = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    found = {name for name, text in files.items() if OPENS_IMAGES.search(text)}
    assert found - {"web/pictures.py"} <= allowed  # which opens the figure that it has drawn itself


def test_what_there_is_one_of_is_written_once():
    """One `flock`, one stamp of a file, one pattern of a UID: the one that is wrong is then the only one."""
    package = REPOSITORY / "apps" / "iopfl"
    kinds = {
        r"fcntl\.flock": "base/locks.py",
        r"st_mtime_ns, \w+\.st_size": "base/stamps.py",
        r"\[0-9\](\[0-9\.\]|\+\(.{0,2}\\\.)": "base/uids.py",
    }
    for pattern, place in kinds.items():
        found = [path for path in package.rglob("*.py") if re.search(pattern, path.read_text(encoding="utf-8"))]
        assert [path.relative_to(package).as_posix() for path in found] == [place], pattern
