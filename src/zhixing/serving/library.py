"""The models of a server by their ids: some from the start, others loaded and unloaded by name from one folder."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from zhixing.errors import InputError
from zhixing.serving.hosted import Hosted
from zhixing.serving.limits import ServerLimits
from zhixing.serving.problems import ApiError
from zhixing.serving.wire import ID_PATTERN

CONFIG = "config.json"


class Library:
    """Methods may be called from any thread; `load` and `unload` take their time."""

    def __init__(self, limits: ServerLimits, *, threads: int, root: Path | None = None) -> None:
        self.limits, self.root, self._threads = limits, None if root is None else root.resolve(), threads
        self._lock = threading.Lock()  # one is loaded at a time: each may take half of the memory
        self._models: dict[str, Hosted] = {}

    def __len__(self) -> int:
        return len(self._models)

    @property
    def models(self) -> list[Hosted]:
        return list(self._models.values())

    def get(self, name: str) -> Hosted:
        """ApiError if it is not loaded."""
        found = self._models.get(name)
        if found is None:
            shown = ", ".join(sorted(self._models)[:10]) or "none"
            raise ApiError(404, f"there is no such model; loaded: {shown}", code="model_not_found", param="model")
        return found

    def add(self, name: str, path: Path) -> Hosted:
        """Load a run under a name. InputError: a name that cannot be an id or stands already, or no run."""
        if not is_id(name):
            mend = f"give it one: zhixing serve my-model={path}"
            raise InputError(f"{name!r} cannot be a model's id", why="ids match " + ID_PATTERN, mend=mend)
        with self._lock:
            if name in self._models:
                mend = f"give one another name: zhixing serve other={path}"
                raise InputError(f"two models are called {name!r}", where=str(path), mend=mend)
            hosted = Hosted(name, path, self.limits, threads=self._threads)
            self._models = {**self._models, name: hosted}
            return hosted

    def folders(self) -> list[tuple[str, bool]]:
        """The ids that the root has, and whether each is loaded."""
        if self.root is None:
            return []
        names = sorted(p.name for p in self.root.iterdir() if is_id(p.name) and (p / CONFIG).is_file())
        return [(name, name in self._models) for name in names if self._inside(name) is not None]

    def load(self, name: str) -> Hosted:
        """Load a folder of the root. ApiError if there is none, it is no run, or there are enough models."""
        if self.root is None:
            raise ApiError(403, "this server loads no models; start it with --root FOLDER", code="no_root")
        if name in self._models:
            raise ApiError(409, "the model is loaded already", code="model_loaded", param="model")
        if len(self._models) >= self.limits.most_models:
            message = f"{self.limits.most_models} models are loaded, which is the most; unload one"
            raise ApiError(409, message, code="too_many_models")
        path = self._inside(name)
        if path is None:
            raise ApiError(404, "there is no such folder in the server's root", code="model_not_found", param="model")
        try:
            return self.add(name, path)
        except InputError as error:  # without the rest of it, which names the folder
            message = f"the folder cannot be served: {error.what}"
            raise ApiError(400, message, code="invalid_value", param="model") from error

    def unload(self, name: str) -> None:
        """Nobody finds it from now on; what it has begun is ended, and what takes too long cut off."""
        hosted = self.get(name)
        inside = self._inside(name)
        if inside is None or hosted.path.resolve() != inside.resolve():
            message = "the model was named when the server was started, and is not of its root; it stays"
            raise ApiError(403, message, code="not_of_root", param="model")
        with self._lock:
            if self._models.get(name) is not hosted:
                raise ApiError(404, "there is no such model", code="model_not_found", param="model")
            self._models = {key: value for key, value in self._models.items() if key != name}
        hosted.engine.drain(self.limits.drain_seconds)

    def close(self) -> None:
        for hosted in self.models:
            hosted.engine.close()
        self._models = {}

    def _inside(self, name: str) -> Path | None:
        """The folder of the root with this name; None where there is none, or it leads out of the root."""
        if self.root is None or not is_id(name):
            return None
        path = self.root / name
        return path if path.is_dir() and path.resolve().parent == self.root else None


def is_id(name: str) -> bool:
    """Whether it can name a model: never a path."""
    return re.fullmatch(ID_PATTERN, name) is not None and name not in (".", "..")
