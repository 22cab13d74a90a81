"""Questions to a folder: quoted word for word at the lines that are said, or declined."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import zhixing
from zhixing import cli
from zhixing.asking import ENOUGH, Answer, Docs, ask_docs, fuse, stem
from zhixing.embeddings import embed_texts
from zhixing.errors import InputError
from zhixing.interchange.model_directory import write_model_directory
from zhixing.models.bert import Bert, BertSettings
from zhixing.text.passages import LONGEST, cut_passages
from zhixing.tokens.tokenizer import train_tokenizer

ROOT = Path(__file__).parent.parent

# Written before the index was first tried, as a person would ask who has not read the pages; the page that answers.
ENGLISH = {
    "How can I train a chat model on my own conversations?": "docs/dialogue.md",
    "Which port does the server listen on by default?": "docs/serving.md",
    "Can I compare perplexity between two models with different tokenizers?": "docs/first-model.md",
    "How much text do I need to train a language model?": "docs/first-model.md",
    "How do I run the model in llama.cpp or ollama?": "docs/first-model.md",
    "Which file formats can I use for translation pairs?": "docs/translation.md",
    "How do I get word vectors for Chinese?": "docs/word-vectors.md",
    "Are the probabilities of a classifier calibrated?": "docs/classifiers.md",
    "What licence is zhixing under?": "README.md",
    "Does the server support HTTPS?": "docs/serving.md",
}
CHINESE = {
    "训练中断了怎么继续？": "docs/first-model.zh-CN.md",
    "怎样把模型部署成 OpenAI 兼容的服务？": "docs/serving.zh-CN.md",
    "历史太长超出上下文时会怎样？": "docs/dialogue.zh-CN.md",
    "怎么安装 zhixing？": "README.zh-CN.md",
    "怎样评价翻译的质量？": "docs/translation.zh-CN.md",
}
ABOUT_SOMETHING_ELSE = (
    "What is the capital of France?",
    "How do I bake sourdough bread?",
    "Who won the world cup in 1998?",
    "How tall is Mount Everest?",
    "Which vaccines do I need for a trip to Kenya?",
    "今天北京天气怎么样？",
    "红烧肉怎么做？",
    "怎样申请护照？",
)


@pytest.fixture(scope="module", name="ours")
def fixture_ours(tmp_path_factory: pytest.TempPathFactory) -> Docs:
    """The pages of zhixing that a person reads."""
    folder = tmp_path_factory.mktemp("ours")
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("README.md", "README.zh-CN.md"):
        shutil.copy(ROOT / name, folder)
    return ask_docs(folder)


TEA = """\
---
[home](index.md) · [中文](tea.zh.md)

# Tea

Green tea is brewed at 80
degrees. Black tea likes boiling water! Dr. Li
adds no milk.

## Storing

Keep it dry:

```sh
tin open --tea
tin close

tin shake
```

| kind | how long |
|---|---|
| green | a year |
| black | three years |

* Never in the sun.
* Not beside
  coffee.

Pu-erh
------

