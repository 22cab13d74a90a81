"""Texts to vectors: the mean of an encoder's hidden states over a text's tokens (Reimers & Gurevych 2019).

With `normalize` a vector has length 1, so that the product of two is their cosine: how alike the texts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM, pooled
from zhixing.progress import Progress
from zhixing.tokens.tokenizer import Tokenizer

TooLong = Literal["error", "truncate", "split"]


@dataclass(frozen=True)
class Embedded:
    """The vectors of some texts, in their order."""

    vectors: Tensor  # (N, D) fp32
    n_long: int  # texts that were longer than the context: cut off, or split and averaged


@torch.inference_mode()
def embed(
    model: Bert | BertMaskedLM | BertClassifier,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    normalize: bool = True,
    too_long: TooLong = "truncate",
) -> Embedded:
    """One vector for each text. `too_long`: what becomes of a text of more tokens than the model takes at once.

    "error": an InputError; "truncate": its beginning counts; "split": it is cut into parts of about equal length, and
    its vector is the mean of theirs. Texts of like lengths are encoded together, so little is padded, and no text's
    vector depends on the others.
    """
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size} cannot be", mend="take at least 1")
    if too_long not in ("error", "truncate", "split"):
        raise InputError(f"too_long = {too_long!r} is not known", mend="one of error, truncate, split")
    encoder = model if isinstance(model, Bert) else model.encoder
    was_training = encoder.training
    encoder.eval()
    room = encoder.settings.max_len - len(tokenizer.with_ends([]))  # tokens of the text itself
    parts: list[list[int]] = []
    owners: list[int] = []  # the text of each part
    n_long = 0
    for number, ids in enumerate(tokenizer.encode_batch(texts)):
        if len(ids) <= room:
            pieces = [ids]
        elif too_long == "error":
            raise InputError(
                f"text {number + 1} has {len(ids)} tokens, the model takes {room}",
                where=repr(texts[number][:60]),
                mend='shorten it, or set too_long to "truncate" or "split"',
            )
        else:
            n_long += 1
            pieces = [ids[:room]]
            if too_long == "split":
                pieces = [piece.tolist() for piece in np.array_split(np.array(ids), -(-len(ids) // room))]
        for piece in pieces:
            parts.append(tokenizer.with_ends(piece))
            owners.append(number)

    found = torch.zeros(len(parts), encoder.settings.d_model)  # a text of no token at all keeps zeros
    order = sorted((i for i in range(len(parts)) if parts[i]), key=lambda i: -len(parts[i]))  # what may not fit first
    device = encoder.embedding.weight.device
    with Progress("embedding", len(order)) as progress:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch, mask = (t.to(device) for t in padded([parts[i] for i in rows], tokenizer.pad_id))  # (B, T) each
            found[rows] = pooled(encoder(batch, mask), mask).float().cpu()  # (B, D)
            progress.update(begin + len(rows))
    encoder.train(was_training)

    vectors = torch.zeros(len(texts), encoder.settings.d_model)
    counts = torch.zeros(len(texts))
    owned = torch.tensor(owners, dtype=torch.int64)
    vectors.index_add_(0, owned, found)
    counts.index_add_(0, owned, torch.ones(len(parts)))
    vectors /= counts.clamp(min=1)[:, None]
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    return Embedded(vectors, n_long)


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids (B, T) int64 filled up on the right, mask (B, T) bool, True = real."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
