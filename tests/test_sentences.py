"""Splitting into sentences: a table of English and Chinese cases, and that no text is ever lost."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.text import sentences
from zhixing.text.sentences import sentence_spans, split_sentences

# sentences divided by |, which stands for a blank where the text has one
ENGLISH = [
    "Hello there.| How are you?| Fine!",
    "It costs 3.14 dollars.| See example.com for more.",
    "Mr. Smith met Dr. Jones and Prof. Li.| They talked.",
    "He lives in St. Petersburg.| She does not.",
    "Cats, e.g. tabbies, sleep.| Dogs, i.e. hounds, do not.",
    "See Fig. 3 and No. 5 on pp. 7 to 9.| Then stop.",
    "Is it?| No.| He left.",
    "On Jan. 5 it rained.| In Feb. it did not.",
    "It ended in Oct.| The rest followed.",
    "The U.S. Army came.| They left the U.S.| The end.",
    "J. R. R. Tolkien wrote it.| J. Smith did not.",
    "We ate at 5 p.m.| The food was good.",
    "We met at 5 p.m. Monday.",
    "Take a and b.| Chris agrees.",
    "Apple Inc. CEO Tim Cook spoke.| He left Apple Inc.| It fell.",
    "Smith et al. Wrote that.",
    'He said, "Stop."| Then he left.',
    '"Stop!" he said.| "Why?"| "Because."',
    "“Stop!” he said.| “Why?” She knew.".replace(" She", "| She"),
    "'Go.'| They went.",
    "(It rained.)| We stayed [inside.]| Good.",
    "Wait... what?| Well...| Then go.",
    "Really?!| Yes!!!| Good.",
    "1. First point.| 2. Second point.",
    "A. One.| So did I.| He too.",
    "Sales rose.| iPad sales fell.",
    "It is Python 3.| Next.",
    '"Go.| I stay." He left.'.replace(" He", "| He"),
    '5" wide.| "So?"| Yes.',
    "On Main St.| The end came.| St. Paul knew.",
    "As Smith et al.| The others wrote.",
    "One line\nand the next.| End.",
    "She said “no”\nand left—\nat once.| End.",
    "“What?”—he asked.| “No!”",
    "A title\n|\nThe text.",
    "no mark at the end",
    "Is it... Yes".replace("... ", "...| "),
    "What?| 42 of them.",
    "Go to U.S.A. Today".replace("Today", "Bases"),
    "¿Qué?| ¡No!| Sí.",
    "यह है। | वह था।".replace("। | ", "।| "),
]
CHINESE = [
    "你好。|我很好！|你呢？",
    "他说：“好！”|然后走了。",
    "他说：“好！”，然后走了。",
    "“你好。”|“再见。”",
    "（他来了。）|然后走了。",
    "他说“好！”。|完了。",
    "《你好！李焕英》很好看。|真的。",
    "《你好，李焕英！》很好看。",
    "他读《你好。|然后走了。",
    '他说："好。"|"走。"|完。',
    '屏幕5"大。|\n他说。|"好。"',
    '他说："好。"|\n他走。|"去。"',
    '屏幕5"大|\n他说。|"好。"',
    "《书》好！|《书》坏",
    '他说："好。|我走。"|然后他说："走。"',
    "什么？！|真的！！|好。",
    "我……我不知道。|好吧",
    "“我不知道……”|他走了。",
    "“我不知道……”|“走吧。”",
    "价格是3.5元。|涨了１．５倍。",
    "访问example.com看看。|好",
    "我来了.|你好!|他也来了",
    "你好!|他来了?|走了",
    "他用iPhone。|GPT-4.5很好。|对。",
    "标题\n|正文第一句。|第二句。",
    "第一段。\n|\n　　第二段。",
    "「行く。」と言った。|「はい。」|彼は来た。",
    '他说："好。"|然后他说："走。"',
    "他说：『好。』|走了。",
    "Mr. Li说好。|He left.| 他走了。",
    "一、苹果；二、梨。|三",
    "没有标点",
    "他（王先生。）来了。|走了。",
    "他来了（真的来了。）。|走了。",
]


@pytest.mark.parametrize("marked", ENGLISH + CHINESE)
def test_table(marked: str) -> None:
    assert split_sentences(marked.replace("|", "")) == [piece.strip() for piece in marked.split("|") if piece.strip()]


def test_examples_in_the_docstrings() -> None:
    found = doctest.testmod(sentences)
    assert found.attempted >= 3 and found.failed == 0


@pytest.mark.parametrize(
    "text, found",
    [("", []), (" \n\t\u3000", []), (".", ["."]), ("  a  ", ["a"]), ("\n\n。\n", ["。"]), ("”。", ["”。"])],
)
def test_hardly_any_text(text: str, found: list[str]) -> None:
    assert split_sentences(text) == found


ODD = st.lists(
    st.sampled_from([*"ab AI1.。!！?？…\n\r\t\u3000\u2029\"'“”‘’()（）《》「」，,我と．|", "Mr", "e.g", "U.S", "\n\n", ". "]), max_size=60
).map("".join)  # fmt: skip


@given(ODD | st.text(max_size=60))
@settings(max_examples=600, deadline=None)
def test_no_text_is_lost(text: str) -> None:
    spans = sentence_spans(text)
    edges = [0, *(place for span in spans for place in span), len(text)]
    assert edges == sorted(edges)
    between = [text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
    pieces = split_sentences(text)
    assert all(not gap.strip() for gap in between)
    assert all(piece and piece == piece.strip() for piece in pieces)
    joined = between[0] + "".join(piece + gap for piece, gap in zip(pieces, between[1:], strict=True))
    assert joined == text


@given(
    st.lists(
        st.sampled_from(
            ["He left.", "Mr. Li paid 3.5 yuan.", "Why?", "“Go!”", "他走了。", "“好！”", "《好！》真好。", "No!"]
        ),
        max_size=8,
    )
)
def test_sentences_that_stand_alone_are_found_again(pieces: list[str]) -> None:
    assert split_sentences(" ".join(pieces)) == pieces
    assert split_sentences("\n\n".join(pieces)) == pieces


@pytest.mark.parametrize("piece", [". ", '."', "Mr. ", "\n", "”", "……", "a. b", '"', "。》", " "])
def test_a_long_text_of_odd_marks(piece: str) -> None:
    text = piece * 20_000  # minutes, if any step looked at all of what came before
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
