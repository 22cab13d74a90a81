"""Conversations: messages of a system, a user and an assistant, read from the usual files, checked and split.

    read_conversations(source, settings)                     of a data set by name, of a file or a folder
    split_conversations(conversations, fraction, seed)       two parts; what training says is in no held-out exchange
    exchanges(conversation)                                  each reply with what stands before it

A line of jsonl (a row of parquet) is one of

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "..."}   ShareGPT
    {"instruction": "Say hi", "input": "", "output": "Hello", "system": "...", "history": [["...", "..."]]}     Alpaca
    {"prompt": "Hi", "completion": "Hello"}              each a text, or a list of messages; csv and tsv too

A conversation may begin with the system's message; then user and assistant take turns, the user first and the assistant
last. Whatever else is met is a problem, counted by its kind and named by its line; data.on_bad_record says what then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from zhixing.errors import InputError
from zhixing.progress import Progress, say
from zhixing.recipe import DataSettings
from zhixing.text import catalogue, cleaning, readers
from zhixing.text.pairs import Pair, PairCounts, Pairs, repeated_pairs
from zhixing.text.readers import Bad, Row

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {  # as files write them
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
Problem = Literal["unknown_role", "wrong_order", "empty_content", "no_reply"]
FORMATS = ("messages", "conversations", "instruction", "prompt")  # the key that tells one


@dataclass(frozen=True)
class Message:
    """What one side said."""

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, and a group (a film, a source) that no split tears apart, or "".

    measured: which of its replies, counted from 0, a score may look at; None: all.
    """

    messages: tuple[Message, ...]
    group: str = ""
    measured: tuple[int, ...] | None = None

    @property
    def said(self) -> tuple[Message, ...]:
        """What makes two conversations the same."""
        return self.messages


@dataclass(frozen=True)
class Exchange:
    """A reply, and what was said before it: the last of `before` is the user's."""

    before: tuple[Message, ...]
    reply: str

    @property
    def statement(self) -> str:
        """What the reply is to."""
        return self.before[-1].content


@dataclass
class ConversationCounts:
    """What reading met. `read` is all that could be used; the others are those left out, by the first reason."""

    read: int = 0
    kept: int = 0
    repeated: int = 0
    unknown_role: int = 0
    wrong_order: int = 0
    empty_content: int = 0
    no_reply: int = 0
    bad_records: int = 0  # lines that hold no conversation at all
    bad_places: list[str] = field(default_factory=list)


class Said(Protocol):
    """What was said by two sides, in whatever form."""

    @property
    def said(self) -> object: ...


ItemT = TypeVar("ItemT", bound=Said)


@dataclass(frozen=True)
class Items(Generic[ItemT]):
    """What a source holds, in its order."""

    name: str
    items: list[ItemT]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ItemT]:
        return iter(self.items)

    def __getitem__(self, index: int) -> ItemT:
        return self.items[index]


@dataclass(frozen=True)
class Conversations(Items[Conversation]):
    """Conversations in the order of their source; `places` says where each one stands."""

    places: list[str]
    counts: ConversationCounts

    def pick(self, indices: Iterable[int]) -> Conversations:
        """Those of these indices, in this order."""
        wanted = list(indices)
        return replace(self, items=[self.items[i] for i in wanted], places=[self.places[i] for i in wanted])

    def exchanges(self) -> list[Exchange]:
        """Every reply of every conversation that a score may look at."""
        return [exchange for item in self.items for exchange in exchanges(item)]

    def fingerprint(self) -> str:
        """SHA-256 over what was said, by whom, in which order."""
        digest = hashlib.sha256()
        for item in self.items:
            said = [part for message in item.messages for part in (message.role, message.content)]
            digest.update("\0".join([*said, item.group]).encode() + b"\n")
        return digest.hexdigest()


def exchanges(conversation: Conversation) -> list[Exchange]:
    """Each reply with what stands before it: user, assistant, user, assistant gives two. Those of `measured` only."""
    messages, measured = conversation.messages, conversation.measured
    found = [
        Exchange(messages[:n], message.content) for n, message in enumerate(messages) if message.role == "assistant"
    ]
    return found if measured is None else [exchange for n, exchange in enumerate(found) if n in measured]


