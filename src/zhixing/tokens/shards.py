"""Token ids on disk: one stream of all documents, cut into files that are mapped and never read whole.

A folder of shards holds

    00000.bin 00001.bin ...   ids, little-endian uint16 (uint32 from a vocabulary of 65,536 on); a document is
                              followed by eos; documents run on over the borders of files
    documents.bin             int64: where each document begins, and the end of the stream
    token_sizes.bin           float64: UTF-8 bytes that each id stands for (eos 0)
    index.json                counts, file sizes, fingerprints of the tokenizer and of the text
    MANIFEST.json             size and SHA-256 of each; written last

It appears whole or not at all (`files.atomic_dir`). Encoding runs on all cores by the tokenizers library's own
threads; several Python processes would gain nothing on top.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.files import atomic_dir, verify_manifest
from zhixing.progress import Progress
from zhixing.tokens.tokenizer import Tokenizer, lone_surrogate

INDEX = "index.json"
SCHEMA = 1


class Shards:
    """An open folder of shards: read-only, mapped into memory, safe to share between processes."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.n_tokens: int = index["n_tokens"]  # eos included
        self.n_documents: int = index["n_documents"]
        self.n_bytes: int = index["n_bytes"]  # UTF-8 bytes of the text
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.pad_id: int = index["pad_id"]
        self.tokenizer_fingerprint: str = index["tokenizer"]
        self.data_fingerprint: str = index["data"]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._files = [
            np.memmap(folder / entry["file"], dtype, "r", shape=(entry["tokens"],)) for entry in index["shards"]
        ]
        self._starts = np.cumsum([0] + [len(file) for file in self._files])
        self._documents = np.memmap(folder / "documents.bin", "<i8", "r", shape=(self.n_documents + 1,))
        self.token_sizes: NDArray[np.float64] = np.fromfile(folder / "token_sizes.bin", "<f8")  # (V,)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Ids start .. start + count - 1 of the stream as an int64 copy, over the borders of files."""
        if start < 0 or count < 0 or start + count > self.n_tokens:
            raise ValueError(f"expected tokens within range({self.n_tokens}), got {count} from {start}")
        ids = np.empty(count, np.int64)
        done = 0
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < count:
            offset = start + done - int(self._starts[number])
            part = self._files[number][offset : offset + count - done]
            ids[done : done + len(part)] = part
            done += len(part)
            number += 1
        return ids

    def document(self, i: int) -> NDArray[np.int64]:
        """Ids of the i-th document, its eos left out."""
        if not 0 <= i < self.n_documents:
            raise ValueError(f"expected a document in range({self.n_documents}), got {i}")
        start, stop = int(self._documents[i]), int(self._documents[i + 1])
        return self.read(start, stop - 1 - start)


def write_shards(
    documents: Iterable[str], tokenizer: Tokenizer, out: Path | str, shard_tokens: int = 1 << 26
) -> Shards:
    """Encode `documents` into a new folder `out`, `shard_tokens` ids a file, and open it.

    If `out` is there already with the same text and the same tokenizer, it is verified and opened as it is; with
    others it is an InputError, for a finished folder is never written into. No text at all is an InputError.
    """
    out = Path(out)
    if out.exists():
        shards = open_shards(out, tokenizer)
        if shards.data_fingerprint != data_fingerprint(documents):
            raise InputError(
                "the folder holds the tokens of another text", where=str(out), mend="remove it, or name another"
            )
        return shards
    with atomic_dir(out, {"kind": "shards", "tokenizer": tokenizer.fingerprint()}) as folder:
        index = _write(documents, tokenizer, folder, shard_tokens)
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return open_shards(out, tokenizer, verify=False)


