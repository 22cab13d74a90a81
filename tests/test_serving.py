"""The server as its clients see it: the official openai client, plain HTTP, and whoever means it no good."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import openai
import pytest
import torch

from served import KEY, Served, write_runs
from zhixing import cli
from zhixing.decoding.engine import EngineLimits
from zhixing.embeddings import embed_texts
from zhixing.entry import load_any
from zhixing.errors import InputError
from zhixing.explain.attention_heads import attention_heads
from zhixing.interchange.classifier_directory import StoredClassifier, write_classifier
from zhixing.interchange.model_directory import read_any_model
from zhixing.models.bert import BertClassifier
from zhixing.run import Run, load
from zhixing.serve_cli import told
from zhixing.serving import attention, trainings
from zhixing.serving.app import make_app
from zhixing.serving.guard import Guard, Keys, State, host_names
from zhixing.serving.hosted import Hosted, ToAttend
from zhixing.serving.library import Library
from zhixing.serving.limits import ServerLimits
from zhixing.serving.log import Log
from zhixing.serving.problems import ApiError
from zhixing.serving.server import named_runs, read_keys, serve
from zhixing.serving.service import Service
from zhixing.serving.trainings import Trainings
from zhixing.training.loop import MetricsLog
from zhixing.training.runlock import run_lock

pytestmark = pytest.mark.enable_socket

ARTICLE = "人工智能的发展趋势："
SENTINEL = "Sentinel-Xyzzy-42"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, english_text: str) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"), english_text)


@pytest.fixture(scope="module")
def lm(root: Path) -> Run:
    return load(root / "lm")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Served]:
    runs = [str(root / name) for name in ("lm", "chat", "en-zh", "short", "mood", "bert")]
    with Served(runs) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def refused(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """It is an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert code is None or error["code"] == code, error
    return error


# ---- the openai client


def test_models(client: openai.OpenAI) -> None:
    tasks = {model.id: model.to_dict()["task"] for model in client.models.list()}
    assert tasks == {"lm": "generation", "chat": "dialogue", "en-zh": "translation", "short": "summarization",
                     "mood": "classification", "bert": "embedding"}  # fmt: skip
    assert client.models.retrieve("lm").to_dict()["max_model_len"] == 64


def test_the_article_s_example(client: openai.OpenAI, lm: Run) -> None:
    answer = client.completions.create(model="lm", prompt=ARTICLE, max_tokens=100, temperature=0)
    (alone,) = lm.complete([ARTICLE], max_new_tokens=100, temperature=0)[0]
    assert answer.choices[0].text == alone.text and answer.choices[0].finish_reason == alone.finish_reason
    assert answer.usage is not None and answer.usage.completion_tokens == len(alone.ids) <= 100
    assert answer.usage.prompt_tokens == len(lm.tokenizer.encode(ARTICLE))


def test_seeds_samples_and_stops(client: openai.OpenAI, lm: Run) -> None:
    how: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
    more = {"top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1}
    wanted = lm.complete(["She was", "He"], max_new_tokens=20, n=3, **how, **more)
    got = client.completions.create(model="lm", prompt=["She was", "He"], max_tokens=20, n=3, extra_body=more, **how)
    assert [choice.text for choice in got.choices] == [one.text for some in wanted for one in some]
    assert [choice.index for choice in got.choices] == list(range(6))
    text = wanted[0][0].text
    stop = text[len(text) // 2 :][:3]
    cut = client.completions.create(
        model="lm", prompt="She was", max_tokens=20, n=3, stop=[stop], extra_body=more, **how
    )
    expected = lm.complete(["She was"], max_new_tokens=20, n=3, stop=[stop], **how, **more)[0]
    assert [(c.text, c.finish_reason) for c in cut.choices] == [(e.text, e.finish_reason) for e in expected]
    assert cut.choices[0].finish_reason == "stop" and stop not in cut.choices[0].text
    beams = client.completions.create(model="lm", prompt="She was", max_tokens=8, n=2, extra_body={"num_beams": 3})
    searched = lm.complete(["She was"], max_new_tokens=8, n=2, num_beams=3)[0]
    assert [choice.text for choice in beams.choices] == [one.text for one in searched]


def test_a_stream_is_the_text_in_pieces(client: openai.OpenAI) -> None:
    for prompt in (ARTICLE, "床前明月光，", "It was"):
        how: dict[str, Any] = {"model": "lm", "prompt": prompt, "max_tokens": 40, "seed": 3, "temperature": 1.2}
        whole = client.completions.create(**how)
        chunks = list(client.completions.create(**how, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
        reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
        assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] == whole.choices[0].finish_reason
        assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
        assert len(chunks) > 4, "it came at once"


def test_no_piece_ends_inside_a_character(client: openai.OpenAI, lm: Run) -> None:
    """Each piece is text that the whole has; a cut character would show as U+FFFD that the whole does not have."""
    broken = 0
    for seed in range(8):
        how: dict[str, Any] = {"model": "lm", "prompt": "春", "max_tokens": 50, "seed": seed, "temperature": 1.5}
        whole = client.completions.create(**how).choices[0].text
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**how, stream=True)]
        assert "".join(pieces) == whole
        assert sum(piece.count("\ufffd") for piece in pieces) == whole.count("\ufffd")
        broken += sum(1 for i in lm.tokenizer.encode(whole) if lm.tokenizer.token_bytes(i)[:1] > b"\x7f")
    assert broken, "no text had a character of several bytes"


def test_log_probabilities(client: openai.OpenAI, lm: Run) -> None:
    (alone,) = lm.complete(["It was"], max_new_tokens=10, temperature=0, logprobs=3)[0]
    assert alone.logprobs is not None
    found = client.completions.create(model="lm", prompt="It was", max_tokens=10, temperature=0, logprobs=3)
    told = found.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.token_logprobs is not None
    assert told.token_logprobs == pytest.approx(alone.logprobs) and "".join(told.tokens) == alone.text
    assert told.top_logprobs is not None and all(len(top) == 3 for top in told.top_logprobs)
    how: dict[str, Any] = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 10,
        "seed": 1,
    }
    reply = client.chat.completions.create(**how, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs and reply.choices[0].logprobs.content
    assert content and reply.usage and len(content) == reply.usage.completion_tokens
    assert all(
        len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob + 1e-6 for token in content
    )
    streamed = [token.token for chunk in client.chat.completions.create(**how, logprobs=True, stream=True)
                if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content or ()]  # fmt: skip
    assert streamed == [token.token for token in content]


def test_chat(client: openai.OpenAI, root: Path) -> None:
    chat: Any = load_any(root / "chat")
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "你好"}]},
    ]
    plain = [messages[0], {"role": "user", "content": "你好"}]
    wanted = chat.reply(plain, chat.settings(max_new_tokens=16, seed=5))
    got = client.chat.completions.create(model="chat", messages=messages, max_completion_tokens=16, seed=5)
    assert got.choices[0].message.content == wanted.text and got.choices[0].finish_reason == wanted.finish_reason
    assert got.to_dict()["zhixing"] == {"turns_cut": 0}
    chunks = list(client.chat.completions.create(model="chat", messages=messages, max_tokens=16, seed=5, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [wanted.finish_reason]


def test_a_history_that_is_too_long_loses_whole_turns_and_it_is_said(client: openai.OpenAI) -> None:
    turns: Any = [
        {"role": role, "content": f"{number} of the turns"} for number in range(20) for role in ("user", "assistant")
    ]
    got = client.chat.completions.create(
        model="chat", messages=[*turns, {"role": "user", "content": "and now?"}], max_tokens=4
    )
    assert got.to_dict()["zhixing"]["turns_cut"] > 0  # type: ignore[index]
    with pytest.raises(openai.BadRequestError, match="tokens, the model reads") as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "word " * 500}])
    assert caught.value.code == "context_length_exceeded" and "word word" not in str(caught.value)


