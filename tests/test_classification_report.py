"""The report of a classifier: pictures that hold what they show, a page that is whole and harmless, words for a terminal."""

from __future__ import annotations

import io
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pages import Tags, words_of
from zhixing.evaluation.calibration import reliability, softmax
from zhixing.evaluation.classification import confusion_matrix
from zhixing.evaluation.classification_charts import (
    MOST_CLASSES,
    confused,
    confusion_picture,
    join_rare,
    reliability_picture,
    scatter_picture,
    shade,
)
from zhixing.evaluation.classification_report import (
    cut,
    render_classification_report,
    text_summary,
    warnings,
    write_classification_report,
)
from zhixing.evaluation.classification_result import ClassificationResult, result_scores
from zhixing.evaluation.comparison import compare, comparison_text
from zhixing.evaluation.terminal import columns, fits, pad, wants_colour

HOSTILE = [
    "<script>pwned=1</script>",
    "</text></svg><script>pwned=1</script>",
    "</title><img src=x onerror=pwned=1>",
    '" onmouseover="pwned=1" autofocus onfocus="pwned=1',
    "{{ 7*7 }}{% raw %}",
    "&lt;script&gt;",
    "\x1b[31m\x00\u202e\ud800 <b>",
    "标签<svg onload=pwned=1>",
]
FACTS = {
    "data": {
        "train": {"documents": 19_923}, "near_duplicates": 41, "exact_duplicates": 3, "too_long": 12,
        "on_too_long": "truncate",
    },
    "model": {"family": "bag", "parameters": 4_212_992},
    "run": {"training_seconds": 41.2},
}  # fmt: skip


def _result(n_classes: int = 3, n: int = 300, labels: list[str] | None = None, **changes: Any) -> ClassificationResult:
    generator = np.random.default_rng(n_classes)
    targets = generator.integers(0, n_classes, n)
    p = softmax(generator.normal(size=(n, n_classes)) * 1.5 + 2.5 * np.eye(n_classes)[targets])
    texts = [f"text number {i} 知行" for i in range(n)]
    given = {"texts": texts, "name": "a run", "facts": FACTS} | changes
    return ClassificationResult(labels or [f"class {k}" for k in range(n_classes)], targets, p.argmax(1), p, **given)


def _several(**changes: Any) -> ClassificationResult:
    generator = np.random.default_rng(0)
    p = generator.random((120, 4))
    targets = (generator.random((120, 4)) < p).astype(int)
    return ClassificationResult(
        ["a", "b", "c", "d"], targets, (p > 0.5).astype(int), p, problem_type="multi_label_classification", **changes
    )


def _graded(**changes: Any) -> ClassificationResult:
    generator = np.random.default_rng(0)
    y = generator.normal(size=120)
    return ClassificationResult([], y, y + generator.normal(size=120), problem_type="regression", **changes)


# ---- pictures


