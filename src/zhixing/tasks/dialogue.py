"""Dialogue: a reply to what was said, by any model that writes.

A model that goes on with a text (a GPT) reads the rendered messages up to where its reply begins. One that reads a text
and writes another (an LSTM, T5 or Marian) reads the same text as its source, with the tokenizer's ends, and writes the
reply alone. `Speaker` is either, with its tokenizer and its template.

A history that outgrows the context loses whole turns from its oldest end: a statement and its reply together, never a
part of one; the system's message and the last statement stay. How many were left out is always told.

    room for 20    system 4 | hi 6, hello 6 | so? 6, so. 6 | and? 5      33: too long
                   system 4 |                 so? 6, so. 6 | and? 5      21: too long
                   system 4 |                                and? 5       9: 2 turns are cut
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zhixing.decoding.protocol import as_reader
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.tasks.chat_template import Turns, encode_chat, encode_turns, end_ids
from zhixing.tasks.generation import Completion, generate_from, stream_from
from zhixing.text.conversations import Conversation, Exchange, Message
from zhixing.text.preferences import Preference
from zhixing.tokens.paired import padded, pair_batch
from zhixing.tokens.tokenizer import Tokenizer

REPLY_SHARE = 4  # a reply has at least a quarter of the context, if it asks for as much
BATCH_TOKENS = 16_384  # in one forward pass, padding included
BATCH_LOGITS = 1 << 24


@dataclass(frozen=True)
class Speaker:
    """A model that replies, and how it is spoken to."""

    model: Any  # a LanguageModel: a Continuer or a Reader
    tokenizer: Tokenizer
    template: str

    @property
    def reads_apart(self) -> bool:
        return as_reader(self.model) is not None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """What ends a reply."""
        return (self.tokenizer.eos_id,) if self.reads_apart else end_ids(self.tokenizer, self.template)

    def room(self, max_new_tokens: int) -> int:
        """How many tokens a question may have, with its history."""
        if self.reads_apart:
            return int(self.model.longest_source)
        context: int = self.model.settings.max_len
        return context - max(1, min(max_new_tokens, context // REPLY_SHARE))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of messages, the last of which is to be answered."""
        ids = encode_chat(self.tokenizer, self.template, messages)
        return self.tokenizer.with_ends(ids) if self.reads_apart else ids

    def encode_reply(self, text: str) -> list[int]:
        """Ids of a reply and what ends it."""
        return [*self.tokenizer.encode(text), self.end_ids[0]]

    def fitted(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[int], int]:
        """Ids of as much of the history as there is room for, and how many turns were cut from its oldest end."""
        room = self.room(max_new_tokens)
        histories = list(shorter_histories(messages))
        cut, ids = len(histories) - 1, self.encode(histories[-1])
        if len(ids) > room:
            raise InputError(
                f"the last message has {len(ids):,} tokens with its frame, the model reads {room:,}",
                why="only whole turns before it are left out, no part of it",
                mend="shorten it, or the system's message",
            )
        too_long, step = -1, 1  # from the newest turn backwards, so that what does not fit is hardly looked at
        while cut - too_long > 1:
            place = max(cut - step, too_long + 1) if too_long < 0 else (cut + too_long) // 2
            longer = self.encode(histories[place])
            if len(longer) <= room:
                cut, ids, step = place, longer, 2 * step
            else:
                too_long = place
        return ids, cut


