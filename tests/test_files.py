"""Files are whole or absent, a manifest sees every change, and leftovers of dead processes go."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from reliability.faults import Disk, file_size_limit, rewritten
from zhixing.files import (
    MANIFEST,
    NewerSchemaError,
    atomic_dir,
    atomic_write,
    clear_leftovers,
    read_manifest,
    remove_tree,
    set_aside,
    sha256_file,
    temporary_beside,
    verify_manifest,
    write_manifest,
)


def make(folder: Path, facts: dict[str, object] | None = None) -> Path:
    with atomic_dir(folder / "made", facts) as inside:
        (inside / "a.bin").write_bytes(bytes(range(256)) * 10)
        (inside / "deep" / "er").mkdir(parents=True)
        (inside / "deep" / "er" / "知.txt").write_text("行", encoding="utf-8")
        (inside / "deep" / MANIFEST).write_text("{}")
    return folder / "made"


def test_a_directory_appears_with_all_its_files_and_facts(tmp_path: Path) -> None:
    folder = make(tmp_path, {"step": 7, "nested": {10: "ten", 2: "two"}, "loss": 0.1, "说明": "知行"})
    manifest = verify_manifest(folder)
    assert (manifest["step"], manifest["loss"], manifest["nested"]) == (7, 0.1, {"10": "ten", "2": "two"})
    assert set(manifest["files"]) == {"a.bin", "deep/er/知.txt", f"deep/{MANIFEST}"}
    assert manifest["files"]["a.bin"] == {"size": 2560, "sha256": sha256_file(folder / "a.bin")}
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_finished_directory_is_never_written_into(tmp_path: Path) -> None:
    folder = make(tmp_path)
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(FileExistsError, match="never written into"):
        make(tmp_path)
    assert (folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_inside_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with atomic_dir(tmp_path / "made") as inside:
            (inside / "half").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_all_is_flushed_before_a_name_appears_and_the_name_after(tmp_path: Path) -> None:
    disk = Disk()
    with disk.installed():
        make(tmp_path / "new" / "parents")
        atomic_write(tmp_path / "new" / "file", "text")
        set_aside(tmp_path / "new" / "parents" / "made")
    assert disk.operations.count("fsync") > 8
    assert disk.unflushed_at_rename == []
    assert disk.unflushed == set()


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with atomic_dir(folder, {"step": 1234, "recipe": "9f86d081", "best": None, "ended": True}) as inside:
        (inside / "a").write_text("a")
    path = folder / MANIFEST
    good = path.read_bytes()
    for position in range(len(good) * 8):
        changed = bytearray(good)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=MANIFEST):
            read_manifest(folder)
    for cut in range(len(good)):
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match=MANIFEST):
            read_manifest(folder)
    path.write_bytes(good)
    verify_manifest(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"files": 3}', '{"files": {}}', "[" * 100_000, '{"a":' * 100_000, "\ud800", '{"files": {}, "schema": true}',
     '{"files": {}, "schema": 0}', '{"files": {}, "schema": 1}', '{"files": {}, "schema": 1, "checksum": "00"}', "NaN", "1" * 5000],
)  # fmt: skip
def test_what_is_no_manifest_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, errors="surrogatepass")
    with pytest.raises(ValueError, match=MANIFEST):
        verify_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "", "deep/../../outside", "a\0b", "deep", "absent", "x" * 5000, "a.bin/b"]
)
def test_a_manifest_lists_only_files_of_its_directory(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("x")
    rewritten(folder, files={name: {"size": 1, "sha256": sha256_file(outside)}})
    with pytest.raises((ValueError, OSError)):
        verify_manifest(folder)


@pytest.mark.parametrize("entry", [None, 3, {}, {"size": "1", "sha256": ""}, {"size": 2560, "sha256": None}])
def test_entries_of_the_wrong_kind_are_refused(tmp_path: Path, entry: object) -> None:
    folder = make(tmp_path)
    rewritten(folder, files={"a.bin": entry})
    with pytest.raises(ValueError, match=r"no size and SHA-256 for a\.bin"):
        verify_manifest(folder)


def test_a_newer_schema_is_named_as_such(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rewritten(folder, schema=2)
    with pytest.raises(NewerSchemaError, match="a newer zhixing wrote it"):
        verify_manifest(folder)


def test_facts_cannot_take_the_manifests_own_keys(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_manifest(tmp_path, {"files": {}})


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic_write(target, "old " * 5000)
    for room in random.Random(1).sample(range(20_000), 20):
        with pytest.raises(OSError, match="No space left"), Disk(room=room).installed():
            atomic_write(target, "new " * 5000)
        with pytest.raises(OSError, match="File too large"), file_size_limit(room):
            atomic_write(target, "new " * 5000)
        assert target.read_text() == "old " * 5000
        assert list(tmp_path.iterdir()) == [target]
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead = [
        f".step-1.tmp-{child.pid}-0123abcd",
        f".step-2.trash-{child.pid}-0123abcd",
        f".same.tmp-{os.getpid()}-0123abcd",
    ]
    kept = [
        f".x.tmp-{os.getppid()}-0123abcd",
        ".hidden",
        f"x.tmp-{child.pid}-0123abcd",
        f".x.tmp-{child.pid}-0123abcd.txt",
    ]
    for name in dead[:2] + kept[:2]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    for name in dead[2:] + kept[2:]:
        (tmp_path / name).write_text("x")
    with atomic_dir(tmp_path / "now") as inside:
        assert clear_leftovers(tmp_path) == sorted(dead)
        assert inside.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "now"])
    assert clear_leftovers(tmp_path / "absent") == []


def test_a_directory_is_hidden_before_it_is_emptied(tmp_path: Path) -> None:
    folder = make(tmp_path)
    disk = Disk()
    with disk.installed():
        remove_tree(folder)
    assert disk.operations[0] == "rename" and "unlink" in disk.operations
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_takes_no_other_place(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        (tmp_path / "step").mkdir()
        (tmp_path / "step" / str(number)).touch()
        names.append(set_aside(tmp_path / "step").name)
    assert names == ["step.bad", "step.bad-2", "step.bad-3"]
    assert [(tmp_path / name / str(number)).exists() for number, name in enumerate(names)] == [True] * 3


def test_a_temporary_lies_beside_its_target_under_a_name_of_its_own(tmp_path: Path) -> None:
    names = {temporary_beside(tmp_path / "x") for _ in range(50)}
    assert len(names) == 50 and {n.parent for n in names} == {tmp_path}
