"""The heat map of what was read for what was written, and its page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from zhixing.errors import InputError
from zhixing.explain.alignment import alignment_page, alignment_picture

HOSTILE = [
    "<script>pwned=1</script>",
    "</text></svg><script>pwned=1</script>",
    '" onmouseover="pwned=1',
    "{{ 7*7 }}",
    "\x1b[31m\x00\u202e\ud800 <b>",
    "]]><!--",
]
SVG = "{http://www.w3.org/2000/svg}"
SOURCE, OUTPUT = ["▁Open", "▁the", "▁file", "."], ["打开", "文件", "。"]
WEIGHTS = [[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.69, 0.01], [0.0, 0.0, 0.2, 0.8]]


def _cells(svg: ElementTree.Element) -> dict[str, dict[str, str]]:
    """Title of each cell, and the attributes of its square."""
    return {str(g.findtext(f"{SVG}title")): dict(g[1].attrib) for g in svg.iter(f"{SVG}g")}


def test_cells_stand_where_they_should() -> None:
    svg = ElementTree.fromstring(alignment_picture(SOURCE, OUTPUT, WEIGHTS))
    ground = svg.find(f"{SVG}rect")
    assert ground is not None
    left, top, width = (float(ground.attrib[key]) for key in ("x", "y", "width"))
    cells, side = _cells(svg), width / 4
    assert len(cells) == 8  # below a fiftieth of the largest nothing is drawn
    said = cells["文件 ← file: 0.690"]
    assert (float(said["x"]), float(said["y"])) == (left + 2 * side, top + side)
    assert float(said["fill-opacity"]) == pytest.approx(0.69 / 0.8, abs=0.01)
    assert cells["。 ← .: 0.800"]["fill-opacity"] == "1.00"
    frames = svg.find(f"{SVG}path[@class='strongest']")
    assert frames is not None
    begins = [tuple(map(float, found)) for found in re.findall(r"M(\d+) (\d+)", frames.attrib["d"])]
    assert begins == [(left + side * c + 1, top + side * r + 1) for r, c in ((0, 0), (1, 2), (2, 3))]
    told = str(svg.findtext(f"{SVG}desc"))
    assert "打开 ← Open (0.70); 文件 ← file (0.69); 。 ← . (0.80)." in told
    assert svg.attrib["role"] == "img" and "3 pieces written (rows), 4 pieces read" in svg.attrib["aria-label"]
    assert [t.text for t in svg.iter(f"{SVG}text")][2:9] == ["Open", "the", "file", ".", *OUTPUT]


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (70, 3), (80, 80)])
def test_all_is_inside(shape: tuple[int, int]) -> None:
    weights = np.random.default_rng(0).random(shape)
    svg = ElementTree.fromstring(
        alignment_picture([f"internationalization {k}" for k in range(shape[1])], ["很长的词语"] * shape[0], weights)
    )
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for rect in svg.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    told = str(svg.findtext(f"{SVG}desc"))
    assert ("and 20 more" in told) == (shape[0] == 80)
    assert "internationalization 0" in {title.text for title in svg.iter(f"{SVG}title")}  # the whole of a cut label


def test_odd_weights() -> None:
    assert alignment_picture([], OUTPUT, []) == "" and alignment_picture(SOURCE, [], []) == ""
    nothing = alignment_picture(["a"], ["b"], [[0.0]])
    assert "nan" not in nothing and "<g>" not in nothing
    tensor = pytest.importorskip("torch").tensor(WEIGHTS)
    assert alignment_picture(SOURCE, OUTPUT, tensor) == alignment_picture(SOURCE, OUTPUT, tensor.numpy())
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)"):
        alignment_picture(SOURCE, OUTPUT, np.transpose(WEIGHTS))
    for wrong in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="0 or more"):
            alignment_picture(["a"], ["b"], [[wrong]])
    labels = [
        t.text
        for t in ElementTree.fromstring(alignment_picture([" ", "", "\n", "\t"], ["a"], [[1] * 4])).iter(f"{SVG}text")
    ]
    assert labels[2:6] == ["␣", "∅", "⏎", "⇥"]


def test_hostile_text_is_only_text() -> None:
    n = len(HOSTILE)
    picture = alignment_picture(HOSTILE, HOSTILE, np.eye(n))
    svg = ElementTree.fromstring(picture)
    assert {e.tag.removeprefix(SVG) for e in svg.iter()} == {"svg", "desc", "rect", "text", "g", "title", "path"}
    assert not [key for e in svg.iter() for key in e.attrib if key.startswith("on")]
    page = alignment_page([(text, text, picture) for text in HOSTILE])
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "{{ 7*7 }}" in page
    page.encode("utf-8")


def test_the_page() -> None:
    with pytest.raises(InputError):
        alignment_page([])
    pictures = [("Open the file.", "打开文件。", alignment_picture(SOURCE, OUTPUT, WEIGHTS))] * 2
    page = alignment_page(pictures)
    assert page == alignment_page(pictures) and page.count("<svg") == 2 and "of 2 texts" in page
    assert "Content-Security-Policy" in page and "<script" not in page


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, width: int) -> None:
    n = len(HOSTILE)
    pictures = [
        (HOSTILE[0], HOSTILE[1], alignment_picture(HOSTILE, HOSTILE, np.eye(n))),
        ("short", "短", alignment_picture(SOURCE, OUTPUT, WEIGHTS)),
        ("long", "长", alignment_picture(["internationalization"] * 60, ["很长的词语"] * 9, np.ones((9, 60)))),
    ]
    path = tmp_path / "alignment.html"
    path.write_text(re.sub(r'<meta http-equiv="Content-[^>]*>', "", alignment_page(pictures)), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark" if width < 500 else "light")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width  # a wide picture scrolls inside its frame
    inside = """() => [...document.querySelectorAll('.alignment')].every(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].every(t => {
            const box = t.getBoundingClientRect();
            return box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1;
        });
    })"""
    assert page.evaluate(inside)  # no label is cut off
    page.click("label[for=chinese]")
    assert page.is_visible("text=第 2 段") and not page.is_visible("text=Text 2")
    assert page.evaluate("typeof pwned") == "undefined" and requests == [path.as_uri()]
    page.close()
    path = tmp_path / "alone.svg"
    path.write_text(pictures[1][2], encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.tagName") == "svg"
    page.close()
