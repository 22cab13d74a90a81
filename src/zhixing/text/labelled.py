"""Texts with labels or scores: from a data set's name, a file or a folder to a list, and that list into two parts.

    read_labelled(source, settings)                 texts, each with its labels, its score or both
    split_labelled(texts, heldout_fraction, seed)   two parts: stratified, repeated texts and groups on one side
    leakage(train, test)                            test texts that training texts repeat
    check_labels(train_labels, test)                no label that training never saw

    jsonl        a label (text or whole number) or a list of labels under `label_column`
    csv, tsv     one label, or several with `label_separator` between them; parquet: as jsonl
    txt          fastText's lines: __label__x __label__y text
    folders      pos/1.txt, neg/2.txt: the folder's name is the label of each file in it
    train, test  two files or folders of these names in a folder are its training and its test part

Unlike running text, which is streamed, labelled texts are held in memory: training draws them in random order.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zhixing.errors import InputError
from zhixing.progress import Progress, say
from zhixing.recipe import DataSettings
from zhixing.text import catalogue, cleaning, readers
from zhixing.text.readers import Bad, Quarantine, Row, SourceFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Part = Literal["train", "test"]

FASTTEXT = "__label__"
_BLANKS = re.compile(r"[ \t\v\f\r\0]+")  # what ends a word of fastText
UNLABELLED = "unsup"  # the folder of aclImdb that has no labels
# Names that are taken for the column wanted where it is missing and just one of them is there.
TEXT_NAMES = frozenset(
    ["text", "sentence", "review", "content", "comment", "document", "body", "tweet", "message"]
    + ["文本", "内容", "评论", "句子", "正文"]
)
LABEL_NAMES = frozenset(
    ["label", "labels", "category", "class", "sentiment", "topic", "target", "polarity", "intent"]
    + ["标签", "类别", "分类", "情感"]
)


@dataclass(frozen=True)
class LabelledSettings:
    """How rows are read. Where `score_column` is set, texts have scores (regression), and labels only if there are."""

    text_column: str = "text"
    label_column: str = "label"
    label_separator: str = ""  # of csv and tsv: several labels in one field, such as "a|b"
    score_column: str = ""
    on_bad_record: Literal["fail", "skip", "quarantine"] = "fail"
    normalize: Literal["none", "NFC", "NFKC"] = "NFC"


@dataclass(frozen=True)
class LabelledText:
    """One text: no label, one or several; a score or None; a group (or "") that no split tears apart."""

    text: str
    labels: tuple[str, ...] = ()
    score: float | None = None
    group: str = ""


@dataclass
class LabelledCounts:
    """What reading met."""

    texts: int = 0
    characters: int = 0
    bad_records: int = 0
    bad_places: list[str] = field(default_factory=list)  # where the first few bad records stand
    skipped_files: int = 0
    normalized: int = 0
    controls: int = 0  # control characters removed


@dataclass(frozen=True)
class LabelledTexts:
    """Labelled texts in the order of the source; `places` says where each one stands. `labels` are sorted."""

    source: str
    texts: list[LabelledText]
    places: list[str]
    problem_type: ProblemType
    counts: LabelledCounts = field(default_factory=LabelledCounts)
    notes: tuple[str, ...] = ()  # what was guessed or converted, as it was said

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[LabelledText]:
        return iter(self.texts)

    def __getitem__(self, index: int) -> LabelledText:
        return self.texts[index]

    @cached_property
    def labels(self) -> list[str]:
        return sorted({label for item in self.texts for label in item.labels})

    @cached_property
    def label_counts(self) -> dict[str, int]:
        """How many texts have each label, the most frequent first."""
        return dict(Counter(label for item in self.texts for label in item.labels).most_common())

    def fingerprint(self) -> str:
        """SHA-256 over texts, labels, scores and groups in their order."""
        digest = hashlib.sha256()
        for item in self.texts:
            row = "\0".join([item.text, "\1".join(item.labels), repr(item.score), item.group])
            digest.update(row.encode() + b"\n")
        return digest.hexdigest()

    def pick(self, indices: Iterable[int]) -> LabelledTexts:
        """The texts of these indices, in this order."""
        wanted = list(indices)
        return replace(self, texts=[self.texts[i] for i in wanted], places=[self.places[i] for i in wanted])


# ---- reading


def has_test_part(source: str) -> bool:
    """Whether a data set, or a folder with `train` and `test` in it, brings its own split."""
    if source in catalogue.names():
        return bool(catalogue.show_dataset(source).test_files)
    return _shipped_parts(Path(source).expanduser()) is not None


def read_labelled(
    source: str,
    settings: LabelledSettings | None = None,
    *,
    part: Part = "train",
    quarantine: Path | None = None,
) -> LabelledTexts:
    """The labelled texts of a data set by name, a file or a folder.

    `part` "test" is the test part where the source brings one (`has_test_part`), else all of the source; texts to train
    on must have two labels at least. Bad records raise InputError with file and line, or are counted and, with
    "quarantine", written to `quarantine`. What is guessed is said, and kept in `notes`.
    """
    settings = settings or LabelledSettings()
    if not source.strip():
        raise InputError(
            "no labelled text is named",
            where="data.source",
            mend=f"give a file, a folder, or one of: {', '.join(_labelled_names())}",
        )
    files, skipped, settings = _find(source, settings, part)
    if not files:
        name, reason = skipped[0] if skipped else (source, "nothing there")
        raise InputError(f"there is no labelled text in {source!r}", where=name, why=reason, mend=MEND_SOURCE)
    reading = _Reading(settings, LabelledCounts(skipped_files=len(skipped)))
    texts: list[LabelledText] = []
    places: list[str] = []
    total, done = sum(file.size for file, _ in files), 0
    with (
        Quarantine(quarantine or Path("quarantine.jsonl")) as aside,
        Progress(f"reading {source}", total, "B") as progress,
    ):
        for file, label in files:
            for item in reading.file(file, label):
                if isinstance(item, Bad):
                    reading.set_aside(item, aside)
                else:
                    texts.append(item[0])
                    places.append(item[1])
                progress.update(done + reading.bytes_read)
            done += file.size
    counts = reading.counts
    counts.texts, counts.characters = len(texts), sum(len(item.text) for item in texts)
    if not texts:
        raise InputError(
            f"no text is left of {source!r}",
            where=counts.bad_places[0].partition(": ")[0] if counts.bad_places else "",
            why=f"{counts.bad_records} bad records, {counts.skipped_files} files skipped",
            mend='look at the bad records with data.on_bad_record = "fail"',
        )
    found = LabelledTexts(source, texts, places, reading.problem_type(), counts)
    notes = tuple(reading.notes(found))
    for note in notes:
        say(f"{source}: {note}")
    found = replace(found, notes=notes)
    if part == "train":
        _check_trainable(found)
    return found


MEND_SOURCE = (
    "give .jsonl, .csv, .tsv or .parquet with a text and a label column, a .txt of lines that begin with __label__, "
    "or a folder with a folder of .txt for each label"
)


def _labelled_names() -> list[str]:
    return [entry.name for entry in catalogue.list_datasets() if entry.label_column or entry.score_column]


def _check_trainable(found: LabelledTexts) -> None:
    if found.problem_type != "regression" and len(found.labels) < 2:
        only = f"every text has the label {found.labels[0]!r}" if found.labels else "no text has a label"
        raise InputError(
            "there is nothing to tell apart",
            where=found.source,
            why=f"{only} ({len(found):,} texts)",
            mend="give texts of at least two labels",
        )
    if found.problem_type == "regression" and len({item.score for item in found.texts}) < 2:
        raise InputError(
            "there is nothing to learn",
            where=found.source,
            why=f"every text has the score {found.texts[0].score}",
            mend="give texts of different scores",
        )


# ---- finding files

Found = list[tuple[SourceFile, str]]  # with the label that a folder gives, or ""
Skipped = list[tuple[str, str]]  # (name, why it is not read)


def _find(source: str, settings: LabelledSettings, part: Part) -> tuple[Found, Skipped, LabelledSettings]:
    if source in catalogue.names():
        entry = catalogue.show_dataset(source)
        if not entry.label_column and not entry.score_column:
            raise InputError(
                f"the data set {source!r} has no labels",
                why=f"it is {entry.title}",
                mend=f"the data sets with labels are {', '.join(_labelled_names())}",
            )
        paths = catalogue.dataset_files(source)
        if part == "test" and entry.test_files:
            paths = catalogue.dataset_test_files(source)
        if settings.text_column == LabelledSettings.text_column and settings.label_column == "label":
            settings = replace(settings, label_column=entry.label_column, score_column=entry.score_column)
        return [(readers.source_file(path, path.name), "") for path in paths], [], settings
    path = Path(source).expanduser()
    if parts := _shipped_parts(path):
        say(f"{source}: {parts[part].name} is taken as its {'training' if part == 'train' else 'test'} part")
        source, path = str(parts[part]), parts[part]
    files, skipped = readers.find_files(source, DataSettings(on_bad_record=settings.on_bad_record))
    kept: Found = []
    for file in files:
        if file.size == 0:
            if len(files) == 1:
                raise InputError("the file is empty", where=file.name, mend=MEND_SOURCE)
            skipped.append((file.name, "empty"))
        else:
            readers.check_readable(file)
            kept.append((file, ""))
    if path.is_dir():
        kept, more = _label_by_folder(path, kept)
        skipped += more
    return kept, skipped, settings


def _shipped_parts(path: Path) -> dict[Part, Path] | None:
    """The entries `train` and `test` of a folder: folders, or files of these names with an ending that is read."""
    if not path.is_dir():
        return None
    names = {child: child.name if child.is_dir() else child.name.split(".")[0] for child in path.iterdir()}
    readable = {c: name for c, name in names.items() if c.is_dir() or readers.file_kind(c.name)}
    found = {name: [child for child, stem in readable.items() if stem == name] for name in ("train", "test")}
    if len(found["train"]) != 1 or len(found["test"]) != 1:
        return None
    return {"train": found["train"][0], "test": found["test"][0]}


def _label_by_folder(root: Path, files: Found) -> tuple[Found, Skipped]:
    """Where a folder holds tables, these are read; else each text in a subfolder has that folder's name as label."""
    tables = [(file, label) for file, label in files if file.kind != "text"]
    if tables:
        return tables, [(f.name, "tables are read, texts beside them are not") for f, _ in files if f.kind == "text"]
    named: Found = []
    above: Found = []
    skipped: Skipped = []
    for file, _ in files:
        inside = file.path.relative_to(root).parts
        if len(inside) == 1:
            above.append((file, ""))
        elif inside[0] == UNLABELLED:
            skipped.append((file.name, f"the folder {UNLABELLED} has no labels"))
        else:
            named.append((file, unicodedata.normalize("NFC", inside[0])))
    if not named:
        return above, skipped  # lines of fastText's
    return named, skipped + [(file.name, "not in a folder whose name is a label") for file, _ in above]


