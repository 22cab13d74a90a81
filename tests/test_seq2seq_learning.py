"""What an encoder-decoder must be able to learn within seconds: to copy digits, to reverse them, to sort them.

By the batches and the objective that trainings use; measured on texts that were never shown, written whole by a beam.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from zhixing.decoding.beam import beam_search
from zhixing.decoding.settings import DecodingSettings
from zhixing.models.lstm_translator import LSTMTranslator, LSTMTranslatorSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings
from zhixing.tokens.paired import PairedTexts
from zhixing.training.objectives import target_given_source

PAD, EOS, FIRST_DIGIT = 0, 1, 2
VOCAB_SIZE = FIRST_DIGIT + 10
LONGEST = 5

Model = Marian | T5 | LSTMTranslator


def marian() -> Marian:
    return Marian(
        MarianSettings(
            VOCAB_SIZE, d_model=64, n_encoder_layers=1, n_layers=1, n_heads=4, d_ff=128, max_len=16, dropout=0.0
        )
    )


def t5() -> T5:
    return T5(
        T5Settings(
            VOCAB_SIZE, d_model=64, d_kv=16, n_heads=4, d_ff=96, n_encoder_layers=1, n_layers=1, max_len=16,
            n_buckets=16, max_distance=16, dropout=0.0,
        )
    )  # fmt: skip


def lstm(attention: str, pointer: bool = False) -> LSTMTranslator:
    return LSTMTranslator(
        LSTMTranslatorSettings(
            VOCAB_SIZE, d_model=64, n_encoder_layers=1, n_layers=1, max_len=16, dropout=0.0, attention=attention,
            pointer=pointer,
        )
    )  # fmt: skip


FAMILIES: dict[str, tuple[Callable[[], Model], float, int, int]] = {  # model, highest rate, steps, tokens of a batch
    "marian": (marian, 3e-3, 300, 600),
    "t5": (t5, 5e-3, 700, 1_000),
    "lstm-luong": (lambda: lstm("luong"), 1e-2, 350, 600),
    "lstm-bahdanau": (lambda: lstm("bahdanau"), 1e-2, 300, 600),
}
TASKS: dict[str, Callable[[list[int]], list[int]]] = {"copy": list, "reverse": lambda row: row[::-1], "sort": sorted}
ALWAYS = [("marian", "reverse"), ("lstm-luong", "copy")]  # the others take a minute each on a slow core
EACH = [
    pytest.param(family, task, marks=[] if (family, task) in ALWAYS else pytest.mark.slow)
    for family in FAMILIES
    for task in TASKS
]


@pytest.mark.parametrize(("family", "task"), EACH)
def test_it_learns(family: str, task: str) -> None:
    make, highest, steps, budget = FAMILIES[family]
    right_answer, chance = TASKS[task], random.Random(0)
    rows = {tuple(chance.choices(range(FIRST_DIGIT, VOCAB_SIZE), k=chance.randint(1, LONGEST))) for _ in range(40_000)}
    texts = [list(row) for row in sorted(rows)]
    chance.shuffle(texts)
    unseen, seen = texts[:300], texts[300:]
    pairs = PairedTexts(
        [[*row, EOS] for row in seen], [[*right_answer(row), EOS] for row in seen],
        start_id=PAD, pad_id=PAD, budget=budget, seed=0,
    )  # fmt: skip
    model = make()
    model.initialise(torch.Generator().manual_seed(0))
    model.train()
    objective = target_given_source()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = highest * min(1, (step + 1) / 40) * (1 - step / steps)
        loss, tokens = objective(model, pairs.batch(step, 1))
        torch.autograd.backward(loss / tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    settings = DecodingSettings(max_new_tokens=LONGEST + 2, num_beams=2, n=1, eos_ids=(EOS,))
    found = beam_search(model.eval(), [[*row, EOS] for row in unseen], settings)
    right = sum(best[0].ids == right_answer(row) for best, row in zip(found, unseen, strict=True))
    assert right > 0.99 * len(unseen), right


def test_a_pointer_copies_what_it_has_never_written() -> None:
    """Half of the digits stand in no text that it learns from; without a pointer nothing could write them."""
    chance, half = random.Random(0), (FIRST_DIGIT + VOCAB_SIZE) // 2
    seen, unseen = (
        [[*chance.choices(digits, k=chance.randint(2, 6)), EOS] for _ in range(count)]
        for digits, count in ((range(FIRST_DIGIT, half), 4_000), (range(half, VOCAB_SIZE), 100))
    )
    pairs = PairedTexts(seen, seen, start_id=PAD, pad_id=PAD, budget=600, seed=0)
    model = lstm("bahdanau", pointer=True)
    model.initialise(torch.Generator().manual_seed(0))
    objective, optimizer = target_given_source(), torch.optim.AdamW(model.parameters(), lr=0.003)
    for step in range(150):
        loss, tokens = objective(model.train(), pairs.batch(step, 1))
        optimizer.zero_grad()
        torch.autograd.backward(loss / tokens)
        optimizer.step()
    written = beam_search(model.eval(), unseen, DecodingSettings(max_new_tokens=8, num_beams=1, n=1, eos_ids=(EOS,)))
    tokens_right = [t in row for best, row in zip(written, unseen, strict=True) for t in best[0].ids]
    assert sum(tokens_right) > 0.5 * len(tokens_right), sum(tokens_right) / len(tokens_right)
