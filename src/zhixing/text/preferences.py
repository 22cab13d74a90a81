"""Preferences: two replies to one question, of which people (or a rule) prefer the first; read, checked and split.

    read_preferences(source, settings)                       of a file, a folder, or made of a data set by name
    split_preferences(preferences, fraction, seed)           two parts; no prompt is in both

A line of jsonl (a row of parquet, csv or tsv) is, as TRL has it, one of

    {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}],
     "rejected": [{"role": "assistant", "content": "What?"}]}

A text is a message: the user's as a prompt, the assistant's as a reply. A prompt of messages may begin with the
system's and ends with the user's; replies end with the assistant's. Where both replies begin with the prompt's messages
once more, as in some published sets, these are taken away. `group` (a person, a source) is never torn apart by a split.
`ref_chosen_logps` and `ref_rejected_logps`, TRL's names, are log-probabilities that a reference model gave (nats).

Of a data set of conversations (`zhixing data list`) they are made: each reply is preferred to one that was given to
something else.

What cannot be used is a problem, counted by its kind and named by its line; data.on_bad_record says what then.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from zhixing.errors import InputError
from zhixing.progress import say
from zhixing.recipe import DataSettings
from zhixing.text import catalogue, readers
from zhixing.text.conversations import (
    PROBLEMS,
    Conversation,
    ConversationCounts,
    Conversations,
    Items,
    Message,
    MessageError,
    checked_messages,
    clean_message,
    drawn_units,
    exchanges,
    group_of,
    kept_items,
    message_rows,
    read_conversations,
    refuse_half_characters,
)
from zhixing.text.readers import Row

COLUMNS = ("prompt", "chosen", "rejected")
DRAWS = 64  # of another reply, before all are looked at
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
PREFERENCE_PROBLEMS: dict[str, str] = {
    **PROBLEMS,
    "no_reply": "a side does not end as it should",
    "same_reply": "both replies are the same",
}


@dataclass(frozen=True)
class Preference:
    """What was said, and two ways to go on. `reference`: log p of chosen and rejected by a reference, if known."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    group: str = ""
    reference: tuple[float, float] | None = None

    @property
    def said(self) -> tuple[tuple[Message, ...], ...]:
        """What makes two preferences the same."""
        return self.prompt, self.chosen, self.rejected

    def to_dict(self) -> dict[str, Any]:
        """As a line of jsonl that is read again."""
        row: dict[str, Any] = {name: [m.to_dict() for m in getattr(self, name)] for name in COLUMNS}
        if self.group:
            row["group"] = self.group
        return row | dict(zip(REFERENCE, self.reference or (), strict=False))


@dataclass
class PreferenceCounts(ConversationCounts):
    """What reading met. `read` is all that could be used; the others are those left out, by the first reason."""

    same_reply: int = 0


@dataclass(frozen=True)
class Preferences(Items[Preference]):
    """Preferences in the order of their source."""

    counts: PreferenceCounts

    def pick(self, indices: Iterable[int]) -> Preferences:
        """Those of these indices, in this order."""
        return replace(self, items=[self.items[i] for i in indices])

    def fingerprint(self) -> str:
        """SHA-256 over what was said, by whom, and what is preferred."""
        digest = hashlib.sha256()
        for item in self.items:
            for side in item.said:
                digest.update("\0".join(part for m in side for part in (m.role, m.content)).encode() + b"\n")
        return digest.hexdigest()

    def conversations(self) -> Conversations:
        """Each prompt with the reply that is preferred, once, of which a score looks at that reply."""
        found: dict[tuple[Message, ...], Conversation] = {}
        for item in self.items:
            messages = (*item.prompt, *item.chosen)
            last = sum(m.role == "assistant" for m in messages) - 1
            found.setdefault(messages, Conversation(messages, item.group, (last,)))
        return Conversations(self.name, list(found.values()), [self.name] * len(found), ConversationCounts())


# ---- reading


def read_preferences(
    source: str, settings: DataSettings | None = None, *, quarantine: Path | None = None
) -> Preferences:
    """The preferences of a file or a folder; those that came before are left out and counted. Of a data set of
    conversations by name those of `against_others`.

    InputError: a line that is wrong where on_bad_record is "fail", files of another kind, nothing left.
    """
    s = settings or DataSettings()
    if source in catalogue.names():
        found = against_others(read_conversations(source, s, quarantine=quarantine))
        say(f"{source}: {len(found):,} preferences are made, each reply against one to something else")
        return found
    counts, rows = PreferenceCounts(), message_rows(source, s, COLUMNS)
    kept, _ = kept_items(
        source, rows, lambda row: _preference(row, s), counts, PREFERENCE_PROBLEMS, s, "preference", quarantine
    )
    return Preferences(source, kept, counts)


def against_others(conversations: Conversations, seed: int = 0) -> Preferences:
    """Each reply is preferred to one that was given to something else, drawn by the seed: one that differs from it.

    What a model learns from them is to answer to the question: log p(reply | question) alone favours what is common.
    InputError: all replies, or all that they answer, are the same.
    """
    places = [(item, exchange) for item in conversations for exchange in exchanges(item)]
    said = [" ".join(exchange.reply.casefold().split()) for _, exchange in places]
    heard = [" ".join(exchange.statement.casefold().split()) for _, exchange in places]
    if min(len(set(said)), len(set(heard))) < 2:
        what = "preferences are made of replies to different things that differ, and there are none"
        raise InputError(what, where=conversations.name, mend="give more conversations")
    draw = np.random.default_rng([seed, 10])
    items = []
    for place, (item, exchange) in enumerate(places):
        drawn = (int(draw.integers(len(places))) for _ in range(DRAWS))
        other = next(
            (i for i in chain(drawn, range(len(places))) if said[i] != said[place] and heard[i] != heard[place]), None
        )
        if other is None:
            continue
        chosen, rejected = (Message("assistant", places[i][1].reply) for i in (place, other))
        items.append(Preference(exchange.before, (chosen,), (rejected,), item.group))
    return Preferences(conversations.name, items, PreferenceCounts(read=len(items), kept=len(items)))


