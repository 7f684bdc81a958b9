"""The OpenAPI document, made exact, and a page of it for people that loads nothing from anywhere."""

import html
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse

from flows.gateway.errors import problems

router = APIRouter(tags=["about"])

METHODS = ("get", "put", "post", "delete")
_HEAD = "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"


def install(app: FastAPI) -> None:
    """Serve /docs, and have /openapi.json without what FastAPI adds by itself and this gateway never answers."""
    make = app.openapi

    def exact() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            schemas = document.get("components", {}).get("schemas", {})
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = exact  # type: ignore[method-assign]

    @app.get("/docs", response_class=HTMLResponse, tags=["about"], responses=problems(open_route=True))
    def docs() -> str:
        """List all operations, for people; /openapi.json is the whole document."""
        return page(exact())


def page(document: dict[str, Any]) -> str:
    """All operations as plain HTML."""
    info = document["info"]
    parts = [_HEAD.format(title=html.escape(info["title"])), f"<p>{html.escape(info.get('summary', ''))}</p>"]
    parts.append('<p>The whole document: <a href="/openapi.json">openapi.json</a>.</p><dl>')
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                what = html.escape(item[method].get("description") or item[method].get("summary") or "")
                parts.append(f"<dt><code>{method.upper()} {html.escape(path)}</code></dt><dd>{what}</dd>")
    return "".join([*parts, "</dl></html>"])
