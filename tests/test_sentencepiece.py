"""SentencePiece vocabularies: the ids of `sentencepiece` itself and of transformers; damaged files; whole checkpoints."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import zhixing
from zhixing.errors import InputError
from zhixing.interchange.seq2seq_directory import Generation, read_seq2seq, write_seq2seq
from zhixing.recipe import DataSettings
from zhixing.seq2seq import Translator
from zhixing.text.readers import read_documents
from zhixing.tokens import sentencepiece as module
from zhixing.tokens import tokenizer as tokenizer_module
from zhixing.tokens.sentencepiece import build_tokenizer, fold, parse_sentencepiece, read_sentencepiece
from zhixing.tokens.tokenizer import MARIAN_FILES, TextStream, Tokenizer, train_tokenizer

spm: Any = pytest.importorskip("sentencepiece")

T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
KINDS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "bpe": {"model_type": "bpe"},
    "unigram of bytes": {"model_type": "unigram", "byte_fallback": True},
    "bpe of bytes": {"model_type": "bpe", "byte_fallback": True},
    "as it is": {"model_type": "unigram", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "unigram, own symbols": {"model_type": "unigram", "user_defined_symbols": "<sep>,=>", "add_dummy_prefix": False},
    "bpe, own symbols": {"model_type": "bpe", "user_defined_symbols": "<sep>,=>"},
}
ODD = [
    "", "   ", " a", "a  b   c ", "tab\tand\nnew\r\nline", "　全角　空格　", "a\u00a0b\u200bc\ufeffd", "</s> and <pad> <unk>", "a</s>b",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 ok", "😀😀 hi", "cafe\u0301 naïve ﬁne ①②½", "▁raw ▁▁ x▁", "<0x41> byte", "한국어 カタカナ", "中国 unknown 鑫龘", "𠮷野家",
    "\x00\x01\x07", "a<sep>b => c<sep>", " \u2028 x\x85y", "x" * 300, "…“quoted” ‘s’", "مرحبا بالعالم שלום नमस्ते ไทย",
]  # fmt: skip


@pytest.fixture(scope="module")
def english() -> list[str]:
    text = "\n".join(read_documents("austen", DataSettings()))[:200_000]
    return [sentence for sentence in re.split(r"(?<=[.?!])\s+", text) if sentence.strip()]


@pytest.fixture(scope="module")
def chinese() -> list[str]:
    text = "\n".join(read_documents("tang", DataSettings()))[:60_000]
    return [line for line in text.split("\n") if line.strip()]


def train(texts: list[str], vocab_size: int, **settings: Any) -> bytes:
    made = io.BytesIO()
    given = {"character_coverage": 0.98, "num_threads": 1, "minloglevel": 2, **settings}
    spm.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=made, vocab_size=vocab_size, **given)
    return made.getvalue()


@pytest.fixture(scope="module")
def files(english: list[str], chinese: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("spm")
    found = {}
    for name, settings in KINDS.items():
        found[name] = folder / f"{name}.model"
        found[name].write_bytes(train(english + chinese, 2000, **T5_IDS, **settings))
    return found


def small(**settings: Any) -> bytes:
    texts = ["the red file is on the table", "open the red file", "a small blue page and a red one"] * 5
    return train(texts, 26, character_coverage=1.0, **T5_IDS, **settings)


@pytest.fixture(scope="module")
def sound() -> bytes:
    return small(model_type="unigram")


# ---- ids and text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_those_of_sentencepiece(
    kind: str, files: dict[str, Path], english: list[str], chinese: list[str]
) -> None:
    theirs, ours = spm.SentencePieceProcessor(model_file=str(files[kind])), Tokenizer.load(files[kind])
    assert ours.kind == ("unigram" if KINDS[kind]["model_type"] == "unigram" else "sentencepiece-bpe")
    assert ours.vocab_size == theirs.get_piece_size() == 2000
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2)
    texts = [*english[:200], *chinese[:200], *ODD]
    assert ours.encode_batch(texts) == theirs.encode(texts)
    for text in texts:
        ids = theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids).replace(" \u2047 ", "\ufffd")
        stream = TextStream(ours)
        for _ in range(2):  # a stream that ended is as new
            assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


def test_text_comes_back(files: dict[str, Path], english: list[str], chinese: list[str]) -> None:
    tokenizer = Tokenizer.load(files["unigram of bytes"])
    charsmap = read_sentencepiece(files["unigram of bytes"]).charsmap
    for text in [*english[:200], *chinese[:200], "😀 鑫龘 𠮷"]:
        folded = fold(text, charsmap)
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(folded.split())


def test_spans_are_of_the_text(files: dict[str, Path], english: list[str]) -> None:
    tokenizer = Tokenizer.load(files["unigram"])
    text = english[3]
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text) and len(spans) == len(ids)
    pieces = [text[start:stop].strip() for start, stop in spans]
    assert "".join(pieces) == "".join(text.split())


@pytest.mark.parametrize("kind", ["unigram", "bpe", "as it is", "unigram, own symbols"])
def test_a_long_text_is_cut_where_ids_stay(
    kind: str, files: dict[str, Path], english: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(files[kind])
    text = " ".join(english[:60])
    whole = tokenizer.encode_with_spans(text)
    monkeypatch.setattr(tokenizer_module, "MAX_PIECE", 300)
    if kind != "unigram, own symbols":  # it takes blanks away at both ends and adds none: no place to cut
        ids, spans = tokenizer.encode_with_spans(text)
        assert ids == tokenizer.encode(text) == whole[0]
        assert np.abs(np.array(spans) - np.array(whole[1])).max() <= 1  # the blank before a piece may be its own or not


def test_what_the_charsmap_replaces(files: dict[str, Path]) -> None:
    """Letters with two marks, Katakana of half width and Hangul in parts, which the library alone replaces wrongly."""
    normalizer = spm.SentencePieceNormalizer(rule_name="nmt_nfkc")
    charsmap = read_sentencepiece(files["unigram"]).charsmap
    for text in [
        "e\u0323\u0302 vie\u0302\u0323t",
        "ｶﾞｷﾞ ﾊﾟ",
        "\u1112\u1161\u11ab\u1100\u116e\u11a8",
        "ﬁ①½…",
        "a" * 500,
        "👩‍👩‍👧",
    ]:
        assert " ".join(fold(text, charsmap).split()) == normalizer.normalize(text).removeprefix("▁").replace("▁", " ")


def test_no_vocabulary_is_learned() -> None:
    with pytest.raises(InputError, match="cannot be learned"):
        train_tokenizer(["a"], cast(Any, "unigram"), 100)


# ---- T5 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5_folder(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """spiece.model and the settings, without a tokenizer.json."""
    folder = tmp_path_factory.mktemp("t5")
    (folder / "spiece.model").write_bytes(files["unigram"].read_bytes())
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_ids": 100}))
    (folder / "config.json").write_text('{"model_type": "t5"}')
    return folder


def test_t5_has_the_ids_of_transformers(
    t5_folder: Path, tmp_path: Path, english: list[str], chinese: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(t5_folder)
    assert type(theirs).__name__.startswith("T5Tokenizer")
    ours = Tokenizer.load(t5_folder)
    assert ours.vocab_size == len(theirs) == 2100
    assert ours.token_id("<extra_id_0>") == theirs.convert_tokens_to_ids("<extra_id_0>") == 2099
    theirs.save_pretrained(tmp_path / "json")
    (tmp_path / "json" / "spiece.model").unlink(missing_ok=True)
    again = Tokenizer.load(tmp_path / "json")
    ours.save(tmp_path / "saved")
    saved = Tokenizer.load(tmp_path / "saved")
    reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.kind == saved.kind == "unigram"
    assert (again.pad_id, again.eos_id, again.unk_id) == (saved.pad_id, saved.eos_id, saved.unk_id) == (0, 1, 2)
    assert ours.fingerprint() == saved.fingerprint()
    # transformers also cuts at a raw ▁ and at U+0085, which are no blanks for SentencePiece
    odd = [text for text in ODD if not re.search("</s>|▁|\x85", text)]
    texts = [*english[:200], *chinese[:200], *odd]
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ours.with_ends(ours.encode(text)) == ids, text
        assert again.with_ends(again.encode(text)) == ids, text
        assert saved.with_ends(saved.encode(text)) == reloaded(text)["input_ids"] == ids, text
        decoded = theirs.decode(ids, skip_special_tokens=True)
        for tokenizer in (ours, again, saved):
            assert tokenizer.decode(ids).replace("\ufffd", "") == decoded
        assert reloaded.decode(ids, skip_special_tokens=True) == decoded
    for text in ODD:
        assert saved.with_ends(saved.encode(text)) == reloaded(text)["input_ids"] == ours.with_ends(ours.encode(text))
        for tokenizer in (ours, again, saved):
            assert not {0, 1} & set(tokenizer.encode(text)), "no special token, whatever the text says"
    saved.save(tmp_path / "third")
    both = [json.loads((tmp_path / name / "tokenizer.json").read_bytes()) for name in ("saved", "third")]
    assert both[0]["pre_tokenizer"] == both[1]["pre_tokenizer"], "nothing is added each time"
    assert Tokenizer.load(tmp_path / "third").fingerprint() == saved.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_saved_and_read(kind: str, files: dict[str, Path], tmp_path: Path, english: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.load(files[kind])
    ours.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint() == ours.fingerprint() and again.kind == ours.kind
    for text in [*english[:40], *ODD]:
        ids = ours.encode(text)
        assert again.encode(text) == ids and theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert again.decode(ids) == ours.decode(ids)


def test_settings_beside_spiece_model(sound: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(sound)
    assert Tokenizer.load(tmp_path).vocab_size == 126
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"extra_ids": 0}')
    assert Tokenizer.load(tmp_path).vocab_size == 26
    for wrong, says in (
        ('{"extra_ids": -1}', "extra_ids"),
        ('{"eos_token": "<end>"}', "ends a text"),
        ("{", "settings"),
    ):
        config.write_text(wrong)
        with pytest.raises(InputError, match=says):
            Tokenizer.load(tmp_path)


def test_a_token_before_the_text_is_refused(sound: bytes, tmp_path: Path) -> None:
    from tokenizers import processors

    inner = build_tokenizer(parse_sentencepiece(sound))
    inner.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="before a text"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_tokenizer_json_that_knows_no_unknown_is_refused(kind: str, tmp_path: Path) -> None:
    settings = json.loads(build_tokenizer(parse_sentencepiece(small(model_type=kind))).to_str())
    settings["model"]["unk_id" if kind == "unigram" else "unk_token"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="unknown") as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in caught.value.where


# ---- OPUS-MT ---------------------------------------------------------------------------------------------------------


def lay_marian(folder: Path, source: bytes, target: bytes, *, separate: bool = False) -> Path:
    """The files of a Marian vocabulary, made as OPUS-MT's are: one table for the pieces of both sides."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = [parse_sentencepiece(data) for data in (source, target)]
    tables = [[piece for piece, kind in zip(side.pieces, side.types, strict=True) if kind == 1] for side in sides]
    if not separate:
        tables = [tables[0] + tables[1] + [">>cmn<<", ">>eng<<"]]
    for name, pieces in zip(("vocab.json", "target_vocab.json"), tables, strict=False):
        ids = {token: i for i, token in enumerate(dict.fromkeys(["</s>", "<unk>", *pieces, "<pad>"]))}
        (folder / name).write_text(json.dumps(ids))
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    config = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": "en",
        "target_lang": "zh",
        "separate_vocabs": separate,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "marian"}')
    return folder


