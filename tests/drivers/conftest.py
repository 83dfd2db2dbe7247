"""One database and one proxy with a pool of two links for all programmes of a driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from drivers.sides import SCHEMA, Sides
from support.fixtures import Database
from support.relay import RunningRelay

from pgshunt.demo.postgres import Server


@pytest.fixture(scope="module")
def driver_database(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Database]:
    dbname = request.module.__name__.rpartition(".")[2]
    database = Database(postgres, dbname)
    postgres.execute(f"CREATE DATABASE {dbname} TEMPLATE template0")
    database.execute(SCHEMA)
    try:
        yield database
    finally:
        postgres.execute(f"DROP DATABASE {dbname} WITH (FORCE)")


@pytest.fixture(scope="module")
def sides(driver_database: Database) -> Iterator[Sides]:
    with RunningRelay(driver_database, config={"pools": {"default_pool_size": 2}}) as relay:
        yield Sides(driver_database, relay.port)
        assert [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")] == []
