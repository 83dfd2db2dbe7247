"""One connection of one service: does what such a service does, and checks every answer it gets."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pgshunt.demo.drivers import Address, Failure, Row, Session, connect
from pgshunt.demo.ledger import Ledger, Value
from pgshunt.demo.services import APPEND_AUDIT, Service
from pgshunt.demo.tally import FailedOperation, Kind, Tally

TRANSACTION_RESOLUTION_UNKNOWN = "08007"
UNIQUE_VIOLATION = "23505"
RECONNECT_PAUSE_S = (0.05, 1.0)  # the first, and the longest


class WrongAnswer(Exception):
    """An answer that cannot be right; the message says what came and what may have come."""


@dataclass(slots=True)
class Chain:
    """The hashes of a service's own audit entries, by position in its chain."""

    hashes: dict[int, str] = field(default_factory=dict)

    def follow(self, position: int, previous: str, own: str) -> None:
        """Raises WrongAnswer if an entry is not linked to the one before it."""
        if position in self.hashes:
            raise WrongAnswer(f"audit position {position} was given twice")
        if self.hashes.get(position - 1, previous) != previous:
            raise WrongAnswer(f"audit entry {position} is not linked to the one before it")
        self.hashes[position] = own
        self.hashes.pop(position - 1000, None)


