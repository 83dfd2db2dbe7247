"""Sequences that once went wrong, compared with PostgreSQL one by one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import chain

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    Frame,
    WireClient,
    bind,
    close,
    copy_data,
    describe,
    execute,
    kinds,
    parse,
    sqlstate,
)

from pgshunt.protocol import messages


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


SEQUENCES = {
    "Close first, then Parse, in one batch": [
        [parse("a", "SELECT 1"), SYNC],
        [close("S", "a"), parse("a", "SELECT 2"), bind("", "a"), execute(), SYNC],
    ],
    "a Parse that the server skipped left no name": [
        [parse("b", "SELECT 1"), SYNC, close("S", "b"), SYNC],
        [parse("a", "SELECT nope"), parse("b", "SELECT 1"), SYNC],
        [bind("", "b"), execute(), SYNC],
        [parse("b", "SELECT 1"), bind("", "b"), execute(), SYNC],
    ],
    "a Close that the server skipped closed nothing": [
        [parse("a", "SELECT 1"), SYNC],
        [parse("x", "SELECT nope"), close("S", "a"), SYNC],
        [bind("", "a"), execute(), SYNC],
    ],
    "an unnamed Parse that the server skipped replaced nothing": [
        [parse("", "SELECT 'kept'"), SYNC],
        [bind("", "nope"), parse("", "SELECT 'lost'"), SYNC],
        [bind("", ""), execute(), SYNC],
    ],
    "a failed unnamed Parse leaves none": [
        [parse("", "SELECT 1"), SYNC],
        [parse("", "SELECT nope"), SYNC],
        [bind("", ""), execute(), SYNC],
    ],
    "a query that the server skipped dropped nothing": [
        [parse("", "SELECT 'kept'"), SYNC],
        [bind("", "nope"), query("SELECT 1"), SYNC],
        [bind("", ""), execute(), SYNC],
    ],
    "BEGIN as a query drops the unnamed statement": [
        [parse("", "SELECT 1"), SYNC],
        [query("BEGIN")],
        [bind("", ""), execute(), SYNC],
    ],
    "BEGIN by a named statement keeps the unnamed one": [
        [parse("", "SELECT 'kept'"), SYNC, parse("b", "BEGIN"), SYNC],
        [bind("", "b"), execute(), SYNC],
        [bind("", ""), execute(), SYNC],
    ],
    "a known statement parsed in a failed transaction": [
        [parse("a", "SELECT 1"), SYNC, close("S", "a"), SYNC],
        [query("BEGIN"), query("SELECT nope")],
        [parse("a", "SELECT 1"), SYNC],
        [query("ROLLBACK")],
        [bind("", "a"), SYNC],
    ],
    "a known statement whose Parse in a failed transaction was skipped": [
        [parse("a", "SELECT 1"), SYNC, close("S", "a"), SYNC],
        [query("BEGIN"), query("SELECT nope")],
        [bind("", "nope"), parse("a", "SELECT 1"), SYNC],
        [parse("b", "SELECT 1"), bind("", "b"), SYNC],
        [query("ROLLBACK")],
        [parse("c", "SELECT 1"), bind("", "c"), execute(), SYNC],
    ],
    "the unnamed portal of a BEGIN stays": [
        [parse("", "BEGIN"), bind("", ""), execute(), SYNC],
        [query("SELECT nope")],
        [describe("P"), SYNC],
        [query("ROLLBACK"), parse("s", "BEGIN"), SYNC],
        [bind("", "s"), execute(), parse("", "SELECT 1"), execute(), SYNC],
    ],
    "an error keeps the unnamed statement": [
        [
            parse("", "BEGIN"),
            bind("", ""),
            execute(),
            parse("c", "SELECT 1/0"),
            bind("", "c"),
            query("SELECT 1"),
            SYNC,
        ],
        [describe("S"), SYNC],
        [bind("", ""), parse("", "SELECT 1"), SYNC],
        [describe("S"), SYNC],
        [parse("", "SELECT 1"), SYNC],
        [describe("S"), SYNC],
    ],
    "a DISCARD ALL that the server skipped dropped nothing": [
        [parse("a", "SELECT 1"), SYNC, parse("d", "DISCARD ALL"), SYNC],
        [bind("", "nope"), bind("", "d"), execute(), SYNC],
        [bind("", "a"), execute(), SYNC],
        [bind("", "d"), SYNC],
        [bind("", "a"), execute(), SYNC],
        [bind("", "d"), execute(), bind("", "a"), execute(), SYNC],
        [bind("", "a"), execute(), SYNC],
    ],
    "statements that could not be dropped": [
        [parse("a", "SELECT 1"), SYNC, query("BEGIN"), query("DISCARD ALL"), bind("", "a"), SYNC],
        [query("DEALLOCATE ALL"), query("DEALLOCATE a"), bind("", "a"), SYNC],
        [query("ROLLBACK"), bind("", "a"), execute(), SYNC],
        [query("DEALLOCATE ALL; SELECT 1/0"), bind("", "a"), execute(), SYNC],
    ],
    "a statement of SQL's PREPARE is gone with all others": [
        [query("PREPARE a AS SELECT 1"), query("EXECUTE a"), parse("b", "SELECT 2"), SYNC],
        [query("DEALLOCATE ALL"), query("EXECUTE a"), bind("", "b"), SYNC],
        [parse("a", "SELECT 3"), bind("", "a"), execute(), SYNC],
    ],
    "DEALLOCATE by a portal with a name": [
        [parse("a", "SELECT 1"), parse("d", "DEALLOCATE a"), parse("s", "SELECT 2"), SYNC],
        [bind("p", "d"), bind("q", "s"), execute("q"), execute("p"), bind("", "a"), SYNC],
        [
            parse("a", "SELECT 3"),
            bind("p", "s"),
            bind("q", "d"),
            execute("p"),
            bind("", "a"),
            execute(),
            SYNC,
        ],
    ],
    "a name taken, then closed, then bound": [
        [parse("b", "SELECT 1"), SYNC],
        [parse("b", "SELECT 2"), SYNC],
        [close("S", "b"), bind("", "b"), execute(), SYNC],
    ],
    "a name taken, in a failed transaction": [
        [parse("b", "SELECT 1"), SYNC],
        [query("BEGIN"), query("SELECT nope")],
        [parse("b", "ROLLBACK"), SYNC],
        [parse("b", "SELECT 'unfinished"), SYNC],
        [parse("b", "SELECT 2"), SYNC],
    ],
    "a batch behind a failed query, with a query in it": [
        [
            query("ROLLBACK TO s"),
            close("S", "a"),
            parse("a", "SELECT 1"),
            bind("", "a"),
            execute(),
            query("SELECT 2"),
            SYNC,
        ],
    ],
    "two portals, the write bound first": [
        [
            query("BEGIN"),
            parse("", "INSERT INTO f VALUES (7)"),
            bind("p", ""),
            parse("", "SELECT 1"),
            bind("q", ""),
            execute("p"),
            execute("q"),
            SYNC,
            query("COMMIT"),
        ],
    ],
    "a named portal's Execute is not BEGIN": [
        [parse("s", "SELECT 5"), SYNC],
        [parse("", "BEGIN"), bind("p", "s"), execute("p"), SYNC],
    ],
    "late CopyData does not swallow a long Bind": [
        [
            query("SELECT 1"),
            copy_data(b"late"),
            parse("s", "SELECT length($1)"),
            bind("", "s", "z" * 300_000),
            execute(),
            SYNC,
        ],
    ],
    "COPY without data, Close behind it": [
        [parse("c", "COPY f FROM STDIN"), bind("", "c"), execute(), SYNC, close("S", "c"), SYNC],
    ],
    "COPY without data, then a query": [[query("COPY f FROM STDIN"), query("SELECT 1")]],
    "two COPYs in one text": [
        [
            query("COPY f FROM STDIN; COPY f FROM STDIN"),
            copy_data(b"1\n"),
            COPY_DONE,
            copy_data(b"2\n"),
            COPY_DONE,
        ]
    ],
    "COPY fails before its early Sync is read": [
        [query("SET session_replication_role = origin")],
        [parse("", "COPY guarded FROM STDIN"), bind("", ""), execute(), SYNC],
        [query("SELECT 1")],
    ],
    "a COPY refuses its first data, and a Sync follows before the end of it": [
        [
            parse("c", "COPY f FROM STDIN (FORMAT binary)"),
            bind("", "c"),
            execute(),
            copy_data(b"this is no binary data"),
            SYNC,
            COPY_DONE,
            SYNC,
            parse("", "SELECT 1"),
            bind("", ""),
            execute(),
            SYNC,
        ],
    ],
    "a Sync inside a simple query's COPY": [
        [query("COPY f FROM STDIN"), copy_data(b"1\n"), SYNC, copy_data(b"2\n"), COPY_DONE],
        [query("SELECT count(*) FROM f")],
    ],
    "a Sync inside a simple query's COPY that fails, an error behind it": [
        [
            query("COPY f FROM STDIN"),
            copy_data(b"1\n"),
            SYNC,
            b"f\0\0\0\x0benough\0",
            query("SAVEPOINT s"),
            close("S", "a"),
            SYNC,
        ],
    ],
    "a COPY refuses its first data, with a Sync and a long message behind it": [
        [
            query("COPY f FROM STDIN (FORMAT binary)"),
            copy_data(b"this is no binary data"),
            SYNC,
            copy_data(b"x" * 3_000_000),
            COPY_DONE,
            query("SELECT 1"),
        ],
    ],
    "Terminate in an open batch, behind Flush": [[parse("", "SELECT 1"), describe("S"), FLUSH]],
    "Terminate in a COPY": [[query("COPY f FROM STDIN"), copy_data(b"1\n")]],
    "a text with COMMIT in it": [
        [query("BEGIN"), query("INSERT INTO f VALUES (8); COMMIT"), query("SELECT 1")]
    ],
    "an answer longer than the client reads at once, then another": [
        [query("SELECT repeat('x', 300000)"), query("SELECT repeat('y', 300000)"), query("SELECT 3")],
    ],
}


@pytest.fixture
def found(database: Database) -> Database:
    database.execute(
        "CREATE TABLE f (id int); CREATE TABLE guarded (id int);"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON guarded EXECUTE FUNCTION refuse()"
    )
    return database


@pytest.fixture
def relay(found: Database) -> Iterator[RunningRelay]:
    with RunningRelay(found, config={"pools": {"default_pool_size": 2}}) as running:
        yield running


def _hear(port: int, database: Database, turns: list[list[bytes]], *, together: bool) -> list[Frame]:
    """All answers up to the end of the connection; `together`: sent in one piece."""
    frames: list[Frame] = []
    with WireClient(socket.create_connection(("127.0.0.1", port), 10)) as client:
        client.log_in(database.server.user, database.dbname)
        for turn in [list(chain.from_iterable(turns))] if together else turns:
            client.send(*turn)
            if turn is not turns[-1] and not together:
                for _ in range(sum(part == SYNC for part in turn) or len(turn)):
                    frames += client.until_ready()
        client.send(TERMINATE)
        while not frames or frames[-1].kind:
            frames += client.until_ready()
    return frames


@pytest.mark.parametrize("together", [False, True], ids=["turn by turn", "in one piece"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_same_answers(name: str, together: bool, relay: RunningRelay, found: Database) -> None:
    if together and "early Sync" in name:
        pytest.skip(
            "whether the server has read what follows before or after the error cannot be told: 08P01"
        )
    server = found.server
    with LoginForwarder(server.host, server.port, server.user, server.password) as forwarder:
        direct = _hear(forwarder.address[1], found, SEQUENCES[name], together=together)
    found.execute("TRUNCATE f")
    relayed = _hear(relay.port, found, SEQUENCES[name], together=together)
    assert relayed == direct
    relay.wait_for(lambda: relay.call(_at_rest), "no link is left behind")
    assert not [event for event in relay.events if event["kind"] == "fault"]


def _at_rest(relay) -> bool:  # type: ignore[no-untyped-def]
    pools = [pool for state in relay.endpoints for pool in state.pools]
    return relay.clients == 0 and all(pool.links == pool.idle_count for pool in pools)


def test_a_skipped_parse_never_runs_what_another_session_has_left(
    relay: RunningRelay, found: Database
) -> None:
    def connect() -> WireClient:
        return WireClient(relay.connect()).log_in(found.server.user, found.dbname)

    with connect() as holder, connect() as first, connect() as second:
        holder.query("BEGIN")
        holder.query("SELECT 1")  # one of the two links is taken: the others share
        for skipped in (
            [parse("x", "SELECT nope"), parse("", "SELECT 2")],
            [parse("x", "SELECT nope"), query("SELECT 2")],
            [bind("", "nope"), close("S", "")],
        ):
            first.send(parse("", "SELECT 'of the first'"), SYNC)
            first.until_ready()
            second.send(*skipped, SYNC, bind("", ""), execute(), SYNC)
            second.until_ready()
            assert sqlstate(second.until_ready()) == "26000"


def test_what_was_asked_before_nonsense_is_answered_and_the_link_goes_on(
    relay: RunningRelay, found: Database
) -> None:
    for _ in range(5):
        with WireClient(relay.connect()) as client:
            client.log_in(found.server.user, found.dbname)
            client.send(query("SELECT 1"), b"y\0\0\0\x04")
            assert kinds(client.until_ready()) == "TDCZ"
            assert sqlstate(client.until_ready()) == "08P01"
    relay.wait_for(lambda: relay.call(_at_rest), "the links are free")


@pytest.mark.parametrize("kind", [b"B", b"P"])
def test_a_name_without_end_is_refused_before_it_fills_memory(
    kind: bytes, relay: RunningRelay, found: Database
) -> None:
    with WireClient(relay.connect()) as client:
        client.log_in(found.server.user, found.dbname)
        try:
            client.send(kind + (1 << 29).to_bytes(4), b"x" * (4 << 20))
        except ConnectionError:
            return  # Refused so early that there was nobody left to send to.
        assert sqlstate(client.until_ready()) == "08P01"


def test_limits_are_kept_and_nobody_waits_for_ever(found: Database) -> None:
    """One link in all, three identities: each gets its turn."""
    config = {
        "pools": {"default_pool_size": 5, "server_connections": {"total": 1, "reserved": 0, "monitoring": 0}}
    }
    with RunningRelay(found, config=config) as relay:
        clients = [
            WireClient(relay.connect()).log_in(found.server.user, found.dbname, application_name=f"a{number}")
            for number in range(3)
        ]
        for round_number in range(4):
            for client in clients:
                client.send(query(f"SELECT {round_number}"))
            for client in clients:
                assert kinds(client.until_ready()) == "TDCZ"
            assert relay.call(lambda r: r.links_open) <= 1
        for client in clients:
            client.socket.close()


def test_links_that_nobody_needs_are_closed_and_identities_forgotten(found: Database) -> None:
    def pools(relay) -> int:  # type: ignore[no-untyped-def]
        return sum(len(state.pools) for state in relay.endpoints)

    with RunningRelay(found) as relay:
        kept = WireClient(relay.connect()).log_in(found.server.user, found.dbname)
        for number in range(20):
            with WireClient(relay.connect()) as client:
                client.log_in(found.server.user, found.dbname, application_name=f"a{number}")
                client.query("SELECT 1")
        assert relay.call(pools) == 21
        relay.call(lambda r: setattr(r, "idle_ns_max", 0))
        relay.wait_for(lambda: relay.call(lambda r: len(r.links)) == 0, "all links are closed")
        relay.wait_for(lambda: relay.call(pools) <= 1, "identities without sessions are forgotten")
        relay.call(lambda r: setattr(r, "idle_ns_max", 10**12))
        assert kinds(kept.query("SELECT 1")) == "TDCZ"
        assert relay.call(lambda r: r.links_open) == 1
        kept.socket.close()
