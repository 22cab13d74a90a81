"""Texts to labels, from end to end: `zhixing.train` and `zhixing.load` on 300 short texts whose label is one word.

Each family learns it in a few seconds, what is loaded answers as what was trained, and what can be asked of one
(sentiment, explanation, comparison, transformers) gives what it must.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import zhixing
from moods import ASKED, FILLER, MOODS, lay, rows
from zhixing.classifier import Classifier, Sentiment, class_weights, compare_runs, polarities, targets_of
from zhixing.errors import InputError
from zhixing.evaluation.classification_report import text_summary
from zhixing.explain.deletion import deletion_curve, deletion_test
from zhixing.files import sha256_file, verify_manifest
from zhixing.tasks.classification import encode_texts
from zhixing.text.labelled import LabelledText, LabelledTexts

ROOT = Path(__file__).parents[1]
COMMON = (
    "task.kind=classification", "data.heldout_fraction=0.2", "task.validation_fraction=0.15", "train.bf16=false",
    "train.threads=2",
)  # fmt: skip
NETWORK = (
    "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.max_len=32", "train.max_steps=40",
    "train.per_device_train_batch_size=16", "train.eval_steps=20", "train.optim=adamw", "train.learning_rate=0.01",
    "train.warmup_steps=5",
)  # fmt: skip
WORDS = ("tokenizer.kind=word", "tokenizer.vocab_size=400")
PIECES = ("tokenizer.kind=wordpiece", "tokenizer.vocab_size=300", "tokenizer.lowercase=true")
FAMILIES: dict[str, tuple[str, ...]] = {
    "bag": ("model.family=bag", "bag.buckets=1000", "model.d_model=8"),
    "textcnn": ("model.family=textcnn", *NETWORK, *WORDS, "model.n_filters=16"),
    "lstm": ("model.family=lstm", *NETWORK, *WORDS, "train.learning_rate=0.03"),
    "gpt": ("model.family=gpt", *NETWORK, "tokenizer.vocab_size=400"),
    "bert": ("model.family=bert", *NETWORK, *PIECES),
}


def train(source: Path, out: Path, *settings: str) -> Classifier:
    return cast(Classifier, zhixing.train(str(source), *COMMON, *settings, out=str(out)))


def load(out: Path) -> Classifier:
    return cast(Classifier, zhixing.load(out))


def score(out: Path, name: str) -> float:
    return float(json.loads((out / "scores.json").read_text(encoding="utf-8"))["model"][name])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = rows()
    made[0]["text"] += " \u2028\x85 end"  # where str.splitlines cuts and a JSON line does not end
    return lay(tmp_path_factory.mktemp("data") / "moods.jsonl", made)


class Runs:
    """A run of each family, made when it is first asked for."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.made: dict[str, Classifier] = {}

    def __call__(self, family: str) -> Classifier:
        if family not in self.made:
            self.made[family] = train(self.data, self.folder / family, *FAMILIES[family])
        return self.made[family]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(data, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_is_loaded_as_it_was(family: str, runs: Runs) -> None:
    trained = runs(family)
    assert score(trained.path, "accuracy") >= 0.9
    loaded = load(trained.path)
    assert (loaded.labels, loaded.problem_type) == (("negative", "positive"), "single_label_classification")
    np.testing.assert_array_equal(loaded.probabilities(ASKED), trained.probabilities(ASKED))
    alone = np.concatenate([loaded.probabilities([text]) for text in ASKED])
    np.testing.assert_allclose(alone, loaded.probabilities(ASKED), atol=1e-5)
    np.testing.assert_allclose(loaded.probabilities(ASKED).sum(axis=1), 1, atol=1e-6)
    answer = loaded(ASKED[0])
    assert answer.label == "positive" and answer.probability == max(answer.probabilities.values())
    assert loaded([]) == [] and [a.label for a in loaded(ASKED)][:2] == ["positive", "negative"]
    result, found = loaded.evaluate()
    assert len(result.targets) == 60 and found.scores["accuracy"].value == score(trained.path, "accuracy")
    verify_manifest(trained.path)  # the run is whole
    assert "negative" in loaded.show() and (trained.path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("family", ["bag", "bert"])
def test_explanation_names_the_word_that_decides(family: str, runs: Runs) -> None:
    classifier = load(runs(family).path)
    text = "the plot was quite dreadful and the music seemed again"
    explanation = classifier.explain(text)
    best = max(explanation.words, key=lambda word: word.weight)
    assert explanation.label == "negative" and text[best.start : best.end] == "dreadful"
    assert 0 < len(explanation.nearest) <= 3, "its training texts are at hand"
    other = classifier.explain(text, label="positive", nearest=0)
    assert other.label == "positive" and other.score == pytest.approx(-explanation.score, abs=1e-3)
    with pytest.raises(InputError, match="no label"):
        classifier.explain(text, label="mixed")


@pytest.mark.parametrize("family", ["bag", "textcnn"])
def test_taking_the_named_words_out_costs_more_than_others(family: str, runs: Runs) -> None:
    classifier = load(runs(family).path)
    curves = []
    for row in rows(16, seed=9):
        explanation = classifier.explain(row["text"], nearest=0)
        scores = classifier.scores_of(explanation.label)
        curves.append(deletion_curve(scores, row["text"], explanation.words))
    test = deletion_test(curves)
    assert test.low > 0 and test.named > test.random, test


def test_transformers_reads_the_bert_as_it_is(runs: Runs) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier = load(runs("bert").path)
    theirs = AutoModelForSequenceClassification.from_pretrained(classifier.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier.path)
    batch = tokenizer(ASKED, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**batch).logits.numpy()
    np.testing.assert_allclose(classifier.logits(ASKED), logits, atol=1e-4)
    assert theirs.config.id2label == dict(enumerate(classifier.labels))


def test_sentiment(runs: Runs) -> None:
    good, bad = Sentiment(load(runs("bag").path))(ASKED[:2])
    assert (good.label, bad.label) == ("positive", "negative") and -1 <= bad.polarity < 0 < good.polarity <= 1


def test_texts_that_were_learnt_from_are_counted_beside_the_score(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs("bag").path, folder)
    trained = load(folder)
    own, _ = trained.evaluate()
    assert own.facts["data"]["test"]["exact_duplicates"] == own.facts["data"]["test"]["near_duplicates"] == 0
    assert "none of them repeats a training text" in text_summary(own)
    learnt = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_bytes().split(b"\n") if line]
    seen = next(row["text"] for row in learnt if len(row["text"]) > 60)
    made = [(seen, "positive"), ("x" + seen, "negative"), ("nothing like any of them", "positive")]
    other = lay(tmp_path / "other.jsonl", [{"text": text, "label": label} for text, label in made])
    found, _ = trained.evaluate(str(other))
    counts = {key: found.facts["data"]["test"][key] for key in ("exact_duplicates", "near_duplicates")}
    assert counts == {"exact_duplicates": 1, "near_duplicates": 1}
    assert "1 word for word, 1 nearly" in text_summary(found)
    (folder / "data" / "train.minhash").write_bytes(b"1234")  # as good as none: counted anew
    assert load(folder).leakage(trained.read(str(other))) == trained.leakage(trained.read(str(other)))
    shutil.rmtree(folder / "data")  # given to others: it answers without its texts, and says what it cannot know
    found, _ = load(folder).evaluate(str(other))
    assert (
        "exact_duplicates" not in found.facts["data"]["test"] and load(folder).leakage(trained.read(str(other))) is None
    )


def test_what_a_label_or_a_text_says_is_only_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A card whose tables hold, no HTML of others, a command that can be pasted, and no colours in a file."""
    names = {"negative": "<b>po|or</b>", "positive": "g*oo_d\n#"}
    made = [{"text": "`touch x` $(touch x) \"' " + row["text"], "label": names[row["label"]]} for row in rows(60)]
    folder = tmp_path / "a run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        train(lay(tmp_path / "made.jsonl", made), folder, *FAMILIES["bag"])
    said = capsys.readouterr().err
    assert "\033" not in said
    command = said.splitlines()[-1].removeprefix("next:  ")
    words = shlex.split(command)
    assert words[:3] == ["zhixing", "classify", str(folder)] and words[4:] == ["--explain"]
    assert words[3] in " ".join(row["text"] for row in made) and "$" in words[3]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "<b>" not in card and r"\<b\>po\|or\</b\>" in card and r"g\*oo\_d \#" in card
    assert "seed 0" in card and "| accuracy |" in card


def test_bad_records_of_the_test_file_are_counted(runs: Runs, tmp_path: Path) -> None:
    bad = '{"text": "no label"}\n'
    test = lay(tmp_path / "test.jsonl", rows(30, seed=1))
    test.write_text(test.read_text(encoding="utf-8") + bad * 3, encoding="utf-8")
    source = lay(tmp_path / "train.jsonl", rows(60))
    settings = (f"task.test={test}", "data.on_bad_record=skip", *FAMILIES["bag"])
    trained = train(source, tmp_path / "run", *settings)
    facts = json.loads((tmp_path / "run" / "facts.json").read_text(encoding="utf-8"))["data"]
    assert (facts["counts"]["bad_records"], facts["test"]["counts"]["bad_records"]) == (0, 3)
    found, _ = trained.evaluate(str(test))
    assert found.facts["data"]["test"]["counts"]["bad_records"] == 3
    assert "counts" not in runs("bag").evaluate()[0].facts["data"]["test"]


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (("negative", "positive"), (-1, 1)),
        (("Neg", "POS"), (-1, 1)),
        (("0", "1"), (-1, 1)),
        (("-1", "0", "1"), (-1, 0, 1)),
        (("1", "2", "3", "4", "5"), (-1, -0.5, 0, 0.5, 1)),
        (("1 star", "5 stars"), (-1, 1)),
        (("好评", "差评"), (1, -1)),
        (("正面", "中性", "负面"), (1, 0, -1)),
        (("mixed", "negative", "positive"), (0, -1, 1)),
        (("n", "p"), None),
        (("positive", "neutral"), None),
        (("0", "1", "2"), None),
        (("LABEL_0", "LABEL_1"), None),
        (("value",), None),
    ],
)
def test_labels_that_say_how_a_text_feels(labels: tuple[str, ...], wanted: tuple[float, ...] | None) -> None:
    assert polarities(labels) == (None if wanted is None else dict(zip(labels, wanted, strict=True)))


def test_sentiment_of_stars_is_their_mean(runs: Runs) -> None:
    trained = load(runs("bag").path)
    stars = Classifier(trained.path, replace(trained.stored, labels=("1", "5")))
    low, high = Sentiment(stars)([ASKED[1], ASKED[0]])
    assert (low.label, high.label) == ("1", "5") and -1 <= low.polarity < 0 < high.polarity <= 1


def test_two_runs_compared(runs: Runs) -> None:
    comparison = compare_runs(str(runs("bag").path), str(runs("textcnn").path))
    assert comparison.n == 60 and (comparison.first_name, comparison.second_name) == ("bag", "textcnn")
    difference = comparison.difference["accuracy"].value
    assert difference == pytest.approx(comparison.second["accuracy"].value - comparison.first["accuracy"].value)


# ---- other tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bag", "textcnn"])
def test_several_labels(family: str, tmp_path: Path) -> None:
    made = []
    for i, row in enumerate(rows()):
        labels = [row["label"]] + ["long"] * (i % 3 == 0)
        made.append({"text": row["text"] + " epic" * (i % 3 == 0), "label": labels if i % 50 else []})
    more = ("train.max_steps=80", "bag.learning_rate=2.0", "bag.epochs=20", "task.class_weights=balanced")
    classifier = train(lay(tmp_path / "m.jsonl", made), tmp_path / "run", *FAMILIES[family], *more)
    assert classifier.problem_type == "multi_label_classification"
    assert score(classifier.path, "micro_f1") > 0.85
    answer, none = load(classifier.path)(["the story was superb epic 7", "unseen"])
    assert none.to_dict()["labels"] == list(none.labels or ())
    assert answer.labels == ("long", "positive") and set(answer.probabilities) == {"long", "negative", "positive"}


@pytest.mark.parametrize("family", ["bag", "textcnn"])
def test_regression(family: str, data: Path, tmp_path: Path) -> None:
    settings = ("task.kind=regression", "data.score_column=stars", "train.max_steps=80", "model.dropout=0.0")
    classifier = train(data, tmp_path / "run", *FAMILIES[family], "bag.learning_rate=0.1", "bag.epochs=20", *settings)
    assert classifier.problem_type == "regression" and score(classifier.path, "mse") < 0.5
    loaded = load(tmp_path / "run")
    good, bad = loaded(ASKED[:2])
    assert good.score is not None and bad.score is not None and good.score > 3 > bad.score
    assert good.to_dict() == {"score": good.score} and math.isnan(good.probability)
    with pytest.raises(InputError, match="it gives numbers"):
        Sentiment(loaded)
    np.testing.assert_array_equal(loaded.probabilities(ASKED), classifier.probabilities(ASKED))
    assert loaded.explain(ASKED[0], nearest=0).probability is None


def test_balanced_weights(tmp_path: Path) -> None:
    texts = [LabelledText(str(i), ("rare" if i < 10 else "usual",)) for i in range(100)]
    found = LabelledTexts("x", texts, [""] * 100, "single_label_classification")
    assert class_weights(found, found.labels) == pytest.approx({"rare": 5.0, "usual": 100 / 180})
    assert targets_of(found, found.labels, found.problem_type).tolist() == [0] * 10 + [1] * 90
    made = [row for i, row in enumerate(rows(400)) if row["label"] == "positive" or i % 16 == 0]
    source = lay(tmp_path / "rare.jsonl", made)
    for family in ("bag", "textcnn"):
        recall = {}
        for how in ("none", "balanced"):
            train(source, tmp_path / family / how, *FAMILIES[family], f"task.class_weights={how}")
            recall[how] = score(tmp_path / family / how, "macro_recall")
        assert recall["balanced"] > recall["none"] + 0.1, (family, recall)


def test_texts_too_long(tmp_path: Path) -> None:
    made = rows(120)
    for row in made[:5]:
        row["text"] = "story " * 100 + row["text"]
    source = lay(tmp_path / "long.jsonl", made)
    short = (*FAMILIES["textcnn"], "train.max_steps=4")
    answers = {}
    for how in ("split", "truncate"):
        classifier = train(source, tmp_path / how, *short, f"task.on_too_long={how}")
        loaded = load(tmp_path / how)
        assert loaded.on_too_long == how
        answers[how] = loaded.logits(["story " * 100 + "dreadful", "dreadful"])
        assert loaded.too_long == 1
        test = json.loads((classifier.path / "facts.json").read_text())["data"]["test"]
        assert test["on_too_long"] == how and test["too_long"] == sum(
            len(item.text.split()) > 32 for item in loaded.read(None)
        )
    whole = load(tmp_path / "truncate").logits(["story " * 32])
    np.testing.assert_allclose(answers["truncate"][0], whole[0], atol=1e-5)
    with pytest.raises(InputError, match="tokens") as refusal:
        train(source, tmp_path / "error", *short, "task.on_too_long=error")
    assert "long.jsonl:" in refusal.value.where
    assert not (tmp_path / "error" / "checkpoints").exists(), "said before the training, whichever part has it"


def test_split_is_the_mean_of_the_parts(runs: Runs) -> None:
    classifier = load(runs("textcnn").path)
    classifier.on_too_long = "split"
    text = "story " * 50 + "dreadful film"
    encoded = encode_texts([text], cast(Any, classifier.tokenizer), 32, "split")
    rows = [classifier.model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool)) for row in encoded.rows]
    assert len(rows) > 1
    expected = torch.cat(rows).mean(dim=0).detach().numpy()
    np.testing.assert_allclose(classifier.logits([text])[0], expected, atol=1e-5)


# ---- where a network starts -----------------------------------------------------------------------------------------


def test_pretraining_comes_first(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "run", *FAMILIES["bert"], "task.pretrain_steps=6", "train.max_steps=6")
    assert "6 steps of masked language modelling" in capsys.readouterr().err
    lines = (tmp_path / "run" / "pretraining" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 6


def test_starts_from_other_runs(tmp_path: Path, tiny_run: Any, data: Path, runs: Runs) -> None:
    """A language model's or a bert's weights and tokenizer; what is then trained can be its LoRA alone."""
    frozen = (
        "train.max_steps=1",
        "train.learning_rate=1e-12",
        "train.adam_learning_rate=1e-12",
        "train.warmup_steps=0",
    )
    gpt = train(data, tmp_path / "gpt", "model.family=gpt", f"task.start={tiny_run.path}", *frozen)
    assert cast(Any, gpt.tokenizer).fingerprint() == tiny_run.tokenizer.fingerprint()
    ours = cast(Any, gpt.model).gpt.state_dict()
    for name, tensor in tiny_run.model.state_dict().items():
        if name in ours:
            torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)
    bert = runs("bert")
    start = (f"task.start={bert.path}", "model.family=bert", "train.optim=adamw")
    again = train(data, tmp_path / "bert", *start, *frozen)
    torch.testing.assert_close(
        cast(Any, again.model).encoder.state_dict(), cast(Any, bert.model).encoder.state_dict(), atol=1e-6, rtol=0
    )
    lora = train(data, tmp_path / "lora", *start, *FAMILIES["bert"], "model.lora_rank=2")
    names = set(dict(bert.model.named_parameters()))
    assert set(dict(lora.model.named_parameters())) == names, "the changes are added to the weights in the end"
    assert score(lora.path, "accuracy") > 0.9
    np.testing.assert_allclose(load(lora.path).logits(ASKED), lora.logits(ASKED), atol=1e-5)
    changed = [name for name, p in lora.model.named_parameters() if not torch.equal(p, bert.model.get_parameter(name))]
    assert changed and not any("embedding" in name for name in changed), changed


def test_starts_from_word_vectors(data: Path, tmp_path: Path) -> None:
    vectors = {word: [float(k == i % 32) for k in range(32)] for i, word in enumerate((*FILLER, *MOODS["positive"]))}
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in vectors.items()]
    (tmp_path / "v.txt").write_text("\n".join(lines) + "\n")
    settings = (f"model.embeddings={tmp_path / 'v.txt'}", "model.freeze_embeddings=true", "train.max_steps=2")
    classifier = train(data, tmp_path / "run", *FAMILIES["textcnn"], *settings)
    tokenizer, table = cast(Any, classifier.tokenizer), cast(Any, classifier.model).embedding.weight
    for word in ("film", "superb"):
        (token,) = tokenizer.encode(word)
        torch.testing.assert_close(table[token], torch.tensor(vectors[word]))


# ---- stopped and resumed --------------------------------------------------------------------------------------------


def begin(data: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    settings = (*COMMON, *FAMILIES["bert"], "train.threads=1", "model.dropout=0.1", "task.pretrain_steps=12",
                "train.max_steps=24", "train.save_steps=4", "train.eval_steps=8")  # fmt: skip
    command = [sys.executable, "-m", "zhixing", "train", str(data), *settings, "--out", str(out), *more]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stopped_and_resumed_gives_the_same_weights(data: Path, tmp_path: Path) -> None:
    """Told to stop while it reads masked words, killed while it learns labels, and the bits are the same."""
    assert begin(data, tmp_path / "straight").wait(200) == 0, (tmp_path / "straight.log").read_text()
    run = tmp_path / "stopped"
    moments = ((run / "pretraining" / "checkpoints", signal.SIGTERM), (run / "checkpoints", signal.SIGKILL))
    for folder, sent in moments:
        process = begin(data, run, *(["--resume"] if run.exists() else []))
        while process.poll() is None and not any(folder.glob("step*")):
            time.sleep(0.001)
        process.send_signal(sent)
        code = process.wait(200)
        log = (tmp_path / "stopped.log").read_text()
        if sent == signal.SIGTERM:
            assert code == 128 + sent and "--resume" in log, log
            assert not (run / "checkpoints").exists(), "the labels wait"
        assert not (run / "config.json").exists() or code == 0, log
    assert begin(data, run, "--resume").wait(200) == 0, (tmp_path / "stopped.log").read_text()
    assert sha256_file(run / "model.safetensors") == sha256_file(tmp_path / "straight" / "model.safetensors")
