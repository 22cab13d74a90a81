"""SentencePiece's model files (.model, .spm), which T5 and OPUS-MT have, read into the `tokenizers` library.

SentencePiece (Kudo & Richardson 2018) cuts text without knowing words: blanks are written ▁ and belong to pieces, one
stands before the text, and the pieces are those whose log-probabilities have the largest sum (unigram, Kudo 2018) or
that BPE joins:

    "a red file"  ->  ▁a▁red▁file  ->  ▁a  ▁re d  ▁file

A file is a protobuf of pieces with scores and types, and of how text is made even first (`charsmap`, a double-array
trie of replacements). We read the few fields needed ourselves. Nothing in a file is trusted: lengths stay inside it,
the trie is walked before the library may, and what cannot be is an InputError.

What differs from the `sentencepiece` package: scores are summed in fp64, not fp32, so that pieces that tie may be cut
the other way; and where the charsmap meets letters and marks that form one character, the library replaces the whole.

OPUS-MT (Marian) cuts text by one such file a side and numbers the pieces by vocab.json, one table for both sides:
`MarianPieces`.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from zhixing.errors import InputError

BLANK = "▁"  # U+2581, what a blank is inside pieces
MOST_BYTES = 32 << 20  # of a file; those of 256,000 pieces have 4 MB
MOST_PIECES = 1 << 20
MOST_LETTERS = 1024  # of one piece
MOST_SPLITS = 200_000_000  # letters looked at for BPE's pairs: the sum of len(piece) squared
MOST_CHARSMAP = 4 << 20  # bytes; nmt_nfkc has 240 kB
MOST_KEY = 128  # bytes of text that are replaced as one
MOST_RESERVED = 4096  # pieces that no text may have: control, unknown, unused, bytes
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES: dict[int, Literal["unigram", "bpe"]] = {1: "unigram", 2: "bpe"}
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class SentencePieceModel:
    """What a file says; ids that it has not are -1."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    model_type: Literal["unigram", "bpe"] = "unigram"
    unk_id: int = 0
    bos_id: int = -1
    eos_id: int = -1
    pad_id: int = -1
    byte_fallback: bool = False
    normalizer: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True  # a blank before the text
    remove_extra_whitespaces: bool = True  # at both ends, and all but one between


# ---- the file --------------------------------------------------------------------------------------------------------


def read_sentencepiece(file: Path) -> SentencePieceModel:
    """The model of a file. InputError: damaged, cut off, too large, or of a kind that we do not cut text by."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError("the vocabulary cannot be read", where=str(file), why=str(error.strerror)) from None
    return parse_sentencepiece(data, str(file))


def parse_sentencepiece(data: bytes, where: str = "") -> SentencePieceModel:
    """The same of a file's bytes."""
    try:
        if len(data) > MOST_BYTES:
            raise _DamagedError(f"it is larger than {MOST_BYTES:,} bytes")
        return _parse(data)
    except _DamagedError as error:
        raise InputError(
            "the file is no SentencePiece model that can be used",
            where=where,
            why=str(error),
            mend="take a sound copy of the checkpoint's file",
        ) from None


class _DamagedError(Exception):
    """Why a file cannot be used."""


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A protobuf number and where it ends: 7 bits a byte, the lowest first, the 8th says that another follows."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _DamagedError("it ends inside a number")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, place
    raise _DamagedError(f"a number of more than 10 bytes stands at byte {place} of a part")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The number and the value of each field of a message: an int, a float or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _DamagedError(f"a field of the unknown kind {wire} stands at byte {place} of a part")
        if size > len(data) - place:
            raise _DamagedError(
                f"a field of {size:,} bytes begins {len(data) - place:,} bytes before the end: it is cut off"
            )
        part = data[place : place + size]
        place += size
        yield number, struct.unpack("<f", part)[0] if wire == 5 else part


