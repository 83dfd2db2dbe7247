"""SHOW pgshunt.route: the proxy says where the session's last statement went, and why."""

from __future__ import annotations

from support.fixtures import Database
from support.split import asked, client_of, databases, moving
from support.wire import SYNC, WireClient, bind, close, describe, execute, kinds, parse, sqlstate

__all__ = ["databases"]


def shown(client: WireClient) -> dict[str, str]:
    """The rows of SHOW pgshunt.route; of several with one name the last."""
    frames = client.query("SHOW pgshunt.route")
    assert kinds(frames).replace("D", "") == "TCZ"
    rows = [frame.body for frame in frames if frame.kind == "D"]
    pairs = []
    for row in rows:
        length = int.from_bytes(row[2:6], "big")
        pairs.append((row[6 : 6 + length].decode(), row[10 + length :].decode()))
    return dict(pairs)


def test_the_last_route_is_shown(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert shown(client) == {}
        assert asked(client) == "copy"
        route = shown(client)
        assert route["shape"] == "read"
        assert route["reads"] == "public.t: owned by svc, on shared, copies in svc_db"
        assert route["candidate"].startswith("svc_db: 100 %, ")
        assert route["candidate"].endswith(" ms behind")
        assert route["route"] == "svc_db 100 %"
        assert route["reason"].startswith("split: ")
        assert route["epoch"] == "1"
        assert shown(client)["route"] == "svc_db 100 %"  # showing is no route itself
        relay.shift(100)
        assert shown(client)["epoch"] == "1"
        client.query("UPDATE t SET v = v WHERE id = 1")
        assert shown(client)["reason"].startswith("owner_write: ")
        relay.fresh = False
        client.query("UPDATE t SET v = v WHERE id = 1")
        assert asked(client) == "shared"
        assert shown(client)["reason"].startswith("not_fresh: ")
        assert shown(client)["epoch"] == "2"


def test_it_is_shown_inside_of_transactions(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN")
        assert kinds(client.query("SHOW pgshunt.route")) == "TCZ"
        client.query("UPDATE t SET v = v WHERE id = 1")
        frames = client.query("SHOW pgshunt.route")
        assert frames[-1].body == b"T"
        client.query("SELECT 1 / 0")
        assert sqlstate(client.query("SHOW pgshunt.route")) == "25P02"
        client.query("ROLLBACK")
        assert shown(client)["reason"].startswith("transaction: ")


def test_among_other_statements_it_is_the_servers(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert sqlstate(client.query("SELECT 1; SHOW pgshunt.route")) == "42704"


def test_decisions_are_counted_by_endpoint_and_reason(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        for _ in range(3):
            asked(client)
        client.query("UPDATE t SET v = v WHERE id = 1")
        client.query("SELECT 1")
        assert relay.count("routes", "svc", "split", "svc_db") == 3
        assert relay.count("routes", "svc", "owner_write", "shared") == 1
        assert relay.count("routes", "", "no_table", "shared") == 1


def test_extended_batches_are_answered_too(databases: tuple[Database, Database]) -> None:
    """Unnamed, named, and prepared in a batch of its own, as drivers do."""
    show = "SHOW pgshunt.route"
    with moving(databases) as relay, client_of(relay) as client:
        asked(client)
        client.send(parse("", show), bind("", ""), describe("P"), execute(), SYNC)
        assert kinds(client.until_ready()) == "12TDDDDDDCZ"
        client.send(parse("named", show), describe("S", "named"), SYNC)
        assert kinds(client.until_ready()) == "1tTZ"
        client.send(bind("", "named"), execute(), SYNC)
        frames = client.until_ready()
        assert kinds(frames) == "2DDDDDDCZ"
        assert b"svc_db 100 %" in b"".join(frame.body for frame in frames)
        client.send(parse("", show), bind("", ""), execute(), parse("", "SELECT 1"), SYNC)
        assert sqlstate(client.until_ready()) == "42704"  # not alone in its batch
        client.send(parse("other", show), bind("", "other"), execute(), parse("", "SELECT 1"), SYNC)
        assert sqlstate(client.until_ready()) == "42704"
        client.send(parse("", "SELECT v FROM t WHERE id = 1"), bind("", ""), execute(), SYNC)
        client.send(bind("", "named"), execute(), SYNC)
        assert kinds(client.until_ready() + client.until_ready()) == "12DCZ2DDDDDDCZ"


def test_a_batch_that_comes_in_pieces_is_answered_too(databases: tuple[Database, Database]) -> None:
    named = [parse("s", "SHOW pgshunt.route"), bind("", "s"), describe("P"), execute(), SYNC]
    unnamed = [parse("", "SHOW pgshunt.route"), bind("", ""), describe("P"), execute(), SYNC]
    with moving(databases) as relay, client_of(relay) as client, client_of(relay) as witness:
        for batch in (b"".join(unnamed), b"".join(named), b"".join(named[1:])):
            for cut in range(1, len(batch)) if batch[5] == 0 else (45, len(batch) - 1):
                client.send(batch[:cut])
                for sql in ("BEGIN", "ROLLBACK"):  # by then it has been received
                    assert kinds(witness.query(sql)) == "CZ"
                client.send(batch[cut:])
                assert kinds(client.until_ready()).replace("D", "").removeprefix("1") == "2TCZ"
                if batch[0] == ord("P") and batch[5] != 0:
                    client.send(close("S", "s"), SYNC)
                    assert kinds(client.until_ready()) == "3Z"
            if batch[5] != 0:
                client.send(parse("s", "SHOW pgshunt.route"), SYNC)
                assert kinds(client.until_ready()) == "1Z"


def test_what_comes_behind_its_first_part_may_be_the_servers(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client, client_of(relay) as witness:
        client.send(parse("s", "SHOW pgshunt.route"))
        for sql in ("BEGIN", "ROLLBACK"):
            assert kinds(witness.query(sql)) == "CZ"
        client.send(parse("t", "SELECT 1"), bind("", "s"), execute(), SYNC)
        assert sqlstate(client.until_ready()) == "42704"
        assert asked(client) == "copy"
