"""Write the tables of `docs/tasks.md` anew, from the dataclasses and their docstrings: `scripts/task_fields.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from iopfl.core.criteria import Criteria
from iopfl.core.task import Adaptation, Network, Task, Training

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tasks.md"
SETTINGS = {"task": Task, "images": Criteria, "network": Network, "training": Training, "adaptation": Adaptation}
"""By the key that holds them in a YAML file; the task's own are at its top."""


def fill(page: str) -> str:
    """The page with each table between `<!-- fields: KEY -->` and `<!-- end -->` made anew."""
    table = r"(<!-- fields: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(
        table, lambda found: f"{found[1]}\n{make_table(SETTINGS[found[2]])}\n{found[3]}", page, flags=re.DOTALL
    )


def make_table(settings: type) -> str:
    """One line for each field: its name, its default, and what its docstring says."""
    meanings = read_attributes(settings)
    lines = ["| field | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(settings):
        meaning = meanings[field.name].replace("|", "\\|")
        lines.append(f"| `{field.name}` | {show_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def read_attributes(settings: type) -> dict[str, str]:
    """What the section `Attributes` of a Google docstring says of each field."""
    _, _, section = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def show_default(field: dataclasses.Field[object]) -> str:
    """The default as YAML has it; nothing where the field must be given, or holds settings of its own."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "" if dataclasses.is_dataclass(value) else f"`{value}`"
    if field.default is dataclasses.MISSING:
        return "must be given"
    values = {None: "none", True: "true", False: "false", "": "empty", (): "`[]`"}
    if isinstance(field.default, bool | str | None) or field.default == ():
        return values.get(field.default, f"`{field.default}`")
    return f"`{list(field.default) if isinstance(field.default, tuple) else field.default}`"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
