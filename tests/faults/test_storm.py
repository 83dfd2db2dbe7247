"""Many clients on two links, while servers are killed, statements cancelled and clients vanish: nobody hangs,
nobody hears another's answer, nothing acknowledged is lost, and in the end everything is accounted for.

`make test` plays two short storms; STORM_ROUNDS=n plays so many connections of each client, from the seed
STORM_SEED (default 1) on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from types import SimpleNamespace

import pytest
from support.cutter import Cutter
from support.fixtures import Database
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
    kinds,
    parse,
)

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

CLIENTS = 64
ROUNDS = int(os.environ.get("STORM_ROUNDS", "3"))
FIRST_SEED = int(os.environ.get("STORM_SEED", "1"))
ACTS_MAX = 6
# Who is not answered within this time hangs; a session that waits for a link is told of it before.
PATIENCE_S = 40
QUERY_WAIT_MS = 20_000

# What a client may be told because of what the storm does; anything else is a mistake.
DONE_TO_IT = {"57P01", "57014", "08001", "08006", "08007", "25P02"}


class Gone(Exception):
    """The connection has ended, with an error that says why or because a server was killed."""


class Caller:
    """One client of the storm: connects, does a few things, goes in one way or another, `rounds` times."""

    def __init__(self, storm: Storm, number: int, seed: int) -> None:
        self.storm = storm
        self.number = number
        self.random = Random(seed * 1000 + number)
        self.marks = 0
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self.doing = "nothing"
        self.client: WireClient

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            self.doing = "log in"
            with WireClient(self.storm.relay.connect(timeout_s=PATIENCE_S)) as self.client:
                try:
                    self.log_in()
                    for _ in range(self.random.randint(1, ACTS_MAX)):
                        self.act(self.random.choice(ACTS))
                    self.act(self.random.choice(FAREWELLS))
                except (Gone, ConnectionResetError, BrokenPipeError):
                    self.storm.seen["gone"] += 1
        self.doing = "nothing"

    def act(self, act: Callable[[Caller], None]) -> None:
        self.doing = act.__name__
        self.storm.seen[act.__name__] += 1
        act(self)

    def log_in(self) -> None:
        server = self.storm.relay.shared.server
        self.client.send(
            messages.startup_message(
                {b"user": server.user.encode(), b"database": self.storm.relay.shared.dbname.encode()}
            )
        )
        frames = self.hear()
        for frame in frames:
            if frame.kind == "K":
                self.client.process_id = int.from_bytes(frame.body[:4])
                self.client.secret_key = frame.body[4:]

    # --- hearing ----------------------------------------------------------------------------------------

    def hear(self) -> list[Frame]:
        """One answer up to ReadyForQuery. Raises Gone at the end, once the reason is looked at."""
        frames = self.client.until_ready()
        for code in errors(frames):
            assert code in DONE_TO_IT, f"{code} to {self.doing}: {frames}"
        if frames[-1].kind != "Z":
            raise Gone
        return frames

    def mark(self) -> str:
        """A text nobody else asks for."""
        self.marks += 1
        return f"m{self.number}x{self.marks}"

    def expect(self, frames: list[Frame], mark: str) -> None:
        """The answer is the one asked for, unless it is an error."""
        rows = [frame.body[6:].decode() for frame in frames if frame.kind == "D"]
        assert rows == [mark] or errors(frames), f"{self.doing}: {rows} in place of {mark}"

    def ask(self, sql: str) -> list[Frame]:
        self.client.send(query(sql))
        return self.hear()

    def end_transaction(self) -> None:
        frames = self.ask("ROLLBACK")
        assert frames[-1].body == b"I"

    # --- what it does -----------------------------------------------------------------------------------

    def simple(self) -> None:
        mark = self.mark()
        self.expect(self.ask(f"SELECT '{mark}'"), mark)

    def pipelined(self) -> None:
        marks = [self.mark() for _ in range(self.random.randint(2, 6))]
        self.client.send(*[query(f"SELECT '{mark}', pg_sleep(0.001)") for mark in marks])
        for mark in marks:
            frames = self.hear()
            row = next((frame.body for frame in frames if frame.kind == "D"), None)
            assert errors(frames) or (row is not None and mark.encode() in row), f"{mark}: {frames}"

    def prepared(self) -> None:
        """A statement that all know by the same name and text, its answer the client's own."""
        mark = self.mark()
        self.client.send(
            parse("s", "SELECT $1::text"), bind("", "s", mark), describe("P"), execute(), SYNC,
            b"C\0\0\0\x07Ss\0", SYNC,
        )  # fmt: skip
        frames = self.hear()
        self.expect(frames, mark)
        self.hear()

    def unnamed(self) -> None:
        """Parsed in one batch, run in others: on whatever link comes."""
        mark = self.mark()
        self.client.send(parse("", f"SELECT '{mark}' || $1::text"), describe("S"), SYNC)
        if errors(self.hear()):
            return
        for turn in ("a", "b"):
            self.client.send(bind("", "", turn), execute(), SYNC)
            self.expect(self.hear(), mark + turn)

    def settings(self) -> None:
        """What is set is found again, whoever has used the link since."""
        mark = self.mark()
        if errors(self.ask(f"SET app.mark = '{mark}'")):
            return
        for _ in range(3):
            self.expect(self.ask("SELECT current_setting('app.mark')"), mark)

    def pinned(self) -> None:
        mark = self.mark()
        if errors(self.ask(f"CREATE TEMP TABLE IF NOT EXISTS own AS SELECT '{mark}' AS v")):
            return
        rows = self.ask("SELECT v FROM own")
        assert kinds(rows) == "TDCZ" or errors(rows)
        self.ask("DROP TABLE IF EXISTS own")

    def transaction(self) -> None:
        """A row of its own: acknowledged, unknown, or certainly not there."""
        key = self.storm.next_key()
        if errors(self.ask("BEGIN")):
            return
        self.unknown.add(key)
        for sql in (f"INSERT INTO ledger VALUES ({key})", "COMMIT"):
            if errors(self.ask(sql)):
                self.end_transaction()
                if sql != "COMMIT":
                    self.unknown.discard(key)
                return
        self.unknown.discard(key)
        self.acknowledged.add(key)

    def cancelled(self) -> None:
        mark = self.mark()
        self.client.send(query(f"SELECT '{mark}' FROM pg_sleep(0.02)"))
        if self.random.random() < 0.3:
            self.client.send(query("SELECT 'behind'"))
            behind = 1
        else:
            behind = 0
        with self.storm.relay.connect(timeout_s=PATIENCE_S) as canceller:
            canceller.sendall(messages.cancel_request(self.client.process_id, self.client.secret_key))
            with suppress(ConnectionResetError):
                assert canceller.recv(1) == b""
        self.expect(self.hear(), mark)
        for _ in range(behind):
            self.expect(self.hear(), "behind")

    def cancelled_late(self) -> None:
        """Nobody waits for the cancel request: it may arrive at any time, and must hit nobody else."""
        with self.storm.relay.connect(timeout_s=PATIENCE_S) as canceller:
            mark = self.mark()
            self.client.send(query(f"SELECT '{mark}'"))
            canceller.sendall(messages.cancel_request(self.client.process_id, self.client.secret_key))
        self.expect(self.hear(), mark)

    def copied(self) -> None:
        self.client.send(query("COPY ledger FROM STDIN"))
        frame = self.client.frame()
        while frame.kind in "NS":
            frame = self.client.frame()
        if frame.kind == "G":
            key = self.storm.next_key()
            self.unknown.add(key)
            self.client.send(copy_data(b"%d\n" % key), COPY_DONE)
            if not errors(self.hear()):
                self.unknown.discard(key)
                self.acknowledged.add(key)
        else:
            assert frame.kind == "E", frame
            self.hear()

    def failing(self) -> None:
        self.client.send(
            parse("", "SELECT 1 FROM generate_series(1, 2) g WHERE g / (g - 2) > 9"),
            bind("", ""),
            execute(),
            parse("", "SELECT 2"),
            SYNC,
            query("SELECT 'after'"),
        )
        frames = self.client.until_ready()
        assert set(errors(frames)) <= {"22012", *DONE_TO_IT}, frames
        if frames[-1].kind != "Z":
            raise Gone
        self.expect(self.hear(), "after")

    def flushed(self) -> None:
        self.client.send(parse("", "SELECT 1"), FLUSH)
        frame = self.client.frame()
        assert frame.kind in "1E", frame
        self.client.send(SYNC)
        self.hear()

    def large(self) -> None:
        mark = self.mark()
        self.client.send(parse("", "SELECT left($1, 20)"))
        self.client.send(bind("", "", mark + " " * 200_000), execute(), SYNC)
        frames = self.hear()
        self.expect(frames, mark.ljust(20))

    # --- how it goes ------------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        mark = self.mark()
        self.client.send(query(f"SELECT '{mark}'"), TERMINATE)
        self.expect(self.hear(), mark)
        self.hear_the_end()

    def half_close(self) -> None:
        """Sends no more and still hears all that it asked."""
        marks = [self.mark() for _ in range(3)]
        self.client.send(*[query(f"SELECT '{mark}'") for mark in marks])
        self.client.socket.shutdown(socket.SHUT_WR)
        for mark in marks:
            self.expect(self.hear(), mark)
        self.hear_the_end()

    def half_close_behind_much(self) -> None:
        mark = self.mark()
        self.client.send(query(f"SELECT '{mark}' -- " + "x" * 150_000))
        self.client.socket.shutdown(socket.SHUT_WR)
        self.expect(self.hear(), mark)
        self.hear_the_end()

    def half_close_within_a_message(self) -> None:
        mark = self.mark()
        self.client.send(query(f"SELECT '{mark}'"), parse("", "SELECT $1"))
        self.client.send(bind("", "", "v" * 200_000)[: self.random.choice((3, 100, 70_000, 150_000))])
        self.client.socket.shutdown(socket.SHUT_WR)
        self.expect(self.hear(), mark)
        self.hear_the_end()

    def hear_the_end(self) -> None:
        frames = self.client.until_ready()
        assert frames[-1].body == b"closed", frames
        assert set(errors(frames)) <= DONE_TO_IT, frames

    def vanish(self) -> None:
        """Closes behind a question."""
        self.client.send(query("SELECT pg_sleep(0.01)"))

    def vanish_at_once(self) -> None:
        self.client.send(query("SELECT pg_sleep(0.01)"))
        self.reset()

    def vanish_in_a_transaction(self) -> None:
        self.ask("BEGIN")
        self.ask("SELECT 1")
        if self.random.random() < 0.5:
            self.reset()

    def vanish_in_a_batch(self) -> None:
        self.client.send(parse("", "SELECT pg_sleep(0.01)"), bind("", ""), execute(), FLUSH)
        if self.random.random() < 0.5:
            self.reset()

    def vanish_in_a_message(self) -> None:
        sent = parse("", "SELECT $1::text") + bind("", "", "v" * 100_000)
        self.client.send(sent[: self.random.randrange(len(sent))])
        if self.random.random() < 0.5:
            self.reset()

    def vanish_in_copy(self) -> None:
        self.client.send(query("COPY ledger FROM STDIN"), copy_data(b"-1\n"))
        if self.random.random() < 0.5:
            self.reset()

    def vanish_with_answers_on_their_way(self) -> None:
        self.client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 3000)"))
        if self.random.random() < 0.5:
            self.client.frame()
        if self.random.random() < 0.5:
            self.reset()

    def reset(self) -> None:
        self.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


