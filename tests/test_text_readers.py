"""Files, folders and names to documents: what is read, what is refused, and where the message points."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import lzma
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.recipe import DataSettings
from zhixing.text import readers
from zhixing.text.readers import Documents, cut_text, read_documents

RAW = DataSettings(normalize="none", duplicates="keep")
ENGLISH = "It was a bright cold day in April, and the clocks were striking thirteen.\n"
CHINESE = "子曰：「學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？」\n"


def read(path: Path, data: DataSettings = RAW) -> Documents:
    return read_documents(str(path), data)


def refused(path: Path, data: DataSettings = RAW) -> InputError:
    with pytest.raises(InputError) as caught:
        list(read(path, data))
    assert caught.value.mend, "no way to mend it is named"
    return caught.value


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


# ---- what is read


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbf" + CHINESE.encode(), id="UTF-8 with mark"),
        pytest.param(CHINESE.encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xfe\xff" + CHINESE.encode("utf-16-be"), id="UTF-16 big endian"),
        pytest.param(CHINESE.encode("utf-32"), id="UTF-32"),
        pytest.param(CHINESE.replace("\n", "\r\n").encode(), id="CRLF"),
        pytest.param(CHINESE.replace("\n", "\r").encode(), id="CR"),
    ],
)
def test_encodings_and_line_ends_give_the_same_text(tmp_path: Path, content: bytes) -> None:
    assert list(read(write(tmp_path / "a.txt", content))) == [CHINESE]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress], ids=["gz", "xz", "zst"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".tsv"])
def test_packed_files_give_what_plain_ones_give(tmp_path: Path, pack: Callable[[bytes], bytes], ending: str) -> None:
    content = {
        ".txt": ENGLISH,
        ".jsonl": rows({"text": ENGLISH}),
        ".csv": f'text,n\n"{ENGLISH}",1\n',
        ".tsv": f'n\ttext\n1\t"{ENGLISH}"\n',
    }[ending].encode()
    packed = {gzip.compress: ".gz", lzma.compress: ".xz", zstandard.compress: ".zst"}[pack]
    assert list(read(write(tmp_path / f"a{ending}", content))) == [ENGLISH]
    # Two members one after another, as `cat a.gz b.gz` writes them, are one text.
    half = len(content) // 2
    twice = pack(content[:half]) + pack(content[half:])
    assert list(read(write(tmp_path / f"b{ending}{packed}", twice))) == [ENGLISH]


def test_blocks_cut_anywhere_give_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CHINESE + "é\r\n" + ENGLISH + "😀\r\r\n") * 3
    path = write(tmp_path / "a.txt", text)
    wide = write(tmp_path / "b.txt", text.encode("utf-16"))
    table = write(tmp_path / "c.jsonl", rows({"text": "一\r\n二"}, {"text": "三"}))
    for size in (1, 2, 3, 5, 7):
        monkeypatch.setattr(readers, "BLOCK", size)
        readers._inspected.clear()
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        assert list(read(path)) == [plain]
        assert list(read(wide)) == [plain]
        assert list(read(table)) == ["一\n二", "三"]


def test_a_folder_is_read_in_order_without_hidden_and_unknown_files(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b " + ENGLISH)
    write(tmp_path / "a/z.md", "z " + ENGLISH)
    write(tmp_path / "a/.hidden.txt", "hidden " + ENGLISH)
    write(tmp_path / ".git/c.txt", "git " + ENGLISH)
    write(tmp_path / "c.jsonl", rows({"text": "row"}))
    write(tmp_path / "picture.png", b"\x89PNG\0\0")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "blank.txt", " \n\t\n")
    documents = read(tmp_path)
    assert list(documents) == ["z " + ENGLISH, "b " + ENGLISH, "row"]
    assert [Path(f.name).name for f in documents.sources] == ["z.md", "b.txt", "c.jsonl"]
    assert sorted(Path(name).name for name, _ in documents.skipped) == ["blank.txt", "empty.txt", "picture.png"]
    assert (documents.counts.documents, documents.counts.skipped_files) == (3, 3)
    assert documents.total_bytes == documents.bytes_read == sum(f.size for f in documents.sources)
    assert not documents.one_text


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "texts/a.txt", ENGLISH)
    write(tmp_path / "elsewhere/b.txt", CHINESE)
    (tmp_path / "texts/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "texts")
    (tmp_path / "texts/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    documents = read(tmp_path / "texts")
    assert list(documents) == [ENGLISH, CHINESE]
    assert {reason for _, reason in documents.skipped} == {"a link to a folder it is in", "a link that leads nowhere"}


def test_a_source_is_read_again_and_again(tmp_path: Path) -> None:
    documents = read(write(tmp_path / "a.jsonl", rows({"text": "one"}, {"text": "two"})))
    assert list(documents) == list(documents) == ["one", "two"]
    first = iter(documents)
    assert next(first) == "one"
    assert list(documents) == ["one", "two"]
    assert next(first) == "two"


def test_quoted_fields_hold_line_ends_commas_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'n,text\r\n1,"one, ""two""\r\nthree"\r\n2,four\r\n')
    assert list(read(path)) == ['one, "two"\nthree', "four"]


def test_blank_lines_at_the_end_are_nothing(tmp_path: Path) -> None:
    assert list(read(write(tmp_path / "a.jsonl", rows({"text": "one"}) + "\n \n"))) == ["one"]
    assert list(read(write(tmp_path / "a.csv", "text\none\n\n\n"))) == ["one"]


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two", "three"], "group": [1, 1, 2]}), path)
    records = list(read(path).records())
    assert [(r.text, r.group) for r in records] == [("one", "1"), ("two", "1"), ("three", "2")]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "three"]}), path)
    assert refused(path).where.endswith("row 2")
    assert list(read(path, DataSettings(on_bad_record="skip"))) == ["one", "three"]
    assert "'text'" in refused(path, DataSettings(text_column="txt")).mend
    path.write_bytes(path.read_bytes()[:-40])
    assert "parquet" in refused(path).what


def test_groups_come_along(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,group\none,x\ntwo,y\n")
    assert [r.group for r in read(path).records()] == ["x", "y"]
    path = write(tmp_path / "a.jsonl", rows({"text": "one", "group": 3}, {"text": "two"}))
    assert [r.group for r in read(path).records()] == ["3", None]


def test_settings_are_applied_and_counted(tmp_path: Path) -> None:
    texts = [
        "cafe\u0301 of one evening",
        "bell\x07 and book",
        "twice the same",
        "twice  the same",
        "mail to ann@example.org now",
    ]
    path = write(tmp_path / "a.jsonl", rows(*({"text": text} for text in texts)))
    documents = read(path, DataSettings(personal_data="mask"))
    assert list(documents) == ["café of one evening", "bell and book", "twice the same", "mail to [mail] now"]
    counts = documents.counts
    assert (counts.documents, counts.normalized, counts.controls, counts.duplicates_exact) == (4, 1, 1, 1)
    assert counts.personal_data == {"mail": 1}
    assert counts.characters == sum(map(len, documents))
    assert counts.bytes == sum(len(text.encode()) for text in documents)
    reported = read(path, DataSettings(personal_data="report", duplicates="keep", normalize="none"))
    assert list(reported)[-1] == texts[-1]
    assert reported.counts.personal_data == {"mail": 1}
    assert reported.counts.documents == 5


def test_near_duplicates_are_dropped_when_asked(tmp_path: Path) -> None:
    poem = "床前看月光，疑是地上霜。舉頭望山月，低頭思故鄉。"
    other = poem.replace("看", "明")
    path = write(tmp_path / "a.jsonl", rows({"text": poem * 3}, {"text": ENGLISH}, {"text": poem + poem + other}))
    documents = read(path, DataSettings(duplicates="near"))
    assert list(documents) == [poem * 3, ENGLISH]
    assert documents.counts.duplicates_near == 1


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    a = read(write(tmp_path / "a/x.txt", ENGLISH)).fingerprint()
    assert a == read(write(tmp_path / "b/y.txt", ENGLISH)).fingerprint()
    assert a != read(write(tmp_path / "b/y.txt", ENGLISH + "!")).fingerprint()
    assert a != read(write(tmp_path / "b/y.csv", ENGLISH), DataSettings(text_column=ENGLISH)).fingerprint()
    assert len(a) == 64


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ENGLISH)
    documents = read(path)
    write(path, ENGLISH * 2)
    with pytest.raises(InputError, match="changed"):
        list(documents)
    path.unlink()
    with pytest.raises(InputError, match="went away"):
        list(documents)


# ---- cutting long texts


def test_a_book_is_cut_at_its_chapters() -> None:
    chapters = [f"CHAPTER {i}\n\n" + (ENGLISH * 9 + "\n") * 4 + "\n" for i in range(1, 21)]
    book = "A BOOK\n\nby Nobody\n\n" + "".join(chapters)
    documents = list(cut_text([book], "a.txt"))
    assert "".join(documents) == book
    assert documents[0].startswith("A BOOK")
    assert documents[1:] == chapters[1:]


def test_a_chinese_book_is_cut_at_its_chapters() -> None:
    chapters = [f"第{n}回 甄士隱夢幻識通靈\n" + CHINESE * 60 for n in ("一", "二", "十", "一百二十")]
    book = "".join(chapters) + CHINESE * 700
    documents = list(cut_text([book], "a.txt"))
    assert "".join(documents) == book
    assert documents[:3] == chapters[:3]


def test_a_table_of_contents_is_not_cut_up() -> None:
    contents = "CONTENTS\n\n" + "".join(f"Chapter {i}\n\n" for i in range(1, 30))
    book = contents + "".join(f"Chapter {i}\n\n" + ENGLISH * 60 + "\n" for i in range(1, 30))
    documents = list(cut_text([book], "a.txt"))
    assert "".join(documents) == book
    assert documents[0] == book[: book.index("Chapter 2\n\nIt")]


@pytest.mark.parametrize(
    "unit",
    [
        ENGLISH * 5 + "\n",
        ENGLISH,
        ENGLISH.replace("\n", " "),
        "no stop at all ",
        CHINESE.replace("\n", ""),
        "一" * 90 + "。",
    ],
    ids=["paragraphs", "lines", "sentences", "words", "Chinese sentences", "long Chinese sentences"],
)
def test_documents_of_running_text_are_of_middle_length(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    documents = list(cut_text([text[i : i + 999] for i in range(0, len(text), 999)], "a.txt"))
    assert "".join(documents) == text
    assert all(1_000 <= len(document) <= 20_000 for document in documents[:-1])
    assert all(document.endswith(("\n", ".", "。", " ", "」")) for document in documents[:-1])


def test_a_text_of_ten_million_characters_without_a_place_to_cut_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "a.txt", "QUJD" * 2_500_000))
    assert "no place to cut" in error.what
    assert error.where == str(tmp_path / "a.txt")


PIECES = st.sampled_from(
    [
        "\n",
        "\n\n",
        "\n\n\n",
        "Chapter 4\n\n",
        "第三章 開始\n",
        "a" * 3000,
        "word " * 700,
        "句子。" * 900,
        "# Head\n",
        "\n \n",
        "x",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=60))
def test_cutting_loses_nothing(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert "".join(cut_text(pieces, "a.txt")) == whole
    assert list(cut_text(pieces, "a.txt")) == list(cut_text([whole], "a.txt"))  # wherever the blocks end
    assert all(cut_text(pieces, "a.txt"))


@pytest.mark.parametrize("size", [1, 999, 24_999, 25_000, 25_001, 50_000])
def test_words_of_a_whole_document_length(size: int) -> None:
    text = ("a" * 24_999 + " ") * 7 + "b" * 30_000
    documents = list(cut_text([text[i : i + size] for i in range(0, len(text), size)], "a.txt"))
    assert documents == ["a" * 24_999 + " "] * 7 + ["b" * 30_000]


def test_three_blank_lines_begin_a_document() -> None:
    novels = [ENGLISH * 200 + "\n\n\n", ENGLISH * 200]
    assert list(cut_text(["".join(novels)], "a.txt")) == novels


# ---- what is refused, and where the message points


def test_one_file_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    write(tmp_path / "texts/good.txt", ENGLISH)
    bad = write(tmp_path / "texts/deep/bad.txt", CHINESE.encode() * 10_000 + "红楼梦里的人".encode("gb18030"))
    error = refused(tmp_path / "texts")
    assert error.where == f"{bad}, byte {len(CHINESE.encode()) * 10_000}"
    assert "GB18030" in error.mend
    skipping = read(tmp_path / "texts", DataSettings(on_bad_record="skip"))
    assert list(skipping) == [ENGLISH]
    assert skipping.counts.bad_records == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"abcde\xffgh", ("byte 5",)),
        ("a.txt", CHINESE.encode()[:-3], ("byte 81", "unexpected end")),
        ("a.txt", b"ab\0cd", ("byte 2", "NUL")),
        ("a.txt", ENGLISH.encode("utf-16-le"), ("byte 1", "UTF-16")),
        ("a.txt", "ab\ud800c".encode("utf-16", "surrogatepass"), ("byte 6", "UTF-16")),
        ("a.txt", "abc".encode("utf-16")[:-1], ("byte 6", "UTF-16")),
        ("a.txt", b"", ("empty",)),
        ("a.txt", b" \n\t \n", ("blanks",)),
        ("a.txt.gz", gzip.compress(ENGLISH.encode() * 999, mtime=0)[:-20], ("too early",)),
        ("a.txt.gz", b"no gzip", ("damaged",)),
        ("a.txt.xz", lzma.compress(ENGLISH.encode() * 999)[:-20], ("too early",)),
        ("a.txt.xz", b"no xz at all", ("damaged",)),
        ("a.txt.zst", zstandard.compress(random.Random(0).randbytes(9999).hex().encode())[:-20], ("too early",)),
        ("a.txt.zst", b"no zstd", ("damaged",)),
        ("a.txt.gz", gzip.compress(b"abcde\xffgh", mtime=0), ("byte 5 of the unpacked text",)),
        ("a.json", b"{}", (".json", ".jsonl")),
        ("a.pdf", b"%PDF", (".pdf",)),
        ("a.jsonl", b'{"text": "one"}\n{"text" "two"}\n', ("a.jsonl:2", "column 9")),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "two"}\n', ("a.jsonl:2", "empty")),
        ("a.jsonl", b'{"body": "one"}\n', ("a.jsonl:1", "'text'", "'body'")),
        ("a.jsonl", b'{"Text": "one", "t": 1}\n', ("data.text_column to 'Text'",)),
        ("a.jsonl", b'{"text": null}\n', ("null",)),
        ("a.jsonl", b'{"text": 3.5}\n', ("3.5", "float")),
        ("a.jsonl", b'{"text": ""}\n', ("empty",)),
        ("a.jsonl", b'{"text": "a\\udc00"}\n', ("U+DC00", "character 1")),
        ("a.jsonl", b'{"text": "a\\u0000"}\n', ("NUL", "character 1")),
        ("a.jsonl", b'"only a string"\n', ("a.jsonl:1", "object")),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n', ("a.jsonl:2", "byte 26")),
        ("a.jsonl", b"[" * 100_000 + b"\n", ("a.jsonl:1",)),
        ("a.jsonl", b"\n\n", ("no text",)),
        ("a.csv", b"text\n", ("only column names",)),
        ("a.csv", b"\n", ("'text'", "no columns")),
        ("a.csv", b"id,content\n1,one\n", ("a.csv:1", "'id', 'content'")),
        ("a.csv", b"id, TEXT \n1,one\n", ("data.text_column to 'TEXT'",)),
        ("a.csv", b'id,text\n1,"two\nlines"\n2\n', ("a.csv:4", "1 fields")),
        ("a.csv", b"id,text\n1,one\n\n2,two\n", ("a.csv:3", "empty")),
        ("a.csv", b"id,text\n1,\n", ("a.csv:2", "empty")),
        ("a.csv", b'id,text\n1,one\n2,"never closed\n3,three\n', ("a.csv:3", "never closed")),
        ("a.csv", b'id,text\n1,"a"b\n', ("a.csv:2",)),
        ("a.csv", b'id,text\n1,"a\nb\xff"\n', ("a.csv:3", "byte 14")),
        ("a.csv", b"id,text\n1,a\0b\n", ("a.csv:2", "NUL")),
        ("a.csv", b"id,\xff\n1,a\n", ("a.csv:1", "byte 3")),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, words: tuple[str, ...]) -> None:
    error = refused(write(tmp_path / name, content))
    for word in (name, *words):
        assert word in error.message()


def test_a_name_that_leads_nowhere_is_mended_by_a_near_one(tmp_path: Path) -> None:
    write(tmp_path / "alice.txt", ENGLISH)
    error = refused(tmp_path / "alise.txt")
    assert str(tmp_path / "alice.txt") in error.mend
    with pytest.raises(InputError, match="no text is named"):
        read_documents(" ", RAW)


def test_folders_without_text_say_what_was_there(tmp_path: Path) -> None:
    assert "nothing there" in refused(tmp_path).why
    write(tmp_path / "a.pdf", "x")
    error = refused(tmp_path)
    assert (error.where, error.why) == (str(tmp_path / "a.pdf"), "ending .pdf is not read")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "neither" in refused(tmp_path / "pipe.txt").what
    write(tmp_path / "a.txt", ENGLISH)
    assert list(read(tmp_path)) == [ENGLISH]


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert str(tmp_path / "loop") in refused(tmp_path / "loop").what


def test_a_file_one_may_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", ENGLISH)
    locked = write(tmp_path / "b.txt", ENGLISH)
    locked.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:  # root may read everything: be nobody for the test
        for folder in (tmp_path, *tmp_path.parents[:-2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        assert refused(tmp_path).where == str(locked)
        assert "Permission denied" in refused(tmp_path).why
        assert "Permission denied" in refused(locked).why
        skipping = read(tmp_path, DataSettings(on_bad_record="skip"))
        assert list(skipping) == [ENGLISH]
        assert skipping.skipped == [(str(locked), "Permission denied")]
    finally:
        if was_root:
            os.seteuid(0)


def test_places_are_counted_from_the_beginning_of_the_file_a_mark_included(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    text = write(tmp_path / "a.txt", mark + b"abc\xe9")
    assert refused(text).where == f"{text}, byte 6"
    nul = write(tmp_path / "b.txt", mark + b"abc\0")
    assert refused(nul).where == f"{nul}, byte 6"
    for first in (b"", b'{"text": "one"}\n'):
        table = write(tmp_path / "a.jsonl", mark + first + b'{"text": "\xe9"}\n')
        assert f"byte {3 + len(first) + 10} of the file" in refused(table).why
    sheet = write(tmp_path / "a.csv", mark + b"text\n\xe9\n")
    assert "byte 8 of the file" in refused(sheet).why
    good = write(tmp_path / "good.csv", mark + b"text,n\none,1\n")
    assert list(read(good)) == ["one"]


@pytest.mark.parametrize("kind", ["bytes", "dates", "decimals", "not UTF-8", "damaged"])
def test_parquet_that_holds_no_text(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    if kind == "not UTF-8":
        lengths, text = b"\0\0\0\0\4\0\0\0", b"a\xff\xffb"
        column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, *map(pyarrow.py_buffer, (lengths, text))])
    else:
        column = {
            "bytes": [b"abc"],
            "dates": [datetime.date(2020, 1, 1)],
            "decimals": [decimal.Decimal("1.5")],
            "damaged": [f"{i} {ENGLISH}" for i in range(300)],
        }[kind]
    parquet.write_table(pyarrow.table({"text": column}), path)
    if kind == "damaged":
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 3 + 400] = bytes(400)
        path.write_bytes(data)
    assert str(path) in refused(path).where


def test_a_run_inside_the_folder_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", ENGLISH)
    write(tmp_path / "runs/a/run.lock", "")
    write(tmp_path / "runs/a/README.md", "A card.")
    write(tmp_path / "runs/a/metrics.jsonl", rows({"step": 1}))
    documents = read(tmp_path)
    assert list(documents) == [ENGLISH]
    assert documents.skipped == [(str(tmp_path / "runs/a"), "a run of zhixing")]


# ---- bad records, skipped or put aside


def test_bad_records_are_counted_and_put_aside(tmp_path: Path) -> None:
    lines = [rows({"text": f"line {i}"}) for i in range(9)]
    lines[2], lines[5], lines[7] = "no json\n", rows({"text": None}), '{"text": "\\ud800"}\n'
    path = write(tmp_path / "a.jsonl", "".join(lines))
    aside = tmp_path / "aside/quarantine.jsonl"
    documents = read_documents(str(path), DataSettings(on_bad_record="quarantine"), quarantine=aside)
    for _ in range(2):  # a second pass writes the same file, not twice as much
        assert list(documents) == [f"line {i}" for i in (0, 1, 3, 4, 6, 8)]
        put = [json.loads(line) for line in aside.read_text(encoding="utf-8").splitlines()]
        assert [row["where"] for row in put] == [f"{path}:{n}" for n in (3, 6, 8)]
        assert put[0]["record"] == "no json"
        assert put[1]["what"] == "the column 'text' is null"
    assert documents.counts.bad_records == 3
    skipping = read(path, DataSettings(on_bad_record="skip"))
    assert (len(list(skipping)), skipping.counts.bad_records) == (6, 3)
    assert os.listdir(aside.parent) == ["quarantine.jsonl"]


def test_a_pass_that_is_given_up_leaves_no_quarantine(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "no\n" + rows({"text": "one"}, {"text": "two"}))
    aside = tmp_path / "aside/quarantine.jsonl"
    documents = read_documents(str(path), DataSettings(on_bad_record="quarantine"), quarantine=aside)
    iterator = iter(documents)
    assert next(iterator) == "one"
    del iterator
    assert os.listdir(aside.parent) == []


def test_csv_goes_on_after_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text,n\none,1\n"a"b,2\ntwo,2\nshort\nthr\xffee,3\n,4\nfour,4\n')
    documents = read(path, DataSettings(on_bad_record="skip"))
    assert list(documents) == ["one", "two", "four"]
    assert documents.counts.bad_records == 4


# ---- memory


def test_a_record_that_does_not_fit_is_refused_in_little_memory(tmp_path: Path) -> None:
    """200 MB on one line."""
    packer = gzip.GzipFile(tmp_path / "a.jsonl.gz", "wb", compresslevel=1)
    with packer:
        packer.write(rows({"text": "one"}).encode() + b'{"text": "')
        for _ in range(50):
            packer.write(b"a" * 4_000_000)
        packer.write(b'"}\n' + rows({"text": "three"}).encode())
    tracemalloc.start()
    try:
        error = refused(tmp_path / "a.jsonl.gz")
        assert "longer than 16 MiB" in error.what
        assert error.where.endswith("a.jsonl.gz:2")
        assert list(read(tmp_path / "a.jsonl.gz", DataSettings(on_bad_record="skip"))) == ["one", "three"]
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()


def test_a_text_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    """20 MB of text on one line, in less than 8 MB."""
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(20):
            file.write(ENGLISH.replace("\n", " ").encode() * 13_514)
    tracemalloc.start()
    try:
        total = sum(map(len, read(tmp_path / "a.txt.gz")))
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert total == 20 * 13_514 * len(ENGLISH)


# ---- nothing but InputError


def test_random_damage_is_text_or_an_input_error(tmp_path: Path) -> None:
    """300 files with random bytes changed, cut or added: documents or a clear refusal, never another exception."""
    rng = random.Random(1)
    csv = 'text,n\n"one, two",1\n三四,2\n'.encode() * 5
    seeds = {
        "a.txt": (CHINESE + ENGLISH).encode() * 3,
        "a.jsonl": rows({"text": "one"}, {"text": "二"}).encode() * 5,
        "a.csv": csv,
        "a.tsv": csv.replace(b",", b"\t"),
        "a.csv.gz": gzip.compress(csv, mtime=0),
        "a.jsonl.zst": zstandard.compress(rows({"text": "one"}).encode() * 9),
        "a.txt.xz": lzma.compress(ENGLISH.encode()),
    }
    refusals: list[InputError] = []
    for turn in range(300):
        name = rng.choice(sorted(seeds))
        content = bytearray(seeds[name])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        path = write(tmp_path / str(turn) / name, bytes(content))
        try:
            for document in read(path):
                document.encode()
        except InputError as error:
            refusals.append(error)
    assert 150 < len(refusals) < 300
    assert all(error.mend and "a." in error.message() for error in refusals)
