"""HTML pages that refer to nothing outside themselves: templates below `tasks/templates`, pictures inside."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render(template: str, context: Mapping[str, Any]) -> bytes:
    """A page in UTF-8. Every text of `context` is escaped but what is marked as markup; `colours` are those of series.

    Raises:
        jinja2.UndefinedError: the template uses what `context` lacks.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tasks"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(context).encode("utf-8")


def data_uri(picture: Path) -> str:
    """A PNG file as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
