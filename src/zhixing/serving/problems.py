"""What goes wrong, in the form that OpenAI's clients know: {"error": {"message", "type", "param", "code"}}.

A message says what, why and how to mend it, and never repeats a prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from zhixing.decoding.engine import DrainingError
from zhixing.decoding.fair_queue import QueueFullError
from zhixing.decoding.ticket import RequestCancelledError, TimedOutError
from zhixing.errors import InputError

TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 504: "server_error",
}  # fmt: skip
RETRY_AFTER = "1"  # seconds: a queue of 64 moves on quickly
PLACES = ("body", "query", "path", "header")
KINDS = ("str", "int", "float", "bool", "list", "dict")
SHOWN = 64  # characters of a name that a client made up


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        super().__init__(message)

    def to_dict(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def too_long(tokens: int, room: int, param: str) -> ApiError:
    """A prompt over the context: it is never cut silently."""
    return ApiError(
        400,
        f"the {param} has {tokens:,} tokens, the model reads {room:,} at most; shorten it",
        code="context_length_exceeded",
        param=param,
    )


def as_api_error(error: Exception, *, stopping: bool) -> ApiError:
    """What a client is told of whatever ended its request; stopping: whether the server, or only a model, ends."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):  # without `where`, which may hold a text or a path
        parts = [error.what, error.why and f"({error.why})", error.mend and f"; {error.mend}"]
        message = f"{parts[0]} {parts[1]}".strip() + parts[2]
        return ApiError(400, message, code="invalid_value")
    if isinstance(error, QueueFullError):
        message = "as many requests wait as may wait; come again in a moment"
        return ApiError(429, message, code="queue_full", headers={"retry-after": RETRY_AFTER})
    if isinstance(error, TimedOutError) and error.waiting:
        message = f"the request waited {error.seconds:g} s for its turn, which is the most; come again in a moment"
        return ApiError(429, message, code="queue_timeout", headers={"retry-after": RETRY_AFTER})
    if isinstance(error, TimedOutError | TimeoutError):
        message = "the request took longer than it may take; ask for fewer tokens or send less text"
        return ApiError(504, message, code="timeout")
    if isinstance(error, DrainingError | RequestCancelledError):
        return draining() if stopping else ApiError(503, "the model was unloaded meanwhile", code="unavailable")
    message = "the server could not do this; its log says more under the request's id"
    return ApiError(500, message, code="internal_error")


def draining() -> ApiError:
    message = "the server is about to stop and takes no new requests"
    return ApiError(503, message, code="draining", headers={"retry-after": "5", "connection": "close"})


def invalid_body(errors: Sequence[Mapping[str, Any]], known: Sequence[str]) -> ApiError:
    """Of pydantic's list the first problem, without the value that it is about."""
    first = errors[0] if errors else {"loc": (), "msg": "the request cannot be read", "type": ""}
    first = next((error for error in errors if error["type"] == "extra_forbidden"), first)  # a name misspelt says more
    place = [str(part)[:SHOWN] for part in first["loc"] if part not in PLACES and not _is_kind(str(part))]
    param = ".".join(place) or None
    if first["type"] in ("json_invalid", "model_attributes_type", "missing") and param is None:
        return ApiError(400, "the body is no JSON object", code="invalid_json")
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:SHOWN]
        near = difflib.get_close_matches(name, known, 1)
        mend = f"; did you mean {near[0]!r}?" if near else ""
        return ApiError(400, f"there is no parameter {name!r}{mend}", code="unknown_parameter", param=param)
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing", code="missing_parameter", param=param)
    return ApiError(400, f"{param or 'the request'}: {first['msg']}", code="invalid_value", param=param)


def _is_kind(part: str) -> bool:
    """Whether it is pydantic's word for one of several types, and no name or place."""
    return part in KINDS or "[" in part or "constrained" in part
