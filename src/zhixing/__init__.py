"""zhixing (知行): from raw text to a trained, evaluated, explained and served language model.

import zhixing
run = zhixing.train("austen")            # or a folder of text
run = zhixing.load("runs/austen")
print(run.generate("It is a truth"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zhixing.before_torch import large_pages, short_spins
from zhixing.errors import InputError

large_pages()
short_spins()

if TYPE_CHECKING:
    from zhixing.asking import ask_docs
    from zhixing.classifier import Classifier, Sentiment
    from zhixing.context_classifier import in_context
    from zhixing.dialogue import Chat
    from zhixing.entry import load_any as load
    from zhixing.entry import train_any as train
    from zhixing.run import Run
    from zhixing.seq2seq import Summarizer, Translator

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "Classifier",
    "InputError",
    "Run",
    "Sentiment",
    "Summarizer",
    "Translator",
    "__version__",
    "ask_docs",
    "in_context",
    "load",
    "train",
]

PLACES = {
    "train": ("zhixing.entry", "train_any"),
    "load": ("zhixing.entry", "load_any"),
    "Run": ("zhixing.run", "Run"),
    "Classifier": ("zhixing.classifier", "Classifier"),
    "Sentiment": ("zhixing.classifier", "Sentiment"),
    "Translator": ("zhixing.seq2seq", "Translator"),
    "Summarizer": ("zhixing.seq2seq", "Summarizer"),
    "ask_docs": ("zhixing.asking", "ask_docs"),
    "Chat": ("zhixing.dialogue", "Chat"),
    "in_context": ("zhixing.context_classifier", "in_context"),
}


def __getattr__(name: str) -> Any:
    """These bring torch with them, so they are imported when first asked for."""
    if name in PLACES:
        import importlib

        module, attribute = PLACES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'zhixing' has no attribute {name!r}")
