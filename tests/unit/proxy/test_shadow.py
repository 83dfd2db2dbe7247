"""When a validated write is a match, a mismatch, or undecided."""

from __future__ import annotations

import pytest

from pgshunt.proxy.policy import share
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
