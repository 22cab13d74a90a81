"""What every model keeps that reads one text and writes another, whatever its family: one file, all families.

Padding and company change nothing, step by step is all at once, hypotheses share a memory, searches are the model's own;
files come back; and what a folder says of how to write is done as transformers does it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import test_lstm_translator as lstm
import test_marian as marian
import test_t5 as t5
from zhixing.decoding.beam import beam_search
from zhixing.decoding.generate import generate_ids
from zhixing.decoding.protocol import rearrange
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.interchange.seq2seq_directory import LAYOUTS, Generation, Layout, Seq2Seq, generation_of
from zhixing.interchange.transformers_layout import WRITING_KEYS

PAD, EOS = 0, 1
KNOWN = 23  # ids that every model here reads and writes

FAMILIES: dict[str, Callable[[], Seq2Seq]] = {  # by seeds with which texts are answered differently
    "marian": lambda: marian.make(seed=5),
    "marian-two-tables": lambda: marian.make(
        source_vocab_size=KNOWN, activation="relu", scale_embedding=False, n_layers=1
    ),
    "t5-v1.1": lambda: t5.make(seed=3),
    "t5-v1.0": lambda: t5.make(seed=3, **t5.V10),
    "lstm-luong": lambda: lstm.make(seed=3, attention="luong"),
    "lstm-bahdanau": lambda: lstm.make(seed=4, attention="bahdanau", tie_embeddings=False, n_layers=3, start_id=4),
    "lstm-pointer": lambda: lstm.make(seed=5, attention="bahdanau", pointer=True),
}


@pytest.fixture(params=FAMILIES, name="model")
def fixture_model(request: pytest.FixtureRequest) -> Seq2Seq:
    return FAMILIES[request.param]()


def texts(count: int, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [[*(chance.randrange(2, KNOWN) for _ in range(chance.randrange(1, 14))), EOS] for _ in range(count)]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return ids, torch.tensor([len(row) for row in rows])


def written(model: Seq2Seq, rows: int, count: int, seed: int = 2) -> Tensor:
    """What is written so far, from the start id on: (rows, count)."""
    ids = torch.randint(2, KNOWN, (rows, count), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = model.settings.start_id
    return ids


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# --- hidden states ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_company_and_later_tokens_change_nothing(model: Seq2Seq) -> None:
    sources, lengths = padded(texts(6))
    ids = written(model, 6, 9)
    whole = model(ids, sources, lengths)
    real = torch.arange(sources.shape[1] + 3) < lengths[:, None]
    noisy = torch.where(real, torch.nn.functional.pad(sources, (0, 3)), 17)
    close(model(ids, noisy, lengths), whole)
    for row, n in enumerate(lengths.tolist()):
        alone = model(ids[row : row + 1], sources[row : row + 1, :n], lengths[row : row + 1])
        close(alone, whole[row : row + 1])
    later = ids.clone()
    later[:, 5:] = 2 + (later[:, 5:] + 1) % (KNOWN - 2)
    other = model(later, sources, lengths)
    close(other[:, :5], whole[:, :5])
    assert (other[:, 5:] - whole[:, 5:]).abs().amax(-1).min() > 1e-3
    sources[:, 0] = 2 + (sources[:, 0] + 1) % (KNOWN - 2)
    assert (model(ids, sources, lengths) - whole).abs().amax(-1).min() > 1e-4, "every place sees the source"


@torch.no_grad()
def test_attention_weights_sum_to_one_over_real_tokens(model: Seq2Seq) -> None:
    sources, lengths = padded(texts(6))
    weights = model.attention_weights(written(model, 6, 5), sources, lengths)
    assert weights.shape == (6, 5, sources.shape[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 5))
    real = (torch.arange(sources.shape[1]) < lengths[:, None])[:, None].expand_as(weights)
    assert (weights[~real] == 0).all() and (weights[real] > 0).all()
    longest = int(lengths.argmax())
    assert (weights[longest].max(0).values - weights[longest].min(0).values).max() > 1e-3, "they follow what is written"


@torch.no_grad()
def test_step_by_step_is_all_at_once(model: Seq2Seq) -> None:
    """One token at a time up to the end of the context, and ragged: three tokens, one, none, then each row's rest."""
    sources, count, ones = texts(3), model.settings.max_len, torch.ones(3, dtype=torch.int64)
    ids = written(model, 3, count)
    whole = model(ids, *padded(sources))
    state, start = model.read_sources(sources, count)
    assert state.lengths.tolist() == [1, 1, 1]
    parts = [start[:, None], *(model.step(ids[:, t : t + 1], ones, state) for t in range(1, count))]
    close(torch.cat(parts, dim=1), whole)
    state, start = model.read_sources(sources, count)
    ragged = model.step(ids[:, 1:4], torch.tensor([3, 1, 0]), state)
    assert state.lengths.tolist() == [4, 2, 1]
    rest = torch.zeros(3, 8, dtype=torch.int64)
    for row, begin in enumerate([4, 2, 1]):
        rest[row, : 9 - begin] = ids[row, begin:9]
    last = model.step(rest, torch.tensor([5, 7, 8]), state)
    for row, begin in enumerate([4, 2, 1]):
        close(torch.cat([start[row : row + 1], ragged[row, : begin - 1], last[row, : 9 - begin]]), whole[row, :9])


