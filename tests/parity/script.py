"""Makes up what clients send: seeded sequences of messages for several sessions, cut into turns.

A turn is what a client sends without waiting for an answer. Most turns end with a marker, whose answer
cannot be mistaken and which changes nothing, so that the answers of the whole turn are known to have come.
Each session has tables of its own: its answers do not depend on what the others do.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from support.wire import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    close,
    copy_data,
    describe,
    execute,
    function_call,
    parse,
)

from pgshunt.protocol import messages

MARK = close("S", "no such statement") * 6 + SYNC
MARKED = "333333Z"

ROWS = 12


@dataclass(frozen=True, slots=True)
class Message:
    """One message, and how to say it in a failure's report."""

    text: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """`until`: the answer is complete with "mark" (the marker's), with "end" (the connection's), or with the
    first of these message types. `leave`: not waited for; the client is gone after so many bytes.
    """

    messages: tuple[Message, ...]
    until: str = "mark"
    leave: int | None = None

    @property
    def data(self) -> bytes:
        sent = b"".join(message.frame for message in self.messages)
        return sent + MARK if self.until == "mark" and self.leave is None else sent


@dataclass(frozen=True, slots=True)
class Script:
    """The turns of each session: a list per connection, since a session may leave and come back."""

    seed: int
    pool_size: int
    sessions: tuple[tuple[tuple[Turn, ...], ...], ...]


def make_script(seed: int, *, copied: bool = False) -> Script:
    """`copied`: reads go to the tables that both databases hold, writes to others."""
    random = Random(seed)
    sessions = tuple(
        _Author(random, number, copied).session() for number in range(random.choice((2, 3, 3, 4)))
    )
    return Script(seed, random.choice((1, 1, 2)), sessions)


