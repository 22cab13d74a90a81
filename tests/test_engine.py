"""The engine: what a request gets in company is what it gets alone, and nobody's trouble is another's.

The models are tiny but trained, on the text that ships with the package. What must happen between two given steps is
arranged in the engine's own thread, by the question whether a sample has ended, so no test waits for luck.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zhixing.decoding.beam import beam_search
from zhixing.decoding.engine import CELL, TURNS, Batch, DrainingError, Engine, EngineLimits, Request
from zhixing.decoding.fair_queue import FairQueue, QueueFullError
from zhixing.decoding.generate import CHUNK, Token, generate_ids
from zhixing.decoding.prefix_cache import PrefixCache
from zhixing.decoding.settings import DecodingSettings
from zhixing.decoding.ticket import RequestCancelledError, RequestFailedError, Ticket, TimedOutError
from zhixing.errors import InputError
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.gpt_packed import PackedGPT
from zhixing.models.layers import DecodingState
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.models.lstm_translator import LSTMTranslator, LSTMTranslatorSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings

PAD, EOS, FIRST, VOCAB = 0, 1, 2, 64  # characters from 2 on
CONTEXT = 256
GREEDY = DecodingSettings(max_new_tokens=12, eos_ids=(EOS,))


@pytest.fixture(scope="module")
def ids(english_text: str) -> list[int]:
    """The shipped text as ids: its letters in the order in which they first come, a line's end ends a text."""
    text = english_text.lower()[:60_000]
    known: dict[str, int] = {"\n": EOS}
    for letter in text:
        if letter not in known and len(known) < VOCAB - FIRST:
            known[letter] = FIRST + len(known)
    return [known.get(letter, FIRST) for letter in text]


def trained(model: Any, loss: Callable[[random.Random], torch.Tensor], steps: int) -> Any:
    chance = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(chance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def language_model(model: Any, ids: list[int], steps: int = 60) -> Any:
    def loss(chance: random.Random) -> torch.Tensor:
        starts = [chance.randrange(len(ids) - 97) for _ in range(8)]
        window = torch.tensor([ids[start : start + 97] for start in starts])
        return F.cross_entropy(model.logits(model(window[:, :-1])).flatten(0, 1), window[:, 1:].flatten())

    return trained(model, loss, steps)


def translator(model: Any, ids: list[int], steps: int = 60) -> Any:
    """It learns to write what it reads with every other letter twice, some hundred characters at most."""

    def loss(chance: random.Random) -> torch.Tensor:
        sources = [source_of(ids, chance) for _ in range(16)]
        targets = [[i for i in source[:-1] for _ in range(1 + i % 2)] + [EOS] for source in sources]
        lengths = torch.tensor([len(source) for source in sources])
        read = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sources], batch_first=True)
        written = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(t) for t in targets], batch_first=True, padding_value=-100
        )
        fed = torch.cat([torch.full((16, 1), PAD), written[:, :-1].clamp(min=0)], dim=1)
        return F.cross_entropy(model.logits(model(fed, read, lengths)).flatten(0, 1), written.flatten())

    return trained(model, loss, steps)


def source_of(ids: list[int], chance: random.Random) -> list[int]:
    start, count = chance.randrange(len(ids) - 30), chance.randint(3, 14)
    return [i for i in ids[start : start + count] if i != EOS] + [EOS]


def gpt(layout: str) -> GPT:
    settings = GPTSettings(
        VOCAB, layout, d_model=48, n_layers=2, n_heads=4, n_kv_heads=4 if layout == "gpt2" else 2, d_ff=96,
        max_len=CONTEXT,
    )  # fmt: skip
    return GPT(settings, torch.Generator().manual_seed(0))


FAMILIES: dict[str, Callable[[list[int]], Any]] = {
    "gpt2": lambda ids: language_model(gpt("gpt2"), ids).for_decoding(),
    "qwen3": lambda ids: language_model(gpt("qwen3"), ids).for_decoding(),
    "qwen3 without loops": lambda ids: language_model(gpt("qwen3"), ids),
    "lstm": lambda ids: language_model(LSTM(LSTMSettings(VOCAB, d_model=48, max_len=CONTEXT), seeded()), ids),
    "marian": lambda ids: translator(
        Marian(MarianSettings(VOCAB, d_model=48, n_encoder_layers=1, n_layers=2, n_heads=4, d_ff=96, max_len=64,
                              dropout=0.0), seeded()), ids
    ),
    "t5": lambda ids: translator(
        T5(T5Settings(VOCAB, d_model=48, d_kv=12, n_heads=4, d_ff=64, n_encoder_layers=1, n_layers=2, max_len=64,
                      dropout=0.0), seeded()), ids
    ),
    "lstm_translator": lambda ids: translator(
        LSTMTranslator(LSTMTranslatorSettings(VOCAB, d_model=48, n_encoder_layers=1, n_layers=1, max_len=64,
                                              dropout=0.0), seeded()), ids
    ),
}  # fmt: skip


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


