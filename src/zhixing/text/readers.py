"""Files to documents: plain strings, one after another, as often as they are asked for.

A source is a file, a folder or the name of a data set. Files are read in blocks, so a source may be larger than the
memory; what does not fit (a record of more than 16 MiB) is said. Every fault of the input is an InputError that names
file and line, or file and byte: a text that is silently half read trains a model nobody asked for.

    txt, md       one file is one document; a long file is cut at chapter headings, or at blank lines, without loss
    jsonl         one object a line; csv, tsv: one row, the first line names the columns; parquet: one row
    .gz .xz .zst  behind any of the first three

A column named `group` in jsonl, csv, tsv and parquet is kept with the document: documents of one group stay on one
side of a split.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import hashlib
import json
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from zhixing.errors import InputError
from zhixing.files import sha256_file, temporary_beside
from zhixing.progress import Progress
from zhixing.recipe import DataSettings
from zhixing.text import cleaning

TEXT_ENDINGS = (".txt", ".md")
RECORD_ENDINGS = (".jsonl", ".csv", ".tsv")
PACKED_ENDINGS = (".gz", ".xz", ".zst")
BLOCK = 1 << 18  # bytes read at a time
MAX_RECORD = 16 << 20  # bytes of one line or row
MAX_UNBROKEN = 1 << 20  # characters without a blank, a line end or a sentence end: no running text
WHOLE = 20_000  # characters; a text file up to this length is one document
CHAPTER = 40_000  # characters; a chapter up to this length is one document
PARAGRAPHS = 8_000  # characters; where there are no headings, documents are about this long
LEAST = 1_000  # characters; a heading nearer than this to the last cut does not cut again

# The line end before a chapter heading that follows a blank line, or before whatever follows three blank lines. It
# begins with a plain character, which the search jumps to.
HEADING = re.compile(
    r"\n(?:(?<=\n\n\n\n)(?=[^\n])|(?:(?<=\n\n)|(?<=\n \n))[ \t]*(?:"
    r"(?:chapter|book|part|volume|act|canto|letter)[ \t]+(?:the[ \t])?"
    r"(?:\d+|[ivxlcdm]+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)\b[^\n]{0,60}"
    r"|\#{1,2}[ \t][^\n]{1,80})(?=\n|\Z)"
    r"|[ \t\u3000]*第[0-9０-９一二三四五六七八九十百千零〇两]{1,8}[章回卷节節][^\n]{0,40}(?=\n|\Z))",
    re.IGNORECASE,
)
LATER = re.compile(r"\s|[。！？]")
SENTENCE_END = re.compile(r"[。！？!?][”’」』\"')]*|\.[”’\"')]*(?=\s)\s?")


# ---- what is read


PLACES_KEPT = 5  # of bad records, to be named


@dataclass(frozen=True)
class SourceFile:
    """One file to read. `name` is what messages call it, `kind` one of text, jsonl, csv, tsv, parquet."""

    path: Path
    name: str
    kind: str
    packed: str  # "", .gz, .xz or .zst
    size: int  # bytes on the disk
    mtime_ns: int


@dataclass(frozen=True)
class Record:
    """A document, and the group (if its row names one) that no split may tear apart."""

    text: str
    group: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of jsonl, or a row of csv, tsv or parquet, as it stands there."""

    values: dict[str, Any]
    where: str  # file:line, or file and row
    raw: str = ""  # as it was written, where it was written as text

    def bad(self, error: InputError) -> Bad:
        return Bad(error, self.raw or str(self.values))


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used: why, and what can be shown of it."""

    error: InputError
    raw: str


@dataclass
class Counts:
    """What one pass over the source met. `characters` are those of the documents that came out."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0  # of the documents in UTF-8
    bad_records: int = 0
    bad_places: list[str] = field(default_factory=list)  # where the first few bad records stand
    skipped_files: int = 0  # unknown ending, empty, or bad where bad records are skipped
    normalized: int = 0  # documents that normalization changed
    controls: int = 0  # control characters removed
    duplicates_exact: int = 0
    duplicates_near: int = 0
    personal_data: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """What a pass over one file's bytes found; `problem` makes a text file unreadable."""

    sha256: str
    problem: InputError | None = None
    blank: bool = False


_inspected: dict[tuple[str, int, int], Inspection] = {}


