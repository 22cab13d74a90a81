"""Attention of one new token a row, and products of few rows, are torch's; a row is the same in any company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zhixing.decoding.beam import beam_search
from zhixing.decoding.settings import DecodingSettings
from zhixing.models import layers, products
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.step_attention import attend_and_store, look


@pytest.mark.parametrize(("rows", "heads", "groups", "place"), [(1, 4, 4, 0), (5, 4, 2, 6), (64, 8, 8, 31)])
def test_a_new_token_looks_back(rows: int, heads: int, groups: int, place: int) -> None:
    generator, size = torch.Generator().manual_seed(place), 16
    keys, values = (torch.randn(rows, groups, 40, size, generator=generator) for _ in range(2))
    qkv = torch.randn(rows, (heads + 2 * groups) * size, generator=generator)
    wanted_keys, wanted_values = keys.clone(), values.clone()
    q, k, v = qkv.view(rows, -1, size).split([heads, groups, groups], dim=1)
    wanted_keys[:, :, place], wanted_values[:, :, place] = k, v
    seen = slice(place + 1)
    wanted = F.scaled_dot_product_attention(
        q[:, :, None], wanted_keys[:, :, seen], wanted_values[:, :, seen], enable_gqa=True
    )
    found = attend_and_store(qkv, keys, values, place)
    torch.testing.assert_close(found, wanted.flatten(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(keys, wanted_keys) and torch.equal(values, wanted_values), "stored, and nothing else touched"


def test_rows_look_at_their_own_text() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(3, 4, 9, 16, generator=generator) for _ in range(2))
    lengths, owners = torch.tensor([9, 1, 5]), torch.tensor([2, 0, 0, 1, 2])
    q = torch.randn(5, 64, generator=generator)
    mask = (torch.arange(9) < lengths[owners][:, None])[:, None, None]
    wanted = F.scaled_dot_product_attention(q.view(5, 4, 1, 16), keys[owners], values[owners], attn_mask=mask)
    found = look(q.clone(), keys, values, owners, lengths)
    torch.testing.assert_close(found, wanted.flatten(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(look(q[1:2].clone(), keys, values, owners[1:2], lengths)[0], found[1]), "alone as in company"


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_few_rows(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(300, 257, bias=bias)
    x = torch.randn(3, 7, 300, generator=generator)
    with torch.inference_mode():
        found = products.product_of_few(x, layer.weight, layer.bias if bias else None)
        torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(
            products.product_of_few(x[1:2, 3:4], layer.weight, layer.bias if bias else None)[0, 0], found[1, 3]
        )


def test_a_translator_writes_the_same_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for the loops; texts of different lengths, beams that change places, some that end early."""
    shape = MarianSettings(
        600, d_model=128, n_encoder_layers=2, n_layers=2, n_heads=4, d_ff=512, max_len=40, dropout=0.0
    )
    model = Marian(shape, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    sources = [torch.randint(3, 600, (length,), generator=generator).tolist() for length in (3, 17, 9, 30)]
    settings = DecodingSettings(max_new_tokens=24, num_beams=3, n=3, eos_ids=(2, 5, 7, 11))
    fast = beam_search(model, sources, settings)
    alone = [beam_search(model, [source], settings)[0] for source in sources]
    monkeypatch.setattr(layers, "FEWEST_CHANNELS", 10**9)
    monkeypatch.setattr(products, "FEWEST_WEIGHTS", 10**9)
    slow = beam_search(model, sources, settings)
    for other in (alone, slow):
        assert [[best.ids for best in found] for found in fast] == [[best.ids for best in found] for found in other]
        for ours, theirs in zip(fast, other, strict=True):
            assert [best.score for best in ours] == pytest.approx([best.score for best in theirs], abs=1e-5)
