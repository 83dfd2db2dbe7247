"""Validates writes at a service's own database: runs them there too, rolls them back, and compares.

A unit is one write transaction as the client sent it. It is recorded while it passes, run at the target the
moment its COMMIT (or its one statement) goes to the owner, and compared when both have answered. The client
never waits for it, and whatever goes wrong here costs nothing but the comparison.

What cannot be decided is undecided, never a mismatch: the lane may have applied the same rows before or
after, so a unique violation, a lock timeout or another row count can all be innocent. A missing table, a
missing privilege, a type that does not fit can not.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError, read_error
from pgshunt.protocol.frames import scan
from pgshunt.proxy.connect import LinkError, OpenedLink, open_link
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Endpoint, RoutingTable

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity, Relay

PENDING_MAX = 64
LINKS_PER_SERVICE = 2
UNIT_BYTES_MAX = 256 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
RUN_MS_MAX = 2_000
CONNECT_MS_MAX = 2_000
MISMATCHES_KEPT = 20

# Locks are waited for briefly: the lane that applies the same rows must not be held up.
OPENING = messages.query(b"BEGIN; SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '500ms'")
CLOSING = messages.query(b"ROLLBACK")

_MODIFIES = re.compile(
    rb"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:insert|update|delete|merge|with)\b", re.IGNORECASE | re.DOTALL
)
_INSERT = re.compile(rb"\s*insert\b(?!.*\bon\s+conflict\b)", re.IGNORECASE | re.DOTALL)
# Errors that another state of the data can explain.
_BY_TIMING = frozenset({"23505", "23503", "23P01", "23001", "23000"})


@dataclass(frozen=True, slots=True)
class Statement:
    """One recorded statement: `frames` run it at the target and end with one ReadyForQuery."""

    shape: Shape
    frames: bytes
    exact_count: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the target said: one tag per statement up to the first error."""

    tags: tuple[bytes, ...]
    sqlstate: str | None
    took_us: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """match, mismatch, undecided or error (the target could not be asked), with both sides' answers."""

    result: str
    source: str = ""
    target: str = ""


def compare(statements: list[Statement], tags: list[bytes], error: str | None, target: Outcome) -> Verdict:
    """Judges one unit by the owner's answers (`tags`, or `error`) and the target's."""
    if error is not None or target.sqlstate is not None:
        source, other = error or "ok", target.sqlstate or "ok"
        if source == other:
            return Verdict("match")
        failed = statements[min(len(target.tags), len(statements) - 1)]
        if error is None and target.sqlstate is not None and definite(target.sqlstate, failed):
            return Verdict("mismatch", source, other)
        return Verdict("undecided", source, other)
    if len(tags) != len(statements) or len(target.tags) != len(statements):
        return Verdict("undecided", f"{len(tags)} answers", f"{len(target.tags)} answers")
    for statement, source_tag, target_tag in zip(statements, tags, target.tags, strict=True):
        if source_tag != target_tag:
            result = "mismatch" if statement.exact_count else "undecided"
            return Verdict(result, source_tag.decode(errors="replace"), target_tag.decode(errors="replace"))
    return Verdict("match")


def definite(sqlstate: str, failed: Statement) -> bool:
    """Whether an error that only the target has can only mean that the two databases differ.

    A value that breaks a rule (22, 23) proves it only if it stood in the statement: `balance = balance - 10`
    breaks one the second time, after the lane has applied it.
    """
    if sqlstate[:2] in ("22", "23"):
        return failed.exact_count and sqlstate not in _BY_TIMING
    return sqlstate[:2] in ("42", "3F", "0A", "25", "26")