class Documents:
    """The documents of a source, cleaned as the settings say. Iterate as often as you like; each pass reads the files.

    `one_text` says that the documents are the consecutive pieces of one text, so that held-out text should be its end.
    """

    def __init__(
        self,
        source: str,
        files: list[SourceFile],
        settings: DataSettings,
        *,
        skipped: list[tuple[str, str]] | None = None,
        quarantine: Path | None = None,
        one_text: bool = False,
    ) -> None:
        self.source, self.sources, self.settings = source, files, settings
        self.skipped = skipped or []  # (name, reason) of files that are not read
        self.quarantine = quarantine or Path("quarantine.jsonl")
        self.one_text = one_text
        self.total_bytes = sum(f.size for f in files)
        self.bytes_read = 0  # of total_bytes, by the pass under way: for progress
        self._counts: Counts | None = None
        self._near: frozenset[int] | None = None

    def __iter__(self) -> Iterator[str]:
        for record in self.records():
            yield record.text

    @property
    def counts(self) -> Counts:
        """Counts of the last complete pass; makes one if there was none."""
        if self._counts is None:
            for _ in self.records():
                pass
        assert self._counts is not None
        return self._counts

    def fingerprint(self) -> str:
        """SHA-256 over the contents of all files and how they are read: 64 hex digits."""
        rows = [f"{f.kind} {inspect(f).sha256}" for f in self.sources]
        return hashlib.sha256("\n".join([self.settings.text_column, *rows]).encode()).hexdigest()

    def records(self) -> Iterator[Record]:
        """One pass: cleaned documents with their groups. InputError at the first fault, unless faults are skipped."""
        if self.settings.duplicates == "near" and self._near is None:
            with Progress("looking for repeated documents", self.total_bytes, "B") as progress:
                self._near = frozenset(cleaning.near_duplicates(lambda: self._watched(progress)))
        counts = Counts(skipped_files=len(self.skipped))
        for index, record in enumerate(self._cleaned(counts)):
            if self._near and index in self._near:
                counts.duplicates_near += 1
                continue
            counts.documents += 1
            counts.characters += len(record.text)
            counts.bytes += len(record.text.encode())
            yield record
        if not counts.documents:
            raise InputError(
                f"no text is left of {self.source!r}",
                why=f"{counts.bad_records} bad records, {counts.skipped_files} files skipped",
                mend='look at the skipped records with data.on_bad_record = "fail"',
            )
        self._counts = counts

    def _watched(self, progress: Progress) -> Iterator[str]:
        for record in self._cleaned(Counts()):
            progress.update(self.bytes_read)
            yield record.text

    def _cleaned(self, counts: Counts) -> Iterator[Record]:
        settings, seen = self.settings, set[bytes]()
        for record in self._good(counts):
            text, changed = cleaning.normalize(record.text, settings.normalize)
            counts.normalized += changed
            text, removed = cleaning.remove_controls(text)
            counts.controls += removed
            if settings.personal_data != "keep":
                masked, found = cleaning.mask_personal_data(text)
                for kind, number in found.items():
                    counts.personal_data[kind] = counts.personal_data.get(kind, 0) + number
                text = masked if settings.personal_data == "mask" else text
            if settings.duplicates != "keep":
                key = cleaning.text_key(text)
                if key in seen:
                    counts.duplicates_exact += 1
                    continue
                seen.add(key)
            yield Record(text, record.group)

    def _good(self, counts: Counts) -> Iterator[Record]:
        """Records as they stand in the files; bad ones raised, counted or put aside."""
        self.bytes_read = 0
        with Quarantine(self.quarantine) as aside:
            for file in self.sources:
                _check_unchanged(file)
                before = self.bytes_read
                for item in self._read_one(file):
                    if isinstance(item, Record):
                        yield item
                        continue
                    if self.settings.on_bad_record == "fail":
                        raise item.error
                    counts.bad_records += 1
                    if len(counts.bad_places) < PLACES_KEPT:
                        counts.bad_places.append(f"{item.error.where}: {item.error.what}")
                    if self.settings.on_bad_record == "quarantine":
                        aside.add(item)
                self.bytes_read = before + file.size

    def _read_one(self, file: SourceFile) -> Iterator[Record | Bad]:
        before = self.bytes_read

        def progress(done: int) -> None:
            self.bytes_read = before + done

        if file.kind == "text":
            found = inspect(file)
            if found.problem:
                yield Bad(found.problem, file.name)
            elif not found.blank:
                for document in cut_text(decoded(file, progress), file.name):
                    yield Record(document)
        elif file.kind == "jsonl":
            yield from read_jsonl(file, self.settings.text_column, progress)
        elif file.kind in ("csv", "tsv"):
            yield from read_csv(file, self.settings.text_column, progress)
        else:
            yield from read_parquet(file, self.settings.text_column)


