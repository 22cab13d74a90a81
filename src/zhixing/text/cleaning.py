"""Cleaning text: pure functions that return the text and how much they changed.

normalize            Unicode NFC or NFKC
remove_controls      control characters but tab and line end
text_key             what exact duplicates have in common
near_duplicates      MinHash (Broder 1997) with banding, then the exact Jaccard index of each candidate pair
mask_personal_data   mail, phone, IP address, payment card, key
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# C0 and C1 controls but \t and \n, DEL, and U+FEFF, which is a byte order mark gone astray.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")


def normalize(text: str, form: Literal["none", "NFC", "NFKC"]) -> tuple[str, int]:
    """The text in a Unicode normal form, and 1 if that changed it. NFKC also folds ， to , and so changes Chinese."""
    if form == "none" or unicodedata.is_normalized(form, text):
        return text, 0
    return unicodedata.normalize(form, text), 1


def remove_controls(text: str) -> tuple[str, int]:
    """The text without control characters other than tab and line end, and how many went."""
    return CONTROLS.subn("", text)


# ---- duplicates


def text_key(text: str) -> bytes:
    """Sixteen bytes that equal texts share; blanks at the ends and the width of blanks do not count."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


HASHES, BANDS = (
    100,
    20,
)  # 20 bands of 5: a pair of Jaccard index 0.8 is met with probability 0.9996, one of 0.5 with 0.47
NEAR = 0.8  # Jaccard index from which two documents are near duplicates
BLOCK = 8192  # shingles hashed at a time: (HASHES, BLOCK) numbers of 4 bytes stay in the cache


def shingles(text: str) -> NDArray[np.uint32]:
    """Sorted distinct hashes of the character shingles of a text: 5 characters long, 3 where most are Chinese.

    Case and blanks do not count, so that a line broken elsewhere is no difference.
    """
    import numpy as np

    plain = "".join(text.lower().split())
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    width = 3 if 2 * int((points >= 0x2E80).sum()) > len(points) else 5
    hashed = np.zeros(max(len(points) - width + 1, 1), np.uint64)
    for i in range(min(width, len(points))):  # a polynomial over the code points
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + points[i : i + len(hashed)]
    hashed ^= hashed >> np.uint64(29)
    hashed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((hashed >> np.uint64(32)).astype(np.uint32))


@lru_cache
def _hash_functions() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and shifts of HASHES functions x -> factor x + shift modulo 2^32, (HASHES, 1) each."""
    import numpy as np

    rng = np.random.default_rng(20_240_517)
    odd = rng.integers(0, 1 << 31, (HASHES, 1), np.uint32) * np.uint32(2) + np.uint32(1)
    return odd, rng.integers(0, 1 << 32, (HASHES, 1), np.uint32)


def minhash(hashed: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The least of the shingles under each of HASHES hash functions; equal places estimate the Jaccard index."""
    import numpy as np

    odd, shift = _hash_functions()
    least = np.full(HASHES, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(hashed), BLOCK):
        mixed = hashed[start : start + BLOCK] * odd + shift  # (HASHES, n), modulo 2^32
        mixed ^= mixed >> np.uint32(15)  # the low bits of a product depend on the low bits only
        mixed *= np.uint32(0x2C1B3C6D)
        np.minimum(least, mixed.min(axis=1), out=least)
    return least


