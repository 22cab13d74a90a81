"""Pairs of texts, one the translation (or the summary, or the reply) of the other: reading and cleaning, all counted.

    read_pairs(source, settings)                   pairs of a data set by name, of files or a folder
    read_directions(sets, settings)                pairs of several sets, each with its languages
    split_pairs(pairs, heldout_fraction, seed)     two parts: groups on one side, no held-out text in training

From jsonl, csv, tsv and parquet with a column for each side, or one column {"translation": {"en": ..., "zh": ...}};
from two files whose lines belong together, `A,B`; and from TMX, the exchange format of translation memories.

Lengths are compared in UTF-8 bytes: an English sentence and its Chinese translation have about as many, though one has
four times the characters.
"""

from __future__ import annotations

import hashlib
import re
import xml.parsers.expat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from zhixing.errors import InputError
from zhixing.progress import Progress, say
from zhixing.recipe import DataSettings, PairSet
from zhixing.text import catalogue, cleaning, readers
from zhixing.text.readers import Bad, Row, SourceFile

OnSuspect = Literal["drop", "keep"]
Side = Literal["source", "target"]
SIDES: tuple[Side, ...] = ("source", "target")

SLACK = 20  # bytes that a side may have more whatever the ratio: short texts differ by a word
SWAPPED = 0.8  # of the pairs whose sides are in each other's script: then the columns are taken the wrong way round
FEWEST = 20  # pairs, to say anything about all of them
PLACES_KEPT = readers.PLACES_KEPT
TRANSLATION = "translation"  # the column that holds a text for each language
DOCUMENT, SUMMARY = "document", "summary"  # columns taken for source and target where these are missing

