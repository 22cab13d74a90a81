"""kill -9 at any moment, resume, and the model is the same to the last bit as if nothing had happened.

The real command line trains in a process of its own. It is killed at random moments (anywhere from the start of the
interpreter to the last file of the run, and oftenest around saves), resumed until it is done, and the SHA-256 of
model.safetensors is compared with an undisturbed run's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zhixing.files import sha256_file, verify_manifest
from zhixing.training.checkpoint import list_steps, load_newest
from zhixing.training.runlock import run_lock

ROOT = Path(__file__).parents[1]
STEPS, SAVE_STEPS = 30, 5
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


def start(text: Path, family: str, run: Path, *more: str) -> subprocess.Popen[bytes]:
    """`python -m zhixing train ...` in a process of its own; what it says is added to RUN.log."""
    log = run.with_name(run.name + ".log").open("ab")
    command = [
        sys.executable,
        "-m",
        "zhixing",
        "train",
        str(text),
        *SETTINGS,
        *FAMILIES[family],
        "--out",
        str(run),
        *more,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env)


def said(run: Path) -> str:
    return run.with_name(run.name + ".log").read_text(encoding="utf-8", errors="replace")[-3000:]


def wait_for_moment(process: subprocess.Popen[bytes], run: Path, seconds: float, draw: random.Random) -> str:
    """Wait until a random moment of a run that takes about `seconds`; returns what it was."""
    if draw.random() < 0.3:
        moment = draw.uniform(0, seconds)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        return f"{moment:.2f} s after its start"
    done = max(list_steps(run), default=0)
    step = draw.randrange(done, STEPS + 1, SAVE_STEPS)
    while process.poll() is None and max(list_steps(run), default=0) < step:
        time.sleep(0.001)
    pause = draw.choice((0.0, draw.uniform(0, 0.02), draw.uniform(0, 0.5)))
    time.sleep(pause)
    return f"{pause * 1000:.0f} ms after step {step}"


def kill_and_resume(text: Path, family: str, folder: Path, kills: int, seed: int) -> None:
    straight = folder / "straight"
    began = time.monotonic()
    undisturbed = start(text, family, straight)
    assert undisturbed.wait(120) == 0, said(straight)
    seconds = time.monotonic() - began
    wanted = sha256_file(straight / "model.safetensors")

    draw = random.Random(seed)
    moments: list[str] = []
    attempt = 0
    while len(moments) < kills:
        attempt += 1
        run = folder / f"killed-{attempt}"
        process = start(text, family, run)
        while True:
            if len(moments) < kills and (not moments or draw.random() < 0.8):
                moments.append(wait_for_moment(process, run, seconds, draw))
                process.kill()
            code = process.wait(120)
            if code != -signal.SIGKILL:
                break
            before = max(list_steps(run), default=0)
            kept = load_newest(run)
            assert (kept.state.step if kept else 0) == before and not (kept and kept.messages), moments
            process = start(text, family, run, "--resume")
        assert code == 0, f"{moments}\n{said(run)}"
        assert sha256_file(run / "model.safetensors") == wanted, f"other bits after {moments}\n{said(run)}"
        verify_manifest(run)
        assert metrics(run) == metrics(straight), moments
        hidden = [str(p) for p in run.rglob(".*")]
        assert not hidden, f"left behind after {moments}: {hidden}"


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, less the times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_twice_and_resumed_gives_the_same_bits(text: Path, tmp_path: Path, family: str) -> None:
    kill_and_resume(text, family, tmp_path, kills=2, seed=1)


@pytest.mark.release
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_twenty_times(text: Path, tmp_path: Path, family: str) -> None:
    kill_and_resume(text, family, tmp_path, kills=20, seed=2)


def test_asked_to_stop_it_saves_and_goes_on_to_the_same_bits(text: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "stopped"
    undisturbed = start(text, "gpt", straight)
    process = start(text, "gpt", run)
    while process.poll() is None and not list_steps(run):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert code not in (0, 1, 2) and "--resume" in said(run), said(run)
    assert 0 < max(list_steps(run)) < STEPS  # it was stopped on the way
    with run_lock(run):
        second = start(text, "gpt", run, "--resume")
        assert second.wait(60) == 2 and f"process {os.getpid()} holds the lock" in said(run)
    resumed = start(text, "gpt", run, "--resume")
    assert resumed.wait(120) == 0, said(run)
    assert undisturbed.wait(120) == 0, said(straight)
    assert sha256_file(run / "model.safetensors") == sha256_file(straight / "model.safetensors")