It ages well.
"""
TEA_ZH = "# 茶\n\n绿茶用八十度的水冲泡，\n红茶用开水。李医生不加奶。\n\n## 保存\n\n茶叶要放在干燥的地方，不要晒太阳。\n"


@pytest.fixture(name="tea")
def fixture_tea(tmp_path: Path) -> Path:
    folder = tmp_path / "tea"
    (folder / "more").mkdir(parents=True)
    (folder / "tea.md").write_text(TEA, encoding="utf-8")
    (folder / "more" / "tea.zh.md").write_bytes(TEA_ZH.replace("\n", "\r\n").encode("utf-8-sig"))
    (folder / "novel.txt").write_text(
        "A preface about nothing.\n\nChapter 1\n\nThe captain kept his parrot\nin the cabin. It spoke Portuguese.\n"
        "\n第二章\n\n船长的鹦鹉会说葡萄牙语。\n它住在船舱里。\n",
        encoding="utf-8",
    )
    (folder / "table.csv").write_text("text\nnot a document\n", encoding="utf-8")
    return folder


# ---- cutting


def test_markdown_is_cut_into_what_can_be_quoted() -> None:
    passages = cut_passages(TEA, markdown=True)
    assert [(p.headings, [(u.text, u.first_line, u.last_line) for u in p.units]) for p in passages if p.headings] == [
        (("Tea",), [
            ("Green tea is brewed at 80\ndegrees.", 6, 7), ("Black tea likes boiling water!", 7, 7),
            ("Dr. Li\nadds no milk.", 7, 8),
        ]),
        (("Tea", "Storing"), [
            ("Keep it dry:", 12, 12), ("tin open --tea\ntin close", 15, 16), ("tin shake", 18, 18),
            ("| kind | how long |", 21, 21), ("| green | a year |", 23, 23), ("| black | three years |", 24, 24),
            ("* Never in the sun.", 26, 26), ("* Not beside\n  coffee.", 27, 28),
        ]),
        (("Tea", "Pu-erh"), [("It ages well.", 33, 33)]),
    ]  # fmt: skip
    assert not any("index.md" in p.text for p in passages)  # a line of links alone says nothing


def test_plain_text_has_chapters() -> None:
    passages = cut_passages("Before.\n\n第二章\n\n他说：“好。”\n她笑了。\n\nChapter 3 \n\nThe\nend", markdown=False)
    assert [(p.headings, [u.text for u in p.units]) for p in passages] == [
        ((), ["Before."]), (("第二章",), ["他说：“好。”", "她笑了。"]), (("Chapter 3",), ["The\nend"]),
    ]  # fmt: skip
    assert cut_passages("", markdown=False) == cut_passages("# Only\n\n## headings", markdown=True) == []


def test_long_paragraphs_are_cut_between_sentences() -> None:
    sentences = [f"Sentence {n} says {'very ' * (n % 7)}little about the sea." for n in range(60)]
    for markdown in (True, False):
        passages = cut_passages(" ".join(sentences) + "\n\nAfter.", markdown=markdown)
        assert len(passages) > 2
        assert [u.text for p in passages for u in p.units] == [*sentences, "After."]
        assert all(sum(len(u.text) for u in p.units) <= LONGEST for p in passages)
    long = "Very " * 400 + "long."
    assert [len(p.units) for p in cut_passages(f"Short. {long} Short.", markdown=True)] == [1, 1, 1]


def test_nothing_is_lost_of_our_own_pages() -> None:
    """Units are the file's lines, word for word; what is left out are headings, rules and fences."""
    for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        quoted = set[int]()
        for passage in cut_passages(text, markdown=True):
            for unit in passage.units:
                assert unit.text in "\n".join(lines[unit.first_line - 1 : unit.last_line])
                quoted |= set(range(unit.first_line, unit.last_line + 1))
        left = [line for number, line in enumerate(lines, 1) if number not in quoted and line.strip()]
        assert all(re.match(r" *(#|```|\||<!--|\[|!\[)", line) for line in left), (path, left)


# ---- answering


@pytest.mark.parametrize(
    ("question", "file", "lines", "text"),
    [
        ("How should I brew green tea?", "tea.md", (6, 7), "Green tea is brewed at 80\ndegrees."),
        ("does black tea keep for three years", "tea.md", (24, 24), "| black | three years |"),
        ("绿茶怎么冲泡？", "more/tea.zh.md", (3, 3), "绿茶用八十度的水冲泡，\n红茶用开水。"),
        ("Where did the captain keep the parrot?", "novel.txt", (5, 6), "The captain kept his parrot\nin the cabin."),
        ("鹦鹉会说什么语言？", "novel.txt", (10, 10), "船长的鹦鹉会说葡萄牙语。"),
    ],
)
def test_answers_are_quoted_with_their_place(
    tea: Path, question: str, file: str, lines: tuple[int, int], text: str
) -> None:
    answer = ask_docs(tea)(question)
    assert answer.found[0].file == file
    quote = next(q for q in answer.found[0].quotes if q.text == text)
    assert (quote.first_line, quote.last_line) == (lines[0], lines[0] + text.count("\n"))


def test_what_is_not_there_is_declined(tea: Path) -> None:
    ask = zhixing.ask_docs(tea)
    for question in (
        *ABOUT_SOMETHING_ELSE,
        "Which ministry regulates the price of green lettuce?",
        "how is it?",
        "???",
    ):
        answer = ask(question)
        assert answer.found == () and answer.text == "" and answer.nearest_share < ENOUGH, question


def test_a_share_by_hand(tmp_path: Path) -> None:
    """Three passages: a word of one weighs ln(1 + 2.5/1.5), of none ln(1 + 3.5/0.5); a pair as much as a word."""
    (tmp_path / "a.md").write_text("# A\n\nApples grow.\n\n# B\n\nPears grow.\n\n# C\n\n梨树长大。\n", encoding="utf-8")
    one, none = torch.log(torch.tensor([1 + 2.5 / 1.5, 8.0])).tolist()
    ask = ask_docs(tmp_path)
    assert ask("apples?").nearest_share == pytest.approx(1)
    assert ask("apples, kiwis?").nearest_share == pytest.approx(one / (one + none))
    assert ask("梨树, kiwis?").nearest_share == pytest.approx(one / (one + none))
    assert ask("Which apples and which pears grow?", n=1).found[0].headings == ("A",)  # of equals the first