@torch.no_grad()
def test_rows_that_are_picked_repeated_dropped_and_joined(model: Seq2Seq) -> None:
    sources = texts(4)

    def follow(rows: list[int], state: Any) -> Tensor:
        hidden = torch.empty(0)
        for step in range(3):
            ids = torch.tensor([[2 + (7 * row + step) % (KNOWN - 2)] for row in rows])
            hidden = model.step(ids, torch.ones(len(rows), dtype=torch.int64), state)[:, 0]
        return hidden

    alone = [follow([row], model.read_sources([sources[row]], 12)[0])[0] for row in range(4)]
    state, _ = model.read_sources(sources[:3], 12)
    # even, uneven, one, all, one thrice, mixed
    for order in ([0, 0, 1, 1, 2, 2], [2, 0, 0], [1], [0, 1, 2], [2, 2, 2], [1, 0, 1, 2, 0, 1]):
        close(follow(order, state.select(torch.tensor(order))), torch.stack([alone[row] for row in order]))
    assert state.lengths.tolist() == [1, 1, 1], "a step of selected rows leaves the rows they came from"
    joined = state.select(torch.tensor([1, 1])).append(model.read_sources([sources[3]], 20)[0])
    close(follow([1, 1, 3], joined), torch.stack([alone[1], alone[1], alone[3]]))
    twice = joined.select(torch.tensor([2, 0])).select(torch.tensor([1]))
    assert twice.lengths.tolist() == [4] and twice.owners.tolist() == [0]


def test_rows_rearranged_in_place_are_rows_selected(model: Seq2Seq) -> None:
    """Beams that change places among their own text's, and rows that come to read another's."""
    for rows in ([0, 0, 0, 3, 2, 5, 5], [1, 0, 3, 2, 4, 4, 6], [6, 1, 2, 3, 4, 5, 0]):
        order, width = torch.tensor(rows), torch.tensor([0, 0, 1, 1, 2, 2, 2])
        copied, moved = (model.read_sources(texts(3), 12)[0].select(width) for _ in range(2))
        for step in range(3):
            ids = torch.arange(4, 11)[:, None] + step
            copied, moved = copied.select(order), rearrange(moved, order)
            found = [model.step(ids, torch.ones(7, dtype=torch.int64), state) for state in (copied, moved)]
            torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
        assert torch.equal(moved.lengths, copied.lengths)


def test_a_memory_is_shared_by_the_hypotheses_of_a_text(model: Seq2Seq) -> None:
    state, _ = model.read_sources(texts(3), 10)
    memory = state.select(torch.tensor([0, 0, 1, 1, 2, 2])).memory()
    *tensors, width = memory if isinstance(memory, tuple) else memory.beside
    assert width == 2
    assert {tensor.data_ptr() for tensor in tensors[:2]} == {state.keys.data_ptr(), state.values.data_ptr()}
    forgotten = state.select(torch.tensor([2, 2]))
    assert len(forgotten.source_lengths) == 1, "texts that nobody reads any more are forgotten"
    assert forgotten.keys.numel() < state.keys.numel()


# --- decoding --------------------------------------------------------------------------------------------------------


def greedy(model: Seq2Seq, sources: list[list[int]], settings: DecodingSettings) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in sources]
    for step in generate_ids(model, sources, settings, batch_size=2):
        for token in step:
            rows[token.row].append(token.id)
    return rows


def test_batch_is_one_by_one_and_a_beam_of_one_is_greedy(model: Seq2Seq) -> None:
    sources, settings = texts(6, seed=6), DecodingSettings(max_new_tokens=12, temperature=0, eos_ids=(EOS,))
    alone = [greedy(model, [source], settings)[0] for source in sources]
    assert len({tuple(ids) for ids in alone}) > 3, "the texts are told apart"
    assert greedy(model, sources, settings) == alone
    one = beam_search(model, sources, settings)
    assert [found[0].ids for found in one] == [[i for i in ids if i != EOS] for ids in alone]


