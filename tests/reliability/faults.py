"""A disk that fails on demand: it stands between Python and the file system and counts what passes.

Counted are the operations that change a disk: mkdir, rename, replace, unlink, rmdir, fsync, opening a file for
writing, and each write. At the chosen one the process ends as by kill -9 (a write is torn in half first), or writes
fail with ENOSPC when the room is used up. It also remembers which files and folders are not yet flushed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from zhixing import files

KILLED = 77  # exit code of a process that the fault ended


class Disk:
    """`kill_at`: number (from 0) of the operation before which the process ends; `room`: bytes until ENOSPC."""

    def __init__(self, kill_at: int | None = None, room: int | None = None) -> None:
        self.kill_at, self.room = kill_at, room
        self.operations: list[str] = []
        self.written = 0
        self.unflushed: set[str] = set()  # files with bytes, and folders with names, that a power cut would lose
        self.unflushed_at_rename: list[str] = []

    def _count(self, name: str) -> None:
        if len(self.operations) == self.kill_at:
            os._exit(KILLED)
        self.operations.append(name)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Disk]:
        real = {name: getattr(os, name) for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")}
        real_open = io.open

        def watched(name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                self._count(name)
                if name in ("rename", "replace"):
                    source, target = Path(arguments[0]), Path(arguments[1])
                    self.unflushed_at_rename += sorted(p for p in self.unflushed if Path(p).is_relative_to(source))
                    self.unflushed.add(str(target.parent))
                elif name == "mkdir":
                    self.unflushed.add(str(Path(arguments[0]).parent))
                elif name == "fsync":
                    flushed = os.fstat(arguments[0])
                    self.unflushed = {p for p in self.unflushed if not _is(Path(p), flushed)}
                return real[name](*arguments, **options)

            return call

        def open_watched(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real_open(path, mode, *arguments, **options)
            self._count("open")
            self.unflushed |= {str(path), str(Path(path).parent)}
            return _File(self, real_open(path, mode, *arguments, **options), str(path))

        with contextlib.ExitStack() as stack:
            for name in real:
                stack.enter_context(mock.patch.object(os, name, watched(name)))
            stack.enter_context(mock.patch.object(io, "open", open_watched))
            yield self


class _File:
    """A file opened for writing, whose writes are counted."""

    def __init__(self, disk: Disk, file: Any, path: str) -> None:
        self.disk, self.file, self.path = disk, file, path

    def write(self, data: Any) -> int:
        disk = self.disk
        size = memoryview(data).nbytes if not isinstance(data, str) else len(data)
        if len(disk.operations) == disk.kill_at:
            self.file.write(data[: size // 2])
            self.file.flush()
        disk._count("write")
        disk.unflushed.add(self.path)
        if disk.room is not None and disk.written + size > disk.room:
            self.file.write(data[: disk.room - disk.written])
            self.file.flush()
            disk.written = disk.room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        disk.written += size
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _is(path: Path, flushed: os.stat_result) -> bool:
    return path.exists() and os.path.samestat(path.stat(), flushed)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: writes really fail, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rewritten(folder: Path, **changes: object) -> None:
    """A manifest with other contents and a right checksum, as a stranger could write it."""
    manifest = {**json.loads((folder / files.MANIFEST).read_text(encoding="utf-8")), **changes}
    manifest["checksum"] = files._checksum(manifest)
    (folder / files.MANIFEST).write_text(files._manifest_text(manifest), encoding="utf-8")