def test_every_application_answers_a_chat(client: openai.OpenAI, root: Path, lm: Run) -> None:
    said: dict[str, str | None] = {}
    for model in ("lm", "en-zh", "short", "mood"):
        messages: Any = [{"role": "user", "content": "Open the file."}]
        got = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
        said[model] = got.choices[0].message.content
        chunks = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=12, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said[model]
    assert said["lm"] == lm.generate("Open the file.", max_new_tokens=12, temperature=0)
    mood: Any = load_any(root / "mood")
    assert said["mood"] == mood("Open the file.").label
    as_json = client.chat.completions.create(
        model="mood", messages=[{"role": "user", "content": "Open the file."}], response_format={"type": "json_object"}
    )
    assert json.loads(as_json.choices[0].message.content or "")["label"] == said["mood"]
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "x"}])


def test_vectors(client: openai.OpenAI, root: Path) -> None:
    texts = ["A man plays a guitar.", "Nobody", "three words here"]
    wanted = embed_texts(root / "bert", texts).vectors
    for how in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        got = client.embeddings.create(model="bert", input=texts, **how)  # type: ignore[arg-type]
        if how.get("encoding_format") != "base64":
            for entry, vector in zip(got.data, wanted.tolist(), strict=True):
                assert entry.embedding == pytest.approx(vector, abs=1e-6)
        assert got.usage.prompt_tokens == got.usage.total_tokens > 3
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="bert", input="word " * 100)
    assert caught.value.code == "context_length_exceeded"


def test_many_at_once_by_the_async_client(server: Served, lm: Run) -> None:
    """64 greedy texts, each with a word of its own: everybody gets what it would get alone."""
    prompts = [f"Miss {name} {number}" for number, name in enumerate(("Price", "Elliot", "Bates", "Tilney") * 16)]
    wanted = lm.generate(prompts, max_new_tokens=24, temperature=0)

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        how: dict[str, Any] = {"model": "lm", "prompt": prompts[number], "max_tokens": 24, "temperature": 0}
        if number % 2:
            return (await client.completions.create(**how)).choices[0].text
        return "".join([chunk.choices[0].text async for chunk in await client.completions.create(**how, stream=True)])

    async def all_() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            assert "lm" in [model.id async for model in client.models.list()]
            return await asyncio.gather(*(one(client, number) for number in range(64)))

    assert asyncio.run(all_()) == wanted
    assert len(set(wanted)) > 32


def test_errors_have_the_client_s_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nothing", prompt="x")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="lm", prompt="word " * 100)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="temperature") as same:
        client.completions.create(model="lm", prompt="x", n=2, temperature=0)
    assert same.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="did you mean 'top_p'"):
        client.completions.create(model="lm", prompt="x", extra_body={"topp": 1})
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.001).completions.create(model="lm", prompt="x")


# ---- the typed routes


def test_batches_are_what_python_gives(http: httpx.Client, root: Path) -> None:
    texts = ["Open the file. Close the page.", "save a cell\n\nprint it"]
    translator: Any = load_any(root / "en-zh")
    got = http.post("/v1/translate", json={"model": "en-zh", "input": texts, "n_best": 2}).json()
    wanted = translator(texts, n_best=2)
    assert [row["text"] for row in got["data"]] == [one.text for one in wanted]
    assert [row["score"] for row in got["data"]] == pytest.approx([one.score for one in wanted], abs=1e-4)
    one = http.post("/v1/translate", json={"model": "en-zh", "input": "Open", "n_best": 2}).json()["data"][0]
    assert [(a["text"]) for a in one["alternatives"]] == [text for text, _ in translator("Open", n_best=2).alternatives]
    sampled = {"num_beams": 1, "temperature": 0.8, "seed": 4, "n_best": 3}
    drawn = http.post("/v1/translate", json={"model": "en-zh", "input": "Open", **sampled}).json()["data"][0]
    assert drawn["text"] == translator("Open", **{**sampled, "num_beams": None}).text
    summarizer: Any = load_any(root / "short")
    long = " ".join(texts) * 20
    got = http.post("/v1/summarize", json={"model": "short", "input": long}).json()
    assert got["data"][0]["text"] == summarizer(long).text
    mood: Any = load_any(root / "mood")
    got = http.post("/v1/classify", json={"model": "mood", "input": [*texts, "word " * 200]}).json()
    for row, answer in zip(got["data"], mood([*texts, "word " * 200]), strict=True):
        assert row["label"] == answer.label and row["probabilities"] == pytest.approx(answer.probabilities)
        assert row["polarity"] == pytest.approx(2 * row["probabilities"]["positive"] - 1)
    assert [row["truncated"] for row in got["data"]] == [False, False, True]
    why = http.post("/v1/explain", json={"model": "mood", "input": texts[0]}).json()
    expected = mood.explain(texts[0], nearest=0)
    assert why["label"] == expected.label
    assert [word["weight"] for word in why["words"]] == pytest.approx([w.weight for w in expected.words], abs=1e-5)
    refused(http.post("/v1/translate", json={"model": "mood", "input": "x"}), 400, "wrong_task")
    refused(http.post("/v1/translate", json={"model": "en-zh", "input": "x", "target_language": "de"}), 400)
    refused(http.post("/v1/explain", json={"model": "mood", "input": "x", "label": "happy"}), 400)