# ---- checking


class MessageError(ValueError):
    """What is wrong with messages: its kind, and a sentence."""

    def __init__(self, kind: Problem, text: str) -> None:
        self.kind = kind
        super().__init__(text)


def checked_messages(given: Any, clean: Callable[[str], str] = str.strip, *, to_answer: bool = False) -> list[Message]:
    """Messages from dicts with role and content (or from and value); MessageError says what is wrong.

    They end with the assistant's message, or, `to_answer`, with the user's.
    """
    if not isinstance(given, list) or not given:
        raise MessageError("no_reply", "there are no messages")
    found: list[Message] = []
    for number, item in enumerate(given, 1):
        if not isinstance(item, dict):
            raise MessageError("unknown_role", f"message {number} is a {type(item).__name__}, not an object")
        said, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
        if role is None:
            raise MessageError("unknown_role", f"message {number} has the role {str(said)[:40]!r}")
        if content is not None and not isinstance(content, str):
            raise MessageError("empty_content", f"message {number} holds a {type(content).__name__}, no text")
        content = clean(content or "")
        if not content:
            raise MessageError("empty_content", f"message {number} ({role}) is empty")
        previous = found[-1].role if found else None
        fits = (
            previous is None
            if role == "system"
            else previous in ((None, "system", "assistant") if role == "user" else ("user",))
        )
        if not fits:
            behind = "at the beginning" if previous is None else f"behind one of {previous}"
            raise MessageError("wrong_order", f"message {number} of {role} stands {behind}")
        found.append(Message(role, content))
    last = found[-1].role
    if (last != "user") if to_answer else (last != "assistant"):
        wanted = "the user's" if to_answer else "the assistant's"
        raise MessageError("no_reply", f"the last message is of {last}, and not {wanted}")
    return found


# ---- reading


def read_conversations(
    source: str, settings: DataSettings | None = None, *, quarantine: Path | None = None
) -> Conversations:
    """The conversations of a data set by name, a file or a folder; those that came before are left out and counted.

    InputError: a line that is wrong where on_bad_record is "fail", files of another kind, nothing left.
    """
    s, counts = settings or DataSettings(), ConversationCounts()
    rows = message_rows(source, s, ("prompt", "completion"))
    kept, places = kept_items(
        source, rows, lambda row: _conversation(row, s), counts, PROBLEMS, s, "conversation", quarantine
    )
    return Conversations(source, kept, places, counts)


def kept_items(
    source: str,
    rows: Iterable[Row | Bad],
    make: Callable[[Row], ItemT],
    counts: ConversationCounts,
    problems: Mapping[str, str],
    s: DataSettings,
    thing: str,
    quarantine: Path | None,
) -> tuple[list[ItemT], list[str]]:
    """What `make` finds in rows and where it stands, each once; the others are counted by their kind.

    problems: of each kind what its error says. All is told to the person watching.

    InputError: a row that is wrong where on_bad_record is "fail", nothing left.
    """
    kept: list[ItemT] = []
    places: list[str] = []
    seen: set[object] = set()
    kinds = {text: kind for kind, text in problems.items()}
    with (
        readers.Quarantine(quarantine or Path("quarantine.jsonl")) as aside,
        Progress(f"reading {source}", None, f"{thing}s") as progress,
    ):
        for row in rows:
            try:
                item = row if isinstance(row, Bad) else make(row)
            except InputError as error:
                assert not isinstance(row, Bad)
                item = row.bad(error)
            if isinstance(item, Bad):
                if s.on_bad_record == "fail":
                    raise item.error
                kind = kinds.get(item.error.what, "bad_records")
                setattr(counts, kind, getattr(counts, kind) + 1)
                if len(counts.bad_places) < readers.PLACES_KEPT:
                    counts.bad_places.append(f"{item.error.where}: {item.error.what}")
                if s.on_bad_record == "quarantine":
                    aside.add(item)
                continue
            assert isinstance(row, Row)
            counts.read += 1
            if item.said in seen and s.duplicates != "keep":
                counts.repeated += 1
                continue
            seen.add(item.said)
            kept.append(item)
            places.append(row.where)
            progress.update(counts.read)
    counts.kept = len(kept)
    told = [(kind.replace("_", " "), number) for kind in ("repeated", *problems, "bad_records")
            if (number := getattr(counts, kind))]  # fmt: skip
    shown = ", ".join(f"{kind} {number:,}" for kind, number in told)
    if not kept:
        raise InputError(f"no {thing} is left of {source!r}", why=shown or "it holds none")
    if told:
        say(f"{source}: {len(kept):,} {thing}s are kept; left out: {shown}")
    for place in counts.bad_places:
        say(f"  {place}")
    return kept, places


