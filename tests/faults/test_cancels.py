"""Cancel requests reach a server only while it runs what was meant, and not in any number."""

from __future__ import annotations

import threading

import pytest
from support.hostile import COLUMN, READY, ROW_DONE, Answer, HostileServer, frame, row
from support.relay import RunningRelay
from support.wire import WireClient, kinds

from pgshunt.protocol import messages
from pgshunt.proxy import policy

SETTING_ASKED_FOR = Answer(COLUMN + row(b"UTF8", b"UTF8", b"5MB") + frame("C", b"SELECT 1\0") + READY)
DONE = Answer(ROW_DONE + READY)


def log_in(relay: RunningRelay) -> WireClient:
    return WireClient(relay.connect()).log_in("somebody", "somewhere")


def ask_to_cancel(relay: RunningRelay, client: WireClient) -> WireClient:
    canceller = WireClient(relay.connect())
    canceller.send(messages.cancel_request(client.process_id, client.secret_key))
    return canceller


def is_done_with(canceller: WireClient) -> bool:
    """Waits until the relay has closed the connection of a cancel request: it is dealt with."""
    return canceller.until_ready()[0].kind == ""


def test_a_cancel_does_not_hit_the_settings_that_go_ahead_of_a_statement() -> None:
    """pgbouncer#298: it did, and the session was told that its own server connection had failed."""
    goes_on = threading.Event()

    def script(_kind: str, statement: str) -> Answer:
        if statement.startswith("SET exit_on_error") or statement == "SELECT slow":
            goes_on.wait(10)
        return SETTING_ASKED_FOR if "current_setting" in statement else DONE

    with (
        HostileServer(script) as server,
        RunningRelay(server, config={"pools": {"default_pool_size": 1}}) as relay,  # type: ignore[arg-type]
        log_in(relay) as client,
        log_in(relay) as other,
    ):
        client.query("SET work_mem = '5MB'")
        for statement, cancels in (("SELECT behind settings", 0), ("SELECT slow", 1)):
            goes_on.clear()
            heard = len(server.heard)
            other.send(messages.query(statement.encode()))
            relay.wait_for(lambda heard=heard: len(server.heard) > heard, "the server is at it")  # type: ignore[misc]
            with ask_to_cancel(relay, other) as canceller:
                assert is_done_with(canceller)
            assert server.cancels == cancels
            goes_on.set()
            assert kinds(other.until_ready()) == "TDCZ"


def test_no_more_cancel_requests_are_under_way_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Odyssey's cancel_max_inflight, SPQR#2917: each is a connection that no limit of the pools counts."""
    monkeypatch.setattr(policy, "CANCELS_MAX", 2)
    goes_on = threading.Event()

    def script(_kind: str, statement: str) -> Answer:
        if statement == "SELECT slow":
            goes_on.wait(10)
        return DONE

    with HostileServer(script) as server, RunningRelay(server) as relay:  # type: ignore[arg-type]
        server.takes_cancels.clear()
        clients = [log_in(relay) for _ in range(3)]
        for client in clients:
            client.send(messages.query(b"SELECT slow"))
        relay.wait_for(lambda: server.heard.count(("Q", "SELECT slow")) == 3, "all are at it")
        cancellers = [ask_to_cancel(relay, client) for client in clients[:2]]
        relay.wait_for(lambda: server.cancels == 2, "two are under way")
        cancellers.append(ask_to_cancel(relay, clients[2]))
        assert is_done_with(cancellers[2])
        assert server.cancels == 2
        server.takes_cancels.set()
        goes_on.set()
        assert all(is_done_with(canceller) for canceller in cancellers[:2])
        for client in (*clients, *cancellers):
            if client in clients:
                assert kinds(client.until_ready()) == "TDCZ"
            client.socket.close()
