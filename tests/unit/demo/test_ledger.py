"""What the ledger lets an answer hold, for each thing the proxy promises."""

from __future__ import annotations

import pytest

from pgshunt.demo.ledger import Ledger, Value

OWNER, OTHER = 1, 2
KEY = 7


@pytest.fixture
def ledger() -> Ledger:
    """One row at version 1 with no details, known for long; a lag of one second is allowed."""
    ledger = Ledger(lag_ms_max=1000)
    ledger.settle(KEY, Value(1, 0), OWNER, now=0.0)
    return ledger


def test_a_session_must_see_its_own_write_at_once(ledger: Ledger) -> None:
    ledger.attempt(KEY, details=1)
    ledger.acknowledge(KEY, OWNER, now=10.0)
    assert ledger.lowest(KEY, OWNER, now=10.0) == Value(2, 1)


def test_others_may_see_the_old_value_until_the_lag_is_over(ledger: Ledger) -> None:
    ledger.attempt(KEY, details=0)
    ledger.acknowledge(KEY, OWNER, now=10.0)
    assert ledger.lowest(KEY, OTHER, now=10.9) == Value(1, 0)
    assert ledger.lowest(KEY, OTHER, now=11.1) == Value(2, 0)
    assert ledger.highest(KEY) == Value(2, 0)


def test_a_write_may_be_seen_from_the_moment_it_is_sent(ledger: Ledger) -> None:
    ledger.attempt(KEY, details=1)
    assert (ledger.lowest(KEY, OWNER, now=10.0), ledger.highest(KEY)) == (Value(1, 0), Value(2, 1))


def test_a_rolled_back_write_must_not_be_seen(ledger: Ledger) -> None:
    ledger.attempt(KEY, details=1)
    ledger.undo(KEY)
    assert ledger.highest(KEY) == Value(1, 0)


def test_a_lost_commit_may_be_there_or_not_until_its_owner_looks(ledger: Ledger) -> None:
    ledger.attempt(KEY, details=1)
    ledger.doubt(KEY)
    assert ledger.is_doubtful(KEY)
    assert (ledger.lowest(KEY, OTHER, now=99.0), ledger.highest(KEY)) == (Value(1, 0), Value(2, 1))
    ledger.settle(KEY, Value(1, 0), OWNER, now=100.0)
    assert not ledger.is_doubtful(KEY)
    assert ledger.highest(KEY) == Value(1, 0)


def test_many_writes_in_one_lag_leave_each_reader_its_own_bound(ledger: Ledger) -> None:
    for tenth in range(1, 21):
        ledger.attempt(KEY, details=0)
        ledger.acknowledge(KEY, OWNER, now=10.0 + tenth / 10)
    assert ledger.lowest(KEY, OWNER, now=12.0) == Value(21, 0)
    assert ledger.lowest(KEY, OTHER, now=12.05) == Value(
        11, 0
    )  # written at 11.0, the last one over a second old
