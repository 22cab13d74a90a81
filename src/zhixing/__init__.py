"""zhixing (知行): from raw text to a trained, evaluated, explained and served language model.

import zhixing
run = zhixing.train("austen")            # or a folder of text
run = zhixing.load("runs/austen")
print(run.generate("It is a truth"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zhixing.errors import InputError

if TYPE_CHECKING:
    from zhixing.run import Run, load, train

__version__ = "0.1.0"
__all__ = ["InputError", "Run", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """train, load and Run bring torch with them, so they are imported when first asked for."""
    if name in ("train", "load", "Run"):
        from zhixing import run

        return getattr(run, name)
    raise AttributeError(f"module 'zhixing' has no attribute {name!r}")
