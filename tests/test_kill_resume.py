"""kill -9 at any moment, resume, and the model is the same to the last bit as if nothing had happened.

The real command line trains in a process of its own. It is killed at random moments (anywhere from its first line to
the last file of the run, and oftenest around saves), resumed until it is done, and the SHA-256 of model.safetensors is
compared with that of an undisturbed run in a new interpreter.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.launcher import Launcher
from zhixing.files import sha256_file
from zhixing.training.checkpoint import list_steps, load_newest
from zhixing.training.runlock import run_lock

ROOT = Path(__file__).parents[1]
STEPS, SAVE_STEPS = 30, 5
PATIENCE = 300  # seconds: nothing here takes a tenth of it, but other work may keep the machine busy
SETTINGS = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=32", "model.dropout=0.1", "tokenizer.vocab_size=300",
    f"train.max_steps={STEPS}", f"train.save_steps={SAVE_STEPS}", "train.eval_steps=10", "train.warmup_steps=5", "train.logging_steps=1",
    "train.per_device_train_batch_size=4", "train.compile=false", "train.bf16=false", "train.threads=1",
    "eval.max_sequences=8", "eval.max_new_tokens=4",
)  # fmt: skip
FAMILIES = {
    "gpt": ("model.family=gpt", "train.optim=muon"),
    "lstm": ("model.family=lstm", "train.optim=adamw"),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, english_text: str) -> Path:
    """20 KB in four files."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(4):
        (folder / f"{number}.txt").write_text(english_text[number * 5000 : (number + 1) * 5000], encoding="utf-8")
    return folder


def arguments(text: Path, family: str, run: Path) -> list[str]:
    return ["train", str(text), *SETTINGS, *FAMILIES[family], "--out", str(run)]


def log_of(run: Path) -> Path:
    return run.with_name(run.name + ".log")


def said(run: Path) -> str:
    return log_of(run).read_text(encoding="utf-8", errors="replace")[-3000:]


def start(text: Path, family: str, run: Path, *more: str) -> subprocess.Popen[bytes]:
    """`python -m zhixing train ...` in a new interpreter; what it says is added to RUN.log."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with log_of(run).open("ab") as log:
        command = [sys.executable, "-m", "zhixing", *arguments(text, family, run), *more]
        return subprocess.Popen(command, stdout=log, stderr=log, env=env)


@pytest.fixture(scope="module")
def straight(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undisturbed run of each family."""
    folder = tmp_path_factory.mktemp("straight")
    runs = {family: folder / family for family in FAMILIES}
    processes = {family: start(text, family, run) for family, run in runs.items()}
    for family, process in processes.items():
        assert process.wait(PATIENCE) == 0, said(runs[family])
    return runs


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher(ROOT) as started:
        yield started


def wait_for_moment(launcher: Launcher, run: Path, seconds: float, draw: random.Random) -> str:
    """Wait until a random moment of a run that takes about `seconds`; returns what it was."""
    done = max(list_steps(run), default=0)
    if draw.random() < 0.4:
        step, pause = done, draw.uniform(0, seconds)  # anywhere, the beginning and the end of the run included
    else:
        step = draw.randrange(done, STEPS + 1, SAVE_STEPS)  # around a save
        pause = draw.choice((0.0, draw.uniform(0, 0.02), draw.uniform(0, 0.1)))
    while launcher.running() and max(list_steps(run), default=0) < step:
        time.sleep(0.0005)
    until = time.monotonic() + pause
    while launcher.running() and time.monotonic() < until:
        time.sleep(0.0005)
    return f"{pause * 1000:.0f} ms after step {step}"


def kill_and_resume(
    launcher: Launcher, text: Path, family: str, straight: Path, folder: Path, kills: int, seed: int
) -> None:
    wanted = sha256_file(straight / "model.safetensors")
    draw = random.Random(seed)
    moments: list[str] = []  # of this run
    total, number, seconds = 0, 0, 1.0
    while total < kills or number == 0:
        run = folder / f"{family}-{number}"
        number += 1
        began = time.monotonic()
        launcher.start(arguments(text, family, run), log_of(run))
        moments = []
        while True:
            if number > 1 and total < kills and draw.random() < 0.8:  # the first run is not disturbed, but timed
                moments.append(wait_for_moment(launcher, run, seconds, draw))
                launcher.send(signal.SIGKILL)
            code = launcher.wait()
            if code != -signal.SIGKILL:
                break
            total += 1
            newest = max(list_steps(run), default=0)
            kept = load_newest(run)
            assert (kept.state.step if kept else 0) == newest and not (kept and kept.messages), moments
            launcher.start([*arguments(text, family, run), "--resume"], log_of(run))
        if number == 1:
            seconds = time.monotonic() - began
        assert code == 0, f"{moments}\n{said(run)}"
        assert sha256_file(run / "model.safetensors") == wanted, f"other bits after {moments}\n{said(run)}"
        assert files(run) == files(straight) and set(list_steps(run)) >= set(list_steps(straight)), moments
        assert metrics(run) == metrics(straight), moments
        hidden = [str(p) for p in run.rglob(".*")]
        assert not hidden, f"left behind after {moments}: {hidden}"
        shutil.rmtree(run)


def files(run: Path) -> list[str]:
    """Names of all that a run holds beside its checkpoints (a purge that was killed is made up for by the next)."""
    names = (p.relative_to(run) for p in run.rglob("*") if not p.name.startswith("."))
    return sorted(str(name) for name in names if name.parts[0] != "checkpoints")


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, less the times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.timeout(4 * PATIENCE)
def test_killed_and_resumed_gives_the_same_bits(
    launcher: Launcher, text: Path, tmp_path: Path, straight: dict[str, Path]
) -> None:
    """Six over two families; `make test-all` has 20 of each, a release 250."""
    for family in FAMILIES:
        kill_and_resume(launcher, text, family, straight[family], tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_twenty_times(
    launcher: Launcher, text: Path, tmp_path: Path, straight: dict[str, Path], family: str
) -> None:
    kill_and_resume(launcher, text, family, straight[family], tmp_path, kills=20, seed=3)


@pytest.mark.release
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_hundreds_of_times(
    launcher: Launcher, text: Path, tmp_path: Path, straight: dict[str, Path], family: str
) -> None:
    kill_and_resume(launcher, text, family, straight[family], tmp_path, kills=250, seed=2)


@pytest.mark.timeout(4 * PATIENCE)
def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bits(
    launcher: Launcher, text: Path, tmp_path: Path, straight: dict[str, Path]
) -> None:
    for number in range(10):
        run = tmp_path / f"stopped-{number}"
        process = start(text, "gpt", run)
        while process.poll() is None and not list_steps(run):
            time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        if max(list_steps(run), default=0) < STEPS:
            break  # else this process slept for longer than the whole training takes, and the signal came too late
    assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM) and "--resume" in said(run), said(run)
    assert 0 < max(list_steps(run)) < STEPS  # it was stopped on the way
    with run_lock(run):
        launcher.start([*arguments(text, "gpt", run), "--resume"], log_of(run))
        assert launcher.wait() == 2 and f"process {os.getpid()} holds the lock" in said(run)
    launcher.start([*arguments(text, "gpt", run), "--resume"], log_of(run))
    assert launcher.wait() == 0, said(run)
    assert sha256_file(run / "model.safetensors") == sha256_file(straight["gpt"] / "model.safetensors")
