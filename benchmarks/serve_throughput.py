"""16 concurrent streams over HTTP beside other servers of the same weights: the GPT of gen.py, fp32, greedy.

    python benchmarks/serve_throughput.py [--streams 16] [--rounds 2] [--new 200] [--prompt 32] [--repeats 3]
                                          [--beside transformers transformers-batching llama.cpp] [--omp 2] [--our-omp 2]

Ours is `zhixing serve` on the peers' checkpoint (PEERS_DATA/gpt/hf) as transformers wrote it, in a process of its own.
Beside it, in turn, A B A B for each peer:

    transformers            `transformers serve FOLDER`, as it starts by default: a request after the other
    transformers-batching   `transformers serve FOLDER --continuous-batching`, whose cache takes gigabytes
    llama.cpp               `python -m llama_cpp.server` on PEERS_DATA/gpt/gpt-f32.gguf: a request after the other

All of them answer /v1/completions with stream = true, so one client, one asyncio process with httpx, asks all of them
the same texts of --prompt tokens at the same moment. Every server is started anew for each of its turns and warmed up
by as many short streams; no text is sent twice to a server, as prefixes are kept. Exactly --new tokens come each time:
the end of text is forbidden by min_tokens (ours, llama.cpp) or min_new_tokens (transformers); with continuous batching,
which knows no such field, it is a token like any other. That a stream ended by "length", and the server's own counts of
tokens where it sends them, are checked.

Tokens a second are those of all streams together, from the first request to the last stream's end, the median of the
repeats. Times are in milliseconds: to the first text of a stream, and between two of its texts. `foreign_load` is the
share of a core that neither the server nor the client took; `server_cores` and `client_cores` what these took.
`equal_texts` is the share of streams that wrote what they wrote on the server that was measured first.
--omp is OMP_NUM_THREADS of the peers, --our-omp ours: of these our engine leaves one to the event loop (2: it computes
with one), so `--our-omp 3` lets it compute with two.

The peers' Python needs `transformers[serving]` and `llama-cpp-python[server]`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import peers
from tokenizers import Tokenizer

MODEL = peers.DATA / "gpt" / "hf"
START_SECONDS = 120
WARM_TOKENS = 8
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Side:
    """A server: how it starts, and what it takes beside what all of them take."""

    command: list[str]  # and a port behind it
    omp: int
    model: str

    def body(self, prompt: str, new: int) -> dict[str, Any]:
        same = {"model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0.0, "stream": True}
        if "zhixing" in self.command:
            return {**same, "min_tokens": new, "stream_options": {"include_usage": True}}
        if "llama_cpp.server" in self.command:
            return {**same, "min_tokens": new, "repeat_penalty": 1.0}
        length: dict[str, int] = {"min_new_tokens": new, "eos_token_id": 0}
        if "--continuous-batching" in self.command:
            length = {"eos_token_id": -1}
        settings = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0, **length}
        return {**same, "generation_config": json.dumps(settings)}


def sides(omp: int, our_omp: int) -> dict[str, Side]:
    threads = ["--n_threads", str(omp), "--n_threads_batch", str(omp)]
    llama = ["--model", str(peers.DATA / "gpt" / "gpt-f32.gguf"), "--n_ctx", "256", *threads]
    whole = ["--interrupt_requests", "false"]  # by default a request cuts off the one before
    serve = [peers.PYTHON, "-m", "transformers.cli.transformers", "serve", str(MODEL), "--device", "cpu"]
    return {
        "ours": Side([sys.executable, "-m", "zhixing", "serve", f"gpt={MODEL}"], our_omp, "gpt"),
        "transformers": Side(serve, omp, str(MODEL)),
        "transformers-batching": Side([*serve, "--continuous-batching"], omp, str(MODEL)),
        "llama.cpp": Side([peers.PYTHON, "-m", "llama_cpp.server", *llama, *whole], omp, "gpt"),
    }


# ---- the texts


def texts(count: int, length: int) -> list[str]:
    """Texts of the corpus that are `length` tokens, and are read as the same ones again."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = np.load(peers.DATA / "tokens.npy", mmap_mode="r")
    found: list[str] = []
    for begin in range(1000, len(ids) - length, 1000):
        wanted = ids[begin : begin + length].tolist()
        text = tokenizer.decode(wanted, skip_special_tokens=False)
        if 0 not in wanted and tokenizer.encode(text).ids == wanted:
            found.append(text)
            if len(found) == count:
                return found
    sys.exit(f"the corpus has only {len(found)} prompts of {length} tokens that can be sent as text, of {count}")


# ---- the server


@contextlib.contextmanager
def served(side: Side) -> Iterator[tuple[str, int]]:
    """Address and process id of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*side.command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=peers.ROOT,
            env=peers.environment(side.omp),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}", process.pid
        except BaseException:
            log.seek(0)
            print(f"{' '.join(side.command)}:\n{log.read()[-3000:]}", file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it listens, which each of them does once its model is there."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server does not listen after {START_SECONDS} s")


def seconds_of(pid: int) -> float:
    """CPU time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


