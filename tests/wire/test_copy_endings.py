"""COPY that does not come to its end: whoever goes or is stopped in the middle, nothing of it is left."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import COPY_DONE, Frame, WireClient, copy_data, kinds, sqlstate

from pgshunt.protocol import messages
from pgshunt.protocol.messages import query

ROWS = 400
IN = query(b"COPY t FROM STDIN")
OUT = query(b"COPY (SELECT repeat('x', 100000) FROM generate_series(1, %d)) TO STDOUT" % ROWS)

Stop = Callable[[WireClient], None]


@pytest.fixture
def relay(database: Database) -> Iterator[RunningRelay]:
    """One link, which serves the next session whatever became of the COPY on it; or there is a new one."""
    database.execute("CREATE TABLE t (id int)")
    with RunningRelay(database, config={"pools": {"default_pool_size": 1}}) as running:
        yield running
        with client_of(running) as later:
            assert later.value("SELECT count(*) FROM t") == "0"
        assert not [event for event in running.events if event["kind"] in ("fault", "link_out_of_step")]


@contextmanager
def client_of(relay: RunningRelay, port: int = 0) -> Iterator[WireClient]:
    with WireClient(socket.create_connection(("127.0.0.1", port or relay.port), 10)) as client:
        yield client.log_in(relay.shared.server.user, relay.shared.dbname)


def copied_in(client: WireClient, stop: Stop) -> list[Frame]:
    """The server looks at what has been asked of it when the next data comes."""
    client.send(IN)
    assert client.frame().kind == "G"
    client.send(copy_data(b"1\n"))
    stop(client)
    client.send(copy_data(b"2\n"), COPY_DONE)
    return client.until_ready()


def copied_out(client: WireClient, stop: Stop) -> list[Frame]:
    """Nothing is read before: the server has got stuck in the middle."""
    client.send(OUT)
    assert client.frame().kind == "H"
    stop(client)
    return [frame for frame in client.until_ready() if frame.kind != "d"]


def by_the_server(relay: RunningRelay, function: str) -> Stop:
    def stop(_client: WireClient) -> None:
        found = relay.shared.execute(
            f"SELECT {function}(pid) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY %'"
        )
        assert found == [[True]]

    return stop


def by_the_client(relay: RunningRelay) -> Stop:
    def stop(client: WireClient) -> None:
        with WireClient(relay.connect()) as canceller:
            canceller.send(messages.cancel_request(client.process_id, client.secret_key))
            assert kinds(canceller.until_ready()) == ""

    return stop


@pytest.mark.parametrize("copied", [copied_in, copied_out])
def test_it_is_cancelled(copied: Callable[[WireClient, Stop], list[Frame]], relay: RunningRelay) -> None:
    server = relay.shared.server
    with (
        LoginForwarder(server.host, server.port, server.user, server.password) as forwarder,
        client_of(relay, forwarder.address[1]) as direct,
    ):
        expected = copied(direct, by_the_server(relay, "pg_cancel_backend"))
    assert (kinds(expected), sqlstate(expected)) == ("EZ", "57014")
    with client_of(relay) as client:
        for stop in (by_the_server(relay, "pg_cancel_backend"), by_the_client(relay)):
            assert copied(client, stop) == expected
            assert client.value("SELECT 1") == "1"


def test_its_server_process_is_ended_while_data_comes(relay: RunningRelay) -> None:
    with client_of(relay) as client:
        told = copied_in(client, by_the_server(relay, "pg_terminate_backend"))
        assert (kinds(told), sqlstate(told)) == ("E", "57P01")


def test_its_server_process_is_ended_while_nobody_reads(relay: RunningRelay) -> None:
    """It leaves without a word, perhaps in the middle of a row: then nothing can be said behind it."""
    with client_of(relay) as client:
        told = copied_out(client, by_the_server(relay, "pg_terminate_backend"))
        assert kinds(told) in ("", "E")


@pytest.mark.parametrize("sent", [IN + copy_data(b"1\n"), IN + copy_data(b"1\n")[:-1], OUT])
def test_its_client_goes(sent: bytes, relay: RunningRelay) -> None:
    with client_of(relay) as client:
        client.send(sent)
        assert client.frame().kind in "GH"
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "it is gone")
