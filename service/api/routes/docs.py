"""``/docs``: the OpenAPI document as one page, without scripts and with nothing from another host."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: .9em ui-monospace, monospace; background: #8882; border-radius: 4px; padding: .1em .3em; }
pre { padding: .8em; overflow-x: auto; }
section { border-top: 1px solid #8886; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3em .8em .3em 0; border-bottom: 1px solid #8883; }
.verb { font-weight: 700; }
:root { color-scheme: light dark; }
"""


@router.get("/docs/style.css")
async def style() -> Response:
    """Return the page's style, in a file of its own: the security policy allows no inline style."""
    return Response(_STYLE, media_type="text/css")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Return every route with its options and responses."""
    return HTMLResponse(page(request.app.openapi(), str(request.base_url).rstrip("/")))


def page(document: dict[str, Any], base: str) -> str:
    """Return the OpenAPI ``document`` as HTML; ``base`` is the URL for the examples."""
    info = document["info"]
    operations = "".join(
        _operation(verb, path, operation, base)
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="docs/style.css"></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{_prose(info.get('description', ''))}</p>"
        f'<p>For machines: <a href="openapi.json">openapi.json</a>.</p>{operations}</body></html>'
    )


def _operation(verb: str, path: str, operation: dict[str, Any], base: str) -> str:
    parameters = [
        (p["name"], f"{p['in']}, {_kind(p['schema'])}", p.get("description") or p["schema"].get("description", ""))
        for p in operation.get("parameters", [])
    ]
    responses = [
        (status, ", ".join(response.get("content", {})), response["description"])
        for status, response in operation["responses"].items()
    ]
    bodies = operation.get("requestBody", {}).get("content", {})
    examples = "\n".join(_examples(verb, base + path, bodies))
    return (
        f'<section><h2><span class="verb">{verb.upper()}</span> <code>{escape(path)}</code></h2>'
        f"<p><strong>{escape(operation.get('summary', ''))}</strong></p>"
        f"<p>{_prose(operation.get('description', ''))}</p>"
        f"<pre>{escape(examples)}</pre>{_table('Options', parameters)}{_table('Responses', responses)}</section>"
    )


def _examples(verb: str, url: str, bodies: dict[str, Any]) -> Iterator[str]:
    if verb == "get":
        yield f"curl {url}"
    if "image/*" in bodies:
        yield f"curl --data-binary @image.jpg -H 'Content-Type: image/jpeg' '{url}'"
    if "multipart/form-data" in bodies:
        yield f"curl -F image=@image.jpg {url}"
    if "application/json" in bodies:
        document = '{\\"image\\": \\"$(base64 -w0 image.jpg)\\"}'
        yield f"echo \"{document}\" | curl -d @- -H 'Content-Type: application/json' {url}"


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(first)}</code></td><td>{escape(second)}</td><td>{_prose(third)}</td></tr>"
        for first, second, third in rows
    )
    return f"<h3>{title}</h3><table>{cells}</table>"


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f" from {low} to {high}" if low is not None and high is not None else ""
    return str(schema.get("type", "any")) + bounds


def _prose(text: str) -> str:
    """Escape ``text``, and set in code what is between backticks."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