def cpu_seconds(pid: int) -> np.ndarray:
    """Of the machine, the server and this process, so far; idle, waiting and stolen time is not busy."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    mine = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    return np.array([(sum(fields) - fields[3] - fields[4] - fields[7]) / TICKS, seconds_of(pid), mine])


# ---- the client


@dataclass(frozen=True)
class Stream:
    text: str
    came: list[float]  # when its texts came, in seconds after the request
    prompt_tokens: int | None


async def read(client: httpx.AsyncClient, body: dict[str, Any]) -> Stream:
    parts: list[str] = []
    came: list[float] = []
    used: dict[str, int] | None = None
    reason = None
    began = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread())[:1000]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "choices" not in chunk:
                raise RuntimeError(line[:1000])
            for choice in chunk["choices"]:
                if choice.get("text"):
                    parts.append(choice["text"])
                    came.append(time.perf_counter() - began)
                reason = choice.get("finish_reason") or reason
            used = chunk.get("usage") or used
    if reason != "length" or (used and used["completion_tokens"] != body["max_tokens"]):
        raise RuntimeError(f"a stream of {body['max_tokens']} tokens ended by {reason}, {used}")
    return Stream("".join(parts), came, used and used["prompt_tokens"])


async def read_all(address: str, bodies: list[dict[str, Any]]) -> tuple[float, list[Stream]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits, trust_env=False) as client:
        began = time.perf_counter()
        streams = await asyncio.gather(*(read(client, body) for body in bodies))
        return time.perf_counter() - began, streams


# ---- the figures


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._sides = sides(options.omp, options.our_omp)
        found = texts(options.streams * (options.repeats + 1), options.prompt)
        self._prompts = [found[at : at + options.streams] for at in range(0, len(found), options.streams)]
        self._written: list[str] = []  # by the server that was first

    def run(self, name: str) -> dict[str, Any]:
        """A turn of a server: started, warmed up, asked, stopped."""
        side, new = self._sides[name], self._options.new
        warm, *rest = self._prompts
        took: list[float] = []
        streams: list[Stream] = []
        with served(side) as (address, pid):
            asyncio.run(read_all(address, [side.body(prompt, min(new, WARM_TOKENS)) for prompt in warm]))
            busy, began = cpu_seconds(pid), time.perf_counter()
            for prompts in rest:
                seconds, read = asyncio.run(read_all(address, [side.body(prompt, new) for prompt in prompts]))
                took.append(seconds)
                streams += read
            every, server, client = (cpu_seconds(pid) - busy) / (time.perf_counter() - began)
            memory = peak_mb(pid)
        counted = {stream.prompt_tokens for stream in streams} - {None}
        if counted - {self._options.prompt}:
            raise RuntimeError(f"{name} read prompts of {counted} tokens, not of {self._options.prompt}")
        written = [stream.text for stream in streams]
        self._written = self._written or written
        speeds = sorted(self._options.streams * new / seconds for seconds in took)
        firsts = [1000 * stream.came[0] for stream in streams]
        between = sorted(1000 * (b - a) for stream in streams for a, b in pairwise(stream.came))
        result = {
            "bench": f"serve-{self._options.streams}",
            "server": name,
            "unit": "tokens/s",
            "median": round(statistics.median(speeds), 1),
            "min": round(speeds[0], 1),
            "max": round(speeds[-1], 1),
            "first_token_ms": {"median": round(statistics.median(firsts), 1), "max": round(max(firsts), 1)},
            "between_tokens_ms": {
                "median": round(statistics.median(between), 1),
                "p99": round(between[int(0.99 * len(between))], 1),
            },
            # transformers leaves out a last half of a character
            "equal_texts": sum(
                a.startswith(b.rstrip("\ufffd")) or b.startswith(a.rstrip("\ufffd"))
                for a, b in zip(self._written, written, strict=True)
            )
            / len(written),
            "foreign_load": round(max(0.0, every - server - client), 3),
            "server_cores": round(server, 2),
            "client_cores": round(client, 2),
            "peak_rss_mb": memory,
            "omp": side.omp,
        }
        print(json.dumps(result), flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="of all streams, in each turn of a server")
    parser.add_argument("--omp", type=int, default=2, help="OMP_NUM_THREADS of the peers")
    parser.add_argument("--our-omp", type=int, default=2, help="OMP_NUM_THREADS of ours")
    every = [name for name in sides(1, 1) if name != "ours"]
    parser.add_argument("--beside", nargs="*", default=every, choices=every, metavar="PEER")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a server is not left behind
    bench = Bench(options)
    for name in options.beside:
        peers.pairs(
            f"serving, {options.streams} streams, ours over {name}",
            lambda name=name: bench.run(name),
            lambda: bench.run("ours"),
            options.rounds,
        )


if __name__ == "__main__":
    main()
