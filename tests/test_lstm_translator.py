"""The recurrent encoder-decoder: both attentions against their equations, a shared memory, beginnings, files."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from zhixing.errors import InputError
from zhixing.interchange.lstm_translator_layout import (
    lstm_translator_config,
    lstm_translator_from_layout,
    lstm_translator_settings,
    lstm_translator_to_layout,
)
from zhixing.models.lstm_translator import LSTMTranslator, LSTMTranslatorSettings, places_beside
from zhixing.training.objectives import target_given_source

PAD, EOS = 0, 1
VOCAB_SIZE = 30

both = pytest.mark.parametrize("attention", ["luong", "bahdanau"])


def make(seed: int = 0, **settings: Any) -> LSTMTranslator:
    """A small model whose next token depends on both sides."""
    sizes = {"vocab_size": VOCAB_SIZE, "d_model": 16, "n_encoder_layers": 2, "n_layers": 2, "max_len": 32}
    model = LSTMTranslator(LSTMTranslatorSettings(**{**sizes, "dropout": 0.0, "start_id": PAD, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model.eval()


def texts(count: int, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [[*(chance.randrange(2, VOCAB_SIZE) for _ in range(chance.randrange(1, 12))), EOS] for _ in range(count)]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True), torch.tensor([len(r) for r in rows])


def written(rows: int, count: int, seed: int = 2) -> Tensor:
    """What is written so far, from the start id on: (rows, count)."""
    ids = torch.randint(2, VOCAB_SIZE, (rows, count), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = PAD
    return ids


# --- the equations ---------------------------------------------------------------------------------------------------


def naive_lstm(xs: list[Tensor], h: Tensor, c: Tensor, p: Mapping[str, Tensor], suffix: str) -> list[Tensor]:
    """One layer, one direction, one text: vectors in, vectors out."""
    out = []
    for x in xs:
        h, c = naive_cell(x, h, c, p, suffix)
        out.append(h)
    return out


def naive_cell(x: Tensor, h: Tensor, c: Tensor, p: Mapping[str, Tensor], suffix: str) -> tuple[Tensor, Tensor]:
    w, u = p[f"weight_ih_{suffix}"], p[f"weight_hh_{suffix}"]
    n = len(h)
    i, f, g, o = (
        (w @ x + u @ h + p[f"bias_ih_{suffix}"] + p[f"bias_hh_{suffix}"])[gate * n : (gate + 1) * n]
        for gate in range(4)
    )
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def naive_translator(model: LSTMTranslator, ids: list[int], source: list[int]) -> tuple[Tensor, Tensor]:
    """The module docstring, a text and a token at a time: h~ (T, D), or as a pointer hands it on, and the weights (T, S)."""
    s, e = model.settings, model.embedding.weight
    p = dict(model.encoder.named_parameters())
    nothing = e.new_zeros(s.d_model // 2)
    xs = [e[i] for i in source]
    for layer in range(s.n_encoder_layers):
        there = naive_lstm(xs, nothing, nothing, p, f"l{layer}")
        back = naive_lstm(xs[::-1], nothing, nothing, p, f"l{layer}_reverse")[::-1]
        xs = [torch.cat(pair) for pair in zip(there, back, strict=True)]
    d = dict(model.decoder.named_parameters())
    half = s.d_model // 2
    start = torch.tanh(d["start.weight"] @ torch.cat([xs[-1][:half], xs[0][half:]]) + d["start.bias"])
    pieces = start.split(s.d_model)
    h, c = list(pieces[: s.n_layers]), list(pieces[s.n_layers :])
    p = dict(model.decoder.recurrence.named_parameters())

    def look(q: Tensor) -> tuple[Tensor, Tensor]:
        if s.attention == "luong":
            scores = [q @ d["attention.key.weight"] @ x for x in xs]
        else:
            query = d["attention.query.weight"] @ q + d["attention.query.bias"]
            scores = [d["attention.v"] @ torch.tanh(query + d["attention.key.weight"] @ x) for x in xs]
        exps = torch.stack(scores).exp()
        a = exps / exps.sum()
        return sum((w * x for w, x in zip(a, xs, strict=True)), torch.zeros_like(xs[0])), a

    hiddens, weights = [], []
    for i in ids:
        y = e[i]
        if s.attention == "bahdanau":
            context, a = look(h[-1])
            y = torch.cat([y, context])
        for layer in range(s.n_layers):
            h[layer], c[layer] = naive_cell(y, h[layer], c[layer], p, f"l{layer}")
            y = h[layer]
        if s.attention == "luong":
            context, a = look(y)
        both = torch.cat([context, y])
        hiddens.append(torch.tanh(d["join.weight"] @ both))
        if s.pointer:
            share = torch.sigmoid(d["pointer.weight"][0] @ both + d["pointer.bias"][0])
            copied = [
                sum((share * w for w, read in zip(a, source, strict=True) if read == token), torch.zeros_like(share))
                for token in range(s.vocab_size)
            ]
            hiddens[-1] = torch.cat([hiddens[-1], torch.stack(copied)])
        weights.append(a)
    return torch.stack(hiddens), torch.stack(weights)


@both
@pytest.mark.parametrize("pointer", [False, True])
def test_values_and_gradients_are_those_of_the_equations(attention: str, pointer: bool) -> None:
    model = make(vocab_size=9, d_model=4, attention=attention, pointer=pointer).double()
    sources = [[2, 5, 1], [7, 1], [3, 3, 8, 6, 1]]
    source_ids, lengths = padded(sources)
    ids = torch.tensor([[0, 4, 6], [0, 7, 2], [0, 3, 8]])
    ours = model(ids, source_ids, lengths)
    weights = model.attention_weights(ids, source_ids, lengths)
    naive = [naive_translator(model, row.tolist(), text) for row, text in zip(ids, sources, strict=True)]
    theirs = torch.stack([hidden for hidden, _ in naive])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    for row, (_, a) in enumerate(naive):
        torch.testing.assert_close(weights[row, :, : a.shape[1]], a, rtol=1e-9, atol=1e-10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, mine, other in zip(
        names,
        torch.autograd.grad((ours * pull).sum(), parameters),
        torch.autograd.grad((theirs * pull).sum(), parameters),
        strict=True,
    ):
        assert other.abs().max() > 1e-6, f"{name} counts for nothing"
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@both
def test_a_pointer_mixes_writing_and_copying(attention: str) -> None:
    model = make(vocab_size=9, d_model=4, attention=attention, pointer=True).double()
    source_ids, lengths = padded([[2, 5, 2, 1], [7, 1]])
    hidden = model(torch.tensor([[0, 4], [0, 7]]), source_ids, lengths)
    h, copied = hidden[..., :4], hidden[..., 4:]
    assert (copied > 0).sum(dim=-1).tolist() == [[3, 3], [2, 2]], "only what is read can be copied"
    share = copied.sum(dim=-1, keepdim=True)
    expected = (1 - share) * (h @ model.embedding.weight.T).softmax(dim=-1) + copied
    torch.testing.assert_close(model.logits(hidden).exp(), expected.float())
    torch.testing.assert_close(expected.sum(dim=-1), torch.ones(2, 2, dtype=torch.float64))

    class Batch:
        inputs, targets = torch.tensor([[0, 4], [0, 7]]), torch.tensor([[4, 5], [7, -100]])
        sources, source_lengths = source_ids, lengths

    loss, count = target_given_source()(model, Batch)
    wanted = -(expected[0, 0, 4].log() + expected[0, 1, 5].log() + expected[1, 0, 7].log())
    assert int(count) == 3
    torch.testing.assert_close(loss, wanted.float())


def test_the_encoder_is_torch_s_over_packed_rows() -> None:
    model = make()
    ids, lengths = padded(texts(6))
    packed = pack_padded_sequence(model.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(model.encoder(packed)[0], batch_first=True)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    assert not real.all()
    torch.testing.assert_close(model.encode(ids, lengths)[real], expected[real], rtol=1e-5, atol=1e-6)


# --- the memory (what all families keep: test_encoder_decoders.py) ---------------------------------------------------


@pytest.mark.parametrize(
    ("owners", "places", "width"),
    [([0, 0, 1, 1], None, 2), ([1, 0, 1], [2, 0, 3], 2), ([0, 1, 2], None, 1), ([0, 0, 1], [0, 1, 2], 2)],
)
def test_places_by_hand(owners: list[int], places: list[int] | None, width: int) -> None:
    found, found_width = places_beside(torch.tensor(owners), max(owners) + 1)
    assert found_width == width
    assert (None if found is None else found.tolist()) == places


@both
@torch.no_grad()
def test_a_memory_is_shared_by_the_hypotheses_of_a_text(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(attention=attention)
    state, _ = model.read_sources(texts(3), 10)
    plain, asked = model.decoder.attention.scores, []

    def scores(q: Tensor, keys: Tensor) -> Tensor:
        asked.append((tuple(q.shape), keys.data_ptr()))
        return plain(q, keys)

    monkeypatch.setattr(model.decoder.attention, "scores", scores)
    for order, width in (([0, 0, 1, 1, 2, 2], 2), ([2, 0, 0, 0, 1], 3)):  # beside each other or not
        chosen = state.select(torch.tensor(order))
        memory = chosen.memory()
        assert memory.values.data_ptr() == state.values.data_ptr()
        assert memory.keys.data_ptr() == state.keys.data_ptr()
        model.step(torch.full((len(order), 1), 5), torch.ones(len(order), dtype=torch.int64), chosen)
        assert asked.pop() == ((3, width, 16), state.keys.data_ptr())
    assert state.select(torch.tensor([2, 2])).values.shape[0] == 1, "texts that nobody reads any more are forgotten"


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(InputError, match="d_model = 7 is not even"):
        LSTMTranslator(LSTMTranslatorSettings(10, d_model=7))


# --- beginnings ------------------------------------------------------------------------------------------------------


@both
def test_initialisation_is_what_the_docstring_says(attention: Any) -> None:
    settings = LSTMTranslatorSettings(20, d_model=16, attention=attention, tie_embeddings=False)
    model, again = (LSTMTranslator(settings, torch.Generator().manual_seed(3)) for _ in range(2))
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), "the generator decides"
        if "bias" not in name:
            assert 0.05 < parameter.abs().max() <= 0.1, name
        elif "bias_ih" in name:
            assert parameter.view(4, -1).T.tolist() == [[0, 1, 0, 0]] * (len(parameter) // 4), name
        else:
            assert (parameter == 0).all(), name
    assert model.head() is not model.embedding.weight and model.source_vocab_size == 20
    tied = make(attention=attention)
    assert tied.head() is tied.embedding.weight


@both
def test_dropout_only_in_training(attention: str) -> None:
    model = make(attention=attention, dropout=0.5)
    source_ids, lengths = padded(texts(3))
    ids = written(3, 4)
    model.train()
    first = model(ids, source_ids, lengths)
    assert not torch.equal(first, model(ids, source_ids, lengths))
    assert (first == 0).any(), "before the output"
    model.dropout.p = model.decoder.dropout.p = model.encoder.dropout = 0.0
    assert not torch.equal(model(ids, source_ids, lengths), model(ids, source_ids, lengths)), "between layers"
    model.decoder.recurrence.dropout = 0.0
    assert torch.equal(model(ids, source_ids, lengths), model(ids, source_ids, lengths)), "and nowhere else"
    model.eval()
    assert torch.equal(model(ids, source_ids, lengths), model(ids, source_ids, lengths))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "marian"),
        ("attention", "dot"),
        ("attention", ["luong"]),
        ("vocab_size", "30"),
        ("vocab_size", 1 << 30),
        ("d_model", 0),
        ("d_model", 33),
        ("d_model", 16.0),
        ("encoder_layers", 10**6),
        ("decoder_layers", True),
        ("max_position_embeddings", -1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("decoder_start_token_id", 30),
        ("decoder_start_token_id", -1),
        ("decoder_start_token_id", 0.5),
        ("tie_word_embeddings", 1),
        ("pointer", "yes"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(key: str, value: object) -> None:
    config = lstm_translator_config(make().settings, eos_id=EOS, pad_id=PAD)
    with pytest.raises(InputError, match=f"^{key} = "):
        lstm_translator_settings(config | {key: value})


def test_a_value_that_is_missing_is_named() -> None:
    config = lstm_translator_config(make().settings, eos_id=EOS, pad_id=PAD)
    for key in set(config) - {"architectures", "eos_token_id", "pad_token_id", "is_encoder_decoder", "pointer"}:
        with pytest.raises(InputError, match=key):
            lstm_translator_settings({k: v for k, v in config.items() if k != key})
    before = {k: v for k, v in config.items() if k != "pointer"}  # models from before there was one
    assert lstm_translator_settings(before) == make().settings


def test_a_tied_head_that_is_stored_too_is_the_embedding() -> None:
    model = make()
    tensors = lstm_translator_to_layout(model.state_dict(), model.settings)
    copy = {"lm_head.weight": tensors["embedding.weight"].clone()}
    lstm_translator_from_layout(tensors | copy, model.settings)  # tied and stored twice: the same thing
    with pytest.raises(InputError, match=r"lm_head\.weight differs from embedding\.weight"):
        lstm_translator_from_layout(tensors | {"lm_head.weight": tensors["embedding.weight"] + 1}, model.settings)
