"""`explain`: why a classifier gave this answer to this text.

Which method: integrated gradients fit every family. A model whose score is a sum over its tokens already (`bag`) needs
no path, and "auto" finds that out by looking. Attention rollout says where a BERT looked, not why, and is only taken
when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.explain.contributions import contributions
from zhixing.explain.explanation import Explanation, Method
from zhixing.explain.integrated_gradients import (
    Classifier,
    PathAttribution,
    PathSettings,
    Score,
    integrated_gradients,
    log_odds,
    margin,
    single_logit,
)
from zhixing.explain.nearest import Index
from zhixing.explain.rollout import Attentive, rollout_weights
from zhixing.explain.spans import Span, join_to_words
from zhixing.tokens.tokenizer import lone_surrogate

# B rows, T tokens, C labels

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

BATCH_TOKENS = 8192  # in one forward pass over many texts


class SpanTokenizer(Protocol):
    """What makes the ids of a text as the model was trained on them, special tokens too, and where each stands."""

    @property
    def pad_id(self) -> int: ...
    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """An id and a span for each token; (0, 0) for a special token. An n-gram's span goes over its words."""
        ...


class Explainable(Protocol):
    """A loaded classifier: labels[c] is what logit c is called."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def tokenizer(self) -> SpanTokenizer: ...
    @property
    def labels(self) -> Sequence[str]: ...


def explain(
    run: Explainable,
    text: str,
    *,
    method: Literal["auto"] | Method = "auto",
    nearest: int = 0,
    training: Index | None = None,
    label: str | None = None,
    problem_type: ProblemType = "single_label_classification",
    temperature: float = 1.0,
    settings: PathSettings | None = None,
) -> Explanation:
    """Explain the answer to one text: the likeliest label, or the `label` that is named.

    nearest: how many training texts like this one to add; `training` is where they are looked for. temperature: of
    calibrated probabilities, by which logits are divided. An InputError: an empty text, an unknown label, a method that
    the model cannot have, nearest without training texts.
    """
    if method not in ("auto", *get_args(Method)):
        raise InputError(f"there is no method {method!r}", mend=f"take auto, {', '.join(get_args(Method))}")
    if nearest < 0:
        raise InputError(f"nearest = {nearest}", why="the least is 0")
    if nearest and training is None:
        raise InputError("there are no training texts to search for the nearest", mend="give training=WordIndex(...)")
    if label is not None and label not in run.labels:
        raise InputError(f"the model has no label {label!r}", why=f"its labels are {', '.join(run.labels)}")
    with _evaluating(run.model) as model:
        ids, spans, left_out = _tokens(run, text)
        logits = _logits(model, ids, temperature)  # (1, C)
        index, probability = _answer(logits, problem_type, None if label is None else list(run.labels).index(label))
        used, weights, found = _attribute(model, run, ids, spans, index, method, problem_type, temperature, settings)
    words, rest = join_to_words(text, spans, weights)
    score = _score(index, problem_type)(logits) if found is None else None
    return Explanation(
        text=text,
        label=run.labels[index] if len(run.labels) else "",
        probability=probability,
        method=used,
        score=float(score) if score is not None else cast(PathAttribution, found).score,
        baseline_score=None if found is None else found.baseline_score,
        words=tuple(words),
        rest=rest,
        gap=None if found is None else found.gap,
        complete=found is None or found.complete,
        nodes=1 if found is None else found.nodes,
        left_out=left_out,
        nearest=tuple(training.nearest(text, nearest)) if training is not None and nearest else (),
        lean=None if found is None else _lean(found.baseline_score, used, len(run.labels), problem_type),
    )


def _lean(start: float, method: Method, n_labels: int, problem_type: ProblemType) -> float | None:
    """How far the score of nothing is from that of C equal labels: log-odds of -log(C - 1), a margin of 0."""
    if problem_type == "regression":
        return None
    one_of_many = problem_type == "single_label_classification" and method == "integrated_gradients" and n_labels > 2
    return start + math.log(n_labels - 1) if one_of_many else start


def label_scores(
    run: Explainable,
    label: str,
    *,
    problem_type: ProblemType = "single_label_classification",
    temperature: float = 1.0,
) -> Callable[[list[str]], NDArray[np.float64]]:
    """The score that `explain` explains, as a function of texts: what the deletion test asks."""
    score = _score(list(run.labels).index(label), problem_type)

    def scores(texts: list[str]) -> NDArray[np.float64]:
        with _evaluating(run.model) as model, torch.no_grad():
            return _over_texts(run, texts, lambda ids, mask: score(_classified(model, ids, mask, temperature)))

    return scores


def pooled_states(run: Explainable) -> Callable[[list[str]], NDArray[np.float32]]:
    """What the model's last layer sees of each text, (B,) -> (B, D): the vectors of a `VectorIndex`.

    The last layer is the last nn.Linear with as many outputs as there are labels; its input is caught on the way, so
    that every family has pooled states without a second way through its forward pass.
    """
    n_labels = max(len(run.labels), 1)
    heads = [module for module in run.model.modules() if isinstance(module, nn.Linear)]
    heads = [module for module in heads if module.out_features == n_labels]
    if not heads:
        raise InputError(f"the model has no linear layer of {n_labels} outputs", mend="search by words: WordIndex")

    def states(texts: list[str]) -> NDArray[np.float32]:
        caught: list[Tensor] = []
        hook = heads[-1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))

        def pooled(ids: Tensor, mask: Tensor) -> Tensor:
            caught.clear()
            model.classify(model.embed(ids), mask)
            return caught[-1]  # (B, D)

        try:
            with _evaluating(run.model) as model, torch.no_grad():
                return _over_texts(run, texts, pooled).astype(np.float32)
        finally:
            hook.remove()

    return states


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[Classifier]:
    """The model in eval mode; as it was afterwards."""
    training = module.training
    module.eval()
    try:
        yield cast(Classifier, module)
    finally:
        module.train(training)


def _tokens(run: Explainable, text: str) -> tuple[Tensor, list[Span], int]:
    """ids (1, T) and their spans, cut to the model's longest text, and how many were cut off.

    Special tokens at the end ([SEP]) stay: text goes from before them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise lone_surrogate(error) from None
    ids, spans = run.tokenizer.encode_with_spans(text)
    if len(ids) != len(spans):
        raise ValueError(f"expected a span for each of {len(ids)} tokens, got {len(spans)}")
    if all(start >= end for start, end in spans):
        raise InputError("the text has no word that the model could read", where=repr(text[:40]))
    longest = getattr(run.model.settings, "max_len", 0) or len(ids)
    left_out = max(len(ids) - int(longest), 0)
    if left_out:
        last = len(spans)
        while spans[last - 1][0] >= spans[last - 1][1]:
            last -= 1
        ids = ids[: last - left_out] + ids[last:]
        spans[last - left_out : last] = []
    device = next(run.model.parameters()).device
    return torch.tensor([ids], dtype=torch.int64, device=device), spans, left_out


