"""Held-out text: the part of the documents that the model never learns from.

The pieces of one text (a book) are split at a point near its end: what is held out is the last twentieth, whole. Other
documents are split by a hash of (seed, index), so that each document's side is known without any other. Documents that
repeat one another, exactly or nearly, and documents of one group go to one side: a model is not tested on what it read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Literal, Protocol, runtime_checkable

from zhixing.errors import InputError
from zhixing.progress import Progress
from zhixing.text import cleaning
from zhixing.text.readers import Documents, Record

LEAST = 200  # characters that a text must have to be split

BREAKS = re.compile(r"\n\n+|\n|[。！？!?]+[”’」』\"')]*|\.[”’\"')]*(?=\s)\s|\s")


@runtime_checkable
class Source(Protocol):
    """Documents that can be read again and again: text.readers.Documents, or another split."""

    one_text: bool

    def records(self) -> Iterator[Record]: ...


class TextList:
    """Documents in memory, for callers that have a list of strings."""

    def __init__(self, texts: Iterable[str], *, one_text: bool = False) -> None:
        self.texts, self.one_text = list(texts), one_text

    def records(self) -> Iterator[Record]:
        return (Record(text) for text in self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


@dataclass(frozen=True)
class SplitReport:
    """How the documents were split. `leaked_*` are held-out documents that a training document repeats, before they
    were moved to the training side; none of them is left."""

    method: Literal["tail", "random"]
    train_documents: int
    heldout_documents: int
    train_characters: int
    heldout_characters: int
    leaked_exact: int
    leaked_near: int

    def summary(self) -> str:
        """One line for a person."""
        share = self.heldout_characters / (self.heldout_characters + self.train_characters)
        how = "the end of the text" if self.method == "tail" else "documents drawn at random"
        moved = self.leaked_exact + self.leaked_near
        size = f"{self.heldout_documents:,} documents, {self.heldout_characters:,} characters ({share:.1%})"
        return f"held out: {size}, {how}" + (f"; {moved} repeated ones moved to training" if moved else "")


class Part:
    """One side of a split. Iterate as often as you like; each pass reads the source again."""

    def __init__(self, source: Source, side: Callable[[int, Record], str], documents: int, characters: int) -> None:
        self.source, self.side = source, side
        self.n_documents, self.n_characters = documents, characters
        self.one_text = source.one_text

    def records(self) -> Iterator[Record]:
        for index, record in enumerate(self.source.records()):
            text = self.side(index, record)
            if text:
                yield Record(text, record.group)

    def __iter__(self) -> Iterator[str]:
        return (record.text for record in self.records())

    def __len__(self) -> int:
        return self.n_documents


@dataclass(frozen=True)
class Split:
    train: Part
    heldout: Part
    report: SplitReport

    def __iter__(self) -> Iterator[Any]:
        """``train, heldout = split_documents(...)``"""
        return iter((self.train, self.heldout))


def split_documents(
    documents: Source | Iterable[str],
    heldout_fraction: float,
    seed: int,
    *,
    heldout: Literal["auto", "tail", "random"] = "auto",
    near: bool = True,
) -> Split:
    """Split into training and held-out documents, the same ones for the same documents, fraction and seed.

    `heldout` "auto" is "tail" for the pieces of one text and for a single document, else "random". `near` looks for
    near duplicates besides exact ones (a second for two million characters).
    """
    if not 0 < heldout_fraction < 1:
        raise InputError(
            f"heldout_fraction is {heldout_fraction}",
            where="data.heldout_fraction",
            mend="give a share between 0 and 1, such as 0.05",
        )
    if not isinstance(documents, Source):
        documents = TextList(documents)
    sizes, units, exact, repeats = _survey(documents, near=near)
    total = sum(sizes)
    if total < LEAST:
        raise InputError(
            "there is too little text to split",
            why=f"{total} characters in {len(sizes)} documents, at least {LEAST} are needed",
            mend="give more text",
        )
    tail = heldout == "tail" or (heldout == "auto" and documents.one_text) or len(set(units)) < 2
    if tail:
        return _split_tail(documents, sizes, heldout_fraction, exact, repeats)
    return _split_random(documents, sizes, units, heldout_fraction, seed, exact, repeats)


def _survey(documents: Source, *, near: bool) -> tuple[list[int], list[str], dict[int, int], dict[int, int]]:
    """Characters and unit (group, or own number) of each document; exact and near repeats with the earlier one."""
    sizes: list[int] = []
    units: list[str] = []
    first: dict[bytes, int] = {}
    exact: dict[int, int] = {}

    def look(progress: Progress) -> Iterator[str]:
        for index, record in enumerate(documents.records()):
            sizes.append(len(record.text))
            units.append(f"group {record.group}" if record.group is not None else str(index))
            earlier = first.setdefault(cleaning.text_key(record.text), index)
            if earlier != index:
                exact[index] = earlier
            yield record.text
            progress.update(documents.bytes_read if isinstance(documents, Documents) else index + 1)

    total, unit = (documents.total_bytes, "B") if isinstance(documents, Documents) else (None, "documents")
    with Progress("comparing documents", total, unit) as progress:
        if not near:
            for _ in look(progress):
                pass
            return sizes, units, exact, {}
        passes = chain([look(progress)], repeat(None))
        found = cleaning.near_duplicates(lambda: next(passes) or (r.text for r in documents.records()))
    return sizes, units, exact, {later: earlier for later, earlier in found.items() if later not in exact}


def _split_random(
    documents: Source,
    sizes: list[int],
    units: list[str],
    fraction: float,
    seed: int,
    exact: dict[int, int],
    near: dict[int, int],
) -> Split:
    """Whole units (documents, groups) in the order of their hash, the smallest ones held out."""
    marks = sorted({_mark(seed, unit) for unit in units})
    count = min(round(fraction * len(marks)), len(marks) - 1)
    if count:
        out = [_mark(seed, unit) <= marks[count - 1] for unit in units]
    else:  # so few that one of them is more than the share: the one nearest to it
        one = _nearest_unit(units, sizes, fraction)
        out = [unit == one for unit in units]
    together, leaks = _one_side(units, exact, near, out)
    if not any(together):  # everything repeats: then whole documents cannot be told apart, and the first split stands
        together, leaks = out, (0, 0)

    def train(index: int, record: Record) -> str:
        return "" if together[index] else record.text

    def held(index: int, record: Record) -> str:
        return record.text if together[index] else ""

    characters = sum(size for size, is_out in zip(sizes, together, strict=True) if is_out)
    number = sum(together)
    report = SplitReport("random", len(sizes) - number, number, sum(sizes) - characters, characters, *leaks)
    return Split(
        Part(documents, train, report.train_documents, report.train_characters),
        Part(documents, held, number, characters),
        report,
    )


def _nearest_unit(units: list[str], sizes: list[int], fraction: float) -> str:
    """The unit whose share of the text is nearest to `fraction`, of those long enough to say something."""
    total: dict[str, int] = {}
    for unit, size in zip(units, sizes, strict=True):
        total[unit] = total.get(unit, 0) + size
    enough = [unit for unit in total if total[unit] >= LEAST and sum(sizes) - total[unit] >= LEAST] or list(total)
    return min(enough, key=lambda unit: abs(total[unit] - fraction * sum(sizes)))


def _mark(seed: int, unit: str) -> int:
    """Where a unit falls between 0 and 2^64, at random but always the same."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {unit}".encode(), digest_size=8).digest(), "big")


