"""Two processes started by torchrun learn what one process learns with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zhixing.training.checkpoint import list_steps, load_step

SETTINGS = [
    "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.max_len=32", "tokenizer.vocab_size=300", "train.max_steps=6",
    "train.eval_steps=3", "train.save_steps=3", "train.optim=adamw", "train.learning_rate=0.003", "train.logging_steps=1", "train.threads=1",
    "eval.max_new_tokens=4", "train.bf16=false",
]  # fmt: skip


def command(processes: int, folder: Path, out: Path, *more: str) -> list[str]:
    train = ["train", str(folder), *SETTINGS, *more, "--out", str(out)]
    if processes == 1:
        return [sys.executable, "-m", "zhixing", *train]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "zhixing",
        *train,
    ]


@pytest.mark.parametrize("accumulated", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ddp_equals_one_process(tmp_path: Path, english_text: str, accumulated: int) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(english_text[:30_000], encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for processes, size, out in ((1, 8, "one"), (2, 4, "two")):
        more = [
            f"train.per_device_train_batch_size={size // accumulated}",
            f"train.gradient_accumulation_steps={accumulated}",
        ]
        done = subprocess.run(
            command(processes, folder, tmp_path / out, *more),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for step in list_steps(tmp_path / "one"):
        one, two = (load_step(tmp_path / name, step).model for name in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6)
    facts = json.loads((tmp_path / "two" / "facts.json").read_text())
    assert facts["run"]["world"] == 2
