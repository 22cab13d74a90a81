"""The server's log: a JSON object a line, of what happened and never of what was said."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO


class Log:
    """`stream` is stderr unless told otherwise."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, event: str, fields: Mapping[str, object] | None = None) -> None:
        """A line; a log that nobody reads any more stops no request."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **(fields or {})}, ensure_ascii=False)
        with self._lock:
            try:
                print(line, file=self._stream or sys.stderr, flush=True)
            except (OSError, ValueError):
                return

    def failure(self, request_id: str, error: BaseException) -> None:
        """An error of ours: its kind and where it was raised, without its message, which may hold a prompt."""
        kinds: list[str] = []
        places: list[list[str]] = []
        cause: BaseException | None = error
        while cause is not None and len(kinds) < 5:
            kinds.append(type(cause).__name__)
            frames = traceback.extract_tb(cause.__traceback__)[-8:]
            places.append([f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames])
            cause = cause.__cause__
        self.write("failure", {"id": request_id, "errors": kinds, "places": places})


class ToLog(logging.Handler):
    """What libraries log, as lines of ours: the logger's name and the message's form, without what is put into it."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        form = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        self._log.write("library", {"logger": record.name, "level": record.levelname, "message": form[:200]})