class Unit:
    """One write transaction while it is recorded. Called by the relay for each of its messages."""

    def __init__(self, shadows: Shadows, service: int, identity: Identity) -> None:
        self._shadows = shadows
        self.service = service
        self.identity = identity
        self.began_ns = time.monotonic_ns()
        self.statements: list[Statement] = []
        self.tags: list[bytes] = []
        self.error: str | None = None
        self._bound: tuple[Shape, bytes, bytes | None] | None = None
        self._size = 0
        self._decidable = True
        self._ending: Kind | None = None
        self._run: asyncio.Future[Outcome | None] | None = None

    def query(self, shape: Shape, sql: bytes | None) -> None:
        """A simple query; None: too long to be kept."""
        if sql is None:
            self._decidable = False
        else:
            self._add(shape, sql, messages.query(sql))

    def bind(self, shape: Shape, parse_body: bytes, bind_rest: bytes | None) -> None:
        """Parse and Bind of the statement that the next Execute runs, without their names."""
        self._bound = (shape, parse_body, bind_rest)

    def executed(self, *, last_bound: bool) -> None:
        """The statement bound last is run, or (not `last_bound`) that of a portal with a name."""
        if self._bound is None or not last_bound:
            self._decidable = False
            return
        shape, parse_body, bind_rest = self._bound
        if bind_rest is None:
            self._decidable = False
            return
        frames = (
            _frame(b"P", b"\0" + parse_body)
            + _frame(b"B", b"\0\0" + bind_rest)
            + _frame(b"E", b"\0\0\0\0\0")
            + _frame(b"S", b"")
        )
        self._add(shape, parse_body.partition(b"\0")[0], frames)

    def _add(self, shape: Shape, sql: bytes, frames: bytes) -> None:
        if shape.kind in (Kind.COMMIT, Kind.ROLLBACK):
            self._ending = shape.kind
            return
        self._size += len(frames)
        # Nothing may run at the target that a ROLLBACK there does not undo or that might end our transaction.
        harmless = (
            shape.statements == 1
            and not shape.volatile
            and shape.pins is None
            and (
                (shape.kind is Kind.WRITE and bool(shape.writes) and _MODIFIES.match(sql) is not None)
                or (shape.kind is Kind.READ and bool(shape.reads))
            )
        )
        if not harmless or self._size > UNIT_BYTES_MAX or not self._shadows.holds(self.service, shape):
            self._decidable = False
        else:
            self.statements.append(
                Statement(shape, frames, not shape.reads and _INSERT.match(sql) is not None)
            )

    def sent(self, autocommit: bool) -> None:
        """A unit of the protocol went to the owner; if it is alone or a COMMIT, the transaction ends."""
        ends = autocommit or self._ending is Kind.COMMIT
        if ends and self._decidable and self.statements and self._run is None:
            self._run = self._shadows.launch(self)

    def observed(self, tag: bytes) -> None:
        """CommandComplete from the owner."""
        if len(self.tags) <= len(self.statements):
            self.tags.append(tag)

    def observed_error(self, sqlstate: bytes) -> None:
        self.error = sqlstate.decode(errors="replace")

    def settled(self) -> None:
        """The owner's transaction has ended."""
        if self._ending is Kind.ROLLBACK:
            return
        if self._run is None:
            self._shadows.count(self, "undecided")
            return
        if self._ending is Kind.COMMIT and self.tags and self.tags[-1] in (b"COMMIT", b"ROLLBACK"):
            self.tags.pop()
        self._run.add_done_callback(self._compare)

    def _compare(self, run: asyncio.Future[Outcome | None]) -> None:
        if run.cancelled():
            return
        outcome = run.result()
        if outcome is None:
            return
        verdict = compare(self.statements, self.tags, self.error, outcome)
        self._shadows.count(self, verdict.result, outcome.took_us)
        if verdict.result == "mismatch":
            self._shadows.mismatch(self.service, self.statements, verdict)


@dataclass(slots=True)
class Target:
    """Where one service's writes are validated, and the units that wait for it."""

    endpoint: Endpoint
    percent: float
    tables: frozenset[str]
    own: frozenset[str] = frozenset()
    pending: deque[tuple[Unit, asyncio.Future[Outcome | None]]] = field(default_factory=deque)
    idle: dict[Identity, list[OpenedLink]] = field(default_factory=dict)
    running: int = 0


