"""`pg_terminate_backend` and `pg_cancel_backend` with the process id that a session was given at login: both
sides hear what they hear of a direct connection, and nobody else hears anything.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.cutter import Cutter
from support.fixtures import Database
from support.relay import RunningRelay
from support.split import asked, client_of, databases, moving
from support.wire import SYNC, Frame, WireClient, bind, describe, execute, kinds, parse, sqlstate

from pgshunt.protocol.errors import read_error
from pgshunt.protocol.messages import cancel_request, query

__all__ = ["databases"]

Connect = Callable[..., WireClient]
Heard = list[list[tuple[str, str]]]
Scenario = Callable[[Connect], Heard]


def told(frames: list[Frame]) -> list[tuple[str, str]]:
    """What a client is told, without the names of columns and the lines of the server's source."""
    said = []
    for frame in frames:
        if frame.kind in "EN" and frame.kind:
            error = read_error(frame.body)
            said.append((frame.kind, f"{error.severity} {error.sqlstate} {error.message}"))
        elif frame.kind != "T":
            said.append((frame.kind, frame.body.decode()))
    return said


def bound(name: str, value: bytes, text_or_binary: int) -> bytes:
    body = b"\0" + name.encode() + b"\0" + struct.pack(">HhHi", 1, text_or_binary, 1, len(value)) + value
    return b"B" + (len(body) + 6).to_bytes(4) + body + b"\0\0"


def terminate(caller: WireClient, victim: WireClient) -> list[Frame]:
    return caller.query(f"SELECT pg_terminate_backend({victim.process_id})")