class Quarantine:
    """Bad records put aside as JSON lines, under the final name only when the pass is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary: Path | None = None
        self.file: IO[str] | None = None

    def add(self, bad: Bad) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary = temporary_beside(self.path)
            self.file = self.temporary.open("w", encoding="utf-8")
        error = bad.error
        row = {"where": error.where, "what": error.what, "why": error.why, "record": bad.raw[:MAX_RECORD]}
        # A lone surrogate is one of the faults; escaped, it can be written.
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        self.file.write(text + "\n")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.file is None or self.temporary is None:
            return
        self.file.close()
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def read_documents(source: str, settings: DataSettings, *, quarantine: Path | None = None) -> Documents:
    """The documents of a file, a folder, or a data set by name (what ships first, else the cache, else fetched).

    A name in the catalogue wins over a folder of the same name; write ``./austen`` for the folder. Into the file
    `quarantine` bad records go when ``on_bad_record`` is "quarantine". Text files are checked whole at once; other
    faults are raised where iteration meets them.
    """
    from zhixing.text import catalogue

    if not source.strip():
        raise InputError(
            "no text is named",
            where="data.source",
            mend=f"give a file, a folder, or one of: {', '.join(catalogue.names())}",
        )
    one_text = False
    if source in catalogue.names():
        entry = catalogue.show_dataset(source)
        if entry.task in ("vectors", "word-pairs", "model"):
            raise InputError(
                f"the data set {source!r} holds no running text",
                why=f"it is {entry.title}",
                mend="`zhixing data list` shows what each data set is for",
            )
        paths = catalogue.dataset_files(source)
        one_text = entry.one_text
        files, skipped = [source_file(path, path.name) for path in paths], list[tuple[str, str]]()
    else:
        files, skipped = find_files(source, settings)
        one_text = len(files) == 1 and files[0].kind == "text" and not Path(source).is_dir()
    files, more = _usable(files, settings)
    if not files:
        name, reason = (skipped + more)[0] if skipped + more else (source, "nothing there")
        raise InputError(
            f"there is no text in {source!r}",
            where=name,
            why=reason,
            mend=f"give files that hold text and end in {', '.join(TEXT_ENDINGS + RECORD_ENDINGS)} or .parquet",
        )
    return Documents(source, files, settings, skipped=skipped + more, quarantine=quarantine, one_text=one_text)


def _usable(files: list[SourceFile], settings: DataSettings) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """Look at each text file once: unreadable ones are raised, blank ones set aside."""
    kept, skipped = [], []
    total = sum(f.size for f in files)
    done = 0
    with Progress("checking text", total, "B") as progress:
        for file in files:
            if file.size == 0:
                if len(files) == 1:
                    raise InputError("the file is empty", where=file.name, mend="give a file with text in it")
                skipped.append((file.name, "empty"))
                continue
            try:
                check_readable(file)
            except InputError as error:
                if settings.on_bad_record == "fail" or len(files) == 1:
                    raise
                skipped.append((file.name, error.why))
                continue
            if file.kind == "text":
                found = inspect(file)
                if found.problem and settings.on_bad_record == "fail":
                    raise found.problem
                if found.blank and not found.problem:
                    if len(files) == 1:
                        raise InputError(
                            "the file holds only blanks", where=file.name, mend="give a file with text in it"
                        )
                    skipped.append((file.name, "only blanks"))
                    continue
            kept.append(file)
            done += file.size
            progress.update(done, file.name)
    return kept, skipped


# ---- finding files


def file_kind(name: str) -> tuple[str, str] | None:
    """("csv", ".gz") for "a.csv.gz"; None if the ending is not one that is read."""
    stem, packed = name.lower(), ""
    for ending in PACKED_ENDINGS:
        if stem.endswith(ending):
            stem, packed = stem.removesuffix(ending), ending
    for ending in TEXT_ENDINGS:
        if stem.endswith(ending):
            return "text", packed
    for ending in RECORD_ENDINGS:
        if stem.endswith(ending):
            return ending[1:], packed
    return ("parquet", "") if stem.endswith(".parquet") and not packed else None


def source_file(path: Path, name: str) -> SourceFile:
    kind = file_kind(path.name)
    assert kind is not None, path
    facts = path.stat()
    return SourceFile(path, name, kind[0], kind[1], facts.st_size, facts.st_mtime_ns)


def read_texts(path: Path, column: str = "text") -> list[str]:
    """Short texts to answer about: the lines of a text file, or the column of jsonl, csv, tsv and parquet."""
    if file_kind(path.name) is None:
        raise InputError("the file is of no kind that is read", where=str(path), mend="give .txt, .jsonl or .csv")
    file = source_file(path, path.name)
    check_readable(file)
    if file.kind == "text":
        lines = []
        for number, _, line in record_lines(file):
            if line is None:
                raise too_long(f"{file.name}:{number}").error
            if line.strip():
                lines.append(line.decode("utf-8").strip("\r\n"))
        return lines
    readers = {"jsonl": read_jsonl, "csv": read_csv, "tsv": read_csv, "parquet": read_parquet}
    texts = []
    for row in readers[file.kind](file, column):
        if isinstance(row, Bad):
            raise row.error
        texts.append(row.text)
    return texts


def find_files(source: str, settings: DataSettings) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """Files to read under a path, sorted by name, and (name, reason) of those passed over."""
    path = Path(source).expanduser()
    endings = ", ".join((*TEXT_ENDINGS, *RECORD_ENDINGS, ".parquet"))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(
            f"there is no {source!r}", why="no such file or folder, nor a data set of that name", mend=_near_path(path)
        ) from None
    except OSError as error:
        raise InputError(
            f"{source!r} cannot be read", why=error.strerror or str(error), mend="check the path and its permissions"
        ) from None
    if stat.S_ISDIR(mode):
        return _walk(path, settings)
    if not stat.S_ISREG(mode):
        raise InputError(f"{source!r} is neither a file nor a folder", mend="give a file or a folder")
    if file_kind(path.name) is None:
        why = "a .json file is one value, not one record a line" if path.suffix.lower() == ".json" else ""
        raise InputError(
            f"files that end in {path.suffix or 'nothing'!r} are not read",
            where=source,
            why=why,
            mend=f"rename or convert it to one of {endings} (also with {', '.join(PACKED_ENDINGS)})",
        )
    return [source_file(path, source)], []


def _walk(root: Path, settings: DataSettings) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """All files under a folder. Links are followed, but no folder is entered again from inside itself."""
    files: list[SourceFile] = []
    skipped: list[tuple[str, str]] = []

    def enter(folder: Path, above: tuple[tuple[int, int], ...]) -> None:
        try:
            facts = folder.stat()
            names = sorted(os.listdir(folder))
        except OSError as error:
            unreadable(folder, error)
            return
        if "run.lock" in names and folder != root:
            skipped.append((str(folder), "a run of zhixing"))
            return
        here = (facts.st_dev, facts.st_ino)
        if here in above:
            skipped.append((str(folder), "a link to a folder it is in"))
            return
        for name in names:
            path = folder / name
            if name.startswith("."):
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if path.is_symlink():
                    skipped.append((str(path), "a link that leads nowhere"))
                else:
                    unreadable(path, error)
                continue
            if stat.S_ISDIR(mode):
                enter(path, (*above, here))
            elif not stat.S_ISREG(mode):
                skipped.append((str(path), "no regular file"))
            elif file_kind(name) is None:
                skipped.append((str(path), f"ending {path.suffix or 'missing'!s} is not read"))
            else:
                files.append(source_file(path, str(path)))

    def unreadable(path: Path, error: OSError) -> None:
        if settings.on_bad_record == "fail":
            raise InputError(
                "a folder or file cannot be read", where=str(path), why=error.strerror or str(error), mend=MEND_ACCESS
            ) from None
        skipped.append((str(path), error.strerror or str(error)))

    enter(root, ())
    return files, skipped


MEND_ACCESS = 'give yourself permission to read it, or set data.on_bad_record = "skip"'


def _near_path(path: Path) -> str:
    """The name beside `path` most like it, as advice."""
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.6)
    except OSError:
        near = []
    return (
        f"did you mean {str(path.parent / near[0])!r}?"
        if near
        else "check the path; `zhixing data list` shows the data sets"
    )


def check_readable(file: SourceFile) -> None:
    try:
        file.path.open("rb").close()
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=file.name, why=error.strerror or str(error), mend=MEND_ACCESS
        ) from None


def _check_unchanged(file: SourceFile) -> None:
    try:
        facts = file.path.stat()
    except OSError as error:
        raise InputError(
            "a file went away while it was needed", where=file.name, why=error.strerror or str(error)
        ) from None
    if (facts.st_size, facts.st_mtime_ns) != (file.size, file.mtime_ns):
        raise InputError(
            "a file changed while it was being used",
            where=file.name,
            mend="start again, and leave the text alone meanwhile",
        )


# ---- bytes


def raw_blocks(file: SourceFile, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks. InputError for a damaged or truncated archive."""
    with file.path.open("rb") as raw:
        try:
            for block in _unpacked(raw, file):
                if progress:
                    progress(raw.tell())
                if block:
                    yield block
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            what = "the file ends too early" if isinstance(error, EOFError) else "the file is damaged"
            raise InputError(
                what, where=file.name, why=f"{file.packed} data: {error}", mend="copy or download it again"
            ) from None
        except OSError as error:
            raise InputError("the file cannot be read", where=file.name, why=error.strerror or str(error)) from None


