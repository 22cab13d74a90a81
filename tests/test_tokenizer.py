"""Tokenizers: exact round trips, special-token text as text, the same ids in transformers, bounded training."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from zhixing.errors import InputError
from zhixing.tokens import tokenizer as module
from zhixing.tokens.report import render_report, tokenizer_report
from zhixing.tokens.tokenizer import Kind, TextStream, Tokenizer, auto_vocab_size, train_tokenizer

ENGLISH = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be, don't you think?\n\n"
) * 3
CHINESE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n" * 3
DOCUMENTS = [ENGLISH, CHINESE, "def f(x):\n\treturn x ** 2  # 12345\r\n", "😀👩‍👩‍👧‍👦🏳️‍🌈 naïve Ünïcödé"]
TEXTS = [
    *DOCUMENTS,
    "",
    " ",
    "   leading and trailing   ",
    "<|endoftext|>",
    "a<|endoftext|>b<|pad|><|unk|> <|im_start|>",
    "从未见过的字：鑫龘𠮷",
    "\x00\x01\u200b\ufeff\u2028\x85",
    "e\u0301 vs é",
    "مرحبا بالعالم שלום नमस्ते ไทย 한국어 カタカナ",
]
KINDS: list[Kind] = ["bpe", "char", "word"]
SIZES = {"bpe": 400, "char": 300, "word": 300}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(DOCUMENTS, kind, SIZES[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def bpe(trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained["bpe"]


# ---- there and back ----------------------------------------------------------------------------------------------


def test_special_ids(trained: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in trained.items():
        assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 1)
        assert tokenizer.unk_id == (None if kind == "bpe" else 2)
        assert tokenizer.kind == kind
        assert tokenizer.vocab_size <= SIZES[kind]


def test_known_text_comes_back_exactly(trained: dict[str, Tokenizer]) -> None:
    for tokenizer in trained.values():
        for text in DOCUMENTS:
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch(DOCUMENTS) == [tokenizer.encode(text) for text in DOCUMENTS]
        assert tokenizer.encode_batch([]) == []
        assert tokenizer.encode_batch(["", "x", ""])[0] == []


def test_any_text_comes_back_exactly_from_bytes(bpe: Tokenizer) -> None:
    """10,000 strings, of characters from every plane, and of pieces that regular expressions care about."""
    rng = random.Random(0)
    ranges = [
        (0, 0x7F),
        (0x80, 0x7FF),
        (0x800, 0xD7FF),
        (0xE000, 0xFFFF),
        (0x10000, 0x10FFFF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
    ]
    pieces = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        "'",
        "é",
        "e\u0301",
        "<|endoftext|>",
        "<|pad|>",
        "Ġ",
        "\ufffd",
        "1",
        "_",
        "。",
        "的",
    ]
    texts = []
    for _ in range(10_000):
        low, high = rng.choice(ranges)
        texts.append(
            "".join(
                rng.choice(pieces) if rng.random() < 0.3 else chr(rng.randint(low, high))
                for _ in range(rng.randint(0, 30))
            )
        )
    ids = bpe.encode_batch(texts)
    assert [bpe.decode(row) for row in ids] == texts
    assert not {bpe.eos_id, bpe.pad_id} & {i for row in ids for i in row}


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back_exactly_from_bytes_shrinkable(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == text


SMALL = train_tokenizer(DOCUMENTS, "bpe", 300)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*"床前明月光ItIsa truth,。?\n\t\r_'0129", "is", "man", " don't", "  "])))
def test_known_pieces_come_back_exactly(trained_words: list[str]) -> None:
    text = "".join(trained_words)
    for tokenizer in (LETTERS, WORDS):
        ids = tokenizer.encode(text)
        if tokenizer.unk_id not in ids:
            assert tokenizer.decode(ids) == text
    assert LETTERS.unk_id not in LETTERS.encode(text)


LETTERS = train_tokenizer(["床前明月光ItIsa truth,。?\n\t\r_'0129 mandontsi"], "char", 300)
WORDS = train_tokenizer(["床前明月光 is man don't truth , 。 ? \n \t \r _ ' 0 1 2 9 I t s a"], "word", 300)


def test_unknown_pieces(trained: dict[str, Tokenizer]) -> None:
    char, word = trained["char"], trained["word"]
    assert char.decode(char.encode("man 龘 man")) == "man \ufffd man"
    assert word.decode(word.encode("a hitherto man, 龘 man")) == "a \ufffd man, \ufffd man"
    assert char.encode("龘鑫") == [2, 2]
    assert word.encode("龘鑫") == [2, 2]  # a character of a script without spaces is a word
    assert len(word.encode("a man")) == 3
    for tokenizer in (char, word):
        assert not {0, 1} & set(tokenizer.encode("<|endoftext|><|pad|>"))


def test_words_are_whole(trained: dict[str, Tokenizer]) -> None:
    word = trained["word"]
    pieces = [word.token_bytes(i).decode() for i in word.encode("However little known, 明月")]
    assert pieces == ["However", " ", "little", " ", "known", ",", " ", "明", "月"]


def test_decode_is_made_of_token_bytes(trained: dict[str, Tokenizer]) -> None:
    for tokenizer in trained.values():
        assert tokenizer.token_bytes(tokenizer.eos_id) == tokenizer.token_bytes(tokenizer.pad_id) == b""
        for text in DOCUMENTS:
            assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert {SMALL.token_bytes(i) for i in range(2, 258)} == {bytes([byte]) for byte in range(256)}


def test_decode_agrees_with_the_library(bpe: Tokenizer) -> None:
    """Also on broken UTF-8: what is no character is U+FFFD by the same rule."""
    rng = random.Random(1)
    for _ in range(2000):
        ids = [rng.randrange(2, bpe.vocab_size) for _ in range(rng.randint(0, 12))]
        assert bpe.decode(ids) == bpe._inner.decode(ids)


def test_ids_out_of_range_are_refused(bpe: Tokenizer) -> None:
    for wrong in (-1, bpe.vocab_size, 10**9):
        with pytest.raises(InputError, match="no token"):
            bpe.decode([5, wrong])
        with pytest.raises(InputError, match="no token"):
            bpe.token_bytes(wrong)


def test_lone_surrogates_are_refused(trained: dict[str, Tokenizer]) -> None:
    for kind in KINDS:
        with pytest.raises(InputError, match="surrogate"):
            trained[kind].encode("fine \udc80")
        with pytest.raises(InputError, match="surrogate"):
            train_tokenizer(["fine \udc80"], kind, 300)


# ---- streaming ---------------------------------------------------------------------------------------------------


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(i) for i in ids), stream.finish()]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, SMALL.vocab_size - 1), max_size=40))
def test_stream_of_random_ids(ids: list[int]) -> None:
    assert "".join(streamed(SMALL, ids)) == SMALL.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("床前龘鑫𠮷😀👩‍🏳️é a\n")))
def test_stream_never_breaks_a_character(text: str) -> None:
    parts = streamed(SMALL, SMALL.encode(text))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_stream_holds_back_and_gives_up(bpe: Tokenizer) -> None:
    byte = {bpe.token_bytes(i): i for i in range(2, 258)}
    ids = [byte[bytes([b])] for b in "知".encode()]
    assert streamed(bpe, ids) == ["", "", "知", ""]
    assert streamed(bpe, [*ids[:2], byte[b"a"]]) == ["", "", "\ufffda", ""]
    assert streamed(bpe, ids[:2]) == ["", "", "\ufffd"]
    assert streamed(bpe, [byte[b"\xff"]]) == ["\ufffd", ""]
    stream = TextStream(bpe)
    stream.push(ids[0])
    stream.finish()
    assert stream.push(byte[b"a"]) == "a"  # as new


# ---- files, and other tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = trained[kind]
    tokenizer.save(tmp_path, model_max_length=256)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert again.fingerprint() == tokenizer.fingerprint()
        same = ("kind", "vocab_size", "eos_id", "pad_id", "unk_id")
        assert [getattr(again, name) for name in same] == [getattr(tokenizer, name) for name in same]
    assert json.loads((tmp_path / "tokenizer.json").read_bytes())["normalizer"] is None


@pytest.mark.parametrize("model_type", [None, "gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(
    trained: dict[str, Tokenizer], kind: str, model_type: str | None, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = trained[kind]
    tokenizer.save(tmp_path, model_max_length=10_000)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text), text
        if kind == "bpe":
            assert theirs.decode(ids) == text
    assert theirs(TEXTS)["input_ids"] == tokenizer.encode_batch(TEXTS)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert theirs.model_max_length == 10_000


def test_fingerprints_differ() -> None:
    tokenizers_ = [
        SMALL,
        train_tokenizer(DOCUMENTS, "bpe", 310),
        train_tokenizer([ENGLISH], "bpe", 300),
        LETTERS,
        WORDS,
    ]
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers_}) == 5
    assert train_tokenizer(DOCUMENTS, "bpe", 300).fingerprint() == SMALL.fingerprint()


def test_fingerprint_is_stable() -> None:
    """Training, too, gives the same in another process with another hash seed."""
    code = (
        "from zhixing.tokens.tokenizer import train_tokenizer; import sys\n"
        "for kind in ('bpe', 'char', 'word'): print(train_tokenizer(['one two three, two one 床前明月光 '] * 9, kind, 290).fingerprint())"
    )
    source = str(Path(module.__file__).parents[2])
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": source, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert len(next(iter(runs)).split()) == 3


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def foreign(expression: str | None) -> tokenizers.Tokenizer:
    """A tokenizer as others make them: GPT-2's expression (None), Qwen's (with NFC) or Llama 3's (with bos)."""
    inner = tokenizers.Tokenizer(models.BPE())
    if expression is None:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        stages = [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        inner.pre_tokenizer = pre_tokenizers.Sequence(stages)
    if expression == QWEN:
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        DOCUMENTS, trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    )
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    inner.add_tokens([AddedToken("<think>", special=False)])
    inner.enable_truncation(5)  # as sentence-transformers leave theirs
    inner.enable_padding()
    return inner


