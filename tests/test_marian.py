"""Marian against transformers, by hand, and the room of its caches. What all families keep: test_encoder_decoders.py."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from zhixing.decoding.beam import beam_search
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
        for name, parameter in model.named_parameters():
            middle, width = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, 0.3)
            parameter.normal_(middle, width, generator=generator)
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
        ("tie_word_embeddings", False),
        ("is_decoder", True),
        ("encoder_normalize_before", False),
    ],
)
def test_arithmetic_that_we_do_not_have_is_refused(key: str, value: object) -> None:
    config = marian_config(make().settings, eos_id=EOS, pad_id=PAD)
    with pytest.raises(InputError):
        marian_settings(config | {key: value})


def test_a_config_of_opus_mt_is_read() -> None:
    """The keys and values of one that transformers 4 wrote, old ones that nothing reads among them."""
    of_opus_mt = {
        "_name_or_path": "opus-mt", "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish",
        "add_bias_logits": False, "add_final_layer_norm": False, "architectures": ["MarianMTModel"],
        "attention_dropout": 0.0, "bad_words_ids": [[65000]], "bos_token_id": 0, "classif_dropout": 0.0,
        "classifier_dropout": 0.0, "d_model": 512, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048,
        "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 65000, "decoder_vocab_size": 65001,
        "dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0,
        "encoder_layers": 6, "eos_token_id": 0, "extra_pos_embeddings": 65001, "forced_eos_token_id": 0,
        "gradient_checkpointing": False, "id2label": {"0": "LABEL_0"}, "init_std": 0.02, "is_encoder_decoder": True,
        "label2id": {"LABEL_0": 0}, "max_length": 512, "max_position_embeddings": 512, "model_type": "marian",
        "normalize_before": False, "normalize_embedding": False, "num_beams": 4, "num_hidden_layers": 6,
        "pad_token_id": 65000, "scale_embedding": True, "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True, "torch_dtype": "float32", "transformers_version": "4.30.0",
        "use_cache": True, "vocab_size": 65001,
    }  # fmt: skip
    assert marian_settings(of_opus_mt) == MarianSettings(65001, start_id=65000)


@pytest.mark.parametrize("settings", SIDES)
def test_beams_are_those_of_transformers(settings: dict[str, Any]) -> None:
    model = make(seed=3, **settings)
    sources = texts(50, settings.get("source_vocab_size", 40), seed=4)
    four = DecodingSettings(max_new_tokens=20, num_beams=4, n=1, eos_ids=(EOS,), length_penalty=1.0)
    ours = [found[0].ids for found in beam_search(model, sources, four, batch_size=32)]
    assert len({tuple(row) for row in ours}) > 15, "the texts are told apart"
    ids, lengths = padded(sources)
    made = theirs(model).generate(
        ids, attention_mask=torch.arange(ids.shape[1]) < lengths[:, None], num_beams=4, max_new_tokens=20,
        early_stopping="never", length_penalty=1.0, bad_words_ids=None, do_sample=False,
    )  # fmt: skip
    assert ours == [list(itertools.takewhile(lambda token: token != EOS, row[1:])) for row in made.tolist()]


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


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 4)
    expected = [[0, 0, 1, 1], [0.841471, 0.0099998, 0.540302, 0.99995], [0.909297, 0.0199987, -0.416147, 0.9998]]
    torch.testing.assert_close(table, torch.tensor(expected), rtol=1e-4, atol=1e-5)
