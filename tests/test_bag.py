"""The bag classifier: its features against the rule in plain Python, its loops against torch, its answers explained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.models.bag import (
    PROBLEMS,
    BagClassifier,
    BagSettings,
    BagTargets,
    BagTraining,
    BagWeights,
    fit_bag,
    log_count_ratios,
    predict_bag,
    row_rates_of,
)
from zhixing.tasks.bag import Bag, train_bag
from zhixing.tokens.ngrams import (
    EOS,
    NgramSettings,
    NgramVocabulary,
    character_ngrams,
    learn_vocabulary,
    ngram_bucket,
    word_hash,
    words_of,
)

TEXTS = [
    "I don't like it! It's 'bad', o'clock'",
    "你好，世界 café naïve don’t",
    "",
    "a b a b a",
    "😀 x 𠀀y x-ray ¿qué?\u3000z\u00a0w",
    "'' ' '",
    "\0 \t\n",
]


def test_words_by_hand() -> None:
    text = NgramSettings()
    assert words_of("I don't! 你好 a_b rock'n'roll 'quoted'", text) == [
        "i", "don't", "!", "你", "好", "a", "_", "b", "rock'n'roll", "'", "quoted", "'",
    ]  # fmt: skip
    assert words_of("Mañana café 3,5", text) == ["mañana", "café", "3", ",", "5"]
    assert words_of("I don't", NgramSettings("spaces", lowercase=False)) == ["I", "don't", EOS]


def test_runs_of_characters_by_hand() -> None:
    settings = NgramSettings(min_chars=2, max_chars=3)
    assert character_ngrams("ab", settings) == ["<a", "<ab", "ab", "ab>", "b>"]
    assert character_ngrams("好", NgramSettings(min_chars=1, max_chars=2)) == ["<好", "好", "好>"]
    assert character_ngrams(EOS, settings) == character_ngrams("ab", NgramSettings()) == []


def test_hash_is_fasttexts() -> None:
    """Test vectors of FNV-1a; fastText takes bytes as signed numbers, so other than ASCII differs from FNV."""
    assert word_hash("a") == 0xE40C292C - (1 << 32)
    assert word_hash("foobar") == 0xBF9CF968 - (1 << 32)
    h = ((word_hash("a") % (1 << 64)) * 116049371 + word_hash("foobar")) % (1 << 64)
    assert ngram_bucket(["a", "foobar"], 1000) == h % 1000


@pytest.mark.parametrize("words", ["text", "spaces"])
@pytest.mark.parametrize("once,max_chars", [(False, 0), (True, 0), (False, 4), (True, 3)])
def test_loops_follow_the_rule(words: str, once: bool, max_chars: int, english_text: str, chinese_text: str) -> None:
    settings = NgramSettings(words, 3, 1000, 2, True, once, 1 if once else 2, max_chars)  # type: ignore[arg-type]
    some = [text[k : k + 700] for text in (english_text, chinese_text) for k in range(0, 7000, 700)]
    texts = TEXTS + some
    vocabulary, learnt = learn_vocabulary(texts, settings)
    again = vocabulary.features(texts)
    assert np.array_equal(learnt.ids, again.ids) and np.array_equal(learnt.starts, again.starts)
    for place, text in enumerate(texts):
        assert [row for _, row in vocabulary.feature_names(text)] == again.of(place).tolist()
    counted: dict[str, int] = {}
    for text in texts:
        for word in words_of(text, settings):
            counted[word] = counted.get(word, 0) + 1
    expected = sorted((word for word in counted if counted[word] >= 2), key=lambda word: -counted[word])
    assert vocabulary.words == expected
    assert vocabulary.counts.tolist() == [counted[word] for word in expected]
    unseen = "zzz qqq the"
    assert [row for _, row in vocabulary.feature_names(unseen)] == vocabulary.features([unseen]).ids.tolist()


def test_threads_and_blocks_change_nothing(english_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [english_text[k : k + 400] for k in range(0, 200_000, 400)]
    settings = NgramSettings(n=2, buckets=5000)
    one, features = learn_vocabulary(texts, settings, threads=1)
    monkeypatch.setattr("zhixing.tokens.ngrams.BLOCK_BYTES", 3000)
    three, same = learn_vocabulary(texts, settings, threads=3)
    assert one.words == three.words and one.counts.tolist() == three.counts.tolist()
    assert np.array_equal(features.ids, same.ids) and np.array_equal(features.starts, same.starts)
    assert np.array_equal(one.features(texts, threads=2).ids, features.ids)


def test_vocabulary_must_be_one() -> None:
    for words in (["a", "a"], ["a b"], [""]):
        with pytest.raises(InputError):
            NgramVocabulary(words, np.ones(len(words), np.int64), NgramSettings())
    with pytest.raises(InputError, match="surrogate"):
        learn_vocabulary(["bad \ud800"], NgramSettings())
    with pytest.raises(InputError, match="n = 0"):
        NgramSettings(n=0)


def test_long_text_and_none() -> None:
    vocabulary, features = learn_vocabulary(["word " * 100_000], NgramSettings(n=2, buckets=10))
    assert len(features.ids) == 199_999
    assert len(vocabulary.features([]).ids) == 0


# The loops against torch.


def problem_of(kind: str, count: int = 40) -> tuple[NDArray[np.int32], NDArray[np.int64], BagTargets, BagSettings]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 12, count)
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    ids = rng.integers(0, 30, starts[-1]).astype(np.int32)
    n_labels = 1 if kind == "regression" else 4
    if kind == "regression":
        targets = BagTargets.of_values(rng.normal(size=count).astype(np.float32))
    elif kind == "single_label_classification":
        targets = BagTargets.of_labels([(int(k),) for k in rng.integers(0, 4, count)])
    else:
        targets = BagTargets.of_labels(
            [tuple(int(c) for c in np.flatnonzero(row)) for row in rng.random((count, 4)) < 0.4]
        )
    return ids, starts, targets, BagSettings(30, n_labels, 5, power=0.7, problem=kind)  # type: ignore[arg-type]


def torch_step(
    model: BagClassifier, ids: NDArray[np.int32], targets: BagTargets, text: int, weights: torch.Tensor
) -> torch.Tensor:
    """The loss of one text by torch's own functions."""
    logits = model(torch.from_numpy(ids.astype(np.int64))[None], torch.ones(1, len(ids), dtype=torch.bool))[0]
    answer = targets.labels[targets.starts[text] : targets.starts[text + 1]]
    if model.settings.problem == "regression":
        return 0.5 * (logits[0] - float(targets.values[text])) ** 2
    if model.settings.problem == "single_label_classification":
        return F.cross_entropy(logits, torch.tensor(int(answer[0]))) * weights[int(answer[0])]
    wanted = torch.zeros(4)
    wanted[torch.from_numpy(answer.astype(np.int64))] = 1
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weights).sum()


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("start,rates", [("random", "equal"), ("random", "idf"), ("labels", "idf")])
def test_training_is_gradient_descent_by_autograd(kind: str, start: str, rates: str) -> None:
    """Two epochs, text by text, against autograd and plain subtraction: each step's gradient counts in the end."""
    ids, starts, targets, settings = problem_of(kind)
    if start == "labels":
        settings = BagSettings(30, settings.n_labels, settings.n_labels, power=0.7, problem=settings.problem)
    training = BagTraining(2, 0.3, start, rates)  # type: ignore[arg-type]
    weights = np.linspace(0.5, 2.0, settings.n_labels).astype(np.float32)
    orders = [np.random.default_rng(epoch).permutation(len(targets)) for epoch in range(2)]
    losses: list[tuple[int, float]] = []
    got = fit_bag(
        ids, starts, targets, settings, training, lambda epoch: orders[epoch], class_weights=weights,
        watch=lambda done, loss: losses.append((done, loss)),
    )  # fmt: skip

    model = BagClassifier(settings)
    with torch.no_grad():
        noise = np.random.default_rng(0).random((30, settings.d_model), dtype=np.float32)
        model.embedding.weight.copy_(torch.from_numpy((noise - 0.5) * (2 / settings.d_model)))
        if start == "labels":
            model.embedding.weight.zero_()
            model.head.weight.copy_(torch.eye(settings.n_labels))
    faster = torch.ones(30)
    if rates == "idf":
        faster = torch.from_numpy(row_rates_of("idf", ids, starts, None, 30))
    total, done = 2 * len(targets), 0
    summed = 0.0
    for order in orders:
        summed = 0.0
        for text in order:
            loss = torch_step(
                model, ids[starts[text] : starts[text + 1]], targets, int(text), torch.from_numpy(weights)
            )
            gradients = torch.autograd.grad(loss, [model.embedding.weight, model.head.weight, model.head.bias])
            rate = 0.3 * (1 - done / total)
            with torch.no_grad():
                model.embedding.weight -= rate * faster[:, None] * gradients[0]
                if start == "random":
                    model.head.weight -= rate * gradients[1]
                model.head.bias -= rate * gradients[2]
            summed += loss.item()
            done += 1
    torch.testing.assert_close(torch.from_numpy(got.embedding), model.embedding.weight.detach(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(got.head), model.head.weight.detach(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(got.bias), model.head.bias.detach(), atol=2e-5, rtol=1e-4)
    assert losses[-1][0] == total and losses[-1][1] == pytest.approx(summed / len(targets), rel=1e-3)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_prediction_is_the_modules(kind: str) -> None:
    ids, starts, _, settings = problem_of(kind)
    rng = np.random.default_rng(1)
    weights = BagWeights(
        settings,
        rng.normal(size=(30, 5)).astype(np.float32),
        rng.normal(size=(settings.n_labels, 5)).astype(np.float32),
        rng.normal(size=settings.n_labels).astype(np.float32),
    )
    got = predict_bag(weights, ids, starts)
    model = BagClassifier.of(weights)
    lengths = np.diff(starts)
    padded = torch.randint(30, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(padded.shape[1]) < torch.from_numpy(lengths)[:, None]
    padded[mask] = torch.from_numpy(ids.astype(np.int64))
    with torch.inference_mode():
        logits = model(padded, mask)
    wanted = {PROBLEMS[0]: logits.softmax(-1), PROBLEMS[1]: logits.sigmoid(), PROBLEMS[2]: logits}[kind]
    torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-6, rtol=1e-5)
    assert np.array_equal(predict_bag(weights, ids, starts, threads=3), got)
    assert model.embedding.weight.data_ptr() == weights.embedding.ctypes.data


def test_batch_equals_single() -> None:
    model = BagClassifier(BagSettings(30, 3, 6), torch.Generator().manual_seed(1))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :1], mask[1:, :1]))
    assert model.settings.vocab_size == 30 and model.embed(ids).shape == (2, 3, 6)


