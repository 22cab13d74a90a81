"""A text becomes numbers: words, counts, sentences, and the tables that training draws from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from zhixing.errors import InputError
from zhixing.vectors import words as words_module
from zhixing.vectors.words import END, MAX_SENTENCE, WordCorpus, alias_table, count_words, encode_words


def test_the_worked_example() -> None:
    corpus = WordCorpus(["the cat saw", "the dog saw"])
    vocabulary = count_words(corpus, min_count=2)
    assert vocabulary.words == ["saw", "the"]  # equal counts: by the word
    assert vocabulary.counts.tolist() == [2, 2]
    assert vocabulary.n_seen == 6
    assert encode_words(corpus, vocabulary).tolist() == [1, 0, END, 1, 0, END]


def test_words_by_falling_count() -> None:
    vocabulary = count_words(WordCorpus(["b a b c b a", "d"]), min_count=1)
    assert list(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True)) == [
        ("b", 3),
        ("a", 2),
        ("c", 1),
        ("d", 1),
    ]


def test_a_long_line_is_cut_into_sentences() -> None:
    corpus = WordCorpus([" ".join(["a", "b"] * MAX_SENTENCE)])
    ids = encode_words(corpus, count_words(corpus, 1))
    assert np.flatnonzero(ids == END).tolist() == [MAX_SENTENCE, 2 * MAX_SENTENCE + 1]


def test_files_and_folders_and_lists_give_the_same(tmp_path: Path) -> None:
    lines = ["one two three", "", "  two  three\t", "three"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "all.txt").write_text("\n".join(lines))
    (tmp_path / "folder" / "a.txt").write_text("\n".join(lines[:2]))
    (tmp_path / "folder" / "b.txt").write_text("\r\n".join(lines[2:]))
    expected = [["one", "two", "three"], ["two", "three"], ["three"]]
    for source in (lines, ["\n".join(lines)], tmp_path / "all.txt", str(tmp_path / "folder")):
        corpus = WordCorpus(source)
        assert list(corpus) == expected
        assert list(corpus) == expected  # again


def test_a_line_without_end_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "BLOCK", 50)
    text = " ".join(f"word{number}" for number in range(500))
    (tmp_path / "line.txt").write_text(text)
    assert [word for sentence in WordCorpus(tmp_path / "line.txt") for word in sentence] == text.split()
    (tmp_path / "chinese.txt").write_text("知行合一" * 100, encoding="utf-8")
    assert sum(map(len, WordCorpus(tmp_path / "chinese.txt", "characters"))) == 400


def test_numbers_beyond_the_limit_go_to_a_file(tmp_path: Path) -> None:
    corpus = WordCorpus([f"{number % 7} {number % 5} x" for number in range(3000)])
    vocabulary = count_words(corpus, 1)
    in_memory, mapped = encode_words(corpus, vocabulary), encode_words(corpus, vocabulary, in_memory=100)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(in_memory, mapped)


def test_counting_forgets_the_rarest() -> None:
    lines = ["often " * 5 + f"rare{number}" for number in range(3000)]
    vocabulary = count_words(WordCorpus(lines), min_count=1, most_words=1000)
    assert vocabulary.words[0] == "often"
    assert vocabulary.counts[0] == 15_000
    assert len(vocabulary) <= 1000


def test_characters() -> None:
    assert list(WordCorpus(["知行 GPT2, 合一。"], "characters")) == [["知", "行", "GPT2", ",", "合", "一", "。"]]


def test_rjieba_words() -> None:
    pytest.importorskip("rjieba")
    sentence = next(iter(WordCorpus(["我们 中出了一个叛徒"], "rjieba")))
    assert "".join(sentence) == "我们中出了一个叛徒"
    assert "我们" in sentence


def test_subsampling_and_noise_by_hand() -> None:
    vocabulary = count_words(WordCorpus(["a " * 81 + "b " * 16 + "c " * 3]), min_count=1)
    keep = vocabulary.keep_probabilities(0.01)
    assert keep[0] == pytest.approx(np.sqrt(0.01 / 0.81) + 0.01 / 0.81)
    assert keep[2] == pytest.approx(np.sqrt(0.01 / 0.03) + 0.01 / 0.03)
    assert vocabulary.keep_probabilities(0).tolist() == [1, 1, 1]
    noise = vocabulary.noise()
    assert noise[0] / noise[1] == pytest.approx(27 / 8)  # 81^(3/4) / 16^(3/4)
    assert noise.sum() == pytest.approx(1)


def test_the_alias_table_holds_the_probabilities() -> None:
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, 100, 1000):
        wanted = generator.random(size) ** 4
        wanted /= wanted.sum()
        share, other = alias_table(wanted)
        found = share / 2.0**32 / size
        np.add.at(found, other, (1 - share / 2.0**32) / size)
        np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    "lines, min_count, message",
    [
        ([], 1, "the text holds no words"),
        ([" ", "\n\t"], 1, "the text holds no words"),
        (["a b c"], 2, "no word is seen 2 times or more"),
        (["a a c"], 2, "only one word is seen 2 times or more"),
    ],
)
def test_a_text_without_enough_words_is_refused(lines: list[str], min_count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        count_words(WordCorpus(lines), min_count)


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such text"):
        WordCorpus(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match=re.escape("holds no .txt file")):
        WordCorpus(tmp_path)
    with pytest.raises(InputError, match="read only once"):
        WordCorpus(iter(["a"]))
    with pytest.raises(InputError, match="'letters' is not known"):
        WordCorpus(["a"], "letters")  # type: ignore[arg-type]
    (tmp_path / "latin.txt").write_bytes("Häuser".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        list(WordCorpus(tmp_path / "latin.txt"))
