"""Decides where each service stands, remembers it, and tells the workers: in this order, always.

What is kept and announced goes through `keeper.py`, what is done at the databases in the background through
`copying.py`. After a restart the controller goes on where the store says it stood. Anyone may reduce exposure
at any time: a rollback waits for no other action.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from pgshunt.config.model import Control
from pgshunt.migration.altering import IN_DOUBT, Impossible, add_columns, statement
from pgshunt.migration.copying import Copying, Events
from pgshunt.migration.heartbeat import TABLE, Heartbeat, Publish
from pgshunt.migration.keeper import Keeper, PublishTable
from pgshunt.migration.mover import Options, PreflightFailed
from pgshunt.migration.preflight import Problem
from pgshunt.migration.servers import ServerError
from pgshunt.migration.stages import COPY_STAGES, LANE_STAGES, Doing, Held, WrongStage, move
from pgshunt.migration.state import Latch, ServiceState
from pgshunt.migration.store import Store, StoreError
from pgshunt.migration.verify import VerifyResult
from pgshunt.migration.wholeness import Wholeness
from pgshunt.routing.additions import Addition
from pgshunt.routing.table import Endpoint, RoutingTable, Service

TURN_S_MAX: Final = 5.0
"""How long a client's change waits for an operator's of the same service."""


class MigrationController:
    """All services of one configuration."""

    def __init__(
        self,
        base: RoutingTable,
        control: Control,
        store: Store,
        publish_table: PublishTable,
        publish_freshness: Publish,
        events: Events,
        verified: Callable[[str, VerifyResult], None] = lambda service, result: None,
        options: Options | None = None,
    ) -> None:
        """`base`: the routing table as configured; stages, reads and epoch come from the store.

        `publish_freshness` is called from threads; `verified(service, result)` for every range compared.
        """
        self._keeper = Keeper(base, store, publish_table, lambda kind, detail: events.add(kind, "", **detail))
        self._events = events
        self._control = control
        self._heartbeat = Heartbeat(base.endpoints[0], control, publish_freshness)
        self._copying = Copying(
            self._keeper, control, self._heartbeat, events, verified, options or Options()
        )
        self._wholeness = Wholeness(base.endpoints[0], control, self._heartbeat, events)
        self._turns = {service.name: asyncio.Lock() for service in base.services}  # to begin, or to abandon
        self._rollbacks: dict[str, asyncio.Task[None]] = {}

    # What is asked

    @property
    def table(self) -> RoutingTable:
        """The routing table of the latest epoch."""
        return self._keeper.table

    def latch(self, service: str) -> Mapping[str, Any] | None:
        """trigger, at, evidence of the rollback that holds; None if none does."""
        latch = self._state(service).latch
        return {"trigger": latch.trigger, "at": latch.at, "evidence": latch.evidence} if latch else None

    def journal(self, service: str) -> tuple[Mapping[str, Any], ...]:
        """The steps taken, oldest first; `kept`: whether the store holds the line."""
        return tuple(
            {**asdict(entry), "kept": self._keeper.is_kept(service, entry)}
            for entry in self._state(service).journal
        )

    def progress(self, service: str) -> Mapping[str, Any]:
        """How far each table of the latest copy came: the fields of lane.TableProgress by table name."""
        mover = self._copying.movers.get(service)
        return mover.progress if mover else {}

    def verified(self, service: str) -> Mapping[str, Any]:
        """What verification found since the stage began, as Tally.to_dict."""
        mover = self._copying.movers.get(service)
        return mover.tally.to_dict() if mover else {}

    def trouble(self, service: str) -> str:
        """What holds the service up, and the way out; empty when nothing does."""
        mover = self._copying.movers.get(service)
        if found := (
            self._copying.failures.get(service)
            or self._wholeness.troubles.get(service)
            or (mover.trouble if mover else "")
        ):
            return found
        if self._heartbeat.is_locked(service):
            return (
                f"its row in {TABLE} is locked, so its copy cannot be shown to be fresh: "
                "end the transaction that holds it, see pg_locks"
            )
        return ""

    def doing(self, service: str) -> Doing:
        """What is being done for the service in stage `syncing`, or was when it failed; else empty."""
        state, has_stopped = self._state(service), not self._copying.is_working(service)
        if state.stage != "syncing":
            return ""
        if state.is_being_abandoned:
            return "abandoning_stopped" if has_stopped else "abandoning"
        return "copying_stopped" if has_stopped else "copying"

    def watched(self) -> tuple[int, ...]:
        """The endpoints of which freshness is asked for, by index."""
        return self._heartbeat.watching

    def beat_age_s(self) -> float | None:
        """How long ago the last heartbeat was sent; None if none was."""
        return self._heartbeat.beat_age_s()

    def lag_s(self, endpoint_index: int) -> float | None:
        """How far behind a copy may be; None unknown."""
        return self._heartbeat.lag_s(endpoint_index)

    @property
    def beat_error(self) -> str:
        """Why heartbeats cannot be written; empty when they can, or need not."""
        return self._heartbeat.write_error if self.watched() else ""

    @property
    def unkept(self) -> str:
        """Why the store does not hold what is in force; empty when it does."""
        return self._keeper.unkept

    # What is done

    async def start(self) -> RoutingTable:
        """Reads the store and goes on with what it says; the table to begin with.

        Raises StoreError, UnreadableState.
        """
        await self._keeper.load()
        known = {service.name for service in self._keeper.base.services}
        for name, state in self._keeper.state.services.items():
            if state.stage not in LANE_STAGES:
                continue
            if name not in known:
                self._events.add("orphaned", name, stage=state.stage, remedy="name it in `services` again")
            elif state.is_being_abandoned:
                self._copying.take_down(name, is_resumed=True)
            elif state.stage == "syncing":
                self._copying.make(name, is_resumed=True)
            else:
                self._copying.mover(name).watch()
                if self._configured(name).ddl == "both":  # a copy may have been lost between two commits
                    self._doubt(name)
        self._copying.rewatch()
        return self.table

    async def stop(self) -> None:
        """Ends what runs here. Lanes go on by themselves; `start` finds them."""
        await self._wholeness.close()
        await self._copying.close()
        await self._keeper.close()
        await asyncio.to_thread(self._heartbeat.stop)

    async def reconfigure(self, base: RoutingTable) -> None:
        """Takes over what a reload may change, and the tables that patterns are found to stand for.

        What is moving goes on with the tables it began with.
        """
        self._keeper.base = base
        await self._keeper.announce()

    async def begin(self, service: str) -> None:
        """shared → syncing, and on to shadowing by itself.

        Returns when that is journalled; `settled` waits for it. Raises PreflightFailed or ServerError before
        anything is changed.
        """
        self._configured(service)
        async with self._turns[service]:
            move(self._state(service).stage, "begin")
            if self._copying.is_working(service):
                if self._state(service).is_being_abandoned:
                    raise Held(f"{service} is being abandoned: begin when that is done")
                return
            await self._require_possible(service)
            self._copying.failures.pop(service, None)
            tables = self._copying.mover(service).own_tables
            await self._keeper.change(service, partial(_begun, tables=tables))
            self._events.add("syncing", service, database=self._configured(service).database)
            self._copying.make(service)

    async def settled(self, service: str) -> None:
        """Waits until nothing is being done for the service; raises what made it fail."""
        await self._copying.settled(service)

    async def shift(self, service: str, reads_percent: int) -> None:
        """Reads by weight, 0 to 100 %. Returns when every worker routes by it.

        Raises Held when more is asked than can be answered for: after a rollback, with a sick lane or a
        stale copy, for 100 % without a clean pass of verification. Less is always possible, though it raises
        StoreError when it could not be kept.
        """
        before = self._state(service)
        if reads_percent == before.reads_percent:
            return
        if reads_percent > before.reads_percent:
            epoch = await self._raise_reads(service, reads_percent)
        else:
            epoch = await self._keeper.reduce(
                service, partial(_lowered, reads_percent=reads_percent, at=time.time())
            )
        self._events.add("shifted", service, before=before.reads_percent, reads=reads_percent, epoch=epoch)
        if reads_percent < before.reads_percent and (unkept := self._keeper.unkept):
            raise StoreError(f"{service} reads {reads_percent} %, but that is not kept yet: {unkept}")

    async def _raise_reads(self, service: str, reads_percent: int) -> int:
        move(self._state(service).stage, "shift")
        await self._require_sound(service, reads_percent)

        def raised(state: ServiceState) -> ServiceState:
            if state.latch:  # tripped while we were looking
                raise Held(_latched(service, state.latch))
            return _shifted(state, reads_percent)

        epoch = await self._keeper.change(service, raised)
        if latch := self._state(service).latch:  # tripped while it was being kept
            raise Held(_latched(service, latch))
        return epoch

    async def rollback(self, service: str, trigger: str, evidence: Mapping[str, Any]) -> None:
        """No reads from the service's own database from the next epoch on, latched; may be repeated.

        Returns when every worker routes so. Raises WrongStage where no reads can be, and StoreError when it
        could not be kept: it holds all the same, until this process ends, and is kept as soon as that works.
        """
        rolling = self._rollbacks.get(service)
        if rolling is None:
            rolling = asyncio.create_task(self._roll_back(service, trigger, evidence))
            self._rollbacks[service] = rolling
            rolling.add_done_callback(lambda _: self._rollbacks.pop(service))
        await asyncio.shield(rolling)

    async def _roll_back(self, service: str, trigger: str, evidence: Mapping[str, Any]) -> None:
        began_s = time.monotonic()
        before = self._state(service)
        if before.latch and not before.reads_percent:
            await self._keeper.keep()
            return
        if before.stage == "syncing":
            raise WrongStage(
                f"{service} takes no reads in stage syncing, so there is nothing to roll back; "
                f"the way back from here is: pgshunt abandon {service}"
            )
        move(before.stage, "rollback")
        latch = before.latch or Latch(trigger, time.time(), dict(evidence))

        def rolled_back(state: ServiceState) -> ServiceState:
            if state.stage not in COPY_STAGES or (state.latch and not state.reads_percent):
                return state  # another writer took it back already
            back = replace(_moved(state, "rollback"), reads_percent=0, latch=state.latch or latch)
            return back.noted("rollback", "done", trigger, latch.at)

        epoch = await self._keeper.reduce(service, rolled_back)
        unkept = self._keeper.unkept
        self._events.add(
            "rolled_back",
            service,
            trigger=latch.trigger,
            epoch=epoch,
            reads_before=before.reads_percent,
            evidence=dict(latch.evidence),
            took_ms=round((time.monotonic() - began_s) * 1000, 1),
            **({"not_kept": unkept} if unkept else {}),
        )
        if unkept:
            raise StoreError(f"{service} is rolled back, but that is not kept yet: {unkept}")

    async def rearm(self, service: str, reason: str) -> None:
        """Lifts the latch; reads stay at 0 %.

        Raises Held unless the copy is sound and was found clean since.
        """
        latch = self._state(service).latch
        if latch is None:
            return
        move(self._state(service).stage, "rearm")
        await self._require_healthy(service)
        tally, now = self._copying.movers[service].tally, time.time()
        if not tally.is_clean_since(latch.at, now):
            raise Held(f"{service} cannot be armed: {tally.unclean(latch.at, now)}")

        def rearmed(state: ServiceState) -> ServiceState:
            move(state.stage, "rearm")  # not if it was abandoned meanwhile
            if state.latch != latch:  # lifted, and perhaps tripped anew, while we were looking
                raise Held(f"{service} was armed by somebody else meanwhile: see where it stands")
            return replace(state, latch=None).noted("rearm", "done", reason)

        await self._keeper.note(service, rearmed)
        self._events.add("rearmed", service, reason=reason, trigger=latch.trigger)

    async def abandon(self, service: str, even_if_target_is_gone: bool = False) -> None:
        """Back to shared: first the reads, then the lane, then the copies. Returns when all of it is done.

        The latch of a rollback goes with the copy it was about; journal and events keep it. Asked for again,
        it goes on with, or waits for, what is under way.

        With `even_if_target_is_gone` a service's own database that does not answer or obey keeps what it has.
        Only the shared database is freed: it would keep its log for the lane until its disk is full. That is
        remembered until the abandon is done.
        """
        self._configured(service)
        async with self._turns[service]:
            state = self._state(service)
            move(state.stage, "abandon")
            is_under_way = state.is_being_abandoned and self._copying.is_working(service)
            if not is_under_way or even_if_target_is_gone > state.is_target_gone:
                await self._keeper.change(
                    service, partial(_abandoning, is_target_gone=even_if_target_is_gone)
                )
                await self._wholeness.forget(service)
                self._copying.take_down(service)
        await self._copying.settled(service)

    async def add_columns(self, addition: Addition, user: str) -> None:
        """Adds columns to a table that is moving and to its copies, as `altering` has it.

        `user` must be an owner of the table. A copy that could not be reached any more takes no reads until
        it has them, too. Raises Impossible, ServerError, Held.
        """
        async with AsyncExitStack() as turns:
            try:
                async with asyncio.timeout(TURN_S_MAX):
                    for service in sorted(self._naming(addition.table)):  # none may begin meanwhile, either
                        await turns.enter_async_context(self._turns[service])
            except TimeoutError:
                raise Held(f"a service with {addition.table} is about to be copied: repeat it then") from None
            carriers = self._carriers(addition.table)
            for service in carriers:
                stage = self._state(service).stage
                if stage not in COPY_STAGES:
                    raise Held(
                        f"{service} is in stage {stage}: its tables keep their definition until it is copied"
                    )
            copies = {service: self._copying.movers[service].target for service in carriers}

            def lost(copy: Endpoint, owed: Addition) -> None:
                for service in carriers:
                    if copies[service] == copy:
                        self._doubt(service, owed)
                remedy = f"none, if it comes back; else run there: {statement(owed.table, owed.columns)}"
                self._events.add("columns_lacking", table=owed.table, endpoint=copy.name, remedy=remedy)

            shared, own = self._keeper.base.endpoints[0], list(dict.fromkeys(copies.values()))
            try:
                await add_columns(addition, user, shared, own, self._control, lost)
            except Impossible as unsure:
                if unsure.sqlstate == IN_DOUBT:
                    self._events.add("columns_in_doubt", table=addition.table, error=str(unsure))
                raise
        names = [column.name for column in addition.columns]
        for service in carriers:
            self._events.add("columns_added", service, table=addition.table, columns=names, user=user)

    def _doubt(self, service: str, *owed: Addition) -> None:
        copy = self._copying.mover(service).target
        self._wholeness.doubt(service, copy, self._state(service).copied, *owed)

    def _naming(self, table: str) -> list[str]:
        """The services that have the table, or will have when they begin."""
        return [
            service.name
            for service in self._keeper.base.services
            for state in [self._state(service.name)]
            if table in {*service.tables, *state.tables, *service.external_refs, *state.copied}
        ]

    def _carriers(self, table: str) -> list[str]:
        """The services whose lanes carry the table and whose copies change with it. Raises Held."""
        carriers = []
        for name in sorted(self._naming(table)):
            service = self._configured(name)
            if self._state(name).stage == "shared" or service.ddl == "owner":
                continue
            if service.ddl != "both":
                raise Held(f"services.{name}.ddl is refuse, and it has a copy of {table}, too")
            carriers.append(name)
        return carriers

    # How

    async def _require_possible(self, service: str) -> None:
        state = self._state(service)
        if not (state.tables or self._configured(service).tables):
            raise PreflightFailed([_OWNS_NOTHING])
        try:
            mover = self._copying.mover(service)
            await mover.preflight(state.copied)
            await mover.require_reachable()
        except (PreflightFailed, ServerError):
            if state.stage not in LANE_STAGES:
                await self._copying.forget(service)
            raise

    async def _require_sound(self, service: str, reads_percent: int) -> None:
        latch = self._state(service).latch
        if latch is not None:
            raise Held(_latched(service, latch))
        await self._require_healthy(service)
        mover = self._copying.movers[service]
        if mover.differing:
            raise Held(f"tables of {service} are not alike in both databases: {mover.differing[0].how}")
        try:
            others = [str(each) for each in await mover.other_ways() if each.fatal]
        except ServerError as error:
            raise Held(f"the settings of {service}'s databases cannot be compared: {error}") from error
        if others:
            raise Held(f"{service}'s own database would give other answers: {'. '.join(others)}")
        tally = mover.tally
        if tally.open:
            raise Held(
                f"{tally.open_total} rows of {service} differ from the shared database: repair them first"
            )
        if reads_percent == 100 and not tally.is_clean_since(0, time.time()):
            raise Held(
                f"100 % needs a recent whole pass of verification without a difference; {service} has none"
            )

    async def _require_healthy(self, service: str) -> None:
        mover = self._copying.movers.get(service)
        if mover is None:
            raise Held(f"{service} has no copy")
        try:
            status = await mover.lane.status()
        except ServerError as error:
            raise Held(f"the lane of {service} cannot be looked at: {error}") from error
        if not status.is_healthy:
            raise Held(f"the lane of {service} is not healthy: {status.problem}")
        lag_s_max = self._keeper.base.lag_ms_max / 1000
        lags = {
            self._keeper.base.endpoints[index].name: self.lag_s(index)
            for index in self._own_endpoints(self._configured(service))
        }
        if not any(lag_s is not None and lag_s <= lag_s_max for lag_s in lags.values()):
            behind = ", ".join(
                f"{name} {'of unknown freshness' if lag_s is None else f'{lag_s:.1f} s'}"
                for name, lag_s in lags.items()
            )
            raise Held(
                f"no endpoint of {service}'s own database is known to be less than {lag_s_max:g} s behind: "
                f"{behind}. Its lane is healthy, so it may catch up by itself: ask again"
            )

    def _state(self, service: str) -> ServiceState:
        return self._keeper.state.service(service)

    def _configured(self, name: str) -> Service:
        found = next((service for service in self._keeper.base.services if service.name == name), None)
        if found is None:
            raise WrongStage(f"{name} is not in the configuration")
        return found

    def _own_endpoints(self, service: Service) -> list[int]:
        endpoints = enumerate(self._keeper.base.endpoints)
        return [index for index, endpoint in endpoints if endpoint.database == service.database]


_OWNS_NOTHING = Problem(
    "tables", "there is none that its patterns match", "see `pgshunt check`: correct them, or make the tables"
)


def _moved(state: ServiceState, action: str) -> ServiceState:
    return replace(state, stage=move(state.stage, action).to)


def _begun(state: ServiceState, tables: tuple[str, ...]) -> ServiceState:
    begun = replace(_moved(state, "begin"), tables=tables, is_target_gone=False)
    return begun.noted("begin", "done")


def _abandoning(state: ServiceState, is_target_gone: bool) -> ServiceState:
    is_target_gone = is_target_gone or (state.is_being_abandoned and state.is_target_gone)
    moved = replace(_moved(state, "abandon"), reads_percent=0, is_target_gone=is_target_gone)
    return moved.noted("abandon", "begun", "without its own database" if is_target_gone else "")


def _shifted(state: ServiceState, reads_percent: int, at: float | None = None) -> ServiceState:
    moved = _moved(state, "shift" if reads_percent else "stop_reading")
    detail = f"{state.reads_percent} → {reads_percent} %"
    return replace(moved, reads_percent=reads_percent).noted("shift", "done", detail, at)


def _lowered(state: ServiceState, reads_percent: int, at: float) -> ServiceState:
    return _shifted(state, reads_percent, at) if reads_percent < state.reads_percent else state


def _latched(service: str, latch: Latch) -> str:
    return f"{service} was rolled back ({latch.trigger}): find out why, then re-arm it"
