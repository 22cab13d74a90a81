"""BERT: both directions are seen, padding is not, and the maps are those of the fast path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.bert import (
    Bert,
    BertClassifier,
    BertMaskedLM,
    BertSettings,
    Block,
    layer_of,
    pooled,
    take_encoder,
)
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.gpt import layer_of as gpt_layer_of

VOCAB = 41
BERT = BertSettings(vocab_size=VOCAB, d_model=24, n_layers=2, n_heads=3, d_ff=40, max_len=16, n_labels=4)
DISTIL = replace(BERT, layout="distilbert")

Model = Bert | BertMaskedLM | BertClassifier
MODELS: dict[str, Callable[[], Model]] = {
    "bert": lambda: Bert(BERT),
    "bert-masked": lambda: BertMaskedLM(BERT),
    "bert-classifier": lambda: BertClassifier(BERT),
    "distilbert": lambda: Bert(DISTIL),
    "distilbert-masked": lambda: BertMaskedLM(DISTIL),
    "distilbert-classifier": lambda: BertClassifier(DISTIL),
}


@pytest.fixture(params=MODELS, name="model")
def fixture_model(request: pytest.FixtureRequest) -> Model:
    """Random weights, an order of magnitude larger than at the start of training, so that nothing is nearly linear."""
    model = MODELS[request.param]().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm.weight" in name else 0.3 * noise)
    return model


def ids_of(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@torch.inference_mode()
def outputs(model: Model, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits where there is a head, else hidden states."""
    out: Tensor = model(ids, mask)
    return model.logits(out) if isinstance(model, BertMaskedLM) else out


def test_padding_changes_nothing_and_a_batch_is_its_rows(model: Model) -> None:
    lengths = [11, 3, 16, 1, 11]
    ids, mask = ids_of(5, 16), mask_of(lengths)
    together = outputs(model, ids, mask)
    other = outputs(model, torch.where(mask, ids, (ids + 5) % VOCAB), mask)
    for row, length in enumerate(lengths):
        alone = outputs(model, ids[row : row + 1, :length])[0]
        for batch in (together, other):
            real = batch[row] if isinstance(model, BertClassifier) else batch[row, :length]
            torch.testing.assert_close(real, alone, atol=2e-5, rtol=1e-5)


def test_every_token_sees_every_other(model: Model) -> None:
    ids = ids_of(1, 9)
    before = outputs(model, ids)[0]
    for place in (0, 4, 8):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCAB
        assert (outputs(model, changed)[0] - before).abs().reshape(-1, before.shape[-1]).amax(-1).min() > 1e-4


def test_the_order_of_the_tokens_matters(model: Model) -> None:
    ids = ids_of(1, 9)
    swapped = ids[:, [0, 2, 1, *range(3, 9)]]
    assert (outputs(model, ids) - outputs(model, swapped)).abs().max() > 1e-3


@pytest.mark.parametrize("model", ["bert-classifier", "distilbert-classifier"], indirect=True)
def test_classify_of_embed_is_forward_and_has_gradients(model: BertClassifier) -> None:
    ids, mask = ids_of(2, 7), mask_of([7, 4])
    embedded = model.embed(ids).detach().requires_grad_()
    logits = model.classify(embedded, mask)
    assert logits.shape == (2, 4) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(ids, mask))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), embedded)
    assert (gradient[mask].abs().amax(-1) > 0).all()
    assert not gradient[~mask].any()


