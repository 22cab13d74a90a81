"""Text to ids and back: byte-level BPE, characters, words, WordPiece or SentencePiece, on the `tokenizers` library.

Byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019) starts from the 256 bytes and joins, again and
again, the pair of neighbours that is most frequent inside words; "words" are what GPT-2's regular expression cuts.
Any text has ids and comes back exactly. `char` gives each Unicode character an id, `word` each word, space and
punctuation mark; both come back exactly as far as they are known, and know one unknown token.

WordPiece (Schuster & Nakajima 2012; Devlin et al. 2019) is for models that read and do not write: blanks are dropped,
a word is cut greedily into the longest pieces that are known, "unhappy" -> un ##happy, and a text stands between
[CLS] and [SEP]. `with_ends` puts them there.

SentencePiece's vocabularies (tokens/sentencepiece.py) are read, not learned: those of T5, and those of OPUS-MT with
their two sides. They write a blank as ▁, put one before a text, and take it away again.

What differs from common practice: text of a special token ("<|endoftext|>") inside a person's text is ordinary
text, here and, through `split_special_tokens` in tokenizer_config.json, in transformers; control tokens exist as
ids only. No normalizer is inside: cleaning is a matter of the text, and done once. (WordPiece may lowercase, if asked
to; and what a file of others normalizes belongs to that file, and stays.)
"""

from __future__ import annotations

import codecs
import copy
import functools
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zhixing.errors import InputError
from zhixing.files import atomic_write
from zhixing.progress import Progress, quantity, say
from zhixing.tokens.sentencepiece import (
    BLANK,
    BYTE_PIECE,
    CONTROL,
    TAG,
    MarianPieces,
    SentencePieceModel,
    build_tokenizer,
    check_normalizer,
    keep_apart,
    parse_sentencepiece,
    read_sentencepiece,
)

Kind = Literal["bpe", "char", "word", "wordpiece"]  # those that can be learned
AnyKind = Kind | Literal["unigram", "sentencepiece-bpe"]  # and those that only come from others

EOS, PAD, UNK = "<|endoftext|>", "<|pad|>", "<|unk|>"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 of a WordPiece vocabulary of ours
MARK = "\ue000"  # for private use: where a word begins, while a WordPiece vocabulary is learned
REPLACEMENT = "\ufffd"  # what an unknown character or word is shown as

MAX_SAMPLE = 100_000_000  # characters that a vocabulary is learned from; beyond, a fair sample is
MAX_UNIQUE = 6_000_000  # bytes of different words that BPE holds (about 110 bytes of memory each); beyond, a sample
BLOCK = 1 << 16  # characters: what the sample consists of
MAX_RUN = 16  # characters: longer runs of one kind are cut for training, else 5 MB of Chinese were one word
MAX_TOKEN = 48  # bytes of one token, 16 Chinese characters
MAX_PIECE = 1 << 18  # characters of a document that are encoded as one
BATCH = 1 << 21  # characters given to all cores together, about 200 MB of memory

SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # written without spaces

# A word with inner apostrophes; one character of a script without spaces; one space; one of anything else.
WORDS = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    r"|[\p{L}\p{M}\p{N}_&&[^\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]+"
    r"|[\s\S]"
)

FINGERPRINT_TEXT = (
    "The quick brown fox can't jump over 12,345 lazy dogs; isn't it?\n\n\tdef f(x):  return x ** 2\r\n"
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。學而時習之，不亦說乎？\n吾輩は猫である。名前はまだ無い。 안녕하세요 세계\n"
    "Съешь ещё этих мягких булок. Où est l'été? Größe, naïve. שלום עולם مرحبا بالعالم नमस्ते ไทย\n"
    "👩‍👩‍👧‍👦🏳️‍🌈 ½ ∑ “quoted” … <|endoftext|> \x00\u200b\ufeff end  "
)


