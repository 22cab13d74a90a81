"""Make the two samples that ship in the package from the packages that hold them.

    python tools/make_samples.py r-cran-janeaustenr_1.0.0-1_all.deb chinese-poetry-2.0.1.tgz src/zhixing/text/samples

The archives come from `apt-get download r-cran-janeaustenr` and `npm pack chinese-poetry@2.0.1`; their SHA-256 are
checked, so that the same samples come out on every machine. Nothing is installed and no R is needed: an R lazy-load
file is a run of compressed objects, each in R's XDR serialisation, of which we read the few types that occur.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import lzma
import re
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

AUSTEN_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
POETRY_SHA256 = "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"
R_DATA = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
# In the order in which they were published.
NOVELS = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion")

# The poets whose work is taken whole: the best known of each of the four periods of Tang.
POETS = [
    "王勃",
    "楊炯",
    "盧照鄰",
    "駱賓王",
    "陳子昂",
    "賀知章",
    "張九齡",
    "張若虛",
    "王之渙",
    "孟浩然",
    "王昌齡",
    "王維",
    "李白",
    "高適",
    "岑參",
    "杜甫",
    "韋應物",
    "孟郊",
    "韓愈",
    "劉禹錫",
    "白居易",
    "柳宗元",
    "元稹",
    "賈島",
    "李賀",
    "杜牧",
    "溫庭筠",
    "李商隱",
    "王翰",
    "常建",
    "崔顥",
    "張繼",
]
HAN_LINE = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff，。？！、；：]+[。？！；]")


# ---- archives


def deb_members(deb: bytes) -> dict[str, bytes]:
    """Files of a .deb (an ar archive holding data.tar.xz) by their path."""
    assert deb.startswith(b"!<arch>\n"), "not an ar archive"
    at = 8
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        body = deb[at + 60 : at + 60 + size]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body), mode="r:*") as tar:
                return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
        at += 60 + size + size % 2
    raise SystemExit("the .deb has no data.tar")


# ---- R's serialisation (R internals, section 1.8): XDR, big-endian

NIL, GLOBAL, SYMBOL, PAIRLIST, CHARS = 254, 253, 1, 2, 9
LOGICAL, INTEGER, STRINGS, LIST, REFERENCE = 10, 13, 16, 19, 255


class RReader:
    """One serialised R object. Lists with names become dicts, vectors lists, strings str."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.symbols: list[Any] = []
        assert self.take(2) == b"X\n", "not R's XDR serialisation"
        version = self.integer()
        self.take(8)  # the version that wrote it, and the least that reads it
        if version == 3:
            self.take(self.integer())  # the native encoding

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self) -> int:
        return int(struct.unpack(">i", self.take(4))[0])

    def object(self) -> Any:
        flags = self.integer()
        kind, has_attributes, has_tag = flags & 255, bool(flags & 512), bool(flags & 1024)
        if kind in (NIL, GLOBAL):
            return None
        if kind == SYMBOL:
            self.symbols.append(self.object())
            return self.symbols[-1]
        if kind == REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == PAIRLIST:
            assert has_tag, "a pair list without names"
            pairs = {}
            while kind == PAIRLIST:
                if has_attributes:
                    self.object()
                name = self.object()
                pairs[name] = self.object()
                flags = self.integer()
                kind, has_attributes = flags & 255, bool(flags & 512)
            return pairs
        if kind == CHARS:
            size = self.integer()
            return None if size < 0 else self.take(size).decode("utf-8")
        count = self.integer()
        value: Any
        if kind in (INTEGER, LOGICAL):
            value = list(struct.unpack(f">{count}i", self.take(4 * count)))
        elif kind in (STRINGS, LIST):
            value = [self.object() for _ in range(count)]
        else:
            raise SystemExit(f"R type {kind} is not read here")
        if has_attributes and (names := (self.object() or {}).get("names")):
            return dict(zip(names, value, strict=True))
        return value


