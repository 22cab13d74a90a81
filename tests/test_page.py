"""The page at /: each application used as a person would, in Chromium, beside a real server of small runs."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from pages import Tags
from served import KEY, Served, write_runs
from zhixing.decoding.engine import Batch, EngineLimits
from zhixing.interchange.chat_directory import StoredChat, write_chat
from zhixing.interchange.classifier_directory import StoredClassifier, write_classifier
from zhixing.interchange.model_directory import write_model_directory
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.textcnn import TextCNNClassifier, TextCNNSettings
from zhixing.serving.app import PAGE
from zhixing.tasks.chat_template import CONTROLS, DEFAULT_TEMPLATE, end_ids
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer
from zhixing.training.loop import MetricsLog
from zhixing.training.runlock import run_lock

RUNS = ("lm", "chat", "en-zh", "short", "mood", "bert")
TABS = ("chat", "write", "translate", "summarize", "classify", "compare", "attention")
SCRIPTS = sorted(PAGE.glob("*.js"))
HAN = re.compile(r"[\u4e00-\u9fff]")

HOSTILE = [
    "<script>pwned=1</script>", "</script><script>pwned=1</script>", "<img src=x onerror=pwned=1>", "<svg onload=pwned=1>",
    "<svg/onload=pwned=1>", "<svg><script>pwned=1</script></svg>", "<body onload=pwned=1>", "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<iframe src=javascript:parent.pwned=1>", "</style><script>pwned=1</script>", "</title><script>pwned=1</script>",
    "</textarea><script>pwned=1</script>", "</option></select><img src=x onerror=pwned=1>", "</pre><img src=x onerror=pwned=1>",
    '" onmouseover="pwned=1" autofocus onfocus="pwned=1', "' onmouseover='pwned=1", "` onmouseover=pwned=1 x=`",
    "<a href=javascript:pwned=1>x</a>", "<a href='jav&#x09;ascript:pwned=1'>x</a>", "javascript:pwned=1", "data:text/html,<script>pwned=1</script>",
    "<details open ontoggle=pwned=1>", "<input autofocus onfocus=pwned=1>", "<select autofocus onfocus=pwned=1>", "<textarea autofocus onfocus=pwned=1>",
    "<video><source onerror=pwned=1>", "<video src=x onerror=pwned=1>", "<audio src=x onerror=pwned=1>", "<object data=javascript:pwned=1>",
    "<embed src=javascript:pwned=1>", "<marquee onstart=pwned=1>", "<math><a xlink:href=javascript:pwned=1>x</a></math>",
    "<meta http-equiv=refresh content='0;url=javascript:pwned=1'>", "<base href='javascript:pwned=1//'>", "<link rel=stylesheet href=//x.example/x>",
    "<form action=javascript:pwned=1><button>x</button></form>", "<button formaction=javascript:pwned=1>x</button>", "<style>@import '//x.example'</style>",
    "<p style=background:url(//x.example)>", "<!--><script>pwned=1</script-->", "<![CDATA[<script>pwned=1</script>]]>",
    "&lt;script&gt;pwned=1&lt;/script&gt;&#60;script&#62;", "<math><mtext></table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=pwned=1&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=pwned=1>'>", "<template><script>pwned=1</script></template>", "{{constructor.constructor('pwned=1')()}}",
    "${pwned=1}", "'+(pwned=1)+'", "\\u003cscript\\u003epwned=1\\u003c/script\\u003e", "<x onclick=pwned=1 id=status>$&$1{piece}{label}</x>",
]  # fmt: skip


class Shown:
    """The page in a tab of the browser, and what it did: lines in the console, errors, addresses that it asked."""

    def __init__(self, browser: Any, url: str, *, width: int = 1280, locale: str = "en-GB", **options: Any) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, locale=locale, permissions=["clipboard-read", "clipboard-write"],
            **options,
        )  # fmt: skip
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(15_000)
        self.url, self.said, self.asked = url, [], []  # type: ignore[var-annotated]
        self.tab.on("console", lambda line: self.said.append(line.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", self.refuse)
        self.tab.on("request", lambda request: self.asked.append(request))
        self.tab.goto(url)

    def refuse(self, dialog: Any) -> None:
        self.said.append(dialog.message)
        dialog.dismiss()

    def panel(self, name: str) -> Any:
        self.tab.click(f"#tab-{name}")
        return self.tab.locator(f"#panel-{name}")

    def bodies(self, path: str) -> list[Any]:
        """What was posted there."""
        return [json.loads(r.post_data) for r in self.asked if r.url == self.url + path and r.method == "POST"]

    def kept_to_itself(self) -> None:
        """Nothing was said in the console, and no other host was asked for anything."""
        assert self.said == []
        assert all(request.url.startswith(self.url + "/") for request in self.asked)
        assert self.tab.evaluate("typeof pwned") == "undefined"


def done(panel: Any) -> None:
    panel.locator("button.main:enabled").wait_for()


def same_each_time(panel: Any) -> None:
    """A seed."""
    seed = panel.locator('.settings input[type="number"]').last
    if not seed.is_visible():
        panel.locator(".settings summary").click()
    seed.fill("5")


def code(shown: Shown, panel: Any, number: int) -> str:
    """What the first (curl) or second (Python) button copies, which is also what is shown."""
    panel.locator(".code button").nth(number).click()
    panel.locator(".code .note", has_text=re.compile(".")).wait_for()
    copied = str(shown.tab.evaluate("navigator.clipboard.readText()"))
    assert copied == panel.locator("pre").text_content()
    return copied


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, english_text: str) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"), english_text)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Served]:
    with Served([str(root / name) for name in RUNS]) as running:
        yield running


@pytest.fixture
def opened(browser: Any, server: Served) -> Generator[Shown, None, None]:
    shown = Shown(browser, server.url)
    yield shown
    shown.context.close()


# ---- the files


def test_the_files_ask_nobody_and_make_no_markup() -> None:
    tags = Tags((PAGE / "index.html").read_text(encoding="utf-8"))
    for tag, attributes in tags.seen:
        assert tag != "style" and not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith("#") or (PAGE / address.removeprefix("page/")).is_file()
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg|\s//[ \w].*", "", text.replace("*/", "")), path
        if path.suffix == ".js":
            sinks = "innerHTML|outerHTML|insertAdjacentHTML|document.write|DOMParser|createContextualFragment|srcdoc|eval|Function"
            assert not re.search(rf"\b({sinks})\b", text), path
            imported = re.findall(r'from "(.*?)"', text)
            assert all((PAGE / name).is_file() for name in imported), path


def test_every_word_is_there_in_both_languages_and_used() -> None:
    source = (PAGE / "words.js").read_text(encoding="utf-8")
    entry = r'^  (\w+): \[\s*("(?:[^"\\]|\\.)*"),\s*("(?:[^"\\]|\\.)*"),?\s*\],$'
    words = {
        key: (json.loads(english), json.loads(chinese)) for key, english, chinese in re.findall(entry, source, re.M)
    }
    assert len(words) > 100
    for key, (english, chinese) in words.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), key
        assert not HAN.search(english) and (HAN.search(chinese) or key in ("top_p", "piece", "alignment_cell")), key
    rest = "".join(path.read_text(encoding="utf-8") for path in PAGE.iterdir() if path.name != "words.js")
    for key in words:
        made = re.sub(r"_(own|mend)$", "", key)
        assert re.search(rf'["`]{key}["`]', rest) or (
            made != key and re.search(rf'["`]{made}["`]|\b{made}:', rest + source)
        ), key


# ---- each application


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "locale", "scheme"),
    [
        (360, "zh-CN", "dark"),
        pytest.param(1280, "en-GB", "light", marks=pytest.mark.slow),
        pytest.param(360, "en-US", "light", marks=pytest.mark.slow),
        pytest.param(1280, "zh-TW", "dark", marks=pytest.mark.slow),
    ],
)
def test_a_person_tries_everything(browser: Any, server: Served, width: int, locale: str, scheme: str) -> None:
    chinese = locale.startswith("zh")
    shown = Shown(browser, server.url, width=width, locale=locale, color_scheme=scheme)
    tab, http = shown.tab, httpx.Client(base_url=server.url)
    tab.wait_for_selector("[role=tab]")
    assert [t.get_attribute("id") for t in tab.get_by_role("tab").all()] == [f"tab-{name}" for name in TABS]
    assert tab.evaluate("document.documentElement.lang") == ("zh-Hans" if chinese else "en")
    for name in TABS:
        panel = shown.panel(name)
        if name in ("chat", "write"):
            same_each_time(panel)
        panel.locator(".chip").nth(int(chinese)).click()  # the example in this language
        done(panel)
        assert not panel.locator(".trouble").count()
        check_answer(shown, http, panel, name)
        assert tab.evaluate("document.documentElement.scrollWidth") == width, name  # nothing sticks out
        assert bool(HAN.search(panel.locator("label").first.text_content())) == chinese
        faint = tab.evaluate(CONTRASTS)
        assert all(ratio >= 4.5 for _, ratio in faint), [each for each in faint if each[1] < 4.5]
        assert tab.evaluate(NAMELESS) == []
    assert (
        len(set(tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))) == tab.locator("[id]").count()
    )
    shown.kept_to_itself()
    shown.context.close()


def check_answer(shown: Shown, http: httpx.Client, panel: Any, name: str) -> None:
    """What is shown is what the server says to anybody."""
    if name == "chat":
        (body,) = shown.bodies("/v1/chat/completions")
        answer = http.post("/v1/chat/completions", json=body | {"stream": False}).json()["choices"][0]["message"]
        assert panel.locator(".assistant .said").text_content() == answer["content"] != ""
    elif name == "write":
        (body,) = shown.bodies("/v1/completions")
        answer = http.post("/v1/completions", json=body | {"stream": False}).json()["choices"][0]
        assert written(panel) == answer["text"] != ""
        assert panel.locator(".given").text_content() == body["prompt"]
    elif name in ("translate", "summarize"):
        (body,) = shown.bodies(f"/v1/{name}")
        answered = http.post(f"/v1/{name}", json=body).json()
        answer = answered["data"][0]
        assert panel.locator(".out .text").text_content() == answer["text"] != ""
        assert panel.locator(".out ol li").count() == len(answer["alternatives"]) - 1 == 2
        if not (all_asked := [body for body in shown.bodies("/v1/align") if body["model"] == answered["model"]]):
            assert name == "summarize" and answered["usage"]["prompt_tokens"] > 45  # too long for a picture
            return
        asked = all_asked[0]
        assert asked == {key: body[key] for key in ("model", "input", "target_language") if key in body} | {
            "output": answer["text"]
        }
        aligned = http.post("/v1/align", json=asked).json()
        assert panel.locator(".aligned tbody tr").count() == len(aligned["output_tokens"]) > 0
        strongest = max(range(len(aligned["input_tokens"])), key=aligned["weights"][0].__getitem__)
        cells = panel.locator(".aligned tbody tr:first-child td")
        assert "strongest" in cells.nth(strongest).get_attribute("class")
        cells.nth(strongest).hover()
        assert f"{aligned['weights'][0][strongest]:.3f}" in panel.locator(".out .note", has_text="←").text_content()
    elif name == "classify":
        (body,), (asked,) = shown.bodies("/v1/classify"), shown.bodies("/v1/explain")
        answer = http.post("/v1/classify", json=body).json()["data"][0]
        assert panel.locator("h2 .value").text_content().strip() == f"{answer['probability']:.1%}"
        words = http.post("/v1/explain", json=asked).json()["words"]
        heaviest = max(words, key=lambda word: abs(word["weight"]))
        assert panel.locator(".text").text_content() == body["input"]
        mark = panel.locator("mark.f5" if heaviest["weight"] > 0 else "mark.a5").first
        assert mark.text_content() in {word["word"] for word in words}
    elif name == "attention":
        (body,) = shown.bodies("/v1/attention")
        (found,) = http.post("/v1/attention", json=body).json()["maps"]
        heads = panel.get_by_role("radio")
        assert (
            heads.count() == sum(map(len, found["weights"])) == 4 and panel.locator('.head[tabindex="0"]').count() == 1
        )
        table_is(panel, found, 0, 0)
        heads.first.focus()
        heads.first.press("ArrowRight")
        shown.tab.keyboard.press("ArrowDown")
        table_is(panel, found, 1, 1)
        assert (
            heads.nth(3).get_attribute("aria-checked") == "true" and panel.locator('[aria-checked="true"]').count() == 1
        )
        assert shown.tab.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
        shown.tab.mouse.move(0, 0)
        panel.locator(".large .scroll").focus()
        for key in ("ArrowRight", "ArrowDown"):  # the first shows where it begins
            shown.tab.keyboard.press(key)
        told = panel.locator(".large .note", has_text="←").text_content()
        assert f"{found['weights'][1][1][1][0]:.3f}" in told and found["columns"][0].strip() in told
    else:
        assert panel.locator(".matrix tbody tr").count() == 3
        assert [panel.locator(f"tbody tr:nth-child({n}) td").nth(n - 1).text_content() for n in (1, 2, 3)] == [
            "1.00"
        ] * 3


def table_is(panel: Any, found: dict[str, Any], layer: int, head: int) -> None:
    """The large picture is of this head, and a screen reader finds its numbers in a table."""
    weights = found["weights"][layer][head]
    rows = panel.locator(".aligned tbody tr")
    assert rows.count() == len(found["rows"]) == len(weights)
    for row, values in zip(rows.all(), weights, strict=True):
        cells = row.locator("td").all_text_contents()
        assert [cell or "0.00" for cell in cells] == [f"{v if v >= 0.02 * np.max(weights) else 0:.2f}" for v in values]
        assert "strongest" in row.locator("td").nth(int(np.argmax(values))).get_attribute("class")


def written(panel: Any) -> str:
    """The pieces together, control characters as they were."""
    text = str(panel.locator(".pieces").text_content())
    return "".join(chr(ord(c) - 0x2400) if 0x2400 <= ord(c) < 0x2420 else "\x7f" if c == "\u2421" else c for c in text)


# the ratio of ink to ground of everything that has words of its own and can be seen, grounds painted over each other
CONTRASTS = """() => {
  const rgba = (css) => { const n = css.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length || e.closest(":disabled") || e.closest(".unseen, .seal, noscript")) continue;
    let ground = [255, 255, 255];
    const layers = [];
    for (let node = e; node; node = node.parentElement) layers.unshift(rgba(getComputedStyle(node).backgroundColor));
    for (const [r, g, b, a] of layers) ground = [r, g, b].map((v, k) => a * v + (1 - a) * ground[k]);
    const [a, b] = [light(rgba(getComputedStyle(e).color).slice(0, 3)), light(ground)].sort((x, y) => y - x);
    found.push([`${e.tagName}.${e.className}: ${e.textContent.slice(0, 30)}`, (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""

# what can be used and has no name, or is too small for a finger
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, [role], summary")].filter((e) => {
  if (!e.getClientRects().length || ["status", "alert"].includes(e.getAttribute("role"))) return false;
  const by = e.getAttribute("aria-labelledby");
  const name = e.getAttribute("aria-label") || (by && document.getElementById(by).textContent)
    || (e.labels?.length && e.labels[0].textContent) || (e.matches("button, summary, [role=tab], [role=group]") && e.textContent);
  return !name || !name.trim() || (e.matches("button, select, summary") && e.getBoundingClientRect().height < 24);
}).map((e) => e.outerHTML.slice(0, 120))"""


@pytest.mark.browser
def test_a_conversation(opened: Shown, server: Served) -> None:
    panel = opened.panel("chat")
    field = panel.get_by_label("Your message")
    panel.get_by_label("System message").fill("Be brief.")
    panel.get_by_label("Most tokens").fill("12")
    field.fill("first")
    field.press("Shift+Enter")
    field.press_sequentially("line two")
    field.press("Enter")
    done(panel)
    field.fill("second")
    field.press("Enter")
    done(panel)
    *_, body = opened.bodies("/v1/chat/completions")
    reply = panel.locator(".assistant .said").first.text_content()
    system = {"role": "system", "content": "Be brief."}
    asked = [
        {"role": "user", "content": "first\nline two"},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "second"},
    ]
    assert body == {"model": "chat", "messages": [system, *asked], "max_tokens": 12, "stream": True}
    panel.get_by_role("button", name="Another reply").click()
    done(panel)
    assert opened.bodies("/v1/chat/completions")[-1] == body and panel.locator(".turn").count() == 4
    opened.tab.click("#chinese")  # the conversation stays
    assert panel.locator(".user .who").first.text_content() == "您" and panel.locator(".turn").count() == 4
    opened.tab.reload()
    opened.tab.wait_for_selector("[role=tab]")
    assert opened.tab.locator("h1").text_content() == "试用模型"  # and the language is kept
    panel = opened.panel("chat")
    panel.locator(".chip").first.click()
    done(panel)
    panel.get_by_role("button", name="新对话").click()
    assert panel.locator(".turn").count() == 0 and opened.tab.locator("#status").text_content() == "已开始新对话。"
    opened.kept_to_itself()


@pytest.mark.browser
def test_stop_ends_an_answer_and_frees_its_place(
    opened: Shown, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.running.library.get("chat").engine
    model = type(server.running.library.get("chat").model)
    step = model.step

    def slow(*given: Any) -> Any:
        time.sleep(0.1)
        return step(*given)

    monkeypatch.setattr(model, "step", slow)
    panel = opened.panel("chat")
    panel.get_by_label("Most tokens").fill("100")
    panel.get_by_label("Your message").fill("Tell me everything.")
    panel.get_by_label("Your message").press("Enter")
    panel.locator(".assistant .said", has_text=re.compile(r"\S")).wait_for()
    assert engine.metrics().rows == 1 and panel.locator(".log").get_attribute("aria-busy") == "true"
    panel.get_by_role("button", name="Stop").press("Enter")
    done(panel)
    assert panel.get_by_text("Stopped.").count() == 1 and opened.tab.locator("#status").text_content() == "Stopped."
    assert opened.tab.evaluate("document.activeElement.textContent") == "Send"  # the button that had it is gone
    until = time.monotonic() + 2
    while engine.metrics().rows and time.monotonic() < until:
        time.sleep(0.02)
    assert engine.metrics().rows == 0
    monkeypatch.undo()
    panel.get_by_role("button", name="Another reply").click()  # and it goes on
    done(panel)
    assert panel.locator(".turn").count() == 2 and panel.get_by_text("Stopped.").count() == 0
    opened.kept_to_itself()


@pytest.mark.browser
def test_pieces_tell_their_alternatives(opened: Shown) -> None:
    panel = opened.panel("write")
    same_each_time(panel)
    panel.get_by_role("slider").first.press("Home")
    panel.get_by_label("Text to go on with").fill("It was a truth")
    panel.get_by_label("Text to go on with").press("Control+Enter")
    done(panel)
    (body,) = opened.bodies("/v1/completions")
    assert body == {
        "model": "lm",
        "prompt": "It was a truth",
        "max_tokens": 100,
        "temperature": 0,
        "seed": 5,
        "logprobs": 5,
        "stream": True,
    }
    pieces = panel.locator(".piece")
    pieces.nth(1).hover()
    assert panel.locator(".beside tbody tr").count() >= 5 and "chosen" in pieces.nth(1).get_attribute("class")
    pieces.first.click()
    pieces.nth(4).hover()  # on the way to its alternatives
    assert "chosen" in pieces.first.get_attribute("class")
    pieces.first.press("ArrowRight")
    pieces.nth(1).press("ArrowRight")
    assert opened.tab.evaluate("document.activeElement === document.querySelectorAll('.piece')[2]")
    assert panel.locator('.piece[tabindex="0"]').count() == 1  # one stop of the tab key
    opened.tab.keyboard.press("End")
    opened.tab.keyboard.press("Home")
    shares = [float(cell.text_content().strip("%")) for cell in panel.locator(".beside tbody .number").all()]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5
    other = panel.locator(".beside tbody button").first
    token = re.fullmatch("Go on with “(.*)” instead", other.get_attribute("aria-label"), re.S)
    assert token
    other.click()
    done(panel)
    assert opened.bodies("/v1/completions")[-1]["prompt"] == "It was a truth" + token[1]
    opened.kept_to_itself()


@pytest.mark.browser
def test_few_beams_are_asked_for_few_texts(opened: Shown) -> None:
    panel = opened.panel("translate")
    panel.locator("form textarea").fill("Open the file.")
    beams = panel.get_by_label("Beams")
    note = opened.tab.locator("#" + beams.get_attribute("aria-describedby"))
    for press, said, asked in (
        (None, "but 3 at least", {"n_best": 3}),
        ("Home", "likeliest piece each time", {"n_best": 1, "num_beams": 1}),
        ("ArrowRight", "2 likeliest beginnings", {"n_best": 2, "num_beams": 2}),
        ("End", "8 likeliest beginnings", {"n_best": 3, "num_beams": 8}),
    ):
        if press:
            beams.press(press)
        assert said in note.text_content()
        panel.locator("button.main").click()
        done(panel)
        *_, body = opened.bodies("/v1/translate")
        assert {key: value for key, value in body.items() if key in ("n_best", "num_beams")} == asked
        assert panel.locator(".out ol li").count() < asked["n_best"]
    opened.said = [line for line in opened.said if "400" not in line]  # a translation too long for its picture
    opened.kept_to_itself()


@pytest.mark.browser
def test_texts_that_are_not_compared_are_told(opened: Shown) -> None:
    panel = opened.panel("compare")
    field, note = panel.locator("form textarea"), panel.locator(".out .warning")
    for number, told in ((13, ["The first 12 of 13 texts are compared."]), (12, [])):
        field.fill("\n".join(f"text {n}" for n in range(number)))
        panel.locator("button.main").click()
        done(panel)
        assert panel.locator(".matrix tbody tr").count() == 12 and note.all_text_contents() == told
    opened.kept_to_itself()


@pytest.mark.browser
@pytest.mark.slow
def test_settings_say_what_they_do(opened: Shown) -> None:
    panel = opened.panel("write")
    temperature, top_p = panel.get_by_label("Temperature"), panel.get_by_label("Top p")

    def note(control: Any) -> str:
        return str(opened.tab.locator("#" + control.get_attribute("aria-describedby")).text_content())

    assert note(temperature).startswith("The model's own setting")
    temperature.press("Home")
    assert note(temperature).startswith("Always the likeliest")
    temperature.press("End")
    assert "bolder" in note(temperature)
    top_p.fill("0.5")
    assert "50%" in note(top_p)
    seed = panel.get_by_label("Seed")
    assert note(seed).startswith("Empty")
    seed.fill("3")
    assert note(seed).startswith("The same settings")
    panel.get_by_role("button", name="Set back").click()
    assert note(temperature).startswith("The model's own setting") and seed.input_value() == ""
    opened.kept_to_itself()


@pytest.mark.browser
def test_the_keyboard_alone(opened: Shown) -> None:
    tab = opened.tab
    tab.wait_for_selector("[role=tab]")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "work"
    tab.locator("#tab-chat").focus()
    tab.keyboard.press("ArrowRight")
    assert (
        tab.locator("#tab-write").get_attribute("aria-selected") == "true" and tab.locator("#panel-write").is_visible()
    )
    tab.keyboard.press("End")
    assert tab.locator("#panel-attention").is_visible() and not tab.locator("#panel-write").is_visible()
    tab.keyboard.press("Tab")  # past the other tabs, into the panel
    assert tab.evaluate("document.activeElement.tagName") == "SELECT"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.goto(opened.url + "#classify")
    assert tab.locator("#panel-classify").is_visible()
    opened.kept_to_itself()


# ---- in code


@pytest.mark.browser
@pytest.mark.parametrize("tabs", [("chat", "classify"), pytest.param(TABS, marks=pytest.mark.slow)], ids=["two", "all"])
def test_the_code_does_what_was_done(opened: Shown, tabs: tuple[str, ...]) -> None:
    """Texts with quotes in them, run as they were copied: what they print is what was shown."""
    for name in tabs:
        panel = opened.panel(name)
        if name in ("chat", "write"):
            same_each_time(panel)
            panel.get_by_label("Most tokens").fill("8")
        panel.locator("form textarea").fill("""It's "quoted" \\ 好\nand again""")
        panel.locator("button.main").click()
        done(panel)
        curl, python = code(opened, panel, 0), code(opened, panel, 1)
        assert (
            "urlopen" in python if name in ("translate", "summarize", "classify", "attention") else "OpenAI(" in python
        )
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(python, name, "exec"), {})  # noqa: S102 -- that it runs is what is tested
        if shutil.which("curl"):
            raw = subprocess.run(
                ["bash", "-c", curl.replace("curl ", "curl -sS ")], capture_output=True, text=True, check=True
            )
            assert '"error"' not in raw.stdout and raw.stdout
        if name == "chat":
            assert said.getvalue() == panel.locator(".assistant .said").text_content()
        elif name == "write":
            assert said.getvalue() == written(panel)
        elif name in ("translate", "summarize"):
            assert (
                panel.locator(".out .text").text_content()
                == ast.literal_eval(said.getvalue().splitlines()[0])["data"][0]["text"]
            )
        elif name == "classify":
            printed = [ast.literal_eval(line)["object"] for line in said.getvalue().splitlines()]
            assert printed == ["list", "explanation"]
        assert said.getvalue().strip()
    opened.said = [line for line in opened.said if "400" not in line]  # a translation that is too long for its picture
    opened.kept_to_itself()


# ---- the key, and troubles


@pytest.mark.browser
def test_a_key_stays_in_the_tab(browser: Any, root: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with Served([str(root / "mood")], key_file=keys) as server:
        shown = Shown(browser, server.url)
        tab = shown.tab
        field = tab.get_by_label("API key")
        field.wait_for()
        assert "an API key only" in tab.locator("#about").text_content() and not tab.locator(".trouble").count()
        for wrong in ("not-the-key-0123456789", "钥匙"):
            field.fill(wrong)
            field.press("Enter")
            tab.get_by_text("does not accept this key").wait_for()
            assert tab.evaluate("document.activeElement.id") == "key-field"
        field.fill(KEY)
        field.press("Enter")
        tab.wait_for_selector("#tab-classify")
        panel = shown.panel("classify")
        panel.locator(".chip").first.click()
        done(panel)
        for number in (0, 1):
            copied = code(shown, panel, number)
            assert KEY not in copied and "ZHIXING_API_KEY" in copied
        said = io.StringIO()
        with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZHIXING_API_KEY", KEY)
            exec(compile(copied, "python", "exec"), {})  # noqa: S102
        assert "probabilities" in said.getvalue()
        assert KEY not in tab.content() and KEY not in tab.url and tab.evaluate("localStorage.length") == 0
        tab.reload()
        tab.wait_for_selector("#tab-classify")  # kept in the tab
        other = shown.context.new_page()
        other.goto(server.url)
        other.get_by_label("API key").wait_for()  # and in no other
        tab.get_by_role("button", name="Forget it").click()
        tab.get_by_text("an API key only").wait_for()
        assert tab.evaluate("sessionStorage.length") == 0
        shown.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("locale", ["en-GB", pytest.param("zh-CN", marks=pytest.mark.slow)])
def test_troubles_say_what_happened_and_what_to_do(browser: Any, root: Path, locale: str) -> None:
    chinese = locale.startswith("zh")

    def english_or(english: str, other: str) -> str:
        return other if chinese else english

    with Served([str(root / "lm")], engine=EngineLimits(most_rows=1, most_waiting=1)) as server:
        shown = Shown(browser, server.url, locale=locale)
        panel = shown.panel("write")
        field, button, told = panel.locator("form textarea"), panel.locator("button.main"), panel.locator(".trouble")

        def asked(text: str) -> str:
            field.fill(text)
            button.click()
            done(panel)
            return str(told.text_content()) if told.count() else ""

        assert english_or("Write something first", "请先输入文字") in asked("")
        long = asked("word " * 200)
        limit = re.search(
            english_or(r"([\d,]+) tokens, and it reads ([\d,]+)", r"共 ([\d,]+) 个词元，最多 ([\d,]+) 个"), long
        )
        assert limit and limit[2] == "63" and english_or("Shorten the text", "请缩短文本") in long
        assert field.input_value() == "word " * 200  # nothing is lost

        hosted = server.running.library.get("lm")
        held, go = threading.Event(), threading.Event()

        def holds(texts: Any, breathe: Any) -> list[Any]:
            held.set()
            go.wait(20)
            return [None for _ in texts]

        at_work = hosted.engine.submit_job(Batch(holds, 1), "x", key="someone")
        assert held.wait(10)
        body = {"model": "lm", "prompt": "It", "max_tokens": 2}
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=30)
            while hosted.engine.metrics().waiting == 0:  # and one waits, which is the most
                time.sleep(0.01)
            full = asked("It was")
            assert english_or("The server is full", "服务器已满") in full
            assert english_or("again in 1 s", "1 秒后再试") in full
            go.set()
            assert waiting.result().status_code == 200
        at_work.result(20)
        panel.locator(".trouble button").click()  # try again
        panel.locator(".piece").first.wait_for()
        done(panel)
        assert told.count() == 0

        def breaks(*_: Any) -> Any:
            raise RuntimeError("out of memory")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(hosted.model), "step", breaks)
            failed = asked("It was")
        assert english_or("The model failed", "模型出错") in failed
        assert re.search("[0-9a-f]{16}", failed) or english_or("log says more", "日志") in failed
        assert asked("It was") == ""  # and goes on with the next
    lost = asked("It was")  # the server is gone
    assert english_or("connection to the server is lost", "与服务器的连接已断开") in lost
    assert panel.locator(".trouble button").is_visible()
    assert [line for line in shown.said if "Failed to load resource" not in line and "page_failed" in line] == []
    shown.context.close()