@pytest.fixture(scope="module")
def sides(english: list[str], chinese: list[str]) -> dict[str, tuple[bytes, bytes]]:
    return {
        kind: (train(english, 1000, model_type=kind), train(chinese, 3000, model_type=kind))
        for kind in ("unigram", "bpe")
    }


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("separate", [False, True])
def test_marian_has_the_ids_of_transformers(
    kind: str,
    separate: bool,
    sides: dict[str, tuple[bytes, bytes]],
    tmp_path: Path,
    english: list[str],
    chinese: list[str],
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = lay_marian(tmp_path / "marian", *sides[kind], separate=separate)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "MarianTokenizer"
    source = Tokenizer.load(folder)
    target = source.target
    assert target is not source and target.target is target and source.languages == ("en", "zh")
    assert source.kind == ("unigram" if kind == "unigram" else "sentencepiece-bpe")
    assert (source.eos_id, source.unk_id) == (0, 1) and source.pad_id == source.vocab_size - 1 == theirs.pad_token_id
    texts = [*english[:200], *chinese[:200], *(text for text in ODD if "</s>" not in text), "e\u0323\u0302 ｶﾞ"]
    if not separate:
        texts += [">>cmn<< hello there", ">>cmn<<hello"]
        assert source.encode(">>cmn<< hello")[0] == source.token_id(">>cmn<<")
    assert source.encode(">>xxx<< hello") != source.encode("hello")  # a language that it has not is text
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert source.with_ends(source.encode(text)) == ids, text
        assert source.encode_with_spans(text)[0] == ids
        assert theirs.decode(ids, skip_special_tokens=True, use_source_tokenizer=True) == plain(source, ids) or separate
        ids = theirs(text_target=text)["input_ids"]
        assert target.with_ends(target.encode(text)) == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == plain(target, ids)
        if not separate:  # an id stands for the same piece on both sides
            assert source.decode(ids) == target.decode(ids)
    for tokenizer in (source, target):
        assert not {tokenizer.eos_id, tokenizer.pad_id} & {i for text in ODD for i in tokenizer.encode(text)}

    out = tmp_path / "saved"
    out.mkdir()
    source.save(out)
    names = MARIAN_FILES if separate else MARIAN_FILES[:3]
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in names)
    again, saved = Tokenizer.load(out), transformers.AutoTokenizer.from_pretrained(out)
    assert again.fingerprint() == source.fingerprint() and again.languages == source.languages
    for text in [*english[:20], *chinese[:20], *ODD]:
        assert saved(text)["input_ids"][:-1] == again.encode(text) or "</s>" in text


