"""What routes share: the models, the threads that prepare prompts, and the forms of answers."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from zhixing.serving.guard import NOTE, Note, State
from zhixing.serving.hosted import Hosted
from zhixing.serving.library import Library
from zhixing.serving.limits import ServerLimits
from zhixing.serving.problems import ApiError, as_api_error
from zhixing.serving.trainings import Trainings

PREPARING = 2  # threads: a text that takes long to cut into tokens leaves one for the others

Result = TypeVar("Result")


class Service:
    """`prepared` runs what must not hold up the event loop: templates, tokenizers, files."""

    def __init__(
        self, library: Library, limits: ServerLimits, state: State, trainings: Trainings | None = None
    ) -> None:
        self.library, self.limits, self.state = library, limits, state
        self.trainings = trainings or Trainings(None)
        self._threads = ThreadPoolExecutor(PREPARING, "zhixing-prepare")
        self._loading = ThreadPoolExecutor(1, "zhixing-load")

    async def prepared(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def loaded(self, work: Callable[[], Result]) -> Result:
        """Load or unload something, in a thread of its own: it takes seconds."""
        return await asyncio.get_running_loop().run_in_executor(self._loading, work)

    async def in_time(self, work: Awaitable[Result]) -> Result:
        """TimeoutError if it takes longer than a request may."""
        async with asyncio.timeout(self.limits.total_seconds):
            return await work

    def model(self, request: Request, name: str) -> Hosted:
        """ApiError if it is not loaded."""
        note(request).model = name if name in {hosted.id for hosted in self.library.models} else None
        return self.library.get(name)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loading.shutdown(wait=False, cancel_futures=True)


def note(request: Request) -> Note:
    """What the log is told of a request."""
    found: Note = request.scope[NOTE]
    return found


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def answer(value: Mapping[str, Any]) -> Response:
    return Response(as_json(value), media_type="application/json")


def usage(request: Request, prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """The usage object of an answer; the log is told too."""
    told = note(request)
    told.prompt_tokens, told.completion_tokens = prompt, completion
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def read_usage(request: Request, prompt: int) -> dict[str, Any]:
    """That of an answer for which nothing was written."""
    note(request).prompt_tokens = prompt
    return {"prompt_tokens": prompt, "total_tokens": prompt}


class EventStream(Response):
    """Server-sent events: `data: {...}` for each value, `data: [DONE]` at the end, an error where it breaks off.

    The generator is closed however this ends, so what it holds in an engine is free at once.
    """

    def __init__(self, values: AsyncGenerator[Mapping[str, Any], None], state: State) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._values, self._state = values, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._values) as values:
            try:
                async for value in values:
                    await send(_event(as_json(value)))
                await send(_event(b"[DONE]"))
            except Exception as error:
                problem = as_api_error(error, stopping=self._state.draining)
                await send(_event(as_json(problem.to_dict())))
                if problem.status == 500:
                    await send({"type": "http.response.body", "body": b""})
                    raise
        await send({"type": "http.response.body", "body": b""})


def _event(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


def refuse(message: str, param: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)