@pytest.mark.parametrize("expression", [None, QWEN, LLAMA3], ids=["gpt2", "qwen", "llama3"])
def test_tokenizers_of_others(expression: str | None, tmp_path: Path) -> None:
    inner = foreign(expression)
    inner.save(str(tmp_path / "tokenizer.json"))
    config = {
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"},
        "pad_token": "<|endoftext|>",
        "bos_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.kind == "bpe"
    assert tokenizer.eos_id == inner.token_to_id("<|im_end|>") == tokenizer.token_id("<|im_end|>")
    assert tokenizer.pad_id == inner.token_to_id("<|endoftext|>")
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == inner.encode(text, add_special_tokens=False).ids
        if expression != QWEN or text.isascii():
            assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    assert tokenizer.decode(tokenizer.encode("<think>hm")) == "<think>hm"
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()


def test_special_tokens_map_alone_is_enough(tmp_path: Path) -> None:
    foreign(None).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.eos_id == tokenizer.pad_id == tokenizer.token_id("<|im_end|>")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    good = SMALL._inner.to_str().encode()
    for broken in (b"", b"{", b"[]", b"null", b"\xff\xfe", good[: len(good) // 2], b'{"model": {}}', b"[" * 100_000):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read"):
            Tokenizer.load(file)
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("</s>", -1.0)], unk_id=0))
    unigram.save(str(file))
    with pytest.raises(InputError, match=r"not supported|cannot be read"):
        Tokenizer.load(file)
    wordpiece = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    wordpiece.save(str(file))
    with pytest.raises(InputError, match="no pad token"):
        Tokenizer.load(file)
    no_end = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    no_end.decoder = decoders.ByteLevel()
    no_end.save(str(file))
    with pytest.raises(InputError, match="ends a text"):
        Tokenizer.load(file)
    gaps = json.loads(good)  # 4 bytes of text that would ask for 16 GB
    gaps["model"]["vocab"]["</s>"] = 4_000_000_000
    file.write_text(json.dumps(gaps))
    with pytest.raises(InputError, match="vocabulary cannot be"):
        Tokenizer.load(file)
    file.write_bytes(good)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="settings cannot be read"):
        Tokenizer.load(file)