def test_the_attention_is_the_model_s(http: httpx.Client, root: Path, lm: Run) -> None:
    def maps(model: str, text: str, **more: Any) -> dict[str, dict[str, Any]]:
        answer = http.post("/v1/attention", json={"model": model, "input": text, **more})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["object"] == "attention" and body["model"] == model
        for each in body["maps"]:
            weights = np.array(each["weights"])
            assert weights.shape[2:] == (len(each["rows"]), len(each["columns"]))
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-4)
        return {each["kind"]: each for each in body["maps"]}

    text = "It was 春."
    (gpt,) = maps("lm", text).values()
    expected = attention_heads(lm.model, torch.tensor([lm.tokenizer.encode(text)]))["causal"]
    np.testing.assert_allclose(gpt["weights"], expected.numpy(), atol=1e-6)
    assert gpt["kind"] == "causal" and np.shape(gpt["weights"])[:2] == (2, 2) and not np.triu(gpt["weights"], 1).any()
    assert gpt["rows"] == gpt["columns"] and "".join(gpt["rows"][:-1]).startswith("It was ")
    (one,) = maps("lm", text, layer=1).values()
    assert one["weights"] == gpt["weights"][1:]
    (bert,) = maps("bert", "It was").values()
    assert bert["kind"] == "bidirectional" and (bert["rows"][0], bert["rows"][-1]) == ("[CLS]", "[SEP]")
    (chat,) = maps("chat", "<|user|>").values()
    assert chat["rows"].count("<|user|>") == 1 and chat["rows"][-1] == "<|assistant|>"
    both = maps("en-zh", "Open the file.", output="打开文件")
    assert set(both) == {"bidirectional", "causal", "cross"}
    aligned = http.post("/v1/align", json={"model": "en-zh", "input": "Open the file.", "output": "打开文件"}).json()
    cross = np.array(both["cross"]["weights"])[0].mean(0)  # one layer
    np.testing.assert_allclose(cross[:, :-1], aligned["weights"], atol=1e-5)
    assert both["cross"]["columns"][:-1] == aligned["input_tokens"] and not np.triu(both["causal"]["weights"], 1).any()
    attentive = {model["id"]: model["attention_layers"] for model in http.get("/v1/models").json()["data"]}
    assert attentive == {"lm": 2, "chat": 2, "en-zh": 1, "short": 1, "mood": 0, "bert": 1}
    for wrong, code in (({"model": "mood"}, "wrong_task"), ({"layer": 2}, "invalid_value"), ({"output": "x"}, "invalid_value"),
                        ({"input": "word " * 80}, "context_length_exceeded"), ({"target_language": "zh"}, "invalid_value"),
                        ({"model": "en-zh"}, "invalid_value"), ({"model": "en-zh", "output": "x " * 80}, "context_length_exceeded"),
                        ({"model": "en-zh", "output": "x", "target_language": "de"}, "invalid_value"),
                        ({"model": "chat", "input": "word " * 60}, "context_length_exceeded")):  # fmt: skip
        refused(http.post("/v1/attention", json={"model": "lm", "input": "x"} | wrong), 400, code)


def test_a_classifier_s_attention(root: Path, tmp_path: Path) -> None:
    bert, tokenizer, _ = read_any_model(root / "bert")
    model = BertClassifier(replace(bert.settings, n_labels=2), torch.Generator().manual_seed(0)).eval()
    labels = ("negative", "positive")
    write_classifier(tmp_path, StoredClassifier(model, tokenizer, labels, "single_label_classification", 1.0))
    hosted = Hosted("mine", tmp_path, ServerLimits(), threads=1)
    try:
        ids = tokenizer.with_ends(tokenizer.encode("It was"))
        found = hosted.engine.submit_job(hosted.attentions, ToAttend(ids)).result(30)
        with torch.inference_mode():
            torch.testing.assert_close(found["bidirectional"], torch.cat(model.attentions(torch.tensor([ids]))))
        assert hosted.card()["attention_layers"] == 1
    finally:
        hosted.engine.close()


def test_too_much_attention_is_refused_before_it_is_made(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"model": "lm", "input": "It was a truth"}
    count = len(http.post("/v1/attention", json=asked).json()["maps"][0]["rows"])
    monkeypatch.setattr(attention, "MOST_WEIGHTS", 4 * count**2 - 1)
    error = refused(http.post("/v1/attention", json=asked), 400, "too_many_weights")
    assert f"{4 * count**2:,} weights" in error["message"] and "one layer" in error["message"]
    assert http.post("/v1/attention", json=asked | {"layer": 0}).status_code == 200
    monkeypatch.setattr(attention, "MOST_ATTENDED", count - 1)
    refused(http.post("/v1/attention", json=asked), 400, "too_many_weights")


