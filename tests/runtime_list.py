"""The list of what runs, requirements.txt, and how to run a program with no more than it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = ("iopfl", "fl_bridge")


def read_list(name: str = "requirements.txt") -> dict[str, tuple[str, frozenset[str]]]:
    """Package -> its version, and the SHA-256 of each of its files."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    pinned = re.findall(r"^([\w.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", text, flags=re.MULTILINE)
    return {
        canonicalize_name(package): (version, frozenset(re.findall("[0-9a-f]{64}", hashes)))
        for package, version, hashes in pinned
    }


@functools.cache
def refused_modules() -> frozenset[str]:
    """Top-level modules that are here and that no package of the list brings: of tools, or of an older list."""
    listed = {*read_list(), "iopfl"}
    for name, (version, _) in read_list().items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            if found.version != version:  # of an older list, which had what this one asks for
                listed.update(canonicalize_name(Requirement(text).name) for text in found.requires or ())
    # setuptools brings some inside itself, which show once it is imported.
    listed |= {canonicalize_name(found.name) for found in importlib.metadata.distributions() if is_inside(found)}
    modules = importlib.metadata.packages_distributions()
    foreign = {name for name, owners in modules.items() if listed.isdisjoint(map(canonicalize_name, owners))}
    return frozenset(name for name in foreign if name.isidentifier() and name not in OWN)


def is_inside(found: importlib.metadata.Distribution) -> bool:
    """Whether a package lies within another."""
    return "_vendor" in Path(str(found.locate_file(""))).parts


def runtime_environment(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which Python imports nothing but what the list brings, in child processes too."""
    hook = str(Path(__file__).parent / "runtime_only")
    path = os.pathsep.join(filter(None, [hook, environment.get("PYTHONPATH")]))
    return {**environment, "PYTHONPATH": path, "IOPFL_TEST_REFUSED": " ".join(sorted(refused_modules()))}
