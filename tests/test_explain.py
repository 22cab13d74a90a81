"""Why a classifier answered so: sums that must hold, rules that must be found, words that must be whole."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.explain.contributions import contributions
from zhixing.explain.deletion import DeletionCurve, deletion_curve, deletion_test, without
from zhixing.explain.explain import explain, label_scores, pooled_states
from zhixing.explain.explanation import Explanation
from zhixing.explain.integrated_gradients import (
    PathSettings,
    integrated_gradients,
    log_odds,
    margin,
    single_logit,
)
from zhixing.explain.nearest import VectorIndex, WordIndex, terms
from zhixing.explain.rollout import rollout, rollout_weights
from zhixing.explain.spans import Span, Word, cut_words, join_to_words
from zhixing.explain.terminal import terminal

# ---- small classifiers of the contract: embed, classify, forward


@dataclass(frozen=True)
class Sizes:
    vocab_size: int
    d_model: int = 16
    max_len: int = 64
    n_labels: int = 2


class Embedded(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.settings = sizes
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.head = nn.Linear(sizes.d_model, sizes.n_labels)

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.embed(ids), mask)  # type: ignore[no-any-return, operator]


class Mean(Embedded):
    """The mean of the vectors, and a linear layer: a bag."""

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        weights = mask / mask.sum(dim=1, keepdim=True)
        return self.head(torch.einsum("btd,bt->bd", embedded, weights))  # type: ignore[no-any-return]


class Convolution(Embedded):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.filters = nn.Conv1d(sizes.d_model, sizes.d_model, 3, padding=1)

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        x = (embedded * mask[..., None]).transpose(1, 2)
        x = self.filters(x).relu().masked_fill(~mask[:, None], 0.0)
        return self.head(x.amax(dim=2))  # type: ignore[no-any-return]


class Recurrent(Embedded):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.lstm = nn.LSTM(sizes.d_model, sizes.d_model // 2, batch_first=True, bidirectional=True)

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(embedded, mask.sum(dim=1).cpu(), True, enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], True, total_length=mask.shape[1])
        return self.head(hidden.masked_fill(~mask[..., None], -1e4).amax(dim=1))  # type: ignore[no-any-return]


class Attention(Embedded):
    """Two layers of attention with norms, read at the first token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.positions = nn.Parameter(torch.randn(sizes.max_len, sizes.d_model) * 0.1)
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(sizes.d_model, 2, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.d_model) for _ in range(3))

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.states(embedded, mask)[0][:, 0])  # type: ignore[no-any-return]

    def attentions(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        return self.states(self.embed(ids), mask)[1]

    def states(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.norms[2](embedded + self.positions[: embedded.shape[1]])
        maps = []
        for layer, norm in zip(self.layers, self.norms, strict=False):
            out, weights = layer(x, x, x, key_padding_mask=~mask, average_attn_weights=False)
            maps.append(weights)
            x = norm(x + out)
        return x, maps


FAMILIES = {"mean": Mean, "convolution": Convolution, "recurrent": Recurrent, "attention": Attention}

# ---- texts, and what makes ids of them

NOUNS = ("film", "plot", "actor", "scene", "story", "music", "ending", "camera", "script", "voice")
FILLERS = ("a", "the", "was", "with", "and", "of", "its", "very", "some", "this", "that", "had")


def rule_text(generator: random.Random, label: int, length: int = 14) -> str:
    """Random words, and the word that decides at a random place."""
    words = [generator.choice(NOUNS + FILLERS) for _ in range(length)]
    words.insert(generator.randrange(length), "wonderful" if label else "dreadful")
    return " ".join(words) + "."


class WordPieces:
    """BERT's way: lower case, pieces with ##, [CLS] and [SEP] around. (The library's trainer is not deterministic.)"""

    def __init__(self, texts: Sequence[str]) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", *letters, *(f"##{c}" for c in letters)]
        pieces += [*NOUNS, *FILLERS[1:], "won", "##der", "##ful", "dre", "##ad"]  # "a" is a letter
        self.inner = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        self.inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        self.inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        self.pad_id = 0

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.inner.encode(text)
        return found.ids, found.offsets


class BytePairs:
    """GPT-2's way: pieces of bytes, the blank before a word in it."""

    def __init__(self, texts: Sequence[str], vocab_size: int = 400) -> None:
        self.inner = Tokenizer(models.BPE())
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<|pad|>"], show_progress=False
        )
        self.inner.train_from_iterator(texts, trainer)
        self.pad_id = 0

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.inner.encode(text)
        return found.ids, found.offsets


class Bigrams:
    """Words and pairs of neighbours, as a bag has them; a pair's span goes over both words."""

    pad_id = 0

    def __init__(self, texts: Sequence[str]) -> None:
        names = sorted({name for text in texts for name, _ in self.features(text)})
        self.row = {name: row for row, name in enumerate(names, 1)}

    @staticmethod
    def features(text: str) -> list[tuple[str, Span]]:
        words = [(text[a:b].lower(), (a, b)) for a, b in cut_words(text)]
        pairs = [(f"{v} {w}", (s[0], t[1])) for (v, s), (w, t) in pairwise(words)]
        return [*words, *pairs]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        found = [(self.row[name], span) for name, span in self.features(text) if name in self.row]
        return [row for row, _ in found], [span for _, span in found]


@dataclass
class Loaded:
    model: Any
    tokenizer: Any
    labels: tuple[str, ...] = ("negative", "positive")


def trained(family: str, tokenizer: Any, steps: int = 120, seed: int = 0) -> Loaded:
    """A model that has learned the rule."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    vocab = len(tokenizer.row) + 1 if isinstance(tokenizer, Bigrams) else tokenizer.inner.get_vocab_size()
    model = FAMILIES[family](Sizes(vocab))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    accuracy = 0.0
    for _ in range(steps):
        labels = torch.tensor([generator.randrange(2) for _ in range(32)])
        rows = [tokenizer.encode_with_spans(rule_text(generator, int(label)))[0] for label in labels]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, tokenizer.pad_id)
        mask = torch.arange(ids.shape[1])[None] < torch.tensor([[len(row)] for row in rows])
        logits = model(ids, mask)
        accuracy = float((logits.argmax(dim=1) == labels).float().mean())
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    assert accuracy > 0.9, f"{family} has not learned the rule: {accuracy}"
    return Loaded(model, tokenizer)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(1)
    return [rule_text(generator, number % 2) for number in range(200)]


@pytest.fixture(scope="module")
def loaded(texts: list[str]) -> dict[str, Loaded]:
    """One trained model of each family: on bigrams, WordPiece, byte pairs and WordPiece."""
    return {
        "mean": trained("mean", Bigrams(texts)),
        "convolution": trained("convolution", WordPieces(texts)),
        "recurrent": trained("recurrent", BytePairs(texts)),
        "attention": trained("attention", WordPieces(texts)),
    }


# ---- words and spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop!!", ["Don't", "stop", "!!"]),
        ("well-made 'quote' rock'n'roll", ["well-made", "'", "quote", "'", "rock'n'roll"]),
        ("我爱北京，真的！", ["我", "爱", "北", "京", "，", "真", "的", "！"]),
        ("日本語とemoji👍🏽", ["日", "本", "語", "と", "emoji", "👍🏽"]),
        ("👨‍👩‍👧 🇨🇳🇫🇷", ["👨‍👩‍👧", "🇨🇳", "🇫🇷"]),
        ("cafe\u0301 नमस्ते", ["cafe\u0301", "नमस्ते"]),
        ("a...b<br />c", ["a", "...", "b", "<", "br", "/", ">", "c"]),
        ("-- end-", ["--", "end", "-"]),
        ("1,000.5%", ["1", ",", "000", ".", "5", "%"]),
        (" \n\t\x00\u200b", []),
        ("", []),
        ("snake_case x2", ["snake_case", "x2"]),
    ],
)
def test_cut_words(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in cut_words(text)] == words


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_are_in_order_and_cut_no_character(text: str) -> None:
    at = 0
    for start, end in cut_words(text):
        assert at <= start < end
        assert all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text[at:start])
        # a mark belongs to the character before it, unless a blank is there
        assert end == len(text) or unicodedata.category(text[end])[0] != "M"
        at = end
    assert not text[at:].strip() or all(unicodedata.category(c) in ("Cc", "Cf") or c.isspace() for c in text[at:])


@given(
    st.text(alphabet="ab 知行, 'x\n", max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.floats(-5, 5)), max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_the_sum_stays_whatever_the_spans(text: str, tokens: list[tuple[int, int, float]]) -> None:
    spans = [(start, start + length) for start, length, _ in tokens]
    words, rest = join_to_words(text, spans, [weight for _, _, weight in tokens])
    total = sum(weight for _, _, weight in tokens)
    assert sum(word.weight for word in words) + rest == pytest.approx(total, abs=1e-9)


def test_an_ngram_is_spread_over_its_words() -> None:
    words, rest = join_to_words("not very good", [(0, 13), (9, 13)], [3.0, 1.0])
    assert [word.weight for word in words] == [1.0, 1.0, 2.0] and rest == 0


def test_pieces_join_to_whole_words(texts: list[str]) -> None:
    text = "Wonderful, unbelievable 电影 café 👍🏽!"
    for tokenizer in (WordPieces(texts), BytePairs(texts)):
        ids, spans = tokenizer.encode_with_spans(text)
        assert len(ids) >= 10
        words, rest = join_to_words(text, spans, [1.0] * len(ids))
        assert [text[w.start : w.end] for w in words] == [
            "Wonderful",
            ",",
            "unbelievable",
            "电",
            "影",
            "café",
            "👍🏽",
            "!",
        ]
        assert sum(word.weight for word in words) + rest == pytest.approx(len(ids))
        assert all(word.weight > 0 for word in words)
    ids, spans = BytePairs(texts).encode_with_spans("电")
    assert len(ids) == 3  # bytes of one character
    assert join_to_words("电", spans, [1.0, 2.0, 4.0]) == ([Word(0, 1, 7.0)], 0.0)


def test_spans_and_weights_must_match() -> None:
    with pytest.raises(ValueError, match="a span for each"):
        join_to_words("a", [(0, 1)], [1.0, 2.0])


# ---- integrated gradients


class Formula(nn.Module):
    """A classifier whose score is a formula of the tokens' numbers (B, T)."""

    def __init__(self, formula: Any, table: Sequence[float], n_labels: int = 1) -> None:
        super().__init__()
        self.settings = Sizes(len(table), 1, 64, n_labels)
        self.formula = formula
        self.table = nn.Parameter(torch.tensor(table)[:, None])

    def embed(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return self.formula(embedded[..., 0])[:, None]  # type: ignore[no-any-return]


IDS = torch.tensor([[1, 2, 3]])
FREE = torch.zeros(3, dtype=torch.bool)


def test_by_hand() -> None:
    """F = x y + z²: on the line to (2, 3, 4) the product's part is 6, half for each; z² is 16."""
    model = Formula(lambda x: x[:, 0] * x[:, 1] + x[:, 2] ** 2, [0.0, 2.0, 3.0, 4.0])
    found = integrated_gradients(model, IDS, FREE, single_logit(0), PathSettings())
    assert found.weights == pytest.approx([3.0, 3.0, 16.0], abs=1e-5)
    assert (found.score, found.baseline_score, found.nodes) == (22.0, 0.0, 8)
    assert found.complete and found.gap < 1e-5


def test_the_papers_saturated_function() -> None:
    """1 - relu(1 - x): flat at x = 2, where the gradient is zero, and yet all of the score is x's (their section 2)."""
    model = Formula(lambda x: 1 - (1 - x[:, 0]).relu() + 0 * x.sum(dim=1), [0.0, 2.0, 1.0, 1.0])
    found = integrated_gradients(model, IDS, FREE, single_logit(0), PathSettings(tolerance=1e-3))
    assert found.weights == pytest.approx([1.0, 0.0, 0.0], abs=2e-3)
    assert found.complete


def test_a_step_near_the_baseline_is_found() -> None:
    """A norm bends within a thousandth of the line; equal steps would need thousands."""

    def normed(x: Tensor) -> Tensor:
        return (x / (x.pow(2).mean(dim=1, keepdim=True) + 1e-6).sqrt())[:, 0]

    model = Formula(normed, [0.0, 2.0, -1.0, 1.0])
    found = integrated_gradients(model, IDS, FREE, single_logit(0), PathSettings())
    assert found.complete and sum(found.weights) == pytest.approx(found.score, abs=0.015)
    assert 8 < found.nodes <= 512


def test_what_cannot_be_integrated_is_reported() -> None:
    model = Formula(lambda x: (x[:, 0] > 0.7).float() + 0 * x.sum(dim=1), [0.0, 1.0, 1.0, 1.0])
    found = integrated_gradients(model, IDS, FREE, single_logit(0), PathSettings(max_nodes=100))
    assert not found.complete and found.gap == pytest.approx(1.0) and found.nodes <= 100


def test_fixed_tokens_get_nothing_and_padding_may_be_the_baseline() -> None:
    model = Formula(lambda x: x[:, 0] * x[:, 1] * x[:, 2], [1.0, 2.0, 3.0, 4.0])
    fixed = torch.tensor([True, False, False])
    found = integrated_gradients(model, IDS, fixed, single_logit(0), PathSettings())
    assert found.weights[0] == 0 and sum(found.weights) == pytest.approx(24.0)
    padded = integrated_gradients(model, IDS, fixed, single_logit(0), PathSettings(baseline="padding"), pad_id=0)
    assert padded.baseline_score == pytest.approx(2.0) and sum(padded.weights) == pytest.approx(22.0, abs=1e-4)
    with pytest.raises(ValueError, match="pad_id"):
        integrated_gradients(model, IDS, fixed, single_logit(0), PathSettings(baseline="padding"))


def test_memory_is_bounded_and_batches_do_not_matter() -> None:
    torch.manual_seed(0)
    model = Convolution(Sizes(50)).eval()
    largest = 0
    classify = model.classify

    def watched(embedded: Tensor, mask: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, embedded.shape[0] * embedded.shape[1])
        return classify(embedded, mask)

    model.classify = watched  # type: ignore[method-assign]
    ids = torch.randint(1, 50, (1, 40))
    free = torch.zeros(40, dtype=torch.bool)
    results = []
    for batch_tokens in (40, 100, 100_000):
        largest = 0
        found = integrated_gradients(model, ids, free, log_odds(0), PathSettings(1e-3, batch_tokens=batch_tokens))
        assert largest <= max(batch_tokens, 40)
        results.append(found.weights)
    assert results[0] == pytest.approx(results[1], abs=1e-5) and results[1] == pytest.approx(results[2], abs=1e-5)
    assert model.embedding.weight.grad is None  # nothing is left in the model


def test_scores() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    p = logits.softmax(dim=1)[0]
    assert float(log_odds(0)(logits)) == pytest.approx(math.log(p[0] / (1 - p[0])))
    assert float(log_odds(0)(logits + 7)) == pytest.approx(float(log_odds(0)(logits)), abs=1e-5)
    assert float(margin(0)(logits)) == pytest.approx(2.0) and float(margin(0)(logits + 7)) == pytest.approx(2.0)
    assert float(margin(1)(logits[:, :2])) == pytest.approx(float(log_odds(1)(logits[:, :2])))
    assert float(log_odds(0)(logits[:, :1])) == float(margin(0)(logits[:, :1])) == float(single_logit(0)(logits)) == 2.0


# ---- contributions


def test_contributions_are_exact(texts: list[str]) -> None:
    torch.manual_seed(0)
    model = Mean(Sizes(30, n_labels=3)).eval()
    ids = torch.tensor([[3, 7, 7, 20]])
    for label in range(3):
        found = contributions(model, ids, margin(label))
        assert found is not None
        with torch.no_grad():
            weight = model.head.weight[label] - (model.head.weight.sum(dim=0) - model.head.weight[label]) / 2
            by_hand = (model.embedding.weight[ids[0]] @ weight / 4).tolist()
            logits = model(ids, torch.ones_like(ids, dtype=torch.bool))
        assert found.weights == pytest.approx(by_hand, abs=1e-6)
        assert found.score == pytest.approx(float(margin(label)(logits)), abs=1e-6)
        assert found.score - found.baseline_score == pytest.approx(sum(by_hand), abs=1e-5)


@pytest.mark.parametrize("family", ["convolution", "recurrent", "attention"])
def test_contributions_know_what_is_no_sum(family: str, loaded: dict[str, Loaded], texts: list[str]) -> None:
    run = loaded[family]
    for text in texts[:10]:
        ids = torch.tensor([run.tokenizer.encode_with_spans(text)[0]])
        assert contributions(run.model.eval(), ids, margin(1)) is None
    with pytest.raises(InputError, match="not a sum"):
        explain(run, texts[0], method="contributions")


def test_contributions_and_integrated_gradients_agree_on_a_bag(loaded: dict[str, Loaded], texts: list[str]) -> None:
    exact, path = (explain(loaded["mean"], texts[0], method=m) for m in ("auto", "integrated_gradients"))
    assert (exact.method, path.method) == ("contributions", "integrated_gradients")
    assert [w.weight for w in exact.words] == pytest.approx([w.weight for w in path.words], abs=1e-5)


# ---- rollout


def test_rollout_by_hand() -> None:
    attention = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])  # one layer, one head
    assert rollout([attention])[0].tolist() == [[0.5, 0.5], [0.25, 0.75]]
    twice = rollout([attention, attention])[0]
    assert twice.tolist() == [[0.375, 0.625], [0.3125, 0.6875]]
    with pytest.raises(ValueError, match="at least one layer"):
        rollout([])


