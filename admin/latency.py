"""Answers how a service, and each side of its split, did in the last minute: calls, errors, percentiles.

Decisions are the guard's, from exact counts; percentiles here are read off the workers' buckets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pgshunt.proxy.channel import LATENCY_EDGES_US

SPAN_S = 60.0
SLICE_S = 1.0
BUCKETS = len(LATENCY_EDGES_US) + 1


@dataclass(frozen=True, slots=True)
class Summary:
    """Calls of the last minute, at one side or at both: simple queries, and what ends with a Sync. Those that
    failed are among them. Percentiles in ms, None without calls.
    """

    calls: int
    errors: int
    calls_per_s: float
    p50_ms: float | None
    p95_ms: float | None


@dataclass(slots=True)
class _Slice:
    start_s: float
    calls: int
    errors: int
    buckets: list[int]


class LastMinute:
    """Sums of one side over a sliding minute. Moments are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self._slices: deque[_Slice] = deque()
        self._began_s: float | None = None

    def add(self, now_s: float, calls: int, errors: int, buckets: Sequence[int]) -> None:
        """Takes the counts of one delta; `buckets` as the channel's message has them."""
        self._began_s = now_s if self._began_s is None else self._began_s
        if not self._slices or now_s - self._slices[-1].start_s >= SLICE_S:
            self._slices.append(_Slice(now_s, 0, 0, [0] * BUCKETS))
        last = self._slices[-1]
        last.calls += calls
        last.errors += errors
        for index, count in enumerate(buckets):
            last.buckets[index] += count
        self._expire(now_s)

    def summary(self, now_s: float) -> Summary:
        self._expire(now_s)
        calls = sum(one.calls for one in self._slices)
        buckets = [sum(one.buckets[index] for one in self._slices) for index in range(BUCKETS)]
        since_s = now_s - self._began_s if self._began_s is not None else SPAN_S
        return Summary(
            calls=calls,
            errors=sum(one.errors for one in self._slices),
            calls_per_s=round(calls / min(max(since_s, SLICE_S), SPAN_S), 2),
            p50_ms=percentile_ms(buckets, 0.5),
            p95_ms=percentile_ms(buckets, 0.95),
        )

    def _expire(self, now_s: float) -> None:
        while self._slices and now_s - self._slices[0].start_s >= SPAN_S:
            self._slices.popleft()


def percentile_ms(buckets: Sequence[int], share: float) -> float | None:
    """The value below which `share` of the counted calls lie, taken as evenly spread within a bucket.

    The last bucket has no upper edge: what falls there is reported as its lower one.
    """
    rank = share * sum(buckets)
    if not rank:
        return None
    below = 0
    for index, count in enumerate(buckets):
        if count and below + count >= rank:
            low = LATENCY_EDGES_US[index - 1] if index else 0
            high = LATENCY_EDGES_US[index] if index < len(LATENCY_EDGES_US) else low
            return round((low + (high - low) * (rank - below) / count) / 1000, 3)
        below += count
    return None
