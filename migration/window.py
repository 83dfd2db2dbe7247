"""Sums of what happened at a service's two databases over a sliding stretch of time.

Nothing here reads a clock: every call names the moment (seconds, monotonic), so that a simulation of a
day runs in a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Read calls of one service at one side. Errors and slow calls are among `calls`."""

    calls: int = 0
    infrastructure: int = 0
    application: int = 0
    slow: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.calls + other.calls,
            self.infrastructure + other.infrastructure,
            self.application + other.application,
            self.slow + other.slow,
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.calls - other.calls,
            self.infrastructure - other.infrastructure,
            self.application - other.application,
            self.slow - other.slow,
        )


NOTHING = Counts()


@dataclass(frozen=True, slots=True)
class _Bucket:
    start_s: float
    candidate: Counts
    baseline: Counts


class Window:
    """The last `span_s` seconds, and no more than the last `calls_max` candidate calls, in buckets.

    `candidate` and `baseline` hold the sums. They are exact; only the moment a count leaves the window is
    rounded, to `bucket_s`.
    """

    def __init__(self, span_s: float, bucket_s: float, calls_max: int | None = None) -> None:
        self.span_s = span_s
        self._bucket_s = bucket_s
        self._calls_max = calls_max
        self._buckets: deque[_Bucket] = deque()
        self.candidate = NOTHING
        self.baseline = NOTHING

    def add(self, now_s: float, candidate: Counts, baseline: Counts) -> None:
        """Takes counts that arrived at `now_s`, which never goes back."""
        self.candidate += candidate
        self.baseline += baseline
        last = self._buckets[-1] if self._buckets else None
        if last is not None and now_s - last.start_s < self._bucket_s:
            self._buckets[-1] = _Bucket(last.start_s, last.candidate + candidate, last.baseline + baseline)
        else:
            self._buckets.append(_Bucket(now_s, candidate, baseline))
        self.expire(now_s)

    def expire(self, now_s: float) -> None:
        """Lets go of what is too old, or older than the last `calls_max` calls."""
        while self._buckets and self._is_past(self._buckets[0], now_s):
            oldest = self._buckets.popleft()
            self.candidate -= oldest.candidate
            self.baseline -= oldest.baseline

    def _is_past(self, bucket: _Bucket, now_s: float) -> bool:
        if now_s - bucket.start_s >= self.span_s:
            return True
        return (
            self._calls_max is not None and self.candidate.calls - bucket.candidate.calls >= self._calls_max
        )