LATIN, HAN = r"A-Za-z\u00c0-\u024f", r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
SCRIPTS = {
    "latin": re.compile(f"[{LATIN}]"),
    "han": re.compile(f"[{HAN}]"),
    "japanese": re.compile(f"[{HAN}\u3040-\u30ff]"),
    "hangul": re.compile("[\uac00-\ud7af]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "arabic": re.compile("[\u0600-\u06ff]"),
    "greek": re.compile("[\u0370-\u03ff]"),
}
_HALF = re.compile("[\ud800-\udfff]")
LANGUAGES = {"zh": "han", "ja": "japanese", "ko": "hangul", "ru": "cyrillic", "uk": "cyrillic", "bg": "cyrillic",
             "ar": "arabic", "fa": "arabic", "el": "greek", "en": "latin", "de": "latin", "fr": "latin", "es": "latin",
             "it": "latin", "pt": "latin", "nl": "latin", "pl": "latin", "sv": "latin", "cs": "latin"}  # fmt: skip


@dataclass(frozen=True)
class PairSettings:
    """How pairs are read. Languages are codes such as en and zh: for the sides of a TMX and the check of scripts."""

    source_column: str = "source"
    target_column: str = "target"
    source_language: str = ""
    target_language: str = ""
    max_ratio: float = 4.0  # of the longer side to the shorter, in bytes; 0: any
    identical: OnSuspect = "drop"  # pairs whose sides are the same
    repeats: OnSuspect = "drop"  # a pair that came before
    on_bad_record: Literal["fail", "skip", "quarantine"] = "fail"
    normalize: Literal["none", "NFC", "NFKC"] = "NFC"
    language_columns: bool = False  # a row may say its own languages, in source_language and target_language


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and a group (a file, a package, or "") that no split tears apart.

    The languages are set where pairs of several directions are together, else empty.
    """

    source: str
    target: str
    group: str = ""
    source_language: str = ""
    target_language: str = ""

    @property
    def direction(self) -> str:
        """From which language to which: en>zh; empty where there is only one direction."""
        return f"{self.source_language}>{self.target_language}" if self.target_language else ""


@dataclass
class PairCounts:
    """What reading met. `read` is all pairs; those that were left out are counted by the first reason that held."""

    read: int = 0
    kept: int = 0
    empty_side: int = 0
    identical: int = 0
    length_ratio: int = 0
    wrong_script: int = 0
    repeated: int = 0
    bad_records: int = 0
    bad_places: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pairs:
    """Pairs in the order of their source; `places` says where each one stands."""

    name: str
    pairs: list[Pair]
    places: list[str]
    counts: PairCounts

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def fingerprint(self) -> str:
        """SHA-256 over the pairs and groups in their order."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            direction = (pair.direction,) if pair.direction else ()
            digest.update("\0".join((pair.source, pair.target, pair.group, *direction)).encode() + b"\n")
        return digest.hexdigest()

    def directions(self) -> dict[str, list[int]]:
        """The indices of each direction's pairs, in the order in which they come; {"": all} where there is only one."""
        found: dict[str, list[int]] = {}
        for i, pair in enumerate(self.pairs):
            found.setdefault(pair.direction, []).append(i)
        return found

    def pick(self, indices: Iterable[int]) -> Pairs:
        """The pairs of these indices, in this order."""
        wanted = list(indices)
        return replace(self, pairs=[self.pairs[i] for i in wanted], places=[self.places[i] for i in wanted])


def read_pairs(source: str, settings: PairSettings | None = None, *, quarantine: Path | None = None) -> Pairs:
    """The pairs of a data set by name, a file, a folder, or two files `A,B` whose lines belong together.

    A data set's languages are those of the catalogue where none are set, and its sides are swapped where they are set
    the other way round. Of a column "translation" the two languages are read; where there is no source and no target,
    "document" and "summary" are. What is left out is counted and said. InputError: two files of unequal length, sides
    that are plainly the wrong way round, a bad record where on_bad_record is "fail", nothing left.
    """
    s = settings or PairSettings()
    if s.max_ratio != 0 and not s.max_ratio >= 1:
        raise InputError(f"max_ratio = {s.max_ratio}", why="a longer side is never shorter", mend="0, or 1 and more")
    if source in catalogue.names():
        s = _for_dataset(source, s)
    counts = PairCounts()
    kept: list[Pair] = []
    places: list[str] = []
    seen = set[bytes]()
    scripts = _Scripts(s.source_language, s.target_language)
    with (
        readers.Quarantine(quarantine or Path("quarantine.jsonl")) as aside,
        Progress(f"reading {source}", None, "pairs") as progress,
    ):
        for item in _items(source, s):
            if isinstance(item, Bad):
                if s.on_bad_record == "fail":
                    raise item.error
                counts.bad_records += 1
                if len(counts.bad_places) < PLACES_KEPT:
                    counts.bad_places.append(f"{item.error.where}: {item.error.what}")
                if s.on_bad_record == "quarantine":
                    aside.add(item)
                continue
            pair, where = item
            pair = replace(pair, source=_clean(pair.source, s), target=_clean(pair.target, s))
            counts.read += 1
            scripts.see(pair)
            if reason := _reason(pair, s, scripts, seen):
                setattr(counts, reason, getattr(counts, reason) + 1)
            else:
                kept.append(pair)
                places.append(where)
            progress.update(counts.read)
    scripts.refuse_swapped(source)
    counts.kept = len(kept)
    if not kept:
        told = ", ".join(f"{name} {number}" for name, number in _left_out(counts)) or "it holds none"
        raise InputError(f"no pair is left of {source!r}", why=told, mend="look at the first rows of the source")
    if left_out := _left_out(counts):
        told = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in left_out)
        say(f"{source}: {len(kept):,} of {counts.read:,} pairs are kept; left out: {told}")
    return Pairs(source, kept, places, counts)


def read_directions(
    sets: Sequence[PairSet], settings: PairSettings | None = None, *, quarantine: Path | None = None
) -> Pairs:
    """The pairs of several sets, each with its languages; those of a set that is taken both ways turned round behind.

    A group means the same in all sets: a page that is there in three languages is one. A pair that comes again in the
    same direction is left out and counted. InputError as in `read_pairs`.
    """
    pairs: list[Pair] = []
    places: list[str] = []
    counts = PairCounts()
    seen = set[Pair]()
    for number, each in enumerate(sets):
        s = replace(
            settings or PairSettings(), source_language=each.source_language, target_language=each.target_language
        )
        aside = quarantine and quarantine.with_name(f"{quarantine.stem}{number or ''}{quarantine.suffix}")
        found = read_pairs(each.source, s, quarantine=aside)
        counts = _sum(counts, found.counts)
        for turned in (False, True)[: 1 + each.both_ways]:
            for pair, place in zip(found, found.places, strict=True):
                new = replace(pair, source_language=each.source_language, target_language=each.target_language)
                if turned:
                    new = Pair(pair.target, pair.source, pair.group, each.target_language, each.source_language)
                if (key := replace(new, group="")) in seen:
                    counts.repeated += 1
                    continue
                seen.add(key)
                pairs.append(new)
                places.append(place)
    counts.kept = len(pairs)
    return Pairs(", ".join(dict.fromkeys(each.source for each in sets)), pairs, places, counts)


