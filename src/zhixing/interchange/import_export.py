"""Take a model directory of others in, give one of ours out, and check both before saying done.

Nothing appears under the final name until what was written has been read back with the same weights, and, where
transformers is installed, until transformers has made of it the same ids, the same logits and the same greedy text.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.files import atomic_dir
from zhixing.interchange.model_directory import (
    Dtype,
    Encoder,
    Model,
    build_model,
    check_fingerprint,
    read_any_model,
    read_weights,
    stored_dtype,
    write_model_directory,
)
from zhixing.interchange.transformers_layout import DTYPES, LabelFacts, Settings, labels_of
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM
from zhixing.models.lstm import LSTM
from zhixing.progress import Progress
from zhixing.tokens.tokenizer import Tokenizer

TOLERANCE = 1e-4  # of a logit, as a share of the largest one where that is above 1
NEW_TOKENS = 16
VOCABULARY_ROWS = ("embedding.weight", "lm_head.weight", "encoder.embedding.weight", "bias")  # one row for each id
PROMPTS = (
    "It is a truth universally acknowledged",
    "The cat sat on the mat, and then",
    "def add(a, b):\n    return",
    "  Two spaces, a tab\tand 1234.5 numbers!",
    "床前明月光，",
    "今天天气很好，我们",
    "Mixed 中英文 text — with “quotes” 和标点。",
    "naïve café 🙂 ½",
)


@dataclass(frozen=True)
class CheckReport:
    """What was found before a directory was put in its place."""

    folder: Path
    n_parameters: int
    dtype: str
    n_prompts: int
    transformers: str  # its version; empty where it is not installed or has no such model
    largest_difference: float  # between a logit of ours and of transformers
    rows_cut: int  # padding of the vocabulary that an import left out


def export_model(
    run: Path, out: Path, *, max_shard_size: int | str | None = None, dtype: Dtype = "float32"
) -> CheckReport:
    """Write the model of a run (or of any model directory) to a new folder `out`, for transformers to load.

    InputError if `run` cannot be read or `out` exists; RuntimeError, and no `out`, if a check fails.
    """
    model, tokenizer, config = read_any_model(run)
    labels = labels_of(config) if isinstance(model, BertClassifier) else None
    return _write_checked(out, model, tokenizer, dtype, max_shard_size, labels, rows_cut=0)


def import_model(src: Path, out: Path) -> CheckReport:
    """Read a model directory that another tool wrote, and write it as ours to a new folder `out`.

    The rows by which a vocabulary was padded beyond its tokenizer are left out: no text has them. The weights keep
    their dtype. InputError if `src` holds what we do not compute or `out` exists; RuntimeError, and no `out`, if a
    check fails.
    """
    settings, state, config = read_weights(src)
    tokenizer = Tokenizer.load(src)
    check_fingerprint(config, tokenizer, src)
    rows_cut = max(0, settings.vocab_size - tokenizer.vocab_size)
    if rows_cut:
        settings, state = cut_vocabulary(settings, state, tokenizer.vocab_size)
    model = build_model(settings, state)
    labels = labels_of(config) if isinstance(model, BertClassifier) else None
    return _write_checked(out, model, tokenizer, stored_dtype(state), None, labels, rows_cut=rows_cut)


def cut_vocabulary(
    settings: Settings, state: Mapping[str, Tensor], vocab_size: int
) -> tuple[Settings, dict[str, Tensor]]:
    """The model less the embeddings and logits of ids from `vocab_size` on; the other logits stay as they were."""
    cut = {name: tensor[:vocab_size].clone() if name in VOCABULARY_ROWS else tensor for name, tensor in state.items()}
    return replace(settings, vocab_size=vocab_size), cut


def _write_checked(
    out: Path,
    model: Model | Encoder,
    tokenizer: Tokenizer,
    dtype: Dtype,
    max_shard_size: int | str | None,
    labels: LabelFacts | None,
    *,
    rows_cut: int,
) -> CheckReport:
    if os.path.lexists(out):
        raise InputError(f"{str(out)!r} exists", why="nothing is ever written over", mend="give a new folder")
    facts = {"kind": "model", "tokenizer_fingerprint": tokenizer.fingerprint()}
    with Progress("writing and checking", 3) as progress, atomic_dir(out, facts) as folder:
        write_model_directory(folder, model, tokenizer, dtype=dtype, max_shard_size=max_shard_size, labels=labels)
        progress.update(1)
        again, tokenizer_again, _ = read_any_model(folder)
        prompts = [tokenizer.encode(text) for text in PROMPTS]
        _check_same_weights(model, again, dtype)
        if prompts != [tokenizer_again.encode(text) for text in PROMPTS]:
            raise RuntimeError("the tokenizer that was written gives other ids")
        progress.update(2)
        version, difference = "", 0.0
        if importlib.util.find_spec("transformers") is not None and not isinstance(model, LSTM):
            check: Any = check_with_transformers if isinstance(again, Model) else check_encoder_with_transformers
            version, difference = check(folder, again, tokenizer_again, PROMPTS)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return CheckReport(out, n_parameters, dtype, len(PROMPTS), version, difference, rows_cut)


def _check_same_weights(model: Model | Encoder, again: Model | Encoder, dtype: Dtype) -> None:
    """Read back bit by bit what was to be written: the weights in the files' dtype."""
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor.cpu().to(DTYPES[dtype]).to(tensor.dtype), state[name].to(tensor.dtype)):
            raise RuntimeError(f"{name} was not read back as it was written")


