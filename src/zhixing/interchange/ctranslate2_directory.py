"""A translator or a summarizer for CTranslate2, which runs it without torch, and the proof that it says the same.

    config.json  model.bin  shared_vocabulary.json (or source_ and target_vocabulary.json)     what CTranslate2 reads
    tokenizer.json  tokenizer_config.json          a text into its tokens and back; of OPUS-MT source.spm, target.spm

The names of CTranslate2's variables are those of its own `TransformerSpec`, which is filled from our tensors: it stacks
q, k, v and k, v by rows as we do, so nothing is copied, and transformers is not needed.

    ours (marian, t5)                       theirs
    encoder.0.attention.qkv.weight          encoder/layer_0/self_attention/linear_0/weight
    decoder.0.cross_attention.q, kv, out    decoder/layer_0/attention/linear_0, linear_1, linear_2
    encoder.0.feed_forward.up, down         encoder/layer_0/ffn/linear_0, linear_1; gate and up linear_0, linear_0_noact
    embedding.weight, positions             {encoder/embeddings_0, decoder/embeddings}/weight, position_encodings
    positions_read.weight                   relative_attention_bias of every layer
    logits_bias, lm_head.weight             decoder/projection/bias, weight

Nothing appears under the final name until CTranslate2 has loaded it and written the same tokens for some texts,
greedily and by beams, with the same scores. Only ties may differ: two logits, or the scores of two hypotheses, that are
closer than a tolerance. Its beam search with a patience of 1 is ours with early stopping; by itself it writes one token
at least, which ours need not, so it is asked with min_decoding_length=0.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from zhixing.decoding.beam import beam_search
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.files import atomic_dir
from zhixing.interchange.import_export import PROMPTS, TOLERANCE
from zhixing.interchange.seq2seq_directory import Seq2Seq, StoredSeq2Seq
from zhixing.models.lstm_translator import LSTMTranslator
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings
from zhixing.progress import Progress
from zhixing.tokens.tokenizer import Tokenizer

ACTIVATIONS = {"silu": "SWISH", "gelu": "GELU", "relu": "RELU", "gated-gelu": "GELUTanh"}
NEW_TOKENS = 64  # the most that are written for a text to compare
NEVER = -1e4  # a logit that no probability is left of


@dataclass(frozen=True)
class CTranslate2Report:
    """What was found before a directory was put in its place."""

    folder: Path
    version: str  # of CTranslate2
    n_parameters: int
    n_texts: int
    num_beams: int
    ties: int  # texts that it writes otherwise, greedily or by beams, by a choice between equals
    largest_difference: float  # of a text's score

    def summary(self) -> str:
        """What was checked, in a line."""
        how = f"greedily and with {self.num_beams} beams" if self.num_beams > 1 else "greedily"
        ties = f" but for {self.ties} ties" if self.ties else ""
        return (
            f"CTranslate2 {self.version} writes the same for {self.n_texts} texts, {how}, token by token{ties};"
            f" scores differ by {self.largest_difference:.1e} at most"
        )


def export_ctranslate2(
    stored: StoredSeq2Seq, out: Path, sources: Sequence[Sequence[int]], settings: DecodingSettings
) -> CTranslate2Report:
    """Write a model for CTranslate2 to a new folder `out`, where it writes the same for each of `sources`, rows of ids.

    settings: how the model is searched. InputError: CTranslate2 is not installed, or cannot do what the model does, or
    `out` exists; RuntimeError, and no `out`, if a check fails.
    """
    if isinstance(stored.model, LSTMTranslator):
        raise InputError("CTranslate2 runs Transformers only, and this is an lstm", mend="train a marian or a t5")
    if settings.forced_bos_token_id is not None or any(len(word) > 1 for word in settings.bad_words_ids):
        what = "this model cannot be exported to CTranslate2"
        why = "its generation_config.json forces a first token, or forbids words of several tokens: no folder there can"
        raise InputError(what, why=why)
    if importlib.util.find_spec("ctranslate2") is None:
        what = "an export to ctranslate2 needs the package ctranslate2"
        raise InputError(what, why="it is not installed", mend="pip install 'zhixing[ctranslate2]'")
    if os.path.lexists(out):
        raise InputError(f"{str(out)!r} exists", why="nothing is ever written over", mend="give a new folder")
    ctranslate2: Any = importlib.import_module("ctranslate2")
    tokenizer = stored.tokenizer
    facts = {"kind": "ctranslate2", "tokenizer_fingerprint": tokenizer.fingerprint()}
    with Progress("writing and checking", 3) as progress, atomic_dir(out, facts) as folder:
        spec = _spec(importlib.import_module("ctranslate2.specs"), stored, [word[0] for word in settings.bad_words_ids])
        spec.validate()
        spec.optimize()  # a table that stands at several places is written once
        spec.save(str(folder))
        tokenizer.save(folder, model_max_length=stored.model.settings.max_len)
        progress.update(1)
        _check_tokenizer(folder, tokenizer)
        progress.update(2)
        translator = ctranslate2.Translator(
            str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
        )
        ties, difference = _check_texts(translator, stored, sources, settings)
    n_parameters = sum(parameter.numel() for parameter in stored.model.parameters())
    version = str(ctranslate2.__version__)
    return CTranslate2Report(out, version, n_parameters, len(sources), settings.num_beams, ties, difference)


# ---- the model in its variables --------------------------------------------------------------------------------------


def _spec(specs: Any, stored: StoredSeq2Seq, banned: Sequence[int]) -> Any:
    """CTranslate2's TransformerSpec, filled, with vocabularies and special tokens; banned ids are never written."""
    model, tokenizer = stored.model, stored.tokenizer
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if isinstance(model, Marian):
        spec = marian_spec(specs, state, model.settings, model.positions.cpu())
    else:
        assert isinstance(model, T5)
        spec = t5_spec(specs, state, model.settings)
    if banned:  # OPUS-MT's pad, whose logit is not learnt, for example; the folder has no other place for it
        bias = state.get("logits_bias", torch.zeros(model.settings.vocab_size)).clone()
        bias[list(banned)] = NEVER
        spec.decoder.projection.bias = bias
    written = tokenizer.target
    read_tokens = tokens_of(tokenizer, model.source_vocab_size)
    written_tokens = tokens_of(written, model.settings.vocab_size)
    spec.register_source_vocabulary(read_tokens)
    spec.register_target_vocabulary(written_tokens)
    start = written_tokens[model.settings.start_id]
    spec.config.decoder_start_token = spec.config.bos_token = start
    spec.config.eos_token = written.eos
    # One that the vocabulary lacks would be added behind it, where no embedding is. What knows every byte needs none.
    spec.config.unk_token = start if written.unk is None else written.unk
    spec.config.layer_norm_epsilon = model.settings.norm_eps
    return spec


