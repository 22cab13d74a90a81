"""The training runs of a folder: where each stands, and what it has measured, from a line on.

Names are ids, never paths, and a link that leads out of the folder, or out of a run, is not followed. Only numbers are
passed on, and names of letters and digits: a run's files may say anything. Nothing is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections import OrderedDict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from zhixing.evaluation.records import number
from zhixing.files import MANIFEST
from zhixing.serving.library import is_id
from zhixing.serving.limits import MOST_LINES, MOST_METRICS, MOST_RUNS
from zhixing.serving.problems import ApiError
from zhixing.training.runlock import LOCK, is_training

RECIPE, METRICS = "recipe.toml", "metrics.jsonl"
BEFORE = "pretraining"  # a folder of a run that learns something else first, with measurements of its own
TAIL = 32 << 10  # bytes at the end of the measurements, by which the speed is told
MOST_RECIPE = 1 << 20
KEPT = 1024  # files whose numbers are remembered until they change
KEY = re.compile(r"[A-Za-z0-9_./@-]{1,64}")
MOST_KEYS = 64


class Trainings:
    """Methods may be called from any thread."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else folder.resolve()
        self._lock = Lock()
        self._places: OrderedDict[tuple[str, str, int], int] = OrderedDict()  # run, version, line -> its byte

    def listed(self) -> list[dict[str, Any]]:
        """Where each run stands: those that train first, then the newest."""
        if self.folder is None:
            return []
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except OSError:  # it is gone
            return []
        paths = [path for name in names if (path := self._inside(name)) is not None]
        found = [self._card(path) for path in sorted(paths, key=_updated, reverse=True)[:MOST_RUNS]]
        return sorted(found, key=lambda card: card["state"] != "running")

    def lines(self, name: str, start: int) -> dict[str, Any]:
        """The measurements from line `start` on, as many as an answer may have. ApiError if there is no such run."""
        path = self._inside(name)
        if path is None:
            raise ApiError(404, "there is no such run in the server's folder", code="run_not_found", param="run")
        nothing: tuple[str, int, list[bytes], bool] = ("", 0, [], False)
        version, last, lines, more = nothing
        if (metrics := _metrics(path)) is not None:
            try:
                with metrics.open("rb") as file:
                    version = _version(file)
                    last, lines, more = self._read(file, name, version, start)
            except OSError:
                version, last, lines, more = nothing
        numbers = [entry for line in lines if (entry := _numbers(line))]
        return {
            "object": "training.lines", "training": self._card(path), "version": version, "start": start,
            "next": last, "more": more, "lines": numbers,
        }  # fmt: skip

    def _read(self, file: BinaryIO, name: str, version: str, start: int) -> tuple[int, list[bytes], bool]:
        """The number of the line behind the last one, the lines from `start` on, whether there are more.

        Where the last answer ended is remembered: who asks for what is new costs no reading of what is old.
        """
        if (size := os.fstat(file.fileno()).st_size) > MOST_METRICS:
            message = f"the run's metrics.jsonl has more than {MOST_METRICS >> 20} MiB"
            raise ApiError(400, message, code="too_many_lines", param="run")
        with self._lock:
            place = self._places.get((name, version, start), -1)
        if not 0 <= place <= size:
            file.seek(0)
            skipped = [len(line) for line in islice(file, start) if line.endswith(b"\n")]
            if len(skipped) < start:
                return len(skipped), [], False
            place = sum(skipped)
        file.seek(place)
        lines = [line for line in islice(file, MOST_LINES + 1) if line.endswith(b"\n")]  # the last may be being written
        more = len(lines) > MOST_LINES
        lines = lines[:MOST_LINES]
        last = start + len(lines)
        with self._lock:
            self._places[name, version, last] = place + sum(map(len, lines))
            while len(self._places) > KEPT:
                self._places.popitem(last=False)
        return last, lines, more

    def _inside(self, name: str) -> Path | None:
        """The run of this name; None where there is none, or it leads out of the folder."""
        if self.folder is None or not is_id(name):
            return None
        path = self.folder / name
        try:
            inside = path.is_dir() and path.resolve().parent == self.folder
            return path if inside and any(_file(path, name) for name in (RECIPE, METRICS, LOCK)) else None
        except OSError:
            return None

    def _card(self, path: Path) -> dict[str, Any]:
        trains = _file(path, LOCK) is not None and is_training(path)
        done = not trains and _file(path, MANIFEST) is not None  # written last, and taken away first
        progress = _known(_metrics(path), _progress) or {}
        steps = progress.get("steps") or _known(_file(path, RECIPE), _max_steps)
        step, pace = progress.get("step"), progress.get("pace")
        left = None if not trains or None in (step, steps, pace) else number(max(0.0, (steps - step) * pace))
        return {
            "id": path.name, "state": "running" if trains else "done" if done else "stopped", "step": step,
            "max_steps": steps, "seconds": progress.get("seconds"), "seconds_left": left,
            "updated": int(_updated(path)),
        }  # fmt: skip


