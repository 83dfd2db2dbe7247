"""A session that waits for answers is not woken by a turn it was given before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import SYNC, WireClient, bind, kinds, parse, sqlstate

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error
from pgshunt.proxy._relay import Relay

WITHIN_S = 10


@contextmanager
def stopped(relay: RunningRelay) -> Iterator[None]:
    """The relay's thread stands still: what arrives meanwhile is found in one round."""
    still, go_on = threading.Event(), threading.Event()

    def wait(_: Relay) -> None:
        still.set()
        assert go_on.wait(WITHIN_S)

    waiter = threading.Thread(target=relay.call, args=(wait,))
    waiter.start()
    assert still.wait(WITHIN_S)
    try:
        yield
    finally:
        go_on.set()
        waiter.join()


def wait_until(database: Database, relay: RunningRelay, state: str) -> None:
    """Until the server process that runs, or has run, pg_sleep is in this state."""

    def seen() -> bool:
        rows = database.execute(
            "SELECT state FROM pg_stat_activity WHERE query LIKE '%pg_sleep(0.3)%'"
            " AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        return [state] in rows

    relay.wait_for(seen, f"a server process that is {state}", WITHIN_S)


def test_discard_all_behind_an_answer_of_the_same_round(database: Database) -> None:
    """The link comes back while half of DISCARD ALL is here: the session is to go on with what it has.

    In the same round comes the rest, with a Bind of what the server is about to drop.
    """
    discard = messages.query(b"DISCARD ALL")
    with RunningRelay(database) as relay, WireClient(relay.connect()) as client:
        client.log_in(database.server.user, database.dbname)
        client.send(parse("a", "SELECT 1") + SYNC)
        assert kinds(client.until_ready()) == "1Z"
        client.send(messages.query(b"SELECT pg_sleep(0.3)") + discard[:7])
        wait_until(database, relay, "active")
        with stopped(relay):
            wait_until(database, relay, "idle")
            client.send(discard[7:] + bind("", "a") + SYNC + messages.query(b"SELECT 2"))
        assert kinds(client.until_ready()) == "TDCZ"
        assert kinds(client.until_ready()) == "CZ"
        refused = client.until_ready()
        assert (kinds(refused), sqlstate(refused)) == ("EZ", "26000")
        assert read_error(refused[0].body).message == 'prepared statement "a" does not exist'
        assert kinds(client.until_ready()) == "TDCZ"
