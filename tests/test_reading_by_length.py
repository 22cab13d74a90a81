"""Texts of like length are read together, and each is what it is when read alone."""

from __future__ import annotations

import random

import pytest
import torch

from zhixing.models import encoder_decoder_state
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings


@pytest.mark.parametrize("family", ["marian", "t5"])
@pytest.mark.parametrize("lengths", [(3,), (40, 1, 2, 40, 39, 7, 20, 6), (5, 5, 5), (1, 30)])
def test_a_text_is_read_as_it_is_alone(monkeypatch: pytest.MonkeyPatch, family: str, lengths: tuple[int, ...]) -> None:
    monkeypatch.setattr(encoder_decoder_state, "WORTH_READING", 8)
    generator, chance = torch.Generator().manual_seed(0), random.Random(0)
    model: Marian | T5
    if family == "marian":
        settings = MarianSettings(
            60, d_model=32, n_encoder_layers=2, n_layers=2, n_heads=4, d_ff=64, max_len=40, dropout=0.0
        )
        model = Marian(settings, generator).eval()
    else:
        shape = T5Settings(
            60, d_model=32, d_kv=8, n_heads=4, d_ff=48, n_encoder_layers=2, n_layers=2, max_len=40, dropout=0.0
        )
        model = T5(shape, generator).eval()
    sources = [[chance.randrange(3, 60) for _ in range(length)] for length in lengths]
    read: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda ids, mask: read.append(ids.numel()) or encode(ids, mask))
    with torch.inference_mode():
        state, hidden = model.read_sources(sources, 10)
        padded = max(lengths) * len(lengths)
        assert sum(lengths) <= sum(read) <= padded and (sum(read) < padded or padded < 1.5 * sum(lengths))
        assert state.source_lengths.tolist() == list(lengths)
        for row, source in enumerate(sources):
            alone, start = model.read_sources([source], 10)
            torch.testing.assert_close(hidden[row], start[0], atol=1e-5, rtol=1e-4)
            own = slice(len(source))
            torch.testing.assert_close(state.keys[:, row, :, own], alone.keys[:, 0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(state.values[:, row, :, own], alone.values[:, 0], atol=1e-5, rtol=1e-4)