def plain(tokenizer: Tokenizer, ids: list[int]) -> str:
    """As transformers decodes for Marian: what is unknown is left out, blanks at both ends are taken away."""
    return tokenizer.decode(i for i in ids if i != tokenizer.unk_id).strip()


def test_one_side_for_both_has_no_target(sound: bytes, tmp_path: Path) -> None:
    both = Tokenizer.load(lay_marian(tmp_path, sound, sound))
    assert both.target is both


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("vocab.json", b"[]", "each piece an id"),
        ("vocab.json", b"{", "cannot be read"),
        ("vocab.json", b"[" * 100_000, "cannot be read"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 1}', "no <pad>"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 1, "<pad>": 1}', "same id"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 1, "<pad>": 4000000000}', "ids up to"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 1, "<pad>": "2"}', "each piece an id"),
        ("vocab.json", None, "no vocab.json"),
        ("target.spm", None, "no target.spm"),
        ("target.spm", b"\x0a\xff", "no SentencePiece model"),
        ("source.spm", b"\x0a\xff", "no SentencePiece model"),
        ("tokenizer_config.json", b"{", "settings cannot be read"),
    ],
)
def test_damaged_marian_files_are_refused(
    sound: bytes, tmp_path: Path, name: str, data: bytes | None, says: str
) -> None:
    lay_marian(tmp_path, sound, sound)
    if data is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.where.startswith(str(tmp_path))


