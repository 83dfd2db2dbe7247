"""Peers that read or write slowly cost little memory, and nobody else anything."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import WireClient, bind, execute, kinds, parse, sqlstate

from pgshunt.protocol import messages

MEGABYTE = 1 << 20
GROWTH_BYTES_MAX = 16 * MEGABYTE
RESULT_BYTES = 200 * MEGABYTE

# Reads at most so many bytes of a result of 200 MB, in a process of its own: what it buffers is not ours.
SLOW_READER = """
import socket, sys
port, take = int(sys.argv[1]), int(sys.argv[4])
startup, query = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
client.connect(("127.0.0.1", port))
client.sendall(startup)
seen = b""
while not seen.endswith(b"Z\\0\\0\\0\\5I"):
    seen += client.recv(4096)
client.sendall(query)
while take > 0:
    take -= len(client.recv(min(take, 16384)))
print("waits", flush=True)
sys.stdin.readline()
total = 0
while data := client.recv(1 << 20):
    total += len(data)
    if data.endswith(b"Z\\0\\0\\0\\5I"):
        break
print(total, flush=True)
"""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.fixture
def relay(database: Database) -> Iterator[RunningRelay]:
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads its memory from /proc")
    with RunningRelay(database, config={"pools": {"default_pool_size": 3}}) as running:
        yield running


def startup(relay: RunningRelay) -> bytes:
    return messages.startup_message(
        {b"user": relay.shared.server.user.encode(), b"database": relay.shared.dbname.encode()}
    )


def log_in(relay: RunningRelay) -> WireClient:
    return WireClient(relay.connect()).log_in(relay.shared.server.user, relay.shared.dbname)


def test_a_slow_reader_of_200_megabytes_costs_little_memory(relay: RunningRelay) -> None:
    with log_in(relay) as client:
        client.query("SELECT 1")
    before = resident_bytes()
    query = messages.query(
        f"SELECT repeat('x', 100000) FROM generate_series(1, {RESULT_BYTES // 100_000})".encode()
    )
    arguments = [
        sys.executable,
        "-c",
        SLOW_READER,
        str(relay.port),
        startup(relay).hex(),
        query.hex(),
        str(MEGABYTE),
    ]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "waits\n"
        with log_in(relay) as other:  # everybody else is served while it dawdles
            for _ in range(50):
                assert kinds(other.query("SELECT 1")) == "TDCZ"
        assert resident_bytes() - before < GROWTH_BYTES_MAX
        reader.stdin.write("go on\n")
        reader.stdin.flush()
        assert int(reader.stdout.readline()) > RESULT_BYTES - 2 * MEGABYTE
        assert resident_bytes() - before < GROWTH_BYTES_MAX


def test_pipelined_results_do_not_pile_up_either(relay: RunningRelay) -> None:
    """Two thousand queries in one write, none of the answers read at first."""
    with log_in(relay) as client:
        client.query("SELECT 1")
        before = resident_bytes()
        one = messages.query(b"SELECT repeat('x', 50000)")
        client.send(one * 1000)
        with log_in(relay) as other:
            for _ in range(200):
                assert kinds(other.query("SELECT 1")) == "TDCZ"
        assert resident_bytes() - before < GROWTH_BYTES_MAX
        for _ in range(1000):
            assert kinds(client.until_ready()) == "TDCZ"


def test_three_hundred_clients_that_log_in_byte_by_byte(relay: RunningRelay) -> None:
    before = resident_bytes()
    packet = startup(relay)
    clients = [relay.connect() for _ in range(300)]
    for at in range(len(packet)):
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(packet[at : at + 1])
        if at % 20 == 0:
            with log_in(relay) as other:
                assert kinds(other.query("SELECT 1")) == "TDCZ"
    for client in clients:
        wire = WireClient(client)
        assert kinds(wire.until_ready()).endswith("Z")
        client.close()
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "all are gone")
    assert resident_bytes() - before < GROWTH_BYTES_MAX


def test_an_idle_client_costs_less_than_16_kilobytes(relay: RunningRelay) -> None:
    """Once it has been served too, and its own end, which is in this process, counted with it."""
    with log_in(relay) as client:
        client.query("SELECT 1")
    before = resident_bytes()
    clients = [log_in(relay) for _ in range(300)]
    for client in clients:
        assert kinds(client.query("SELECT 1")) == "TDCZ"
    assert resident_bytes() - before < len(clients) * 16_384
    for client in clients:
        client.socket.close()
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "all are gone")


@pytest.mark.parametrize("kind", ["Q", "P", "B", "d", "F"])
def test_a_gigabyte_announced_and_never_sent(kind: str, relay: RunningRelay) -> None:
    """A hundred clients do it; nothing is set aside for what has not come."""
    before = resident_bytes()
    clients = [log_in(relay) for _ in range(100)]
    for client in clients:
        client.send(kind.encode() + (0x3FFFFF00).to_bytes(4) + b"a\0b\0" + b"SELECT 1")
    with log_in(relay) as other:
        assert kinds(other.query("SELECT 1")) == "TDCZ"
    assert resident_bytes() - before < GROWTH_BYTES_MAX
    for client in clients:
        client.socket.close()
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "all are gone")
    with log_in(relay) as other:
        assert kinds(other.query("SELECT 1")) == "TDCZ"


def test_long_statements_never_finished_have_a_limit_together(relay: RunningRelay) -> None:
    """Each alone is within what is held to be read; the one that would be too much is passed on unread."""
    size = 12 * MEGABYTE
    clients = [log_in(relay) for _ in range(23)]
    for client in clients[:21]:
        client.send(b"Q" + size.to_bytes(4) + b"SELECT 1, '")
        client.send(b"x" * 65536)
    relay.wait_for(lambda: relay.call(lambda r: r.held_bytes) > 21 * size, "all are being received")
    unread = relay.count("routes", "", "unknown")
    assert clients[21].value("SELECT length('" + "x" * size + "')") == str(size)
    assert relay.count("routes", "", "unknown") == unread + 1
    clients[0].socket.close()
    relay.wait_for(lambda: relay.call(lambda r: r.held_bytes) < 21 * size, "one is gone")
    assert clients[22].value("SELECT length('" + "x" * (11 * MEGABYTE) + "')") == str(11 * MEGABYTE)
    assert relay.count("routes", "", "unknown") == unread + 1
    for client in clients:
        client.socket.close()
    relay.wait_for(lambda: relay.call(lambda r: r.held_bytes) == 0, "nothing is held any more")


def test_a_long_statement_that_is_refused_is_no_longer_held(database: Database) -> None:
    pools = {"default_pool_size": 1, "query_wait_timeout_ms": 100}
    with RunningRelay(database, config={"pools": pools}) as relay, log_in(relay) as first:
        first.query("BEGIN; SELECT 1")
        with log_in(relay) as second:
            assert sqlstate(second.query("SELECT '" + "x" * 100_000 + "'")) == "53300"
            assert relay.call(lambda r: r.held_bytes) == 0


def test_more_than_a_gigabyte_is_refused(relay: RunningRelay) -> None:
    with log_in(relay) as client:
        client.send(b"Q" + (0x40000004).to_bytes(4))
        assert sqlstate(client.until_ready()) == "08P01"


def test_a_slow_writer_of_a_long_bind_holds_its_link_only(relay: RunningRelay) -> None:
    with log_in(relay) as client, log_in(relay) as other:
        value = "v" * (3 * MEGABYTE)
        client.send(parse("s", "SELECT length($1)"))
        sent = bind("", "s", value) + execute() + b"S\0\0\0\x04"
        for at in range(0, len(sent), 100_000):
            client.send(sent[at : at + 100_000])
            assert kinds(other.query("SELECT 1")) == "TDCZ"
        frames = client.until_ready()
        assert kinds(frames) == "12DCZ"
        assert frames[2].body.endswith(str(len(value)).encode())
