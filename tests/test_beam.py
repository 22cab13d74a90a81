"""Beam search against the enumeration of everything, against transformers, and alone against in company."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter

import pytest
import torch

from zhixing.decoding.beam import Hypothesis, beam_search
from zhixing.decoding.generate import generate_ids
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings

CONTEXT = 40
END = 28  # a likely token of the random GPT-2


def make(family: str, vocab_size: int, seed: int = 0) -> GPT | LSTM:
    """A small model whose next token depends on what came before."""
    model: GPT | LSTM
    if family == "lstm":
        model = LSTM(LSTMSettings(vocab_size, d_model=16, n_layers=1, max_len=CONTEXT))
    else:
        model = GPT(GPTSettings(vocab_size, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=32, max_len=CONTEXT))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=["gpt", "lstm"])
def model(request: pytest.FixtureRequest) -> GPT | LSTM:
    return make(request.param, 30)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(2, 30) for _ in range(length)] for length in (5, 1, 12, 3)]


SETTINGS = DecodingSettings(max_new_tokens=12, num_beams=4, n=4, eos_ids=tuple(range(0, 30, 3)), logprobs=2)


def everything(model: GPT | LSTM, prompt: list[int], settings: DecodingSettings) -> list[tuple[float, list[int]]]:
    """Every continuation up to max_new_tokens, best first: (score, ids without the end). One forward for each length."""
    (eos,) = settings.eos_ids or ()
    found = []
    for length in range(1, settings.max_new_tokens + 1):
        others = [i for i in range(model.settings.vocab_size) if i != eos]
        for body in itertools.product(others, repeat=length - 1):
            if length > settings.min_new_tokens:
                found.append([*body, eos])
            if length == settings.max_new_tokens:
                found += [[*body, last] for last in others]
    scored = []
    for length in range(1, settings.max_new_tokens + 1):
        group = [ids for ids in found if len(ids) == length]
        if not group:
            continue
        ids = torch.tensor([prompt + ids for ids in group])
        with torch.no_grad():
            logprobs = model.logits(model(ids[:, :-1])).log_softmax(-1)[:, len(prompt) - 1 :]
        sums = logprobs.gather(2, ids[:, len(prompt) :, None])[..., 0].double().sum(1)
        scored += [(float(s) / length**settings.length_penalty, ids) for s, ids in zip(sums, group, strict=True)]
    scored.sort(key=lambda pair: -pair[0])
    return [(score, [i for i in ids if i != eos]) for score, ids in scored]


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_everything(family: str, length_penalty: float) -> None:
    for seed in range(3):
        model = make(family, 5, seed)
        for minimum in (0, 2):
            settings = DecodingSettings(
                max_new_tokens=4,
                min_new_tokens=minimum,
                num_beams=256,
                n=6,
                length_penalty=length_penalty,
                eos_ids=(0,),
            )
            prompts = [[1, 2, 3], [4]]
            for prompt, found in zip(prompts, beam_search(model, prompts, settings, batch_size=512), strict=True):
                expected = everything(model, prompt, settings)[:6]
                assert [h.ids for h in found] == [ids for _, ids in expected]
                assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def repeats(ids: list[int], size: int) -> bool:
    """Does a run of `size` tokens stand in ids twice?"""
    grams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
    return len(set(grams)) < len(grams)


@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_a_wide_beam_finds_the_best_of_everything_that_may_be_written(family: str) -> None:
    """No n-gram twice, the prompt's among them; or a beginning that is given."""
    model, prompts = make(family, 5), [[1, 2], [4]]
    free = DecodingSettings(max_new_tokens=3, num_beams=64, n=6, length_penalty=0.7, eos_ids=(0,))
    for size, begun in ((1, ()), (2, ()), (0, (3,)), (0, (2, 2)), (2, (3, 4))):
        settings = dataclasses.replace(free, no_repeat_ngram_size=size, prefix_ids=begun)
        for prompt, found in zip(prompts, beam_search(model, prompts, settings, batch_size=512), strict=True):
            expected = [
                (score, ids) for score, ids in everything(model, prompt, free)
                if tuple(ids[: len(begun)]) == begun and not (size and repeats(prompt + ids, size))
            ][:6]  # fmt: skip
            assert [h.ids for h in found] == [ids for _, ids in expected]
            assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def in_groups(model: GPT | LSTM, prompt: list[int], settings: DecodingSettings) -> list[dict[tuple[int, ...], float]]:
    """Diverse beams in the plainest way: whole sequences, and lists of all candidates. Of each group its results."""
    ends, size = settings.eos_ids or (), settings.num_beams // settings.num_beam_groups
    live: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(settings.num_beam_groups)]
    results: list[dict[tuple[int, ...], float]] = [{} for _ in live]
    for length in range(1, settings.max_new_tokens + 1):
        chosen: Counter[int] = Counter()
        for group, hypotheses in enumerate(live):
            candidates = []
            for total, ids in hypotheses:
                with torch.no_grad():
                    line = model.logits(model(torch.tensor([prompt + ids])))[0, -1].log_softmax(-1).tolist()
                for token, logprob in enumerate(line):
                    ranking = total + logprob - settings.diversity_penalty * chosen[token]
                    candidates.append((ranking, total + logprob, [*ids, token]))
            candidates.sort(key=lambda candidate: -candidate[0])
            going: list[tuple[float, list[int]]] = []
            rank = 0
            for _, total, ids in candidates:
                if ids[-1] in ends or length == settings.max_new_tokens:
                    name = tuple(ids[:-1] if ids[-1] in ends else ids)
                    if rank < size:
                        if any(name in of_earlier for of_earlier in results[:group]):
                            continue
                        results[group][name] = max(results[group].get(name, -1e9), total / length)
                        chosen.update(set(ids[-1:]) - set(ends))
                elif len(going) < size:
                    going.append((total, ids))
                rank += 1
            live[group] = going
            chosen.update(ids[-1] for _, ids in going)
    return results


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(4, 2, 0.7), (6, 3, 1.5), (3, 3, 0.2)])
def test_diverse_beams_are_those_of_a_plain_search(
    model: GPT | LSTM, prompts: list[list[int]], beams: int, groups: int, penalty: float
) -> None:
    settings = DecodingSettings(
        max_new_tokens=6, num_beams=beams, n=beams, num_beam_groups=groups, diversity_penalty=penalty, eos_ids=(3, 6, 12)
    )  # fmt: skip
    size = beams // groups
    for prompt, found in zip(prompts, exhaustive(model, prompts, settings), strict=True):
        expected: dict[tuple[int, ...], float] = {}
        for results in in_groups(model, prompt, settings):
            expected |= dict(sorted(results.items(), key=lambda pair: -pair[1])[:size])
        assert len(expected) == beams
        assert [tuple(h.ids) for h in found] == sorted(expected, key=lambda ids: -expected[ids])
        assert [h.score for h in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_diverse_beams_alone_and_in_company(model: GPT | LSTM, prompts: list[list[int]], early_stopping: bool) -> None:
    settings = dataclasses.replace(
        SETTINGS, num_beams=6, n=5, num_beam_groups=3, diversity_penalty=1.0, early_stopping=early_stopping
    )
    together = beam_search(model, prompts, settings)
    told: list[int] = []
    for some in (
        beam_search(model, prompts, settings, batch_size=13, watch=told.append),
        [beam_search(model, [p], settings)[0] for p in prompts],
    ):
        assert [[h.ids for h in best] for best in some] == [[h.ids for h in best] for best in together]
    assert told == sorted(told) and told[-1] == len(prompts)
    for best in together:
        assert len({tuple(h.ids) for h in best}) == 5
        assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)


