"""T5 against transformers, step by step against all at once, alone against in company, beams that share a memory."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from zhixing.decoding.beam import beam_search
from zhixing.decoding.generate import generate_ids
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.interchange.t5_layout import t5_config, t5_from_layout, t5_settings, t5_to_layout
from zhixing.models.t5 import T5, T5Settings, position_buckets

EOS, PAD = 1, 0
V11: dict[str, Any] = {}
V10: dict[str, Any] = {"feed_forward": "relu", "tie_embeddings": True, "d_kv": 5, "n_layers": 1, "n_buckets": 12}
KINDS = [pytest.param(V11, id="v1.1"), pytest.param(V10, id="v1.0")]


def make(seed: int = 0, **settings: Any) -> T5:
    """A small model whose next token depends on both sides and on places, near and far."""
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "n_encoder_layers": 2, "n_layers": 2, "n_heads": 4, "d_ff": 48}
    model = T5(T5Settings(**{**sizes, "max_len": 48, "start_id": PAD, "n_buckets": 16, "max_distance": 16, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            middle, width = (1.0, 0.2) if "norm" in name else (0.0, 0.3)
            parameter.normal_(middle, 1.0 if name.startswith(("positions", "lm_head")) else width, generator=generator)
    return model.eval()


def texts(count: int, size: int = 40, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [[*(chance.randrange(2, size) for _ in range(chance.randrange(1, 24))), EOS] for _ in range(count)]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return ids, torch.tensor([len(row) for row in rows])


def theirs(model: T5, folder: Path) -> Any:
    """The same model in transformers, read by it from config.json and tensors."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    config = t5_config(model.settings, eos_id=EOS, pad_id=PAD)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = t5_to_layout(model.state_dict(), model.settings)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made, report = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return made.eval()


@pytest.mark.parametrize("settings", KINDS)
def test_logits_are_those_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    model = make(**settings)
    ids = torch.tensor([[PAD, *row[:18]] for row in texts(40, seed=2) if len(row) > 18])
    sources, lengths = padded(texts(len(ids)))
    assert len(ids) >= 4 and lengths.min() < lengths.max()
    mask = torch.arange(sources.shape[1]) < lengths[:, None]
    with torch.no_grad():
        ours = model.logits(model(ids, sources, lengths))
        other = theirs(model, tmp_path)(input_ids=sources, attention_mask=mask, decoder_input_ids=ids).logits
    assert ours.std() > 0.2
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", KINDS)
def test_layout_and_config_come_back(settings: dict[str, Any], tmp_path: Path) -> None:
    """From what transformers holds, and from the config that it writes itself."""
    model = make(**settings)
    config = t5_config(model.settings, eos_id=EOS, pad_id=PAD)
    assert t5_settings(config) == model.settings
    other = theirs(model, tmp_path)
    assert t5_settings(other.config.to_dict()) == model.settings, "tie_word_embeddings is true there, whatever we said"
    again = T5(t5_settings(config))
    again.load_state_dict(t5_from_layout(other.state_dict(), again.settings))
    assert set(again.state_dict()) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
