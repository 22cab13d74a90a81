"""What the server counts, in the text format of Prometheus; labels are routes, codes and model ids, never a prompt."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from zhixing.decoding.engine_metrics import BOUNDS, EngineMetrics, Times

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# name, kind, field of EngineMetrics, what it is
OF_ENGINES: tuple[tuple[str, str, str, str], ...] = (
    ("zhixing_requests_waiting", "gauge", "waiting", "requests in the queue"),
    ("zhixing_requests_reading", "gauge", "reading", "requests whose prompts are read"),
    ("zhixing_requests_writing", "gauge", "writing", "requests that write"),
    ("zhixing_jobs_waiting", "gauge", "jobs_waiting", "beam searches, texts to classify or embed in the queue"),
    ("zhixing_slots_used", "gauge", "rows", "rows of the batch that are taken"),
    ("zhixing_slots", "gauge", "most_rows", "rows of the batch"),
    ("zhixing_cache_tokens_reserved", "gauge", "reserved_tokens", "tokens of the caches that are promised"),
    ("zhixing_cache_tokens", "gauge", "most_tokens", "tokens of the caches"),
    ("zhixing_prefix_tokens", "gauge", "prefix_tokens", "tokens kept for prompts that begin alike"),
    ("zhixing_requests_accepted_total", "counter", "accepted", "requests that were let into the queue"),
    ("zhixing_requests_rejected_total", "counter", "rejected", "requests and jobs refused, as the queue was full"),
    ("zhixing_requests_finished_total", "counter", "finished", "requests that came to their end"),
    ("zhixing_requests_aborted_total", "counter", "aborted", "requests whose reader left"),
    ("zhixing_requests_timed_out_total", "counter", "timed_out", "requests that took too long"),
    ("zhixing_requests_failed_total", "counter", "failed", "requests that the engine could not go on with"),
    ("zhixing_jobs_done_total", "counter", "jobs_done", "jobs done"),
    ("zhixing_jobs_failed_total", "counter", "jobs_failed", "jobs that failed"),
    ("zhixing_steps_total", "counter", "steps", "steps of the model"),
    ("zhixing_tokens_in_total", "counter", "tokens_in", "tokens of prompts"),
    ("zhixing_tokens_reused_total", "counter", "tokens_reused", "tokens of prompts that were not read again"),
    ("zhixing_tokens_out_total", "counter", "tokens_out", "tokens written"),
)
CLOCKS: tuple[tuple[str, str, str], ...] = (
    ("zhixing_queue_seconds", "queue_time", "from the request to its first step"),
    ("zhixing_time_to_first_token_seconds", "first_token", "from the request to its first token"),
    ("zhixing_inter_token_seconds", "between_tokens", "between two tokens of a request"),
)


class Counts:
    """Requests by route, method and code, their time, and who left; touched in the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.left = 0  # clients that did not wait for the end
        self._durations = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def add(self, route: str, method: str, code: int, seconds: float) -> None:
        self.requests[route, method, code] += 1
        self._durations[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def times(self) -> Times:
        return Times(tuple(self._durations), self._seconds)


def exposition(counts: Counts, in_flight: int, engines: Sequence[tuple[str, EngineMetrics]]) -> str:
    """All of it as text."""
    lines = _head("zhixing_http_requests_total", "counter", "requests by route, method and code")
    for (route, method, code), count in sorted(counts.requests.items()):
        lines.append(f'zhixing_http_requests_total{{route="{route}",method="{method}",code="{code}"}} {count}')
    lines += _head("zhixing_http_requests_in_flight", "gauge", "requests that are being answered")
    lines.append(f"zhixing_http_requests_in_flight {in_flight}")
    lines += _head("zhixing_http_clients_left_total", "counter", "clients that did not wait for the end")
    lines.append(f"zhixing_http_clients_left_total {counts.left}")
    lines += _head("zhixing_http_request_seconds", "histogram", "from a request to the end of its answer")
    lines += _histogram("zhixing_http_request_seconds", "", counts.times())
    for name, kind, field, told in OF_ENGINES:
        lines += _head(name, kind, told)
        lines += [f'{name}{{model="{model}"}} {getattr(metrics, field)}' for model, metrics in engines]
    for name, field, told in CLOCKS:
        lines += _head(name, "histogram", told)
        for model, metrics in engines:
            lines += _histogram(name, f'model="{model}"', getattr(metrics, field))
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, told: str) -> list[str]:
    return [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]


def _histogram(name: str, labels: str, times: Times) -> Iterable[str]:
    between = "," if labels else ""
    total = 0
    for bound, count in zip((*BOUNDS, "+Inf"), times.counts, strict=True):
        total += count
        yield f'{name}_bucket{{{labels}{between}le="{bound}"}} {total}'
    closed = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{closed} {times.seconds:.6f}"
    yield f"{name}_count{closed} {total}"