def _unpacked(raw: IO[bytes], file: SourceFile) -> Iterator[bytes]:
    if file.packed == ".zst":
        yield from _unpacked_zstd(raw)
        return
    stream: Any = raw
    if file.packed == ".gz":
        stream = gzip.GzipFile(fileobj=raw)
    elif file.packed == ".xz":
        stream = lzma.LZMAFile(raw)  # noqa: SIM115
    while block := stream.read(BLOCK):
        yield block


def _unpacked_zstd(raw: IO[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise InputError(".zst needs the package zstandard", mend="pip install zstandard") from None
    # The library's own stream reader takes a truncated file for a complete one; the frame object knows better.
    frame = None
    while block := raw.read(BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            try:
                yield frame.decompress(block)
            except zstandard.ZstdError as error:
                raise zlib.error(str(error)) from None
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the last frame is not complete")


def utf8_blocks(blocks: Iterable[bytes], file: SourceFile) -> Iterator[bytes]:
    """The same text as UTF-8; UTF-16 and UTF-32 are told by their byte order mark. That of UTF-8 stays, so that places
    in the blocks are places in the file; whoever decodes the first line takes it off."""
    source = iter(blocks)
    head = b""
    for block in source:
        head += block
        if len(head) >= 4:
            break
    encoding = next((name for mark, name in WIDE if head.startswith(mark)), "")
    if not encoding:
        yield head
        yield from source
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    at = 0  # bytes handed to the decoder
    for block in chain([head], source, [b""]):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_text(file, at - waiting + error.start, f"it begins as {encoding} but breaks there") from None
        at += len(block)
        yield text.encode()


# The mark of UTF-32 begins with that of UTF-16, so it is looked for first.
WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def not_text(file: SourceFile, offset: int, why: str, mend: str = "save the file as UTF-8") -> InputError:
    where = f"{file.name}, byte {offset}" + (" of the unpacked text" if file.packed else "")
    return InputError("the file is not UTF-8 text", where=where, why=why, mend=mend)


def decoded(file: SourceFile, progress: Callable[[int], None] | None = None) -> Iterator[str]:
    """The text of a file in pieces, every line end as \\n. InputError at the first NUL or byte that is not UTF-8."""
    held = b""  # the first bytes of a character that the block cut
    at = 0  # offset of `held` in the text
    after_return = ""  # a \r whose \n may begin the next block
    blocks: Iterator[bytes | None] = chain(utf8_blocks(raw_blocks(file, progress), file), [None])
    for block in blocks:  # None: the end
        data = held + (block or b"")
        if (nul := data.find(0)) >= 0:
            raise not_text(file, at + nul, "there is a NUL byte" + _wide_hint(data), MEND_NUL)
        try:
            text, held = data.decode(), b""
        except UnicodeDecodeError as error:
            if block is None or error.reason != "unexpected end of data":
                why = f"{error.reason} (byte 0x{data[error.start]:02x})"
                raise not_text(file, at + error.start, why, _encoding_advice(data, error.start)) from None
            text, held = data[: error.start].decode(), data[error.start :]
        text = after_return + (text if at else text.removeprefix("\ufeff"))
        at += len(data) - len(held)
        after_return = "\r" if text.endswith("\r") and block is not None else ""
        if after_return:
            text = text[:-1]
        if text:
            yield text.replace("\r\n", "\n").replace("\r", "\n")


MEND_NUL = "the file is not text, or is UTF-16 without its mark: save it as UTF-8"


def _wide_hint(data: bytes) -> str:
    sample = data[:2000]
    return ", as every other byte: this looks like UTF-16" if sample.count(0) * 3 > len(sample) else ""


def _encoding_advice(data: bytes, start: int) -> str:
    """What to do about bytes that are not UTF-8, with a guess at what they are."""
    line_start = data.rfind(b"\n", 0, start) + 1
    sample = data[line_start : line_start + 4000].decode("gb18030", "ignore")
    han, other = sum("\u4e00" <= c <= "\u9fff" for c in sample), sum(ord(c) > 127 for c in sample)
    name = "GB18030" if han > 3 and 2 * han > other else "WINDOWS-1252"
    return f'save it as UTF-8 (perhaps: iconv -f {name} -t UTF-8 OLD > NEW), or set data.on_bad_record = "skip"'


def inspect(file: SourceFile) -> Inspection:
    """SHA-256 of a file and, of a text file, the first fault; each file is read once in a process."""
    key = (str(file.path.resolve()), file.size, file.mtime_ns)
    if key not in _inspected:
        digest = sha256_file(file.path)
        problem, blank = None, file.kind == "text"
        if file.kind == "text":
            try:
                for text in decoded(file):
                    blank = blank and not text.strip()
            except InputError as error:
                problem = error
        _inspected[key] = Inspection(digest, problem, blank)
    return _inspected[key]


# ---- text


def cut_text(pieces: Iterable[str], name: str) -> Iterator[str]:
    """Cut one text into documents; joined together they are the text again.

    Up to WHOLE characters stay one document. A longer text is cut before each chapter heading (LEAST apart, so that a
    table of contents is not cut up). Where no heading comes in time, it is cut after the last blank line within
    PARAGRAPHS characters, or else at the nearest line end, sentence end or blank. Where the pieces end changes nothing.
    """
    source = iter(pieces)
    held, at, ended = "", 0, False  # held[at:] is not yet given out; what stands before it, a heading looks back at

    def more() -> None:
        nonlocal held, at, ended
        piece = next(source, None)
        ended = piece is None
        held, at = held[max(0, at - 4) :] + (piece or ""), min(at, 4)

    while not ended and len(held) <= CHAPTER + LEAST:
        more()
    if ended and len(held) <= WHOLE:
        if held:
            yield held
        return
    in_chapter = HEADING.match("\n\n" + held[:WHOLE], 1) is not None
    while True:
        while not ended and len(held) - at <= CHAPTER + LEAST:
            more()
        if ended and at == len(held):
            return
        cut, heading = _next_cut(held, at, in_chapter)
        while cut is None:  # no place to cut in all that is held: look further
            if len(held) - at > MAX_UNBROKEN:
                raise InputError(
                    "a text has no place to cut it",
                    where=name,
                    why=f"more than {MAX_UNBROKEN:,} characters without a blank, a line end or a sentence end",
                    mend="give running text; encoded or generated data is none",
                )
            more()
            cut, heading = (len(held), False) if ended else _next_cut(held, at, in_chapter)
        yield held[at:cut]
        at, in_chapter = cut, heading


def _next_cut(held: str, at: int, in_chapter: bool) -> tuple[int | None, bool]:
    """Where the document that begins at `at` ends, and whether a heading follows; None if nothing held is a place."""
    limit = at + (CHAPTER if in_chapter else WHOLE)
    heading = HEADING.search(held, at + LEAST - 1, limit + 200)
    if heading and heading.start() < limit:
        return heading.start() + 1, True
    if len(held) <= limit:
        return len(held), False
    for low, high in ((at + LEAST, at + PARAGRAPHS), (at + PARAGRAPHS, at + WHOLE)):
        blank = held.rfind("\n\n", low, high)
        if blank >= 0:
            return _past(held, blank, "\n"), False
    line = held.rfind("\n", at + LEAST, at + WHOLE)
    if line >= 0:
        return line + 1, False
    for low in (at + WHOLE - LEAST, at + LEAST):  # the last sentence end is nearly always near
        if ends := [m.end() for m in SENTENCE_END.finditer(held, low, at + WHOLE)]:
            return ends[-1], False
    blank = max(held.rfind(char, at + LEAST, at + WHOLE) for char in " \u3000")
    if blank >= 0:
        return blank + 1, False
    later = LATER.search(held, at + WHOLE)
    return (later.end() if later else None), False


def _past(text: str, at: int, char: str) -> int:
    while at < len(text) and text[at] == char:
        at += 1
    return at


# ---- records


def byte_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, int, bytes | None]]:
    """(line number from 1, byte offset, line without its \\n). None instead of a line of more than MAX_RECORD bytes."""
    held: list[bytes] = []
    size = 0  # bytes of the line so far, kept or not
    number, offset = 1, 0
    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            held.append(line)
            size += len(line)
            yield number, offset, b"".join(held) if size <= MAX_RECORD else None
            number, offset = number + 1, offset + size + 1
            held, size = [], 0
        size += len(rest)
        held = [*held, rest] if size <= MAX_RECORD else []
    if size:
        yield number, offset, b"".join(held) if size <= MAX_RECORD else None


def record_lines(
    file: SourceFile, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, int, bytes | None]]:
    """`byte_lines` of a file, the mark at its beginning taken off."""
    for number, offset, line in byte_lines(utf8_blocks(raw_blocks(file, progress), file)):
        if offset == 0 and line is not None and line.startswith(codecs.BOM_UTF8):
            yield number, len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
        else:
            yield number, offset, line


