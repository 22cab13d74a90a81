"""A GPT as classifier: transformers' numbers, and padding that changes nothing."""

from __future__ import annotations

import pytest
import torch

from zhixing.models.gpt import GPT, GPTClassifier, GPTClassifierSettings, GPTSettings

LAYOUTS = ["qwen3", "llama", "gpt2"]


def make(layout: str) -> GPTClassifier:
    settings = GPTSettings(50, layout, 24, 2, 4, 2, 40, 16, tie_embeddings=False)  # type: ignore[arg-type]
    model = GPTClassifier(GPTClassifierSettings(settings, 3), torch.Generator().manual_seed(5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_batch_equals_single(layout: str) -> None:
    model = make(layout)
    lengths = [12, 1, 5]
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    together = model(ids, mask)
    for row, n in enumerate(lengths):
        alone = model(ids[row : row + 1, :n], mask[row : row + 1, :n])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
        last = model.gpt(ids[row : row + 1, :n])[0, -1]
        torch.testing.assert_close(together[row], last @ model.score.weight.T, atol=1e-5, rtol=1e-5)
    assert model.settings.vocab_size == 50 and model.settings.max_len == 16 and model.settings.d_model == 24
    assert "gpt.lm_head.weight" not in model.state_dict()


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_starts_from_a_language_model(layout: str) -> None:
    model = make(layout)
    gpt = GPT(GPTSettings(50, layout, 24, 2, 4, 2, 40, 16, tie_embeddings=False), torch.Generator().manual_seed(9))  # type: ignore[arg-type]
    model.start_from(gpt)
    ids = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.gpt(ids), gpt(ids))


@torch.inference_mode()
def test_transformers_gives_the_same() -> None:
    """GPT2ForSequenceClassification with our weights: the last token that is no padding, one matrix, no bias."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = make("gpt2")
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4, n_inner=40, num_labels=3, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    other = GPT2ForSequenceClassification(config).eval()
    ours = model.gpt
    theirs = {"score.weight": model.score.weight, "transformer.wte.weight": ours.embedding.weight}
    assert ours.positions is not None
    theirs["transformer.wpe.weight"] = ours.positions.weight
    names = {
        "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2", "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj",
    }  # fmt: skip
    for layer, block in enumerate(ours.blocks):
        for mine, his in names.items():
            for kind in ("weight", "bias"):
                value = block.get_parameter(f"{mine}.{kind}")
                theirs[f"transformer.h.{layer}.{his}.{kind}"] = (
                    value.T if value.dim() == 2 else value
                )  # Conv1D is [in, out]
    for kind in ("weight", "bias"):
        theirs[f"transformer.ln_f.{kind}"] = ours.norm.get_parameter(kind)
    missing = other.load_state_dict(theirs, strict=False)
    assert not missing.unexpected_keys and all(
        "attn.bias" in key or "masked_bias" in key for key in missing.missing_keys
    )
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 2, 6])[:, None]
    ids = ids.masked_fill(~mask, 0)
    expected = other(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(model(ids, mask), expected, atol=1e-5, rtol=1e-5)