def test_ranks_are_fused_by_hand() -> None:
    assert fuse([[4, 2, 9], [2, 9, 4]]) == [2, 4, 9]  # 1/62 + 1/61 > 1/61 + 1/63 > 1/63 + 1/62
    assert fuse([[1, 0]]) == [1, 0] and fuse([[], [3]]) == [3]
    assert stem("classes") == "class" and stem("stories") == "story" and stem("bus") == "bus" and stem("绿茶") == "绿茶"


def test_an_embedder_ranks_too(tea: Path, tmp_path: Path) -> None:
    """The order is that of the two ranks fused, with the vectors that embed_texts gives."""
    tokenizer = train_tokenizer([TEA, TEA_ZH] * 3, "wordpiece", 300)
    settings = BertSettings(tokenizer.vocab_size, d_model=24, n_layers=1, n_heads=3, d_ff=40, max_len=200)
    model = Bert(settings, torch.Generator().manual_seed(3))
    write_model_directory(tmp_path / "bert", model.eval(), tokenizer)
    question = "tea?"  # in the headings of three passages
    plain, both = ask_docs(tea), ask_docs(tea, embedder=tmp_path / "bert")
    texts = ["\n".join([*p.headings, p.text]) for p in both.passages]
    cosines = embed_texts(tmp_path / "bert", texts).vectors @ embed_texts(tmp_path / "bert", [question]).vectors[0]
    near = torch.argsort(-cosines, stable=True).tolist()

    def names(answer: Answer) -> list[tuple[str, ...]]:
        return [found.headings for found in answer.found]

    words = [i for name in names(plain(question, n=99)) for i, p in enumerate(plain.passages) if p.headings == name]
    assert len(words) == 3
    expected = [i for i in fuse([words, near]) if i in words]
    assert expected != words
    assert names(both(question, n=99)) == [both.passages[i].headings for i in expected]
    assert both("How do I bake sourdough bread?").found == ()  # something is near to whatever is asked


def test_our_own_pages(ours: Docs) -> None:
    """Of the ten English questions eight, of the five Chinese ones two are answered from the page named."""
    right = {}
    for name, questions in (("en", ENGLISH), ("zh", CHINESE)):
        answers = {question: ours(question) for question in questions}
        right[name] = sum(bool(a.found) and a.found[0].file == questions[q] for q, a in answers.items())
        for answer in answers.values():
            for found in answer.found:
                assert (found.share >= ENOUGH) and found.quotes
    assert right["en"] >= 8 and right["zh"] >= 2, right
    declined = [question for question in ABOUT_SOMETHING_ELSE if not ours(question).found]
    assert len(declined) == len(ABOUT_SOMETHING_ELSE)


# ---- the command line, and what cannot be


def test_the_command(tea: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", str(tea), "How should I brew green tea?", "--n", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown == "tea.md:6 · Tea\n  Green tea is brewed at 80\n  degrees.\n"
    assert cli.main(["ask", str(tea), "How should I brew green tea?", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answered"] and said["found"][0]["headings"] == ["Tea"]
    quote = {"text": "Green tea is brewed at 80\ndegrees.", "first_line": 6, "last_line": 7}
    assert said["found"][0]["quotes"] == [quote]
    assert cli.main(["ask", str(tea), "Who won the world cup?"]) == 0
    assert "The documents do not say" in capsys.readouterr().out
    assert cli.main(["ask", str(tea / "novel.txt"), "Portuguese?"]) == 0
    assert capsys.readouterr().out.startswith("novel.txt:6 · Chapter 1\n  It spoke Portuguese.")


def test_bad_folders_and_questions(tea: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("text\na\n", encoding="utf-8")
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.md").write_text("\n\n", encoding="utf-8")
    for folder, what in (
        ("nowhere", "there is no"), ("tables", "there are no documents"), ("blank", "there is no text"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what):
            ask_docs(tmp_path / folder)
    (tmp_path / "blank" / "b.txt").write_bytes("茶".encode("gbk"))
    with pytest.raises(InputError, match="UTF-8"):
        ask_docs(tmp_path / "blank")
    for question, n in ((" \n", 3), ("tea", 0)):
        with pytest.raises(InputError):
            ask_docs(tea)(question, n=n)
    assert cli.main(["ask", str(tmp_path / "nowhere"), "a?"]) == 2
    assert "there is no" in capsys.readouterr().err
