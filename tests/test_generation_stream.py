"""Text in, text out: streams that break no character, stop strings that never leak, on real tokenizers and models."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.tasks.generation import Completion, StopStrings, generate, stream
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

CORPUS = [
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。知行合一🙂。",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune 👩‍👩‍👧 must be 😀!",
] * 8
PROMPTS = ["天地", "It is a truth", "", "🙂", "<|endoftext|>", "宇宙洪荒。It"]
SETTINGS = DecodingSettings(max_new_tokens=40, temperature=1.0, seed=4, logprobs=2)


@pytest.fixture(scope="module", params=["bpe", "char", "word"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(CORPUS, request.param, 270 if request.param == "bpe" else 120)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """Of 256 bytes and few joins: nearly every Chinese character and emoji is several tokens."""
    return train_tokenizer(CORPUS, "bpe", 270)


def make(vocab_size: int, family: str = "gpt", max_len: int = 128) -> GPT | LSTM:
    """A model of random weights: its bytes are noise, and so more often broken than any trained model's."""
    model: GPT | LSTM
    if family == "lstm":
        model = LSTM(LSTMSettings(vocab_size, d_model=16, n_layers=1, max_len=max_len))
    else:
        model = GPT(GPTSettings(vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_len=max_len))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


class Parrot(torch.nn.Module):
    """Writes a given text after any prompt: a table from place to token under the decoding protocol, with real state."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        super().__init__()
        self.settings = GPTSettings(vocab_size, max_len=4096)
        self.ids = torch.tensor(ids)
        self.table = torch.nn.Parameter(torch.eye(vocab_size) * 50)

    def head(self) -> torch.Tensor:
        return self.table

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.table.T

    def new_state(self, rows: int, max_len: int) -> Places:
        return Places(torch.zeros(rows, dtype=torch.int64))

    def step(self, ids: torch.Tensor, n_new: torch.Tensor, state: Places) -> torch.Tensor:
        places = state.lengths[:, None] + torch.arange(ids.shape[1])  # the prompt is one token long
        state.lengths = state.lengths + n_new
        return torch.nn.functional.one_hot(self.ids[places % len(self.ids)], len(self.table)).float()


class Places:
    """How far each row of a Parrot is."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def select(self, rows: torch.Tensor) -> Places:
        return Places(self.lengths[rows])

    def append(self, other: Places) -> Places:
        return Places(torch.cat([self.lengths, other.lengths]))


def written(text: str, tokenizer: Tokenizer, **settings: object) -> tuple[Completion, list[str]]:
    """What comes of a model that wants to write `text`: as a whole, and in pieces."""
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    model = Parrot(ids, tokenizer.vocab_size)
    wanted = DecodingSettings(**{"max_new_tokens": 500, **settings})  # type: ignore[arg-type]
    ((completion,),) = generate(model, tokenizer, [""], wanted)
    return completion, list(stream(model, tokenizer, "", wanted))


# stop strings


def test_stop_strings_are_held_back_until_they_are_sure() -> None:
    stops = StopStrings(["\n\n", "END"])
    assert [stops.push(p) for p in ("a\n", "b", "\nE", "N", "x", "y\n")] == ["a", "\nb", "\n", "", "ENx", "y"]
    assert stops.push("\nrest") == ""
    assert stops.found
    assert stops.push("more") == ""
    assert stops.finish() == ""
    stops = StopStrings(["END"])
    assert stops.push("the EN") == "the "
    assert stops.finish() == "EN"
    assert not stops.found