def tokens_of(tokenizer: Tokenizer, size: int) -> list[str]:
    """The token of each of a model's `size` ids; one that the tokenizer has not gets a name that no other has."""
    known = tokenizer.vocabulary()
    names = set(known)
    return [known[i] if i < len(known) and known[i] else _unused(i, names) for i in range(size)]


def _unused(i: int, names: set[str]) -> str:
    name = f"<unused_{i}>"
    while name in names:
        name = f"<{name}>"
    return name


def marian_spec(specs: Any, state: Mapping[str, Tensor], s: MarianSettings, positions: Tensor) -> Any:
    """A Marian's tensors as a TransformerSpec; positions (max_len, D)."""
    spec = specs.TransformerSpec.from_config(
        (s.n_encoder_layers, s.n_layers),
        s.n_heads,
        pre_norm=False,
        activation=specs.Activation[ACTIVATIONS[s.activation]],
    )
    table = state["embedding.weight"]
    spec.encoder.embeddings[0].weight = state.get("source_embedding.weight", table)
    spec.decoder.embeddings.weight = table
    spec.decoder.projection.weight = table
    spec.decoder.projection.bias = state["logits_bias"]
    for side in (spec.encoder, spec.decoder):
        side.scale_embeddings = float(s.d_model) ** 0.5 if s.scale_embedding else 1.0
        side.position_encodings.encodings = positions
    _fill_layers(spec, state)
    return spec