def test_rollout_rows_sum_to_one_and_order_is_from_the_first_layer() -> None:
    torch.manual_seed(0)
    maps = [torch.rand(3, 4, 7, 7).softmax(dim=-1) for _ in range(5)]
    shares = rollout(maps)
    assert shares.shape == (3, 7, 7)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(3, 7))
    mixed = [(m.mean(dim=1) + torch.eye(7)) / 2 for m in maps]
    torch.testing.assert_close(shares, mixed[4] @ mixed[3] @ mixed[2] @ mixed[1] @ mixed[0])


def test_rollout_gives_padding_nothing(loaded: dict[str, Loaded], texts: list[str]) -> None:
    run = loaded["attention"]
    ids = torch.tensor([run.tokenizer.encode_with_spans(texts[0])[0]])
    padded = nn.functional.pad(ids, (0, 5))
    mask = padded != 0
    run.model.eval()
    with torch.no_grad():
        alone, beside = rollout(run.model.attentions(ids, ids != 0)), rollout(run.model.attentions(padded, mask))
    n = ids.shape[1]
    torch.testing.assert_close(beside[:, :n, :n], alone)
    assert float(beside[:, :n, n:].abs().max()) == 0
    assert rollout_weights(run.model, ids, None) == pytest.approx(alone[0].mean(dim=0).tolist())


