"""Short labelled texts that a classifier learns in seconds: one word of mood among ten others."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

MOODS = {
    "positive": ("wonderful", "lovely", "superb", "delightful"),
    "negative": ("awful", "dreadful", "boring", "terrible"),
}
FILLER = ("the", "a", "film", "plot", "actor", "scene", "music", "was", "felt", "seemed", "and", "very", "quite", "again", "story")  # fmt: skip
ASKED = ["A superb film, quite lovely.", "the story was dreadful", "nobody has seen these words", "春眠不觉晓 awful"]


def rows(n: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    """One word of mood among ten others; a score that goes with it; both moods' words make two topics."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    for i in range(n):
        label = ("negative", "positive")[i % 2]
        words = [draw.choice(FILLER) for _ in range(draw.randint(4, 12))]
        words.insert(draw.randrange(len(words)), draw.choice(MOODS[label]))
        stars = (4.0 if label == "positive" else 1.0) + draw.random() / 2
        made.append({"text": " ".join([*words, str(i)]), "label": label, "stars": stars})
    return made


def lay(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return path
