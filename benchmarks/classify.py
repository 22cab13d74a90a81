"""The bag classifier beside fastText: the same texts and split (classify.py of the peers), training and prediction.

    python benchmarks/classify.py [--rounds 3]        pairs, A B A B, and the ratio of each, for training and predicting
    python benchmarks/classify.py run equal|linear    one line of ours

`equal` has fastText's own settings (d 100, pairs of words, 5 epochs, rate 0.5, words between blanks) on one thread that
repeats exactly, where fastText runs two; `linear` is the recipe we would use: a vector's columns are the labels.
Both begin with texts in memory and the compiled loops loaded, as fastText begins with its file and its library.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time

import peers

REPEATS = int(os.environ.get("REPS", "3"))


def reviews() -> tuple[list[tuple[str, tuple[str, ...]]], list[tuple[str, str]]]:
    """The rows of reviews.tsv: the first nine tenths to train on, the rest to test on."""
    rows = [
        line.rstrip("\n").split("\t") for line in (peers.DATA / "reviews.tsv").read_text(encoding="utf-8").splitlines()
    ]
    cut = len(rows) * 9 // 10
    return [(text, (label,)) for label, text in rows[:cut]], [(text, label) for label, text in rows[cut:]]


def run(kind: str) -> None:
    from zhixing.models.bag import BagTraining
    from zhixing.tasks.bag import Bag, train_bag
    from zhixing.tokens.ngrams import NgramSettings

    train, test = reviews()
    texts = [text for text, _ in test]
    words = sum(len(text.split()) for text, _ in train)

    def learn(examples: list[tuple[str, tuple[str, ...]]]) -> Bag:
        if kind == "equal":
            ngrams = NgramSettings("spaces", 2, 200_000, lowercase=False)
            return train_bag(examples, ngrams, BagTraining(5, 0.5), d_model=100)
        ngrams = NgramSettings("text", 2, 200_000, once=True)
        return train_bag(examples, ngrams, BagTraining(5, 1.0, "labels", "idf"), power=0.5)

    learn(train[:300]).predict(texts * 2)  # loads the compiled loops
    seconds, predicting = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        bag = learn(train)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        p = bag.predict(texts)
        predicting.append(time.perf_counter() - began)
    right = [bag.labels[k] == label for k, (_, label) in zip(p.argmax(axis=1), test, strict=True)]
    print(
        json.dumps(
            {
                "bench": "classify-train",
                "ours": kind,
                "unit": "words/s",
                "median": round(5 * words / statistics.median(seconds)),
                "min": round(5 * words / max(seconds)),
                "max": round(5 * words / min(seconds)),
                "n": REPEATS,
                "train_s": round(statistics.median(seconds), 2),
                "accuracy": round(sum(right) / len(right), 4),
                "predict_docs_per_s": round(len(test) / statistics.median(predicting)),
                "docs": len(train),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for kind in ("equal", "linear"):
        lines: list[dict[str, object]] = []

        def kept(line: dict[str, object], lines: list[dict[str, object]] = lines) -> dict[str, object]:
            lines.append(line)
            return line

        peers.pairs(
            f"classifier training, {kind}, ours over fastText",
            lambda kept=kept: kept(peers.peer("classify.py", "fasttext")),
            lambda kept=kept, kind=kind: kept(peers.ours("classify.py", "run", kind)),
            options.rounds,
        )
        predicting, accuracy = ([line[name] for line in lines] for name in ("predict_docs_per_s", "accuracy"))
        ratios = [round(b / a, 2) for a, b in zip(predicting[::2], predicting[1::2], strict=True)]
        print(
            json.dumps(
                {
                    "bench": f"classifier prediction, {kind}, ours over fastText",
                    "ratio": statistics.median(ratios),
                    "ratios": ratios,
                    "docs_per_s": predicting,
                    "accuracy": accuracy,
                    "unit": "texts/s",
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2])
    else:
        main()
