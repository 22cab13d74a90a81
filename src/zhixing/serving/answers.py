"""What the server answers with, for its OpenAPI schema; the answers themselves are plain dicts of the same shape."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Task = Literal["generation", "dialogue", "translation", "summarization", "classification", "embedding"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorBody(Answer):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    error: ErrorBody


class Status(Answer):
    status: Literal["ok", "ready", "draining"]


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: Task
    max_model_len: int | None
    labels: list[str] | None
    target_languages: list[str] | None
    attention_layers: int
    reads_apart: bool


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class Deleted(Answer):
    id: str
    object: Literal["model"]
    deleted: Literal[True]


class RunEntry(Answer):
    id: str
    loaded: bool


class RunList(Answer):
    object: Literal["list"]
    data: list[RunEntry]


class Training(Answer):
    """Where a training stands. `seconds_left` is for all of its steps; it may end sooner."""

    id: str
    state: Literal["running", "done", "stopped"]
    step: int | None
    max_steps: int | None
    seconds: float | None
    seconds_left: float | None
    updated: int


class TrainingList(Answer):
    """`watching` says whether the server has a folder of runs."""

    object: Literal["list"]
    watching: bool
    data: list[Training]


class TrainingLines(Answer):
    """Numbers of metrics.jsonl from line `start` up to `next`. With another `version` the file was written anew."""

    object: Literal["training.lines"]
    training: Training
    version: str
    start: int
    next: int
    more: bool
    lines: list[dict[str, float]]


class PromptDetails(Answer):
    cached_tokens: int


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ReadUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class Beside(Answer):
    """What OpenAI's form has no place for."""

    turns_cut: int | None = None
    prediction: dict[str, Any] | None = None


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    zhixing: Beside | None = None


class EmbeddingEntry(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Answer):
    object: Literal["list"]
    model: str
    data: list[EmbeddingEntry]
    usage: ReadUsage


class Tokenized(Answer):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Alternative(Answer):
    text: str
    score: float


class Rewritten(Answer):
    index: int
    text: str
    score: float | None
    alternatives: list[Alternative]


class Rewrites(Answer):
    object: Literal["list"]
    model: str
    data: list[Rewritten]
    usage: Usage


class Aligned(Answer):
    """weights[t][s]: how much token t of the output took from token s of the input."""

    object: Literal["alignment"]
    model: str
    input_tokens: list[str]
    output_tokens: list[str]
    weights: list[list[float]]


class AttentionMap(Answer):
    """weights[l][h][t][s]: how much row t takes from column s in head h of layer l; a row sums to 1."""

    kind: Literal["bidirectional", "causal", "cross"]
    rows: list[str]
    columns: list[str]
    weights: list[list[list[list[float]]]]


class Attended(Answer):
    object: Literal["attention"]
    model: str
    maps: list[AttentionMap]


class Predicted(Answer):
    index: int
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    labels: list[str] | None = None
    score: float | None = None
    polarity: float | None = None
    truncated: bool


class Predictions(Answer):
    object: Literal["list"]
    model: str
    data: list[Predicted]
    usage: ReadUsage


class ExplainedWord(BaseModel):
    word: str
    start: int
    end: int
    weight: float


class Explained(BaseModel):
    """zhixing.explain's Explanation; other fields as there."""

    label: str
    probability: float | None
    method: Literal["integrated_gradients", "contributions", "rollout"]
    score: float | None
    words: list[ExplainedWord]
