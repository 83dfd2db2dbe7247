"""Through the relay every client gets, byte for byte, what PostgreSQL sends to a direct connection.

`make test` plays the same scripts each time, as many as fit into its time; PARITY_SEEDS=n plays n of them,
from PARITY_SEED (default 1) on, as `make parity` does at length. Both tell how many messages were compared.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from parity.play import Login, count_messages, first_difference, play_direct, play_together
from parity.script import ROWS, make_script
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import Frame, without_tables

from pgshunt.proxy._relay import Relay

FIRST_SEED = int(os.environ.get("PARITY_SEED", "1"))
SEEDS = int(os.environ.get("PARITY_SEEDS", "0"))
SECONDS = 25.0
SEEDS_AT_LEAST = 20
SESSIONS_MAX = 4

CREATE = "".join(
    f"CREATE TABLE {kind}{number} (id int PRIMARY KEY, v text, n int);"
    for number in range(SESSIONS_MAX)
    for kind in "rw"
)
FILL = ";".join(
    f"TRUNCATE {kind}{number};"
    f"INSERT INTO {kind}{number} SELECT i, 'v' || i, i FROM generate_series(1, {ROWS}) i"
    for number in range(SESSIONS_MAX)
    for kind in "rw"
)


@pytest.fixture
def trusted(database: Database) -> Iterator[tuple[str, int]]:
    server = database.server
    with LoginForwarder(server.host, server.port, server.user, server.password) as forwarder:
        yield forwarder.address


def play(
    seed: int, database: Database, trusted: tuple[str, int], copy: Database | None, user: str
) -> tuple[int, int]:
    """Plays one script both ways; returns the messages compared and the reads the copy answered."""
    script = make_script(seed, copied=copy is not None)
    login = Login(user, database.dbname)
    database.execute(FILL)
    direct = [play_direct(session, lambda: _dial(trusted[1]), login) for session in script.sessions]
    expected_rows = _contents(database)
    database.execute(FILL)
    tables = tuple(f"r{number}" for number in range(SESSIONS_MAX)) if copy is not None else ()
    pools = {"pools": {"default_pool_size": script.pool_size}}
    with RunningRelay(database, copy, tables=tables, reads_percent=90, config=pools) as relay:
        relayed = play_together(script, lambda: _dial(relay.port), login)
        relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "all sessions are gone")
        relay.wait_for(lambda: relay.call(_settled), "all links are idle or closed")
        events = [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")]
        split = relay.count("routes", "svc", "split")
        left = relay.call(lambda r: (r.waiting, sum(state.links for state in r.endpoints) - len(r.links)))
    if copy is not None:
        direct, relayed = _without_oids(direct), _without_oids(relayed)
    difference = first_difference(script, direct, relayed)
    assert difference is None, difference
    assert not events, events
    assert left == (0, 0), f"sessions waiting, links counted but not there: {left}"
    assert _contents(database) == expected_rows, "the tables differ"
    return count_messages(relayed), split


def _settled(relay: Relay) -> bool:
    return all(pool.links == pool.idle_count for state in relay.endpoints for pool in state.pools)


def _contents(database: Database) -> list[list[object]]:
    return database.execute(
        " UNION ALL ".join(
            f"SELECT '{kind}{number}' AS name, * FROM {kind}{number}"
            for number in range(SESSIONS_MAX)
            for kind in "rw"
        )
        + " ORDER BY name, id"
    )


def _reproduction(seed: int, copy: Database | None) -> str:
    test = "two_databases" if copy is not None else "one_database"
    return f"to repeat: make parity PARITY_SEED={seed} PARITY_SEEDS=1 ARGS='-k {test}'"


def _dial(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _without_oids(heard: list[list[list[list[Frame]]]]) -> list[list[list[list[Frame]]]]:
    """A table has another OID in each database; RowDescription tells it, and nothing else does."""
    return [
        [[[without_tables(frame) for frame in turn] for turn in turns] for turns in connections]
        for connections in heard
    ]


@dataclass(slots=True)
class Tally:
    scripts: int = 0
    messages: int = 0
    split: int = 0

    def __str__(self) -> str:
        return f"{self.scripts} scripts, {self.messages} messages compared, {self.split} reads from a copy"


def run_seeds(database: Database, trusted: tuple[str, int], copy: Database | None, user: str) -> Tally:
    tally, until = Tally(), time.monotonic() + SECONDS
    while tally.scripts < SEEDS if SEEDS else tally.scripts < SEEDS_AT_LEAST or time.monotonic() < until:
        seed = FIRST_SEED + tally.scripts
        try:
            messages, split = play(seed, database, trusted, copy, user)
        except Exception as failure:
            failure.add_note(_reproduction(seed, copy))
            raise
        tally.scripts += 1
        tally.messages += messages
        tally.split += split
    return tally


@pytest.mark.timeout(0 if SEEDS else 180)
def test_one_database(
    database: Database, trusted: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    database.execute(CREATE)
    tally = run_seeds(database, trusted, None, database.server.user)
    with capsys.disabled():
        print(f" {tally} ", end="")
    assert tally.messages > 50 * tally.scripts


@pytest.mark.timeout(0 if SEEDS else 180)
def test_two_databases(database_pair: tuple[Database, Database], capsys: pytest.CaptureFixture[str]) -> None:
    """Most of the reads that may go to the copy are answered there."""
    shared, copy = database_pair
    for database in database_pair:
        database.create_app()  # the superusers of the two servers have different passwords
        database.execute(CREATE)
        database.execute(FILL)
    server = shared.server
    with LoginForwarder(server.host, server.port, "app", "app") as forwarder:
        tally = run_seeds(shared, forwarder.address, copy, "app")
    with capsys.disabled():
        print(f" {tally} ", end="")
    assert tally.split > 0  # few: most units arrive in pieces, or in transactions, and stay at the owner