# ---- rows to texts


class _Reading:
    """One pass over the files: what was met, and what that says about the task."""

    def __init__(self, settings: LabelledSettings, counts: LabelledCounts) -> None:
        self.settings, self.counts = settings, counts
        self.bytes_read = 0  # of the file under way
        self.several = bool(settings.label_separator)  # labels a text may have
        self.guessed: dict[str, str] = {}  # column wanted -> column taken
        self.converted = Counter[str]()  # kinds of labels that were no text

    def problem_type(self) -> ProblemType:
        if self.settings.score_column:
            return "regression"
        return "multi_label_classification" if self.several else "single_label_classification"

    def notes(self, found: LabelledTexts) -> Iterator[str]:
        for wanted, taken in self.guessed.items():
            yield f"there is no column {wanted!r}; {taken!r} is taken for it"
        for kind, number in self.converted.items():
            yield f"{number:,} labels are {kind}; they are taken as their text"
        folded: dict[str, list[str]] = {}
        for label in found.labels:
            folded.setdefault(label.casefold(), []).append(label)
        for alike in folded.values():
            if len(alike) > 1:
                yield f"the labels {', '.join(map(repr, alike))} differ only in their case, and stay apart"
        counts = self.counts
        if counts.bad_records:
            how = "put aside" if self.settings.on_bad_record == "quarantine" else "left out"
            yield f"{counts.bad_records:,} bad records {how}, the first: {counts.bad_places[0]}"
        if counts.skipped_files:
            yield f"{counts.skipped_files:,} files are not read"

    def set_aside(self, bad: Bad, aside: Quarantine) -> None:
        if self.settings.on_bad_record == "fail":
            raise bad.error
        self.counts.bad_records += 1
        if len(self.counts.bad_places) < readers.PLACES_KEPT:
            self.counts.bad_places.append(f"{bad.error.where}: {bad.error.what}")
        if self.settings.on_bad_record == "quarantine":
            aside.add(bad)

    def file(self, file: SourceFile, label: str) -> Iterator[tuple[LabelledText, str] | Bad]:
        self.bytes_read = 0

        def progress(done: int) -> None:
            self.bytes_read = done

        if file.kind == "text" and label:
            yield self.whole_file(file, label)
            return
        if file.kind == "text":
            rows: Iterator[Row | Bad] = _fasttext_rows(file, progress, self.settings)
        elif file.kind == "jsonl":
            rows = readers.json_rows(file, progress)
        elif file.kind == "parquet":
            rows = readers.parquet_rows(file, self.choose)
        else:
            rows = readers.csv_rows(file, self.choose, progress)
        needed = set[str]()
        for row in rows:
            if isinstance(row, Bad):
                yield row
                continue
            if file.kind == "jsonl" and not (needed and row.values.keys() >= needed):
                try:
                    needed = set(
                        self.choose(list(row.values), row.where)[:2]
                    )  # a row may lack a group, or a label beside its score
                except InputError as error:
                    yield row.bad(error)
                    continue
            yield self.row(row, split=file.kind in ("csv", "tsv"))

    def choose(self, names: list[str], where: str) -> list[str]:
        """The columns to read; InputError if one is not there and none is clearly meant by another name."""
        settings = self.settings
        wanted = [(settings.text_column, TEXT_NAMES, "text_column")]
        if settings.score_column:
            wanted.append((settings.score_column, frozenset[str](), "score_column"))
        else:
            wanted.append((settings.label_column, LABEL_NAMES, "label_column"))
        chosen = []
        for column, known, setting in wanted:
            taken = column
            if column not in names:
                like = [name for name in names if name.strip().lower() in known]
                if column not in known or len(like) != 1 or like[0] in chosen:
                    raise readers.missing_column(column, names, where, setting=setting)
                taken = like[0]
                self.guessed[column] = taken
            chosen.append(taken)
        if settings.score_column and settings.label_column in names:
            chosen.append(settings.label_column)
        return chosen + ["group"] * ("group" in names and "group" not in chosen)

    def value(self, row: Row, column: str) -> Any:
        return row.values.get(column, row.values.get(self.guessed.get(column, column)))

    def row(self, row: Row, *, split: bool) -> tuple[LabelledText, str] | Bad:
        settings = self.settings
        text = self.value(row, settings.text_column)
        if fault := readers.check_value(text, self.guessed.get(settings.text_column, settings.text_column), row.where):
            return row.bad(fault)
        text = self.clean(text)
        if not text:
            why = "nothing but control characters"
            return row.bad(InputError("the text is empty", where=row.where, why=why, mend=readers.MEND_SKIP))
        labels: tuple[str, ...] = ()
        score: float | None = None
        try:
            if settings.score_column:
                score = _score(self.value(row, settings.score_column), settings.score_column, row.where)
            if not settings.score_column or settings.label_column in row.values:
                labels = self.labels(self.value(row, settings.label_column), row.where, split=split)
        except InputError as error:
            return row.bad(error)
        group = row.values.get("group")
        return LabelledText(text, labels, score, "" if group is None else str(group)), row.where

    def whole_file(self, file: SourceFile, label: str) -> tuple[LabelledText, str] | Bad:
        try:
            text = "".join(readers.decoded(file))
        except InputError as error:
            return Bad(error, file.name)
        if fault := readers.check_value(text, "text", file.name):
            blank = InputError("the file holds only blanks", where=file.name, mend="remove it, or put text into it")
            return Bad(fault if text.strip() else blank, file.name)
        return LabelledText(self.clean(text), (label,)), file.name

    def clean(self, text: str) -> str:
        text, changed = cleaning.normalize(readers.unix(text), self.settings.normalize)
        text, removed = cleaning.remove_controls(text)
        self.counts.normalized += changed
        self.counts.controls += removed
        return text.strip()

    def labels(self, value: Any, where: str, *, split: bool) -> tuple[str, ...]:
        separator = self.settings.label_separator
        if split and separator and isinstance(value, str):
            values: list[Any] = [piece for piece in value.split(separator) if piece.strip()]
        elif isinstance(value, list):
            self.several = True
            values = value
        else:
            values = [value]
        return tuple(dict.fromkeys(self.label(each, where) for each in values))

    def label(self, value: Any, where: str) -> str:
        def wrong(what: str, why: str = "", mend: str = readers.MEND_SKIP) -> InputError:
            return InputError(what, where=where, why=why, mend=mend)

        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise wrong("the label is null")
        if isinstance(value, bool):
            self.converted["true or false"] += 1
            return str(value).lower()
        if isinstance(value, int):
            self.converted["whole numbers"] += 1
            return str(value)
        if isinstance(value, float):
            mend = "write labels as text or whole numbers; for scores set data.score_column"
            raise wrong(f"the label {value} is a number with a fraction", "", mend)
        if not isinstance(value, str):
            raise wrong("the label is no text", f"it is a {type(value).__name__}")
        if not value.strip():
            raise wrong("the label is empty")
        return unicodedata.normalize("NFC", value.strip())


