"""What touches tables of several owners is counted by shape and caller, without literals; nothing else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import SYNC, WireClient, bind, execute, parse

from pgshunt.demo.postgres import Server
from pgshunt.proxy import crossings

Row = tuple[str, str, tuple[str, ...], tuple[str, ...], str, str]
Play = Callable[[WireClient], None]


@pytest.fixture(scope="module")
def relay(postgres: Server) -> Iterator[RunningRelay]:
    """The service owns t and u; nobody owns other and far. What is counted is told soon."""
    databases = [Database(postgres, f"crossings_{name}") for name in ("shared", "copy")]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(crossings, "SENT_S", 0.05)
        for database in databases:
            postgres.execute(f"CREATE DATABASE {database.dbname} TEMPLATE template0")
            stack.callback(postgres.execute, f"DROP DATABASE {database.dbname} WITH (FORCE)")
            database.create_app()
            database.execute("".join(f"CREATE TABLE {name} (id int);" for name in ("t", "u", "other", "far")))
        with RunningRelay(*databases, tables=("t", "u")) as running:
            yield running


def seen(relay: RunningRelay) -> Counter[Row]:
    """What the worker has told so far."""
    relay.count("calls")
    told: Counter[Row] = Counter()
    for delta in relay.deltas:
        for kind, text, reads, writes, user, name, calls in delta.get("crossings", ()):
            told[kind, text, tuple(reads), tuple(writes), user, name] += calls
    return told


def played(relay: RunningRelay, play: Play) -> Counter[Row]:
    """What is told of a play, and of the one statement behind it that is known to cross."""
    before = seen(relay)
    with WireClient(relay.connect()) as client:
        client.log_in("app", relay.shared.dbname, application_name="shop")
        play(client)
        client.query("TABLE t UNION ALL TABLE far")
    marker = statement("table t union all table far", "far t")
    relay.wait_for(lambda: seen(relay)[marker] > before[marker], "the marker is told")
    told = seen(relay) - before
    assert told.pop(marker) == 1
    return told


def queries(*texts: str) -> Play:
    def play(client: WireClient) -> None:
        for text in texts:
            client.query(text)

    return play


def statement(text: str, reads: str, writes: str = "", name: str = "shop") -> Row:
    return ("statement", text, qualified(reads), qualified(writes), "app", name)


def transaction(text: str, writes: str) -> Row:
    return ("transaction", text, (), qualified(writes), "app", "shop")


def qualified(names: str) -> tuple[str, ...]:
    return tuple(f"public.{name}" for name in names.split())


JOIN = "select t.id from t join other using (id) where id = ?"


@pytest.mark.parametrize(
    ("play", "told"),
    [
        (queries("SELECT * FROM t, u", "SELECT * FROM other, far", "UPDATE t SET id = 1", "SELECT 1"), {}),
        (
            queries(*(f"SELECT t.id FROM t JOIN other USING (id) WHERE id = {i}" for i in range(3))),
            {statement(JOIN, "other t"): 3},
        ),
        (
            queries("INSERT INTO t SELECT id FROM far WHERE id = 4711"),
            {statement("insert into t select id from far where id = ?", "far", "t"): 1},
        ),
        (
            queries("SELECT t.id FROM t JOIN other USING (id) WHERE id = 7 FOR UPDATE"),
            {statement(f"{JOIN} for update", "other t", "other t"): 1},
        ),
        (queries("BEGIN", "UPDATE t SET id = 1", "DELETE FROM u", "COMMIT", "DELETE FROM far"), {}),
        (queries("UPDATE t SET id = 1", "DELETE FROM far", "UPDATE t SET id = 2"), {}),
        (
            queries(
                "BEGIN", "UPDATE t SET id = 8", "TABLE u", "UPDATE u SET id = 1", "DELETE FROM far", "COMMIT"
            ),
            {transaction("update t set id = ?; delete from far", "far t"): 1},
        ),
        (
            queries(*("BEGIN", "DELETE FROM far", "UPDATE t SET id = 9", "ROLLBACK") * 2),
            {transaction("delete from far; update t set id = ?", "far t"): 2},
        ),
        (
            queries("BEGIN", "DELETE FROM far", "COMMIT", "BEGIN", "UPDATE t SET id = 9", "COMMIT"),
            {},
        ),
        (
            queries("DELETE FROM far WHERE id = 5; UPDATE t SET id = 6"),
            {statement("delete from far where id = ?; update t set id = ?", "", "far t"): 1},
        ),
        (
            queries("SET application_name = 'jobs'", "TABLE t UNION TABLE other", "RESET application_name"),
            {statement("table t union table other", "other t", name="jobs"): 1},
        ),
    ],
)
def test_only_what_crosses_is_told(play: Play, told: dict[Row, int], relay: RunningRelay) -> None:
    assert played(relay, play) == told


def test_extended_statements_are_counted_when_they_run(relay: RunningRelay) -> None:
    def play(client: WireClient) -> None:
        client.send(parse("join", "SELECT t.id FROM t JOIN other USING (id) WHERE id = $1"), SYNC)
        client.until_ready()
        for _ in range(3):
            client.send(bind("", "join", "1"), execute(), SYNC)
            client.until_ready()
        # One batch is one transaction; two batches are two, also when both are on their way.
        client.send(parse("", "DELETE FROM t"), bind("", ""), execute())
        client.send(parse("", "DELETE FROM far"), bind("", ""), execute(), SYNC)
        client.until_ready()
        client.send(parse("", "DELETE FROM u"), bind("", ""), execute(), SYNC)
        client.send(parse("", "DELETE FROM other"), bind("", ""), execute(), SYNC)
        client.until_ready()
        client.until_ready()

    assert played(relay, play) == {
        statement("select t.id from t join other using (id) where id = ?", "other t"): 3,
        transaction("delete from t; delete from far", "far t"): 1,
    }


def test_no_more_than_so_many_are_kept_until_they_are_told(
    relay: RunningRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossings, "KINDS_MAX", 8)
    monkeypatch.setattr(crossings, "SENT_S", 0.5)

    def counted() -> int:
        return sum(seen(relay).values()) + sum(delta.get("crossings_dropped", 0) for delta in relay.deltas)

    before, told_before = counted(), len(relay.deltas)
    with WireClient(relay.connect()) as client:
        client.log_in("app", relay.shared.dbname)
        for number in range(100):
            client.query(f"SELECT 1 AS a{number} FROM t, far")
    relay.wait_for(lambda: counted() == before + 100, "all are told or counted as dropped")
    assert {len(delta.get("crossings", ())) for delta in relay.deltas[told_before:]} <= set(range(9))
