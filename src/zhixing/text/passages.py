"""A page to passages that can be quoted: cut at headings and between paragraphs, never within a sentence.

A unit is what a quotation consists of: a sentence, a row of a table, some lines of code that stand together. A passage
is a run of units under one heading, of up to LONGEST bytes of UTF-8, so that a passage says about as much in Chinese as
in English. Everything keeps its place: a unit is a span of the page, and its lines are those of the file.

In Markdown a line end within a paragraph is a blank, and items, tables and fenced code are told apart. In plain text
a heading is a line such as `Chapter 3` or 第三章 behind a blank line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import groupby

from zhixing.text.readers import HEADING
from zhixing.text.sentences import sentence_spans

LONGEST = 800  # bytes; a passage of a single longer unit is longer

_FENCE = re.compile(r" *(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_ITEM = re.compile(r"\s*(?:[*+-]|\d{1,9}[.)])\s+")
_TABLE_RULE = re.compile(r"\s*\|?[\s:|-]+$")
_COMMENT = re.compile(r"\s*<!--.*-->\s*$")
_LINKS = re.compile(r"(?:!?\[[^\]\n]*\]\([^)\n]*\)\W*)+")  # a sentence of nothing else leads away and says nothing

Span = tuple[int, int]


@dataclass(frozen=True)
class Unit:
    """A sentence, a row or some code, word for word; it may run over several lines."""

    text: str
    first_line: int  # from 1
    last_line: int


@dataclass(frozen=True)
class Passage:
    """Neighbouring units under one heading; `headings` from the title of the page down to it."""

    headings: tuple[str, ...]
    units: tuple[Unit, ...]

    @property
    def text(self) -> str:
        return "\n".join(unit.text for unit in self.units)


def cut_passages(text: str, *, markdown: bool) -> list[Passage]:
    r"""The passages of a page, whose line ends are \n.

    >>> cut_passages("# Tea\n\nBoil water. Wait\na minute.\n", markdown=True)[0].units[1]
    Unit(text='Wait\na minute.', first_line=3, last_line=4)
    """
    starts = [0] + [match.end() for match in re.finditer("\n", text)]  # of the lines
    passages = []
    for headings, blocks in (_markdown_sections if markdown else _plain_sections)(text):
        held: list[Unit] = []
        size = 0
        for block in blocks:
            units = [Unit(text[a:b], bisect_right(starts, a), bisect_right(starts, b - 1)) for a, b in block]
            sizes = [len(unit.text.encode()) for unit in units]
            if held and size + sum(sizes) > LONGEST:  # a paragraph is cut only if it is too long by itself
                passages.append(Passage(headings, tuple(held)))
                held, size = [], 0
            for unit, more in zip(units, sizes, strict=True):
                if held and size + more > LONGEST:
                    passages.append(Passage(headings, tuple(held)))
                    held, size = [], 0
                held.append(unit)
                size += more
        if held:
            passages.append(Passage(headings, tuple(held)))
    return passages


Sections = list[tuple[tuple[str, ...], list[list[Span]]]]  # headings, and blocks of units under them


def _markdown_sections(text: str) -> Sections:
    sections: Sections = [((), [])]
    levels: list[tuple[int, str]] = []  # the headings that hold here
    paragraph: list[Span] = []  # its lines
    fence = ""
    code: list[Span] = []

    def close_paragraph() -> None:
        if paragraph:
            begin, end = paragraph[0][0], paragraph[-1][1]
            body = text[begin:end].replace("\n", " ")  # as long as before
            spans = [(begin + a, begin + b) for a, b in sentence_spans(body)]
            sections[-1][1].append([(a, b) for a, b in spans if not _LINKS.fullmatch(text, a, b)])
            paragraph.clear()

    def open_section(level: int, heading: str) -> None:
        while levels and levels[-1][0] >= level:
            levels.pop()
        levels.append((level, heading))
        sections.append((tuple(name for _, name in levels), []))

    table: list[Span] = []
    for begin, end in [*_lines(text), (len(text), len(text))]:
        line = text[begin:end]
        if fence:
            match = _FENCE.match(line)
            if (match and match[1].startswith(fence) and not line.strip(" `~")) or begin == len(text):
                sections[-1][1].extend(_code_blocks(code))
                fence, code = "", []
            else:
                code.append((begin, end) if line.strip() else (begin, begin))
            continue
        if table and not line.lstrip().startswith("|"):
            sections[-1][1].append(table)
            table = []
        if match := _FENCE.match(line):
            close_paragraph()
            fence = match[1]
        elif match := _HEADING.match(line):
            close_paragraph()
            open_section(len(match[1]), match[2].strip())
        elif len(paragraph) == 1 and (match := _UNDERLINE.match(line)) and not _ITEM.match(text, paragraph[0][0]):
            heading = text[slice(*paragraph.pop())].strip()
            open_section(1 if match[1][0] == "=" else 2, heading)
        elif not line.strip() or _COMMENT.match(line) or _RULE.match(line):
            close_paragraph()
        elif line.lstrip().startswith("|"):
            close_paragraph()
            if not _TABLE_RULE.match(line):
                table.append(_stripped(text, begin, end))
        else:
            if _ITEM.match(line):
                close_paragraph()
            paragraph.append((begin, end))
    return [(headings, [block for block in blocks if block]) for headings, blocks in sections]


def _code_blocks(lines: list[Span]) -> list[list[Span]]:
    """Lines between blank ones are one unit; each is its own where that would be too long."""
    blocks = []
    for blank, group in groupby(lines, key=lambda span: span[0] == span[1]):
        spans = list(group)
        if not blank:
            whole = (spans[0][0], spans[-1][1])
            blocks.append([whole] if whole[1] - whole[0] <= LONGEST else spans)
    return blocks


def _plain_sections(text: str) -> Sections:
    sections: Sections = [((), [])]
    paragraph: list[Span] = []
    for begin, end in [*_lines(text), (len(text), len(text))]:
        line = text[begin:end]
        if line.strip() and not paragraph and HEADING.match("\n\n" + line, 1):
            sections.append(((line.strip(),), []))
        elif line.strip():
            paragraph.append((begin, end))
        elif paragraph:
            first, last = paragraph[0][0], paragraph[-1][1]
            sections[-1][1].append([(first + a, first + b) for a, b in sentence_spans(text[first:last])])
            paragraph = []
    return sections


def _lines(text: str) -> list[Span]:
    """Where each line begins and ends, without its line end."""
    ends = [match.start() for match in re.finditer(r"\n|\Z", text)]
    return list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))


def _stripped(text: str, begin: int, end: int) -> Span:
    line = text[begin:end]
    return begin + len(line) - len(line.lstrip()), begin + len(line.rstrip())
