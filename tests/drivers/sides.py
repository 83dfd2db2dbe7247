"""Runs one programme of a driver directly and through the proxy, and compares what it saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from support.fixtures import Database

SESSIONS = 5  # at once, on the two links of the proxy's pool
WITHIN_S = 30.0

SCHEMA = """
CREATE TYPE mood AS ENUM ('calm', 'busy', 'élan');
CREATE TYPE place AS (x int, y numeric, label text);
CREATE TABLE account (
    session int, id int, owner text NOT NULL, balance numeric(12, 2) NOT NULL DEFAULT 0 CHECK (balance >= 0),
    PRIMARY KEY (session, id)
);
CREATE TABLE document (
    session int, id int, body jsonb, tags text[], blob bytea, written timestamptz, feeling mood, spot place,
    ratio float8, token uuid, span int4range,
    PRIMARY KEY (session, id)
);
CREATE FUNCTION announce(words text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'heard: %', words; RETURN length(words); END $$;
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One session's share of a comparison: where it connects, and which rows are its own."""

    host: str
    port: int
    user: str
    password: str
    database: Database
    number: int  # stands in the column `session` of its rows

    @property
    def keywords(self) -> dict[str, Any]:
        """What every driver here takes but for the database's name."""
        return {"host": self.host, "port": self.port, "user": self.user, "password": self.password}

    def until_running(self, mark: str) -> None:
        """Returns when the server runs a statement that contains `mark`."""
        connection = self.database.connect()
        try:
            deadline = time.monotonic() + WITHIN_S
            while not connection.run(
                "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND position(:mark in query) > 0"
                " AND pid <> pg_backend_pid()",
                mark=mark,
            ):
                if time.monotonic() > deadline:
                    raise AssertionError(f"no statement with {mark!r} ran within {WITHIN_S} s")
        finally:
            connection.close()


Programme = Callable[[Run], Any]


@dataclass(frozen=True, slots=True)
class Sides:
    """PostgreSQL itself, and the proxy in front of it at `proxy_port`."""

    database: Database
    proxy_port: int

    def compare(self, programme: Programme, at_once: int = SESSIONS) -> None:
        """Fails unless each session sees through the proxy, beside others, what it sees directly, alone."""
        direct = self._answers(programme, self.database.server.port, at_once=1)
        assert all(direct), "PostgreSQL said nothing: the programme proves nothing"
        assert self._answers(programme, self.proxy_port, at_once) == direct

    def run(self, port: int, number: int = 0) -> Run:
        server = self.database.server
        return Run("127.0.0.1", port, server.user, server.password, self.database, number)

    def _answers(self, programme: Programme, port: int, at_once: int) -> list[Any]:
        self.database.execute("TRUNCATE account, document")
        self.database.execute(
            "INSERT INTO account SELECT session, id, 'owner ' || id, id * 10"
            f" FROM generate_series(0, {SESSIONS - 1}) session, generate_series(1, 20) id"
        )
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(programme, (self.run(port, number) for number in range(SESSIONS))))
