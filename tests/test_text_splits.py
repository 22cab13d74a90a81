"""Held-out text: whole documents, the same ones each time, and none that the model has read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.recipe import DataSettings
from zhixing.text.readers import read_documents
from zhixing.text.splits import Split, TextList, cut_near, split_documents

SENTENCE = "The cat sat on the mat. "


def prose(seed: int, characters: int) -> str:
    """Text without repetition: random words in sentences and paragraphs."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(characters // 4)]
    sentences = [" ".join(words[i : i + 9]) + "." for i in range(0, len(words), 9)]
    return "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))[:characters]


def sides(split: Split) -> tuple[list[str], list[str]]:
    return list(split.train), list(split.heldout)


def check_report(split: Split) -> None:
    train, heldout = sides(split)
    report = split.report
    assert (report.train_documents, report.heldout_documents) == (len(train), len(heldout))
    assert (len(split.train), len(split.heldout)) == (len(train), len(heldout))
    assert (report.train_characters, report.heldout_characters) == (sum(map(len, train)), sum(map(len, heldout)))
    assert train
    assert heldout


def test_documents_stay_whole_and_the_share_is_kept() -> None:
    documents = [prose(i, 300) for i in range(200)]
    split = split_documents(TextList(documents), 0.05, seed=0)
    train, heldout = sides(split)
    check_report(split)
    assert len(heldout) == 10
    assert sorted(train + heldout) == sorted(documents)
    assert [d for d in documents if d in set(train)] == train  # the order stays
    assert split.report.method == "random"


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    documents = TextList(prose(i, 300) for i in range(100))
    first = list(split_documents(documents, 0.1, seed=7).heldout)
    assert first == list(split_documents(documents, 0.1, seed=7).heldout)
    assert first != list(split_documents(documents, 0.1, seed=8).heldout)


def test_a_split_is_two_values_and_can_be_read_twice() -> None:
    train, heldout = split_documents([prose(i, 300) for i in range(40)], 0.1, seed=0)
    assert list(train) == list(train)
    assert list(heldout) == list(heldout)


def test_of_one_text_the_end_is_held_out() -> None:
    chapters = [prose(i, 5_000) + "\n\n" for i in range(30)]
    split = split_documents(TextList(chapters, one_text=True), 0.05, seed=3)
    train, heldout = sides(split)
    check_report(split)
    whole = "".join(chapters)
    assert "".join(train) + "".join(heldout) == whole
    assert abs(len("".join(heldout)) / len(whole) - 0.05) < 0.02
    assert "".join(train).endswith("\n\n")
    assert split.report.method == "tail"


def test_one_document_is_cut_between_paragraphs() -> None:
    text = prose(0, 4_000)
    train, heldout = sides(split_documents([text], 0.25, seed=0))
    assert (len(train), len(heldout)) == (1, 1)
    assert train[0] + heldout[0] == text
    assert train[0].endswith("\n\n")
    assert abs(len(heldout[0]) - 1_000) < 200


def test_two_hundred_characters_are_enough_and_fewer_are_refused() -> None:
    text = (SENTENCE * 20)[:200]
    train, heldout = sides(split_documents([text], 0.05, seed=0))
    assert train[0] + heldout[0] == text
    assert heldout[0]
    assert train[0].endswith(" ")
    for few in ([text[:199]], [], ["a", "b"]):
        with pytest.raises(InputError, match="too little text") as caught:
            split_documents(few, 0.05, seed=0)
        assert caught.value.mend
    with pytest.raises(InputError, match="199 characters"):
        split_documents([text[:199]], 0.05, seed=0)


def test_three_small_files(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(prose(i, 2_000))
    documents = read_documents(str(tmp_path), DataSettings())
    split = split_documents(documents, 0.05, seed=0)
    check_report(split)
    assert len(list(split.train)) == 2


def test_of_few_documents_the_one_nearest_the_share_is_held_out() -> None:
    documents = [prose(0, 9_000), prose(1, 30), prose(2, 600), prose(3, 2_500)]
    assert list(split_documents(documents, 0.05, seed=0).heldout) == [documents[2]]  # 30 characters tell nothing


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_impossible_shares_are_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="heldout_fraction"):
        split_documents([prose(0, 900)], fraction, seed=0)


@pytest.mark.parametrize("one_text", [False, True])
def test_what_repeats_goes_to_one_side(one_text: bool) -> None:
    documents = [prose(i, 400) for i in range(60)]
    copies = [documents[i] for i in (1, 5, 9)]
    nearly = [documents[i].replace("e", "o", 2) for i in (2, 6, 10)]
    split = split_documents(TextList(documents + copies + nearly, one_text=one_text), 0.2, seed=1)
    train, heldout = sides(split)
    check_report(split)
    assert not set(train) & set(heldout)
    for i, near in zip((2, 6, 10), nearly, strict=True):
        assert (documents[i] in train) == (near in train)
    if one_text:  # the copies stand at the end, their originals at the beginning
        assert (split.report.leaked_exact, split.report.leaked_near) == (3, 3)
        assert "6 repeated ones moved to training" in split.report.summary()
    else:
        assert split.report.leaked_exact + split.report.leaked_near > 0


def test_documents_that_all_repeat_are_still_split() -> None:
    for one_text in (False, True):
        check_report(split_documents(TextList([prose(0, 300)] * 8, one_text=one_text), 0.25, seed=0))


def test_groups_are_not_torn_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f'"{prose(i, 200)}",{i // 4}' for i in range(100)]
    path.write_text("text,group\n" + "\n".join(lines) + "\n")
    split = split_documents(read_documents(str(path), DataSettings()), 0.1, seed=0)
    check_report(split)
    groups = [{record.group for record in side.records()} for side in (split.train, split.heldout)]
    assert not groups[0] & groups[1]
    assert len(groups[1]) == 2
    assert split.report.heldout_documents == 8


def test_austen_ends_with_the_last_twentieth() -> None:
    documents = read_documents("austen", DataSettings())
    split = split_documents(documents, 0.05, seed=0, near=False)
    whole, held = "".join(documents), "".join(split.heldout)
    assert whole.endswith(held)
    assert abs(len(held) / len(whole) - 0.05) < 0.0005
    assert "".join(split.train) + held == whole
    assert held[0].isupper() or held[0] == '"'
    assert whole[: -len(held)].endswith("\n\n")


@pytest.mark.parametrize(
    ("text", "point", "ends"),
    [
        ("one. two\n\nthree. four", 8, "\n\n"),
        ("one. two\nthree. four", 8, "\n"),
        ("one. two three four", 9, ". "),
        ("子曰。學而時習之。不亦說乎", 6, "。"),
        ("onetwothree fourfive", 9, " "),
        ("onetwothreefourfive", 9, "r"),
    ],
)
def test_the_cut_is_at_the_best_place_near(text: str, point: int, ends: str) -> None:
    assert text[: cut_near(text, point, 20, low=1, high=len(text) - 1)].endswith(ends)


TEXTS = st.lists(st.text(alphabet="ab .\n。", min_size=1, max_size=120), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.floats(0.01, 0.9), st.booleans())
def test_any_texts_are_split_without_loss(texts: list[str], fraction: float, one_text: bool) -> None:
    if sum(map(len, texts)) < 200:
        return
    split = split_documents(TextList(texts, one_text=one_text), fraction, seed=0)
    check_report(split)
    train, heldout = sides(split)
    assert sorted("".join(train + heldout)) == sorted("".join(texts))
    if len(texts) > 1 and not one_text:
        assert sorted(train + heldout) == sorted(texts)