def test_groups_differ_more_than_one_group_and_one_group_is_the_search_without(
    model: GPT | LSTM, prompts: list[list[int]]
) -> None:
    plain = dataclasses.replace(SETTINGS, eos_ids=(), max_new_tokens=6)
    ours = beam_search(model, prompts, plain)
    assert beam_search(model, prompts, dataclasses.replace(plain, diversity_penalty=2.0)) == ours
    apart = beam_search(model, prompts, dataclasses.replace(plain, num_beam_groups=4, diversity_penalty=100.0))
    for best, other in zip(ours, apart, strict=True):
        assert all(len({h.ids[at] for h in other}) == 4 for at in range(6)), (
            "such a penalty lets no token be taken twice"
        )
        assert sum(len({h.ids[at] for h in best}) for at in range(6)) < 24


def test_stopping_early_loses_nothing(model: GPT | LSTM, prompts: list[list[int]]) -> None:
    """The exact bound against a search that never stops: a beam that goes to the end because all must."""
    steps = []
    step = model.step
    for penalty in (-1.0, 0.0, 1.0, 1.5):
        for n in (1, 3):
            settings = dataclasses.replace(SETTINGS, n=n, length_penalty=penalty, max_new_tokens=25)
            expected = exhaustive(model, prompts, settings)
            model.step = lambda *a: steps.append(1) or step(*a)  # type: ignore[method-assign, func-returns-value]
            try:
                found = beam_search(model, prompts, settings)
            finally:
                del model.step
            assert [[h.ids for h in best] for best in found] == [[h.ids for h in best] for best in expected]
    assert len(steps) < 8 * 25, "no search stopped early: the test shows nothing"


