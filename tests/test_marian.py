"""Marian against transformers, step by step against all at once, alone against in company, beams that share a memory."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from zhixing.decoding.beam import beam_search
from zhixing.decoding.generate import generate_ids
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.interchange.marian_layout import marian_config, marian_from_layout, marian_settings, marian_to_layout
from zhixing.models.encoder_decoder_state import SPARE
from zhixing.models.marian import Marian, MarianSettings, sinusoids

EOS, PAD = 1, 0


def make(seed: int = 0, **settings: Any) -> Marian:
    """A small model whose next token depends on both sides."""
    sizes = {"vocab_size": 40, "d_model": 32, "n_encoder_layers": 2, "n_layers": 2, "n_heads": 4, "d_ff": 48}
    model = Marian(MarianSettings(**{**sizes, "max_len": 48, "start_id": PAD, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        model.logits_bias.normal_(0, 0.5, generator=generator)
    return model.eval()


def texts(count: int, size: int = 40, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [[*(chance.randrange(2, size) for _ in range(chance.randrange(1, 14))), EOS] for _ in range(count)]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return ids, torch.tensor([len(row) for row in rows])


def theirs(model: Marian) -> Any:
    """The same model in transformers, by config and tensors."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MarianConfig(**marian_config(model.settings, eos_id=EOS, pad_id=PAD))
    made = transformers.MarianMTModel(config).eval()
    missing, unexpected = made.load_state_dict(marian_to_layout(model.state_dict(), model.settings), strict=False)
    made.tie_weights()
    assert not unexpected
    assert all(name.endswith(("embed_positions.weight", "embed_tokens.weight", "lm_head.weight")) for name in missing)
    return made


SIDES = [{}, {"source_vocab_size": 23, "activation": "relu", "scale_embedding": False, "n_layers": 1}]


@pytest.mark.parametrize("settings", SIDES)
def test_logits_are_those_of_transformers(settings: dict[str, Any]) -> None:
    model = make(**settings)
    sources, lengths = padded(texts(5, settings.get("source_vocab_size", 40)))
    ids = torch.tensor([[PAD, *row[:6]] for row in texts(5, seed=2) if len(row) > 6][:5])
    sources, lengths = sources[: len(ids)], lengths[: len(ids)]
    mask = torch.arange(sources.shape[1]) < lengths[:, None]
    with torch.no_grad():
        ours = model.logits(model(ids, sources, lengths))
        other = theirs(model)(input_ids=sources, attention_mask=mask, decoder_input_ids=ids).logits
    assert len(ids) >= 2
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SIDES)
def test_layout_and_config_come_back(settings: dict[str, Any]) -> None:
    model = make(**settings)
    config = marian_config(model.settings, eos_id=EOS, pad_id=PAD)
    assert marian_settings(config) == model.settings
    again = Marian(marian_settings(config))
    stored = theirs(model).state_dict()
    again.load_state_dict(marian_from_layout(stored, again.settings))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalize_before", True),
        ("activation_function", "tanh"),
        ("d_model", 0),
        ("d_model", 33),
        ("encoder_ffn_dim", 7),
        ("decoder_vocab_size", 3),
        ("vocab_size", "40"),
    ],
)
def test_arithmetic_that_we_do_not_have_is_refused(key: str, value: object) -> None:
    config = marian_config(make().settings, eos_id=EOS, pad_id=PAD)
    with pytest.raises(InputError):
        marian_settings(config | {key: value})


def test_a_tensor_that_is_missing_or_of_another_shape_is_named() -> None:
    model = make()
    tensors = marian_to_layout(model.state_dict(), model.settings)
    name = "model.decoder.layers.1.encoder_attn.v_proj.weight"
    with pytest.raises(InputError, match=name):
        marian_from_layout({n: t for n, t in tensors.items() if n != name}, model.settings)
    with pytest.raises(InputError, match=name):
        marian_from_layout(tensors | {name: tensors[name][:5]}, model.settings)


