"""Answers to several texts at once: translations, summaries, classes, vectors, explanations, and ids of a text.

All are jobs or requests in the model's engine, so the texts of several users are done together, and none holds up who
writes with the same model.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request
from starlette.responses import Response

from zhixing.classifier import Classifier
from zhixing.decoding.settings import DecodingSettings
from zhixing.dialogue import Chat
from zhixing.errors import InputError
from zhixing.seq2seq import Translator
from zhixing.serving.hosted import Hosted, ToAlign, ToExplain
from zhixing.serving.problems import ApiError, too_long
from zhixing.serving.service import Service, answer, as_json, note, read_usage, refuse, usage
from zhixing.serving.wire import (
    AlignRequest,
    ClassifyRequest,
    EmbeddingsRequest,
    ExplainRequest,
    RewriteRequest,
    TokenizeRequest,
    TranslateRequest,
)
from zhixing.serving.writing import in_windows, write_sources
from zhixing.tasks.classification import encode_texts
from zhixing.tasks.generation import Completion, prompt_ids, source_ids
from zhixing.tasks.rewriting import Asked, Rounds, Written, summary, translation
from zhixing.text.conversations import as_messages
from zhixing.tokens.tokenizer import Tokenizer


def listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


# ---- translations and summaries


@dataclass
class Counted:
    """Tokens that were read and written; cut_short: whether a sentence came to the end of its room."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_short: bool = False


async def rewritten(
    service: Service, hosted: Hosted, texts: Sequence[str], target_language: str, settings: DecodingSettings, key: str
) -> tuple[list[Written], Counted]:
    """What a translator or summarizer writes for each text, as `Translator.__call__` does."""
    run, counted = hosted.run, Counted()
    found: list[Written | None] = [None] * len(texts)
    told: dict[str, list[tuple[int, str]]] = {}
    for number, given in enumerate(texts):
        try:
            language, text = run.told(given, target_language)
        except InputError as error:
            raise refuse(f"{error.what} ({error.why})", "target_language") from None
        told.setdefault(language, []).append((number, text))
    for place, (language, some) in enumerate(told.items()):
        tokenizer = run.tokenizer.for_language(language)
        rounds = _rounds(hosted, tokenizer, [text for _, text in some], language, settings)
        answers = await _driven(service, hosted, tokenizer, rounds, counted, key, taken_on=place > 0)
        for (number, _), one in zip(some, answers, strict=True):
            found[number] = one
    return [one for one in found if one is not None], counted


def _rounds(
    hosted: Hosted, tokenizer: Tokenizer, texts: list[str], language: str, settings: DecodingSettings
) -> Rounds:
    run, longest = hosted.run, hosted.run.model.longest_source
    if not isinstance(run, Translator):
        return summary(tokenizer, texts, settings, longest=longest, on_too_long=run.on_too_long)
    target = language or run.stored.target_language
    return translation(
        tokenizer, texts, settings, longest=longest, target_language=target, on_too_long=run.on_too_long
    )  # fmt: skip


async def _driven(
    service: Service,
    hosted: Hosted,
    tokenizer: Tokenizer,
    rounds: Rounds,
    counted: Counted,
    key: str,
    *,
    taken_on: bool,
) -> list[Written]:
    """Cutting into sentences and tokens is done elsewhere, writing in the engine.

    A call that was taken on waits where the queue is full; one that begins is refused.
    """

    def advanced(written: list[list[Completion]] | None) -> tuple[Asked, list[list[int]]] | list[Written]:
        try:
            asked = next(rounds) if written is None else rounds.send(written)
        except StopIteration as end:
            return end.value[0]  # type: ignore[no-any-return]
        return asked, tokenizer.encode_batch(asked.sources)

    written: list[list[Completion]] | None = None
    while True:
        step = await service.prepared(partial(advanced, written))
        if isinstance(step, list):
            return step
        asked, sources = step
        written = await write_sources(hosted, tokenizer, asked, sources, key, taken_on=taken_on)
        taken_on = True
        counted.prompt_tokens += sum(map(len, sources))
        counted.completion_tokens += sum(len(completion.ids) for best in written for completion in best)
        counted.cut_short = counted.cut_short or any(best[0].finish_reason == "length" for best in written)