def open_shards(out: Path | str, tokenizer: Tokenizer | None = None, *, verify: bool = True) -> Shards:
    """Open a folder that `write_shards` wrote; its files are checked by their SHA-256 unless `verify` is False.

    A damaged folder, or one made with a tokenizer other than the one given, is an InputError.
    """
    out = Path(out)
    try:
        if verify:
            verify_manifest(out)
        index = json.loads((out / INDEX).read_bytes())
        if index["schema"] != SCHEMA:
            raise ValueError(f"schema {index['schema']!r}, this version reads {SCHEMA}")
        shards = Shards(out, index)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the folder of tokens cannot be used",
            where=str(out),
            why=str(error),
            mend="remove it; it is made anew from the text",
        ) from None
    if tokenizer is not None and shards.tokenizer_fingerprint != tokenizer.fingerprint():
        raise InputError(
            "the tokens were made with another tokenizer",
            where=str(out),
            mend="remove the folder; it is made anew from the text",
        )
    return shards


def data_fingerprint(documents: Iterable[str]) -> str:
    """SHA-256 of all documents in order, each with its length, as 64 hex digits."""
    text = _Digest()
    for _ in text.watch(documents):
        pass
    return text.sha256.hexdigest()


class _Digest:
    """Counts and hashes the documents that flow by."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.n_bytes = 0

    def watch(self, documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            try:
                data = document.encode()
            except UnicodeEncodeError as error:
                raise lone_surrogate(error) from None
            self.n_bytes += len(data)
            self.sha256.update(len(data).to_bytes(8, "little"))
            self.sha256.update(data)
            yield document


def _write(documents: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> dict[str, Any]:
    """Write the .bin files into `folder`; gives the content of index.json."""
    if shard_tokens < 1:
        raise ValueError(f"expected shard_tokens >= 1, got {shard_tokens}")
    dtype = np.dtype("<u2" if tokenizer.vocab_size < 65536 else "<u4")
    ends = array("q")  # where each document ends in the stream, its eos included
    sizes = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], "<f8")
    n_unknown, known_bytes = 0, 0.0
    text = _Digest()
    with Progress("tokens", unit="B") as progress, _Files(folder, shard_tokens) as stream:
        for ids, last in tokenizer.encode_stream(text.watch(documents)):
            tokens = np.array([*ids, tokenizer.eos_id] if last else ids, dtype)
            if tokenizer.unk_id is not None:
                unknown = tokens == tokenizer.unk_id
                n_unknown += int(unknown.sum())
                known_bytes += float(sizes[tokens[~unknown]].sum())
            stream.write(tokens)
            if last:
                ends.append(stream.n_tokens)
            progress.update(text.n_bytes)
    if not text.n_bytes:
        raise InputError("there is no text", mend="name a file or folder that holds some")
    np.array([0, *ends], "<i8").tofile(folder / "documents.bin")
    if n_unknown:  # an unknown piece counts as the mean of all of them
        sizes[tokenizer.unk_id] = (text.n_bytes - known_bytes) / n_unknown
    sizes.tofile(folder / "token_sizes.bin")
    return {
        "schema": SCHEMA,
        "dtype": dtype.name,
        "n_tokens": stream.n_tokens,
        "n_documents": len(ends),
        "n_bytes": text.n_bytes,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": tokenizer.fingerprint(),
        "data": text.sha256.hexdigest(),
        "shards": [{"file": _name(number), "tokens": size} for number, size in enumerate(stream.sizes)],
    }


def _name(number: int) -> str:
    return f"{number:05d}.bin"


class _Files:
    """Writes one stream of ids into 00000.bin, 00001.bin, ... of `limit` ids each."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.sizes: list[int] = []  # ids in each file
        self.n_tokens = 0
        self._file: Any = None

    def write(self, tokens: NDArray[Any]) -> None:
        self.n_tokens += len(tokens)
        while len(tokens):
            if not self.sizes or self.sizes[-1] == self.limit:
                self._close()
                self._file = (self.folder / _name(len(self.sizes))).open("wb")
                self.sizes.append(0)
            part = tokens[: self.limit - self.sizes[-1]]
            self._file.write(part.tobytes())
            self.sizes[-1] += len(part)
            tokens = tokens[len(part) :]

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