def _typed(fields: Mapping[int, Any], number: int, default: Any) -> Any:
    """A field's value if it is of the default's type."""
    value = fields.get(number, default)
    if isinstance(default, bool | int) and isinstance(value, int):
        if isinstance(default, bool):
            return bool(value)
        return value - (1 << 64) if value >> 63 else value  # negative numbers are written as 64 bits
    if type(value) is not type(default):
        raise _DamagedError(f"field {number} is no {type(default).__name__}")
    return value


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _DamagedError(f"{data[:40]!r} is no UTF-8") from None


def _parse(data: bytes) -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number not in (1, 2, 3):
            continue
        if not isinstance(value, bytes):
            raise _DamagedError(f"field {number} is no message")
        found = dict(_fields(value))
        if number == 1:
            pieces.append(_text(_typed(found, 1, b"")))
            scores.append(_typed(found, 2, 0.0))
            types.append(_typed(found, 3, NORMAL))
            if len(pieces) > MOST_PIECES:
                raise _DamagedError(f"it has more than {MOST_PIECES:,} pieces")
        elif number == 2:
            trainer = found
        else:
            normalizer = found
    _check_pieces(pieces, scores, types)
    model_type = _typed(trainer, 3, 1)
    if model_type not in MODEL_TYPES:
        raise _DamagedError(f"its model_type is {model_type}; we know unigram (1) and BPE (2)")
    if _typed(trainer, 24, False):
        raise _DamagedError("treat_whitespace_as_suffix is not supported")
    if not _typed(normalizer, 5, True):
        raise _DamagedError("escape_whitespaces = false is not supported")
    charsmap = _typed(normalizer, 2, b"")
    check_charsmap(charsmap)
    ids = {
        name: _typed(trainer, number, default)
        for name, number, default in (("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))
    }
    ids = {name: i if 0 <= i < len(pieces) and types[i] == CONTROL else -1 for name, i in ids.items()}
    return SentencePieceModel(
        tuple(pieces),
        tuple(scores),
        tuple(types),
        MODEL_TYPES[model_type],
        types.index(UNKNOWN),
        ids["bos"],
        ids["eos"],
        ids["pad"],
        byte_fallback=_typed(trainer, 35, False),
        normalizer=_text(_typed(normalizer, 1, b""))[:100],
        charsmap=charsmap,
        add_dummy_prefix=_typed(normalizer, 3, True),
        remove_extra_whitespaces=_typed(normalizer, 4, True),
    )


def _check_pieces(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> None:
    if not pieces:
        raise _DamagedError("it has no pieces")
    if types.count(UNKNOWN) != 1:
        raise _DamagedError(f"it has {types.count(UNKNOWN)} pieces for what is unknown, where there must be one")
    if len(set(pieces)) < len(pieces):
        raise _DamagedError("a piece stands in it twice")
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        if not 0 < len(piece) <= MOST_LETTERS:
            raise _DamagedError(f"piece {i} has {len(piece):,} letters, where there may be 1 to {MOST_LETTERS:,}")
        if not math.isfinite(score):
            raise _DamagedError(f"the score of piece {i} is {score}")
        if not NORMAL <= kind <= BYTE:
            raise _DamagedError(f"piece {i} has the type {kind}")
        if kind == BYTE and not BYTE_PIECE.fullmatch(piece):
            raise _DamagedError(f"piece {i}, {piece[:40]!r}, should stand for a byte")
    for kinds in ((UNKNOWN, CONTROL, UNUSED, BYTE), (USER_DEFINED,)):
        if sum(kind in kinds for kind in types) > MOST_RESERVED:
            raise _DamagedError(f"more than {MOST_RESERVED:,} pieces are of the types {kinds}")


def check_charsmap(charsmap: bytes) -> None:
    """Walk the trie wherever a text could lead the library, which panics where it leads out of the table.

    A unit of the trie (Yata's darts-clone) holds a label, whether it ends a key, and an offset: from a node at p with
    the offset o, the letter c leads to p ^ o ^ c if the label there is c; at p ^ o stands where the replacement is.
    """
    if not charsmap:
        return
    if not 4 <= len(charsmap) <= MOST_CHARSMAP:
        raise _DamagedError(f"its table of replacements has {len(charsmap):,} bytes")
    (size,) = struct.unpack_from("<I", charsmap)
    if size % 4 or not 0 < size <= len(charsmap) - 4:
        raise _DamagedError(f"its table of replacements has {len(charsmap):,} bytes and should have a trie of {size:,}")
    units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4)
    texts = charsmap[4 + size :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        raise _DamagedError("its replacements are no UTF-8") from None
    if texts[-1:] != b"\0":
        raise _DamagedError("its replacements are cut off")

    def below(nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the children of nodes stand, less the letter."""
        unit = units[nodes].astype(np.int64)
        return nodes ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6))

    seen = np.zeros(len(units), dtype=bool)
    frontier = np.zeros(1, dtype=np.int64)
    letters = np.arange(1, 256, dtype=np.int64)
    while len(frontier):
        some, frontier = frontier[:4096], frontier[4096:]  # 8 MB at a time
        base = below(some)
        children = base[:, None] ^ letters
        if base.max() >= len(units) or children.max() >= len(units):
            raise _DamagedError("its table of replacements leads out of itself")
        ends = base[(units[some] >> 8) & 1 == 1]
        values = (units[ends] & 0x7FFFFFFF).tolist()
        if any(value >= len(texts) or texts[value] & 0xC0 == 0x80 for value in values):
            raise _DamagedError("its table of replacements leads into the midst of a character")
        found = children[(units[children] & 0x800000FF) == letters]
        found = np.unique(found[~seen[found]])
        seen[found] = True
        frontier = np.concatenate([frontier, found])


def check_normalizer(settings: Any) -> None:
    """The same for the `normalizer` of a tokenizer.json. InputError: a table that would lead out of itself."""
    if not isinstance(settings, dict):
        return
    for part in settings.get("normalizers") or ():
        check_normalizer(part)
    if isinstance(given := settings.get("precompiled_charsmap"), str):
        try:
            check_charsmap(base64.b64decode(given))
        except (_DamagedError, ValueError) as error:
            raise InputError("the tokenizer cannot be read", why=str(error)) from None


# ---- the library's tokenizer -----------------------------------------------------------------------------------------


def build_tokenizer(model: SentencePieceModel) -> tokenizers.Tokenizer:
    """The library's tokenizer with the file's ids. InputError: a BPE of pieces so long that pairs cannot be found."""
    inner = tokenizers.Tokenizer(_unigram(model) if model.model_type == "unigram" else _bpe(model))
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    reserved = [piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in (CONTROL, UNKNOWN)]
    inner.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in reserved])
    kept = {
        piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in (CONTROL, UNKNOWN, UNUSED, BYTE)
    }
    symbols = [piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == USER_DEFINED]
    if symbols and model.model_type == "bpe":  # no pairs join to them: they stand alone, and are looked up as a whole
        pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=lambda symbol: (-len(symbol), symbol)))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    if symbols or model.model_type == "unigram":
        keep_apart(inner, kept)
    scheme: Literal["always", "never"] = "always" if drops_blank(model) else "never"
    if model.byte_fallback:
        stages: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
        inner.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)] if scheme == "always" else stages)
    else:
        inner.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme=scheme)
    return inner


def drops_blank(model: SentencePieceModel) -> bool:
    """Whether a text's first blank is no part of it."""
    return model.add_dummy_prefix or model.remove_extra_whitespaces


def keep_apart(inner: tokenizers.Tokenizer, reserved: Iterable[str]) -> None:
    """From now on a text that says </s> is cut inside of it, so that it never has the piece.

    SentencePiece takes such pieces out of its trie; the library's unigram would find them in a text. Two neighbours
    that are both unknown make one unknown piece, so the cut is beside a known letter, if there is one.
    """
    letters = {piece for piece in inner.get_vocab() if len(piece) == 1}
    rests: dict[str, list[str]] = {}
    for piece in sorted(reserved):
        if len(piece) > 1:
            cut = next((i for i in range(1, len(piece)) if letters & {piece[i - 1], piece[i]}), 1)
            rests.setdefault(piece[:cut], []).append(re.escape(piece[cut:]))
    if not rests:
        return
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(ends)})" for first, ends in rests.items())
    stages = [pre_tokenizers.Split(Regex(pattern), "merged_with_previous")]
    if (before := inner.pre_tokenizer) is not None:
        said = json.loads(before.__getstate__())
        if pattern in (stage.get("pattern", {}).get("Regex") for stage in said.get("pretokenizers", [said])):
            return  # a file that we wrote
        stages = [before, *stages]
    inner.pre_tokenizer = pre_tokenizers.Sequence(stages)


def _unigram(model: SentencePieceModel) -> models.Unigram:
    """Symbols of the user's get a score by which SentencePiece prefers them: the best one for each of their bytes."""
    normal = [score for score, kind in zip(model.scores, model.types, strict=True) if kind == NORMAL] or [0.0]
    best, worst = max(normal), min(normal)
    vocab = [
        (piece, max(worst, len(piece.encode()) * best - 0.1) if kind == USER_DEFINED else score)
        for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True)
    ]
    return models.Unigram(vocab, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def _bpe(model: SentencePieceModel) -> models.BPE:
    """SentencePiece joins the neighbours that make the best piece; the library wants all pairs in order."""
    ids = {piece: i for i, piece in enumerate(model.pieces)}
    usable = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == NORMAL}
    normal = sorted((i for piece, i in ids.items() if piece in usable), key=lambda i: (-model.scores[i], i))
    if sum(len(model.pieces[i]) ** 2 for i in normal) > MOST_SPLITS:
        raise InputError("the file is no SentencePiece model that can be used", why="its BPE has too many long pieces")
    merges = []
    for i in normal:
        piece = model.pieces[i]
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in usable and right in usable:
                merges.append((left, right))
    return models.BPE(
        ids,
        merges,
        unk_token=model.pieces[model.unk_id],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=USER_DEFINED in model.types,
    )


# ---- OPUS-MT ---------------------------------------------------------------------------------------------------------

HALF_WIDTH_MARKS = ("\uff9e", "\uff9f")  # of Katakana; they join with the letter before


def fold(text: str, charsmap: bytes) -> str:
    """`text` with the charsmap's replacements as SentencePiece makes them: at each place the longest that is known.

    The library looks at letters with their marks as one, so that of e + dot below + circumflex, as Vietnamese may be
    written, the circumflex were lost. Slow, and so for texts that have such letters.
    """
    (size,) = struct.unpack_from("<I", charsmap)
    units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4)
    texts = charsmap[4 + size :]
    data = text.encode()
    made: list[bytes] = []
    place = 0
    while place < len(data):
        node, longest, value = _below(int(units[0]), 0), 0, 0
        for length, byte in enumerate(data[place : place + MOST_KEY], 1):
            node ^= byte
            unit = int(units[node])
            if byte == 0 or unit & 0x800000FF != byte:
                break
            node = _below(unit, node)
            if unit >> 8 & 1:
                longest, value = length, int(units[node]) & 0x7FFFFFFF
        if longest:
            made.append(texts[value : texts.find(b"\0", value)])
        else:
            longest = len(data[place : place + 4].decode(errors="ignore")[0].encode())
            made.append(data[place : place + longest])
        place += longest
    return b"".join(made).decode()


