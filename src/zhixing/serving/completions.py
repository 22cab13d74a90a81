"""/v1/completions and /v1/chat/completions: every application as a model that any OpenAI client can use.

What a chat completion does depends on what the model is for:

    dialogue                      replies to all messages
    generation                    goes on with the last message
    translation, summarization    writes of the last message; what it writes is searched by beams unless told otherwise
    classification                says the label of the last message, or as JSON all that it found
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from zhixing.decoding.generate import Token
from zhixing.decoding.settings import DecodingSettings
from zhixing.dialogue import Chat
from zhixing.errors import InputError
from zhixing.serving.batches import classified, rewritten
from zhixing.serving.hosted import Hosted
from zhixing.serving.problems import too_long
from zhixing.serving.service import EventStream, Service, answer, as_json, new_id, note, now, refuse, usage
from zhixing.serving.wire import ChatRequest, CompletionRequest, Sampling
from zhixing.serving.writing import Piece, Writing
from zhixing.tasks.dialogue import shorter_histories
from zhixing.tasks.generation import prompt_ids
from zhixing.text.conversations import Message, as_messages
from zhixing.tokens.tokenizer import Tokenizer

DEFAULT_COMPLETION = 16  # tokens, as with OpenAI
DEFAULT_REPLY = 512
LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's servers say this


# ---- how to write


def settings_of(asked: Sampling, most: int, eos_ids: tuple[int, ...], logprobs: int | None) -> DecodingSettings:
    """DecodingSettings of a request; as OpenAI has it, a temperature of 1 where none is given."""
    beams = asked.num_beams or 1
    if beams > 1:
        drawn = {"temperature": asked.temperature, "top_k": max(0, asked.top_k or 0), "min_p": asked.min_p,
                 "top_p": _or(asked.top_p, 1.0) < 1}  # fmt: skip
        for name, given in drawn.items():
            if given:
                raise refuse("beams search for the likeliest, nothing is drawn; leave it or num_beams out", name)
    settings = DecodingSettings(
        max_new_tokens=most,
        min_new_tokens=min(asked.min_tokens, most),
        temperature=0.0 if beams > 1 else _or(asked.temperature, 1.0),
        top_k=max(0, asked.top_k or 0),
        top_p=_or(asked.top_p, 1.0),
        min_p=_or(asked.min_p, 0.0),
        repetition_penalty=_or(asked.repetition_penalty, 1.0),
        stop=asked.stops,
        n=asked.n or 1,
        seed=asked.seed,
        num_beams=beams,
        length_penalty=_or(asked.length_penalty, 1.0),
        logprobs=logprobs,
        eos_ids=eos_ids,
    )
    settings.check()
    return settings


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


# ---- tokens as OpenAI tells them


def _token(tokenizer: Tokenizer, id_: int) -> tuple[str, bytes]:
    """A token's text and bytes; bytes that are no text are spelt out."""
    target = tokenizer.target
    raw = target.token_bytes(id_) if id_ < target.vocab_size else b""
    try:
        return raw.decode("utf-8"), raw
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else LEAST_LOGPROB


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    content = []
    for token in tokens:
        text, raw = _token(tokenizer, token.id)
        top = []
        for id_, logprob in token.top or ():
            other, bytes_ = _token(tokenizer, id_)
            top.append({"token": other, "logprob": _finite(logprob), "bytes": list(bytes_)})
        content.append(
            {"token": text, "logprob": _finite(token.logprob), "bytes": list(raw), "top_logprobs": top}
        )  # fmt: skip
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], offset: int, wanted: int) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [] if wanted else None,
                             "text_offset": []}  # fmt: skip
    for token in tokens:
        text, raw = _token(tokenizer, token.id)
        found["tokens"].append(text)
        found["token_logprobs"].append(_finite(token.logprob))
        found["text_offset"].append(offset)
        offset += len(raw.decode("utf-8", "ignore"))
        if wanted:
            top = {_token(tokenizer, id_)[0]: _finite(logprob) for id_, logprob in token.top or ()}
            found["top_logprobs"].append(top)
    return found


# ---- completions


