"""Sessions append to lists and read them back, while replicas lag and weights change.

Every transaction appends a value of its own to a list, or reads one, or both. What is read must be a prefix
of what the list holds in the end, and must hold whatever the reader was told it has appended (with
`causality: service`: whatever anybody was told before the read began). The same is done without pgshunt, with
all at the primary, where the checker must find nothing, and with reads at the replica, where it must.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from support.fixtures import LOGICAL, Database
from support.lists import History, items
from support.moving import endpoint
from support.relay import RunningRelay
from support.serve import until

from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server, Servers
from pgshunt.migration.heartbeat import Heartbeat, Watched

LISTS = 4
SESSIONS = 4
RUN_S = 2.0
DBNAME = "postgres"

Connect = Callable[[], "psycopg.Connection[tuple[str]]"]


class Session(threading.Thread):
    """One client. `writes` and `reads` are its connections: one and the same, unless it splits by itself."""

    def __init__(
        self, number: int, history: History, writes: Connect, reads: Connect | None, of_all: bool
    ) -> None:
        super().__init__(name=f"session {number}", daemon=True)
        self._random = random.Random(number)
        self._next = number
        self._history = history
        self._writes = writes()
        self._reads = reads() if reads is not None else self._writes
        self._of_all = of_all
        self._own: dict[int, set[int]] = {key: set() for key in range(LISTS)}

    def run(self) -> None:
        until_s = time.monotonic() + RUN_S
        try:
            while time.monotonic() < until_s:
                key = self._random.randrange(LISTS)
                # Now and then nobody writes, so that even the delayed replica is fresh enough for everybody.
                writing = time.monotonic() % 0.7 < 0.3
                actions = (self._append, self._read_and_append, self._read, self._read)
                self._random.choice(actions if writing else actions[2:])(key)
        except psycopg.Error as error:
            self._history.errors.append(repr(error))
        finally:
            self._writes.close()
            self._reads.close()

    def _append(self, key: int) -> None:
        self._told(key, self._send(self._writes, key))

    def _read(self, key: int) -> None:
        must = self._must(key)
        row = self._reads.execute("SELECT items FROM lists WHERE key = %s", [key]).fetchone()
        self._saw(key, row, must)

    def _read_and_append(self, key: int) -> None:
        """As an ORM does, in one transaction: it may begin at a copy, and must go on at the owner."""
        must = self._must(key)
        with self._writes.transaction():
            row = self._writes.execute("SELECT items FROM lists WHERE key = %s", [key]).fetchone()
            self._saw(key, row, must)
            value = self._send(self._writes, key)
            row = self._writes.execute("SELECT items FROM lists WHERE key = %s", [key]).fetchone()
            self._saw(key, row, must | {value})
        self._told(key, value)

    def _send(self, connection: psycopg.Connection[tuple[str]], key: int) -> int:
        value, self._next = self._next, self._next + 100
        connection.execute("UPDATE lists SET items = items || %s::text WHERE key = %s", [f",{value}", key])
        return value

    def _told(self, key: int, value: int) -> None:
        self._own[key].add(value)
        self._history.told[key].add(value)

    def _must(self, key: int) -> set[int]:
        return set(self._history.told[key] if self._of_all else self._own[key])

    def _saw(self, key: int, row: tuple[str] | None, must: set[int]) -> None:
        assert row is not None
        self._history.reads.append((key, items(row[0]), must))


@dataclass(frozen=True, slots=True)
class Setup:
    shared: Database
    near: Database
    delayed: Database

    def direct(self, database: Database) -> Connect:
        return lambda: psycopg.connect(database.dsn(), autocommit=True)

    def final(self) -> dict[int, list[int]]:
        return {key: items(text) for key, text in self.shared.execute("SELECT key, items FROM lists")}

    def play(
        self, writes: Connect, reads: Connect | None = None, *, of_all: bool = False
    ) -> tuple[History, list[str]]:
        """All sessions to their end; what they were told, and what was wrong with it."""
        self.shared.execute("UPDATE lists SET items = ''")
        for replica in (self.near, self.delayed):
            until(
                "the lists are empty everywhere",
                lambda replica=replica: (  # type: ignore[misc]
                    replica.execute("SELECT count(*) FROM lists WHERE items <> ''") == [[0]]
                ),
            )
        history = History()
        sessions = [Session(number, history, writes, reads, of_all) for number in range(1, SESSIONS + 1)]
        for session in sessions:
            session.start()
        for session in sessions:
            session.join()
        return history, history.anomalies(self.final())


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    """A primary, a replica, and one that replays 60 ms late; it stands in for a service's own database."""
    with Servers() as servers:
        primary = servers.start("primary", LOGICAL)
        primary.execute("CREATE TABLE lists (key int PRIMARY KEY, items text NOT NULL)")
        primary.execute(f"INSERT INTO lists SELECT i, '' FROM generate_series(0, {LISTS - 1}) i")
        near, delayed = (servers.replica(primary, name) for name in ("near", "delayed"))
        delayed.execute("ALTER SYSTEM SET recovery_min_apply_delay = '60ms'")
        delayed.execute("SELECT pg_reload_conf()")
        yield Setup(*(Database(server, DBNAME) for server in (primary, near, delayed)))


