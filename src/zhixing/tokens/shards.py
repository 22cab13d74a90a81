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
from zhixing.tokens.tokenizer import Tokenizer

INDEX = "index.json"
SCHEMA = 1
BATCH_CHARACTERS = 4_000_000  # encoded at once; bounds memory


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
        if not (0 <= start and 0 <= count and start + count <= self.n_tokens):
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
    digest = hashlib.sha256()
    for document in documents:
        _add_to_digest(digest, _utf8(document))
    return digest.hexdigest()


def _add_to_digest(digest: hashlib._Hash, data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _utf8(document: str) -> bytes:
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "a document holds a lone surrogate, which is no character",
            where=f"character {error.start}",
            mend="remove it from the text",
        ) from None


def _write(documents: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> dict[str, Any]:
    """Write the .bin files into `folder`; gives the content of index.json."""
    if shard_tokens < 1:
        raise ValueError(f"expected shard_tokens >= 1, got {shard_tokens}")
    dtype = np.dtype("<u2" if tokenizer.vocab_size < 65536 else "<u4")
    eos = np.array([tokenizer.eos_id], dtype)
    digest = hashlib.sha256()
    files: list[int] = []  # tokens in each file
    starts = array("q", [0])
    n_bytes = 0
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    with Progress("tokens", unit="B") as progress, _Files(folder, shard_tokens) as stream:
        for batch in _batches(documents):
            for document in batch:
                data = _utf8(document)
                n_bytes += len(data)
                _add_to_digest(digest, data)
            for ids in tokenizer.encode_batch(batch):
                tokens = np.concatenate([np.array(ids, dtype), eos])
                counts += np.bincount(tokens, minlength=len(counts))
                stream.write(tokens)
                starts.append(starts[-1] + len(tokens))
            progress.update(n_bytes)
        files = stream.sizes
    if not n_bytes:
        raise InputError("there is no text", mend="name a file or folder that holds some")
    np.array(starts, "<i8").tofile(folder / "documents.bin")
    _token_sizes(tokenizer, counts, n_bytes).tofile(folder / "token_sizes.bin")
    return {
        "schema": SCHEMA,
        "dtype": dtype.name,
        "n_tokens": starts[-1],
        "n_documents": len(starts) - 1,
        "n_bytes": n_bytes,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": tokenizer.fingerprint(),
        "data": digest.hexdigest(),
        "shards": [{"file": f"{number:05d}.bin", "tokens": size} for number, size in enumerate(files)],
    }


def _token_sizes(tokenizer: Tokenizer, counts: NDArray[np.int64], n_bytes: int) -> NDArray[np.float64]:
    """UTF-8 bytes each id stands for; an unknown piece, where there are any, gets the mean of all of them."""
    sizes = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], "<f8")
    if tokenizer.unk_id is not None:
        sizes[tokenizer.unk_id] = 0
        if counts[tokenizer.unk_id]:
            sizes[tokenizer.unk_id] = (n_bytes - float(sizes @ counts)) / int(counts[tokenizer.unk_id])
    return sizes


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents, each of about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document) + 1
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Files:
    """Writes one stream of ids into 00000.bin, 00001.bin, ... of `limit` ids each."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.sizes: list[int] = []
        self._file: Any = None

    def write(self, tokens: NDArray[Any]) -> None:
        while len(tokens):
            if not self.sizes or self.sizes[-1] == self.limit:
                self._close()
                self._file = (self.folder / f"{len(self.sizes):05d}.bin").open("wb")
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
