"""What TLS allows in the middle of a stream, and what may go wrong there: keys that change, renegotiation, an
end that is announced or not, at any byte.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
from support.certificates import Authority, Pair
from support.fixtures import Database
from support.relay import RunningRelay
from support.tls import Encrypter, Tunnel, needs_key_updates
from support.wire import Frame, WireClient, kinds, sqlstate

from pgshunt.config.model import ServerTls
from pgshunt.demo.postgres import Server
from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("proxy", "proxy", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def shared(postgres: Server) -> Iterator[Database]:
    postgres.execute("CREATE DATABASE tls_streams TEMPLATE template0")
    database = Database(postgres, "tls_streams")
    database.execute("CREATE TABLE written (word text)")
    yield database
    postgres.execute("DROP DATABASE tls_streams WITH (FORCE)")


@pytest.fixture(scope="module")
def relay(shared: Database, pair: Pair) -> Iterator[RunningRelay]:
    tls = {"mode": "prefer", "certificate_file": str(pair.certificate), "key_file": str(pair.key)}
    with RunningRelay(shared, config={"listen": {"tls": tls}}) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_is_left(relay: RunningRelay) -> Iterator[None]:
    """Whatever a client did, the relay has let go of it, and nothing of it was carried out by half."""
    yield
    relay.wait_for(lambda: relay.call(lambda it: it.clients) == 0, "all clients are gone")
    assert relay.shared.execute("SELECT count(*) FROM written")[0][0] == 0


@pytest.fixture
def tunnel(relay: RunningRelay, authority: Authority) -> Iterator[Tunnel]:
    with Tunnel(relay.connect(), authority) as tunnel:
        yield tunnel


def logged_in(tunnel: Tunnel | socket.socket, relay: RunningRelay) -> WireClient:
    client = WireClient(tunnel)  # type: ignore[arg-type]
    return client.log_in(relay.shared.server.user, relay.shared.dbname)


def rows(frames: list[Frame]) -> list[bytes]:
    return [frame.body[6:] for frame in frames if frame.kind == "D"]


# --- keys -------------------------------------------------------------------------------------------------


@needs_key_updates
def test_a_client_may_change_its_keys_at_any_place(tunnel: Tunnel, relay: RunningRelay) -> None:
    client = logged_in(tunnel, relay)
    assert tunnel.end.version() == "TLSv1.3"
    statement = messages.query(b"SELECT repeat('x', 20000) FROM generate_series(1, 30)")
    for at in (0, 3, 5, len(statement) // 2, len(statement)):
        sent = tunnel.sealed(statement[:at]) if at else b""
        sent += tunnel.new_keys() + tunnel.new_keys()
        if at < len(statement):
            sent += tunnel.sealed(statement[at:])
        tunnel.socket.sendall(sent)
        assert rows(client.until_ready()) == [b"x" * 20_000] * 30
    for number in range(100):
        tunnel.socket.sendall(tunnel.new_keys())
        assert client.value(f"SELECT {number}") == str(number)


@needs_key_updates
def test_a_client_changes_its_keys_while_it_is_answered(tunnel: Tunnel, relay: RunningRelay) -> None:
    client = logged_in(tunnel, relay)
    client.send(messages.query(b"SELECT repeat(i::text, 1000) FROM generate_series(1, 5000) i"))
    received = []
    while (frame := client.frame()).kind != "Z":
        received.append(frame)
        if len(received) % 100 == 0:
            tunnel.socket.sendall(tunnel.new_keys())
    assert rows(received) == [str(i).encode() * 1000 for i in range(1, 5001)]


@needs_key_updates
def test_a_server_may_change_its_keys_at_any_place(
    shared: Database, pair: Pair, authority: Authority
) -> None:
    with Encrypter(shared.server, pair) as encrypter:
        with through(encrypter, shared, authority) as relay, logged_in(relay.connect(), relay) as client:
            for number in range(50):
                assert client.value(f"SELECT {number}") == str(number)
            frames = client.query("SELECT repeat(i::text, 1000) FROM generate_series(1, 3000) i")
            assert rows(frames) == [str(i).encode() * 1000 for i in range(1, 3001)]
            client.query("CREATE TEMP TABLE copied (line text)")
            client.send(messages.query(b"COPY copied FROM STDIN"))
            assert client.frame().kind == "G"
            for _ in range(200):
                client.send(b"d" + (10_005).to_bytes(4) + b"y" * 10_000 + b"\n")
            client.send(b"c\0\0\0\x04")
            assert kinds(client.until_ready()) == "CZ"
            assert client.value("SELECT sum(length(line)) FROM copied") == "2000000"
        assert encrypter.updates > 100


def through(encrypter: Encrypter, shared: Database, authority: Authority) -> RunningRelay:
    """A relay that reaches the server through `encrypter`, and trusts nobody else."""
    tls = ServerTls(mode="verify-full", ca_file=authority.file)
    return RunningRelay(shared, tls=tls, shared_port=encrypter.port)


@pytest.mark.parametrize("revoked", [False, True])
def test_a_server_whose_certificate_is_revoked(
    revoked: bool, shared: Database, pair: Pair, authority: Authority
) -> None:
    crl_file = authority.revoke("servers", *([pair] if revoked else []))
    tls = ServerTls(mode="verify-ca", ca_file=authority.file, crl_file=crl_file)
    with (
        Encrypter(shared.server, pair) as encrypter,
        RunningRelay(shared, tls=tls, shared_port=encrypter.port) as relay,
        WireClient(relay.connect()) as client,
    ):
        names = {b"user": shared.server.user.encode(), b"database": shared.dbname.encode()}
        client.send(messages.startup_message(names))
        frames = client.until_ready()
        if revoked:
            assert "certificate revoked" in read_error(frames[-2].body).message
        else:
            assert kinds(client.query("SELECT 1")) == "TDCZ"


# --- renegotiation ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_renegotiation_is_refused(relay: RunningRelay, authority: Authority) -> None:
    """By OpenSSL's own client: `R` on its standard input is what it renegotiates at."""
    command = ["openssl", "s_client", "-starttls", "postgres", "-tls1_2", "-CAfile", str(authority.file)]
    with subprocess.Popen(
        [*command, "-connect", f"127.0.0.1:{relay.port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as client:
        assert client.stdin is not None and client.stdout is not None
        said = b""
        while b"Extended master secret" not in said:
            line = client.stdout.readline()
            assert line, said
            said += line
        assert b"Secure Renegotiation IS supported" in said
        client.stdin.write(b"R\n")
        client.stdin.flush()
        said = client.stdout.read()
        assert b"RENEGOTIATING" in said and b"no renegotiation" in said
        assert client.wait() != 0


# --- the end ----------------------------------------------------------------------------------------------

WRITE = messages.query(b"INSERT INTO written VALUES ('never')")


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("sent", [0, 1, 5, len(WRITE) - 1])
def test_half_a_message_is_never_carried_out(
    sent: int, announced: bool, tunnel: Tunnel, relay: RunningRelay
) -> None:
    logged_in(tunnel, relay)
    data = tunnel.sealed(WRITE[:sent]) if sent else b""
    tunnel.socket.sendall(data + (tunnel.goodbye() if announced else b""))
    tunnel.socket.shutdown(socket.SHUT_WR)
    assert ends(tunnel)


@pytest.mark.parametrize("announced", [True, False])
def test_a_transaction_that_is_not_committed_is_rolled_back(
    announced: bool, tunnel: Tunnel, relay: RunningRelay
) -> None:
    client = logged_in(tunnel, relay)
    client.query("BEGIN")
    client.query("INSERT INTO written VALUES ('never')")
    tunnel.socket.sendall(tunnel.goodbye() if announced else b"")
    tunnel.socket.shutdown(socket.SHUT_WR)
    assert ends(tunnel)


@pytest.mark.parametrize("missing", [1, 10, 20, len(WRITE)])
def test_half_a_record_is_never_carried_out(missing: int, tunnel: Tunnel, relay: RunningRelay) -> None:
    logged_in(tunnel, relay)
    tunnel.socket.sendall(tunnel.sealed(WRITE)[:-missing])
    tunnel.socket.shutdown(socket.SHUT_WR)
    assert ends(tunnel)


def test_close_notify_behind_a_login_that_is_not_over(tunnel: Tunnel) -> None:
    tunnel.socket.sendall(tunnel.sealed(b"\0\0") + tunnel.goodbye())
    assert ends(tunnel)


def ends(tunnel: Tunnel) -> bool:
    """Whether the relay closes the connection, whatever it says before."""
    while tunnel.socket.recv(65_536):
        continue
    return True


def test_an_answer_that_is_cut_within_a_record(shared: Database, pair: Pair, authority: Authority) -> None:
    """The client gets the rows before, no part of what is cut, and is told that the server is gone."""
    with (
        Encrypter(shared.server, pair, torn=b"tear here") as encrypter,
        through(encrypter, shared, authority) as relay,
        logged_in(relay.connect(), relay) as client,
    ):
        assert client.value("SELECT 1") == "1"
        frames = client.query("SELECT 'tear ' || 'here'")
        assert kinds(frames) == "E" and sqlstate(frames) == "08006"
        with logged_in(relay.connect(), relay) as another:
            assert another.value("SELECT 2") == "2"
