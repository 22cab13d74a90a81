"""/v1/attention: how much each token takes from each, in every layer and head, while a model reads a text.

A language model reads the text, a chat model the same as a message with its frame; a classifier or an encoder reads it
with its ends; a translator or summarizer reads it and writes what it is said to have written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request
from starlette.responses import Response
from torch import Tensor

from zhixing.decoding.protocol import as_reader
from zhixing.dialogue import Chat
from zhixing.errors import InputError
from zhixing.explain.attention_heads import Kind, heads_of
from zhixing.seq2seq import Summarizer, Translator
from zhixing.serving.hosted import Hosted, ToAttend
from zhixing.serving.limits import MOST_ATTENDED, MOST_WEIGHTS
from zhixing.serving.problems import ApiError, too_long
from zhixing.serving.service import Service, as_json, note, refuse
from zhixing.serving.wire import AttentionRequest
from zhixing.tasks.generation import prompt_ids
from zhixing.text.conversations import as_messages
from zhixing.tokens.tokenizer import Tokenizer

DIGITS = 6  # of a weight, behind the point

# L layers, H heads, T tokens that look, S tokens that are looked at


async def attention(service: Service, request: Request, asked: AttentionRequest) -> Response:
    hosted = service.model(request, asked.model)
    if not hosted.attention_layers:
        raise ApiError(400, f"the model {hosted.id} has no attention to show", code="wrong_task", param="model")
    ids, axes = await service.prepared(lambda: _prepared(hosted, asked))
    _refuse_many(heads_of(hosted.run.model), axes, asked.layer)
    note(request).prompt_tokens = len(ids.read)
    future = hosted.engine.submit_job(hosted.attentions, ids, key=note(request).key)
    found = await service.in_time(asyncio.wrap_future(future))
    body = await service.prepared(lambda: _body(hosted, found, axes, asked.layer))
    return Response(body, media_type="application/json")


Axes = dict[Kind, tuple[list[str], list[str]]]  # the tokens that look, and those that are looked at


def _prepared(hosted: Hosted, asked: AttentionRequest) -> tuple[ToAttend, Axes]:
    """The ids, and the tokens on both sides of each kind."""
    tokenizer, run = hosted.tokenizer, hosted.run
    assert tokenizer is not None
    text, reads_apart = asked.input, as_reader(run.model) is not None
    if isinstance(run, Translator | Summarizer):
        try:
            language, text = run.told(text, asked.target_language)
        except InputError as error:
            raise refuse(f"{error.what} ({error.why})", "target_language") from None
        tokenizer = tokenizer.for_language(language)
    elif asked.target_language:
        raise refuse("the model writes in no other language; leave target_language out", "target_language")
    if isinstance(run, Chat):
        read = run.writer.encode(as_messages([{"role": "user", "content": text}]))
    else:
        read = tokenizer.with_ends(prompt_ids(tokenizer, [text])[0])
    if hosted.task == "generation":
        read = prompt_ids(tokenizer, [text])[0]
    _refuse_long(read, hosted.context, "input")
    names = _names(tokenizer, read)
    if not reads_apart:
        if asked.output is not None:
            raise refuse("the model reads and writes one text; leave output out, or put it behind the input", "output")
        return ToAttend(read), {"bidirectional": (names, names), "causal": (names, names)}
    if asked.output is None:
        raise refuse("the model writes another text than it reads; give what it wrote as output", "output")
    target = tokenizer.target
    written = target.encode(asked.output)
    if not written:
        raise refuse("it has no tokens", "output")
    _refuse_long(written, run.model.settings.max_len - 1, "output")
    before = [run.model.settings.start_id, *written[:-1]]  # what it has written when it writes each token
    rows = _names(target, written)
    axes: Axes = {"bidirectional": (names, names), "causal": (rows, _names(target, before)), "cross": (rows, names)}
    return ToAttend(read, before), axes


def _refuse_long(ids: Sequence[int], room: int | None, param: str) -> None:
    if room is not None and len(ids) > room:
        raise too_long(len(ids), room, param)
    if len(ids) > MOST_ATTENDED:
        message = f"the {param} has {len(ids):,} tokens, attention is shown of {MOST_ATTENDED:,} at most; shorten it"
        raise ApiError(400, message, code="too_many_weights", param=param)


def _refuse_many(heads: dict[Kind, list[int]], axes: Axes, layer: int | None) -> None:
    """Numbers that would take too long to send."""
    if layer is not None and layer >= (count := max(map(len, heads.values()))):
        raise refuse(f"the model has {count} layers, counted from 0", "layer")
    count = 0
    for kind, layers in heads.items():
        rows, columns = map(len, axes[kind])
        count += sum(layers if layer is None else layers[layer : layer + 1]) * rows * columns
    if count > MOST_WEIGHTS:
        mend = "shorten the text" if layer is not None else "shorten the text, or ask for one layer"
        message = f"these are {count:,} weights, {MOST_WEIGHTS:,} at most are given at once; {mend}"
        raise ApiError(400, message, code="too_many_weights")


def _names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token stands for, a byte that is no character as \\xe5; of a special token its name."""
    vocabulary = tokenizer.vocabulary()

    def name(i: int) -> str:
        if i >= len(vocabulary):  # a model's vocabulary may be padded
            return ""
        return tokenizer.token_bytes(i).decode("utf-8", "backslashreplace") or vocabulary[i]

    return [name(i) for i in ids]


def _body(hosted: Hosted, found: dict[Kind, Tensor], axes: Axes, layer: int | None) -> bytes:
    """The answer, put together a head at a time: between two of them the event loop has its turn."""
    maps = []
    for kind, weights in found.items():
        chosen: Any = weights if layer is None else weights[layer : layer + 1]  # (L, H, T, S)
        if not len(chosen):  # the other side has more layers
            continue
        layers = [b",".join(as_json(_rounded(head)) for head in heads) for heads in chosen]
        rows, columns = axes[kind]
        head = as_json({"kind": kind, "rows": rows, "columns": columns})
        maps.append(head[:-1] + b',"weights":[[' + b"],[".join(layers) + b"]]}")
    start = as_json({"object": "attention", "model": hosted.id})
    return start[:-1] + b',"maps":[' + b",".join(maps) + b"]}"


def _rounded(head: Tensor) -> list[list[float]]:
    rows: list[list[float]] = np.round(head.double().numpy(), DIGITS).tolist()
    return rows
