"""Settings, filters and the decoder: against hand-computed tables, against transformers, alone against in company."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from torch import Tensor

from zhixing.decoding import filters
from zhixing.decoding.generate import Decoder, Token, generate_ids, prefill
from zhixing.decoding.protocol import context_length
from zhixing.decoding.sampling import draw, most_probable, random_stream, sample
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings

VOCAB, CONTEXT, EOS = 50, 48, (3, 7, 11, 12, 13)
NEVER = float("-inf")


def lively(model: GPT | LSTM) -> GPT | LSTM:
    """Larger weights, so that the next token depends on what came before and no two tokens are nearly equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.35, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=["qwen3", "gpt2", "lstm"])
def model(request: pytest.FixtureRequest) -> GPT | LSTM:
    generator = torch.Generator().manual_seed(0)
    if request.param == "lstm":
        return lively(LSTM(LSTMSettings(vocab_size=VOCAB, d_model=24, n_layers=2, max_len=CONTEXT), generator))
    return lively(
        GPT(
            GPTSettings(
                vocab_size=VOCAB, layout=request.param, d_model=24, n_layers=2, n_heads=4,
                n_kv_heads=4 if request.param == "gpt2" else 2, d_ff=48, max_len=CONTEXT,
            ),
            generator,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Ragged: from one token to twenty."""
    chance = random.Random(3)
    return [[chance.randrange(8, VOCAB) for _ in range(length)] for length in (5, 1, 20, 9, 2, 13)]


def run(model: GPT | LSTM, prompts: list[list[int]], settings: DecodingSettings, **how: int) -> list[list[Token]]:
    """The tokens of each row."""
    rows: list[list[Token]] = [[] for _ in range(len(prompts) * settings.n)]
    for tokens in generate_ids(model, prompts, settings, **how):
        for token in tokens:
            rows[token.row].append(token)
    return rows


def ids_of(rows: list[list[Token]]) -> list[list[int]]:
    return [[token.id for token in row] for row in rows]


def by_hand(model: GPT | LSTM, prompt: list[int], count: int) -> list[int]:
    """Greedy search without a state: the whole sequence goes through `forward` for each token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
            if ids[-1] in EOS:
                break
    return ids[len(prompt) :]


GREEDY = DecodingSettings(max_new_tokens=15, eos_ids=EOS, logprobs=3)
SAMPLING = DecodingSettings(
    max_new_tokens=15, temperature=0.9, top_k=30, top_p=0.95, min_p=0.001, repetition_penalty=1.2, n=3, seed=5,
    eos_ids=EOS, logprobs=2, min_new_tokens=2,
)  # fmt: skip


# settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": -1}, {"max_new_tokens": 1.5}, {"max_new_tokens": True},
        {"max_new_tokens": math.inf}, {"min_new_tokens": -1}, {"max_new_tokens": 3, "min_new_tokens": 4},
        {"temperature": math.nan}, {"temperature": -0.1}, {"temperature": math.inf}, {"temperature": 1e-30},
        {"temperature": "0.5"}, {"top_k": -1}, {"top_k": 2.0}, {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": math.nan},
        {"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"repetition_penalty": math.nan},
        {"stop": ("",)}, {"stop": "abc"}, {"stop": (1,)}, {"n": 0}, {"n": 10**9, "temperature": 1.0}, {"n": 2},
        {"seed": 1.5}, {"num_beams": 0}, {"num_beams": 10**9}, {"num_beams": 2, "n": 3}, {"length_penalty": math.nan},
        {"num_beams": 2, "stop": ("x",)}, {"num_beams": 2, "repetition_penalty": 1.1}, {"early_stopping": 1},
        {"logprobs": -1}, {"eos_ids": (-1,)}, {"eos_ids": 3}, {"no_repeat_ngram_size": -1}, {"no_repeat_ngram_size": 2.0},
        {"prefix_ids": (-1,)}, {"prefix_ids": 3}, {"prefix_ids": "ab"}, {"prefix_ids": (1, True)}, {"prefix_ids": (4, 5), "max_new_tokens": 1},
        {"prefix_ids": (4, 5), "eos_ids": (5,)}, {"num_beam_groups": 0}, {"num_beam_groups": 2, "diversity_penalty": 1.0},
        {"num_beams": 6, "num_beam_groups": 4, "diversity_penalty": 1.0}, {"num_beams": 4, "num_beam_groups": 2},
        {"num_beams": 2, "num_beam_groups": 4, "diversity_penalty": 1.0}, {"diversity_penalty": -0.1}, {"diversity_penalty": math.nan},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        DecodingSettings(**wrong).check()  # type: ignore[arg-type]
    assert any(caught.value.what.startswith(f"{name} = ") for name in wrong)
    assert caught.value.why


def test_settings_that_work_are_let_through() -> None:
    for settings in (
        DecodingSettings(),
        SAMPLING,
        DecodingSettings(stop=["a", "b"], eos_ids=[1, 2]),  # type: ignore[arg-type]
        DecodingSettings(num_beams=4, n=4, length_penalty=-1, temperature=0.8),
        DecodingSettings(temperature=1, seed=None, top_p=1),
        DecodingSettings(prefix_ids=[4, 5], no_repeat_ngram_size=3, max_new_tokens=2),  # type: ignore[arg-type]
        DecodingSettings(num_beams=6, num_beam_groups=3, diversity_penalty=0.5, n=6),
    ):
        settings.check()
        hash(settings)


# filters


def test_filters_on_hand_computed_tables() -> None:
    p = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
    z = p.log()

    def kept(logits: Tensor) -> list[int]:
        return torch.isfinite(logits)[0].nonzero()[:, 0].tolist()

    assert kept(filters.top_k(z, 2)) == [1, 2]
    assert kept(filters.top_k(z, 9)) == [0, 1, 2, 3]
    assert kept(filters.top_p(z, 0.5)) == [1]
    assert kept(filters.top_p(z, 0.51)) == [1, 2]
    assert kept(filters.top_p(z, 0.8)) == [1, 2, 3]
    assert kept(filters.top_p(z, 1e-9)) == [1]
    assert kept(filters.min_p(z, 0.3)) == [1, 2, 3]  # 0.3 * 0.5 = 0.15
    assert kept(filters.min_p(z, 0.31)) == [1, 2]
    assert kept(filters.min_p(z, 1.0)) == [1]
    assert kept(filters.forbidden(z, [0], [1, 3])) == [0, 2]
    squared = filters.temperature(z, 0.5).softmax(-1)  # p^2 over its sum, 0.345
    torch.testing.assert_close(squared, torch.tensor([[0.01, 0.25, 0.0625, 0.0225]]) / 0.345)
    assert torch.isfinite(filters.temperature(torch.tensor([[3e4, -3e4]]), 1e-5)).all()

    scores = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert filters.repetition_penalty(scores, seen, 2.0).tolist() == [[1.0, -4.0, 1.0, -1.0]]


def test_filters_leave_their_argument_alone() -> None:
    z = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    before = z.clone()
    filters.filtered(z, SAMPLING)
    filters.forbidden(z, [0, 2], [3])
    filters.repetition_penalty(z, z > 1, 1.5)
    assert torch.equal(z, before)


@pytest.mark.parametrize("size", [40, 3000])
def test_filters_agree_with_transformers(size: int) -> None:
    from transformers.generation import logits_process as hf

    generator = torch.Generator().manual_seed(size)
    z = torch.randn(4, size, generator=generator) * 2
    ids = torch.randint(size, (4, 17), generator=generator)
    none = torch.zeros(4, 0, dtype=torch.int64)
    for k in (1, 5, 39, 10_000):
        assert torch.equal(filters.top_k(z, k), hf.TopKLogitsWarper(k)(none, z))
    for p in (0.01, 0.3, 0.9, 0.999):
        assert torch.equal(filters.top_p(z, p), hf.TopPLogitsWarper(p)(none, z))
    for p in (0.01, 0.2, 1.0):
        assert torch.equal(filters.min_p(z, p), hf.MinPLogitsWarper(p)(none, z))
    seen = torch.zeros(4, size, dtype=torch.bool).scatter(1, ids, True)
    assert torch.equal(filters.repetition_penalty(z, seen, 1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)(ids, z))
    settings = DecodingSettings(temperature=0.7, top_k=30, top_p=0.9, min_p=0.02)
    expected = z
    for warper in (
        hf.TemperatureLogitsWarper(0.7),
        hf.TopKLogitsWarper(30),
        hf.TopPLogitsWarper(0.9),
        hf.MinPLogitsWarper(0.02),
    ):
        expected = warper(none, expected)
    torch.testing.assert_close(filters.filtered(z, settings).softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_no_repeats_agree_with_transformers(size: int) -> None:
    from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

    process, chance = NoRepeatNGramLogitsProcessor(size), random.Random(size)
    changed = 0
    for length in (1, 2, 3, 5, 30, 60):
        for words in (2, 5, 9):
            histories = [[chance.randrange(words) for _ in range(length)] for _ in range(5)]
            z = torch.randn(5, 10, generator=torch.Generator().manual_seed(length))
            ours = filters.no_repeats(z, histories, size)
            assert torch.equal(ours, process(torch.tensor(histories), z))
            changed += not torch.equal(ours, z)
    assert changed > 4
    ragged = [[1, 2, 1], [2], [1, 1, 1, 1]]
    together = filters.no_repeats(z[:3], ragged, size)
    for row, history in enumerate(ragged):
        assert torch.equal(together[row], filters.no_repeats(z[row : row + 1], [history], size)[0])


def test_no_repeats_leave_a_token_in_every_row() -> None:
    z = torch.tensor([[0.5, 1.0, NEVER], [0.5, 1.0, 2.0]])
    out = filters.no_repeats(z, [[0, 1], [0, 1]], 1)
    assert out.tolist() == [[0.5, 1.0, NEVER], [NEVER, NEVER, 2.0]]
    assert filters.repeating([5, 6, 7, 9, 5, 6], 3) == [7]


def test_what_is_forced_is_all_that_is_left() -> None:
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    out = filters.forced(z, [0, 2], [4, 1])
    assert torch.equal(out[1], z[1])
    assert out.argmax(-1)[[0, 2]].tolist() == [4, 1]
    assert torch.isfinite(out).sum(-1).tolist() == [1, 6, 1]


# chance


def test_sample_inverts_the_distribution() -> None:
    z = torch.tensor([[0.5, 0.0, 0.5]]).log()
    assert [int(sample(z, [u])) for u in (0.0, 0.49, 0.5, 1 - 2**-32)] == [0, 0, 2, 2]
    z = torch.tensor([[NEVER, 0.0, NEVER]])
    assert [int(sample(z, [u])) for u in (0.0, 1 - 2**-32)] == [1, 1]


def test_the_most_probable_is_the_first_of_equals() -> None:
    assert most_probable(torch.tensor([[1.0, 3.0, 3.0], [2.0, NEVER, 1.0]])).tolist() == [1, 0]
    z = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(most_probable(z), z.argmax(-1))


def test_sample_follows_the_probabilities() -> None:
    p = torch.tensor([0.05, 0.0, 0.2, 0.15, 0.6])
    stream = random_stream(0, [1, 2], 0)
    count = 20_000
    drawn = sample(p.log().expand(count, -1), [draw(stream) for _ in range(count)])
    share = torch.bincount(drawn, minlength=5) / count
    assert (share - p).abs().max() < 0.015  # four standard errors of 0.6
    assert share[1] == 0


def test_streams_differ_by_seed_prompt_and_sample_only() -> None:
    assert draw(random_stream(1, [2, 3], 0)) == draw(random_stream(1, [2, 3], 0))
    others = [(2, [2, 3], 0), (1, [2, 3], 1), (1, [23], 0), (1, [3, 2], 0), (12, [3], 0)]
    assert len({draw(random_stream(*names)) for names in [(1, [2, 3], 0), *others]}) == 6
    assert [round(draw(random_stream(*names)), 6) for names in others[:2]] == [0.98255, 0.060869]  # on every machine


def test_scores_that_are_no_numbers_are_named(model: GPT | LSTM) -> None:
    with pytest.raises(InputError, match="no numbers"):
        sample(torch.tensor([[0.0, math.nan]]), [0.5])
    weight = model.embedding.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3] = math.nan
    try:
        with pytest.raises(InputError, match="no numbers"):
            run(model, [[3]], GREEDY)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


# the decoder


def test_greedy_is_what_the_whole_sequence_gives(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    rows = run(model, prompts, GREEDY)
    assert ids_of(rows) == [by_hand(model, prompt, 15) for prompt in prompts]
    for row in rows:
        assert [token.finish_reason for token in row[:-1]] == [None] * (len(row) - 1)
        assert row[-1].finish_reason == ("stop" if row[-1].id in EOS else "length")


def test_logprobs_are_the_models_own(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    for settings in (GREEDY, SAMPLING):
        rows = run(model, prompts, settings)
        for number, row in enumerate(rows):
            prompt = prompts[number // settings.n]
            ids = prompt + [token.id for token in row]
            with torch.no_grad():
                expected = model.logits(model(torch.tensor([ids[:-1]])))[0, len(prompt) - 1 :].log_softmax(-1)
            for token, line in zip(row, expected, strict=True):
                assert token.logprob == pytest.approx(float(line[token.id]), abs=1e-4)
                assert token.top is not None
                assert settings.logprobs is not None
                best = line.topk(settings.logprobs)
                assert [i for i, _ in token.top] == best.indices.tolist()
                assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
def test_a_batch_gives_what_each_prompt_gives_alone(
    model: GPT | LSTM, prompts: list[list[int]], settings: DecodingSettings
) -> None:
    together = run(model, prompts, settings)
    alone = [row for prompt in prompts for row in run(model, [prompt], settings)]
    assert ids_of(together) == ids_of(alone)
    for ours, theirs in zip(together, alone, strict=True):
        assert [t.logprob for t in ours] == pytest.approx([t.logprob for t in theirs], abs=1e-5)
        assert [t.finish_reason for t in ours] == [t.finish_reason for t in theirs]
    few = run(model, prompts, settings, batch_size=4)  # rows leave, and prompts that waited join
    assert ids_of(few) == ids_of(alone)
    backwards = run(model, prompts[::-1], settings)
    n = settings.n
    assert ids_of(backwards) == [
        row for first in range(len(alone) - n, -1, -n) for row in ids_of(alone[first : first + n])
    ]


def test_rows_end_at_different_times_here(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    """The tests above would prove little if all rows were equally long."""
    assert len({len(row) for row in run(model, prompts, SAMPLING)}) > 2


def test_a_row_that_joins_a_running_batch_writes_what_it_writes_alone(
    model: GPT | LSTM, prompts: list[list[int]]
) -> None:
    """The states of both are appended; settings may differ from row to row."""
    kinds = [GREEDY, SAMPLING, dataclasses.replace(GREEDY, max_new_tokens=22, repetition_penalty=1.5, logprobs=None)]
    decoder = Decoder(model)
    rows: dict[int, list[Token]] = {}
    expected: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        settings = kinds[number % 3]
        names = decoder.add(prompt, settings)
        expected |= zip(names, ids_of(run(model, [prompt], settings)), strict=True)
        for _ in range(number):
            for token in decoder.step():
                rows.setdefault(token.row, []).append(token)
    while decoder.busy:
        for token in decoder.step():
            rows.setdefault(token.row, []).append(token)
    assert {name: [token.id for token in row] for name, row in rows.items()} == expected
    assert all((row[0].logprob is None) == (row[0].top is None) for row in rows.values())
    assert decoder.step() == []


def test_a_stopped_row_writes_nothing_more_and_leaves_the_others_alone(
    model: GPT | LSTM, prompts: list[list[int]]
) -> None:
    settings = dataclasses.replace(GREEDY, eos_ids=())
    decoder = Decoder(model)
    (first,) = decoder.add(prompts[0], settings)
    (second,) = decoder.add(prompts[1], settings)
    (never,) = decoder.add(prompts[2], settings)
    decoder.stop(never)
    written: dict[int, list[int]] = {first: [], second: []}
    for step in range(20):
        for token in decoder.step():
            written[token.row].append(token.id)
        if step == 4:
            decoder.stop(first)
            assert decoder.live == 1
    alone = ids_of(run(model, prompts[:2], settings))
    assert written == {first: alone[0][:5], second: alone[1]}
    assert not decoder.busy


@pytest.mark.parametrize("budget", [1, 7, 30, 4096])
def test_prompts_read_in_chunks_are_prompts_read_at_once(
    model: GPT | LSTM, prompts: list[list[int]], budget: int
) -> None:
    with torch.no_grad():
        state, last = prefill(model, prompts, CONTEXT, budget)
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(last[row], model(torch.tensor([prompt]))[0, -1], atol=2e-5, rtol=1e-4)
    assert state.lengths.tolist() == [len(prompt) for prompt in prompts]


def test_samples_differ_and_repeat(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    settings = DecodingSettings(max_new_tokens=12, temperature=1.0, n=8, seed=1)
    first = ids_of(run(model, prompts[:2], settings))
    assert first == ids_of(run(model, prompts[:2], settings))
    assert len(set(map(tuple, first[:8]))) > 4
    assert first != ids_of(run(model, prompts[:2], dataclasses.replace(settings, seed=2)))
    fewer = ids_of(run(model, prompts[:2], dataclasses.replace(settings, n=2)))
    assert fewer == first[:2] + first[8:10]  # sample 1 does not depend on how many there are
    by_chance = dataclasses.replace(settings, seed=None)
    assert ids_of(run(model, prompts[:2], by_chance)) != ids_of(run(model, prompts[:2], by_chance))


def test_samples_of_one_prompt_share_its_reading(
    model: GPT | LSTM, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    step = model.step

    def counted(ids: Tensor, n_new: Tensor, state: object) -> Tensor:
        sizes.append(tuple(ids.shape))
        return step(ids, n_new, state)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "step", counted)
    run(model, [prompts[2]], DecodingSettings(max_new_tokens=3, temperature=1.0, n=5))
    assert sizes == [(1, 20), (5, 1), (5, 1)]


def test_no_end_before_min_new_tokens(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    free = run(model, prompts, dataclasses.replace(GREEDY, max_new_tokens=25, eos_ids=()))
    ends = tuple({row[1].id for row in free})  # ends of text that come early
    early = run(model, prompts, dataclasses.replace(GREEDY, max_new_tokens=25, eos_ids=ends))
    assert min(len(row) for row in early) < 6
    held = run(model, prompts, dataclasses.replace(GREEDY, max_new_tokens=25, eos_ids=ends, min_new_tokens=6))
    assert all(len(row) > 6 for row in held)
    assert all(token.id not in ends for row in held for token in row[:6])
    assert all((row[-1].finish_reason == "stop") == (row[-1].id in ends) for row in held)


def test_repetition_penalty_takes_the_rows_own_tokens(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    rows = run(model, prompts, DecodingSettings(max_new_tokens=20, repetition_penalty=1e9))
    for prompt, row in zip(prompts, ids_of(rows), strict=True):
        assert len(set(row)) == len(row)
        assert not set(row) & set(prompt)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_n_gram_is_written_twice(model: GPT | LSTM, prompts: list[list[int]], size: int) -> None:
    free = DecodingSettings(max_new_tokens=20, eos_ids=())
    for settings in (free, dataclasses.replace(free, temperature=0.1, n=2)):
        held = dataclasses.replace(settings, no_repeat_ngram_size=size)
        rows = ids_of(run(model, prompts, held))
        assert rows == [row for prompt in prompts for row in ids_of(run(model, [prompt], held))]
        repeats = [0, 0]
        for which, some in enumerate((rows, ids_of(run(model, prompts, settings)))):
            for number, row in enumerate(some):
                whole = prompts[number // settings.n] + row
                grams = [whole[at : at + size] for at in range(len(whole) - size + 1)]
                repeats[which] += sum(
                    gram in grams[:at] for at, gram in enumerate(grams) if at + size > len(whole) - 20
                )
        assert repeats[0] == 0
        assert repeats[1] > 0, "nothing was repeated without it: the test shows nothing"


def test_what_is_written_begins_as_it_must(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    begun = (9, 44, 9)
    settings = dataclasses.replace(
        GREEDY, prefix_ids=begun, no_repeat_ngram_size=1
    )  # what must be written is, twice too
    assert all(row[:3] == list(begun) for row in ids_of(run(model, prompts, settings)))
    settings = dataclasses.replace(GREEDY, prefix_ids=begun)
    rows = run(model, prompts, settings)
    assert ids_of(rows) == [[*begun, *by_hand(model, [*prompt, *begun], 12)] for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        with torch.no_grad():
            line = model.logits(model(torch.tensor([[*prompt, *begun]])))[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = [float(line[place, token]) for place, token in enumerate(begun)]
        assert [token.logprob for token in row[:3]] == pytest.approx(own, abs=1e-4)
    assert ids_of(run(model, prompts, dataclasses.replace(settings, logprobs=None))) == ids_of(rows)
    sampled = dataclasses.replace(SAMPLING, prefix_ids=begun)
    together = ids_of(run(model, prompts, sampled))
    assert all(row[:3] == list(begun) for row in together)
    assert together == [row for prompt in prompts for row in ids_of(run(model, [prompt], sampled))]
    assert ids_of(run(model, prompts, sampled, batch_size=4)) == together


def test_a_beginning_that_cannot_be_written_is_refused(model: GPT | LSTM) -> None:
    with pytest.raises(InputError, match="prefix_ids has the id 50"):
        run(model, [[1]], DecodingSettings(prefix_ids=(VOCAB,)))
    if context_length(model) is not None:
        with pytest.raises(InputError, match="begin with 3 tokens, and there is room for 2"):
            run(model, [[9] * (CONTEXT - 2)], DecodingSettings(prefix_ids=(8, 8, 9)))


def test_the_context_is_a_limit_that_is_stated(model: GPT | LSTM) -> None:
    if context_length(model) is None:
        assert len(run(model, [[9] * (CONTEXT + 5)], DecodingSettings(max_new_tokens=3))[0]) == 3
        return
    long = DecodingSettings(max_new_tokens=1000)
    rows = run(model, [[9] * 40, [9] * (CONTEXT - 1), [10]], long)
    assert [len(row) for row in rows] == [CONTEXT - 40, 1, CONTEXT - 1]
    assert all(row[-1].finish_reason == "length" for row in rows)
    assert ids_of(rows)[1] == by_hand(model, [9] * (CONTEXT - 1), 1)
    for length in (CONTEXT, CONTEXT + 5):
        with pytest.raises(InputError, match=f"has {length} tokens.* context is {CONTEXT}") as caught:
            generate_ids(model, [[9], [9] * length], long)
        assert "prompt 2 of 2" in str(caught.value)


def test_ids_the_model_does_not_know_are_refused(model: GPT | LSTM) -> None:
    for prompt in ([1, VOCAB], [-1]):
        with pytest.raises(InputError, match="the model knows 0 to 49"):
            generate_ids(model, [prompt], GREEDY)
    with pytest.raises(InputError, match="no token"):
        generate_ids(model, [[]], GREEDY)
    with pytest.raises(InputError, match="eos_ids"):
        generate_ids(model, [[1]], DecodingSettings(eos_ids=(VOCAB,)))
    assert list(generate_ids(model, [], GREEDY)) == []


def test_dropout_is_off_while_writing_and_on_again_after() -> None:
    model = lively(GPT(GPTSettings(VOCAB, d_model=24, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, dropout=0.5)))
    expected = ids_of(run(model, [[1, 2]], GREEDY))
    model.train()
    assert ids_of(run(model, [[1, 2]], GREEDY)) == expected
    assert model.training
    assert not torch.is_inference_mode_enabled()