def test_a_model_that_transformers_made_and_wrote_is_read(kind: str, tmp_path: Path) -> None:
    """transformers 5 ties every T5 that it makes, v1.1 too, and writes the head once."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    torch.manual_seed(0)
    other = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2,
            feed_forward_proj=kind, tie_word_embeddings=kind == "relu", decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip
    other.save_pretrained(tmp_path)
    settings = t5_settings(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert (settings.n_encoder_layers, settings.n_layers, settings.tie_embeddings) == (2, 3, kind == "relu")
    model = T5(settings).eval()
    model.load_state_dict(t5_from_layout(load_file(tmp_path / "model.safetensors"), settings))
    ids = torch.tensor([[0, 4, 9, 20]])
    sources = torch.tensor([[5, 6, 7, 8, 9, 1]])
    with torch.no_grad():
        ours = model.logits(model(ids, sources, torch.tensor([6])))
        torch.testing.assert_close(ours, other(input_ids=sources, decoder_input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "umt5"),
        ("feed_forward_proj", "gated-silu"),
        ("dense_act_fn", "relu"),
        ("is_gated_act", False),
        ("is_encoder_decoder", False),
        ("d_model", 0),
        ("d_kv", None),
        ("vocab_size", "40"),
        ("num_decoder_layers", 1.5),
        ("relative_attention_num_buckets", 2),
        ("relative_attention_max_distance", 8),
        ("tie_word_embeddings", "no"),
        ("dropout_rate", 1),
        ("decoder_start_token_id", 40),
    ],
)
def test_arithmetic_that_we_do_not_have_is_refused(key: str, value: object) -> None:
    config = t5_config(make().settings, eos_id=EOS, pad_id=PAD)
    with pytest.raises(InputError, match=key):
        t5_settings(config | {key: value})


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    config = t5_config(make(**V10).settings, eos_id=EOS, pad_id=3)
    for key in ("num_decoder_layers", "n_positions", "relative_attention_num_buckets", "decoder_start_token_id",
                "relative_attention_max_distance", "feed_forward_proj", "tie_word_embeddings"):  # fmt: skip
        del config[key]
    found = t5_settings(config)
    assert (found.n_layers, found.max_len, found.n_buckets, found.max_distance) == (2, 512, 32, 128)
    assert (found.feed_forward, found.tie_embeddings, found.start_id) == ("relu", True, 3)


def test_a_tensor_that_is_missing_or_does_not_fit_is_named() -> None:
    model = make()
    tensors = t5_to_layout(model.state_dict(), model.settings)
    name = "decoder.block.1.layer.1.EncDecAttention.v.weight"
    with pytest.raises(InputError, match=name):
        t5_from_layout({n: t for n, t in tensors.items() if n != name}, model.settings)
    with pytest.raises(InputError, match=name):
        t5_from_layout(tensors | {name: tensors[name][:5]}, model.settings)
    tied = make(**V10)
    tensors = t5_to_layout(tied.state_dict(), tied.settings)
    t5_from_layout(tensors | {"lm_head.weight": tensors["shared.weight"].clone()}, tied.settings)
    with pytest.raises(InputError, match=r"lm_head.weight differs from shared.weight"):
        t5_from_layout(tensors | {"lm_head.weight": tensors["shared.weight"] + 1}, tied.settings)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("beams", [1, 4])
def test_what_is_written_is_what_transformers_writes(settings: dict[str, Any], beams: int, tmp_path: Path) -> None:
    model = make(seed=3, **settings)
    sources = texts(50, seed=4)
    if beams == 1:
        greedy = DecodingSettings(max_new_tokens=20, temperature=0, eos_ids=(EOS,))
        ours: list[list[int]] = [[] for _ in sources]
        for step in generate_ids(model, sources, greedy, batch_size=32):
            for token in step:
                ours[token.row].append(token.id)
        ours = [list(itertools.takewhile(lambda token: token != EOS, row)) for row in ours]
    else:
        several = DecodingSettings(max_new_tokens=20, num_beams=beams, n=1, eos_ids=(EOS,), length_penalty=1.0)
        ours = [found[0].ids for found in beam_search(model, sources, several, batch_size=32)]
    assert len({tuple(row) for row in ours}) > 25, "the texts are told apart"
    other = theirs(model, tmp_path)
    ids, lengths = padded(sources)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    how = {"early_stopping": "never", "length_penalty": 1.0} if beams > 1 else {}
    made = other.generate(ids, attention_mask=mask, num_beams=beams, max_new_tokens=20, do_sample=False, **how)
    assert ours == [list(itertools.takewhile(lambda token: token != EOS, row[1:])) for row in made.tolist()]


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (12, 16), (33, 100), (4, 3)])
def test_buckets_are_those_of_transformers(both_ways: bool, n_buckets: int, max_distance: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 301)
    ours = position_buckets(distances, n_buckets, max_distance, both_ways=both_ways)
    other = T5Attention._relative_position_bucket(distances, both_ways, n_buckets, max_distance)
    assert ours.tolist() == other.tolist()
    assert len(set(ours.tolist())) > 1 and ours.min() >= 0 and ours.max() < n_buckets


def test_buckets_by_hand() -> None:
    """The example of the docstring, and the default table's edges: 8 exact buckets, then factors of 2^(1/2)."""
    back = position_buckets(-torch.arange(20), 8, 16, both_ways=True)
    assert back.tolist() == [0, 1, *[2] * 4, *[3] * 14]
    ahead = position_buckets(torch.tensor([0, 1, 2, 5, 6, 100]), 8, 16, both_ways=True)
    assert ahead.tolist() == [0, 5, 6, 6, 7, 7]
    one_way = position_buckets(-torch.tensor([-9, 0, 15, 16, 127, 128, 9999]), 32, 128, both_ways=False)
    assert one_way.tolist() == [0, 0, 15, 16, 31, 31, 31]
    with pytest.raises(ValueError, match="n_buckets"):
        make(n_buckets=3)


