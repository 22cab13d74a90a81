"""Do the words that explanation names matter? They are deleted, and as many random words, and the score watched.

    python benchmarks/deletion.py RUN [--texts 20]      a classifier's run with its own test texts

Comprehensiveness (DeYoung et al. 2020): how far the score of the label falls when 5, 10 and 20 % of the words are gone.
"""

from __future__ import annotations

import argparse
import json

from zhixing.classifier import load_classifier
from zhixing.explain.deletion import deletion_curve, deletion_test
from zhixing.text.labelled import LabelledTexts

FRACTIONS = (0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--texts", type=int, default=20)
    options = parser.parse_args()
    classifier = load_classifier(options.run)
    texts: LabelledTexts = classifier.read(None)
    step = max(1, len(texts) // options.texts)
    curves = []
    for number, item in enumerate(texts.texts[::step][: options.texts]):
        explanation = classifier.explain(item.text, nearest=0)
        score = classifier.scores_of(explanation.label)
        curves.append(deletion_curve(score, item.text, explanation.words, FRACTIONS, seed=number))
        print(f"{explanation.label:>12}  named {curves[-1].comprehensiveness:8.3f}"
              f"  random {curves[-1].random_comprehensiveness:8.3f}  {item.text[:60]!r}")  # fmt: skip
    found = deletion_test(curves)
    print(json.dumps({"bench": "deletion", "run": options.run, "texts": len(curves), **vars(found)}, default=str))


if __name__ == "__main__":
    main()
