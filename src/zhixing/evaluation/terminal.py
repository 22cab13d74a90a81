"""Words for a terminal: colour where it is wanted, columns that stand even with Chinese in them."""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import TextIO


def wants_colour(colour: bool | None = None, stream: TextIO | None = None) -> bool:
    """What was asked for; unless asked, colour is for a terminal that is not dumb and where NO_COLOR is not set.

    `stream` is where the text goes: stdout by default.
    """
    if colour is not None:
        return colour
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bold(text: str, *, colour: bool) -> str:
    return f"\033[1m{text}\033[0m" if colour else text


def faint(text: str, *, colour: bool) -> str:
    return f"\033[2m{text}\033[0m" if colour else text


def columns(text: str) -> int:
    """How many columns a text takes: Chinese characters two, combining marks none.

    >>> columns("知行 ok")
    7
    """
    nothing = ("Mn", "Me", "Cf")
    wide = (1 + (unicodedata.east_asian_width(c) in "WF") for c in text if unicodedata.category(c) not in nothing)
    return sum(wide)


def fits(text: str, width: int) -> str:
    """The text, cut to `width` columns with an ellipsis where it is longer.

    >>> fits("知行合一", 6)
    '知行…'
    """
    if columns(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += columns(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def pad(text: str, width: int, *, right: bool = False) -> str:
    """The text filled up to `width` columns with blanks, at its left if it shall stand right."""
    blanks = " " * max(0, width - columns(text))
    return blanks + text if right else text + blanks