def _sum(a: PairCounts, b: PairCounts) -> PairCounts:
    """The counts of two readings together."""
    places = [*a.bad_places, *b.bad_places][:PLACES_KEPT]
    numbers = {f.name: getattr(a, f.name) + getattr(b, f.name) for f in fields(a) if f.name != "bad_places"}
    return PairCounts(**numbers, bad_places=places)


def _left_out(counts: PairCounts) -> list[tuple[str, int]]:
    names = ("empty_side", "identical", "length_ratio", "wrong_script", "repeated", "bad_records")
    return [(name, number) for name in names if (number := getattr(counts, name))]


def _clean(text: str, s: PairSettings) -> str:
    text, _ = cleaning.normalize(readers.unix(text), s.normalize)
    return " ".join(cleaning.remove_controls(text)[0].split())


def _reason(pair: Pair, s: PairSettings, scripts: _Scripts, seen: set[bytes]) -> str:
    """Why a pair is left out: the name of its count, or ""."""
    if not pair.source or not pair.target:
        return "empty_side"
    if s.identical == "drop" and pair.source.casefold() == pair.target.casefold():
        return "identical"
    short, long = sorted((len(pair.source.encode()), len(pair.target.encode())))
    if s.max_ratio and long > s.max_ratio * short + SLACK:
        return "length_ratio"
    if not scripts.fits(pair):
        return "wrong_script"
    key = hashlib.blake2b(f"{pair.source}\0{pair.target}".encode(), digest_size=16).digest()
    if s.repeats == "drop" and key in seen:
        return "repeated"
    seen.add(key)
    return ""


class _Scripts:
    """Whether the sides are written in the script of their language."""

    def __init__(self, source_language: str, target_language: str) -> None:
        names = [LANGUAGES.get(_plain(language), "") for language in (source_language, target_language)]
        self.source, self.target = (SCRIPTS.get(name) for name in names)
        self.told_apart = bool(self.source and self.target) and names[0] != names[1]
        self.looked_at = self.crossed = 0

    def see(self, pair: Pair) -> None:
        """Count whether each side is in the other's script and not in its own."""
        if not self.told_apart or not pair.source or not pair.target:
            return
        assert self.source is not None and self.target is not None
        self.looked_at += 1
        source_is_target = self.target.search(pair.source) and not _mostly(self.source, pair.source)
        target_is_source = self.source.search(pair.target) and not _mostly(self.target, pair.target)
        self.crossed += bool(source_is_target and target_is_source)

    def fits(self, pair: Pair) -> bool:
        """Each side that has letters has one of its script."""
        return all(
            script is None or script.search(text) or not any(map(str.isalpha, text))
            for script, text in ((self.source, pair.source), (self.target, pair.target))
        )

    def refuse_swapped(self, name: str) -> None:
        if self.looked_at >= FEWEST and self.crossed > SWAPPED * self.looked_at:
            raise InputError(
                f"the two sides of {name!r} seem to be the wrong way round",
                why=f"{self.crossed:,} of {self.looked_at:,} pairs are each in the other's script",
                mend="swap source_language and target_language, or the columns (of two files: their order)",
            )


def _mostly(script: re.Pattern[str], text: str) -> bool:
    return 2 * len(script.findall(text)) > sum(map(str.isalpha, text))


# ---- where pairs come from


Item = tuple[Pair, str] | Bad


def _pair_sets() -> list[str]:
    return [entry.name for entry in catalogue.list_datasets() if entry.task in catalogue.PAIR_TASKS]


