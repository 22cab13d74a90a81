"""How many threads a process starts where nobody said it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zhixing.cores import default_threads, usable_cores
from zhixing.run import Run

ROOT = Path(__file__).parents[1]


def test_cores_of_a_container(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none") >= 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == usable_cores(tmp_path / "none")


@pytest.mark.parametrize(("value", "threads"), [("1", 1), ("3,2", 3), ("", 0), ("0", 0), ("many", 0), ("-1", 0)])
def test_openmp_s_variable_is_followed(monkeypatch: pytest.MonkeyPatch, value: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (threads or usable_cores())


def test_a_loaded_run_keeps_to_it(tiny_run: Run) -> None:
    """A server that was given one thread by its environment must not take all cores when it loads a model."""
    code = (
        f"import json, sys, torch, zhixing; zhixing.load({str(tiny_run.path)!r})\n"
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules, 'two seconds of every start'\n"
        "print(json.dumps(torch.get_num_threads()))"
    )
    threads = usable_cores() + 1
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == threads
