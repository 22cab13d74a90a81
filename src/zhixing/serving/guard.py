"""What every request passes before and after the routes, and is refused by unless it is in order.

In this order: a Host that is ours, no page of another origin, the key (unless the path is open), not draining, not too
many at once, JSON as the content type, a body that is small enough and comes in time. Then the route runs as a task of
its own, which is cancelled as soon as the client leaves, whatever it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from zhixing.serving.limits import ServerLimits
from zhixing.serving.log import Log
from zhixing.serving.metrics import Counts
from zhixing.serving.problems import RETRY_AFTER, ApiError, as_api_error, draining

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)  # answered without a key, as the page is
PAGE = "/page/"
WATCHED = ("/health", "/ready", "/metrics")  # answered while the server drains, and not waited for
CLIENT_LEFT = 499  # in log and metrics only: nobody reads it
NOTE = "zhixing.note"  # where the Note of a request lies in its scope


@dataclass
class Note:
    """What is known of a request, for the log."""

    request_id: str
    key: str = "local"
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    started: float = field(default_factory=time.monotonic)


@dataclass
class State:
    """What the server is at: read by routes, changed by the guard and by signals."""

    counts: Counts = field(default_factory=Counts)
    in_flight: int = 0  # requests but WATCHED ones
    draining_since: float | None = None

    @property
    def draining(self) -> bool:
        return self.draining_since is not None

    def drain(self) -> None:
        if self.draining_since is None:
            self.draining_since = time.monotonic()


class Keys:
    """API keys, kept as hashes; the log knows them by their place in the file."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def name(self, given: bytes) -> str | None:
        """What the log calls the key; None if there is no such one, which takes as long to find out."""
        asked = hashlib.sha256(given).digest()
        found = None
        for number, known in enumerate(self._hashes, 1):
            if hmac.compare_digest(asked, known):
                found = f"key-{number}"
        return found


