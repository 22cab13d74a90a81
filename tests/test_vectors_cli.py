"""`zhixing vectors` and `zhixing embed`, through the real command line, on small real text."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from zhixing import cli
from zhixing.interchange.model_directory import write_model_directory
from zhixing.interchange.word_vector_files import read_fasttext, read_vectors
from zhixing.models.bert import Bert, BertSettings
from zhixing.tokens.tokenizer import train_tokenizer
from zhixing.word_vectors import PlainText, load_vectors, read_word_sets, train_vectors


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Command = Callable[..., Answer]

SMALL = ("--epochs", "1", "--dimension", "32", "--threads", "2")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`zhixing ARGUMENTS` in this process; `stdin` are the bytes it can read."""

    def run(*arguments: str, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = cli.main(arguments)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory, english_text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(english_text[:400_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, novel: Path) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "novel"
    train_vectors(str(novel), out=out, epochs=1, dimension=32, threads=2)
    return out


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory, novel: Path) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "subwords"
    train_vectors(str(novel), out=out, algorithm="fasttext", buckets=2000, epochs=1, dimension=32, threads=2)
    return out


# ---- train ----------------------------------------------------------------------------------------------------------


def test_plain_text() -> None:
    documents = ['"Well," said Mr. Darcy,\n_very_ well-bred; it\'s 42!', "知行，GPT2。"]
    assert list(PlainText(documents)) == ["well said mr darcy very well-bred it's 42", "知行 gpt2"]


@pytest.mark.parametrize("algorithm", ["skipgram", "cbow", "glove", "fasttext"])
def test_train_writes_a_folder_that_others_read(command: Command, novel: Path, tmp_path: Path, algorithm: str) -> None:
    out = tmp_path / "made"
    more = ("--buckets", "2000") if algorithm == "fasttext" else ()
    answer = command("vectors", "train", str(novel), "--out", str(out), "--algorithm", algorithm, *SMALL, *more)
    assert (answer.code, answer.out) == (0, f"{out}\n")
    assert f"next:  zhixing vectors similar {out}" in answer.err
    names = {path.name for path in out.iterdir()}
    matrix = "fasttext.bin" if algorithm == "fasttext" else "vectors.bin"
    assert names == {matrix, "vocab.txt", "settings.json", "README.md", "MANIFEST.json"}
    assert not (tmp_path / "made.unfinished").exists()
    facts = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert facts["settings"]["algorithm"] == algorithm
    assert facts["facts"]["words_of_text"] > 60_000
    keyed = load_vectors(out)
    assert (len(keyed), keyed.dimension) == (facts["words"], 32)
    assert keyed.counts is not None and (np.diff(keyed.counts) <= 0).all()
    assert "the" in keyed and "The" not in keyed
    assert np.isfinite(keyed.vectors).all() and keyed.vectors.any()


def test_deterministic_training_repeats(command: Command, novel: Path, tmp_path: Path) -> None:
    files = []
    for number, threads in enumerate(("1", "2")):
        out = tmp_path / str(number)
        answer = command(
            "vectors", "train", str(novel), "--out", str(out), "--epochs", "1", "--dimension", "16", "--deterministic",
            "--threads", threads, "--seed", "3",
        )  # fmt: skip
        assert answer.code == 0
        files.append((out / "vectors.bin").read_bytes())
    assert files[0] == files[1]


def test_resume_goes_on_after_an_interruption(
    command: Command, novel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zhixing.vectors import train as training

    arguments = ("vectors", "train", str(novel), "--out", str(tmp_path / "made"), "--deterministic", *SMALL)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "result", interrupted)
        stopped = command(*arguments)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert not (tmp_path / "made").exists()
    refused = command("vectors", "similar", str(tmp_path / "made"), "the")
    assert (refused.code, "has not ended" in refused.err) == (2, True)
    assert command(*arguments).code == 2  # a run is there already
    resumed = command(*arguments, "--resume")
    assert resumed.code == 0
    assert "going on from" in resumed.err
    whole = tmp_path / "whole"
    command("vectors", "train", str(novel), "--out", str(whole), "--deterministic", *SMALL)
    assert (tmp_path / "made" / "vectors.bin").read_bytes() == (whole / "vectors.bin").read_bytes()


def test_chinese_by_characters(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "tang"
    answer = command("vectors", "train", "tang", "--out", str(out), "--units", "characters", *SMALL)
    assert answer.code == 0
    keyed = load_vectors(out)
    assert "春" in keyed and "，" not in keyed
    found = command("vectors", "similar", str(out), "春", "--n", "3")
    assert found.code == 0
    assert all(len(line.split("\t")[1]) == 1 for line in found.out.splitlines())


# ---- looking --------------------------------------------------------------------------------------------------------


def test_similar(command: Command, vectors: Path) -> None:
    answer = command("vectors", "similar", str(vectors), "sister", "house", "-n", "4")
    assert (answer.code, len(answer.out.splitlines())) == (0, 8)
    assert "--- sister" in answer.err
    rows = command("vectors", "similar", str(vectors), "sister", "--json").out.splitlines()
    found = json.loads(rows[0])
    assert (len(rows), found["word"], len(found["similar"])) == (1, "sister", 10)
    assert "sister" not in found["similar"]


def test_an_unseen_word_by_its_ngrams(command: Command, subwords: Path) -> None:
    answer = command("vectors", "similar", str(subwords), "sisterlike")
    assert answer.code == 0
    assert "from its n-grams" in answer.err


def test_analogy(command: Command, vectors: Path) -> None:
    answer = command("vectors", "analogy", str(vectors), "brother", "he", "sister", "--method", "mul", "-n", "2")
    assert (answer.code, len(answer.out.splitlines())) == (0, 2)
    asked = json.loads(command("vectors", "analogy", str(vectors), "brother", "he", "sister", "--json").out)
    assert not {"brother", "he", "sister"} & set(asked["answers"])


def test_evaluate_on_files(command: Command, vectors: Path, tmp_path: Path) -> None:
    pairs, questions = tmp_path / "pairs.tsv", tmp_path / "questions.txt"
    pairs.write_text("sister\tbrother\t9\nhouse\tvery\t1\nmother\tfather\t8\nunseenword\tthe\t3\n", encoding="utf-8")
    questions.write_text(": family\nbrother he sister she\nbrother he sister unseenword\n", encoding="utf-8")
    both = ("--on", str(pairs), "--on", str(questions))
    answer = command("vectors", "evaluate", str(vectors), *both)
    assert answer.code == 0
    assert "3 of 4 pairs" in answer.out
    rows = [json.loads(line) for line in command("vectors", "evaluate", str(vectors), *both, "--json").out.splitlines()]
    assert (rows[0]["n"], rows[0]["n_pairs"], rows[0]["missing"]) == (3, 4, 1)
    assert (rows[1]["n"], rows[1]["missing"], list(rows[1]["sections"])) == (1, 1, ["family"])


def test_weat(command: Command, vectors: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('x = ["he", "him"]\ny = ["she", "her"]\na = ["brother"]\nb = ["sister", "unseenword"]\n')
    assert read_word_sets(own).names == ("x", "y", "a", "b")
    answer = command("vectors", "weat", str(vectors), "--sets", str(own), "--json")
    found = json.loads(answer.out)
    assert (answer.code, found["sizes"], found["missing"]) == (0, [2, 2, 1, 1], ["unseenword"])
    every = command("vectors", "weat", str(vectors))  # of a novel: insects have too few vectors, the others maybe
    assert "flowers-insects" in every.err
    assert "Traceback" not in every.err


def test_map(command: Command, vectors: Path, tmp_path: Path) -> None:
    picture = tmp_path / "map.svg"
    answer = command(
        "vectors", "map", str(vectors), str(picture), "--words", "family: mother sister", "--words", "a the"
    )
    assert (answer.code, answer.out) == (0, f"{picture}\n")
    drawn = picture.read_text(encoding="utf-8")
    assert all(f"<title>{word}</title>" in drawn for word in ("mother", "sister", "a", "the"))
    assert ">family</text>" in drawn
    assert command("vectors", "map", str(vectors), str(picture), "-n", "50").code == 0
    assert picture.read_text(encoding="utf-8").count("<title>") == 50


# ---- other tools ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["word2vec", "word2vec-text", "glove", "fasttext-vec", "fasttext-bin"])
def test_export_and_import_keep_the_vectors(command: Command, vectors: Path, tmp_path: Path, form: str) -> None:
    file, back = tmp_path / "file", tmp_path / "back"
    answer = command("vectors", "export", str(vectors), str(file), "--to", form)
    assert (answer.code, answer.out) == (0, f"{file}\n")
    ours, theirs = load_vectors(vectors), read_vectors(file)
    assert theirs.words == ours.words
    np.testing.assert_array_equal(theirs.vectors, ours.vectors)
    assert command("vectors", "import", str(file), str(back)).code == 0
    np.testing.assert_array_equal(load_vectors(back).vectors, ours.vectors)
    assert command("vectors", "similar", str(file), "sister").code == 0


def test_a_fasttext_model_stays_whole(command: Command, subwords: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "model.bin", tmp_path / "back"
    assert command("vectors", "export", str(subwords), str(file), "--to", "fasttext-bin").code == 0
    model = read_fasttext(file)
    assert model.outputs is not None and model.outputs.any()
    assert (model.arguments.buckets, model.arguments.epochs) == (2000, 1)
    assert command("vectors", "import", str(file), str(back)).code == 0
    assert (back / "fasttext.bin").read_bytes() == file.read_bytes()
    text = command("vectors", "export", str(subwords), str(tmp_path / "v.vec"), "--to", "fasttext-vec")
    assert "n-grams are left out" in text.err
    cut = command("vectors", "import", str(file), str(tmp_path / "cut"), "--limit", "5")
    assert (cut.code, "imported whole" in cut.err) == (2, True)


def test_import_of_the_first_words(command: Command, vectors: Path, tmp_path: Path) -> None:
    answer = command("vectors", "import", str(vectors / "vectors.bin"), str(tmp_path / "few"), "--limit", "100")
    assert answer.code == 0
    assert load_vectors(tmp_path / "few").words == load_vectors(vectors).words[:100]


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["similar", "V", "sistter"], "'sister'"),
        (["similar", "V", "Sister"], "'sister'"),
        (["analogy", "V", "brother", "he", "sistter"], "'sister'"),
        (["analogy", "V", "brother", "he", "sister", "--method", "div"], "add or mul"),
        (["similar", "V", "sister", "-n", "0"], "ask for 1 or more"),
        (["similar", "nowhere", "sister"], "there are no word vectors 'nowhere'"),
        (["train", "nowhere.txt", "--out", "O"], "nowhere.txt"),
        (["train", "NOVEL", "--out", "O", "--algorithm", "elmo"], "skipgram, cbow, glove or fasttext"),
        (["train", "NOVEL", "--out", "O", "--units", "letters"], "words, characters or rjieba"),
        (["train", "NOVEL", "--out", "O", "--min-count", "1000000"], "lower min_count"),
        (["train", "NOVEL", "--out", "O", "--dimension", "0"], "d_model = 0"),
        (["train", "NOVEL", "--out", "O", "--max-n", "4"], "skipgram has no setting max_n"),
        (["train", "NOVEL", "--out", "O", "--algorithm", "glove", "--negative", "5"], "glove has no setting negative"),
        (["train", "NOVEL", "--out", "O", "--resume"], "no training to go on with"),
        (["train", "NOVEL", "--out", "V"], "exists"),
        (["train", "wordsim", "--out", "O"], "no running text"),
        (["export", "V", "O", "--to", "json"], "word2vec, word2vec-text, glove"),
        (["export", "V", "V"], "exists"),
        (["import", "NOVEL", "O"], "NOVEL"),
        (["evaluate", "V", "--on", "nowhere"], "wordsim, simlex, analogies"),
        (["weat", "V", "--sets", "nowhere"], "flowers-insects"),
        (["map", "V", "O", "--words", "sister sistter"], "'sister'"),
    ],
)  # fmt: skip
def test_bad_input(
    command: Command, vectors: Path, novel: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {"V": str(vectors), "NOVEL": str(novel), "O": str(tmp_path / "out")}
    answer = command("vectors", *(places.get(argument, argument) for argument in arguments))
    assert (answer.code, answer.out) == (2, "")
    assert places.get(says, says) in answer.err
    assert "Traceback" not in answer.err
    assert not list(tmp_path.glob("out*"))


def test_a_flipped_byte_is_seen(command: Command, vectors: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in vectors.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "vectors.bin").read_bytes())
    data[-20] ^= 1
    (copy / "vectors.bin").write_bytes(data)
    answer = command("vectors", "similar", str(copy), "sister")
    assert (answer.code, "damaged" in answer.err) == (2, True)


# ---- sentences ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, english_text: str) -> Path:
    """A BERT that has learnt nothing."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer([english_text[:50_000]], "wordpiece", 500)
    torch.manual_seed(0)
    settings = BertSettings(vocab_size=tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_len=24)
    write_model_directory(folder, Bert(settings), tokenizer)
    return folder


def test_embed(command: Command, bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("My sister is well.\n\nA fine morning.\n", encoding="utf-8")
    table = tmp_path / "texts.csv"
    table.write_text("text\nA fine morning.\nA fine morning.\n", encoding="utf-8")
    answer = command(
        "embed", str(bert), "My sister is well.", str(file), str(table), "-", "--json", stdin=b"One\nTwo\n"
    )
    assert answer.code == 0
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["text"] for row in rows] == [
        "My sister is well.", "My sister is well.", "A fine morning.", "A fine morning.", "A fine morning.", "One", "Two",
    ]  # fmt: skip
    assert all(len(row["embedding"]) == 16 for row in rows)
    np.testing.assert_allclose(np.linalg.norm(rows[0]["embedding"]), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[0]["embedding"], rows[1]["embedding"], atol=1e-6)
    plain = command("embed", str(bert), "One").out
    np.testing.assert_allclose(json.loads(plain), rows[5]["embedding"], atol=1e-6)


def test_embed_says_what_was_cut(command: Command, bert: Path) -> None:
    answer = command("embed", str(bert), "a fine morning " * 30)
    assert (answer.code, "1 of 1 texts were longer" in answer.err) == (0, True)
    refused = command("embed", str(bert), "a fine morning " * 30, "--too-long", "error")
    assert refused.code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "x"], "give the folder of a bert, or minilm"),
        (["BERT", "-"], "there is no text"),
        (["BERT", "x", "--too-long", "never"], "error, truncate, split"),
    ],
)
def test_embed_refuses(command: Command, bert: Path, arguments: list[str], says: str) -> None:
    answer = command("embed", *(str(bert) if argument == "BERT" else argument for argument in arguments))
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
