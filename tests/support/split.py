"""Reads split between two databases that answer differently, so that the answer tells which one was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pgshunt.protocol.errors import read_error
from pgshunt.routing.table import Stage
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import SYNC, WireClient, hint, kinds, sqlstate

TABLES = ("t", "u")


@pytest.fixture
def databases(database_pair: tuple[Database, Database]) -> tuple[Database, Database]:
    """The shared database, where every v is 'shared', and the service's own, where it is 'copy'."""
    fill(database_pair)
    return database_pair


def fill(databases: tuple[Database, Database]) -> None:
    for database, name in zip(databases, ("shared", "copy"), strict=True):
        database.create_app()
        database.execute(
            f"CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL DEFAULT '{name}');"
            "CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE other (id int);"
            "INSERT INTO t SELECT generate_series(1, 10)"
        )


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


@contextmanager
def moved(
    databases: tuple[Database, Database],
    stage: Stage = "switched",
    external_refs: tuple[str, ...] = (),
    **more: object,
) -> Iterator[RunningRelay]:
    with RunningRelay(
        *databases,
        tables=TABLES,
        stage=stage,
        external_refs=external_refs,
        **more,  # type: ignore[arg-type]
    ) as relay:
        yield relay


def query(sql: str) -> bytes:
    return b"Q" + (len(sql) + 5).to_bytes(4) + sql.encode() + b"\0"


def batch(client: WireClient, *parts: bytes) -> str:
    client.send(*parts, SYNC)
    return kinds(client.until_ready())


def told(client: WireClient, sql: str) -> tuple[str, str]:
    """Message and hint of a refusal."""
    frames = client.query(sql)
    assert (kinds(frames), sqlstate(frames)) == ("EZ", "0A000")
    return read_error(frames[0].body).message, hint(frames)