class _Author:
    """Writes the turns of one session."""

    def __init__(self, random: Random, number: int, copied: bool) -> None:
        self.random = random
        self.reads = f"r{number}"
        self.writes = f"w{number}" if copied else self.reads
        self.next_id = 1000

    def session(self) -> tuple[tuple[Turn, ...], ...]:
        connections = []
        for _ in range(self.random.choice((0, 0, 1, 2))):
            connections.append((*self.turns(), self.departure()))
        connections.append((*self.turns(), self.farewell()))
        return tuple(connections)

    def turns(self) -> list[Turn]:
        turns: list[Turn] = []
        for _ in range(self.random.randint(1, 9)):
            turns += self.random.choices((self.plain, self.flushed, self.copied_in), (14, 2, 1))[0]()
        return turns

    def farewell(self) -> Turn:
        """The last words may come in one piece with what was asked before; or they are the server's."""
        asked = self.units() if self.random.random() < 0.5 else []
        if self.random.random() < 0.1:
            end = "SELECT pg_terminate_backend(pg_backend_pid())"
            batch = [self.parse("", end), *self.run(""), Message("Sync", SYNC)]
            fatal = [self.query(end)] if self.random.random() < 0.5 else batch
            # A role that was set may lack the right to end its own connection.
            before = (self.query("ROLLBACK"), self.query("RESET ROLE"))
            return Turn((*asked, Message("Sync", SYNC), *before, *fatal), until="end")
        return Turn((*asked, Message("Terminate", TERMINATE)), until="end")

    def departure(self) -> Turn:
        """Gone without a word: in nothing, in a half-sent message, or in what is not committed."""
        sent: list[Message] = []
        kind = self.random.randrange(4)
        if kind == 1:
            sent = [self.query(self.read()), self.query(self.read())]
        elif kind == 2:
            sent = [
                self.query("ROLLBACK"),
                self.query("BEGIN"),
                self.query(self.write()),
                self.query(self.read()),
            ]
        elif kind == 3:
            sent = [parse("", self.read()), bind("", ""), execute()]  # type: ignore[list-item]
            sent = [Message("half a batch", frame) for frame in sent]  # type: ignore[arg-type]
        size = sum(len(message.frame) for message in sent)
        return Turn(tuple(sent), leave=self.random.choice((size, self.random.randint(0, size))))

    # --- turns ------------------------------------------------------------------------------------------

    def plain(self) -> list[Turn]:
        return [Turn(tuple(self.units()))]

    def units(self) -> list[Message]:
        sent: list[Message] = []
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 6))):
            pick = self.random.choices(
                (self.simple, self.batch, self.copy_batch, self.called, self.long), (20, 20, 4, 2, 1)
            )[0]
            sent += pick()
            if self.random.random() < 0.05:
                sent.append(Message("Flush", FLUSH))
        return sent

    def flushed(self) -> list[Turn]:
        """As asyncpg prepares: the answers to Flush are waited for before the batch goes on."""
        name = self.name()
        return [
            Turn(
                (
                    Message("Sync", SYNC),
                    self.parse(name, self.any_statement()),
                    self.describe("S", name),
                    Message("Flush", FLUSH),
                ),
                until="TnE",
            ),
            Turn((self.bind("", name), Message("Execute", execute()), Message("Sync", SYNC))),
        ]

    def copied_in(self) -> list[Turn]:
        """COPY as clients do it: data only when the server has asked for it."""
        sql = self.copy_in()
        if self.random.random() < 0.5:
            return [Turn((Message("Sync", SYNC), self.query(sql)), until="GE"), Turn(tuple(self.copy_rows()))]
        begun = self.copy_begun(sql)
        early = (Message("Sync", SYNC),) if self.random.random() < 0.3 else ()
        return [
            Turn((Message("Sync", SYNC), *begun, *early, Message("Flush", FLUSH)), until="GE"),
            Turn((*self.copy_rows(), Message("Sync", SYNC))),
        ]

    # --- units ------------------------------------------------------------------------------------------

    def simple(self) -> list[Message]:
        kinds = (self.any_statement, self.control, self.several, self.odd, self.state)
        return [
            self.query(self.random.choices(kinds, (10, 8, 2, 2, 5 if self.reads == self.writes else 1))[0]())
        ]

    def copy_batch(self) -> list[Message]:
        """A whole COPY in one piece."""
        sql = self.copy_in()
        if self.random.random() < 0.5:
            return [self.query(sql), *self.copy_rows()]
        return [*self.copy_begun(sql), *self.copy_rows(), Message("Sync", SYNC)]

    def copy_begun(self, sql: str) -> list[Message]:
        """Under a name of its own: no later Bind starts it again, without data to follow."""
        return [
            self.close("S", "copy"),
            self.parse("copy", sql),
            self.bind("", "copy"),
            Message("Execute", execute()),
        ]

    def copy_rows(self) -> list[Message]:
        rows = []
        for _number in range(self.random.choice((0, 1, 2, 5))):
            row = b"x\ty\n" if self.random.random() < 0.1 else f"{self.fresh_id()}\tcopied\t1\n".encode()
            cut = self.random.randint(0, len(row))
            rows += [Message(f"CopyData {piece!r}", copy_data(piece)) for piece in (row[:cut], row[cut:])]
        if self.random.random() < 0.05:
            rows.append(
                Message("CopyData, long", copy_data(f"{self.fresh_id()}\t{'l' * 150_000}\t1\n".encode()))
            )
        if self.random.random() < 0.1:
            # Means nothing to a server that reads a COPY's data.
            ignored = self.random.choice((Message("Flush", FLUSH), Message("Sync", SYNC)))
            rows.insert(self.random.randint(0, len(rows)), ignored)
        if self.random.random() < 0.2:
            return [*rows, Message("CopyFail", b"f\0\0\0\x0benough\0")]
        return [*rows, Message("CopyDone", COPY_DONE)]

    def called(self) -> list[Message]:
        """FunctionCall: int4pl or int4div, one that is not there, or with an argument too few."""
        oid, *values = self.random.choice(((177, 20, 3), (154, 20, 3), (154, 20, 0), (1, 2, 3), (177, 20)))
        return [Message(f"FunctionCall {oid} {values}", function_call(oid, *map(str, values)))]

    def long(self) -> list[Message]:
        """Messages that are passed on while they arrive."""
        value, name = "z" * self.random.choice((65_000, 70_000, 300_000)), self.random.choice(("", "l"))
        if self.random.random() < 0.3:
            return [self.query(f"SELECT length('{value}')")]
        if self.random.random() < 0.3:
            return [
                self.close("S", "l"),
                self.parse(name, f"SELECT length('{value}')"),
                *self.run(name),
                *self.sync(),
            ]
        bound = Message(f"Bind '' {name!r}, long", bind("", name, value))
        parsed = [self.close("S", name), self.parse(name, "SELECT length($1)")]
        return [*parsed, bound, Message("Execute", execute()), *self.sync()]

    def sync(self) -> list[Message]:
        return [Message("Sync", SYNC)]

    def batch(self) -> list[Message]:
        """Extended messages up to Sync; now and then out of order, or about what does not exist."""
        sent: list[Message] = []
        for _ in range(self.random.choice((1, 1, 1, 2, 4))):
            piece = self.random.choices(
                (self.whole, self.bound, self.loose, self.controlled, self.limited), (8, 6, 4, 4, 2)
            )[0]()
            ran = any(message.text.startswith("Execute") for message in sent)
            if not sent or ran or not any("ISOLATION LEVEL" in message.text for message in piece):
                # Else what the link had to be given may have taken a snapshot: docs/compatibility.md.
                sent += piece
            if self.random.random() < 0.1:
                sent.append(Message("Flush", FLUSH))
        if self.random.random() < 0.03:
            sent += [self.query(self.any_statement())] if self.random.random() < 0.5 else self.called()
        return [*sent, *[Message("Sync", SYNC)] * self.random.choice((1, 1, 1, 1, 2))]

    def whole(self) -> list[Message]:
        name = self.name()
        before = [self.close("S", name)] if name and self.random.random() < 0.7 else []
        return [*before, self.parse(name, self.any_statement()), *self.run(name)]

    def bound(self) -> list[Message]:
        return self.run(self.name())

    def controlled(self) -> list[Message]:
        name = self.random.choice(("", "", "t"))
        before = [self.close("S", name)] if name and self.random.random() < 0.7 else []
        return [*before, self.parse(name, self.control()), *self.run(name)]

    def limited(self) -> list[Message]:
        portal = self.random.choice(("", "p", "q"))
        sent = [self.parse("", f"SELECT id, v FROM {self.reads} ORDER BY id"), self.bind(portal, "")]
        for _ in range(self.random.randint(1, 3)):
            rows = self.random.randint(1, 9)
            sent.append(Message(f"Execute {portal!r} {rows} rows", execute(portal, rows)))
        return sent

    def run(self, name: str) -> list[Message]:
        portal = self.random.choice(("", "", "", "p"))
        sent = [self.bind(portal, name)]
        if self.random.random() < 0.5:
            sent.append(
                self.describe("P", portal) if self.random.random() < 0.7 else self.describe("S", name)
            )
        sent.append(Message(f"Execute {portal!r}", execute(portal)))
        if portal and self.random.random() < 0.7:
            sent.append(self.close("P", portal))
        return sent

    def loose(self) -> list[Message]:
        name, portal = self.name(), self.random.choice(("", "p", "q"))
        # The Parse keeps the Execute out of failed transactions: there PostgreSQL 15.18 itself may crash over
        # a portal whose statement is gone.
        executed = [self.parse("", "SELECT 1"), Message(f"Execute {portal!r}", execute(portal))]
        return self.random.choice(
            (
                [self.parse(name, self.any_statement())],
                [self.bind(portal, name)],
                [self.describe("S", name)],
                [self.describe("P", portal)],
                executed,
                [self.close("S", name)],
                [self.close("P", portal)],
                [self.bind(portal, "nobody")],
            )
        )

    # --- messages ---------------------------------------------------------------------------------------

    def name(self) -> str:
        return self.random.choice(("", "", "a", "b", "c"))

    def query(self, sql: str) -> Message:
        return Message(f"Query {sql!r}", messages.query(sql.encode()))

    def parse(self, name: str, sql: str) -> Message:
        return Message(f"Parse {name!r} {sql!r}", parse(name, sql))

    def bind(self, portal: str, name: str) -> Message:
        return Message(f"Bind {portal!r} {name!r}", bind(portal, name))

    def describe(self, kind: str, name: str) -> Message:
        return Message(f"Describe {kind} {name!r}", describe(kind, name))

    def close(self, kind: str, name: str) -> Message:
        return Message(f"Close {kind} {name!r}", close(kind, name))

    # --- statements -------------------------------------------------------------------------------------

    def any_statement(self) -> str:
        return self.random.choices((self.read, self.write, self.wrong, self.state), (10, 6, 3, 2))[0]()

    def read(self) -> str:
        table = self.reads
        return self.random.choice(
            (
                f"SELECT v FROM {table} WHERE id = {self.old_id()}",
                f"SELECT id, v, n FROM {table} ORDER BY id",
                f"SELECT count(*), sum(n) FROM {table}",
                f"SELECT v FROM {table} WHERE id = {self.old_id()} FOR UPDATE",
                f"SELECT repeat(v, {self.random.choice((1, 100, 3000, 40_000))}) FROM {table} WHERE id <= 3"
                " ORDER BY id",
                "SELECT 1",
                "SELECT 'text' AS a, 2 AS b WHERE false",
                f"COPY (SELECT id, v FROM {table} ORDER BY id) TO STDOUT",
                "SHOW transaction_isolation",
                f"WITH x AS (SELECT max(id) AS m FROM {table}) SELECT m FROM x",
            )
        )

    def write(self) -> str:
        table = self.writes
        return self.random.choice(
            (
                f"INSERT INTO {table} VALUES ({self.fresh_id()}, 'new', 0)",
                f"INSERT INTO {table} VALUES ({self.old_id()}, 'again', 0)",
                f"INSERT INTO {table} VALUES ({self.fresh_id()}, 'new', 7) RETURNING id, n",
                f"UPDATE {table} SET n = n + 1 WHERE id = {self.old_id()} RETURNING n",
                f"UPDATE {table} SET v = v || 'x' WHERE id % 3 = 0",
                f"DELETE FROM {table} WHERE id = {self.old_id()}",
                f"WITH gone AS (DELETE FROM {table} WHERE id > 900 RETURNING id) SELECT count(*) FROM gone",
                f"SELECT count(*) FROM {table}",
            )
        )

    def wrong(self) -> str:
        table = self.reads
        return self.random.choice(
            (
                "SELECT 1/0",
                "SELECT 10 / (i - 4) FROM generate_series(1, 9) AS i",
                f"SELECT nope FROM {table}",
                "SELECT 1 FROM no_such_table",
                "SELEC 1",
                "SELECT 'unfinished",
                f"INSERT INTO {self.writes} VALUES (NULL, 'no key', 0)",
                f"INSERT INTO {self.writes} VALUES (1, 'there already', 0)",
            )
        )

    def control(self) -> str:
        return self.random.choice(
            (
                "BEGIN",
                "BEGIN",
                "BEGIN",
                "COMMIT",
                "COMMIT",
                "ROLLBACK",
                "ROLLBACK",
                "END",
                "ABORT",
                "START TRANSACTION",
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "BEGIN READ ONLY",
                "COMMIT AND CHAIN",
                "SAVEPOINT s",
                "SAVEPOINT s",
                "ROLLBACK TO s",
                "RELEASE s",
                "SET LOCAL work_mem = '2MB'",
            )
        )

    def state(self) -> str:
        """What the session is to keep, and looks at it."""
        number = self.random.randint(1, 9)
        options = (
            f"SET work_mem = '{number}MB'",
            f"SET app.tenant = 'tenant {number}'",
            f"SET LOCAL app.tenant = 'tenant {number}'",
            f"SELECT set_config('app.other', 'ü{number}', {self.random.choice(('true', 'false'))})",
            f"SET application_name = 'number {number}'",
            f"SET datestyle = {self.random.choice(('German', 'ISO', 'DEFAULT', 'SQL, DMY'))}",
            f"SET search_path = {self.random.choice(('public', 'nowhere', 'nowhere, public', 'DEFAULT'))}",
            f"SET TIME ZONE {number}",
            "SET ROLE pg_monitor",
            "SET ROLE NONE",
            "RESET ROLE",
            "RESET work_mem",
            "RESET app.tenant",
            "RESET ALL",
            "SET work_mem = 'nonsense'",
            f"SET work_mem = '{number}MB'; SET app.tenant = 'both'; SELECT 1/0",
            f"BEGIN; SET work_mem = '{number}MB'; COMMIT",
            "DISCARD ALL",
            f"PREPARE e AS SELECT v FROM {self.reads} WHERE id = $1",
            f"PREPARE f AS UPDATE {self.writes} SET n = n + {number} WHERE id = $1 RETURNING n",
            *([f"EXECUTE e({self.old_id()})", f"EXECUTE f({self.old_id()})"] * 2),
            self.random.choice(("DEALLOCATE e", "DEALLOCATE f", "DEALLOCATE ALL")),
            *(["SELECT current_setting('work_mem'), current_setting('app.tenant', true)"] * 4),
            *(["SELECT current_user, current_schemas(false), timestamptz '2020-02-03 04:05+00'"] * 3),
            "SHOW app.other",
            "SHOW search_path",
            "SHOW ALL" if number == 1 else "SHOW datestyle",
        )
        if self.reads != self.writes:
            # Copies hold nothing for who looks elsewhere, or may not look.
            options = tuple(sql for sql in options if "nowhere" not in sql and "pg_monitor" not in sql)
        return self.random.choice(options)

    def several(self) -> str:
        return self.random.choice(
            (
                f"{self.write()}; {self.read()}",
                f"{self.read()}; {self.wrong()}; {self.write()}",
                f"BEGIN; {self.write()}; COMMIT",
                f"BEGIN; {self.write()}",
                f"{self.write()}; COMMIT",
                f"{self.write()}; ROLLBACK; {self.read()}",
            )
        )

    def odd(self) -> str:
        return self.random.choice(
            (
                "",
                " ; ",
                "-- nothing",
                "DO $$ BEGIN RAISE NOTICE 'hello'; END $$",
                "DROP TABLE IF EXISTS no_such_table",
                "DEALLOCATE a",
                "SELECT 1 AS x; SELECT 2 AS y",
                f"COPY (SELECT * FROM {self.reads} ORDER BY id) TO STDOUT",
                "COMMIT; COMMIT",
            )
        )

    def copy_in(self) -> str:
        return self.random.choice(
            (f"COPY {self.writes} FROM STDIN",) * 5
            + ("COPY no_such_table FROM STDIN", f"COPY {self.writes} FROM STDIN (FORMAT binary)")
        )

    def old_id(self) -> int:
        return self.random.randint(1, ROWS)

    def fresh_id(self) -> int:
        self.next_id += 1
        return self.next_id
