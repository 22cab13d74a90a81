"""T5 against transformers, by hand, its beginnings and gradients. What all families keep: test_encoder_decoders.py."""

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
        ("scalable_attention", True),
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


def test_a_tied_head_that_is_stored_too_is_the_embedding() -> None:
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