# ---- damaged files ---------------------------------------------------------------------------------------------------


def field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protobuf."""
    if isinstance(value, bytes):
        return number_of(number << 3 | 2) + number_of(len(value)) + value
    if isinstance(value, float):
        return number_of(number << 3 | 5) + struct.pack("<f", value)
    return number_of(number << 3) + number_of(value & (1 << 64) - 1)


def number_of(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def piece(text: str, score: float = -1.0, kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


LEAST = piece("<unk>", 0.0, 2) + piece("</s>", 0.0, 3) + piece("▁") + piece("a")


def charsmap(units: list[int], texts: bytes) -> bytes:
    table = np.array(units, dtype="<u4").tobytes()
    return field(3, field(2, struct.pack("<I", len(table)) + table + texts))


def test_a_least_file_is_read() -> None:
    model = parse_sentencepiece(
        LEAST + field(2, field(43, -1) + field(42, 1) + field(41, -1)) + field(9, b"unknown to us")
    )
    assert (model.unk_id, model.eos_id, model.bos_id, model.pad_id) == (0, 1, -1, -1)
    assert build_tokenizer(model).encode("aa a").ids == [2, 3, 3, 2, 3]
    assert parse_sentencepiece(LEAST + charsmap([0] * 256, b"\0")).charsmap


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no pieces"),
        (piece("a"), "must be one"),
        (LEAST + piece("<u>", 0.0, 2), "must be one"),
        (LEAST + piece("a"), "twice"),
        (LEAST + piece(""), "0 letters"),
        (LEAST + piece("x" * 5000), "5,000 letters"),
        (LEAST + piece("b", float("nan")), "score"),
        (LEAST + piece("b", float("-inf")), "score"),
        (LEAST + piece("b", 0.0, 9), "type 9"),
        (LEAST + piece("b", 0.0, 6), "byte"),
        (LEAST + field(1, field(1, b"\xff")), "UTF-8"),
        (LEAST + field(1, field(1, 5)), "no bytes"),
        (LEAST + field(1, 5), "no message"),
        (LEAST + field(1, field(1, b"b") + field(2, 7)), "no float"),
        (LEAST + field(2, field(3, 4)), "model_type"),
        (LEAST + field(2, field(24, 1)), "suffix"),
        (LEAST + field(3, field(5, 0)), "escape"),
        (LEAST + b"\x0b", "unknown kind"),
        (LEAST + b"\x0a\xff\xff\xff\xff\x0f", "cut off"),
        (LEAST + b"\xff" * 12, "10 bytes"),
        (LEAST + b"\x0a", "inside a number"),
        (LEAST + field(3, field(2, b"\1")), "replacements"),
        (LEAST + field(3, field(2, b"\xff\xff\xff\xff" * 4)), "replacements"),
        (LEAST + charsmap([0], b"\0"), "out of itself"),
        (LEAST + charsmap([0xFFFFFFFF << 10 & 0x7FFFFFFF] * 256, b"\0"), "out of itself"),
        (LEAST + charsmap([1 << 8] + [0x7FFFFFFF] * 255, b"\0"), "out of itself|midst"),
        (LEAST + charsmap([0] * 256, b"\xff\0"), "UTF-8"),
        (LEAST + charsmap([0] * 256, b"x"), "cut off"),
    ],
)
def test_damaged_files_say_what_is_wrong(data: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "spiece.model"
    file.write_bytes(data)
    with pytest.raises(InputError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.where == str(file) and caught.value.mend


def test_a_replacement_inside_a_character_is_refused() -> None:
    """The root's offset leads to "a" at 97, a leaf, whose value stands at 97 ^ 1 and is the second byte of é."""
    units = [0] * 256
    units[97] = 97 | 1 << 8 | 1 << 10
    units[96] = 1
    with pytest.raises(InputError, match="midst"):
        parse_sentencepiece(LEAST + charsmap(units, "é\0".encode()))
    units[96] = 0
    tokenizer = build_tokenizer(parse_sentencepiece(LEAST + piece("é") + charsmap(units, "é\0".encode())))
    assert tokenizer.encode("a").ids == [2, 4] and fold("xa", read_charsmap(units)) == "xé"