class Tokenizer:
    """A trained tokenizer; `train_tokenizer` and `Tokenizer.load` make one.

    kind         "bpe" (byte-level), "char", "word", "wordpiece", or SentencePiece's "unigram", "sentencepiece-bpe"
    vocab_size   the least number that is above every id
    eos_id       ends a document and begins a text (bos); [SEP] of a WordPiece
    pad_id       fills up what is no text
    unk_id       the unknown character or word; None for bpe, which knows every byte
    cls_id, sep_id, mask_id   [CLS], [SEP] and [MASK] of a WordPiece, else None
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer | MarianPieces,
        kind: AnyKind,
        eos: str,
        pad: str,
        unk: str | None = None,
        *,
        cls: str | None = None,
        sep: str | None = None,
        mask: str | None = None,
        files: Mapping[str, bytes] | None = None,
        languages: tuple[str, str] = ("", ""),
        target: Tokenizer | None = None,
    ) -> None:
        self._inner: Any = inner
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # text of a special token is text
        self.kind: Any = kind  # an AnyKind; a recipe's type names only what can be learned
        self._files = dict(files or {})  # of a Marian folder: what `save` writes instead of a tokenizer.json
        self.languages = languages  # which one it reads and which one is written, where its files say so
        self._target = target
        self._blanks = kind in ("unigram", "sentencepiece-bpe")  # pieces write a blank as ▁
        self.eos, self.pad, self.unk = eos, pad, unk
        ids: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.eos_id, self.pad_id = ids[eos], ids[pad]
        self.unk_id = None if unk is None else ids[unk]
        self.cls, self.sep, self.mask = cls, sep, mask
        self.cls_id, self.sep_id, self.mask_id = (None if token is None else ids[token] for token in (cls, sep, mask))
        self.vocab_size = max(ids.values()) + 1

    @property
    def target(self) -> Tokenizer:
        """The tokenizer of what a model writes that reads by this one: itself, but in Marian folders of two sides."""
        return self if self._target is None else self._target

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special token among them, whatever the text says."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text; encoded in parallel on all cores, one long text too."""
        found: list[list[int]] = [[]]
        for ids, last in self.encode_stream(texts):
            found[-1] += ids
            if last:
                found.append([])
        return found[:-1]

    def with_ends(self, ids: list[int]) -> list[int]:
        """`ids` with what the tokenizer puts around a text: [CLS] ids [SEP] for WordPiece, nothing for ours else.

        What transformers' tokenizer gives by itself. A text that must fit n tokens is cut to n - len(with_ends([])).
        """
        before, after = self._ends
        return [*before, *ids, *after]

    def end_texts(self) -> None:
        """From now on `with_ends`, and transformers' tokenizer, put the end-of-text token behind a text.

        For models that read whole texts: they learn from it where the text is complete.
        """
        self._inner.post_processor = processors.TemplateProcessing(
            single=f"$A {self.eos}", special_tokens=[(self.eos, self.eos_id)]
        )
        for name in ("_ends", "_told"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def tags(self) -> dict[str, int]:
        """Languages that a text can be told to be written in, each with the id of its tag: {"de": 4096} for >>de<<.

        Control tokens of ours (`add_languages`), and what a vocabulary of OPUS-MT has.
        """
        if isinstance(self._inner, MarianPieces):
            tokens = dict(self._inner.vocab)
        else:
            added: dict[int, AddedToken] = self._inner.get_added_tokens_decoder()
            tokens = {token.content: i for i, token in added.items() if token.special}
        return {token[2:-2]: i for token, i in sorted(tokens.items()) if TAG.fullmatch(token)}

    def add_languages(self, languages: Iterable[str]) -> None:
        """Give each language that has none a tag, behind all other ids. InputError: a vocabulary that cannot grow."""
        new = [f">>{language}<<" for language in languages if language not in self.tags]
        if new and isinstance(self._inner, MarianPieces):
            why = f"it has none for {', '.join(tag[2:-2] for tag in new)}, and its files are those of others"
            raise InputError("the vocabulary has not every language's tag", why=why, mend="train a vocabulary")
        self._inner.add_special_tokens(new)
        self.vocab_size = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1
        for name in ("tags", "_bytes", "_fingerprint", "_told"):
            self.__dict__.pop(name, None)

    def for_language(self, language: str) -> Tokenizer:
        """The same tokenizer for texts to be written in a language of `tags`: `with_ends` puts the tag before a text.

        What a text itself says is text, as always; for OPUS-MT's too, which otherwise take a tag that a text begins
        with. With "" there is no tag.
        """
        if not language and not isinstance(self._inner, MarianPieces):
            return self
        if language in self._told:
            return self._told[language]
        found = self._told[language] = copy.copy(self)
        if isinstance(self._inner, MarianPieces):
            found._inner = copy.copy(self._inner)
            found._inner.reads_tags = False
        before, after = self._ends
        found.__dict__["_ends"] = ([self.tags[language], *before] if language else before), after
        return found

    @functools.cached_property
    def _told(self) -> dict[str, Tokenizer]:
        """What `for_language` gave."""
        return {}

    def cut_tag(self, text: str) -> tuple[str, str]:
        """The language whose tag a text begins with, and the rest; "" and the text where tags in texts are text."""
        tag = self._inner.leading_tag(text) if isinstance(self._inner, MarianPieces) and self._inner.reads_tags else ""
        return tag[2:-2], text[len(tag) :]

    @functools.cached_property
    def controls(self) -> dict[str, int]:
        """Every token that is no piece of text, with its id: {"<|endoftext|>": 0, ...}."""
        if isinstance(self._inner, MarianPieces):
            return {self.eos: self.eos_id, self.pad: self.pad_id}
        added: dict[int, AddedToken] = self._inner.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items())}

    def add_controls(self, tokens: Iterable[str]) -> None:
        """Control tokens such as "<|user|>" behind all other ids; those that are there already stay as they are."""
        self._inner.add_special_tokens([token for token in tokens if token not in self.controls])
        self.vocab_size = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1
        for name in ("controls", "tags", "_bytes", "_fingerprint", "_told"):
            self.__dict__.pop(name, None)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids with the tokenizer's ends, and which characters of the text each stands for; (0, 0) for an end."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = 0
        for piece in self._cut(_checked(text)):
            if self._adds_blank:
                place = text.index(piece, place)
            encoding = self._inner.encode(piece, add_special_tokens=False)
            ids += encoding.ids
            spans += [(place + start, place + stop) for start, stop in encoding.offsets]
            place += len(piece)
        before, after = self._ends
        return [*before, *ids, *after], [(0, 0)] * len(before) + spans + [(0, 0)] * len(after)

    @functools.cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        bare = self._inner.encode("a", add_special_tokens=False).ids
        whole = self._inner.encode("a", add_special_tokens=True).ids
        place = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:place], whole[place + len(bare) :]

    def encode_stream(self, texts: Iterable[str]) -> Iterator[tuple[list[int], bool]]:
        """Ids of each text in one part or, if it is long, several, and whether it ends with this part.

        Memory is bounded by BATCH characters, whatever the texts' lengths.
        """
        batch: list[str] = []
        lasts: list[bool] = []
        size = 0
        for text in texts:
            pieces = self._cut(text)
            for number, piece in enumerate(pieces, 1):
                batch.append(piece)
                lasts.append(number == len(pieces))
                size += len(piece) + 16  # so that a batch of empty texts ends too
                if size >= BATCH:
                    yield from zip(self._encode_pieces(batch), lasts, strict=True)
                    batch, lasts, size = [], [], 0
        yield from zip(self._encode_pieces(batch), lasts, strict=True)

    def _cut(self, text: str) -> list[str]:
        """The pieces that are encoded one by one; what puts a blank before a text does so to each of them."""
        return _pieces(text, blank_is_added=self._adds_blank, seam=_BLANK_SEAM if self._blanks else _SEAM)

    @functools.cached_property
    def _adds_blank(self) -> bool:
        first = self._inner.encode("a", add_special_tokens=False).ids[:1] if self._blanks else []
        return any(self.token_bytes(i).startswith(b" ") for i in first)

    @functools.cached_property
    def drops_blank(self) -> bool:
        """Whether a blank that `ids` begin with is no part of their text."""
        if not self._blanks or isinstance(self._inner, MarianPieces):
            return self._blanks
        said = json.loads(self._inner.decoder.__getstate__())
        stages = said.get("decoders", [said])
        return any(
            (stage["type"] == "Metaspace" and stage.get("prepend_scheme") != "never")
            or (stage["type"] == "Strip" and stage.get("content") == " " and stage.get("start", 0) > 0)
            for stage in stages
        )

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._inner.encode_batch_fast(pieces, add_special_tokens=False)]
        except TypeError:  # what the library says to a text that has no UTF-8
            for piece in pieces:
                _checked(piece)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Special tokens stand for no text; broken UTF-8 becomes U+FFFD, as in Python's decoder.

        WordPiece has dropped the blanks, so they are guessed. An id outside 0 .. vocab_size - 1 is an InputError.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.kind == "wordpiece" or self.drops_blank else text

    def token_bytes(self, id: int) -> bytes:  # noqa: A002
        """The UTF-8 bytes that a token stands for; may end in the midst of a character. Special tokens: none."""
        if not 0 <= id < self.vocab_size:
            raise InputError(f"there is no token {id}", why=f"the vocabulary has the ids 0 to {self.vocab_size - 1}")
        return self._bytes[id]

    def token_id(self, token: str) -> int | None:
        """The id of a special token such as "<|im_end|>", or of a token as the vocabulary writes it."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def vocabulary(self) -> list[str]:
        """The token of each id as the vocabulary writes it; empty for an id that no token has."""
        found = [""] * self.vocab_size
        for token, i in self._inner.get_vocab(with_added_tokens=True).items():
            found[i] = token
        return found

    def save(self, folder: Path | str, model_max_length: int = 1 << 30) -> None:
        """Write tokenizer.json and tokenizer_config.json, from which transformers' AutoTokenizer gives the same ids.

        `model_max_length` is the model's context in tokens. Of a Marian vocabulary its own files are written.
        """
        named = {"unk_token": self.unk, "cls_token": self.cls, "sep_token": self.sep, "mask_token": self.mask}
        ends = {"bos_token": self.eos, "eos_token": self.eos}
        if self._blanks or self.kind == "wordpiece":
            ends = {"eos_token": self.eos} if self._blanks else {}
        marian = {
            "source_lang": self.languages[0] or None,
            "target_lang": self.languages[1] or None,
            "separate_vocabs": "target_vocab.json" in self._files,
        }
        config = {
            "tokenizer_class": "MarianTokenizer" if self._files else "PreTrainedTokenizerFast",
            **(marian if self._files else {}),
            **ends,
            "pad_token": self.pad,
            **{name: token for name, token in named.items() if token is not None},
            "model_max_length": model_max_length,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        }
        for name, data in self._files.items():
            atomic_write(Path(folder) / name, data)
        if not self._files:
            atomic_write(Path(folder) / "tokenizer.json", self._inner.to_str(pretty=True))
        atomic_write(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))

    @staticmethod
    def load(path: Path | str) -> Tokenizer:
        """Read a run folder, or a tokenizer.json and the settings beside it: our own, or of others.

        Of others: byte-level BPE, as GPT-2, Qwen and Llama 3 have, WordPiece, as BERT and DistilBERT have, and
        SentencePiece: a tokenizer.json, T5's spiece.model, or the side of a Marian folder that is read (`target` is
        the other). What is missing, broken or of another kind is an InputError.
        """
        path = Path(path)
        if (source := _marian(path)) is not None:
            return source
        file = path / "tokenizer.json" if path.is_dir() else path
        if path.is_dir() and not file.is_file() and (path / "spiece.model").is_file():
            file = path / "spiece.model"
        if file.suffix in (".model", ".spm") and file.is_file():
            return _from_sentencepiece(file)
        if not file.is_file():
            raise InputError("there is no tokenizer", where=str(file), mend="give a run folder or a tokenizer.json")
        try:
            text = file.read_bytes().decode("utf-8-sig")
            settings = json.loads(text)
            kind, names = _kind(settings), _names(settings)
            check_normalizer(settings.get("normalizer"))
            inner = tokenizers.Tokenizer.from_str(text)
        except InputError as error:
            raise InputError(error.what, where=str(file), why=error.why, mend=error.mend) from None
        except Exception as error:  # the library raises no narrower class
            raise InputError("the tokenizer cannot be read", where=str(file), why=str(error)) from None
        special = _special_names(file.parent)
        if kind == "wordpiece":
            _check_lowercase(settings, file)
            return _wordpiece(inner, special, names, file)
        eos = next((name for name in (special.get("eos_token"), EOS, "<|end_of_text|>", "</s>") if name in names), None)
        if eos is None:
            raise InputError(
                "the tokenizer has no token that ends a text",
                where=str(file),
                mend='put a tokenizer_config.json with "eos_token" beside it',
            )
        pads = (special.get("pad_token"), PAD, *(["<pad>"] if kind not in ("bpe", "char", "word") else []))
        pad = next((name for name in pads if name in names), None) or eos
        if kind in ("unigram", "sentencepiece-bpe"):
            return _with_blanks(inner, kind, settings, eos, pad, file)
        return Tokenizer(inner, kind, eos, pad, UNK if UNK in names and kind != "bpe" else None)

    def fingerprint(self) -> str:
        """64 hex digits that change whenever ids would: of a fixed multilingual text's ids and of the vocabulary."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        vocab = sorted(self._inner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        facts: list[Any] = [self.kind, self.eos_id, self.pad_id, self.encode(FINGERPRINT_TEXT), vocab]
        if self._blanks or self.kind == "wordpiece":
            facts += [self.with_ends([]), self.mask_id]
        return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        """`token_bytes` of every id."""
        added: dict[int, AddedToken] = self._inner.get_added_tokens_decoder()
        table = _byte_of_character()
        found = [b""] * self.vocab_size
        for token, i in self._inner.get_vocab(with_added_tokens=True).items():
            if i == self.unk_id:
                found[i] = REPLACEMENT.encode()
            elif i in added:
                found[i] = b"" if added[i].special else token.encode()
            elif self._blanks:
                byte = BYTE_PIECE.fullmatch(token)
                found[i] = bytes([int(byte[1], 16)]) if byte else token.replace(BLANK, " ").encode()
            elif self.kind == "bpe" and all(character in table for character in token):
                found[i] = bytes(table[character] for character in token)
            elif self.kind == "wordpiece":
                found[i] = _piece_text(token, self._inner.model.continuing_subword_prefix).encode()
            else:
                found[i] = token.encode()
        return found


