"""How much a server takes on: every number that bounds what a stranger can make it do."""

from __future__ import annotations

from dataclasses import dataclass, field

from zhixing.decoding.engine import EngineLimits

LEAST_KEY = 16  # characters of an API key
MOST_PROMPTS = 32  # of one call
MOST_TEXTS = 64  # of a batch
MOST_SAMPLES = 16
MOST_NEW_TOKENS = 65_536
MOST_CHARACTERS = 1 << 20  # of a text; the body's limit comes first
MOST_EXPLAINED = 5_000  # characters of a text to explain: it is read some hundred times
MOST_ATTENDED = 128  # tokens of a text whose attention is shown
MOST_WEIGHTS = 1 << 19  # of all its layers and heads
MOST_RUNS = 200  # trainings that are listed: the newest
MOST_LINES = 5_000  # of measurements in an answer
MOST_METRICS = 64 << 20  # bytes of a run's metrics.jsonl
MOST_STOPS = 16
MOST_MESSAGES = 1_024


@dataclass(frozen=True)
class ServerLimits:
    """Seconds and sizes; those of each model's engine are `engine`."""

    most_body: int = 1 << 20  # bytes
    body_seconds: float = 30.0  # to send a request
    total_seconds: float = 600.0  # to be answered
    write_seconds: float = 60.0  # beyond it, for a client that reads slowly
    drain_seconds: float = 30.0
    most_models: int = 16
    most_connections: int = 2048
    engine: EngineLimits = field(default_factory=EngineLimits)