def test_rollout_as_an_explanation(loaded: dict[str, Loaded], texts: list[str]) -> None:
    found = explain(loaded["attention"], texts[0], method="rollout")
    assert sum(w.weight for w in found.words) + found.rest == pytest.approx(1.0, abs=1e-5)
    assert found.gap is None and found.complete and min(w.weight for w in found.words) >= 0
    with pytest.raises(InputError, match="no attention"):
        explain(loaded["mean"], texts[0], method="rollout")


# ---- the whole: the rule must be found


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_word_that_decides_is_found(family: str, loaded: dict[str, Loaded]) -> None:
    generator = random.Random(99)
    run = loaded[family]
    hits = moved = 0
    for number in range(20):
        text = rule_text(generator, number % 2)
        found = explain(run, text)
        deciding = "wonderful" if number % 2 else "dreadful"
        assert found.label == run.labels[number % 2] and found.probability is not None and found.probability > 0.5
        best = max(found.words, key=lambda word: word.weight)
        assert found.complete and found.gap is not None and found.baseline_score is not None
        # a model that gives one of the labels to a text of nothing has nothing to explain there
        if found.score - found.baseline_score > 1:
            moved += 1
            hits += text[best.start : best.end] == deciding
        total = sum(word.weight for word in found.words) + found.rest
        allowed = 0.01 * max(1.0, abs(found.score - found.baseline_score))
        assert total == pytest.approx(found.score - found.baseline_score, abs=allowed)
        if family != "mean":
            assert found.score == pytest.approx(math.log(found.probability / (1 - found.probability)), rel=2e-2)
    assert moved >= 8 and hits >= moved - 1


