"""docs/compat.md lists every work-around, and each says what it is about."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for path in (ROOT / "apps" / "iopfl" / "compat").glob("*.py") if not path.name.startswith("_")]


def test_every_workaround_is_in_the_table_once():
    listed = re.findall(r"\| `(\w+\.py)` \|", (ROOT / "docs" / "compat.md").read_text())
    assert sorted(listed) == sorted(path.name for path in FILES)


def test_every_workaround_says_where_the_defect_is_and_what_is_known_of_it_upstream():
    table = (ROOT / "docs" / "compat.md").read_text()
    for path in FILES:
        head = path.read_text().split('"""')[1]
        assert re.search(r"\w+\.py:\d+|`app\.py`|config\.py|endpoints/\*\.py", head), path.name
        (upstream,) = re.findall(r"^Upstream: (.+)", head, flags=re.MULTILINE)
        (row,) = re.findall(rf"\| `{path.name}` \| (.+) \|$", table, flags=re.MULTILINE)
        assert set(re.findall(r"\b\d{2,4}\b", upstream)) == set(re.findall(r"\[(\d+)\]", row)), path.name
        assert re.search(r"\d|not reported", upstream) and re.search(r"\d|not reported", row), path.name
        assert "def apply()" in path.read_text(), path.name


def test_every_workaround_is_applied():
    text = (ROOT / "apps" / "iopfl" / "compat" / "__init__.py").read_text()
    assert [path.name for path in FILES if f"{path.stem}.apply()" not in text] == []
