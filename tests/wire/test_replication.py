"""Replication connections: a server connection of their own at the shared primary, passed through unread."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import WireClient, kinds, sqlstate

from pgshunt.demo.postgres import PostgresServer
from pgshunt.protocol import messages

PROGRAM_TIMEOUT_S = 60


@pytest.fixture
def relay(database: Database) -> Iterator[RunningRelay]:
    with RunningRelay(database, config={"pools": {"default_pool_size": 1}}) as running:
        yield running


def walsender(relay: RunningRelay, replication: str = "database") -> WireClient:
    client = WireClient(relay.connect())
    return client.log_in(relay.shared.server.user, relay.shared.dbname, replication=replication)


def program(relay: RunningRelay, name: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A program of PostgreSQL's, run against the relay to its end."""
    server = relay.shared.server
    if not isinstance(server, PostgresServer):
        pytest.skip("the server's programs are not on this machine")
    path = server.binaries.program(name)
    environment = os.environ | {"PGPASSWORD": server.password, "PGAPPNAME": name}
    address = ["-h", "127.0.0.1", "-p", str(relay.port), "-U", server.user]
    return subprocess.run(
        [path, *address, *arguments], env=environment, capture_output=True, timeout=PROGRAM_TIMEOUT_S
    )


@pytest.mark.parametrize("replication", ["true", "database", "on"])
def test_identify_system(replication: str, relay: RunningRelay) -> None:
    with walsender(relay, replication) as client:
        frames = client.query("IDENTIFY_SYSTEM")
        assert kinds(frames) == "TDCZ"
        assert sqlstate(client.query("NO SUCH COMMAND")) == (
            "42601" if replication == "database" else "0A000"
        )
        assert kinds(client.query("IDENTIFY_SYSTEM")) == "TDCZ"


def test_every_replication_client_has_a_server_connection_of_its_own(relay: RunningRelay) -> None:
    """A pool of one link does not hold them up, and they leave nothing behind."""
    clients = [walsender(relay) for _ in range(3)]
    pids = {client.value("SELECT pg_backend_pid()") for client in clients}
    assert len(pids) == 3
    for client in clients:
        client.socket.close()
    counted = f"SELECT count(*) FROM pg_stat_activity WHERE pid IN ({', '.join(map(str, pids))})"
    relay.wait_for(lambda: relay.shared.execute(counted)[0][0] == 0, "their server processes end")
    relay.wait_for(lambda: relay.call(lambda r: r.links_open) == 0, "nothing is counted any more")


def test_logical_changes_stream_both_ways(relay: RunningRelay) -> None:
    """CopyBoth: changes come while the client reports what it has received."""
    relay.shared.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with walsender(relay) as client:
        client.query("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL test_decoding")
        client.send(messages.query(b"START_REPLICATION SLOT s LOGICAL 0/0"))
        assert client.frame().kind == "W"
        relay.shared.execute("INSERT INTO t SELECT generate_series(1, 500)")
        seen = b""
        while b"COMMIT" not in seen:
            frame = client.frame()
            assert frame.kind == "d"
            if frame.body[:1] == b"w":
                seen += frame.body[25:]
                end = frame.body[1:9]
                report = b"r" + end * 3 + bytes(8) + b"\0"
                client.send(b"d" + (len(report) + 4).to_bytes(4) + report)
        assert seen.count(b"INSERT") == 500
        client.send(b"c\0\0\0\x04")
        while (frame := client.frame()).kind == "d":
            continue
        assert [frame.kind, *kinds(client.until_ready())][-1] == "Z"


def test_a_base_backup_goes_through(relay: RunningRelay, tmp_path: Path) -> None:
    done = program(relay, "pg_basebackup", "-D", str(tmp_path / "base"), "-X", "none", "-c", "fast")
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "base" / "PG_VERSION").exists()


def test_a_cancel_reaches_it(relay: RunningRelay) -> None:
    with walsender(relay) as client:
        client.send(messages.query(b"SELECT pg_sleep(60)"))
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = '{}'"
        relay.wait_for(
            lambda: relay.shared.execute(asleep.format(relay.shared.dbname)) == [[1]], "it has begun"
        )
        with relay.connect() as canceller:
            canceller.sendall(messages.cancel_request(client.process_id, client.secret_key))
            assert canceller.recv(1) == b""
        assert sqlstate(client.until_ready()) == "57014"
        assert client.value("SELECT 1") == "1"


def test_who_sends_no_more_still_hears_its_answers(relay: RunningRelay) -> None:
    with walsender(relay) as client:
        client.send(messages.query(b"SELECT pg_sleep(0.05)"), messages.query(b"IDENTIFY_SYSTEM"))
        client.socket.shutdown(socket.SHUT_WR)
        assert kinds(client.until_ready()) == "TDCZ"
        assert kinds(client.until_ready()) == "TDCZ"
        assert client.until_ready()[-1].body == b"closed"
    relay.wait_for(lambda: relay.call(lambda r: (r.clients, r.links_open)) == (0, 0), "both are gone")


def test_what_the_server_refuses_it_says_itself(database: Database) -> None:
    database.execute(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'plain') THEN"
        " CREATE ROLE plain LOGIN PASSWORD 'plain'; END IF; END $$"
    )
    auth = {"method": "trust", "users": [{"name": "plain", "password": "plain"}]}
    with RunningRelay(database, config={"auth": auth}) as relay:
        with WireClient(relay.connect()) as client, pytest.raises(AssertionError, match="42501"):
            client.log_in("plain", database.dbname, replication="true")
        relay.wait_for(lambda: relay.call(lambda r: r.links_open) == 0, "nothing is counted any more")


def test_the_limit_of_connections_holds_for_them_too(database: Database) -> None:
    servers = {"total": 1, "reserved": 0, "monitoring": 0}
    with (
        RunningRelay(database, config={"pools": {"server_connections": servers}}) as relay,
        walsender(relay),
        WireClient(relay.connect()) as second,
        pytest.raises(AssertionError, match="53300"),
    ):
        second.log_in(database.server.user, database.dbname, replication="true")


def test_a_server_that_ends_it_ends_the_client(relay: RunningRelay) -> None:
    with walsender(relay) as client:
        pid = client.value("SELECT pg_backend_pid()")
        relay.shared.execute(f"SELECT pg_terminate_backend({pid})")
        frames = client.until_ready()
        assert sqlstate(frames) == "57P01"
        assert frames[-1].body == b"closed"