def too_long(where: str) -> Bad:
    limit = f"{MAX_RECORD >> 20} MiB"
    return Bad(
        InputError(
            f"a record is longer than {limit}",
            where=where,
            mend="put one record on a line, and cut long texts into several",
        ),
        "",
    )


def check_value(value: Any, column: str, where: str) -> InputError | None:
    """What is wrong with a record's text, if anything."""

    def wrong(what: str, why: str = "", mend: str = MEND_SKIP) -> InputError:
        return InputError(what, where=where, why=why, mend=mend)

    if value is None:
        return wrong(f"the column {column!r} is null")
    if not isinstance(value, str):
        return wrong(
            f"the column {column!r} holds no text",
            f"it is {json.dumps(value, default=str)[:60]}, a {type(value).__name__}",
        )
    if not value.strip():
        return wrong(f"the column {column!r} is empty")
    if "\0" in value:
        return wrong(f"the column {column!r} holds a NUL character", f"at character {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return wrong(
            f"the column {column!r} holds half a character",
            f"a lone surrogate U+{ord(value[error.start]):04X} at character {error.start}",
        )
    return None


MEND_SKIP = 'mend the record, or set data.on_bad_record = "skip" or "quarantine"'


def missing_column(column: str, columns: list[str], where: str, *, setting: str = "text_column") -> InputError:
    """The columns that are there and the one most like `column`. `setting` is the key of [data] that names it."""
    near = difflib.get_close_matches(column, columns, 1, 0.5) or difflib.get_close_matches(
        column.lower(), [c.strip().lower() for c in columns], 1, 0.5
    )
    nearest = next((c for c in columns if near and c.strip().lower() == near[0].strip().lower()), "")
    holds = setting.removesuffix("_column")
    other = next((mark for mark in ";|\t," if mark in columns[0]), "") if len(columns) == 1 else ""
    if other:
        return InputError(
            f"there is no column {column!r}",
            where=where,
            why=f"the only column is {columns[0]!r}: the file seems to be separated by {other!r}",
            mend="separate its columns by commas (.csv) or by tabs (.tsv)",
        )
    return InputError(
        f"there is no column {column!r}",
        where=where,
        why=f"the columns are {', '.join(map(repr, columns[:20]))}" if columns else "there are no columns",
        mend=f"set data.{setting} to {nearest!r}"
        if nearest
        else f"set data.{setting} to the column that holds the {holds}, or name the columns if nothing does yet",
    )