@pytest.mark.parametrize("settings", KINDS)
def test_padding_and_later_tokens_cannot_change_what_is_real_and_earlier(settings: dict[str, Any]) -> None:
    model = make(**settings)
    sources, lengths = padded(texts(6))
    ids = torch.tensor([[PAD, *row[:9]] for row in texts(40, seed=2) if len(row) > 9][:6])
    with torch.no_grad():
        whole = model(ids, sources, lengths)
        noisy = sources.clone()
        noisy[torch.arange(sources.shape[1]) >= lengths[:, None]] = 17
        assert not torch.equal(noisy, sources)
        torch.testing.assert_close(model(ids, noisy, lengths), whole, rtol=1e-6, atol=1e-6)
        for row in range(6):
            n = int(lengths[row])
            alone = model(ids[row : row + 1], sources[row : row + 1, :n], lengths[row : row + 1])
            torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-4, atol=1e-5)
        changed = ids.clone()
        changed[:, 5:] = (changed[:, 5:] + 3) % 40
        other = model(changed, sources, lengths)
        torch.testing.assert_close(other[:, :5], whole[:, :5], rtol=1e-6, atol=1e-6)
        assert (other[:, 5:] - whole[:, 5:]).abs().amax(-1).min() > 1e-3
        sources[:, 0] = (sources[:, 0] + 3) % 40
        assert (model(ids, sources, lengths) - whole).abs().amax(-1).min() > 1e-4, "every place sees the source"