@pytest.mark.parametrize("n_classes", [1, 2, 8, 20, 52, 90])
def test_a_matrix_shows_every_text(n_classes: int) -> None:
    labels = [f"label {k}" if k % 3 else f"a rather long 中文标签 of the class {k}" for k in range(n_classes)]
    result = _result(n_classes, 40 * n_classes, labels=labels)
    matrix = confusion_matrix(result.targets, result.predictions, n_classes)
    svg = ElementTree.fromstring(confusion_picture(matrix, labels))
    cells = [group for group in svg.iter("g") if group.find("rect") is not None]
    shown, _ = join_rare(matrix, labels)
    assert len(shown) == min(n_classes, MOST_CLASSES) and len(cells) == (shown > 0).sum()
    told = [re.search(r": ([\d,]+) \(", str(cell.findtext("title"))) for cell in cells]
    assert sum(int(found[1].replace(",", "")) for found in told if found) == len(result.targets)
    hits = [cell for cell in cells if cell.find("rect[@class='hit']") is not None]
    assert len(hits) == (np.diag(shown) > 0).sum()
    numbers = [text for text in svg.iter("text") if "number" in str(text.get("class"))]
    assert bool(numbers) == (n_classes <= 20)
    width, height = float(str(svg.get("width"))), float(str(svg.get("height")))
    for rect in svg.iter("rect"):
        x, y, w, h = (float(str(rect.get(key))) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    assert f"{int(np.trace(shown)):,} of {len(result.targets):,} texts are right" in str(svg.get("aria-label"))
    assert min(float(str(r.get("width"))) for r in svg.iter("rect")) >= 12  # a cell can be pointed at


def test_cells_stand_where_they_should() -> None:
    svg = ElementTree.fromstring(confusion_picture([[6, 2], [0, 4]], ["a", "b"]))
    ground = svg.find("rect[@class='ground']")
    assert ground is not None
    left, top, side = (float(str(ground.get(key))) for key in ("x", "y", "width"))
    found = {
        str(g.findtext("title")): g.find("rect") for g in svg.iter("g") if g.find("rect") is not None
    }  # fmt: skip
    assert list(found) == ["a → a: 6 (75.0%)", "a → b: 2 (25.0%)", "b → b: 4 (100.0%)"]
    wrong = found["a → b: 2 (25.0%)"]
    assert wrong is not None and wrong.get("class") == "miss"
    assert (float(str(wrong.get("x"))), float(str(wrong.get("y")))) == (left + side / 2, top)
    assert float(str(wrong.get("fill-opacity"))) == pytest.approx(shade(0.25), abs=0.01)


def test_shades_rise_from_what_can_be_seen() -> None:
    shades = [shade(share / 1000) for share in range(1001)]
    assert shades[0] == 0 and shades[1] > 0.15 and shades[-1] == pytest.approx(1.0) and shades == sorted(shades)


def _luminance(colour: str) -> float:
    """WCAG 2.2: 0 for black, 1 for white."""
    parts = (
        [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        if len(colour) == 7
        else [int(c, 16) / 15 for c in colour[1:]]
    )
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def _mixed(over: str, under: str, opacity: float) -> str:
    over, under = (c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for c in (over, under))
    pairs = [(int(over[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02x}" for a, b in pairs)


def _colours() -> dict[str, dict[str, str]]:
    """The colours of the page in the light, in the dark and on paper."""
    css = (resources.files("zhixing.evaluation") / "report.css").read_text(encoding="utf-8")
    light, dark, paper = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    assert dark.keys() >= {"paper", "on-pale"} and paper.keys() >= {"paper", "on-pale"}
    return {"light": light, "dark": light | dark, "print": light | paper}


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_words_and_numbers_can_be_read(scheme: str) -> None:
    """A contrast of 4.5 at least, as WCAG 2.2 asks of small text: on the page, and on each cell of the matrix."""
    colours = _colours()[scheme]
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "seal", "held"):
            assert _contrast(*(_luminance(colours[c]) for c in (ink, ground))) >= 4.5, (ink, ground)
    assert (
        _contrast(_luminance(colours["seal"]), _luminance(colours["seal-soft"])) >= 4.5
    )  # the language that is chosen
    for kind, cell in (("hit", "small"), ("miss", "held")):
        for count in range(1, 1001, 7):
            matrix = [[count, 1000 - count], [0, 0]] if kind == "hit" else [[1000 - count, count], [0, 0]]
            svg = ElementTree.fromstring(confusion_picture(matrix, ["a", "b"]))
            [group] = [g for g in svg.iter("g") if g.find(f"rect[@class='{kind}']") is not None]
            rect, number = group.find("rect"), group.find("text")
            assert rect is not None and number is not None
            ink = {"number": "on-pale", "number deep": "on-deep", "number full": "on-full"}[str(number.get("class"))]
            ground = _mixed(colours[cell], colours["card"], float(str(rect.get("fill-opacity"))))
            assert _contrast(_luminance(colours[ink]), _luminance(ground)) >= 4.5, (kind, count)
    css = (resources.files("zhixing.evaluation") / "report.css").read_text(encoding="utf-8")
    assert "color: var(--faint)" not in css.replace("border-color", "")  # lines only


def test_rare_classes_are_joined() -> None:
    matrix = np.diag([5, 1, 9, 2])
    matrix[0, 1] = 1
    joined, labels = join_rare(matrix, list("abcd"), most=3)
    assert joined.tolist() == [[5, 0, 1], [0, 9, 0], [0, 0, 3]] and labels[:2] == ["a", "c"] and "2 others" in labels[2]
    assert join_rare(matrix, list("abcd"), most=4)[1] == list("abcd")
    assert confused(matrix) == [(0, 1, 1)] and confused(np.diag([1, 2])) == []


def test_a_reliability_diagram_shows_its_table() -> None:
    table = reliability([0.05] * 4 + [0.95] * 20, [1] * 4 + [1] * 10 + [0] * 10)
    svg = ElementTree.fromstring(reliability_picture(table, raw=table))
    bins = [group for group in svg.iter("g") if str(group.get("class")).startswith("bin")]
    assert [b.findtext("title") for b in bins] == ["5.0% → 100.0% (n = 4)", "95.0% → 50.0% (n = 20)"]
    assert [b.get("class") for b in bins] == ["bin few", "bin"]
    low, right = (b.find("path") for b in bins)
    assert low is not None and right is not None
    assert " 26.0H" in str(low.get("d")) and " 186.0H" in str(right.get("d"))  # 100 % at the top, 50 % in the middle
    assert f"error {table.error:.1%}" in str(svg.get("aria-label")) and svg.find("polyline") is not None


def test_odd_pictures() -> None:
    assert confusion_picture(np.zeros((2, 2)), ["a", "b"]) == "" and scatter_picture([np.nan], [1.0]) == ""
    for picture in (
        confusion_picture([[3]], ["only"]),
        confusion_picture([[10**9, 1], [0, 0]], ["", " "]),
        scatter_picture([2.0], [2.0]),
        scatter_picture(np.arange(5000), np.arange(5000) / 2),
        *(confusion_picture(np.eye(len(HOSTILE)), HOSTILE) for _ in range(1)),
    ):
        tree = ElementTree.fromstring(picture)
        assert not list(tree.iter("script")) and "nan" not in picture
        assert not [key for element in tree.iter() for key in element.attrib if key.startswith("on")]
    assert scatter_picture(np.arange(5000), np.arange(5000)).count("<circle") <= 1500


# ---- the page


def test_the_page_says_what_there_is() -> None:
    result = _result(temperature=1.3, other_baselines={"linear SVM": 0.6})
    scores = result_scores(result)
    words = words_of(render_classification_report(result))
    for piece in (
        "a run", "A bag model that tells 3 classes apart, 4.21M parameters, trained on 19,923 texts in 41 s.",
        f"{scores.scores['accuracy'].value:.1%}", f"{scores.scores['mcc'].value:.3f}", "macro F1", "宏平均 F1",
        "linear SVM", "always the most frequent label", "3 word for word, 41 nearly", "12 texts (4.0%)", "were cut",
        "What it takes for what", "How far its confidence can be trusted", "temperature of 1.3", "sure and wrong",
        "calibration error", "class 2", "300", "95 of 100 have at most", "bootstrap over 300 texts, seed 0",
    ):  # fmt: skip
        assert piece in words, piece
    for entry in scores.classes:
        assert f"{entry.f1.value:.3f}" in words and f"{entry.support:,}" in words
    assert render_classification_report(result) == render_classification_report(result, scores=scores)


def test_what_is_not_there_is_left_out() -> None:
    bare = ClassificationResult(["a", "b"], np.array([0, 1, 1]), np.array([0, 1, 0]))
    words = words_of(render_classification_report(bare))
    assert (
        "confidence can be trusted" not in words and "sure and wrong" not in words and "zhixing classify" not in words
    )
    assert "What it takes for what" in words and "Left out" not in words
    one = ClassificationResult(["a", "b"], np.array([0]), np.array([0]))
    assert "No interval" in words_of(render_classification_report(one))


@pytest.mark.parametrize("result", [_several(name="tags"), _graded(name="ratings")], ids=["labels", "ratings"])
def test_other_problems_have_a_page(result: ClassificationResult) -> None:
    words = words_of(render_classification_report(result))
    assert result.name in words and "What it takes for what" not in words
    for score in ("Hamming loss", "all labels right") if result.several else ("Pearson's r", "MSE", "mean rating"):
        assert score in words
    assert result.name in text_summary(result) and "nan" not in words


def test_the_page_of_a_run_has_its_curves(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 1 / s, "learning_rate": 0.1} for s in range(1, 60)] + [{"step": 59, "eval_loss": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.toml").write_text('[model]\nfamily = "bag"\n')
    (tmp_path / "facts.json").write_text(json.dumps({"data": {"near_duplicates": 7}, "tokenizer": {"kind": "word"}}))
    result = _result(facts={"data": {"source": "reviews", "test": {"near_duplicates": 7}}})
    path = write_classification_report(tmp_path / "report.html", result, run_dir=tmp_path)
    words = words_of(path.read_text(encoding="utf-8"))
    for piece in (
        "Loss",
        "nats a text",
        "Learning rate",
        "Recipe",
        "zhixing classify",
        "7 nearly",
        "Tokenizer",
        "reviews",
    ):
        assert piece in words, piece
    assert "samples.jsonl" not in words  # a classifier writes none
    render_classification_report(result, run_dir=tmp_path / "no such run")


def test_repeated_texts_are_counted_once_each() -> None:
    """44 of 300: exact and near repeats are different texts, so their shares add up."""
    [english, chinese] = warnings(_result(), {"data": FACTS["data"] | {"test": {}}})[0]
    assert "3 word for word, 41 nearly (14.7%)" in english and "14.7%" in chinese


def test_an_interval_of_no_width_is_said_to_be_too_narrow() -> None:
    y = np.arange(20) % 2
    for answers, said in ((y, "as low as 83.2%"), (1 - y, "as high as 16.8%")):  # 0.025^(1/20) = 0.8316
        result = ClassificationResult(["a", "b"], y, answers)
        assert said in text_summary(result, width=500) and said in words_of(render_classification_report(result))
    assert "exact binomial" not in text_summary(
        ClassificationResult(["a", "b"], y, np.where(np.arange(20) < 5, y, 1 - y)), width=500
    )


def test_a_label_with_a_line_end_stays_on_its_line() -> None:
    result = ClassificationResult(["one\ntwo", "b"], np.array([0, 1, 1] * 5), np.array([0, 0, 1] * 5))
    lines = text_summary(result).splitlines()
    assert not [line for line in lines if line.strip().startswith("two")] and any(
        "b → one two" in line for line in lines
    )


def test_a_class_that_is_only_answered_has_an_f1_of_zero() -> None:
    """It counts as 0 in the macro mean, so 0 is what its row says; its recall is of nothing."""
    result = ClassificationResult(["a", "b", "c"], np.array([0] * 10), np.array([0] * 8 + [1] * 2))
    rows = re.findall(r'<tr><th scope="row" dir="auto">([bc])</th>(.*?)</tr>', render_classification_report(result))
    assert [(label, re.findall(r"<td>([\d.–]+)", cells)) for label, cells in rows] == [
        ("b", ["0", "2", "0.000", "–", "0.000"]),
        ("c", ["0", "0", "–", "–", "–"]),
    ]
    assert re.search(r"b +0 +0\.000 +– +0\.000", text_summary(result))


def test_errors_are_shown_in_the_size_of_the_ratings() -> None:
    for scale, mse in ((1e-3, "1e-06"), (1e3, "1,000,000"), (1.0, "1")):
        y = np.arange(50.0) * scale
        result = ClassificationResult([], y, y + scale, problem_type="regression")
        words = words_of(render_classification_report(result))
        row = re.search(r"MSE 均方误差 (\S+) (\S+) – (\S+)", words)
        assert row is not None and row.groups() == (mse, mse, mse), row
        assert re.search(rf"MSE +{re.escape(mse)} ", text_summary(result))
        assert "e+" not in words and "e+" not in text_summary(result)


def test_a_constant_answer_has_no_correlation_and_the_page_says_why() -> None:
    y = np.arange(30.0)
    words = words_of(render_classification_report(ClassificationResult([], y, 0 * y, problem_type="regression")))
    assert "all the same number" in words and "only one text" not in words


@pytest.mark.parametrize(
    ("family", "said"), [("bag", "A bag"), ("lstm", "An lstm"), ("average", "An average"), ("gpt", "A gpt")]
)
def test_families_have_their_article(family: str, said: str) -> None:
    words = words_of(render_classification_report(_result(facts={"model": {"family": family}})))
    assert f"{said} model" in words


def test_long_texts_are_cut() -> None:
    assert cut("word " * 10_000).endswith("word …") and len(cut("word " * 10_000)) <= 302
    assert cut("short\n text") == "short text" and cut("x" * 300) == "x" * 300 and len(cut("x" * 301)) == 302
    page = render_classification_report(_result(texts=["begin " + "x" * 9000 + "the end"] * 300))
    assert "begin x" in page and "the end" not in page


def test_warnings_count_what_was_not_scored() -> None:
    result = _result(facts={})
    assert warnings(result, {"data": {"test": {}}}) == []
    rare = ClassificationResult(["a", "b", "c"], np.array([0] * 30 + [1] * 9), np.zeros(39, int))
    assert [english[:40] for english, _ in warnings(rare, {"data": {"test": {}}})] == [
        "1 of 3 classes have fewer than 10 test t"
    ]
    some = ClassificationResult(["a"], np.array([0, -100, -100]), np.array([0, 0, 0]))
    assert "2 texts without a label" in words_of(render_classification_report(some))
    assert "2 texts without a label" in text_summary(some)


def test_hostile_text_is_only_text() -> None:
    page = render_classification_report(_hostile())
    tags = Tags(page)
    assert {tag for tag, _ in tags.seen} <= {
        "html", "head", "meta", "title", "style", "body", "input", "div", "header", "span", "h1", "p", "nav", "label",
        "main", "section", "h2", "h3", "b", "table", "caption", "tr", "th", "td", "thead", "tbody", "svg", "rect", "path",
        "dl", "dt", "dd", "i", "text", "g", "line", "circle", "polyline", "figure", "figcaption", "ol", "li", "blockquote",
        "br", "small", "details", "summary", "footer",
    }  # fmt: skip
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in page and "\x1b" not in page and "\x00" not in page and "\u202e" not in page
    page.encode("utf-8")


def _hostile() -> ClassificationResult:
    n = len(HOSTILE)
    facts = {"model": {"family": HOSTILE[0]}, "data": {text: text for text in HOSTILE} | {"on_too_long": HOSTILE[1]}}
    result = _result(n, 40, labels=HOSTILE, texts=[HOSTILE[i % n] for i in range(40)], name=HOSTILE[3])
    return ClassificationResult(
        **{**vars(result), "facts": facts | {HOSTILE[2]: {"a": HOSTILE[4]}}, "other_baselines": {HOSTILE[5]: 0.5}}
    )


# ---- a browser


@pytest.mark.browser
def test_hostile_text_in_a_browser(tmp_path: Path, browser: Any) -> None:
    path = write_classification_report(tmp_path / "report.html", _hostile())
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
@pytest.mark.parametrize("n_classes", [2, 20, 52])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, n_classes: int, width: int) -> None:
    scheme = "dark" if n_classes == 20 else "light"
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    labels = [f"talk.politics.of.{k}" for k in range(n_classes)]
    result = _result(n_classes, 30 * n_classes, labels=labels, temperature=1.2)
    page.goto(write_classification_report(tmp_path / "report.html", result).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width  # a wide matrix scrolls inside its frame
    inside = """() => {
        const frame = document.querySelector('.matrix').getBoundingClientRect();
        return [...document.querySelectorAll('.matrix text')].filter(t => t.getClientRects().length).every(t => {
            const box = t.getBoundingClientRect();
            return box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1;
        });
    }"""
    assert page.evaluate(inside)  # no label is cut off
    fits_inside = """() => [...document.querySelectorAll('.matrix g')].every(g => {
        const cell = g.querySelector('rect').getBoundingClientRect();
        return [...g.querySelectorAll('text')].every(t => t.getBoundingClientRect().width <= cell.width);
    })"""
    assert page.evaluate(fits_inside)  # no number is wider than its cell
    page.click("label[for=chinese]")
    assert page.is_visible("text=混淆矩阵") and not page.is_visible("text=What it takes for what")
    assert said == []
    page.close()


# ---- the terminal


def test_summary() -> None:
    result = _result(temperature=1.3)
    scores = result_scores(result)
    text = text_summary(result, scores=scores)
    for piece in (
        "a run", "300 texts, 3 labels", "accuracy", f"{scores.scores['accuracy'].value:.1%}", "macro F1", "MCC", "█",
        "always the most frequent label", "class 1", "taken for one another", "sure and wrong", "text number", "41 nearly",
    ):  # fmt: skip
        assert piece in text, piece
    assert "\033" not in text and max(columns(line) for line in text.splitlines()) <= 90
    many = text_summary(_result(80, 900))
    assert "and 20 classes with a higher F1" in many


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _result()
    same = compare(result, result)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1m" in text_summary(result) and "\033[1m" in comparison_text(same)
    assert wants_colour() and not wants_colour(stream=io.StringIO())  # a file stays without, whatever stdout is
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in text_summary(result) and "\033" not in comparison_text(same)


def test_a_terminal_obeys_no_text() -> None:
    result = _hostile()
    other = ClassificationResult(**{**vars(result), "predictions": np.roll(result.predictions, 1), "name": "\x1b[2J"})
    for text in (text_summary(result), comparison_text(compare(result, other))):
        assert "\033" not in text and "\x00" not in text and "\u202e" not in text
        text.encode("utf-8")


def test_columns_of_chinese() -> None:
    assert columns("知行") == 4 and fits("知行合一", 5) == "知行…" and fits("ok", 2) == "ok"
    assert pad("知", 4) + "|" == "知  |" and pad("ok", 4, right=True) == "  ok" and columns("e\u0301") == 1
