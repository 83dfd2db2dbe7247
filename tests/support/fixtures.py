"""Fixtures with real PostgreSQL: one or two servers a run, a database of its own for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pg8000.native import Connection

from pgshunt.demo.postgres import Server, Servers

LOGICAL = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "200",
}


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test, on a server that the tests share."""

    server: Server
    dbname: str

    def execute(self, sql: str, **parameters: Any) -> list[list[Any]]:
        return self.server.execute(sql, self.dbname, **parameters)

    def create_app(self) -> None:
        """The role that RunningRelay's clients are, unless another test on this server has made it."""
        self.execute(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app') THEN"
            " CREATE ROLE app LOGIN SUPERUSER PASSWORD 'app'; END IF; END $$"
        )

    def connect(self, user: str = "", password: str = "") -> Connection:
        return self.server.connect(self.dbname, user, password)

    def dsn(self, user: str = "", password: str = "") -> str:
        return self.server.dsn(self.dbname, user, password)


StartServer = Callable[[str], Server]


@pytest.fixture(scope="session")
def start_server() -> Iterator[StartServer]:
    """Starts servers of the run: installed or embedded binaries, or containers with POSTGRES=docker."""
    if os.environ.get("POSTGRES") == "docker":
        from support.docker import DockerServers

        with DockerServers() as containers:
            yield lambda name: containers.start(name, LOGICAL)
    else:
        with Servers() as servers:
            yield lambda name: servers.start(name, LOGICAL)


@pytest.fixture(scope="session")
def postgres(start_server: StartServer) -> Server:
    """One server with wal_level=logical for the whole run."""
    return start_server("first")


@pytest.fixture(scope="session")
def postgres_pair(postgres: Server, start_server: StartServer) -> tuple[Server, Server]:
    """Two servers, the first of them `postgres`: a shared database and one to move to."""
    return postgres, start_server("second")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Servers that a test may start, stop, kill and replicate for itself; they need local binaries."""
    if os.environ.get("POSTGRES") == "docker":
        pytest.skip("stops and replicates servers itself: not with POSTGRES=docker")
    with Servers() as own:
        yield own


@pytest.fixture
def database(postgres: Server) -> Iterator[Database]:
    """An empty database for one test."""
    yield from _own_database(postgres)


@pytest.fixture
def database_pair(postgres_pair: tuple[Server, Server]) -> Iterator[tuple[Database, Database]]:
    """An empty database on each server of the pair, under the same name."""
    first, second = (_own_database(server, name) for name in [next(_names)] for server in postgres_pair)
    yield from zip(first, second, strict=True)


_names = (f"test_{number}" for number in itertools.count())


def _own_database(server: Server, dbname: str = "") -> Iterator[Database]:
    database = Database(server, dbname or next(_names))
    server.execute(f"CREATE DATABASE {database.dbname} TEMPLATE template0")
    try:
        yield database
    finally:
        server.execute(f"DROP DATABASE {database.dbname} WITH (FORCE)")
