"""Makes and takes down services' copies, step by step, in the background: one task for a service at a time.

What is to be done stands in the state, and each step is journalled before it is done; so it can be broken off
at any moment, by an abandon, a stop or a crash, and is gone on with from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from pgshunt.config.model import Control
from pgshunt.migration.dump import DumpFailed
from pgshunt.migration.heartbeat import Heartbeat, Watched
from pgshunt.migration.keeper import Keeper
from pgshunt.migration.lane import LaneFailed
from pgshunt.migration.mover import Mover, Options, PreflightFailed, TargetGone
from pgshunt.migration.schema import SchemaFailed
from pgshunt.migration.servers import ServerError
from pgshunt.migration.stages import COPY_STAGES, STEPS, UNDO, move
from pgshunt.migration.state import ServiceState, Status
from pgshunt.migration.store import StoreError
from pgshunt.migration.verify import VerifyResult
from pgshunt.routing.table import SHARED, Service

AGAIN_S: Final = 5.0
WAITS: Final = frozenset({"copy", "fresh"})
"""Steps during which the lane's own beats have to flow already."""

log = logging.getLogger("pgshunt.migration")

_FAILURES: Final = (
    ServerError,
    LaneFailed,
    SchemaFailed,
    DumpFailed,
    PreflightFailed,
    TargetGone,
    TimeoutError,
    StoreError,
)


class Events(Protocol):
    """The event log, as far as it is written to here."""

    def add(self, kind: str, service: str = "", /, **detail: Any) -> object: ...


class _Overtaken(Exception):
    """The state says that the copy is no longer to be made."""


