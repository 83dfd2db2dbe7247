"""The servers that the demo and the tests run on: they start, fail and leave as they say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pg8000.exceptions
import psycopg
import pytest
from support.fixtures import Database

from pgshunt.demo import binaries as found
from pgshunt.demo.binaries import PostgresNotFound, copy_binaries, examine, find_binaries
from pgshunt.demo.postgres import Server, ServerFailed, Servers

STARTED_AND_ABANDONED = """
import os, sys
from pgshunt.demo.postgres import Servers
servers = Servers()
server = servers.start("abandoned")
print(servers.directory, server.port, flush=True)
if sys.argv[1] == "SIGKILL":
    os.kill(os.getpid(), 9)
"""


def wait_until_gone(path: Path, timeout_s: float = 10) -> bool:
    """The watchdog is another process, whose last act is to remove the directory; polled until then."""
    deadline = time.monotonic() + timeout_s
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not path.exists()


@pytest.fixture
def empty_search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets find_binaries see only the directories given."""

    def only(**places: list[Path]) -> None:
        for place in ("_installed", "_on_path", "_embedded"):
            monkeypatch.setattr(found, place, partial(iter, places.get(place, [])))

    monkeypatch.delenv("PGSHUNT_PG_BIN", raising=False)
    return only


def test_a_named_installation_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    [embedded, *_] = found._embedded()
    monkeypatch.setenv("PGSHUNT_PG_BIN", str(embedded))
    assert find_binaries().directory == embedded


def test_a_named_installation_that_is_none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSHUNT_PG_BIN", str(tmp_path))
    with pytest.raises(PostgresNotFound, match=f"PGSHUNT_PG_BIN={tmp_path}"):
        find_binaries()


def test_the_embedded_one_serves_where_none_is_installed(empty_search: Callable[..., None]) -> None:
    embedded = list(found._embedded())
    empty_search(_embedded=embedded)
    assert find_binaries(18).version == 18
    assert find_binaries().directory in embedded


def test_nothing_found_says_what_to_do(empty_search: Callable[..., None]) -> None:
    empty_search()
    with pytest.raises(PostgresNotFound, match="PGSHUNT_PG_BIN"):
        find_binaries()


def test_the_server_takes_scram_and_refuses_a_wrong_password(postgres: Server) -> None:
    assert postgres.execute("SHOW wal_level") == [["logical"]]
    with pytest.raises(pg8000.exceptions.DatabaseError, match="28P01"):
        postgres.connect(password="wrong")
    with psycopg.connect(postgres.dsn()) as connection:
        assert connection.execute("SELECT current_setting('server_encoding'), 1").fetchone() == ("UTF8", 1)


def test_trust_asks_for_no_password(servers: Servers) -> None:
    server = servers.start("trusting", method="trust")
    assert server.connect(password="anything").run("SELECT 1") == [[1]]


def test_every_server_has_an_identity_of_its_own(postgres_pair: tuple[Server, Server]) -> None:
    first, second = (
        server.execute("SELECT system_identifier FROM pg_control_system()") for server in postgres_pair
    )
    assert first != second


def test_each_test_has_a_database_of_its_own(
    database_pair: tuple[Database, Database], database: Database
) -> None:
    first, second = database_pair
    assert first.dbname == second.dbname != database.dbname
    for each in (first, second, database):
        each.execute("CREATE TABLE t (id int)")
        assert each.execute("SELECT count(*) FROM t") == [[0]]


def test_a_replica_streams_and_refuses_writes(servers: Servers) -> None:
    primary = servers.start("primary")
    replica = servers.replica(primary, "replica")
    primary.execute("CREATE TABLE t (id int)")
    primary.execute("INSERT INTO t VALUES (1)")
    [[position]] = primary.execute("SELECT pg_current_wal_lsn()::text")
    replica.execute(f"DO $$ BEGIN WHILE pg_last_wal_replay_lsn() < '{position}' LOOP END LOOP; END $$")
    assert replica.execute("SELECT id FROM t") == [[1]]
    with pytest.raises(pg8000.exceptions.DatabaseError, match="25006"):
        replica.execute("INSERT INTO t VALUES (2)")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_committed_data_and_the_port_survive_an_end_of_the_server(servers: Servers, end: str) -> None:
    server = servers.start(f"ended_by_{end}")
    server.execute("CREATE TABLE t AS SELECT 1 AS id")
    port = server.port
    getattr(server, end)()
    assert server.pid is None
    with pytest.raises(pg8000.exceptions.InterfaceError):
        server.execute("SELECT 1")
    server.start()
    assert (server.port, server.execute("SELECT id FROM t")) == (port, [[1]])


def test_alter_system_wins_over_the_settings(servers: Servers) -> None:
    server = servers.start("altered", {"work_mem": "5MB"})
    server.execute("ALTER SYSTEM SET work_mem = '6MB'")
    server.restart()
    assert server.execute("SHOW work_mem") == [["6MB"]]


def test_a_server_that_cannot_start_says_why(servers: Servers) -> None:
    with pytest.raises(ServerFailed, match="no_such_setting"):
        servers.start("broken", {"no_such_setting": "1"})


@pytest.mark.parametrize("end", ["SIGKILL", "exit"])
def test_nothing_stays_when_the_process_ends_without_closing(end: str) -> None:
    run = subprocess.run([sys.executable, "-c", STARTED_AND_ABANDONED, end], capture_output=True, text=True)
    directory, port = run.stdout.split()
    assert run.returncode == (-signal.SIGKILL if end == "SIGKILL" else 0), run.stderr
    assert wait_until_gone(Path(directory))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as somebody else")
def test_binaries_that_the_account_cannot_read_are_copied(tmp_path: Path) -> None:
    [embedded, *_] = map(examine, found._embedded())
    assert embedded is not None
    hidden = copy_binaries(embedded, tmp_path)
    tmp_path.chmod(0o700)
    with Servers(hidden) as servers:
        assert servers.binaries.directory.is_relative_to(servers.directory)
        assert servers.start("copied").execute("SELECT 1") == [[1]]