class TextStream:
    """Ids to text one at a time, as they are generated; what comes out is always whole characters.

    The pieces that `push` and `finish` gave, joined, are `decode` of all ids.

    A Chinese character may be three tokens of one byte each: push gives "", "", "知". Bytes that can no longer
    become a character give U+FFFD. SentencePiece's first blank is left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.drops_blank

    def push(self, id: int) -> str:  # noqa: A002
        """Take the next id; the text that is certain by now and was not given yet, maybe none."""
        text = self._decoder.decode(self._tokenizer.token_bytes(id))
        if self._at_start and text:
            text, self._at_start = text.removeprefix(" "), False
        return text

    def finish(self) -> str:
        """No id follows: a character that was begun and not ended is U+FFFD. The stream is then as new."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._at_start = self._tokenizer.drops_blank
        return rest


def auto_vocab_size(total_bytes: int) -> int:
    """A vocabulary that suits a text of so many bytes: about 2 √bytes, a multiple of 64 from 512 to 16,384.

    A vocabulary grows as the square root of the text or a little slower (Heaps' law), and each entry should be seen
    often enough to be learned: 6 kB gives 512, 4 MB 4,096, from 64 MB on 16,384.
    """
    return min(max(round(2.048 * math.sqrt(max(total_bytes, 0)) / 64) * 64, 512), 16384)


