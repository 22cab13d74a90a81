"""Decoding tokens per second beside HF `generate` in fp32: the same weights, greedy, the same ids.

    python benchmarks/gpt_decode.py [--rounds 2] [--batches 1 8]      pairs, A B A B, and the ratio of each
    python benchmarks/gpt_decode.py run BATCH                         one line of ours

Ours is what `Run.generate` calls, on the peers' checkpoint (PEERS_DATA/gpt/hf) as transformers wrote it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import peers

PROMPT, NEW = 32, 200


def run(batch: int) -> None:
    import numpy as np

    from zhixing.decoding.generate import generate_ids
    from zhixing.decoding.settings import DecodingSettings
    from zhixing.run import load

    ids = np.load(peers.DATA / "tokens.npy", mmap_mode="r").astype(np.int64)
    prompts = [ids[1000 * i : 1000 * i + PROMPT].tolist() for i in range(1, batch + 1)]
    run = load(peers.DATA / "gpt" / "hf")
    settings = DecodingSettings(max_new_tokens=NEW, min_new_tokens=NEW, temperature=0, eos_ids=(0,))
    seconds, first = [], 0.0
    for attempt in range(7):
        began = time.perf_counter()
        written: list[list[int]] = [[] for _ in prompts]
        for tokens in generate_ids(run.decoder, prompts, settings):
            for token in tokens:
                written[token.row].append(token.id)
        took = time.perf_counter() - began
        if attempt == 0:
            first = took
        elif attempt > 1:
            seconds.append(took)
    assert all(len(row) == NEW for row in written)
    speeds = sorted(batch * NEW / s for s in seconds)
    print(
        json.dumps(
            {
                "bench": f"generate-b{batch}",
                "ours": "fp32",
                "unit": "tokens/s",
                "median": round(speeds[len(speeds) // 2], 1),
                "min": round(speeds[0], 1),
                "max": round(speeds[-1], 1),
                "first_call_s": round(first, 2),
                "first_ids": written[0][:8],
                "ids": written,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def reference(batch: int) -> None:
    """All ids of HF, run by the peers' Python, for the comparison id by id."""
    import numpy as np
    import torch
    from transformers import GPT2LMHeadModel

    ids = np.load(peers.DATA / "tokens.npy", mmap_mode="r").astype(np.int64)
    x = torch.from_numpy(np.stack([ids[1000 * i : 1000 * i + PROMPT] for i in range(1, batch + 1)]))
    model = GPT2LMHeadModel.from_pretrained(peers.DATA / "gpt" / "hf", dtype=torch.float32).eval()
    out = model.generate(
        x, attention_mask=torch.ones_like(x), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    print(json.dumps({"ids": out[:, PROMPT:].tolist()}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    options = parser.parse_args()
    for batch in options.batches:
        wanted = peers.last_json([peers.PYTHON, __file__, "reference", str(batch)])["ids"]

        def mine(batch: int = batch, wanted: list[list[int]] = wanted) -> dict[str, object]:
            result = peers.ours("gpt_decode.py", "run", str(batch))
            result["equal_ids"] = sum(
                a == b for x, y in zip(result["ids"], wanted, strict=True) for a, b in zip(x, y, strict=True)
            ) / (batch * NEW)
            return result

        peers.pairs(
            f"decoding, batch {batch}, ours over HF generate fp32",
            lambda batch=batch: peers.peer("gen.py", "hf", str(batch)),
            mine,
            options.rounds,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(int(sys.argv[2]))
    elif sys.argv[1:2] == ["reference"]:
        reference(int(sys.argv[2]))
    else:
        main()