_made: dict[str, Any] = {}


def made(family: str, ids: list[int]) -> Any:
    if family not in _made:
        _made[family] = FAMILIES[family](ids)
    return _made[family]


@pytest.fixture(scope="module")
def model(ids: list[int]) -> PackedGPT:
    return made("qwen3", ids)  # type: ignore[no-any-return]


@pytest.fixture
def engine(model: PackedGPT) -> Iterator[Engine[DecodingState]]:
    with Engine(model) as running:
        yield running


def alone(model: Any, request: Request) -> list[list[Token]]:
    """What `generate_ids` writes for it and nobody else."""
    rows: list[list[Token]] = [[] for _ in range(request.settings.n)]
    for tokens in generate_ids(model, [request.ids], request.settings):
        for token in tokens:
            rows[token.row].append(token)
    return rows


def ids_of(rows: Iterable[Sequence[Token]]) -> list[list[int]]:
    return [[token.id for token in row] for row in rows]


# what it gets in company is what it gets alone


def requests_of(family: str, ids: list[int], chance: random.Random, count: int) -> list[Request]:
    """All kinds: short and long, greedy and sampled, several samples, prompts that begin alike, of four keys."""
    reads = family in ("marian", "t5", "lstm_translator")
    beginnings = [ids[at : at + 150] for at in (1000, 9000)]
    found = []
    for number in range(count):
        if reads:
            prompt = source_of(ids, chance)
        elif number % 4 == 0:
            prompt = chance.choice(beginnings)[: chance.randint(20, 150)] + ids[number : number + 5]
        else:
            start = chance.randrange(20_000)
            prompt = ids[start : start + chance.choice([1, 2, 3, 10, 30, CHUNK, CHUNK + 1, 100])]
        sampled: dict[str, Any] = {}
        if number % 2:
            sampled = {"temperature": chance.choice([0.7, 1.0]), "seed": number, "n": chance.choice([1, 1, 1, 3])}
            sampled |= chance.choice([{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.02, "repetition_penalty": 1.2}])
        settings = DecodingSettings(
            max_new_tokens=chance.choice([1, 4, 10, 20]), eos_ids=(EOS,), logprobs=chance.choice([None, 0, 3]),
            min_new_tokens=chance.choice([0, 1]), **sampled,
        )  # fmt: skip
        found.append(Request(prompt, settings, key=chance.choice([None, "a", "b", "c"])))
    return found


OFTEN = ("qwen3", "lstm", "marian")  # the others in make test-all: 64 requests of each take half a minute
SLOWLY = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("family", SLOWLY)
def test_a_request_gets_in_company_what_it_gets_alone(family: str, ids: list[int]) -> None:
    """64 at once, of which few fit; among them 20 that leave early. A GPT's log-probabilities are the same to the bit."""
    model, chance = made(family, ids), random.Random(family)
    requests = requests_of(family, ids, chance, 64)
    wanted = [alone(model, request) for request in requests]
    tickets: list[Ticket] = []
    with Engine(model, EngineLimits(most_rows=12, most_tokens=12 * CONTEXT, most_waiting=100)) as engine:
        for number, request in enumerate(requests):
            tickets.append(engine.submit(request))
            if number % 3 == 0:
                least = chance.randint(1, 8)
                engine.submit(dataclasses.replace(request, ended=lambda _, __, e=engine, least=least: leaves(least)))
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.01)
        results = [ticket.result(60) for ticket in tickets]
        assert engine.metrics().reading == 0
    for request, result, expected in zip(requests, results, wanted, strict=True):
        assert ids_of(result) == ids_of(expected), request
        assert [[t.finish_reason for t in row] for row in result] == [
            [t.finish_reason for t in row] for row in expected
        ]
        for token, one in zip(chain(*result), chain(*expected), strict=True):
            if isinstance(model, PackedGPT):
                assert token == one
            else:
                assert (token.top is None) == (one.top is None)
                assert token.logprob == pytest.approx(one.logprob, abs=1e-4)
    assert max(len(set(row)) for row in ids_of(chain(*wanted))) > 8, "a model that says one thing proves nothing"


