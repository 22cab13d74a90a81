"""What a run will need, said before it starts: parameters, memory, tokens, steps, time.

Arithmetic a token, forward and backward (Chowdhery et al. 2022, PaLM, appendix B):

    FLOPs = 6 N + 12 L d T          2 N for each of forward, gradient of inputs, gradient of weights; attention the rest

N counts the parameters that multiply: an embedding that is only looked up costs nothing. Memory is what lives at once
at the end of a forward pass: weights, gradients, optimizer state, what backward needs of each token, a chunk of logits.

Nothing here imports torch but `matmul_speed`, so that a plan costs nothing. Legend: B rows, T tokens, D d_model,
F d_ff, H heads, G key and value heads, K head size, L layers, V vocabulary.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zhixing.errors import InputError
from zhixing.progress import duration, quantity
from zhixing.recipe import ModelSettings, Recipe, TrainSettings

MiB = 2**20
RUNTIME = 350 * MiB  # torch's libraries, its thread pools and allocator, measured with 2.13 on Linux
LOGITS_HELD = 4 * MiB  # numbers in a chunk of logits, as training/objectives.py has it
SCORES_HELD = 8 * MiB  # of a layer's attention, as models/layers.py has it
PASSING = 0.65  # of the activations: what backward makes on its way, and the gaps in kept memory (measured)
MATMUL_SHARE = (0.25, 0.8)  # of the speed of one large product, what whole steps reach at a width of 256 and more


def expected_seconds(flops: float, d_model: int, flops_per_second: float) -> tuple[float, float]:
    """The least and the most seconds that so many FLOPs of products take; flops_per_second: of a large product."""
    narrow = math.sqrt(min(1.0, d_model / 256))  # narrow products wait for memory and for Python
    least = flops / flops_per_second
    return least / MATMUL_SHARE[1], least / (MATMUL_SHARE[0] * narrow)


def n_kv_heads(model: ModelSettings) -> int:
    """Key and value heads, with `auto` resolved."""
    return model.n_heads if model.n_kv_heads == "auto" else model.n_kv_heads


def d_ff(model: ModelSettings) -> int:
    """Width of the feed-forward, with `auto` resolved: 4 D for gpt2, else 8/3 D rounded up to a multiple of 64.

    8/3 keeps the parameters of SwiGLU's three matrices at those of two of 4 D (Shazeer 2020, section 3).
    """
    if model.d_ff != "auto":
        return model.d_ff
    return 4 * model.d_model if model.layout == "gpt2" else math.ceil(8 * model.d_model / 3 / 64) * 64


def parameter_count(model: ModelSettings, vocab_size: int) -> int:
    """Parameters of the model that these settings make, tied ones once."""
    d, tables = model.d_model, vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    if model.family == "lstm":
        return tables + model.n_layers * (8 * d * d + 8 * d)
    head_size = d // model.n_heads
    attention = d * (d + 2 * n_kv_heads(model) * head_size) + d * d
    if model.layout == "gpt2":
        block = attention + 4 * d + 2 * d * d_ff(model) + d_ff(model) + d + 4 * d  # with biases and two LayerNorms
        return tables + model.max_len * d + model.n_layers * block + 2 * d
    norms = 2 * d + (2 * head_size if model.layout == "qwen3" else 0)
    return tables + model.n_layers * (attention + 3 * d * d_ff(model) + norms) + d


def multiplying_parameters(model: ModelSettings, vocab_size: int) -> int:
    """N of the formula: all but tables that are only looked up. A tied embedding multiplies, as the head."""
    looked_up = 0 if model.tie_embeddings else vocab_size * model.d_model
    if model.family == "gpt" and model.layout == "gpt2":
        looked_up += model.max_len * model.d_model
    return parameter_count(model, vocab_size) - looked_up


def flops_per_token(model: ModelSettings, vocab_size: int) -> int:
    """Floating-point operations that training needs for a token, forward and backward."""
    attention = 0 if model.family == "lstm" else 12 * model.n_layers * model.d_model * model.max_len
    return 6 * multiplying_parameters(model, vocab_size) + attention


def optimizer_bytes(model: ModelSettings, vocab_size: int, optim: str) -> int:
    """State the optimizer keeps, fp32: AdamW and Adam two numbers a parameter, SGD one, Muon one for each of its
    matrices (those inside blocks) and AdamW's two for the rest."""
    total = parameter_count(model, vocab_size)
    if optim == "sgd":
        return 4 * total
    if optim != "muon":
        return 8 * total
    d = model.d_model
    if model.family == "lstm":
        matrices = 8 * d * d
    else:
        attention = d * (d + 2 * n_kv_heads(model) * (d // model.n_heads)) + d * d
        matrices = attention + (2 if model.layout == "gpt2" else 3) * d * d_ff(model)
    return 8 * total - 4 * model.n_layers * matrices


def activation_bytes(model: ModelSettings, tokens: int, number_bytes: int = 4) -> int:
    """What backward needs of `tokens` tokens that go through the blocks at once, outside the head; dropout's masks too.

    Counted from what autograd keeps of each operator in models/layers.py; tests hold it against the real models. A
    compiled run keeps less. Our own loops for a processor (models/cpu_attention.py) keep attention's weights while they
    are few, one number a head and pair of tokens.
    """
    d, heads = model.d_model, model.n_heads
    if model.family == "lstm":
        return tokens * (19 * model.n_layers + 2) * d * number_bytes  # nn.LSTM's workspace is about 17 D a layer
    kv = n_kv_heads(model) * (d // heads)
    kept_whole = tokens * heads * model.max_len <= SCORES_HELD
    weights = heads * model.max_len if kept_whole else 0
    if model.layout == "gpt2":
        # x and its norm twice, q, k, v, their mixture; before and after GELU
        per_layer = (10 if model.dropout else 8) * d + 2 * d_ff(model) + weights
    else:
        # x twice and each norm twice, q, k, v before and after they are turned; gate, up and their product
        per_layer = (13 * d + 2 * kv if model.dropout else 10 * d + 3 * kv) + 3 * d_ff(model) + weights
        if model.layout == "qwen3":
            per_layer += d + kv
    return tokens * (model.n_layers * per_layer + 2 * d) * number_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the moment it needs most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    passing: int  # gradients of activations, and gaps between blocks
    runtime: int = RUNTIME

    @property
    def total(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.activations
        return kept + self.logits + self.passing + self.runtime


def memory_needed(model: ModelSettings, train: TrainSettings, vocab_size: int, *, bf16: bool) -> Memory:
    """Memory of a training process. bf16 adds a copy of the weights and halves most of what backward needs."""
    n = parameter_count(model, vocab_size)
    tokens = train.per_device_train_batch_size * model.max_len
    rows = max(1, min(tokens, LOGITS_HELD // vocab_size))  # of logits at once
    head = vocab_size * model.d_model
    activations = activation_bytes(model, tokens, 3 if bf16 else 4)
    return Memory(
        weights=4 * n + (2 * n if bf16 else 0),
        gradients=4 * n,
        optimizer=optimizer_bytes(model, vocab_size, train.optim),
        activations=activations,
        logits=rows * vocab_size * (6 if bf16 else 4) + 4 * (head + tokens * model.d_model),
        passing=int(PASSING * activations),
    )


def step_count(train: TrainSettings, max_len: int, train_tokens: int, processes: int = 1) -> int:
    """Steps of the run: max_steps, or num_train_epochs over the text, at least 50 and at most 5,000."""
    if train.max_steps != "auto":
        return train.max_steps
    windows = max(1, (train_tokens - 1) // max_len)
    a_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes
    return min(5000, max(50, math.ceil(train.num_train_epochs * windows / a_step)))


@dataclass(frozen=True)
class Plan:
    """What a run will need. Memory is a process's, tokens and time are the whole run's."""

    recipe: Recipe
    vocab_size: int
    train_tokens: int  # of the training text
    processes: int
    bf16: bool
    parameters: int
    flops_per_token: int
    steps: int
    tokens_per_step: int
    memory: Memory
    available: int | None  # bytes free on this machine, None if it does not say
    seconds: tuple[float, float] | None  # from and to; None if nothing was measured

    @property
    def tokens(self) -> int:
        """Tokens trained on, repeats counted."""
        return self.steps * self.tokens_per_step

    @property
    def epochs(self) -> float:
        """How many times the training text is read."""
        return self.tokens / max(1, self.train_tokens)

    def with_step_time(self, seconds_per_step: float) -> Plan:
        """The same plan with its time from steps that were measured."""
        return replace(self, seconds=(self.steps * seconds_per_step,) * 2)

    def check_fits(self) -> None:
        """InputError if the run needs more memory than there is, with settings that need less."""
        need = self.memory.total * self.processes
        if self.available is None or need <= self.available:
            return
        parts = {"weights": self.memory.weights, "gradients": self.memory.gradients, "optimizer": self.memory.optimizer,
                 "activations": self.memory.activations, "logits": self.memory.logits}  # fmt: skip
        largest = max(parts, key=lambda name: parts[name])
        raise InputError(
            f"the run needs about {_size(need)} of memory, {_size(self.available)} are free",
            where=f"{quantity(self.parameters)} parameters, {self.recipe.train.per_device_train_batch_size} sequences "
            f"of {self.recipe.model.max_len} tokens" + (f", {self.processes} processes" if self.processes > 1 else ""),
            why=f"the largest part: {largest}, {_size(parts[largest])}" + (" a process" if self.processes > 1 else ""),
            mend=self._mend(),
        )

    def _mend(self) -> str:
        assert self.available is not None
        train, model = self.recipe.train, self.recipe.model
        rows = train.per_device_train_batch_size
        while rows > 1:
            rows = (rows + 1) // 2
            smaller = replace(train, per_device_train_batch_size=rows)
            if memory_needed(model, smaller, self.vocab_size, bf16=self.bf16).total * self.processes <= self.available:
                wanted = train.per_device_train_batch_size * train.gradient_accumulation_steps
                return (
                    f"train.per_device_train_batch_size={rows} "
                    f"train.gradient_accumulation_steps={math.ceil(wanted / rows)} trains the same in less memory"
                )
        single = replace(train, per_device_train_batch_size=1)
        if self.processes > 1 and memory_needed(model, single, self.vocab_size, bf16=self.bf16).total <= self.available:
            return "start fewer processes"
        return "lower model.d_model, model.n_layers or tokenizer.vocab_size, or end other programs"

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line a person sees."""
        model, train, memory = self.recipe.model, self.recipe.train, self.memory
        kind = model.family if model.family == "lstm" else f"{model.family}, {model.layout} layout"
        rows = [
            ("model", f"{kind}: {quantity(self.parameters)} parameters, {model.n_layers} layers of {model.d_model}"),
            ("text", f"{quantity(self.train_tokens)} tokens, vocabulary {self.vocab_size:,}"),
            (
                "run",
                f"{self.steps:,} steps of {quantity(self.tokens_per_step)} tokens = {quantity(self.tokens)} tokens, "
                f"{self.epochs:.2g} times the text, {self.tokens / self.parameters:.2g} tokens a parameter",
            ),
            (
                "arithmetic",
                f"{quantity(self.flops_per_token * self.tokens, 'FLOP')}, {'bf16' if self.bf16 else 'fp32'}, "
                f"{train.optim}",
            ),
            (
                "memory",
                f"about {_size(memory.total)}"
                + (f" a process, {self.processes} processes" if self.processes > 1 else "")
                + (f", {_size(self.available)} free" if self.available is not None else ""),
            ),
        ]
        if self.seconds is not None:
            low, high = self.seconds
            rows.append(("time", f"about {duration(low)}" if low == high else f"{duration(low)} to {duration(high)}"))
        return rows

    def text(self) -> str:
        """The plan as a few lines for a terminal."""
        return "\n".join(f"{label:<11}{value}" for label, value in self.rows())


def plan_run(
    recipe: Recipe,
    vocab_size: int,
    train_tokens: int,
    *,
    processes: int = 1,
    bf16: bool = False,
    available: int | None = None,
    flops_per_second: float | None = None,
) -> Plan:
    """The plan of a recipe over a text of `train_tokens` tokens; pure.

    `available` is from `memory_available()`; `flops_per_second` from `matmul_speed` (each process's, in the dtype it
    will use), which gives time as a wide range: whole steps reach a quarter to four fifths of it.
    `Plan.with_step_time` narrows it.
    """
    model, train = recipe.model, recipe.train
    flops = flops_per_token(model, vocab_size)
    steps = step_count(train, model.max_len, train_tokens, processes)
    a_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes * model.max_len
    seconds = None
    if flops_per_second:
        evaluations = math.ceil(steps / train.eval_steps) if train.eval_steps != "auto" else 20
        looked_at = evaluations * recipe.eval.max_sequences * model.max_len  # tokens, forward only: a third of the work
        every = (steps * a_step + looked_at / 3) * flops
        seconds = expected_seconds(every, model.d_model, flops_per_second * processes)
    return Plan(
        recipe=recipe,
        vocab_size=vocab_size,
        train_tokens=train_tokens,
        processes=processes,
        bf16=bf16,
        parameters=parameter_count(model, vocab_size),
        flops_per_token=flops,
        steps=steps,
        tokens_per_step=a_step,
        memory=memory_needed(model, train, vocab_size, bf16=bf16),
        available=available,
        seconds=seconds,
    )


def _size(n_bytes: float) -> str:
    return quantity(n_bytes, "B")


# What the machine is.


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature names of the processor as Linux gives them (x86 `flags`, ARM `Features`); empty where it does not say."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def native_bf16(flags: frozenset[str] | None = None) -> bool:
    """Whether the processor multiplies bf16 itself (avx512_bf16 or amx_bf16; bf16 on ARM). Without, bf16 is slower."""
    flags = processor_flags() if flags is None else flags
    if flags:
        return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    if platform.system() == "Darwin":
        return _sysctl("hw.optional.arm.FEAT_BF16") == "1"
    return False


def compiler_state() -> tuple[str | None, str]:
    """The C++ compiler that torch.compile will call, and what to do if there is none.

    torch takes $CXX, else g++ on Linux, clang++ on macOS, cl on Windows; its kernels also include Python.h.
    """
    system = platform.system()
    default = {"Windows": "cl", "Darwin": "clang++"}.get(system, "g++")
    wanted = os.environ.get("CXX") or default
    found = shutil.which(wanted)
    if found is None:
        packages = {"Windows": "install the Visual Studio build tools", "Darwin": "xcode-select --install"}
        return None, packages.get(
            system, "install g++ (Debian: apt-get install g++)"
        ) + f"; {wanted} is not on the path"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return (
            None,
            "install Python's headers (Debian: apt-get install python3-dev), or take uv's Python, which has them",
        )
    return found, ""


def compiler_available() -> str | None:
    """The C++ compiler that torch.compile can use, or None."""
    return compiler_state()[0]


def memory_total(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of the machine's memory, or None if it does not say."""
    found = _meminfo(meminfo, "MemTotal")
    if found is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found


def memory_available(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can still be taken without swapping, and no more than a container's limit leaves; None if unknown.

    Linux says it (MemAvailable); elsewhere the whole memory is the best that can be read.
    """
    limits = [_meminfo(meminfo, "MemAvailable") or memory_total(meminfo), _cgroup_left(cgroup)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def matmul_speed(dtype: Literal["float32", "bfloat16"] = "float32", seconds: float = 0.3, size: int = 1024) -> float:
    """FLOP/s of a (size, size) product with as many threads as torch now uses, best of the runs within `seconds`."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    a @ b  # the first one starts threads and packs
    best, end = math.inf, time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        a @ b
        now = time.perf_counter()
        best = min(best, now - began)
        if now >= end:
            return 2 * size**3 / best


def _meminfo(meminfo: Path, key: str) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_left(cgroup: Path) -> int | None:
    """What a container's limit leaves (version 2, then 1); pages of files it can drop count as free."""
    for limit_name, used_name in (("memory.max", "memory.current"),
                                  ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # fmt: skip
        try:
            limit, used = int((cgroup / limit_name).read_text()), int((cgroup / used_name).read_text())
            stat = (cgroup / limit_name).with_name("memory.stat").read_text().split()
        except (OSError, ValueError):
            continue  # no container, or no limit ("max")
        droppable = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
        return max(0, limit - used + droppable)
    return None


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
