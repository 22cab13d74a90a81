"""What changes the scores of the next token before one is chosen, as pure functions.

Each takes logits (B, V) fp32 and returns new ones; what is filtered out becomes -inf, and at least one token always
stays. They are applied in the order of Hugging Face's generate: repetition penalty, bad words, forbidden ends, no
repeats, forced tokens, temperature, top-k, top-p, min-p. p below is softmax(logits) of the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zhixing.decoding.settings import DecodingSettings

_NEVER = float("-inf")


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """z_i / penalty if z_i > 0 else z_i * penalty, for the tokens i that the row holds already.

    Keskar et al. 2019 (CTRL), section 4.1, with the two cases that make a penalty above 1 lower a negative score too.
    seen (B, V) bool: True for the tokens of the row's own prompt and output.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def forbidden(logits: Tensor, rows: Sequence[int], ids: Sequence[int]) -> Tensor:
    """-inf for the given ids in the given rows: no end of text before min_new_tokens."""
    if not rows or not ids:
        return logits
    logits = logits.clone()
    if len(rows) == len(logits):
        for i in ids:  # a slice, and no tables of places: this stands in every step
            logits[:, i] = _NEVER
    else:
        logits[torch.tensor(rows)[:, None], torch.tensor(ids)] = _NEVER
    return logits


def repeating(ids: Sequence[int], size: int) -> list[int]:
    """The tokens that would end a run of `size` tokens which `ids` hold already (Paulus et al. 2018, section 2.5).

    For example size 3 and 5 6 7 9 5 6: it is 7. Size 1: every token of ids.
    """
    start = len(ids) - size + 1  # where the run begins that the next token ends
    if start < 1:
        return []
    begun = ids[start:]
    return [ids[at + size - 1] for at in range(start) if ids[at : at + size - 1] == begun]


def no_repeats(logits: Tensor, histories: Sequence[Sequence[int]], size: int) -> Tensor:
    """-inf for what would write an n-gram of `size` tokens a second time; histories: the tokens of each row so far.

    A row that would be left without a token stays as it is.
    """
    rows: list[int] = []
    ids: list[int] = []
    for row, history in enumerate(histories):
        found = repeating(history, size)
        rows += [row] * len(found)
        ids += found
    return _less(logits, rows, ids)


def no_bad_words(logits: Tensor, histories: Sequence[Sequence[int]], words: Sequence[Sequence[int]]) -> Tensor:
    """-inf for a token that would end one of `words`, which are token ids; histories: those of each row so far.

    For example the words 9 and 5 6: after 3 5 neither 9 nor 6 may follow, after 3 only 9 may not. A row that words of
    several tokens would leave without a token stays as it is.
    """
    logits = forbidden(logits, range(len(logits)), [word[0] for word in words if len(word) == 1])
    rows: list[int] = []
    ids: list[int] = []
    for row, history in enumerate(histories):
        for *before, last in words:
            if before and list(history[-len(before) :]) == before:
                rows.append(row)
                ids.append(last)
    return _less(logits, rows, ids)


def _less(logits: Tensor, rows: list[int], ids: list[int]) -> Tensor:
    """-inf for the id in the row beside it, but where a row would be left without a token."""
    if not rows:
        return logits
    less = logits.clone()
    less[torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device)] = _NEVER
    return torch.where(less.amax(dim=-1, keepdim=True) == _NEVER, logits, less)


def forced(logits: Tensor, rows: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Each of the given rows has one token left: the id that stands beside it."""
    logits = logits.clone()
    index = torch.tensor(rows, device=logits.device)
    logits[index] = _NEVER
    logits[index, torch.tensor(ids, device=logits.device)] = 0.0
    return logits


def temperature(logits: Tensor, value: float) -> Tensor:
    """(z - max z) / temperature: p_i becomes p_i^(1 / temperature), normed again (Ackley, Hinton & Sejnowski 1985).

    The greatest score is taken off first, which softmax does not see, so that a small temperature cannot overflow.
    """
    return (logits - logits.amax(dim=-1, keepdim=True)) / value


def _falling(x: Tensor) -> Tensor:
    """x (B, V) with each row sorted, greatest first.

    torch.sort also finds the places, and takes 3.3 ms for a row of 16,384 on one CPU core, more than a step of a small
    model; NumPy takes 0.05 ms.
    """
    if x.device.type != "cpu":
        return x.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(x.detach().numpy(), axis=-1)).flip(-1)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k greatest (Fan, Lewis & Dauphin 2018, section 5.1); what equals the k-th stays too."""
    if k >= logits.shape[-1]:
        return logits
    least = _falling(logits)[:, k - 1 : k]  # (B, 1)
    return torch.where(logits < least, _NEVER, logits)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of most probable tokens whose probabilities add up to p (Holtzman et al. 2020, eq. 2).

    A token stays if all more probable ones together have less than p; what equals the last of the set stays too. For
    example p = (0.5, 0.3, 0.2): 0.6 keeps two, 0.5 keeps one.
    """
    if p >= 1:
        return logits
    probabilities = logits.softmax(dim=-1)  # (B, V)
    falling = _falling(probabilities)
    mass = falling.cumsum(dim=-1, dtype=torch.float64)
    kept = (mass - falling < p).sum(dim=-1, keepdim=True).clamp(min=1)  # (B, 1), how many stay
    least = falling.gather(-1, kept - 1)  # (B, 1)
    return torch.where(probabilities < least, _NEVER, logits)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens with p_i >= p * max p (Nguyen et al. 2024, section 3)."""
    if p <= 0:
        return logits
    probabilities = logits.softmax(dim=-1)
    return torch.where(probabilities < p * probabilities.amax(dim=-1, keepdim=True), _NEVER, logits)


def filtered(logits: Tensor, settings: DecodingSettings) -> Tensor:
    """Temperature, top-k, top-p and min-p of the settings, in that order: logits (B, V) to sample from."""
    logits = temperature(logits, settings.temperature)
    if settings.top_k > 0:
        logits = top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = top_p(logits, settings.top_p)
    if settings.min_p > 0:
        logits = min_p(logits, settings.min_p)
    return logits