PROBLEMS: dict[str, str] = {  # by Problem
    "unknown_role": "a message is of nobody known",
    "wrong_order": "the messages do not take turns",
    "empty_content": "a message is empty",
    "no_reply": "the conversation has no reply at its end",
}


def clean_message(text: str, s: DataSettings) -> str:
    """What a message says, as it is learnt."""
    text, _ = cleaning.normalize(readers.unix(text), s.normalize)
    return cleaning.remove_controls(text)[0].strip()


def _conversation(row: Row, s: DataSettings) -> Conversation:
    messages = _messages_of(row)
    refuse_half_characters(messages, row.where)
    try:
        found = checked_messages(messages, lambda text: clean_message(text, s))
    except MessageError as problem:
        what, mend = PROBLEMS[problem.kind], readers.MEND_SKIP
        raise InputError(what, where=row.where, why=str(problem), mend=mend) from None
    given = row.values.get("measured")
    measured: tuple[int, ...] | None = None
    if isinstance(given, list) and all(type(n) is int for n in given):
        measured = tuple(given)
    return Conversation(tuple(found), group_of(row), measured)


def group_of(row: Row) -> str:
    """The group that a line names, or ""; InputError where it holds a lone surrogate."""
    group = row.values.get("group")
    text = "" if group is None else str(group)
    _refuse_surrogates(text, row.where, "the group")
    return text


def refuse_half_characters(messages: Iterable[Any], where: str) -> None:
    """InputError where a message, as a file has it, holds a lone surrogate."""
    for item in messages:
        text = item.get("content", item.get("value")) if isinstance(item, dict) else None
        if isinstance(text, str):
            _refuse_surrogates(text, where)


def _refuse_surrogates(text: str, where: str, what: str = "a message") -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"a lone surrogate U+{ord(text[error.start]):04X}"
        raise InputError(f"{what} holds half a character", where=where, why=why, mend=readers.MEND_SKIP) from None