async def rewrite(service: Service, request: Request, asked: RewriteRequest) -> Response:
    """/v1/translate and /v1/summarize."""
    hosted = service.model(request, asked.model)
    language = asked.target_language if isinstance(asked, TranslateRequest) else ""
    hosted.needs("translation" if isinstance(asked, TranslateRequest) else "summarization")
    sampled = asked.temperature > 0
    settings = hosted.run.settings(
        num_beams=asked.num_beams,
        n_best=asked.n_best,
        no_repeat_ngram_size=asked.no_repeat_ngram_size,
        temperature=asked.temperature,
        top_k=max(0, asked.top_k) if sampled else 0,
        top_p=asked.top_p if sampled else 1.0,
        seed=asked.seed,
    )
    settings.check()
    texts = listed(asked.input)
    found, counted = await service.in_time(
        rewritten(service, hosted, texts, language, settings, note(request).key)
    )  # fmt: skip
    data = [
        {
            "index": number, "text": one.text, "score": one.score,
            "alternatives": [{"text": text, "score": score} for text, score in one.alternatives],
        }
        for number, one in enumerate(found)
    ]  # fmt: skip
    used = usage(request, counted.prompt_tokens, counted.completion_tokens)
    return answer({"object": "list", "model": hosted.id, "data": data, "usage": used})


async def align(service: Service, request: Request, asked: AlignRequest) -> Response:
    """What was read for each token of a translation or summary. A text over the context is refused, never cut."""
    hosted = service.model(request, asked.model)
    hosted.needs("translation", "summarization")
    item = ToAlign(asked.input, asked.output, asked.target_language)
    future = hosted.engine.submit_job(hosted.alignments, item, key=note(request).key)
    found = await service.in_time(asyncio.wrap_future(future))
    return answer({"object": "alignment", "model": hosted.id, **asdict(found)})


# ---- classes


async def classified(service: Service, hosted: Hosted, texts: list[str], key: str) -> tuple[list[dict[str, Any]], int]:
    """What a classifier says of each text, and how many tokens were read."""
    for number, text in enumerate(texts):
        if not text.strip():
            raise refuse(f"text {number} is blank; give one with a word in it", "input")
    tokens, cut = await service.prepared(lambda: _read_by(hosted, texts))

    def submit(text: str) -> Awaitable[Any]:
        return asyncio.wrap_future(hosted.engine.submit_job(hosted.classes, text, key=key))

    found = []
    for number, prediction in enumerate(await in_windows(submit, texts)):
        row = {"index": number, **prediction.to_dict()}
        if hosted.polarities is not None:
            row["polarity"] = max(
                -1.0, min(1.0, sum(hosted.polarities[k] * v for k, v in prediction.probabilities.items()))
            )
        found.append(row | {"truncated": cut[number]})
    return found, tokens


def _read_by(hosted: Hosted, texts: list[str]) -> tuple[int, list[bool]]:
    """How many tokens a classifier reads of the texts, and of which it reads the beginning only."""
    run: Classifier = hosted.run
    cut = [False] * len(texts)
    tokens = 0
    for part in [run] if not run.members else [member for _, member in run.members]:
        reader = part.stored.reader
        if not isinstance(reader, Tokenizer):
            continue
        settings: Any = part.model.settings
        counts = [len(ids) for ids in reader.encode_batch(texts)]
        room = settings.max_len - len(reader.with_ends([]))
        if part.on_too_long == "error":
            encode_texts(texts, reader, settings.max_len, "error")
        if part.on_too_long == "truncate":
            cut = [before or count > room for before, count in zip(cut, counts, strict=True)]
        tokens = max(tokens, sum(counts))
    return tokens, cut


async def classify(service: Service, request: Request, asked: ClassifyRequest) -> Response:
    hosted = service.model(request, asked.model)
    hosted.needs("classification")
    found, tokens = await service.in_time(classified(service, hosted, listed(asked.input), note(request).key))
    return answer({"object": "list", "model": hosted.id, "data": found, "usage": read_usage(request, tokens)})


