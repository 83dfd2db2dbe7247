"""What an operator can see and do, and how refusals are worded: the admin API's view of the supervisor."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pgshunt import __version__
from pgshunt.admin.controller import Mover
from pgshunt.admin.document import Document, Standing, readiness_document, service_document, summary
from pgshunt.admin.events import EventLog
from pgshunt.admin.fleet import Fleet
from pgshunt.admin.observing import Observing
from pgshunt.admin.problem import Problem, bad_value, conflict, held, latched, not_ready, unknown_service
from pgshunt.admin.readable import Readable
from pgshunt.admin.viewpoint import Viewpoint
from pgshunt.admin.watch import Watch
from pgshunt.admin.words import counted
from pgshunt.migration.lane import LaneFailed
from pgshunt.migration.mover import PreflightFailed, TargetGone
from pgshunt.migration.servers import ServerError
from pgshunt.migration.stages import COPY_STAGES, Held, WrongStage
from pgshunt.migration.store import Conflict, StoreError
from pgshunt.routing.explain import Freshness, explain
from pgshunt.routing.table import Service

LATEST_EVENTS = 50


@dataclass(slots=True)
class Health:
    """What the supervisor knows about itself."""

    started_at: float = field(default_factory=time.time)
    draining: bool = False
    reload_error: str = ""
    lookup_failures: dict[int, str] = field(default_factory=dict)
    """Of workers that cannot read users' verifiers now: why."""
    restart_needed: tuple[str, ...] = ()
    contested: tuple[str, ...] = ()
    """Tables that are nobody's because several services claim them: why, and what to do."""
    defects: set[str] = field(default_factory=set)
    """Of parts that should run without end: why one did not."""