def _one_side(
    units: list[str], exact: dict[int, int], near: dict[int, int], out: list[bool]
) -> tuple[list[bool], tuple[int, int]]:
    """Move held-out documents that are tied, by repetition or group, to a training document over to training."""
    parent = {unit: unit for unit in units}

    def root(unit: str) -> str:
        while parent[unit] != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    for later, earlier in (exact | near).items():
        parent[root(units[later])] = root(units[earlier])
    in_training = {root(unit) for unit, is_out in zip(units, out, strict=True) if not is_out}
    together = [is_out and root(unit) not in in_training for unit, is_out in zip(units, out, strict=True)]
    leaks = [0, 0]
    for kind, ties in enumerate((exact, near)):
        leaks[kind] = sum(out[later] != out[earlier] for later, earlier in ties.items())
    return together, (leaks[0], leaks[1])


def _split_tail(
    documents: Source, sizes: list[int], fraction: float, exact: dict[int, int], near: dict[int, int]
) -> Split:
    """The end of the text held out; the document that the point falls into is cut at a paragraph or a sentence."""
    total = sum(sizes)
    held_out = max(1, round(total * fraction))
    point = total - held_out
    start = 0
    for at, size in enumerate(sizes):  # noqa: B007  (the loop finds the document that holds the point)
        if start + size > point:
            break
        start += size
    text = next(record.text for index, record in enumerate(documents.records()) if index == at)
    reach = max(20, min(2000, held_out // 4))
    cut = cut_near(text, point - start, reach, low=1 if at == 0 else 0, high=len(text) - (at == len(sizes) - 1))
    # A held-out document that repeats one before the point is given to training.
    moved_exact = {i for i, j in exact.items() if i > at and j <= at}
    moved_near = {i for i, j in near.items() if i > at and j <= at} - moved_exact
    moved = moved_exact | moved_near
    if all(i in moved for i in range(at + 1, len(sizes))) and cut >= len(text):
        moved, moved_exact, moved_near = set(), set(), set()

    def train(index: int, record: Record) -> str:
        return record.text if index < at or index in moved else record.text[:cut] if index == at else ""

    def held(index: int, record: Record) -> str:
        return "" if index < at or index in moved else record.text[cut:] if index == at else record.text

    after = [i for i in range(at + 1, len(sizes)) if i not in moved]
    characters = sum(sizes[i] for i in after) + len(text) - cut
    heldout_documents = len(after) + (cut < len(text))
    report = SplitReport(
        "tail",
        at + (cut > 0) + len(moved),
        heldout_documents,
        total - characters,
        characters,
        len(moved_exact),
        len(moved_near),
    )
    return Split(
        Part(documents, train, report.train_documents, report.train_characters),
        Part(documents, held, heldout_documents, characters),
        report,
    )


def cut_near(text: str, point: int, reach: int, *, low: int, high: int) -> int:
    """The end of a paragraph within `reach` of `point`, else of a line, a sentence or a word, else `point` itself.

    A better kind of place wins over a nearer one. The answer lies in low..high.
    """
    first, last = max(low, point - reach), min(high, point + reach)
    best: dict[int, int] = {}
    for match in BREAKS.finditer(text, first, last):
        found = match[0]
        rank = 0 if found.startswith("\n\n") else 1 if found == "\n" else 3 if found.isspace() else 2
        if low <= match.end() <= high and (rank not in best or abs(match.end() - point) < abs(best[rank] - point)):
            best[rank] = match.end()
    return best[min(best)] if best else min(max(point, low), high)