class Copying:
    """The movers of all services, and what is done with them. `failures`: why a service's work ended."""

    def __init__(
        self,
        keeper: Keeper,
        control: Control,
        heartbeat: Heartbeat,
        events: Events,
        verified: Callable[[str, VerifyResult], None],
        options: Options,
    ) -> None:
        self._keeper = keeper
        self._control = control
        self._heartbeat = heartbeat
        self._events = events
        self._verified = verified
        self._options = options
        self.movers: dict[str, Mover] = {}
        self.failures: dict[str, str] = {}
        self._arriving: set[str] = set()  # lanes whose first heartbeat is waited for
        self._working: dict[str, asyncio.Task[None]] = {}
        self._steps: dict[str, str] = {}

    def is_working(self, service: str) -> bool:
        """Whether something is being done for the service in the background."""
        return service in self._working

    def mover(self, name: str) -> Mover:
        """The service's mover, made when it is first asked for."""
        if name not in self.movers:
            configured = self._configured(name)
            service = replace(configured, tables=self._state(name).tables or configured.tables)
            base = self._keeper.base
            primary = next(
                (index, endpoint)
                for index, endpoint in enumerate(base.endpoints)
                if endpoint.database == service.database and endpoint.role == "primary"
            )
            self.movers[name] = Mover(
                service,
                base.endpoints[0],
                primary,
                self._control,
                self._heartbeat,
                self._options,
                tell=lambda kind, detail: self._events.add(kind, name, **detail),
                verified=lambda result: self._verified(name, result),
                withhold=partial(self._keeper.withhold, name),
            )
        return self.movers[name]

    async def forget(self, service: str) -> None:
        """Closes the service's mover."""
        if mover := self.movers.pop(service, None):
            await mover.close()

    def make(self, service: str, *, is_resumed: bool = False) -> None:
        """Begins with the copy, or goes on with it. `is_resumed`: after a restart, when nobody waits for it
        and a server that is down is waited for.
        """
        self._work(service, self._make, is_resumed)

    def take_down(self, service: str, *, is_resumed: bool = False) -> None:
        """Begins to undo the copy, or goes on with that; breaks off what is being done for the service.

        What that left half done is undone: a lane's work begins with ending what it left at the servers.
        """
        self._work(service, self._take_down, is_resumed)

    async def settled(self, service: str) -> None:
        """Waits until nothing is being done for the service; raises what made it fail."""
        task = None
        while task is not self._working.get(service, task):
            task = self._working[service]
            await asyncio.wait({task})  # and not the task itself, which would be cancelled with its caller
        if task is None and (failure := self.failures.get(service)):
            raise LaneFailed(failure)
        if task is not None and task.cancelled():
            raise LaneFailed(f"what was being done for {service} was broken off: pgshunt is being stopped")
        if task is not None:
            task.result()

    async def close(self) -> None:
        """Ends what runs here; nothing at the databases changes."""
        working = list(self._working.values())
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        for service in list(self.movers):
            await self.forget(service)

    def rewatch(self, arrived: str = "") -> None:
        """Tells the heartbeat which endpoints to look at, and for whose lanes.

        A lane that still copies beats, so that it moves on, but does not yet count for its endpoints'
        freshness: another service may be reading there.
        """
        watched: dict[int, Watched] = {}
        for index, endpoint in enumerate(self._keeper.base.endpoints):
            if endpoint.database == SHARED:
                if index > 0:
                    watched[index] = Watched(index, endpoint)
                continue
            services = frozenset(
                service.name
                for service in self._keeper.base.services
                if service.database == endpoint.database
                and (self._state(service.name).stage in COPY_STAGES or service.name == arrived)
            )
            if services:
                watched[index] = Watched(index, endpoint, services)
        self._heartbeat.watch(watched, self._arriving)

    # How

    async def _make(self, service: str) -> None:
        """Does the steps of STEPS, each journalled before it is done."""
        mover = self.mover(service)
        await mover.lane.end_leftovers()
        copied = self._state(service).copied
        if not copied:
            copied = await mover.find_tables()
        actions: Mapping[str, Callable[[], Awaitable[object]]] = {
            "preflight": lambda: mover.preflight(self._state(service).copied),
            "roles": mover.create_roles,
            "schema": mover.create_schema,
            "grants": mover.grant,
            "publication": mover.lane.ensure_publication,
            "slot": mover.lane.ensure_slot,
            "subscription": mover.lane.ensure_subscription,
            "copy": mover.wait_copied,
            "fresh": mover.wait_fresh,
        }
        for step in STEPS:
            self._steps[service] = step.name
            known = copied if step.name == "schema" else None  # what is there from here on is ours to drop
            await self._keeper.note(service, partial(_noted, step=step.name, status="begun", copied=known))
            if step.name in WAITS:
                self._arriving.add(service)
                self.rewatch(arrived=service if step.name == "fresh" else "")
            result = await actions[step.name]()
            await self._keeper.note(service, partial(_noted, step=step.name, status="done"))
            self._events.add("step_done", service, step=step.name, **_found(result))
        await self._keeper.change(service, _synced)
        self._arriving.discard(service)
        self.rewatch()
        mover.watch()
        self._events.add("shadowing", service, tables=list(copied))

    async def _take_down(self, service: str) -> None:
        """Undoes the steps of STEPS, last first."""
        self._steps[service] = "abandon"
        mover = self.mover(service)
        await mover.unwatch()
        await self._keeper.withhold(service, frozenset())
        self._arriving.discard(service)
        self.rewatch()
        state = self._state(service)
        undo: Mapping[str, Callable[[], Awaitable[None]]] = {
            "drop_lane": partial(mover.drop_lane, state.is_target_gone),
            "drop_copies": partial(mover.drop_copies, state.copied, state.is_target_gone),
        }
        for action in UNDO:
            await undo[action]()
        await self.forget(service)
        await self._keeper.change(service, _abandoned)
        self._events.add("abandoned", service)

    def _work(self, service: str, work: Callable[[str], Awaitable[None]], is_resumed: bool) -> None:
        """Does a service's steps in the background, in place of what is being done; a failure is told."""
        before = self._working.get(service)

        async def run() -> None:
            if before is not None:
                before.cancel()
                await asyncio.wait({before})
            while True:
                try:
                    await work(service)
                    self.failures.pop(service, None)
                    return
                except _Overtaken:
                    log.info("%s: an abandon overtook step %s", service, self._steps.get(service, ""))
                    return
                except Exception as error:  # whatever it is: nobody else would tell of it
                    self._tell_failure(service, error)
                    if not (is_resumed and _may_pass(error)):
                        raise
                await asyncio.sleep(AGAIN_S)

        def ended(task: asyncio.Task[None]) -> None:
            if self._working.get(service) is task:
                del self._working[service]
            if not task.cancelled():
                task.exception()  # it was told above

        self.failures.pop(service, None)
        task = self._working[service] = asyncio.create_task(run())
        task.add_done_callback(ended)

    def _tell_failure(self, service: str, error: Exception) -> None:
        step = self._steps.get(service, "")
        if not isinstance(error, _FAILURES):
            log.error("defect in step %s of %s", step, service, exc_info=error)
        reason = str(error) if isinstance(error, _FAILURES) else repr(error)
        failure = reason + (f"; {error.remedy}" if isinstance(error, TargetGone) else "")
        if failure != self.failures.get(service):
            self._events.add("failed", service, step=step, error=reason)
        self.failures[service] = failure

    def _state(self, service: str) -> ServiceState:
        return self._keeper.state.service(service)

    def _configured(self, name: str) -> Service:
        return next(service for service in self._keeper.base.services if service.name == name)


def _noted(
    state: ServiceState, step: str, status: Status, copied: tuple[str, ...] | None = None
) -> ServiceState:
    _require_copying(state)
    return replace(state, copied=state.copied if copied is None else copied).noted(step, status)


def _synced(state: ServiceState) -> ServiceState:
    _require_copying(state)
    return replace(state, stage=move(state.stage, "synced").to).noted("synced", "done")


def _abandoned(state: ServiceState) -> ServiceState:
    """The latch of a rollback goes with the copy it was about; journal and events keep it."""
    stage = move(state.stage, "abandoned").to
    return replace(state, stage=stage, tables=(), copied=(), latch=None, is_target_gone=False).noted(
        "abandon", "done"
    )


def _require_copying(state: ServiceState) -> None:
    """An abandon that was journalled wins over the step that it is about to break off."""
    if state.stage != "syncing" or state.is_being_abandoned:
        raise _Overtaken


def _may_pass(error: Exception) -> bool:
    """Whether a server could not be reached, or is starting or ending."""
    found = error.__cause__ if isinstance(error, TargetGone) else error
    return isinstance(found, ServerError) and found.sqlstate.startswith(("08", "57P"))


def _found(result: object) -> dict[str, Any]:
    """What a step reports, for its event: warnings of preflight, foreign keys left out."""
    return {"found": [str(each) for each in result]} if isinstance(result, list | tuple) and result else {}
