"""Sentence vectors: no text's vector depends on the others, and long texts are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from zhixing.embeddings import embed_texts
from zhixing.errors import InputError
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM, BertSettings, pooled
from zhixing.tasks.embedding import embed, padded
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat", "床前明月光", "a", "", "the dog sat on the mat and on the cat " * 2, "the cat sat"]


@pytest.fixture(scope="module", name="tokenizer")
def fixture_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, "wordpiece", 100)


@pytest.fixture(scope="module", name="model")
def fixture_model(tokenizer: Tokenizer) -> Bert:
    settings = BertSettings(tokenizer.vocab_size, d_model=24, n_layers=2, n_heads=3, d_ff=40, max_len=24, dropout=0.3)
    model = Bert(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def test_a_batch_is_its_texts_one_by_one(model: Bert, tokenizer: Tokenizer) -> None:
    model.train()
    found = embed(model, tokenizer, TEXTS, batch_size=4, normalize=False)
    assert model.training  # as it was, though dropout was off meanwhile
    assert found.vectors.shape == (6, 24) and found.n_long == 0
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        alone = embed(model, tokenizer, [text], normalize=False).vectors[0]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.with_ends(tokenizer.encode(TEXTS[0]))])
        torch.testing.assert_close(found.vectors[0], model.eval()(ids)[0].mean(0), atol=1e-5, rtol=1e-5)


def test_unit_length_and_any_head(model: Bert, tokenizer: Tokenizer) -> None:
    plain = embed(model, tokenizer, TEXTS, normalize=False).vectors
    unit = embed(model, tokenizer, TEXTS).vectors
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))
    for head in (
        BertMaskedLM(model.settings),
        BertClassifier(BertSettings(**(vars(model.settings) | {"n_labels": 2}))),
    ):
        head.encoder.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(embed(head, tokenizer, TEXTS).vectors, unit)
    assert embed(model, tokenizer, []).vectors.shape == (0, 24)


def test_texts_beyond_the_context(model: Bert, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat sat on the mat " * 10)
    texts = [TEXTS[0], "the cat sat on the mat " * 10]
    with pytest.raises(InputError, match=rf"text 2 has {len(ids)} tokens, the model takes 22"):
        embed(model, tokenizer, texts, too_long="error")
    short = embed(model, tokenizer, [TEXTS[0]], normalize=False).vectors[0]
    for how in ("truncate", "split"):
        found = embed(model, tokenizer, texts, normalize=False, too_long=how)  # type: ignore[arg-type]
        assert found.n_long == 1
        torch.testing.assert_close(found.vectors[0], short, atol=1e-5, rtol=1e-5)
        parts = [ids[:22]] if how == "truncate" else [ids[begin : begin + 20] for begin in range(0, len(ids), 20)]
        with torch.no_grad():
            rows, mask = padded([tokenizer.with_ends(part) for part in parts], tokenizer.pad_id)
            expected = pooled(model(rows, mask), mask).mean(0)
        torch.testing.assert_close(found.vectors[1], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="too_long"):
        embed(model, tokenizer, texts, too_long="guess")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        embed(model, tokenizer, texts, batch_size=0)


def test_padding_by_hand() -> None:
    ids, mask = padded([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("family", ["bag", "textcnn", "gpt2"])
def test_a_model_without_embeddings_is_refused_for_that(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        embed_texts(tmp_path, ["a"])
    assert refused.value.what == f"a {family} gives no sentence embeddings"
    assert "give a bert, or minilm" in refused.value.message()
