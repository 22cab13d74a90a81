"""Classification in context: a language model reads labelled examples, then a text, and says which label comes next.

    Text: A dull film.\\nLabel: negative\\n\\n  ...  Text: A delight.\\nLabel:     p(" positive\\n\\n" | all that)

Nothing is trained (Brown et al. 2020, section 2). A model prefers some labels whatever the text is, by what it has read
and by the examples' order; so each label's probability is divided by the one it has after inputs that say nothing
(Zhao et al. 2021, section 5: contextual calibration, W = diag(p_cf)^-1, b = 0):

    q_c  =  (p_c / p_cf,c) / sum_k (p_k / p_cf,k)

What differs from the paper: p_c is that of the whole label with what ends it, not of its first token, so that labels
may share a beginning. The examples are as many of each label as fit, in seeded order; the keys and values of all that
stands before the text are computed once for all texts.

Shapes: B rows, T tokens, C labels, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zhixing.errors import InputError
from zhixing.tokens.tokenizer import Tokenizer

LATIN = "Text: {text}\nLabel: {label}\n\n"
CHINESE = "文本：{text}\n标签：{label}\n\n"
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5
TEXT_SHARE = 0.25  # of the context, at least: for the text that is asked about
MOST_EXAMPLES = 8  # of each label, where their number is not given
BATCH_TOKENS = 16_384  # that the caches of a batch hold
BATCH_LOGITS = 1 << 24


@dataclass(frozen=True)
class Pattern:
    """How an example is written: before its text, between text and label, after the label."""

    before: str
    between: str
    after: str


@dataclass(frozen=True)
class Prompt:
    """What stands before every text, as ids, and what each label is, as ids with what ends it."""

    prefix: list[int]
    between: list[int]
    before: list[int]
    lead: str  # what a text begins with: the space that a word takes with it
    labels: tuple[str, ...]
    label_ids: list[list[int]]
    examples: int  # of each label
    cut: int  # examples that were cut to fit
    room: int  # tokens left for a text
    texts: tuple[str, ...]  # those of the examples: what the model has read before it answers


def parse_pattern(pattern: str) -> Pattern:
    """The three parts of a pattern; InputError where it has not both fields, first {text}, then {label}."""
    before, found, rest = pattern.partition("{text}")
    between, found_label, after = rest.partition("{label}")
    if not found or not found_label or not between or not after or "{text}" in rest or "{label}" in after:
        raise InputError(
            f"{pattern!r} is no pattern of examples",
            why="it needs {text}, then {label}, with something between them and something after",
            mend="write for example 'Review: {text}\\nOpinion: {label}\\n\\n'",
        )
    return Pattern(before, between, after)


def _joint(part: str) -> tuple[str, str]:
    """A part of the pattern without a space at its end, and that space: tokenizers join it to the word that follows."""
    return (part[:-1], " ") if part.endswith(" ") else (part, "")


def usual_pattern(texts: Sequence[str]) -> str:
    """Chinese words around texts that are mostly Chinese, else English ones."""
    characters = "".join(texts[:200])
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in characters)
    latin = sum("a" <= c.lower() <= "z" for c in characters)
    return CHINESE if chinese > latin / 4 else LATIN


def build_prompt(
    examples: Sequence[tuple[str, str]],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    max_len: int,
    *,
    pattern: str = "",
    per_label: int = 0,
    seed: int = 0,
) -> Prompt:
    """As many examples of each label as fit (or `per_label`), drawn and ordered by the seed.

    InputError where the labels have not as many, or they do not fit into the context with room for a text.
    """
    parts = parse_pattern(pattern or usual_pattern([text for text, _ in examples]))
    draw = np.random.default_rng([seed, 11])
    by_label = {label: [text for text, given in examples if given == label] for label in labels}
    least = min(by_label, key=lambda label: len(by_label[label]))
    if not by_label[least] or len(by_label[least]) < per_label:
        raise InputError(
            f"there are {len(by_label[least])} examples of {least!r}",
            why=f"{per_label or 'at least 1'} of each label are needed",
            mend="add some, or leave the label out",
        )
    before_text, text_lead = _joint(parts.before)
    before_label, label_lead = _joint(parts.between)
    before, between, after = (tokenizer.encode(part) for part in (before_text, before_label, parts.after))
    label_ids = [tokenizer.encode(label_lead + label) + after for label in labels]
    number = {label: place for place, label in enumerate(labels)}
    longest = max(len(ids) for ids in label_ids)
    frame = len(before) + len(between)
    budget = max_len - 1 - max(frame + longest + 1, int(TEXT_SHARE * max_len))  # for examples; 1 is what begins a text
    wanted = per_label or min(MOST_EXAMPLES, len(by_label[least]))
    chosen: list[list[int]] = []
    shown: list[str] = []
    cut = used = done = 0
    queues = {}
    for label in labels:
        order = draw.permutation(len(by_label[label]))
        queues[label] = [by_label[label][i] for i in order[: 64 + 8 * wanted]]
    encoded = {label: tokenizer.encode_batch([text_lead + text for text in queue]) for label, queue in queues.items()}
    while done < wanted:
        made: list[list[int]] = []
        of_texts: list[str] = []
        left = budget - used
        for place, label in enumerate(labels):
            own = frame + len(label_ids[number[label]])
            share = left // (len(labels) - place) - own  # tokens for a text, the others of this round have theirs
            queue = encoded[label]
            fits = next((i for i, ids in enumerate(queue) if len(ids) <= share), None)
            if fits is None and done and not per_label:
                break
            if share < 1 or (fits is None and not queue):
                break
            if fits is None:  # the first of its label, or one that was asked for
                ids, fits = queue[0][:share], 0
                cut += 1
            else:
                ids = queue[fits]
            del queue[fits]
            of_texts.append(queues[label].pop(fits))
            made.append([*before, *ids, *between, *label_ids[number[label]]])
            left -= own + len(ids)
        if len(made) < len(labels):
            break
        chosen += made
        shown += of_texts
        used, done = budget - left, done + 1
    if done < max(1, per_label):
        raise InputError(
            f"{max(1, per_label)} example{'s' * (per_label > 1)} of each of {len(labels)} labels do not fit",
            why=f"the model reads {max_len} tokens, {budget} of them may be examples; {done} of each fit",
            mend="ask for fewer, give fewer labels or shorter examples, or take a model with a longer context",
        )
    prefix = [tokenizer.eos_id]  # where one document ends the next begins: so the model has seen beginnings
    for i in draw.permutation(len(chosen)):
        prefix += chosen[i]
    room = max_len - len(prefix) - frame - longest
    return Prompt(prefix, between, before, text_lead, tuple(labels), label_ids, done, cut, room, tuple(shown))


@torch.inference_mode()
def label_log_probabilities(
    model: Any, prompt: Prompt, texts: Sequence[list[int]], watch: Callable[[int], None] = lambda done: None
) -> NDArray[np.float64]:
    """log p(label | examples, text) for each text's ids and each label: (N, C) float64, not normalised over labels.

    `texts` are no longer than prompt.room. The prefix is read once; each text continues a copy of its state, and each
    label a copy of the text's.
    """
    model.eval()
    heads = [[*prompt.before, *ids, *prompt.between] for ids in texts]
    order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
    labels = prompt.label_ids
    longest = max(map(len, labels))
    found = np.empty((len(texts), len(labels)))
    capacity = len(prompt.prefix) + max(map(len, heads), default=0) + longest
    start = model.new_state(1, capacity)
    model.step(torch.tensor([prompt.prefix]), torch.tensor([len(prompt.prefix)]), start)
    vocab_size = model.settings.vocab_size
    size = max(1, min(BATCH_TOKENS // (capacity * len(labels)), BATCH_LOGITS // (vocab_size * longest * len(labels))))
    label_rows, label_counts = _padded(labels)  # (C, L)
    for first in range(0, len(order), size):
        places = order[first : first + size]
        ids, counts = _padded([heads[i] for i in places])  # (B, T)
        state = start.select(torch.zeros(len(places), dtype=torch.int64))
        hidden = model.step(ids, counts, state)  # (B, T, D)
        last = hidden[torch.arange(len(places)), counts - 1]  # (B, D)
        opening = torch.log_softmax(model.logits(last), dim=-1)[:, label_rows[:, 0]]  # (B, C)
        totals = opening.double()
        if longest > 1:
            rows = torch.arange(len(places)).repeat_interleave(len(labels))  # (B C)
            state = state.select(rows)
            fed = label_rows.repeat(len(places), 1)[:, :-1]  # (B C, L - 1)
            after = model.step(fed, (label_counts - 1).repeat(len(places)), state)  # (B C, L - 1, D)
            targets = label_rows[:, 1:].repeat(len(places), 1)  # (B C, L - 1)
            each = torch.log_softmax(model.logits(after), dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            real = torch.arange(1, longest) < label_counts[:, None]  # (C, L - 1)
            sums = (each.double() * real.repeat(len(places), 1)).sum(dim=1)  # (B C,)
            totals = totals + sums.view(len(places), len(labels))
        found[places] = totals.numpy()
        watch(min(first + size, len(order)))
    return found


def _padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ragged rows as ids (B, T), right-padded with 0, and their lengths (B,)."""
    counts = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(counts.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, counts


def normalised(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """log p (N, C) -> p among these labels, rows sum to 1."""
    e = np.exp(logs - logs.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return result


def calibrated(logs: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """p_c / p_cf,c, normalised: log p (N, C) and the content-free p (C,) -> (N, C).

    p = 0.6, 0.4 with the prior 0.75, 0.25 -> 0.8, 1.6 -> 1/3, 2/3.
    """
    return normalised(logs - np.log(prior.clip(1e-300)))