class Broken:
    """A model whose next steps wait until they are let `go`, and fail then."""

    def __init__(self, patch: pytest.MonkeyPatch, model: Any) -> None:
        self.go = threading.Event()
        patch.setattr(model, "step", self.step)

    def step(self, *_: Any) -> Any:
        self.go.wait(20)
        raise RuntimeError("out of memory")


@pytest.mark.browser
def test_what_was_said_is_kept_where_no_reply_comes(
    opened: Shown, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = type(server.running.library.get("chat").model)
    panel = opened.panel("chat")
    same_each_time(panel)
    panel.get_by_label("Most tokens").fill("12")
    field, draft = panel.get_by_label("Your message"), "the next, half wri"
    questions, replies = panel.locator(".user .said"), panel.locator(".assistant .said")

    def asked() -> list[str]:
        return [message["content"] for message in opened.bodies("/v1/chat/completions")[-1]["messages"]]

    field.fill("first")
    with monkeypatch.context() as patch:
        broken = Broken(patch, model)
        field.press("Enter")
        broken.go.set()
        done(panel)
        assert field.input_value() == "first" and questions.count() == 0  # the person's again
        broken.go.clear()
        field.press("Enter")
        field.fill(draft)  # while it waits
        broken.go.set()
        done(panel)
    assert questions.all_text_contents() == ["first"] and field.input_value() == draft
    assert panel.get_by_text("No reply came.").count() == 1 and replies.count() == 0
    panel.get_by_role("button", name="Try again").click()
    done(panel)
    assert asked() == ["first"] and field.input_value() == draft and panel.get_by_text("No reply came.").count() == 0
    (reply,) = replies.all_text_contents()
    assert reply
    with monkeypatch.context() as patch:
        Broken(patch, model).go.set()
        panel.get_by_role("button", name="Another reply").click()
        done(panel)
    assert questions.all_text_contents() == ["first"] and replies.all_text_contents() == [reply]
    with monkeypatch.context() as patch:
        broken = Broken(patch, model)
        field.press("Enter")
        field.fill("and a third")
        panel.get_by_role("button", name="Stop").click()
        done(panel)
        broken.go.set()
        assert questions.all_text_contents() == ["first", draft] and field.input_value() == "and a third"
        until = time.monotonic() + 5
        while server.rows("chat") and time.monotonic() < until:
            time.sleep(0.02)
    field.press("Enter")
    done(panel)
    assert asked() == ["first", reply, "and a third"]  # what had no reply is not told


@pytest.mark.browser
def test_try_again_does_what_failed(opened: Shown, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    model = type(server.running.library.get("chat").model)
    step, breaks = model.step, threading.Event()

    def slow(*given: Any) -> Any:
        if breaks.is_set():
            raise RuntimeError("out of memory")
        time.sleep(0.05)
        return step(*given)

    panel = opened.panel("chat")
    same_each_time(panel)
    panel.get_by_label("Most tokens").fill("60")
    field = panel.get_by_label("Your message")
    with monkeypatch.context() as patch:
        patch.setattr(model, "step", slow)
        field.fill("first")
        field.press("Enter")
        panel.locator(".assistant .said", has_text=re.compile(r"\S")).wait_for()
        field.fill("draft")
        breaks.set()
        done(panel)
    assert panel.get_by_text("Broken off.").count() == 1
    panel.get_by_role("button", name="Try again").click()
    done(panel)
    first, again = opened.bodies("/v1/chat/completions")
    assert first == again and field.input_value() == "draft"
    assert panel.locator(".turn").count() == 2 and panel.get_by_text("Broken off.").count() == 0

    panel = opened.panel("write")
    same_each_time(panel)
    panel.get_by_label("Most tokens").fill("4")
    panel.get_by_label("Text to go on with").fill("It was a truth")
    panel.locator("button.main").click()
    done(panel)
    panel.locator(".piece").nth(1).click()
    with monkeypatch.context() as patch:
        Broken(patch, model).go.set()
        panel.locator(".beside tbody button").first.click()
        done(panel)
    panel.get_by_role("button", name="Try again").click()
    done(panel)
    begun, failed, again = opened.bodies("/v1/completions")
    assert failed == again and failed["prompt"] != begun["prompt"] and panel.locator(".piece").count()


@pytest.mark.browser
def test_a_label_stays_with_its_text(opened: Shown, server: Served) -> None:
    held, go = threading.Event(), threading.Event()

    def holds(texts: Any, breathe: Any) -> list[Any]:
        held.set()
        go.wait(20)
        return [None for _ in texts]

    at_work = server.running.library.get("mood").engine.submit_job(Batch(holds, 1), "x", key="someone")
    assert held.wait(10)
    panel = opened.panel("classify")
    field = panel.get_by_label("Text to classify")
    for text in ("A slow start.", "Another text, of another length."):
        field.fill(text)
        field.press("Control+Enter")
    go.set()
    at_work.result(20)
    done(panel)
    (asked,), (explained,) = opened.bodies("/v1/classify"), opened.bodies("/v1/explain")
    assert asked["input"] == explained["input"] == panel.locator(".text").text_content() == "A slow start."
    panel.locator("tbody button").first.click()
    done(panel)
    assert opened.bodies("/v1/explain")[-1]["input"] == "A slow start."
    opened.kept_to_itself()


@pytest.mark.browser
@pytest.mark.slow
def test_without_models(browser: Any, root: Path) -> None:
    with Served([], root=root) as server:
        shown = Shown(browser, server.url)
        shown.tab.get_by_text("no model loaded").wait_for()
        assert not shown.tab.locator("#tabs").is_visible()
        shown.kept_to_itself()
        shown.context.close()


# ---- whatever a model says


def says(text: str, vocabulary: Tokenizer, filler: int = 48) -> GPT:
    """A gpt that writes one text whatever it is asked: each position has a direction of its own, and a token for it."""
    ids = [*vocabulary.encode("." * filler), *vocabulary.encode(text)]
    ids.append(vocabulary.eos_id)
    size = len(ids) + 8 + len(ids) % 2
    settings = GPTSettings(vocabulary.vocab_size, layout="gpt2", d_model=size, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=2, max_len=size, tie_embeddings=False)  # fmt: skip
    model = GPT(settings).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.zero_()
        assert model.positions is not None and model.lm_head is not None
        model.positions.weight.copy_(torch.eye(size))
        for position, id_ in enumerate(ids):
            model.lm_head.weight[id_, position] = 10.0
    return model


@pytest.fixture(scope="module")
def hostile_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and a chat model that say every hostile string, and a classifier with these for labels."""
    folder = tmp_path_factory.mktemp("hostile")
    text = "\n".join(HOSTILE)
    plain, pieces = (train_tokenizer([text] * 4, "bpe", 900) for _ in range(2))
    write_model_directory(folder / "lm", says(text, plain), plain)
    pieces.add_controls(CONTROLS)
    model = says(text, pieces)
    with torch.no_grad():  # its turn ends by its own control
        ends = end_ids(pieces, DEFAULT_TEMPLATE)
        model.lm_head.weight[ends[0]] += model.lm_head.weight[pieces.eos_id]  # type: ignore[union-attr]
        model.lm_head.weight[pieces.eos_id] = 0  # type: ignore[union-attr]
    (folder / "chat").mkdir()
    write_chat(folder / "chat", StoredChat(model, pieces, DEFAULT_TEMPLATE), ends)
    words = train_tokenizer([text], "bpe", 300)
    cnn = TextCNNClassifier(TextCNNSettings(words.vocab_size, len(HOSTILE), d_model=8, max_len=64, n_filters=4)).eval()
    write_classifier(
        folder / "labels", StoredClassifier(cnn, words, tuple(HOSTILE), "single_label_classification", 1.0)
    )
    return folder


@pytest.mark.browser
def test_nothing_that_a_model_says_runs(browser: Any, hostile_root: Path) -> None:
    assert len(set(HOSTILE)) == 50
    with Served([str(hostile_root / name) for name in ("lm", "chat", "labels")]) as server:
        shown = Shown(browser, server.url)
        everything = "\n".join(HOSTILE)
        panel = shown.panel("chat")
        panel.get_by_label("Most tokens").fill(str(len(everything)))
        panel.get_by_label("Your message").fill("x")
        panel.get_by_label("Your message").press("Enter")
        done(panel)
        assert panel.locator(".assistant .said").text_content().lstrip(".") == everything
        panel = shown.panel("write")
        panel.get_by_label("Most tokens").fill("5000")
        panel.get_by_label("Text to go on with").fill(HOSTILE[0])
        panel.locator("button.main").click()
        done(panel)
        assert written(panel).lstrip(".").endswith("\n".join(HOSTILE[1:]))
        for piece in panel.locator(".piece").all()[::40]:
            piece.dispatch_event("mouseenter")
        panel = shown.panel("classify")
        panel.get_by_label("Text to classify").fill(everything[:300])
        panel.locator("button.main").click()
        done(panel)
        assert panel.locator(".text").text_content() == everything[:300]
        labels = panel.locator("tbody button")
        assert sorted(label.text_content() for label in labels.all()) == sorted(HOSTILE)
        labels.last.click()
        done(panel)
        for text in HOSTILE[:3]:  # what a person says is shown too
            chat = shown.panel("chat")
            chat.get_by_label("Most tokens").fill("4")
            chat.get_by_label("Your message").fill(text)
            chat.get_by_label("Your message").press("Enter")
            chat.locator(".trouble, .user .said", has_text=re.compile(".")).first.wait_for()
            done(chat)
        code(shown, panel := shown.panel("write"), 1)
        shown.tab.click("#chinese")
        only_ours(shown)
        shown.said = [line for line in shown.said if "400" not in line]  # a history that is too long
        shown.kept_to_itself()
        shown.context.close()


def only_ours(shown: Shown) -> None:
    """There are no elements but those that the page makes, and no attribute that runs."""
    kinds = set(shown.tab.evaluate("[...document.body.querySelectorAll('*')].map(e => e.localName)"))
    assert kinds <= {
        "a", "div", "header", "span", "h1", "h2", "p", "button", "noscript", "form", "label", "input", "main", "footer", "section", "ol", "li",
        "textarea", "select", "option", "details", "summary", "output", "table", "caption", "thead", "tbody", "tr", "th", "td", "small", "b",
        "mark", "pre", "strong", "q", "canvas", "ul", "progress", "svg", "g", "line", "polyline", "circle", "text",
    }  # fmt: skip
    names = set(shown.tab.evaluate("[...document.body.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"))
    assert not {name for name in names if name.startswith("on") or name in ("srcdoc", "action", "formaction")}
    assert shown.tab.locator("#status").count() == 1


@pytest.mark.browser
def test_nothing_that_a_server_says_runs(browser: Any, server: Served) -> None:
    """A server that was taken over: ids, languages, translations, vectors and errors are hostile too."""
    shown = Shown(browser, server.url)
    everything = "\n".join(HOSTILE)
    tasks = ("translation", "summarization")
    cards = [
        {
            "id": text,
            "task": task,
            "max_model_len": None,
            "labels": None,
            "target_languages": HOSTILE,
            "attention_layers": 2,
            "reads_apart": True,
        }
        for text in HOSTILE
        for task in tasks
    ]
    best = {"text": everything, "score": 0.0, "alternatives": [{"text": text, "score": -1.0} for text in HOSTILE]}
    shown.tab.route("**/v1/models", lambda route: route.fulfill(json={"data": cards}))
    used = {"prompt_tokens": 1}
    aligned = {"input_tokens": HOSTILE[:2], "output_tokens": HOSTILE[2:], "weights": [[0.25, 0.75]] * 48}
    shown.tab.route("**/v1/translate", lambda route: route.fulfill(json={"data": [best], "usage": used}))
    shown.tab.route("**/v1/align", lambda route: route.fulfill(json=aligned))
    messages = ["\n".join(HOSTILE[n : n + 10]) for n in range(0, 50, 10)]
    errors = iter(messages)
    shown.tab.route(
        "**/v1/summarize",
        lambda route: route.fulfill(status=400, json={"error": {"message": next(errors), "code": "x"}}),
    )
    runs = [
        {"id": text, "state": "done", "step": 7, "max_steps": 9, "seconds": 1, "seconds_left": None, "updated": 1}
        for text in HOSTILE
    ]
    lines = {"training": runs[0], "version": HOSTILE[0], "start": 0, "next": 2, "more": False,
             "lines": [{"step": HOSTILE[1], "loss": 1}, {"step": 7, "loss": 1.5, "eval_loss": HOSTILE[2]}]}  # fmt: skip
    shown.tab.route("**/v1/trainings", lambda route: route.fulfill(json={"watching": True, "data": runs}))
    shown.tab.reload()
    panel = shown.panel("translate")
    panel.locator(".chip").first.click()
    panel.locator(".text", has_text="pwned").wait_for()
    assert panel.locator(".out .text").text_content() == everything
    assert [li.text_content() for li in panel.locator(".out ol span:first-child").all()] == HOSTILE
    assert [option.text_content() for option in panel.locator("option").all()] == HOSTILE * 2
    done(panel)
    assert [th.text_content() for th in panel.locator(".aligned th").all()] == [*HOSTILE[:2], *HOSTILE[2:]]
    panel.locator(".aligned tbody td").first.dispatch_event("mouseover")
    assert HOSTILE[0] in panel.locator(".note", has_text="←").text_content()
    heads = [[[[0.25, 0.75]] * 48] * 2] * 2
    attended = {"maps": [{"kind": "cross", "rows": HOSTILE[2:], "columns": HOSTILE[:2], "weights": heads}]}
    shown.tab.route("**/v1/attention", lambda route: route.fulfill(json=attended))
    panel = shown.panel("attention")
    panel.locator(".chip").first.click()
    done(panel)
    assert [th.text_content() for th in panel.locator(".aligned th").all()] == [*HOSTILE[:2], *HOSTILE[2:]]
    panel.locator(".aligned tbody td").first.dispatch_event("mouseover")
    shown.tab.route("**/v1/trainings/**", lambda route: route.fulfill(json=lines))
    panel = shown.panel("trainings")
    panel.locator(".curve").wait_for()
    assert [name.text_content() for name in panel.locator(".runs .name").all()] == HOSTILE
    panel.locator(".frame").focus()
    panel.locator(".frame").press("End")
    assert HOSTILE[0] in panel.locator(".values").text_content()
    panel = shown.panel("summarize")
    panel.locator("form textarea").fill("x")
    for text in messages:
        panel.locator("button.main").click()
        done(panel)
        assert panel.locator("q").text_content() == text
    only_ours(shown)
    shown.said = [line for line in shown.said if "400" not in line]
    shown.kept_to_itself()
    shown.context.close()


@pytest.mark.browser
@pytest.mark.slow
def test_too_many_heads_come_layer_by_layer(opened: Shown, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"model": "lm", "input": "It was a truth"}
    (found,) = httpx.post(f"{server.url}/v1/attention", json=asked).json()["maps"]
    monkeypatch.setattr("zhixing.serving.attention.MOST_WEIGHTS", 2 * len(found["rows"]) ** 2)
    panel = opened.panel("attention")
    panel.get_by_label("Text for the model to read").fill("It was a truth")
    panel.locator("button.main").click()
    done(panel)
    assert opened.bodies("/v1/attention") == [asked, asked | {"layer": 0}, asked | {"layer": 1}]
    panel.get_by_role("radio", name="Layer 2, head 2").click()
    table_is(panel, found, 1, 1)
    assert '"layer": 0' in code(opened, panel, 1)
    monkeypatch.setattr("zhixing.serving.attention.MOST_ATTENDED", 2)
    panel.locator("button.main").click()
    done(panel)
    assert "too much attention" in panel.locator(".trouble").text_content()


@pytest.mark.browser
def test_a_training_is_watched(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    log = begun(folder / "mine", 400)
    for step in range(10, 110, 10):
        log.write({"step": step, "loss": 5 - step / 100, "seconds": step * 0.5})
    log.write({"step": 100, "eval_loss": 4.5})
    old = begun(folder / "old", 50)
    for step in (10, 50):
        old.write({"step": step, "loss": 6.0, "seconds": 3.0})
    old.write({"step": 50, "eval_loss": 5.75})
    os.utime(folder / "old" / "metrics.jsonl", (1, 1))
    (folder / HOSTILE[2].replace("/", "")).mkdir()
    with Served([], trainings=folder) as server, run_lock(folder / "mine"):
        shown = Shown(browser, server.url, width=360, color_scheme="dark")
        shown.tab.wait_for_selector("#tab-trainings")
        assert (
            shown.tab.get_by_role("tab").count() == 1
            and "No model is loaded" in shown.tab.locator("#about").text_content()
        )
        panel = shown.panel("trainings")
        values = panel.locator("tbody td")
        values.first.wait_for()
        assert values.all_text_contents() == ["100", "4.000", "4.500", "4.500 at step 100"]  # the one that trains
        assert [li.text_content() for li in panel.locator(".runs li").all()] == [
            "1minerunningstep 100 of 400 · about 3 min left", "oldstoppedstep 50 of 50 · 3 s of training"
        ]  # fmt: skip
        before = len(shown.asked)
        log.write({"step": 110, "loss": 3.25, "seconds": 55.0})
        panel.get_by_text("3.250").wait_for(timeout=5000)  # as it grows
        starts = {request.url.partition("start=")[2] for request in shown.asked[before:]} - {""}
        assert starts <= {"11", "12"}, "only what is new is asked for"
        panel.get_by_label("old").check()
        panel.locator("tbody tr").nth(1).wait_for()
        assert values.all_text_contents()[4:] == ["50", "6.000", "5.750", "5.750 at step 50"]
        assert panel.locator(".curve polyline").count() == 4 and panel.locator(".key-of").count() == 2
        frame = panel.locator(".frame")
        frame.focus()
        for key in ("End", "ArrowLeft"):
            frame.press(key)
        told = panel.locator(".values").text_content()
        assert told.startswith("Step 100") and "mine: training 4.000, held-out 4.500" in told
        assert "old: training –, held-out –" in told, "it has ended before"
        frame.press("Home")
        assert "Step 10" in panel.locator(".values").text_content()
        panel.get_by_text("Loss", exact=True).first.click()
        assert shown.tab.evaluate("document.documentElement.scrollWidth") == 360
        faint = shown.tab.evaluate(CONTRASTS)
        assert all(ratio >= 4.5 for _, ratio in faint), [each for each in faint if each[1] < 4.5]
        assert shown.tab.evaluate(NAMELESS) == []
        assert "curl " in (copied := code(shown, panel, 0)) and copied.endswith(
            f"'{server.url}/v1/trainings/old?start=0'"
        )
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code(shown, panel, 1), "python", "exec"), {})  # noqa: S102
        assert "'watching': True" in said.getvalue() and "'loss': 3.25" in said.getvalue()
        shown.tab.click("#chinese")
        assert panel.locator(".state.running").text_content() == "训练中"
        shown.kept_to_itself()
        shown.context.close()


POLLS = "document.dispatchEvent(new Event('visibilitychange'))"  # as when the tab is looked at again


@pytest.mark.browser
def test_a_trouble_of_the_trainings_is_told_once(browser: Any, tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "mine", 400).write({"step": 10, "loss": 5.0, "seconds": 1.0})
    with Served([], trainings=tmp_path / "runs") as server:
        shown = Shown(browser, server.url)
        panel = shown.panel("trainings")
        panel.get_by_text("5.000").wait_for()
    again = panel.get_by_role("button", name="Try again")
    shown.tab.evaluate(POLLS)
    again.wait_for()  # the server is gone
    again.focus()
    shown.tab.evaluate("document.querySelector('#panel-trainings .trouble').seen = true")
    for _ in range(2):
        with shown.tab.expect_event("requestfailed"):
            shown.tab.evaluate(POLLS)
        shown.tab.wait_for_timeout(50)
        assert shown.tab.evaluate("document.querySelector('#panel-trainings .trouble').seen") is True
        assert shown.tab.evaluate("document.activeElement.textContent") == "Try again"
    shown.context.close()


@pytest.mark.browser
def test_a_training_that_vanishes_frees_its_place(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in "abcdefg":
        begun(folder / name, 400).write({"step": 10, "loss": 5.0, "seconds": 1.0})
    with Served([], trainings=folder) as server:
        shown = Shown(browser, server.url)
        panel = shown.panel("trainings")
        panel.get_by_text("5.000").first.wait_for()
        free = panel.get_by_role("checkbox", checked=False)
        while free.count() > 1:
            free.first.check()
        assert free.is_disabled()
        gone = panel.locator("tbody th span:last-child").first.text_content()
        shutil.rmtree(folder / gone)
        shown.tab.evaluate(POLLS)
        panel.locator(".runs li").nth(6).wait_for(state="detached")
        assert free.is_enabled() and panel.locator(".badge:not(:empty)").count() > 0
        assert f"/{gone}?" not in code(shown, panel, 0) and panel.locator("tbody tr").count() == 5
        shown.kept_to_itself()
        shown.context.close()


def begun(folder: Path, steps: int) -> MetricsLog:
    """A run that writes its measurements as the training loop does."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(f"[train]\nmax_steps = {steps}\n")
    return MetricsLog(folder, tensorboard=False, resumed_at=0)


@pytest.mark.browser
@pytest.mark.slow
def test_a_training_that_went_on_elsewhere_is_read_anew(browser: Any, tmp_path: Path) -> None:
    log = begun(tmp_path / "runs" / "mine", 400)
    for step in range(10, 410, 10):
        log.write({"step": step, "loss": 5.0, "seconds": step * 0.5})
    with Served([], trainings=tmp_path / "runs") as server:
        shown = Shown(browser, server.url)
        panel = shown.panel("trainings")
        panel.get_by_text("5.000").wait_for()
        log = MetricsLog(tmp_path / "runs" / "mine", tensorboard=False, resumed_at=200)  # went back to a checkpoint
        for step in range(210, 440, 10):
            log.write({"step": step, "loss": 4.0, "seconds": step * 0.5})
        panel.get_by_text("4.000").wait_for()
        points = panel.locator(".curve polyline").first.get_attribute("points").split()
        assert len(points) == 43, "no point twice"
        shown.tab.evaluate("document.querySelector('#work').hidden = true")  # out of sight nothing is asked for
        shown.tab.wait_for_timeout(500)
        before = len(shown.asked)
        shown.tab.wait_for_timeout(2500)
        assert len(shown.asked) == before
        shown.kept_to_itself()
        shown.context.close()


@pytest.mark.browser
def test_the_policy_lets_no_other_script_run(opened: Shown) -> None:
    tab = opened.tab
    tab.wait_for_selector("[role=tab]")
    tried = """async () => {
      const refused = [];
      addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective));
      const script = document.createElement("script");
      try { script.text = "pwned = 1"; document.body.append(script); } catch { refused.push("sink"); }
      try { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=pwned=1>"); } catch { refused.push("sink"); }
      try { await fetch("http://localhost:1/"); } catch { refused.push("fetch"); }
      await new Promise((done) => setTimeout(done, 50));
      return refused;
    }"""
    refused = tab.evaluate(tried)
    assert refused.count("sink") == 2 and "fetch" in refused and tab.evaluate("typeof pwned") == "undefined"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.network
def test_axe_finds_nothing(browser: Any, server: Served, tmp_path: Path) -> None:
    """axe-core, fetched for this test only: no finding that is serious or critical, in each tab, before and after use."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    subprocess.run(["npm", "pack", "--silent", "axe-core@4.10.3"], cwd=tmp_path, check=True, env=dict(os.environ))
    with tarfile.open(next(tmp_path.glob("axe-core-*.tgz"))) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        axe = member.read().decode()

    def serious(shown: Shown) -> list[Any]:
        found = shown.tab.evaluate(
            "axe.run().then(({violations}) => violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)]))"
        )
        return [each for each in found if each[0] in ("serious", "critical")]

    for name in ("mine", "other"):
        log = begun(tmp_path / "runs" / name, 400)
        for step in range(10, 310, 10):
            log.write({"step": step, "loss": 5.0 - step / 100, "eval_loss": 5.0 - step / 120, "seconds": step * 0.5})
    for width, locale, scheme in ((1280, "en-GB", "light"), (360, "zh-CN", "dark")):
        with Served([], trainings=tmp_path / "runs") as watching:
            shown = Shown(browser, watching.url, width=width, locale=locale, color_scheme=scheme, bypass_csp=True)
            shown.tab.evaluate(axe)
            shown.panel("trainings").locator("svg.curve").wait_for()
            shown.tab.get_by_label("other").check()
            assert serious(shown) == [], "trainings"
            shown.tab.screenshot(path=tmp_path / f"trainings-{width}.png", full_page=True)
            shown.context.close()
        shown = Shown(browser, server.url, width=width, locale=locale, color_scheme=scheme, bypass_csp=True)
        shown.tab.wait_for_selector("[role=tab]")
        shown.tab.evaluate(axe)
        for name in TABS:
            panel = shown.panel(name)
            for used in (False, True):
                if used:
                    panel.locator(".chip").first.click()
                    done(panel)
                    if name == "write":
                        panel.locator(".piece").first.hover()
                assert serious(shown) == [], (name, used)
        shown.context.close()
