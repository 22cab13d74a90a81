"""Training: the fused loss, schedules, optimizers, accumulation, and that models learn what can be learned."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models import products
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.layers import RMSNorm
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.recipe import EvalSettings, TrainSettings
from zhixing.run import demo_settings
from zhixing.training import loop, objectives
from zhixing.training.checkpoint import TrainingState, checkpoint_path, load_step
from zhixing.training.loop import Watch, fit
from zhixing.training.objectives import linear_cross_entropy, next_token
from zhixing.training.optimizers import Muon, make_optimizers, orthogonalise
from zhixing.training.schedules import learning_rate_factor


@dataclass(frozen=True)
class Rows:
    inputs: Tensor
    targets: Tensor


class Reversal:
    """abcd|dcba: after the bar every token is certain; what is before it is chance and is no target."""

    def __init__(self, symbols: int = 8, length: int = 6) -> None:
        self.symbols, self.length = symbols, length

    def __len__(self) -> int:
        return 64

    def batch(self, first: int, count: int) -> Rows:
        rows = []
        for sample in range(first, first + count):
            word = torch.randint(1, self.symbols, (self.length,), generator=torch.Generator().manual_seed(sample))
            rows.append(torch.cat([word, torch.zeros(1, dtype=torch.int64), word.flip(0)]))
        ids = torch.stack(rows)  # (B, 2 length + 1)
        targets = ids[:, 1:].clone()
        targets[:, : self.length] = objectives.IGNORED
        return Rows(ids[:, :-1], targets)

    def sequential(self, first: int, count: int) -> Rows:
        return self.batch(10**6 + first, count)


# ---- the fused head and loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows_at_once", [1, 5, 1000])
def test_linear_cross_entropy_equals_torch(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, rows_at_once: int
) -> None:
    monkeypatch.setattr(objectives, "LOGITS_HELD", rows_at_once * 37)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 7, 16, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(37, 16, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 37, (4, 7), generator=g)
    targets[0, :3] = -100
    loss = F.cross_entropy(
        (hidden @ weight.T).view(-1, 37),
        targets.view(-1),
        ignore_index=-100,
        reduction="sum",
        label_smoothing=smoothing,
    )
    wanted = torch.autograd.grad(3 * loss, [hidden, weight])
    h32, w32 = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    ours = linear_cross_entropy(h32, w32, targets, smoothing)
    torch.testing.assert_close(ours.double(), loss, rtol=1e-5, atol=1e-4)
    found = torch.autograd.grad(3 * ours, [h32, w32])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_linear_cross_entropy_in_bf16_is_near() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 32, generator=g, requires_grad=True)
    weight = (torch.randn(50, 32, generator=g) * 0.2).requires_grad_()
    targets = torch.randint(0, 50, (40,), generator=g)
    plain = linear_cross_entropy(hidden, weight, targets)
    wanted = torch.autograd.grad(plain, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        half = linear_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(half, [hidden, weight])
    assert half.dtype == found[0].dtype == found[1].dtype == torch.float32
    assert not torch.equal(half, plain)  # it really was another precision
    torch.testing.assert_close(half, plain, rtol=1e-2, atol=0.0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.03)


def test_linear_cross_entropy_survives_large_logits() -> None:
    hidden = torch.full((1, 4), 100.0)
    weight = torch.stack([torch.full((4,), 10.0), torch.full((4,), -10.0)])
    assert linear_cross_entropy(hidden, weight, torch.tensor([1])).item() == pytest.approx(8000.0)


# ---- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    cosine = [learning_rate_factor("cosine", s, 12, 2, 0.0, 0.1) for s in (0, 1, 2, 7, 12)]
    assert cosine == pytest.approx([1 / 3, 2 / 3, 1.0, 0.55, 0.1])
    trapezoid = [learning_rate_factor("trapezoid", s, 10, 1, 0.4, 0.0) for s in (0, 1, 6, 7, 8, 9)]
    assert trapezoid == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert learning_rate_factor("constant", 100, 10, 4, 0.4, 0.0) == 1.0


# ---- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 40)])
def test_orthogonalise_moves_singular_values_to_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    direction = (orthogonalise(matrices) * (u @ vt)).sum(dim=(1, 2)) / math.sqrt(min(shape))
    assert (direction / orthogonalise(matrices).norm(dim=(1, 2)) > 0.97).all()


def test_muon_is_torchs_muon() -> None:
    """In torch's own precision (bf16) and without joined matrices, the same path of weights."""
    weights = [torch.randn(12, 8, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    ours, theirs = (nn.Parameter(w.clone()) for w in (weights[0], weights[0]))
    mine = Muon([ours], lr=0.05, momentum=0.95, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon([theirs], lr=0.05, momentum=0.95, weight_decay=0.1)
    for step in range(5):
        g = torch.randn(12, 8, generator=torch.Generator().manual_seed(10 + step))
        ours.grad, theirs.grad = g.clone(), g.clone()
        mine.step()
        other.step()
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.004)


def test_muon_takes_joined_matrices_apart() -> None:
    joined, a, b = nn.Parameter(torch.zeros(8, 4)), nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    g = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    joined.grad, a.grad, b.grad = g.clone(), g[:4].clone(), g[4:].clone()
    Muon([joined], 0.1, 0.9, 0.0, sizes={0: (4, 4)}).step()
    Muon([a, b], 0.1, 0.9, 0.0).step()
    torch.testing.assert_close(joined.detach(), torch.cat([a, b]).detach())


@pytest.mark.parametrize("optim", ["muon", "adamw", "adam", "sgd"])
def test_every_parameter_has_one_optimizer(optim: str) -> None:
    model = GPT(GPTSettings(20, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, tie_embeddings=False))
    optimizers = make_optimizers(model, TrainSettings(optim=optim))  # type: ignore[arg-type]
    held = [id(p) for o in optimizers.members.values() for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    if optim == "muon":
        by_muon = {id(p) for g in optimizers.members["muon"].param_groups for p in g["params"]}
        assert by_muon == {id(p) for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2}


def test_a_norm_in_bf16_warns_nobody_and_gives_torchs_bits() -> None:
    norm = RMSNorm(64, 1e-5)
    generator = torch.Generator().manual_seed(3)
    norm.weight.data += 0.1 * torch.randn(64, generator=generator)
    x = torch.randn(4, 8, 64, generator=generator).bfloat16()
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        y = norm(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(y, F.rms_norm(x, (64,), norm.weight, 1e-5)) and y.dtype == torch.bfloat16


# ---- the loop --------------------------------------------------------------------------------------------------------

TINY = TrainSettings(
    max_steps=6,
    per_device_train_batch_size=8,
    optim="adamw",
    learning_rate=0.01,
    warmup_steps=2,
    eval_steps=3,
    save_steps=3,
    logging_steps=2,
)


def tiny_gpt(layout: str = "qwen3", seed: int = 0) -> GPT:
    settings = GPTSettings(8, layout, 48, 2, 4, 4 if layout == "gpt2" else 2, 96, 32)  # type: ignore[arg-type]
    return GPT(settings, torch.Generator().manual_seed(seed))


def tiny_lstm(seed: int = 0) -> LSTM:
    return LSTM(LSTMSettings(8, 96, 1, 32, 0.0, True), torch.Generator().manual_seed(seed))


def run(model: nn.Module, settings: TrainSettings, folder: Path, **kwargs: bool) -> None:
    torch.manual_seed(0)
    fit(
        model,
        next_token(),
        make_optimizers(model, settings),
        Reversal(),
        Reversal(),
        settings,
        EvalSettings(max_sequences=32),
        folder,
        {},
        **kwargs,
    )


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """Ragged too: the rows have different numbers of targets."""

    class Ragged(Reversal):
        def batch(self, first: int, count: int) -> Rows:
            rows = super().batch(first, count)
            for i in range(count):
                rows.targets[i, self.length + 1 + (first + i) % 5 :] = objectives.IGNORED
            return rows

    models = []
    for size, times in ((8, 1), (2, 4)):
        model = tiny_gpt()
        settings = replace(
            TINY, per_device_train_batch_size=size, gradient_accumulation_steps=times, optim="sgd", learning_rate=0.1
        )
        fit(
            model,
            next_token(),
            make_optimizers(model, settings),
            Ragged(),
            Ragged(),
            settings,
            EvalSettings(),
            tmp_path / str(size),
            {},
        )
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    model = tiny_gpt()

    class Poisoned(Reversal):
        def batch(self, first: int, count: int) -> Rows:
            if first >= 5 * 8 and first < 10**6:
                with torch.no_grad():
                    model.norm.weight[0] = math.nan
            return super().batch(first, count)

    with pytest.raises(InputError) as caught:
        fit(
            model,
            next_token(),
            make_optimizers(model, TINY),
            Poisoned(),
            Reversal(),
            TINY,
            EvalSettings(),
            tmp_path,
            {},
        )
    assert "step 6" in caught.value.what and "samples 40 to 47" in caught.value.where
    assert (tmp_path / "checkpoints" / "step-00000003" / "MANIFEST.json").exists()


def test_metrics_are_complete_and_resume_drops_what_is_behind_the_checkpoint(tmp_path: Path) -> None:
    run(tiny_gpt(), TINY, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if "loss" in e] == [2, 4, 6]
    assert [e["step"] for e in lines if "eval_loss" in e] == [3, 6]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    model = tiny_gpt(seed=5)
    run(model, TINY, tmp_path, resume=True)
    again = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    keep = lambda e: {k: v for k, v in e.items() if k not in ("seconds", "tokens_per_second")}  # noqa: E731
    assert [(e["step"], e.get("eval_loss")) for e in again] == [(e["step"], e.get("eval_loss")) for e in lines]
    assert keep(again[-2]) == keep(lines[-2]) or again[-2]["loss"] == pytest.approx(lines[-2]["loss"], rel=0.5)


@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_resumed_between_two_lines_of_the_log_it_writes_the_same_lines(tmp_path: Path, family: str) -> None:
    """The mean loss of a line is over all its steps, those of before the stop too."""
    settings = replace(TINY, max_steps=12, logging_steps=5, save_steps=4, eval_steps=6, save_total_limit=9)

    def make(seed: int = 0) -> nn.Module:
        return tiny_gpt(seed=seed) if family == "gpt" else tiny_lstm(seed)

    def lines() -> list[dict[str, float]]:
        found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in entry.items() if "second" not in k} for entry in found]

    run(make(), settings, tmp_path)
    straight = lines()
    assert [e["step"] for e in straight if "loss" in e] == [5, 10, 12]
    for path in (tmp_path / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 4:
            shutil.rmtree(path)
    run(make(seed=5), settings, tmp_path, resume=True)
    assert lines() == straight


def test_resumed_at_its_best_step_it_is_the_best_again(tmp_path: Path) -> None:
    """An evaluation between two saves that is the best saves a checkpoint, which already names itself the best."""
    settings = replace(TINY, save_steps=5)
    run(tiny_gpt(), settings, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000005")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    run(tiny_gpt(seed=5), settings, tmp_path, resume=True)
    best = [[json.loads(x)["best"] for x in text.splitlines() if "best" in x]
            for text in (lines, (tmp_path / "metrics.jsonl").read_text())]  # fmt: skip
    assert best == [[True, True], [True, True]]


def test_a_best_model_that_could_not_be_saved_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full just when the best is to be saved: the best before it stays, on the disk and in the result."""
    real = loop.save_checkpoint

    def full(folder: Path, model: Any, optimizer: Any, state: TrainingState) -> Path:
        if state.step == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(folder, model, optimizer, state)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    model = tiny_gpt()
    settings = replace(TINY, max_steps=12)
    losses = iter([5.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(loop, "heldout_means", lambda *_: {"loss": next(losses)})
    optimizers = make_optimizers(model, settings)
    result = fit(model, next_token(), optimizers, Reversal(), Reversal(), settings, EvalSettings(), tmp_path, {})
    assert (result.best_step, result.best_loss) == (9, 3.0)
    assert load_step(tmp_path, result.best_step).state.step == 9


def test_watch_sees_overfitting() -> None:
    watch = Watch()
    for step, (train, heldout) in enumerate([(3.0, 3.0), (2.0, 2.5), (1.5, 2.6), (1.2, 2.7), (1.0, 2.9)]):
        watch.see(step, train, heldout)
    assert watch.overfits() and watch.best_step == 1 and watch.bad_evals == 3
    watch.see(5, 0.9, 2.8)
    assert not watch.overfits()


def test_early_stopping(tmp_path: Path) -> None:
    class Chance(Reversal):
        def sequential(self, first: int, count: int) -> Rows:  # held-out text that nothing can be learned about
            rows = super().sequential(first, count)
            return Rows(rows.inputs, torch.where(rows.targets >= 0, (rows.targets * 3 + first) % 8, rows.targets))

    settings = replace(TINY, max_steps=60, early_stopping_patience=2, learning_rate=0.03)
    model = tiny_gpt()
    result = fit(
        model,
        next_token(),
        make_optimizers(model, settings),
        Reversal(),
        Chance(),
        settings,
        EvalSettings(max_sequences=32),
        tmp_path,
        {},
    )
    assert result.ended == "early stop" and result.step < 60 and result.best_step < result.step


def test_told_to_stop_while_it_measures_the_last_step_it_stops(tmp_path: Path) -> None:
    class Slow(Reversal):
        def sequential(self, first: int, count: int) -> Rows:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().sequential(first, count)

    settings, model = replace(TINY, eval_steps=6, save_steps=6), tiny_gpt()
    parts = model, next_token(), make_optimizers(model, settings)
    result = fit(*parts, Reversal(), Slow(), settings, EvalSettings(max_sequences=8), tmp_path, {})
    assert (result.ended, result.step, result.exit_code) == ("signal", 6, 128 + signal.SIGTERM)


def test_held_out_loss_is_plain() -> None:
    model, batch = tiny_gpt(), Reversal().batch(0, 8)
    plain, smoothed = next_token(), next_token(0.1)
    assert smoothed(model.train(), batch)[0] != plain(model, batch)[0]
    assert smoothed(model.eval(), batch)[0] == plain(model, batch)[0]


def test_another_number_of_processes_goes_on_at_the_same_place(tmp_path: Path) -> None:
    """As after two processes: the checkpoint has seen more texts than its steps make."""
    seen: list[int] = []

    class Watched(Reversal):
        def batch(self, first: int, count: int) -> Rows:
            seen.append(first)
            return super().batch(first, count)

    def go(steps: int, size: int, **more: bool) -> None:
        settings, model = (
            replace(TINY, max_steps=6, per_device_train_batch_size=size, save_steps=3, eval_steps=steps),
            tiny_gpt(),
        )
        parts = model, next_token(), make_optimizers(model, settings)
        fit(*parts, Watched(), Reversal(), settings, EvalSettings(max_sequences=8), tmp_path, {}, **more)

    go(6, 16)
    shutil.rmtree(checkpoint_path(tmp_path, 6))
    seen.clear()
    go(6, 8, resume=True)
    assert seen == [48, 56, 64]


@pytest.mark.parametrize(
    "layout,optim,rate",
    [
        ("qwen3", "muon", 0.02),
        pytest.param("gpt2", "adamw", 0.006, marks=pytest.mark.slow),
        pytest.param("llama", "adamw", 0.006, marks=pytest.mark.slow),
    ],
)
def test_a_gpt_learns_to_reverse(tmp_path: Path, layout: str, optim: str, rate: float) -> None:
    settings = replace(
        TINY,
        max_steps=300,
        per_device_train_batch_size=64,
        optim=optim,
        learning_rate=rate,
        adam_learning_rate=0.006,
        eval_steps=300,
        save_steps=300,
        warmup_steps=20,
        lr_scheduler_type="trapezoid",
    )
    model = tiny_gpt(layout)
    run(model, settings, tmp_path)
    assert _accuracy(model) > 0.99


def test_an_lstm_learns_to_reverse(tmp_path: Path) -> None:
    settings = replace(
        TINY,
        max_steps=500,
        per_device_train_batch_size=64,
        optim="adamw",
        learning_rate=0.01,
        eval_steps=500,
        save_steps=500,
        warmup_steps=20,
    )
    model = LSTM(LSTMSettings(8, 96, 1, 32, 0.0, True), torch.Generator().manual_seed(0))
    run(model, settings, tmp_path)
    assert _accuracy(model) > 0.95


def _accuracy(model: nn.Module) -> float:
    rows = Reversal().sequential(5000, 256)
    with torch.inference_mode():
        guess = model.eval().logits(model(rows.inputs)).argmax(-1)  # type: ignore[operator]
    counted = rows.targets != objectives.IGNORED
    return float((guess == rows.targets)[counted].float().mean())


# ---- products by oneDNN ------------------------------------------------------------------------------------------


def test_products_by_onednn_equal_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another maker's processor would use, forced here: the same loss and gradients."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    rows = Reversal().batch(0, 16)
    found = {}
    for leads in (False, True):
        monkeypatch.setattr(objectives, "onednn_leads", lambda leads=leads: leads)
        monkeypatch.setattr(products, "onednn_leads", lambda leads=leads: leads)
        for layout in ("qwen3", "gpt2"):
            model = tiny_gpt(layout)
            loss, _ = next_token()(model, rows)
            loss.backward()
            found[layout, leads] = [loss.detach(), *(p.grad for p in model.parameters())]
    for layout in ("qwen3", "gpt2"):
        for a, b in zip(found[layout, False], found[layout, True], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_onednn_leads_only_beside_intel(tmp_path: Path) -> None:
    for maker, flags, leads in (
        ("GenuineIntel", "avx512f", False),
        ("AuthenticAMD", "avx512f", True),
        ("AuthenticAMD", "avx2", False),
    ):
        info = tmp_path / f"{maker}-{flags}"
        info.write_text(f"vendor_id : {maker}\nflags : {flags}\n")
        usable = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
        assert products.onednn_leads(info) == (leads and usable)


# ---- the golden curve ----------------------------------------------------------------------------------------------


def test_golden_loss_curve(tmp_path: Path) -> None:
    """A refactor leaves this curve as it is; a change of behaviour changes the file in the same commit.

    To write it anew: delete tests/golden/reversal.json and run this test twice.
    """
    settings = replace(
        TINY, max_steps=24, optim="muon", learning_rate=0.02, logging_steps=1, eval_steps=24, save_steps=24
    )
    run(tiny_gpt(), settings, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = [line["loss"] for line in lines if "loss" in line]
    golden = Path(__file__).parent / "golden" / "reversal.json"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps([round(loss, 5) for loss in curve]) + "\n", encoding="utf-8")
        pytest.fail("there was no golden curve; it is written now")
    assert curve == pytest.approx(json.loads(golden.read_text()), rel=2e-3)


def test_the_demo_makes_fewer_steps_on_a_slower_processor() -> None:
    assert demo_settings("austen", 0.1) == ("train.max_steps=600", "train.eval_steps=200")
    assert demo_settings("austen", 0.3) == ("train.max_steps=347", "train.eval_steps=116")
    assert demo_settings("tang", 60.0) == ("train.max_steps=60", "train.eval_steps=20")


def test_an_optimizer_leaves_torch_s_compiler_alone() -> None:
    """Loading it takes two seconds of every training; only torch.compile, which is asked for, needs it."""
    code = (
        "import sys, torch; from torch import nn; from zhixing.recipe import TrainSettings\n"
        "from zhixing.training.optimizers import make_optimizers\n"
        "for optim in ('sgd', 'adam', 'adamw', 'muon'):\n"
        "    model = nn.ModuleDict({'block': nn.Linear(3, 3), 'lm_head': nn.Linear(3, 3)})\n"
        "    before = model.block.weight.clone()\n"
        "    made = make_optimizers(model, TrainSettings(optim=optim, learning_rate=0.1))\n"
        "    model.lm_head(model.block(torch.ones(1, 3))).square().sum().backward(); made.step(); made.zero_grad()\n"
        "    assert model.block.weight.grad is None and not torch.equal(before, model.block.weight)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "assert 'torch._dynamo' in sys.modules, 'optimizers made elsewhere are marked as ever'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
