"""`/` and `/docs` stay empty without internet access.

Defect: `app.py:102` (Swagger) and `:61` (ReDoc) are pages whose scripts come from a CDN.
Upstream: not reported.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from iopfl.compat._patching import once

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
td {{ border-top: 1px solid #bbb; padding: .3rem .6rem; vertical-align: top }}
code {{ font-size: .9em }}
</style></head><body><h1>{title}</h1>
<p>Every request this server answers. For programs: <a href="{schema}">{schema}</a>.</p>
{sections}</body></html>
"""


@once
def apply() -> None:
    """Replace `/docs` by a page of plain HTML, and leave `/` to our own pages."""
    from monailabel.app import app

    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in ("/", "/docs")]

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        schema_url = f"{request.scope.get('root_path', '')}/openapi.json"
        return HTMLResponse(render(app.openapi(), schema_url))


def render(schema: dict[str, Any], schema_url: str) -> str:
    """Write an OpenAPI description as one HTML page without scripts."""
    rows: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            names = ", ".join(p["name"] for p in operation.get("parameters", []))
            rows.setdefault(", ".join(operation.get("tags", ["Others"])), []).append(
                f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
                f"<td>{escape(operation.get('summary', ''))}</td><td>{escape(names)}</td></tr>"
            )
    sections = "".join(f"<h2>{escape(tag)}</h2><table>{''.join(lines)}</table>\n" for tag, lines in rows.items())
    title = escape(schema["info"]["title"])
    return PAGE.format(title=title, schema=escape(schema_url), sections=sections)
