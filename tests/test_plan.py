"""The plan against the real models and against sums done by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.layers import MOST_KEPT
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.recipe import ModelSettings, Recipe, TrainSettings
from zhixing.training import plan
from zhixing.training.objectives import LOGITS_HELD

GB = 10**9
Layout = Literal["qwen3", "llama", "gpt2"]


def _build(model: ModelSettings, vocab_size: int) -> nn.Module:
    if model.family == "lstm":
        return LSTM(
            LSTMSettings(vocab_size, model.d_model, model.n_layers, model.max_len, model.dropout, model.tie_embeddings)
        )
    return GPT(
        GPTSettings(
            vocab_size, model.layout, model.d_model, model.n_layers, model.n_heads, plan.n_kv_heads(model), plan.d_ff(model),
            model.max_len, model.dropout, model.tie_embeddings,
        )
    )  # fmt: skip


def _saved_bytes(model: nn.Module, ids: Tensor) -> int:
    """Bytes that autograd keeps for backward, each storage once, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("kv", ["auto", 2])
def test_parameters_of_gpt(layout: Layout, tied: bool, kv: Literal["auto"] | int) -> None:
    model = ModelSettings(
        layout=layout, d_model=48, n_layers=3, n_heads=4, n_kv_heads="auto" if layout == "gpt2" else kv, max_len=20, tie_embeddings=tied
    )  # fmt: skip
    assert plan.parameter_count(model, 300) == sum(p.numel() for p in _build(model, 300).parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_lstm(tied: bool) -> None:
    model = ModelSettings(family="lstm", d_model=24, n_layers=3, tie_embeddings=tied)
    assert plan.parameter_count(model, 70) == sum(p.numel() for p in _build(model, 70).parameters())


def test_gpt2_small_has_its_124_million() -> None:
    model = ModelSettings(layout="gpt2", d_model=768, n_layers=12, n_heads=12, max_len=1024)
    assert plan.parameter_count(model, 50257) == 124_439_808


def test_d_ff() -> None:
    assert plan.d_ff(ModelSettings(layout="gpt2", d_model=256)) == 1024
    assert plan.d_ff(ModelSettings(d_model=256)) == 704  # 682.67 up to a multiple of 64
    assert plan.d_ff(ModelSettings(d_model=384)) == 1024
    assert plan.d_ff(ModelSettings(d_model=256, d_ff=100)) == 100


def test_flops_by_hand() -> None:
    model = ModelSettings(layout="llama", d_model=8, n_layers=2, n_heads=2, max_len=16, d_ff=10)
    block = 4 * 8 * 8 + 3 * 8 * 10 + 2 * 8
    tied = 6 * (2 * block + 8 + 20 * 8) + 12 * 2 * 8 * 16
    assert plan.flops_per_token(model, 20) == tied
    assert plan.flops_per_token(replace(model, tie_embeddings=False), 20) == tied  # the second table is only looked up
    lstm = ModelSettings(family="lstm", d_model=8, n_layers=1)
    assert plan.flops_per_token(lstm, 20) == 6 * (20 * 8 + 8 * 8 * 8 + 8 * 8)


def test_flops_are_those_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr("zhixing.models.products.onednn_leads", lambda: False)  # torch does not count oneDNN's products
    model = ModelSettings(layout="llama", d_model=64, n_layers=2, n_heads=2, max_len=32)
    gpt = _build(model, 100)
    assert isinstance(gpt, GPT)
    ids = torch.zeros(2, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        gpt.logits(gpt(ids)).sum().backward()  # type: ignore[no-untyped-call]
    counted = counter.get_total_flops() / ids.numel()
    assert plan.flops_per_token(model, 100) == pytest.approx(counted, rel=0.1)


def test_optimizer_state_by_hand() -> None:
    model = ModelSettings(layout="llama", d_model=8, n_layers=2, n_heads=2, max_len=16, d_ff=10)
    n, matrices = plan.parameter_count(model, 20), 2 * (4 * 8 * 8 + 3 * 8 * 10)
    assert plan.optimizer_bytes(model, 20, "adamw") == plan.optimizer_bytes(model, 20, "adam") == 8 * n
    assert plan.optimizer_bytes(model, 20, "sgd") == 4 * n
    assert plan.optimizer_bytes(model, 20, "muon") == 4 * matrices + 8 * (n - matrices)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("family", "layout"), [("gpt", "qwen3"), ("gpt", "llama"), ("gpt", "gpt2"), ("lstm", "qwen3")])
@pytest.mark.parametrize(
    ("d_model", "n_layers", "n_heads", "max_len", "rows"), [(64, 3, 2, 64, 4), (128, 2, 4, 128, 8)]
)
def test_activations_are_those_that_autograd_keeps(
    family: Literal["gpt", "lstm"], layout: Layout, dropout: float, d_model: int, n_layers: int, n_heads: int, max_len: int, rows: int
) -> None:  # fmt: skip
    model = ModelSettings(family, layout, d_model, n_layers, n_heads, max_len=max_len, dropout=dropout)
    measured = _saved_bytes(_build(model, 500).train(), torch.zeros(rows, max_len, dtype=torch.int64))
    assert plan.activation_bytes(model, rows * max_len) == pytest.approx(measured, rel=0.25)


def test_what_is_held_is_the_objective_s_and_the_layers() -> None:
    assert plan.LOGITS_HELD == LOGITS_HELD
    assert plan.SCORES_HELD == MOST_KEPT


def test_steps() -> None:
    train = TrainSettings(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3.0)
    assert plan.step_count(train, 10, 10 * 800 + 1) == 300  # 800 windows, 8 a step, 3 times
    assert plan.step_count(train, 10, 10 * 800 + 1, processes=2) == 150
    assert plan.step_count(train, 10, 5) == 50
    assert plan.step_count(train, 10, 10**9) == 5000
    assert plan.step_count(replace(train, max_steps=7), 10, 10**9) == 7


def _recipe(**train: int) -> Recipe:
    return Recipe(train=replace(TrainSettings(max_steps=100), **train))  # type: ignore[arg-type]


def test_plan_of_the_default_model() -> None:
    made = plan.plan_run(_recipe(), 4096, 1_000_000, available=8 * GB, flops_per_second=1e11)
    assert made.tokens_per_step == 16 * 256 and made.tokens == 100 * 16 * 256
    assert made.epochs == pytest.approx(0.4096)
    least = (made.tokens + 20 * 256 * 256 / 3) * made.flops_per_token / 1e11  # and 20 evaluations, forward only
    assert made.seconds == pytest.approx((least / 0.8, least / 0.25))
    assert made.with_step_time(0.5).seconds == (50.0, 50.0)
    text = made.text()
    for piece in ("100 steps", "410k tokens", "8 GB free", "fp32", "muon", "vocabulary 4,096"):
        assert piece in text
    made.check_fits()


def test_a_run_that_does_not_fit_says_what_would() -> None:
    big = _recipe(per_device_train_batch_size=512)
    with pytest.raises(InputError) as caught:
        plan.plan_run(big, 4096, 10**6, available=4 * GB).check_fits()
    words = dict(pair.split("=") for pair in caught.value.mend.split() if "=" in pair)
    rows, accumulate = (
        int(words[f"train.{k}"]) for k in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    assert rows * accumulate == 512
    smaller = _recipe(per_device_train_batch_size=rows, gradient_accumulation_steps=accumulate)
    plan.plan_run(smaller, 4096, 10**6, available=4 * GB).check_fits()
    assert "activations" in caught.value.why

    huge = replace(big, model=ModelSettings(d_model=8192, n_layers=48, n_heads=64))
    with pytest.raises(InputError, match="needs about") as caught:
        plan.plan_run(huge, 4096, 10**6, available=4 * GB).check_fits()
    assert "model.d_model" in caught.value.mend
    plan.plan_run(huge, 4096, 10**6, available=None).check_fits()  # a machine that does not say


def test_too_many_processes() -> None:
    one = plan.plan_run(_recipe(per_device_train_batch_size=1), 4096, 10**6)
    with pytest.raises(InputError) as caught:
        plan.plan_run(
            _recipe(per_device_train_batch_size=1), 4096, 10**6, processes=8, available=3 * one.memory.total
        ).check_fits()
    assert caught.value.mend == "start fewer processes"


def test_bf16_by_the_processor_s_word() -> None:
    assert plan.native_bf16(frozenset({"avx512f", "avx512_bf16"})) and plan.native_bf16(frozenset({"amx_bf16"}))
    assert not plan.native_bf16(frozenset({"avx2", "avx512f"}))


def test_flags_and_memory_are_read(tmp_path: Path) -> None:
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:   3000 kB\n")
    assert plan.processor_flags(cpuinfo) == {"fpu", "avx2", "avx512_bf16"}
    assert plan.processor_flags(tmp_path / "none") == frozenset()
    assert plan.memory_total(meminfo) == 8000 * 1024
    assert plan.memory_available(meminfo, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\nactive_file 7\n")
    assert plan.memory_available(meminfo, tmp_path) == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert plan.memory_available(meminfo, tmp_path) == 3000 * 1024


def test_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    assert plan.compiler_available() is None
    assert "a-compiler-that-is-not-there" in plan.compiler_state()[1]


def test_matmul_speed_is_that_of_a_processor() -> None:
    assert 1e8 < plan.matmul_speed("float32", seconds=0.02, size=128) < 1e15


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_is_what_two_steps_take() -> None:
    """A process that trains two steps of the default model, half a batch, on one thread: the plan is within a quarter."""
    code = """
import pathlib, re, torch
from types import SimpleNamespace
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.recipe import TrainSettings
from zhixing.training.objectives import next_token
from zhixing.training.optimizers import make_optimizers
torch.set_num_threads(1)
model = GPT(GPTSettings(4096))
optimizers = make_optimizers(model, TrainSettings(), torch.float32)
ids = torch.zeros(8, 256, dtype=torch.int64)
for _ in range(2):
    loss, count = next_token(0.0)(model, SimpleNamespace(inputs=ids, targets=ids))
    (loss / count).backward()
    optimizers.step()
    optimizers.zero_grad()
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would count what pytest itself held at the fork
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    train = replace(TrainSettings(), per_device_train_batch_size=8)
    planned = plan.memory_needed(ModelSettings(), train, 4096, bf16=False).total
    assert planned == pytest.approx(int(done.stdout), rel=0.25)