def test_n_best_are_sorted_all_different_and_the_model_s_own(model: Seq2Seq) -> None:
    sources = texts(4, seed=8)
    best = beam_search(model, sources, DecodingSettings(max_new_tokens=8, num_beams=4, n=4, eos_ids=(EOS,)))
    for source, found in zip(sources, best, strict=True):
        assert len({tuple(h.ids) for h in found}) == 4
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for hypothesis in found:
            ended = [*hypothesis.ids, EOS] if hypothesis.finish_reason == "stop" else hypothesis.ids
            with torch.no_grad():
                ids = torch.tensor([[model.settings.start_id, *ended[:-1]]])
                logits = model.logits(model(ids, torch.tensor([source]), torch.tensor([len(source)])))
            own = logits[0].log_softmax(-1)[torch.arange(len(ended)), torch.tensor(ended)].double().sum() / len(ended)
            assert hypothesis.score == pytest.approx(float(own), abs=1e-4)


def test_what_cannot_be_read_is_said(model: Seq2Seq) -> None:
    settings, longest = DecodingSettings(max_new_tokens=100, temperature=0, eos_ids=()), model.longest_source
    with pytest.raises(InputError, match=f"the text has {longest + 1} tokens, the model reads {longest} at most"):
        list(generate_ids(model, [[2] * (longest + 1)], settings))
    with pytest.raises(InputError, match=f"the prompt has the id {model.source_vocab_size}"):
        list(generate_ids(model, [[model.source_vocab_size]], settings))
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        with pytest.raises(InputError, match="the model knows 0 to"):
            list(generate_ids(model, [[2]], DecodingSettings(**{name: model.settings.vocab_size})))
    assert len(greedy(model, [[2] * longest], settings)[0]) == model.settings.max_len - 1, (
        "the start id has a place too"
    )


# --- how to write, as transformers' generate has it ------------------------------------------------------------------

HOW: dict[str, dict[str, Any]] = {
    "forced end": {"forced_eos_token_id": EOS},
    "forced beginning": {"forced_bos_token_id": 9},
    "both": {"forced_bos_token_id": 5, "forced_eos_token_id": EOS},
    "bad words": {"bad_words_ids": [[PAD]], "renormalize_logits": True},  # and some that are written otherwise
    "OPUS-MT": {"bad_words_ids": [[PAD]], "renormalize_logits": True, "forced_eos_token_id": EOS},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("family", ["marian", "t5"])
def test_forced_tokens_and_bad_words_are_those_of_transformers(
    family: str, beams: int, how: str, tmp_path: Path
) -> None:
    model = (marian if family == "marian" else t5).make(seed=3)
    other = marian.theirs(model) if isinstance(model, marian.Marian) else t5.theirs(model, tmp_path)
    sources = texts(30, seed=4)
    free = [
        best[0].ids
        for best in beam_search(model, sources, DecodingSettings(max_new_tokens=7, num_beams=beams, eos_ids=(EOS,)))
    ]
    asked = HOW[how]
    if how == "bad words":
        first, *_, last = (ids for ids in free if len(ids) > 2)
        asked = {**asked, "bad_words_ids": [[PAD], [first[1]], last[:2], last[-3:]]}
    said = generation_of(asked, model.settings.vocab_size, EOS)
    settings = DecodingSettings(
        max_new_tokens=7, num_beams=beams, eos_ids=(EOS,), bad_words_ids=said.bad_words_ids,
        forced_bos_token_id=said.forced_bos_token_id, forced_eos_token_id=said.forced_eos_token_id,
    )  # fmt: skip
    ids, lengths = padded(sources)
    extra = {"early_stopping": "never", "length_penalty": 1.0} if beams > 1 else {}
    made = other.generate(
        ids, attention_mask=torch.arange(ids.shape[1]) < lengths[:, None], num_beams=beams, max_new_tokens=7,
        do_sample=False, output_scores=True, return_dict_in_generate=True, **asked, **extra,
    )  # fmt: skip
    theirs = [list(itertools.takewhile(lambda i: i != EOS, row[1:])) for row in made.sequences.tolist()]
    if beams == 1:
        ours = [list(itertools.takewhile(lambda i: i != EOS, row)) for row in greedy(model, sources, settings)]
        assert ours == theirs
        for row, ids_of in zip(greedy(model, sources, settings), theirs, strict=True):
            ends = said.forced_eos_token_id is not None or len(ids_of) < 7
            assert (row[-1] == EOS) == ends
    else:
        found = [best[0] for best in beam_search(model, sources, settings)]
        assert [best.ids for best in found] == theirs
        assert [best.score for best in found] == pytest.approx(made.sequences_scores.tolist(), abs=1e-4)
        for best in found:
            ended = len(best.ids) + (best.finish_reason == "stop")
            if said.forced_eos_token_id is not None and ended == 7:
                assert best.finish_reason == "stop" and best.score == pytest.approx(sum(best.logprobs) / 7, abs=1e-5)
    assert free != theirs, "it makes a difference"


def test_a_prefix_stands_behind_a_forced_beginning() -> None:
    model, sources = marian.make(seed=3), texts(5, seed=4)
    settings = DecodingSettings(
        max_new_tokens=4, eos_ids=(EOS,), forced_bos_token_id=9, prefix_ids=(4, 4), forced_eos_token_id=EOS
    )
    rows = greedy(model, sources, settings)
    assert all(row == [9, 4, 4, EOS] for row in rows)
    for best in beam_search(model, sources, DecodingSettings(**{**vars(settings), "num_beams": 3})):
        assert best[0].ids == [9, 4, 4] and best[0].logprobs[0] == 0 > best[0].logprobs[1]
    with pytest.raises(InputError, match="prefix_ids"):
        DecodingSettings(max_new_tokens=2, forced_bos_token_id=9, prefix_ids=(4, 4)).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forced_eos_token_id", -1),
        ("forced_bos_token_id", True),
        ("bad_words_ids", ((),)),
        ("bad_words_ids", (3,)),
        ("bad_words_ids", ((2, -1),)),
        ("bad_words_ids", ((EOS,),)),
    ],
)
def test_forced_tokens_and_bad_words_that_cannot_be_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        DecodingSettings(eos_ids=(EOS,), **{name: value}).check()


