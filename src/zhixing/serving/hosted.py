"""A run that is served: what it is for, its engine, and the batches that it does.

A folder says which of six tasks it has; each has one class of ours behind it:

    generation          Run             goes on with a text
    dialogue            Chat            replies
    translation         Translator      says it in another language
    summarization       Summarizer      says it in fewer words
    classification      Classifier      says what it is
    embedding           Embedder        a vector of it

A language model, a translator or a chat model belongs to its engine's thread; classes and vectors are jobs there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhixing.classifier import Classifier, polarities
from zhixing.decoding.engine import Batch, Engine
from zhixing.decoding.protocol import as_reader, context_length
from zhixing.dialogue import Chat
from zhixing.entry import load_any
from zhixing.errors import InputError
from zhixing.explain.attention_heads import Kind, attention_heads, heads_of
from zhixing.explain.explanation import Explanation, Method
from zhixing.interchange.classifier_directory import is_classifier
from zhixing.interchange.model_directory import read_any_model, read_config
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM
from zhixing.run import Run, finished_folder
from zhixing.seq2seq import Summarizer, Translator
from zhixing.serving.answers import Task
from zhixing.serving.limits import ServerLimits
from zhixing.serving.problems import ApiError
from zhixing.tasks.classification import Prediction
from zhixing.tasks.embedding import TooLong, embed
from zhixing.tokens.tokenizer import Tokenizer

AT_ONCE = 16  # texts of a batch that are read side by side

ROUTES: dict[Task, str] = {
    "generation": "/v1/completions or /v1/chat/completions",
    "dialogue": "/v1/chat/completions",
    "translation": "/v1/translate or /v1/chat/completions",
    "summarization": "/v1/summarize or /v1/chat/completions",
    "classification": "/v1/classify, /v1/explain or /v1/chat/completions",
    "embedding": "/v1/embeddings",
}


@dataclass(frozen=True)
class Embedder:
    """An encoder and its tokenizer."""

    path: Path
    model: Bert | BertMaskedLM | BertClassifier
    tokenizer: Tokenizer


@dataclass(frozen=True)
class ToExplain:
    text: str
    method: Method | str
    label: str | None
    nearest: int


def opened(path: Path) -> tuple[Task, Any]:
    """What a folder is for, and what does it. InputError: no run, not finished, damaged."""
    folder = finished_folder(path)
    if not is_classifier(folder) and read_config(folder).get("model_type") in ("bert", "distilbert"):
        model, tokenizer, _ = read_any_model(folder)
        assert isinstance(model, Bert | BertMaskedLM | BertClassifier)
        return "embedding", Embedder(folder, model, tokenizer)
    run = load_any(folder)
    if isinstance(run, Classifier):
        return "classification", run
    if isinstance(run, Chat):
        return "dialogue", run
    if isinstance(run, Translator | Summarizer):
        return run.stored.task, run
    return "generation", run


@dataclass(frozen=True)
class ToAlign:
    source: str
    text: str
    target_language: str


@dataclass(frozen=True)
class Alignment:
    """weights[t][s]: how much token t of the output took from token s of the input."""

    input_tokens: list[str]
    output_tokens: list[str]
    weights: list[list[float]]


@dataclass(frozen=True)
class ToAttend:
    """Ids that are read, and those that were written before each token of the output, where a model writes apart."""

    read: list[int]
    written: list[int] | None = None


class Hosted:
    """`run` is a Run, Chat, Translator, Summarizer, Classifier or Embedder, as `task` says."""

    def __init__(self, name: str, path: Path, limits: ServerLimits, *, threads: int) -> None:
        self.id, self.path, self.created = name, path, int(time.time())
        self.task, self.run = opened(path)
        self.model = self._writer()
        self.engine: Engine[Any] = Engine(self.model, limits.engine, threads=threads)
        self.classes: Batch[str, Prediction] = Batch(self._classify, AT_ONCE)
        self.explanations: Batch[ToExplain, Explanation] = Batch(self._explain, 1)
        self.alignments: Batch[ToAlign, Alignment] = Batch(self._align, 1)
        self.attentions: Batch[ToAttend, dict[Kind, Tensor]] = Batch(self._attend, 1)
        self.vectors: Batch[tuple[str, TooLong], list[float]] = Batch(self._embed, AT_ONCE)

    def _writer(self) -> Any:
        """What the engine steps, in its fastest form; None where nothing is written."""
        if isinstance(self.run, Chat):
            return self.run.writer.model
        return self.run.decoder if isinstance(self.run, Run | Translator | Summarizer) else None

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None of a bag, which has words, and of an average."""
        found = self.run.stored.reader if isinstance(self.run, Classifier) else self.run.tokenizer
        return found if isinstance(found, Tokenizer) else None

    @cached_property
    def context(self) -> int | None:
        """The most tokens that a text may have, what is written behind it included; None: no such limit."""
        if self.model is not None:
            reader = as_reader(self.model)
            return context_length(self.model) if reader is None else int(reader.longest_source)
        model = self.run.model
        settings = getattr(getattr(model, "encoder", None) or model, "settings", None)
        found = getattr(settings, "max_len", None) if self.tokenizer is not None else None
        return None if found is None else int(found)

    @cached_property
    def encoder(self) -> Embedder | None:
        """What makes vectors, where it has something that does."""
        if isinstance(self.run, Embedder):
            return self.run
        if isinstance(self.run, Classifier) and isinstance(self.run.model, BertClassifier):
            assert self.tokenizer is not None
            return Embedder(self.path, self.run.model, self.tokenizer)
        return None

    @cached_property
    def attention_layers(self) -> int:
        """How many layers have heads that look at tokens, of the side that has more."""
        heads = {} if self.tokenizer is None else heads_of(self.run.model)
        return max(map(len, heads.values()), default=0)

    @cached_property
    def polarities(self) -> dict[str, float] | None:
        """What each label says of an opinion, from -1 to 1; None where it tells no opinions apart."""
        if not isinstance(self.run, Classifier) or self.run.problem_type == "regression":
            return None
        return polarities(self.run.labels)

    def card(self) -> dict[str, Any]:
        """Its entry in /v1/models."""
        labels = list(self.run.labels) if isinstance(self.run, Classifier) else None
        languages = self.run.target_languages if isinstance(self.run, Translator) else None
        return {
            "id": self.id, "object": "model", "created": self.created, "owned_by": "zhixing", "task": self.task,
            "max_model_len": self.context, "labels": labels, "target_languages": languages,
            "attention_layers": self.attention_layers,
            "reads_apart": self.model is not None and as_reader(self.model) is not None,
        }  # fmt: skip

    def needs(self, *tasks: Task) -> None:
        """ApiError if it has another task."""
        if self.task not in tasks:
            raise ApiError(
                400,
                f"the model {self.id} is for {self.task}; it answers at {ROUTES[self.task]}",
                code="wrong_task",
                param="model",
            )

    # in the engine's thread

    def _classify(self, texts: Sequence[str], breathe: Callable[[], None]) -> list[Prediction | Exception]:
        return [*self.run(list(texts))]

    def _explain(self, asked: Sequence[ToExplain], breathe: Callable[[], None]) -> list[Explanation | Exception]:
        return [self.run.explain(a.text, method=a.method, nearest=a.nearest, label=a.label) for a in asked]

    def _align(self, asked: Sequence[ToAlign], breathe: Callable[[], None]) -> list[Alignment | Exception]:
        found: list[Alignment | Exception] = []
        for a in asked:
            try:
                sources, tokens, weights = self.run.alignment(a.source, a.text, a.target_language)
                found.append(Alignment(sources, tokens, weights.tolist()))
            except InputError as error:
                found.append(error)
        return found

    def _attend(self, asked: Sequence[ToAttend], breathe: Callable[[], None]) -> list[dict[Kind, Tensor] | Exception]:
        found: list[dict[Kind, Tensor] | Exception] = []
        for a in asked:
            read = torch.tensor([a.read])  # (1, S)
            if a.written is not None:
                inputs: tuple[Tensor, ...] = (torch.tensor([a.written]), read, torch.tensor([len(a.read)]))
            elif isinstance(self.run, Classifier):
                inputs = (read, torch.ones_like(read, dtype=torch.bool))
            else:
                inputs = (read,)
            found.append(attention_heads(self.run.model, *inputs))
        return found

    def _embed(
        self, texts: Sequence[tuple[str, TooLong]], breathe: Callable[[], None]
    ) -> list[list[float] | Exception]:
        assert self.encoder is not None
        model, tokenizer, too_long = self.encoder.model, self.encoder.tokenizer, texts[0][1]
        found = embed(model, tokenizer, [text for text, _ in texts], too_long=too_long)
        return [*found.vectors.tolist()]