def read_lazy_load(index: bytes, store: bytes) -> dict[str, Any]:
    """Objects of an R lazy-load data base: `index` (.rdx) gives offset and length of each in `store` (.rdb)."""
    objects = {}
    for name, (offset, length) in RReader(gzip.decompress(index)).object()["variables"].items():
        chunk = store[offset : offset + length]
        size, packed = struct.unpack(">I", chunk[:4])[0], chunk[4:]
        kind = packed[:1]
        if kind == b"Z":  # xz without a header: raw LZMA2, as R's R_compress3 writes it
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            raw = lzma.decompress(packed[1:], format=lzma.FORMAT_RAW, filters=filters)
        else:
            raw = zlib.decompress(packed)
        assert len(raw) == size, f"{name}: {len(raw)} bytes, the index says {size}"
        objects[name] = RReader(raw).object()
    return objects


# ---- the two texts


def unwrap(lines: list[str]) -> str:
    """Lines of at most 80 columns to paragraphs of one line, a blank line between them; indented lines stay apart."""
    paragraphs: list[str] = []
    current = ""
    for line in [*lines, ""]:
        if not line.strip():
            if current:
                paragraphs.append(current)
            current = ""
        elif not current:
            current = line.strip()
        elif line.startswith("  ") and len(current.rsplit("\n")[-1]) < 50:  # verse or a signature, not a set-in letter
            current += "\n" + line.strip()
        else:
            current += " " + line.strip()
    return "\n\n".join(paragraphs)


def austen(deb: Path) -> str:
    members = deb_members(checked(deb, AUSTEN_SHA256))
    novels = read_lazy_load(members[R_DATA + ".rdx"], members[R_DATA + ".rdb"])
    # Three blank lines, where zhixing's reader ends a document.
    return "\n\n\n\n".join(unwrap(novels[name]) for name in NOVELS) + "\n"


def tang(archive: Path) -> list[dict[str, str]]:
    """Complete, undamaged poems of POETS in the order of the collection, the same poem once."""
    poems, seen = [], set()
    with tarfile.open(fileobj=io.BytesIO(checked(archive, POETRY_SHA256))) as tar:
        names = [n for n in tar.getnames() if re.search(r"quantangshi/poet\.tang\.\d+\.json$", n)]
        for name in sorted(names, key=lambda n: int(n.split(".")[-2])):
            for poem in json.load(tar.extractfile(name)):  # type: ignore[arg-type]
                body = "\n".join(poem["paragraphs"])
                if poem["author"] in POETS and body not in seen and is_clean(poem):
                    seen.add(body)
                    poems.append({"text": f"{poem['title']}\n{poem['author']}\n{body}"})
    return poems


def is_clean(poem: dict[str, Any]) -> bool:
    """A whole poem, two couplets to 200 characters, without lost characters, notes and descriptions of a glyph."""
    title, lines = poem["title"], poem["paragraphs"]
    if not re.fullmatch(r"[\u3400-\u9fff \U00020000-\U0003ffff，、。·]{1,40}", title) or re.search(
        r"句$|^句|逸|闕|殘", title
    ):
        return False
    return len(lines) >= 2 and 20 <= sum(map(len, lines)) <= 200 and all(HAN_LINE.fullmatch(line) for line in lines)


def checked(path: Path, sha256: str) -> bytes:
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path} has SHA-256 {found}, expected {sha256}")
    return data


def write(path: Path, text: str) -> None:
    """Compress with the preset stated, so that the file is the same bytes with the same xz."""
    packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(packed)
    print(f"{path.name}: {len(text.encode()):,} bytes of text, {len(text):,} characters, {len(packed):,} compressed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("austen_deb", type=Path)
    parser.add_argument("poetry_tgz", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.out / "austen.txt.xz", austen(arguments.austen_deb))
    poems = tang(arguments.poetry_tgz)
    print(f"{len(poems):,} poems")
    write(arguments.out / "tang.jsonl.xz", "".join(json.dumps(poem, ensure_ascii=False) + "\n" for poem in poems))


if __name__ == "__main__":
    main()
