"""The report, the card and the terminal's summary: right figures, whole without its parts, harmless whatever a model writes."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml  # type: ignore[import-untyped]

from pages import Tags, words_of
from zhixing.errors import InputError
from zhixing.evaluation.card import write_card
from zhixing.evaluation.curves import (
    Frame,
    Series,
    labels,
    line_chart,
    log_ticks,
    plain,
    smooth,
    sparkline,
    thin,
    ticks,
)
from zhixing.evaluation.language import language_scores
from zhixing.evaluation.records import FILES, read_records, visible
from zhixing.evaluation.report import fact_tables, loss_words, summary, write_report
from zhixing.progress import quantity
from zhixing.recipe import Recipe

HOSTILE = [
    "<script>pwned=1</script>",
    "</script><script>pwned=1</script>",
    "<img src=x onerror=pwned=1>",
    "<svg onload=pwned=1>",
    "<svg><script>pwned=1</script></svg>",
    "</text></svg><script>pwned=1</script>",
    "</blockquote></section><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "</style><script>pwned=1</script>",
    "</title><script>pwned=1</script>",
    "</pre></details><details open ontoggle=pwned=1>",
    '" onmouseover="pwned=1" autofocus onfocus="pwned=1',
    "' onmouseover='pwned=1",
    "<a href=javascript:pwned=1>x</a>",
    "<body onload=pwned=1>",
    "<input autofocus onfocus=pwned=1>",
    "<meta http-equiv=refresh content='0;url=javascript:pwned=1'>",
    "<base href='javascript:pwned=1//'><link rel=stylesheet href=x>",
    "{{ 7*7 }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "<!--><script>pwned=1</script-->",
    "&lt;script&gt;pwned=1&lt;/script&gt;&#60;script&#62;",
    "<math><mtext></table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=pwned=1&gt;'>",
    "\x1b[31m\x00\x07\u202e<script>\ud800pwned=1</script>",
]


def _write(run: Path, **files: Any) -> Path:
    """A run directory of about what a real run leaves; a file given as None is left out, as str it is written so."""
    run.mkdir(parents=True, exist_ok=True)
    metrics: list[dict[str, float]] = []
    for step in range(10, 1001, 10):
        loss = 3 + 5 * math.exp(-step / 100)
        metrics.append({"step": step, "loss": loss, "learning_rate": 0.02 * (1 - step / 1000), "tokens_per_second": 9000 + step, "grad_norm": 1 / step})  # fmt: skip
        if step % 100 == 0:
            metrics.append({"step": step, "eval_loss": loss + 0.1, "eval_bits_per_byte": loss / 2})
    default: dict[str, Any] = {
        "metrics.jsonl": metrics,
        "scores.json": {"model": language_scores([30.0, 50.0, 41.0], [10, 15, 12], [30, 50, 40], [3, 4, 5]).to_dict(),
                        "baselines": {"unigram": 3.412, "xz -9": 2.641}},
        "facts.json": {
            "data": {"source": "austen", "dataset": {"title": "Novels", "licence": "PDDL-1.0", "languages": ["en"]},
                     "counts": {"documents": 6, "personal_data": {"mail": 2}}, "train": {"documents": 5, "tokens": 1_083_221, "bytes": 3_111_222}},
            "tokenizer": {"kind": "bpe", "vocab_size": 4096, "texts": {"held-out text": {"bytes_per_token": 2.881234}}},
            "model": {"family": "gpt", "layout": "qwen3", "parameters": 4_212_992},
            "run": {"torch": "2.13.0", "compiled": True, "training_seconds": 151.2, "peak_memory_bytes": 912_345_678, "seed": 0},
        },
        "samples.jsonl": [
            {"prompt": "It is a truth", "text": " which is always expected.", "step": 1000, "seed": 0},
            {"prompt": "春", "text": "风不度江南岸。", "step": 1000, "seed": 1},
            {"prompt": "It is", "text": " the the of", "step": 100, "seed": 0},
        ],
        "recipe.toml": Recipe().to_toml(),
    }  # fmt: skip
    for name, content in (default | files).items():
        if content is None:
            continue
        if name.endswith(".jsonl") and not isinstance(content, str):
            content = "".join(json.dumps(line) + "\n" for line in content)
        (run / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return run


# ---- curves


def test_ticks() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0, 0.02, 2) == [0, 0.01, 0.02]
    assert ticks(2.6, 8.4, 3) == [4, 6, 8]
    assert ticks(-1, 1, 4) == [-1, -0.5, 0, 0.5, 1]
    assert ticks(3, 3) == [3]
    assert log_ticks(10, 1000) == [10, 20, 50, 100, 200, 500, 1000]
    assert log_ticks(1, 1e6) == [1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
    assert labels(ticks(100.2, 100.8)) == ["100.2", "100.4", "100.6", "100.8"]
    assert labels([5.541, 5.542, 5.543]) == ["5.541", "5.542", "5.543"]
    assert labels([12_340, 12_345, 12_350]) == ["12,340", "12,345", "12,350"]
    assert labels([0, 0.005, 0.01]) == ["0", "0.005", "0.01"] and labels([0, 10_000]) == ["0", "10k"]
    assert labels([3]) == ["3"] and labels([]) == [] and labels([2, 4, 6]) == ["2", "4", "6"]
    assert [plain(v) for v in (0, 0.02, 1200, 12_000, 3.4e6, 1e-5, 2.5)] == [
        "0",
        "0.02",
        "1,200",
        "12k",
        "3.4M",
        "1e-5",
        "2.5",
    ]


def test_three_digits_never_round_up_to_a_thousand() -> None:
    assert [plain(v) for v in (999.4, 999.7, 9999.6, 999_499, 999_999)] == ["999", "1,000", "10,000", "999k", "1M"]
    assert [quantity(v) for v in (999.4, 999.7, 999_499, 999_999, 999_999_999)] == ["999", "1k", "999k", "1M", "1G"]
    assert quantity(999_999, "B") == "1 MB" and quantity(0.25) == "0.25"


def test_smooth_keeps_lines_and_tames_noise() -> None:
    line = [(float(i), 5.0 - i / 100) for i in range(200)]
    for (_, y), (_, smoothed) in zip(line[:190], smooth(line)[:190], strict=True):
        assert smoothed == pytest.approx(y)  # no lag
    zigzag = [(float(i), float(i % 2)) for i in range(1000)]
    assert all(abs(y - 0.5) < 0.1 for _, y in smooth(zigzag)[100:])


def test_thin_loses_no_spike() -> None:
    points = [(float(i), 99.0 if i == 5003 else math.sin(i)) for i in range(10_000)]
    few = thin(points, 100)
    assert len(few) <= 100 and (5003.0, 99.0) in few
    assert few == sorted(few) and thin(few, 100) == few


def test_points_stand_where_they_should() -> None:
    frame = Frame(width=120, height=120, left=10, right=10, top=10, bottom=10)
    svg = line_chart(
        [Series("a", "small", [(0, 0), (50, 50), (100, 100)])],
        label=("a", "a"),
        y_unit=("", ""),
        from_zero=True,
        frame=frame,
    )
    polyline = ElementTree.fromstring(svg).find("polyline")
    assert polyline is not None
    # y from 0 to 106: 100 is at 10 + 6 / 106 * 100
    assert polyline.get("points") == "10.0,110.0 60.0,62.8 110.0,15.7"
    svg = line_chart(
        [Series("a", "small", [(0, 1), (1, 0), (10, 1), (100, 0)])],
        label=("a", "a"),
        y_unit=("", ""),
        log_x=True,
        frame=frame,
    )
    polyline = ElementTree.fromstring(svg).find("polyline")
    assert polyline is not None
    assert [pair.split(",")[0] for pair in str(polyline.get("points")).split()] == [
        "10.0",
        "60.0",
        "110.0",
    ]  # decades apart


@pytest.mark.parametrize(
    "points",
    [[(1.0, 2.0)], [(5.0, 3.0), (9.0, 3.0)], [(1.0, 0.0)], [(0.0, 1e-9), (1e6, 1e9)], [(3.0, -4.0), (4.0, 1.0)]],
)
@pytest.mark.parametrize("log_x", [True, False])
def test_odd_curves_are_drawn(points: list[tuple[float, float]], log_x: bool) -> None:
    svg = line_chart(
        [Series("<a>", "small", points, dots=True)], label=('"x"', "&"), y_unit=("<u>", "<v>"), log_x=log_x
    )
    for number in re.findall(r'(?:cx|cy|x|y)="(-?[\d.]+)"', svg):
        assert -1 <= float(number) <= 800
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "<u>" not in svg
    assert line_chart([Series("a", "small", [])], label=("", ""), y_unit=("", "")) == ""


def test_an_axis_from_zero_begins_at_zero() -> None:
    frame = Frame(width=120, height=120, left=10, right=10, top=10, bottom=10)
    series = [Series("a", "small", [(0, 50), (100, 100)])]
    svg = line_chart(series, label=("", ""), y_unit=("", ""), from_zero=True, frame=frame)
    assert 'points="10.0,62.8 110.0,15.7"' in svg  # 50 of 106, 100 of 106


def test_axes_of_a_narrow_range_tell_their_ticks_apart() -> None:
    svg = line_chart([Series("a", "small", [(0, 100.2), (9, 100.8)])], label=("", ""), y_unit=("", ""))
    shown = re.findall(r'text-anchor="end">([\d.,]+)</text>', svg)
    assert len(shown) > 3 and len(set(shown)) == len(shown)


def test_the_pointer_is_answered_at_each_measurement() -> None:
    training = [(float(s), 3.0) for s in range(10, 5001, 10)]
    heldout = [(float(s), 2.5) for s in range(500, 5001, 500)]
    series = [Series("training", "training", training), Series("held-out", "heldout", heldout, dots=True)]
    svg = line_chart(series, label=("", ""), y_unit=("", ""))
    for step, _ in heldout:
        assert f"step {step:,.0f}   training 3   held-out 2.5" in svg
    between = [text for text in re.findall(r"step ([\d,]+)   [^<]*", svg) if int(text.replace(",", "")) % 500]
    assert between  # columns where only training was measured: no held-out value is made up there
    assert not any(re.search(rf">step {text}   [^<]*held-out", svg) for text in between)


def test_sparkline() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▄█"
    assert sparkline([5.0] * 4) == "▁▁▁▁" and sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)], 20)) == 20


# ---- the page


def test_the_page_says_what_is_on_disk(tmp_path: Path) -> None:
    page = write_report(_write(tmp_path / "austen")).read_text(encoding="utf-8")
    words = words_of(page)
    bits = 121 / math.log(2) / 120
    for piece in (
        f"{bits:.3f}", "2.641", "3.412", "4,212,992", "3.11 MB", "2 min 31 s", "912 MB", "PDDL-1.0", "It is a truth", "风不度江南岸。",
        "A GPT (qwen3) language model of 4.21M parameters", "词元数", "1,083,221", "32.4%", "zhixing generate",
        "2.881", "texts · held-out text", "[tokenizer]", "per_device_train_batch_size = 16",
    ):  # fmt: skip
        assert piece in words or piece in " ".join(page.split()), piece
    assert page.count("<svg") == 3 + 4 + 3  # bars; loss wide and narrow, linear and log; three small ones
    assert "Left out" not in words


def test_the_same_records_give_the_same_page(tmp_path: Path) -> None:
    run = _write(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page = write_report(_write(tmp_path / "run")).read_text(encoding="utf-8")
    tags = Tags(page)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes in tags.seen:
        assert not set(attributes) & {"src", "href", "style", "srcdoc", "action", "xlink:href"}
    assert (
        "url(" not in page and "@import" not in page and "//" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    )
    policy = next(
        a["content"] for t, a in tags.seen if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")


@pytest.mark.parametrize("kept", [c for n in range(1, 6) for c in itertools.combinations(FILES, n)])
def test_any_part_may_be_missing(tmp_path: Path, kept: tuple[str, ...]) -> None:
    run = _write(tmp_path / "run", **{name: None for name in FILES if name not in kept})
    words = words_of(write_report(run).read_text(encoding="utf-8"))
    for name in FILES:
        assert (f"Left out: {name}" in words) == (name not in kept)
    assert summary(run) and write_card(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 3}\n{"step": 2, "lo', "1 of 2 lines"),
        ("metrics.jsonl", '{"step": 1, "loss": NaN, "eval_loss": Infinity}\n[1]\n', "1 of 2 lines"),
        ("metrics.jsonl", '{"step": "x", "loss": true}\n', ""),
        ("metrics.jsonl", f'{{"step": 1, "loss": 1{"0" * 400}}}', ""),
        ("facts.json", f'{{"run": {{"steps": 1{"0" * 400}}}}}', "not a number"),
        ("recipe.toml", "a = " + "[" * 20_000, "not valid TOML"),
        ("scores.json", "[]", "not a JSON object"),
        ("scores.json", '{"model": 3, "baselines": {"a": "b", "c": -1}}', ""),
        ("scores.json", '{"model": {"bits_per_byte": 0, "low": NaN, "intervals": {"loss": [1]}, "loss": 1}}', ""),
        ("facts.json", "\x00", "not a JSON object"),
        ("facts.json", '{"data": 3, "run": [1, {"a": null}], "x": {"y": {"z": [[1], {"name": "n", "v": [2.5]}]}}}', ""),
        ("samples.jsonl", '{"prompt": 3, "text": null, "step": "x"}\n', ""),
        ("recipe.toml", "not toml", "not valid TOML"),
    ],
)
def test_broken_records_are_left_out_with_a_note(tmp_path: Path, name: str, content: str, said: str) -> None:
    run = _write(tmp_path / "run", **{name: content})
    assert said in words_of(write_report(run).read_text(encoding="utf-8"))
    assert said in summary(run) or said == "not a number"  # the page alone has all facts
    write_card(run)


def test_numbers_of_the_facts_are_for_people() -> None:
    facts = {"run": {"texts_per_second": 25312.4, "learning_rate": 0.00123456, "seed": 12345, "steps": 12345}}
    [(_, rows)] = fact_tables(facts)
    assert {row.key: row.value for row in rows} == {
        "texts_per_second": "25,312", "learning_rate": "0.001235", "seed": "12345", "steps": "12,345",
    }  # fmt: skip


def test_one_passage_has_no_interval(tmp_path: Path) -> None:
    run = _write(tmp_path / "run", **{"scores.json": {"model": language_scores([30.0], [10], [30], [3]).to_dict()}})
    assert "there is only one passage" in write_report(run).read_text(encoding="utf-8")
    assert "None" not in write_card(run).read_text(encoding="utf-8")


def test_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "missing", tmp_path / "empty"):
        for function in (write_report, write_card, summary):
            with pytest.raises(InputError) as caught:
                function(place)
            assert caught.value.mend


def test_a_resumed_step_counts_once(tmp_path: Path) -> None:
    run = _write(
        tmp_path / "run",
        **{"metrics.jsonl": [{"step": 2, "loss": 5.0}, {"step": 1, "loss": 6.0}, {"step": 2, "loss": 4.0}]},
    )
    assert read_records(run).series("loss") == [(1, 6.0), (2, 4.0)]


def test_the_curve_in_words(tmp_path: Path) -> None:
    def words(losses: list[float]) -> str:
        lines = [{"step": 10 * k, "eval_loss": loss, "loss": 1.0} for k, loss in enumerate(losses, 1)]
        found = loss_words(read_records(_write(tmp_path / "run", **{"metrics.jsonl": lines})))
        return found[0] if found else ""

    assert "lowest at step 20: 2.000" in words([3, 2, 2.5]) and "by heart" in words([3, 2, 2.5])
    assert "still falling" in words([4, 3, 2])
    assert words([4, 2, 2.0]).endswith("2.000.")
    assert words([]) == ""


def test_visible() -> None:
    assert visible("a\x00\x1b[31m\r\nb\u202ec\ud800\x9b\u2028d\te") == "a␀␛[31m\nbc��\nd\te"
    assert visible("知行 👍 ﷽") == "知行 👍 ﷽"


def test_hostile_text_is_text(tmp_path: Path) -> None:
    page = write_report(_hostile_run(tmp_path)).read_text(encoding="utf-8")
    tags = Tags(page)
    assert not {tag for tag, _ in tags.seen} & {
        "script",
        "img",
        "iframe",
        "a",
        "base",
        "link",
        "math",
        "mglyph",
        "body2",
    }
    assert sum(tag == "input" for tag, _ in tags.seen) == 4 and sum(tag == "meta" for tag, _ in tags.seen) == 6
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert (
        "{{ 7*7 }}" in page
        and "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).split("{{ 7*7 }}")[1][:5]
    )


def _hostile_run(folder: Path) -> Path:
    """Every hostile string in every place that text can come from."""
    tables = {text: {text: text, "rows": [{"name": text, "v": text}]} for text in HOSTILE}
    facts = {
        "data": {"source": HOSTILE[1], "dataset": {"licence": HOSTILE[0], "languages": HOSTILE}},
        "model": {"family": HOSTILE[3], "layout": HOSTILE[2], "parameters": 3}, **tables,
    }  # fmt: skip
    return _write(
        folder / "<img src=x onerror=pwned=1>",
        **{
            "samples.jsonl": [
                {"prompt": text, "text": text, "step": k // 8, "seed": k} for k, text in enumerate(HOSTILE)
            ],
            "scores.json": {"model": {"bits_per_byte": 2.0}, "baselines": dict.fromkeys(HOSTILE, 2.0)},
            "facts.json": facts,
            "recipe.toml": "\n".join(HOSTILE[:-1]),
        },
    )


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_hostile_text_in_a_browser(tmp_path: Path, browser: Any, policy: bool) -> None:
    """None of the strings runs; not even with the policy taken out, so that both walls hold by themselves."""
    path = write_report(_hostile_run(tmp_path))
    if not policy:
        page_text = path.read_text(encoding="utf-8")
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_text)
        assert bare != page_text
        path.write_text(bare, encoding="utf-8")
    page = browser.new_page()
    requests, said = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.eval_on_selector_all(
        "blockquote, .facts td, .bars th",
        "all => all.forEach(e => e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))",
    )
    page.wait_for_timeout(100)
    assert page.evaluate("typeof pwned") == "undefined"
    assert (requests, said) == ([path.as_uri()], [])
    shown = page.eval_on_selector_all("blockquote", "all => all.map(b => b.textContent)")
    assert sorted(shown) == sorted(visible(text) * 2 for text in HOSTILE)
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(write_report(_write(tmp_path / "austen")).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    def shown(selector: str) -> int:
        count = (
            "all => all.filter(e => e.getClientRects().length && getComputedStyle(e).visibility == 'visible').length"
        )
        return int(page.eval_on_selector_all(selector, count))

    assert shown(".plots svg") == 1 and shown(".plots svg.log") == 1
    page.click("label[for=linear]")
    assert shown(".plots svg") == 1 and shown(".plots svg.linear") == 1
    assert shown(".page .en") and not shown(".page .zh")
    page.click("label[for=chinese]")
    assert shown(".page .zh") and not shown(".page .en")
    page.click("label[for=english]")
    plot = page.query_selector(f".plots svg.linear.{'wide' if width > 520 else 'narrow'}")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert shown(".answer text.en") == 0
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert shown(".answer text.en") == 1
    assert "training 3" in page.inner_html(".column:hover .answer text.en")
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(250, 248, 244)"
    assert light == (scheme == "light")
    assert said == []
    page.close()


# ---- the terminal


def test_summary(tmp_path: Path) -> None:
    run = _write(tmp_path / "austen")
    write_report(run)
    text = summary(run)
    for piece in (
        "austen",
        "4.21M parameters",
        "2.641",
        "█",
        "held-out loss",
        "It is a truth",
        "春│风不度江南岸。",
        "zhixing generate",
        "report.html",
    ):
        assert piece in text
    assert "\033" not in text
    assert text.index("this model") < text.index("xz -9") < text.index("unigram")


def test_summary_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _write(tmp_path / "run")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1m" in summary(run)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in summary(run)


def test_a_terminal_obeys_no_sample(tmp_path: Path) -> None:
    text = summary(_hostile_run(tmp_path))
    assert "\033" not in text and "\x00" not in text and "\u202e" not in text
    text.encode("utf-8")


# ---- the card


def test_card(tmp_path: Path) -> None:
    card = write_card(_write(tmp_path / "austen")).read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["language"] == ["en"] and fields["license"] == "pddl" and fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "text-generation" and "zhixing" in fields["tags"]
    metric = fields["model-index"][0]["results"][0]["metrics"][0]
    assert metric["type"] == "bits_per_byte" and metric["value"] == pytest.approx(121 / math.log(2) / 120, abs=1e-4)
    for piece in ("Licence of the text: PDDL-1.0.", "2.641", "from_pretrained", "not searched for personal data",
                  "春│风不度江南岸。", "zhixing generate austen 'It is a truth'", "256 tokens at most"):  # fmt: skip
        assert piece in body, piece


def test_card_tells_of_personal_data(tmp_path: Path) -> None:
    recipe = Recipe().to_toml().replace('personal_data = "keep"', 'personal_data = "mask"')
    body = write_card(_write(tmp_path / "run", **{"recipe.toml": recipe})).read_text(encoding="utf-8")
    assert "masked before training" in body and "| mail | 2 |" in body


def test_card_of_hostile_text(tmp_path: Path) -> None:
    run = _hostile_run(tmp_path)
    samples = [{"prompt": "```\n<script>x</script>\n````", "text": "---\n# not a heading", "step": 1, "seed": 0}]
    (run / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    card = write_card(run).read_text(encoding="utf-8")
    fields = yaml.safe_load(card.split("---\n")[1])
    assert fields["license"] == "other" and fields["tags"] == ["zhixing", "trained-from-scratch"]
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card.split("---\n", 2)[2], flags=re.S | re.M)  # what Markdown reads
    assert not re.search(r"(?<!\\)<", outside) and "not a heading" not in outside
    assert re.findall(r"^#+ .*", outside, flags=re.M)[1:] == [
        "## Data", "## Scores", "## What it writes", "## How to use", "## Limits", "## Personal data", "## Training"
    ]  # fmt: skip


def test_card_of_an_lstm_does_not_promise_transformers(tmp_path: Path) -> None:
    facts = {"model": {"family": "lstm", "parameters": 5}}
    card = write_card(_write(tmp_path / "run", **{"facts.json": facts})).read_text(encoding="utf-8")
    assert 'library_name: "zhixing"' in card and "AutoModel" not in card and "An LSTM language model" in card