def leaves(least: int, _seen: list[int] = []) -> bool:  # noqa: B006
    """True now and then, without regard to whose token it is."""
    _seen.append(1)
    return len(_seen) % (least + 1) == 0


def test_two_engines_at_once(ids: list[int]) -> None:
    models = [made("qwen3", ids), made("lstm", ids)]
    requests = requests_of("qwen3", ids, random.Random(5), 12)
    wanted = [[ids_of(alone(model, request)) for request in requests] for model in models]
    with Engine(models[0]) as first, Engine(models[1]) as second:
        tickets = [[engine.submit(request) for request in requests] for engine in (first, second)]
        assert [[ids_of(ticket.result(60)) for ticket in some] for some in tickets] == wanted
    with TURNS:  # nobody has kept it
        pass


# steps


def counting(
    log: list[str], name: str, also: Callable[[int], object] = lambda count: None
) -> Callable[[int, int], bool]:
    """Write down each token of a request, and do something at each."""

    def ended(sample: int, token: int) -> bool:
        log.append(name)
        also(log.count(name))
        return False

    return ended


def long_request(
    ids: list[int], ended: Callable[[int, int], bool] | None = None, count: int = 60, **more: Any
) -> Request:
    return Request(ids[:8], DecodingSettings(max_new_tokens=count, eos_ids=()), ended=ended, **more)


def test_a_long_prompt_stalls_nobody(engine: Engine[Any], ids: list[int]) -> None:
    """Three chunks of it lie between two tokens each of the other; all of a short one is read in one turn."""
    log: list[str] = []
    tickets: list[Ticket] = []

    def more(count: int) -> None:
        if count == 5:
            settings = DecodingSettings(max_new_tokens=3, eos_ids=())
            tickets.append(engine.submit(Request(ids[: 3 * CHUNK - 4], settings, ended=counting(log, "long"))))
        if count == 20:
            tickets.append(engine.submit(Request(ids[:9], GREEDY, ended=counting(log, "short"))))

    engine.submit(long_request(ids, counting(log, "first", more))).result(30)
    assert [len(ticket.result(30)[0]) for ticket in tickets][:1] == [3]
    assert log[: log.index("long")].count("first") == 5 + 3
    assert log[: log.index("short")].count("first") == 20 + 1


def test_who_is_cancelled_writes_no_further_token(engine: Engine[Any], ids: list[int]) -> None:
    log: list[str] = []
    leaving: list[Ticket] = []

    def more(count: int) -> None:
        if count == 3:
            leaving.append(engine.submit(long_request(ids, counting(log, "leaving"))))
        if log.count("leaving") == 6:
            leaving[0].cancel()

    engine.submit(long_request(ids, counting(log, "first", more))).result(30)
    assert log.count("leaving") in (6, 7)  # it may stand before or behind the other in the step
    with pytest.raises(RequestCancelledError):
        leaving[0].result(30)
    metrics = engine.metrics()
    assert (metrics.aborted, metrics.finished, metrics.rows, metrics.reserved_tokens) == (1, 1, 0, 0)


def test_a_sample_may_end_by_its_text(engine: Engine[Any], model: PackedGPT, ids: list[int]) -> None:
    settings = DecodingSettings(max_new_tokens=20, temperature=1.0, n=3, seed=4, eos_ids=())
    whole = ids_of(alone(model, Request(ids[:20], settings)))
    stop = whole[1][4]
    rows = engine.submit(Request(ids[:20], settings, ended=lambda sample, token: sample == 1 and token == stop)).result(
        30
    )
    assert ids_of(rows) == [whole[0], whole[1][: whole[1].index(stop) + 1], whole[2]]
    assert [row[-1].finish_reason for row in rows] == ["length", "stop", "length"]


# who comes in