def _classified(model: Classifier, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return model.classify(model.embed(ids), mask).float() / temperature  # (B, C)


def _logits(model: Classifier, ids: Tensor, temperature: float) -> Tensor:
    with torch.no_grad():
        return _classified(model, ids, torch.ones_like(ids, dtype=torch.bool), temperature)


def _answer(logits: Tensor, problem_type: ProblemType, asked: int | None) -> tuple[int, float | None]:
    """The label's number and probability."""
    index = int(logits[0].argmax()) if asked is None else asked
    if problem_type == "regression":
        return index, None
    multi = problem_type == "multi_label_classification"
    probabilities = logits[0].sigmoid() if multi else logits[0].softmax(dim=0)
    return index, float(probabilities[index])


def _score(index: int, problem_type: ProblemType) -> Score:
    return log_odds(index) if problem_type == "single_label_classification" else single_logit(index)


def _attribute(
    model: Classifier,
    run: Explainable,
    ids: Tensor,
    spans: Sequence[Span],
    index: int,
    method: Literal["auto"] | Method,
    problem_type: ProblemType,
    temperature: float,
    settings: PathSettings | None,
) -> tuple[Method, list[float], PathAttribution | None]:
    """The method used, a weight for each token, and what is known of the weights' sum."""
    if method == "rollout":
        if not hasattr(model, "attentions"):
            raise InputError(
                "the model has no attention to follow",
                mend='take method="integrated_gradients", which fits every model',
            )
        return "rollout", rollout_weights(cast(Attentive, model), ids, place=0), None  # 0: BERT reads [CLS]
    if method in ("auto", "contributions"):
        linear = margin(index) if problem_type == "single_label_classification" else single_logit(index)
        found = contributions(model, ids, lambda logits: linear(logits / temperature))
        if found is not None:
            return "contributions", found.weights, found
        if method == "contributions":
            raise InputError(
                "the model's score is not a sum over its tokens", mend='take method="integrated_gradients"'
            )
    fixed = torch.tensor([start >= end for start, end in spans], device=ids.device)  # (T,)
    score = _score(index, problem_type)
    path = integrated_gradients(
        model, ids, fixed, lambda logits: score(logits / temperature), settings or PathSettings(), run.tokenizer.pad_id
    )
    return "integrated_gradients", path.weights, path


def _over_texts(run: Explainable, texts: list[str], compute: Callable[[Tensor, Tensor], Tensor]) -> NDArray[np.float64]:
    """compute(ids (B, T), mask (B, T)) of every text, in batches of like length, in the texts' own order.

    A text that has no token counts as one padding token.
    """
    rows = [_tokens_or_none(run, text) for text in texts]
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    device = next(run.model.parameters()).device
    found: list[NDArray[np.float64] | None] = [None] * len(rows)
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and len(rows[order[last]]) * (last + 1 - first) <= BATCH_TOKENS:
            last += 1
        batch = [rows[number] for number in order[first:last]]
        longest = max(map(len, batch))
        ids = torch.full((len(batch), longest), run.tokenizer.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(batch), longest), dtype=torch.bool)
        for row, numbers in enumerate(batch):
            ids[row, : len(numbers)] = torch.tensor(numbers)
            mask[row, : len(numbers)] = True
        values = compute(ids.to(device), mask.to(device)).double().cpu().numpy()
        for number, value in zip(order[first:last], values, strict=True):
            found[number] = value
        first = last
    return np.stack(cast(list[NDArray[np.float64]], found))


def _tokens_or_none(run: Explainable, text: str) -> list[int]:
    try:
        ids, _, _ = _tokens(run, text)
    except InputError:
        return [run.tokenizer.pad_id]
    row: list[int] = ids[0].tolist()
    return row
