"""docs/compat.md lists every work-around, and each says what it is about."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for path in (ROOT / "apps" / "iopfl" / "compat").glob("*.py") if not path.name.startswith("_")]


def test_every_workaround_is_in_the_table_once():
    listed = re.findall(r"\| `(\w+\.py)` \|", (ROOT / "docs" / "compat.md").read_text())
    assert sorted(listed) == sorted(path.name for path in FILES)


def test_every_workaround_says_where_and_until_when():
    for path in FILES:
        head = path.read_text().split('"""')[1]
        assert re.search(r"\w+\.py:\d+|`app\.py`|config\.py|endpoints/\*\.py", head), path.name
        assert "Upstream:" in head and "Ends with: MONAI Label > 0.8.5" in head, path.name
        assert "def apply()" in path.read_text(), path.name


def test_every_workaround_is_applied():
    text = (ROOT / "apps" / "iopfl" / "compat" / "__init__.py").read_text()
    assert [path.name for path in FILES if f"{path.stem}.apply()" not in text] == []