def _file(folder: Path, name: str) -> Path | None:
    """An ordinary file of a run; None where there is none, or it is a link to somewhere else."""
    path = folder / name
    return path if path.is_file() and path.resolve().parent == folder.resolve() else None


def _metrics(path: Path) -> Path | None:
    """The run's measurements; those of what it learns first, as long as there are no others."""
    found = _file(path, METRICS)
    before = path / BEFORE
    if found is None and before.is_dir() and before.resolve().parent == path.resolve():
        return _file(before, METRICS)
    return found


def _version(file: BinaryIO) -> str:
    """Tells a file from one that was written anew: by its number, which may come back, and its first line's time."""
    known, first = os.fstat(file.fileno()), file.readline(TAIL)  # a file of one endless line is not read whole
    begun = len(first) == TAIL or first.endswith(b"\n")
    mark = hashlib.sha256(first).hexdigest()[:12] if begun else "new"
    return f"{known.st_dev:x}-{known.st_ino:x}-{mark}"


def _updated(path: Path) -> float:
    """When the run last wrote something; seconds. 0: it is gone."""
    try:
        files = [_metrics(path), *(_file(path, name) for name in (RECIPE, LOCK, MANIFEST))]
        return max((file.stat().st_mtime for file in files if file), default=0.0)
    except OSError:
        return 0.0


def _known(path: Path | None, read: Any) -> Any:
    """What `read` makes of a file, read again when it has changed; None where it is not there or cannot be read."""
    if path is None:
        return None
    try:
        now = path.stat()
        return read(path, now.st_mtime_ns, now.st_size)
    except (OSError, ValueError, RecursionError):
        return None


@lru_cache(KEPT)
def _max_steps(path: Path, changed: int, size: int) -> int | None:
    """How many steps the recipe has."""
    if size > MOST_RECIPE:
        return None
    table = tomllib.loads(path.read_text(encoding="utf-8")).get("train")
    steps = number(table.get("max_steps")) if isinstance(table, dict) else None
    return None if steps is None or not 0 < steps < 2**53 else int(steps)


@lru_cache(KEPT)
def _progress(path: Path, changed: int, size: int) -> dict[str, float]:
    """The last step, the seconds up to it, and those of a step, by the last lines."""
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        entries = [_numbers(line) for line in file.read(TAIL).split(b"\n")]
    steps = [entry["step"] for entry in entries if 0 <= entry.get("step", -1) < 2**53]
    timed = [(e["step"], e["seconds"]) for e in entries if e.get("step", 0) >= 1 and e.get("seconds", -1) >= 0]
    found: dict[str, float] = {"step": int(steps[-1])} if steps else {}
    planned = [entry["max_steps"] for entry in entries if 0 < entry.get("max_steps", 0) < 2**53]
    if planned:
        found["steps"] = int(planned[-1])
    if timed:
        (first, began), (last, ended) = timed[0], timed[-1]
        found["seconds"] = ended
        found["pace"] = (ended - began) / (last - first) if last > first and ended >= began else ended / last
    return found


def _numbers(line: bytes) -> dict[str, float]:
    """The numbers of a measurement that have names."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(entry, dict):
        return {}
    named = ((key, number(value)) for key, value in list(entry.items())[:MOST_KEYS] if KEY.fullmatch(key))
    return {key: value for key, value in named if value is not None}