@contextmanager
def routed(setup: Setup, causality: str) -> Iterator[RunningRelay]:
    """A relay over all three, with true heartbeats, whose weights change all the time."""
    server: Server = setup.shared.server
    with RunningRelay(
        setup.shared, setup.delayed, tables=("lists",), reads_percent=50, replicas=(setup.near,)
    ) as relay:
        relay.fresh = False
        relay.shift(50, causality=causality)
        for index in range(3):
            relay.board.freshness[index] = 0

        def publish(index: int, moment_ns: int) -> None:
            relay.board.freshness[index] = moment_ns

        control = Control(user=server.user, password=Secret(server.password))
        heart = Heartbeat(endpoint(setup.shared, "shared"), control, publish, interval_s=0.03)
        heart.watch(
            {
                1: Watched(1, endpoint(setup.near, "shared/1")),
                2: Watched(2, endpoint(setup.delayed, "svc_db")),
            }
        )
        ended = threading.Event()

        def shift() -> None:
            while not ended.wait(0.05):
                relay.shift(random.choice((0, 20, 50, 100)))

        shifting = threading.Thread(target=shift, daemon=True)
        shifting.start()
        try:
            relay.wait_for(lambda: all(relay.board.freshness[index] for index in (1, 2)), "both are fresh")
            yield relay
        finally:
            ended.set()
            shifting.join()
            heart.stop()


def moves_up(relay: RunningRelay, client: psycopg.Connection[tuple[str]]) -> bool:
    """Tries, where a read has just been answered elsewhere than at the owner."""
    read = "SELECT items FROM lists WHERE key = 0"
    client.execute(read)
    if ("route", "shared 100 %") not in client.execute("SHOW pgshunt.route").fetchall():
        with client.transaction():
            client.execute(read)
            client.execute("UPDATE lists SET items = items WHERE key = 0")
    return relay.count("routes", "svc", "moved_up") > 0


@pytest.mark.parametrize("causality", ["session", "service"])
def test_a_session_never_reads_less_than_it_must(setup: Setup, causality: str) -> None:
    with routed(setup, causality) as relay:

        def connect() -> psycopg.Connection[tuple[str]]:
            return psycopg.connect(relay.dsn(), autocommit=True, prepare_threshold=2)

        history, anomalies = setup.play(connect, of_all=causality == "service")
        assert anomalies == []
        assert len(history.reads) > 100
        with connect() as client:
            until("a transaction has moved up", lambda: moves_up(relay, client))
        wanted = ("split", "replica", "not_fresh", "moved_up")
        reasons = {reason: relay.count("routes", "svc", reason) for reason in wanted}
        assert all(reasons.values()), reasons


def test_the_checker_finds_nothing_at_the_primary(setup: Setup) -> None:
    history, anomalies = setup.play(setup.direct(setup.shared), of_all=True)
    assert anomalies == []
    assert len(history.reads) > 100


def test_the_checker_finds_what_a_session_that_splits_by_itself_misses(setup: Setup) -> None:
    _, anomalies = setup.play(setup.direct(setup.shared), setup.direct(setup.delayed))
    assert any("read without" in anomaly for anomaly in anomalies)
