"""The doctor on this machine, and on machines that lack something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zhixing import doctor
from zhixing.doctor import Check, diagnose, render


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return diagnose()


def _one(name: str) -> Check:
    return next(check for check in diagnose() if check.name == name)


def test_every_question_has_an_answer(checks: list[Check]) -> None:
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for name in (
        "Python",
        "torch",
        "cores",
        "threads",
        "processor",
        "numbers",
        "compiler",
        "memory",
        "disk",
        "cache",
        "pyarrow",
        "recipes",
    ):
        assert name in names
    assert all(check.value for check in checks)
    assert all(check.mend for check in checks if check.state == "bad")


def test_this_machine_can_train(checks: list[Check]) -> None:
    assert not [check for check in checks if check.state == "bad"]
    values = {check.name: check.value for check in checks}
    assert "FLOP/s, bf16" in values["numbers"]
    assert ".".join(map(str, sys.version_info[:3])) in values["Python"]


def test_render() -> None:
    checks = [
        Check("a", "fine"),
        Check("longer", "could be better", "note", "do this"),
        Check("b", "gone", "bad", "do that"),
    ]
    lines = render(checks, colour=False).splitlines()
    assert lines == [
        "✓ a       fine", "· longer  could be better", "          → do this", "✗ b       gone", "          → do that", "", "mend first: b",
    ]  # fmt: skip
    assert "\033[31m✗\033[0m b" in render(checks, colour=True)
    assert "zhixing can train here" in render(checks[:2], colour=False)


def test_colours_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033" in render([Check("a", "b")])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in render([Check("a", "b")])


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what a broken installation looks like to `import`
    found = diagnose()
    torch = next(check for check in found if check.name == "torch")
    assert torch.state == "bad" and "pip install torch" in torch.mend
    assert "threads" not in [check.name for check in found]
    assert "mend first: torch" in render(found, colour=False)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    check = _one("compiler")
    assert check.state == "note" and "a-compiler-that-is-not-there" in check.mend


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "usable_cores", lambda: torch.get_num_threads() - 1 or 0.5)
    assert "more than the cores" in _one("threads").value


def test_little_memory_and_an_old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_available", lambda: 10**9)
    monkeypatch.setattr(doctor, "processor_flags", lambda: frozenset({"sse2"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert _one("memory").state == "note" and "1 GB free" in _one("memory").value
    assert "without avx2" in _one("processor").value


def test_the_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path / "cache"))
    assert "made when" in _one("cache").value
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a").write_bytes(b"x" * 5000)
    assert "5 kB" in _one("cache").value


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    check = _one("pyarrow")
    assert check.state == "note" and "zhixing[parquet]" in check.mend


def test_importing_the_doctor_loads_no_torch() -> None:
    code = (
        "import sys, zhixing.doctor, zhixing.evaluation.report, zhixing.training.plan; sys.exit('torch' in sys.modules)"
    )
    paths = ":".join(p for p in sys.path if p)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": paths}, check=False).returncode == 0
