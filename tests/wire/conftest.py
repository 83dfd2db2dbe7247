"""A relay in front of one database, and raw clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import WireClient

Connect = Callable[..., WireClient]


@pytest.fixture
def relay(database: Database) -> Iterator[RunningRelay]:
    """Pool of two links, so that sessions have to share."""
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i"
    )
    with RunningRelay(database, config={"pools": {"default_pool_size": 2}}) as running:
        yield running


@pytest.fixture
def connect(relay: RunningRelay) -> Iterator[Connect]:
    """Makes logged-in raw clients of `relay`; they are closed at the end."""
    with ExitStack() as stack:

        def make(**parameters: str) -> WireClient:
            client = stack.enter_context(WireClient(relay.connect()))
            return client.log_in(relay.shared.server.user, relay.shared.dbname, **parameters)

        yield make


@pytest.fixture
def trusted(relay: RunningRelay) -> Iterator[tuple[str, int]]:
    """(host, port) of the same PostgreSQL without a password, for raw clients that speak to it directly."""
    server = relay.shared.server
    with LoginForwarder(server.host, server.port, server.user, server.password) as forwarder:
        yield forwarder.address
