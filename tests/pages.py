"""A page's elements and words, for tests of what is on it."""

from __future__ import annotations

from html.parser import HTMLParser


class Tags(HTMLParser):
    """Elements and words of a page; an AssertionError where tags do not nest."""

    VOID = frozenset(["meta", "input", "br", "line", "circle", "rect", "polyline", "path", "link", "img"])

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def words_of(page: str) -> str:
    """All that a reader reads, with single blanks."""
    return " ".join(" ".join(Tags(page).words).split())