def _score(value: Any, column: str, where: str) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(
            f"the score {column!r} is {'null' if value is None else 'empty'}", where=where, mend=readers.MEND_SKIP
        )
    try:
        score = math.nan if isinstance(value, (bool, list, dict)) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise InputError(
            f"the score {column!r} is no number", where=where, why=f"it is {str(value)[:60]!r}", mend=readers.MEND_SKIP
        )
    return score


def _fasttext_rows(
    file: SourceFile, progress: Callable[[int], None], settings: LabelledSettings
) -> Iterator[Row | Bad]:
    """fastText's lines: labels first, each with __label__ before it, then the text. Several make a list."""
    several = bool(settings.label_separator)
    blank: list[int] = []
    for number, offset, line in readers.byte_lines(readers.utf8_blocks(readers.raw_blocks(file, progress), file)):
        where = f"{file.name}:{number}"
        if line is None:
            yield readers.too_long(where)
            continue
        if not line.strip():
            blank.append(number)
            continue
        for empty in blank:
            yield Bad(InputError("a line is empty", where=f"{file.name}:{empty}", mend=readers.MEND_SKIP), "")
        blank.clear()
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            why = f"byte {offset + error.start} of the file: {error.reason}"
            mend = "save the file as UTF-8"
            yield Bad(
                InputError("a line is not UTF-8", where=where, why=why, mend=mend),
                line.decode(errors="backslashreplace"),
            )
            continue
        labels, rest = [], text.strip()
        while rest.startswith(FASTTEXT):
            first, rest = (_BLANKS.split(rest, maxsplit=1) + [""])[:2]
            labels.append(first.removeprefix(FASTTEXT))
        if not labels:
            mend = f"begin each line with {FASTTEXT} and a label; other texts need a folder for each label, or a table"
            yield Bad(
                InputError("a line has no label", where=where, why=f"it does not begin with {FASTTEXT}", mend=mend),
                text,
            )
            continue
        several = several or len(labels) > 1
        yield Row({settings.text_column: rest, settings.label_column: labels if several else labels[0]}, where, text)