def test_keys_take_turns(model: PackedGPT, ids: list[int]) -> None:
    order: list[str] = []
    with Engine(model, EngineLimits(most_rows=1)) as engine:

        def crowd(count: int) -> None:
            if count == 1:
                for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
                    request = Request(
                        ids[:5], GREEDY, key=name[0], ended=lambda _, __, name=name: bool(order.append(name))
                    )
                    engine.submit(request)

        engine.submit(long_request(ids, counting([], "first", crowd), 5)).result(30)
        assert engine.drain(30)
    assert list(dict.fromkeys(order)) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_full_queue_says_so_at_once(model: PackedGPT, ids: list[int]) -> None:
    said: list[Exception] = []
    with Engine(model, EngineLimits(most_rows=1, most_waiting=3, most_waiting_of_key=2)) as engine:

        def crowd(count: int) -> None:
            for key in "aaabb" if count == 1 else "":
                try:
                    engine.submit(Request(ids[:5], GREEDY, key=key))
                except QueueFullError as error:
                    said.append(error)

        engine.submit(long_request(ids, counting([], "first", crowd), 5)).result(30)
        assert engine.drain(30)
        assert [str(error) for error in said] == [
            "2 requests of this key are waiting already", "3 requests in all are waiting already",
        ]  # fmt: skip
        metrics = engine.metrics()
        assert (metrics.accepted, metrics.rejected, metrics.finished) == (4, 2, 4)


def test_room_is_reserved(model: PackedGPT, ids: list[int]) -> None:
    """At every token of everyone: no more rows than there may be, and no more tokens; all get their turn."""
    limits = EngineLimits(most_rows=5, most_tokens=4 * CELL)
    seen: list[tuple[int, int]] = []
    held: list[int] = []
    with Engine(model, limits) as engine:

        def ended(sample: int, token: int) -> bool:
            metrics = engine.metrics()
            seen.append((metrics.rows, metrics.reserved_tokens))
            state = engine._decoder._state  # type: ignore[union-attr]
            held.append(len(state.lengths) * state.capacity)  # type: ignore[union-attr]
            return False

        def ask(length: int, count: int, n: int = 1) -> Ticket:
            settings = DecodingSettings(max_new_tokens=count, eos_ids=(), temperature=1.0, n=n)
            return engine.submit(Request(ids[:length], settings, ended=ended))

        sizes = [(10, 20, 1), (150, 80, 1), (10, 20, 4), (100, 20, 2), (5, 5, 1), (5, 9, 1), (8, 30, 3)] * 2
        tickets = [ask(*size) for size in sizes]
        assert [[len(row) for row in ticket.result(30)] for ticket in tickets] == [[count] * n for _, count, n in sizes]
    assert max(rows for rows, _ in seen) == 4
    assert max(tokens for _, tokens in seen) <= limits.most_tokens
    assert max(held) <= limits.most_tokens


def test_what_can_never_be_done_is_refused(engine: Engine[Any], model: PackedGPT, ids: list[int]) -> None:
    small = Engine(model, EngineLimits(most_rows=2, most_tokens=2 * CELL))
    for where, request, why in (
        (engine, Request([], GREEDY), "no token"),
        (engine, Request([VOCAB], GREEDY), f"the id {VOCAB}"),
        (engine, Request(ids[:CONTEXT], GREEDY), f"context is {CONTEXT}"),
        (engine, Request(ids[:5], DecodingSettings(num_beams=2)), "Engine.search"),
        (engine, Request(ids[:5], DecodingSettings(temperature=-1)), "temperature"),
        (small, Request(ids[:5], DecodingSettings(temperature=1.0, n=3)), "n = 3"),
        (small, Request(ids[:90], DecodingSettings(max_new_tokens=90)), "180 tokens"),
    ):
        with pytest.raises(InputError, match=why):
            where.submit(request)
    with pytest.raises(InputError, match="3 beams may come to 105 tokens"):
        small.search(ids[:90], DecodingSettings(max_new_tokens=15, num_beams=3))
    assert engine.metrics().accepted == small.metrics().accepted == 0
    small.close()
    with pytest.raises(InputError, match="most_rows"):
        Engine(model, EngineLimits(most_rows=0))
    with Engine[Any](None) as without, pytest.raises(InputError, match="no language model"):
        without.submit(Request([5], GREEDY))


