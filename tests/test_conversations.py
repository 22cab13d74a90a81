"""Conversations: the formats, what is wrong with a line and where, the corpora's files, and splits without repeats."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from zhixing.errors import InputError
from zhixing.recipe import DataSettings
from zhixing.text import catalogue, conversion
from zhixing.text.conversations import (
    Conversation,
    ConversationCounts,
    Conversations,
    Message,
    as_messages,
    exchanges,
    read_conversations,
    split_conversations,
)

HI = Message("user", "Hi"), Message("assistant", "Hello")


def lay(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"conversation": [{"role": "User", "content": " Hi\r\n"}, {"role": "Assistant", "content": "Hello"}]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Hello"}],
        },
    ],
    ids=["messages", "sharegpt", "roles in capitals", "alpaca", "prompt", "prompt of messages"],
)
def test_each_format_says_the_same(row: dict[str, Any], tmp_path: Path) -> None:
    found = read_conversations(lay(tmp_path / "a.jsonl", row))
    assert [item.messages for item in found] == [HI]
    assert found.places == [f"{tmp_path / 'a.jsonl'}:1"]


def test_what_stands_before_the_first_turn_is_kept(tmp_path: Path) -> None:
    rows = (
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"instruction": "Sum", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["Hi", "Hello"]]},
    )
    first, second = read_conversations(lay(tmp_path / "a.jsonl", *rows))
    system = Message("system", "Be brief.")
    assert first.messages == (system, *HI)
    assert second.messages == (system, *HI, Message("user", "Sum\n\n1 2"), Message("assistant", "3"))


def test_a_table_has_prompts_and_completions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\nHi,Hello\n"Two\nlines",Yes\n', encoding="utf-8")
    found = read_conversations(str(tmp_path / "a.csv"))
    assert [m.content for item in found for m in item.messages] == ["Hi", "Hello", "Two\nlines", "Yes"]


U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
WRONG = [
    ({"messages": [U, U, A]}, "wrong_order", "message 2 of user stands behind one of user"),
    ({"messages": [A, U]}, "wrong_order", "message 1 of assistant stands at the beginning"),
    ({"messages": [U, {"role": "system", "content": "s"}, A]}, "wrong_order", "message 2 of system"),
    ({"messages": [U, {"role": "assistant", "content": " \n"}]}, "empty_content", "message 2 (assistant) is empty"),
    ({"messages": [U, {"role": "assistant", "content": None}]}, "empty_content", "is empty"),
    ({"messages": [U, {"role": "wizard", "content": "a"}]}, "unknown_role", "message 2 has the role 'wizard'"),
    ({"messages": [U, A, U]}, "no_reply", "the last message is of user"),
    ({"messages": []}, "no_reply", "there are no messages"),
    ({"messages": [U, {"role": "assistant", "content": ["a"]}]}, "empty_content", "holds a list"),
    ({"messages": ["u", "a"]}, "unknown_role", "message 1 is a str"),
]


@pytest.mark.parametrize(("row", "kind", "why"), WRONG)
def test_what_is_wrong_is_named_by_line_and_counted_by_kind(
    row: dict[str, Any], kind: str, why: str, tmp_path: Path
) -> None:
    good = {"messages": [U, A]}
    source = lay(tmp_path / "a.jsonl", good, row, {"text": "no conversation"})
    with pytest.raises(InputError) as caught:
        read_conversations(source)
    assert caught.value.where.endswith("a.jsonl:2")
    assert why in caught.value.why
    skipped = read_conversations(source, DataSettings(on_bad_record="quarantine"), quarantine=tmp_path / "aside.jsonl")
    assert len(skipped) == 1
    assert getattr(skipped.counts, kind) == 1
    assert skipped.counts.bad_records == 1
    assert [place.split(": ")[0][-1] for place in skipped.counts.bad_places] == ["2", "3"]
    aside = [json.loads(line) for line in (tmp_path / "aside.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(aside) == 2 and aside[0]["why"] == caught.value.why


def test_lines_that_hold_none_say_what_they_should(tmp_path: Path) -> None:
    for row, what in (
        ({"text": "a"}, "a line holds no conversation"),
        ({"messages": "Hi"}, "'messages' holds no list"),
        ({"messages": [{"role": "user", "content": "\ud800"}, A]}, "half a character"),
    ):
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        with pytest.raises(InputError, match=what):
            read_conversations(str(path))
    (tmp_path / "b.txt").write_text("Hi\n", encoding="utf-8")
    with pytest.raises(InputError, match="there are no conversations"):
        read_conversations(str(tmp_path / "b.txt"))
    with pytest.raises(InputError, match="holds no conversations"):
        read_conversations("austen")


def test_what_came_before_is_left_out(tmp_path: Path) -> None:
    row = {"messages": [U, A]}
    source = lay(tmp_path / "a.jsonl", row, row, {"messages": [U, A, U, A]})
    found = read_conversations(source)
    assert len(found) == 2 and found.counts.repeated == 1
    assert len(read_conversations(source, DataSettings(duplicates="keep"))) == 3


def test_messages_of_a_person_are_checked() -> None:
    assert as_messages([{"role": "user", "content": " Hi "}]) == [HI[0]]
    assert as_messages([*HI, Message("user", "Hi")])[-1] == HI[0]
    for given in ([], [{"role": "assistant", "content": "a"}], [*HI], [{"role": "user", "content": "\ud800"}], "Hi"):
        with pytest.raises(InputError):
            as_messages(given)


# ---- splits


def said(*pairs: tuple[str, str], group: str = "") -> Conversation:
    messages = [m for u, a in pairs for m in (Message("user", u), Message("assistant", a))]
    return Conversation(tuple(messages), group)


def conversations(items: list[Conversation]) -> Conversations:
    return Conversations("made", items, [f"made:{i}" for i in range(len(items))], ConversationCounts())


WORDS = [
    "river",
    "stone",
    "cloud",
    "engine",
    "paper",
    "violet",
    "hammer",
    "winter",
    "garden",
    "silver",
    "ocean",
    "mirror",
    "candle",
    "forest",
]


def talk(number: int) -> tuple[str, str]:
    """A statement and a reply that no other number has, nor nearly."""
    a, b, c = (WORDS[number // 14**k % 14] for k in range(3))
    return f"why would the {a} want my {b} and {c} again {number}", f"since number {number} has {c} where {a} is {b}"


def test_no_held_out_exchange_repeats_training() -> None:
    items = [said(talk(n), group=f"film {n // 10}") for n in range(200)]
    items += [said(("What?", f"an answer of its own {n}"), group=f"film {n}") for n in range(20)]
    items += [said((f"tell me of {WORDS[n % 14]} {n}", "I don't  KNOW."), group=f"film {n}") for n in range(20)]
    train, held, report = split_conversations(conversations(items), 0.2, seed=3)
    assert 20 <= len(held) <= 50
    assert {item.group for item in train}.isdisjoint({item.group for item in held})
    spoken = {" ".join(e.statement.casefold().split()) for e in train.exchanges()}
    replies = {" ".join(e.reply.casefold().split()) for e in train.exchanges()}
    assert all(" ".join(e.statement.casefold().split()) not in spoken for e in held.exchanges())
    assert all(" ".join(e.reply.casefold().split()) not in replies for e in held.exchanges())
    assert report.repeats > 0 and str(report.repeats) in report.summary()
    again = split_conversations(conversations(items), 0.2, seed=3)
    assert again[1].fingerprint() == held.fingerprint()
    _, quick, told = split_conversations(conversations(items), 0.2, seed=3, near=False)
    assert told.near == 0 and told.repeats == report.repeats
    assert {item.messages for item in held} <= {item.messages for item in quick}
    other = split_conversations(conversations(items), 0.2, seed=4)
    assert other[1].fingerprint() != held.fingerprint()


def test_conversations_that_begin_alike_stay_together() -> None:
    items = [said((f"statement {n // 4} on {WORDS[n // 4 % 14]}", f"reply {n} of {WORDS[n % 14]}")) for n in range(80)]
    train, held, _ = split_conversations(conversations(items), 0.25, seed=0)
    first = {item.messages[0].content for item in train}
    assert len(held) and all(item.messages[0].content not in first for item in held)


def test_of_a_long_conversation_only_what_repeats_is_not_measured() -> None:
    items = [
        said(talk(n), ("Thanks!", f"that was number {n} for the {WORDS[n % 14]}"), talk(n + 500)) for n in range(60)
    ]
    train, held, report = split_conversations(conversations(items), 0.2, seed=0)
    assert len(train) + len(held) == 60 and len(held) > 5
    assert all(item.measured == (0, 2) and len(item.messages) == 6 for item in held)
    assert all(e.statement != "Thanks!" and len(e.before) in (1, 5) for e in held.exchanges())
    assert (report.exchanges, report.repeats + report.near) == (2 * len(held), len(held))


def test_a_conversation_has_an_exchange_for_each_reply() -> None:
    item = Conversation((Message("system", "s"), *HI, Message("user", "so?"), Message("assistant", "so.")))
    first, second = exchanges(item)
    assert (first.statement, first.reply, len(first.before)) == ("Hi", "Hello", 2)
    assert (second.statement, second.reply, len(second.before)) == ("so?", "so.", 4)


# ---- the corpora


YAML = """categories:
- AI
conversations:
- - What is AI?
  - 'It''s a branch of "engineering",
    and science.'
