"""HTML pages from templates. All text is escaped; numbers are formatted for people."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.pages import display_text


def render(template: str, **values: Any) -> str:
    """Render a template of ``templates/`` with these values."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # for every file extension
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
    """Return a bar's width as CSS. Any part above zero gets a visible width."""
    share = 100 * part / whole if whole else 0.0
    return Markup(f"width:{max(share, least) if part else 0:.2f}%")