# prompts that begin alike


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "lstm", SLOWLY[2]])
def test_a_known_beginning_is_not_read_again(family: str, ids: list[int]) -> None:
    """Of a key's own prompts only; and what is written is the same."""
    model = made(family, ids)
    settings = DecodingSettings(max_new_tokens=20, eos_ids=(), logprobs=2, temperature=0.8)
    first, second = ids[: 2 * CHUNK + 20], ids[: 2 * CHUNK] + ids[500:530]
    with Engine(model) as engine:

        def reused(prompt: list[int], key: str | None) -> int:
            ticket = engine.submit(Request(prompt, settings, key=key))
            rows, expected = ticket.result(30), alone(model, Request(prompt, settings))
            assert ids_of(rows) == ids_of(expected)
            if isinstance(model, PackedGPT):
                assert rows == expected, "not the same bits"
            return ticket.reused_tokens

        assert reused(first, "a") == 0
        assert reused(first, "a") == 2 * CHUNK
        assert reused(second, "a") == 2 * CHUNK
        assert reused(first[: 2 * CHUNK], "a") == CHUNK  # its last token must be read
        assert reused(ids[1:100], "a") == 0
        assert [reused(first, key) for key in ("b", None, None)] == [0, 0, 0]
        assert reused(first, "b") == 2 * CHUNK
        metrics = engine.metrics()
        assert metrics.tokens_reused == 7 * CHUNK
        assert metrics.prefix_tokens == (2 + 1 + 2) * CHUNK


def test_prefixes_are_bounded_and_the_oldest_goes_first() -> None:
    cache = PrefixCache(2, 6)
    cache.add("k", [1, 2, 3, 4, 5], ["12", "34"])
    cache.add("k", [1, 2, 7, 8], ["12 again", "78"])
    assert cache.tokens == 6
    assert cache.longest("k", [1, 2, 3, 4, 9]) == ["12", "34"]
    assert cache.longest("k", [1, 2, 3, 4]) == ["12"]  # the last token stays
    assert cache.longest("other", [1, 2, 3, 4, 9]) == []
    cache.add("k", [9, 9, 0], ["99"])  # 78 was not used for longest
    assert cache.longest("k", [1, 2, 7, 8, 9]) == ["12"]
    assert cache.longest("k", [1, 2, 3, 4, 9]) == ["12", "34"]
    cache.add("k", [6, 6, 6, 6, 0], ["66", "6666"])
    assert cache.tokens == 6
    assert cache.longest("k", [6, 6, 6, 6, 0]) == ["66", "6666"]
    assert cache.longest("k", [1, 2, 3, 4, 9]) == ["12"]  # a beginning never goes before what hangs on it
    cache.add("k", [1, 2, 3, 4, 5, 6, 0], ["12", None, "56"])  # its middle has gone meanwhile
    assert cache.longest("k", [1, 2, 3, 4, 5, 6, 0]) == ["12"]
    assert PrefixCache(2, 0).longest("k", [1, 2, 3]) == []


# time


def slow(sample: int, token: int) -> bool:
    time.sleep(0.005)
    return False


def test_deadlines(model: PackedGPT, ids: list[int]) -> None:
    with Engine(model, EngineLimits(most_rows=1, total_seconds=20)) as engine:
        running = engine.submit(long_request(ids, slow, 200))
        late = engine.submit(Request(ids[:5], GREEDY, queue_seconds=0.02))
        with pytest.raises(TimedOutError, match=r"0.02 s that it may take in the queue") as caught:
            late.result(10)
        assert caught.value.waiting
        job = engine.submit_job(Batch(lambda items, breathe: list(items)), 1, queue_seconds=20)
        assert job.result(10) == 1
        running.cancel()
        cut = engine.submit(long_request(ids, slow, 200, total_seconds=0.1))
        tokens = []
        with pytest.raises(TimedOutError, match=r"0.1 s that it may take in all") as caught:
            tokens.extend(cut)
        assert not caught.value.waiting
        metrics = engine.metrics()
        assert (metrics.timed_out, metrics.aborted, metrics.rows) == (2, 1, 0)


# trouble