@pytest.mark.parametrize(
    "settings_", ["[]", "3", '{"eos_token": 5, "pad_token": null}', '{"eos_token": {"content": []}}']
)
def test_odd_settings_fall_back(settings_: str, tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings_)
    assert Tokenizer.load(tmp_path).eos_id == 0


# ---- training ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_is_refused() -> None:
    for kind in KINDS:
        for nothing in ([], [""], ["", ""]):
            with pytest.raises(InputError, match="no text"):
                train_tokenizer(nothing, kind, 1000)
    for kind in KINDS:
        least = 258 if kind == "bpe" else 4
        with pytest.raises(InputError, match="too small"):
            train_tokenizer(["text"], kind, least - 1)
        assert train_tokenizer(["text"], kind, least).vocab_size == least


def test_a_vocabulary_larger_than_the_text_allows_is_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        tokenizer = train_tokenizer(["so little text, so little"], kind, 16_384)
        assert tokenizer.vocab_size < 300
        assert tokenizer.decode(tokenizer.encode("so little text")) == "so little text"
    assert "fewer than 16,384" in capsys.readouterr().err


def test_the_most_frequent_are_kept() -> None:
    assert train_tokenizer(["aaabbbc" * 3], "char", 5).decode([3, 4]) == "ab"
    word = train_tokenizer(["cat dog cat dog cat cow"], "word", 5)
    assert [word.token_bytes(i) for i in (3, 4)] == [b" ", b"cat"]
    assert b" man" in {SMALL.token_bytes(i) for i in range(SMALL.vocab_size)} or b" m" in {
        SMALL.token_bytes(i) for i in range(SMALL.vocab_size)
    }


