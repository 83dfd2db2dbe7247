"""Sessions append to lists of two owners and read them back, each alone and both at once.

One service has moved (`switched`): it owns its list in its own database, and the reverse lane keeps a copy
on the shared one. Another one is `reading`: its list is owned by the shared database, and a lane keeps a copy
in the same database of its own, read by weight, and by statements that need it beside the first one's. What
is read must be a prefix of what the list holds in the end, and must hold whatever the reader was told it has
appended; what was refused in a transaction must not be there.
Where copies are said to be fresh when they are not, the checker must find that.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psycopg
import pytest
from support.fixtures import LOGICAL, Database
from support.lists import History, items
from support.relay import RunningRelay

from pgshunt.demo.postgres import Servers
from pgshunt.routing.table import Service

KEYS = 2
SESSIONS = 4
RUN_S = 2.0
BEAT_S = 0.03
OWN = 1
"""Endpoint index of the services' own database; 0 is the shared one."""

NOTES = Service(
    "notes", "svc_db", ("public.notes",), stage="reading", reads_percent=50, copied=("public.notes",)
)


class Session(threading.Thread):
    """One client, whose lists are (table, key)."""

    def __init__(self, number: int, history: History, relay: RunningRelay) -> None:
        super().__init__(name=f"session {number}", daemon=True)
        self._random = random.Random(number)
        self._next = number
        self._history = history
        self._connection = psycopg.connect(relay.dsn("app", "app"), autocommit=True, prepare_threshold=2)
        self._own: dict[object, set[int]] = {
            (table, key): set() for table in ("lists", "notes") for key in range(KEYS)
        }
        self.refused = 0
        self.together = 0

    def run(self) -> None:
        until_s = time.monotonic() + RUN_S
        try:
            while time.monotonic() < until_s:
                key = self._random.randrange(KEYS)
                table, other = self._random.sample(("lists", "notes"), 2)
                # Now and then nobody writes, so that copies are fresh enough for everybody.
                writing = time.monotonic() % 0.7 < 0.3
                self._random.choice(self._actions(table, other, key)[: None if writing else 2])()
        except psycopg.Error as error:
            self._history.errors.append(repr(error))
        finally:
            self._connection.close()

    def _actions(self, table: str, other: str, key: int) -> list:  # type: ignore[type-arg]
        return [
            lambda: self._read(table, key),
            lambda: self._tolerate(lambda: self._read_both(table, other, key)),
            lambda: self._append(table, key),
            lambda: self._tolerate(lambda: self._append_and_look(table, other, key)),
            lambda: self._cross(table, other, key),
        ]

    def _tolerate(self, action) -> None:  # type: ignore[no-untyped-def]
        """A copy that is not fresh enough is no reason for a wrong answer."""
        try:
            action()
            self.together += 1
        except psycopg.errors.FeatureNotSupported as refusal:
            assert "is known to hold all that was written" in str(refusal)
            self.refused += 1

    def _read(self, table: str, key: int) -> None:
        must = set(self._own[table, key])
        row = self._connection.execute(f"SELECT items FROM {table} WHERE key = %s", [key]).fetchone()
        self._saw(row, (table, key, must))

    def _read_both(self, table: str, other: str, key: int) -> None:
        musts = [(name, key, set(self._own[name, key])) for name in (table, other)]
        row = self._connection.execute(
            f"SELECT a.items, b.items FROM {table} a JOIN {other} b USING (key) WHERE key = %s", [key]
        ).fetchone()
        self._saw(row, *musts)

    def _append(self, table: str, key: int) -> None:
        value = self._value()
        self._connection.execute(
            f"UPDATE {table} SET items = items || %s::text WHERE key = %s", [f",{value}", key]
        )
        self._told(table, key, value)

    def _append_and_look(self, table: str, other: str, key: int) -> None:
        """A write of one owner's that reads the other's."""
        value = self._value()
        must = set(self._own[other, key])
        row = self._connection.execute(
            f"UPDATE {table} a SET items = a.items || %s::text FROM {other} b"
            " WHERE a.key = b.key AND a.key = %s RETURNING a.items, b.items",
            [f",{value}", key],
        ).fetchone()
        self._saw(row, (table, key, self._own[table, key] | {value}), (other, key, must))
        self._told(table, key, value)

    def _cross(self, table: str, other: str, key: int) -> None:
        """A transaction that writes to both is refused, and leaves nothing."""
        values = self._value(), self._value()
        with pytest.raises(psycopg.errors.FeatureNotSupported), self._connection.transaction():
            for name, value in zip((table, other), values, strict=True):
                self._connection.execute(
                    f"UPDATE {name} SET items = items || %s::text WHERE key = %s", [f",{value}", key]
                )
        for name, value in zip((table, other), values, strict=True):
            self._history.undone[name, key].add(value)

    def _value(self) -> int:
        value, self._next = self._next, self._next + 100
        return value

    def _told(self, table: str, key: int, value: int) -> None:
        self._own[table, key].add(value)
        self._history.told[table, key].add(value)

    def _saw(self, row: tuple[str, ...] | None, *lists: tuple[str, int, set[int]]) -> None:
        assert row is not None
        for text, (table, key, must) in zip(row, lists, strict=True):
            self._history.reads.append(((table, key), items(text), must))


