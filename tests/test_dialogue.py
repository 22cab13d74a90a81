"""Dialogue from end to end: `zhixing.train` and `zhixing.load` on talks whose replies follow from what was said.

A tiny model learns to answer, remembers what was said, loses whole turns when its context is full, and says so; the
terminal streams, obeys its commands, and is stopped without being ended.
"""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import zhixing
from zhixing import dialogue
from zhixing.cli import main
from zhixing.dialogue import Chat, load_dialogue
from zhixing.errors import InputError
from zhixing.files import verify_manifest
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.recipe import parse_recipe
from zhixing.tasks.chat_template import DEFAULT_TEMPLATE
from zhixing.tasks.dialogue import Speaker, joined_turns, reply_log_probabilities, shorter_histories, training_turns
from zhixing.text.conversations import Conversation, Message, read_conversations

NAMES = ["anna", "ben", "carl", "dora", "emil", "fritz", "gina", "hans", "ida", "jan", "karl", "lena"]
PLACES = ["rome", "paris", "bern", "oslo", "kiev", "bonn", "nice", "york", "lima", "graz", "linz", "cork"]
SMALL = (
    "task.kind=dialogue", "data.heldout_fraction=0.1", "task.validation_fraction=0.12", "tokenizer.vocab_size=300",
    "model.d_model=48", "model.n_layers=2", "model.n_heads=2", "model.max_len=64", "train.max_tokens_per_batch=1200",
    "train.max_steps=90", "train.eval_steps=45", "train.optim=adamw", "train.learning_rate=0.01",
    "train.warmup_steps=10", "train.bf16=false", "train.threads=2",
)  # fmt: skip


def talks(count: int = 130) -> list[dict[str, Any]]:
    """Where somebody is, and a second question that only the first answer tells."""
    pairs = [(name, place) for name in NAMES for place in PLACES]
    random.Random(0).shuffle(pairs)
    rows = []
    for name, place in pairs[:count]:
        said = [f"is {name} at {place}?", f"yes, {place} has {name}.", f"who of {place}?", f"it is {name} of {place}."]
        roles = ["user", "assistant", "user", "assistant"]
        rows.append({"messages": [{"role": r, "content": t} for r, t in zip(roles, said, strict=True)]})
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in talks()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    out = tmp_path_factory.mktemp("runs") / "talks"
    return cast(Chat, zhixing.train(str(data), *SMALL, out=str(out)))


@pytest.fixture
def chat(run: Chat) -> Chat:
    """The run as it is loaded, with nothing said yet."""
    return cast(Chat, zhixing.load(run.path))


def scores_of(run: Chat) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
    return found


def test_it_learns_to_reply_and_to_rank(run: Chat) -> None:
    scores = scores_of(run)
    model = scores["model"]
    assert model["hits_at_1"]["value"] > 0.8
    assert model["rule"] in model["hits_by_rule"]
    assert model["perplexity"]["value"] < 3
    assert set(scores["baselines"]) == {"tfidf", "tfidf_nearest"}
    assert scores["baselines"]["tfidf"]["hits_at_1"]["value"] > 0.5  # they share their names


