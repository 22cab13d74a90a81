"""How to write: everything that decides which tokens come after a prompt, in one frozen dataclass.

The names are those of Hugging Face's GenerationConfig where the thing is the same; `n` is its num_return_sequences, and
a temperature of 0 its do_sample=False.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from zhixing.errors import InputError

MOST_SAMPLES = 1024  # of one prompt in one call: each is a row of the batch
MOST_LENGTH_PENALTY = 10  # either way: length ** penalty must stay a number
LEAST_REPETITION_PENALTY = 1e-3  # below, a division by it leaves fp32
LEAST_TEMPERATURE = 1e-5  # below, a division by it leaves fp32; 0 itself is greedy


@dataclass(frozen=True)
class DecodingSettings:
    """Greedy search by default; a temperature above 0 samples, num_beams above 1 searches."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0  # no end of text, and no stop string, before that many tokens
    temperature: float = 0.0  # 0: the most probable token, whatever the filters below say
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all
    min_p: float = 0.0  # 0: all
    repetition_penalty: float = 1.0  # 1: none; above 1 speaks against what prompt and output hold already
    no_repeat_ngram_size: int = 0  # so many tokens in a row are never written twice; 0: they may be
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # never written; the scores are of what may be: softmax comes after
    prefix_ids: tuple[int, ...] = ()  # what is written begins with these; they count as new tokens and in the score
    forced_bos_token_id: int | None = None  # stands before them, and in the score for nothing
    forced_eos_token_id: int | None = None  # the last token where the room is full; in the score for nothing
    stop: tuple[str, ...] = ()  # the text ends before the first of these; a list will do
    n: int = 1  # completions of each prompt
    seed: int | None = 0  # same seed, prompt and settings: same text, alone or in a batch; None: by chance
    num_beams: int = 1  # above 1: beam search, which temperature and filters have no part in
    num_beam_groups: int = 1  # above 1: so many groups of beams, each shunning what those before it chose
    diversity_penalty: float = 0.0  # what a choice of an earlier group costs in the ranking of a later one
    length_penalty: float = 1.0  # score of a beam = sum of log-probabilities / length ** length_penalty
    early_stopping: bool = False  # beams: stop when num_beams have ended; False: when nothing better can come (exact)
    logprobs: int | None = None  # log-probability of each token, and of so many most probable ones; None: none
    eos_ids: tuple[int, ...] | None = None  # tokens that end a text; None: the tokenizer's own, (): none

    def __post_init__(self) -> None:
        for name in ("stop", "eos_ids", "prefix_ids"):  # lists come from JSON and from the command line
            value = getattr(self, name)
            if isinstance(value, list | set | frozenset):
                object.__setattr__(self, name, tuple(value))
        words: Any = self.bad_words_ids
        if isinstance(words, list | tuple):
            words = tuple(tuple(word) if isinstance(word, list) else word for word in words)
            object.__setattr__(self, "bad_words_ids", words)

    @property
    def beginning(self) -> tuple[int, ...]:
        """What is written begins with these tokens."""
        return self.prefix_ids if self.forced_bos_token_id is None else (self.forced_bos_token_id, *self.prefix_ids)

    def forced_id(self, place: int, room: int) -> int | None:
        """The only token that may stand at `place`, counted from 1, of `room`; None where that is free."""
        begun = self.beginning
        if place <= len(begun):
            return begun[place - 1]
        return self.forced_eos_token_id if place == room else None

    def costs_nothing(self, place: int, room: int) -> bool:
        """Whether that token counts in a score for nothing, as transformers has it, and not as the model says."""
        if place <= len(self.beginning):
            return place == 1 and self.forced_bos_token_id is not None
        return place == room and self.forced_eos_token_id is not None

    @property
    def group_size(self) -> int:
        """The beams of a group."""
        return self.num_beams // self.num_beam_groups

    def check(self) -> None:
        """InputError for anything that cannot be used: wrong types, NaN, impossible values and combinations."""
        for name, least, most in (
            ("max_new_tokens", 1, None),
            ("min_new_tokens", 0, self.max_new_tokens),
            ("top_k", 0, None),
            ("n", 1, MOST_SAMPLES),
            ("seed", None, None),
            ("no_repeat_ngram_size", 0, None),
            ("num_beams", 1, MOST_SAMPLES),
            ("num_beam_groups", 1, MOST_SAMPLES),
            ("logprobs", 0, None),
        ):
            value = getattr(self, name)
            if value is None and name in ("logprobs", "seed"):
                continue
            if type(value) is not int:
                _refuse(name, value, "it takes a whole number")
            if least is not None and value < least:
                _refuse(name, value, f"the least possible value is {least}")
            if most is not None and value > most:
                limit = "max_new_tokens is" if name == "min_new_tokens" else "the greatest possible value is"
                _refuse(name, value, f"{limit} {most}")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty", "diversity_penalty"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value):
                _refuse(name, value, "it takes a finite number")
        if self.temperature != 0 and self.temperature < LEAST_TEMPERATURE:
            why = f"it takes 0 (greedy) or a number of at least {LEAST_TEMPERATURE}"
            _refuse(
                "temperature", self.temperature, why, "0 takes the most probable token, 1 samples as the model says"
            )
        if not 0 < self.top_p <= 1:
            _refuse("top_p", self.top_p, "it takes a number above 0 and up to 1", "1 leaves every token in")
        if not 0 <= self.min_p <= 1:
            _refuse("min_p", self.min_p, "it takes a number from 0 to 1", "0 leaves every token in")
        if self.repetition_penalty < LEAST_REPETITION_PENALTY:
            why = f"it must be above 0, at least {LEAST_REPETITION_PENALTY}"
            _refuse("repetition_penalty", self.repetition_penalty, why, "1 changes nothing")
        if abs(self.length_penalty) > MOST_LENGTH_PENALTY:
            why = f"it takes a number from {-MOST_LENGTH_PENALTY} to {MOST_LENGTH_PENALTY}"
            _refuse("length_penalty", self.length_penalty, why, "1 takes the mean of a beam, 0 its sum")
        if self.diversity_penalty < 0:
            _refuse("diversity_penalty", self.diversity_penalty, "it must not be below 0", "0 changes nothing")
        if type(self.early_stopping) is not bool:
            _refuse("early_stopping", self.early_stopping, "it takes true or false")
        stop: object = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(string, str) and string for string in stop):
            _refuse("stop", stop, "it takes a list of strings that are not empty")
        for name, ids in (("eos_ids", () if self.eos_ids is None else self.eos_ids), ("prefix_ids", self.prefix_ids)):
            given: object = ids
            if not isinstance(given, tuple) or not all(type(i) is int and i >= 0 for i in given):
                _refuse(name, given, "it takes a list of token ids")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                _refuse(name, value, "it takes a token id")
        words: object = self.bad_words_ids
        if not isinstance(words, tuple) or not all(
            isinstance(word, tuple) and word and all(type(i) is int and i >= 0 for i in word) for word in words
        ):
            _refuse("bad_words_ids", words, "it takes a list of lists of token ids that are not empty")
        self._check_together()

    def _check_together(self) -> None:
        if len(self.beginning) > self.max_new_tokens:
            why = f"these are {len(self.beginning)} tokens, and max_new_tokens is {self.max_new_tokens}"
            _refuse("prefix_ids", self.prefix_ids, why, f"set max_new_tokens above {len(self.beginning)}")
        if ends := set(self.prefix_ids) & set(self.eos_ids or ()):
            _refuse("prefix_ids", self.prefix_ids, f"{min(ends)} ends a text", "leave it out")
        if ends := {word[0] for word in self.bad_words_ids if len(word) == 1} & set(self.eos_ids or ()):
            _refuse("bad_words_ids", self.bad_words_ids, f"{min(ends)} ends a text", "leave it out")
        if self.num_beams % self.num_beam_groups:
            why = f"num_beams = {self.num_beams} beams cannot be dealt to so many groups of one size"
            mend = f"set num_beams = {max(1, self.num_beams // self.num_beam_groups) * self.num_beam_groups}"
            _refuse("num_beam_groups", self.num_beam_groups, why, mend)
        if self.num_beam_groups > 1 and self.diversity_penalty == 0:
            why = "without a penalty all groups find the same"
            _refuse("num_beam_groups", self.num_beam_groups, why, "set diversity_penalty, for example 0.5")
        if self.num_beams > 1:
            if self.n > self.num_beams:
                _refuse("n", self.n, f"beam search finds num_beams = {self.num_beams}", f"set num_beams = {self.n}")
            for name, neutral in (("repetition_penalty", 1.0), ("stop", ())):
                if getattr(self, name) != neutral:
                    why = f"with num_beams = {self.num_beams} the model's own log-probabilities decide alone"
                    _refuse(name, getattr(self, name), why, f"leave {name} out, or set num_beams = 1")
        elif self.n > 1 and self.temperature == 0:
            why = "with temperature 0 all completions of a prompt are the same"
            _refuse("n", self.n, why, f"set a temperature, for example 0.8, or num_beams = {self.n}")


def _refuse(name: str, value: object, why: str, mend: str = "") -> NoReturn:
    raise InputError(f"{name} = {value!r} cannot be used", why=why, mend=mend)
