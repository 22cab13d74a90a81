"""Files are written whole or not at all, and a directory says what it holds.

A reader must never meet a half-written file under its final name, whatever moment the power fails at. So
everything is written under a temporary name beside the target, flushed to the disk, and renamed; the manifest
(size and SHA-256 of each file, and a checksum of itself) is written last, and whoever loads a directory verifies
it first. What a killed process leaves behind has a hidden name of its own and is swept away by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "MANIFEST.json"
SCHEMA_VERSION = 1
MANIFEST_LIMIT = 64 << 20  # bytes; a longer manifest is not read at all

_LEFTOVER = re.compile(r"^\..+\.(?:tmp|trash)-(?P<pid>\d+)-[0-9a-f]{8}$")
_in_use: set[Path] = set()  # hidden names this process is working on now (a dead one may have had the same pid)


class NewerSchemaError(ValueError):
    """Written by a later version of zhixing: not damaged, but not to be read by this one."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in blocks so that any size fits in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a directory's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no directories; its rename is journalled
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_beside(target: Path) -> Path:
    """A fresh hidden name in the same folder (a rename is atomic only within one file system)."""
    return _hidden_beside(target, "tmp")


def _hidden_beside(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents; their names are on the disk when it returns."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)


def atomic_write(target: Path, data: bytes | str) -> None:
    """Write one file whole or not at all; an existing file is replaced in one step. OSError if it cannot be."""
    _make_folder(target.parent)
    temporary = temporary_beside(target)
    _in_use.add(temporary)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _in_use.discard(temporary)


@contextlib.contextmanager
def atomic_dir(target: Path, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well it appears as `target`, complete with its manifest.

    `facts` (step, hashes of recipe, tokenizer, data, ...) go into the manifest. The target must not exist:
    a finished directory is never written into again.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists; a finished directory is never written into")
    _make_folder(target.parent)
    temporary = temporary_beside(target)
    _in_use.add(temporary)
    try:
        temporary.mkdir()
        yield temporary
        write_manifest(temporary, facts or {})
        temporary.rename(target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        _in_use.discard(temporary)


def remove_tree(target: Path) -> None:
    """Delete a directory so that no reader meets half of it: first a hidden name, then the files."""
    trash = _hidden_beside(target, "trash")
    _in_use.add(trash)
    try:
        target.rename(trash)
        fsync_path(target.parent)
        shutil.rmtree(trash)
    finally:
        _in_use.discard(trash)


def set_aside(target: Path) -> Path:
    """Rename what cannot be used to NAME.bad (NAME.bad-2, ... if that is taken); nothing is deleted."""
    bad = target.with_name(f"{target.name}.bad")
    number = 1
    while os.path.lexists(bad):
        number += 1
        bad = target.with_name(f"{target.name}.bad-{number}")
    target.rename(bad)
    fsync_path(target.parent)
    return bad


def clear_leftovers(folder: Path, *, alone: bool = False) -> list[str]:
    """Delete the hidden temporaries and half-deleted directories of processes that are dead; return their names.

    `alone`: the caller holds the lock on the folder, so all but its own are. A number in a name may meanwhile be that
    of another process (in a container, of the same one every time), and then only the lock tells.
    """
    cleared = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _LEFTOVER.match(path.name)
        if not match or path in _in_use:
            continue
        pid = int(match["pid"])
        if not alone and pid != os.getpid() and _is_alive(pid):
            continue
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            cleared.append(path.name)
    return cleared


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill(pid, 0) would end it there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write MANIFEST.json, last of all files: size and SHA-256 of each, after flushing each to the disk.

    `facts` stand beside them. A checksum of the manifest itself protects them as well.
    """
    assert not {"schema", "files", "checksum"} & set(facts), "these keys are the manifest's own"
    files = {}
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_file() and path != folder / MANIFEST:
            fsync_path(path)
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            fsync_path(path)
    manifest = json.loads(_manifest_text({"schema": SCHEMA_VERSION, **facts, "files": files}))  # keys become strings
    atomic_write(folder / MANIFEST, _manifest_text({**manifest, "checksum": _checksum(manifest)}))


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's text without its checksum."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(_manifest_text(rest).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """MANIFEST.json itself, whole and unchanged since it was written; the files it lists are not looked at.

    ValueError says what is wrong; NewerSchemaError if a later version wrote it; OSError if it cannot be read.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"{MANIFEST} is missing") from None
    if len(data) > MANIFEST_LIMIT:
        raise ValueError(f"{MANIFEST} is longer than {MANIFEST_LIMIT} bytes")
    try:
        manifest = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{MANIFEST} is not a manifest")
    schema = manifest.get("schema")
    if type(schema) is not int or schema < SCHEMA_VERSION:
        raise ValueError(f"{MANIFEST} has schema {schema!r}, this version reads {SCHEMA_VERSION}")
    if schema == SCHEMA_VERSION and "checksum" not in manifest:
        raise ValueError(f"{MANIFEST} has no checksum")
    if manifest.get("checksum") != _checksum(manifest) or data != _manifest_text(manifest).encode():
        raise ValueError(f"{MANIFEST} does not have its own checksum: it was changed after it was written")
    if schema > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{MANIFEST} has schema {schema}, this version reads {SCHEMA_VERSION}: a newer zhixing wrote it"
        )
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Read MANIFEST.json and check every file against it; ValueError says the first thing that is wrong."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        parts = PurePosixPath(name)
        if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise ValueError(f"{MANIFEST} lists {name!r}, which is not a file of this directory")
        if (
            not isinstance(entry, dict)
            or type(entry.get("size")) is not int
            or not isinstance(entry.get("sha256"), str)
        ):
            raise ValueError(f"{MANIFEST} has no size and SHA-256 for {name}")
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        size = file.stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{name} has {size} bytes, the manifest says {entry['size']}")
        if sha256_file(file) != entry["sha256"]:
            raise ValueError(f"{name} does not have the SHA-256 of the manifest")
    return manifest