@torch.inference_mode()
def greedy(model: Model, ids: Sequence[int], n_new: int) -> list[int]:
    """The `n_new` most probable next ids, one after the other, by the decoding state."""
    state: Any = model.new_state(1, len(ids) + n_new)
    hidden = model.step(torch.tensor([ids]), torch.tensor([len(ids)]), state)  # (1, T, D)
    made: list[int] = []
    while True:
        made.append(int(model.logits(hidden[0, -1]).argmax()))
        if len(made) == n_new:
            return made
        hidden = model.step(torch.tensor([made[-1:]]), torch.tensor([1]), state)


@torch.inference_mode()
def check_with_transformers(
    folder: Path, model: Model, tokenizer: Tokenizer, prompts: Sequence[str]
) -> tuple[str, float]:
    """Load the folder with transformers and compare: ids, logits, greedy ids. -> its version, the largest difference.

    RuntimeError names what differs. Two logits closer than the tolerance may change places: greedy text is compared up
    to there.
    """
    theirs, their_tokenizer, version = _load_with_transformers(folder, "AutoModelForCausalLM")
    largest = 0.0
    longest = model.settings.max_len - NEW_TOKENS
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        their_ids = their_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if their_ids != ids:
            raise RuntimeError(f"transformers gives {prompt!r} the ids {their_ids}, we {ids}")
        ids = ids[: max(1, longest)] or [tokenizer.eos_id]
        new_ids = greedy(model, ids, min(NEW_TOKENS, model.settings.max_len - len(ids)))
        both = torch.tensor([ids + new_ids])
        ours = model.logits(model(both))[0]  # (T, V)
        other = theirs(both).logits[0]  # (T, V)
        difference = (ours - other).abs().max().item()
        tolerance = TOLERANCE * max(1.0, ours.abs().max().item())
        if not difference <= tolerance:
            raise RuntimeError(f"a logit of {prompt!r} differs by {difference:.2g} between transformers and us")
        largest = max(largest, difference)
        for place, new_id in enumerate(new_ids, len(ids) - 1):
            if other[place].max() - other[place, new_id] > tolerance:
                raise RuntimeError(f"the greedy continuation of {prompt!r} differs between transformers and us")
    return version, largest


@torch.inference_mode()
def check_encoder_with_transformers(
    folder: Path, model: Encoder, tokenizer: Tokenizer, prompts: Sequence[str]
) -> tuple[str, float]:
    """The same for a model that reads: ids with their ends, and hidden states or logits."""
    suffix = {"none": "", "masked_lm": "ForMaskedLM", "classifier": "ForSequenceClassification"}[model.settings.head]
    theirs, their_tokenizer, version = _load_with_transformers(folder, f"AutoModel{suffix}")
    largest = 0.0
    for prompt in prompts:
        ids = tokenizer.with_ends(tokenizer.encode(prompt))
        their_ids = their_tokenizer(prompt)["input_ids"]
        if their_ids != ids:
            raise RuntimeError(f"transformers gives {prompt!r} the ids {their_ids}, we {ids}")
        one = torch.tensor([ids[: model.settings.max_len]])  # (1, T)
        found = theirs(one)
        other = found.last_hidden_state if isinstance(model, Bert) else found.logits
        ours = model.logits(model(one)) if isinstance(model, BertMaskedLM) else model(one)
        difference = (ours - other).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, ours.abs().max().item()):
            raise RuntimeError(f"an output for {prompt!r} differs by {difference:.2g} between transformers and us")
        largest = max(largest, difference)
    return version, largest


def _load_with_transformers(folder: Path, auto_class: str) -> tuple[Any, Any, str]:
    """The model (fp32, in eval mode), the tokenizer, and the version of transformers. RuntimeError if it will not."""
    transformers: Any = importlib.import_module("transformers")
    try:
        with _quiet(transformers):
            theirs, loading = getattr(transformers, auto_class).from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and others
        raise RuntimeError(f"transformers {transformers.__version__} cannot load the directory") from error
    odd = {kind: sorted(names) for kind, names in loading.items() if names}
    if odd:
        raise RuntimeError(f"transformers does not find the weights that it expects: {odd}")
    return theirs.float().eval(), their_tokenizer, str(transformers.__version__)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no notes from transformers inside; as before outside."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
