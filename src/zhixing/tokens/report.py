"""What a tokenizer makes of texts: how many bytes a token holds, what it does not know, and which tokens are idle.

The more bytes a token holds, the more text fits into a model's context and the fewer steps writing takes. A
vocabulary learned from English spends up to three tokens on each Chinese character; so texts are compared, and a text
of both scripts is shown in its two parts besides.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from zhixing.progress import Progress, quantity
from zhixing.tokens.tokenizer import Tokenizer

CHINESE_SHARE = 0.3  # of Han among the letters of a document, from which on it counts as Chinese
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_LETTER = re.compile(r"[^\W\d_]")


def tokenizer_report(tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Figures of `tokenizer` on each of `texts` (name to documents), ready for JSON.

    {"kind", "vocab_size", "longest_tokens": [text, ...], "texts": {name: {"documents", "bytes", "characters",
    "tokens", "bytes_per_token", "characters_per_token", "unknown", "coverage"}}}

    "unknown" is the share of unknown tokens, "coverage" the share of the vocabulary that occurs in the text. A text
    of Chinese and other documents has two entries more, "name: Chinese" and "name: other".
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, documents in texts.items():
        parts = _count(tokenizer, documents)
        rows[name] = _figures(tokenizer, sum(parts.values()))
        if all(part[0] for part in parts.values()):
            rows |= {f"{name}: {script}": _figures(tokenizer, part) for script, part in parts.items()}
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "longest_tokens": longest_tokens(tokenizer, 12),
        "texts": rows,
    }


def render_report(report: Mapping[str, Any]) -> str:
    """The figures of `tokenizer_report` as a plain table for a terminal."""
    table = [("text", "documents", "size", "tokens", "bytes/token", "characters/token", "unknown", "vocabulary used")]
    for name, row in report["texts"].items():
        figures = (f"{row['bytes_per_token']:.2f}", f"{row['characters_per_token']:.2f}")
        shares = (f"{row['unknown']:.2%}", f"{row['coverage']:.1%}")
        table.append(
            (name, f"{row['documents']:,}", quantity(row["bytes"], "B"), quantity(row["tokens"]), *figures, *shares)
        )
    widths = [max(_width(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [f"{report['kind']} tokenizer, {report['vocab_size']:,} tokens in the vocabulary", ""]
    for row in table:
        first = row[0] + " " * (widths[0] - _width(row[0]))
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    lines += ["", "longest tokens: " + " ".join(repr(token) for token in report["longest_tokens"])]
    return "\n".join(lines)


def is_chinese(text: str) -> bool:
    """Whether at least CHINESE_SHARE of the letters are Han characters."""
    return len(_HAN.findall(text)) >= CHINESE_SHARE * max(1, len(_LETTER.findall(text)))


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[str]:
    """The tokens that stand for the most bytes, longest first; broken characters as U+FFFD."""
    tokens = (tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
    longest = sorted(set(tokens) - {b""}, key=lambda token: (-len(token), token))[:count]
    return [token.decode("utf-8", errors="replace") for token in longest]


def _count(tokenizer: Tokenizer, documents: Iterable[str]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """For Chinese and other documents: [documents, bytes, characters, then how often each id occurs]."""
    parts = {script: np.zeros(3 + tokenizer.vocab_size, np.int64) for script in ("Chinese", "other")}
    encoding: deque[str] = deque()  # scripts of the documents that are being encoded; the encoder reads ahead

    def watched() -> Iterator[str]:
        for document in documents:
            encoding.append("Chinese" if is_chinese(document) else "other")
            parts[encoding[-1]][:3] += (1, len(document.encode(errors="surrogatepass")), len(document))
            yield document

    with Progress("tokenizer report", unit="B") as progress:
        for ids, last in tokenizer.encode_stream(watched()):
            part = parts[encoding.popleft() if last else encoding[0]]
            np.add.at(part, np.array(ids, np.int64) + 3, 1)
            progress.update(float(sum(part[1] for part in parts.values())))
    return parts


def _figures(tokenizer: Tokenizer, counts: Any) -> dict[str, Any]:
    documents, n_bytes, characters = counts[:3].tolist()
    used = counts[3:]
    tokens = int(used.sum())
    return {
        "documents": documents,
        "bytes": n_bytes,
        "characters": characters,
        "tokens": tokens,
        "bytes_per_token": n_bytes / max(1, tokens),
        "characters_per_token": characters / max(1, tokens),
        "unknown": 0.0 if tokenizer.unk_id is None else int(used[tokenizer.unk_id]) / max(1, tokens),
        "coverage": int(np.count_nonzero(used)) / tokenizer.vocab_size,
    }


def _width(text: str) -> int:
    """Columns on a terminal; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
