"""When a validated write is a match, a mismatch, or undecided."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pgshunt.protocol import messages
from pgshunt.proxy.policy import share
from pgshunt.proxy.recorder import _MODIFIES
from pgshunt.proxy.shadow import CLOSING, OPENING, Shadows
from pgshunt.proxy.verdict import Outcome, Statement, compare, definite
from pgshunt.routing.shape import Kind, Shape

INSERT = Statement(Shape(Kind.WRITE, writes=frozenset({"public.t"})), b"", exact_count=True)
UPDATE = Statement(Shape(Kind.WRITE, writes=frozenset({"public.t"})), b"", exact_count=False)


@pytest.mark.parametrize(
    ("statements", "tags", "error", "target", "result"),
    [
        ([INSERT], [b"INSERT 0 1"], None, Outcome((b"INSERT 0 1",), None, 5), "match"),
        ([UPDATE], [b"UPDATE 1"], None, Outcome((b"UPDATE 0",), None, 5), "undecided"),
        ([INSERT], [b"INSERT 0 2"], None, Outcome((b"INSERT 0 1",), None, 5), "mismatch"),
        ([INSERT], [b"INSERT 0 1"], None, Outcome((), "42P01", 5), "mismatch"),
        ([INSERT], [b"INSERT 0 1"], None, Outcome((), "23514", 5), "mismatch"),
        ([INSERT, UPDATE], [b"INSERT 0 1", b"UPDATE 1"], None, Outcome((), "23514", 5), "mismatch"),
        ([UPDATE], [b"UPDATE 1"], None, Outcome((), "23514", 5), "undecided"),
        ([UPDATE], [b"UPDATE 1"], None, Outcome((), "22003", 5), "undecided"),
        ([UPDATE], [b"UPDATE 1"], None, Outcome((), "42501", 5), "mismatch"),
        (
            [INSERT, UPDATE],
            [b"INSERT 0 1", b"UPDATE 1"],
            None,
            Outcome((b"INSERT 0 1",), "23514", 5),
            "undecided",
        ),
        ([INSERT], [b"INSERT 0 1"], None, Outcome((), "23505", 5), "undecided"),
        ([INSERT], [b"INSERT 0 1"], None, Outcome((), "23503", 5), "undecided"),
        ([INSERT], [b"INSERT 0 1"], None, Outcome((), "55P03", 5), "undecided"),
        ([INSERT], [b"INSERT 0 1"], None, Outcome((), "40001", 5), "undecided"),
        ([INSERT], [], "23505", Outcome((), "23505", 5), "match"),
        ([INSERT], [], "23505", Outcome((b"INSERT 0 1",), None, 5), "undecided"),
        (
            [INSERT, UPDATE],
            [b"INSERT 0 1"],
            None,
            Outcome((b"INSERT 0 1", b"UPDATE 1"), None, 5),
            "undecided",
        ),
        (
            [INSERT, UPDATE],
            [b"INSERT 0 1", b"UPDATE 1"],
            None,
            Outcome((b"INSERT 0 1",), None, 5),
            "undecided",
        ),
    ],
)
def test_verdicts(
    statements: list[Statement], tags: list[bytes], error: str | None, target: Outcome, result: str
) -> None:
    assert compare(statements, tags, error, target).result == result


@pytest.mark.parametrize("sqlstate", ["57014", "53300", "08006", "XX000", "40P01"])
def test_what_says_nothing_about_the_data(sqlstate: str) -> None:
    assert not definite(sqlstate, INSERT)


@pytest.mark.parametrize(("total", "workers"), [(20, 1), (20, 2), (20, 3), (5, 4)])
def test_the_parts_of_a_limit_add_up_to_it(total: int, workers: int) -> None:
    assert sum(share(total, workers, index) for index in range(workers)) == total


def test_every_worker_may_open_at_least_one_link() -> None:
    assert [share(1, 3, index) for index in range(3)] == [1, 1, 1]


def _frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


class Target:
    """Answers each write with the next of `answers`; `sent` is what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.stream = self
        self.sent: list[bytes] = []
        self._answers = iter(answers)

    async def send(self, request: bytes) -> None:
        self.sent.append(request)

    async def receive(self) -> bytes:
        return next(self._answers)


BEGUN = _frame(b"C", b"BEGIN\0") + _frame(b"C", b"SET\0") + _frame(b"C", b"SET\0")
CANCELLED = _frame(b"E", b"SERROR\0C57014\0Mcanceled\0\0")
WRITE = messages.query(b"INSERT INTO t VALUES (1)")
INSERTED = _frame(b"C", b"INSERT 0 1\0") + _frame(b"Z", b"T")
ROLLED_BACK = _frame(b"C", b"ROLLBACK\0")


def _tried(target: Any) -> Outcome:
    nobody: Any = SimpleNamespace()
    statement = Statement(INSERT.shape, WRITE, exact_count=True)
    return asyncio.run(Shadows(nobody, nobody)._run(target, [statement]))


def test_a_write_is_tried_in_a_transaction_that_is_rolled_back() -> None:
    target = Target(BEGUN + _frame(b"Z", b"T"), INSERTED + ROLLED_BACK + _frame(b"Z", b"I"))
    assert _tried(target).tags == (b"INSERT 0 1",)
    assert target.sent == [OPENING, WRITE + CLOSING]


@pytest.mark.parametrize("opened", [CANCELLED + _frame(b"Z", b"I"), BEGUN + CANCELLED + _frame(b"Z", b"E")])
def test_a_write_is_not_sent_where_no_transaction_was_begun(opened: bytes) -> None:
    """BEGIN can be cancelled like any statement: what follows it would stay in the copy."""
    target = Target(opened)
    with pytest.raises(ConnectionAbortedError, match="began no transaction"):
        _tried(target)
    assert target.sent == [OPENING]


def test_a_transaction_that_is_not_known_to_be_rolled_back_ends_with_its_link() -> None:
    target = Target(BEGUN + _frame(b"Z", b"T"), INSERTED + CANCELLED + _frame(b"Z", b"T"))
    with pytest.raises(ConnectionAbortedError, match="has not ended"):
        _tried(target)


def test_comments_before_a_statement_cost_no_more_than_their_length() -> None:
    """Each could end at the end of any later one: twice as many ways with every comment."""
    assert _MODIFIES.match(b"/**/" * 1000 + b"TRUNCATE t") is None
    assert _MODIFIES.match(b"/* a */ -- b\n" * 1000 + b"INSERT INTO t VALUES (1)") is not None
