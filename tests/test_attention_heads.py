"""The attention of every layer and head: that of transformers, to rounding, for every family that has any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from zhixing.explain.attention_heads import attention_heads, heads_of
from zhixing.interchange.model_directory import write_model_directory
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, write_seq2seq
from zhixing.models.bert import Bert, BertSettings
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.models.lstm_translator import LSTMTranslator, LSTMTranslatorSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(english_text: str) -> Tokenizer:
    found = train_tokenizer([english_text[:20_000]], "bpe", 300)
    found.end_texts()
    return found


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sharpened(model: Any, times: float = 6) -> Any:
    """With weights so large that heads look somewhere."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(times)
    return model.eval()


def same(ours: torch.Tensor, theirs: Any) -> None:
    """Ours (L, H, T, S) beside a tuple of (1, H, T, S); rows sum to 1 and are not all alike."""
    torch.testing.assert_close(ours, torch.cat(tuple(theirs)), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:-1]))
    assert ours.std() > 0.01


@pytest.mark.parametrize("layout", ["gpt2", "llama", "qwen3"])
def test_a_gpt_s_are_those_of_transformers(layout: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = GPTSettings(
        tokenizer.vocab_size, layout=layout, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=48
    )
    model = sharpened(GPT(settings, seeded()))
    write_model_directory(tmp_path, model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.tensor([tokenizer.encode("It is a truth universally acknowledged")])
    found = attention_heads(model, ids)
    assert list(found) == ["causal"] and heads_of(model) == {"causal": [4, 4, 4]}
    with torch.inference_mode():
        same(found["causal"], theirs(ids, output_attentions=True).attentions)
    assert not found["causal"].triu(1).any(), "no token looks at a later one"
    assert not any(module._forward_pre_hooks for module in model.modules()), "nothing stays behind"


def test_a_bert_s_are_those_of_transformers_and_its_own(english_text: str, tmp_path: Path) -> None:
    wordpiece = train_tokenizer([english_text[:20_000]], "wordpiece", 300)
    settings = BertSettings(wordpiece.vocab_size, d_model=32, n_layers=2, n_heads=4, d_ff=48, max_len=64)
    model = sharpened(Bert(settings, seeded()))
    write_model_directory(tmp_path, model, wordpiece)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.tensor([wordpiece.with_ends(wordpiece.encode("It is a truth universally acknowledged"))])
    found = attention_heads(model, ids)
    assert list(found) == ["bidirectional"]
    with torch.inference_mode():
        same(found["bidirectional"], theirs(ids, output_attentions=True).attentions)
        same(found["bidirectional"], model.attentions(ids))


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_an_encoder_decoder_s_are_those_of_transformers(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"d_model": 32, "n_encoder_layers": 2, "n_layers": 3, "n_heads": 4, "d_ff": 48}
    size = tokenizer.vocab_size
    model: Any = (
        Marian(MarianSettings(size, **sizes, max_len=64), seeded())
        if family == "marian"
        else T5(T5Settings(size, **sizes, d_kv=8, max_len=64), seeded())
    )
    model = sharpened(model, 2) if family == "marian" else model.eval()
    write_seq2seq(tmp_path, StoredSeq2Seq(model, tokenizer, "translation", "en", "zh"), num_beams=1)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    read = torch.tensor([tokenizer.with_ends(tokenizer.encode("It is a truth universally acknowledged"))])
    written = torch.tensor([[model.settings.start_id, *tokenizer.encode("a single man")]])
    found = attention_heads(model, written, read, torch.tensor([read.shape[1]]))
    assert heads_of(model) == {"bidirectional": [4, 4], "causal": [4, 4, 4], "cross": [4, 4, 4]}
    with torch.inference_mode():
        expected = theirs(input_ids=read, decoder_input_ids=written, output_attentions=True)
        same(found["bidirectional"], expected.encoder_attentions)
        same(found["causal"], expected.decoder_attentions)
        same(found["cross"], expected.cross_attentions)
        mean = model.attention_weights(written, read, torch.tensor([read.shape[1]]))
    assert not found["causal"].triu(1).any()
    torch.testing.assert_close(found["cross"][-2].mean(0), mean[0], atol=1e-6, rtol=0)


def test_a_recurrent_translator_looks_with_one_head_and_others_with_none(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    model = LSTMTranslator(LSTMTranslatorSettings(size, d_model=16, n_encoder_layers=1, n_layers=1), seeded()).eval()
    read, written = torch.tensor([[5, 6, 7]]), torch.tensor([[model.settings.start_id, 9]])
    found = attention_heads(model, written, read, torch.tensor([3]))
    assert heads_of(model) == {"cross": [1]} and found["cross"].shape == (1, 1, 2, 3)
    with torch.inference_mode():
        assert torch.equal(found["cross"][0], model.attention_weights(written, read, torch.tensor([3])))
    assert heads_of(LSTM(LSTMSettings(size, d_model=16, n_layers=1), seeded())) == {}