def read_charsmap(units: list[int]) -> bytes:
    table = np.array(units, dtype="<u4").tobytes()
    return struct.pack("<I", len(table)) + table + "é\0".encode()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_files_damaged_anywhere_never_crash(kind: str) -> None:
    """Cut anywhere, or with bytes changed: an InputError, or a tokenizer that cuts text."""
    data = small(model_type=kind)
    rng = random.Random(0)
    text = "the red file é ① 你 👩‍👩‍👧 e\u0323\u0302"
    for _ in range(150):
        broken = bytearray(data)
        if rng.random() < 0.4:
            broken = broken[: rng.randrange(len(broken))]
        for _ in range(rng.choice([0, 1, 3, 50])):
            at = rng.randrange(min(len(broken), rng.choice([1500, 1 << 20])) or 1)
            broken[at : at + 1] = bytes([rng.randrange(256)])
        try:
            model = parse_sentencepiece(bytes(broken))
            tokenizer = build_tokenizer(model)
        except InputError:
            continue
        assert all(0 <= i < tokenizer.get_vocab_size() for i in tokenizer.encode(text, add_special_tokens=False).ids)
        if model.charsmap:
            fold(text, model.charsmap)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spiece.model"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # takes no room on disk
    with pytest.raises(InputError, match="larger than"):
        Tokenizer.load(tmp_path)
    monkeypatch.setattr(module, "MOST_SPLITS", 10)
    with pytest.raises(InputError, match="long pieces"):
        build_tokenizer(parse_sentencepiece(small(model_type="bpe")))


def test_a_tokenizer_json_with_a_hostile_charsmap_is_refused(sound: bytes, tmp_path: Path) -> None:
    settings = json.loads(build_tokenizer(parse_sentencepiece(sound)).to_str())
    step = settings["normalizer"]["normalizers"][0]
    data = bytearray(base64.b64decode(step["precompiled_charsmap"]))
    data[4:8] = b"\xff\xff\xff\x7f"
    step["precompiled_charsmap"] = base64.b64encode(data).decode()
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="out of itself"):
        Tokenizer.load(tmp_path)


# ---- whole checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def short_texts(tokenizer: Any, texts: list[str]) -> list[str]:
    """20 of at most 16 tokens: we let them all be translated by as many, 2 * 16 + 16."""
    lines = [" ".join(text.split()) for text in texts]
    return [text for text in lines if 4 < len(tokenizer(text)["input_ids"]) <= 17][:20]