def exhaustive(model: GPT | LSTM, prompts: list[list[int]], settings: DecodingSettings) -> list[list[Hypothesis]]:
    """The same search, run to the end: `done` says yes only when nothing is live."""
    from zhixing.decoding import beam

    kept = beam._Search.done
    beam._Search.done = lambda self, length, settings: not self.live  # type: ignore[method-assign]
    try:
        return beam_search(model, prompts, settings)
    finally:
        beam._Search.done = kept  # type: ignore[method-assign]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_beam_of_one_is_greedy(model: GPT | LSTM, prompts: list[list[int]], early_stopping: bool) -> None:
    for minimum in (0, 6):
        settings = dataclasses.replace(
            SETTINGS, num_beams=1, n=1, early_stopping=early_stopping, min_new_tokens=minimum, max_new_tokens=20
        )
        greedy: list[list[int]] = [[] for _ in prompts]
        reasons: list[str | None] = [None] * len(prompts)
        for tokens in generate_ids(model, prompts, settings):
            for token in tokens:
                reasons[token.row] = token.finish_reason
                if token.finish_reason != "stop":
                    greedy[token.row].append(token.id)
        found = beam_search(model, prompts, settings)
        assert [best.ids for (best,) in found] == greedy
        assert [best.finish_reason for (best,) in found] == reasons


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_batch_gives_what_each_prompt_gives_alone(
    model: GPT | LSTM, prompts: list[list[int]], early_stopping: bool, length_penalty: float
) -> None:
    settings = dataclasses.replace(SETTINGS, early_stopping=early_stopping, length_penalty=length_penalty)
    together = beam_search(model, prompts, settings)
    for some in (
        beam_search(model, prompts, settings, batch_size=9),
        [beam_search(model, [p], settings)[0] for p in prompts],
    ):
        for ours, theirs in zip(together, some, strict=True):
            assert [h.ids for h in ours] == [h.ids for h in theirs]
            assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-5)
            assert [h.finish_reason for h in ours] == [h.finish_reason for h in theirs]


def test_results_are_sorted_and_distinct_and_their_scores_the_models(
    model: GPT | LSTM, prompts: list[list[int]]
) -> None:
    lengths = set()
    for prompt, best in zip(prompts, beam_search(model, prompts, SETTINGS), strict=True):
        assert len(best) == 4
        assert len({tuple(h.ids) for h in best}) == 4
        assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
        for h in best:
            lengths.add(len(h.ids))
            ids = prompt + h.ids
            with torch.no_grad():
                logprobs = model.logits(model(torch.tensor([ids])))[0, len(prompt) - 1 :].log_softmax(-1)
            own = [float(line[i]) for line, i in zip(logprobs, h.ids, strict=False)]
            assert h.logprobs == pytest.approx(own, abs=1e-4)
            if h.finish_reason == "stop":
                end = float(logprobs[-1, list(SETTINGS.eos_ids or ())].max())
                assert h.score == pytest.approx((sum(own) + end) / (len(own) + 1), abs=1e-4)
            else:
                assert len(h.ids) == 12
                assert h.score == pytest.approx(sum(own) / 12, abs=1e-4)
            assert h.top is not None
            for top, line in zip(h.top, logprobs, strict=False):
                assert [i for i, _ in top] == line.topk(2).indices.tolist()
    assert len(lengths) > 1


def test_the_beam_is_no_worse_than_greedy_at_its_own_aim() -> None:
    """Not so for every model, but so for most: a search that finds less than greedy is broken."""
    better = 0
    for seed in range(10):
        model = make("gpt", 30, seed)
        settings = DecodingSettings(max_new_tokens=10, num_beams=8, length_penalty=0.0)
        beam = beam_search(model, [[3, 4]], settings)[0][0].score
        greedy = beam_search(model, [[3, 4]], dataclasses.replace(settings, num_beams=1))[0][0].score
        assert beam >= greedy - 1e-5
        better += beam > greedy + 1e-3
    assert better >= 5