ACTS = [
    Caller.simple, Caller.pipelined, Caller.prepared, Caller.unnamed, Caller.settings, Caller.pinned,
    Caller.transaction, Caller.cancelled, Caller.cancelled_late, Caller.copied, Caller.failing,
    Caller.flushed, Caller.large,
]  # fmt: skip
FAREWELLS = [
    Caller.say_goodbye, Caller.half_close, Caller.half_close_behind_much, Caller.half_close_within_a_message,
    Caller.vanish, Caller.vanish_at_once, Caller.vanish_in_a_transaction, Caller.vanish_in_a_batch,
    Caller.vanish_in_a_message, Caller.vanish_in_copy, Caller.vanish_with_answers_on_their_way,
]  # fmt: skip


class Storm:
    """64 callers, and one that kills the servers they are on."""

    def __init__(self, relay: RunningRelay, database: Database, cutter: Cutter, seed: int) -> None:
        self.relay, self.database, self.cutter = relay, database, cutter
        self.random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.callers = [Caller(self, number, seed) for number in range(CLIENTS)]
        self._keys = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def next_key(self) -> int:
        with self._lock:
            self._keys += 1
            return self._keys

    def rage(self, rounds: int) -> None:
        threads = [
            threading.Thread(target=self._guarded, args=(caller.run, rounds), daemon=True)
            for caller in self.callers
        ]
        killer = threading.Thread(target=self._guarded, args=(self._kill,), daemon=True)
        for thread in (*threads, killer):
            thread.start()
        for thread in threads:
            while thread.is_alive() and not self.failures:
                thread.join(0.2)
        self._over.set()
        killer.join(PATIENCE_S)
        assert not self.failures, self.failures[0]

    def _guarded(self, work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as failure:  # noqa: BLE001 - told by `rage`, in the test's thread
            doing = getattr(getattr(work, "__self__", None), "doing", work.__name__)
            failure.add_note(f"during {doing!r}")
            self.failures.append(failure)

    def _kill(self) -> None:
        """Terminates server processes and cuts connections, one every few hundredths of a second."""
        with self.database.connect() as own:
            while not self._over.wait(self.random.uniform(0.01, 0.15)):
                pids = own.run(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                    " AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
                )
                verb = self.random.choice(("terminate", "terminate", "cancel", "cut"))
                if verb == "cut":
                    self.seen[verb] += self.cutter.cut(self.random)
                elif pids:
                    own.run(f"SELECT pg_{verb}_backend({self.random.choice(pids)[0]})")
                    self.seen[verb] += 1


def errors(frames: list[Frame]) -> list[str]:
    return [read_error(frame.body).sqlstate or "" for frame in frames if frame.kind == "E"]


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 2))
@pytest.mark.timeout(0 if "STORM_ROUNDS" in os.environ else 120)
def test_nobody_hangs_and_nothing_is_lost(seed: int, database: Database) -> None:
    database.execute("CREATE TABLE ledger (key int)")
    pools = {"default_pool_size": 2, "query_wait_timeout_ms": QUERY_WAIT_MS}
    server = database.server
    with (
        Cutter((server.host, server.port)) as cutter,
        RunningRelay(behind(cutter, database), config={"pools": pools}) as relay,
    ):
        storm = Storm(relay, database, cutter, seed)
        began = time.monotonic()
        storm.rage(ROUNDS)
        print(f"{time.monotonic() - began:.1f} s, {dict(storm.seen)}")
        relay.wait_for(
            lambda: relay.call(lambda r: (r.clients, r.waiting)) == (0, 0), "all sessions are gone"
        )
        relay.wait_for(lambda: links(relay)[0] == links(relay)[1], f"links are accounted for: {links(relay)}")
        processes = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        relay.wait_for(
            lambda: database.execute(processes)[0][0] == links(relay)[0], "as the server counts them"
        )
        assert links(relay)[0] <= 2
        with WireClient(relay.connect()) as later:
            later.log_in(database.server.user, database.dbname)
            assert later.value("SELECT 'served'") == "served"
        assert [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")] == []
    kept = Counter(key for (key,) in database.execute("SELECT key FROM ledger"))
    acknowledged = set().union(*(caller.acknowledged for caller in storm.callers))
    unknown = set().union(*(caller.unknown for caller in storm.callers))
    assert acknowledged <= set(kept), f"lost: {acknowledged - set(kept)}"
    assert set(kept) <= acknowledged | unknown, f"nobody was told: {set(kept) - acknowledged - unknown}"
    assert set(kept.values()) <= {1}, "written twice"


def behind(cutter: Cutter, database: Database) -> Database:
    """The database as it is reached through the cutter."""
    host, port = cutter.address
    address = SimpleNamespace(**{name: getattr(database.server, name) for name in ("user", "password")})
    address.host, address.port, address.execute = host, port, database.server.execute
    return Database(address, database.dbname)  # type: ignore[arg-type]


def links(relay: RunningRelay) -> tuple[int, int, int]:
    """(counted, there, counted by endpoint)."""
    return relay.call(
        lambda r: (r.links_open, len(r.links), sum(state.links for state in r.endpoints))  # type: ignore[attr-defined]
    )