async def complete(service: Service, request: Request, asked: CompletionRequest) -> Response:
    hosted = service.model(request, asked.model)
    hosted.needs("generation", "dialogue")
    tokenizer = hosted.tokenizer
    assert tokenizer is not None
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise refuse("best_of is only taken where it equals n; num_beams searches for the best", "best_of")
    if asked.echo and asked.logprobs is not None:
        raise refuse("the prompt's own log-probabilities are not computed; leave echo or logprobs out", "echo")
    prompts, texts = await service.prepared(lambda: _prompts(hosted, tokenizer, asked))
    most = asked.max_tokens or DEFAULT_COMPLETION
    ends = hosted.run.speaker.end_ids if isinstance(hosted.run, Chat) else (tokenizer.target.eos_id,)
    settings = settings_of(asked, most, ends, asked.logprobs)
    writing = Writing(hosted, prompts, settings, note(request).key)
    form = _Completions(hosted, asked, texts, settings)
    if asked.stream:
        return await _streamed(service, request, writing, form.chunks, wants_usage=asked.wants_usage)
    return answer(await form.whole(request, writing))


def _prompts(hosted: Hosted, tokenizer: Tokenizer, asked: CompletionRequest) -> tuple[list[list[int]], list[str]]:
    """Ids of each prompt, and if it is to be repeated its text. ApiError: one that is over the context."""
    one = isinstance(asked.prompt, str) or isinstance(asked.prompt[0], int)
    given: Any = [asked.prompt] if one else asked.prompt
    texts: list[str] = []
    prompts: list[list[int]] = []
    for prompt in given:
        ids = prompt_ids(tokenizer, [prompt])[0] if isinstance(prompt, str) else list(prompt)
        if hosted.context is not None and len(ids) >= hosted.context:
            raise too_long(len(ids), hosted.context - 1, "prompt")
        prompts.append(ids)
        if asked.echo:
            texts.append(prompt if isinstance(prompt, str) else _decoded(tokenizer, ids))
    return prompts, texts


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    if max(ids) >= tokenizer.vocab_size:
        raise refuse(f"the prompt has an id that the model does not know; it knows 0 to {tokenizer.vocab_size - 1}",
                     "prompt")  # fmt: skip
    return tokenizer.decode(ids)


class _Completions:
    """The form of answers at /v1/completions."""

    def __init__(self, hosted: Hosted, asked: CompletionRequest, texts: list[str], settings: DecodingSettings) -> None:
        self._hosted, self._asked, self._texts, self._settings = hosted, asked, texts, settings
        self._head = {"id": new_id("cmpl"), "object": "text_completion", "created": now(), "model": hosted.id}
        self._offsets: dict[int, int] = {}

    def _echoed(self, choice: int) -> str:
        return self._texts[choice // self._settings.n] if self._texts else ""

    def _choice(self, choice: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._asked.logprobs is not None:
            assert self._hosted.tokenizer is not None
            offset = self._offsets.get(choice, 0)
            logprobs = completion_logprobs(self._hosted.tokenizer, tokens, offset, self._asked.logprobs)
            self._offsets[choice] = offset + len(text)
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}

    async def whole(self, request: Request, writing: Writing) -> dict[str, Any]:
        choices = [
            self._choice(choice, self._echoed(choice) + text, tokens, reason)
            for choice, (text, tokens, reason) in enumerate(await _gathered(writing))
        ]
        used = usage(request, writing.prompt_tokens, writing.completion_tokens, writing.reused_tokens)
        return {**self._head, "choices": choices, "usage": used}

    async def chunks(self, pieces: AsyncIterator[list[Piece]]) -> AsyncIterator[dict[str, Any]]:
        begun: set[int] = set()
        async for new in pieces:
            for piece in new:
                text = piece.text if piece.choice in begun else self._echoed(piece.choice) + piece.text
                begun.add(piece.choice)
                if text or piece.tokens:
                    yield {**self._head, "choices": [self._choice(piece.choice, text, piece.tokens, None)]}
                if piece.finish_reason is not None:
                    yield {**self._head, "choices": [self._choice(piece.choice, "", (), piece.finish_reason)]}
        yield self._head


async def _gathered(writing: Writing) -> list[tuple[str, list[Token], str]]:
    """Each choice's text, tokens and why it ended, when all have."""
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[Token]] = {}
    reasons: dict[int, str] = {}
    async with aclosing(writing.pieces()) as pieces:
        async for new in pieces:
            for piece in new:
                texts.setdefault(piece.choice, []).append(piece.text)
                tokens.setdefault(piece.choice, []).extend(piece.tokens)
                if piece.finish_reason is not None:
                    reasons[piece.choice] = piece.finish_reason
    return [("".join(texts[choice]), tokens[choice], reasons[choice]) for choice in sorted(texts)]