@pytest.mark.parametrize("family", list(FAMILIES))
def test_deleting_the_named_words_moves_the_score_more(family: str, loaded: dict[str, Loaded]) -> None:
    generator = random.Random(7)
    run = loaded[family]
    curves = []
    for number in range(12):
        text = rule_text(generator, number % 2)
        found = explain(run, text)
        curves.append(deletion_curve(label_scores(run, found.label), text, found.words, seed=number))
    result = deletion_test(curves)
    assert result.n == 12 and result.share >= 11 / 12
    assert result.named > 1.5 * result.random and result.low > 0
    assert result.low <= result.difference <= result.high


def test_another_label_can_be_asked_for(loaded: dict[str, Loaded], texts: list[str]) -> None:
    found = explain(loaded["mean"], texts[0])
    other = explain(loaded["mean"], texts[0], label=next(x for x in loaded["mean"].labels if x != found.label))
    assert [w.weight for w in other.words] == pytest.approx([-w.weight for w in found.words], abs=1e-6)
    assert found.probability is not None and other.probability == pytest.approx(1 - found.probability, abs=1e-6)


def test_a_model_with_an_opinion_about_nothing_is_told_of(loaded: dict[str, Loaded], texts: list[str]) -> None:
    """Three labels: log-odds of log(1/2) are those of equal labels, and a margin of 0."""
    run = loaded["convolution"]

    def leaning(bias: float) -> Loaded:
        model = Formula(lambda x: torch.tanh(x).sum(dim=1), [0.1] * run.model.settings.vocab_size, 3)
        model.classify = lambda embedded, mask: torch.stack(  # type: ignore[method-assign]
            [bias + torch.tanh(embedded[..., 0]).sum(dim=1) ** 2, *[embedded[:, 0, 0] * 0] * 2], dim=1)  # fmt: skip
        return Loaded(model, run.tokenizer, ("a", "b", "c"))

    even, odd = (explain(leaning(bias), texts[0], label="a") for bias in (0.0, 3.0))
    assert even.method == "integrated_gradients" and even.lean is not None and odd.lean is not None
    assert even.lean == pytest.approx(0, abs=0.05) and not even.lopsided  # special tokens stay, and say a little
    assert odd.lean - even.lean == pytest.approx(3, abs=1e-5) and odd.lopsided and odd.to_dict()["lean"] == odd.lean
    assert explain(run, texts[0], problem_type="multi_label_classification").lean is not None
    assert explain(loaded["attention"], texts[0], method="rollout").lean is None


