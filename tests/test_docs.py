"""The documents tell the truth: commands, options, paths, links, names and messages in them exist."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fl_bridge import cli as bridge_cli
from iopfl import cli
from iopfl.core.bank.bank import OWN_SETTINGS
from iopfl.core.bank.manifest import BankEntry, Manifest, Role
from iopfl.core.networks import NETWORKS, build_network
from iopfl.core.task import builtin_tasks, read_task
from iopfl.dimse import listening
from scripts import task_fields

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *DOCS,
    ROOT / "sample-datasets" / "README.md",
]
ALL = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "sample-datasets").rglob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in ALL}

OURS = ("apps/", "benchmarks/", "docs/", "fl_bridge/", "sample-datasets/", "scripts/", "tests/")
FOREIGN_OPTIONS = {"--app", "--uvicorn_app", "--logdir", "--conf", "--studies"}
"""Of MONAI Label's `start_server`."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    bridge = getattr(bridge_cli, "build_parser", None) or bridge_cli._build_parser
    return {"iopfl": cli.build_parser(), "fl-bridge": bridge()}


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


def leaves(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, with its words: `iopfl bank show`."""
    below = actions_of(parser)
    if not below:
        yield name, parser
    for word, action in below.items():
        yield from leaves(f"{name} {word}", action)


PARSERS = parsers()
LEAVES = {name: parser for root, top in PARSERS.items() for name, parser in leaves(root, top)}
OPTIONS = {option for parser in [*PARSERS.values(), *LEAVES.values()] for option in parser._option_string_actions}


def blocks(text: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def commands(first: str) -> list[object]:
    lines = [
        (page, line) for page in TEXT for block in blocks(TEXT[page], "", "sh", "bash") for line in block.splitlines()
    ]
    return [pytest.param(line, id=f"{page.name}: {line}") for page, line in lines if line.startswith(f"{first} ")]


def inline(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def slugs(text: str) -> set[str]:
    """Anchors that a page's headings get where Markdown is shown."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def resolve(name: str) -> object:
    """A dotted name, of a module or of something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:length]))
            for attribute in parts[length:]:
                found = getattr(found, attribute)
            return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("line", [*commands("iopfl"), *commands("fl-bridge")])
def test_a_documented_command_is_taken_as_it_stands(line):
    words = shlex.split(line, comments=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            PARSERS[words[0]].parse_args(words[1:])
    except SystemExit:
        pytest.fail(f"{line}\n{said.getvalue()}")


@pytest.mark.parametrize("line", commands("make"))
def test_a_documented_target_and_its_variables_exist(line):
    makefile = (ROOT / "Makefile").read_text()
    environment = re.findall(r"\$\{([A-Z]+):-", (ROOT / "scripts" / "setup.sh").read_text())
    known = {*re.findall(r"^([A-Z]+) \?=", makefile, flags=re.MULTILINE), *environment}
    for word in shlex.split(line, comments=True)[1:]:
        name, is_variable, _ = word.partition("=")
        assert name in known if is_variable else re.search(rf"^{name}:.*##", makefile, flags=re.MULTILINE), word


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_commands_and_options_in_the_prose_exist(page):
    for code in inline(TEXT[page]):
        words = code.split()
        parser = PARSERS.get(words[0])
        for word in words[1:]:
            below = actions_of(parser) if parser else {}
            if below and re.fullmatch(r"[a-z-]+", word):
                assert word in below or word.startswith("--"), f"{code}: no {word}"
                parser = below.get(word, parser)
        mine = OPTIONS if parser is None else set(parser._option_string_actions)
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert option in mine | FOREIGN_OPTIONS, f"{page.name}: {code}: no option {option}"


def test_every_command_is_documented_and_has_help():
    text = "\n".join(TEXT[page] for page in PAGES)
    assert [name for name in LEAVES if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)] == []
    assert [
        name for name, parser in LEAVES.items() if not (parser.description and "example" in str(parser.epilog))
    ] == []
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [target for target in targets if target != "help" and f"make {target}" not in text] == []


def test_every_option_of_a_federation_is_in_its_table():
    listed = set(re.findall(r"^\| `(--[a-z]+)", TEXT[ROOT / "docs" / "federation.md"], flags=re.MULTILINE))
    there = {option for option in LEAVES["fl-bridge simulate"]._option_string_actions if option.startswith("--")}
    assert listed == there - {"--help"}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", prose):
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor[1:] in slugs(file.read_text(encoding="utf-8")), f"{page.name}: {target}{anchor}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_paths_exist(page):
    words = [word for code in [*inline(TEXT[page]), *blocks(TEXT[page], "", "sh", "bash")] for word in code.split()]
    for word in words:
        path = word.strip(".,;:'\"").partition("::")[0]
        if not path.startswith(OURS):
            continue
        before, _, rest = path.partition("{")
        inner, _, after = rest.partition("}")
        for part in inner.split(","):
            assert (ROOT / f"{before}{part}{after}").exists(), f"{page.name}: {word}"


def test_the_tests_that_hold_against_attacks_exist():
    """And each attack has one: a line of a table without is a claim."""
    rows = re.findall(
        r"^\| (?!attack|---)(.*) \|$", TEXT[ROOT / "SECURITY.md"].partition("## Attacks")[2], re.MULTILINE
    )
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for path, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (
                f"{path}::{name}"
            )


def test_every_page_of_docs_is_linked_from_another():
    linked = {
        (page.parent / target).resolve()
        for page in ALL
        for target in re.findall(r"\]\(([^)#\s]+)", TEXT[page])
        if not target.startswith("http")
    }
    assert [page.name for page in DOCS if page not in linked] == []
    ET.parse(ROOT / "docs" / "overview.svg")


def test_a_newcomer_sees_both_commands_first_and_reads_no_more_than_a_page():
    lines = TEXT[ROOT / "README.md"].splitlines()
    assert len(lines) <= 100
    assert {"make demo", "make test"} <= set(lines[:16])
    picture = ROOT / "docs" / "pictures" / "page.png"
    assert picture.stat().st_size < 200_000 and f"({picture.relative_to(ROOT)})" in TEXT[ROOT / "README.md"]


def test_the_tasks_in_the_examples_are_tasks(tmp_path):
    page = TEXT[ROOT / "docs" / "tasks.md"]
    whole, based = blocks(page, "yaml")
    for number, example in enumerate((whole, based)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(example, encoding="utf-8")
        build_network(read_task(file))
    assert f"--task {read_task(tmp_path / '0.yaml').name}.yaml" in page
    assert [name for name in builtin_tasks() if f"`{name}`" not in page] == []


def test_the_fields_of_a_task_are_those_of_its_dataclass():
    """Otherwise: scripts/task_fields.py."""
    page = TEXT[ROOT / "docs" / "tasks.md"]
    assert task_fields.fill(page) == page
    for key, settings in task_fields.SETTINGS.items():
        assert f"<!-- fields: {key} -->" in page
        assert [*task_fields.read_attributes(settings)] == [field.name for field in fields(settings)]
    assert [name for name in NETWORKS if f"`{name}`" not in page] == []


def test_the_map_from_paper_to_code_resolves():
    _, _, table = TEXT[ROOT / "docs" / "algorithm.md"].partition("| paper | module | function |")
    rows = re.findall(r"^\| [^|`]+ \| `([\w.]+)` \| `([\w.]+)` \|$", table, flags=re.MULTILINE)
    assert len(rows) > 10
    for module, name in rows:
        assert callable(resolve(f"{module}.{name}")), f"{module}.{name}"


def test_the_names_on_the_algorithms_page_resolve():
    text, _, _ = TEXT[ROOT / "docs" / "algorithm.md"].partition("## From the paper to the code")
    names = [code for code in inline(text) if re.fullmatch(r"[a-z_]+(\.\w+)*", code)]
    assert len(names) > 20
    for name in names:
        resolve(name if name.startswith(("iopfl", "fl_bridge")) else f"iopfl.core.{name}")


def test_the_settings_that_the_algorithms_page_gives_are_the_defaults():
    task = read_task("vessel")
    settings = task.adaptation
    assert (task.training.alpha, task.training.fine_tune_epochs, task.training.min_labels) == (0.1, 5, 5)
    assert (settings.shares, settings.zooms, settings.tolerance, settings.temperature) == ((0, 1), (1, 1.5), 0.01, 0.1)
    assert settings.evidence == 0.5
    assert (settings.max_instances, settings.max_voters, settings.max_views, settings.seconds) == (3, 4, 8, 20.0)
    assert (settings.effective, replace(settings, fast=True).effective.max_voters) == (settings, 2)


def test_the_banks_format_names_every_field():
    section = TEXT[ROOT / "docs" / "bank-format.md"]
    _, _, own = section.partition("differs in anything but ")
    assert tuple(re.findall(r"`(\w+)`", own.partition("\n")[0])) == OWN_SETTINGS
    entry = BankEntry("a", Role.PERSONALIZED, 0, 1, {}, "a.safetensors", "0" * 64)
    manifest = Manifest(1, "2026-01-01T00:00:00+00:00", "f", read_task("vessel"), (entry,), "\u00e9", "s")
    values = json.loads(manifest.to_json())
    for key in [*values, *values["entries"][0]]:
        assert f"`{key}`" in section, key
    signature = values.pop("signature")
    # Rule 8, as somebody would write it who has read nothing but that page.
    assert (
        json.dumps(values, sort_keys=True, separators=(", ", ": "), ensure_ascii=True).encode()
        == manifest.signed_content()
    )
    assert signature == "s" and manifest.signed_content().isascii()


def test_the_messages_that_administrators_look_up_are_said_somewhere():
    sources = [*(ROOT / "apps").rglob("*.py"), *(ROOT / "fl_bridge").rglob("*.py")]
    said = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in sources))
    _, _, table = TEXT[ROOT / "docs" / "site-administrator.md"].partition("## Messages")
    messages = re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)
    assert len(messages) > 10
    assert [message for message in messages if message not in said] == []


@pytest.mark.parametrize(
    "page",
    [page for page in ALL if "sample-datasets" not in page.parts and page.name != "accuracy.md"],
    ids=lambda page: page.name,
)
def test_no_results_and_no_one_machines_paths_are_quoted(page):
    text = TEXT[page]
    assert not re.search(r"(?i)(dice|hd95|assd|accuracy)[^\n|]{0,40}\b\d+\.\d{2,}", text)
    assert "±" not in text
    assert not re.search(r"(?<![\w.~])/(tmp|root|home|work)/", text)
    assert not re.search(r"(?i)pypi|artifactory", text)


def test_a_destination_is_tried_for_as_long_as_the_page_says():
    hours = sum(listening._pause(attempt) for attempt in range(1, listening.SEND_ATTEMPTS)) / 3600
    assert f"is tried for {hours:.0f} hours" in TEXT[ROOT / "docs" / "site-administrator.md"]


def test_no_field_is_described_by_a_fragment():
    """`path: of the image` makes people guess what is meant: a file, a folder, a name."""
    sources = [path for folder in ("apps", "fl_bridge") for path in (ROOT / folder).rglob("*.py")]
    text = {path: path.read_text(encoding="utf-8") for path in sources}
    fragments = r"^ +(?!\w*(?:Error|Exception):)\w+: of \w.*$"
    assert {path.name: found for path in sources if (found := re.findall(fragments, text[path], re.MULTILINE))} == {}


def test_the_license_is_whole_and_the_notice_is_there():
    license_text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in license_text and "Version 2.0, January 2004" in license_text
    assert "APPENDIX: How to apply the Apache License" in license_text
    assert TEXT[ROOT / "README.md"].count("not for clinical use") >= 2