def band_keys(hashed: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each band of the MinHash: documents that share one are candidates. (BANDS,)"""
    import numpy as np

    keys = np.zeros(BANDS, np.uint64)
    for column in minhash(hashed).reshape(BANDS, -1).T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    """Size of the intersection over size of the union of two sorted sets."""
    import numpy as np

    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both) if both else 0.0


def near_duplicates(documents: Callable[[], Iterable[str]], threshold: float = NEAR) -> dict[int, int]:
    """Index of each document that nearly repeats an earlier one, with the index of that earlier one.

    `documents` gives a fresh pass each time it is called. The first pass keeps 160 bytes a document, the second only
    the shingles of documents that share a band with another; a pair counts when its exact Jaccard index is at least
    `threshold`. The first pass takes nearly all the time: a second for two million characters.
    """
    import numpy as np

    kept = array("Q")
    for text in documents():
        kept.frombytes(band_keys(shingles(text)).tobytes())
    keys = np.frombuffer(kept, np.uint64).reshape(-1, BANDS)  # (documents, BANDS)
    candidates: set[tuple[int, int]] = set()
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        ordered = keys[order, band]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])[: len(ordered)]
        first = np.repeat(order[starts], np.diff(np.r_[starts, len(ordered)]))  # the earliest document of each run
        met = order != first
        candidates.update(zip(order[met].tolist(), first[met].tolist(), strict=True))
    if not candidates:
        return {}
    wanted = {index for pair in candidates for index in pair}
    sets = {i: shingles(text) for i, text in enumerate(documents()) if i in wanted}
    found: dict[int, int] = {}
    for index, earlier in sorted(candidates):
        if index not in found and jaccard(sets[index], sets[earlier]) >= threshold:
            found[index] = found.get(earlier, earlier)
    return found


# ---- personal data

MAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])",
    re.ASCII,
)
CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)", re.ASCII)
IPV4 = re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d|\w)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:.]*[0-9A-Fa-f:])", re.ASCII)
# Chinese mobile (1[3-9] and nine digits), with or without +86; other numbers need +, or the North American form.
PHONE = re.compile(
    r"(?<![\w+.-])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}"
    r"|\+(?!86)[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4}"
    r")(?![\w-]|\.\d)",
    re.ASCII,
)
# Keys that say so by their beginning: OpenAI, Anthropic, GitHub, AWS, Google, Slack, Stripe, Hugging Face, npm, PyPI,
# JWT, PEM.
KEY = re.compile(
    r"(?<![\w-])(?:sk-(?:proj-|ant-)?[\w-]{20,200}|gh[pousr]_\w{36,255}|github_pat_\w{22,255}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}"
    r"|xox[abprs]-[\w-]{10,250}|[sr]k_(?:live|test)_\w{16,250}|hf_[A-Za-z0-9]{30,80}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,250}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,2000}\.[\w-]{10,2000})(?![\w-])"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----.{1,8000}?-----END (?:[A-Z]+ )?PRIVATE KEY-----",
    re.ASCII | re.DOTALL,
)
NAMED_KEY = re.compile(
    r"""(?i)((?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|auth[_-]?token|token|passw(?:or)?d|pwd)["']?\s{0,3}[=:]\s{0,3}["']?)([^\s"',;&<>]{12,200})""",
    re.ASCII,
)


def mask_personal_data(text: str) -> tuple[str, dict[str, int]]:
    """The text with personal data replaced by [mail], [phone], [ip], [card] and [key], and how many of each.

    Patterns with a check where there is one (Luhn for cards, the address parser for IP, entropy for ``key=``): dates,
    ISBNs and version numbers stay. It finds forms, not meaning: names and addresses stay too.
    """
    found: Counter[str] = Counter()

    def put(kind: str, check: Callable[[str], bool] | None = None) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            if check and not check(match[0]):
                return match[0]
            found[kind] += 1
            return f"[{kind}]"

        return replace

    def named(match: re.Match[str]) -> str:
        if not looks_random(match[2]):
            return match[0]
        found["key"] += 1
        return match[1] + "[key]"

    text = KEY.sub(put("key"), text)
    if "=" in text or ":" in text:
        text = NAMED_KEY.sub(named, text)
    if "@" in text:
        text = MAIL.sub(put("mail"), text)
    if any(digit in text for digit in "0123456789") or "::" in text:
        text = CARD.sub(put("card", is_card), text)
        text = IPV6.sub(put("ip", is_ipv6), text)
        text = IPV4.sub(put("ip", is_ipv4), text)
        text = PHONE.sub(put("phone", is_phone), text)
    return text, dict(found)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, the sum of digits divisible by ten."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(text: str) -> bool:
    """13 to 19 digits with a right check digit and the first digit of a payment network; an ISBN (978, 979) is none."""
    digits = re.sub(r"[ -]", "", text)
    plain = 13 <= len(digits) <= 19 and digits[0] in "23456" and len(set(digits)) > 1
    return plain and luhn(digits)


def is_ipv4(text: str) -> bool:
    """Four numbers up to 255 without leading zeros, not all of one digit: 1.2.3.4 is more often a version."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return len(text) > 7 and not address.is_unspecified


def is_ipv6(text: str) -> bool:
    """A real address of at least two groups and a digit, not a time (12:30:45) and not C++'s ``a::b``."""
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    groups = sum(bool(group) for group in text.split(":"))
    return groups >= 2 and any(c.isdigit() for c in text) and not address.is_unspecified


def is_phone(text: str) -> bool:
    """7 to 15 digits (E.164)."""
    return 7 <= sum(c.isdigit() for c in text) <= 15


def looks_random(text: str) -> bool:
    """Letters and digits mixed, at more than 3 bits a character: a secret rather than a word or a placeholder."""
    if not re.search(r"\d", text) or not re.search(r"[A-Za-z]", text):
        return False
    n = len(text)
    return -sum(c / n * math.log2(c / n) for c in Counter(text).values()) > 3.0
