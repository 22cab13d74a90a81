"""Concurrent streams through the engine beside `generate_ids` in one batch and one by one: the GPT of gen.py, fp32.

    python benchmarks/engine_throughput.py [--streams 16] [--rounds 3] [--new 200] [--prompt 32] [--sampled]

All streams ask at the same moment, which is the hardest for the time to the first token and the easiest for a batch;
`engine, one by one` has a stream join every 50 ms, which a batch cannot have. Each round runs every way, A B C A B C.
Tokens a second are those of all streams together, from the first request to the last token; times to the first token
and between two tokens are those of the streams, in milliseconds. Greedy, no end of text, all the same ids each way.

The model is the peers' checkpoint (PEERS_DATA/gpt/hf), as in gpt_decode.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import peers

Times = list[list[float]]  # of each stream, when its tokens came


def main() -> None:
    import numpy as np

    from zhixing.decoding.engine import Engine, EngineLimits, Request
    from zhixing.decoding.generate import generate_ids
    from zhixing.decoding.settings import DecodingSettings
    from zhixing.run import load

    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--sampled", action="store_true", help="temperature 0.8, top-p 0.95, each stream its own seed")
    options = parser.parse_args()

    ids = np.load(peers.DATA / "tokens.npy", mmap_mode="r").astype(np.int64)
    prompts = [ids[1000 * i : 1000 * i + options.prompt].tolist() for i in range(1, options.streams + 1)]
    model = load(peers.DATA / "gpt" / "hf").decoder
    sampled = {"temperature": 0.8, "top_p": 0.95} if options.sampled else {}
    settings = DecodingSettings(max_new_tokens=options.new, min_new_tokens=options.new, eos_ids=(0,), **sampled)
    written: dict[str, list[list[int]]] = {}

    def by_generate(name: str, together: int) -> tuple[float, Times]:
        came: Times = [[] for _ in prompts]
        rows: list[list[int]] = [[] for _ in prompts]
        began = time.perf_counter()
        for first in range(0, len(prompts), together):
            for tokens in generate_ids(model, prompts[first : first + together], settings):
                for token in tokens:
                    rows[first + token.row].append(token.id)
                    came[first + token.row].append(time.perf_counter() - began)
        written[name] = rows
        return time.perf_counter() - began, came

    def by_engine(name: str, pause: float) -> tuple[float, Times]:
        came: Times = [[] for _ in prompts]
        rows: list[list[int]] = [[] for _ in prompts]
        with Engine(model, EngineLimits(most_rows=options.streams, most_tokens=options.streams * 512)) as engine:

            def read(number: int) -> None:
                time.sleep(number * pause)
                began = time.perf_counter()
                for token in engine.submit(Request(prompts[number], settings, key=f"user {number}")):
                    rows[number].append(token.id)
                    came[number].append(time.perf_counter() - began)

            readers = [threading.Thread(target=read, args=(number,)) for number in range(len(prompts))]
            began = time.perf_counter()
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            took = time.perf_counter() - began
        written[name] = rows
        return took, came

    ways: dict[str, Callable[[str], tuple[float, Times]]] = {
        "one by one": lambda name: by_generate(name, 1),
        "one batch": lambda name: by_generate(name, len(prompts)),
        "engine": lambda name: by_engine(name, 0.0),
        "engine, one by one": lambda name: by_engine(name, 0.05),
    }
    list(generate_ids(model, prompts[:2], DecodingSettings(max_new_tokens=4)))  # what is compiled at first use
    found: dict[str, list[tuple[float, Times]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(way(name))
    for name, rounds in found.items():
        speeds = sorted(len(prompts) * options.new / took for took, _ in rounds)
        firsts = sorted(1000 * stream[0] for _, came in rounds for stream in came)
        between = sorted(1000 * (b - a) for _, came in rounds for stream in came for a, b in pairwise(stream))
        result = {
            "bench": f"streams-{options.streams}" + ("-sampled" if options.sampled else ""),
            "way": name,
            "unit": "tokens/s",
            "median": round(statistics.median(speeds), 1),
            "min": round(speeds[0], 1),
            "max": round(speeds[-1], 1),
            "first_token_ms": {"median": round(statistics.median(firsts), 1), "max": round(firsts[-1], 1)},
            "between_tokens_ms": {
                "median": round(statistics.median(between), 1),
                "p99": round(between[int(0.99 * len(between))], 1),
            },
            "equal_ids": sum(
                a == b
                for x, y in zip(written[name], written["one by one"], strict=True)
                for a, b in zip(x, y, strict=True)
            )
            / (len(prompts) * options.new),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
