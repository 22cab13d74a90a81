"""The page of explanations: right, whole, harmless whatever a text says, and to be seen in a real browser."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from pages import Tags
from zhixing.errors import InputError
from zhixing.evaluation.records import visible
from zhixing.explain.explanation import Explanation
from zhixing.explain.nearest import Neighbour
from zhixing.explain.page import page
from zhixing.explain.spans import Word, cut_words

HOSTILE = [
    "<script>pwned=1</script>",
    "</script><script>pwned=1</script>",
    "<img src=x onerror=pwned=1>",
    "<svg onload=pwned=1>",
    "</text></svg><script>pwned=1</script>",
    "</mark></div></article><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "</style><script>pwned=1</script>",
    "</title><script>pwned=1</script>",
    '" onmouseover="pwned=1" autofocus onfocus="pwned=1',
    "' onmouseover='pwned=1",
    "<a href=javascript:pwned=1>x</a>",
    "<details open ontoggle=pwned=1>",
    "<input autofocus onfocus=pwned=1>",
    "<meta http-equiv=refresh content='0;url=javascript:pwned=1'>",
    "<base href='javascript:pwned=1//'><link rel=stylesheet href=x>",
    "{{ 7*7 }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "<!--><script>pwned=1</script-->",
    "&lt;script&gt;pwned=1&lt;/script&gt;&#60;script&#62;",
    "<math><mtext></table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=pwned=1&gt;'>",
    "\x1b[31m\x00\x07\u202e<script>\ud800pwned=1</script>",
]

WORDS = {
    "wonderful": 1.8, "moving": 0.9, "best": 0.7, "bored": -1.2, "slow": -0.6, "but": 0.25, "never": -0.3,
    "喜": 0.8, "欢": 0.9, "不": -0.7, "好": 0.4, "very": 0.15, "!": 0.1,
}  # fmt: skip
REVIEW = "A slow start, but a wonderful, moving film.\n\nI was never bored: very much the best of the year!"


def explanation(text: str = REVIEW, **changes: Any) -> Explanation:
    words = tuple(Word(a, b, WORDS.get(text[a:b].lower(), 0.0)) for a, b in cut_words(text))
    fields: dict[str, Any] = {
        "text": text, "label": "positive", "probability": 0.931, "method": "integrated_gradients", "score": 2.6,
        "baseline_score": -0.1, "words": words, "rest": 0.1, "gap": 0.001, "complete": True, "nodes": 24,
        "nearest": (Neighbour("A film that moved me.", ("positive",), 0.612, 3), Neighbour("没意思", (), 0.2, 9)),
    }  # fmt: skip
    return Explanation(**(fields | changes))


def texts_of(html: str) -> list[str]:
    """The explained texts as the page has them, marks taken away."""
    found = re.findall(r'<div class="text"[^>]*>(.*?)</div>', html, flags=re.S)
    return ["".join(Tags(f"<div>{inner}</div>").words) for inner in found]


def test_the_page_says_what_the_explanation_says() -> None:
    html = page([explanation(), explanation("我不喜欢，不好", label="差评", probability=0.75)])
    words = " ".join(" ".join(Tags(html).words).split())
    for piece in (
        "positive", "93.1%", "差评", "75.0%", "integrated gradients", "积分梯度", "−1.200", "+1.800", "A film that moved me.",
        "likeness 0.61", "no label", "+2.60", "within 0.001 (24 nodes)", "支持该标签",
    ):  # fmt: skip
        assert piece in words, piece
    assert texts_of(html) == [REVIEW, "我不喜欢，不好"]
    assert '<mark class="f5" title="+1.800">wonderful</mark>' in html
    assert '<mark class="a4" title="−1.200">bored</mark>' in html
    assert '<mark class="f5" title="+0.900">欢</mark>' in html
    assert html.count("<article") == 2 and html.count('href="#text-') == 2
    assert 'href="#text-' not in page([explanation()])  # one text needs no contents
    assert "Careful" not in words


def test_the_same_explanations_give_the_same_page() -> None:
    assert page([explanation()]) == page([explanation()])
    with pytest.raises(InputError, match="no explanation"):
        page([])


def test_what_is_doubtful_is_said() -> None:
    html = page([explanation(complete=False, gap=0.4, nodes=512, left_out=1234)])
    words = " ".join(" ".join(Tags(html).words).split())
    assert "miss the change of the score by 0.4 after 512 nodes" in words and "1,234 tokens" in words
    assert "Checked" not in words and words.count("Careful.") == 2
    html = page([explanation(method="rollout", gap=None, baseline_score=None)])
    assert "Shares of attention" in html and "Checked" not in html
    html = page([explanation(probability=None, label="", score=3.14159), explanation("nothing here")])
    assert "3.142" in html and "No word weighs anything." in html


def test_the_page_asks_nobody_for_anything() -> None:
    html = page([explanation()], title="my run")
    tags = Tags(html)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes in tags.seen:
        assert not set(attributes) & {"src", "style", "srcdoc", "action", "xlink:href"}
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in html and "@import" not in html
    policy = next(
        a["content"] for t, a in tags.seen if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")


def test_a_person_without_eyes_or_mouse_gets_all_of_it() -> None:
    tags = Tags(page([explanation(), explanation()]))
    ids = [a["id"] for _, a in tags.seen if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags.seen:
        if tag == "article":
            assert attributes["aria-labelledby"] in ids
        if tag == "svg":
            assert attributes["aria-hidden"] == "true"  # the number stands beside it
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "mark":
            assert attributes["title"]
        if tag == "label":
            assert attributes["for"] in ids
        if tag == "a":
            assert str(attributes["href"])[1:] in ids
    assert sum(tag == "caption" for tag, _ in tags.seen) == sum(tag == "table" for tag, _ in tags.seen) == 2


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise([*HOSTILE, HOSTILE[0]])))
def test_hostile_text_is_text(first: str, second: str) -> None:
    text = f"good {first} bad"
    words = tuple(Word(a, b, 1.0 if n % 2 else -0.5) for n, (a, b) in enumerate(cut_words(text)))
    hostile = explanation(
        text, words=words, label=second, nearest=(Neighbour(second, (first, second), 0.5, 0),),
    )  # fmt: skip
    html = page([hostile, explanation()], title=first)
    tags = Tags(html)  # nests
    kinds = {tag for tag, _ in tags.seen}
    assert kinds == {tag for tag, _ in Tags(page([explanation(), explanation()])).seen}
    for _, attributes in tags.seen:
        assert not any(name.startswith("on") for name in attributes)
    assert texts_of(html)[0] == visible(text)
    html.encode()


def test_a_text_of_100_000_words_is_a_page() -> None:
    text = "a wonderful slow film " * 25_000
    html = page([explanation(text)])
    assert texts_of(html) == [text] and len(html) < 5_000_000
    assert "25000" in html


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_hostile_text_in_a_browser(tmp_path: Path, browser: Any, policy: bool) -> None:
    """None of the strings runs; not even with the policy taken out, so that both walls hold by themselves."""
    views = []
    for text in HOSTILE:
        words = tuple(Word(a, b, 1.0 if n % 2 else -0.5) for n, (a, b) in enumerate(cut_words(text)))
        views.append(explanation(text, words=words, label=text, nearest=(Neighbour(text, (text,), 0.5, 0),)))
    html = page(views, title=HOSTILE[7])
    if not policy:
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
        assert bare != html
        html = bare
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    shown = browser.new_page()
    requests, said = [], []
    shown.on("request", lambda request: requests.append(request.url))
    shown.on("console", lambda message: said.append(message.text))
    shown.on("dialog", lambda dialog: said.append(dialog.message))
    shown.goto(path.as_uri())
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    shown.eval_on_selector_all(
        ".text, mark, th, .like li",
        "all => all.forEach(e => e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))",
    )
    shown.wait_for_timeout(100)
    assert shown.evaluate("typeof pwned") == "undefined"
    assert (requests, said) == ([path.as_uri()], [])
    assert shown.eval_on_selector_all(".text", "all => all.map(b => b.textContent)") == [visible(t) for t in HOSTILE]
    shown.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, scheme: str, width: int) -> None:
    shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    path = tmp_path / "page.html"
    long = explanation("unbreakable" * 60 + " 喜欢 " + REVIEW * 40, label="a label " * 20, left_out=5)
    path.write_text(page([explanation(), long], title="reviews"), encoding="utf-8")
    shown.goto(path.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    def count(selector: str) -> int:
        return int(shown.eval_on_selector_all(selector, "all => all.filter(e => e.getClientRects().length).length"))

    assert count(".page .en") and not count(".page .zh")
    shown.click("label[for=chinese]")
    assert count(".page .zh") and not count(".page .en")
    shown.click("label[for=english]")
    light = shown.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(250, 248, 244)"
    assert light == (scheme == "light")
    for ratio in contrasts(shown):
        assert ratio >= 4.5  # WCAG 2.2, AA
    shown.keyboard.press("Tab")  # from the language to the contents
    assert shown.evaluate("document.activeElement.getAttribute('href')") == "#text-1"
    assert said == []
    shown.close()


def contrasts(shown: Any) -> list[float]:
    """Ink against shade, of each level of the legend, painted over what lies below."""
    code = """all => all.map(e => {
        const layers = [];
        for (let node = e; node; node = node.parentElement) layers.push(getComputedStyle(node).backgroundColor);
        return [getComputedStyle(e).color, layers];
    })"""
    found = []
    for ink, layers in shown.eval_on_selector_all("mark, .legend dd > span, .note, .about, .warning, .beginning", code):
        background = [255.0, 255.0, 255.0]
        for layer in reversed(layers):
            *rgb, alpha = colour(layer)
            background = [alpha * over + (1 - alpha) * under for over, under in zip(rgb, background, strict=True)]
        bright, dim = sorted((luminance(colour(ink)[:3]), luminance(background)), reverse=True)
        found.append((bright + 0.05) / (dim + 0.05))
    assert len(found) > 10
    return found


def colour(css: str) -> list[float]:
    numbers = [float(number) for number in re.findall(r"[\d.]+", css)]
    return numbers if len(numbers) == 4 else [*numbers, 1.0]


def luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
