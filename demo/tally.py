"""Counts what the clients of one service saw: answers, failures, wrong answers, time taken."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KEPT_LATENCIES = 5_000
KEPT_FAILURES = 10_000
KEPT_WRONG = 20

Kind = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class FailedOperation:
    """One operation that a client saw fail. Times are seconds since the epoch, as in the proxy's events."""

    service: str
    operation: str
    sqlstate: str
    message: str
    started_at: float
    ended_at: float


@dataclass(slots=True)
class Tally:
    """Of one service, since it started. `expected` are errors that were asked for, and came."""

    service: str
    driver: str
    ok: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    wrong_examples: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_WRONG))
    failures: deque[FailedOperation] = field(default_factory=lambda: deque(maxlen=KEPT_FAILURES))
    connects: int = 0
    latencies_ms: dict[Kind, deque[float]] = field(
        default_factory=lambda: {"read": deque(maxlen=KEPT_LATENCIES), "write": deque(maxlen=KEPT_LATENCIES)}
    )

    def succeeded(self, operation: str, kind: Kind, started: float) -> None:
        """`started` is time.perf_counter() of before."""
        self.ok[operation] += 1
        self.latencies_ms[kind].append((time.perf_counter() - started) * 1000)

    def failed(self, failure: FailedOperation) -> None:
        self.errors[failure.sqlstate] += 1
        self.failures.append(failure)

    def mistaken(self, what: str) -> None:
        self.wrong += 1
        self.wrong_examples.append(what)

    def to_dict(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "driver": self.driver,
            "ok": sum(self.ok.values()),
            "operations": dict(self.ok),
            "expected_errors": self.expected,
            "errors": dict(self.errors),
            "wrong": self.wrong,
            "wrong_examples": list(self.wrong_examples),
            "connects": self.connects,
            "latency_ms": {kind: percentiles(values) for kind, values in self.latencies_ms.items()},
        }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """The 50th, 95th and 99th percentile and the largest, in the unit of the values; {} of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {name: round(ordered[min(last, int(rank * len(ordered)))], 3) for name, rank in ranks.items()}


def failures_to_dicts(failures: Iterable[FailedOperation]) -> list[dict[str, Any]]:
    return [asdict(failure) for failure in failures]