- - "Tab\\tand \\"quotes\\""
  - |
    Sure:

    ```
    def f():
        return 1
    ```

- In what year?
  - '1984'
- - Good morning
  - Hello
  - And you?
"""


def test_the_part_of_yaml_that_the_corpus_needs() -> None:
    assert conversion.yaml_conversations(YAML) == [
        ["What is AI?", 'It\'s a branch of "engineering", and science.'],
        ['Tab\tand "quotes"', "Sure:\n\n```\ndef f():\n    return 1\n```\n"],
        ["In what year?", "1984"],
        ["Good morning", "Hello", "And you?"],
    ]
    with pytest.raises(InputError):
        conversion.yaml_conversations("conversations:\nnothing\n")


def test_what_is_said_last_without_a_reply_is_left_out() -> None:
    rows = list(conversion.TEXTS["chatterbot"](iter([("a.yml", YAML.encode())])))
    assert [len(json.loads(row)["messages"]) for row in rows] == [2, 2, 2, 2]


def test_film_lines_are_held_together() -> None:
    body = ",statement,reply\n-1,hm,  \n" + "".join(f'{n},"so, {n}",no\n' for n in range(150))
    rows = [json.loads(row) for row in conversion.TEXTS["movie-dialog"](iter([("a.csv", body.encode())]))]
    assert rows[0]["messages"][0] == {"role": "user", "content": "so, 0"}
    assert [row["group"] for row in rows[97:101]] == ["rows from 0"] * 2 + ["rows from 100"] * 2


def test_a_set_by_name_comes_out_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real entry with an archive made here, so that nothing is fetched."""
    import dataclasses
    import hashlib

    monkeypatch.setenv("ZHIXING_CACHE", str(tmp_path))
    entry = catalogue.show_dataset("chatterbot-zh")
    archive = tmp_path / "archives" / entry.archive
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("chatterbot_corpus/data/chinese/a.yml", "conversations:\n- - 你好\n  - 你好吗？\n")
        packed.writestr("chatterbot_corpus/data/english/a.yml", "conversations:\n- - Hi\n  - Hello\n")
        packed.writestr(entry.licence_members[0], "BSD")
    made = dataclasses.replace(
        entry, bytes=archive.stat().st_size, sha256=hashlib.sha256(archive.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(catalogue._catalogue(), entry.name, made)
    (found,) = read_conversations("chatterbot-zh")
    assert [m.content for m in found.messages] == ["你好", "你好吗？"]