class Client:
    """Works until told to stop. Writes the keys of its own range, reads those of its whole service."""

    def __init__(
        self,
        service: Service,
        address: Address,
        own: range,
        every: range,
        ledger: Ledger,
        chain: Chain,
        tally: Tally,
    ) -> None:
        self.service = service
        self.address = address
        self.own = own
        self.every = every
        self.ledger = ledger
        self.chain = chain
        self.tally = tally
        self.random = random.Random(f"{service.name} {own.start}")
        self._session: Session | None = None
        self._session_number = (
            own.start
        )  # raised by len(every) for each session: no two of a service are equal
        self._operation = ""
        # What to do, how often, and what it is counted as.
        self._mix: list[tuple[Callable[[], Awaitable[None]], int, Kind]] = [
            (self.read_one, 40, "read"),
            (self.read_joined, 20, "read"),
            (self.read_many, 8, "read"),
            (self.read_across, 8, "read"),
            (self.read_twice, 6, "read"),
            (self.touch, 8, "write"),
            (self.record, 5, "write"),
            (self.repeat_a_key, 1, "write"),
        ]
        if service.writes_audit:
            self._mix.append((self.record_audited, 4, "write"))

    async def begin(self, stop: asyncio.Event) -> None:
        """Connects and learns its rows."""
        await self._reconnect(stop)

    async def work(self, stop: asyncio.Event) -> None:
        """One operation after the other. All clients must have begun: they read each other's rows."""
        operations = [operation for operation, _, _ in self._mix]
        weights = [weight for _, weight, _ in self._mix]
        kinds = {operation: kind for operation, _, kind in self._mix}
        while not stop.is_set():
            if self._session is None:
                await self._reconnect(stop)
                continue
            [operation] = self.random.choices(operations, weights)
            await self._attempt(operation, kinds[operation])
            await _pause(stop, self.random.expovariate(1000 / self.service.pause_ms))
        if self._session is not None:
            await self._session.close()

    # -- reads -----------------------------------------------------------------------------------------

    async def read_one(self) -> None:
        key = self._any_key()
        await self._checked_read(key)

    async def read_joined(self) -> None:
        key = self._any_key()
        lowest = self._lowest(key)
        found, version, label, details, newest = await self._row(self.service.read_joined, key)
        self._check(key, lowest, Value(version, details), found, label)
        if newest > version:
            raise WrongAnswer(
                f"{self.service.details} of version {newest} at {self.service.main} of version {version}"
            )

    async def read_many(self) -> None:
        """All of its own rows at once."""
        keys = self.own
        lowest = sum(self._lowest(key).version for key in keys)
        count, total = await self._row(self.service.read_many, keys.start, keys.stop - 1)
        highest = sum(self.ledger.highest(key).version for key in keys)
        if count != len(keys) or not lowest <= total <= highest:
            raise WrongAnswer(f"{count} rows, sum {total}: not {len(keys)} rows, sum {lowest} to {highest}")

    async def read_across(self) -> None:
        """Joins tables of other services."""
        key = self._any_key()
        lowest = self._lowest(key)
        found, version, label, contradictions = await self._row(self.service.read_across, key)
        self._check(key, lowest, Value(version, lowest.details), found, label)
        if contradictions:
            raise WrongAnswer(f"{contradictions} rows of other services contradict {self.service.main} {key}")

    async def read_twice(self) -> None:
        """A transaction that only reads: it must not see a row go back in time."""
        key = self._any_key()
        await self._run("BEGIN")
        first = await self._checked_read(key)
        second = await self._checked_read(key)
        await self._run("COMMIT")
        if second < first:
            raise WrongAnswer(f"{self.service.main} {key} went from version {first} back to {second}")

    # -- writes ----------------------------------------------------------------------------------------

    async def touch(self) -> None:
        """One UPDATE in autocommit."""
        key = await self._own_key()
        before, after = self.ledger.current(key), self.ledger.attempt(key, 0)
        try:
            answer = await self._update(key, before, after)
        except Failure as failure:
            if failure.lost or failure.sqlstate == TRANSACTION_RESOLUTION_UNKNOWN:
                self.ledger.doubt(key)
            else:
                self.ledger.undo(key)
            raise
        self.ledger.acknowledge(key, self._session_number, time.monotonic())
        if answer != [(after.version,)]:
            raise WrongAnswer(
                f"UPDATE of {self.service.main} {key} answered {answer}, not version {after.version}"
            )

    async def record(self) -> None:
        """A transaction: locks a row, raises its version, adds a detail."""
        await self._transaction(audited=False)

    async def record_audited(self) -> None:
        """The same, with an entry in the audit log's hash chain."""
        await self._transaction(audited=True)

    async def repeat_a_key(self) -> None:
        """An INSERT that must fail: applications find out that way."""
        try:
            await self._run(self.service.insert_duplicate, self.random.choice(self.own))
        except Failure as failure:
            if failure.sqlstate != UNIQUE_VIOLATION:
                raise
            self.tally.expected += 1
        else:
            raise WrongAnswer(f"a second row with a key of {self.service.main} was accepted")

    async def _transaction(self, *, audited: bool) -> None:
        service, key = self.service, await self._own_key()
        before, after = self.ledger.current(key), self.ledger.attempt(key, 1)
        committing = False
        try:
            await self._run("BEGIN")
            locked = await self._run(service.lock, key, key)
            if locked != [(key, before.version)]:
                raise WrongAnswer(
                    f"{service.main} {key} locked at {locked}, last committed was {before.version}"
                )
            updated = await self._update(key, before, after)
            if updated != [(after.version,)]:
                raise WrongAnswer(f"UPDATE of {service.main} {key} answered {updated}, not {after.version}")
            entry = None
            if audited:
                detail = json.dumps({"version": after.version})
                entry, position, previous, own = await self._row(
                    APPEND_AUDIT, service.name, key, service.main, detail
                )
            parameters = (key, after.version, entry) if service.writes_audit else (key, after.version)
            await self._run(service.add_detail, *parameters)
            for statement in service.also:
                await self._run(statement, key)
            committing = True
            await self._run("COMMIT")
        except (Failure, WrongAnswer) as error:
            unknown = isinstance(error, Failure) and (
                error.lost or error.sqlstate == TRANSACTION_RESOLUTION_UNKNOWN
            )
            if committing and unknown:
                self.ledger.doubt(key)
            else:
                self.ledger.undo(key)
            raise
        self.ledger.acknowledge(key, self._session_number, time.monotonic())
        if audited:
            self.chain.follow(position, previous, own)

    # -- how -------------------------------------------------------------------------------------------

    async def _attempt(self, operation: Callable[[], Awaitable[None]], kind: Kind) -> None:
        started, started_at = time.perf_counter(), time.time()
        try:
            await operation()
        except Failure as failure:
            self._note(operation.__name__, failure, started_at)
            await self._recover(failure.lost)
        except WrongAnswer as wrong:
            self.tally.mistaken(f"{operation.__name__}: {wrong}")
            await self._recover(lost=False)
        else:
            self.tally.succeeded(operation.__name__, kind, started)

    async def _recover(self, lost: bool) -> None:
        """Back to an idle session, or to none."""
        session, started_at = self._session, time.time()
        if session is None:
            return
        if not lost:
            try:
                await session.run("ROLLBACK")
                return
            except Failure as failure:
                self._note("rollback", failure, started_at)
        self._session = None
        await session.close()

    async def _reconnect(self, stop: asyncio.Event) -> None:
        """A new session, which has read at the owner what its predecessor left. Tries until it has one."""
        pause_s, pause_s_max = RECONNECT_PAUSE_S
        while not stop.is_set():
            started_at = time.time()
            try:
                self._session = await connect(self.service.driver, self.address)
                self._session_number += len(self.every)
                self.tally.connects += 1
                await self._learn(self.own)
                return
            except Failure as failure:
                self._note("connect", failure, started_at)
                await self._recover(lost=True)
                await _pause(stop, pause_s)
                pause_s = min(2 * pause_s, pause_s_max)

    async def _learn(self, keys: range) -> None:
        """Reads its rows with FOR UPDATE: that waits for a lost COMMIT, and is answered by the owner."""
        await self._run("BEGIN")
        rows = await self._run(self.service.lock, keys.start, keys.stop - 1)
        counted = await self._run(self.service.count_details, keys.start, keys.stop - 1)
        await self._run("COMMIT")
        details: dict[int, int] = dict(counted)
        for key, version in rows:
            self.ledger.settle(key, Value(version, details[key]), self._session_number, time.monotonic())

    async def _checked_read(self, key: int) -> int:
        lowest = self._lowest(key)
        found, version, label = await self._row(self.service.read_one, key)
        self._check(key, lowest, Value(version, lowest.details), found, label)
        return int(version)

    def _check(self, key: int, lowest: Value, seen: Value, found: int, label: str) -> None:
        highest = self.ledger.highest(key)
        if found != key or label != self.service.label_of(key, seen.version):
            raise WrongAnswer(f"asked for {self.service.main} {key}, got {found} with {label!r}, {seen}")
        if not (
            lowest.version <= seen.version <= highest.version
            and lowest.details <= seen.details <= highest.details
        ):
            raise WrongAnswer(f"{self.service.main} {key}: {seen}, not between {lowest} and {highest}")

    async def _update(self, key: int, before: Value, after: Value) -> list[Row]:
        label = self.service.label_of(key, after.version)
        return await self._run(self.service.update, key, before.version, label)

    async def _row(self, sql: str, *parameters: object) -> Row:
        """The answer's only row."""
        rows = await self._run(sql, *parameters)
        if len(rows) != 1:
            raise WrongAnswer(
                f"{len(rows)} rows, where one is right, for {' '.join(sql.split())} {parameters}"
            )
        return rows[0]

    async def _run(self, sql: str, *parameters: object) -> list[Row]:
        assert self._session is not None, "operations are only started with a session"
        return await self._session.run(sql, *parameters)

    def _note(self, operation: str, failure: Failure, started_at: float) -> None:
        self.tally.failed(
            FailedOperation(
                self.service.name, operation, failure.sqlstate, str(failure), started_at, time.time()
            )
        )

    def _lowest(self, key: int) -> Value:
        return self.ledger.lowest(key, self._session_number, time.monotonic())

    def _any_key(self) -> int:
        return self.random.choice(self.every)

    async def _own_key(self) -> int:
        key = self.random.choice(self.own)
        if self.ledger.is_doubtful(key):
            await self._learn(range(key, key + 1))
        return key


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits, but not past the stop."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        pass
