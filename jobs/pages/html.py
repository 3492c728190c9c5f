"""HTML pages from templates: everything is escaped, and numbers are written as people read them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.pages import display_text


def render(template: str, **values: Any) -> str:
    """Return the page that `template`, a file of ``templates/``, makes of `values`."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # whatever the template's name ends in
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "n": lambda value: f"{value:,}",
        "percent": display_text.percent,
        "points": display_text.points,
        "seconds": display_text.seconds,
        "bytes": display_text.human_bytes,
        "visible": display_text.visible,
        "width": _width,
        "count": display_text.count,
    }
    environment.globals |= {
        "rate": display_text.rate,
    }
    return environment


def _width(part: float, whole: float, least: float = 0.4) -> Markup:
    """Return a bar's width as CSS; what is more than nothing is seen."""
    share = 100 * part / whole if whole else 0.0
    return Markup(f"width:{max(share, least) if part else 0:.2f}%")
