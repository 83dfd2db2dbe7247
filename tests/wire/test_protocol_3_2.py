"""Protocol 3.2 as PostgreSQL 18's libpq speaks it: negotiation, and cancel keys too long to be guessed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import WireClient, kinds, sqlstate

from pgshunt.demo.postgres import Server
from pgshunt.protocol import messages


@pytest.fixture(scope="module")
def relay(postgres: Server) -> Iterator[RunningRelay]:
    with RunningRelay(Database(postgres, "postgres")) as running:
        yield running


def startup(relay: RunningRelay, minor: int, **options: str) -> bytes:
    pairs = {"user": relay.shared.server.user, "database": relay.shared.dbname, **options}
    return messages.startup_message({name.encode(): value.encode() for name, value in pairs.items()}, minor)


@pytest.mark.parametrize(
    ("minor", "key_bytes", "negotiated"),
    [(0, 4, None), (1, 4, None), (2, 32, None), (3, 32, 2), (9999, 32, 2)],
)
def test_the_newest_version_both_speak(
    relay: RunningRelay, minor: int, key_bytes: int, negotiated: int | None
) -> None:
    with WireClient(relay.connect()) as client:
        client.send(startup(relay, minor))
        frames = client.until_ready()
        (key,) = (frame.body[4:] for frame in frames if frame.kind == "K")
        assert len(key) == key_bytes
        told = [frame.body for frame in frames if frame.kind == "v"]
        version = messages.negotiate_protocol_version(negotiated or 0, [])[5:]
        assert told == ([] if negotiated is None else [version])


def test_options_nobody_knows_are_named_once_and_first(relay: RunningRelay) -> None:
    """What libpq 19 sends to every server, to find those that cannot be told of anything new."""
    with WireClient(relay.connect()) as client:
        client.send(startup(relay, 9999, **{"_pq_.test_protocol_negotiation": ""}))
        frames = client.until_ready()
        assert kinds(frames).startswith("vR") and kinds(frames).count("v") == 1
        assert (
            frames[0].body == messages.negotiate_protocol_version(2, [b"_pq_.test_protocol_negotiation"])[5:]
        )
        assert client.value("SELECT 1") == "1"


def test_a_long_key_cancels_and_a_part_of_it_does_not(relay: RunningRelay) -> None:
    with WireClient(relay.connect()) as client:
        client.send(startup(relay, 2))
        (body,) = (frame.body for frame in client.until_ready() if frame.kind == "K")
        process_id, key = int.from_bytes(body[:4]), body[4:]
        client.send(messages.query(b"SELECT pg_sleep(30)"))
        relay.wait_for(
            lambda: (
                relay.shared.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
                == [[1]]
            ),
            "it sleeps",
        )
        for wrong in (key[:4], key[:-1], key + b"\0", bytes(32)):
            with WireClient(relay.connect()) as another:
                another.send(messages.cancel_request(process_id, wrong))
                assert kinds(another.until_ready()) == ""
        assert relay.call(lambda it: it.loop_tasks) == 0  # nothing was passed on
        with WireClient(relay.connect()) as another:
            another.send(messages.cancel_request(process_id, key))
            assert sqlstate(client.until_ready()) == "57014"


@pytest.mark.skipif(psycopg.pq.version() < 180000, reason="libpq speaks 3.2 since 18")
def test_libpq_18(relay: RunningRelay) -> None:
    with psycopg.connect(f"{relay.dsn()} min_protocol_version=3.2 max_protocol_version=3.2") as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
