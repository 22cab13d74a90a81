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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zhixing.errors import InputError
from zhixing.progress import Progress, say
from zhixing.recipe import DataSettings
from zhixing.text import catalogue, readers
from zhixing.text.conversations import (
    PROBLEM_TEXTS,
    Conversation,
    ConversationCounts,
    Conversations,
    Message,
    MessageError,
    checked_messages,
    clean_message,
    drawn_units,
    exchanges,
    message_rows,
    read_conversations,
    refuse_half_characters,
)
from zhixing.text.readers import Bad, Row

COLUMNS = ("prompt", "chosen", "rejected")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
PROBLEMS: dict[str, str] = {str(kind): text for kind, text in PROBLEM_TEXTS.items()}
PROBLEMS |= {"no_reply": "a side does not end as it should", "same_reply": "both replies are the same"}


@dataclass(frozen=True)
class Preference:
    """What was said, and two ways to go on. `reference`: log p of chosen and rejected by a reference, if known."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    group: str = ""
    reference: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a line of jsonl that is read again."""
        row: dict[str, Any] = {name: [m.to_dict() for m in getattr(self, name)] for name in COLUMNS}
        if self.group:
            row["group"] = self.group
        return row | dict(zip(REFERENCE, self.reference or (), strict=False))


@dataclass
class PreferenceCounts:
    """What reading met. `read` is all that could be used; the others are those left out, by the first reason."""

    read: int = 0
    kept: int = 0
    repeated: int = 0
    unknown_role: int = 0
    wrong_order: int = 0
    empty_content: int = 0
    no_reply: int = 0
    same_reply: int = 0
    bad_records: int = 0  # lines that hold no preference at all
    bad_places: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Preferences:
    """Preferences in the order of their source."""

    name: str
    items: list[Preference]
    counts: PreferenceCounts

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Preference:
        return self.items[index]

    def pick(self, indices: Iterable[int]) -> Preferences:
        """Those of these indices, in this order."""
        return replace(self, items=[self.items[i] for i in indices])

    def fingerprint(self) -> str:
        """SHA-256 over what was said, by whom, and what is preferred."""
        digest = hashlib.sha256()
        for item in self.items:
            for side in (item.prompt, item.chosen, item.rejected):
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
    counts = PreferenceCounts()
    kept: list[Preference] = []
    seen: set[tuple[tuple[Message, ...], ...]] = set()
    with (
        readers.Quarantine(quarantine or Path("quarantine.jsonl")) as aside,
        Progress(f"reading {source}", None, "preferences") as progress,
    ):
        for row in message_rows(source, s, COLUMNS):
            try:
                item = row if isinstance(row, Bad) else _preference(row, s)
            except InputError as error:
                assert not isinstance(row, Bad)
                item = row.bad(error)
            if isinstance(item, Bad):
                if s.on_bad_record == "fail":
                    raise item.error
                kind = next((kind for kind, text in PROBLEMS.items() if text == item.error.what), "bad_records")
                setattr(counts, kind, getattr(counts, kind) + 1)
                if len(counts.bad_places) < readers.PLACES_KEPT:
                    counts.bad_places.append(f"{item.error.where}: {item.error.what}")
                if s.on_bad_record == "quarantine":
                    aside.add(item)
                continue
            counts.read += 1
            said = item.prompt, item.chosen, item.rejected
            if said in seen and s.duplicates != "keep":
                counts.repeated += 1
                continue
            seen.add(said)
            kept.append(item)
            progress.update(counts.read)
    counts.kept = len(kept)
    told = [(kind.replace("_", " "), number) for kind in ("repeated", *PROBLEMS, "bad_records")
            if (number := getattr(counts, kind))]  # fmt: skip
    shown = ", ".join(f"{kind} {number:,}" for kind, number in told)
    if not kept:
        raise InputError(f"no preference is left of {source!r}", why=shown or "it holds none")
    if told:
        say(f"{source}: {len(kept):,} preferences are kept; left out: {shown}")
    for place in counts.bad_places:
        say(f"  {place}")
    return Preferences(source, kept, counts)


def against_others(conversations: Conversations, seed: int = 0) -> Preferences:
    """Each reply is preferred to one that was given to something else, drawn by the seed: one that differs from it.

    What a model learns from them is to answer to the question: log p(reply | question) alone favours what is common.
    InputError: all replies are the same.
    """
    places = [(item, exchange) for item in conversations for exchange in exchanges(item)]
    said = [" ".join(exchange.reply.casefold().split()) for _, exchange in places]
    if len(set(said)) < 2:
        what = "preferences are made of replies that differ, and all are the same"
        raise InputError(what, where=conversations.name, mend="give more conversations")
    draw = np.random.default_rng([seed, 10])
    items = []
    for place, (item, exchange) in enumerate(places):
        other = place
        while said[other] == said[place]:
            other = int(draw.integers(len(places)))
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
            what, mend = PROBLEMS[problem.kind], readers.MEND_SKIP
            raise InputError(what, where=row.where, why=f"{name}: {problem}", mend=mend) from None

    asked = checked("prompt", prompt, to_answer=True)
    chosen, rejected = (
        checked(f"prompt and {name}", [*prompt, *given[name]], to_answer=False)[len(asked) :]
        for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        why = "there is nothing to prefer"
        raise InputError(PROBLEMS["same_reply"], where=row.where, why=why, mend=readers.MEND_SKIP)
    group, numbers = values.get("group"), [values.get(name) for name in REFERENCE]
    reference = (float(numbers[0]), float(numbers[1])) if all(type(n) in (int, float) for n in numbers) else None  # type: ignore[arg-type]
    return Preference(asked, chosen, rejected, "" if group is None else str(group), reference)


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
