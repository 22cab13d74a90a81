"""Word vectors beside gensim and fastText: words per second and the correlation with WordSim-353, in turn (A B A B).

    python benchmarks/word_vectors.py [--rounds 3] [--epochs 5] [--rows skipgram deterministic cbow fasttext]
    python benchmarks/word_vectors.py run ROW EPOCHS SEED      one line of ours
    python benchmarks/word_vectors.py gensim-cbow EPOCHS       one line of gensim's CBOW (with the peers' Python)

The same text (words.txt of make_text.py), d 100, window 5, 5 negatives, subsampling 1e-3, min_count 5, 2 threads. Words per
second are counted as wordvec.py counts them for the peer: all words of the text times epochs over the seconds after
counting the vocabulary (gensim) or over all seconds (fastText); reading the text is in both. Compiled loops are
loaded from numba's cache before the clock starts. The standard error of a correlation over 279 or 353 pairs is 0.05.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peers

ROWS = ("skipgram", "deterministic", "cbow", "fasttext")
PAIRS_PATH = "import gensim, os; print(os.path.join(os.path.dirname(gensim.__file__), 'test/test_data/wordsim353.tsv'))"


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """WordSim-353 as it ships in gensim's test data."""
    rows = [line.lower().split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return [(a, b, float(score)) for a, b, score in rows]


def run(row: str, epochs: int, seed: int) -> None:
    """Train once; print words/s and the correlation."""
    from zhixing.vectors.train import Training, WordVectorSettings, train_word_vectors
    from zhixing.vectors.words import WordCorpus, count_words, encode_words

    algorithm = "skipgram" if row == "deterministic" else row
    assert algorithm in ("skipgram", "cbow", "fasttext")
    settings = WordVectorSettings(
        algorithm=algorithm,  # type: ignore[arg-type]
        epochs=epochs,
        learning_rate="auto" if algorithm == "fasttext" else 0.025,  # as the peer has them
        threads=2,
        deterministic=row == "deterministic",
        seed=seed,
    )
    small = dataclasses.replace(settings, epochs=1, min_count=1, buckets=100)
    train_word_vectors(["a b c d", "c d e a"], small)  # loads the compiled loops
    corpus = WordCorpus(peers.DATA / "words.txt")
    began = time.perf_counter()
    vocabulary = count_words(corpus, settings.min_count)
    counted = time.perf_counter()
    training = Training(encode_words(corpus, vocabulary), vocabulary, settings)
    training.run(None)
    trained = training.result(0)
    ended = time.perf_counter()
    seconds = ended - (began if algorithm == "fasttext" else counted)
    keyed = trained.keyed()
    found, wanted = [], []
    for a, b, score in read_pairs(Path(os.environ["WORDSIM"])):
        if keyed.subwords is not None or (a in keyed and b in keyed):
            found.append(keyed.cosine(a, b))
            wanted.append(score)
    print(
        json.dumps(
            {
                "bench": "word-vectors",
                "ours": row,
                "unit": "words/s",
                "median": round(vocabulary.n_seen * epochs / seconds),
                "total_s": round(ended - began, 2),
                "wordsim353_spearman_n": [round(spearman(found, wanted), 3), len(found)],
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def spearman(a: list[float], b: list[float]) -> float:
    import numpy as np

    def ranks(values: list[float]) -> Any:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]  # equal values share the mean of their ranks

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def gensim_cbow(epochs: int) -> None:
    """wordvec.py measures skip-gram only; this is its line for CBOW."""
    from gensim.models.word2vec import Word2Vec  # type: ignore[import-not-found]

    words = str(peers.DATA / "words.txt")
    model = Word2Vec(
        vector_size=100, window=5, negative=5, sg=0, hs=0, sample=1e-3, min_count=5, workers=2, seed=1, alpha=0.025
    )
    model.build_vocab(corpus_file=words)
    began = time.perf_counter()
    model.train(
        corpus_file=words, total_words=model.corpus_total_words, total_examples=model.corpus_count, epochs=epochs
    )
    seconds = time.perf_counter() - began
    found, wanted = [], []
    for a, b, score in read_pairs(Path(os.environ["WORDSIM"])):
        if a in model.wv and b in model.wv:
            found.append(float(model.wv.similarity(a, b)))
            wanted.append(score)
    result = [round(spearman(found, wanted), 3), len(found)]
    n_words = model.corpus_total_words
    print(json.dumps({"median": round(n_words * epochs / seconds), "wordsim353_spearman_n": result}))


def compare(row: str, epochs: int, rounds: int) -> None:
    """A B A B ...: a line for each pair, and the median of the ratios."""
    os.environ["REPS"] = "1"
    found = []
    for number in range(rounds):
        if row == "cbow":
            peer = peers.last_json([peers.PYTHON, __file__, "gensim-cbow", str(epochs)])
        else:
            peer = peers.peer("wordvec.py", "fasttext-subword" if row == "fasttext" else "gensim", str(epochs))
        ours = peers.ours("word_vectors.py", "run", row, str(epochs), str(number + 1))
        found.append((peer, ours))
        line = {
            "peer": peer["median"],
            "ours": ours["median"],
            "ratio": round(ours["median"] / peer["median"], 2),
            "wordsim": [peer["wordsim353_spearman_n"], ours["wordsim353_spearman_n"]],
            "mb": [peer.get("peak_rss_mb"), ours["peak_rss_mb"]],
            "foreign_load": peer.get("foreign_load"),
        }
        print(f"{row}  pair {number + 1}: {json.dumps(line)}", file=sys.stderr, flush=True)
    ratios = [ours["median"] / peer["median"] for peer, ours in found]
    correlations = [[side["wordsim353_spearman_n"][0] for side in pair] for pair in found]
    result = {
        "bench": f"word vectors, {row}, ours over {'fastText' if row == 'fasttext' else 'gensim'}",
        "unit": "words/s",
        "epochs": epochs,
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "wordsim_peer": round(statistics.mean(peer for peer, _ in correlations), 3),
        "wordsim_ours": round(statistics.mean(ours for _, ours in correlations), 3),
        "pairs": correlations,
    }
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    options = parser.parse_args()
    if "WORDSIM" not in os.environ:
        done = subprocess.run([peers.PYTHON, "-c", PAIRS_PATH], capture_output=True, text=True, check=True)
        os.environ["WORDSIM"] = done.stdout.strip()
    for row in options.rows:
        compare(row, options.epochs, options.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["gensim-cbow"]:
        gensim_cbow(int(sys.argv[2]))
    else:
        main()
