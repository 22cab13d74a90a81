"""What a run left on disk, read for its report, its card and the terminal.

Every file may be missing, cut off by a kill, or written by another program: what cannot be read becomes a note, and
the rest is still shown. Only a folder with no record at all is an error.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhixing.errors import InputError

FILES = ("metrics.jsonl", "scores.json", "facts.json", "samples.jsonl", "recipe.toml")


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    step: int | None
    seed: int | None


@dataclass(frozen=True)
class RunRecords:
    """The records of one run. Numbers that are not finite have been left out."""

    path: Path
    metrics: list[dict[str, float]] = field(default_factory=list)  # in the order of the file
    model_scores: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe_text: str = ""
    notes: list[str] = field(default_factory=list)  # what is missing or could not be read

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def series(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of each line of metrics that has `key`, the last one of a step, by rising step."""
        points = {line["step"]: line[key] for line in self.metrics if "step" in line and key in line}
        return sorted(points.items())

    def fact(self, table: str, *keys: str) -> Any:
        """facts[table][key] of the first key that is there, else None."""
        rows = self.facts.get(table)
        return next((rows[key] for key in keys if rows.get(key) is not None), None) if isinstance(rows, dict) else None

    def setting(self, table: str, key: str) -> Any:
        """A value of the recipe, or None."""
        return self.recipe.get(table, {}).get(key)


def read_records(run_dir: Path | str) -> RunRecords:
    """The records of a run directory. InputError if it is no folder, or holds none of the files."""
    path = Path(run_dir)
    if not path.is_dir():
        raise InputError(f"there is no run directory {str(path)!r}", mend="give the folder that `zhixing train` wrote")
    if not any((path / name).is_file() for name in FILES):
        raise InputError(
            f"{str(path)!r} holds no record of a run",
            why=f"none of {', '.join(FILES)} is there",
            mend="give a run directory",
        )
    notes: list[str] = []
    metrics = [_numbers(line) for line in _lines(path / "metrics.jsonl", notes)]
    scores = _object(path / "scores.json", notes)
    samples = [
        Sample(_text(line.get("prompt")), _text(line.get("text")), _whole(line.get("step")), _whole(line.get("seed")))
        for line in _lines(path / "samples.jsonl", notes)
    ]
    recipe_text = _read(path / "recipe.toml", notes) or ""
    model_scores = scores.get("model")
    baselines = scores.get("baselines")
    return RunRecords(
        path=path,
        metrics=[line for line in metrics if line],
        model_scores=model_scores if isinstance(model_scores, dict) else {},
        baselines=_numbers(baselines) if isinstance(baselines, dict) else {},
        facts=_object(path / "facts.json", notes),
        samples=samples,
        recipe=_recipe(recipe_text, notes),
        recipe_text=recipe_text,
        notes=notes,
    )


def number(value: Any) -> float | None:
    """A finite number, else None. A bool is no number, nor is a whole one that no float holds."""
    try:
        return value if isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value) else None
    except OverflowError:
        return None


def visible(text: str) -> str:
    """Text that can be written and shown anywhere: controls become their pictures (␀ to ␟), halves of characters �.

    A terminal would obey an escape sequence in a sample; marks that turn the direction of writing are dropped.
    """
    shown = []
    for character in text.replace("\r\n", "\n"):
        code = ord(character)
        if code < 32 and character not in "\n\t":
            shown.append(chr(0x2400 + code))
        elif code in (0x2028, 0x2029):
            shown.append("\n")
        elif 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in (0xFFFE, 0xFFFF):
            shown.append("\ufffd")
        elif not (0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069):
            shown.append(character)
    return "".join(shown)


def _read(path: Path, notes: list[str]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        notes.append(f"{path.name} is not there")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
    return None


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _read(path, notes)
    if text is None:
        return {}
    value = _json(text)
    if not isinstance(value, dict):
        notes.append(f"{path.name} is not a JSON object")
        return {}
    return value


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    text = _read(path, notes)
    rows = [_json(line) for line in (text or "").split("\n") if line.strip()]
    good = [row for row in rows if isinstance(row, dict)]
    if len(good) < len(rows):
        notes.append(
            f"{path.name}: {len(rows) - len(good)} of {len(rows)} lines are not JSON objects and were left out"
        )
    return good


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _recipe(text: str, notes: list[str]) -> dict[str, dict[str, Any]]:
    parse: Callable[[str], dict[str, Any]] = tomllib.loads
    try:
        return {table: values for table, values in parse(text).items() if isinstance(values, dict)}
    except (tomllib.TOMLDecodeError, RecursionError):
        notes.append("recipe.toml is not valid TOML")
        return {}


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {str(key): found for key, value in row.items() if (found := number(value)) is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)
