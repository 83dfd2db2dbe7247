"""Composes the control plane and carries it from start to end.

In the order of the start: event log and state; the migration controller with the stages there are; admin API;
workers; then heartbeats, verification, probes and the guard. A database that is down keeps nothing from
starting: what needs it waits and says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from pgshunt.admin.adding import answer
from pgshunt.admin.catalogue import CatalogueKeeper
from pgshunt.admin.controller import MakeController, migration_controller
from pgshunt.admin.events import EventLog
from pgshunt.admin.fleet import WORKER_COMMAND, Fleet, FleetError
from pgshunt.admin.gauges import add_gauges
from pgshunt.admin.http import AdminApi
from pgshunt.admin.login_secret import login_secret
from pgshunt.admin.metrics import Metrics
from pgshunt.admin.observing import Observing
from pgshunt.admin.operations import Health, SupervisorOperations
from pgshunt.admin.owning import Owning
from pgshunt.admin.probe import Probed, Prober
from pgshunt.admin.readable import Readable
from pgshunt.admin.reload import changes, merged
from pgshunt.admin.repeats import Repeats
from pgshunt.admin.table import routing_table
from pgshunt.admin.watch import Watch
from pgshunt.config import Config, ConfigError, Severity, load
from pgshunt.migration.aside import Aside
from pgshunt.migration.guard import Guard, Trip
from pgshunt.migration.stages import COPY_STAGES, WrongStage
from pgshunt.migration.state import UnreadableState
from pgshunt.migration.store import StoreError
from pgshunt.migration.verify import VerifyResult
from pgshunt.proxy.channel import Message
from pgshunt.routing.table import Catalogue, RoutingTable, Service

GRACE_MS = 30_000
CATALOGUE_S_MAX = 3.0
CHECK_S = 1.0
RELOAD_S_MAX = 10.0
ADDING_S_MAX = 20.0
ADMIN_GRACE_S = 2.0
AGAIN_S = 1.0
DEFECTS_MAX = 20

log = logging.getLogger("pgshunt")


class StartFailed(Exception):
    """pgshunt cannot start; the message says why and what to do."""


class Supervisor:
    """One pgshunt. `start`, then `run` until it is told to stop."""

    def __init__(
        self,
        config: Config,
        path: Path,
        command: Sequence[str] = WORKER_COMMAND,
        make_controller: MakeController = migration_controller,
    ) -> None:
        self._config = config
        self._path = path
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._adding: set[asyncio.Task[None]] = set()
        self._stages: dict[str, str] = {}
        self._runner: web.AppRunner | None = None
        self.health = Health()
        self.events = EventLog(config.state.path.with_suffix(".events.jsonl"))
        self._repeats = Repeats()
        self._owning = Owning(
            config, lambda kind, service, **detail: self.events.add(kind, service, **detail)
        )
        self._reloading = asyncio.Lock()
        self._aside = Aside("configuration")
        self.guard = Guard(
            error_rate_percent_max=config.rollback.error_rate_percent_max,
            consistency_percent_min=config.rollback.consistency_percent_min,
        )
        table = routing_table(config)
        self._shared = table.endpoints[0]
        try:
            self.controller = make_controller(
                config, table, self._publish, self._freshness, self.events, self._verified
            )
        except StoreError as error:
            raise StartFailed(str(error)) from error
        self.metrics = Metrics(table)
        self.catalogue = CatalogueKeeper(
            self._shared, config.control, self._catalogue_changed, self._report, self._definitions
        )
        self.watch = Watch(
            self.guard,
            clock=time.monotonic,
            on_trip=self._tripped,
            has_only_link=self._has_only_link,
            shared=self._shared.name,
        )
        self.observing = Observing(
            config.state.path.with_suffix(".observed.json"), self._shared, config.control
        )
        self.prober = Prober(self.watch, self._shared, config.control, self._exposed)
        try:
            self.fleet = Fleet(
                config,
                table,
                Catalogue(),
                on_message=self._take,
                on_ended=self._worker_ended,
                report=self._report,
                command=command,
                login_secret=self._login_secret(),
            )
        except OSError as error:
            raise StartFailed(f"{error.strerror}: stop what listens there, or change listen.port") from error
        self.readable = Readable(
            self.controller,
            table.lag_ms_max,
            self.fleet.board.withheld,
            lambda kind, detail: self.events.add(kind, **detail),
        )
        self.operations = SupervisorOperations(
            mover=self.controller,
            fleet=self.fleet,
            watch=self.watch,
            events=self.events,
            health=self.health,
            readable=self.readable,
            clock=time.monotonic,
            baseline_error=lambda: self.catalogue.error,
            search_path_of=self.catalogue.search_path_of,
            behind=lambda: self.catalogue.behind,
            roll_back=self._roll_back,
            rearmed=self.watch.arm,
            observing=self.observing,
        )
        add_gauges(self.metrics, self.fleet, self.controller, self.watch, self.health)
        self.metrics.gauge(
            "endpoint_readable", "1 while a copy takes reads", ("backend",), self.readable.samples
        )

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when clients are served. Raises StartFailed."""
        try:
            self.fleet.table = await self.controller.start()
        except (StoreError, UnreadableState) as error:
            raise StartFailed(str(error)) from error
        for service in self.controller.table.services:
            self._arm_at_start(service)
        await self._start_admin()
        if await self.catalogue.read(CATALOGUE_S_MAX):
            await self._take_catalogue(self.catalogue.catalogue)
        try:
            await self.fleet.start()
        except FleetError as error:
            raise StartFailed(f"{error}: what it said is above") from error
        for part in (self.catalogue, self.prober, self.watch, self.readable, self.observing):
            self._begin(self._lasting(part.run))
        self._begin(self._lasting(self._check))
        self._started.set()
        self.events.add(
            "started",
            listen=f"{self._config.listen.host}:{self.fleet.port}",
            admin=f"{self._config.admin.host}:{self._admin_port()}",
            workers=len(self.fleet.members),
            epoch=self.fleet.table.epoch,
        )

    async def run(self) -> None:
        """Serves until `stop`, then drains."""
        await self._stopping.wait()
        self.health.draining = True
        self.events.add("draining", grace_ms=GRACE_MS, clients=self.fleet.board.clients_total())
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
        if self._adding:  # one that takes longer may leave a copy in doubt, until the next start compares it
            await asyncio.wait(self._adding, timeout=ADDING_S_MAX)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.controller.stop()
        await self.catalogue.close()
        await self.observing.close()
        self.events.end_waiting()
        if self._runner is not None:
            await self._runner.cleanup()
        self.fleet.kill()
        self.fleet.close()

    def reload_soon(self) -> None:
        """Reloads beside everything else: what SIGHUP asks for."""
        self._begin(self.reload())

    async def reload(self) -> None:
        """Reads the configuration again: brings into force what can be, names what needs a restart."""
        await self._started.wait()
        async with self._reloading:
            try:
                async with asyncio.timeout(RELOAD_S_MAX):
                    found = await self._aside.run(partial(load, self._path))
            except ConfigError as error:
                wrong = [str(one) for one in error.problems if one.severity is Severity.ERROR]
                more = f"; {len(wrong) - 1} more: pgshunt check -c {self._path}" if len(wrong) > 1 else ""
                self._reload_failed(wrong[0] + more, **({"problems": wrong} if more else {}))
            except TimeoutError:
                self._reload_failed(f"{self._path} and its secrets were not read within {RELOAD_S_MAX:g} s")
            else:
                await self._take_over(found)

    def _reload_failed(self, reason: str, **more: Any) -> None:
        """`reason` is one line: it stands in the status until a reload succeeds."""
        self.health.reload_error = reason
        self.events.add("reload_failed", reason=reason, **more)

    async def _take_over(self, found: Config) -> None:
        differing = changes(self._config, found)
        self._config = merged(self._config, found)
        self.health.reload_error, self.health.restart_needed = "", differing.restart
        self.guard.configure(
            error_rate_percent_max=self._config.rollback.error_rate_percent_max,
            consistency_percent_min=self._config.rollback.consistency_percent_min,
        )
        self.api.token = self._config.admin.token
        self.fleet.reload(self._config)
        if any(path.startswith("services.") for path in differing.live):
            await self.controller.reconfigure(routing_table(self._config, self.catalogue.catalogue.tables()))
        self.events.add("reloaded", changed=differing.live, restart_needed=differing.restart)

    # -- what the controller is given -------------------------------------------------------------------

    async def _publish(self, table: RoutingTable) -> None:
        """Returns when every worker routes by the table.

        A worker may route by it as soon as it is sent, and by the one before until it has answered: so what
        begins to be exposed is watched from the first moment, and what no longer is until the last.
        """
        for service in table.services:
            self._watch_exposed(service)
        self.prober.look()
        took_s = await self.fleet.publish(table, self.catalogue.catalogue)
        self.metrics.published()
        if table.epoch == self.controller.table.epoch:  # a later one is on its way otherwise
            for service in table.services:
                self.guard.expose(service.name, _is_exposed(service))
        log.info("epoch %d on all workers after %.1f ms", table.epoch, 1000 * took_s)

    def _freshness(self, endpoint_index: int, moment_ns: int) -> None:
        """From the heartbeat's threads: a single aligned store."""
        self.fleet.board.freshness[endpoint_index] = moment_ns

    def _verified(self, service: str, result: VerifyResult) -> None:
        """A range of rows was compared; a whole pass only sums up what was told before."""
        if not result.is_pass:
            different, undecided = len(result.confirmed), result.undecided
            equal = max(0, result.rows_compared - different - undecided)
            self.metrics.rows_verified(service, equal, different, undecided)
            self.watch.compared(service, equal=equal, different=different, undecided=undecided)

    # -- the guard --------------------------------------------------------------------------------------

    def _arm_at_start(self, service: Service) -> None:
        """A latch survives a restart; counters do not."""
        if service.stage in COPY_STAGES:
            self.watch.arm(service.name)
        if self.controller.latch(service.name) is not None:
            self.guard.latch(service.name)
        self._watch_exposed(service)

    def _watch_exposed(self, service: Service) -> None:
        """Tells the guard what a table begins: fresh counters when a copy begins to be used."""
        before = self._stages.get(service.name, service.stage)
        self._stages[service.name] = service.stage
        if service.stage in COPY_STAGES and before not in COPY_STAGES:
            self.watch.arm(service.name)
        if _is_exposed(service):
            self.guard.expose(service.name, True)

    def _exposed(self) -> list[Probed]:
        """What is to be probed: for each service that reads there, the primary of its own database."""
        table = self.controller.table
        primaries = {end.database: end for end in table.endpoints if end.role == "primary"}
        return [
            Probed(service.name, primaries[service.database])
            for service in table.services
            if service.stage == "reading"
        ]

    def _has_only_link(self, service: str, worker: int) -> bool:
        table = self.controller.table
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
        except StoreError as error:
            log.error("the rollback of %s holds only until a restart: %s", trip.service, error)

    async def _roll_back(self, service: str, trigger: str, evidence: Mapping[str, Any]) -> None:
        """The controller journals before it announces, and takes the reads back even if it cannot journal."""
        held_before = self.controller.latch(service) is not None
        try:
            await self.controller.rollback(service, trigger, evidence)
        finally:
            if not held_before and self.controller.latch(service) is not None:
                self.guard.latch(service)
                self.metrics.rolled_back(service, trigger)

    # -- workers and catalogue ----------------------------------------------------------------------------

    def _take(self, worker: int, message: Message) -> None:
        if message["type"] == "delta":
            try:
                self.metrics.add(message)
            finally:  # nothing may keep the guard from what it judges by
                self.watch.take(message)
            self.observing.take(message)
            self.catalogue.look()
        elif message["type"] == "add":
            adding = asyncio.create_task(self._add(worker, message))
            self._adding.add(adding)
            adding.add_done_callback(self._adding.discard)
        elif message["type"] == "event":
            if message["kind"] in ("lookup_failed", "lookup_works"):
                self._take_lookup(worker, str(message.get("reason", "")))
                return
            detail = {name: value for name, value in message.items() if name not in ("type", "kind")}
            service = str(detail.pop("service", ""))
            detail = {"worker": worker, **detail}
            if self._repeats.is_first(time.monotonic(), message["kind"], service, detail):
                self.events.add(message["kind"], service, **detail)

    async def _add(self, worker: int, asked: Message) -> None:
        self.fleet.tell(worker, await answer(asked, self.controller))

    def _take_lookup(self, worker: int, failure: str) -> None:
        """Told when it fails in the first worker, and when it works again in the last."""
        failures = self.health.lookup_failures
        failed_before = bool(failures)
        if failure:
            failures[worker] = failure
        else:
            failures.pop(worker, None)
        if failure and not failed_before:
            self.events.add("lookup_failed", worker=worker, reason=failure)
        elif failed_before and not failures:
            self.events.add("lookup_works")

    def _report(self, kind: str, detail: Mapping[str, Any]) -> None:
        self.events.add(kind, **detail)

    def _worker_ended(self, worker: int) -> None:
        self.metrics.worker_ended(worker)
        self._take_lookup(worker, "")
        self.guard.forget_worker(worker)

    async def _catalogue_changed(self, catalogue: Catalogue) -> None:
        is_news = catalogue.version != self.fleet.catalogue.version
        await self._take_catalogue(catalogue)
        if is_news:
            self.events.add("catalogue_read", relations=len(catalogue.relations), version=catalogue.version)

    async def _take_catalogue(self, catalogue: Catalogue) -> None:
        """The workers get it together with the tables that services own by it."""
        if base := self._owning.look(self._config, catalogue):
            self.health.contested = self._owning.contested
            await self.controller.reconfigure(base)
        else:
            await self.fleet.publish(self.controller.table, catalogue)

    def _definitions(self) -> tuple[int, ...]:
        return tuple(self.fleet.board.definitions)

    # -- small things -------------------------------------------------------------------------------------

    def _login_secret(self) -> bytes:
        file = self._config.state.path.with_suffix(".secret")
        try:
            return login_secret(file)
        except OSError as error:
            raise StartFailed(
                f"{file}: {error.strerror}; change state.path, or who may write there"
            ) from error

    async def _start_admin(self) -> None:
        admin = self._config.admin
        try:
            self.api = AdminApi(self.operations, self.metrics, self.events, admin.host, admin.token)
        except ValueError as error:
            raise StartFailed(str(error)) from error
        self._runner = web.AppRunner(self.api.application(), access_log=None, shutdown_timeout=ADMIN_GRACE_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, admin.host, admin.port).start()
        except OSError as error:
            where = f"{admin.host}:{admin.port}"
            raise StartFailed(
                f"cannot listen on {where} for the admin API: {error.strerror}; change admin.port"
            ) from error

    def _admin_port(self) -> int:
        """Where the admin API listens; of interest when the configuration says 0."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            self.fleet.check()
            for kind, service, detail in self._repeats.due(time.monotonic()):
                self.events.add(kind, service, **detail)

    async def _lasting(self, run: Callable[[], Awaitable[None]]) -> None:
        """Runs a part that has no end, again where a defect ends it: without it the others would be blind."""
        while True:
            try:
                await run()
            except Exception as error:  # whatever it is, it is told
                log.exception("defect in the supervisor")
                if repr(error) not in self.health.defects and len(self.health.defects) < DEFECTS_MAX:
                    self.health.defects.add(repr(error))
                    self.events.add("defect", reason=repr(error))
            await asyncio.sleep(AGAIN_S)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something beside everything else; a defect in it is told, and ends only itself."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("defect in the supervisor", exc_info=error)
            self.events.add("defect", reason=repr(error))


def _is_exposed(service: Service) -> bool:
    """Whether clients read from the service's own database."""
    return service.stage == "reading" and service.reads_percent > 0