def test_trainings_are_told_as_they_go(tmp_path: Path) -> None:
    runs, keys = tmp_path / "runs", tmp_path / "keys"
    (runs / "mine").mkdir(parents=True)
    (runs / "mine" / "recipe.toml").write_text("[train]\nmax_steps = 100\n")
    log = MetricsLog(runs / "mine", tensorboard=False, resumed_at=0)
    for step in (10, 20):
        log.write({"step": step, "loss": 5.0 - step / 10, "seconds": 2.0 * step})
    (runs / "over").mkdir()
    for name in ("recipe.toml", "MANIFEST.json", "metrics.jsonl"):
        (runs / "over" / name).write_text("")
    os.utime(runs / "over" / "metrics.jsonl", (1, 1))
    (runs / "no-run").mkdir()
    keys.write_text(KEY)
    own = {"authorization": f"Bearer {KEY}"}
    with (
        Served([], trainings=runs, key_file=keys) as server,
        httpx.Client(base_url=server.url, headers=own, timeout=30) as http,
    ):
        for address in ("/v1/trainings", "/v1/trainings/mine"):
            refused(httpx.get(server.url + address), 401)

        def told() -> dict[str, dict[str, Any]]:
            body = http.get("/v1/trainings").json()
            assert body["watching"] is True
            return {run["id"]: run for run in body["data"]}

        assert list(told()) == ["mine", "over"]
        assert told()["over"] == {"id": "over", "state": "done", "step": None, "max_steps": None, "seconds": None,
                                  "seconds_left": None, "updated": told()["over"]["updated"]}  # fmt: skip
        mine = told()["mine"]
        assert (mine["state"], mine["step"], mine["max_steps"], mine["seconds"]) == ("stopped", 20, 100, 40.0)
        assert mine["seconds_left"] is None
        with run_lock(runs / "mine"):
            assert (told()["mine"]["state"], told()["mine"]["seconds_left"]) == ("running", 160.0)
        first = http.get("/v1/trainings/mine").json()
        assert [line["step"] for line in first["lines"]] == [10, 20] and (first["next"], first["more"]) == (2, False)
        log.write({"step": 20, "eval_loss": 4.0, "best": True})
        with (runs / "mine" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3')  # a line that is being written
        second = http.get("/v1/trainings/mine?start=2").json()
        assert second["lines"] == [{"step": 20, "eval_loss": 4.0}] and second["next"] == 3
        assert second["version"] == first["version"] and second["training"]["step"] == 20
        MetricsLog(runs / "mine", tensorboard=False, resumed_at=10).close()  # it goes on from an earlier checkpoint
        third = http.get("/v1/trainings/mine?start=3").json()
        assert (third["lines"], third["next"]) == ([], 1) and third["version"] != first["version"]
        with run_lock(runs / "mine"):  # where the recipe names no number of steps, the measurements do
            (runs / "mine" / "recipe.toml").write_text('[train]\nmax_steps = "auto"\n')
            again = MetricsLog(runs / "mine", tensorboard=False, resumed_at=0)
            again.write({"step": 10, "max_steps": 30, "loss": 5.0, "seconds": 20.0})
            assert (told()["mine"]["max_steps"], told()["mine"]["seconds_left"]) == (30, 40.0)
            known = http.get("/v1/trainings/mine").json()["version"]
            number = (runs / "mine" / "metrics.jsonl").stat().st_ino
            (runs / "mine" / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0}\n' * 9)  # another training's
            assert (runs / "mine" / "metrics.jsonl").stat().st_ino == number
            fourth = http.get("/v1/trainings/mine?start=1").json()
            assert fourth["version"] != known and len(fourth["lines"]) == 8
            (runs / "mine" / "metrics.jsonl").rename(runs / "mine" / "aside")
            (runs / "mine" / "pretraining").mkdir()
            first = {"step": 7, "max_steps": 70, "loss": 6.0}
            (runs / "mine" / "pretraining" / "metrics.jsonl").write_text(json.dumps(first) + "\n")
            assert (told()["mine"]["step"], told()["mine"]["max_steps"]) == (7, 70)
            assert http.get("/v1/trainings/mine").json()["lines"] == [first]
        for wrong in ("x", "-1", "1.5", str(2**31)):
            refused(http.get(f"/v1/trainings/mine?start={wrong}"), 400)
        for name in ("no-run", "nothing", "%2e%2e", "mine%2f..%2fover"):
            refused(http.get(f"/v1/trainings/{name}"), 404)
    with Served([], root=runs) as server:  # off unless asked for
        assert httpx.get(f"{server.url}/v1/trainings").json() == {"object": "list", "watching": False, "data": []}
        refused(httpx.get(f"{server.url}/v1/trainings/mine"), 404, "run_not_found")


def test_what_a_run_says_is_numbers_and_nothing_leads_out_of_it(tmp_path: Path) -> None:
    runs, secret = tmp_path / "runs", tmp_path / "secret"
    (runs / "mine").mkdir(parents=True)
    secret.mkdir()
    (secret / "metrics.jsonl").write_text('{"step": 1, "loss": 42}\n')
    (secret / "recipe.toml").write_text("[train]\nmax_steps = 42\n")
    lines = ["", "[]", "null", "[" * 100_000, '"x"', "{", '{"step": 1e999, "loss": NaN}', '{"step": "<b>", "x": [1]}',
             '{"<b>": 1, "\\ud800": 2, "loss": true, "step": -1}', '{"step": 5, "loss": 1.5, "seconds": 1e308}',
             '{"step": 9, "loss": 1' + "0" * 400 + "}", '{"step": 9, "loss": 1' + "0" * 5000 + "}"]  # fmt: skip
    (runs / "mine" / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    (runs / "mine" / "recipe.toml").write_text('[train]\nmax_steps = "<b>"\n')
    (runs / "linked").symlink_to(secret)
    (runs / "inside").mkdir()
    (runs / "inside" / "metrics.jsonl").symlink_to(secret / "metrics.jsonl")
    (runs / "inside" / "recipe.toml").symlink_to(secret / "recipe.toml")
    (runs / "inside" / "run.lock").touch()
    (runs / "<img src=x>").mkdir()
    (runs / "<img src=x>" / "metrics.jsonl").touch()
    (runs / "wrong").mkdir()
    (runs / "wrong" / "recipe.toml").write_bytes(b"train = 1\n\xff")
    (runs / "wrong" / "metrics.jsonl").mkdir()
    os.mkfifo(runs / "wrong" / "run.lock")
    with Served([], trainings=runs) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        with run_lock(runs / "mine"):
            found = {run["id"]: run for run in http.get("/v1/trainings").json()["data"]}
        assert set(found) == {"mine", "inside", "wrong"}
        assert (found["mine"]["step"], found["mine"]["max_steps"], found["mine"]["seconds_left"]) == (9, None, None)
        assert found["inside"]["step"] is found["inside"]["max_steps"] is found["wrong"]["step"] is None
        body = http.get("/v1/trainings/mine").json()
        assert body["lines"] == [{"step": -1}, {"step": 5, "loss": 1.5, "seconds": 1e308}, {"step": 9}]
        assert body["next"] == len(lines) + 1
        assert http.get("/v1/trainings/inside").json()["lines"] == []
        refused(http.get("/v1/trainings/linked"), 404)


def test_a_long_training_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": 1}}\n' for n in range(12_000)))
    watched = Trainings(tmp_path)
    at, steps, parts = 0, [], 0
    while True:
        part = watched.lines("mine", at)
        steps += [line["step"] for line in part["lines"]]
        at, parts = part["next"], parts + 1
        if not part["more"]:
            break
    assert steps == list(range(12_000)) and parts == 3
    monkeypatch.setattr(trainings, "MOST_METRICS", 1000)
    with pytest.raises(ApiError, match="more than"):
        watched.lines("mine", 0)


def test_ids(http: httpx.Client, lm: Run) -> None:
    got = http.post("/tokenize", json={"model": "lm", "prompt": "It was 春", "return_token_strs": True}).json()
    assert got["tokens"] == lm.tokenizer.encode("It was 春") and got["count"] == len(got["token_strs"])
    chat = http.post("/tokenize", json={"model": "chat", "messages": [{"role": "user", "content": "<|user|>"}]}).json()
    assert chat["tokens"].count(chat["tokens"][0]) == 1, "what a person says is never control"
    refused(http.post("/tokenize", json={"model": "lm"}), 400)


# ---- limits and threats


def test_what_cannot_be_used_is_refused_in_one_form(http: httpx.Client) -> None:
    good = {"model": "lm", "prompt": "x"}
    for wrong in ({"temperature": -1}, {"temperature": 2.1}, {"max_tokens": -1}, {"max_tokens": 0}, {"n": 10**9}, {"top_p": 0},
                  {"seed": 2**64}, {"stop": [""]}, {"prompt": []}, {"prompt": [[]]}, {"prompt": None}, {"prompt": [-1]},
                  {"prompt": [10**6]}, {"model": "../x"}, {"logprobs": 21}, {"max_tokens": "5"}, {"stream": 1},
                  {"frequency_penalty": 1}, {"min_p": 2}, {"num_beams": 99}, {"best_of": 2}):  # fmt: skip
        refused(http.post("/v1/completions", json=good | wrong), 400)
    chat = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    for wrong in ({"messages": []}, {"messages": [{"role": "assistant", "content": "x"}]}, {"messages": "x"},
                  {"messages": [{"role": "user", "content": ""}]}, {"messages": [{"role": "tool", "content": "x"}]},
                  {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, {"tools": [{}]},
                  {"top_logprobs": 2}, {"response_format": {"type": "json_object"}}, {"target_language": "de"}):  # fmt: skip
        refused(http.post("/v1/chat/completions", json=chat | wrong), 400)
    kind = {"content-type": "application/json"}
    for body in (b"", b"{", b"[]", b"null", b"1", b"\xff\xfe", b'{"model":"lm","prompt":"\xe4\xbd"}', b"[" * 100_000,
                 b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"model":"lm","prompt":"x","temperature":NaN}',
                 b'{"model":"lm","prompt":"x","temperature":1e999}', b'{"model":"lm","prompt":"\\ud800"}',
                 b'{"model":"lm","prompt":"x","seed":' + b"9" * 5000 + b"}"):  # fmt: skip
        refused(http.post("/v1/completions", content=body, headers=kind), 400)
    refused(http.post("/v1/completions", content=b'{"model":"lm"}', headers={"content-type": "text/plain"}), 415)
    refused(http.post("/v1/completions", content=b" " * (1 << 21), headers=kind), 413, "body_too_large")
    refused(http.post("/v1/completions", content=iter([b" " * 65536] * 40), headers=kind), 413)
    refused(http.get("/nothing"), 404, "not_found")
    refused(http.put("/v1/models"), 405, "method_not_allowed")
    refused(http.get("/health", headers={"host": "evil.example"}), 403, "host_not_allowed")
    for origin in ("https://evil.example", "http://[", "http://[x]", "null"):
        refused(http.get("/v1/models", headers={"origin": origin}), 403, "origin_not_allowed")
    assert (
        http.options("/v1/models").status_code == 405
        and "access-control-allow-origin" not in http.get("/health").headers
    )
    assert http.post("/v1/completions", json=good).status_code == 200


def paths_out_of_the_root(count: int) -> list[str]:
    chance = random.Random(0)
    parts = [
        "..",
        ".",
        "/",
        "\\",
        "%2e%2e",
        "%2f",
        "etc",
        "passwd",
        "~",
        "\0",
        "file:",
        "lm",
        "\u2024\u2024",
        "....",
        "C:",
        "$HOME",
        "*",
    ]
    return ["".join(chance.choice(parts) for _ in range(chance.randint(1, 8))) for _ in range(count)]


def leads_nowhere(root: Path, inside: Path, names: list[str]) -> None:
    """On every parameter that names a model, and as part of the address, as it is and quoted."""
    inside.mkdir()
    (inside / "mine").symlink_to(root / "bert")
    with Served([], root=inside) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/v1/runs").json()["data"] == []
        refused(http.post("/v1/models", json={"model": "mine"}), 404)  # a link out of the root
        for name in names:
            assert 400 <= http.post("/v1/models", json={"model": name}).status_code < 500, name
            assert 400 <= http.post("/v1/classify", json={"model": name, "input": "x"}).status_code < 500, name
            for safe in ("/%.:~$*\\", ""):
                line = (
                    f"GET /v1/models/{quote(name, safe=safe)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                for method in ("GET", "DELETE"):
                    answer = server.raw(line.replace("GET", method, 1).encode())
                    assert re.match(rb"HTTP/1\.1 4\d\d ", answer), (name, answer[:200])


def test_no_name_leads_out_of_the_root(root: Path, tmp_path: Path) -> None:
    leads_nowhere(root, tmp_path / "root", paths_out_of_the_root(10))


def test_models_come_and_go(root: Path) -> None:
    with Served([str(root / "mood")], root=root) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        known = {run["id"]: run["loaded"] for run in http.get("/v1/runs").json()["data"]}
        assert known == {"bert": False, "chat": False, "en-zh": False, "lm": False, "mood": True, "short": False}
        refused(http.post("/v1/embeddings", json={"model": "bert", "input": "x"}), 404)
        assert http.post("/v1/models", json={"model": "bert"}).json()["task"] == "embedding"
        refused(http.post("/v1/models", json={"model": "bert"}), 409, "model_loaded")
        assert http.post("/v1/embeddings", json={"model": "bert", "input": "x"}).status_code == 200
        assert http.delete("/v1/models/bert").json() == {"id": "bert", "object": "model", "deleted": True}
        assert http.delete("/v1/models/mood").status_code == 200, "it was named, but the root has it"
        refused(http.post("/v1/embeddings", json={"model": "bert", "input": "x"}), 404, "model_not_found")


def test_a_model_that_is_not_of_the_root_stays(root: Path, tmp_path: Path) -> None:
    (tmp_path / "root" / "mood").mkdir(parents=True)
    (tmp_path / "root" / "half").mkdir()
    (tmp_path / "root" / "half" / "config.json").write_text("{}")
    inside = tmp_path / "root"
    with Served([str(root / "mood")], root=inside) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        refused(http.delete("/v1/models/mood"), 403, "not_of_root")
        assert http.get("/v1/models/mood").status_code == 200
        assert str(tmp_path) not in refused(http.post("/v1/models", json={"model": "half"}), 400)["message"]


def test_one_key_leaves_places_for_the_others(lm: Run, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\nanother-key-0123456789\n")
    with Served([f"lm={lm.path}"], key_file=keys, engine=EngineLimits(most_rows=1, most_waiting=6)) as server:
        assert server.running.library.get("lm").engine.limits.most_waiting_of_key == 3


def test_an_answer_that_came_whole_is_no_client_that_left(root: Path) -> None:
    with Served([str(root / "mood")]) as server:
        for path in ("/", "/page/app.js", "/page/style.css"):
            assert httpx.get(server.url + path).status_code == 200
        text = httpx.get(f"{server.url}/metrics").text
        assert "zhixing_http_clients_left_total 0" in text and 'code="499"' not in text


def test_who_is_cut_off_is_told(lm: Run) -> None:
    with Served([f"lm={lm.path}"], drain_seconds=0.2) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"model": "lm", "prompt": "It", "max_tokens": 50, "min_tokens": 50, "temperature": 0, "stream": True}
        engine = server.running.library.get("lm").engine
        turn = engine._turn
        engine._turn = lambda: (time.sleep(0.05), turn())  # type: ignore[method-assign,func-returns-value]
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.running.stop()
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_without_the_key_only_health_answers(root: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n{KEY}\nanother-key-0123456789\n")
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>zhixing</title>")
    (page / "page.js").write_text("0")
    with Served([str(root / "mood")], key_file=keys, page=page) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/health").json() == {"status": "ok"}
        own = {"authorization": f"Bearer {KEY}"}
        schema = http.get("/openapi.json", headers=own).json()
        routes = [(path, method) for path, item in schema["paths"].items() for method in item if path != "/health"]
        assert len(routes) >= 14
        for path, method in [
            *routes,
            ("/openapi.json", "get"),
            ("/nothing", "get"),
            ("/docs", "get"),
            ("/health/", "get"),
        ]:
            wrongs = [{}, {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}]
            for wrong in wrongs if path == "/v1/models" else wrongs[:1]:
                answer = http.request(method.upper(), path.replace("{model}", "mood"), headers=wrong)
                assert refused(answer, 401, "invalid_api_key")["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == "Bearer"
        for key in (KEY, "another-key-0123456789"):
            assert http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()
        for path in ("/", "/page/page.js"):  # static files hold nothing; what they call needs the key
            answer = http.get(path)
            assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
        refused(http.get("/page/../server.py"), 401)
        assert http.get("/page/%2e%2e/keys").status_code == 404


def test_what_does_not_start(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(root / "mood")
    assert cli.main(["serve", run, "--host", "0.0.0.0"]) == 2
    assert "no API key" in capsys.readouterr().err
    short = tmp_path / "keys"
    short.write_text("too-short\n")
    assert cli.main(["serve", run, "--host", "0.0.0.0", "--api-key-file", str(short)]) == 2
    assert "too-short" not in capsys.readouterr().err
    for wrong in ([str(tmp_path / "nothing")], [run, run], ["a/b=" + run], []):
        assert cli.main(["serve", *wrong, "--port", "0"]) == 2
    short.write_text("# nothing\n")
    with pytest.raises(InputError, match="no API key"):
        read_keys(short)
    with Served([run]) as server:
        port = server.url.rpartition(":")[2]
        with pytest.raises(InputError, match="cannot be listened at"):
            serve([run], port=int(port))
    assert named_runs([run, "x=" + run]) == [("mood", Path(run)), ("x", Path(run))]


def test_overload_is_refused_and_the_accepted_are_unharmed(lm: Run) -> None:
    """Ten times what there is room for, at once."""
    wanted = lm.generate("It was", max_new_tokens=40, temperature=0)
    how = {"model": "lm", "prompt": "It was", "max_tokens": 40, "temperature": 0}
    limits = EngineLimits(most_rows=2, most_waiting=4)
    with (
        Served([f"lm={lm.path}"], engine=limits) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(lambda _: http.post("/v1/completions", json=how), range(60)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429} and codes.count(200) >= 6
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == wanted
            else:
                assert refused(answer, 429, "queue_full") and int(answer.headers["retry-after"]) >= 1
        assert http.post("/v1/completions", json=how).status_code == 200
        assert re.search(r"zhixing_requests_rejected_total\{model=\"lm\"\} [1-9]", http.get("/metrics").text)


def leave(server: Served, chance: random.Random, count: int) -> None:
    """Clients that ask for long texts and close the connection at some moment."""
    for number in range(count):
        body: dict[str, Any] = {"model": "chat", "max_tokens": 100, "min_tokens": 90, "stream": number % 2 == 0,
                                "messages": [{"role": "user", "content": f"Hello {number}"}]}  # fmt: skip
        with httpx.Client(base_url=server.url) as http:
            if number % 2:
                with pytest.raises(httpx.TimeoutException):
                    http.post(
                        "/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.002 + chance.random() * 0.01)
                    )
                continue
            with http.stream("POST", "/v1/chat/completions", json=body, timeout=30) as answer:
                lines = answer.iter_lines()
                for _ in range(chance.randint(0, 4)):
                    next(lines)


def no_slot_is_lost(server: Served, model: str, seconds: float = 0.5) -> None:
    end = time.monotonic() + seconds
    while server.rows(model) and time.monotonic() < end:
        time.sleep(0.01)
    assert server.rows(model) == 0
    metrics = server.running.library.get(model).engine.metrics()
    ended = metrics.finished + metrics.aborted + metrics.timed_out + metrics.failed
    assert metrics.accepted == ended and metrics.waiting == 0


def test_who_leaves_frees_the_slot(server: Served) -> None:
    before = server.running.library.get("chat").engine.metrics().aborted
    leave(server, random.Random(0), 12)
    no_slot_is_lost(server, "chat")
    assert server.running.library.get("chat").engine.metrics().aborted > before


def test_what_was_accepted_is_ended_before_the_server_stops(lm: Run) -> None:
    with Served([f"lm={lm.path}"], engine=EngineLimits(most_rows=1)) as server:
        begun, texts = threading.Barrier(5), [""] * 4

        def read(number: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as http:
                body = {
                    "model": "lm",
                    "prompt": "It was",
                    "max_tokens": 50,
                    "temperature": 0,
                    "stream": True,
                    "min_tokens": 40,
                }
                if number == 0:
                    with http.stream("POST", "/v1/completions", json=body) as answer:
                        lines = answer.iter_lines()
                        first = next(lines)
                        begun.wait()
                        texts[number] = "".join([first, *lines])
                    return
                begun.wait()

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        begun.wait()
        server.running.stop()
        with httpx.Client(base_url=server.url) as http:
            try:
                answer = http.get("/ready")
                assert answer.status_code == 503 and answer.json() == {"status": "draining"}
                refused(http.post("/v1/completions", json={"model": "lm", "prompt": "x"}), 503, "draining")
            except httpx.TransportError:
                pass  # the stream was over before
        for thread in threads:
            thread.join()
        assert texts[0].endswith("data: [DONE]")
        server.thread.join(10)
        assert not server.thread.is_alive()


def malformed(chance: random.Random) -> bytes:
    """Bytes that are nearly a request, or nothing like one."""
    body = b'{"model":"lm","prompt":"x","max_tokens":2}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    kind = chance.randrange(8)
    if kind == 0:
        return bytes(chance.randrange(256) for _ in range(chance.randint(1, 200)))
    if kind == 1:
        return whole[: chance.randrange(len(whole))]
    if kind == 2:
        return head + b"Content-Length: %d\r\n\r\n" % chance.choice([-1, 10**12, 5]) + body
    if kind == 3:
        return (
            head
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + chance.choice([b"zz\r\n", b"5\r\nab", b"FFFFFFFF\r\nx", b"0\r\n"])
        )
    if kind == 4:
        return head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    if kind == 5:
        return b"GET /" + b"a" * chance.choice([10, 70_000]) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    if kind == 6:
        return (
            b"GET /health HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(chance.choice([1, 3000]))) + b"\r\n"
        )
    spoilt = bytearray(whole)
    for _ in range(chance.randint(1, 5)):
        spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
    return bytes(spoilt)


def throw(server: Served, count: int, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(count):
        data = malformed(chance)
        answer = server.raw(data, ends=True)
        status = re.match(rb"HTTP/1\.1 (\d+)", answer)
        assert not status or int(status[1]) < 500, (number, data[:200], answer[:300])


def test_malformed_bytes_are_no_trouble(server: Served, http: httpx.Client) -> None:
    throw(server, 60, seed=0)
    assert http.get("/health").status_code == 200
    no_slot_is_lost(server, "lm", 2)


def test_a_megabyte_of_repeats_holds_nobody_up(server: Served, http: httpx.Client) -> None:
    slow = {"model": "lm", "prompt": "ab" * ((1 << 19) - 200)}
    with ThreadPoolExecutor(4) as pool:
        waiting = [
            pool.submit(lambda: httpx.post(server.url + "/v1/completions", json=slow, timeout=60)) for _ in range(3)
        ]
        longest = 0.0
        while not all(future.done() for future in waiting):
            began = time.monotonic()
            assert http.get("/health").status_code == 200
            longest = max(longest, time.monotonic() - began)
        for future in waiting:
            refused(future.result(), 400, "context_length_exceeded")
    assert longest < 1.0


def test_nothing_that_is_said_is_logged(server: Served, http: httpx.Client) -> None:
    """Not where it goes well, not where it fails, and no metric or error repeats it either."""
    answers = [
        http.post("/v1/completions", json={"model": "lm", "prompt": f"{SENTINEL}", "max_tokens": 2}),
        http.post("/v1/completions", json={"model": "lm", "prompt": f"{SENTINEL} " * 50}),
        http.post("/v1/completions", json={"model": "lm", "prompt": 5, "stop": SENTINEL}),
        http.post("/v1/completions", json={"model": "lm", "prompt": {"text": SENTINEL}}),
        http.post(
            "/v1/chat/completions",
            json={"model": "chat", "messages": [{"role": "user", "content": f"{SENTINEL} " * 99}]},
        ),
        http.post(
            "/v1/chat/completions", json={"model": "chat", "messages": [{"role": SENTINEL, "content": SENTINEL}]}
        ),
        http.post("/v1/embeddings", json={"model": "bert", "input": f"{SENTINEL} " * 99}),
        http.post("/v1/classify", json={"model": "mood", "input": [SENTINEL]}),
        http.get(f"/{SENTINEL}"),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 400, 400, 400, 400, 400, 200, 404]
    said = [answer.text for answer in answers[1:7]]
    assert SENTINEL not in "".join(said) and SENTINEL not in http.get("/metrics").text
    log = server.log.getvalue()
    assert SENTINEL not in log
    entries = [json.loads(line) for line in log.splitlines()]
    by_id = {entry.get("id"): entry for entry in entries}
    first = by_id[answers[0].headers["x-request-id"]]
    assert first["model"] == "lm" and first["route"] == "/v1/completions" and first["code"] == 200
    assert first["prompt_tokens"] > 0 and first["completion_tokens"] == 2 and first["key"] == "local"


def test_an_error_of_ours_is_told_and_logged_without_what_was_said() -> None:
    """A route that fails as none of ours may; and names in a body that are no names."""
    log, state, limits = io.StringIO(), State(), ServerLimits()
    service = Service(Library(limits, threads=1), limits, state)
    app = make_app(service)

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError(SENTINEL)

    guard = Guard(app, state, Keys([]), host_names("127.0.0.1", ()), limits, Log(log))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(guard)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            odd = {"[": [], "\u00ba": ["x"], "": 1, "str": 2}
            return [await client.get("/broken"), await client.post("/v1/classify", json=odd)]

    failed, odd = asyncio.run(ask())
    refused(failed, 500, "internal_error")
    refused(odd, 400, "unknown_parameter")
    service.close()
    assert SENTINEL not in failed.text + log.getvalue()
    failures = [entry for entry in map(json.loads, log.getvalue().splitlines()) if entry["event"] == "failure"]
    assert [entry["id"] for entry in failures] == [failed.headers["x-request-id"]]
    assert failures[0]["errors"] == ["ValueError"] and any("broken" in place for place in failures[0]["places"][0])


def test_metrics_are_what_prometheus_reads(http: httpx.Client) -> None:
    http.post("/v1/completions", json={"model": "lm", "prompt": "It was", "max_tokens": 5, "temperature": 0})
    text = http.get("/metrics").text
    sample = re.compile(r'[a-z_]+(\{([a-z]+="[^"\n]*",?)*\})? -?[0-9.e+-]+')
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    for line in text.splitlines():
        assert line.startswith("# ") or sample.fullmatch(line), line
        if not line.startswith("#"):
            name = re.match(r"[a-z_]+", line)[0]  # type: ignore[index]
            assert name in kinds or re.sub(r"_(bucket|sum|count)$", "", name) in kinds
    assert re.search(r'zhixing_http_requests_total\{route="/v1/completions",method="POST",code="200"\} [1-9]', text)
    assert re.search(r'zhixing_tokens_out_total\{model="lm"\} [1-9]', text)
    for name in ("zhixing_time_to_first_token_seconds", "zhixing_inter_token_seconds"):
        counts = [int(n) for n in re.findall(name + r'_bucket\{model="lm",le="[^"]+"\} (\d+)', text)]
        assert counts == sorted(counts) and counts[-1] > 0


def test_the_command_says_what_to_type_next(server: Served) -> None:
    said = told(server.url, server.running.library, key=False)
    assert f"listening at {server.url}" in said and "lm  generation" in said and "curl " in said
    code = "\n".join(said.splitlines()[-3:])
    printed: list[Any] = []
    exec(compile(code, "told", "exec"), {"print": printed.append})  # noqa: S102
    assert isinstance(printed[0], str)


# ---- the schema


def fuzz(server: Served, most: int, seed: int) -> int:
    """Requests that the schema allows, for models that there are, and some that it does not; how many were sent."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    told = httpx.get(f"{server.url}/openapi.json").json()
    names = {"type": "string", "enum": [hosted.id for hosted in server.running.library.models]}
    for name, kind in told["components"]["schemas"].items():
        if name.endswith("Request"):
            kind["properties"]["model"] = names
    wanted = [
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance, checks.response_headers_conformance, checks.negative_data_rejection,
        checks.unsupported_method,
    ]  # fmt: skip
    operations = [result.ok() for result in schemathesis.openapi.from_dict(told).get_all_operations()]
    assert len(operations) >= 16
    sent = 0
    for operation in operations:
        bodiless = operation.method.upper() != "POST"
        for mode in schemathesis.GenerationMode:
            if bodiless and mode is schemathesis.GenerationMode.NEGATIVE:
                continue

            @seeded(seed)
            @settings(max_examples=1 if bodiless else max(1, most // 16), database=None, deadline=None,
                      phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                nonlocal sent
                sent += 1
                case.call_and_validate(base_url=server.url, checks=wanted, timeout=60)

            send()
    return sent


def test_the_schema_is_true(server: Served) -> None:
    assert fuzz(server, 20, seed=1) >= 20
    no_slot_is_lost(server, "lm", 5)


# ---- in numbers


@pytest.mark.slow
def test_a_thousand_clients_that_leave(root: Path) -> None:
    with Served([str(root / "chat")]) as server:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: leave(server, random.Random(seed), 125), range(8)))
        no_slot_is_lost(server, "chat", 1.0)


@pytest.mark.slow
def test_two_hundred_names_lead_nowhere(root: Path, tmp_path: Path) -> None:
    leads_nowhere(root, tmp_path / "root", paths_out_of_the_root(200))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_five_thousand_requests_of_the_schema(server: Served, part: int) -> None:
    assert fuzz(server, 1000, seed=2 + part) >= 1000


@pytest.mark.slow
def test_two_thousand_malformed_requests(server: Served, http: httpx.Client) -> None:
    throw(server, 2000, seed=3)
    assert http.get("/health").status_code == 200


@pytest.mark.slow
def test_sigterm_under_load(lm: Run) -> None:
    """The real command and the real signal: every accepted stream comes to its end, and the exit code is 0."""
    import signal
    import subprocess
    import sys

    command = [sys.executable, "-m", "zhixing", "serve", f"lm={lm.path}", "--port", "0", "--most-rows", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = next(line for line in process.stderr if line.startswith("listening"))
    url = first.split()[-1]
    drained = threading.Thread(target=process.stderr.read)
    drained.start()
    begun = threading.Semaphore(0)

    def read(number: int) -> str:
        body = {"model": "lm", "prompt": f"It was {number}", "max_tokens": 50, "min_tokens": 45, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            assert answer.status_code == 200
            text = ""
            for line in answer.iter_lines():
                begun.release()
                text += line
            return text

    with ThreadPoolExecutor(12) as pool:
        reading = [pool.submit(read, number) for number in range(12)]
        begun.acquire()
        process.send_signal(signal.SIGTERM)
        ended = [future.exception() or future.result() for future in reading]
    accepted = [text for text in ended if isinstance(text, str)]
    assert len(accepted) >= 2 and all(text.endswith("data: [DONE]") for text in accepted)
    assert not [error for error in ended if isinstance(error, httpx.RemoteProtocolError)], "a stream was cut"
    assert process.wait(30) == 0