def _for_dataset(name: str, s: PairSettings) -> PairSettings:
    """The settings with the languages of a named data set, whose columns change places if these are swapped."""
    entry = catalogue.show_dataset(name)
    if entry.task not in catalogue.PAIR_TASKS:
        raise InputError(
            f"the data set {name!r} holds no pairs",
            why=f"it is {entry.title}",
            mend=f"the data sets of pairs are {', '.join(_pair_sets())}",
        )
    if entry.task != "translation":
        return s
    given = [_plain(s.source_language), _plain(s.target_language)]
    if given in (entry.languages[::-1], ["", entry.languages[0]], [entry.languages[1], ""]):
        s = replace(s, source_column=s.target_column, target_column=s.source_column)
        return replace(s, source_language=entry.languages[1], target_language=entry.languages[0])
    for language, own in zip(given, entry.languages, strict=True):
        if language not in ("", own):
            raise InputError(
                f"the data set {name!r} is not from {s.source_language!r} to {s.target_language!r}",
                why=f"its languages are {' and '.join(entry.languages)}",
                mend="set source_language and target_language to these, in either order, or to nothing",
            )
    return replace(s, source_language=entry.languages[0], target_language=entry.languages[1])


def languages_of(source: str, s: PairSettings) -> tuple[str, str]:
    """From which language to which: those that are set, else those of a named data set; "" if neither is known."""
    if source in catalogue.names():
        s = _for_dataset(source, s)
    return s.source_language, s.target_language


def _plain(language: str) -> str:
    """en of en-US and en_gb."""
    return re.split("[-_]", language.lower())[0]


def _items(source: str, s: PairSettings) -> Iterator[Item]:
    if source in catalogue.names():
        for path in catalogue.dataset_files(source):
            yield from _rows(readers.source_file(path, path.name), s)
        return
    if "," in source and not Path(source).exists():
        first, _, second = source.partition(",")
        yield from _aligned(Path(first.strip()), Path(second.strip()))
        return
    path = Path(source).expanduser()
    if path.suffix.lower() == ".tmx":
        yield from _tmx(path, s)
        return
    files, skipped = readers.find_files(source, DataSettings(on_bad_record=s.on_bad_record))
    passed_over = [file.name for file in files if file.kind == "text"] + [name for name, _ in skipped]
    files = [file for file in files if file.kind != "text"]
    tmx = sorted(path.rglob("*.tmx")) if path.is_dir() else []
    if not files and not tmx:
        name, reason = skipped[0] if skipped else (source, "running text has no pairs")
        raise InputError(
            f"there are no pairs in {source!r}",
            where=name,
            why=reason,
            mend="give .jsonl, .csv, .tsv or .parquet with a column for each side, a .tmx, or two files A,B",
        )
    passed_over = [name for name in passed_over if not name.endswith(".tmx")]
    if passed_over:
        say(f"{source}: {len(passed_over):,} files hold no pairs and are not read, the first: {passed_over[0]}")
    for file in files:
        readers.check_readable(file)
        yield from _rows(file, s)
    for each in tmx:
        yield from _tmx(each, s)


def _rows(file: SourceFile, s: PairSettings) -> Iterator[Item]:
    usual = (s.source_column, s.target_column) == (PairSettings.source_column, PairSettings.target_column)
    told = False

    def columns_of(names: list[str], where: str) -> list[str]:
        """The columns that hold the sides: two, or the one of translations."""
        nonlocal told
        wanted = [s.source_column, s.target_column]
        if usual and TRANSLATION in names and not set(wanted) & set(names):
            return [TRANSLATION]
        if usual and {DOCUMENT, SUMMARY} <= set(names) and not set(wanted) & set(names):
            if not told:
                say(f"{file.name}: {DOCUMENT!r} is taken as the source, {SUMMARY!r} as the target")
                told = True
            return [DOCUMENT, SUMMARY]
        for column, setting in zip(wanted, ("source_column", "target_column"), strict=True):
            if column not in names:
                raise readers.missing_column(column, names, where, setting=setting)
        return wanted

    further = ["group", *(["source_language", "target_language"] if s.language_columns else [])]

    def choose(names: list[str], where: str) -> list[str]:
        return columns_of(names, where) + [name for name in further if name in names]

    rows: Iterator[Row | Bad]
    if file.kind == "jsonl":
        rows = readers.json_rows(file)
    elif file.kind == "parquet":
        rows = readers.parquet_rows(file, choose)
    else:
        rows = readers.csv_rows(file, choose)
    for row in rows:
        if isinstance(row, Bad):
            yield row
            continue
        try:
            columns = columns_of(list(row.values), row.where)
            sides = [row.values[column] for column in columns]
            if columns == [TRANSLATION]:
                columns, sides = _languages_of(sides[0], row.where, s)
        except InputError as error:
            yield row.bad(error)
            continue
        wrong = next((at for at, side in enumerate(sides) if not isinstance(side, str | None)), None)
        if wrong is not None:
            why = f"it is a {type(sides[wrong]).__name__}"
            yield row.bad(InputError(f"{columns[wrong]} is no text", where=row.where, why=why, mend=readers.MEND_SKIP))
            continue
        said = ["" if (value := row.values.get(name)) is None else str(value) for name in further]
        half = next((at for at, text in enumerate([*sides, *said]) if text and _HALF.search(text)), None)
        if half is not None:
            what = [*columns, *further][half]
            why, mend = "it has a lone surrogate, which is no character", readers.MEND_SKIP
            yield row.bad(InputError(f"{what} holds half a character", where=row.where, why=why, mend=mend))
            continue
        yield Pair(sides[0] or "", sides[1] or "", *said), row.where