# ---- repeated texts


@dataclass(frozen=True)
class LeakageReport:
    """Test texts that training texts repeat: word for word, or nearly (Jaccard index of their shingles 0.8 or more)."""

    exact: int
    near: int  # besides the exact ones
    test_texts: int
    examples: tuple[tuple[int, int], ...] = ()  # (test index, training index) of the first few

    @property
    def share(self) -> float:
        return (self.exact + self.near) / self.test_texts if self.test_texts else 0.0

    def summary(self) -> str:
        """One line for a person."""
        if not self.exact + self.near:
            return f"none of {self.test_texts:,} test texts repeats a training text"
        number = f"{self.exact + self.near:,} of {self.test_texts:,} test texts ({self.share:.2%})"
        return f"{number} repeat training texts: {self.exact:,} word for word, {self.near:,} nearly"


BUCKET = 64  # training texts of one band that a test text is compared with: boilerplate fills a band with thousands


def leakage(
    train: Sequence[LabelledText] | LabelledTexts,
    test: Sequence[LabelledText] | LabelledTexts,
    train_keys: NDArray[np.uint32] | None = None,
) -> LeakageReport:
    """Count test texts that a training text repeats. Half a minute for 25,000 reviews of 1,300 characters.

    Candidates share a MinHash band (text/cleaning.py); each is checked by its exact Jaccard index. `train_keys` are the
    `signatures` of the training texts, which take most of the time, where they are known already.
    """
    import numpy as np

    first: dict[bytes, int] = {}
    for i, item in enumerate(train):
        first.setdefault(cleaning.text_key(item.text), i)
    pairs: list[tuple[int, int]] = []
    rest: list[int] = []
    for i, item in enumerate(test):
        at = first.get(cleaning.text_key(item.text))
        if at is None:
            rest.append(i)
        else:
            pairs.append((i, at))
    exact = len(pairs)
    if rest and len(train):
        if train_keys is None:
            train_keys = signatures(train)  # (N, BANDS)
        if train_keys.shape != (len(train), cleaning.BANDS):
            raise ValueError(f"expected signatures ({len(train)}, {cleaning.BANDS}), got {train_keys.shape}")
        test_keys = signatures([test[i] for i in rest])  # (M, BANDS)
        candidates: dict[int, set[int]] = {}
        for band in range(cleaning.BANDS):
            order = np.argsort(train_keys[:, band], kind="stable")
            ordered = train_keys[order, band]
            low, high = (np.searchsorted(ordered, test_keys[:, band], side) for side in ("left", "right"))
            for row in np.flatnonzero(high > low).tolist():
                candidates.setdefault(row, set()).update(order[low[row] : high[row]][:BUCKET].tolist())
        sets: dict[int, NDArray[np.uint32]] = {}
        for row in sorted(candidates):
            mine = cleaning.shingles(test[rest[row]].text)
            for i in sorted(candidates[row]):
                if i not in sets:
                    sets[i] = cleaning.shingles(train[i].text)
                if cleaning.jaccard(mine, sets[i]) >= cleaning.NEAR:
                    pairs.append((rest[row], i))
                    break
    return LeakageReport(exact, len(pairs) - exact, len(test), tuple(pairs[:10]))


