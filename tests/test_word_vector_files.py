"""Files of word vectors: gensim reads ours and we read gensim's, fastText's own files too; damaged ones are refused."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gensim.models import FastText, Word2Vec
from gensim.models import KeyedVectors as GensimVectors
from gensim.models.fasttext import load_facebook_model, save_facebook_model
from gensim.test.utils import common_texts, datapath

from zhixing.errors import InputError
from zhixing.interchange.word_vector_files import (
    FastTextArguments,
    FastTextModel,
    Layout,
    as_fasttext,
    guess_layout,
    read_fasttext,
    read_vectors,
    read_word_vectors,
    write_fasttext,
    write_vectors,
)
from zhixing.vectors.keyed import KeyedVectors, Subwords, subword_ids

LAYOUTS: list[Layout] = ["word2vec-text", "word2vec-binary", "glove", "fasttext-vec", "fasttext-bin"]
UNSEEN = ["unseen", "naïf", "没有", "x", "🙂🙂", "Crime-and"]


def some_vectors(n_words: int = 30, d_model: int = 5, *, subwords: bool = False) -> KeyedVectors:
    generator = np.random.default_rng(0)
    words = ["the", "中文", "naïve", "\u3000", "\xa0x", "1", "</s>", "-0.5", *(f"w{k}" for k in range(n_words - 8))]
    rows = (generator.standard_normal((n_words, d_model)) * 10.0 ** generator.integers(-8, 8, (n_words, 1))).astype(
        np.float32
    )
    counts = np.arange(n_words, 0, -1, dtype=np.int64)
    if not subwords:
        return KeyedVectors(words, rows, counts)
    matrix = generator.standard_normal((97, d_model)).astype(np.float32)
    return KeyedVectors(
        words, generator.standard_normal((n_words, d_model)).astype(np.float32), counts, Subwords(matrix, 2, 4)
    )


def small_model(model: str = "sg", loss: str = "ns", **changes: int) -> FastTextModel:
    generator = np.random.default_rng(0)
    words = ["the", "</s>", "中文", "good", "bad", "__label"]
    labels = ["__label__a", "__label__b", "__label__c"] if model == "sup" else []
    arguments = replace(FastTextArguments(4, model=model, loss=loss, buckets=11, min_n=2, max_n=3), **changes)
    rows = [len(words) + arguments.buckets, len(labels) or len(words)]
    inputs, outputs = (generator.standard_normal((n, 4)).astype(np.float32) for n in rows)
    counts = np.array([90, 50, 9, 7, 7, 1])
    return FastTextModel(arguments, words, counts, labels, np.array([5, 4, 2][: len(labels)]), 170, inputs, outputs)


# --- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read(layout: Layout, tmp_path: Path) -> None:
    vectors = some_vectors()
    write_vectors(tmp_path / "new" / "v", vectors, layout)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["v"]
    seen = {"fasttext-vec": "word2vec-text"}.get(layout, layout)
    assert guess_layout(tmp_path / "new" / "v") == seen
    for given in (None, layout):
        back = read_vectors(tmp_path / "new" / "v", given)
        assert back.words == vectors.words and (back.vectors == vectors.vectors).all()  # to the last bit
        first = read_vectors(tmp_path / "new" / "v", given, limit=7)
        assert first.words == vectors.words[:7] and (first.vectors == vectors.vectors[:7]).all()
        assert read_vectors(tmp_path / "new" / "v", given, limit=1000).words == vectors.words
    if layout == "fasttext-bin":
        assert back.counts is not None and (back.counts == vectors.counts).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_most_frequent_word_comes_first(layout: Layout, tmp_path: Path) -> None:
    vectors = KeyedVectors(list("abcd"), np.arange(8, dtype=np.float32).reshape(4, 2), np.array([3, 9, 3, 7]))
    write_vectors(tmp_path / "v", vectors, layout)
    back = read_vectors(tmp_path / "v")
    assert back.words == list("bdac") and back.vectors[0].tolist() == [2, 3]


def test_subwords_go_through_a_bin(tmp_path: Path) -> None:
    vectors = some_vectors(subwords=True)
    write_vectors(tmp_path / "v.bin", vectors, "fasttext-bin")
    back = read_vectors(tmp_path / "v.bin")
    np.testing.assert_allclose(back.vectors, vectors.vectors, atol=2e-5)
    for word in UNSEEN:
        assert (back.vector(word) == vectors.vector(word)).all()
    few = read_vectors(tmp_path / "v.bin", limit=3)
    assert len(few) == 3 and (few.vector("unseen") == vectors.vector("unseen")).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wanted_words_of_any_layout(layout: Layout, tmp_path: Path) -> None:
    vectors = some_vectors(subwords=layout == "fasttext-bin")
    write_vectors(tmp_path / "v", vectors, layout)
    matrix, found = read_word_vectors(tmp_path / "v", ["中文", "absent", "the"])
    assert found.tolist() == [True, layout == "fasttext-bin", True]
    np.testing.assert_allclose(matrix[[0, 2]], vectors.vectors[[1, 0]], atol=2e-5)
    if layout == "fasttext-bin":
        assert (matrix[1].numpy() == vectors.vector("absent")).all()
    else:
        assert not matrix[1].any()


# --- gensim --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["word2vec-text", "word2vec-binary", "glove", "fasttext-vec"])
def test_gensim_reads_ours(layout: Layout, tmp_path: Path) -> None:
    vectors = some_vectors()
    write_vectors(tmp_path / "v", vectors, layout)
    theirs = GensimVectors.load_word2vec_format(
        str(tmp_path / "v"), binary=layout == "word2vec-binary", no_header=layout == "glove"
    )
    assert theirs.index_to_key == vectors.words and (theirs.vectors == vectors.vectors).all()


@pytest.mark.parametrize("binary", [True, False])
def test_we_read_gensims(binary: bool, tmp_path: Path) -> None:
    theirs = Word2Vec(common_texts, vector_size=9, min_count=1, epochs=1, seed=1, workers=1).wv
    theirs.save_word2vec_format(str(tmp_path / "v"), binary=binary)
    ours = read_vectors(tmp_path / "v")
    assert ours.words == theirs.index_to_key and (ours.vectors == theirs.vectors).all()


def test_files_that_gensim_ships() -> None:
    for name in ("euclidean_vectors.bin", "poincare_vectors.bin", "test_glove.txt", "lee_fasttext.vec"):
        binary, bare = name.endswith(".bin"), name.endswith(".txt")
        theirs = GensimVectors.load_word2vec_format(datapath(name), binary=binary, no_header=bare)
        ours = read_vectors(Path(datapath(name)))
        assert ours.words == theirs.index_to_key and (ours.vectors == theirs.vectors).all()


@pytest.mark.parametrize("sg", [0, 1])
def test_gensims_fasttext_model_both_ways(sg: int, tmp_path: Path) -> None:
    theirs = FastText(common_texts, vector_size=6, min_count=1, sg=sg, epochs=1, bucket=50, min_n=2, max_n=4, workers=1)
    save_facebook_model(theirs, str(tmp_path / "theirs.bin"))
    model = read_fasttext(tmp_path / "theirs.bin")
    assert model.arguments.model == ("sg" if sg else "cbow") and model.arguments.buckets == 50
    vectors = model.keyed()
    assert vectors.words == theirs.wv.index_to_key
    for word in vectors.words + UNSEEN:
        np.testing.assert_allclose(vectors.vector(word), theirs.wv[word], atol=1e-6)
    write_fasttext(tmp_path / "ours.bin", model)
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


def test_gensim_loads_our_bin(tmp_path: Path) -> None:
    vectors = some_vectors(subwords=True)
    write_vectors(tmp_path / "v.bin", vectors, "fasttext-bin")
    theirs = load_facebook_model(str(tmp_path / "v.bin"))
    assert theirs.wv.index_to_key == vectors.words
    for word in [word for word in vectors.words if word != "</s>"] + UNSEEN:  # gensim gives </s> n-grams
        np.testing.assert_allclose(theirs.wv[word], vectors.vector(word), atol=2e-5)
    assert theirs.wv.get_vecattr("the", "count") == 30


# --- fastText ------------------------------------------------------------------------------------------------------


def test_a_model_of_fasttext_itself() -> None:
    """fastText wrote both files: the .vec has five digits of what the .bin gives."""
    model = read_fasttext(Path(datapath("crime-and-punishment.bin")))
    vectors = model.keyed()
    text = read_vectors(Path(datapath("crime-and-punishment.vec")))
    assert vectors.words == text.words and model.arguments.model == "sg" and model.labels == []
    np.testing.assert_allclose(vectors.vectors, text.vectors, rtol=5.1e-5, atol=1e-7)
    theirs = load_facebook_model(datapath("crime-and-punishment.bin")).wv
    for word in UNSEEN:
        np.testing.assert_allclose(vectors.vector(word), theirs[word], atol=1e-6)


def test_a_model_of_an_earlier_fasttext() -> None:
    vectors = read_vectors(Path(datapath("lee_fasttext_new.bin")))  # version 11
    text = read_vectors(Path(datapath("lee_fasttext.vec")))
    for word in set(vectors.words) & set(text.words):
        assert vectors.vector(word).shape == (10,)
    assert vectors.subwords is not None and (vectors.subwords.min_n, vectors.subwords.max_n) == (3, 6)


def test_a_supervised_model_of_fasttext_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(datapath("pang_lee_polarity_fasttext.bin"))
    model = read_fasttext(path)
    arguments, outputs = model.arguments, model.outputs
    assert (arguments.model, arguments.loss, arguments.max_n) == ("sup", "softmax", 0) and outputs is not None
    assert len(model.labels) == 2 and "not UTF-8" in capsys.readouterr().err
    raw = path.read_bytes()
    assert raw.endswith(outputs.tobytes()) and model.inputs.tobytes() in raw
    write_fasttext(tmp_path / "again.bin", model)
    again = read_fasttext(tmp_path / "again.bin")
    assert again.words == model.words and again.labels == model.labels and (again.inputs == model.inputs).all()
    for text in ("a wonderful, moving film", "dull and tedious", "", "unseenword"):
        assert model.probabilities(text).sum() == pytest.approx(1.0)
    assert model.keyed().subwords is None


@pytest.mark.parametrize("model", ["sg", "cbow", "sup"])
def test_a_model_written_is_the_model_read(model: str, tmp_path: Path) -> None:
    ours = small_model(model)
    write_fasttext(tmp_path / "m.bin", ours)
    back = read_fasttext(tmp_path / "m.bin")
    assert (back.arguments, back.words, back.labels, back.n_tokens) == (ours.arguments, ours.words, ours.labels, 170)
    for name in ("counts", "label_counts", "inputs", "outputs"):
        assert (getattr(back, name) == getattr(ours, name)).all()


def test_rows_of_a_text_by_hand() -> None:
    model = small_model("sup", word_ngrams=2)
    grams = {word: (6 + subword_ids([word], 2, 3, 11)[0]).tolist() for word in ("good", "new")}
    rows = model.input_rows("good\tnew __label__a\n")
    # the words with their n-grams, then the pairs (good, new), (new, </s>)
    expected = [3, *grams["good"], *grams["new"], 1]
    assert rows[: len(expected)] == expected and len(rows) == len(expected) + 2
    assert all(6 <= row < 17 for row in rows[-2:])
    assert small_model("sup", max_n=0).input_rows("good new") == [3, 1]


def test_probabilities_by_hand() -> None:
    model = small_model("sup", "softmax", max_n=0)
    assert model.outputs is not None
    logits = model.outputs @ model.inputs[[3, 1]].mean(axis=0)
    np.testing.assert_allclose(model.probabilities("good"), np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    ova = replace(model, arguments=replace(model.arguments, loss="ova"))
    np.testing.assert_allclose(ova.probabilities("good"), 1 / (1 + np.exp(-logits)), rtol=1e-5)
    tree = replace(model, arguments=replace(model.arguments, loss="hs"))
    # counts 5, 4, 2: node 3 joins labels 2 (left) and 1 (right), node 4 joins label 0 (left) and node 3 (right)
    inner, top = 1 / (1 + np.exp(-logits[:2]))
    np.testing.assert_allclose(tree.probabilities("good"), [1 - top, top * inner, top * (1 - inner)], rtol=1e-5)
    with pytest.raises(InputError, match="no labels"):
        small_model("sg").probabilities("good")


# --- damage --------------------------------------------------------------------------------------------------------


def refused(path: Path, layout: Layout | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_vectors(path, layout)
    return caught.value.message()


@pytest.mark.parametrize("layout", ["word2vec-text", "word2vec-binary", "glove", "fasttext-bin"])
def test_cut_short_anywhere(layout: Layout, tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", some_vectors(9, 3, subwords=layout == "fasttext-bin"), layout)
    data = (tmp_path / "v").read_bytes()
    for length in range(0, len(data), max(1, len(data) // 300)):
        (tmp_path / "cut").write_bytes(data[:length])
        last = layout == "word2vec-text" and length > data[:-1].rindex(b" ")  # a digit less: said, not refused
        last |= layout == "word2vec-binary" and length == len(data) - 1  # the newline that gensim does not write
        if layout == "glove":  # whole lines are a shorter file, and nothing says how long the first one was
            *whole, partial = data[:length].rstrip(b" ").split(b"\n")
            last = (not partial or partial.count(b" ") == 3) if whole else b" " in partial
        if last:
            continue
        assert str(tmp_path / "cut") in refused(tmp_path / "cut", layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_damage_is_an_input_error_or_none(layout: Layout, tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", some_vectors(9, 3, subwords=layout == "fasttext-bin"), layout)
    data = (tmp_path / "v").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 400), generator.integers(1, 4)):
            damaged[place] = generator.integers(0, 256)
        (tmp_path / "v").write_bytes(damaged)
        for given in (None, layout):
            try:
                read_vectors(tmp_path / "v", given)
            except InputError:
                pass


@pytest.mark.parametrize(
    "content, layout, message",
    [
        (b"999999999999 300\na 1 2\n", None, "not possible"),
        (b"3 999999999\na 1 2\n", None, "not possible"),
        (b"0 3\n", None, "not possible"),
        (b"999999999999 300\n" + b"a \0\0\0\0" * 99, "word2vec-binary", "not possible"),
        (b"2 2\na 1 2\n" * 2, None, "f:3"),
        (b"2 2\na 1 2\nb 1 2\nc 1 2\n", None, "holds 3"),
        (b"3 2\na 1 2\nb 1 2\n", None, "holds 2"),
        (b"a 1 2\nb 1 nan\n", None, "f:2"),
        (b"1 2\na 1.5 2.5x\n", None, "no number"),
        (b"a 1 2\nb 1 1e39\n", None, "not finite"),
        (b"a 1 2\n 1 2\n", None, "no word"),
        (b"a 1 2\n", "word2vec-text", "does not say"),
        (b"a 1 2\n", "word2vec-binary", "does not say"),
        (b"1 2\n " + struct.pack("<2f", 1, 2), "word2vec-binary", "empty"),
        (b"1 2\na " + struct.pack("<2f", 1, float("nan")), "word2vec-binary", "not finite"),
        (b"1 2\na " + struct.pack("<2f", 1, 2) + b"more", "word2vec-binary", "more in the file"),
        (b"\x1f\x8b\x08\x00", None, "compressed"),
        (b"", None, "no word vectors"),
        (b"", "fasttext-bin", "ends too early"),
        (struct.pack("<2i", 793712314, 13) + b"\0" * 99, None, "version 13"),
        (b"the 1 2\n" * 20, "fasttext-bin", "no fastText model"),
    ],
)
def test_wrong_files(content: bytes, layout: Layout | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    tracemalloc.start()
    said = refused(tmp_path / "f", layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in said and str(tmp_path / "f") in said
    assert peak < 20e6


def patched(tmp_path: Path, place: int, form: str, *values: int) -> str:
    write_fasttext(tmp_path / "m.bin", small_model("sup"))
    data = bytearray((tmp_path / "m.bin").read_bytes())
    struct.pack_into(form, data, place, *values)
    (tmp_path / "m.bin").write_bytes(data)
    tracemalloc.start()
    said = refused(tmp_path / "m.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    return said


def test_claims_of_a_model(tmp_path: Path) -> None:
    ends = 64 + 28  # magic and arguments, dictionary's sizes
    matrix = ends + sum(len(name.encode()) + 10 for name in [*small_model("sup").words, *small_model("sup").labels])
    for place, form, values, message in (
        (8, "<i", (-1,), "dim -1"),
        (8, "<i", (1 << 30,), "make no sense"),
        (40, "<i", (1 << 30,), "expected 1073741830"),
        (40, "<i", (-5,), "bucket -5"),
        (32, "<i", (9,), "loss 9"),
        (64, "<3i", (2**31 - 1, 2**31 - 2, 1), "not possible"),
        (64, "<3i", (9, -1, 10), "not possible"),
        (64, "<3i", (9, 7, 2), "entry 6"),
        (84, "<q", (5,), "quantized"),
        (matrix, "<b", (1,), "quantized"),
        (matrix, "<b", (7,), "another size"),
        (matrix + 1, "<2q", (1 << 40, 1 << 40), "another size"),
        (matrix + 17, "<f", (float("inf"),), "not finite"),
        (ends + 4, "<q", (-1,), "count -1"),
    ):
        assert message in patched(tmp_path, place, form, *values)


def test_repeated_words_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v").write_text("a 1 2\nb 3 4\na 5 6\n")
    vectors = read_vectors(tmp_path / "v")
    assert vectors.words == ["a", "b"] and vectors.vectors.tolist() == [[1, 2], [3, 4]]
    assert "1 lines repeat" in capsys.readouterr().err
    (tmp_path / "v").write_text("a 1 2\nb 3 4")
    assert read_vectors(tmp_path / "v").words == ["a", "b"]
    assert "cut short" in capsys.readouterr().err


def test_words_of_binary_files_that_are_not_utf8_are_kept_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """word2vec.c cuts long words in the middle of a character, and fastText reads any bytes."""
    (tmp_path / "v").write_bytes(b"1 2\n\xe4\xb8 " + struct.pack("<2f", 1, 2))
    assert read_vectors(tmp_path / "v").words == ["\\xe4\\xb8"]
    assert "1 words are not UTF-8" in capsys.readouterr().err


def test_words_that_a_layout_cannot_hold(tmp_path: Path) -> None:
    rows = np.ones((2, 3), np.float32)
    for word in ("two words", "line\nend", "", " x", "half\ud800"):
        for layout in LAYOUTS[:4]:
            if (word, layout) == ("two words", "glove"):
                continue
            with pytest.raises(InputError):
                write_vectors(tmp_path / "v", KeyedVectors(["a", word], rows), layout)
    with pytest.raises(InputError, match="cannot be written"):
        write_vectors(tmp_path / "v", KeyedVectors(["a", "nul\0"], rows), "fasttext-bin")
    assert list(tmp_path.iterdir()) == []
    write_vectors(tmp_path / "v", KeyedVectors(["a", ". . ."], rows), "glove")
    assert read_vectors(tmp_path / "v").words == ["a", ". . ."]


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_vectors(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        read_vectors(tmp_path)
    (tmp_path / "v").write_text("a 1\n")
    with pytest.raises(InputError, match="limit"):
        read_vectors(tmp_path / "v", limit=0)
    with pytest.raises(InputError, match="no layout"):
        read_vectors(tmp_path / "v", "hdf5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input matrix"):
        write_fasttext(tmp_path / "m", replace(small_model(), inputs=np.ones((2, 4), np.float32)))
    with pytest.raises(InputError, match="no output matrix"):
        write_fasttext(tmp_path / "m", replace(small_model(), outputs=None))
    assert as_fasttext(some_vectors()).keyed().subwords is None
