"""Reads split between two databases that answer differently, so that the answer tells which one was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import WireClient

TABLES = ("t", "u")


@pytest.fixture
def databases(database_pair: tuple[Database, Database]) -> tuple[Database, Database]:
    """The shared database, where every v is 'shared', and the service's own, where it is 'copy'."""
    for database, name in zip(database_pair, ("shared", "copy"), strict=True):
        database.create_app()
        database.execute(
            f"CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL DEFAULT '{name}');"
            "CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE other (id int);"
            "INSERT INTO t SELECT generate_series(1, 10)"
        )
    return database_pair


@contextmanager
def moving(databases: tuple[Database, Database], reads_percent: int = 100) -> Iterator[RunningRelay]:
    with RunningRelay(*databases, tables=TABLES, reads_percent=reads_percent) as relay:
        yield relay


@contextmanager
def client_of(relay: RunningRelay) -> Iterator[WireClient]:
    with WireClient(relay.connect()) as client:
        yield client.log_in("app", relay.shared.dbname)


def asked(client: WireClient, sql: str = "SELECT v FROM t WHERE id = 1") -> str | None:
    return client.value(sql)