def _languages_of(texts: Any, where: str, s: PairSettings) -> tuple[list[str], list[Any]]:
    """The two texts of {"en": ..., "zh": ...}, and what they are called."""
    if not (s.source_language and s.target_language):
        raise InputError(
            f"{TRANSLATION!r} holds several languages", where=where, mend="set source_language and target_language"
        )
    if not isinstance(texts, dict):
        why = f"it is a {type(texts).__name__}"
        raise InputError(f"{TRANSLATION!r} holds no texts by language", where=where, why=why, mend=readers.MEND_SKIP)
    folded = {str(name).lower(): text for name, text in texts.items()}
    names = [s.source_language, s.target_language]
    sides = [_variant(folded, name) for name in names]
    for name, side in zip(names, sides, strict=True):
        if side is None:
            raise InputError(
                f"{TRANSLATION!r} holds nothing in {name!r}",
                where=where,
                why=f"its languages are {', '.join(map(str, texts)) or 'none'}",
                mend=readers.MEND_SKIP,
            )
    return [f"{TRANSLATION}.{name}" for name in names], list(sides)


def _aligned(first: Path, second: Path) -> Iterator[Item]:
    """Two files, line by line. They must have as many lines."""
    files = []
    for path in (first, second):
        if path.is_file() and readers.file_kind(path.name) is None:  # train.en and train.zh end in their language
            packed = next((end for end in readers.PACKED_ENDINGS if path.name.lower().endswith(end)), "")
            facts = path.stat()
            file = SourceFile(path, str(path), "text", packed, facts.st_size, facts.st_mtime_ns)
        else:
            found, _ = readers.find_files(str(path), DataSettings())
            if len(found) != 1 or found[0].kind != "text":
                raise InputError(f"{str(path)!r} is no file of lines", mend="give two text files: source,target")
            file = found[0]
        readers.check_readable(file)
        files.append(file)
    lengths = [sum(1 for _ in readers.record_lines(file)) for file in files]
    if lengths[0] != lengths[1]:
        raise InputError(
            "the two files have not as many lines",
            where=f"{files[0].name}: {lengths[0]:,}, {files[1].name}: {lengths[1]:,}",
            why="line by line they are pairs; behind a line that is missing all would be wrong",
            mend="align them again, or give a .tsv with both sides in a row",
        )
    for left, right in zip(readers.record_lines(files[0]), readers.record_lines(files[1]), strict=True):
        where = f"{files[0].name}:{left[0]}"
        if left[2] is None or right[2] is None:
            yield readers.too_long(where if left[2] is None else f"{files[1].name}:{right[0]}")
        else:
            yield Pair(left[2].decode("utf-8"), right[2].decode("utf-8")), where


