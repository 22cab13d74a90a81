"""The greatest score found from int8 bounds is the greatest score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zhixing.decoding.generate import Decoder
from zhixing.decoding.settings import DecodingSettings
from zhixing.models import gpt_packed
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.gpt_packed import PackedGPT
from zhixing.models.screened_argmax import ScreenedArgmax


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 8, 11, 16])
@pytest.mark.parametrize("count,size", [(1, 4), (15, 8), (16, 64), (333, 100), (2000, 384)])
def test_is_argmax(rows: int, count: int, size: int) -> None:
    gave_up = 0
    for seed in range(20):
        w, x = numbers(count, size, seed=seed), numbers(rows, size, seed=100 + seed)
        x[:, :: size // 3] *= 3  # outliers, which rounding by one scale a row suits least
        found = ScreenedArgmax(w)(torch.from_numpy(x))
        if found is None:
            gave_up += 1
            continue
        scores = x.astype(np.float64) @ w.T.astype(np.float64)
        top = scores.max(axis=1)
        assert (scores[np.arange(rows), found.numpy()] >= top - 1e-5 * np.abs(top)).all()
    assert gave_up <= 5


def test_close_scores_are_told_apart_in_fp32() -> None:
    """Two rows that int8 makes equal; the second is greater by a thousandth of a step."""
    w, x = numbers(500, 64) * 0.1, numbers(4, 64, seed=1)
    w[10] = w[20] = numbers(64, seed=2) * 3
    for row in x:
        row[:] = w[10] + 0.1 * row
    w[20, 5] += 1e-4 * np.sign(x[0, 5])
    signs = np.sign(x[:, 5]) == np.sign(x[0, 5])
    found = ScreenedArgmax(w)(torch.from_numpy(x))
    assert found is not None
    assert found.tolist() == [20 if same else 10 for same in signs]


def test_excluded_ids_are_never_chosen() -> None:
    w, x = numbers(300, 32), torch.from_numpy(numbers(6, 32, seed=1))
    order = (x @ torch.from_numpy(w).T).argsort(dim=1, descending=True)
    excluded = tuple(order[:, 0].tolist())
    wanted = [next(i for i in row if i not in excluded) for row in order.tolist()]
    find = ScreenedArgmax(w)
    found, again = find(x, excluded), find(x)
    assert found is not None and again is not None
    assert found.tolist() == wanted
    assert again.tolist() == order[:, 0].tolist()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gives_up_where_nothing_can_be_told(value: float) -> None:
    x = torch.ones(2, 32)
    x[1] = value
    assert ScreenedArgmax(numbers(100, 32))(x) is None


def test_gives_up_where_all_are_nearly_equal() -> None:
    w = 1 + 1e-4 * numbers(10_000, 32)
    assert ScreenedArgmax(w)(torch.from_numpy(1 + 1e-4 * numbers(2, 32, seed=1))) is None


@torch.inference_mode()
def test_a_model_whose_scores_cannot_be_told_apart_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt_packed, "HAS_VNNI", True)  # without the instruction plain loops give the same answer
    model = GPT(GPTSettings(5000, "llama", 32, 1, 2, 2, 64, 64), torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(1 + 1e-5 * model.embedding.weight)
    fast, asked = PackedGPT(model), 0
    for _ in range(100):
        assert fast.most_probable(torch.ones(2, 32) + 1e-4 * torch.randn(2, 32), ()) is None
    assert fast.screened is not None
    inner = fast.screened

    def counted(*arguments: object) -> None:
        nonlocal asked
        asked += 1

    fast.screened = counted  # type: ignore[assignment]
    for _ in range(100):
        fast.most_probable(torch.ones(2, 32), ())
    assert asked <= 100 // 16 + 1 and inner is not None


@pytest.mark.parametrize("settings", [{}, {"min_new_tokens": 20}, {"repetition_penalty": 1.3}, {"logprobs": 2}])
def test_greedy_writing_is_the_same(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = GPTSettings(700, "qwen3", 48, 2, 4, 2, 100, 96)
    model = GPT(sizes, torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    asked = DecodingSettings(max_new_tokens=40, temperature=0, eos_ids=tuple(range(30)), **settings)  # type: ignore[arg-type]
    calls = 0

    class Counting(ScreenedArgmax):
        def __call__(self, hidden: torch.Tensor, excluded: tuple[int, ...] = ()) -> torch.Tensor | None:
            nonlocal calls
            calls += 1
            return super().__call__(hidden, excluded)

    monkeypatch.setattr(gpt_packed, "ScreenedArgmax", Counting)
    texts = []
    for screened in (True, False):
        monkeypatch.setattr(gpt_packed, "HAS_VNNI", screened)  # without the instruction the loops still give the answer
        decoder = Decoder(PackedGPT(model))
        for first in range(5):
            decoder.add([50 + first, 200, 300], asked)
        written: list[list[int]] = [[] for _ in range(5)]
        while decoder.busy:
            for token in decoder.step():
                written[token.row].append(token.id)
        texts.append(written)
    assert texts[0] == texts[1]
    assert (calls > 0) == (settings in ({}, {"min_new_tokens": 20}))