def test_log_count_ratios_by_hand() -> None:
    """Two texts, "0 0 1" of label 0 and "1" of label 1: feature 0 is (2 + 1) / 5 against (0 + 1) / 3."""
    ids, starts = np.array([0, 0, 1, 1], np.int32), np.array([0, 3, 4])
    r = log_count_ratios(ids, starts, BagTargets.of_labels([(0,), (1,)]), BagSettings(2, 2, 2))
    assert r[0, 0] == pytest.approx(math.log((3 / 5) / (1 / 3)), abs=1e-6)
    assert r[1, 1] == pytest.approx(math.log((2 / 3) / (2 / 5)), abs=1e-6)
    np.testing.assert_allclose(r[:, 0], -r[:, 1], atol=1e-6)


def test_idf_rates_by_hand() -> None:
    """Row 0 is in both of two texts, row 1 in one, row 2 in none."""
    rates = row_rates_of("idf", np.array([0, 0, 1, 0], np.int32), np.array([0, 3, 4]), None, 3)
    idf = np.log(1 + 2 / np.array([2.0, 1.0, 1.0]))
    mean = (3 * idf[0] ** 2 + idf[1] ** 2) / 4
    np.testing.assert_allclose(rates, idf**2 / mean, rtol=1e-6)
    steep = row_rates_of("idf", np.array([0, 0, 1, 0], np.int32), np.array([0, 3, 4]), None, 3, 2.0)
    np.testing.assert_allclose(steep, idf**4 / ((3 * idf[0] ** 4 + idf[1] ** 4) / 4), rtol=1e-6)


