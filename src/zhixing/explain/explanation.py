"""Why a classifier gave its answer: the answer, the words that made it, and how far those numbers can be trusted."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from zhixing.explain.nearest import Neighbour
from zhixing.explain.spans import Word

Method = Literal["integrated_gradients", "contributions", "rollout"]

LOPSIDED = 1.0  # of log-odds: 2.7 to 1 where nothing is read
LEVELS = 5  # shades of a word's weight
FAINT = 0.05  # of the largest weight: less is not shown


@dataclass(frozen=True)
class TopWord:
    """A word, wherever it stands in the text: its weights together, and how often it stands there."""

    word: str
    weight: float
    times: int


@dataclass(frozen=True)
class Explanation:
    """One answer explained.

    label, probability      the label that is explained, and what the model gave it (None in a regression)
    method                  how; weights of "rollout" are shares of attention, of the others parts of the score
    score, baseline_score   of the text, and of a text that says nothing: log-odds of the label, or the value itself in
                            a regression; with "contributions" and three labels or more, the logit less the others' mean
    words                   each word of the text; weights above zero speak for the label
    rest                    the weight that belongs to no word: special tokens, blanks
    gap                     |sum of weights - (score - baseline_score)|, which is zero in exact arithmetic; None for
                            rollout, which explains no score
    complete                whether the gap is within its tolerance
    nodes                   how many points between nothing and the text were looked at
    left_out                tokens behind the model's longest text, which it did not read
    lean                    how far baseline_score is from that of an undecided model, which gives all labels the same
                            (or each of several labels one half); None where no number is neutral: rollout, regression
    nearest                 training texts like this one
    members                 of an average: how many models there are; scores and weights are the means of theirs
    """

    text: str
    label: str
    probability: float | None
    method: Method
    score: float
    baseline_score: float | None
    words: tuple[Word, ...]
    rest: float
    gap: float | None
    complete: bool
    nodes: int
    left_out: int = 0
    nearest: tuple[Neighbour, ...] = ()
    lean: float | None = None
    members: int = 1

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps can write; each word with its characters too."""
        found = asdict(self)
        found["words"] = [{"word": self.text[w.start : w.end], **asdict(w)} for w in self.words]
        found["nearest"] = [{**asdict(n), "labels": list(n.labels)} for n in self.nearest]
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in found.items()}

    def top_words(self, count: int = 10) -> list[TopWord]:
        """The different words with the largest weights, largest first; capital letters make no difference."""
        weights: defaultdict[str, list[float]] = defaultdict(list)
        for word in self.words:
            weights[self.text[word.start : word.end].lower()].append(word.weight)
        found = [TopWord(word, sum(all_), len(all_)) for word, all_ in weights.items()]
        found.sort(key=lambda top: (-abs(top.weight), top.word))
        return [top for top in found[:count] if top.weight != 0]

    @property
    def lopsided(self) -> bool:
        """Whether the model has an opinion before it reads a word, which then no word's weight shows."""
        return self.lean is not None and abs(self.lean) > LOPSIDED

    @cached_property
    def largest(self) -> float:
        """The largest weight of a word, without its sign."""
        return max((abs(word.weight) for word in self.words), default=0.0)

    def level(self, weight: float) -> int:
        """How strongly a weight is shown: -5 (against the label) .. 5 (for it), 0 for too little to show."""
        share = abs(weight) / self.largest if self.largest > 0 and math.isfinite(self.largest) else 0.0
        if not share >= FAINT:
            return 0
        return int(math.copysign(min(math.ceil(share * LEVELS), LEVELS), weight))