def test_temperature_and_problem_types(loaded: dict[str, Loaded], texts: list[str]) -> None:
    run = loaded["convolution"]
    one, two = explain(run, texts[0]), explain(run, texts[0], temperature=2.0)
    assert two.score == pytest.approx(one.score / 2, abs=1e-5)
    assert one.probability is not None and two.probability is not None and two.probability < one.probability
    multi = explain(run, texts[0], problem_type="multi_label_classification")
    assert multi.probability == pytest.approx(1 / (1 + math.exp(-multi.score)), abs=1e-6)
    torch.manual_seed(0)
    regression = Loaded(Convolution(Sizes(run.model.settings.vocab_size, n_labels=1)), run.tokenizer, ())
    found = explain(regression, texts[0], problem_type="regression")
    assert found.probability is None and found.label == "" and found.complete


def test_the_model_is_left_as_it_was(loaded: dict[str, Loaded], texts: list[str]) -> None:
    run = loaded["attention"]
    run.model.train()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    same = [explain(run, texts[0]) for _ in range(2)]
    assert run.model.training and same[0] == same[1]  # no dropout while explaining
    run.model.eval()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_long_text_is_cut_and_counted(loaded: dict[str, Loaded]) -> None:
    run = loaded["attention"]
    text = "some film " * 500  # a piece each
    found = explain(run, text)
    assert found.left_out == 1002 - 64 and len(found.words) == 1000
    assert [w.weight for w in found.words[62:]] == [0.0] * 938  # [CLS], 62 words, [SEP]
    assert all(w.weight != 0 for w in found.words[:62])


