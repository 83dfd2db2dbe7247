"""An explanation says shape, placement, choice and reason."""

from __future__ import annotations

import json

import pytest

from pgshunt.routing.explain import Freshness, Taken, explain, explain_shape
from pgshunt.routing.reason import Reason
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import SHARED, Catalogue, Endpoint, RoutingTable, Service

TABLE = RoutingTable(
    3,
    (
        Endpoint("shared", SHARED, "h", 1, "monolith", "primary"),
        Endpoint("auth_db", "auth_db", "h", 2, "auth", "primary"),
        Endpoint("auth_db/1", "auth_db", "h", 3, "auth", "replica"),
    ),
    (
        Service(
            "auth", "auth_db", ("public.users",), stage="reading", reads_percent=10, copied=("public.users",)
        ),
    ),
)


def test_a_split_read(catalogue: Catalogue) -> None:
    assert explain("SELECT * FROM users ORDER BY now()", TABLE, catalogue).lines() == [
        "shape      read (tells the time)",
        "reads      public.users: owned by auth, on shared, copies in auth_db",
        "candidate  auth_db: 5 %, freshness unknown",
        "candidate  auth_db/1: 5 %, freshness unknown",
        "candidate  shared: 90 %, the owner",
        "route      auth_db or auth_db/1 10 %, shared 90 %",
        "reason     split: A plain read, and a copy holds every table it names.",
        "epoch      3",
    ]


def test_a_write(catalogue: Catalogue) -> None:
    assert explain("UPDATE users SET a = 1 FROM logs", TABLE, catalogue, ("public", "audit")).lines() == [
        "shape      write",
        "reads      audit.logs: nobody's, on shared",
        "writes     public.users: owned by auth, on shared, copies in auth_db",
        "route      shared 100 %",
        "reason     owner_write: A write goes to the owner of what it writes.",
        "epoch      3",
    ]


def test_a_table_that_is_not_there_is_told(catalogue: Catalogue) -> None:
    def says(sql: str, catalogue: Catalogue) -> bool:
        return any("not in the catalogue" in line for line in explain(sql, TABLE, catalogue).lines())

    assert says("SELECT * FROM usres", catalogue)
    assert not says("SELECT * FROM users, pg_class, information_schema.tables", catalogue)
    assert not says("SELECT * FROM users", Catalogue())


@pytest.mark.parametrize(
    ("sql", "pinned"),
    [
        ("CREATE TEMP TABLE fresh (id int)", True),
        ("CREATE TEMP TABLE fresh (id int) ON COMMIT DROP", False),
        ("CREATE TEMP TABLE fresh AS SELECT 1", True),
        ("SELECT 1 AS id INTO TEMP fresh", True),
        ("CREATE TEMP VIEW fresh AS SELECT 1", True),
    ],
)
def test_a_temporary_table_is_the_sessions_own(sql: str, pinned: bool, catalogue: Catalogue) -> None:
    lines = explain(sql, TABLE, catalogue).lines()
    assert "makes      fresh: temporary, this session's own, on shared" in lines
    told = "pinned     temp_table: the session keeps its server connection until that is gone."
    assert (told in lines) is pinned
    assert "mistyped" not in str(lines)


def test_what_is_made_need_not_be_there(catalogue: Catalogue) -> None:
    assert explain("CREATE TABLE fresh (id int)", TABLE, catalogue).lines()[1:3] == [
        "makes      fresh: nobody's, on shared",
        "route      shared 100 %",
    ]
    assert "temporary" in explain("SELECT * FROM pg_temp.fresh", TABLE, catalogue).lines()[1]


@pytest.mark.parametrize(
    ("sql", "shape"),
    [
        ("SET x = 1", "shape      session (sets: x, set)"),
        ("SELECT * FROM users FOR UPDATE", "shape      read (takes locks)"),
    ],
)
def test_nothing_is_said_twice(sql: str, shape: str, catalogue: Catalogue) -> None:
    assert explain(sql, TABLE, catalogue).lines()[0] == shape


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELCT", "unknown"),
        ("BEGIN", "transaction"),
        ("SHOW x", "session"),
        ("SELECT 1", "no_table"),
        ("SELECT ctid FROM users", "server_local"),
        ("SELECT * FROM users /* pgshunt: primary */", "hint"),
        ("SELECT f()", "volatile"),
        ("SELECT * FROM roles", "unowned"),
        ("SELECT * FROM users FOR UPDATE", "locks"),
    ],
)
def test_every_reason_is_told(sql: str, reason: str, catalogue: Catalogue) -> None:
    explained = explain(sql, TABLE, catalogue)
    assert explained.reason == reason
    assert explained.sentence
    assert json.loads(json.dumps(explained.to_dict()))["choice"] == [["shared", 100]]


def test_candidates_are_told_with_their_freshness(catalogue: Catalogue) -> None:
    known = {1: Freshness(0.04), 2: Freshness(2.5, Reason.LATE)}
    explained = explain("SELECT * FROM users", TABLE, catalogue, None, known.__getitem__)
    assert [candidate.sentence for candidate in explained.candidates] == [
        "auth_db: 5 %, 40 ms behind",
        "auth_db/1: 5 %, 2500 ms behind, takes no reads now (late)",
        "shared: 90 %, the owner",
    ]


def test_a_route_that_was_taken_is_told_as_it_was(catalogue: Catalogue) -> None:
    shape = Shape(Kind.READ, frozenset({"public.users"}))
    taken = explain_shape(shape, TABLE, catalogue, taken=Taken(0, Reason.NOT_FRESH, 2))
    assert (taken.choice, taken.reason, taken.epoch) == ((("shared", 100),), "not_fresh", 2)
    assert taken.sentence == Reason.NOT_FRESH.sentence