def test_a_bad_request_fails_alone(ids: list[int]) -> None:
    """A token whose embedding is no number, and a question that raises, beside requests that go on."""
    poison = VOCAB - 1
    settings = GPTSettings(
        VOCAB, "llama", d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=48, max_len=64, tie_embeddings=False
    )
    model = GPT(settings, seeded()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=seeded())
        assert model.lm_head is not None
        model.lm_head.weight[poison] = 0.0
        model.embedding.weight[poison] = float("nan")
    fast = model.for_decoding()
    good = [Request(ids[at : at + 20], dataclasses.replace(GREEDY, max_new_tokens=40)) for at in (0, 50)]
    wanted = [ids_of(alone(fast, request)) for request in good]
    assert all(poison not in rows[0] for rows in wanted)

    def raises(sample: int, token: int) -> bool:
        raise KeyError("what is this")

    with Engine(fast) as engine:
        bad = [Request([5, poison, 6], GREEDY), Request([5], GREEDY, ended=raises), Request([poison], GREEDY)]
        tickets = [engine.submit(request) for pair in zip([*good, good[0]], bad, strict=True) for request in pair]
        assert [ids_of(ticket.result(30)) for ticket in tickets[::2]] == [*wanted, wanted[0]]
        for ticket in (tickets[1], tickets[5]):
            with pytest.raises(RequestFailedError, match="no numbers for this prompt"):
                ticket.result(30)
        with pytest.raises(RequestFailedError, match="what is this") as caught:
            tickets[3].result(30)
        assert isinstance(caught.value.__cause__, KeyError)
        metrics = engine.metrics()
        assert (metrics.failed, metrics.finished, metrics.steps_failed, metrics.rows) == (3, 3, 0, 0)


def test_a_failing_step_ends_those_that_write_and_the_engine_goes_on(ids: list[int]) -> None:
    """A learned position that is no number: who comes to it makes the step fail."""
    source = made("gpt2", ids).model
    model = gpt("gpt2")
    model.load_state_dict(source.state_dict())
    model.eval()
    good = Request(ids[:10], DecodingSettings(max_new_tokens=10, temperature=1.0, eos_ids=()))
    fast = model.for_decoding()
    wanted = ids_of(alone(fast, good))
    with torch.no_grad():
        model.positions.weight[60] = float("nan")  # type: ignore[union-attr]
    with Engine(fast) as engine:
        log: list[str] = []
        beside: list[Ticket] = []

        def more(count: int) -> None:
            if count == 35:
                beside.append(engine.submit(Request(ids[:10], dataclasses.replace(good.settings, max_new_tokens=45))))

        settings = DecodingSettings(max_new_tokens=100, temperature=1.0, eos_ids=())
        bad = engine.submit(Request(ids[:20], settings, ended=counting(log, "bad", more)))
        for ticket in (bad, *beside):
            with pytest.raises(
                RequestFailedError, match="a step of the model failed: InputError: the model gives scores"
            ):
                ticket.result(30)
        assert beside
        with pytest.raises(RequestFailedError):
            beside[0].result(30)
        assert ids_of(engine.submit(good).result(30)) == wanted
        metrics = engine.metrics()
        assert (metrics.failed, metrics.steps_failed, metrics.finished, metrics.rows) == (2, 1, 1, 0)


def test_a_listener_that_fails_is_a_reader_that_left(
    engine: Engine[Any], ids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ticket = engine.submit(long_request(ids, slow, 200))

    def listener() -> None:
        raise RuntimeError("its event loop is closed")

    with contextlib.suppress(RuntimeError):  # it is called at once if there is a token already
        ticket.listen(listener)
    with pytest.raises(RequestCancelledError):
        ticket.result(30)
    assert ids_of(engine.submit(Request(ids[:5], GREEDY)).result(30))
    assert engine.metrics().aborted == 1
    assert "a listener failed" in caplog.text and "its event loop is closed" in caplog.text


def test_readers_that_leave_at_random_leave_nothing_behind(model: PackedGPT, ids: list[int]) -> None:
    chance = random.Random(1)
    probe = Request(ids[:40], dataclasses.replace(GREEDY, max_new_tokens=30), key="k")
    wanted = ids_of(alone(model, probe))
    with Engine(model, EngineLimits(most_rows=8, most_waiting=400)) as engine:
        tickets = []
        for number in range(300):
            prompt = ids[number : number + chance.choice([1, 10, 70, 140])]
            settings = DecodingSettings(max_new_tokens=40, temperature=1.0, n=chance.choice([1, 2]), eos_ids=())
            tickets.append(engine.submit(Request(prompt, settings, key=chance.choice("abcd"))))
            if number % 3 == 0:
                chance.choice(tickets).cancel()
        chance.shuffle(tickets)
        for ticket in tickets:
            if chance.random() < 0.05:
                for number, _ in enumerate(skipping(ticket)):
                    if number == 2:
                        break
            ticket.cancel()
        assert ids_of(engine.submit(probe).result(30)) == wanted
        assert engine.drain(30)
        m = engine.metrics()
        assert (m.waiting, m.reading, m.writing, m.rows, m.reserved_tokens) == (0, 0, 0, 0, 0)
        assert m.accepted == 301 == m.finished + m.aborted + m.timed_out + m.failed
        assert m.timed_out == m.failed == 0


def skipping(ticket: Ticket) -> Iterator[Token]:
    try:
        yield from ticket
    except RequestCancelledError:
        return


def test_in_an_event_loop(model: PackedGPT, engine: Engine[Any], ids: list[int]) -> None:
    requests = requests_of("qwen3", ids, random.Random(9), 6)
    wanted = [ids_of(alone(model, request)) for request in requests]

    async def read(request: Request) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in range(request.settings.n)]
        async for token in engine.submit(request):
            rows[token.row].append(token.id)
        return rows

    async def leave() -> int:
        count = 0
        reader = engine.submit(long_request(ids, slow, 200)).__aiter__()
        async for _ in reader:
            count += 1
            if count == 3:
                break
        await reader.aclose()  # type: ignore[attr-defined]
        return count

    async def everything() -> list[Any]:
        return await asyncio.gather(*(read(request) for request in requests), leave())

    *rows, count = asyncio.run(everything())
    assert rows == wanted and count == 3
    assert engine.drain(30)
    assert engine.metrics().aborted == 1