def t5_spec(specs: Any, state: Mapping[str, Tensor], s: T5Settings) -> Any:
    """A T5's tensors as a TransformerSpec."""
    how = {
        "pre_norm": True,
        "activation": specs.Activation[ACTIVATIONS[s.feed_forward]],
        "relative_attention_bias": True,
        "ffn_glu": s.feed_forward == "gated-gelu",
        "rms_norm": True,
    }
    encoder: Any = specs.TransformerEncoderSpec(s.n_encoder_layers, s.n_heads, head_dim=s.d_kv, **how)
    decoder: Any = specs.TransformerDecoderSpec(s.n_layers, s.n_heads, head_dim=s.d_kv, **how)
    spec = specs.TransformerSpec(encoder, decoder)
    table = state["embedding.weight"]
    encoder.embeddings[0].weight = decoder.embeddings.weight = table
    encoder.layer_norm.gamma, decoder.layer_norm.gamma = state["encoder_norm.weight"], state["norm.weight"]
    decoder.projection.weight = state.get("lm_head.weight", table)
    if s.tie_embeddings:
        decoder.scale_outputs = float(s.d_model) ** -0.5
    for side, name in ((encoder, "positions_read"), (decoder, "positions_written")):
        side.scale_embeddings = False
        for layer in side.layer:
            layer.self_attention.relative_attention_bias = state[f"{name}.weight"]
            layer.self_attention.relative_attention_max_distance = torch.tensor(s.max_distance, dtype=torch.int32)
    _fill_layers(spec, state)
    for layer in (*encoder.layer, *decoder.layer):
        layer.self_attention.queries_scale = 1.0
    for layer in decoder.layer:
        layer.attention.queries_scale = 1.0
    return spec


def _fill_layers(spec: Any, state: Mapping[str, Tensor]) -> None:
    """Attention, feed-forward and norms of every block of both sides."""
    for name, side in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        for i, layer in enumerate(side.layer):
            block = f"{name}.{i}"
            parts = [
                (layer.self_attention, "attention", ("attention.qkv", "attention.out")),
                (layer.ffn, "feed_forward", ()),
            ]
            if name == "decoder":
                cross = ("cross_attention.q", "cross_attention.kv", "cross_attention.out")
                parts.append((layer.attention, "cross_attention", cross))
            for part, ours, products in parts:
                _fill_norm(part.layer_norm, state, f"{block}.{ours}_norm")
                for linear, product in zip(getattr(part, "linear", ()), products, strict=True):
                    _fill_linear(linear, state, f"{block}.{product}")
            _fill_linear(layer.ffn.linear_1, state, f"{block}.feed_forward.down")
            if hasattr(layer.ffn, "linear_0_noact"):
                gate, up = state[f"{block}.feed_forward.up.weight"].chunk(2)  # (F, D) each
                layer.ffn.linear_0.weight, layer.ffn.linear_0_noact.weight = gate, up
            else:
                _fill_linear(layer.ffn.linear_0, state, f"{block}.feed_forward.up")


def _fill_linear(linear: Any, state: Mapping[str, Tensor], name: str) -> None:
    linear.weight = state[f"{name}.weight"]
    if f"{name}.bias" in state:
        linear.bias = state[f"{name}.bias"]


def _fill_norm(norm: Any, state: Mapping[str, Tensor], name: str) -> None:
    norm.gamma = state[f"{name}.weight"]
    if f"{name}.bias" in state:
        norm.beta = state[f"{name}.bias"]


# ---- the proof -------------------------------------------------------------------------------------------------------


def _check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """What was written cuts texts as before, for us and for those who read tokenizer.json by its own library."""
    if Tokenizer.load(folder).fingerprint() != tokenizer.fingerprint():
        raise RuntimeError("the tokenizer that was written gives other ids")
    if not (folder / "tokenizer.json").is_file():
        return
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in PROMPTS:
        if theirs.encode(text).ids != tokenizer.with_ends(tokenizer.encode(text)):
            raise RuntimeError(f"the tokenizer.json that was written gives {text!r} other ids")