def train_tokenizer(documents: Iterable[str], kind: Kind, vocab_size: int, *, lowercase: bool = False) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` ids (special tokens included) from `documents`, read once.

    `lowercase`, for wordpiece only: The and the are one word.

    A text too small for that many gives fewer. No text, or a size that cannot hold even the alphabet, is an
    InputError. From a text beyond MAX_SAMPLE characters, or of too many different words, blocks are drawn by
    a hash of their number, so that the same text always gives the same vocabulary, and memory stays bounded.
    """
    least, why = {
        "bpe": (258, "256 bytes and 2 special tokens make 258"),
        "wordpiece": (7, "5 special tokens and 2 pieces make 7"),
    }.get(kind, (4, "3 special tokens and 1 piece make 4"))
    if vocab_size < least:
        raise InputError(f"a vocabulary of {vocab_size} is too small", why=why, mend=f"take at least {least}")
    if kind not in ("bpe", "char", "word", "wordpiece"):
        why = "vocabularies of SentencePiece are read from a checkpoint's files"
        raise InputError(f"a {kind} vocabulary cannot be learned", why=why, mend="take the kind bpe")
    if lowercase and kind != "wordpiece":
        raise InputError(f"a {kind} vocabulary does not lowercase", mend="take the kind wordpiece")
    documents = map(_checked, documents)
    if kind == "bpe":
        inner = _learn_bpe(_sample(documents), vocab_size, [EOS, PAD])
    elif kind == "wordpiece":
        inner = _learn_pieces(_sample(documents), vocab_size, lowercase)
        pad, unk, cls, sep, mask = BERT_SPECIALS
        return Tokenizer(inner, kind, sep, pad, unk, cls=cls, sep=sep, mask=mask)
    elif kind == "word":
        inner = _learn_words(_sample(documents), vocab_size, [EOS, PAD, UNK])
    else:
        inner = _learn_characters(documents, vocab_size, [EOS, PAD, UNK])
    return Tokenizer(inner, kind, EOS, PAD, None if kind == "bpe" else UNK)


def _learn_bpe(blocks: list[str], vocab_size: int, specials: list[str]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN,
        min_frequency=2,
        show_progress=False,
    )
    size = sum(len(block) for block in blocks)
    if size > 1_000_000:  # takes over two seconds, in the library and so without our progress
        say(f"learning {vocab_size:,} byte pairs from {quantity(size)} characters")
    inner.train_from_iterator(_few_words(blocks), trainer)
    if inner.get_vocab_size() < vocab_size:
        say(f"the text gives a vocabulary of {inner.get_vocab_size():,} tokens, fewer than {vocab_size:,}")
    return inner


def _learn_words(blocks: list[str], vocab_size: int, specials: list[str]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel({}, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    inner.decoder = decoders.Fuse()
    inner.train_from_iterator(
        blocks, trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    )
    return inner


def _learn_pieces(blocks: list[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """Pieces by BPE on words with a mark in front: ▁th is the piece "th", th is "##th".

    The library's own WordPiece trainer gives the same text another vocabulary each time.
    """
    words = [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(SCRIPTS), "isolated")]
    split = pre_tokenizers.Sequence(words)
    if lowercase:
        blocks = [normalizers.Lowercase().normalize_str(block) for block in blocks]
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update(block)
    letters = sorted((c for c in counts if not c.isspace() and c != MARK), key=lambda c: (-counts[c], c))
    pieces = dict.fromkeys(BERT_SPECIALS)
    for letter in letters[: (vocab_size - len(pieces)) // 2]:
        stands_alone = len(split.pre_tokenize_str(letter * 2)) == 2
        pieces |= dict.fromkeys([letter] if stands_alone else [letter, f"##{letter}"])

    size = sum(len(block) for block in blocks)
    if size > 1_000_000:  # takes over two seconds, in the library and so without our progress
        say(f"learning {vocab_size:,} pieces of words from {quantity(size)} characters")
    marked = tokenizers.Tokenizer(models.BPE())
    marked.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(letters) + 1,  # as many as may turn out to be letters that are there already
        max_token_length=MAX_TOKEN,
        min_frequency=2,
        show_progress=False,
    )
    marked.train_from_iterator(_few_words(blocks), trainer)
    learned = marked.get_vocab()
    for token in sorted(learned, key=learned.__getitem__):
        piece = token.removeprefix(MARK) if token.startswith(MARK) else f"##{token}"
        if len(token) > 1 and len(pieces) < vocab_size:  # a token of one letter was dealt with above
            pieces[piece] = None
    if len(pieces) < vocab_size:
        say(f"the text gives a vocabulary of {len(pieces):,} tokens, fewer than {vocab_size:,}")

    pad, unk, cls, sep, mask = BERT_SPECIALS
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    if lowercase:
        inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = split
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    inner.add_special_tokens([pad, unk, cls, sep, mask])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return inner


def _learn_characters(documents: Iterable[str], vocab_size: int, specials: list[str]) -> tokenizers.Tokenizer:
    """The most frequent characters; the model is a BPE without merges, which the library encodes fastest."""
    counts: Counter[str] = Counter()
    with Progress("characters") as progress:
        for document in documents:
            counts.update(document)
            progress.update(progress.done + len(document))
    if not counts:
        raise _no_text()
    kept = sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size - len(specials)]
    vocab = {token: i for i, token in enumerate([*specials, *kept])}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token=UNK, fuse_unk=False))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(specials)
    return inner


def _sample(documents: Iterable[str]) -> list[str]:
    """All blocks of the text or, beyond MAX_SAMPLE characters, a fair share of them, in an order of no meaning.

    Each block's rank is a hash of its number, and those with the lowest ranks stay: one pass, bounded memory, and
    the same text always gives the same sample.
    """
    kept: list[tuple[int, str]] = []
    size = number = 0
    limit = 1 << 64
    with Progress("reading for the tokenizer") as progress:
        for document in documents:
            for start in range(0, len(document), BLOCK):
                rank = int.from_bytes(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest(), "little")
                number += 1
                if rank >= limit:
                    continue
                block = document[start : start + BLOCK]
                kept.append((rank, block))
                size += len(block)
                while size > MAX_SAMPLE:
                    limit //= 2
                    kept = [entry for entry in kept if entry[0] < limit]
                    size = sum(len(block) for _, block in kept)
            progress.update(progress.done + len(document))
    if not size:
        raise _no_text()
    return [block for _, block in sorted(kept, key=lambda entry: entry[0])]


def _few_words(blocks: list[str]) -> Iterator[str]:
    """The blocks with long runs cut, until there are MAX_UNIQUE bytes of different words, for those fill memory."""
    total = sum(len(block) for block in blocks)
    unique = 0
    seen: set[str] = set()
    for block in blocks:
        pieces = _cut_runs(block)
        if 4 * total > MAX_UNIQUE:  # else it cannot be reached
            new = {word for piece in pieces for word in _WORD.findall(piece)} - seen
            seen |= new
            unique += sum(len(word.encode()) for word in new)
        yield from pieces
        if unique > MAX_UNIQUE:
            return


_WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+")  # nearly GPT-2's expression, good enough to count by
_RUN = re.compile(
    rf"[^\W\d_]{{{MAX_RUN + 1},}}|\d{{{MAX_RUN + 1},}}|(?:[^\w\s]|_){{{MAX_RUN + 1},}}|\s{{{MAX_RUN + 1},}}"
)


def _cut_runs(text: str) -> list[str]:
    """Cut every run of letters, digits, marks or blanks into parts of at most MAX_RUN characters."""
    cuts = [0]
    for run in _RUN.finditer(text):
        cuts += range(run.start() + MAX_RUN, run.end(), MAX_RUN)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


# Places where GPT-2's expression, Qwen's, Llama 3's and WORDS all begin a new word whatever follows and precedes:
# before a space after a non-blank; after a single newline before a word; before CJK punctuation after Han.
_SEAM = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\w)|(?<=[\u4e00-\u9fff])(?=[，。！？；：、])")


_BLANK_SEAM = re.compile(r"(?<=\S)(?= )")  # SentencePiece's


def _pieces(text: str, *, blank_is_added: bool = False, seam: re.Pattern[str] = _SEAM) -> list[str]:
    """Cut a long text into pieces of about MAX_PIECE characters whose ids, joined, are the ids of the whole.

    A text without any seam for that long is cut all the same, so that memory is bounded. Where a blank is added to each
    piece, the one at a seam is left out for it.
    """
    if len(text) <= MAX_PIECE:
        return [text]
    pieces = []
    start = 0
    while len(text) - start > MAX_PIECE:
        found = seam.search(text, start + MAX_PIECE // 2, start + MAX_PIECE)
        stop = found.start() if found else start + MAX_PIECE
        pieces.append(text[start:stop])
        start = stop + 1 if found and blank_is_added else stop
    return [*pieces, text[start:]]


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise lone_surrogate(error) from None
    return text


def lone_surrogate(error: UnicodeEncodeError) -> InputError:
    return InputError(
        "the text holds a lone surrogate, which is no character",
        where=f"character {error.start}: {error.object[error.start]!r}",
        mend="remove it; it comes from text that was cut or decoded wrongly",
    )


def _no_text() -> InputError:
    return InputError("there is no text to learn a vocabulary from", mend="name a file or folder that holds some")


def _kind(settings: dict[str, Any]) -> AnyKind:
    """Which kind a tokenizer.json is of."""
    model, decoder = settings["model"], settings.get("decoder") or {}
    stages = [stage.get("type") for stage in decoder.get("decoders", [decoder])]
    if model["type"] == "BPE" and "ByteLevel" in stages:
        return "bpe"
    if model["type"] == "WordPiece":
        return "wordpiece"
    if model["type"] == "BPE" and not model["merges"] and stages == ["Fuse"]:
        return "char"
    if model["type"] == "WordLevel" and stages == ["Fuse"]:
        return "word"
    if model["type"] in ("Unigram", "BPE") and _writes_blanks(decoder):
        return "unigram" if model["type"] == "Unigram" else "sentencepiece-bpe"
    raise InputError(
        "the tokenizer is of a kind that is not supported",
        why=f"it is a {model['type']} with the decoder {' + '.join(map(str, stages))}",
        mend="take one that is a byte-level BPE, as GPT-2, Qwen and Llama 3 have, a WordPiece, as BERT has, or of "
        "SentencePiece, as T5 has",
    )


def _writes_blanks(decoder: dict[str, Any]) -> bool:
    """Whether a decoder makes blanks of ▁ and otherwise does what `token_bytes` does."""
    stages = decoder.get("decoders", [decoder])
    blanks = False
    for stage in stages:
        if stage.get("type") == "Metaspace" and stage.get("replacement") == BLANK:
            blanks = True
        elif stage.get("type") == "Replace" and stage.get("content") == " ":
            blanks = blanks or stage.get("pattern") == {"String": BLANK}
        elif stage.get("type") not in ("ByteFallback", "Fuse", "Strip", "WhitespaceSplit"):
            return False
    return blanks


def _with_blanks(
    inner: tokenizers.Tokenizer, kind: AnyKind, settings: dict[str, Any], eos: str, pad: str, file: Path
) -> Tokenizer:
    """A SentencePiece tokenizer that a tokenizer.json holds."""
    model = settings["model"]
    if kind == "unigram":
        unk = None if model.get("unk_id") is None else str(model["vocab"][model["unk_id"]][0])
        pieces = {piece for piece, _ in model["vocab"]}
        special = {token["content"] for token in settings.get("added_tokens", ()) if token.get("special")}
        byte_pieces = filter(BYTE_PIECE.fullmatch, pieces) if model.get("byte_fallback") else ()
        keep_apart(inner, {*(pieces & special), *([unk] if unk else []), *byte_pieces})
    else:
        unk = model.get("unk_token")
    if unk not in _names(settings):
        raise InputError(f"the tokenizer has no token for what is unknown: {unk!r}", where=str(file))
    tokenizer = Tokenizer(inner, kind, eos, pad, unk)
    if tokenizer._ends[0]:
        raise InputError(
            "the tokenizer puts a token before a text, which is not supported for SentencePiece",
            where=str(file),
            mend="take one as T5 has",
        )
    return tokenizer


def _from_sentencepiece(file: Path) -> Tokenizer:
    """A tokenizer of a SentencePiece file and the tokenizer_config.json beside it, as T5 has them.

    Behind the pieces come <extra_id_99> to <extra_id_0>, as many as "extra_ids" says: T5 learned to fill gaps by them.
    """
    model = read_sentencepiece(file)
    inner = build_tokenizer(model)
    settings = _settings(file.parent / "tokenizer_config.json")
    special = _special_names(file.parent)
    eos = special.get("eos_token", model.pieces[model.eos_id] if model.eos_id >= 0 else "</s>")
    pad = special.get("pad_token", model.pieces[model.pad_id] if model.pad_id >= 0 else "<pad>")
    control = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == CONTROL}
    if eos not in control:
        raise InputError(
            f"the vocabulary has no token {eos!r} that ends a text",
            where=str(file),
            mend='put a tokenizer_config.json with the right "eos_token" beside it',
        )
    if file.name == "spiece.model":
        extra = settings.get("extra_ids", 100)
        if type(extra) is not int or not 0 <= extra <= 10_000:
            where = str(file.parent / "tokenizer_config.json")
            raise InputError(f"extra_ids = {str(extra)[:40]!r} cannot be used", where=where, mend="T5 has 100")
        inner.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(extra))])
        inner.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, model.pieces.index(eos))]
        )
    unk = model.pieces[model.unk_id]
    return Tokenizer(inner, _blank_kind(model), eos, pad if pad in control else eos, unk)


def _blank_kind(model: SentencePieceModel) -> AnyKind:
    return "unigram" if model.model_type == "unigram" else "sentencepiece-bpe"


MARIAN_FILES = ("source.spm", "target.spm", "vocab.json", "target_vocab.json")


def _marian(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Marian folder, and its target's; None if it is none, or a tokenizer.json counts."""
    if not (folder / "source.spm").is_file():
        return None
    config = _settings(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file() and config.get("tokenizer_class") not in ("MarianTokenizer", None):
        return None
    names = MARIAN_FILES if config.get("separate_vocabs") is True else MARIAN_FILES[:3]
    files: dict[str, bytes] = {}
    for name in names:
        try:
            with (folder / name).open("rb") as stream:
                files[name] = stream.read(MOST_VOCABULARY + 1)
        except OSError as error:
            what = f"the vocabulary has no {name} that can be read"
            raise InputError(what, where=str(folder), why=str(error.strerror)) from None
    special = _special_names(folder)
    eos, pad, unk = (special.get(f"{n}_token", d) for n, d in (("eos", "</s>"), ("pad", "<pad>"), ("unk", "<unk>")))
    source_language, target_language = (str(config.get(key) or "")[:40] for key in ("source_lang", "target_lang"))
    languages = (source_language, target_language)

    def side(spm: str, table: str, target: Tokenizer | None = None) -> Tokenizer:
        model = parse_sentencepiece(files[spm], str(folder / spm))
        ids = _piece_ids(files[table], folder / table, (eos, pad, unk))
        pieces = MarianPieces(model, ids, eos=eos, unk=unk, pad=pad)
        kind = _blank_kind(model)
        return Tokenizer(pieces, kind, eos, pad, unk, files=files, languages=languages, target=target)

    same = len(files) == 3 and files["source.spm"] == files["target.spm"]
    return side(names[0], names[2], None if same else side(names[1], names[-1]))


MOST_VOCABULARY = 64 << 20  # bytes of a Marian file


def _piece_ids(data: bytes, file: Path, needed: tuple[str, ...]) -> dict[str, int]:
    """A vocab.json. InputError: not of ids, without a token that is needed, or with vast gaps."""
    try:
        if len(data) > MOST_VOCABULARY:
            raise ValueError(f"it is larger than {MOST_VOCABULARY:,} bytes")
        ids = json.loads(data.decode("utf-8-sig"))
        if not isinstance(ids, dict) or not all(type(i) is int and i >= 0 for i in ids.values()):
            raise ValueError("it must give each piece an id")
        if len(set(ids.values())) < len(ids):
            raise ValueError("two pieces have the same id")
        if missing := [token for token in needed if token not in ids]:
            raise ValueError(f"it has no {missing[0]}")
        if max(ids.values()) > 2 * len(ids) + 65536:
            raise ValueError(f"{len(ids)} tokens have ids up to {max(ids.values())}")
    except (ValueError, RecursionError) as error:
        raise InputError("the vocabulary cannot be read", where=str(file), why=str(error)[:200]) from None
    return ids


def _settings(file: Path) -> dict[str, Any]:
    """A file of settings beside a tokenizer, empty if there is none."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError("the tokenizer's settings cannot be read", where=str(file), why=str(error)) from None
    return found if isinstance(found, dict) else {}


def _wordpiece(inner: tokenizers.Tokenizer, special: dict[str, str], names: set[str], file: Path) -> Tokenizer:
    """A WordPiece tokenizer with its special tokens, by the names that its files give or BERT's own."""
    found = []
    for default in BERT_SPECIALS:
        key = default.strip("[]").lower()
        token = special.get(f"{key}_token", default)
        if token not in names:
            raise InputError(
                f"the tokenizer has no {key} token {token!r}",
                where=str(file),
                mend=f'put a tokenizer_config.json with "{key}_token" beside it',
            )
        found.append(token)
    pad, unk, cls, sep, mask = found
    return Tokenizer(inner, "wordpiece", sep, pad, unk, cls=cls, sep=sep, mask=mask)


def _check_lowercase(settings: dict[str, Any], file: Path) -> None:
    """transformers lowercases as tokenizer_config.json says, we as tokenizer.json does: they must agree."""
    normalizer, beside = settings.get("normalizer") or {}, file.parent / "tokenizer_config.json"
    if normalizer.get("type") != "BertNormalizer" or not beside.is_file():
        return
    given = json.loads(beside.read_bytes())  # was read before, so it is JSON
    said = given.get("do_lower_case") if isinstance(given, dict) else None
    if isinstance(said, bool) and said != normalizer.get("lowercase"):
        raise InputError(
            f"do_lower_case = {said} contradicts tokenizer.json, whose normalizer has {normalizer.get('lowercase')}",
            where=str(beside),
            mend="set the one that the model was trained with",
        )


def _piece_text(piece: str, prefix: str) -> str:
    """What a piece of a word stands for in a text, a guess at the blank before it included."""
    if piece.startswith(prefix):
        return piece.removeprefix(prefix)
    alone = len(piece) == 1 and (unicodedata.category(piece)[0] == "P" or _NO_SPACES.match(piece))
    return piece if alone else f" {piece}"


_NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def _names(settings: dict[str, Any]) -> set[str]:
    """All tokens of a tokenizer.json. Ids with vast gaps are refused: the library takes memory up to the highest."""
    vocab = settings["model"]["vocab"]
    ids = {
        **({piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab),
        **{token["content"]: token["id"] for token in settings.get("added_tokens", ())},
    }
    highest = max(ids.values(), default=-1)
    if not ids or highest > 2 * len(ids) + 65536:
        raise InputError("the tokenizer's vocabulary cannot be", why=f"{len(ids)} tokens have ids up to {highest}")
    return set(ids)


def _special_names(folder: Path) -> dict[str, str]:
    """eos_token, pad_token, ... as the files beside a tokenizer.json name them."""
    names: dict[str, str] = {}
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):  # the latter wins
        if not file.is_file():
            continue
        try:
            settings = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError("the tokenizer's settings cannot be read", where=str(file), why=str(error)) from None
        for key, value in settings.items() if isinstance(settings, dict) else ():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                names[key] = content
    return names


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's way to write a byte as a visible character: printable Latin-1 as itself, the rest from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
