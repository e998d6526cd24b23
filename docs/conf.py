"""The site that `make docs` makes of these pages, of those at the repository's top, and of the docstrings.

The source is the repository, so that links between pages hold here and wherever Markdown is shown.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps"), str(ROOT)]

project = "iopfl"
copyright = "the contributors to iopfl, Apache-2.0. A research tool: not a medical device, not for clinical use"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "sample-datasets/**"]
exclude_patterns = [".venv", "build"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]

myst_heading_anchors = 4
myst_linkify_fuzzy_links = False
suppress_warnings = ["ref.python"]  # a name that several modules give on, such as an error's

# Docstrings say `name` where reStructuredText has ``name``.
default_role = "literal"
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = True
autosummary_ignore_module_all = False

html_theme = "furo"
html_title = "iopfl"
html_static_path: list[str] = []
html_show_sphinx = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", take_as_text, priority=100)


def take_as_text(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Docstrings as people write them: (N, C, *spatial) is no emphasis, and an indented part is shown as it is."""
    shown_below = None  # the indentation of the line before such a part
    for index, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if shown_below is not None and (not line or indentation > shown_below):
            continue
        shown_below = None
        lines[index] = re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", line)
        if line.endswith(":") and lines[index + 1 : index + 2] == [""]:
            after = lines[index + 2 : index + 3]
            if after and after[0].startswith(" " * (indentation + 4)):
                lines[index] += ":"
                shown_below = indentation
