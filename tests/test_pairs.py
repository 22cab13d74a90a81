"""Pairs from every kind of file, and what is wrong with them: counted, or said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.text.pairs import Pair, PairCounts, Pairs, PairSettings, read_pairs, split_pairs

EN_ZH = PairSettings(source_language="en", target_language="zh")
ROWS = [
    ("Click the button to close the window.", "单击该按钮以关闭窗口。"),
    ("Select the cells that you want to format.", "选择要设置格式的单元格。"),
    ("Opens a dialog.", "打开一个对话框。"),
]


def jsonl(path: Path, rows: list[tuple[object, object]], **more: object) -> str:
    path.write_text("".join(json.dumps({"source": a, "target": b, **more}, ensure_ascii=False) + "\n" for a, b in rows))
    return str(path)


def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path) -> None:
    sources = [jsonl(tmp_path / "a.jsonl", list(ROWS))]
    (tmp_path / "a.tsv").write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS))
    (tmp_path / "a.csv").write_text("target,source\n" + "".join(f'"{b}","{a}"\n' for a, b in ROWS))
    (tmp_path / "a.en").with_suffix(".en.txt").write_text("\ufeff" + "".join(a + "\r\n" for a, _ in ROWS))
    (tmp_path / "a.zh.txt").write_text("".join(b + "\n" for _, b in ROWS))
    units = "".join(
        f'<tu><tuv xml:lang="de"><seg>nichts</seg></tuv><tuv xml:lang="EN-us"><seg>{a}</seg></tuv>'
        f'<tuv xml:lang="zh_CN"><seg>{b[:3]}<bpt i="1">{b[3:5]}</bpt>{b[5:]}</seg></tuv></tu>\n'
        for a, b in ROWS
    )
    (tmp_path / "a.tmx").write_text(f'<?xml version="1.0"?>\n<tmx version="1.4"><header/><body>{units}</body></tmx>')
    sources += [str(tmp_path / "a.tsv"), str(tmp_path / "a.csv"), str(tmp_path / "a.tmx")]
    sources.append(f"{tmp_path / 'a.en.txt'},{tmp_path / 'a.zh.txt'}")
    for source in sources:
        found = read_pairs(source, EN_ZH)
        assert [(p.source, p.target) for p in found] == ROWS, source
        assert found.counts.read == found.counts.kept == len(found) == len(found.places) == 3
    assert read_pairs(sources[0], EN_ZH).places[1].endswith("a.jsonl:2")
    assert read_pairs(sources[-1], EN_ZH).places[2].endswith("a.en.txt:3")


def test_a_folder_is_read_whole_and_groups_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    jsonl(tmp_path / "deep" / "one.jsonl", list(ROWS[:1]), group="page 1")
    jsonl(tmp_path / "two.jsonl", list(ROWS[1:]))
    (tmp_path / "notes.txt").write_text("nothing to do with it\n")
    found = read_pairs(str(tmp_path), EN_ZH)
    assert [p.group for p in found] == ["page 1", "", ""]
    assert "1 files hold no pairs and are not read" in capsys.readouterr().err
    assert found.fingerprint() != read_pairs(str(tmp_path / "two.jsonl"), EN_ZH).fingerprint()


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *ROWS,
        ("", "空"),
        ("   ", "空白"),
        ("Nothing", None),
        ("LibreOffice Writer", "libreoffice writer"),  # identical but for case
        ("One word of a very long text " * 9, "一个词"),
        ("Yes", "是" * 10),  # short texts may differ: 3 bytes and 30, of which 20 are free
        ("This was never translated at all.", "This was not translated, only changed."),
        ("42", "四十二"),  # no letters: no script to be wrong
        ROWS[0],
        ("  Click   the button to close the window. ", ROWS[0][1]),  # the same once blanks are one
    ]
    found = read_pairs(jsonl(tmp_path / "a.jsonl", list(rows)), EN_ZH)
    counts = found.counts
    assert [counts.empty_side, counts.identical, counts.length_ratio, counts.wrong_script, counts.repeated] == [
        3,
        1,
        1,
        1,
        2,
    ]
    assert counts.read == len(rows) and counts.kept == len(found) == 5
    assert [p.source for p in found][3:] == ["Yes", "42"]
    told = capsys.readouterr().err
    assert "5 of 13 pairs are kept" in told and "wrong script 1" in told and "empty side 3" in told
    loose = PairSettings(max_ratio=0, identical="keep", repeats="keep")
    assert len(read_pairs(str(tmp_path / "a.jsonl"), loose)) == len(rows) - 3


def test_files_of_unequal_length_are_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.txt").write_text("eins\nzwei\n")
    with pytest.raises(InputError) as refused:
        read_pairs(f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}")
    message = refused.value.message()
    assert "not as many lines" in message and "a.txt: 3" in message and "b.txt: 2" in message


def test_swapped_languages_are_noticed(tmp_path: Path) -> None:
    rows = [(b.replace("。", f"{i}。"), f"{a} {i}") for i in range(10) for a, b in ROWS]
    path = jsonl(tmp_path / "a.jsonl", list(rows))
    with pytest.raises(InputError, match="the wrong way round"):
        read_pairs(path, EN_ZH)
    assert len(read_pairs(path, PairSettings(source_language="zh", target_language="en"))) == 30
    assert len(read_pairs(path)) == 30, "where no languages are named nothing is known of their scripts"
    mixed = [(f"Open LibreOffice {i}", f"打开 LibreOffice 的 Writer Calc Impress Draw {i}") for i in range(30)]
    assert len(read_pairs(jsonl(tmp_path / "b.jsonl", list(mixed)), EN_ZH)) == 30, "names stay in Latin letters"


def test_a_line_of_fifty_thousand_words_is_no_trouble(tmp_path: Path) -> None:
    rows = [*ROWS, ("word " * 50_000, "词" * 60_000), ("word " * 50_000, "词")]
    found = read_pairs(jsonl(tmp_path / "a.jsonl", list(rows)), EN_ZH)
    assert len(found) == 4 and found.counts.length_ratio == 1


def test_bad_records_fail_are_skipped_or_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    jsonl(path, [*ROWS, ("a number", 7)])
    with path.open("a") as file:
        file.write('{"source": "half a\n{"source": "no other side"}\n')
    with pytest.raises(InputError, match="target is no text"):
        read_pairs(str(path), EN_ZH)
    from dataclasses import replace

    found = read_pairs(str(path), replace(EN_ZH, on_bad_record="skip"))
    assert len(found) == 3 and found.counts.bad_records == 3 and "a.jsonl:4" in found.counts.bad_places[0]
    aside = tmp_path / "aside.jsonl"
    read_pairs(str(path), replace(EN_ZH, on_bad_record="quarantine"), quarantine=aside)
    assert len(aside.read_text().splitlines()) == 3


def test_half_a_character_is_a_bad_record(tmp_path: Path) -> None:
    from dataclasses import replace

    path = tmp_path / "a.jsonl"
    for wrong in ({"source": "half \ud83d", "target": "b"}, {"source": "a", "target": "b", "group": "\ud800"}):
        path.write_text(json.dumps(wrong) + '\n{"source": "the file", "target": "文件"}\n', encoding="utf-8")
        with pytest.raises(InputError, match=r"holds half a character"):
            read_pairs(str(path), EN_ZH)
        found = read_pairs(str(path), replace(EN_ZH, on_bad_record="skip"))
        assert len(found) == 1 and found.counts.bad_records == 1 and found.fingerprint()


def test_a_named_data_set_has_its_languages() -> None:
    from zhixing.text.pairs import PairSettings, languages_of

    assert languages_of("libreoffice-help-en-zh", PairSettings()) == ("en", "zh")
    assert languages_of("libreoffice-help-en-zh", PairSettings(target_language="en")) == ("zh", "en")
    assert languages_of("mine.tsv", PairSettings(source_language="de")) == ("de", "")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("running text\n")
    with pytest.raises(InputError, match="there are no pairs"):
        read_pairs(str(tmp_path / "a.txt"))
    with pytest.raises(InputError, match=r"there is no 'gone\.jsonl'"):
        read_pairs("gone.jsonl")
    (tmp_path / "a.csv").write_text("english,chinese\nyes,是\n")
    with pytest.raises(InputError, match="source"):
        read_pairs(str(tmp_path / "a.csv"))
    with pytest.raises(InputError, match="no pair is left"):
        read_pairs(jsonl(tmp_path / "same.jsonl", [("a", "a"), ("", "b")]))
    with pytest.raises(InputError, match="max_ratio"):
        read_pairs(jsonl(tmp_path / "a.jsonl", list(ROWS)), PairSettings(max_ratio=0.5))


def test_tmx_that_is_cut_off_hostile_or_of_other_languages(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    path.write_text('<tmx><body><tu><tuv xml:lang="en"><seg>Yes</seg></tuv><tuv xml:lang="zh"><seg>是')
    with pytest.raises(InputError, match="no XML"):
        read_pairs(str(path), EN_ZH)
    path.write_text('<!DOCTYPE tmx [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><tmx><body>&b;</body></tmx>')
    with pytest.raises(InputError, match="entities of its own"):
        read_pairs(str(path), EN_ZH)
    path.write_text('<tmx><body><tu><tuv xml:lang="de"><seg>Ja</seg></tuv><tuv xml:lang="fr"><seg>Oui</seg></tuv></tu></body></tmx>')  # fmt: skip
    with pytest.raises(InputError, match="no unit has both") as refused:
        read_pairs(str(path), EN_ZH)
    assert "de, fr" in refused.value.message()
    with pytest.raises(InputError, match="several languages"):
        read_pairs(str(path))
    assert list(read_pairs(str(path), PairSettings(source_language="de", target_language="fr"))) == [Pair("Ja", "Oui")]


# ---- forms of one column, and names


def test_translations_by_language_and_documents_with_summaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"translation": {"en-US": a, "de": "-", "zh": b}, "group": 7}) + "\n" for a, b in ROWS)
    )
    assert list(read_pairs(str(path), EN_ZH)) == [Pair(a, b, "7") for a, b in ROWS]
    back = read_pairs(str(path), PairSettings(source_language="zh", target_language="en"))
    assert list(back) == [Pair(b, a, "7") for a, b in ROWS]
    with pytest.raises(InputError, match="several languages"):
        read_pairs(str(path))
    with pytest.raises(InputError, match="nothing in 'fr'") as refused:
        read_pairs(str(path), PairSettings(source_language="en", target_language="fr"))
    assert "en-US, de, zh" in refused.value.message()
    path.write_text('{"translation": ["a", "b"]}\n{"translation": {"en": "a", "zh": 3}}\n{"translation": null}\n')
    with pytest.raises(InputError, match="no pair is left"):
        read_pairs(str(path), PairSettings("source", "target", "en", "zh", on_bad_record="skip"))
    rows = [("A long text.", "Text."), ("Another text.", "More.")]
    path.write_text("".join(json.dumps({"document": a, "summary": b}) + "\n" for a, b in rows))
    assert list(read_pairs(str(path))) == [Pair(*row) for row in rows]
    assert capsys.readouterr().err.count("'document' is taken as the source") == 1
    assert read_pairs(str(path), PairSettings("summary", "document"))[0] == Pair("Text.", "A long text.")
    (tmp_path / "b.csv").write_text("document,summary\nA long text.,Text.\n")
    assert list(read_pairs(str(tmp_path / "b.csv"))) == [Pair("A long text.", "Text.")]


def test_translations_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"translation": {"en": a, "zh": b}, "other": 1} for a, b in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [(p.source, p.target) for p in read_pairs(str(tmp_path / "a.parquet"), EN_ZH)] == ROWS


def test_a_named_set_without_pairs_is_refused() -> None:
    with pytest.raises(InputError, match="'tang' holds no pairs") as refused:
        read_pairs("tang")
    assert "libreoffice-help-en-zh" in refused.value.mend
    assert "debian-descriptions" in refused.value.mend


# ---- splitting


def pairs_of(rows: list[tuple[str, str, str]]) -> Pairs:
    return Pairs("test", [Pair(*row) for row in rows], [f"test:{i + 1}" for i in range(len(rows))], PairCounts())


WORDS = ["open", "the", "file", "close", "a", "window", "select", "cells", "format", "page", "print", "border", "index"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=3, max_size=9).map(" ".join)
MANY = st.lists(st.tuples(SENTENCES, SENTENCES, st.sampled_from(["", "a", "b", "c", "d"])), min_size=2, max_size=30)


@settings(deadline=None)
@given(MANY, st.floats(0.05, 0.6), st.integers(0, 3))
def test_no_group_is_torn_and_no_text_is_on_both_sides(
    rows: list[tuple[str, str, str]], fraction: float, seed: int
) -> None:
    pairs = pairs_of(rows)
    refused = ""
    try:
        train, held, report = split_pairs(pairs, fraction, seed)
    except InputError as error:
        refused = error.what
    if refused:
        assert refused in ("there are too few pairs to split", "no pair is left to hold out")
        return
    again = split_pairs(pairs, fraction, seed)
    assert (again[0].places, again[1].places, again[2]) == (train.places, held.places, report)
    assert not {p.group for p in train} & {p.group for p in held} - {""}
    for side in ("source", "target"):
        known = {" ".join(getattr(p, side).casefold().split()) for p in train}
        assert not known & {" ".join(getattr(p, side).casefold().split()) for p in held}
    assert len(train) + len(held) + report.repeats + report.near == len(pairs)
    assert (report.train_pairs, report.heldout_pairs) == (len(train), len(held))
    assert train.pairs
    assert held.pairs
    stands = dict(zip(pairs.places, pairs, strict=True))
    for part in (train, held):
        assert part.places == sorted(part.places, key=pairs.places.index)
        assert [stands[place] for place in part.places] == part.pairs


def test_the_share_is_kept_and_the_order_of_the_pairs_is_nothing() -> None:
    rows = [(f"source {i * 7919:x} {i}", f"target {i * 104729:x} {i}", f"page {i // 5}") for i in range(1000)]
    train, held, report = split_pairs(pairs_of(rows), 0.1, 0)
    assert report.repeats == 0
    assert report.groups == 200
    assert (len(train), len(held) + report.near) == (900, 100)
    other = split_pairs(pairs_of(rows[::-1]), 0.1, 0)
    assert sorted(map(str, other[1])) == sorted(map(str, held))
    assert {p.group for p in split_pairs(pairs_of(rows), 0.1, 1)[1]} != {p.group for p in held}
    assert "held out: " in report.summary()
    assert "200 groups each on one side" in report.summary()


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["Save  it"] * 5 + ["save it"] * 5, "repeats"),  # the same but for case and blanks
        ([f"Choose the item that opens a dialog in which the cells' borders are set {i}" for i in range(10)], "near"),
    ],
)
def test_what_training_says_is_removed_from_the_heldout_part(texts: list[str], kind: str, side: str) -> None:
    rows = [(text, f"ziel {i * 15485863:x}", f"group {i}") for i, text in enumerate(texts)]
    own = [(f"sentence {i * 7919:x}", f"satz {i * 104729:x}", f"page {i}") for i in range(10)]
    if side == "target":
        rows = [(b, a, group) for a, b, group in rows]
    train, held, report = split_pairs(pairs_of(rows + own), 0.5, 0)
    assert (report.repeats > 0, report.near > 0) == (kind == "repeats", kind == "near")
    assert "removed from the held-out part" in report.summary()
    assert len(train) + len(held) + report.repeats + report.near == 20
    assert not any({p.source, p.target} & set(texts) for p in held)
    with pytest.raises(InputError, match="no pair is left to hold out"):
        split_pairs(pairs_of(rows), 0.5, 0)


def test_what_cannot_be_split_is_said() -> None:
    one = pairs_of([("a", "b", "g"), ("c", "d", "g")])
    with pytest.raises(InputError, match="too few pairs"):
        split_pairs(one, 0.5, 0)
    with pytest.raises(InputError, match="heldout_fraction is 1"):
        split_pairs(one, 1.0, 0)
    two = pairs_of([("alpha", "beta", ""), ("gamma", "delta", "")])
    for fraction in (0.01, 0.99):
        train, held, _ = split_pairs(two, fraction, 0)
        assert len(train) == len(held) == 1


def test_aligned_files_may_end_in_their_language(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("Open the file.\nClose it.\n", encoding="utf-8")
    (tmp_path / "train.zh.gz").write_bytes(gzip.compress("打开文件。\n关闭它。\n".encode(), mtime=0))
    found = read_pairs(f"{tmp_path / 'train.en'},{tmp_path / 'train.zh.gz'}")
    assert [(pair.source, pair.target) for pair in found] == [
        ("Open the file.", "打开文件。"),
        ("Close it.", "关闭它。"),
    ]