def test_auto_vocab_size() -> None:
    sizes = [auto_vocab_size(total) for total in (0, 6_000, 100_000, 4_000_000, 25_000_000, 64_000_000, 10**12)]
    assert sizes == sorted(sizes)
    assert sizes[1] == 512
    assert sizes[3] == 4096
    assert (sizes[0], sizes[-1]) == (512, 16_384)
    assert all(size % 64 == 0 for size in sizes)


def test_cut_runs_lose_nothing_and_are_short() -> None:
    text = "的" * 1000 + " word " + "=" * 100 + "12345" * 30 + " " * 99 + "x_" * 40
    pieces = module._cut_runs(text)
    assert "".join(pieces) == text
    expression = Regex(r"\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+")
    words = [
        word for piece in pieces for word, _ in pre_tokenizers.Split(expression, "isolated").pre_tokenize_str(piece)
    ]
    assert max(map(len, words)) <= module.MAX_RUN
    assert module._cut_runs(ENGLISH) == [ENGLISH]


SLOW_TEXT = """
import random, sys, time
from pathlib import Path
from zhixing.tokens.tokenizer import train_tokenizer
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
rng = random.Random(0)
words = ["".join(chr(0x4E00 + int(rng.paretovariate(0.5)) % 3500) for _ in range(rng.choice([1, 2, 2, 3]))) for _ in range(9000)]
text = "".join(rng.choices(words, [1 / (i + 1) for i in range(9000)], k=900_000))[: int(sys.argv[1]) // 3]
assert len(text) == int(sys.argv[1]) // 3
start = time.process_time()
tokenizer = train_tokenizer([text], "bpe", 4096)
print(time.process_time() - start, peak(), tokenizer.vocab_size)
start = time.process_time()
assert tokenizer.decode(tokenizer.encode(text)) == text
print(time.process_time() - start, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("megabytes", [0.5, pytest.param(5, marks=pytest.mark.slow)])
def test_chinese_without_a_blank(megabytes: float) -> None:
    """Neither training nor encoding explodes where a whole text is one word (5 MB: 11 s and 620 MB measured)."""
    source = str(Path(module.__file__).parents[2])
    command = [sys.executable, "-c", SLOW_TEXT, str(int(megabytes * 1e6))]
    run = subprocess.run(command, env={"PYTHONPATH": source}, capture_output=True, text=True, check=True)
    training, encoding = ([float(figure) for figure in line.split()] for line in run.stdout.splitlines())
    assert training[0] < 5 + 8 * megabytes  # seconds of all processors together
    assert training[1] < 150 + 170 * megabytes  # MB
    assert training[2] == 4096
    assert encoding[0] < 5 + 8 * megabytes
    assert encoding[1] < 150 + 170 * megabytes


def test_beyond_the_bound_a_fair_sample_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(module, "MAX_SAMPLE", 20_000)
    documents = ["a" * 50 * 1000, "b" * 50 * 1000, "c" * 100]
    sample = module._sample(iter(documents))
    assert sample == module._sample(documents)
    joined = "".join(sample)
    assert 5_000 < len(joined) <= 20_000
    assert 0.3 < joined.count("a") / len(joined) < 0.7  # not only the beginning


def test_few_different_words_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNIQUE", 1000)
    rng = random.Random(0)
    blocks = [" ".join(str(rng.random()) for _ in range(20)) for _ in range(100)]
    assert 1000 < sum(map(len, module._few_words(blocks))) < 3000
    same = ["the same words again and again"] * 100
    assert list(module._few_words(same)) == same


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "word",
                " ",
                "  ",
                "\n",
                "\r\n",
                "\t",
                "'s",
                "'",
                "好",
                "明月",
                "。",
                "，",
                "é",
                "\u0301",
                "1",
                "23",
                "!",
                "_",
                "😀",
                "<|pad|>",
                "ว",
                "\u3000",
                "/",
            ]
        ),
        min_size=20,
        max_size=150,
    )
)
def test_pieces_change_no_ids(parts: list[str]) -> None:
    """A long text is cut only where the expressions of GPT-2, Qwen and Llama 3, and ours for words, cut anyway."""
    text = "".join(parts)
    for tokenizer in PIECED:
        whole = tokenizer.encode(text)
        pieces = [text]
        for _ in range(3):  # at every seam there is, by and by
            pieces = [part for piece in pieces for part in seams(piece)]
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in tokenizer.encode(piece)] == whole


def seams(text: str) -> list[str]:
    cuts = [0, *(seam.start() for seam in module._SEAM.finditer(text)), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(cuts) if start < stop]


PIECED = [
    SMALL,
    WORDS,
    LETTERS,
    Tokenizer(foreign(LLAMA3), "bpe", "<|im_end|>", "<|im_end|>"),
    Tokenizer(foreign(QWEN), "bpe", "<|im_end|>", "<|im_end|>"),
]


def test_a_long_text_is_cut_into_bounded_pieces(monkeypatch: pytest.MonkeyPatch, bpe: Tokenizer) -> None:
    text = (ENGLISH + CHINESE) * 20
    whole = bpe._inner.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(module, "MAX_PIECE", 64)
    monkeypatch.setattr(module, "BATCH", 200)
    assert bpe.encode_batch([text, "x", text]) == [whole, bpe.encode("x"), whole]
    assert max(map(len, module._pieces(text))) <= 64
    solid = "的" * 1000  # no seam: cut all the same, and it comes back exactly
    assert max(map(len, module._pieces(solid))) <= 64
    assert bpe.decode(bpe.encode(solid)) == solid


# ---- the report --------------------------------------------------------------------------------------------------


def test_report(trained: dict[str, Tokenizer]) -> None:
    poems, prose = CHINESE.split("\n"), ENGLISH.split("\n")
    for kind in KINDS:
        tokenizer = trained[kind]
        report = tokenizer_report(
            tokenizer, {"both": [*poems, *prose], "English": iter(prose), "龘": ["龘龘"], "none": []}
        )
        json.dumps(report)
        both, english, strange = (report["texts"][name] for name in ("both", "English", "龘"))
        assert both["tokens"] == sum(map(len, tokenizer.encode_batch([*poems, *prose])))
        assert both["bytes"] == sum(len(text.encode()) for text in [*poems, *prose])
        assert both["documents"] == len(poems) + len(prose)
        assert both["bytes_per_token"] == pytest.approx(both["bytes"] / both["tokens"])
        assert english["characters_per_token"] == english["bytes_per_token"]
        assert english["unknown"] == 0
        assert strange["unknown"] == (0 if kind == "bpe" else 1)
        assert 0 < english["coverage"] < both["coverage"] <= 1
        parts = [report["texts"][f"both: {script}"] for script in ("Chinese", "other")]
        assert sum(part["tokens"] for part in parts) == both["tokens"]
        assert report["texts"]["none"]["bytes_per_token"] == 0
        text = render_report(report)
        lines = text.splitlines()
        assert f"{tokenizer.vocab_size:,} tokens" in lines[0]
        assert len({sum(1 + (ord(c) > 0x2E80) for c in line) for line in lines[2:-2]}) == 1  # the columns stand in line
    assert report["longest_tokens"][0] == "acknowledged"
