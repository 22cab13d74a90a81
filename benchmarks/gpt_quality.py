"""Time to quality: how long ours takes to the held-out loss that HF Trainer's GPT-2 reaches in ten minutes.

Same text and tokenizer (PEERS_DATA/tokens.npy), about the same number of parameters (17.0M), the last 2 % of the tokens
held out. Time is training time; evaluations are not counted on either side.

    python benchmarks/gpt_quality.py hf --learning-rate 1e-3 --seconds 600 [--precision bf16]    with the peers' Python
    python benchmarks/gpt_quality.py ours --max-steps 240 [train.learning_rate=0.03 model.n_layers=4 ...]

Each prints one JSON line with its curve: [training seconds, tokens, held-out loss].
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import torch.nn.functional as F

HELD_OUT, WINDOWS, LENGTH = 0.02, 96, 256


def tokens() -> tuple[Any, Any]:
    ids = np.load(peers.DATA / "tokens.npy", mmap_mode="r").astype(np.int64)
    cut = int(len(ids) * (1 - HELD_OUT))
    return ids[:cut], ids[cut:]


def heldout_rows(ids: Any) -> torch.Tensor:
    starts = np.linspace(0, len(ids) - LENGTH - 1, WINDOWS).astype(int)
    return torch.from_numpy(np.stack([ids[s : s + LENGTH + 1] for s in starts]))


def hf(options: argparse.Namespace) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(options.seed)
    train, rest = tokens()
    rows = heldout_rows(rest)
    rng = np.random.default_rng(options.seed)
    size = peers.GPT_SIZE
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size["vocab_size"],
            n_positions=LENGTH,
            n_embd=size["d_model"],
            n_layer=size["n_layers"],
            n_head=size["n_heads"],
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )

    class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            place = int(rng.integers(0, len(train) - LENGTH - 1))
            x = torch.from_numpy(train[place : place + LENGTH])
            return {"input_ids": x, "labels": x}

    curve: list[list[float]] = []

    class Watch(TrainerCallback):
        began, paused = 0.0, 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % max(1, options.max_steps // 12) and state.global_step != options.max_steps:
                return
            now = time.perf_counter()
            seconds = now - self.began - self.paused
            model.eval()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
                parts = [
                    F.cross_entropy(model(input_ids=r[:, :-1]).logits.float().transpose(1, 2), r[:, 1:])
                    for r in rows.split(8)
                ]
            loss = float(torch.stack(parts).mean())
            model.train()
            curve.append([round(seconds, 1), state.global_step * options.batch * LENGTH, round(loss, 4)])
            print(curve[-1], file=sys.stderr, flush=True)
            self.paused += time.perf_counter() - now

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        max_steps=options.max_steps,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=options.precision == "bf16",
        disable_tqdm=True,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup_steps,
        weight_decay=0.1,
        adam_beta2=options.adam_beta2,
        max_grad_norm=1.0,
        seed=options.seed,
    )
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(model, arguments, train_dataset=Data(), callbacks=[Watch()]).train()
    print(
        json.dumps(
            {
                "bench": "quality",
                "peer": f"HF Trainer GPT-2 {options.precision}",
                "learning_rate": options.learning_rate,
                "batch": options.batch,
                "steps": options.max_steps,
                "params": sum(p.numel() for p in model.parameters()),
                "seconds": curve[-1][0],
                "loss": curve[-1][2],
                "curve": curve,
            }
        )
    )


def ours(options: argparse.Namespace, overrides: list[str]) -> None:
    from zhixing.training.memory import keep_memory

    keep_memory()
    from dataclasses import replace

    from zhixing.models.gpt import GPT
    from zhixing.recipe import parse_recipe
    from zhixing.run import gpt_settings
    from zhixing.tokens.batches import Batch
    from zhixing.training.loop import fit
    from zhixing.training.objectives import next_token
    from zhixing.training.optimizers import make_optimizers

    torch.set_num_threads(options.threads)
    train, rest = tokens()
    rows = heldout_rows(rest)

    class Windows:
        def __len__(self) -> int:
            return WINDOWS

        def batch(self, first: int, count: int) -> Batch:
            places = np.random.default_rng([options.seed, first]).integers(0, len(train) - LENGTH - 1, count)
            x = torch.from_numpy(np.stack([train[p : p + LENGTH + 1] for p in places]))
            return Batch(x[:, :-1].contiguous(), x[:, 1:].contiguous())

        def sequential(self, first: int, count: int) -> Batch:
            x = rows[first : first + count]
            return Batch(x[:, :-1].contiguous(), x[:, 1:].contiguous())

    base = ["model.d_model=384", "model.n_layers=6", "model.n_heads=6", "train.compile=false"]
    recipe = parse_recipe("", "benchmark", base + overrides)
    m, t = recipe.model, recipe.train
    settings = replace(
        t,
        max_steps=options.max_steps,
        eval_steps=max(1, options.max_steps // options.evaluations),
        save_steps=options.max_steps,
        logging_steps=5,
        seed=options.seed,
    )
    model = GPT(
        replace(gpt_settings(m, peers.GPT_SIZE["vocab_size"]), max_len=LENGTH, dropout=0.0),
        torch.Generator().manual_seed(options.seed),
    )
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            next_token(),
            make_optimizers(model, settings),
            Windows(),
            Windows(),
            settings,
            replace(recipe.eval, max_sequences=WINDOWS, per_device_eval_batch_size=8),
            Path(folder),
            {},
            bf16=options.precision == "bf16",
            compiled=t.compile is True,
        )
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    curve, seconds, at = [], 0.0, 0
    for line in lines:
        if "loss" in line:
            seconds += (line["tokens"] - at) / line["tokens_per_second"]
            at = line["tokens"]
        else:
            curve.append([round(seconds, 1), at, round(line["eval_loss"], 4)])
    print(
        json.dumps(
            {
                "bench": "quality",
                "ours": overrides,
                "steps": options.max_steps,
                "params": sum(p.numel() for p in model.parameters()),
                "seconds": curve[-1][0],
                "loss": curve[-1][2],
                "curve": curve,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["hf", "ours"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--adam-beta2", type=float, default=0.95)
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=334)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options, overrides = parser.parse_known_args()
    if options.who == "hf":
        hf(options)
    else:
        ours(options, overrides)


if __name__ == "__main__":
    main()
