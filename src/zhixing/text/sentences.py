"""Where sentences end, by rules for English and Chinese; most languages with their marks fare well too.

Nothing is learnt and nothing is lost: a sentence is a span of the text, and between two spans there are only blanks.

    。！？       end a sentence, with closing quotes and brackets behind them; not before a comma, nor in a 《title》 or
                 in brackets (such as。) within the sentence
    . ! ?        end one if a blank and then no small letter follows; beside Chinese without a blank too
    ... and …    end one only before a blank and no small letter, or where a quote closes: 我……我不知道 is one sentence
    blank line   ends one whatever it is; so does every line end behind a Chinese character or mark, as Chinese prose is
                 not broken by hand, while English is: there a line end is a blank

A full stop is not the end after a title (Mr. Smith), a number's name (No. 5, Fig. 2, Jan. 5) or the marker of a list
(1. First), nor inside 3.14 and example.com, where no blank follows. After what may stand at an end (Inc., U.S., p.m.,
the letter J.) the next word decides: The, He, But and their like begin a sentence, Army and Smith do not. Kiss & Strunk
2006 learn such lists from text; those below are written down.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WIDE = "。！？｡．‼⁇⁈⁉"  # marks that need no blank behind them
CLOSERS = "”’»)]}）】〕］｝」』"
_OPENERS = "“‘«\"'([{（【〔［｛「『《〈"
_CONTINUES = "，、；：,;:》〉"  # behind a mark: it was inside
_MARK = re.compile(rf"[.!?…؟।॥۔{WIDE}]+|\n\s*")
_BLANKS = re.compile(r"\s*")
_TO_NEXT_WORD = re.compile(rf"[\s{re.escape(_OPENERS)}]*")
_WORD_BEFORE = re.compile(r"[\w.&-]*$")
_WORD = re.compile(r"[^\W\d_]+")
_CHINESE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U000323af]")  # and kana
_LIST_MARKER = re.compile(r"\d{1,3}|[a-hj-z]")  # I. is rather a word
_LONGEST_TITLE, _LONGEST_BRACKETS = 40, 200  # characters
_LONGEST = 24  # characters of a word that is looked up

# Words in front of a full stop, matched whole and in lower case
_NEVER_LAST = re.compile(
    r"mr|mrs|ms|messrs|mme|mlle|drs?|prof|rev|fr|hon|pres|gov|sen|rep|gen|adm|col|maj|capt|cmdr|lt|sgt|cpl|pvt|mt|vs|"
    r"e\.g|i\.e|cf|viz|approx|ca|resp|incl|excl"
)
_BEFORE_NUMBERS = re.compile(
    r"nos?|nr|figs?|eqs?|secs?|sect|ch|chap|vols?|pp?|arts?|par|tab|ver|v|ed|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_MAYBE_LAST = re.compile(
    r"inc|ltd|co|corp|llc|jr|sr|bros|etc|al|ph\.d|b\.sc|m\.sc|dept|univ|assn|est|st|ft|mon|tue|wed|thu|fri|"
    r"[^\W\d_](\.[^\W\d_])*"  # J, U.S, p.m
)
_STARTER = re.compile(
    r"an?|the|this|that|these|those|there|here|its?|s?he|they|we|you|i|his|her|their|our|my|your|who|what|when|where|"
    r"why|how|which|in|on|at|for|from|with|by|as|if|while|after|before|since|until|during|under|over|but|and|or|so|"
    r"yet|however|moreover|meanwhile|then|now|also|although|though|because|according|all|some|many|most|both|each|no|"
    r"not|one|such|another|other|several|today|yesterday|tomorrow"
)


class _End(NamedTuple):
    """A mark that may end the sentence that begins at `start`; closing quotes behind it reach to `end`."""

    start: int
    mark: int
    behind_mark: int
    end: int


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the blanks between them; none of a text of blanks.

    >>> split_sentences('Mr. Li paid 3.5 yuan. "Why?" he asked.  Nobody knew.')
    ['Mr. Li paid 3.5 yuan.', '"Why?" he asked.', 'Nobody knew.']
    >>> split_sentences("他问：“为什么？”没人知道。《你好！》是书名。")
    ['他问：“为什么？”', '没人知道。', '《你好！》是书名。']
    """
    return [text[begin:end] for begin, end in sentence_spans(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends; whatever lies outside all spans is blank.

    >>> sentence_spans(" Yes. No.")
    [(1, 5), (6, 9)]
    """
    spans = []
    start = _behind(_BLANKS, text, 0)
    quotes, counted = 0, start  # straight quotes of the paragraph in text[:counted]: odd while one is open
    for match in _MARK.finditer(text, start):
        end = match.start()
        if match[0][0] == "\n":
            ends = match[0].count("\n") > 1 or _is_chinese(_last_character(text, end))
            if ends:
                quotes, counted = 0, match.end()  # no quote is open across paragraphs
            ends = ends and end > start  # else the sentence has ended before
        elif end < start:
            continue
        else:
            quotes += text.count('"', counted, match.end())
            counted = match.end()
            end = _behind_closers(text, match.end(), quote_is_open=quotes % 2 == 1)
            ends = _is_end(text, _End(start, match.start(), match.end(), end))
        if ends:
            spans.append((start, start + len(text[start:end].rstrip())))
            start = _behind(_BLANKS, text, end)
    if start < len(text):
        spans.append((start, start + len(text[start:].rstrip())))
    return spans


def _is_end(text: str, at: _End) -> bool:
    mark = text[at.mark : at.behind_mark]
    after = text[at.end : at.end + 1]
    if not after:
        return True
    if after in _CONTINUES or (_MARK.match(after) and not after.isspace()):  # “好！”。 ends at the last of its marks
        return False
    if _is_in_title(text, at):
        return False
    before = text[at.mark - 1] if at.mark > at.start else ""
    closed = at.end > at.behind_mark
    if closed and text[at.end - 1] in "」』" and after in "とっ":  # 「はい。」と言った: he said
        return False
    if closed and text[at.end - 1] in ")）" and not after.isspace():  # opened within the sentence, it goes on
        since = max(at.start, at.mark - _LONGEST_BRACKETS)
        if max(text.rfind("(", since, at.mark), text.rfind("（", since, at.mark)) > at.start:
            return False
    if mark == "．" and before.isdigit() and after.isdigit():
        return False
    if any(c in WIDE for c in mark):
        return True
    drawn_out = "…" in mark or ".." in mark
    if not after.isspace():
        if drawn_out:
            return closed and (_is_chinese(after) or after == "“")
        beside = [bool(c) and _is_chinese(c) for c in (before, after)]
        return all(beside) if mark == "." else any(beside)
    place = _behind(_TO_NEXT_WORD, text, at.end)
    following = text[place : place + 2]
    if following[:1].islower() and not following[1:].isupper():  # iPhone may begin a sentence
        return False
    return mark != "." or not _is_abbreviation(text, at, place)


def _is_in_title(text: str, at: _End) -> bool:
    """Whether the mark stands inside 《》, which open shortly before it and close in the same line."""
    opened = text.rfind("《", max(at.start, at.mark - _LONGEST_TITLE), at.mark)
    if opened < 0 or text.find("》", opened, at.mark) >= 0:
        return False
    closed = text.find("》", at.behind_mark, opened + _LONGEST_TITLE)
    return closed >= 0 and "\n" not in text[at.behind_mark : closed]


def _is_abbreviation(text: str, at: _End, place: int) -> bool:
    """Whether the full stop belongs to the word before it, and the sentence goes on at `place`."""
    word = _WORD_BEFORE.search(text, max(at.start, at.mark - _LONGEST), at.mark)
    assert word is not None  # it may be empty
    said = word[0].lower()
    if word.start() == at.start and _LIST_MARKER.fullmatch(said):
        return True
    if _NEVER_LAST.fullmatch(said):
        return True
    if _BEFORE_NUMBERS.fullmatch(said):
        return text[place : place + 1].isdigit()
    if not _MAYBE_LAST.fullmatch(said) or (len(said) == 1 and word[0].islower()):  # an initial is a capital
        return False
    following = _WORD.match(text, place)
    return following is not None and not (_STARTER.fullmatch(following[0].lower()) or _is_chinese(following[0][0]))


def _behind_closers(text: str, place: int, *, quote_is_open: bool) -> int:
    """Behind the closing quotes and brackets that stand at `place`; a straight one closes what is open, or if no word
    follows it."""
    while place < len(text):
        c, following = text[place], text[place + 1 : place + 2]
        last = not following or following.isspace() or following in CLOSERS + "\"'"
        if c == '"' and quote_is_open:
            quote_is_open = False
        elif c not in CLOSERS and not (c in "\"'" and last):
            break
        place += 1
    return place


def _behind(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    assert match is not None  # every pattern here may be empty
    return match.end()


def _last_character(text: str, end: int) -> str:
    """The last of text[:end] that is no blank."""
    while end > 0 and text[end - 1].isspace():
        end -= 1
    return text[max(end - 1, 0) : end]


def _is_chinese(character: str) -> bool:
    return _CHINESE.match(character) is not None
