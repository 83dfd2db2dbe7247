"""A client that shuts down its side hears what a direct connection hears, wherever it has stopped."""

from __future__ import annotations

import socket

import pytest
from support.relay import RunningRelay
from support.wire import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    Frame,
    WireClient,
    bind,
    copy_data,
    describe,
    execute,
    function_call,
    parse,
)

from pgshunt.protocol import messages

LARGE = 200_000  # bytes: more than is held of a message, and more than is read at once
FIRST = messages.query(b"SELECT 'first', pg_sleep(0.01)")
CUTS = [3, 100, 66_000, 150_000, None]  # bytes that are sent of the last message; None: all

BIND = bind("", "", "v" * LARGE)
LAST = {
    "query": [messages.query(b"SELECT length('" + b"v" * LARGE + b"')")],
    "parse": [parse("", "SELECT 1 -- " + "v" * LARGE)],
    "bind": [parse("", "SELECT length($1)"), BIND],
    "bind, a batch before": [parse("", "SELECT length($1)"), bind("", "", "v"), execute(), SYNC, BIND],
    "bind, a flush before": [parse("", "SELECT length($1)"), describe("S"), FLUSH, BIND],
    "bind in a transaction": [messages.query(b"BEGIN"), parse("", "SELECT length($1)"), BIND],
    "bind with a name": [parse("a", "SELECT length($1)"), bind("", "a", "v" * LARGE)],
    "copy": [messages.query(b"COPY t FROM STDIN"), copy_data(b"900\t" + b"v" * LARGE + b"\n")],
    "function call": [function_call(1317, "v" * LARGE)],
    "parse with a name": [parse("a", "SELECT 1 -- " + "v" * LARGE)],
}
BEHIND = {
    "query": [],
    "parse": [SYNC],
    "bind": [execute(), SYNC],
    "bind, a batch before": [execute(), SYNC],
    "bind, a flush before": [execute(), SYNC],
    "bind in a transaction": [execute(), SYNC],
    "bind with a name": [execute(), SYNC],
    "copy": [COPY_DONE],
    "function call": [],
    "parse with a name": [SYNC],
}


def hear_out(address: tuple[str, int], relay: RunningRelay, sent: bytes) -> list[Frame]:
    """All that comes to who sends this and shuts down its side."""
    with WireClient(socket.create_connection(address, 10)) as client:
        client.log_in(relay.shared.server.user, relay.shared.dbname)
        client.send(sent)
        client.socket.shutdown(socket.SHUT_WR)
        frames = client.until_ready()
        while frames[-1].body != b"closed":
            frames += client.until_ready()
        return frames


def comparable(frame: Frame) -> Frame:
    """An error without its line in PostgreSQL's source: part of a message's head is never passed on."""
    if frame.kind != "E":
        return frame
    return Frame("E", b"\0".join(part for part in frame.body.split(b"\0") if part[:1] != b"L"))


@pytest.mark.parametrize("name", LAST)
def test_same_answers(name: str, relay: RunningRelay, trusted: tuple[str, int]) -> None:
    *before, last = LAST[name]
    sent = [b"".join([FIRST, *before, last[:cut]]) for cut in CUTS]
    sent += [sent[-1] + b"".join(BEHIND[name]), sent[-1] + b"".join(BEHIND[name]) + TERMINATE]
    for data in sent:
        heard = []
        for address in (trusted, ("127.0.0.1", relay.port)):
            relay.shared.execute("DELETE FROM t WHERE id = 900")
            heard.append([comparable(frame) for frame in hear_out(address, relay, data)])
        assert heard[1] == heard[0], f"{len(data)} bytes"
    relay.wait_for(lambda: relay.call(lambda r: (r.clients, r.waiting)) == (0, 0), "all are gone")