def signatures(texts: Sequence[LabelledText] | LabelledTexts) -> NDArray[np.uint32]:
    """The MinHash bands of each text, (N, BANDS): 80 bytes that its near repeats share some of."""
    import numpy as np

    rows = np.empty((len(texts), cleaning.BANDS), np.uint32)
    with Progress("comparing texts", len(texts), "texts") as progress:
        for number, item in enumerate(texts):
            # 32 bits of each key are enough: candidates are checked, and of a billion pairs 5 meet by chance
            rows[number] = cleaning.band_keys(cleaning.shingles(item.text)).astype(np.uint32)
            progress.update(number)
    return rows


# ---- splitting


@dataclass(frozen=True)
class LabelledSplitReport:
    """How the texts were split. Removed texts are in neither part; near repeats are together in one."""

    train_texts: int
    heldout_texts: int
    removed_exact: int  # further copies of a text
    contradictory: int  # texts removed with all their copies, because these have several labels
    near: int  # texts that nearly repeat another one: they are on its side
    groups: int
    by: Literal["label", "score"] = "label"  # what the strata are

    def summary(self) -> str:
        """One line for a person."""
        total = self.train_texts + self.heldout_texts
        parts = [
            f"held out: {self.heldout_texts:,} of {total:,} texts ({self.heldout_texts / total:.1%}), by {self.by}"
        ]
        if self.removed_exact:
            parts.append(f"{self.removed_exact:,} repeated ones removed")
        if self.contradictory:
            parts.append(f"{self.contradictory:,} with several labels removed")
        if self.near:
            parts.append(f"{self.near:,} near repeats kept together")
        if self.groups:
            parts.append(f"{self.groups:,} groups kept together")
        return "; ".join(parts)