def written_by_transformers(model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=4, max_new_tokens=48,
            early_stopping=True, length_penalty=1.0,
        )  # fmt: skip
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in found]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("separate", [False, True])
def test_a_marian_checkpoint_writes_what_transformers_writes(
    separate: bool, sides: dict[str, tuple[bytes, bytes]], tmp_path: Path, english: list[str]
) -> None:
    """Also one with a vocabulary and a table of embeddings for each side, whose pad is that of the side that is read."""
    transformers = pytest.importorskip("transformers")
    folder = lay_marian(tmp_path / "marian", *sides["unigram"], separate=separate)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pad = tokenizer.pad_token_id
    written = len(json.loads((folder / ("target_vocab.json" if separate else "vocab.json")).read_bytes()))
    assert (written != tokenizer.vocab_size) == separate
    config = transformers.MarianConfig(
        vocab_size=tokenizer.vocab_size, decoder_vocab_size=written, share_encoder_decoder_embeddings=not separate,
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.5,
        pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=None, scale_embedding=True,
        activation_function="swish",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MarianMTModel(config).eval()
    bias = torch.randn(1, written)
    bias[0, 0], bias[0, 1], bias[0, pad] = 12.0, -100.0, 0.0  # it ends; <unk>, which transformers leaves out, is rare
    model.final_logits_bias.copy_(bias)
    how = model.generation_config  # as OPUS-MT has it
    how.bad_words_ids, how.renormalize_logits, how.forced_eos_token_id, how.max_length = [[pad]], True, 0, 64
    model.save_pretrained(folder)
    run = cast(Translator, zhixing.load(folder))
    assert run.model.settings.start_id == pad and run.stored.target_tokenizer is not None
    said = Generation(None, None, 64, ((pad,),), None, 0)
    assert run.stored.generation == said and run.settings().max_new_tokens == 63
    assert torch.equal(run.model.state_dict()["logits_bias"], bias[0])
    assert (run.stored.source_language, run.stored.target_language) == ("en", "zh")
    texts = short_texts(tokenizer, english)
    batch = tokenizer(texts, text_target=texts, padding=True, return_tensors="pt")
    lengths = batch["attention_mask"].sum(1)
    ids = torch.nn.functional.pad(batch["labels"][:, :-1].clamp(max=written - 1), (1, 0), value=pad)
    with torch.no_grad():
        logits = run.model.logits(run.model(ids, batch["input_ids"], lengths))
        theirs = model(batch["input_ids"], batch["attention_mask"], decoder_input_ids=ids).logits
    torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-4)
    ours = run.write(texts)
    assert ours == written_by_transformers(model, tokenizer, texts)
    assert len(set(ours)) > 5
    read, aligned, weights = run.alignment(texts[0], "天地")
    assert weights.shape == (len(aligned), len(read)) and "".join(aligned).strip() == "天地"

    write_seq2seq(tmp_path / "again", run.stored)
    again = cast(Translator, zhixing.load(tmp_path / "again"))
    assert again.write(texts) == ours and again.stored.generation == dataclasses.replace(
        said, num_beams=4, length_penalty=1.0
    )
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert written_by_transformers(theirs, theirs_tokenizer, texts) == ours


@pytest.mark.usefixtures("one_thread")
def test_a_t5_checkpoint_writes_what_transformers_writes(t5_folder: Path, tmp_path: Path, english: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(t5_folder)
    config = transformers.T5Config(
        vocab_size=2112, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", initializer_factor=2.0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    folder = tmp_path / "t5"
    model.save_pretrained(folder)
    for name in ("spiece.model", "tokenizer_config.json"):
        (folder / name).write_bytes((t5_folder / name).read_bytes())
    run = cast(Translator, zhixing.load(folder))
    texts = short_texts(tokenizer, english)
    ours = [text.replace("\ufffd", "").strip() for text in run.write(texts)]
    assert ours == written_by_transformers(model, tokenizer, texts)
    assert len(set(ours)) > 5
    again = read_seq2seq(folder)
    write_seq2seq(tmp_path / "again", again)
    stored = cast(Translator, zhixing.load(tmp_path / "again"))
    assert [text.replace("\ufffd", "").strip() for text in stored.write(texts)] == ours


def test_pickles_are_refused(sound: bytes, tmp_path: Path) -> None:
    lay_marian(tmp_path, sound, sound)
    model = {
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
    }
    sizes = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian", **model, **sizes}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(InputError, match="pickle"):
        zhixing.load(tmp_path)