@dataclass(frozen=True)
class Hosts:
    """Names that a Host header may have. `any_address`: IP addresses too, which no DNS rebinding can bring."""

    names: frozenset[str]
    any_address: bool = False

    def allow(self, host: str) -> bool:
        """With or without a port."""
        name = host.strip().lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        name = name.rstrip(".")
        return name in self.names or (self.any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, state: State, keys: Keys, hosts: Hosts, limits: ServerLimits, log: Log) -> None:
        self._app, self.state, self._keys, self._hosts, self._limits = app, state, keys, hosts, limits
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websockets; there is nothing to do at start and end
            return
        note = Note(secrets.token_hex(8))
        scope[NOTE] = note
        path, method = scope["path"], scope["method"]
        answer = _Answer(send, note.request_id)
        counted = path not in WATCHED
        self.state.in_flight += counted
        code: int | None = None
        try:
            self._check(scope, note)
            body = await self._body(scope, receive)
            await self._run(scope, body, receive, answer)
        except _LeftError:
            code = CLIENT_LEFT
            self.state.counts.left += 1
        except Exception as error:
            problem = as_api_error(error, stopping=self.state.draining)
            if problem.status == 500:
                self._log.failure(note.request_id, error)
            if not answer.started:
                with contextlib.suppress(OSError):
                    await send_error(answer, problem)
        finally:
            self.state.in_flight -= counted
            code = code or answer.code or CLIENT_LEFT
            seconds = time.monotonic() - note.started
            route = getattr(scope.get("route"), "path", None) or "other"
            self.state.counts.add(route, method if method in METHODS else "other", code, seconds)
            if counted:
                self._log.write(
                    "request",
                    {
                        "id": note.request_id, "method": method[:16], "route": route, "code": code,
                        "seconds": round(seconds, 4), "key": note.key, "model": note.model,
                        "prompt_tokens": note.prompt_tokens, "completion_tokens": note.completion_tokens,
                    },
                )  # fmt: skip

    def _check(self, scope: Scope, note: Note) -> None:
        """All that can be said before the body is read."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host = headers.get(b"host", [])
        if len(host) != 1 or not self._hosts.allow(host[0].decode("latin-1")):
            message = "the Host header names no host of this server; start it with --allow-host NAME"
            raise ApiError(403, message, code="host_not_allowed")
        for origin in headers.get(b"origin", []):
            try:
                named = urlsplit(origin.decode("latin-1")).netloc
            except ValueError:  # http://[
                named = ""
            if not named or not self._hosts.allow(named):
                raise ApiError(403, "no page of another origin may use this server", code="origin_not_allowed")
        path, method = scope["path"], scope["method"]
        open_ = path in OPEN or (method in ("GET", "HEAD") and (path == "/" or path.startswith(PAGE)))
        if self._keys and not open_:
            given = headers.get(b"authorization", [])
            kind, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
            name = self._keys.name(key.strip())
            if kind.lower() != b"bearer" or name is None:
                message = "this server needs an API key: Authorization: Bearer KEY"
                raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
            note.key = name
        if self.state.draining and path not in WATCHED:
            raise draining()
        if self.state.in_flight > self._limits.most_connections:
            message = "as many requests are being answered as may be; come again in a moment"
            raise ApiError(429, message, code="too_many_requests", headers={"retry-after": RETRY_AFTER})
        if method == "POST":
            kind_of = headers.get(b"content-type", [b""])[0].decode("latin-1").split(";")
            charset = [part.strip().lower() for part in kind_of[1:] if part.strip().lower().startswith("charset=")]
            plain = all(part.removeprefix("charset=").strip('"') in ("utf-8", "utf8") for part in charset)
            if kind_of[0].strip().lower() != "application/json" or not plain:
                message = "the body must be JSON in UTF-8, and Content-Type: application/json say so"
                raise ApiError(415, message, code="unsupported_media_type")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; one that is too large is read to its end if that is near, so that the answer arrives."""
        most = self._limits.most_body
        body, size, too_large = bytearray(), 0, False
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _LeftError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    too_large = too_large or size > most
                    if too_large:
                        body.clear()
                    else:
                        body += chunk
                    if not message.get("more_body", False) or size > 16 * most:
                        break
        except TimeoutError:
            message_ = f"the request did not come within {self._limits.body_seconds:g} s"
            raise ApiError(408, message_, code="request_timeout", headers={"connection": "close"}) from None
        if too_large:
            message_ = f"the body has more than {most:,} bytes; send less text at once"
            raise ApiError(413, message_, code="body_too_large", headers={"connection": "close"})
        return bytes(body)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """The route, until it has ended, the client has left, or it takes too long."""
        gone = asyncio.Event()
        given = False

        async def again() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(scope, again, answer.send))
        watcher = asyncio.ensure_future(watch())
        seconds = self._limits.total_seconds + self._limits.write_seconds
        try:
            await asyncio.wait({work, watcher}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif watcher.done() and not answer.ended:
                raise _LeftError
            elif watcher.done():  # all was sent, and the connection closed before the route had put its file away
                await asyncio.wait_for(work, self._limits.write_seconds)
            else:
                raise TimeoutError
        finally:
            for task in (work, watcher):
                task.cancel()
            await asyncio.gather(work, watcher, return_exceptions=True)


METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"})


class _LeftError(Exception):
    """The client has left."""


class _Answer:
    """What is sent, with the headers that every answer has."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id
        self.started = self.ended = False
        self.code: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.code = True, message["status"]
            own = {b"x-request-id": self._id.encode(), b"x-content-type-options": b"nosniff"}
            names = {name.lower() for name, _ in message.get("headers", [])}
            if b"cache-control" not in names:
                own[b"cache-control"] = b"no-store"
            message["headers"] = [*message.get("headers", []), *own.items()]
        await self._send(message)
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)


async def send_error(answer: _Answer, problem: ApiError) -> None:
    """The answer to a request that comes to no route."""
    body = json.dumps(problem.to_dict(), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await answer.send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await answer.send({"type": "http.response.body", "body": body})


def host_names(host: str, more: Iterable[str]) -> Hosts:
    """Those of this machine, the one that is listened at, and more that were named."""
    names = {"localhost", "127.0.0.1", "::1", host.lower().strip("[]"), *(name.lower() for name in more)}
    return Hosts(frozenset(names - {"0.0.0.0", "::", ""}), any_address=not is_loopback(host))
