"""What a person sees while something takes long: how far, how fast, how long still. All of it on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO


def say(text: str = "", *, stream: TextIO | None = None) -> None:
    """One line for the person watching; stdout stays free for results."""
    print(text, file=stream or sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """3.2 s, 2 min 05 s, 1 h 04 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def quantity(number: float, unit: str = "") -> str:
    """1234567 -> 1.23M; with a unit, '1.23 MB'."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:  # 999,999 has the three digits of 1M
            text = f"{number / factor:.3g}"
            return f"{text} {letter}{unit}" if unit else f"{text}{letter}"
    return f"{number:.3g} {unit}" if unit else f"{number:.3g}"


class Progress:
    """A line that is rewritten in place on a terminal, and printed now and then elsewhere.

    Nothing is shown in the first two seconds: short work needs no progress. NO_COLOR and a stream that is no
    terminal give plain lines.
    """

    def __init__(self, title: str, total: float | None = None, unit: str = "", stream: TextIO | None = None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self.began = self.shown = time.monotonic()
        self.done = 0.0
        self.first: tuple[float, float] | None = None
        self.width = 0

    def update(self, done: float, note: str = "") -> None:
        """`done` of `total` so far; `note` is added to the line."""
        self.done = done
        now = time.monotonic()
        if self.first is None:
            self.first = now, done
        if now - self.began < 2 or now - self.shown < (0.2 if self.live else 15):
            return
        self.shown = now
        self._write(self._line(now, note))

    def _line(self, now: float, note: str) -> str:
        parts = [self.title]
        if self.total:
            share = min(self.done / self.total, 1.0)
            filled = int(share * 20)
            parts.append(f"{'█' * filled}{'░' * (20 - filled)} {share:4.0%}")
            began, before = self.first or (self.began, 0.0)
            if self.done > before:  # counted from the first report: what came before it was starting, not work
                parts.append(f"{duration((now - began) * (self.total - self.done) / (self.done - before))} left")
        else:
            parts.append(quantity(self.done, self.unit))
        if note:
            parts.append(note)
        return "  ".join(parts)

    def _write(self, line: str) -> None:
        if self.live:
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self, note: str = "") -> None:
        """End the line; `note` replaces it."""
        if self.live and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
        if note:
            self.stream.write(note + "\n")
        self.stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