def test_beams_are_those_of_transformers() -> None:
    model = make(seed=3)
    sources = texts(50, seed=4)
    settings = DecodingSettings(max_new_tokens=20, num_beams=4, n=1, eos_ids=(EOS,), length_penalty=1.0)
    ours = beam_search(model, sources, settings, batch_size=32)
    other = theirs(model)
    for source, found in zip(sources, ours, strict=True):
        made = other.generate(
            torch.tensor([source]), num_beams=4, max_new_tokens=20, early_stopping="never", length_penalty=1.0,
            bad_words_ids=None, do_sample=False,
        )[0].tolist()  # fmt: skip
        written = list(itertools.takewhile(lambda token: token != EOS, made[1:]))
        assert found[0].ids == written


def test_step_by_step_is_all_at_once() -> None:
    model = make()
    sources, lengths = padded(texts(3))
    ids = torch.tensor([[PAD, 5, 9, 12, 3], [PAD, 7, 7, 30, 21], [PAD, 2, 39, 4, 4]])
    with torch.no_grad():
        whole = model(ids, sources, lengths)
        state, start = model.read_sources(
            [row[:n].tolist() for row, n in zip(sources, lengths.tolist(), strict=True)], 9
        )
        first = model.step(ids[:, 1:4], torch.tensor([3, 3, 3]), state)
        last = model.step(ids[:, 4:], torch.ones(3, dtype=torch.int64), state)
    torch.testing.assert_close(torch.cat([start[:, None], first, last], dim=1), whole, rtol=1e-5, atol=1e-5)


def test_rows_that_are_picked_repeated_dropped_and_joined() -> None:
    model = make()
    sources = texts(4)
    settings = DecodingSettings(max_new_tokens=8, temperature=0, eos_ids=(EOS,))

    def follow(rows: list[int], state: Any, steps: int) -> torch.Tensor:
        hidden = torch.empty(0)
        for step in range(steps):
            ids = torch.tensor([[2 + (7 * row + step) % 30] for row in rows])
            hidden = model.step(ids, torch.ones(len(rows), dtype=torch.int64), state)[:, 0]
        return hidden

    with torch.no_grad():
        alone = [follow([row], model.read_sources([sources[row]], 12)[0], 3)[0] for row in range(4)]
        state, _ = model.read_sources(sources[:3], 12)
        for order in ([0, 0, 1, 1, 2, 2], [2, 0, 0], [1], [0, 1, 2], [2, 2, 2]):  # even, uneven, one, all, one thrice
            hidden = follow(order, state.select(torch.tensor(order)), 3)
            torch.testing.assert_close(hidden, torch.stack([alone[row] for row in order]), rtol=1e-4, atol=1e-5)
        joined = state.select(torch.tensor([1, 1])).append(model.read_sources([sources[3]], 20)[0])
        hidden = follow([1, 1, 3], joined, 3)
        torch.testing.assert_close(hidden, torch.stack([alone[1], alone[1], alone[3]]), rtol=1e-4, atol=1e-5)
    many = [[token.id for step in generate_ids(model, [source], settings) for token in step] for source in sources]
    rows: dict[int, list[int]] = {}
    for step in generate_ids(model, sources, settings, batch_size=2):
        for token in step:
            rows.setdefault(token.row, []).append(token.id)
    assert [rows[row] for row in range(4)] == many


def test_a_memory_is_shared_by_the_hypotheses_of_a_text() -> None:
    model = make()
    state, _ = model.read_sources(texts(3), 10)
    keys, _, _, width = state.select(torch.tensor([0, 0, 1, 1, 2, 2])).memory()
    assert width == 2 and keys.data_ptr() == state.keys.data_ptr()
    assert state.select(torch.tensor([2, 2])).keys.shape[1] == 1, "texts that nobody reads any more are forgotten"