def _check_texts(
    translator: Any, stored: StoredSeq2Seq, sources: Sequence[Sequence[int]], settings: DecodingSettings
) -> tuple[int, float]:
    """Compare what is written greedily and by beams: how many texts differ by a tie, the largest difference of a score.

    RuntimeError names what differs.
    """
    model, written = stored.model, stored.tokenizer.target
    read = tokens_of(stored.tokenizer, model.source_vocab_size)
    ids_of = {token: i for i, token in enumerate(tokens_of(written, model.settings.vocab_size))}
    most = min(NEW_TOKENS, settings.max_new_tokens)
    tied: set[int] = set()
    largest = 0.0
    for beams in sorted({1, settings.num_beams}):
        asked = replace(
            settings, num_beams=beams, max_new_tokens=most, early_stopping=True, n=1, forced_eos_token_id=None
        )  # the end that some force where their room is full, CTranslate2 leaves away
        ours = [best[0] for best in beam_search(model, sources, asked)]
        theirs = translator.translate_batch(
            [[read[i] for i in row] for row in sources], beam_size=beams, length_penalty=settings.length_penalty,
            min_decoding_length=0, max_decoding_length=most, max_input_length=0, return_scores=True,
            return_end_token=True,
        )  # fmt: skip
        how = f"with {beams} beams" if beams > 1 else "greedily"
        for number, (source, mine, other) in enumerate(zip(sources, ours, theirs, strict=True), 1):
            ids = [*mine.ids, written.eos_id] if mine.finish_reason == "stop" else mine.ids
            their_ids, difference = [ids_of[token] for token in other.hypotheses[0]], abs(mine.score - other.scores[0])
            equal = their_ids == ids
            apart = difference if equal or beams > 1 else _gap(model, source, ids, their_ids)
            if not apart <= TOLERANCE * max(1.0, abs(mine.score)):
                what = "the same with another score" if equal else f"the tokens {their_ids}, we {ids}"
                raise RuntimeError(f"CTranslate2 writes {how} for text {number} {what} ({apart:.2g} apart)")
            if equal:
                largest = max(largest, difference)
            else:
                tied.add(number)
    return len(tied), largest


@torch.inference_mode()
def _gap(model: Seq2Seq, source: Sequence[int], ids: Sequence[int], their_ids: Sequence[int]) -> float:
    """How far apart our model has the two tokens at the first place where two greedy texts differ."""
    place = next(
        (i for i, (a, b) in enumerate(zip(ids, their_ids, strict=False)) if a != b), min(len(ids), len(their_ids))
    )
    if place == min(len(ids), len(their_ids)):
        return math.inf  # one ends where the other goes on, without a token that ends a text
    before = torch.tensor([[model.settings.start_id, *ids[:place]]])  # (1, T)
    logits = model.logits(model(before, torch.tensor([source]), torch.tensor([len(source)]))[0, -1])  # (V,)
    return abs(float(logits[ids[place]] - logits[their_ids[place]]))


# ---- how it is used --------------------------------------------------------------------------------------------------


def usage(folder: Path, stored: StoredSeq2Seq, settings: DecodingSettings, text: str, tag: str = "") -> str:
    """Python that has the exported model write for a text as it was checked; tag: the language's, such as >>de<<."""
    how = (
        f"beam_size={settings.num_beams}, length_penalty={settings.length_penalty:g}, min_decoding_length=0,"
        f" max_decoding_length={settings.max_new_tokens}"
    )
    before = f"{tag!r}, " if tag else ""
    place = {name: repr(str(folder / name)) for name in ("tokenizer.json", "source.spm", "target.spm")}
    lines = ["import ctranslate2, tokenizers", f"tokenizer = tokenizers.Tokenizer.from_file({place['tokenizer.json']})",
             f"tokens = [{before}*tokenizer.encode({text!r}).tokens]"]  # fmt: skip
    answer = "tokenizer.decode([tokenizer.token_to_id(token) for token in best])"
    if not (folder / "tokenizer.json").is_file():
        ends = [stored.tokenizer.vocabulary()[i] for i in stored.tokenizer.with_ends([])]
        load = "sentencepiece.SentencePieceProcessor(model_file="
        lines = ["import ctranslate2, sentencepiece", f"source = {load}{place['source.spm']})",
                 f"target = {load}{place['target.spm']})",
                 f"tokens = [{before}*source.encode({text!r}, out_type=str), *{ends!r}]"]  # fmt: skip
        answer = "target.decode(best)"
    lines += [f"translator = ctranslate2.Translator({str(folder)!r})",
              f"best = translator.translate_batch([tokens], {how})[0].hypotheses[0]", f"print({answer})"]  # fmt: skip
    return "\n".join(lines)