def _messages_of(row: Row) -> list[Any]:
    """The messages of a line, in whichever of the formats it is."""
    values = row.values
    given = values.get("messages")
    if given is not None:
        return _listed(given, "messages", row.where)
    given = values.get("conversations", values.get("conversation"))
    if given is not None:
        return [*_said("system", values.get("system")), *_listed(given, "conversations", row.where)]
    if "instruction" in values:
        asked = "\n\n".join(str(part) for part in (values["instruction"], values.get("input")) if _is_text(part))
        before = []
        for turn in _listed(values.get("history") or [], "history", row.where):
            if not isinstance(turn, list) or len(turn) != 2:
                why = "it takes pairs [asked, answered]"
                raise InputError("'history' holds no turns", where=row.where, why=why, mend=readers.MEND_SKIP)
            before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        answer = {"role": "assistant", "content": values.get("output")}
        return [*_said("system", values.get("system")), *before, {"role": "user", "content": asked}, answer]
    if "prompt" in values and "completion" in values:
        sides: list[Any] = []
        for role, side in (("user", values["prompt"]), ("assistant", values["completion"])):
            sides += side if isinstance(side, list) else [{"role": role, "content": side}]
        return [*_said("system", values.get("system")), *sides]
    columns = ", ".join(map(repr, list(values)[:20])) or "none"
    raise InputError(
        "a line holds no conversation",
        where=row.where,
        why=f"its keys are {columns}",
        mend='write {"messages": [...]}, {"prompt": ..., "completion": ...}, or lines of Alpaca or ShareGPT',
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _said(role: str, content: Any) -> list[dict[str, Any]]:
    """A message, if there is a text for it."""
    return [{"role": role, "content": content}] if _is_text(content) else []


def _listed(value: Any, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        why = f"it is a {type(value).__name__}"
        raise InputError(f"{key!r} holds no list", where=where, why=why, mend=readers.MEND_SKIP)
    return value


def dialogue_sets() -> list[str]:
    """Names of the data sets that hold conversations."""
    return [entry.name for entry in catalogue.list_datasets() if entry.task == "dialogue"]


def message_rows(source: str, s: DataSettings, columns: tuple[str, ...]) -> Iterator[Row | Bad]:
    """The lines of a data set by name, of a file or of all in a folder; csv and tsv must have these columns."""
    if source in catalogue.names():
        entry = catalogue.show_dataset(source)
        if entry.task != "dialogue":
            raise InputError(
                f"the data set {source!r} holds no conversations",
                why=f"it is {entry.title}",
                mend=f"the data sets of conversations are {', '.join(dialogue_sets())}",
            )
        parts = entry.parts or [entry.name]
        for part in parts:
            for path in catalogue.dataset_files(part):
                yield from _grouped(readers.json_rows(readers.source_file(path, path.name)), part)
        return
    files, skipped = readers.find_files(source, s)
    usable = [file for file in files if file.kind != "text"]
    if not usable:
        name = files[0].name if files else skipped[0][0] if skipped else source
        raise InputError(
            f"there are no conversations in {source!r}",
            where=name,
            why="running text says nothing of who speaks" if files else "",
            mend=f"give .jsonl or .parquet with messages, or .csv with the columns {', '.join(columns)}",
        )
    for file in usable:
        readers.check_readable(file)
        if file.kind == "jsonl":
            yield from readers.json_rows(file)
        elif file.kind == "parquet":
            yield from readers.parquet_rows(file, lambda names, where: names)
        else:
            yield from readers.csv_rows(file, _chosen_columns(columns))


def _grouped(rows: Iterator[Row | Bad], part: str) -> Iterator[Row | Bad]:
    """The rows with their group told apart from those of other sets."""
    for row in rows:
        if isinstance(row, Row) and row.values.get("group"):
            row = replace(row, values={**row.values, "group": f"{part}: {row.values['group']}"})
        yield row


def _chosen_columns(columns: tuple[str, ...]) -> Callable[[list[str], str], list[str]]:
    """Those of a table that are read: `columns`, which must be there, and what may stand beside them."""

    def choose(names: list[str], where: str) -> list[str]:
        for column in columns:
            if column not in names:
                why = f"the columns are {', '.join(map(repr, names[:20]))}"
                raise InputError(f"there is no column {column!r}", where=where, why=why, mend="name it so")
        return [name for name in (*columns, "system", "group") if name in names]

    return choose


# ---- splitting


@dataclass(frozen=True)
class ConversationSplit:
    """How conversations were split: what training says, as a statement or as a reply, no measured exchange says."""

    train: int
    heldout: int
    exchanges: int  # measured ones, of the conversations held out
    repeats: int  # not measured: the statement or the reply is one of training, but for case and blanks
    near: int  # and those where one is nearly so
    groups: int

    def summary(self) -> str:
        """One line for a person."""
        total = self.train + self.heldout
        parts = [f"held out: {self.heldout:,} of {total:,} conversations ({self.heldout / total:.1%})"]
        if self.groups:
            parts.append(f"{self.groups:,} groups each on one side")
        said = f"{self.exchanges:,} exchanges are measured"
        if self.repeats or self.near:
            said += f", not {self.repeats:,} that repeat what training says and {self.near:,} that nearly do"
        return "; ".join([*parts, said])


def split_conversations(
    conversations: Conversations, heldout_fraction: float, seed: int, *, near: bool = True
) -> tuple[Conversations, Conversations, ConversationSplit]:
    """Training and held-out conversations: a pure function of the conversations, the fraction and the seed.

    A group goes to one side whole, and so do conversations without one that begin with the same statement. Exchanges
    held out of which the statement or the reply is one of training, word for word or nearly, are not measured: what is
    common ("What?", "I don't know.") is in training, and would measure nothing. A conversation with nothing left to
    measure goes. `near` looks for those nearly said too (half a minute for 60,000). InputError: nothing to hold out.
    """
    if not 0 < heldout_fraction < 1:
        raise InputError(
            f"heldout_fraction is {heldout_fraction}",
            where="data.heldout_fraction",
            mend="give a share between 0 and 1, such as 0.05",
        )
    units: dict[str, list[int]] = {}
    for i, item in enumerate(conversations):
        first = next(message.content for message in item.messages if message.role == "user")
        units.setdefault(f"group {item.group}" if item.group else f"statement {_plain(first)}", []).append(i)
    if len(units) < 2:
        why = "they all belong together"
        raise InputError(
            "there are too few conversations to split", where=conversations.name, why=why, mend="give more"
        )
    out = drawn_units(units, heldout_fraction * len(conversations), seed)
    train = conversations.pick(i for i in range(len(conversations)) if i not in out)
    left, repeats, nearly = measurable(train, conversations.pick(sorted(out)), near=near)
    if not left:
        raise InputError(
            "no conversation is left to hold out",
            where=conversations.name,
            why=f"training says what their {repeats + nearly:,} exchanges say",
            mend="give conversations that differ more, another seed or a larger heldout_fraction",
        )
    groups = len({item.group for item in conversations} - {""})
    count = len(left.exchanges())
    return train, left, ConversationSplit(len(train), len(left), count, repeats, nearly, groups)


def drawn_units(units: dict[str, list[int]], wanted: float, seed: int) -> set[int]:
    """Indices held out: units in the order of their hash, each where it brings the count nearer to `wanted`."""

    def mark(unit: str) -> bytes:
        return hashlib.blake2b(f"{seed} {unit}".encode(), digest_size=16).digest()

    out: set[int] = set()
    for unit in sorted(units, key=mark)[1:]:  # one at least stays
        if abs(len(out) + len(units[unit]) - wanted) < abs(len(out) - wanted):
            out.update(units[unit])
    smallest: list[int] = min(units.values(), key=len)
    return out or set(smallest)


def measurable(train: Conversations, held: Conversations, *, near: bool = True) -> tuple[Conversations, int, int]:
    """The held-out conversations with something to measure; exchanges that training repeats, and nearly repeats."""
    places = [(number, n) for number, item in enumerate(held) for n in range(len(exchanges(item)))]
    asked = held.exchanges()
    if near:
        repeats, nearly = repeated_pairs(_as_pairs(train.exchanges()), _as_pairs(asked))
    else:
        known = {_plain(e.statement) for e in train.exchanges()}, {_plain(e.reply) for e in train.exchanges()}
        said = enumerate(asked)
        repeats = {i for i, e in said if _plain(e.statement) in known[0] or _plain(e.reply) in known[1]}
        nearly = set()
    measured: dict[int, list[int]] = {}
    for i, (number, n) in enumerate(places):
        if i not in repeats and i not in nearly:
            own = held[number].measured
            measured.setdefault(number, []).append(n if own is None else own[n])
    left = held.pick(measured)
    items = [replace(item, measured=tuple(kept)) for item, kept in zip(left, measured.values(), strict=True)]
    return replace(left, items=items), len(repeats), len(nearly)


def _as_pairs(said: Sequence[Exchange]) -> Pairs:
    return Pairs("exchanges", [Pair(e.statement, e.reply) for e in said], [""] * len(said), PairCounts())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def as_messages(given: Any) -> list[Message]:
    """Messages to be answered, from a user's list of dicts or Messages; InputError says what is wrong."""
    items = [item.to_dict() if isinstance(item, Message) else item for item in cast(list[Any], given)]
    try:
        found = checked_messages(items, lambda text: readers.unix(text).strip(), to_answer=True)
    except MessageError as problem:
        mend = "system first if at all, then user and assistant in turn, the user last"
        raise InputError(PROBLEMS[problem.kind], why=str(problem), mend=mend) from None
    for number, message in enumerate(found, 1):
        _refuse_surrogates(message.content, f"message {number}")
    return found