def test_the_encoder_is_torch_s_own(model: Model) -> None:
    """nn.TransformerEncoder, post-norm, with the same weights: another implementation of the paper."""
    encoder = model if isinstance(model, Bert) else model.encoder
    layer = nn.TransformerEncoderLayer(24, 3, 40, 0.0, "gelu", BERT.norm_eps, batch_first=True, norm_first=False)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    for block, their in zip(encoder.blocks, theirs.layers, strict=True):
        assert isinstance(block, Block)
        their.self_attn.in_proj_weight.data = block.attention.qkv.weight.data
        their.self_attn.in_proj_bias.data = block.attention.qkv.bias.data
        their.self_attn.out_proj.load_state_dict(block.attention.out.state_dict())
        their.linear1.load_state_dict(block.feed_forward.up.state_dict())
        their.linear2.load_state_dict(block.feed_forward.down.state_dict())
        their.norm1.load_state_dict(block.attention_norm.state_dict())
        their.norm2.load_state_dict(block.feed_forward_norm.state_dict())
    ids, mask = ids_of(3, 9), mask_of([9, 5, 2])
    with torch.no_grad():
        x = encoder.embedding(ids) + encoder.positions(torch.arange(9))
        if encoder.types is not None:
            x = x + encoder.types(torch.zeros_like(ids))
        expected = theirs(encoder.embedding_norm(x), src_key_padding_mask=~mask)
        torch.testing.assert_close(encoder(ids, mask)[mask], expected[mask], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_attention_maps_are_those_that_forward_uses(model: Model) -> None:
    encoder = model if isinstance(model, Bert) else model.encoder
    ids, mask = ids_of(3, 9), mask_of([9, 5, 2])
    maps = model.attentions(ids, mask)
    assert [m.shape for m in maps] == [(3, 3, 9, 9)] * 2
    x, allowed = encoder._input(encoder.embed(ids), mask, None)
    for block, weights in zip(encoder.blocks, maps, strict=True):
        assert isinstance(block, Block)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 9))
        assert not weights.masked_select(~mask[:, None, None, :]).any()
        _, _, v = block.attention.heads(x)
        naive = block.attention.out((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(naive, block.attention(x, allowed), atol=1e-5, rtol=1e-5)
        x = block(x, allowed)


def test_token_types_count_in_bert() -> None:
    model = Bert(BERT).eval()
    ids, types = ids_of(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    assert torch.equal(model(ids), model(ids, None, torch.zeros_like(ids)))
    assert (model(ids) - model(ids, None, types)).abs().max() > 1e-4


def test_mean_of_the_real_tokens_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert pooled(hidden, mask).tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert pooled(hidden, torch.zeros_like(mask)).tolist() == [[0.0, 0.0]] * 2


def test_the_start_is_the_paper_s_and_the_generator_s() -> None:
    big = replace(BERT, d_model=96, d_ff=200, n_labels=2)
    one, again, other = (BertClassifier(big, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for (name, a), b, c in zip(one.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if name.endswith("bias"):
            assert not a.any()
        elif a.dim() == 1:
            assert (a == 1).all()
        else:
            assert not torch.equal(a, c)
            assert abs(a.std().item() - 0.02) < 0.004


@pytest.mark.parametrize("settings", [BERT, DISTIL])
def test_the_encoder_moves_from_pretraining_to_a_classifier(settings: BertSettings) -> None:
    pretrained, model = BertMaskedLM(settings).eval(), BertClassifier(settings).eval()
    fresh = take_encoder(model, pretrained)
    between = ["encoder.pooler"] if settings.layout == "bert" else ["pre_classifier"]
    assert fresh == [f"{name}.{kind}" for name in [*between, "classifier"] for kind in ("weight", "bias")]
    ids = ids_of(2, 6)
    assert torch.equal(model.encoder(ids), pretrained(ids))
    with pytest.raises(InputError, match="shape"):
        take_encoder(model, BertMaskedLM(replace(settings, vocab_size=40)))
    with pytest.raises(InputError, match="has no blocks"):
        take_encoder(model, BertMaskedLM(replace(settings, n_layers=1)))
    with pytest.raises(InputError, match="deeper"):
        take_encoder(model, BertMaskedLM(replace(settings, n_layers=3)))


def test_depths() -> None:
    for settings, between in ((BERT, "encoder.pooler"), (DISTIL, "pre_classifier")):
        depths = {name: layer_of(name, settings) for name, _ in BertClassifier(settings).named_parameters()}
        assert {depths[name] for name in depths if "embedding" in name or "positions" in name or "types" in name} == {0}
        assert {depths[name] for name in depths if "blocks.0." in name} == {1}
        assert {depths[name] for name in depths if "blocks.1." in name} == {2}
        assert {name for name, depth in depths.items() if depth == 3} == {
            f"{module}.{kind}" for module in (between, "classifier") for kind in ("weight", "bias")
        }
    gpt = GPTSettings(vocab_size=VOCAB, layout="gpt2", d_model=8, n_layers=2, n_heads=2, d_ff=16, max_len=4)
    depths = {name: gpt_layer_of(name, gpt) for name, _ in GPT(gpt).named_parameters()}
    assert depths["embedding.weight"] == depths["positions.weight"] == 0
    assert depths["blocks.1.attention.qkv.weight"] == 2
    assert depths["norm.weight"] == gpt_layer_of("lm_head.weight", gpt) == gpt_layer_of("score.weight", gpt) == 3
    assert gpt_layer_of("gpt.blocks.0.attention_norm.weight", gpt) == 1


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(InputError, match="not divisible"):
        replace(BERT, n_heads=5)
    with pytest.raises(InputError, match="1e-12"):
        replace(DISTIL, norm_eps=1e-5)
    with pytest.raises(InputError, match="n_labels"):
        BertClassifier(replace(BERT, n_labels=0))


def test_it_learns_whether_a_token_occurs() -> None:
    """A rule that needs attention: is token 7 anywhere among the others?"""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = BertClassifier(replace(BERT, n_labels=2, dropout=0.0), generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        ids = torch.randint(8, VOCAB, (32, 10), generator=generator)
        labels = torch.randint(2, (32,), generator=generator)
        places = torch.randint(1, 10, (32,), generator=generator)
        ids[torch.arange(32), places] = torch.where(labels == 1, 7, ids[torch.arange(32), places])
        loss = F.cross_entropy(model(ids, torch.ones_like(ids, dtype=torch.bool)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