@pytest.mark.parametrize(
    ("text", "keywords", "said"),
    [
        ("", {}, "no word"),
        (" \n ", {}, "no word"),
        ("half \ud800", {}, "lone surrogate"),
        ("a film", {"label": "neutral"}, "no label 'neutral'"),
        ("a film", {"method": "magic"}, "no method 'magic'"),
        ("a film", {"nearest": 2}, "no training texts"),
    ],
)
def test_bad_input(loaded: dict[str, Loaded], text: str, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        explain(loaded["attention"], text, **keywords)


def test_to_dict_is_json(loaded: dict[str, Loaded], texts: list[str]) -> None:
    index = WordIndex([Example(text, ("negative", "positive")[n % 2]) for n, text in enumerate(texts)])
    found = explain(loaded["convolution"], texts[1], nearest=2, training=index)
    back = json.loads(json.dumps(found.to_dict(), allow_nan=False, ensure_ascii=False))
    assert back["label"] == "positive" and back["method"] == "integrated_gradients"
    for word in back["words"]:
        assert texts[1][word["start"] : word["end"]] == word["word"]
    assert back["nearest"][0]["labels"] == ["positive"]
    assert back["nearest"][0]["text"] == texts[1] and back["nearest"][0]["similarity"] == pytest.approx(1.0)


# ---- the nearest training texts


class Example:
    def __init__(self, text: str, *labels: str) -> None:
        self.text, self.labels = text, labels


def test_terms() -> None:
    assert list(terms("I don't like 北京烤鸭, 好! x_2")) == [
        "i",
        "don't",
        "like",
        "北京",
        "京烤",
        "烤鸭",
        "好",
        "x",
        "2",
    ]


def test_nearest_words_are_those_of_scikit_learn(texts: list[str]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    index = WordIndex([Example(text, "x") for text in texts])
    theirs = TfidfVectorizer(analyzer=lambda text: list(terms(text)), sublinear_tf=True)
    rows = theirs.fit_transform(texts)
    for query in [texts[5], "the film the film was wonderful"]:
        expected = (rows @ theirs.transform([query]).T).toarray()[:, 0]
        found = index.nearest(query, 200)
        assert [near.similarity for near in found] == pytest.approx(sorted(expected[expected > 0])[::-1], abs=1e-5)
        assert {near.number: near.similarity for near in found} == pytest.approx(
            {n: s for n, s in enumerate(expected) if s > 0}, abs=1e-5
        )


def test_nearest_words(monkeypatch: pytest.MonkeyPatch) -> None:
    training = [Example("good film", "p"), Example("", "n"), Example("bad film", "n"), Example("我喜欢这部电影", "p"), Example("good good film", "p")]  # fmt: skip
    index = WordIndex(training)
    found = index.nearest("good film", 3)
    assert [near.number for near in found] == [0, 4, 2] and found[0].similarity == pytest.approx(1.0, abs=1e-6)
    assert [near.number for near in index.nearest("这部电影", 5)] == [3]
    assert index.nearest("nothing alike", 5) == [] and index.nearest("", 5) == []
    import zhixing.explain.nearest as module

    monkeypatch.setattr(module, "BLOCK", 2)  # blocks of a text or two
    again = WordIndex(training)
    assert again.nearest("good film", 3) == found
    monkeypatch.setattr(module, "MAX_WORDS", 2)
    few = WordIndex(training)
    assert list(few.columns) == ["good", "film"] and few.nearest("good film", 1)[0].number == 0
    with pytest.raises(InputError, match="no training texts"):
        WordIndex([])


def test_nearest_states(loaded: dict[str, Loaded], texts: list[str]) -> None:
    for run in loaded.values():
        examples = [Example(text, run.labels[n % 2]) for n, text in enumerate(texts)]
        index = VectorIndex(examples, pooled_states(run), batch=64)
        assert index.rows.shape == (200, 16)
        found = explain(run, texts[3], nearest=8, training=index)
        assert found.nearest[0].text == texts[3] and found.nearest[0].similarity == pytest.approx(1.0, abs=1e-4)
        assert {near.labels for near in found.nearest} == {("positive",)}  # what the model takes to be alike
        similarities = [near.similarity for near in found.nearest]
        assert similarities == sorted(similarities, reverse=True)


def test_batches_of_texts_equal_single_ones(loaded: dict[str, Loaded], texts: list[str], monkeypatch: Any) -> None:
    import zhixing.explain.explain as module

    for run in loaded.values():
        mixed = [texts[0], "wonderful", texts[1] * 3, ""]
        scores = label_scores(run, "positive")
        together = scores(mixed)
        assert together == pytest.approx(np.concatenate([scores([text]) for text in mixed]), abs=1e-4)
        monkeypatch.setattr(module, "BATCH_TOKENS", 20)
        assert scores(mixed) == pytest.approx(together, abs=1e-4)


# ---- deletion


def test_without() -> None:
    text = "A very, very good film"
    words = [Word(a, b, 1.0) for a, b in cut_words(text)]
    assert without(text, []) == text
    assert without(text, [words[1]]) == "A , very good film"
    assert without(text, [words[0], words[-1]]) == "very, very good "
    assert without(text, [words[4], words[3]]) == "A very, film"
    assert without("我很喜欢", [Word(1, 2, 1.0)]) == "我喜欢"


def test_deletion_curve_by_hand() -> None:
    text = "a b c d, e f g h i j"
    words = [Word(s, e, float(text[s:e] == "d") * 2 + float(text[s:e] == ",") * 9) for s, e in cut_words(text)]

    def predict(batch: list[str]) -> list[float]:
        assert all("," in one for one in batch)  # marks are left alone
        return [1.0 * ("d" in one) for one in batch]

    curve = deletion_curve(predict, text, words, fractions=(0.1, 0.5), seed=0, draws=400)
    assert curve.removed == (1, 5) and curve.named == (1.0, 1.0) and curve.comprehensiveness == 1.0
    assert curve.random == pytest.approx((0.1, 0.5), abs=0.08)
    assert curve == deletion_curve(predict, text, words, fractions=(0.1, 0.5), seed=0, draws=400)
    with pytest.raises(InputError, match="fewer than two words"):
        deletion_curve(predict, "one !!", [Word(0, 3, 1.0), Word(4, 6, 1.0)])
    with pytest.raises(ValueError, match="fractions"):
        deletion_curve(predict, text, words, fractions=(1.5,))


def test_deletion_test_by_hand() -> None:
    curves = [DeletionCurve((0.1, 0.2), (1, 2), (1.0, 3.0), (0.0, 1.0)), DeletionCurve((0.1, 0.2), (1, 2), (0.0, 0.0), (0.5, 0.5))]  # fmt: skip
    found = deletion_test(curves)
    assert (found.n, found.named, found.random, found.difference, found.share) == (2, 1.0, 0.5, 0.5, 0.5)
    assert found.low <= 0.5 <= found.high
    with pytest.raises(ValueError, match="at least one"):
        deletion_test([])


# ---- the explanation, and the terminal


def _explanation(text: str, weights: dict[str, float], **changes: Any) -> Explanation:
    words = tuple(Word(a, b, weights.get(text[a:b], 0.0)) for a, b in cut_words(text))
    fields: dict[str, Any] = {
        "text": text, "label": "positive", "probability": 0.931, "method": "integrated_gradients", "score": 2.6,
        "baseline_score": -0.1, "words": words, "rest": 0.1, "gap": 0.001, "complete": True, "nodes": 24,
    }  # fmt: skip
    return Explanation(**(fields | changes))


def test_levels_and_top_words() -> None:
    found = _explanation(
        "Good film, good music, bad 坏 end", {"Good": 1.0, "good": 0.5, "bad": -0.6, "坏": -0.04, "film": 0.06}
    )
    assert [found.level(weight) for weight in (1.0, 0.5, 0.2, 0.06, 0.04, 0.0, -0.6, -1.0)] == [
        5,
        3,
        1,
        1,
        0,
        0,
        -3,
        -5,
    ]
    assert [(t.word, t.weight, t.times) for t in found.top_words(3)] == [
        ("good", 1.5, 2),
        ("bad", -0.6, 1),
        ("film", 0.06, 1),
    ]
    assert _explanation("nothing here", {}).level(0.0) == 0 and _explanation("nothing", {}).top_words() == []


def test_terminal_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _explanation("A good film,\nbad 坏 end.", {"good": 2.0, "bad": -1.0, "坏": -0.5, "film": 0.1})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = terminal(found)
    assert "\033" not in shown
    assert "A +good+ film,\n-bad- -坏- end." in shown
    assert "positive 93.1%" in shown and "  good  +2.000  ████████████████" in shown and "  坏    -0.500  ████" in shown
    assert "careful" not in shown
    monkeypatch.delenv("NO_COLOR")
    coloured = terminal(found)
    assert "\033[48;5;25;38;5;231mgood\033[0m" in coloured and "\033[1mpositive\033[0m" in coloured
    assert "\033" not in terminal(found, colour=False)
    plain = __import__("re").sub(r"\033\[[\d;]*m", "", coloured)
    assert "A good film,\nbad 坏 end." in plain


def test_terminal_says_what_to_be_careful_about() -> None:
    shown = terminal(
        _explanation("good " * 3000, {"good": 1.0}, complete=False, gap=0.5, nodes=512, left_out=2488), colour=False
    )
    assert "miss the score by 0.5, after 512 nodes" in shown and "2,488 tokens" in shown and "more characters)" in shown
    assert "(3000 times)" in shown and len(shown) < 12_000
    shown = terminal(_explanation("a b", {}, baseline_score=-2.5, lean=-2.5), colour=False)
    assert "careful: the model leans away from this label before it reads a word, by 2.50" in shown
    assert "careful" not in terminal(_explanation("a b", {}, lean=0.9), colour=False)
    shown = terminal(_explanation("a b", {"a": 0.7}, method="rollout", gap=None, baseline_score=None), colour=False)
    assert "not for or against" in shown
    shown = terminal(_explanation("a b", {}, probability=None, label="", score=3.25), colour=False)
    assert shown.startswith("value 3.250") and "no word weighs anything" in shown


def test_a_terminal_obeys_no_text() -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07 \u202eevil good\u2066"
    shown = terminal(_explanation(hostile, {"good": 1.0}, label="\x1b[2Jlabel"), colour=False)
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown and "\u2066" not in shown


# ---- the bag of the package


@pytest.mark.parametrize("words", ["text", "spaces"])
@pytest.mark.parametrize(("once", "max_chars"), [(False, 0), (True, 0), (False, 3)])
def test_ngrams_know_their_places(words: Any, once: bool, max_chars: int) -> None:
    from zhixing.explain.ngram_spans import NgramSpans
    from zhixing.tokens.ngrams import NgramSettings, learn_vocabulary

    texts = ["A good film, a GOOD film!", "我不喜欢 don't İyi ΣΑΣ", "", "good </s> 👍🏽 film\u00a0x"]
    vocabulary, _ = learn_vocabulary(
        texts, NgramSettings(words=words, n=3, buckets=1000, once=once, max_chars=max_chars)
    )
    spans = NgramSpans(vocabulary)
    for text in [*texts, "an unseen good film"]:
        ids, places = spans.encode_with_spans(text)
        assert ids == vocabulary.features([text]).of(0).tolist()
        for row, (start, end) in zip(ids, places, strict=True):
            if row < len(vocabulary.words) and end > start:
                assert text[start:end].lower() == vocabulary.words[row]
    ids, places = spans.encode_with_spans(texts[0])
    if words == "text" and not once and not max_chars:
        covered = [texts[0][start:end] for start, end in places]
        assert covered[:8] == ["A", "good", "film", ",", "a", "GOOD", "film", "!"]
        assert covered[8:10] == ["A good", "A good film"]


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_bag_of_the_package(power: float) -> None:
    from zhixing.explain.ngram_spans import NgramSpans
    from zhixing.models.bag import BagClassifier, BagSettings
    from zhixing.tokens.ngrams import NgramSettings, learn_vocabulary

    texts = ["a good film", "a bad film, not good"]
    vocabulary, _ = learn_vocabulary(texts, NgramSettings(n=2, buckets=100))
    torch.manual_seed(0)
    model = BagClassifier(BagSettings(vocabulary.n_rows, 2, power=power))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    run = Loaded(model, NgramSpans(vocabulary))
    found = explain(run, texts[1])
    assert found.method == "contributions" and found.complete
    ids = torch.tensor([run.tokenizer.encode_with_spans(texts[1])[0]])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        bias = model.head.bias.detach()
    c = run.labels.index(found.label)
    assert sum(w.weight for w in found.words) + found.rest == pytest.approx(
        float(logits[c] - logits[1 - c] - bias[c] + bias[1 - c]), abs=1e-4
    )
    assert found.baseline_score == pytest.approx(float(bias[c] - bias[1 - c]), abs=1e-5)