@dataclass(frozen=True, slots=True)
class Beat:
    """A row that is counted up at one end of a lane and looked for at the other."""

    table: str
    source: Database
    target: Database
    target_index: int

    def run(self, relay: RunningRelay, ended: threading.Event) -> None:
        with (
            psycopg.connect(self.source.dsn(), autocommit=True) as source,
            psycopg.connect(self.target.dsn(), autocommit=True) as target,
        ):
            count = 0
            while not ended.wait(BEAT_S):
                moment_ns = time.monotonic_ns()
                row = source.execute(f"UPDATE {self.table} SET count = count + 1 RETURNING count").fetchone()
                count = row[0] if row else 0
                while not ended.is_set():
                    seen = target.execute(f"SELECT count FROM {self.table}").fetchone()
                    if seen is not None and seen[0] >= count:
                        relay.board.freshness[self.target_index] = moment_ns
                        break


@dataclass(frozen=True, slots=True)
class Lanes:
    shared: Database
    own: Database

    def owner(self, table: str) -> Database:
        return self.own if table == "lists" else self.shared

    def beats(self) -> tuple[Beat, Beat]:
        return Beat("beat_notes", self.shared, self.own, OWN), Beat("beat_lists", self.own, self.shared, 0)

    def final(self) -> dict[object, list[int]]:
        return {
            (table, key): items(text)
            for table in ("lists", "notes")
            for key, text in self.owner(table).execute(f"SELECT key, items FROM {table}")
        }

    def turn(self, how: str) -> None:
        """ENABLE or DISABLE both lanes."""
        self.shared.execute(f"ALTER SUBSCRIPTION lists {how}")
        self.own.execute(f"ALTER SUBSCRIPTION notes {how}")

    def play(self, relay: RunningRelay, *, standing: bool = False) -> tuple[list[Session], list[str]]:
        """All sessions to their end; what was wrong with what they saw. `standing`: lanes carry nothing."""
        for table in ("lists", "notes"):
            self.owner(table).execute(f"UPDATE {table} SET items = ''")
            for database in (self.shared, self.own):
                relay.wait_for(
                    lambda table=table, database=database: (  # type: ignore[misc]
                        database.execute(f"SELECT count(*) FROM {table} WHERE items <> ''") == [[0]]
                    ),
                    "the lists are empty everywhere",
                )
        if standing:
            self.turn("DISABLE")
        history = History()
        sessions = [Session(number, history, relay) for number in range(1, SESSIONS + 1)]
        for session in sessions:
            session.start()
        for session in sessions:
            session.join()
        self.turn("ENABLE")
        assert len(history.reads) > 100
        return sessions, history.anomalies(self.final())


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    """Two servers with a lane each way: lists come to the shared one, notes to the services' own."""
    with Servers() as servers:
        shared, own = (Database(servers.start(name, LOGICAL), "postgres") for name in ("shared", "own"))
        for database in (shared, own):
            database.create_app()
            for table in ("lists", "notes"):
                database.execute(f"CREATE TABLE {table} (key int PRIMARY KEY, items text NOT NULL)")
                database.execute(f"CREATE TABLE beat_{table} (count int PRIMARY KEY)")
        for table, source, target in (("lists", own, shared), ("notes", shared, own)):
            source.execute(f"INSERT INTO {table} SELECT i, '' FROM generate_series(0, {KEYS - 1}) i")
            source.execute(f"INSERT INTO beat_{table} VALUES (0)")
            source.execute(f"CREATE PUBLICATION {table} FOR TABLE {table}, beat_{table}")
            target.execute(f"CREATE SUBSCRIPTION {table} CONNECTION '{source.dsn()}' PUBLICATION {table}")
        yield Lanes(shared, own)


@contextmanager
def routed(lanes: Lanes) -> Iterator[RunningRelay]:
    with RunningRelay(
        *(lanes.shared, lanes.own),
        tables=("lists",),
        stage="switched",
        external_refs=("notes",),
        others=(NOTES,),
    ) as relay:
        yield relay


@contextmanager
def watched(lanes: Lanes, relay: RunningRelay) -> Iterator[None]:
    """True heartbeats, and weights that change all the time."""
    relay.fresh = False
    ended = threading.Event()
    for index in (0, OWN):
        relay.board.freshness[index] = 0

    def shift() -> None:
        while not ended.wait(0.05):
            relay.reassign(replace(NOTES, reads_percent=random.choice((0, 20, 50, 100))))

    threads = [threading.Thread(target=beat.run, args=(relay, ended), daemon=True) for beat in lanes.beats()]
    threads.append(threading.Thread(target=shift, daemon=True))
    for thread in threads:
        thread.start()
    try:
        relay.wait_for(lambda: all(relay.board.freshness[index] for index in (0, OWN)), "both are fresh")
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_session_never_reads_less_than_it_wrote_at_any_owner(lanes: Lanes) -> None:
    with routed(lanes) as relay, watched(lanes, relay):
        sessions, anomalies = lanes.play(relay)
        assert anomalies == []
        assert sum(session.together for session in sessions) > 20
        assert sum(session.refused for session in sessions) > 0
        for key in (
            ("svc", "owner_write", "svc_db"),
            ("notes", "owner_write", "shared"),
            ("notes", "split", "svc_db"),
            (None, "together", "svc_db"),
            (None, "together", "shared"),
            (None, "bound"),
        ):
            assert relay.count("routes", *key) > 0, key


def test_the_checker_finds_what_copies_lack_that_only_claim_to_be_fresh(lanes: Lanes) -> None:
    with routed(lanes) as relay:
        _, anomalies = lanes.play(relay, standing=True)
        assert any("read without" in anomaly for anomaly in anomalies)
