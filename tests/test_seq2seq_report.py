"""The report of a run of pairs: the right examples, warnings that hold, a page that is whole and harmless."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pages import Tags, words_of
from zhixing.errors import InputError
from zhixing.evaluation.rouge import score_summaries
from zhixing.evaluation.seq2seq_report import (
    Example,
    best_median_worst,
    render_seq2seq_report,
    text_scores,
    write_seq2seq_report,
)
from zhixing.evaluation.translation import score_translations

HOSTILE = [
    "<script>pwned=1</script>",
    "</dd></dl><img src=x onerror=pwned=1>",
    '" onmouseover="pwned=1" autofocus onfocus="pwned=1',
    "{{ 7*7 }}{% raw %}",
    "&lt;script&gt;",
    "\x1b[31m\x00\u202e\ud800 <b>",
    "标签<svg onload=pwned=1>",
]
PAIRS = [
    ("Open the file.", "打开文件。", "打开文件。"),
    ("Close the window.", "关闭窗口。", "关闭窗户。"),
    ("Delete all messages.", "删除所有消息。", "消息。"),
    ("Save the document.", "保存文档。", "Save the document."),
]
FACTS: dict[str, Any] = {
    "data": {
        "source": "gnome",
        "train": {"pairs": 38_211},
        "test": {"pairs": 120, "how": "held out: 120 of 38,331 pairs"},
        "counts": {"read": 45_000, "wrong_script": 3},
    },
    "model": {"family": "marian", "parameters": 7_412_224, "task": "translation"},
    "run": {
        "training_seconds": 843.2,
        "written_tokens_per_second": 2211,
        "padding": 0.0412,
        "sentences_per_second": 21.4,
        "peak_memory_bytes": 1_800_000_000,
    },
}
RECIPE = '[task]\nkind = "translation"\n[data]\nsource_language = "en"\ntarget_language = "zh"\n'
METRICS = [{"step": s, "loss": 1 / s, "learning_rate": 0.1} for s in range(1, 60)] + [{"step": 59, "eval_loss": 0.4}]


def _examples(n: int = 120) -> list[dict[str, str]]:
    rows = (PAIRS[i % len(PAIRS)] for i in range(n))
    return [{"source": s, "reference": r, "output": o, "group": f"file {i}"} for i, (s, r, o) in enumerate(rows)]


def _scores(examples: list[dict[str, str]]) -> dict[str, Any]:
    outputs, references, sources = ([row[key] for row in examples] for key in ("output", "reference", "source"))

    def measured(texts: list[str]) -> dict[str, Any]:
        return score_translations(texts, references, language="zh", sources=sources, resamples=50).to_dict()

    return {
        "model": measured(outputs),
        "baselines": {"copy": measured(sources), "translation memory": measured(outputs)},
    }


def _write(folder: Path, *, scores: Any = None, examples: Any = None, facts: Any = None, recipe: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    if examples is not None:
        (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    if facts is not None:
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    if recipe:
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gnome-en-zh"
    examples = _examples()
    _write(folder, scores=_scores(examples), examples=examples, facts=FACTS, recipe=RECIPE)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    return folder


def _score(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 500, "seed": 0}


# ---- examples


def _scored(*scores: float) -> list[Example]:
    return [Example(row, "", "", "", "", score) for row, score in enumerate(scores, 1)]


def test_best_median_and_worst() -> None:
    best, median, worst = best_median_worst(_scored(50, 90, 10, 90, 30, 70, 20), most=2)
    assert [e.row for e in best] == [2, 4]  # equal ones in the order of the file
    assert [e.row for e in median] == [6, 1]
    assert [e.score for e in worst] == [10, 20]
    for n in range(40):
        kinds = best_median_worst(_scored(*(7 * k % 5 for k in range(n))))
        rows = [e.row for kind in kinds for e in kind]
        assert len(rows) == len(set(rows)) == min(n, 30) - (n % 3 if 3 <= n < 30 else 0)
    assert [[e.row for e in kind] for kind in best_median_worst(_scored(1, 1, 1))] == [[1], [2], [3]]


def test_each_text_has_its_own_score() -> None:
    examples = [Example(i, s, r, o, "") for i, (s, r, o) in enumerate(PAIRS)]
    same, one_off, short, copied = text_scores(examples, "translation")
    assert same == 100 and 100 > max(one_off, short) > min(one_off, short) > copied == 0
    summaries = [Example(0, "", "a b c d", said, "") for said in ("a b c d", "a x c", "", "y")]
    assert text_scores(summaries, "summarization") == pytest.approx([1, 4 / 7, 0, 0])


def test_the_best_and_the_worst_are_shown(tmp_path: Path) -> None:
    examples = [{"source": f"s{k}", "reference": f"好{k}", "output": f"好{k}", "group": ""} for k in range(9)]
    examples[4]["output"] = "全错"
    page = render_seq2seq_report(_write(tmp_path / "run", examples=examples, facts=FACTS))
    worst = page[page.index("The worst") : page.index("What next")]
    first = worst[worst.index("<li>") : worst.index("</li>")]
    assert "pair 5" in first and "全错" in first and ">0.0<" in first
    best = page[page.index("The best") : page.index("In the middle")]
    assert re.findall(r"pair (\d)", best) == ["1", "2", "3"]
    nine = [*examples[:4], *examples[5:]]
    assert "100.0" in words_of(render_seq2seq_report(_write(tmp_path / "run", examples=nine, facts=FACTS)))


# ---- the page


def test_the_page_says_what_there_is(run: Path) -> None:
    page = write_seq2seq_report(run).read_text(encoding="utf-8")
    words = words_of(page)
    scores = json.loads((run / "scores.json").read_text())["model"]
    for piece in (
        "gnome-en-zh",
        "A Marian model that translates English into Chinese, 7.41M parameters, trained on 38,211 pairs in 14 min 03 s.",
        "把英语译成中文的 Marian 模型，7.41M 参数",
        f"{scores['bleu']['value']:.1f}",
        f"{scores['chrf']['low']:.1f} – {scores['chrf']['high']:.1f}",
        "translation of the nearest training text", "the source, copied", "TER (lower is better)",
        scores["signatures"]["bleu"], scores["signatures"]["ter"], "bootstrap over 120 pairs, seed 0",
        "Held-out loss is lowest", "nats a written token", "Learning rate", "The best", "In the middle", "The worst",
        "held out: 120 of 38,331 pairs", "划分方式", "4.1%", "texts written per second", "21.4", "1.8 GB", "Recipe",
        f"zhixing translate {run} 'Open the file.'", f"zhixing evaluate {run} my-pairs.tsv",
        "of the outputs are the source unchanged; of the references 0.0%.", "A baseline is as good or better",
        "25.0%",
    ):  # fmt: skip
        assert piece in words, piece
    assert "test pairs only" not in words and "group" not in words and "samples.jsonl" not in words
    assert page == render_seq2seq_report(run)
    dd = [attributes for tag, attributes in Tags(page).seen if tag == "dd" and "lang" in attributes]
    assert {attributes["lang"] for attributes in dd} == {"en", "zh"}


def test_a_summarizer_has_its_own(tmp_path: Path) -> None:
    examples = [
        {
            "source": "a long text",
            "reference": "the cat sat here",
            "output": "the cat sat here now and then",
            "group": "",
        },
        {"source": "another one", "reference": "a dog barks", "output": "a dog barks loud " * 3, "group": ""},
    ] * 60
    outputs, references = ([row[key] for row in examples] for key in ("output", "reference"))
    measured = score_summaries(outputs, references, resamples=50).to_dict()
    scores = {"model": measured, "baselines": {"lead sentence": measured | {"rougeL": _score(0.1)}}}
    facts = {**FACTS, "model": {"family": "t5", "task": "summarization"}}
    folder = _write(tmp_path / "news", scores=scores, examples=examples, facts=facts)
    words = words_of(render_seq2seq_report(folder))
    for piece in (
        "A T5 model that says a text in fewer words", "写摘要的 T5 模型", "ROUGE-L", "ROUGE-1", "ROUGE-2 recall",
        f"{measured['rougeL']['value']:.3f}", "the first sentence", "0.100", "zhixing summarize", "longer than the references",
        "50.0% of the outputs repeat themselves; of the references 0.0%.", "(1: word for word the same)",
    ):  # fmt: skip
        assert piece in words, piece
    assert "zhixing translate" not in words and "BLEU" not in words


@pytest.mark.parametrize(
    ("model", "baselines", "said"),
    [
        ({"length_ratio": _score(0.71, 0.68, 0.75)}, {}, ["shorter than the references", "0.71 times"]),
        ({"length_ratio": _score(1.3, 0.9, 1.6)}, {}, []),  # one may be the truth
        ({"length_ratio": _score(1.05, 1.04, 1.06)}, {}, []),
        ({"repeated": _score(0.05, 0.03, 0.08)}, {}, ["5.0% of the outputs repeat themselves; of the references 1.0%"]),
        ({"repeated": _score(0.02, 0.0, 0.04)}, {}, []),
        ({"untranslated": _score(0.2, 0.1, 0.3)}, {}, ["20.0% of the outputs are the source unchanged"]),
        (
            {"bleu": _score(20, 18, 22)},
            {"copy": {"bleu": _score(21)}},
            ["as good or better", "BLEU 21.0", "model 20.0"],
        ),
        ({"bleu": _score(20, 18, 22)}, {"copy": {"bleu": _score(18.5)}}, ["Not surely better"]),
        ({"bleu": _score(20, 18, 22)}, {"copy": {"bleu": _score(17)}}, []),
        ({"n": 42}, {}, ["42 test pairs only"]),
        ({"n": 1}, {}, ["1 test pair only"]),
    ],
)
def test_warnings(tmp_path: Path, model: dict[str, Any], baselines: dict[str, Any], said: list[str]) -> None:
    scores = {"model": {"n": 500, "seed": 0, "bleu": _score(30, 29, 31), "repeated_references": 0.01, **model}}
    page = render_seq2seq_report(_write(tmp_path, scores=scores | {"baselines": baselines}, facts=FACTS))
    assert page.count('class="aside warning"') == bool(said)
    words = words_of(page)
    for piece in said:
        assert piece in words, piece


def test_few_groups_are_told(tmp_path: Path) -> None:
    examples = [row | {"group": f"file {i % 4}"} for i, row in enumerate(_examples())]
    assert "come from 4 groups" in words_of(render_seq2seq_report(_write(tmp_path, examples=examples, facts=FACTS)))
    examples[7]["group"] = ""  # a pair that belongs to none
    assert "come from" not in words_of(render_seq2seq_report(_write(tmp_path, examples=examples, facts=FACTS)))


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        render_seq2seq_report(tmp_path / "nothing")
    with pytest.raises(InputError):
        render_seq2seq_report(tmp_path)
    words = words_of(render_seq2seq_report(_write(tmp_path, facts=FACTS)))
    assert "has not been scored" in words and "No loss has been recorded" in words and "What it writes" not in words
    assert "Left out: examples.jsonl is not there" in words and "Left out: metrics.jsonl is not there" in words
    scores = {"model": {"bleu": _score(20)}, "baselines": {"copy": None, "odd": {"bleu": "high"}, "x": 3}}
    words = words_of(render_seq2seq_report(_write(tmp_path, scores=scores, examples=_examples(2))))
    assert "20.0" in words and "The best" in words and "The worst" not in words and "2 test pairs only" in words
    for broken in ([], {"model": []}, {"model": {"bleu": {"value": "x"}, "n": [1], "ter": None}, "baselines": []}, 7):
        render_seq2seq_report(_write(tmp_path, scores=broken))
    (tmp_path / "scores.json").write_text('{"model": {"bleu": {"value": NaN}}')
    (tmp_path / "examples.jsonl").write_bytes(b'{"source": "a"}\n\xff\n[1]\n' + json.dumps(_examples(1)[0]).encode())
    words = words_of(render_seq2seq_report(tmp_path))
    assert "examples.jsonl: 3 of 4 lines hold no pair" in words and "pair 4" in words


def test_a_source_that_looks_like_an_option_is_not_pasted(tmp_path: Path) -> None:
    examples = [{"source": s, "reference": "r", "output": "o", "group": ""} for s in ("--help me", " ", "it's; rm -rf")]
    words = words_of(render_seq2seq_report(_write(tmp_path, examples=examples, facts=FACTS)))
    assert f"zhixing translate {tmp_path} 'it'\"'\"'s; rm -rf'" in words


def _hostile(folder: Path) -> Path:
    examples = [
        {"source": a, "reference": b, "output": c, "group": d}
        for a, b, c, d in zip(HOSTILE, HOSTILE[1:] + HOSTILE[:1], HOSTILE[2:] + HOSTILE[:2], HOSTILE, strict=True)
    ]
    row = {"bleu": _score(20), "signatures": dict.fromkeys(HOSTILE, HOSTILE[1])} | {text: _score(1) for text in HOSTILE}
    facts = {"model": {"family": HOSTILE[0]}, "data": {text: text for text in HOSTILE}, HOSTILE[2]: {"a": HOSTILE[4]}}
    recipe = f"[data]\nsource_language = {json.dumps(HOSTILE[2])}\ntarget_language = 'zh\" onload=pwned=1'\n"
    scores = {"model": row, "baselines": {text: {"bleu": _score(5)} for text in HOSTILE}}
    return _write(folder, scores=scores, examples=examples, facts=facts, recipe=recipe)


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    page = render_seq2seq_report(_hostile(tmp_path))
    tags = Tags(page)
    assert {tag for tag, _ in tags.seen} <= {
        "html", "head", "meta", "title", "style", "body", "input", "div", "header", "span", "h1", "p", "nav", "label",
        "main", "section", "h2", "h3", "b", "table", "caption", "tr", "th", "td", "thead", "tbody", "svg", "rect", "path",
        "dl", "dt", "dd", "i", "ol", "li", "br", "small", "details", "summary", "footer", "code", "pre",
    }  # fmt: skip
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert {str(attributes.get("lang")) for _, attributes in tags.seen} <= {"None", "en", "zh-Hans"}
    words = " ".join(tags.words)
    assert all(text in words for text in HOSTILE[:5])
    assert "\x1b" not in page and "\x00" not in page and "\u202e" not in page
    page.encode("utf-8")


# ---- a browser


@pytest.mark.browser
def test_hostile_text_in_a_browser(tmp_path: Path, browser: Any) -> None:
    path = write_seq2seq_report(_hostile(tmp_path))
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
    path.write_text(bare, encoding="utf-8")  # the escaping holds without the policy
    page = browser.new_page()
    requests, said = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(100)
    assert page.evaluate("typeof pwned") == "undefined" and (requests, said) == ([path.as_uri()], [])
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(run: Path, browser: Any, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    path = write_seq2seq_report(run)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width  # a wide table scrolls inside its frame
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgba(0, 0, 0, 0)"
    page.click("label[for=chinese]")
    assert page.is_visible("text=它写的文字") and not page.is_visible("text=What it writes")
    assert (requests, said) == ([path.as_uri()], [])
    page.close()