def holds_preferences(source: str, settings: DataSettings | None = None) -> bool:
    """Whether the first line of a file or folder is a preference."""
    if source in catalogue.names():
        return False
    try:
        first = next(iter(message_rows(source, settings or DataSettings(), COLUMNS)), None)
    except InputError:  # a table without these columns, or what cannot be read at all
        return False
    return isinstance(first, Row) and {"chosen", "rejected"} <= first.values.keys()


def _preference(row: Row, s: DataSettings) -> Preference:
    values = row.values
    missing = [name for name in COLUMNS if values.get(name) is None]
    if missing:
        columns = ", ".join(map(repr, list(values)[:20])) or "none"
        raise InputError(
            "a line holds no preference",
            where=row.where,
            why=f"it has no {' and no '.join(missing)}; its keys are {columns}",
            mend='write {"prompt": ..., "chosen": ..., "rejected": ...}, each a text or a list of messages',
        )
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    given = {name: _messages(values[name], role) for name, role in roles.items()}
    prompt = given["prompt"]
    if all(given[name][: len(prompt)] == prompt for name in ("chosen", "rejected")):
        given |= {name: given[name][len(prompt) :] for name in ("chosen", "rejected")}
    if isinstance(values.get("system"), str) and values["system"].strip():
        prompt.insert(0, {"role": "system", "content": values["system"]})

    def checked(name: str, messages: list[Any], *, to_answer: bool) -> tuple[Message, ...]:
        refuse_half_characters(messages, row.where)
        try:
            return tuple(checked_messages(messages, lambda text: clean_message(text, s), to_answer=to_answer))
        except MessageError as problem:
            what, mend = PREFERENCE_PROBLEMS[problem.kind], readers.MEND_SKIP
            raise InputError(what, where=row.where, why=f"{name}: {problem}", mend=mend) from None

    asked = checked("prompt", prompt, to_answer=True)
    chosen, rejected = (
        checked(f"prompt and {name}", [*prompt, *given[name]], to_answer=False)[len(asked) :]
        for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        why = "there is nothing to prefer"
        raise InputError(PREFERENCE_PROBLEMS["same_reply"], where=row.where, why=why, mend=readers.MEND_SKIP)
    return Preference(asked, chosen, rejected, group_of(row), _reference(row))


def _reference(row: Row) -> tuple[float, float] | None:
    """Both log-probabilities by a reference, where a line has them. InputError: what is no finite number."""
    given = [row.values.get(name) for name in REFERENCE]
    if None in given:
        return None
    try:
        found = [float(value) if type(value) in (int, float) else math.nan for value in given]  # type: ignore[arg-type]
    except OverflowError:
        found = [math.inf]
    if not all(map(math.isfinite, found)):
        what = f"{' and '.join(REFERENCE)} are no finite numbers"
        raise InputError(what, where=row.where, why=str(given)[:80], mend=readers.MEND_SKIP)
    return found[0], found[1]


def _messages(side: Any, role: str) -> list[Any]:
    return list(side) if isinstance(side, list) else [{"role": role, "content": side}]


# ---- splitting


def split_preferences(
    preferences: Preferences, heldout_fraction: float, seed: int
) -> tuple[Preferences, Preferences, int]:
    """Training and held-out preferences, and how many are in neither: a pure function of its arguments.

    A group goes to one side whole, and so do all preferences of one prompt that have no group. One held out whose
    prompt is in training all the same, with another group, is in neither. InputError: nothing to hold out.
    """
    if not 0 < heldout_fraction < 1:
        mend = "give a share between 0 and 1, such as 0.05"
        raise InputError(f"heldout_fraction is {heldout_fraction}", where="data.heldout_fraction", mend=mend)
    units: dict[str, list[int]] = {}
    for i, item in enumerate(preferences):
        units.setdefault(f"group {item.group}" if item.group else f"prompt {_plain(item.prompt)}", []).append(i)
    if len(units) < 2:
        why = "they are all of one prompt, or of one group"
        raise InputError("there are too few preferences to split", where=preferences.name, why=why, mend="give more")
    out = drawn_units(units, heldout_fraction * len(preferences), seed)
    train = preferences.pick(i for i in range(len(preferences)) if i not in out)
    held, repeats = with_other_prompts(train, preferences.pick(sorted(out)))
    if not held:
        why = f"training has the prompts of all {repeats:,}"
        raise InputError("no preference is left to hold out", where=preferences.name, why=why, mend="try another seed")
    return train, held, repeats


def with_other_prompts(train: Preferences, held: Preferences) -> tuple[Preferences, int]:
    """Those held out whose prompt is in no training preference, but for case and blanks; how many are left out."""
    known = {_plain(item.prompt) for item in train}
    kept = [i for i, item in enumerate(held) if _plain(item.prompt) not in known]
    return held.pick(kept), len(held) - len(kept)


def _plain(prompt: tuple[Message, ...]) -> str:
    return "\n".join(f"{m.role} {' '.join(m.content.casefold().split())}" for m in prompt)
