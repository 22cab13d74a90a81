"""The frame of every report: one HTML file that asks no other host for anything and holds no script.

Its Content-Security-Policy allows one thing, the style sheet with this SHA-256. Whatever comes from outside is escaped
by the templates. `page.html.jinja` is the frame, `pieces.html.jinja` the parts that reports share.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from zhixing.evaluation.records import visible

if TYPE_CHECKING:
    import jinja2


def render_page(template: str, values: dict[str, Any]) -> str:
    """A page as text, from a template of this folder that extends page.html.jinja; the same values, the same page."""
    from markupsafe import Markup

    style = _read("report.css")
    frame = {
        "style": Markup(style),
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    }
    return _environment().get_template(template).render(values | frame)


@cache
def _environment() -> jinja2.Environment:
    """Jinja is loaded here: `zhixing show` does without it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_read),
    )
    environment.filters["visible"] = visible
    return environment


@cache
def _read(name: str) -> str:
    return (resources.files("zhixing.evaluation") / name).read_text(encoding="utf-8")
