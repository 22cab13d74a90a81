"""From texts to labels: encode, put texts that are too long right, run the model in batches of like length.

    encode_texts     texts -> rows of ids, and which text each row is of
    text_logits      rows -> logits (N, C), one row a text
    predictions      logits -> answers

Nothing here knows a family: a classifier is what takes (ids, mask) and gives logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zhixing.errors import InputError
from zhixing.tokens.tokenizer import Tokenizer

OnTooLong = Literal["error", "split", "truncate"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

BATCH_TOKENS = 8192  # in one forward pass, padding included
THRESHOLD = 0.5  # a label holds where its probability is above, of several labels


@dataclass(frozen=True)
class Prediction:
    """The answer to one text. `probabilities` are calibrated. A regression answers with `score` and has no label."""

    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...] | None = None  # of a problem with several labels: those that hold, perhaps none
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What there is of it, for JSON."""
        if self.score is not None:
            return {"score": self.score}
        several = {} if self.labels is None else {"labels": list(self.labels)}
        return {
            "label": self.label, "probability": self.probability, "probabilities": self.probabilities, **several
        }  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Rows of ids; owners[r] is the text that row r is (a part) of."""

    rows: list[list[int]]
    owners: NDArray[np.int64]
    n_texts: int
    too_long: int  # texts that had more tokens than the model can read


def encode_texts(
    texts: Sequence[str], tokenizer: Tokenizer, max_len: int, on_too_long: OnTooLong, *, places: Sequence[str] = ()
) -> Encoded:
    """Ids with the tokenizer's ends, at most max_len a row. Too long texts: an InputError, several rows, or cut."""
    room = max_len - len(tokenizer.with_ends([]))
    if room < 1:
        raise InputError(f"a context of {max_len} tokens holds no text", mend="raise model.max_len")
    rows: list[list[int]] = []
    owners: list[int] = []
    too_long = 0
    for number, ids in enumerate(tokenizer.encode_batch(texts)):
        if len(ids) > room:
            too_long += 1
            if on_too_long == "error":
                raise InputError(
                    f"a text has {len(ids):,} tokens, the model reads {room:,}",
                    where=places[number] if places else f"text {number + 1}",
                    mend='set on_too_long to "truncate" or "split"',
                )
        parts = [ids[:room]] if on_too_long != "split" else [ids[i : i + room] for i in range(0, len(ids) or 1, room)]
        for part in parts:
            rows.append(tokenizer.with_ends(part) or [tokenizer.pad_id])
            owners.append(number)
    return Encoded(rows, np.array(owners, np.int64), len(texts), too_long)


@torch.inference_mode()
def text_logits(
    model: nn.Module, encoded: Encoded, pad_id: int, watch: Callable[[int], None] = lambda done: None
) -> NDArray[np.floating]:
    """Logits (N, C) of each text, the mean over its rows where it has several; `watch` hears how many rows are done."""
    model.eval()
    lengths = [len(row) for row in encoded.rows]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found: NDArray[np.float32] | None = None
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and lengths[order[last]] * (last + 1 - first) <= BATCH_TOKENS:
            last += 1
        places = order[first:last]
        longest = lengths[places[-1]]
        ids = torch.full((len(places), longest), pad_id, dtype=torch.int64)  # (B, T)
        mask = torch.zeros(len(places), longest, dtype=torch.bool)
        for row, place in enumerate(places):
            ids[row, : lengths[place]] = torch.tensor(encoded.rows[place], dtype=torch.int64)
            mask[row, : lengths[place]] = True
        logits = model(ids, mask).float().numpy()  # (B, C)
        if found is None:
            found = np.empty((len(order), logits.shape[1]), np.float32)
        found[places] = logits
        first = last
        watch(first)
    assert found is not None
    if encoded.n_texts == len(order):
        return found
    sums = np.zeros((encoded.n_texts, found.shape[1]), np.float32)
    np.add.at(sums, encoded.owners, found)
    means: NDArray[np.floating] = sums / np.bincount(encoded.owners, minlength=encoded.n_texts)[:, None]
    return means


def probabilities_of(
    logits: NDArray[np.floating], problem_type: ProblemType, temperature: float
) -> NDArray[np.float64]:
    """Calibrated probabilities (N, C) of logits (N, C); for regression the numbers as they are."""
    z: NDArray[np.float64] = logits.astype(np.float64)
    if problem_type == "regression":
        return z
    z = z / temperature
    if problem_type == "multi_label_classification":
        z = z.clip(-700, 700)  # beyond, e^z is no number
        return np.asarray(1 / (1 + np.exp(-z)), np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return result


def predictions(
    probabilities: NDArray[np.float64], labels: Sequence[str], problem_type: ProblemType
) -> list[Prediction]:
    """An answer for each row of probabilities (N, C)."""
    if problem_type == "regression":
        return [Prediction("", math.nan, {}, score=float(row[0])) for row in probabilities]
    answers = []
    for row in probabilities:
        best = int(row.argmax())
        each = {label: float(p) for label, p in zip(labels, row, strict=True)}
        several = problem_type == "multi_label_classification"
        held = tuple(label for label, p in each.items() if p > THRESHOLD) if several else None
        answers.append(Prediction(labels[best], float(row[best]), each, held))
    return answers