def shorter_histories(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages, then without the oldest turn, without the two oldest, and so on; the system's message stays."""
    system = [message for message in messages[:1] if message.role == "system"]
    rest = list(messages[len(system) :])
    while rest:
        yield [*system, *rest]
        turn = 1 + next((i for i, message in enumerate(rest) if message.role == "assistant"), len(rest))
        rest = rest[turn:]


# ---- what is learnt


@dataclass(frozen=True)
class TrainingTurns:
    """Rows to learn from; how many conversations were cut into windows of whole turns, and exchanges left out."""

    rows: list[Turns]
    windowed: int
    left_out: int


def training_turns(
    tokenizer: Tokenizer, template: str, conversations: Sequence[Sequence[Message]], max_len: int
) -> TrainingTurns:
    """Each conversation as a row of at most max_len + 1 ids; a longer one as several, each of whole turns.

    A row of these begins with the system's message, as a history that was cut does. An exchange that is too long by
    itself is left out.
    """
    found: list[Turns] = []
    windowed = left_out = 0
    todo: list[Sequence[Message]] = []
    for messages, turns in zip(conversations, encode_turns(tokenizer, template, conversations), strict=True):
        if len(turns.ids) <= max_len + 1:
            found.append(turns)
        else:
            todo.append(messages)
    for messages in todo:
        system = [message for message in messages[:1] if message.role == "system"]
        rest = messages[len(system) :]
        first, made = 0, 0
        while first < len(rest):
            best: Turns | None = None
            last = first
            for end in range(first + 2, len(rest) + 1, 2):
                (turns,) = encode_turns(tokenizer, template, [[*system, *rest[first:end]]])
                if len(turns.ids) > max_len + 1:
                    break
                best, last = turns, end
            if best is None:
                left_out += 1
                first += 2
                continue
            found.append(best)
            made += 1
            first = last
        windowed += made > 0
    return TrainingTurns(found, windowed, left_out)


def joined_turns(
    tokenizer: Tokenizer, template: str, conversations: Sequence[Conversation], max_len: int
) -> list[list[int]]:
    """Rows of at most max_len + 1 ids in which conversations of one group follow one another, as they do in the file.

    For language modelling before replies are learnt: what is said in one exchange of a film recurs in the next, and a
    model that sees several at once learns to look back. Of a conversation that is too long the beginning is taken.
    """
    rows: list[list[int]] = []
    before = ""
    each = encode_turns(tokenizer, template, [item.messages for item in conversations])
    for item, turns in zip(conversations, each, strict=True):
        ids = turns.ids[: max_len + 1]
        if rows and item.group and item.group == before and len(rows[-1]) + len(ids) <= max_len + 1:
            rows[-1] += ids
        else:
            rows.append(list(ids))
        before = item.group
    return rows


@dataclass(frozen=True)
class PreferenceTurns:
    """Both rows of each preference, and the places of these; how many prompts lost turns, and pairs left out."""

    chosen: list[Turns]
    rejected: list[Turns]
    places: list[int]
    shortened: int
    left_out: int


def preference_turns(
    tokenizer: Tokenizer, template: str, preferences: Sequence[Preference], max_len: int
) -> PreferenceTurns:
    """Each prompt with both replies as rows of at most max_len + 1 ids, of which the replies' own are learnt.

    What the assistant says in the prompt is not. Where the longer row does not fit, the prompt loses its oldest turns,
    the same for both; a pair that is too long without them is left out.
    """
    sides = [[*p.prompt, *reply] for p in preferences for reply in (p.chosen, p.rejected)]
    every = encode_turns(tokenizer, template, sides)
    found = PreferenceTurns([], [], [], 0, 0)
    shortened = left_out = 0
    for place, item in enumerate(preferences):
        histories = shorter_histories(item.prompt)
        prompt = next(histories)
        rows = every[2 * place : 2 * place + 2]
        while max(len(row.ids) for row in rows) > max_len + 1:
            prompt = next(histories, [])
            if not prompt:
                break
            rows = encode_turns(tokenizer, template, [[*prompt, *item.chosen], [*prompt, *item.rejected]])
        if not prompt:
            left_out += 1
            continue
        shortened += len(prompt) < len(item.prompt)
        said = sum(message.role == "assistant" for message in prompt)
        chosen, rejected = (Turns(row.ids, _learnt_after(row.learnt, said)) for row in rows)
        found.chosen.append(chosen)
        found.rejected.append(rejected)
        found.places.append(place)
    return dataclasses.replace(found, shortened=shortened, left_out=left_out)


def _learnt_after(learnt: Sequence[bool], replies: int) -> list[bool]:
    """The flags without those of the first so many replies: each is a run of them, and ids of the frame stand between.

    >>> _learnt_after([False, True, True, False, True], 1)
    [False, False, False, False, True]
    """
    begun, before, kept = 0, False, []
    for flag in learnt:
        begun += flag and not before
        kept.append(flag and begun > replies)
        before = flag
    return kept


def source_pairs(speaker: Speaker, exchanges: Sequence[Exchange]) -> tuple[list[list[int]], list[list[int]], int]:
    """For a model that reads apart: ids of what is read and what is written; how many exchanges were too long."""
    limit: int = speaker.model.settings.max_len
    sources, targets = [], []
    for exchange in exchanges:
        reply = speaker.encode_reply(exchange.reply)
        try:
            source, _ = speaker.fitted(exchange.before, 0)
        except InputError:
            continue
        if len(reply) <= limit:
            sources.append(source)
            targets.append(reply)
    return sources, targets, len(exchanges) - len(sources)


# ---- how probable a reply is


@torch.inference_mode()
def reply_log_probabilities(
    speaker: Speaker,
    contexts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    watch: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """log p(reply | context), its end included, of each row: (N,) nats. Contexts are ids of `Speaker.fitted`."""
    model: Any = speaker.model
    model.eval()
    found = np.empty(len(contexts))
    lengths = [len(c) + len(r) for c, r in zip(contexts, replies, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    vocab_size: int = model.settings.vocab_size
    first = 0
    while first < len(order):
        last, longest_reply = first, 0
        while last < len(order):
            longest_reply = max(longest_reply, len(replies[order[last]]))
            rows = last + 1 - first
            too_many = rows * lengths[order[last]] > BATCH_TOKENS or rows * longest_reply * vocab_size > BATCH_LOGITS
            if too_many and last > first:
                break
            last += 1
        places = order[first:last]
        some, said = [contexts[i] for i in places], [replies[i] for i in places]
        found[places] = _log_probabilities(speaker, model, some, said).numpy()
        first = last
        watch(first)
    return found


def _log_probabilities(
    speaker: Speaker, model: Any, contexts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> Tensor:
    """The sums (B,) of one batch; logits are made at the places of replies only."""
    targets = padded(replies, -100)  # (B, R)
    if speaker.reads_apart:
        batch = pair_batch(contexts, replies, model.settings.start_id, speaker.tokenizer.pad_id)
        hidden = model(batch.inputs, batch.sources, batch.source_lengths)  # (B, R, D)
    else:
        rows = [[*context, *reply[:-1]] for context, reply in zip(contexts, replies, strict=True)]
        every = model(padded(rows, speaker.tokenizer.pad_id))  # (B, T, D)
        starts = torch.tensor([len(context) - 1 for context in contexts])
        at = starts[:, None] + torch.arange(targets.shape[1])  # (B, R)
        at = at.clamp(max=every.shape[1] - 1)
        hidden = every.gather(1, at[:, :, None].expand(-1, -1, every.shape[2]))  # (B, R, D)
    logits = model.logits(hidden)  # (B, R, V)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return -losses.double().sum(dim=1)


# ---- replies


@dataclass(frozen=True)
class Reply:
    """What was answered. `cut`: so many of the oldest turns were left out, as the context had no room for them."""

    text: str
    finish_reason: str  # "stop", "length", or "cancelled"
    cut: int = 0

    def __str__(self) -> str:
        return self.text


def write_replies(speaker: Speaker, questions: Sequence[Sequence[Message]], settings: DecodingSettings) -> list[Reply]:
    """A reply to each list of messages, written side by side; what is written for one depends on no other."""
    settings = dataclasses.replace(settings, eos_ids=speaker.end_ids)
    fitted = [speaker.fitted(messages, settings.max_new_tokens) for messages in questions]
    written = generate_from(speaker.model, speaker.tokenizer, [ids for ids, _ in fitted], settings)
    return [_reply(completions[0], cut) for completions, (_, cut) in zip(written, fitted, strict=True)]


def _reply(completion: Completion, cut: int) -> Reply:
    return Reply(completion.text.strip(), completion.finish_reason, cut)


def stream_reply(
    speaker: Speaker, messages: Sequence[Message], settings: DecodingSettings
) -> tuple[Iterator[str], int]:
    """The reply piece by piece, and how many turns of the history were cut."""
    settings = dataclasses.replace(settings, eos_ids=speaker.end_ids)
    ids, cut = speaker.fitted(messages, settings.max_new_tokens)
    return _stripped(stream_from(speaker.model, speaker.tokenizer, ids, settings)), cut


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """The text without blanks at its ends: those at the end are held back until more follows."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        kept = text.rstrip()
        held = text[len(kept) :]
        begun = begun or bool(kept)
        if kept:
            yield kept