async def _streamed(
    service: Service, request: Request, writing: Writing, chunks: Any, *, wants_usage: bool
) -> Response:
    """The stream, which begins when there is something to say: until then an error is an answer with a code."""
    pieces = writing.pieces()
    try:
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise

    async def every() -> AsyncGenerator[list[Piece], None]:
        async with aclosing(pieces):
            yield first
            async for more in pieces:
                yield more

    async def values() -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(every()) as all_:
            async for chunk in chunks(all_):
                if "choices" in chunk:
                    yield {**chunk, "usage": None} if wants_usage else chunk
                    continue
                used = usage(request, writing.prompt_tokens, writing.completion_tokens, writing.reused_tokens)
                if wants_usage:
                    yield {**chunk, "choices": [], "usage": used}

    return EventStream(values(), service.state)


# ---- chat completions


async def chat(service: Service, request: Request, asked: ChatRequest) -> Response:
    hosted = service.model(request, asked.model)
    hosted.needs("dialogue", "generation", "translation", "summarization", "classification")
    if asked.target_language and hosted.task != "translation":
        raise refuse("target_language is for translators", "target_language")
    if asked.response_format is not None and asked.response_format.type != "text" and hosted.task != "classification":
        raise refuse("only classifiers answer in JSON; leave response_format out", "response_format")
    if asked.top_logprobs and not asked.logprobs:
        raise refuse("top_logprobs needs logprobs = true", "top_logprobs")
    messages = _messages(asked)
    if hosted.task == "classification":
        return await _chat_label(service, request, hosted, asked, messages[-1].content)
    if hosted.task in ("translation", "summarization"):
        return await _chat_rewriting(service, request, hosted, asked, messages[-1].content)
    most = asked.max_completion_tokens or asked.max_tokens or DEFAULT_REPLY
    ids, cut = await service.prepared(lambda: _question(hosted, messages, most))
    settings = _chat_settings(hosted, asked, most)
    writing = Writing(hosted, [ids], settings, note(request).key, strip=hosted.task == "dialogue")
    form = _ChatCompletions(hosted, asked, {"turns_cut": cut} if hosted.task == "dialogue" else None)
    if asked.stream:
        return await _streamed(service, request, writing, form.chunks, wants_usage=asked.wants_usage)
    choices = [
        form.choice(n, text, tokens, reason) for n, (text, tokens, reason) in enumerate(await _gathered(writing))
    ]
    used = usage(request, writing.prompt_tokens, writing.completion_tokens, writing.reused_tokens)
    return answer({**form.whole, "choices": choices, "usage": used, **form.beside})


def _messages(asked: ChatRequest) -> list[Message]:
    try:
        given = [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in asked.messages
        ]  # fmt: skip
        return as_messages(given)
    except InputError as error:
        raise refuse(f"{error.what} ({error.why}); {error.mend}", "messages", "invalid_messages") from None


def _question(hosted: Hosted, messages: list[Message], most: int) -> tuple[list[int], int]:
    """Ids of what is to be answered, and how many turns of the history there was no room for."""
    if not isinstance(hosted.run, Chat):
        assert hosted.tokenizer is not None
        ids = prompt_ids(hosted.tokenizer, [messages[-1].content])[0]
        if hosted.context is not None and len(ids) >= hosted.context:
            raise too_long(len(ids), hosted.context - 1, "messages")
        return ids, 0
    speaker = hosted.run.writer
    try:
        return speaker.fitted(messages, most)
    except InputError:
        *_, shortest = shorter_histories(messages)
        size, room = len(speaker.encode(shortest)), speaker.room(most)
        if size > room:
            raise too_long(size, room, "messages") from None
        raise


def _chat_settings(hosted: Hosted, asked: ChatRequest, most: int) -> DecodingSettings:
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    run = hosted.run
    if not isinstance(run, Chat):
        assert hosted.tokenizer is not None
        return settings_of(asked, most, (hosted.tokenizer.target.eos_id,), logprobs)
    settings = settings_of(asked, most, run.writer.end_ids, logprobs)
    if settings.num_beams > 1:
        return settings
    stored = run.stored  # what nobody asked for is as the run says
    told = replace(
        settings,
        temperature=_or(asked.temperature, stored.temperature),
        top_p=_or(asked.top_p, stored.top_p),
        repetition_penalty=_or(asked.repetition_penalty, stored.repetition_penalty),
    )
    told.check()
    return told


