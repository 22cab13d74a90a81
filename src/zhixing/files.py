"""Files are written whole or not at all, and a directory says what it holds.

A reader must never meet a half-written file under its final name, whatever moment the power fails at. So
everything is written under a temporary name beside the target, flushed to the disk, and renamed; the manifest
(size and SHA-256 of each file) is written last, and whoever loads a directory verifies it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
SCHEMA_VERSION = 1


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in blocks so that any size fits in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a directory's list of names, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_beside(target: Path) -> Path:
    """A fresh hidden name in the same folder (a rename is atomic only within one file system)."""
    return target.parent / f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def atomic_write(target: Path, data: bytes | str) -> None:
    """Write one file whole or not at all; an existing file is replaced in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_dir(target: Path, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well it appears as `target`, complete with its manifest.

    `facts` (step, hashes of recipe, tokenizer, data, ...) go into the manifest. The target must not exist:
    a finished directory is never written into again.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; a finished directory is never written into")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary, facts or {})
        fsync_path(temporary)
        os.rename(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write MANIFEST.json, last of all files: size and SHA-256 of each, after flushing each to the disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        fsync_path(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = {"schema": SCHEMA_VERSION, **facts, "files": files}
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Read MANIFEST.json and check every file against it; ValueError says the first thing that is wrong."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{MANIFEST} is not a manifest")
    if manifest.get("schema") != SCHEMA_VERSION:
        raise ValueError(f"{MANIFEST} has schema {manifest.get('schema')!r}, this version reads {SCHEMA_VERSION}")
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != entry["size"]:
            raise ValueError(f"{name} has {file.stat().st_size} bytes, the manifest says {entry['size']}")
        if sha256_file(file) != entry["sha256"]:
            raise ValueError(f"{name} does not have the SHA-256 of the manifest")
    return manifest
