"""Archives of packages, read without installing anything: .tgz, .tar.gz, .whl, .zip and .deb.

Contents are only ever returned: no name of an archive is opened on the disk, and links are not followed.
"""

from __future__ import annotations

import fnmatch
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from zhixing.errors import InputError

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
