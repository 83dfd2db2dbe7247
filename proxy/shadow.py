"""Validates writes at a service's own database: runs them there too, rolls them back, and compares.

A unit is one write transaction as the client sent it. It is recorded while it passes, run at the target the
moment its COMMIT (or its one statement) goes to the owner, and compared when both have answered. The client
never waits for it, and whatever goes wrong here costs nothing but the comparison.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError, read_error
from pgshunt.protocol.frames import scan
from pgshunt.proxy.connect import LinkError, OpenedLink
from pgshunt.proxy.recorder import Unit
from pgshunt.proxy.spares import SpareLinks
from pgshunt.proxy.verdict import Outcome, Statement, Verdict
from pgshunt.routing.shape import Shape
from pgshunt.routing.table import RoutingTable

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity, Relay

PENDING_MAX = 64
LINKS_PER_SERVICE = 2
ANSWER_BYTES_MAX = 1024 * 1024
RUN_MS_MAX = 2_000
MISMATCHES_KEPT = 20

# Locks are waited for briefly: the lane that applies the same rows must not be held up.
OPENING = messages.query(b"BEGIN; SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '500ms'")
CLOSING = messages.query(b"ROLLBACK")

# In ReadyForQuery.
IDLE, IN_TRANSACTION = b"I", b"T"


@dataclass(slots=True)
class Target:
    """Where one service's writes are validated, and the units that wait for it."""

    links: SpareLinks
    percent: float = 0.0
    tables: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    pending: deque[tuple[Unit, asyncio.Future[Outcome | None]]] = field(default_factory=deque)
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
            endpoint.database: (endpoint, index)
            for index, endpoint in enumerate(table.endpoints)
            if endpoint.role == "primary"
        }
        self._names = [service.name for service in table.services]
        for index, service in enumerate(table.services):
            if service.shadow_writes != "validate" or service.stage not in ("shadowing", "reading"):
                continue
            target = self._targets.get(index)
            if target is None:
                endpoint, place = primaries[service.database]
                target = Target(SpareLinks(self._relay, self._loop, endpoint, place, LINKS_PER_SERVICE))
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
        link = None
        try:
            link = await target.links.take(unit.identity)
            if link is None:
                self.count(unit, "dropped")
                return None
            async with asyncio.timeout(RUN_MS_MAX / 1000):
                outcome = await self._run(link, unit.statements)
        except (OSError, PgError) as failure:
            if link is not None:
                target.links.drop(link)
            self.count(unit, "error")
            if isinstance(failure, LinkError) and not failure.infrastructure:
                verdict = Verdict("mismatch", "ok", failure.sqlstate)
                self.count(unit, "mismatch")
                self.mismatch(unit.service, unit.statements, verdict)
            return None
        except BaseException:  # cancelled, or a bug of ours: what the link has been asked is not known
            if link is not None:
                target.links.drop(link)
            raise
        target.links.give_back(unit.identity, link)
        return outcome

    async def _run(self, link: OpenedLink, statements: list[Statement]) -> Outcome:
        """One transaction at the target, rolled back. Raises OSError, PgError."""
        # Without its transaction the statements would stay: that there is one is seen before they are sent.
        ((_, status),) = await _asked(link, OPENING, 1)
        if status != IN_TRANSACTION:
            raise ConnectionAbortedError("the target began no transaction")
        started = time.monotonic_ns()
        request = b"".join((*(statement.frames for statement in statements), CLOSING))
        answers = await _asked(link, request, len(statements) + 1)
        took_us = (time.monotonic_ns() - started) // 1000
        if answers[-1][1] != IDLE:
            raise ConnectionAbortedError("the target's transaction has not ended")
        tags: list[bytes] = []
        for answer, _ in answers[:-1]:
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
            target.links.forget(identity)

    def make_room(self, endpoint: int) -> bool:
        """Gives up an idle link, at that endpoint or (-1) at any; False if there is none."""
        targets = self._targets.values()
        return any(target.links.make_room() for target in targets if endpoint in (-1, target.links.index))

    def sweep(self) -> None:
        for target in self._targets.values():
            target.links.sweep()

    # --- the end --------------------------------------------------------------------------------------------

    def _discard(self, target: Target) -> None:
        for _, future in target.pending:
            future.cancel()
        target.pending.clear()
        target.links.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for target in self._targets.values():
            self._discard(target)


async def _asked(
    link: OpenedLink, request: bytes, number: int
) -> list[tuple[list[tuple[int, bytes]], bytes]]:
    """What the target answers up to so many ReadyForQuery: for each the tags and errors, and its status.

    Raises OSError, PgError.
    """
    await link.stream.send(request)
    answers: list[tuple[list[tuple[int, bytes]], bytes]] = []
    told: list[tuple[int, bytes]] = []
    received = bytearray()
    while len(answers) < number:
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
            body = bytes(received[start + 5 : end])
            if kind in b"CE":
                told.append((kind, body))
            elif kind == ord("Z"):
                answers.append((told, body))
                told = []
        del received[:rest]
    return answers