async def explain(service: Service, request: Request, asked: ExplainRequest) -> Response:
    hosted = service.model(request, asked.model)
    hosted.needs("classification")
    run: Classifier = hosted.run
    if not asked.input.strip():
        raise refuse("the text is blank; give one with a word in it", "input")
    if asked.label is not None and asked.label not in run.labels:
        raise refuse(f"the model has no such label; it has {', '.join(run.labels[:20])}", "label")
    item = ToExplain(asked.input, asked.method, asked.label, asked.nearest)
    future = hosted.engine.submit_job(hosted.explanations, item, key=note(request).key)
    found = await service.in_time(asyncio.wrap_future(future))
    return answer({"object": "explanation", "model": hosted.id, **found.to_dict()})


# ---- vectors


async def embeddings(service: Service, request: Request, asked: EmbeddingsRequest) -> Response:
    hosted = service.model(request, asked.model)
    encoder = hosted.encoder
    if encoder is None:
        raise ApiError(400, f"the model {hosted.id} makes no vectors; give a bert", code="wrong_task", param="model")
    net: Any = encoder.model
    settings: Any = (net.encoder if hasattr(net, "encoder") else net).settings
    if asked.dimensions not in (None, settings.d_model):
        raise refuse(f"the model's vectors have {settings.d_model} dimensions", "dimensions")
    texts = listed(asked.input)
    tokenizer = encoder.tokenizer

    def counted() -> list[int]:
        return [len(ids) for ids in tokenizer.encode_batch(texts)]

    counts, room = await service.prepared(counted), settings.max_len - len(tokenizer.with_ends([]))
    if asked.too_long == "error" and max(counts) > room:
        raise too_long(max(counts), room, "input")
    key = note(request).key

    def submit(text: str) -> Awaitable[list[float]]:
        job = hosted.engine.submit_job(hosted.vectors, (text, asked.too_long), group=asked.too_long, key=key)
        return asyncio.wrap_future(job)

    found: list[Any] = await service.in_time(in_windows(submit, texts))
    if asked.encoding_format == "base64":
        found = [base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() for vector in found]
    data = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(found)]
    used = read_usage(request, sum(counts))
    return answer({"object": "list", "model": hosted.id, "data": data, "usage": used})


# ---- ids


async def tokenize(service: Service, request: Request, asked: TokenizeRequest) -> Response:
    hosted = service.model(request, asked.model)
    tokenizer = hosted.tokenizer
    if tokenizer is None:
        raise ApiError(400, f"the model {hosted.id} reads words, not tokens", code="wrong_task", param="model")
    body = await service.prepared(lambda: as_json(_tokenized(hosted, tokenizer, asked)))
    return Response(body, media_type="application/json")


def _tokenized(hosted: Hosted, tokenizer: Tokenizer, asked: TokenizeRequest) -> dict[str, Any]:
    ids, known = _ids(hosted, tokenizer, asked), tokenizer.vocab_size
    texts = None
    if asked.return_token_strs:
        texts = [tokenizer.token_bytes(i).decode("utf-8", "replace") if i < known else "" for i in ids]
    return {"count": len(ids), "max_model_len": hosted.context, "tokens": ids, "token_strs": texts}


def _ids(hosted: Hosted, tokenizer: Tokenizer, asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        if not isinstance(hosted.run, Chat):
            raise refuse(f"a model for {hosted.task} takes a prompt here", "messages")
        messages = [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in asked.messages
        ]  # fmt: skip
        try:
            return hosted.run.writer.encode(as_messages(messages))
        except InputError as error:
            raise refuse(f"{error.what} ({error.why}); {error.mend}", "messages", "invalid_messages") from None
    assert asked.prompt is not None
    if hosted.task in ("generation", "dialogue"):
        return prompt_ids(tokenizer, [asked.prompt])[0]
    return source_ids(tokenizer, [asked.prompt])[0]