def test_the_run_is_whole_and_measures_the_same_again(run: Chat, chat: Chat) -> None:
    verify_manifest(run.path)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja",
                 "README.md", "report.html", "recipe.toml", "facts.json", "scores.json", "metrics.jsonl",
                 "examples.jsonl", "data/test.jsonl", "data/ranking.json"):  # fmt: skip
        assert (run.path / name).stat().st_size > 0, name
    assert isinstance(chat, Chat)
    again, first = chat.evaluate()["model"], scores_of(run)["model"]
    assert again["hits_at_1"] == first["hits_at_1"]
    assert again["perplexity"]["value"] == pytest.approx(first["perplexity"]["value"], rel=1e-4)
    assert again["distinct_1"] == first["distinct_1"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "hits at 1 of 10" in page and "<script" not in page
    assert "hits at 1 of 10" in chat.show()


def test_test_conversations_are_none_to_learn_from(run: Chat, data: Path) -> None:
    facts = json.loads((run.path / "facts.json").read_text(encoding="utf-8"))["data"]
    assert 0 < facts["test"]["conversations"] < facts["train"]["conversations"]
    every, test = read_conversations(str(data)), read_conversations(str(run.path / "data" / "test.jsonl"))
    assert {item.messages for item in test} < {item.messages for item in every}


def test_what_was_said_is_remembered(chat: Chat) -> None:
    first = chat("is anna at rome?", temperature=0.0)
    assert first.text == "yes, rome has anna." and first.finish_reason == "stop" and first.cut == 0
    second = chat("who of rome?", temperature=0.0)
    assert second.text == "it is anna of rome."
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2
    chat.reset()
    assert chat.messages == []
    alone = chat.reply([{"role": "user", "content": "is ben at oslo?"}], chat.settings(temperature=0.0))
    assert alone.text == "yes, oslo has ben." and chat.messages == []


def test_a_stream_gives_the_same_in_pieces(chat: Chat) -> None:
    pieces = list(chat.stream("is anna at rome?", temperature=0.0))
    assert len(pieces) > 1 and "".join(pieces) == "yes, rome has anna."
    assert chat.messages[-1] == Message("assistant", "yes, rome has anna.")
    sampled = ["".join(cast(Chat, zhixing.load(chat.path)).stream("who?", seed=5, temperature=1.5)) for _ in range(2)]
    assert sampled[0] == sampled[1]


def test_a_stream_that_is_left_keeps_what_came(chat: Chat) -> None:
    pieces = chat.stream("is anna at rome?", temperature=0.0)
    first = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert [m.content for m in chat.messages] == ["is anna at rome?", first]


def test_a_system_message_stays_first(chat: Chat) -> None:
    chat.system = " be kind "
    chat("is anna at rome?", temperature=0.0)
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    chat.system = "be short"
    assert chat.system == "be short" and len(chat.messages) == 3
    chat.reset()
    assert chat.messages == [Message("system", "be short")]
    chat.system = ""
    assert chat.messages == []


def test_a_full_context_loses_whole_turns_and_says_so(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.system = "be kind"
    cuts = [chat("is anna at rome?", temperature=0.0).cut for _ in range(5)]
    assert cuts[0] == 0 and cuts == sorted(cuts) and cuts[-1] > 0
    assert "left out of it" in capsys.readouterr().err
    assert len(chat.messages) == 11  # all of it is remembered, a part of it is read
    ids, cut = chat.speaker.fitted([*chat.messages, Message("user", "who of rome?")], 16)
    assert cut == chat.cut and len(ids) <= 64 - 16
    system = chat.tokenizer.controls["<|system|>"]
    assert ids[0] == system and ids[len(chat.tokenizer.encode("be kind")) + 2] == chat.tokenizer.controls["<|user|>"]
    with pytest.raises(InputError, match="the last message has"):
        chat("who " * 60)
    assert len(chat.messages) == 11


def test_of_a_long_history_hardly_more_is_looked_at_than_fits(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [Message("user" if n % 2 == 0 else "assistant", f"is anna at rome {n}?") for n in range(201)]
    whole = {len(said[at:]): len(chat.speaker.encode(said[at:])) for at in range(201 - 21, 201, 2)}
    seen: list[int] = []
    encode = Speaker.encode

    def counted(speaker: Speaker, messages: Sequence[Message]) -> list[int]:
        seen.append(len(messages))
        return encode(speaker, messages)

    monkeypatch.setattr(Speaker, "encode", counted)
    for room in (*whole.values(), *(size + 1 for size in whole.values())):
        monkeypatch.setattr(Speaker, "room", lambda _, __, room=room: room)
        ids, cut = chat.speaker.fitted(said, 16)
        most = max(count for count, size in whole.items() if size <= room)
        assert len(ids) == whole[most] and cut == (201 - most) // 2
        assert max(seen) <= 2 * most + 2, "what cannot fit was read"
        assert chat.speaker.fitted(said[-most:], 16) == (ids, 0)
        seen.clear()


def test_histories_by_hand() -> None:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    talk = [Message(cast(Any, role), str(n)) for n, role in enumerate(roles)]
    assert [[m.content for m in kept] for kept in shorter_histories(talk)] == [list("012345"), list("0345"), list("05")]


def test_log_probabilities_are_the_models(run: Chat) -> None:
    """Against a plain softmax, one row at a time."""
    speaker = run.speaker
    contexts = [speaker.encode([Message("user", f"is {name} at bern?")]) for name in NAMES[:5]]
    replies = [speaker.encode_reply(text) for text in ("yes", "no, it is not there at all", "ida", "yes, bern", "oh")]
    found = reply_log_probabilities(speaker, contexts, replies)
    for context, reply, value in zip(contexts, replies, found, strict=True):
        ids = torch.tensor([[*context, *reply]])
        with torch.inference_mode():
            logs = torch.log_softmax(run.model.logits(run.model(ids[:, :-1])), dim=-1)[0]
        each = [float(logs[len(context) + n - 1, i]) for n, i in enumerate(reply)]
        assert value == pytest.approx(sum(each), abs=1e-3)


def test_long_conversations_are_learnt_in_windows_of_whole_turns(run: Chat) -> None:
    talk = [Message("system", "be kind")]
    for n in range(12):
        talk += [Message("user", f"question {n}?"), Message("assistant", f"answer {n}.")]
    found = training_turns(run.tokenizer, DEFAULT_TEMPLATE, [talk], 64)
    assert found.windowed == 1 and found.left_out == 0 and len(found.rows) > 1
    assert all(len(row.ids) <= 65 and row.ids[0] == run.tokenizer.controls["<|system|>"] for row in found.rows)
    learnt = "".join(
        run.tokenizer.decode(i for i, flag in zip(row.ids, row.learnt, strict=True) if flag) for row in found.rows
    )
    assert learnt == "".join(f"answer {n}." for n in range(12))
    alone = training_turns(
        run.tokenizer, DEFAULT_TEMPLATE, [[Message("user", "x " * 99), Message("assistant", "y")]], 64
    )
    assert (len(alone.rows), alone.left_out) == (0, 1)


def test_conversations_of_a_group_are_read_one_after_another(run: Chat) -> None:
    talk = (Message("user", "is ida at york?"), Message("assistant", "yes"))
    (alone,) = training_turns(run.tokenizer, DEFAULT_TEMPLATE, [talk], 64).rows
    items = [Conversation(talk, group) for group in ("a", "a", "a", "b", "", "")]
    size = len(alone.ids)
    rows = joined_turns(run.tokenizer, DEFAULT_TEMPLATE, items, 2 * size)
    assert rows == [alone.ids * 2, alone.ids, alone.ids, alone.ids, alone.ids]


# ---- other ways to train


@pytest.mark.parametrize("family", ["lstm", "t5", "marian"])
def test_a_family_that_reads_apart_replies_too(family: str, data: Path, tmp_path: Path) -> None:
    settings = [s for s in SMALL if not s.startswith(("train.max_steps", "train.eval_steps"))]
    made = zhixing.train(
        str(data), *settings, f"model.family={family}", "train.max_steps=30", "train.eval_steps=30",
        "model.n_layers=1", out=str(tmp_path / "run"),
    )  # fmt: skip
    chat = cast(Chat, zhixing.load(made.path))
    assert isinstance(chat, Chat) and chat.speaker.reads_apart
    assert (chat.path / "chat_template.jinja").is_file()
    scores = scores_of(chat)["model"]
    assert scores["perplexity"]["value"] < 100
    first = chat("is anna at rome?", temperature=0.0)
    assert first.text
    chat("who of rome?", temperature=0.0)
    assert len(chat.messages) == 4


def test_from_a_pretrained_run_with_lora(tmp_path: Path, data: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(m["content"] for row in talks() for m in row["messages"]), encoding="utf-8")
    base = zhixing.train(
        str(text), "tokenizer.vocab_size=300", "model.d_model=48", "model.n_layers=2", "model.n_heads=2",
        "model.max_len=64", "train.max_steps=5", "train.eval_steps=5", "train.bf16=false", "train.compile=false",
        out=str(tmp_path / "base"),
    )  # fmt: skip
    settings = [s for s in SMALL if not s.startswith(("tokenizer", "train.max_steps", "train.eval_steps"))]
    made = zhixing.train(
        str(data), *settings, f"task.start={base.path}", "model.lora_rank=4", "train.max_steps=5", "train.eval_steps=5",
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert isinstance(made, Chat)
    before, after = base.model.state_dict(), made.model.state_dict()
    assert made.tokenizer.vocab_size == base.tokenizer.vocab_size + 4
    assert "lora" not in " ".join(after)
    moved = (after["blocks.0.attention.qkv.weight"] - before["blocks.0.attention.qkv.weight"]).float()
    assert 0 < torch.linalg.matrix_rank(moved[:48], atol=1e-5) <= 4  # q: a change of rank 4
    norm = "blocks.0.attention_norm.weight"
    assert torch.equal(after[norm], before[norm])


def test_text_first_then_dialogue(tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    settings = [s for s in SMALL if not s.startswith(("train.max_steps", "train.eval_steps"))]
    made = zhixing.train(
        str(data), *settings, "task.pretrain_steps=4", f"task.pretrain_source={tiny_folder}", "train.max_steps=3",
        "train.eval_steps=3", out=str(tmp_path / "run"),
    )  # fmt: skip
    lines = [json.loads(line) for line in (made.path / "pretraining" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 4
    assert "pretrain_source" in (made.path / "recipe.toml").read_text(encoding="utf-8")


def test_a_model_grows_by_tokens_that_begin_near_the_mean() -> None:
    small = GPT(GPTSettings(50, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_len=16))
    large = GPT(GPTSettings(54, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, max_len=16))
    state = dialogue.grown(small, large)
    large.load_state_dict(state)
    assert torch.equal(large.embedding.weight[:50], small.embedding.weight)
    new = large.embedding.weight[50:].detach() - small.embedding.weight.mean(dim=0).detach()
    assert float(new.abs().max()) < 0.15
    ids = torch.arange(10)[None]
    assert torch.allclose(large(ids), small(ids), atol=1e-6)


def test_recipes_that_cannot_be_are_refused() -> None:
    for settings, what in (
        (["model.family=bert"], "model.family"),
        (["model.family=textcnn"], "model.family"),
        (["task.pretrain_source=austen"], "task.pretrain_source"),
        (["model.family=t5", "task.pretrain_steps=3"], "task.pretrain_steps"),
        (["model.family=lstm", "model.lora_rank=2"], "model.lora_rank"),
        (["model.freeze_layers=1"], "model.freeze_layers"),
        (["train.per_device_train_batch_size=3"], "train.per_device_train_batch_size"),
        (["eval.top_p=1.5"], "eval.top_p"),
        (["eval.temperature=-1.0"], "eval.temperature"),
    ):
        with pytest.raises(InputError, match=what.replace(".", r"\.")):
            parse_recipe("", "made", ["task.kind=dialogue", *settings])


def test_a_run_without_what_it_needs_is_refused(run: Chat, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run"):
        load_dialogue(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="no chat template"):
        load_dialogue(tmp_path)


# ---- the terminal


def piped(run: Chat, text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """`zhixing chat` with a pipe for stdin, in this process."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        return main(["chat", str(run.path), "--temperature", "0"])


def test_a_pipe_answers_a_line_by_a_line(
    run: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = ["is anna at rome?", "", "who of rome?", f"/save {saved}", "/reset", "/system be kind", "is ben at oslo?"]
    assert piped(run, "\n".join([*lines, "/quit", "is ida at york?"]), monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == ["yes, rome has anna.", "it is anna of rome.", "yes, oslo has ben."]
    (talk,) = read_conversations(str(saved))
    assert len(talk.messages) == 4
    kept = f"is ida at york?\n/save {saved}"
    for text, what in (("/what\n", "there is no command /what"), ("//what\n/save", "/save needs"),
                       (kept, "is there already"), (kept.replace(str(saved), "~no-such-person/x"), "cannot be written")):  # fmt: skip
        assert piped(run, text, monkeypatch) == 2 and what in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(run: Chat) -> None:
    """In a real terminal: a long answer is interrupted, the next question is answered, /quit leaves."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "zhixing", "chat", str(run.path), "--temperature", "5", "--max-new-tokens", "40"]
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    )
    os.close(child)
    seen = ""

    def until(wanted: str, seconds: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while wanted not in seen:
            assert time.monotonic() < end, seen
            seen += os.read(parent, 4096).decode(errors="replace")

    try:
        until("> ")
        seen = ""
        os.write(parent, b"/help\n")
        until("Ctrl-C stops an answer.")
        os.write(parent, b"is anna at rome?\n")
        until("rome?")
        os.kill(process.pid, signal.SIGINT)  # in the answer, or at the prompt behind it: neither ends the program
        until("> ")
        seen = ""
        os.write(parent, b"/system be kind\n")
        until("system: be kind")
        os.write(parent, b"/quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(parent)


def test_an_interrupted_answer_counts_as_far_as_it_came(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from zhixing import chat_cli

    shown: list[str] = []

    def interrupted(*parts: object, **_: object) -> None:
        shown.append("".join(map(str, parts)))
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    chat_cli._show(chat, "is anna at rome?", {"temperature": 0.0})
    assert chat.messages[-1].content == "".join(shown[:2]).strip()
    assert shown[-1] == " ..."
    assert chat("who of rome?", temperature=0.0).text  # the conversation goes on


def test_evaluate_and_show_on_the_command_line(run: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["hits_at_1"]["value"] > 0.8
    assert main(["evaluate", str(run.path)]) == 0
    assert "perplexity of replies" in capsys.readouterr().out
    assert main(["show", str(run.path)]) == 0
    assert "that replies" in capsys.readouterr().out
