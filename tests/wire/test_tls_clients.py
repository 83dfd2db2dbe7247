"""TLS between clients and the proxy: who gets in under which mode, what hostile handshakes come to, and that
nothing of a stream is lost, held back or taken from before the handshake.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.certificates import Authority, Pair
from support.fixtures import Database
from support.relay import RunningRelay
from support.tls import APPLICATION_DATA, Tunnel, trusting
from support.wire import Frame, WireClient, kinds, sqlstate

from pgshunt.demo.postgres import Server
from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

LOGIN_MS = 400
ALERT = bytes([21])
OVERHEAD_BYTES_MAX = 256  # of a record, RFC 8446, section 5.2


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("proxy", "proxy", "localhost", "127.0.0.1")


def listening(pair: Pair, mode: str, **more: Any) -> dict[str, Any]:
    files = {"certificate_file": str(pair.certificate), "key_file": str(pair.key)}
    return {"login_timeout_ms": LOGIN_MS, "tls": {"mode": mode, **files, **more}}


@pytest.fixture(scope="module")
def shared(postgres: Server) -> Iterator[Database]:
    postgres.execute("CREATE DATABASE tls_clients TEMPLATE template0")
    yield Database(postgres, "tls_clients")
    postgres.execute("DROP DATABASE tls_clients WITH (FORCE)")


@pytest.fixture(scope="module")
def relay(shared: Database, pair: Pair) -> Iterator[RunningRelay]:
    """One that offers TLS and demands nothing."""
    with RunningRelay(shared, config={"listen": listening(pair, "prefer")}) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_is_left(relay: RunningRelay) -> Iterator[None]:
    """Whatever a client did, the relay has let go of it and serves the next one."""
    yield
    relay.wait_for(lambda: relay.call(lambda it: it.clients) == 0, "all clients are gone")
    with psycopg.connect(relay.dsn(), sslmode="require") as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
    relay.wait_for(lambda: relay.call(lambda it: it.clients) == 0, "the last client is gone")


def encrypted(relay: RunningRelay, authority: Authority) -> ssl.SSLSocket:
    """A connection after SSLRequest and handshake, before its startup packet."""
    plain = relay.connect()
    plain.sendall(messages.ssl_request())
    assert plain.recv(1) == b"S"
    return trusting(authority).wrap_socket(plain, server_hostname="localhost")


def logged_in(relay: RunningRelay, authority: Authority) -> WireClient:
    client = WireClient(encrypted(relay, authority))
    return client.log_in(relay.shared.server.user, relay.shared.dbname)


def closes(connection: socket.socket) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    try:
        while connection.recv(65_536):
            continue
    except (ConnectionResetError, ssl.SSLError):
        return True
    return True


# --- modes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "sslmode", "outcome"),
    [
        ("disable", "disable", False),
        ("disable", "prefer", False),
        ("disable", "require", "server does not support SSL"),
        ("allow", "disable", False),
        ("allow", "require", True),
        ("prefer", "prefer", True),
        ("prefer", "verify-full", True),
        ("require", "disable", "connections without TLS are not accepted"),
        ("require", "allow", True),
        ("require", "verify-ca", True),
        ("verify-ca", "require", "certificate required"),
        ("verify-full", "require", "certificate required"),
    ],
)
def test_modes(
    shared: Database, authority: Authority, pair: Pair, mode: str, sslmode: str, outcome: bool | str
) -> None:
    tls = {"mode": "disable"} if mode == "disable" else {"ca_file": str(authority.file)}
    config = {"listen": listening(pair, mode)}
    config["listen"]["tls"] |= tls
    with RunningRelay(shared, config=config) as relay:
        where = f"{relay.dsn()} sslmode={sslmode} sslrootcert={authority.file}"
        if isinstance(outcome, str):
            with pytest.raises(psycopg.OperationalError, match=outcome):
                psycopg.connect(where).close()
            return
        with psycopg.connect(where) as client:
            assert client.pgconn.ssl_in_use is outcome
            assert client.execute("SELECT 1").fetchone() == (1,)


def test_a_client_with_a_certificate_gets_in(
    shared: Database, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    own = authority.issue("client", "somebody")
    strange = Authority(tmp_path, "strange").issue("client", "somebody")
    config = {"listen": listening(pair, "verify-full", ca_file=str(authority.file))}
    with RunningRelay(shared, config=config) as relay:
        where = f"{relay.dsn()} sslmode=require"
        with psycopg.connect(f"{where} sslcert={own.certificate} sslkey={own.key}") as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="unknown ca"):
            psycopg.connect(f"{where} sslcert={strange.certificate} sslkey={strange.key}").close()


def test_a_revoked_certificate_is_refused(shared: Database, authority: Authority, pair: Pair) -> None:
    good, bad = authority.issue("good", "somebody"), authority.issue("bad", "somebody")
    files = {"ca_file": str(authority.file), "crl_file": str(authority.revoke("clients", bad))}
    with RunningRelay(shared, config={"listen": listening(pair, "verify-full", **files)}) as relay:
        where = f"{relay.dsn()} sslmode=require"
        with psycopg.connect(f"{where} sslcert={good.certificate} sslkey={good.key}") as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="certificate revoked"):
            psycopg.connect(f"{where} sslcert={bad.certificate} sslkey={bad.key}").close()


def test_a_refusal_names_the_way_in(relay: RunningRelay, shared: Database, pair: Pair) -> None:
    with (
        RunningRelay(shared, config={"listen": listening(pair, "require")}) as strict,
        WireClient(strict.connect()) as client,
    ):
        client.send(messages.startup_message({b"user": b"postgres"}))
        error = client.frame()
        fields = read_error(error.body)
        assert (fields.severity, fields.sqlstate) == ("FATAL", "28000")
        assert fields.hint is not None and "sslmode=require" in fields.hint


# --- direct connections -----------------------------------------------------------------------------------


def test_direct_connection(relay: RunningRelay, authority: Authority) -> None:
    where = f"{relay.dsn()} sslmode=verify-full sslrootcert={authority.file} sslnegotiation=direct"
    with psycopg.connect(where) as client:
        assert client.pgconn.ssl_in_use
        assert client.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("alpn", [(), ("http/1.1", "h2")])
def test_direct_connection_without_our_alpn(
    relay: RunningRelay, authority: Authority, alpn: tuple[str, ...]
) -> None:
    tunnel = trusting(authority, *alpn).wrap_socket(relay.connect(), server_hostname="localhost")
    with WireClient(tunnel) as client:
        frames = client.until_ready()
        assert kinds(frames) == "E" and sqlstate(frames) == "08P01"


def test_encryption_is_asked_for_once(relay: RunningRelay, authority: Authority) -> None:
    """A request inside the tunnel is answered as PostgreSQL does: by an unsupported protocol."""
    for request in (messages.ssl_request(), messages.gssenc_request()):
        with WireClient(encrypted(relay, authority)) as client:
            client.send(request)
            assert sqlstate(client.until_ready()) == "0A000"


def test_gssapi_is_declined_and_tls_taken(relay: RunningRelay, authority: Authority) -> None:
    plain = relay.connect()
    plain.sendall(messages.gssenc_request())
    assert plain.recv(1) == b"N"
    plain.sendall(messages.ssl_request())
    assert plain.recv(1) == b"S"
    with WireClient(trusting(authority).wrap_socket(plain, server_hostname="localhost")) as client:
        client.log_in(relay.shared.server.user, relay.shared.dbname)
        assert client.value("SELECT 1") == "1"


# --- hostile handshakes -----------------------------------------------------------------------------------

INJECTED = messages.query(b"CREATE TABLE injected()")


def no_table(relay: RunningRelay) -> bool:
    return relay.shared.execute("SELECT to_regclass('injected') IS NULL") == [[True]]


def test_plaintext_behind_the_request_is_refused(relay: RunningRelay) -> None:
    """CVE-2021-23214: what comes in one packet with SSLRequest is in the clear, whoever wrote it."""
    with WireClient(relay.connect()) as client:
        client.send(messages.ssl_request(), messages.startup_message({b"user": b"postgres"}), INJECTED)
        frames = client.until_ready()
        assert kinds(frames) == "E" and sqlstate(frames) == "08P01"
        assert "received unencrypted data after SSL request" in read_error(frames[0].body).message
    assert no_table(relay)


def test_plaintext_between_answer_and_handshake_is_no_part_of_the_stream(
    relay: RunningRelay, authority: Authority
) -> None:
    with relay.connect() as plain:
        plain.sendall(messages.ssl_request())
        assert plain.recv(1) == b"S"
        startup = messages.startup_message({b"user": b"postgres", b"database": b"tls_clients"})
        plain.sendall(startup + INJECTED)
        assert plain.recv(65_536)[:1] in (b"", ALERT)  # OpenSSL has no words for what is no TLS at all
    assert no_table(relay)


def client_hello(authority: Authority) -> bytes:
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = trusting(authority, "postgresql").wrap_bio(arriving, leaving, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    return leaving.read()


@pytest.mark.parametrize("direct", [True, False])
def test_truncated_handshakes(relay: RunningRelay, authority: Authority, direct: bool) -> None:
    hello = client_hello(authority)
    for length in (1, 4, 5, 6, len(hello) // 2, len(hello) - 1, len(hello)):
        with relay.connect() as plain:
            if not direct:
                plain.sendall(messages.ssl_request())
                assert plain.recv(1) == b"S"
            plain.sendall(hello[:length])


def test_a_handshake_that_never_ends_meets_the_login_deadline(
    relay: RunningRelay, authority: Authority
) -> None:
    hello = client_hello(authority)
    for sent in (b"", hello[:20], hello):
        with relay.connect() as plain:
            plain.sendall(messages.ssl_request())
            assert plain.recv(1) == b"S"
            plain.sendall(sent)
            assert closes(plain)


def test_garbage_in_the_tunnel_ends_the_session(relay: RunningRelay, authority: Authority) -> None:
    plain = relay.connect()
    plain.sendall(messages.ssl_request())
    assert plain.recv(1) == b"S"
    tunnel = trusting(authority).wrap_socket(plain.dup(), server_hostname="localhost")
    with tunnel, plain, WireClient(tunnel) as client:
        client.log_in(relay.shared.server.user, relay.shared.dbname)
        plain.sendall(struct.pack("!BHH", APPLICATION_DATA, 0x0303, 40) + bytes(40))
        assert closes(plain)


def test_only_tls_1_2_and_newer(relay: RunningRelay, authority: Authority) -> None:
    context = trusting(authority)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with relay.connect() as plain:
        plain.sendall(messages.ssl_request())
        assert plain.recv(1) == b"S"
        with WireClient(context.wrap_socket(plain.dup(), server_hostname="localhost")) as client:
            client.log_in(relay.shared.server.user, relay.shared.dbname)
            assert client.value("SELECT 1") == "1"
    hello_1_1 = bytearray(client_hello(authority))
    hello_1_1[9:11] = b"\x03\x02"  # legacy_version, and no supported_versions that says otherwise
    supported = hello_1_1.index(b"\x00\x2b\x00\x05\x04\x03\x04\x03\x03")
    hello_1_1[supported : supported + 2] = b"\xff\xee"
    with relay.connect() as plain:
        plain.sendall(messages.ssl_request())
        assert plain.recv(1) == b"S"
        plain.sendall(hello_1_1)
        alert = plain.recv(65_536)
        assert alert[:1] == ALERT and alert[-1] == 70  # protocol_version


# --- the stream -------------------------------------------------------------------------------------------


def tunnel_to(relay: RunningRelay, authority: Authority) -> Tunnel:
    return Tunnel(relay.connect(), authority)


def logged_in_by(tunnel: Tunnel, relay: RunningRelay) -> WireClient:
    client = WireClient(tunnel)  # type: ignore[arg-type]
    return client.log_in(relay.shared.server.user, relay.shared.dbname)


def waits_for(relay: RunningRelay, event: str) -> bool:
    """Whether some server process of the database does."""
    found = relay.shared.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = :event AND datname = :name",
        event=event,
        name=relay.shared.dbname,
    )
    return found != [[0]]


def rows(frames: list[Frame]) -> list[bytes]:
    return [frame.body[6:] for frame in frames if frame.kind == "D"]


def test_byte_by_byte(relay: RunningRelay, authority: Authority) -> None:
    with tunnel_to(relay, authority) as tunnel:
        client = logged_in_by(tunnel, relay)
        for byte in tunnel.sealed(messages.query(b"SELECT 'by' || 'te'")):
            tunnel.socket.sendall(bytes([byte]))
        assert rows(client.until_ready()) == [b"byte"]


def test_many_records_in_one_packet_do_not_stall(relay: RunningRelay, authority: Authority) -> None:
    """Nothing may wait decrypted, or half decrypted, for an event that does not come."""
    with tunnel_to(relay, authority) as tunnel:
        client = logged_in_by(tunnel, relay)
        packet = b"".join(tunnel.sealed(messages.query(b"SELECT %d" % n)) for n in range(300))
        tunnel.socket.sendall(packet[:-1])
        answers = [rows(client.until_ready()) for _ in range(299)]
        tunnel.socket.sendall(packet[-1:])
        answers.append(rows(client.until_ready()))
        assert answers == [[b"%d" % n] for n in range(300)]


def test_a_statement_longer_than_all_buffers(relay: RunningRelay, authority: Authority) -> None:
    with tunnel_to(relay, authority) as tunnel:
        client = logged_in_by(tunnel, relay)
        tunnel.sendall(messages.query(b"SELECT length('" + b"x" * 5_000_000 + b"')"))
        assert rows(client.until_ready()) == [b"5000000"]


def test_records_are_no_longer_than_postgresqls(relay: RunningRelay, authority: Authority) -> None:
    with tunnel_to(relay, authority) as tunnel:
        client = logged_in_by(tunnel, relay)
        frames = client.query("SELECT repeat('x', 100000) FROM generate_series(1, 20)")
        assert [len(row) for row in rows(frames)] == [100_000] * 20
        assert 8192 < max(tunnel.records) <= 8192 + OVERHEAD_BYTES_MAX


def test_a_slow_reader_gets_everything(relay: RunningRelay, authority: Authority) -> None:
    """The server waits for the client: what it has not taken is not hoarded, and not lost."""
    with tunnel_to(relay, authority) as tunnel:
        client = logged_in_by(tunnel, relay)
        client.send(messages.query(b"SELECT repeat(i::text, 1000) FROM generate_series(1, 20000) i"))
        relay.wait_for(lambda: waits_for(relay, "ClientWrite"), "the server waits")
        received = rows(client.until_ready())
        assert received == [str(i).encode() * 1000 for i in range(1, 20_001)]


def test_copy_both_ways(relay: RunningRelay, authority: Authority) -> None:
    where = f"{relay.dsn()} sslmode=verify-full sslrootcert={authority.file}"
    with psycopg.connect(where) as client, client.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE copied (id int, word text)")
        with cursor.copy("COPY copied FROM STDIN") as copy:
            for number in range(5000):
                copy.write_row((number, "word" * 250))
        with cursor.copy("COPY copied TO STDOUT") as copy:
            size = sum(len(block) for block in copy)
        assert size == sum(len(f"{number}\t{'word' * 250}\n") for number in range(5000))


def test_the_proxy_ends_with_close_notify(relay: RunningRelay, authority: Authority) -> None:
    with tunnel_to(relay, authority) as tunnel:
        logged_in_by(tunnel, relay)
        tunnel.sendall(messages.terminate())
        assert tunnel.recv(1) == b""  # and not EOFError


def test_a_client_that_ends_with_close_notify_only(relay: RunningRelay, authority: Authority) -> None:
    """Its last statement is carried out and answered, as when a client in plaintext shuts down its side."""
    with tunnel_to(relay, authority) as tunnel:
        client = logged_in_by(tunnel, relay)
        last = tunnel.sealed(messages.query(b"SELECT 'last'"))
        tunnel.socket.sendall(last + tunnel.goodbye())
        assert tunnel.socket.recv(
            65_536
        )  # the answer; OpenSSL reads no more itself after its own close_notify
        assert closes(tunnel.socket)
        assert client.process_id


def test_cancel_through_tls_and_in_the_clear(relay: RunningRelay, authority: Authority) -> None:
    for where in (relay.connect, lambda: encrypted(relay, authority)):
        with logged_in(relay, authority) as client:
            client.send(messages.query(b"SELECT pg_sleep(30)"))
            relay.wait_for(lambda: waits_for(relay, "PgSleep"), "it sleeps")
            with where() as another:
                another.sendall(messages.cancel_request(client.process_id, client.secret_key))
                assert sqlstate(client.until_ready()) == "57014"