def record(row: Row, column: str) -> Record | Bad:
    """The text under `column`, with the row's group if it names one."""
    value, group = row.values[column], row.values.get("group")
    if fault := check_value(value, column, row.where):
        return row.bad(fault)
    return Record(unix(value), str(group) if isinstance(group, (str, int, float)) else None)


# Given the columns that are there and the place that names them: those to read. It may raise InputError.
Choose = Callable[[list[str], str], list[str]]


def _text_and_group(column: str) -> Choose:
    def choose(names: list[str], where: str) -> list[str]:
        if column not in names:
            raise missing_column(column, names, where)
        return [column] + ["group"] * ("group" in names and column != "group")

    return choose


def read_jsonl(file: SourceFile, column: str, progress: Callable[[int], None] | None = None) -> Iterator[Record | Bad]:
    """Texts of JSON lines."""
    for row in json_rows(file, progress):
        if isinstance(row, Bad):
            yield row
        elif column not in row.values:
            yield row.bad(missing_column(column, list(row.values), row.where))
        else:
            yield record(row, column)


def read_csv(file: SourceFile, column: str, progress: Callable[[int], None] | None = None) -> Iterator[Record | Bad]:
    """Texts of csv or tsv."""
    for row in csv_rows(file, _text_and_group(column), progress):
        yield row if isinstance(row, Bad) else record(row, column)


