"""Training tokens per second beside HF Trainer: the same GPT (17.0M parameters), the same text, the same batch.

    python benchmarks/gpt_train.py [--rounds 2] [--precisions fp32 bf16]      pairs, A B A B, and the ratio of each
    python benchmarks/gpt_train.py run gpt2|qwen3 fp32|bf16 [adamw|muon]     one line of ours

Ours is `training.loop.fit` as every run uses it: data order, clipping, logging included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import peers

STEPS = int(os.environ.get("STEPS", "45"))


def run(layout: str, precision: str, optim: str) -> None:
    from zhixing.training.memory import keep_memory

    keep_memory()
    import numpy as np
    import torch

    from zhixing.models.gpt import GPT, GPTSettings
    from zhixing.recipe import EvalSettings, TrainSettings
    from zhixing.tokens.batches import Batch
    from zhixing.training.loop import fit
    from zhixing.training.objectives import next_token
    from zhixing.training.optimizers import make_optimizers

    torch.set_num_threads(2)
    size = peers.GPT_SIZE
    ids = np.load(peers.DATA / "tokens.npy", mmap_mode="r")

    class Windows:
        """Windows at random places of the text, as the peer takes them."""

        def __len__(self) -> int:
            return 8

        def batch(self, first: int, count: int) -> Batch:
            places = np.random.default_rng(first).integers(0, len(ids) - size["max_len"] - 1, count)
            rows = torch.from_numpy(np.stack([ids[p : p + size["max_len"] + 1] for p in places]).astype(np.int64))
            return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

        sequential = batch

    d_ff = 1536 if layout == "gpt2" else 1024
    model = GPT(
        GPTSettings(
            size["vocab_size"],
            layout,
            size["d_model"],
            size["n_layers"],
            size["n_heads"],
            size["n_heads"],
            d_ff,
            size["max_len"],
        )
    )
    settings = TrainSettings(
        max_steps=STEPS,
        per_device_train_batch_size=size["batch"],
        optim=optim,
        learning_rate=3e-4 if optim == "adamw" else 0.02,
        logging_steps=5,
        eval_steps=STEPS,
        save_steps=STEPS,
        seed=0,
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            next_token(),
            make_optimizers(model, settings),
            Windows(),
            Windows(),
            settings,
            EvalSettings(max_sequences=8),
            Path(folder),
            {},
            bf16=precision == "bf16",
        )
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line and line["step"] > 5)
    print(
        json.dumps(
            {
                "bench": "gpt-train",
                "ours": f"{layout} {precision} {optim}",
                "unit": "tokens/s",
                "median": round(speeds[len(speeds) // 2], 1),
                "min": round(speeds[0], 1),
                "max": round(speeds[-1], 1),
                "params": sum(p.numel() for p in model.parameters()),
                "seconds": round(time.perf_counter() - began, 1),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    options = parser.parse_args()
    for precision in options.precisions:
        peers.pairs(
            f"training, {precision}, ours over HF Trainer",
            lambda p=precision: peers.peer("gpt_train.py", "trainer", p),
            lambda p=precision: peers.ours("gpt_train.py", "run", "gpt2", p, "adamw"),
            options.rounds,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], sys.argv[3], (sys.argv[4:] or ["adamw"])[0])
    else:
        main()
