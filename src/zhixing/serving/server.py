"""The process: sockets, signals, threads. `serve` loads the runs, listens, and returns when it was told to stop.

SIGTERM or SIGINT begins the drain: /ready says 503, new requests are refused, what was accepted is ended, for up to
`drain_seconds`. A second signal ends it at once.

Threads: the engines take turns, so one of them computes at a time, with all cores but one; the last is the event loop's
and that of the threads that cut texts into tokens. On two cores an engine with both of them would take the loop's.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zhixing.cores import default_threads
from zhixing.errors import InputError
from zhixing.serving.app import PAGE, make_app
from zhixing.serving.guard import Guard, Keys, State, host_names, is_loopback
from zhixing.serving.library import Library
from zhixing.serving.limits import LEAST_KEY, ServerLimits
from zhixing.serving.log import Log, ToLog
from zhixing.serving.problems import ApiError
from zhixing.serving.service import Service, as_json
from zhixing.serving.trainings import Trainings

LAST_WORDS_SECONDS = 1.0  # for clients to be told that they were cut off
HEAD_SECONDS = 15.0  # for a connection to say what it wants
KEEP_ALIVE_SECONDS = 30
BACKLOG = 2048
SWITCH_SECONDS = 0.0005  # Python's threads hand over so often: the engine's must not wait 5 ms for the loop's


class Protocol(H11Protocol):
    """uvicorn's, with errors in our form, and an end for connections that say nothing."""

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _asked(self) -> bool:
        """Whether a request is being answered."""
        cycle: Any = self.cycle  # None before the first, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        if self._asked():
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self._asked() and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        body = as_json(ApiError(400, "this is no HTTP request", code="invalid_http").to_dict())
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]  # fmt: skip
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body),
                h11.EndOfMessage(),
            ):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun already
            pass
        self.transport.close()


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    address: str
    library: Library
    stop: Callable[[], None]  # what SIGTERM does; from any thread


class DrainingServer(uvicorn.Server):
    """It says when it has begun, and stops when what was accepted has ended, or after drain_seconds."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: State,
        limits: ServerLimits,
        log: Log,
        begun: Callable[[], object],
        cut_off: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._state, self._limits, self._log, self._begun, self._cut_off = state, limits, log, begun, cut_off
        self._cut: float | None = None  # when the engines were told to leave off

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.draining:
            self.should_exit = self.force_exit = True
        self._state.drain()

    async def on_tick(self, counter: int) -> bool:
        began = self._state.draining_since
        if began is not None:
            now = time.monotonic()
            if self._cut is None and self._state.in_flight and now - began > self._limits.drain_seconds:
                self._cut = now  # each client is told so, before its connection ends
                self._log.write("leaving off", {"cut_off": self._state.in_flight})
                threading.Thread(target=self._cut_off, name="zhixing-cut-off", daemon=True).start()
            if not self._state.in_flight or (self._cut is not None and now - self._cut > LAST_WORDS_SECONDS):
                self._log.write("stopping", {"cut_off": self._state.in_flight})
                return True
        return await super().on_tick(counter)


def read_keys(path: Path | None) -> list[str]:
    """The keys of a file, one a line; lines that begin with # say nothing. InputError: a key that is too short."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError("the file of API keys cannot be read", where=str(path), why=why) from None
    keys = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            why = f"it takes {LEAST_KEY} or more characters of ASCII without blanks"
            mend = "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            raise InputError("an API key cannot be used", where=f"{path}:{number}", why=why, mend=mend)
        keys.append(key)
    if not keys:
        raise InputError("the file holds no API key", where=str(path), mend="write one on a line of its own")
    return keys


def named_runs(runs: Sequence[str]) -> list[tuple[str, Path]]:
    """NAME=FOLDER, or a folder whose name is the model's id."""
    found = []
    for run in runs:
        name, equals, folder = run.partition("=")
        if equals and not Path(run).exists():
            found.append((name, Path(folder)))
        else:
            found.append((Path(run).resolve().name, Path(run)))
    return found


def listening(host: str, port: int) -> socket.socket:
    """A bound socket. InputError: an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        mend = "take another --port or --host; --port 0 takes any that is free"
        raise InputError(f"{host}:{port} cannot be listened at", why=error.strerror or str(error), mend=mend) from None
    return sock


def engine_threads() -> int:
    """All cores but one, which is the event loop's."""
    return max(1, default_threads() - 1)


def serve(
    runs: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
    root: Path | None = None,
    trainings: Path | None = None,
    allow_hosts: Sequence[str] = (),
    limits: ServerLimits | None = None,
    log: Log | None = None,
    page: Path = PAGE,
    ready: Callable[[Running], object] = lambda running: None,
) -> None:
    """Serve until a signal comes. `ready` is called once requests are answered.

    InputError: an address beyond this machine without a key, a file of keys or a run that cannot be used.
    """
    limits, log = limits or ServerLimits(), log or Log()
    keys = read_keys(api_key_file)
    if not is_loopback(host) and not keys:
        raise InputError(
            f"{host} is reached from other machines, and there is no API key",
            why=f"beyond this machine a key of {LEAST_KEY} or more characters is needed",
            mend="give --api-key-file FILE with one on a line, or leave --host out",
        )
    if root is not None and not root.is_dir():
        raise InputError("there is no such root", where=str(root), mend="give a folder that holds runs")
    if trainings is not None and not trainings.is_dir():
        raise InputError("there is no such folder of runs", where=str(trainings), mend="give one that holds trainings")
    if not runs and root is None and trainings is None:
        raise InputError("there is nothing to serve", mend="zhixing serve RUN, or --root FOLDER, or --runs FOLDER")
    limits.engine.check()
    if len(keys) > 1 and limits.engine.most_waiting_of_key is None:  # one alone must not take every place
        own = max(1, limits.engine.most_waiting // 2)
        limits = replace(limits, engine=replace(limits.engine, most_waiting_of_key=own))
    with listening(host, port) as sock:
        library = Library(limits, threads=engine_threads(), root=root)
        state = State()
        service = Service(library, limits, state, Trainings(trainings))
        try:
            for name, path in named_runs(runs):
                library.add(name, path)
            app = make_app(service, page=page, keyed=bool(keys))
            guard = Guard(app, state, Keys(keys), host_names(host, allow_hosts), limits, log)
            _quiet(log)
            sys.setswitchinterval(SWITCH_SECONDS)
            running = Running(_url(sock), library, state.drain)
            server = DrainingServer(uvicorn_config(guard), state, limits, log, lambda: ready(running), library.close)
            server.run(sockets=[sock])
        finally:
            service.close()
            library.close()
    log.write("stopped")


def uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
    )


def _quiet(log: Log) -> None:
    """uvicorn's and asyncio's warnings become lines of ours."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
        logger.setLevel(logging.WARNING)
        logger.addHandler(ToLog(log))


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