@dataclass(frozen=True)
class LabelledSplit:
    train: LabelledTexts
    heldout: LabelledTexts
    report: LabelledSplitReport

    def __iter__(self) -> Iterator[Any]:
        """``train, heldout = split_labelled(...)``"""
        return iter((self.train, self.heldout))


def split_labelled(texts: LabelledTexts, heldout_fraction: float, seed: int) -> LabelledSplit:
    """Split into training and held-out texts: a pure function of the texts, the fraction and the seed.

    A text that occurs again is removed (all its copies, where their labels differ). Texts that nearly repeat one
    another and texts of one group form a unit, and a unit goes to one side. Units are drawn by the hash of the seed and
    of what they say, not of where they stand, within each stratum up to its share. A stratum is a label, the rarest
    label of a text with several, or a tenth of the scores.
    """
    if not 0 < heldout_fraction < 1:
        raise InputError(
            f"heldout_fraction is {heldout_fraction}",
            where="data.heldout_fraction",
            mend="give a share between 0 and 1, such as 0.2",
        )
    keys = [cleaning.text_key(item.text) for item in texts]
    kept, removed_exact, contradictory = _distinct(texts, keys)
    if len(kept) < 2:
        raise InputError(
            "there are too few texts to split", where=texts.source, why=f"{len(kept)} distinct texts", mend="give more"
        )
    with Progress("comparing texts", 2 * len(kept), "texts") as progress:

        def watched() -> Iterator[str]:
            for number, i in enumerate(kept):
                yield texts[i].text
                progress.update(number)

        near = cleaning.near_duplicates(watched)
    units = _units(texts, kept, near)
    strata = _strata(texts, kept, units)
    if texts.problem_type != "regression" and len(set(strata)) == len(units):
        raise InputError(
            "there are too few texts to split",
            where=texts.source,
            why=f"each of {len(units):,} labels has one text (texts that nearly repeat one another count as one):"
            " to test with one leaves none to learn from",
            mend="give more texts of each label, or texts to test with (task.test); or is data.label_column another?",
        )
    held = _draw(units, strata, [keys[i] for i in kept], heldout_fraction, seed)
    train = texts.pick(i for i, out in zip(kept, held, strict=True) if not out)
    heldout = texts.pick(i for i, out in zip(kept, held, strict=True) if out)
    groups = len({texts[i].group for i in kept} - {""})
    by: Literal["label", "score"] = "score" if texts.problem_type == "regression" else "label"
    report = LabelledSplitReport(len(train), len(heldout), removed_exact, contradictory, len(near), groups, by)
    return LabelledSplit(train, heldout, report)


