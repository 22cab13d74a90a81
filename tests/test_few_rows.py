"""The compiled products of a few rows are torch's, in fp32 and by rounded weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zhixing.models.few_rows import UNSCALED, matmul, quantise
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.gpt_packed import PackedGPT

ROOT = Path(__file__).parents[1]
SHAPES = [(1, 5, 3), (1, 16, 4), (3, 33, 50), (4, 64, 31), (8, 100, 129), (9, 7, 16), (16, 48, 260)]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows,size,count", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fp32_products(rows: int, size: int, count: int, threads: int) -> None:
    x, w, y = numbers(rows, size), numbers(count, size, seed=1), np.full((rows, count), np.nan, np.float32)
    matmul(w, UNSCALED, x, y, threads)
    np.testing.assert_allclose(y, x @ w.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows,size,count", SHAPES)
def test_products_by_rounded_weights(rows: int, size: int, count: int) -> None:
    x, w, y = numbers(rows, size), numbers(count, size, seed=1), np.empty((rows, count), np.float32)
    rounded, scale = np.empty(w.shape, np.int8), np.empty(count, np.float32)
    w[0] = 0  # a row of zeros has no scale
    quantise(w, rounded, scale)
    assert np.abs(w - scale[:, None] * rounded).max() <= np.abs(w).max() / 127 / 2 * 1.001
    assert (np.abs(rounded).max(axis=1) == np.where(np.arange(count) == 0, 0, 127)).all()
    matmul(rounded, scale, x, y, 2)
    np.testing.assert_allclose(y, x @ (scale[:, None] * rounded).T, rtol=1e-4, atol=1e-4)


def fresh(layout: str) -> GPT:
    settings = GPTSettings(211, layout, 48, 3, 4, 2 if layout == "qwen3" else 4, 100, 96)  # type: ignore[arg-type]
    model = GPT(settings, torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model


@pytest.mark.parametrize("layout", ["qwen3", "llama", "gpt2"])
@torch.inference_mode()
def test_guesses_change_nothing(layout: str) -> None:
    """Greedy writing to the end of the context, with guesses that hold; then tokens that nobody guessed."""
    model = fresh(layout)
    plain, fast = model, PackedGPT(model)
    one, written = torch.ones(1, dtype=torch.int64), []
    states = [plain.new_state(1, 96), fast.new_state(1, 96)]
    prompt = torch.tensor([[5, 17, 100]])
    hidden = [m.step(prompt, torch.tensor([3]), s)[:, -1] for m, s in zip((plain, fast), states, strict=True)]
    generator, passes = torch.Generator().manual_seed(0), 0
    looking = fast._look_ahead

    def counted(*arguments: object) -> object:
        nonlocal passes
        passes += 1
        return looking(*arguments)  # type: ignore[arg-type]

    fast._look_ahead = counted  # type: ignore[method-assign, assignment]
    for place in range(3, 96):
        ours, theirs = fast.logits(hidden[1]), plain.logits(hidden[0])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        token = theirs.argmax(dim=-1)
        if 50 <= place < 70:  # nobody could guess these
            token = torch.randint(0, 211, (1,), generator=generator)
        written.append(int(token))
        hidden = [m.step(token[None], one, s)[:, 0] for m, s in zip((plain, fast), states, strict=True)]
    assert passes < 70  # 93 tokens, 20 of which were unguessable: most of the others came from looking ahead
    torch.testing.assert_close(states[0].keys[:, :, :, :96], states[1].keys[:, :, :, :96], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_model_that_cannot_be_guessed_is_not_guessed() -> None:
    fast = PackedGPT(fresh("qwen3"))
    state = fast.new_state(1, 96)
    fast.step(torch.tensor([[1]]), torch.tensor([1]), state)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        fast.step(torch.randint(0, 211, (1, 1), generator=generator), torch.tensor([1]), state)
    assert fast.held < 0.4
    assert fast.ahead is not None and len(fast.ahead.ids) <= 2


def test_the_start_of_numba_leaves_torch_its_threads() -> None:
    """A run of one thread went on with two once the loops were loaded, and a resumed one did not: other bits."""
    look = (
        "import sys; sys.path.insert(0, 'src'); import zhixing.run, torch; torch.ones(200_000).sum(); torch.set_num_threads(1); "
        "import zhixing.models.cpu_attention as a; x = torch.randn(8, 2, 32, 16, requires_grad=True); "
        "a.attention(x, x, x, None, 0.1).sum().backward(); print(torch.get_num_threads())"
    )
    asked = [sys.executable, "-c", look]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["1"]
