"""A window forgets what is too old or too many calls ago, and nothing else."""

from __future__ import annotations

from pgshunt.migration.window import NOTHING, Counts, Window


def test_sums_are_those_of_the_span() -> None:
    window = Window(10.0, 1.0)
    for second in range(30):
        window.add(float(second), Counts(calls=2, slow=1), Counts(calls=1))
    assert window.candidate == Counts(calls=20, slow=10)
    assert window.baseline == Counts(calls=10)
    window.expire(34.0)
    assert window.candidate.calls == 10
    window.expire(100.0)
    assert (window.candidate, window.baseline) == (NOTHING, NOTHING)


def test_counts_of_one_moment_share_a_bucket() -> None:
    window = Window(10.0, 1.0)
    window.add(0.0, Counts(calls=1), NOTHING)
    window.add(0.9, Counts(calls=1), NOTHING)
    window.add(1.0, Counts(calls=1), NOTHING)
    window.expire(10.5)
    assert window.candidate.calls == 1


def test_no_more_than_the_last_calls_are_kept() -> None:
    window = Window(1800.0, 1.0, calls_max=100)
    for second in range(60):
        window.add(float(second), Counts(calls=7), NOTHING)
    assert 100 <= window.candidate.calls < 107