def _tmx(path: Path, s: PairSettings) -> Iterator[Item]:
    """The units of a TMX file that have both languages; of more than one variant of a language the first."""
    if not (s.source_language and s.target_language):
        raise InputError(
            "a .tmx holds several languages", where=str(path), mend="set source_language and target_language"
        )
    found: list[tuple[dict[str, str], int]] = []
    languages = Counter[str]()
    unit: dict[str, str] = {}
    state = {"language": "", "inside": False}
    text: list[str] = []
    parser = xml.parsers.expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "tu":
            unit.clear()
        elif tag == "tuv":
            state["language"] = attributes.get("xml:lang") or attributes.get("lang", "")
        elif tag == "seg":
            state["inside"] = True
            text.clear()

    def end(tag: str) -> None:
        if tag == "seg":
            state["inside"] = False
            language = str(state["language"]).lower()
            unit.setdefault(language, "".join(text))
            languages[language] += 1
        elif tag == "tu":
            found.append((dict(unit), parser.CurrentLineNumber))

    def characters(data: str) -> None:
        if state["inside"]:
            text.append(data)

    def refuse(*_: object) -> None:
        raise InputError(
            "the .tmx declares entities of its own", where=str(path), why="a few of them can fill any memory"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, refuse
    took = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                parser.Parse(block)
                for variants, line in found:
                    sides = [_variant(variants, language) for language in (s.source_language, s.target_language)]
                    if sides[0] is not None and sides[1] is not None:
                        took += 1
                        yield Pair(sides[0], sides[1]), f"{path}:{line}"
                found.clear()
            parser.Parse(b"", True)
    except xml.parsers.expat.ExpatError as error:
        raise InputError(
            "the .tmx is no XML that can be read", where=f"{path}:{error.lineno}", why=str(error)
        ) from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read", why=error.strerror or str(error)) from None
    if not took:
        raise InputError(
            f"no unit has both {s.source_language!r} and {s.target_language!r}",
            where=str(path),
            why=f"its languages are {', '.join(sorted(languages)) or 'none'}",
            mend="set source_language and target_language to two of them",
        )


def _variant(unit: dict[str, Any], language: str) -> Any:
    """The text in a language: en is en, en-us and en_gb too."""
    wanted = language.lower().replace("_", "-")
    for name, text in unit.items():
        if name.replace("_", "-") == wanted or name.replace("_", "-").startswith(wanted + "-"):
            return text
    return None


# ---- splitting


@dataclass(frozen=True)
class PairSplitReport:
    """How the pairs were split. What a training text repeats is removed from the held-out part, on either side."""

    train_pairs: int
    heldout_pairs: int
    repeats: int  # held-out pairs removed: source or target is a training text, but for case and blanks
    near: int  # held-out pairs removed besides: source or target is nearly one (Jaccard index of shingles 0.8 or more)
    groups: int  # named ones

    def summary(self) -> str:
        """One line for a person."""
        total = self.train_pairs + self.heldout_pairs
        parts = [f"held out: {self.heldout_pairs:,} of {total:,} pairs ({self.heldout_pairs / total:.1%})"]
        if self.groups:
            parts.append(f"{self.groups:,} groups each on one side")
        if self.repeats or self.near:
            parts.append(
                f"removed from the held-out part: {self.repeats:,} repeats of training texts, {self.near:,} near ones"
            )
        return "; ".join(parts)


def split_pairs(
    pairs: Pairs, heldout_fraction: float, seed: int, sides: Sequence[Side] = SIDES
) -> tuple[Pairs, Pairs, PairSplitReport]:
    """Training pairs, held-out pairs and a report: a pure function of the pairs, the fraction and the seed.

    A group goes to one side whole; a pair without one is its own. Groups are held out in the order of the hash of seed
    and group until they hold the fraction. Then held-out pairs whose source or target is a training text, or nearly
    one, are removed: a page repeats what other pages say. `sides` are those that are looked at: two texts may well have
    the same summary. Of several directions, pairs without a group hang together by their text in the language that most
    have, so that no direction learns what another is tested on. InputError: fewer than two groups, nothing left to hold
    out.
    """
    if not 0 < heldout_fraction < 1:
        raise InputError(
            f"heldout_fraction is {heldout_fraction}",
            where="data.heldout_fraction",
            mend="give a share between 0 and 1, such as 0.05",
        )
    units: dict[str, list[int]] = {}
    hub = _hub(pairs)
    for i, pair in enumerate(pairs):
        units.setdefault(_unit(pair, hub), []).append(i)
    if len(units) < 2:
        raise InputError(
            "there are too few pairs to split", where=pairs.name, why=f"{len(units)} groups", mend="give more"
        )
    out = _draw(units, heldout_fraction, seed, len(pairs))
    train = pairs.pick(i for i in range(len(pairs)) if i not in out)
    held = pairs.pick(sorted(out))
    repeats, near = repeated_pairs(train, held, sides)
    left = held.pick(i for i in range(len(held)) if i not in repeats and i not in near)
    if not left:
        raise InputError(
            "no pair is left to hold out",
            where=pairs.name,
            why=f"each of {len(held):,} repeats a training text: {len(repeats):,} word for word, {len(near):,} nearly",
            mend="give pairs that differ more, another seed or a larger heldout_fraction",
        )
    groups = len({pair.group for pair in pairs} - {""})
    return train, left, PairSplitReport(len(train), len(left), len(repeats), len(near), groups)


def _hub(pairs: Pairs) -> str:
    """The language of most pairs, by name where two have as many; empty where pairs have none."""
    counted = Counter[str]()
    for pair in pairs:
        counted.update((pair.source_language, pair.target_language))
    del counted[""]
    return max(sorted(counted), key=counted.__getitem__, default="")


def _unit(pair: Pair, hub: str) -> str:
    """What a pair stays together with: its group, or else the pairs with the same text in the language `hub`."""
    if pair.group:
        return f"group {pair.group}"
    if not pair.direction:
        return f"pair {pair.source}\0{pair.target}"
    texts = {pair.source_language: pair.source, pair.target_language: pair.target}
    return f"text {texts[hub]}" if hub in texts else "pair " + "\0".join(sorted(texts.values()))


def _draw(units: dict[str, list[int]], fraction: float, seed: int, total: int) -> set[int]:
    """Indices of the pairs held out. A unit goes out where that brings their share nearer to the fraction."""

    def mark(unit: str) -> bytes:
        return hashlib.blake2b(f"{seed} {unit}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

    out: set[int] = set()
    left = len(units)
    for unit in sorted(units, key=mark):
        nearer = abs(len(out) + len(units[unit]) - fraction * total) < abs(len(out) - fraction * total)
        if nearer and left > 1:
            out.update(units[unit])
            left -= 1
    smallest: list[int] = min(units.values(), key=len)
    return out or set(smallest)  # so few that each group is more than twice the share


def repeated_pairs(train: Pairs, held: Pairs, sides: Sequence[Side] = SIDES) -> tuple[set[int], set[int]]:
    """Indices of held-out pairs with a text that a training pair has on the same side: word for word, nearly.

    Of several directions, with a text that a training pair has in the same language, on either side: what is written in
    one is read in another. A text is compared with the first one only of each MinHash band. Where thousands share a
    boilerplate some near ones stay: 18 of 2,751 held-out Debian descriptions, none of LibreOffice's help.
    """
    known: dict[str, dict[str, None]] = {}  # the different training texts of each side or language
    for pair in train:
        for kind, text in _texts(pair, sides):
            known.setdefault(kind, {})[text] = None
    keys = {kind: {_key(text) for text in texts} for kind, texts in known.items()}
    repeats: set[int] = set()
    near: set[int] = set()
    asked: dict[str, dict[str, list[int]]] = {}  # the held-out texts, and the pairs that have them
    for i, pair in enumerate(held):
        texts = _texts(pair, sides)
        if any(_key(text) in keys.get(kind, ()) for kind, text in texts):
            repeats.add(i)
            continue
        for kind, text in texts:
            asked.setdefault(kind, {}).setdefault(text, []).append(i)
    for kind, places in asked.items():
        # the training texts come first: a text that nearly repeats one of these and a held-out one is found with these
        learnt = list(known.get(kind, ()))
        found = _near([*learnt, *places])
        for n, indices in enumerate(places.values(), len(learnt)):
            near.update(indices if found.get(n, n) < len(learnt) else ())
    return repeats, near


def _texts(pair: Pair, sides: Sequence[Side]) -> list[tuple[str, str]]:
    """The texts of a pair, each with what it is compared by: its language, or its side where there is no language."""
    languages = {"source": pair.source_language, "target": pair.target_language}
    return [(languages[side] or side, getattr(pair, side)) for side in sides]


def _near(texts: list[str]) -> dict[int, int]:
    with Progress("comparing texts", 2 * len(texts), "texts") as progress:
        return cleaning.near_duplicates(lambda: _watched(texts, progress))


def _key(text: str) -> bytes:
    return cleaning.text_key(text.casefold())


def _watched(texts: list[str], progress: Progress) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield text
        progress.update(number)