def test_draining_ends_what_was_accepted(model: PackedGPT, ids: list[int]) -> None:
    engine = Engine(model, EngineLimits(most_rows=2))
    tickets = [engine.submit(long_request(ids, count=20)) for _ in range(7)]
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(engine.drain(30)))
    thread.start()
    while not engine._draining:
        time.sleep(0.001)
    with pytest.raises(DrainingError):
        engine.submit(long_request(ids))
    with pytest.raises(DrainingError):
        engine.submit_job(Batch(lambda items, breathe: list(items)), 1)
    thread.join(30)
    assert done == [True] and [len(ticket.result(1)[0]) for ticket in tickets] == [20] * 7

    hurried = Engine(model)
    ticket = hurried.submit(long_request(ids, slow, 240))
    reader = iter(ticket)
    assert next(reader).id >= 0
    assert not hurried.drain(0.01)
    with pytest.raises(RequestCancelledError):
        ticket.result(1)
    hurried.close()  # again does no harm


# jobs


def test_jobs_are_batched_by_group_and_fail_alone(engine: Engine[Any], ids: list[int]) -> None:
    runs: list[list[int]] = []

    def halve(items: Sequence[int], breathe: Callable[[], None]) -> list[float | Exception]:
        runs.append(list(items))
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [ZeroDivisionError() if item == 0 else 1 / item for item in items]

    batch, futures = Batch(halve, most=3), []

    def crowd(count: int) -> None:
        if count == 2:
            for number, item in enumerate([1, 2, 4, 5, 0, -1]):
                futures.append(engine.submit_job(batch, item, group=number >= 4, key="ab"[number % 2]))
            futures[3].cancel()

    engine.submit(long_request(ids, counting([], "first", crowd), 12)).result(30)
    assert [future.result(10) for future in futures[:3]] == [1, 0.5, 0.25]
    assert futures[3].cancelled()
    assert isinstance(futures[4].exception(10), ZeroDivisionError)
    assert isinstance(futures[5].exception(10), ValueError)
    assert runs == [[1, 2, 4], [-1, 0], [-1], [0]]  # b's turn
    assert (engine.metrics().jobs_done, engine.metrics().jobs_failed) == (3, 2)


def test_writing_goes_on_while_a_job_breathes(engine: Engine[Any], model: PackedGPT, ids: list[int]) -> None:
    log: list[str] = []
    seen: list[int] = []

    def run(items: Sequence[int], breathe: Callable[[], None]) -> list[int]:
        for _ in range(5):
            breathe()
            seen.append(len(log))
        return list(items)

    futures: list[Any] = []

    def more(count: int) -> None:
        if count == 4:
            futures.append(engine.submit_job(Batch(run), 1))
        if count == 20:
            futures.append(engine.search(ids[:30], beams))

    beams = DecodingSettings(num_beams=3, n=2, max_new_tokens=15, eos_ids=(EOS,))
    request = long_request(ids, counting(log, "first", more))
    rows = engine.submit(request).result(30)
    assert seen == [5, 6, 7, 8, 9]
    assert ids_of(rows) == ids_of(alone(model, request))
    found, wanted = futures[1].result(30), beam_search(model, [ids[:30]], beams)[0]
    assert [h.ids for h in found] == [h.ids for h in wanted]