class _ChatCompletions:
    """The form of answers at /v1/chat/completions."""

    def __init__(self, hosted: Hosted, asked: ChatRequest, beside: dict[str, Any] | None) -> None:
        self._hosted, self._asked = hosted, asked
        head = {"id": new_id("chatcmpl"), "created": now(), "model": hosted.id}
        self.whole = {**head, "object": "chat.completion"}
        self._chunk = {**head, "object": "chat.completion.chunk"}
        self.beside = {} if beside is None else {"zhixing": beside}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._asked.logprobs or not tokens:
            return {"content": [], "refusal": None} if self._asked.logprobs else None
        assert self._hosted.tokenizer is not None
        return chat_logprobs(self._hosted.tokenizer, tokens)

    def choice(self, number: int, text: str, tokens: Sequence[Token], reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    async def chunks(self, pieces: AsyncIterator[list[Piece]]) -> AsyncIterator[dict[str, Any]]:
        begun: set[int] = set()
        async for new in pieces:
            for piece in new:
                if piece.choice not in begun:
                    begun.add(piece.choice)
                    yield {**self._delta(piece.choice, {"role": "assistant", "content": ""}, None, None), **self.beside}
                if piece.text or piece.tokens:
                    yield self._delta(piece.choice, {"content": piece.text}, self._logprobs(piece.tokens), None)
                if piece.finish_reason is not None:
                    yield self._delta(piece.choice, {}, None, piece.finish_reason)
        yield self._chunk

    def _delta(self, choice: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        told = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._chunk, "choices": [told]}

    async def at_once(self, text: str, reason: str, used: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """A stream of an answer that is known whole."""
        wants = self._asked.wants_usage
        more = {"usage": None} if wants else {}
        yield {**self._delta(0, {"role": "assistant", "content": ""}, None, None), **self.beside, **more}
        yield {**self._delta(0, {"content": text}, None, None), **more}
        yield {**self._delta(0, {}, None, reason), **more}
        if wants:
            yield {**self._chunk, "choices": [], "usage": used}


def _only_one(asked: ChatRequest, task: str) -> None:
    """What a translator or a classifier cannot do is refused."""
    if (asked.n or 1) > 1:
        raise refuse(f"a model for {task} gives one answer here; its own route gives the n best", "n")
    if asked.logprobs:
        raise refuse(f"a model for {task} tells no log-probabilities here", "logprobs")
    if asked.stops:
        raise refuse(f"stop strings mean nothing for {task}", "stop")


async def _chat_rewriting(
    service: Service, request: Request, hosted: Hosted, asked: ChatRequest, text: str
) -> Response:
    _only_one(asked, hosted.task)
    for name, given in {"min_p": asked.min_p, "min_tokens": asked.min_tokens,
                        "repetition_penalty": _or(asked.repetition_penalty, 1.0) != 1}.items():  # fmt: skip
        if given:
            raise refuse(f"a model for {hosted.task} takes no {name} here", name)
    temperature = asked.temperature or 0.0
    if temperature > 0 and (asked.num_beams or 1) > 1:
        raise refuse("beams search for the likeliest, a temperature samples; leave one out", "num_beams")
    settings = hosted.run.settings(
        num_beams=None if temperature > 0 else asked.num_beams,
        temperature=temperature,
        top_k=max(0, asked.top_k or 0) if temperature > 0 else 0,
        top_p=_or(asked.top_p, 1.0) if temperature > 0 else 1.0,
        seed=asked.seed if temperature > 0 else 0,
    )
    most = asked.max_completion_tokens or asked.max_tokens
    if most is not None:  # of each sentence
        settings = replace(settings, max_new_tokens=min(most, settings.max_new_tokens))
    if asked.length_penalty is not None:
        settings = replace(settings, length_penalty=asked.length_penalty)
    settings.check()
    (found,), counted = await service.in_time(
        rewritten(service, hosted, [text], asked.target_language or "", settings, note(request).key)
    )
    form = _ChatCompletions(hosted, asked, None)
    used = usage(request, counted.prompt_tokens, counted.completion_tokens)
    reason = "length" if counted.cut_short else "stop"
    if asked.stream:
        return EventStream(form.at_once(found.text, reason, used), service.state)
    return answer({**form.whole, "choices": [form.choice(0, found.text, (), reason)], "usage": used})


async def _chat_label(service: Service, request: Request, hosted: Hosted, asked: ChatRequest, text: str) -> Response:
    _only_one(asked, hosted.task)
    (found,), tokens = await service.in_time(classified(service, hosted, [text], note(request).key))
    prediction = {key: value for key, value in found.items() if key != "index"}
    if "labels" in prediction:
        said = ", ".join(prediction["labels"])
    else:
        said = prediction["label"] if "label" in prediction else f"{prediction['score']:g}"
    if asked.response_format is not None and asked.response_format.type == "json_object":
        said = as_json(prediction).decode()
    form = _ChatCompletions(hosted, asked, {"prediction": prediction})
    used = usage(request, tokens, 0)
    if asked.stream:
        return EventStream(form.at_once(said, "stop", used), service.state)
    return answer({**form.whole, "choices": [form.choice(0, said, (), "stop")], "usage": used, **form.beside})
