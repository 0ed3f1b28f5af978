"""The page /docs: the OpenAPI description as plain HTML, without scripts and without external addresses."""

from __future__ import annotations

import html
import json
from typing import Any


def docs_page(description: dict[str, Any]) -> str:
    """The page.

    Args:
        description: an OpenAPI document, as FastAPI makes it.
    """
    info = description["info"]
    parts = [f"<h1>{_escape(info['title'])}</h1><p>{_escape(info.get('description', ''))}</p>"]
    for path, operations in description["paths"].items():
        parts += [_operation(path, method, operation) for method, operation in operations.items()]
    for name, schema in description.get("components", {}).get("schemas", {}).items():
        rows = [
            [key, _kind(value), value.get("description", "")] for key, value in schema.get("properties", {}).items()
        ]
        parts.append(f"<h2>{_escape(name)}</h2>{_table(['field', 'type', ''], rows)}")
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a>.</p>')
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(info['title'])}: interface</title>"
        '<link rel="stylesheet" href="static/page.css"></head><body class="docs">' + "".join(parts) + "</body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    text = f"<h2><code>{method.upper()} {_escape(path)}</code></h2><p>{_escape(operation.get('description', ''))}</p>"
    rows = [
        [each["name"], each["in"], _kind(each["schema"]), each.get("description", "")]
        for each in operation.get("parameters", ())
    ]
    text += _table(["parameter", "in", "type", ""], rows) if rows else ""
    if "requestBody" in operation:
        text += f"<p>Body: {_escape(', '.join(operation['requestBody']['content']))}</p>"
    answers = [[code, answer.get("description", "")] for code, answer in operation.get("responses", {}).items()]
    return text + _table(["status", "meaning"], answers)


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type", schema.get("$ref", "").rpartition("/")[2])
    if kind == "array":
        kind = f"list of {_kind(schema['items'])}"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", ">="), ("maximum", "<=")) if key in schema]
    default = [f"default {json.dumps(schema['default'])}"] if schema.get("default") not in (None, []) else []
    return ", ".join([kind, *bounds, *default])


def _table(head: list[str], rows: list[list[str]]) -> str:
    heads = "".join(f"<th>{_escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="rows-wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _escape(text: Any) -> str:
    return html.escape(str(text))