def test_a_copy_of_the_caches_has_little_room_and_grows() -> None:
    """Rows are copied at every step of 40, as beams are; what they hold is what rows hold that stay in place."""
    model = make()
    sources = texts(2)
    with torch.no_grad():
        stays, _ = model.read_sources(sources, 47)
        moves, _ = model.read_sources(sources, 47)
        for step in range(40):
            ids, one = torch.tensor([[2 + step % 30], [3 + step % 31]]), torch.ones(2, dtype=torch.int64)
            moves = moves.select(torch.tensor([1, 0])).select(torch.tensor([1, 0]))
            assert moves.written.capacity <= step + 1 + SPARE and moves.capacity == 47
            torch.testing.assert_close(model.step(ids, one, moves), model.step(ids, one, stays), rtol=1e-5, atol=1e-5)
        joined = moves.append(stays)
        assert joined.written.capacity == 47
        both = model.step(torch.tensor([[5]] * 4), torch.ones(4, dtype=torch.int64), joined)[:, 0]
        torch.testing.assert_close(both[:2], both[2:], rtol=1e-5, atol=1e-5)


def test_a_beam_of_one_is_greedy_and_n_best_are_the_model_s_own() -> None:
    model = make(seed=5)
    sources = texts(6, seed=6)
    greedy = DecodingSettings(max_new_tokens=12, temperature=0, eos_ids=(EOS,))
    one = beam_search(model, sources, DecodingSettings(max_new_tokens=12, num_beams=1, n=1, eos_ids=(EOS,)))
    best = beam_search(model, sources, DecodingSettings(max_new_tokens=12, num_beams=4, n=4, eos_ids=(EOS,)))
    for place, source in enumerate(sources):
        ids = [token.id for step in generate_ids(model, [source], greedy) for token in step]
        assert one[place][0].ids == [i for i in ids if i != EOS]
        found = best[place]
        assert len({tuple(h.ids) for h in found}) == 4
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for hypothesis in found:
            ended = [*hypothesis.ids, EOS] if hypothesis.finish_reason == "stop" else hypothesis.ids
            ids_in = torch.tensor([[PAD, *ended[:-1]]])
            with torch.no_grad():
                logits = model.logits(model(ids_in, torch.tensor([source]), torch.tensor([len(source)])))
            own = logits[0].log_softmax(-1)[torch.arange(len(ended)), torch.tensor(ended)].double().sum() / len(ended)
            assert hypothesis.score == pytest.approx(float(own), abs=1e-4)


def test_what_cannot_be_read_is_said() -> None:
    model, settings = make(source_vocab_size=23), DecodingSettings(max_new_tokens=100, temperature=0, eos_ids=(EOS,))
    with pytest.raises(InputError, match="the text has 49 tokens, the model reads 48 at most"):
        list(generate_ids(model, [[2] * 49], settings))
    with pytest.raises(InputError, match="the prompt has the id 23"):
        list(generate_ids(model, [[23]], settings))
    written = [token.id for step in generate_ids(model, [[2] * 48], settings) for token in step]
    assert 1 <= len(written) <= 47, "the start id stands in the context too"


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 4)
    expected = [[0, 0, 1, 1], [0.841471, 0.0099998, 0.540302, 0.99995], [0.909297, 0.0199987, -0.416147, 0.9998]]
    torch.testing.assert_close(table, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_it_learns_to_reverse() -> None:
    """Every text of up to five of six letters, backwards: above 99 % of unseen ones whole."""
    model = make(
        vocab_size=10, d_model=64, n_heads=4, d_ff=128, n_encoder_layers=1, n_layers=1, max_len=16, dropout=0.0
    )
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.logits_bias.zero_()
    chance = random.Random(0)
    every = [list(p) for n in range(1, 6) for p in itertools.product(range(4, 10), repeat=n)]
    chance.shuffle(every)
    unseen, seen = every[:300], every[300:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(600):
        batch = chance.sample(seen, 64)
        sources, lengths = padded([[*row, EOS] for row in batch])
        ids, _ = padded([[PAD, *row[::-1]] for row in batch])
        targets = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([*row[::-1], EOS]) for row in batch], batch_first=True, padding_value=-100
        )
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, step / 50) * (1 - step / 600)
        logits = model.logits(model(ids, sources, lengths))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    settings = DecodingSettings(max_new_tokens=8, num_beams=2, n=1, eos_ids=(EOS,))
    found = beam_search(model, [[*row, EOS] for row in unseen], settings)
    right = sum(best[0].ids == row[::-1] for best, row in zip(found, unseen, strict=True))
    assert right > 0.99 * len(unseen), right