@dataclass(frozen=True, slots=True)
class SupervisorOperations:
    """Implements admin.http.Operations. `baseline_error()` says why the shared database cannot be used,
    `behind()` why its catalogue could not be read.
    """

    mover: Mover
    fleet: Fleet
    watch: Watch
    events: EventLog
    health: Health
    readable: Readable
    clock: Callable[[], float]
    baseline_error: Callable[[], str]
    search_path_of: Callable[[str], Awaitable[str | None]]
    behind: Callable[[], str]
    roll_back: Callable[[str, str, Mapping[str, Any]], Awaitable[None]]
    rearmed: Callable[[str], None]
    observing: Observing

    # -- reading --------------------------------------------------------------------------------------

    def readiness(self) -> list[str]:
        """A service's own database that is down is no reason: the shared one serves. Nor is a worker that is
        missing, or cannot look verifiers up: the others serve its clients, and the status warns.
        """
        reasons = []
        if self.health.draining:
            reasons.append("draining")
        elif reason := self.fleet.unready():
            reasons.append(reason)
        if error := self.baseline_error():
            reasons.append(f"the shared database cannot be used: {error}")
        failures = self.health.lookup_failures
        if failures and len(failures) >= self.fleet.live:
            reasons.append(_lookup_fails(failures))
        return reasons

    def status(self) -> Document:
        documents = self.services()
        return {
            "sentence": summary(documents, self.fleet.live, len(self.fleet.members), self.mover.table.epoch),
            "warnings": [*self._warnings(), *_attention(documents)],
            "version": __version__,
            "pid": os.getpid(),
            "started_at": self.health.started_at,
            "port": self.fleet.port,
            "epoch": self.mover.table.epoch,
            "clients": self.fleet.board.clients_total(),
            "workers": [
                {
                    "index": member.index,
                    "pid": member.pid,
                    "stage": member.stage,
                    "epoch": member.epoch,
                    "restarts": member.restarts,
                    "clients": self.fleet.board.clients[member.index],
                }
                for member in self.fleet.members
            ],
            "services": documents,
        }

    def services(self) -> list[Document]:
        return [self._document(service) for service in self.mover.table.services]

    def service(self, name: str) -> Document:
        return self._document(self._find(name))

    def dashboard(self) -> Document:
        return {**self.status(), "events": [event.to_dict() for event in self.events.latest(LATEST_EVENTS)]}

    async def explain(self, sql: str, service: str, user: str, search_path: str) -> Document:
        """As a session of `user` sees it, or else of the first login role of `service`."""
        users = (user,) if user else self._find(service).users if service else ()
        view = await self._viewpoint(users[0] if users else "", search_path)
        path = view.path(self.fleet.catalogue.search_path)
        explanation = explain(sql, self.mover.table, self.fleet.catalogue, path, self._freshness_of)
        document = view.document(explanation, path)
        if self.fleet.catalogue.version == 0:
            document["lines"].append(
                "attention  the shared database's catalogue could not be read yet: no table is known"
            )
        return document

    async def _viewpoint(self, user: str, search_path: str) -> Viewpoint:
        if not user or search_path:
            return Viewpoint(user, search_path)
        try:
            return Viewpoint(user, own_path=await self.search_path_of(user))
        except ServerError as error:
            return Viewpoint(user, unread=str(error))

    def observations(self) -> Document:
        return self.observing.observed.to_document()

    async def readiness_of(self, name: str) -> Document:
        service = self._find(name)
        try:
            readiness = await self.observing.assess(name, self.mover.table.services, self.fleet.catalogue)
        except ServerError as error:
            raise Problem("server_failed", HTTPStatus.BAD_GATEWAY, str(error), error.hint) from error
        return readiness_document(service, readiness, self.observing.observed)

    # -- changing -------------------------------------------------------------------------------------

    async def begin(self, name: str) -> Document:
        return await self._do(name, lambda service: self.mover.begin(service.name))

    async def shift(self, name: str, reads_percent: int) -> Document:
        if not 0 <= reads_percent <= 100:
            raise bad_value(f"{reads_percent} is no percentage", "from 0 to 100")
        return await self._do(name, lambda service: self.mover.shift(service.name, reads_percent))

    async def rollback(self, name: str, reason: str) -> Document:
        evidence = {"reason": reason or "asked for by an operator"}
        return await self._do(
            name, lambda service: self.roll_back(service.name, "manual", evidence), may_be_latched=True
        )

    async def rearm(self, name: str, reason: str) -> Document:
        service = self._find(name)
        if self.mover.latch(name) is None:
            raise conflict(f"{name} is not held by a rollback", "nothing needs to be done")
        await self._do(name, lambda service: self.mover.rearm(service.name, reason), may_be_latched=True)
        self.rearmed(name)
        return self._document(self._find(service.name))

    async def abandon(self, name: str, target_is_gone: bool) -> Document:
        return await self._do(
            name, lambda service: self.mover.abandon(service.name, target_is_gone), may_be_latched=True
        )

    # -- how ------------------------------------------------------------------------------------------

    async def _do(
        self, name: str, action: Callable[[Service], Awaitable[None]], *, may_be_latched: bool = False
    ) -> Document:
        """Runs one action and words what refuses it."""
        service = self._find(name)
        latch = self.mover.latch(name)
        if latch is not None and not may_be_latched:
            raise latched(name, str(latch["trigger"]))
        try:
            await action(service)
        except Held as error:
            raise held(str(error), f"see what is in the way: pgshunt status {name}") from error
        except WrongStage as error:
            raise conflict(str(error), f"see where it stands: pgshunt status {name}") from error
        except Conflict as error:
            raise conflict(str(error), "look at the status and ask again") from error
        except StoreError as error:
            raise Problem("state_not_kept", HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
        except PreflightFailed as error:
            problems = [
                {"subject": each.subject, "message": each.message, "remedy": each.remedy}
                for each in error.problems
            ]
            raise not_ready(name, problems) from error
        except TargetGone as error:
            raise Problem("target_gone", HTTPStatus.BAD_GATEWAY, str(error), error.remedy) from error
        except LaneFailed as error:
            raise Problem("lane_failed", HTTPStatus.BAD_GATEWAY, str(error), "then ask again") from error
        except ServerError as error:
            raise Problem("server_failed", HTTPStatus.BAD_GATEWAY, str(error), error.hint) from error
        return self._document(self._find(name))

    def _freshness_of(self, index: int) -> Freshness:
        return Freshness(self.mover.lag_s(index), self.readable.withheld(index))

    def _find(self, name: str) -> Service:
        services = {service.name: service for service in self.mover.table.services}
        if name not in services:
            raise unknown_service(name, services)
        return services[name]

    def _document(self, service: Service) -> Document:
        now_s, copied = self.clock(), service.stage in COPY_STAGES
        latch = self.mover.latch(service.name)
        return service_document(
            Standing(
                service=service,
                judgements=self.watch.guard.judge(service.name, now_s) if copied else (),
                seen=self.watch.seen(service.name),
                latch={"reason": latch["evidence"].get("reason", ""), **latch} if latch else None,
                lag_s=self._lag_s(service),
                progress=self.mover.progress(service.name),
                verify=self.mover.verified(service.name),
                trouble=self.mover.trouble(service.name),
                doing=self.mover.doing(service.name),
                lag_ms_max=self.mover.table.lag_ms_max,
            ),
            now_s,
        )

    def _lag_s(self, service: Service) -> dict[str, float | None]:
        endpoints: Sequence[tuple[int, str]] = [
            (index, endpoint.name)
            for index, endpoint in enumerate(self.mover.table.endpoints)
            if endpoint.database == service.database
        ]
        if service.stage not in COPY_STAGES:
            return {}
        return {name: self.mover.lag_s(index) for index, name in endpoints}

    def _warnings(self) -> list[str]:
        warnings = [reason for reason in self.readiness() if reason != "draining"]
        if missing := self.fleet.missing():
            warnings.append(missing)
        failures = self.health.lookup_failures
        if 0 < len(failures) < self.fleet.live:
            warnings.append(f"in {counted(len(failures), 'worker')}, {_lookup_fails(failures)}")
        if behind := self.behind():
            warnings.append(f"the shared database's catalogue cannot be read: {behind}")
        warnings += [
            f"a part of pgshunt had to begin anew, see its log: {defect}" for defect in self.health.defects
        ]
        if error := self.mover.beat_error:
            warnings.append(f"no copy is known to be fresh, for heartbeats cannot be written: {error}")
        warnings += self.readable.warnings()
        warnings += self.health.contested
        if self.mover.unkept:
            warnings.append(f"what is in force holds only until a restart: {self.mover.unkept}")
        if self.events.write_error:
            warnings.append(f"events are not written to disk: {self.events.write_error}")
        if self.observing.error:
            warnings.append(f"what was observed is not kept: {self.observing.error}")
        if self.health.reload_error:
            warnings.append(f"the last reload failed: {self.health.reload_error}")
        if self.health.restart_needed:
            warnings.append(f"changed, but needs a restart: {', '.join(self.health.restart_needed)}")
        return warnings


def _lookup_fails(failures: Mapping[int, str]) -> str:
    reasons = "; ".join(sorted(set(failures.values())))
    return f"users' verifiers cannot be looked up: {reasons}; see to the role and the query of auth.lookup"


def _attention(documents: Sequence[Document]) -> list[str]:
    return [f"{document['name']}: {what}" for document in documents for what in document["attention"]]
