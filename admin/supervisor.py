"""Composes the control plane and carries it from start to end.

In the order of the start: event log and state; the migration controller with the stages there are; admin API;
workers; then heartbeats, verification, probes and the guard. A database that is down keeps nothing from
starting: what needs it waits and says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from pgshunt.admin.catalogue import CatalogueKeeper
from pgshunt.admin.events import EventLog
from pgshunt.admin.fleet import WORKER_COMMAND, Fleet, FleetError
from pgshunt.admin.gauges import add_gauges
from pgshunt.admin.http import AdminApi
from pgshunt.admin.metrics import Metrics
from pgshunt.admin.operations import Health, Mover, SupervisorOperations
from pgshunt.admin.probe import Probed, Prober
from pgshunt.admin.reload import changes, merged
from pgshunt.admin.watch import Watch
from pgshunt.config import Config, ConfigError, load
from pgshunt.migration.guard import Guard, Trip
from pgshunt.migration.stages import COPY_STAGES, WrongStage
from pgshunt.migration.store import StoreError
from pgshunt.proxy.channel import Message
from pgshunt.routing.table import Catalogue, RoutingTable, Service

GRACE_MS = 30_000
CATALOGUE_S_MAX = 3.0
CHECK_S = 1.0

log = logging.getLogger("pgshunt")


class StartFailed(Exception):
    """pgshunt cannot start; the message says why and what to do."""


class Callbacks(Protocol):
    """What the migration controller is given to act and to tell with."""

    async def publish(self, table: RoutingTable) -> None:
        """Returns when every worker routes by the table."""

    def freshness(self, endpoint_index: int, moment_ns: int) -> None:
        """An endpoint holds everything committed before this CLOCK_MONOTONIC moment; from any thread."""

    def report(self, kind: str, service: str, detail: Mapping[str, Any]) -> None:
        """Something for the event log."""

    def compared(self, service: str, rows: int, different: int, undecided: int) -> None:
        """Verification has compared some rows; `different` are confirmed."""


class StartedMover(Mover, Protocol):
    """A controller with a life of its own: lanes, heartbeats, verification."""

    async def start(self) -> None:
        """Resumes what the state says is under way."""

    async def stop(self) -> None:
        """Ends all of it; nothing is undone."""

    def reconfigure(self, config: Config) -> RoutingTable:
        """Takes the live changes of a reload; the table to publish."""


class MakeMover(Protocol):
    def __call__(self, config: Config, callbacks: Callbacks) -> StartedMover:
        """Reads the state. Raises StoreError."""


class Supervisor:
    """One pgshunt. `start`, then `run` until it is told to stop."""

    def __init__(
        self,
        config: Config,
        path: Path,
        make_mover: MakeMover,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._config = config
        self._path = path
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stages: dict[str, str] = {}
        self._runner: web.AppRunner | None = None
        self.health = Health()
        self.events = EventLog(config.state.path.with_suffix(".events.jsonl"))
        self.guard = Guard(
            error_rate_percent_max=config.rollback.error_rate_percent_max,
            consistency_percent_min=config.rollback.consistency_percent_min,
        )
        try:
            self.mover = make_mover(config, self)
        except StoreError as error:
            raise StartFailed(str(error)) from error
        table = self.mover.table
        self._shared = table.endpoints[0]
        self.metrics = Metrics(table)
        self.catalogue = CatalogueKeeper(self._shared, config.control, self._catalogue_changed)
        self.watch = Watch(
            self.guard, clock=time.monotonic, on_trip=self._tripped, has_only_link=self._has_only_link
        )
        self.prober = Prober(self.watch, self._shared, config.control, self._exposed)
        try:
            self.fleet = Fleet(
                config,
                table,
                Catalogue(),
                on_message=self._take,
                on_ended=self._worker_ended,
                report=lambda kind, detail: self.report(kind, "", detail),
                command=command,
            )
        except OSError as error:
            raise StartFailed(f"{error.strerror}: stop what listens there, or change listen.port") from error
        self.operations = SupervisorOperations(
            mover=self.mover,
            fleet=self.fleet,
            watch=self.watch,
            events=self.events,
            health=self.health,
            clock=time.monotonic,
            baseline_error=lambda: self.catalogue.error,
            roll_back=self._roll_back,
            rearmed=self._rearmed,
        )
        add_gauges(self.metrics, self.fleet, self.mover, self.watch, self.health)

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when clients are served. Raises StartFailed."""
        for service in self.mover.table.services:
            self._arm_at_start(service)
        await self._start_admin()
        if await self.catalogue.read(CATALOGUE_S_MAX):
            self.fleet.catalogue = self.catalogue.catalogue
        try:
            await self.fleet.start()
        except FleetError as error:
            raise StartFailed(f"{error}: what it said is above") from error
        await self.mover.start()
        for life in (self.catalogue.run(), self.prober.run(), self.watch.run(), self._check()):
            self._begin(life)
        self.report(
            "started",
            "",
            {"port": self.fleet.port, "workers": len(self.fleet.members), "epoch": self.fleet.table.epoch},
        )

    async def run(self) -> None:
        """Serves until `stop`, then drains."""
        await self._stopping.wait()
        self.health.draining = True
        self.report("draining", "", {"grace_ms": GRACE_MS, "clients": self.fleet.board.clients_total()})
        await self.fleet.stop(GRACE_MS)

    def stop(self) -> None:
        """Drains and ends. The second time: now."""
        if self._stopping.is_set():
            self.fleet.kill()
        self._stopping.set()

    def quit(self) -> None:
        """Ends at once."""
        self.fleet.kill()
        self._stopping.set()

    async def close(self) -> None:
        """Gives everything back, also after a start that failed half-way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.mover.stop()
        await self.catalogue.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self.fleet.kill()
        self.fleet.close()

    def reload_soon(self) -> None:
        """Reloads beside everything else: what SIGHUP asks for."""
        self._begin(self.reload())

    async def reload(self) -> None:
        """Reads the configuration again: brings into force what can be, names what needs a restart."""
        try:
            found = load(self._path)
        except ConfigError as error:
            self.health.reload_error = str(error)
            self.report("reload_failed", "", {"reason": str(error)})
            return
        differing = changes(self._config, found)
        self._config = merged(self._config, found)
        self.health.reload_error, self.health.restart_needed = "", differing.restart
        self.guard.configure(
            error_rate_percent_max=self._config.rollback.error_rate_percent_max,
            consistency_percent_min=self._config.rollback.consistency_percent_min,
        )
        self.api.token = self._config.admin.token
        if any(path.startswith("services.") for path in differing.live):
            await self.publish(self.mover.reconfigure(self._config))
        detail = {"changed": list(differing.live), "restart_needed": list(differing.restart)}
        self.report("reloaded", "", detail)

    # -- what the migration controller is given ---------------------------------------------------------

    async def publish(self, table: RoutingTable) -> None:
        took_s = await self.fleet.publish(table, self.catalogue.catalogue)
        self.metrics.published()
        for service in table.services:
            self._align(service)
        log.info("epoch %d on all workers after %.1f ms", table.epoch, 1000 * took_s)

    def freshness(self, endpoint_index: int, moment_ns: int) -> None:
        self.fleet.board.freshness[endpoint_index] = moment_ns

    def report(self, kind: str, service: str, detail: Mapping[str, Any]) -> None:
        event = self.events.add(kind, service, **detail)
        log.info("%s %s %s", event.kind, event.service, dict(event.detail))

    def compared(self, service: str, rows: int, different: int, undecided: int) -> None:
        self.metrics.rows_verified(service, max(0, rows - different - undecided), different, undecided)
        self.watch.compared(service, rows=rows, different=different, undecided=undecided)

    # -- the guard --------------------------------------------------------------------------------------

    def _arm_at_start(self, service: Service) -> None:
        """A latch survives a restart; counters do not."""
        if service.stage in COPY_STAGES:
            self.guard.arm(service.name)
        if self.mover.latch(service.name) is not None:
            self.guard.latch(service.name)
        self._align(service)

    def _align(self, service: Service) -> None:
        """Tells the guard what a new table means: fresh counters when a copy begins to be used."""
        before = self._stages.get(service.name, service.stage)
        self._stages[service.name] = service.stage
        if service.stage in COPY_STAGES and before not in COPY_STAGES:
            self.guard.arm(service.name)
        self.guard.expose(service.name, service.stage == "reading" and service.reads_percent > 0)

    def _exposed(self) -> list[Probed]:
        """What is to be probed: the primary of each database that takes reads."""
        table = self.mover.table
        reading = {service.database: service.name for service in table.services if service.stage == "reading"}
        return [
            Probed(reading[endpoint.database], endpoint)
            for endpoint in table.endpoints
            if endpoint.database in reading and endpoint.role == "primary"
        ]

    def _has_only_link(self, service: str, worker: int) -> bool:
        table = self.mover.table
        database = next((one.database for one in table.services if one.name == service), "")
        endpoints = {endpoint.name for endpoint in table.endpoints if endpoint.database == database}
        return self.metrics.links_of_worker(worker, endpoints) <= 1

    def _tripped(self, trip: Trip) -> None:
        self._begin(self._roll_back_tripped(trip))

    async def _roll_back_tripped(self, trip: Trip) -> None:
        try:
            await self._roll_back(trip.service, trip.judgement.trigger, trip.judgement.to_dict())
        except WrongStage:
            log.info("%s was taken back by somebody else meanwhile", trip.service)

    async def _roll_back(self, service: str, trigger: str, evidence: Mapping[str, Any]) -> None:
        """Journalled by the controller before it is announced; what cannot be journalled is still done."""
        began_s = time.monotonic()
        detail = {"trigger": trigger, "reason": evidence.get("reason", ""), "evidence": dict(evidence)}
        try:
            await self.mover.rollback(service, trigger, evidence)
        except StoreError as error:
            await self.publish(_without_reads(self.mover.table, service))
            detail["not_kept"] = str(error)
        self.guard.latch(service)
        self.metrics.rolled_back(service, trigger)
        self.report(
            "rolled_back", service, detail | {"took_ms": round(1000 * (time.monotonic() - began_s), 1)}
        )

    def _rearmed(self, service: str, reason: str) -> None:
        self.guard.arm(service)
        self._stages.pop(service, None)
        self.report("rearmed", service, {"reason": reason})

    # -- workers and catalogue ----------------------------------------------------------------------------

    def _take(self, worker: int, message: Message) -> None:
        if message["type"] == "delta":
            self.metrics.add(message)
            self.watch.take(message)
        elif message["type"] == "event":
            detail = {name: value for name, value in message.items() if name not in ("type", "kind")}
            self.report(message["kind"], str(detail.pop("service", "")), {"worker": worker, **detail})

    def _worker_ended(self, worker: int) -> None:
        self.metrics.worker_ended(worker)
        self.guard.forget_worker(worker)

    async def _catalogue_changed(self, catalogue: Catalogue) -> None:
        await self.fleet.publish(self.mover.table, catalogue)
        self.report(
            "catalogue_read", "", {"relations": len(catalogue.relations), "version": catalogue.version}
        )

    # -- small things -------------------------------------------------------------------------------------

    async def _start_admin(self) -> None:
        admin = self._config.admin
        try:
            self.api = AdminApi(self.operations, self.metrics, self.events, admin.host, admin.token)
        except ValueError as error:
            raise StartFailed(str(error)) from error
        self._runner = web.AppRunner(self.api.application(), access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, admin.host, admin.port).start()
        except OSError as error:
            where = f"{admin.host}:{admin.port}"
            raise StartFailed(
                f"cannot listen on {where} for the admin API: {error.strerror}; change admin.port"
            ) from error

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            self.fleet.check()

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something beside everything else; a defect in it is told, and ends only itself."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("defect in the supervisor", exc_info=error)
            self.report("defect", "", {"reason": repr(error)})


def _without_reads(table: RoutingTable, name: str) -> RoutingTable:
    """The same table, but nothing is read from this service's own database."""
    services = tuple(
        replace(service, reads_percent=0) if service.name == name else service for service in table.services
    )
    return replace(table, epoch=table.epoch + 1, services=services)