def _distinct(texts: LabelledTexts, keys: list[bytes]) -> tuple[list[int], int, int]:
    """Indices of the first copy of each text whose copies agree; further copies; texts whose copies do not agree."""
    labels: dict[bytes, set[frozenset[str]]] = {}
    first: dict[bytes, int] = {}
    for i, (item, key) in enumerate(zip(texts, keys, strict=True)):
        first.setdefault(key, i)
        labels.setdefault(key, set()).add(frozenset(item.labels))
    kept = [i for key, i in first.items() if len(labels[key]) == 1]
    return kept, len(texts) - len(first), len(first) - len(kept)


def _units(texts: LabelledTexts, kept: list[int], near: dict[int, int]) -> list[list[int]]:
    """Positions in `kept` of the texts that stay together, by near repetition or group."""
    parent = list(range(len(kept)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for later, earlier in near.items():
        parent[root(later)] = root(earlier)
    first: dict[str, int] = {}
    for at, i in enumerate(kept):
        if group := texts[i].group:
            parent[root(at)] = root(first.setdefault(group, at))
    members: dict[int, list[int]] = {}
    for at in range(len(kept)):
        members.setdefault(root(at), []).append(at)
    return list(members.values())


def _strata(texts: LabelledTexts, kept: list[int], units: list[list[int]]) -> list[str]:
    """What each unit counts towards: the stratum that most of its texts belong to."""
    if texts.problem_type == "regression":
        ordered = sorted(texts[i].score or 0.0 for i in kept)
        tenths = [ordered[len(ordered) * k // 10] for k in range(1, 10)]
        own = [str(sum((texts[i].score or 0.0) >= edge for edge in tenths)) for i in kept]
    else:
        counts = Counter(label for i in kept for label in texts[i].labels)
        own = [min(texts[i].labels, key=lambda label: (counts[label], label), default="") for i in kept]
    found = []
    for unit in units:
        votes = Counter(own[at] for at in unit)
        found.append(min(votes, key=lambda stratum: (-votes[stratum], stratum)))
    return found


def _draw(units: list[list[int]], strata: list[str], keys: list[bytes], fraction: float, seed: int) -> list[bool]:
    """Which positions are held out. Each stratum gives its share, rounded so that the sum is right; one unit of it
    stays in training."""
    by_stratum: dict[str, list[tuple[bytes, list[int]]]] = {}
    for unit, stratum in zip(units, strata, strict=True):
        mark = hashlib.blake2b(f"{seed} ".encode() + min(keys[at] for at in unit), digest_size=8).digest()
        by_stratum.setdefault(stratum, []).append((mark, unit))
    size = {stratum: sum(len(unit) for _, unit in members) for stratum, members in by_stratum.items()}
    quota = {stratum: int(fraction * size[stratum]) for stratum in size}
    lacking = round(fraction * sum(size.values())) - sum(quota.values())
    for stratum in sorted(size, key=lambda s: (int(fraction * size[s]) - fraction * size[s], s))[: max(lacking, 0)]:
        quota[stratum] += 1
    held = [False] * len(keys)
    for stratum, members in sorted(by_stratum.items()):
        members.sort()
        out, left = 0, len(members)
        for _, unit in members:
            # A unit goes out where that brings the count nearer to its share.
            if left > 1 and abs(out + len(unit) - quota[stratum]) < abs(out - quota[stratum]):
                out += len(unit)
                left -= 1
                for at in unit:
                    held[at] = True
    if not any(held):  # so few that no stratum has a share: the first unit of the largest one
        largest = max(sorted(by_stratum), key=lambda s: len(by_stratum[s]))
        for at in by_stratum[largest][0][1]:
            held[at] = True
    return held


# ---- labels of a model and of texts


def check_labels(train_labels: Sequence[str], test: LabelledTexts) -> None:
    """InputError at the first test text with a label that training never saw: no model can give it."""
    known = set(train_labels)
    unknown = Counter(label for item in test for label in item.labels if label not in known)
    if not unknown:
        return
    label = next(label for item in test for label in item.labels if label not in known)
    at = next(i for i, item in enumerate(test) if label in item.labels)
    near = difflib.get_close_matches(label, train_labels, 1, 0.6) or [
        name for name in train_labels if name.casefold() == label.casefold()
    ]
    number = sum(any(each not in known for each in item.labels) for item in test)
    shown = ", ".join(map(repr, list(train_labels)[:20])) + (", ..." if len(train_labels) > 20 else "")
    more = f" ({len(unknown)} such labels in {number:,} texts)" if number > 1 else ""
    raise InputError(
        f"the label {label!r} does not occur in training",
        where=test.places[at],
        why=f"the model knows {shown}{more}",
        mend=f"did you mean {near[0]!r}?" if near else "train with texts of this label, or leave them out of the test",
    )