def first_stop(text: str, strings: list[str]) -> int | None:
    """Where the string that is complete first begins, read letter by letter."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in strings if text[:end].endswith(s)]
        if starts:
            return min(starts)
    return None


@given(
    st.text("abc知", max_size=30), st.lists(st.text("abc知", min_size=1, max_size=5), max_size=3), st.integers(0, 2**32)
)
def test_stop_strings_do_not_depend_on_the_pieces(text: str, strings: list[str], seed: int) -> None:
    chance = random.Random(seed)
    stops = StopStrings(strings)
    given_out, rest = "", text
    while rest:
        size = chance.randint(1, 4)
        given_out += stops.push(rest[:size])
        rest = rest[size:]
        if not stops.found:
            longest = max(map(len, strings), default=1)
            assert len(text) - len(rest) - len(given_out) < longest  # nothing is held back without need
    given_out += stops.finish()
    place = first_stop(text, strings)
    assert stops.found == (place is not None)
    assert given_out == (text if place is None else text[:place])


def test_a_stop_string_across_token_borders(bpe: Tokenizer) -> None:
    text = "天地玄黄，宇宙洪荒。日月盈昃 and so on"
    completion, pieces = written(text, bpe, stop=["洪荒。日"])
    assert len(bpe.encode("洪荒。日")) > 4, "the stop string is several tokens"
    assert completion.text == "天地玄黄，宇宙"
    assert completion.finish_reason == "stop"
    assert "".join(pieces) == completion.text
    assert (
        bpe.decode(completion.ids) == "天地玄黄，宇宙洪荒。日"
    )  # no token is written beyond the one that completes it

    for stop in (["日月盈昃!", "宙宇"], ["and so on and on"]):  # begun, never complete
        completion, pieces = written(text, bpe, stop=stop)
        assert completion.text == "".join(pieces) == text

    completion, pieces = written(text, bpe, stop=["地玄黄，宇宙洪荒", "黄，"])  # the one that is complete first
    assert completion.text == "".join(pieces) == "天地玄"
    completion, pieces = written(text, bpe, stop=["天"])
    assert (completion.text, pieces, completion.finish_reason) == ("", [], "stop")


def test_a_stop_string_inside_one_token() -> None:
    tokenizer = train_tokenizer(["hello world. " * 50], "bpe", 300)
    assert len(tokenizer.encode(" world")) == 1
    completion, pieces = written("hello world. hello", tokenizer, stop=["or"])
    assert completion.text == "".join(pieces) == "hello w"


def test_a_stop_string_in_the_last_token_that_fits(bpe: Tokenizer) -> None:
    text = "ab\ncd"
    ids = bpe.encode(text)
    for limit in range(1, len(ids) + 1):
        completion, pieces = written(text, bpe, stop=["\n"], max_new_tokens=limit)
        stopped = "\n" in bpe.decode(ids[:limit])
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert completion.text == "".join(pieces) == bpe.decode(ids[:limit]).split("\n")[0]


def test_stop_strings_count_after_min_new_tokens(bpe: Tokenizer) -> None:
    text = "x\ny\nz\n"
    assert len(bpe.encode(text)) == 6
    for least, expected in ((0, "x"), (1, "x"), (2, "x\ny"), (3, "x\ny"), (4, "x\ny\nz"), (6, text)):
        completion, pieces = written(text, bpe, stop=["\n"], min_new_tokens=least)
        assert completion.text == "".join(pieces) == expected


# characters


def test_no_character_is_broken(bpe: Tokenizer) -> None:
    text = "天地玄黄 🙂👩‍👩‍👧 naïve 知行合一"
    completion, pieces = written(text, bpe)
    assert len(completion.ids) > 1.5 * len(text), "characters are several tokens"
    assert completion.text == text
    assert "".join(pieces) == text
    assert all(pieces)
    assert "\ufffd" not in "".join(pieces)
    cut, pieces = written(text, bpe, max_new_tokens=len(bpe.encode("天地")) - 1)
    assert cut.text == "".join(pieces) == "天\ufffd"  # the length ended it in the midst of a character
    assert cut.finish_reason == "length"


@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_the_stream_joined_is_what_generate_gives(tokenizer: Tokenizer, family: str) -> None:
    """Noise from random weights: broken bytes and unknown tokens too."""
    model = make(tokenizer.vocab_size, family)
    for settings in (
        SETTINGS,
        dataclasses.replace(SETTINGS, temperature=0.0),
        dataclasses.replace(SETTINGS, stop=("e", "，")),
    ):
        together = generate(model, tokenizer, PROMPTS, settings)
        for prompt, (completion,) in zip(PROMPTS, together, strict=True):
            pieces = list(stream(model, tokenizer, prompt, settings))
            assert "".join(pieces) == completion.text
            assert all(pieces)
            ((alone,),) = generate(model, tokenizer, [prompt], settings)
            assert (alone.text, alone.ids, alone.finish_reason) == (
                completion.text,
                completion.ids,
                completion.finish_reason,
            )


def test_pieces_come_as_they_are_written(bpe: Tokenizer) -> None:
    text = "abcdefgh"
    model = Parrot([*bpe.encode(text), bpe.eos_id], bpe.vocab_size)
    pieces = stream(model, bpe, "", DecodingSettings(max_new_tokens=500))
    assert next(pieces) == "a"
    assert next(pieces) == "b"


# generate


def test_completions_say_what_they_are(bpe: Tokenizer) -> None:
    model = make(bpe.vocab_size)
    settings = dataclasses.replace(SETTINGS, n=3)
    answers = generate(model, bpe, PROMPTS, settings)
    assert [[c.prompt for c in some] for some in answers] == [[prompt] * 3 for prompt in PROMPTS]
    for some in answers:
        assert len({c.text for c in some}) == 3
        for c in some:
            assert c.text == bpe.decode(c.ids)
            assert bpe.eos_id not in c.ids
            assert c.finish_reason == ("length" if len(c.ids) == 40 else "stop")
            assert c.logprobs is not None
            assert c.top_logprobs is not None
            assert len(c.logprobs) == len(c.top_logprobs) == len(c.ids)
            assert all(value <= 0 for value in c.logprobs)
            assert all(len(top) == 2 for top in c.top_logprobs)
    few = generate(model, bpe, PROMPTS, settings, batch_size=5)
    assert [[c.ids for c in some] for some in few] == [[c.ids for c in some] for some in answers]
    ((plain,),) = generate(model, bpe, ["天"], DecodingSettings(max_new_tokens=3))
    assert (plain.logprobs, plain.top_logprobs, plain.score) == (None, None, None)


def test_the_end_of_text_ends_a_text_and_is_no_text(bpe: Tokenizer) -> None:
    completion, pieces = written("知行", bpe, logprobs=0)
    assert (completion.text, completion.finish_reason) == ("知行", "stop")
    assert completion.ids == bpe.encode("知行")
    assert completion.logprobs == pytest.approx([0.0] * len(completion.ids), abs=1e-3)
    assert "".join(pieces) == "知行"
    on, _ = written("知行", bpe, eos_ids=(), max_new_tokens=20)  # the parrot begins again
    assert on.finish_reason == "length"
    assert on.text.startswith("知行知行")


def test_an_empty_prompt_starts_a_text_and_special_text_is_text(bpe: Tokenizer) -> None:
    model = make(bpe.vocab_size)
    read: list[list[int]] = []
    step = model.step
    model.step = lambda ids, n_new, state: read.append(ids[0].tolist()) or step(ids, n_new, state)  # type: ignore
    generate(model, bpe, [""], DecodingSettings(max_new_tokens=1))
    generate(model, bpe, ["<|endoftext|>"], DecodingSettings(max_new_tokens=1))
    assert read[0] == [bpe.eos_id]
    assert bpe.eos_id not in read[1]
    assert bpe.decode(read[1]) == "<|endoftext|>"


@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_beams_give_texts_with_scores(bpe: Tokenizer, family: str) -> None:
    model = make(bpe.vocab_size, family)
    settings = DecodingSettings(max_new_tokens=10, num_beams=4, n=2, logprobs=1)
    answers = generate(model, bpe, PROMPTS, settings)
    for prompt, some in zip(PROMPTS, answers, strict=True):
        assert [c.prompt for c in some] == [prompt] * 2
        assert some[0].score is not None
        assert some[1].score is not None
        assert some[0].score >= some[1].score
        assert all(c.text == bpe.decode(c.ids) for c in some)
        assert [c.ids for c in generate(model, bpe, [prompt], settings)[0]] == [c.ids for c in some]


def test_a_vocabulary_padded_beyond_the_tokenizers(bpe: Tokenizer) -> None:
    ids = [*bpe.encode("知"), bpe.vocab_size + 3, *bpe.encode("行"), bpe.eos_id]
    model = Parrot(ids, bpe.vocab_size + 10)
    ((completion,),) = generate(model, bpe, [""], DecodingSettings())
    assert completion.text == "知行"
    assert "".join(stream(model, bpe, "", DecodingSettings())) == "知行"


def test_what_cannot_be_is_refused_before_anything_is_written(bpe: Tokenizer) -> None:
    model = make(bpe.vocab_size, max_len=16)
    long = "天地玄黄" * 10
    with pytest.raises(InputError, match="context is 16") as caught:
        generate(model, bpe, ["ok", long], SETTINGS)
    assert "prompt 2 of 2" in str(caught.value)
    with pytest.raises(InputError, match="context is 16"):
        stream(model, bpe, long, SETTINGS)  # at the call, not at the first piece
    with pytest.raises(InputError, match="temperature"):
        stream(model, bpe, "a", DecodingSettings(temperature=float("nan")))
    for wrong in (DecodingSettings(n=2, temperature=1.0), DecodingSettings(num_beams=2)):
        with pytest.raises(InputError, match="one completion"):
            stream(model, bpe, "a", wrong)
    with pytest.raises(InputError, match="surrogate"):
        generate(model, bpe, ["\ud800"], SETTINGS)
    assert generate(model, bpe, [], SETTINGS) == []