def test_a_job_ends_when_nobody_waits_for_it(engine: Engine[Any], ids: list[int]) -> None:
    """Two jobs in one run: it goes on for the second when the first was left, and no further when both were."""
    breaths: list[int] = []
    futures: list[Any] = []

    def run(items: Sequence[int], breathe: Callable[[], None]) -> list[int]:
        for count in range(1000):
            if count in (3, 6):
                assert not futures[count // 6].cancel(), "it has begun"
            breaths.append(count)
            breathe()
        return list(items)

    batch = Batch(run)

    def crowd(count: int) -> None:
        if count == 2:
            futures.extend(engine.submit_job(batch, item) for item in (1, 2))

    engine.submit(long_request(ids, counting([], "first", crowd), 5)).result(30)
    for future in futures:
        with pytest.raises(RequestCancelledError):
            future.result(30)
    assert breaths == list(range(7))
    assert ids_of(engine.submit(Request(ids[:5], GREEDY)).result(30)), "the engine goes on"
    late = engine.submit_job(
        Batch(lambda items, breathe: [breathe() or slow(0, 0) for _ in range(1000)]), 1, total_seconds=0.05
    )
    with pytest.raises(TimedOutError):
        late.result(30)


def test_an_engine_that_closes_waits_for_no_job(model: PackedGPT, ids: list[int]) -> None:
    engine, begun = Engine(model), threading.Event()

    def run(items: Sequence[int], breathe: Callable[[], None]) -> list[int]:
        while True:
            begun.set()
            breathe()

    future = engine.submit_job(Batch(run), 1)
    assert begun.wait(30)
    engine.close()
    with pytest.raises(RequestCancelledError, match="closed"):
        future.result(1)


# what it is made of


def test_the_queue_is_fair_and_bounded() -> None:
    queue: FairQueue[str] = FairQueue(7, 4)
    for item in ("a1", "a2", "a3", "b1", "b2", "c1", "a4"):
        queue.push(item[0], item)
    with pytest.raises(QueueFullError, match="7 requests in all"):
        queue.push("d", "d1")
    assert queue.remove(lambda item: item in ("b1", "c1")) == ["b1", "c1"]
    with pytest.raises(QueueFullError, match="4 requests of this key"):
        queue.push("a", "a5")
    assert sorted(queue) == ["a1", "a2", "a3", "a4", "b2"] and len(queue) == 5
    assert queue.head() == "a1"
    assert queue.pop_alike(lambda x, y: y != "a3", 10) == ["a1", "b2", "a2"]
    assert [queue.pop(), queue.pop()] == ["a3", "a4"]
    assert queue.head() is None and len(queue) == 0


def test_rows_come_and_go_in_place() -> None:
    """The same as copying: random joins and leaves, each row's keys, values and length its own."""
    from zhixing.decoding.protocol import leave

    chance = random.Random(2)

    def row(mark: float, length: int, capacity: int) -> DecodingState:
        keys = torch.zeros(2, 1, 3, capacity + 1, 4)
        keys[:, :, :, :length] = mark
        return DecodingState(keys, keys * 2, torch.tensor([length]))

    state, rows = row(1.0, 3, 5), [(1.0, 3)]
    for mark in range(2, 60):
        if chance.random() < 0.6 or len(rows) == 1:
            length = chance.randint(1, 9)
            state = state.append(row(float(mark), length, chance.randint(length, 12)))
            rows.append((float(mark), length))
        else:
            gone = chance.sample(range(len(rows)), chance.randint(1, len(rows) - 1))
            state, places = leave(state, gone)
            assert sorted(places) == [place for place in range(len(rows)) if place not in gone]
            rows = [rows[place] for place in places]
        if chance.random() < 0.2:
            state = state.fit(9)
        assert state.lengths.tolist() == [length for _, length in rows]
        cache = state.cache(1)
        assert len(cache.keys) == len(rows)
        for place, (value, length) in enumerate(rows):
            assert (cache.keys[place, :, :length] == value).all()
            assert (cache.values[place, :, :length] == 2 * value).all()
            assert (cache.keys[place, :, length:] == 0).all(), "what another row left"