def test_more_beams_than_tokens_and_no_end_at_all() -> None:
    model = make("gpt", 3)
    (best,) = beam_search(model, [[1]], DecodingSettings(max_new_tokens=1, num_beams=8, n=8))
    assert sorted(h.ids for h in best) == [[0], [1], [2]]  # there are no more
    (best,) = beam_search(model, [[1]], DecodingSettings(max_new_tokens=2, num_beams=8, n=8, eos_ids=(0,)))
    assert sorted(h.ids for h in best) == [[], [1], [1, 1], [1, 2], [2], [2, 1], [2, 2]]
    (best,) = beam_search(model, [[1]], DecodingSettings(max_new_tokens=2, num_beams=8, n=8, eos_ids=(0, 2)))
    assert sorted(h.ids for h in best) == [[], [1], [1, 1]]  # ends that differ in the end's id are one


def test_the_context_is_a_limit_in_beams_too() -> None:
    model = make("gpt", 30)
    settings = DecodingSettings(max_new_tokens=100, num_beams=3)
    short, full = beam_search(model, [[5] * 30, [5] * (CONTEXT - 1)], settings)
    assert (len(short[0].ids), len(full[0].ids)) == (10, 1)
    assert short[0].finish_reason == full[0].finish_reason == "length"
    with pytest.raises(InputError, match="context is 40") as caught:
        beam_search(model, [[5], [5] * CONTEXT], settings)
    assert "prompt 2 of 2" in str(caught.value)
    assert beam_search(model, [], settings) == []


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping", "no_repeat"),
    [(0.0, "never", 0), (0.7, "never", 0), (1.0, "never", 0), (0.0, True, 0), (0.7, True, 0), (1.0, True, 0), (1.0, "never", 1), (0.7, "never", 2)],
)  # fmt: skip
def test_beam_search_agrees_with_transformers(
    length_penalty: float, early_stopping: bool | str, no_repeat: int
) -> None:
    """A GPT-2 of random weights; ours runs on its logits by way of the same protocol. "never" is the exact search."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, bos_token_id=END, eos_token_id=END, pad_token_id=0,
        initializer_range=0.6,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    model = WithoutCache(theirs).eval()
    prompts = [[3, 4, 5], [7, 8], [9, 10, 11, 12], [21]]
    settings = DecodingSettings(
        max_new_tokens=14, num_beams=4, n=4, length_penalty=length_penalty, early_stopping=early_stopping is True,
        eos_ids=(END,), min_new_tokens=2, no_repeat_ngram_size=no_repeat,
    )  # fmt: skip
    ended = 0
    for prompt, best in zip(prompts, beam_search(model, prompts, settings), strict=True):
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=14,
            min_new_tokens=2, num_beams=4, num_return_sequences=4, length_penalty=length_penalty,
            early_stopping=early_stopping, do_sample=False, return_dict_in_generate=True, output_scores=True, no_repeat_ngram_size=no_repeat,
        )  # fmt: skip
        expected = []
        for row in out.sequences.tolist():
            ids = row[len(prompt) :]
            expected.append(ids[: ids.index(END)] if END in ids else ids)
        assert [h.ids for h in best] == expected
        assert [h.score for h in best] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)
        ended += sum(h.finish_reason == "stop" for h in best)
    assert ended > 2


class WholeSequences:
    """A state that simply remembers the ids."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    @property
    def lengths(self) -> torch.Tensor:
        return torch.tensor([len(row) for row in self.rows])

    def select(self, rows: torch.Tensor) -> WholeSequences:
        return WholeSequences([list(self.rows[i]) for i in rows.tolist()])

    def append(self, other: WholeSequences) -> WholeSequences:
        return WholeSequences(self.rows + other.rows)


class WithoutCache(torch.nn.Module):
    """A transformers model under our protocol, in the simplest way: each step reads the whole sequence again."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.settings = GPTSettings(inner.config.vocab_size, max_len=inner.config.n_positions)

    def head(self) -> torch.Tensor:
        return self.inner.lm_head.weight

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner.lm_head(hidden).float()

    def new_state(self, rows: int, max_len: int) -> WholeSequences:
        return WholeSequences([[] for _ in range(rows)])

    def step(self, ids: torch.Tensor, n_new: torch.Tensor, state: WholeSequences) -> torch.Tensor:
        hidden = torch.zeros(*ids.shape, self.inner.config.n_embd)
        for place, (row, new, count) in enumerate(zip(state.rows, ids.tolist(), n_new.tolist(), strict=True)):
            row += new[:count]
            if count:
                hidden[place, :count] = self.inner.transformer(torch.tensor([row])).last_hidden_state[0, -count:]
        return hidden