def test_dropout_repeats_and_leaves_out_its_share() -> None:
    ids, starts, targets, settings = problem_of(PROBLEMS[0], 400)
    order = np.arange(400)

    def fit(dropout: float) -> BagWeights:
        return fit_bag(ids, starts, targets, settings, BagTraining(1, 0.1, dropout=dropout), lambda _: order)

    assert np.array_equal(fit(0.5).embedding, fit(0.5).embedding)
    assert not np.array_equal(fit(0.5).embedding, fit(0.0).embedding)


def reviews(count: int, seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """Texts whose label is the pair of words that they contain: neither word alone tells it."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        good = bool(rng.integers(2))
        words = [f"w{k}" for k in rng.integers(0, 50, 12)]
        first = "not" if rng.integers(2) else "so"
        words[4:6] = [first, "bad" if (first == "not") == good else "good"]
        found.append((" ".join(words), ("pos" if good else "neg",)))
    return found


@pytest.mark.parametrize(
    "training",
    [BagTraining(20, 0.5), BagTraining(20, 1.0, "labels", rates="idf"), BagTraining(20, 1.0, "labels", rates="nb")],
)
def test_learns_what_only_pairs_tell(training: BagTraining) -> None:
    bag = train_bag(reviews(600), NgramSettings(n=2, buckets=5000), training, power=0.5)
    test = reviews(200, seed=1)
    p = bag.predict([text for text, _ in test])
    assert p.shape == (200, 2) and np.allclose(p.sum(axis=1), 1, atol=1e-5)
    accuracy = np.mean([bag.labels[k] == answer[0] for k, (_, answer) in zip(p.argmax(axis=1), test, strict=True)])
    assert accuracy > 0.97
    if training.start != "random":
        first = bag.contributions("w1 w2 not bad w3")
        by_name = dict(first)
        assert by_name["not bad"][1] == max(row[1] for row in by_name.values()) > 0


def test_same_bag_twice_and_threads() -> None:
    examples = reviews(600)
    ngrams, settings = NgramSettings(n=2, buckets=500), BagTraining(3)
    one, two = (train_bag(examples, ngrams, settings) for _ in range(2))
    assert np.array_equal(one.weights.embedding, two.weights.embedding)
    assert np.array_equal(one.weights.head, two.weights.head)
    wild = train_bag(examples, ngrams, BagTraining(20, threads=2))
    p = wild.predict([text for text, _ in examples])
    assert np.mean(p.argmax(1) == [wild.labels.index(answer[0]) for _, answer in examples]) > 0.9


def test_contributions_sum_to_the_logits() -> None:
    bag = train_bag(reviews(100), NgramSettings(n=3, buckets=500, once=True), BagTraining(5), power=0.5)
    for text in ("w1 w2 not bad not bad", "unseen words only", ""):
        total = sum((row for _, row in bag.contributions(text)), np.zeros(2, np.float32)) + bag.weights.bias
        logits = np.log(bag.predict([text])[0])
        np.testing.assert_allclose(total - total.max(), logits - logits.max(), atol=1e-5)


def test_multi_label_and_regression_learn() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((400, 3)) < 0.5
    examples = [
        (" ".join(f"t{c}" for c in range(3) if row[c]) + " x y", tuple(f"l{c}" for c in range(3) if row[c]))
        for row in rows
    ]
    bag = train_bag(examples, NgramSettings(n=1, buckets=0), BagTraining(20, 0.5), problem="multi_label_classification")
    assert ((bag.predict([text for text, _ in examples]) > 0.5) == rows).mean() > 0.99
    numbers = [(text, (str(float(row.sum())),)) for (text, _), row in zip(examples, rows, strict=True)]
    bag = train_bag(numbers, NgramSettings(n=1, buckets=0), BagTraining(50, 0.1), problem="regression", power=0.0)
    error = bag.predict([text for text, _ in numbers])[:, 0] - rows.sum(axis=1)
    assert float(np.abs(error).mean()) < 0.2


def test_class_weights_move_the_border() -> None:
    examples = [("a b", ("rare",))] * 5 + [("a b", ("often",))] * 45
    ngrams, training = NgramSettings(n=1, buckets=0), BagTraining(60, 0.05)
    plain = train_bag(examples, ngrams, training).predict(["a b"])[0]
    even = train_bag(examples, ngrams, training, class_weights={"rare": 9.0, "often": 1.0}).predict(["a b"])[0]
    assert plain[1] < 0.2 and 0.35 < even[1] < 0.65


@pytest.mark.parametrize(
    "examples,problem,message",
    [
        ([], PROBLEMS[0], "no texts"),
        ([("a", ("x",)), ("b", ("x",))], PROBLEMS[0], "same label: x"),
        ([("a", ("x", "y"))], PROBLEMS[0], "text 1 has 2 labels"),
        ([("a", ())], PROBLEMS[1], "no text has a label"),
        ([("a", ("x",))], PROBLEMS[2], "'x' is no number"),
        ([("a", ("1", "2"))], PROBLEMS[2], "2 values"),
    ],
)
def test_what_cannot_be_learnt(examples: list[tuple[str, tuple[str, ...]]], problem: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_bag(examples, NgramSettings(), BagTraining(), problem=problem)  # type: ignore[arg-type]


def test_too_large_a_rate_is_said() -> None:
    with pytest.raises(InputError, match="loss is"):
        train_bag(reviews(200), NgramSettings(n=2, buckets=100), BagTraining(20, 1e6))


def test_texts_without_a_label_are_passed_over() -> None:
    examples = reviews(100)
    bag = train_bag(examples + [("w1 w2", ())], NgramSettings(n=1, buckets=0), BagTraining(2))
    assert isinstance(bag, Bag) and bag.labels == ("neg", "pos")


def test_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of each text is the same however the epoch is cut for the progress line."""
    ids, starts, targets, settings = problem_of(PROBLEMS[0], 100)
    runs = []
    for size in (7, 4096):
        monkeypatch.setattr("zhixing.models.bag.SLICE", size)
        runs.append(fit_bag(ids, starts, targets, settings, BagTraining(2), lambda _: np.arange(100)).embedding)
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)