@pytest.mark.parametrize("settings", KINDS)
def test_step_by_step_is_all_at_once(settings: dict[str, Any]) -> None:
    model = make(**settings)
    sources, lengths = padded(texts(3))
    read = [row[:n].tolist() for row, n in zip(sources, lengths.tolist(), strict=True)]
    chance = torch.Generator().manual_seed(5)
    ids = torch.cat([torch.full((3, 1), PAD), torch.randint(2, 40, (3, 39), generator=chance)], dim=1)
    ones = torch.ones(3, dtype=torch.int64)
    with torch.no_grad():
        whole = model(ids, sources, lengths)
        state, start = model.read_sources(read, 40)
        parts = [start[:, None], model.step(ids[:, 1:4], 3 * ones, state)]
        parts += [model.step(ids[:, i : i + 1], ones, state) for i in range(4, 40)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # rows of different lengths in one call
        state, _ = model.read_sources(read, 40)
        uneven = torch.tensor([3, 1, 2])
        first = model.step(ids[:, 1:4], uneven, state)
        assert state.lengths.tolist() == [4, 2, 3]
        after = torch.stack([ids[row, n : n + 3] for row, n in enumerate(state.lengths.tolist())])
        second = model.step(after, 3 * ones, state)
        third = model.step(torch.stack([ids[r, n : n + 1] for r, n in enumerate(state.lengths.tolist())]), ones, state)
    for row, n in enumerate(uneven.tolist()):
        found = torch.cat([first[row, :n], second[row], third[row]])
        torch.testing.assert_close(found, whole[row, 1 : n + 5], rtol=1e-4, atol=1e-4)


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
    keys, values, _, width = state.select(torch.tensor([0, 0, 1, 1, 2, 2])).memory()
    assert width == 2 and keys.data_ptr() == state.keys.data_ptr() and values.data_ptr() == state.values.data_ptr()
    assert state.select(torch.tensor([2, 2])).keys.shape[1] == 1, "texts that nobody reads any more are forgotten"


@pytest.mark.parametrize("settings", KINDS)
def test_a_beam_of_one_is_greedy_and_n_best_are_the_model_s_own(settings: dict[str, Any]) -> None:
    model = make(seed=5, **settings)
    sources = texts(6, seed=6)
    greedy = DecodingSettings(max_new_tokens=12, temperature=0, eos_ids=(EOS,))
    one = beam_search(model, sources, DecodingSettings(max_new_tokens=12, num_beams=1, n=1, eos_ids=(EOS,)))
    best = beam_search(model, sources, DecodingSettings(max_new_tokens=12, num_beams=4, n=4, eos_ids=(EOS,)))
    for place, source in enumerate(sources):
        ids = [token.id for step in generate_ids(model, [source], greedy) for token in step]
        assert one[place][0].ids == [i for i in ids if i != EOS]
        found = best[place]
        assert len({tuple(h.ids) for h in found}) == 4
        for hypothesis in found:
            ended = [*hypothesis.ids, EOS] if hypothesis.finish_reason == "stop" else hypothesis.ids
            ids_in = torch.tensor([[PAD, *ended[:-1]]])
            with torch.no_grad():
                logits = model.logits(model(ids_in, torch.tensor([source]), torch.tensor([len(source)])))
            own = logits[0].log_softmax(-1)[torch.arange(len(ended)), torch.tensor(ended)].double().sum() / len(ended)
            assert hypothesis.score == pytest.approx(float(own), abs=1e-4)


def test_what_cannot_be_read_is_said() -> None:
    model, settings = make(), DecodingSettings(max_new_tokens=100, temperature=0, eos_ids=(EOS,))
    with pytest.raises(InputError, match="the text has 49 tokens, the model reads 48 at most"):
        list(generate_ids(model, [[2] * 49], settings))
    with pytest.raises(InputError, match="the prompt has the id 40"):
        list(generate_ids(model, [[40]], settings))


@pytest.mark.parametrize("settings", KINDS)
def test_it_starts_as_mesh_tensorflow_has_it(settings: dict[str, Any]) -> None:
    d, k, h, f = 64, 16, 6, 160
    sizes = {"vocab_size": 500, "d_model": d, "n_heads": h, "d_ff": f, "n_layers": 1, **settings}
    s = T5Settings(n_encoder_layers=1, **(sizes | {"d_kv": k}))
    model = T5(s, torch.Generator().manual_seed(0))
    q, keys, values = model.encoder[0].attention.qkv.weight.split(h * k)
    cross = model.decoder[0].cross_attention
    expected = [
        (q, d * k), (keys, d), (values, d), (model.encoder[0].attention.out.weight, h * k),
        (cross.q.weight, d * k), (cross.kv.weight, d), (cross.out.weight, h * k),
        (model.encoder[0].feed_forward.up.weight, d), (model.decoder[0].feed_forward.down.weight, f),
        (model.embedding.weight, 1), (model.positions_read.weight, d), (model.positions_written.weight, d),
    ]  # fmt: skip
    if model.lm_head is not None:
        expected.append((model.lm_head.weight, d))
    for weight, size in expected:
        off = 5 / math.sqrt(2 * weight.numel())  # five times the error of a standard deviation
        assert float(weight.detach().std()) * size**0.5 == pytest.approx(1, abs=off), (tuple(weight.shape), size)
    sources, lengths = padded(texts(8))
    with torch.no_grad():
        hidden = model.eval()(torch.tensor([[PAD, 5, 9]] * 8), sources, lengths)
        width = float(model.logits(hidden).std())
    assert 0.5 < width < 2, "logits start about as wide as a standard normal"


def test_dropout_acts_everywhere_and_evaluation_has_none() -> None:
    model = make(dropout=0.3)
    sources, lengths = padded(texts(3))
    ids = torch.tensor([[PAD, 5, 9]] * 3)
    assert torch.equal(model(ids, sources, lengths), model(ids, sources, lengths))
    model.train()
    assert not torch.allclose(model(ids, sources, lengths), model(ids, sources, lengths), atol=0.1)
    hidden = model(ids, sources, lengths)
    assert 0.05 < float((hidden == 0).float().mean()) < 0.6, "the last norm's output is dropped too"


def test_gradients_reach_every_parameter() -> None:
    """Those of the tables of positions too, against numbers."""
    model = make(n_layers=1, n_encoder_layers=1, vocab_size=12, d_model=8, n_heads=2, d_kv=4, d_ff=8).double()
    sources, lengths = padded([[3, 4, 5, 1], [6, 1]])
    ids = torch.tensor([[PAD, 5, 9], [PAD, 7, 2]])

    def loss() -> torch.Tensor:
        return model(ids, sources, lengths).pow(3).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        if name != "lm_head.weight":
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    for table in (model.positions_read.weight, model.positions_written.weight):
        place = int(table.grad.abs().argmax())
        with torch.no_grad():
            ends = []
            for step in (1e-5, -2e-5):
                table.view(-1)[place] += step
                ends.append(float(loss()))
        assert float(table.grad.view(-1)[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("remade", [False, True])
def test_compiled_attention_with_a_bias_is_torch_s_own(remade: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients of a stack that trains on a processor, rows and queries in pieces too."""
    from zhixing.models import cpu_attention, layers

    model = make(dropout=0.0, n_layers=1, n_encoder_layers=1).train()
    model.initialise(torch.Generator().manual_seed(0))
    sources, lengths = padded([list(range(2, 2 + n)) for n in (37, 9, 30, 1, 22)])
    ids = torch.randint(2, 40, (5, 150), generator=torch.Generator().manual_seed(0))

    def trained() -> dict[str, torch.Tensor]:
        model.zero_grad()
        hidden = model(ids, sources, lengths)
        hidden.pow(3).mean().backward()
        return {"": hidden.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}

    calls, own = [], cpu_attention.attention
    monkeypatch.setattr(cpu_attention, "attention", lambda *given: (calls.append(len(given)), own(*given))[1])
    monkeypatch.setattr(layers, "FEWEST_NUMBERS", 10**9)
    expected = trained()
    assert not calls
    monkeypatch.setattr(layers, "FEWEST_NUMBERS", 1)
    if remade:  # P is made again on the way back, three texts at once
        monkeypatch.setattr(cpu_attention, "MOST_KEPT", 0)
        monkeypatch.setattr(cpu_attention, "MOST_MADE", 3 * 4 * 128 * 150)
    found = trained()
    assert calls == [6, 6, 5], "the self-attentions have a bias"
    for name, tensor in expected.items():
        off = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert off < 1e-4, (name, float(off))


def test_it_learns_to_reverse() -> None:
    """Six of eight symbols backwards: above 99 % of unseen texts whole."""
    model = T5(
        T5Settings(
            vocab_size=10, d_model=48, d_kv=16, n_heads=3, d_ff=64, n_encoder_layers=1, n_layers=1, max_len=16,
            n_buckets=16, max_distance=16, dropout=0.0,
        ),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    chance = torch.Generator().manual_seed(0)
    unseen = torch.randint(2, 10, (300, 6), generator=chance)
    held_out = {tuple(row) for row in unseen.tolist()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model.train()
    steps, rows = 400, 64
    for step in range(steps):
        batch = torch.randint(2, 10, (rows, 6), generator=chance)
        batch = batch[[tuple(row) not in held_out for row in batch.tolist()]]
        column = torch.ones(len(batch), 1, dtype=torch.int64)
        sources, backwards = torch.cat([batch, EOS * column], 1), batch.flip(1)
        ids, targets = torch.cat([PAD * column, backwards], 1), torch.cat([backwards, EOS * column], 1)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, step / 40) * (1 - step / steps)
        logits = model.logits(model(ids, sources, torch.full((len(batch),), 7)))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    settings = DecodingSettings(max_new_tokens=8, num_beams=2, n=1, eos_ids=(EOS,))
    found = beam_search(model.eval(), [[*row, EOS] for row in unseen.tolist()], settings)
    right = sum(best[0].ids == row[::-1] for best, row in zip(found, unseen.tolist(), strict=True))
    assert right > 0.99 * len(unseen), right