def test_what_a_folder_says_of_how_to_write() -> None:
    said = {
        "num_beams": 6, "length_penalty": 2, "max_length": 512, "bad_words_ids": [[39], [EOS], [2, 3], [40], "x", []],
        "forced_bos_token_id": None, "forced_eos_token_id": [EOS],
    }  # fmt: skip
    assert generation_of(said, 40, EOS) == Generation(6, 2.0, 512, ((39,), (2, 3)), None, EOS)
    for wrong in ({"num_beams": 0}, {"num_beams": 65}, {"num_beams": True}, {"length_penalty": "1"}, {"max_length": 0},
                  {"bad_words_ids": [39]}, {"forced_eos_token_id": 40}, {"forced_eos_token_id": [1, 2]}):  # fmt: skip
        assert generation_of(wrong, 40, EOS) == Generation()


# --- files -----------------------------------------------------------------------------------------------------------


def layout_of(model: Seq2Seq) -> tuple[Layout, dict[str, Any], dict[str, Tensor]]:
    """How its files are written, its config.json and its tensors."""
    layout = next(layout for layout in LAYOUTS.values() if layout.model is type(model))
    config = layout.to_config(model.settings, eos_id=EOS, pad_id=PAD)
    return layout, config, layout.to_layout(model.state_dict(), model.settings)


def test_layout_and_config_come_back(model: Seq2Seq) -> None:
    layout, config, tensors = layout_of(model)
    assert layout.to_settings(config) == model.settings
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert {name: shapes[name] for name in layout.shapes(model.settings)} == layout.shapes(model.settings)
    with torch.device("meta"):  # as a folder is read
        again = layout.model(layout.to_settings(config))
    again.load_state_dict(layout.from_layout(tensors, again.settings), assign=True)
    if isinstance(again, marian.Marian):
        again.make_tables()
    sources, lengths = padded(texts(3))
    ids = written(model, 3, 5)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids, sources, lengths), model(ids, sources, lengths))


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(model: Seq2Seq) -> None:
    layout, _, tensors = layout_of(model)
    for name in layout.shapes(model.settings):
        with pytest.raises(InputError, match=rf"the weights hold no {re.escape(name)}\n"):
            layout.from_layout({n: t for n, t in tensors.items() if n != name}, model.settings)
        with pytest.raises(InputError, match=f"^{re.escape(name)} has the shape "):
            layout.from_layout(tensors | {name: tensors[name][None]}, model.settings)


def test_a_key_that_is_not_known_is_refused(model: Seq2Seq) -> None:
    layout, config, _ = layout_of(model)
    inert = dict.fromkeys(WRITING_KEYS - {"decoder_start_token_id"}, 3)
    more = {"transformers_version": "4.30.0", "id2label": {"0": "LABEL_0"}, "use_cache": True, "torch_dtype": "float32"}
    assert layout.to_settings(config | inert | more) == model.settings
    with pytest.raises(InputError, match="the key 'rescale_before_softmax' is not known"):
        layout.to_settings(config | {"rescale_before_softmax": False})
