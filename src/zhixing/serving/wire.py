"""What clients send, field by field: types are strict, every number has a least and a greatest value, and a field that
nobody knows is refused. Names are OpenAI's, and vLLM's where OpenAI has none.

A few fields are taken because clients send them, and do nothing here: user, store, metadata, service_tier, name. Others
are only taken with the value that means "without": what would change the answer is never passed over in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zhixing.serving.limits import (
    MOST_CHARACTERS,
    MOST_EXPLAINED,
    MOST_MESSAGES,
    MOST_NEW_TOKENS,
    MOST_PROMPTS,
    MOST_SAMPLES,
    MOST_STOPS,
    MOST_TEXTS,
)

ID_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"

ModelId = Annotated[str, Field(pattern=ID_PATTERN, description="An id of /v1/models.")]
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
TextToRead = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MOST_NEW_TOKENS, fail_fast=True)]
Tokens = Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=MOST_STOPS)]
Name = Annotated[str, Field(max_length=512)]
Batch = Annotated[list[TextToRead], Field(min_length=1, max_length=MOST_TEXTS)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=-1, le=2**31 - 1, description="0 or -1: all.")]
Beams = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]


class Sent(BaseModel):
    """Strict, and nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Sent):
    include_usage: bool | None = None


class Sampling(Sent):
    """How to write: the fields that completions and chat completions share."""

    model: ModelId
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_NEW_TOKENS)] = 0
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=100, allow_inf_nan=False)] | None = None
    num_beams: Beams | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    seed: Seed | None = None
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Name | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(Sampling):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


class TextPart(Sent):
    type: Literal["text"]
    text: Text


class ChatMessage(Sent):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Name | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]


class ResponseFormat(Sent):
    type: Literal["text", "json_object"]


class ChatRequest(Sampling):
    messages: Messages
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    target_language: Annotated[str, Field(max_length=32)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, Name], Field(max_length=16)] | None = None
    service_tier: Literal["auto", "default"] | None = None


class EmbeddingsRequest(Sent):
    model: ModelId
    input: TextToRead | Batch
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    too_long: Literal["error", "truncate", "split"] = "error"
    user: Name | None = None


class TokenizeRequest(Sent):
    """Either a prompt or messages."""

    model: ModelId
    prompt: Text | None = None
    messages: Messages | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class RewriteRequest(Sent):
    model: ModelId
    input: TextToRead | Batch
    num_beams: Beams | None = None
    n_best: Beams = 1
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=64)] = 0
    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    seed: Seed | None = 0


class TranslateRequest(RewriteRequest):
    target_language: Annotated[str, Field(max_length=32)] = ""


class SummarizeRequest(RewriteRequest):
    pass


class AlignRequest(Sent):
    """A text and what was written of it, as the model's own answers have them."""

    model: ModelId
    input: TextToRead
    output: TextToRead
    target_language: Annotated[str, Field(max_length=32)] = ""


class AttentionRequest(Sent):
    """A text; of a model that reads one text and writes another, what it wrote too."""

    model: ModelId
    input: TextToRead
    output: TextToRead | None = None
    target_language: Annotated[str, Field(max_length=32)] = ""
    layer: Annotated[int, Field(ge=0, le=1023, description="This one only, counted from 0.")] | None = None


class ClassifyRequest(Sent):
    model: ModelId
    input: TextToRead | Batch


class ExplainRequest(Sent):
    model: ModelId
    input: Annotated[str, Field(min_length=1, max_length=MOST_EXPLAINED)]
    method: Literal["auto", "integrated_gradients", "contributions", "rollout"] = "auto"
    label: Name | None = None
    nearest: Annotated[int, Field(ge=0, le=10, description="So many training texts that are like it.")] = 0


class LoadRequest(Sent):
    """The name of a folder in the server's root."""

    model: ModelId