def _below(unit: int, node: int) -> int:
    return node ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6))


TAG = re.compile(r">>[^<>\s]{1,64}<<")


@dataclass(frozen=True)
class Cut:
    """A text's ids and which characters of it each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class MarianPieces:
    """One side of OPUS-MT: text is cut by `model` and its pieces are numbered by `vocab`, the table of both sides.

        vocab {"</s>": 0, "<unk>": 1, "▁the": 2, "你": 3, ">>cmn<<": 4, ...}
        ">>cmn<< the 你"  ->  >>cmn<<  ▁the  ▁  你  ->  4 2 ... 3

    What the side's model does not know, 你 of an English one, has an id all the same if the other side's does: so does
    transformers. It has the methods of `tokenizers.Tokenizer` that our Tokenizer calls.
    """

    encode_special_tokens = True
    reads_tags = True  # whether a text may begin with its tag; else that is text as any other

    def __init__(self, model: SentencePieceModel, vocab: Mapping[str, int], *, eos: str, unk: str, pad: str) -> None:
        self.vocab = dict(vocab)
        self.cutter = build_tokenizer(model)
        self.unknown = model.pieces[model.unk_id]
        self.charsmap = model.charsmap
        self.eos, self.unk, self.pad = eos, unk, pad
        self.unk_id = vocab[unk]
        self.table: list[int | None] = [vocab.get(piece, self.unk_id) for piece in model.pieces]
        self.table[model.unk_id] = None  # looked up by what stands in the text

    def no_truncation(self) -> None:
        self.cutter.no_truncation()
        self.cutter.encode_special_tokens = True

    def no_padding(self) -> None:
        self.cutter.no_padding()

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return self.vocab

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return {self.vocab[token]: AddedToken(token, special=True) for token in (self.eos, self.unk, self.pad)}

    def token_to_id(self, token: str) -> int | None:
        return self.vocab.get(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> Cut:
        """Ids and spans; with </s> behind, if wanted."""
        return self._encode([text], add_special_tokens)[0]

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Cut]:
        return self._encode(texts, add_special_tokens)

    def _encode(self, texts: Sequence[str], ends: bool) -> list[Cut]:
        tags = [self.leading_tag(text) if self.reads_tags else "" for text in texts]
        bare = [self._folded(text[len(tag) :]) for text, tag in zip(texts, tags, strict=True)]
        found = []
        for text, tag, encoding in zip(
            bare, tags, self.cutter.encode_batch(bare, add_special_tokens=False), strict=True
        ):
            ids = [self.table[i] for i in encoding.ids]
            spans = encoding.offsets
            known = [self._unknown(text, encoding, place) if i is None else i for place, i in enumerate(ids)]
            if tag:
                known.insert(0, self.vocab[tag])
                spans = [(0, len(tag)), *((start + len(tag), stop + len(tag)) for start, stop in spans)]
            found.append(Cut([*known, self.vocab[self.eos]], [*spans, (0, 0)]) if ends else Cut(known, spans))
        return found

    def _folded(self, text: str) -> str:
        """`text` with what the library would replace wrongly replaced before; its spans are of this text."""
        if not self.charsmap or text.isascii():
            return text
        right = unicodedata.is_normalized("NFC", text) and not any(mark in text for mark in HALF_WIDTH_MARKS)
        return text if right else fold(text, self.charsmap)

    def leading_tag(self, text: str) -> str:
        """The language that a text begins with, such as >>cmn<<, if the table has it."""
        tag = TAG.match(text)
        return tag.group() if tag and tag.group() in self.vocab else ""

    def _unknown(self, text: str, encoding: tokenizers.Encoding, place: int) -> int:
        """The id of a piece that the side's model does not know."""
        token = encoding.tokens[place]
        if token == self.unknown:  # BPE does not say what it is
            start, stop = encoding.offsets[place]
            token = fold(text[start:stop], self.charsmap) if self.charsmap else text[start:stop]
        return self.unk_id if token in (self.eos, self.pad) else self.vocab.get(token, self.unk_id)
