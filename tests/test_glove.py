"""GloVe: counting against the definition, the compiled loop against autograd, the same bits with any threads."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.vectors import glove
from zhixing.vectors.glove import (
    Cooccurrences,
    GloveSettings,
    count_cooccurrences,
    glove_loss,
    glove_reference,
    open_cooccurrences,
    train_glove,
)

V = 40
SETTINGS = GloveSettings(d_model=7, window=4, x_max=5, threads=2, memory_mb=16, epochs=3)


def sentences_of(seed: int = 1, count: int = 40) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(-1, V, generator.integers(0, 60)).astype(np.int32) for _ in range(count)]


def counts_of(sentences: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    ids = np.concatenate(sentences)
    return np.bincount(ids[ids >= 0], minlength=V)


def by_definition(sentences: list[NDArray[np.int32]], window: int) -> NDArray[np.float64]:
    x = np.zeros((V, V))
    for ids in sentences:
        for part in np.split(ids, np.flatnonzero(ids < 0)):
            words = part[part >= 0].tolist()
            for right in range(len(words)):
                for left in range(max(0, right - window), right):
                    x[words[left], words[right]] += 1 / (right - left)
                    x[words[right], words[left]] += 1 / (right - left)
    return x


def dense(pairs: Cooccurrences) -> NDArray[np.float64]:
    x = np.zeros((V, V))
    np.add.at(x, (pairs.rows, pairs.columns), pairs.values)
    return x


# --- counting ------------------------------------------------------------------------------------------------------


def test_a_table_by_hand(tmp_path: Path) -> None:
    pairs = count_cooccurrences([np.array([0, 1, 0], np.int32)], 2, tmp_path / "x", replace(SETTINGS, window=2))
    found = dict(zip(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True), pairs.values.tolist(), strict=True))
    assert found == {(0, 1): 2.0, (1, 0): 2.0, (0, 0): 1.0}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("table", [None, 128])
def test_counts_are_the_definitions(
    threads: int, table: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if table:  # full again and again: many sorted parts to merge, in many ranges
        made = glove._Table.__init__
        monkeypatch.setattr(glove._Table, "__init__", lambda self, size, *rest: made(self, table, *rest))
        monkeypatch.setattr(glove, "GATHER", 64)
    sentences = sentences_of()
    settings = replace(SETTINGS, threads=threads)
    pairs = count_cooccurrences(sentences, V, tmp_path / "x", settings)
    np.testing.assert_allclose(dense(pairs), by_definition(sentences, 4), atol=1e-5)
    blocks = [slice(*pairs.offsets[k : k + 2].tolist()) for k in range(len(pairs.offsets) - 1)]
    assert pairs.offsets[-1] == len(pairs.values) and len(blocks) == glove.STRIPES**2
    for number, span in enumerate(blocks):
        assert (pairs.rows[span] % glove.STRIPES == number // glove.STRIPES).all()
        assert (pairs.columns[span] % glove.STRIPES == number % glove.STRIPES).all()
    monkeypatch.undo()
    once = count_cooccurrences(
        [np.concatenate([np.append(s, -1) for s in sentences]).astype(np.int32)], V, tmp_path / "y", SETTINGS
    )
    for name in ("rows", "columns", "values"):
        assert (getattr(once, name) == getattr(pairs, name)).all()


def test_merging_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    expected: dict[int, int] = {}
    parts = []
    for number in range(7):
        keys = np.unique(generator.integers(0, 3000, generator.integers(1, 900)))
        sums = generator.integers(1, 1000, len(keys))
        part = tmp_path / f"part-{number}"
        keys.tofile(part.with_suffix(".keys"))
        sums.tofile(part.with_suffix(".sums"))
        parts.append(part)
        for key, total in zip(keys.tolist(), sums.tolist(), strict=True):
            expected[key] = expected.get(key, 0) + total
    small = replace(SETTINGS, memory_mb=1)
    object.__setattr__(small, "memory_mb", 0.01)  # 109 pairs at a time
    keys, sums = glove._merge(parts, tmp_path, small)
    assert dict(zip(keys.tolist(), sums.tolist(), strict=True)) == expected and (np.diff(keys) > 0).all()


def test_buckets_are_cut_by_the_number_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glove, "BUCKET", 3)
    sentences = sentences_of()
    pairs = count_cooccurrences(sentences, V, tmp_path / "x", SETTINGS)
    assert pairs.n_buckets > 1
    np.testing.assert_allclose(dense(pairs), by_definition(sentences, 4), atol=1e-5)
    one, three = (
        train_glove(sentences, counts_of(sentences), replace(SETTINGS, threads=threads, deterministic=True))
        for threads in (1, 3)
    )
    assert (one.vectors == three.vectors).all()


def test_what_cannot_be_counted(tmp_path: Path) -> None:
    for nothing in ([], [np.array([], np.int32)], [np.array([3, -1, 5], np.int32)]):
        with pytest.raises(InputError, match="no two words"):
            count_cooccurrences(nothing, V, tmp_path / "x", SETTINGS)
        assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="below 40"):
        count_cooccurrences([np.array([1, 40], np.int32)], V, tmp_path / "x", SETTINGS)
    with pytest.raises(ValueError, match="int32"):
        count_cooccurrences([np.array([1, 4])], V, tmp_path / "x", SETTINGS)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_damaged_counts(tmp_path: Path) -> None:
    count_cooccurrences(sentences_of(), V, tmp_path / "x", SETTINGS)
    file = tmp_path / "x" / "values.f32"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="cannot be used"):
        open_cooccurrences(tmp_path / "x")


# --- learning ------------------------------------------------------------------------------------------------------


def matrices(seed: int = 0) -> tuple[Any, ...]:
    """words, contexts (V, 2, 16) with 7 numbers used, biases (V, 4)."""
    generator = np.random.default_rng(seed)
    words, contexts = (np.zeros((V, 2, 16), np.float32) for _ in range(2))
    biases = np.ones((V, 4), np.float32)
    for matrix in (words, contexts):
        matrix[:, 0, :7] = generator.standard_normal((V, 7)) * 0.3
        matrix[:, 1] = 1
    biases[:, :2] = generator.standard_normal((V, 2)) * 0.1
    return words, contexts, biases


def as_tensors(words: Any, contexts: Any, biases: Any) -> list[torch.Tensor]:
    parts = (words[:, 0, :7], contexts[:, 0, :7], biases[:, 0], biases[:, 1],
             words[:, 1, :7], contexts[:, 1, :7], biases[:, 2], biases[:, 3])  # fmt: skip
    return [torch.tensor(part, dtype=torch.float64) for part in parts]


def learn(rows: Any, columns: Any, values: Any, seed: int, state: tuple[Any, ...]) -> float:
    return float(
        glove._learn(rows, columns, values, seed, *state, SETTINGS.x_max, SETTINGS.alpha, SETTINGS.learning_rate)
    )


@pytest.mark.parametrize("x", [0.2, 3.0, 5.0, 80.0])
def test_gradients_are_autograds(x: float) -> None:
    state = matrices()
    before = as_tensors(*state)
    i, j = 3, 17
    rows = [p[k].clone().requires_grad_() for p, k in zip(before[:4], (i, j, i, j), strict=True)]
    loss = glove_loss(rows[0][None], rows[1][None], rows[2][None], rows[3][None], torch.tensor([x]).double(), SETTINGS)
    loss.backward()
    ours = learn(np.array([i], np.int32), np.array([j], np.int32), np.array([x], np.float32), 0, state)
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    after = as_tensors(*state)
    for was, now, row, k in zip(before[:4], after[:4], rows, (i, j, i, j), strict=True):
        # the squares summed are 1 at first, so the step is the gradient times the learning rate
        torch.testing.assert_close((was[k] - now[k]) / SETTINGS.learning_rate, row.grad, rtol=1e-4, atol=1e-5)
    assert (
        sum(
            (a != b).any(dim=-1).sum().item() if a.ndim > 1 else (a != b).sum().item()
            for a, b in zip(before, after, strict=True)
        )
        == 8
    )


def test_the_compiled_loop_is_the_reference(tmp_path: Path) -> None:
    pairs = count_cooccurrences(sentences_of(), V, tmp_path / "x", SETTINGS)
    rows, columns, values = (np.array(a[:500]) for a in (pairs.rows, pairs.columns, pairs.values))
    state = matrices()
    reference = as_tensors(*state)
    loss = glove_reference(reference, zip(rows.tolist(), columns.tolist(), values.tolist(), strict=True), SETTINGS)
    assert learn(rows, columns, values, 0, state) == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(as_tensors(*state), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not state[0][:, 0, 7:].any()  # the padding


def test_a_random_order_takes_every_pair_once() -> None:
    # with a step of nothing, the loss does not depend on the order
    state = matrices()
    generator = np.random.default_rng(0)
    rows, columns = (generator.integers(0, V, 1000).astype(np.int32) for _ in range(2))
    values = generator.uniform(0.1, 9, 1000).astype(np.float32)
    losses = [
        float(glove._learn(rows, columns, values, seed, *state, SETTINGS.x_max, SETTINGS.alpha, 0.0))
        for seed in (0, 1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9) == pytest.approx(losses[2], rel=1e-9)
    assert len(set(losses)) == 3  # other orders of adding


@pytest.mark.parametrize("deterministic", [True, False])
def test_losses_fall(deterministic: bool) -> None:
    sentences = sentences_of()
    trained = train_glove(sentences, counts_of(sentences), replace(SETTINGS, deterministic=deterministic, epochs=8))
    assert len(trained.losses) == 8 and trained.losses[-1] < 0.5 * trained.losses[0]
    assert trained.vectors.shape == (V, 7) and (trained.vectors == trained.words + trained.contexts).all()


def test_the_same_bits_with_any_threads_and_memory() -> None:
    sentences = sentences_of()
    counts = counts_of(sentences)
    settings = replace(SETTINGS, deterministic=True)
    first = train_glove(sentences, counts, settings)
    for threads, memory in ((1, 16), (3, 64), (11, 16)):
        again = train_glove(sentences, counts, replace(settings, threads=threads, memory_mb=memory))
        assert (again.vectors == first.vectors).all() and again.losses == first.losses
    assert (train_glove(sentences, counts, replace(settings, seed=1)).vectors != first.vectors).any()


def test_words_of_one_subject_come_together() -> None:
    """Two subjects of V / 2 words; of a sentence about one, 15 % are any words. (GloVe learns nothing of zeros.)"""
    generator = np.random.default_rng(0)
    sentences = []
    for number in range(600):
        words = generator.integers(0, V // 2, 12) + V // 2 * (number % 2)
        sentences.append(np.where(generator.random(12) < 0.15, generator.integers(0, V, 12), words).astype(np.int32))
    trained = train_glove(sentences, counts_of(sentences), replace(SETTINGS, d_model=10, x_max=100, epochs=20))
    unit = trained.vectors / np.linalg.norm(trained.vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    half = V // 2
    inside = (near[:half, :half].sum() + near[half:, half:].sum() - V) / (2 * half * (half - 1))
    assert inside > 0.8 and near[:half, half:].mean() < -0.5


# --- stopping and going on -----------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    sentences = sentences_of()
    counts = counts_of(sentences)
    settings = replace(SETTINGS, deterministic=True)
    whole = train_glove(sentences, counts, settings)
    calls = iter(range(1000))
    for attempt in range(30):
        stop = threading.Event()

        def after_five(stop: threading.Event = stop) -> bool:
            if next(calls) % 5 == 4:
                stop.set()
            return stop.is_set()

        trained = train_glove(sentences, counts, settings, tmp_path / "run", resume=attempt > 0, stop=after_five)
        if len(trained.losses) == settings.epochs:
            break
        assert len(list((tmp_path / "run" / "states").iterdir())) == 1
    assert attempt >= 3
    assert (trained.vectors == whole.vectors).all() and trained.losses == whole.losses
    again = train_glove(sentences, counts, settings, tmp_path / "run", resume=True)  # nothing left to do
    assert (again.vectors == whole.vectors).all()


def test_a_run_goes_on_with_its_own_text_and_settings_only(tmp_path: Path) -> None:
    sentences = sentences_of()
    counts = counts_of(sentences)
    train_glove(sentences, counts, replace(SETTINGS, epochs=1), tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        train_glove(sentences, counts, SETTINGS, tmp_path / "run")
    with pytest.raises(InputError, match="epochs = 1, not 2"):
        train_glove(sentences, counts, replace(SETTINGS, epochs=2), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="not the one"):
        train_glove(sentences, counts + 1, replace(SETTINGS, epochs=1), tmp_path / "run", resume=True)


def test_a_run_killed_while_counting_leaves_the_folder_free(tmp_path: Path) -> None:
    def killed() -> Any:
        yield from sentences_of()
        raise KeyboardInterrupt

    counts = counts_of(sentences_of())
    with pytest.raises(KeyboardInterrupt):
        train_glove(killed(), counts, SETTINGS, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["glove.json"]
    trained = train_glove(sentences_of(), counts, replace(SETTINGS, epochs=1), tmp_path / "run")
    assert len(trained.losses) == 1


def test_a_damaged_state_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = sentences_of()
    counts = counts_of(sentences)
    settings = replace(SETTINGS, deterministic=True)
    whole = train_glove(sentences, counts, settings, tmp_path / "run")
    (state,) = (tmp_path / "run" / "states").iterdir()
    data = bytearray((state / "words.npy").read_bytes())
    data[500] ^= 4
    (state / "words.npy").write_bytes(data)
    again = train_glove(sentences, counts, settings, tmp_path / "run", resume=True)
    assert (again.vectors == whole.vectors).all()
    assert (
        "words.npy does not have the SHA-256" in capsys.readouterr().err
        and state.with_name(f"{state.name}.bad").is_dir()
    )


@pytest.mark.parametrize(
    "change",
    [{"d_model": 0}, {"window": 0}, {"x_max": 0.0}, {"alpha": -1.0}, {"learning_rate": 0.0}, {"epochs": 0}, {"threads": 0},
     {"memory_mb": 0}, {"seed": -1}, {"learning_rate": float("nan")}],
)  # fmt: skip
def test_wrong_settings(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(change))} = "):
        train_glove(sentences_of(), counts_of(sentences_of()), replace(SETTINGS, **change))


def test_a_rate_too_large_is_an_error() -> None:
    sentences = sentences_of()
    with pytest.raises(InputError, match="beyond all numbers"):
        train_glove(sentences, counts_of(sentences), replace(SETTINGS, learning_rate=1e6, epochs=20))