class Shadows:
    """All validation of one worker."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self._relay = relay
        self._loop = loop
        self._targets: dict[int, Target] = {}
        self._names: list[str] = []
        self._counts: Counter[tuple[int, str]] = Counter()
        self._took_us: Counter[tuple[int, str]] = Counter()
        self._began_ns: dict[tuple[int, str], int] = {}
        self._mismatches: list[list[str]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def apply(self, table: RoutingTable) -> bool:
        """Follows a new epoch; True if any service's writes are validated."""
        targets: dict[int, Target] = {}
        primaries = {
            endpoint.database: endpoint for endpoint in table.endpoints if endpoint.role == "primary"
        }
        self._names = [service.name for service in table.services]
        for index, service in enumerate(table.services):
            if service.shadow_writes != "validate" or service.stage not in ("shadowing", "reading"):
                continue
            target = self._targets.get(index) or Target(primaries[service.database], 0.0, frozenset())
            target.percent = service.shadow_percent
            target.tables = frozenset(service.copied)
            target.own = frozenset(service.tables)
            targets[index] = target
        for index, target in self._targets.items():
            if index not in targets:
                self._discard(target)
        self._targets = targets
        return bool(targets)

    def unit(self, service: int, identity: Identity, draw: float) -> Unit | None:
        """A recorder for a transaction that begins with a write of `service`, if it is in the sample."""
        target = self._targets.get(service)
        if target is None or draw * 100 >= target.percent:
            return None
        return Unit(self, service, identity)

    def holds(self, service: int, shape: Shape) -> bool:
        """Whether the target has all that is read, and is where all that is written will belong.

        Copies of other services' tables are never written there: their triggers need not even work.
        """
        target = self._targets.get(service)
        return target is not None and shape.tables <= target.tables and shape.writes <= target.own

    def launch(self, unit: Unit) -> asyncio.Future[Outcome | None] | None:
        """Runs a unit at its target as soon as one of the target's links is free; None: the queue is full."""
        target = self._targets.get(unit.service)
        if target is None:
            return None
        if len(target.pending) >= PENDING_MAX:
            self.count(unit, "dropped")
            future: asyncio.Future[Outcome | None] = self._loop.create_future()
            future.set_result(None)
            return future
        future = self._loop.create_future()
        target.pending.append((unit, future))
        if target.running < LINKS_PER_SERVICE:
            target.running += 1
            task = self._loop.create_task(self._serve(target))
            self._tasks.add(task)
            self._relay.loop_tasks += 1
            task.add_done_callback(self._done)
        return future

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._relay.loop_tasks -= 1

    async def _serve(self, target: Target) -> None:
        """Works off what is pending."""
        try:
            while target.pending:
                unit, future = target.pending.popleft()
                outcome = await self._try(target, unit)
                if not future.done():
                    future.set_result(outcome)
        finally:
            target.running -= 1

    async def _try(self, target: Target, unit: Unit) -> Outcome | None:
        links = target.idle.setdefault(unit.identity, [])
        link = links.pop() if links else None
        try:
            if link is None:
                link = await open_link(
                    self._loop,
                    target.endpoint,
                    unit.identity.user,
                    target.endpoint.dbname,
                    unit.identity.parameters,
                    unit.identity.password,
                    CONNECT_MS_MAX,
                )
            async with asyncio.timeout(RUN_MS_MAX / 1000):
                outcome = await self._run(link, unit.statements)
        except (OSError, PgError) as failure:
            if link is not None:
                link.socket.close()
            self.count(unit, "error")
            if isinstance(failure, LinkError) and not failure.infrastructure:
                verdict = Verdict("mismatch", "ok", failure.sqlstate)
                self.count(unit, "mismatch")
                self.mismatch(unit.service, unit.statements, verdict)
            return None
        links.append(link)
        return outcome

    async def _run(self, link: OpenedLink, statements: list[Statement]) -> Outcome:
        """One transaction at the target, rolled back, in one write. Raises OSError, PgError."""
        started = time.monotonic_ns()
        request = b"".join((OPENING, *(statement.frames for statement in statements), CLOSING))
        await link.stream.send(request)
        wanted = len(statements) + 2
        answers: list[list[tuple[int, bytes]]] = [[]]
        received = bytearray()
        while len(answers) <= wanted:
            data = await link.stream.receive()
            if not data:
                raise ConnectionResetError("the target closed the connection")
            received += data
            if len(received) > ANSWER_BYTES_MAX:
                raise ConnectionAbortedError("the target's answer is too long to be compared")
            frames, rest, intact = scan(bytes(received), ANSWER_BYTES_MAX)
            if not intact:
                raise ConnectionAbortedError("the target sent an impossible length")
            for kind, start, end in frames:
                if kind in b"CE":
                    answers[-1].append((kind, bytes(received[start + 5 : end])))
                elif kind == ord("Z"):
                    answers.append([])
            del received[:rest]
        took_us = (time.monotonic_ns() - started) // 1000
        tags: list[bytes] = []
        for answer in answers[1 : 1 + len(statements)]:
            for kind, body in answer:
                if kind == ord("E"):
                    return Outcome(tuple(tags), read_error(body).sqlstate, took_us)
                tags.append(body.rstrip(b"\0"))
        return Outcome(tuple(tags), None, took_us)

    # --- counting -------------------------------------------------------------------------------------------

    def count(self, unit: Unit, result: str, took_us: int = 0) -> None:
        key = unit.service, result
        self._counts[key] += 1
        self._took_us[key] += took_us
        self._began_ns[key] = min(unit.began_ns, self._began_ns.get(key, unit.began_ns))

    def mismatch(self, service: int, statements: list[Statement], verdict: Verdict) -> None:
        """Keeps what differed, without any value of the statement."""
        if len(self._mismatches) < MISMATCHES_KEPT and service < len(self._names):
            tables = sorted(set().union(*(statement.shape.tables for statement in statements)))
            self._mismatches.append(
                [self._names[service], ", ".join(tables), "shadow_write", verdict.source, verdict.target]
            )

    def drain_counters(self) -> dict[str, Any] | None:
        """Rows of service, result, count, microseconds in all, and when the oldest of them began."""
        if not self._counts:
            return None
        rows = [
            [
                self._names[service],
                result,
                count,
                self._took_us[service, result],
                self._began_ns[service, result],
            ]
            for (service, result), count in self._counts.items()
            if service < len(self._names)
        ]
        mismatches = self._mismatches
        self._counts.clear()
        self._took_us.clear()
        self._began_ns.clear()
        self._mismatches = []
        return {"shadow": rows, "shadow_mismatches": mismatches}

    def forget(self, identity: Identity) -> None:
        """Nobody is logged in as `identity` any more: closes its links."""
        for target in self._targets.values():
            for link in target.idle.pop(identity, ()):
                link.socket.close()

    # --- the end --------------------------------------------------------------------------------------------

    def _discard(self, target: Target) -> None:
        for _, future in target.pending:
            future.cancel()
        target.pending.clear()
        for links in target.idle.values():
            for link in links:
                link.socket.close()
        target.idle.clear()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for target in self._targets.values():
            self._discard(target)


def _frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body
