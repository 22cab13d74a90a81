"""In context: the prompt by hand, the numbers against one plain forward pass, and a small gpt that learns to do it.

The gpt is trained on lists in which two words have two labels, others in each list: it can be right only by what stands
before. So the same text gets the one label or the other, as the examples have it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zhixing
from zhixing.cli import main
from zhixing.errors import InputError
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.recipe import TrainSettings
from zhixing.run import Run
from zhixing.tasks.in_context import (
    CHINESE,
    LATIN,
    build_prompt,
    calibrated,
    label_log_probabilities,
    normalised,
    parse_pattern,
    usual_pattern,
)
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer
from zhixing.training.optimizers import make_optimizers

WORDS = ("sun", "rain", "snow", "wind", "hail", "fog", "ice", "dew")
LABELS = ("red", "blue", "green", "gold")
PATTERN = "{text}: {label}\n"


def lists(draw: random.Random) -> str:
    """'sun: red\\nsun: red\\nfog: gold\\n...': two words, two labels, in eight lines."""
    words, labels = draw.sample(WORDS, 2), draw.sample(LABELS, 2)
    picks = [draw.randrange(2) for _ in range(8)]
    return "".join(f"{words[i]}: {labels[i]}\n" for i in picks)


@pytest.fixture(scope="module")
def reader() -> Run:
    """A gpt of 80,000 weights that has learnt to look up a label above."""
    draw = random.Random(0)
    tokenizer = train_tokenizer([lists(draw) for _ in range(300)], "bpe", 400)
    is_label = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
    is_label[[tokenizer.encode(f" {label}")[0] for label in LABELS]] = True
    model = GPT(
        GPTSettings(tokenizer.vocab_size, "qwen3", 64, 2, 4, 4, 128, 64), torch.Generator().manual_seed(0)
    ).train()
    optimizers = make_optimizers(model, TrainSettings(adam_learning_rate=0.01))
    loss = torch.tensor(9.0)
    for step in range(600):
        rows = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(lists(draw))] for _ in range(32)])  # (B, T)
        targets = rows[:, 1:].where(is_label[rows[:, 1:]], torch.tensor(-100))
        logits = model.logits(model(rows[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizers.zero_grad()
        torch.autograd.backward(loss)
        optimizers.set_factor(min(1.0, (step + 1) / 20))
        optimizers.step()
        if loss.item() < 0.36:  # what cannot be known, each word's first label, is 0.3 of it
            break
    assert loss.item() < 0.36, "it has not learnt to look up"
    return Run(Path("reader"), model.eval(), tokenizer)


def test_the_prompt_by_hand(reader: Run) -> None:
    pairs = [("sun", "red"), ("rain", "blue"), ("sun", "red"), ("rain", "blue"), ("fog", "red")]
    prompt = build_prompt(pairs, ("blue", "red"), reader.tokenizer, 64, pattern=PATTERN)
    text = reader.tokenizer.decode(prompt.prefix[1:])
    assert sorted(prompt.texts) == sorted(line.split(":")[0] for line in text.splitlines())
    assert prompt.examples == 2 and prompt.prefix[0] == reader.tokenizer.eos_id and prompt.cut == 0
    lines = text.splitlines()
    assert lines.count("rain: blue") == 2 and len(lines) == 4 and text.count(" red\n") == 2, "two of each"
    assert [reader.tokenizer.decode(ids) for ids in prompt.label_ids] == [" blue\n", " red\n"]
    head = [*prompt.before, *reader.tokenizer.encode("sun"), *prompt.between]
    assert head + prompt.label_ids[1] == reader.tokenizer.encode("sun: red\n"), "as the whole would be tokenized"
    again = build_prompt(pairs, ("blue", "red"), reader.tokenizer, 64, pattern=PATTERN)
    seeds = {tuple(build_prompt(pairs, ("blue", "red"), reader.tokenizer, 64, seed=s).prefix) for s in range(8)}
    assert again == prompt and len(seeds) > 1
    one = build_prompt(pairs, ("blue", "red"), reader.tokenizer, 64, pattern=PATTERN, per_label=1)
    assert one.examples == 1 and one.room > prompt.room
    full = build_prompt(pairs * 20, ("blue", "red"), reader.tokenizer, 64, pattern=PATTERN)
    assert full.examples == 5 and full.room >= 16 - 3, "a quarter of the context is left"


def test_examples_that_are_too_long_are_passed_over_or_cut(reader: Run) -> None:
    long = "sun rain snow " * 30
    pairs = [(long, "red"), ("sun", "red"), ("rain", "blue"), ("fog", "blue")]
    found = build_prompt(pairs, ("blue", "red"), reader.tokenizer, 64, pattern=PATTERN)
    assert (found.examples, found.cut) == (1, 0), "a short one of the same label is there"
    found = build_prompt([(long, "red"), ("rain", "blue")], ("blue", "red"), reader.tokenizer, 64, pattern=PATTERN)
    assert (found.examples, found.cut) == (1, 1)
    assert len(found.prefix) <= 64 - 16


def test_log_probabilities_are_those_of_the_whole_text(reader: Run) -> None:
    """Prefix, text and labels in steps, in batches, against p of the joined ids; a batch against one at a time."""
    torch.manual_seed(0)
    pairs = [("sun", "red"), ("rain", "blue sky"), ("sun", "red"), ("rain", "blue sky")]
    prompt = build_prompt(pairs, ("blue sky", "red"), reader.tokenizer, 64, pattern=PATTERN)
    assert len({len(ids) for ids in prompt.label_ids}) == 2
    texts = [reader.tokenizer.encode(text) for text in ("sun", "rain and wind", "", "no such thing")]
    found = label_log_probabilities(reader.model, prompt, texts)
    model: Any = reader.model
    for i, ids in enumerate(texts):
        head = [*prompt.prefix, *prompt.before, *ids, *prompt.between]
        for c, label in enumerate(prompt.label_ids):
            with torch.no_grad():
                logs = torch.log_softmax(model.logits(model(torch.tensor([head + label])))[0], dim=-1)
            each = [logs[len(head) + k - 1, token].item() for k, token in enumerate(label)]
            assert found[i, c] == pytest.approx(sum(each), abs=1e-4)
    alone = np.concatenate([label_log_probabilities(reader.model, prompt, [ids]) for ids in texts])
    np.testing.assert_allclose(found, alone, atol=1e-4)


def test_calibration_by_hand() -> None:
    np.testing.assert_allclose(calibrated(np.log([[0.6, 0.4]]), np.array([0.75, 0.25])), [[1 / 3, 2 / 3]])
    np.testing.assert_allclose(normalised(np.array([[-1000.0, -1000.0]])), [[0.5, 0.5]])


def test_it_learns_from_the_examples(reader: Run, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(5)
    right = 0
    for _ in range(20):
        words, labels = draw.sample(WORDS, 2), draw.sample(LABELS, 2)
        for order in ((0, 1), (1, 0)):  # the same two words, labelled the other way round
            pairs = [(words[k], labels[order[k]]) for k in (0, 1)] * 3
            clf = zhixing.in_context(reader, pairs, pattern=PATTERN)
            answers = clf(list(words))
            right += sum(answer.label == labels[order[k]] for k, answer in enumerate(answers))
    assert right >= 72, f"{right} of 80"  # 40 by chance
    assert "3 examples of each of 2 labels" in capsys.readouterr().err
    one = clf(words[0])
    assert one.label == answers[0].label and one.probability == pytest.approx(answers[0].probability, abs=1e-5)
    assert sum(one.probabilities.values()) == pytest.approx(1) and set(one.probabilities) == set(labels)
    assert clf([]) == []


def test_chinese_has_a_pattern_of_its_own() -> None:
    assert usual_pattern(["很好看的电影", "不好 bad"]) == CHINESE and usual_pattern(["A good film 好"]) == LATIN
    pairs = [("很好", "好"), ("太差", "差")]
    tokenizer = train_tokenizer([CHINESE + "很好太差电影"] * 3, "char", 300)
    model = GPT(GPTSettings(tokenizer.vocab_size, "gpt2", 16, 1, 2, 2, 32, 64), torch.Generator().manual_seed(0))
    clf = zhixing.in_context(Run(Path("model"), model, tokenizer), pairs)
    assert clf.prompt.examples == 1 and "文本：" in tokenizer.decode(clf.prompt.prefix)
    assert set(clf("很好").probabilities) == {"好", "差"}


def test_by_the_command_line(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"{word} {i}", "label": label} for i in range(6) for word, label in (("good", "a"), ("bad", "b"))]
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = str(tiny_run.path)
    assert main(["classify", run, "good", "bad " * 90, "--examples", str(file), "--per-label", "1"]) == 0
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [set(answer["probabilities"]) for answer in answers] == [{"a", "b"}] * 2
    assert "1 texts were longer" in captured.err
    assert main(["evaluate", run, str(file), "--examples", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shown = found["data"]["test"]["exact_duplicates"]  # the examples that it has read are among those it is asked
    assert "accuracy" in found and shown >= 2 and shown % 2 == 0
    for wrong, message in (
        (["classify", run, "good", "--labels", "a"], "--examples"),
        (["classify", run, "good", "--examples", str(file), "--labels", "a,c"], "no example has the label 'c'"),
        (["classify", run, "good", "--examples", str(file), "--labels", "a"], "fewer than two labels"),
        (["classify", run, "good", "--examples", str(file), "--pattern", "{text}"], "no pattern"),
        (["classify", run, "good", "--examples", str(file), "--per-label", "9"], "there are 6 examples"),
        (["classify", run, "good", "--examples", str(file), "--per-label", "6"], "do not fit"),
        (["classify", run, " ", "--examples", str(file)], "a text is empty"),
        (["evaluate", run, "--examples", str(file)], "no texts to measure on"),
    ):
        assert main(wrong) == 2, wrong
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "pattern", ["{label} {text}\n", "{text}{label}\n", "{text} {label}", "{text} {text} {label}\n"]
)
def test_patterns_that_cannot_be(pattern: str) -> None:
    with pytest.raises(InputError, match="no pattern"):
        parse_pattern(pattern)


def test_tokenizers_of_words_and_characters() -> None:
    for kind in ("char", "word"):
        tokenizer: Tokenizer = train_tokenizer(["Text: sun Label: red blue good 很 好\n\n"] * 3, kind, 300)  # type: ignore[arg-type]
        prompt = build_prompt([("sun", "red"), ("good", "blue")], ("blue", "red"), tokenizer, 200)
        assert prompt.examples == 1 and all(prompt.label_ids)