def terminate_an_idle_session(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    return [
        told(terminate(caller, victim)),
        told(victim.until_ready()),
    ]


def terminate_one_that_has_only_begun(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    victim.query("BEGIN")
    return [
        told(terminate(caller, victim)),
        told(victim.until_ready()),
    ]


def terminate_a_statement(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    victim.send(query(b"SELECT pg_sleep(30)"))
    wait_until_asleep(caller)
    return [
        told(terminate(caller, victim)),
        told(victim.until_ready()),
    ]


def terminate_a_transaction(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    victim.query("BEGIN; INSERT INTO t VALUES (1000)")
    heard = [
        told(terminate(caller, victim)),
        told(victim.until_ready()),
    ]
    return [*heard, told(caller.query("SELECT count(*) FROM t WHERE id = 1000"))]


def terminate_from_a_transaction(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    caller.query("BEGIN")
    heard = [
        told(terminate(caller, victim)),
        told(victim.until_ready()),
    ]
    return [*heard, told(caller.query("COMMIT"))]


def terminate_oneself(connect: Connect) -> Heard:
    client = connect()
    return [told(client.query(f"SELECT pg_terminate_backend({client.process_id})"))]


def cancel_a_statement(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    victim.send(query(b"SELECT pg_sleep(30)"))
    wait_until_asleep(caller)
    heard = told(caller.query(f"SELECT pg_cancel_backend({victim.process_id})"))
    return [heard, told(victim.until_ready()), told(victim.query("SELECT 1"))]


def cancel_an_idle_session(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    victim.query("SET work_mem = '5MB'")
    heard = told(caller.query(f"SELECT pg_cancel_backend({victim.process_id})"))
    return [heard, told(victim.query("SHOW work_mem")), told(caller.query("SHOW work_mem"))]


def cancel_oneself(connect: Connect) -> Heard:
    client = connect()
    heard = told(client.query(f"SELECT pg_cancel_backend({client.process_id}), pg_sleep(1)"))
    return [heard, told(client.query("SELECT 1"))]


def a_string_that_is_a_number(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    heard = told(
        caller.query(f"SELECT pg_terminate_backend('{victim.process_id}'), 'x' /* {victim.process_id} */")
    )
    return [heard, told(victim.until_ready())]


def behind_an_error(connect: Connect) -> Heard:
    other, caller = connect(), connect()
    caller.send(parse("end", "SELECT pg_terminate_backend($1)"), parse("", "SELECT nothing"))
    caller.send(bind("", "end", str(other.process_id)), execute(), SYNC)
    return [told(caller.until_ready()), told(other.query("SELECT 1"))]


def one_of_those_that_are_shown(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {victim.process_id}"
    return [told(caller.query(sql)), told(victim.until_ready())]


def a_parameter(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    batch = [parse("", "SELECT pg_terminate_backend($1)"), bind("", "", str(victim.process_id))]
    caller.send(*batch, describe("P"), execute(), SYNC)
    return [told(caller.until_ready()), told(victim.until_ready())]


def parameters_in_binary_of_a_prepared_statement(connect: Connect) -> Heard:
    caller = connect()
    caller.send(parse("end", "SELECT pg_terminate_backend($1)"), SYNC)
    heard = [told(caller.until_ready())]
    for _ in range(3):
        victim = connect()
        caller.send(bound("end", victim.process_id.to_bytes(4), 1), execute(), SYNC)
        heard += [told(caller.until_ready()), told(victim.until_ready())]
    return heard


def a_number_in_a_prepared_statement(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    sql = f"SELECT pg_terminate_backend({victim.process_id}), $1"
    caller.send(parse("", sql), describe("S"), bind("", "", "x"), describe("P"), execute(), SYNC)
    heard = [told(caller.until_ready()), told(victim.until_ready())]
    again = connect()
    caller.send(parse("", f"SELECT pg_cancel_backend({caller.process_id}), 1"), SYNC)
    heard.append(told(caller.until_ready()))
    caller.send(bind("", ""), describe("P"), SYNC)  # when no link is the caller's any more
    heard.append(told(caller.until_ready()))
    caller.send(parse("end", f"SELECT pg_cancel_backend({again.process_id})"), SYNC)
    heard.append(told(caller.until_ready()))
    for _ in range(2):
        again.send(query(b"SELECT pg_sleep(30)"))
        wait_until_asleep(connect())
        caller.send(bind("", "end"), execute(), SYNC)
        heard += [told(caller.until_ready()), told(again.until_ready()), told(connect().query("SELECT 1"))]
    return heard


def a_long_parameter(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    caller.send(parse("", "SELECT pg_terminate_backend($1::int8::int)"))
    caller.send(bound("", victim.process_id.to_bytes(8), 1), execute(), SYNC)
    return [told(caller.until_ready()), told(victim.until_ready())]


def a_prepared_statement_in_sql(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    caller.query("PREPARE stop AS SELECT pg_terminate_backend($1)")
    return [told(caller.query(f"EXECUTE stop ({victim.process_id})")), told(victim.until_ready())]


def two_at_once(connect: Connect) -> Heard:
    first, second, caller = connect(), connect(), connect()
    sql = f"SELECT pg_terminate_backend({first.process_id}), pg_terminate_backend({second.process_id})"
    return [told(caller.query(sql)), told(first.until_ready()), told(second.until_ready())]


def in_a_pipeline(connect: Connect) -> Heard:
    first, second, caller = connect(), connect(), connect()
    caller.send(query(b"SELECT 1"), query(b"SELECT pg_terminate_backend(%d)" % first.process_id))
    caller.send(
        parse("", "SELECT pg_terminate_backend($1)"), bind("", "", str(second.process_id)), execute(), SYNC
    )
    heard = [told(caller.until_ready()) for _ in range(3)]
    return [*heard, told(first.until_ready()), told(second.until_ready())]


def what_the_role_may_not(connect: Connect) -> Heard:
    victim, caller = connect(), connect()
    caller.query("SET ROLE app")
    heard = told(terminate(caller, victim))
    return [heard, told(victim.query("SELECT 1"))]


def nobody(connect: Connect) -> Heard:
    client = connect()
    return [
        told(client.query("SELECT pg_terminate_backend(33554431)")),
        told(client.query("SELECT pg_cancel_backend(2147483647)")),
        told(client.query("SELECT pg_terminate_backend(-1)")),
    ]


SCENARIOS: tuple[Scenario, ...] = (
    terminate_an_idle_session,
    terminate_one_that_has_only_begun,
    terminate_a_statement,
    terminate_a_transaction,
    terminate_from_a_transaction,
    terminate_oneself,
    cancel_a_statement,
    cancel_an_idle_session,
    cancel_oneself,
    a_string_that_is_a_number,
    behind_an_error,
    one_of_those_that_are_shown,
    a_parameter,
    parameters_in_binary_of_a_prepared_statement,
    a_number_in_a_prepared_statement,
    a_long_parameter,
    a_prepared_statement_in_sql,
    two_at_once,
    in_a_pipeline,
    what_the_role_may_not,
    nobody,
)


ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


def wait_until_asleep(client: WireClient) -> None:
    """Waits until a statement is in pg_sleep."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    while client.value(sql) != "1":
        pass


@pytest.fixture
def direct(trusted: tuple[str, int], database: Database) -> Iterator[Connect]:
    with ExitStack() as stack:

        def make() -> WireClient:
            client = stack.enter_context(WireClient(socket.create_connection(trusted, 10)))
            return client.log_in(database.server.user, database.dbname)

        yield make


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.__name__ for scenario in SCENARIOS])
def test_as_directly(scenario: Scenario, connect: Connect, direct: Connect, relay: RunningRelay) -> None:
    proxied = scenario(connect)
    assert proxied == scenario(direct)
    witness = connect()
    assert kinds(witness.query("SELECT 1")) == "TDCZ"
    relay.wait_for(lambda: relay.call(settled), "no link is kept, and none beyond the limit")


def settled(relay: object) -> bool:
    return len(relay.links) <= 2 and not any(link.pins for link in relay.links)  # type: ignore[attr-defined]


@pytest.fixture
def single(database: Database) -> Iterator[tuple[RunningRelay, Connect]]:
    """A relay with one link, and clients of it."""
    with RunningRelay(database, config={"pools": {"default_pool_size": 1}}) as relay, ExitStack() as stack:

        def connect() -> WireClient:
            client = stack.enter_context(WireClient(relay.connect()))
            return client.log_in(database.server.user, database.dbname)

        yield relay, connect


def test_the_only_link_is_not_in_the_way(single: tuple[RunningRelay, Connect]) -> None:
    relay, connect = single
    victim, caller, other = connect(), connect(), connect()
    caller.query("BEGIN; SELECT 1")  # has the link
    other.send(query(b"SELECT 7"))  # waits for it
    heard = terminate(caller, victim)
    assert told(heard)[0] == ("D", "\0\1\0\0\0\1t")
    assert sqlstate(victim.until_ready()) == "57P01"
    caller.query("COMMIT")
    assert kinds(other.until_ready()) == "TDCZ"
    relay.wait_for(lambda: relay.call(lambda r: len(r.links)) == 1, "one link is left")


def test_a_session_that_waits_for_a_link_is_ended(single: tuple[RunningRelay, Connect]) -> None:
    _, connect = single
    victim, caller = connect(), connect()
    caller.query("BEGIN; SELECT 1")
    victim.send(query(b"SELECT pg_sleep(30)"))
    assert told(terminate(caller, victim))[0] == (
        "D",
        "\0\1\0\0\0\1t",
    )
    assert sqlstate(victim.until_ready()) == "57P01"


def test_two_sessions_that_end_each_other(single: tuple[RunningRelay, Connect]) -> None:
    _, connect = single
    first, second = connect(), connect()
    first.send(query(b"SELECT pg_terminate_backend(%d)" % second.process_id))
    second.send(query(b"SELECT pg_terminate_backend(%d)" % first.process_id))
    heard = [first.until_ready(), second.until_ready()]
    assert "57P01" in {sqlstate(frames) for frames in heard if "E" in kinds(frames)}


def test_a_caller_that_leaves_at_once(single: tuple[RunningRelay, Connect]) -> None:
    relay, connect = single
    victim, caller = connect(), connect()
    caller.send(query(b"SELECT pg_sleep(1), pg_terminate_backend(%d)" % victim.process_id))
    relay.wait_for(lambda: relay.shared.execute(ASLEEP)[0][0] == 1, "it runs")
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.socket.close()
    assert sqlstate(victim.until_ready()) == "57P01"
    relay.wait_for(lambda: relay.call(settled), "no link is kept")


def test_a_busy_neighbour_is_never_hit(connect: Connect, relay: RunningRelay) -> None:
    """Sessions share two links: the one that an idle session used last runs another's statements now."""
    neighbours = [connect(), connect()]
    caller = connect()
    for _ in range(30):
        victim = connect()
        victim.query("SELECT 1")
        for neighbour in neighbours:
            neighbour.send(query(b"SELECT 1"))
        caller.send(query(b"SELECT pg_terminate_backend(%d)" % victim.process_id))
        for neighbour in neighbours:
            neighbour.send(query(b"SELECT 2"))
        assert [kinds(neighbour.until_ready()) for neighbour in neighbours * 2] == ["TDCZ"] * 4
        assert told(caller.until_ready())[0] == ("D", "\0\1\0\0\0\1t")
        assert sqlstate(victim.until_ready()) == "57P01"
    relay.wait_for(lambda: relay.call(settled), "no link is kept, and none beyond the limit")


def test_a_caller_in_a_transaction_at_a_copy_signals_at_the_owner(
    databases: tuple[Database, Database],
) -> None:
    with moving(databases) as relay, client_of(relay) as victim, client_of(relay) as caller:
        caller.query("BEGIN")
        assert asked(caller) == "copy"
        assert told(terminate(caller, victim))[0] == ("D", "\0\1\0\0\0\1t")
        assert sqlstate(victim.until_ready()) == "57P01"


def test_however_many_are_named_few_links_are_opened(connect: Connect, relay: RunningRelay) -> None:
    victims = [connect() for _ in range(40)]
    caller = connect()
    named = [victim.process_id for victim in victims]
    named += [number for number in range(2**24, 2**24 + 5000) if number not in named]
    links = "(SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())"
    for text in (",".join(map(str, named)), ",".join(f"'{number}'" for number in named)):
        sql = f"SELECT {links}, count(pg_cancel_backend(pid::int)) FROM unnest(ARRAY[{text}]) pid"
        heard = caller.query(sql)
        assert kinds(heard).replace("N", "") == "TDCZ"
        row = next(frame.body for frame in heard if frame.kind == "D")
        assert int(row[6 : 6 + row[5]]) <= 2 + 8 + 1
        assert [kinds(victim.query("SELECT 1")) for victim in victims] == ["TDCZ"] * 40
        relay.wait_for(lambda: relay.call(settled), "no link is kept, and none beyond the limit")


def held(relay: RunningRelay) -> int:
    """Links that are kept because a statement may signal their sessions."""
    return relay.call(lambda r: sum("signalled" in link.pins for link in r.links))  # type: ignore[attr-defined]


def give_up_holds(relay: RunningRelay) -> None:
    relay.call(lambda r: setattr(r, "held_ns_max", 0))
    relay.wait_for(lambda: held(relay) == 0, "whoever was named is let go")


def test_an_open_transaction_holds_few_sessions_and_not_for_long(database: Database) -> None:
    with (
        RunningRelay(database, config={"pools": {"default_pool_size": 40}}) as relay,
        ExitStack() as stack,
    ):

        def connect() -> WireClient:
            client = stack.enter_context(WireClient(relay.connect()))
            return client.log_in(database.server.user, database.dbname)

        caller, victims = connect(), [connect() for _ in range(20)]
        caller.query("BEGIN")
        for some in (victims[:12], victims[12:]):
            pids = ", ".join(f"pg_cancel_backend({victim.process_id})" for victim in some)
            assert "E" not in kinds(caller.query(f"SELECT {pids}"))
        assert held(relay) == 16
        give_up_holds(relay)
        assert [kinds(victim.query("SELECT 1")) for victim in victims] == ["TDCZ"] * 20
        assert kinds(caller.query("COMMIT")) == "CZ"


def test_who_is_let_go_before_the_signal_comes_is_not_hit_by_it_and_nobody_else_is(
    connect: Connect, relay: RunningRelay
) -> None:
    victim, caller = connect(), connect()
    caller.query("BEGIN")
    text = f"SELECT pg_terminate_backend({victim.process_id})"
    assert kinds(caller.query(f"DECLARE late CURSOR FOR {text}")) == "CZ"
    assert held(relay) == 1
    give_up_holds(relay)
    neighbour = connect()
    assert kinds(neighbour.query("BEGIN; SELECT 1")) == "CTDCZ"
    assert told(caller.query("FETCH late"))[-3] == ("D", "\0\1\0\0\0\1f")
    assert kinds(neighbour.query("SELECT 1; COMMIT")) == "TDCCZ"
    assert kinds(victim.query("SELECT 1")) == "TDCZ"


def test_callers_that_name_each_others_only_links_all_go_on(single: tuple[RunningRelay, Connect]) -> None:
    relay, connect = single
    victims, callers = [connect() for _ in range(30)], [connect() for _ in range(30)]
    holder = connect()
    holder.query("BEGIN; SELECT 1")
    for victim, caller in zip(victims, callers, strict=True):
        caller.send(query(b"SELECT pg_cancel_backend(%d)" % victim.process_id))
    for caller in callers:
        assert kinds(caller.until_ready()).replace("N", "") == "TDCZ"
    holder.query("COMMIT")
    relay.wait_for(lambda: relay.call(lambda r: r.links_open) <= 1, "none beyond the limit is left")


# --- sessions whose link is not there yet ------------------------------------------------------------------


class Gate(Cutter):
    """A forwarder that lets new connections in only while it is open."""

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__(server)
        self.open = threading.Event()
        self.open.set()
        self.came = 0

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        self.came += 1
        self.open.wait()
        super()._serve(client, server)


@pytest.fixture
def gated(database: Database) -> Iterator[tuple[RunningRelay, Connect, Gate]]:
    """A relay with one link, clients of it, and a gate in front of its server."""
    address = database.server.host, database.server.port
    with (
        Gate(address) as gate,
        RunningRelay(
            database, config={"pools": {"default_pool_size": 1}}, shared_port=gate.address[1]
        ) as relay,
        ExitStack() as stack,
    ):

        def connect() -> WireClient:
            client = stack.enter_context(WireClient(relay.connect(timeout_s=5)))
            return client.log_in(database.server.user, database.dbname)

        yield relay, connect, gate
        gate.open.set()


def seen_by(relay: RunningRelay, witness: WireClient) -> None:
    """What has been sent so far has been received: the witness has been served in two rounds behind it."""
    for sql in ("BEGIN", "ROLLBACK"):
        assert kinds(witness.query(sql)) == "CZ"


def test_a_session_that_several_signal_gets_one_link(gated: tuple[RunningRelay, Connect, Gate]) -> None:
    relay, connect, gate = gated
    victim, first, second, holder, witness = (connect() for _ in range(5))
    holder.query("BEGIN; SELECT 1")
    before = gate.came
    gate.open.clear()
    for caller in (first, second):
        caller.send(query(b"SELECT pg_cancel_backend(%d)" % victim.process_id))
    seen_by(relay, witness)
    relay.wait_for(lambda: gate.came > before, "a link is being opened")
    seen_by(relay, witness)
    assert relay.call(lambda r: r.links_open) == 2
    gate.open.set()
    holder.query("COMMIT")
    for caller in (first, second):
        assert told(caller.until_ready())[0] == ("D", "\0\1\0\0\0\1t")
    relay.wait_for(lambda: relay.call(lambda r: r.links_open) <= 1, "none beyond the limit is left")


def test_a_session_that_leaves_before_its_link_is_there_is_nobody(
    gated: tuple[RunningRelay, Connect, Gate],
) -> None:
    relay, connect, gate = gated
    victim, caller = connect(), connect()
    caller.query("BEGIN; SELECT 1")
    before = gate.came
    gate.open.clear()
    caller.send(query(b"SELECT pg_cancel_backend(%d)" % victim.process_id))
    relay.wait_for(lambda: gate.came > before, "a link is being opened")
    victim.socket.close()
    assert told(caller.until_ready())[1] == ("D", "\0\1\0\0\0\1f")
    gate.open.set()
    caller.query("COMMIT")
    relay.wait_for(lambda: relay.call(lambda r: r.links_open) <= 1, "none beyond the limit is left")


def cancelled(relay: RunningRelay, client: WireClient) -> list[Frame]:
    with relay.connect() as other:
        other.sendall(cancel_request(client.process_id, client.secret_key))
        assert other.recv(1) == b""
    return client.until_ready()


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_cancel_while_the_others_are_found_ends_the_statement(
    begun: bool, extended: bool, gated: tuple[RunningRelay, Connect, Gate]
) -> None:
    relay, connect, gate = gated
    victim, caller, holder = connect(), connect(), connect()
    if begun:
        caller.query("BEGIN; SELECT 1")
    elif not extended:
        holder.query("BEGIN; SELECT 1")  # has the only link
    before = gate.came
    gate.open.clear()
    if extended:
        caller.send(
            parse("", "SELECT pg_cancel_backend($1)"), bind("", "", str(victim.process_id)), execute(), SYNC
        )
    else:
        caller.send(query(b"SELECT pg_cancel_backend(%d)" % victim.process_id))
    relay.wait_for(lambda: gate.came > before, "a link is being opened for it")
    heard = cancelled(relay, caller)
    assert kinds(heard) == ("1EZ" if extended else "EZ")
    assert told(heard)[-2] == ("E", "ERROR 57014 canceling statement due to user request")
    assert heard[-1].body == (b"E" if begun else b"I")
    if begun:
        assert sqlstate(caller.query("SELECT 1")) == "25P02"
        assert kinds(caller.query("ROLLBACK")) == "CZ"
    gate.open.set()
    holder.query("ROLLBACK")
    for client in (victim, caller, holder):
        assert kinds(client.query("SELECT 1")) == "TDCZ"
    assert told(caller.query(f"SELECT pg_cancel_backend({victim.process_id})"))[0] == (
        "D",
        "\0\1\0\0\0\1t",
    )
    relay.wait_for(lambda: relay.call(settled), "no link is kept")


def test_whom_a_statement_names_that_is_refused_is_let_go(connect: Connect, relay: RunningRelay) -> None:
    """What it returns has changed since it was prepared, on a link that it was not prepared on."""
    victim, caller, holder = connect(), connect(), connect()
    caller.send(parse("end", "SELECT pg_cancel_backend($1), * FROM t WHERE id = 1"), SYNC)
    assert kinds(caller.until_ready()) == "1Z"
    holder.query("BEGIN; SELECT 1")
    relay.shared.execute("ALTER TABLE t ADD COLUMN more int")
    for _ in range(2):
        caller.send(bind("", "end", str(victim.process_id)), execute(), SYNC)
        heard = caller.until_ready()
    assert sqlstate(heard) == "0A000"
    holder.query("COMMIT")
    assert kinds(victim.query("SELECT 1")) == "TDCZ"
    relay.wait_for(lambda: relay.call(settled), "no link is kept")


def test_a_caller_that_is_told_to_go_holds_nobody(
    gated: tuple[RunningRelay, Connect, Gate], database: Database
) -> None:
    """It does not read what it is told, and so is there for a while; nothing that it asked for is sent."""
    relay, connect, gate = gated
    names = [f"{'x' * 50}_{number}" for number in range(20)]
    database.execute(";".join(f"CREATE TABLE {name} (id int)" for name in names))
    victim, holder = connect(), connect()
    callers: list[object] = []

    def ask(session: object, process_id: int, endpoint: int) -> None:
        callers.append(session)
        asked(session, process_id, endpoint)

    asked = relay.call(lambda r: r.signals.ask)  # type: ignore[attr-defined]
    relay.call(lambda r: setattr(r.signals, "ask", ask))  # type: ignore[attr-defined]
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", relay.port))
    with WireClient(connection) as caller:
        caller.log_in(database.server.user, database.dbname)
        caller.query(f"SELECT FROM {', '.join(names)}")
        holder.query("BEGIN; SELECT 1")  # has the only link
        gate.open.clear()
        text = b"SELECT pg_cancel_backend(%d)" % victim.process_id
        caller.send(
            query(b"SHOW pgshunt.route") * 1500, query(text)
        )  # the answers are more than all buffers hold
        relay.wait_for(lambda: bool(callers), "it waits for its victim")
        relay.call(lambda r: r.finish_session(callers[0]))  # type: ignore[arg-type]
        gate.open.set()
        relay.wait_for(lambda: relay.call(lambda r: r.links_open == len(r.links)), "the link is there")
        holder.query("COMMIT")
        assert kinds(victim.query("SELECT 1")) == "TDCZ"
        relay.wait_for(lambda: relay.call(settled), "no link is kept")
        assert relay.call(lambda r: r.clients) == 3


def test_what_had_changed_while_a_statement_was_cancelled_is_asked_anew(
    connect: Connect, direct: Connect, relay: RunningRelay
) -> None:
    """The table is as it was when the statement is run again."""
    victim, caller, holder, owner, witness = connect(), connect(), connect(), direct(), direct()
    caller.send(parse("end", "SELECT pg_cancel_backend($1), * FROM t WHERE id = 1"), SYNC)
    assert kinds(caller.until_ready()) == "1Z"
    holder.query("BEGIN; SELECT 1")  # has the link that it was prepared on
    owner.query("BEGIN; ALTER TABLE t ADD COLUMN more int")
    batch = bind("", "end", str(victim.process_id)), execute(), SYNC
    caller.send(*batch)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%cancel%'"
    relay.wait_for(lambda: witness.value(f"{waits} AND datname = current_database()") != "0", "it is parsed")
    with relay.connect() as other:
        other.sendall(cancel_request(caller.process_id, caller.secret_key))
        assert other.recv(1) == b""
    owner.query("COMMIT")
    assert sqlstate(caller.until_ready()) == "57014"
    owner.query("ALTER TABLE t DROP COLUMN more")
    caller.send(*batch)
    assert kinds(caller.until_ready()) == "2DCZ"
    holder.query("COMMIT")
