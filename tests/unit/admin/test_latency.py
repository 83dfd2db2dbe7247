"""Percentiles come out of buckets within their edges, and only the last minute counts."""

from __future__ import annotations

import pytest

from pgshunt.admin.latency import BUCKETS, LastMinute, percentile_ms


def buckets(**counts: int) -> list[int]:
    """buckets(b2=5): five calls in the third bucket."""
    return [counts.get(f"b{index}", 0) for index in range(BUCKETS)]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({}, 0.5, None),
        ({"b0": 10}, 0.5, 0.05),
        ({"b0": 10}, 1.0, 0.1),
        ({"b0": 50, "b1": 50}, 0.5, 0.1),
        ({"b0": 95, "b12": 5}, 0.95, 0.1),
        ({"b0": 94, "b12": 6}, 0.95, 583.333),
        ({"b15": 3}, 0.95, 5000.0),
    ],
)
def test_percentiles(counts: dict[str, int], share: float, expected: float | None) -> None:
    assert percentile_ms(buckets(**counts), share) == expected


def test_the_last_minute_forgets() -> None:
    minute = LastMinute()
    for second in range(90):
        minute.add(float(second), 10, 1 if second < 30 else 0, buckets(b3=10))
    summary = minute.summary(89.5)
    assert (summary.calls, summary.errors, summary.calls_per_s) == (600, 0, 10.0)
    assert summary.p50_ms == 0.75
    assert minute.summary(300.0).calls == 0
    assert minute.summary(300.0).p95_ms is None


def test_the_rate_of_a_young_service_is_taken_over_its_life() -> None:
    minute = LastMinute()
    minute.add(100.0, 20, 0, buckets(b0=20))
    minute.add(102.0, 20, 0, buckets(b0=20))
    assert minute.summary(104.0).calls_per_s == 10.0