def read_parquet(file: SourceFile, column: str) -> Iterator[Record | Bad]:
    """Texts of a parquet file."""
    for row in parquet_rows(file, _text_and_group(column)):
        yield record(row, column)


def json_rows(file: SourceFile, progress: Callable[[int], None] | None = None) -> Iterator[Row | Bad]:
    """Rows of JSON lines: an object a line. Blank lines at the end are nothing."""
    blank: list[int] = []
    for number, offset, line in record_lines(file, progress):
        where = f"{file.name}:{number}"
        if line is None:
            yield too_long(where)
            continue
        if not line.strip():
            blank.append(number)
            continue
        for empty in blank:
            yield Bad(InputError("a line is empty", where=f"{file.name}:{empty}", mend=MEND_SKIP), "")
        blank.clear()
        yield _json_row(line, where, offset)


def _json_row(line: bytes, where: str, offset: int) -> Row | Bad:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        why = f"byte {offset + error.start} of the file: {error.reason}"
        return Bad(
            InputError("a line is not UTF-8", where=where, why=why, mend="save the file as UTF-8"),
            line.decode(errors="backslashreplace"),
        )

    def bad(what: str, why: str = "", mend: str = MEND_SKIP) -> Bad:
        return Bad(InputError(what, where=where, why=why, mend=mend), text)

    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return bad("a line is not JSON", f"{error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:
        return bad(
            "a line is not usable JSON", "nested too deeply" if isinstance(error, RecursionError) else str(error)
        )
    if not isinstance(row, dict):
        return bad("a line is not a JSON object", f"it is a {type(row).__name__}", 'write {"text": "..."}')
    return Row(row, where, text)


def unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def csv_rows(file: SourceFile, choose: Choose, progress: Callable[[int], None] | None = None) -> Iterator[Row | Bad]:
    """Rows of csv or tsv (RFC 4180 quoting); the first line names the columns. A row's line is the one it starts at."""
    faults: list[tuple[int, str]] = []  # (line, why) of lines that are no text
    csv.field_size_limit(MAX_RECORD)

    def lines() -> Generator[str, None, None]:
        for number, offset, line in record_lines(file, progress):
            if line is None:
                faults.append((number, "long"))
                yield "\n"
                continue
            try:
                text = line.decode()
                if "\0" in text:
                    faults.append((number, f"byte {offset + line.index(0)} of the file: a NUL"))
                    text = text.replace("\0", "")
            except UnicodeDecodeError as error:
                faults.append((number, f"byte {offset + error.start} of the file: {error.reason}"))
                text = line.decode(errors="backslashreplace")
            yield text + "\n"

    reader = csv.reader(lines(), delimiter="\t" if file.kind == "tsv" else ",", strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise InputError(
            "the first line does not name the columns",
            where=f"{file.name}:1",
            why=_csv_reason(str(error)),
            mend=MEND_QUOTES,
        ) from None
    if faults:
        raise InputError(
            "the first line is not text", where=f"{file.name}:1", why=faults[0][1], mend="save the file as UTF-8"
        )
    wanted = [(name, header.index(name)) for name in choose(header, f"{file.name}:1")]
    rows = 0
    blank: list[int] = []
    while True:
        start = reader.line_num + 1
        where = f"{file.name}:{start}"
        faults.clear()
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            rows += 1
            if "field larger" in str(error):
                yield too_long(where)
            else:
                yield Bad(
                    InputError("a row is not valid", where=where, why=_csv_reason(str(error)), mend=MEND_QUOTES), ""
                )
            continue
        if not row and not faults:
            blank.append(start)
            continue
        rows += 1
        for empty in blank:
            yield Bad(InputError("a row is empty", where=f"{file.name}:{empty}", mend=MEND_SKIP), "")
        blank.clear()
        raw = json.dumps(row, ensure_ascii=False)
        if faults:
            line, why = faults[0]
            place = f"{file.name}:{line}"
            not_utf8 = InputError("a row is not UTF-8 text", where=place, why=why, mend="save the file as UTF-8")
            yield too_long(place) if why == "long" else Bad(not_utf8, raw)
        elif len(row) != len(header):
            why = f"it has {len(row)} fields, the first line names {len(header)}"
            yield Bad(InputError("a row does not fit the columns", where=where, why=why, mend=MEND_QUOTES), raw)
        else:
            yield Row({name: row[at] for name, at in wanted}, where, raw)
    if not rows:
        raise InputError(
            "there are only column names",
            where=file.name,
            why="no row follows the first line",
            mend="give a file with rows",
        )


MEND_QUOTES = 'put text with commas, quotes or line ends in "..." and write a quote in it twice'


def _csv_reason(message: str) -> str:
    if "new-line character" in message:
        return "a carriage return stands where a line should end, as in files of an old Mac"
    return "a quote is opened and never closed" if "unexpected end of data" in message else message


def parquet_rows(file: SourceFile, choose: Choose) -> Iterator[Row]:
    """Rows of a parquet file, in batches."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "parquet files need the package pyarrow", where=file.name, mend='pip install "zhixing[parquet]"'
        ) from None
    try:
        table = pyarrow.parquet.ParquetFile(file.path)
        wanted = choose(list(table.schema_arrow.names), file.name)
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=wanted):
            batch.validate(full=True)  # else text that is not UTF-8 is found in the midst of Python's objects
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{file.name}, row {number}")
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # damaged bytes are any of them
        raise InputError(
            "the file is no readable parquet", where=file.name, why=str(error).split("\n")[0], mend="write it again"
        ) from None
    if not number:
        raise InputError("the parquet file has no rows", where=file.name, mend="give a file with rows")
