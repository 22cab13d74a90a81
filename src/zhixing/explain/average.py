"""Why an average of classifiers gave its answer: what its members say of each word, weighed as their answers are.

    score = sum_m w_m score_m,  weight of a word = sum_m w_m weight_m(word)

with score_m a member's log-odds of the label (its value in a regression). Each member's words add up to its score less
that of an empty text, so the sums do too. The mean of log-odds is not the log-odds of the mean probability, which is
what the average answers with; both rise and fall with each member.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from zhixing.explain.explanation import Explanation
from zhixing.explain.nearest import Neighbour
from zhixing.explain.spans import Word


def averaged(
    parts: Sequence[tuple[float, Explanation]], probability: float | None, nearest: tuple[Neighbour, ...]
) -> Explanation:
    """One explanation of several of the same text and label; their shares add up to 1.

    probability: what the average gives the label.
    """
    words: defaultdict[tuple[int, int], float] = defaultdict(float)
    for share, part in parts:
        for word in part.words:
            words[word.start, word.end] += share * word.weight
    score = sum(share * part.score for share, part in parts)
    baseline = sum(share * (part.baseline_score or 0.0) for share, part in parts)
    rest = sum(share * part.rest for share, part in parts)
    leans = [(share, part.lean) for share, part in parts if part.lean is not None]
    return replace(
        parts[0][1],
        probability=probability,
        score=score,
        baseline_score=baseline,
        words=tuple(Word(start, end, weight) for (start, end), weight in sorted(words.items())),
        rest=rest,
        gap=abs(sum(words.values()) + rest - (score - baseline)),
        complete=all(part.complete for _, part in parts),
        nodes=max(part.nodes for _, part in parts),
        left_out=max(part.left_out for _, part in parts),
        nearest=nearest,
        lean=sum(share * lean for share, lean in leans) if leans else None,
        members=len(parts),
    )
