"""Shards: what goes in comes out, over the borders of files; damage and mismatches are refused."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.tokens import tokenizer as tokenizer_module
from zhixing.tokens.shards import data_fingerprint, open_shards, write_shards
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

DOCUMENTS = ["The cat sat on the mat.\n" * 9, "", "床前明月光，疑是地上霜。", "a <|endoftext|> b", "😀" * 5, "x"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, "bpe", 300)


def expected_stream(tokenizer: Tokenizer, documents: list[str]) -> list[int]:
    return [i for document in documents for i in [*tokenizer.encode(document), tokenizer.eos_id]]


@pytest.mark.parametrize("shard_tokens", [1, 2, 7, 50, 10**6])
def test_round_trip(tokenizer: Tokenizer, tmp_path: Path, shard_tokens: int) -> None:
    shards = write_shards(iter(DOCUMENTS), tokenizer, tmp_path / "out", shard_tokens=shard_tokens)
    stream = expected_stream(tokenizer, DOCUMENTS)
    assert shards.n_tokens == len(stream)
    assert shards.n_documents == len(DOCUMENTS)
    assert shards.n_bytes == sum(len(document.encode()) for document in DOCUMENTS)
    assert len(list((tmp_path / "out").glob("0*.bin"))) == -(-len(stream) // shard_tokens)
    ids = shards.read(0, shards.n_tokens)
    assert ids.dtype == np.int64
    assert ids.tolist() == stream
    assert [tokenizer.decode(shards.document(i).tolist()) for i in range(shards.n_documents)] == DOCUMENTS
    assert stream.count(tokenizer.eos_id) == len(DOCUMENTS)  # special-token text in a document is no end of it


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read_anywhere(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "read-anywhere"
    shards = write_shards(DOCUMENTS, tokenizer, folder, shard_tokens=13) if not folder.exists() else open_shards(folder)
    stream = expected_stream(tokenizer, DOCUMENTS)
    start = data.draw(st.integers(0, len(stream)))
    count = data.draw(st.integers(0, len(stream) - start))
    assert shards.read(start, count).tolist() == stream[start : start + count]


def test_read_gives_a_copy_and_refuses_what_is_outside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = write_shards(DOCUMENTS, tokenizer, tmp_path / "out")
    shards.read(0, 5)[:] = 9
    assert shards.read(0, 5).tolist() == expected_stream(tokenizer, DOCUMENTS)[:5]
    for start, count in ((-1, 1), (0, shards.n_tokens + 1), (shards.n_tokens, 1), (0, -1)):
        with pytest.raises(ValueError, match="expected tokens"):
            shards.read(start, count)
    for i in (-1, len(DOCUMENTS)):
        with pytest.raises(ValueError, match="expected a document"):
            shards.document(i)


def test_width_of_ids(tmp_path: Path) -> None:
    """Two bytes an id where they suffice, four where they do not."""
    characters = [chr(0x4E00 + i) for i in range(20_900)] + [chr(0x20000 + i) for i in range(44_700)]
    documents = ["".join(characters)]
    for size, dtype in ((65_535, "uint16"), (65_602, "uint32")):
        tokenizer = train_tokenizer(documents, "char", size)
        shards = write_shards(documents, tokenizer, tmp_path / dtype)
        assert (tmp_path / dtype / "00000.bin").stat().st_size == shards.n_tokens * np.dtype(dtype).itemsize
        assert shards.document(0).tolist() == tokenizer.encode(documents[0])
        assert shards.document(0).max() == tokenizer.vocab_size - 1


def test_same_again_is_reused_and_another_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(DOCUMENTS, tokenizer, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = write_shards(DOCUMENTS, tokenizer, tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert again.data_fingerprint == data_fingerprint(DOCUMENTS)
    with pytest.raises(InputError, match="another text"):
        write_shards([*DOCUMENTS, "more"], tokenizer, tmp_path / "out")
    with pytest.raises(InputError, match="another tokenizer"):
        write_shards(DOCUMENTS, train_tokenizer(DOCUMENTS, "bpe", 260), tmp_path / "out")
    with pytest.raises(InputError, match="another tokenizer"):
        open_shards(tmp_path / "out", train_tokenizer(DOCUMENTS, "char", 280))


def test_fingerprint_sees_borders_of_documents() -> None:
    assert data_fingerprint(["ab", "c"]) != data_fingerprint(["a", "bc"]) != data_fingerprint(["abc"])


def test_the_same_text_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        write_shards(DOCUMENTS, tokenizer, tmp_path / name, shard_tokens=20)
        files = sorted((tmp_path / name).iterdir())
        digests.add(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("file", ["00000.bin", "documents.bin", "token_sizes.bin", "index.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_refused(tokenizer: Tokenizer, tmp_path: Path, file: str, damage: str) -> None:
    write_shards(DOCUMENTS, tokenizer, tmp_path / "out", shard_tokens=20)
    path = tmp_path / "out" / file
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    if file == "MANIFEST.json" and damage == "flip":  # a digit of a hash, or JSON that is none
        with pytest.raises(InputError):
            open_shards(tmp_path / "out")
        return
    with pytest.raises(InputError, match="cannot be used"):
        open_shards(tmp_path / "out")


def test_an_error_leaves_nothing_behind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def documents() -> Iterator[str]:
        yield "some text"
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_shards(documents(), tokenizer, tmp_path / "out")
    for nothing in ([], ["", ""]):
        with pytest.raises(InputError, match="no text"):
            write_shards(nothing, tokenizer, tmp_path / "out")
    with pytest.raises(InputError, match="surrogate"):
        write_shards(["good", "bad \ud800"], tokenizer, tmp_path / "out")
    with pytest.raises(InputError):
        open_shards(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_no_final_name(tmp_path: Path) -> None:
    """kill -9 in the midst of writing: the name is not there, and the next try succeeds."""
    code = f"""
import itertools, sys
from zhixing.tokens.shards import write_shards
from zhixing.tokens.tokenizer import train_tokenizer
tokenizer = train_tokenizer(["some words and words"], "bpe", 300)
def documents():
    for i in itertools.count():
        if i == 25_000:
            print("going", flush=True)
        yield "some words and words " * 5
write_shards(documents(), tokenizer, {str(tmp_path / "out")!r}, shard_tokens=1000)
"""
    source = str(Path(tokenizer_module.__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.1)
    assert list(tmp_path.glob(".out.tmp-*"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()
    tokenizer = train_tokenizer(DOCUMENTS, "bpe", 300)
    assert write_shards(DOCUMENTS, tokenizer, tmp_path / "out").n_documents == len(DOCUMENTS)


def test_a_document_longer_than_a_piece(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents are encoded in pieces; the ids are those of the whole, with one eos."""
    document = "The cat sat on the mat.\nI'd say, don't you?  Well 床前明月光，疑是地上霜。\n" * 50
    whole = tokenizer.encode(document)
    monkeypatch.setattr(tokenizer_module, "MAX_PIECE", 100)
    monkeypatch.setattr(tokenizer_module, "BATCH", 300)
    shards = write_shards([document, "end"], tokenizer, tmp_path / "out", shard_tokens=77)
    assert shards.n_documents == 2
    assert shards.document(0).tolist() == whole
    assert tokenizer.decode(shards.document(1).tolist()) == "end"
