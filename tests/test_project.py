"""The project as a stranger finds it: light to import, pure Python, few packages, its rooms apart, its pages true."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = [*PROJECT["dependencies"], *(need for extra in PROJECT["optional-dependencies"].values() for need in extra)]


def tracked() -> list[str]:
    """Files of the repository; where there is no git (an unpacked archive) what lies there, less what tools make."""
    answer = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [name for name in answer.stdout.decode().split("\0") if name and (ROOT / name).exists()]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# ---- light ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["zhixing", "zhixing.cli"])
def test_importing_brings_nothing_heavy(module: str) -> None:
    loaded = json.loads(
        python(f"import sys; sys.path.insert(0, 'src'); import {module}, json; print(json.dumps(sorted(sys.modules)))")
    )
    assert module in loaded
    heavy = {"torch", "numpy", "tokenizers", "safetensors", "numba", "transformers", "pyarrow", "jinja2", "zhixing.run"}
    assert heavy.isdisjoint(loaded)


def test_what_torch_reads_once_is_settled_by_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    look = (
        "import sys, os; sys.path.insert(0, 'src'); import zhixing; "
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('THP_MEM_ALLOC_ENABLE'))"
    )
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    assert python(look).split() == ["1000", "1"]
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # a person's own word stays
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert python(look).split() == ["7", "0"]
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert python(look).split() == ["None", "0"]


def test_the_python_interface_is_there_when_asked_for() -> None:
    import zhixing
    from zhixing import classifier, entry, run

    assert (zhixing.train, zhixing.load, zhixing.Run) == (entry.train_any, entry.load_any, run.Run)
    assert (zhixing.Classifier, zhixing.Sentiment) == (classifier.Classifier, classifier.Sentiment)
    assert re.fullmatch(r"\d+\.\d+\.\d+", zhixing.__version__)


def test_few_packages() -> None:
    """With everything that they need in their turn, on this platform, without extras: torch's own included."""
    seen: set[str] = set()

    def walk(requirements: list[str], extras: frozenset[str]) -> None:
        for text in requirements:
            need = Requirement(text)
            if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                continue
            name = re.sub(r"[-_.]+", "-", need.name).lower()
            if name not in seen or need.extras:
                seen.add(name)
                walk(importlib.metadata.requires(name) or [], frozenset(need.extras))

    walk(PROJECT["dependencies"], frozenset())
    assert {"torch", "sympy", "tokenizers", "rich"} <= seen
    assert len(seen) <= 50, sorted(seen)


def test_no_upper_pins() -> None:
    for text in ASKED:
        assert {spec.operator for spec in Requirement(text).specifier} <= {">="}, text


def test_constraints_are_exact_and_name_every_package_we_ask_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9a-z.]+", line) for line in lines)
    assert {re.sub(r"[-_.]+", "-", Requirement(text).name).lower() for text in ASKED} <= pinned


def test_the_command_is_installed() -> None:
    assert PROJECT["scripts"] == {"zhixing": "zhixing.cli:main"}
    answer = subprocess.run(
        [sys.executable, "-m", "zhixing", "--version"], cwd=ROOT / "src", capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert re.fullmatch(r"zhixing \d+\.\d+\.\d+\n", answer.stdout)


# ---- the wheel ------------------------------------------------------------------------------------------------------


def test_the_wheel_is_pure_python_and_complete(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    answer = subprocess.run(build, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        info = next(n for n in inside if n.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: true" in archive.read(info).decode()
        entry_points = archive.read(info.replace("WHEEL", "entry_points.txt")).decode()
    assert "zhixing = zhixing.cli:main" in entry_points
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)
    package = {name.removeprefix("src/") for name in tracked() if name.startswith("src/zhixing/")}
    assert {name for name in inside if ".dist-info/" not in name} == package
    assert not [name for name in inside if name.endswith((".so", ".pyd", ".dylib", ".dll", ".pyc"))]
    assert wheel.stat().st_size < 5_000_000


# ---- the rooms ------------------------------------------------------------------------------------------------------


def test_rooms_import_only_from_rooms_before_them() -> None:
    program = Path(sys.executable).with_name("lint-imports")  # it closes the output of a process that goes on
    done = subprocess.run(
        [str(program), "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


# ---- the files ------------------------------------------------------------------------------------------------------


def test_no_machine_path_and_no_package_index() -> None:
    parts = [("/wo", "rk/"), ("/tmp/", "b"), ("/ro", "ot/"), ("/ho", "me/"), ("pypi", ".org"), ("index", "-url"), ("find", "-links"),
             ("registry.", "npmjs"), ("deb.", "debian.org"), ("pythonhosted", ".org")]  # fmt: skip
    wrong = re.compile("|".join(re.escape(first + second) for first, second in parts))  # split: this file is read too
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" in data[:4096]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if wrong.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_licences() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    samples = ROOT / "src/zhixing/text/samples"
    texts = [p for p in samples.rglob("*") if p.is_file() and "LICEN" not in p.name.upper() and p.suffix != ".md"]
    assert texts
    for text in texts:  # beside it or above it, inside samples
        places = [folder for folder in text.parents if folder == samples or samples in folder.parents]
        assert any(list(place.glob("*LICEN[SC]E*")) for place in places), f"{text.name} has no licence beside it"


def test_nothing_large_is_kept() -> None:
    assert not [name for name in tracked() if (ROOT / name).stat().st_size > 3_000_000]
    samples = [p for p in (ROOT / "src/zhixing/text/samples").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in samples) <= 3_000_000


# ---- the annotated tree ---------------------------------------------------------------------------------------------


def tree_of(page: str) -> dict[str, str]:
    """Path -> remark, from the block of the page that begins with "zhixing/"; two spaces of indent a level."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"```(?:text)?\n(zhixing/.*?)```", text, re.S)
    assert block, f"{page} has no tree"
    entries, folders = {}, []
    for line in block[1].splitlines()[1:]:
        indent, name, remark = re.fullmatch(r"( +)(\S+)\s*(.*)", line).groups()  # type: ignore[union-attr]
        level = len(indent) // 2
        folders[level - 1 :] = [name]
        path = "".join(folders)
        assert path not in entries, f"{page}: {path} stands twice"
        entries[path] = remark
    return entries


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_tree_is_what_lies_on_the_disk(page: str) -> None:
    tree = tree_of(page)
    assert not [path for path in tree if not (ROOT / path).exists()], "in the tree, not on the disk"
    assert not [path for path, remark in tree.items() if not remark and path != "src/"], "without a remark"
    files = [name for name in tracked() if not name.startswith(".")]
    shown = [name.split("/") for name in files]
    expected = {parts[0] + "/" * (len(parts) > 1) for parts in shown}
    expected |= {"/".join(parts[:3]) + "/" * (len(parts) > 3) for parts in shown if parts[:2] == ["src", "zhixing"]}
    expected -= {"src/zhixing/__init__.py", "src/zhixing/py.typed"}
    assert expected <= tree.keys(), f"not in the tree of {page}: {sorted(expected - tree.keys())}"
    for path, remark in tree.items():  # a room's remark ends with the names of its modules
        modules = sorted(p.stem for p in (ROOT / path).glob("*.py") if p.stem != "__init__")
        if re.fullmatch(r"src/zhixing/\w+/", path) and modules:
            assert re.split(r": |：", remark)[-1].split() == modules, f"{page}: {path}"


def test_both_trees_are_the_same() -> None:
    assert list(tree_of("README.md")) == list(tree_of("README.zh-CN.md"))
