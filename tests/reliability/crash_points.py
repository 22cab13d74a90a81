"""Kill the process before every file operation of a save and of a purge, and see what is left each time.

    PYTHONPATH=src:tests python -m reliability.crash_points        # prints one JSON object

Every scenario starts from the same folder; a forked child does the work and is killed before its k-th operation, for
k = 0, 1, 2, ... until it finishes. Then the newest checkpoint must be the one before or the new one, whole, nothing may
have been set aside, and the same work must succeed and leave nothing hidden behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from reliability.faults import KILLED, Disk
from zhixing.files import atomic_write
from zhixing.training.checkpoint import (
    TrainingState,
    capture_rng,
    list_steps,
    load_newest,
    load_step,
    purge,
    save_checkpoint,
)

Check = Callable[[Path], bool]


def save(run: Path, step: int) -> Path:
    """A checkpoint whose tensors tell its step."""
    model = {"weight": torch.full((40, 30), float(step)), "bias": torch.full((3,), float(step), dtype=torch.bfloat16)}
    optimizer = {"adamw/weight/exp_avg": torch.full((40, 30), -float(step)), "adamw/weight/step": torch.tensor(step)}
    return save_checkpoint(run, model, optimizer, TrainingState(step, samples_seen=step * 8, rng={"0": capture_rng()}))


def newest(run: Path) -> int | None:
    """The newest step, after looking at each value; nothing may have been skipped."""
    checkpoint = load_newest(run)
    if checkpoint is None:
        return None
    step = checkpoint.state.step
    assert not checkpoint.messages, checkpoint.messages
    assert bool((checkpoint.model["weight"] == step).all()) and bool((checkpoint.model["bias"] == step).all())
    assert bool((checkpoint.optimizer["adamw/weight/exp_avg"] == -step).all())
    return step


def hidden(run: Path) -> list[str]:
    return [str(p.relative_to(run)) for p in run.rglob(".*")]


def kill_at_every_operation(start: Path, work: Callable[[Path], object], after: Check, finished: Check) -> int:
    """How many operations `work` has; AssertionError names the one after which something was wrong."""
    number = 0
    while True:
        run = Path(tempfile.mkdtemp(dir=start.parent)) / "run"
        if start.exists():
            shutil.copytree(start, run)
        pid = os.fork()
        if pid == 0:
            with Disk(kill_at=number).installed():
                work(run)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, KILLED), f"operation {number}: the child ended with {code}"
        assert after(run), f"killed before operation {number}: {sorted(p.name for p in run.rglob('*'))}"
        work(run)
        purge(run, 9)
        assert finished(run) and not hidden(run), f"killed before operation {number}, then done again: {hidden(run)}"
        shutil.rmtree(run.parent)
        if code == 0:
            return number
        number += 1


def scenarios(folder: Path) -> dict[str, int]:
    """Operations killed, by scenario."""
    points = {}
    points["first save"] = kill_at_every_operation(
        folder / "nothing", lambda run: save(run, 5), lambda run: newest(run) in (None, 5), lambda run: newest(run) == 5
    )
    two = folder / "two"
    for step in (5, 10):
        save(two, step)
    points["save"] = kill_at_every_operation(
        two, lambda run: save(run, 15), lambda run: newest(run) in (10, 15), lambda run: list_steps(run) == [5, 10, 15]
    )
    damaged = folder / "damaged"
    shutil.copytree(two, damaged)
    (damaged / "checkpoints" / "step-00000010" / "state.json").unlink()
    points["save over a damaged one"] = kill_at_every_operation(
        damaged,
        lambda run: save(run, 10),
        lambda run: load_step(run, 5).state.step == 5,
        lambda run: newest(run) == 10 and len(list(run.glob("checkpoints/*.bad"))) == 1,
    )
    six = folder / "six"
    for step in range(5, 35, 5):
        save(six, step)

    def whole(run: Path) -> bool:
        steps = list_steps(run)
        return {10, 25, 30} <= set(steps) and all(load_step(run, step).state.step == step for step in steps)

    points["purge"] = kill_at_every_operation(
        six, lambda run: purge(run, 2, {10}), whole, lambda run: list_steps(run) == [10, 25, 30]
    )
    points["one file"] = kill_at_every_operation(
        two,
        lambda run: atomic_write(run / "checkpoints" / "note", b"new"),
        lambda run: newest(run) == 10 and (not (run / "checkpoints" / "note").exists() or _note(run) == b"new"),
        lambda run: _note(run) == b"new",
    )
    return points


def _note(run: Path) -> bytes:
    return (run / "checkpoints" / "note").read_bytes()


if __name__ == "__main__":
    torch.set_num_threads(1)  # forking is safe only without other threads
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps({"killed_before": scenarios(Path(place)), "lost": 0}))
