"""The supervisor on real worker processes with a recording relay, and a controller in memory."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pgshunt.admin import repeats
from pgshunt.admin import supervisor as supervisor_module
from pgshunt.admin.events import EventLog
from pgshunt.admin.supervisor import StartFailed, Supervisor
from pgshunt.config import Config, load
from pgshunt.migration import keeper, preflight
from pgshunt.migration.mover import PreflightFailed, TargetGone
from pgshunt.migration.stages import Doing, Held, WrongStage
from pgshunt.migration.state import ServiceState, State
from pgshunt.migration.store import FileStore, StoreError
from pgshunt.migration.verify import VerifyResult
from pgshunt.proxy.channel import LATENCY_EDGES_US
from pgshunt.routing.additions import Addition
from pgshunt.routing.table import Catalogue, RoutingTable

WORKER = str(Path(__file__).with_name("fake_worker.py"))

# Port 1 of this machine: refused at once, so every database is down.
YAML = """
version: 1
listen: {{port: 0, workers: 1}}
auth: {{method: trust}}
shared: {{dbname: monolith, primary: {{host: 127.0.0.1, port: 1}}}}
databases: {{auth_db: {{primary: {{host: 127.0.0.1, port: 1}}}}}}
services: {{auth_service: {{database: auth_db, tables: [users], shadow_writes: {shadow}}}}}
control: {{user: pgshunt}}
rollback: {{error_rate_percent_max: {errors}}}
admin: {{port: 0, token: word}}
"""


class TableMover:
    """Stages and latches in memory."""

    def __init__(
        self,
        base: RoutingTable,
        publish_table: Callable[[RoutingTable], Awaitable[None]],
        events: EventLog,
        latched: bool = False,
    ) -> None:
        self.publish_table = publish_table
        self.events = events
        self.calls: list[tuple[Any, ...]] = []
        self.latches: dict[str, Mapping[str, Any]] = {}
        self.troubles: dict[str, str] = {}
        self.disk_full = False
        self.unkept = ""
        self.beat_error = ""
        self.missing: list[preflight.Problem] = []
        self.target_is_gone = False
        if latched:
            self.latches["auth_service"] = {"trigger": "latency", "at": 1.0, "evidence": {"reason": "slow"}}
        (service,) = base.services
        self.table = replace(base, epoch=1, services=(replace(service, stage="shadowing"),))

    async def change(self, **fields: Any) -> None:
        (service,) = self.table.services
        self.table = replace(self.table, epoch=self.table.epoch + 1, services=(replace(service, **fields),))
        await self.publish_table(self.table)

    async def start(self) -> RoutingTable:
        self.calls.append(("start",))
        return self.table

    async def stop(self) -> None:
        self.calls.append(("stop",))

    async def begin(self, service: str) -> None:
        if self.missing:
            raise PreflightFailed(self.missing)
        raise WrongStage("begin is not possible in stage shadowing; it is in shared")

    async def shift(self, service: str, reads_percent: int) -> None:
        await self.change(stage="reading", reads_percent=reads_percent)

    async def rollback(self, service: str, trigger: str, evidence: Mapping[str, Any]) -> None:
        self.latches[service] = {"trigger": trigger, "at": 1.0, "evidence": evidence}
        await self.change(stage="shadowing", reads_percent=0)
        self.events.add("rolled_back", service, trigger=trigger, evidence=dict(evidence))
        if self.disk_full:
            self.unkept = "no space left"
            raise StoreError(self.unkept)

    async def rearm(self, service: str, reason: str) -> None:
        del self.latches[service]

    async def abandon(self, service: str, even_if_target_is_gone: bool = False) -> None:
        if self.target_is_gone and not even_if_target_is_gone:
            raise TargetGone(service, "auth_db: cannot connect")
        await self.change(stage="shared", reads_percent=0)

    def latch(self, service: str) -> Mapping[str, Any] | None:
        return self.latches.get(service)

    def progress(self, service: str) -> Mapping[str, Any]:
        return {}

    def verified(self, service: str) -> Mapping[str, Any]:
        return {}

    def trouble(self, service: str) -> str:
        return self.troubles.get(service, "")

    def doing(self, service: str) -> Doing:
        return ""

    def watched(self) -> tuple[int, ...]:
        return (1,)

    def beat_age_s(self) -> float | None:
        return 0.05

    def lag_s(self, endpoint_index: int) -> float | None:
        return 0.1 if endpoint_index else None

    async def add_columns(self, addition: Addition, user: str) -> list[str]:
        raise Held(f"{user} asked for {addition.table}")

    async def reconfigure(self, base: RoutingTable) -> None:
        await self.change(shadow_writes=base.services[0].shadow_writes)


class Running:
    """A supervisor and a way to ask its API."""

    def __init__(self, directory: Path, manner: str, latched: bool, keeps: bool = False) -> None:
        """`keeps`: with the real controller and its state file."""
        self.path = directory / "pgshunt.yaml"
        self.write()
        self.mover: TableMover

        def make(
            config: Config,
            base: RoutingTable,
            publish_table: Callable[[RoutingTable], Awaitable[None]],
            publish_freshness: Callable[[int, int], None],
            events: EventLog,
            verified: Callable[[str, VerifyResult], None],
        ) -> TableMover:
            self.mover = TableMover(base, publish_table, events, latched)
            return self.mover

        self.make = make
        command = (sys.executable, WORKER, manner)
        self.supervisor = Supervisor(load(self.path), self.path, command, *([] if keeps else [make]))
        # No server is here. What a probe says of that comes when it comes, and then nothing trips.
        self.supervisor.prober._now_probed = list

    def write(self, errors: float = 3.0, shadow: str = "off") -> None:
        self.path.write_text(YAML.format(errors=errors, shadow=shadow))

    async def ask(self, path: str, **body: Any) -> tuple[int, Any]:
        assert self.supervisor._runner is not None
        url = f"http://127.0.0.1:{self.supervisor._runner.addresses[0][1]}{path}"
        headers = {"Authorization": "Bearer word"}
        method = (
            "POST" if path.rpartition("/")[2] in ("begin", "shift", "rollback", "rearm", "abandon") else "GET"
        )
        async with aiohttp.request(
            method, url, headers=headers, json=body if method == "POST" else None
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.supervisor.events.after(0)]

    async def event(self, kind: str) -> Mapping[str, Any]:
        """The detail of the first event of this kind, when it comes."""
        last_id = 0
        while True:
            for event in await self.supervisor.events.news(last_id, 10):
                if event.kind == kind:
                    return event.detail
                last_id = event.id

    def fail_reads(self, calls: int = 50) -> None:
        """A delta as a worker sends it when its candidate is down."""
        buckets = [calls] + [0] * len(LATENCY_EDGES_US)
        row = ["auth_service", "candidate", "auth_db", "read", calls, calls, 0, 0, 0, buckets]
        self.supervisor._take(0, {"type": "delta", "index": 0, "calls": [row]})


Scenario = Callable[[Running], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(scenario: Scenario, manner: str = "well", latched: bool = False) -> None:
        async def main() -> None:
            running = Running(tmp_path, manner, latched)
            try:
                await running.supervisor.start()
                await asyncio.wait_for(scenario(running), 60)
            finally:
                await running.supervisor.close()

        asyncio.run(main())

    return run


def test_with_every_database_down_it_starts_and_says_what_it_cannot_do(run: Run) -> None:
    async def scenario(running: Running) -> None:
        assert (await running.ask("/livez"))[0] == 200
        status, body = await running.ask("/readyz")
        assert status == 503
        assert "shared database" in body["reasons"][0]
        assert "cannot connect to 127.0.0.1:1" in (await running.event("shared_lost"))["reason"]
        _, document = await running.ask("/api/v1/status")
        assert (document["epoch"], document["workers"][0]["stage"]) == (1, "live")
        assert "127.0.0.1:1" in document["warnings"][0]
        assert running.mover.calls == [("start",)]

    run(scenario)


def test_a_shift_is_on_every_worker_when_it_is_answered(run: Run) -> None:
    async def scenario(running: Running) -> None:
        status, document = await running.ask("/api/v1/services/auth_service/shift", reads=50)
        assert (status, document["stage"], document["reads"]) == (200, "reading", 50)
        assert [member.epoch for member in running.supervisor.fleet.members] == [2]

    run(scenario)


def test_failing_reads_roll_back_latch_and_are_explained(run: Run) -> None:
    async def scenario(running: Running) -> None:
        await running.ask("/api/v1/services/auth_service/shift", reads=50)
        running.fail_reads()
        detail = await running.event("rolled_back")
        assert (detail["trigger"], detail["evidence"]["numerator"]) == ("error_rate", 50)
        assert "50 calls failed" in detail["evidence"]["reason"]
        _, document = await running.ask("/api/v1/services/auth_service")
        assert (document["reads"], document["latch"]["trigger"]) == (0, "error_rate")
        status, problem = await running.ask("/api/v1/services/auth_service/shift", reads=10)
        assert (status, problem["type"]) == (409, "urn:pgshunt:problem:latched")

    run(scenario)


class Gate:
    """Stands before the workers: each table waits for its acknowledgements until it is let."""

    def __init__(self, running: Running) -> None:
        self.waiting: list[tuple[RoutingTable, asyncio.Event]] = []
        self.sent = asyncio.Condition()
        running.supervisor.fleet.publish = self.publish  # type: ignore[method-assign]

    async def publish(self, table: RoutingTable, catalogue: Catalogue) -> float:
        acknowledged = asyncio.Event()
        async with self.sent:
            self.waiting.append((table, acknowledged))
            self.sent.notify_all()
        await acknowledged.wait()
        return 0.0

    async def tables(self, count: int) -> list[asyncio.Event]:
        async with self.sent:
            await self.sent.wait_for(lambda: len(self.waiting) >= count)
        return [acknowledged for _, acknowledged in self.waiting]


def test_failures_count_from_the_moment_a_table_is_sent(run: Run) -> None:
    """One slow worker must not keep the guard from what the others see."""

    async def scenario(running: Running) -> None:
        gate = Gate(running)
        shifting = asyncio.ensure_future(running.mover.shift("auth_service", 50))
        await gate.tables(1)
        running.fail_reads()
        assert running.supervisor.guard.is_latched("auth_service")
        for acknowledged in await gate.tables(2):
            acknowledged.set()
        await shifting
        await running.event("rolled_back")

    run(scenario)


def test_a_late_acknowledgement_of_an_old_table_does_not_undo_what_the_new_one_says(run: Run) -> None:
    async def scenario(running: Running) -> None:
        gate = Gate(running)
        moves = [
            asyncio.ensure_future(running.mover.change(stage=stage, reads_percent=reads))
            for stage, reads in (("shadowing", 0), ("reading", 50))
        ]
        old, new = await gate.tables(2)
        new.set()
        await moves[1]
        old.set()
        await moves[0]
        running.fail_reads()
        assert running.supervisor.guard.is_latched("auth_service")
        for acknowledged in await gate.tables(3):
            acknowledged.set()

    run(scenario)


def test_a_rearmed_service_starts_with_fresh_counters(run: Run) -> None:
    async def scenario(running: Running) -> None:
        await running.ask("/api/v1/services/auth_service/shift", reads=50)
        running.fail_reads()
        await running.event("rolled_back")
        assert (await running.ask("/api/v1/services/auth_service/rearm", reason="mended"))[0] == 200
        _, document = await running.ask("/api/v1/services/auth_service/shift", reads=10)
        assert document["triggers"][0]["denominator"] == 0
        running.fail_reads(1)
        assert running.kinds().count("rolled_back") == 1
        running.fail_reads()
        while running.kinds().count("rolled_back") < 2:
            await running.supervisor.events.news(running.supervisor.events.last_id, 10)

    run(scenario)


def test_a_rollback_that_cannot_be_kept_is_one_all_the_same(run: Run) -> None:
    async def scenario(running: Running) -> None:
        await running.ask("/api/v1/services/auth_service/shift", reads=50)
        running.mover.disk_full = True
        status, problem = await running.ask("/api/v1/services/auth_service/rollback")
        assert (status, problem["type"]) == (500, "urn:pgshunt:problem:state_not_kept")
        assert running.supervisor.fleet.table.services[0].reads_percent == 0
        assert running.supervisor.guard.is_latched("auth_service")
        _, document = await running.ask("/api/v1/status")
        assert "what is in force holds only until a restart: no space left" in document["warnings"]
        assert b"pgshunt_state_unkept 1.0" in running.supervisor.metrics.exposition()

    run(scenario)


def test_a_trip_reaches_the_workers_while_the_disk_hangs_and_is_kept_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifo in place of the file that a write begins with: to open it blocks until somebody reads."""
    monkeypatch.setattr(keeper, "AGAIN_S", 0.05)
    state_path = tmp_path / "pgshunt.state.json"
    reading = ServiceState("reading", 50, copied=("public.users",))
    with FileStore(state_path) as store:
        store.write(State(7, {"auth_service": reading}).to_document(), 0)
    fifo = tmp_path / "pgshunt.state.json.next"
    os.mkfifo(fifo)

    async def scenario(running: Running) -> None:
        running.fail_reads()
        assert "did not answer" in (await running.event("rolled_back"))["not_kept"]
        assert [service.reads_percent for service in running.supervisor.fleet.table.services] == [0]
        assert [member.epoch for member in running.supervisor.fleet.members] == [8]
        assert "state_unkept" in running.kinds()
        with fifo.open("rb"):
            fifo.unlink()
            await running.event("state_kept")
        envelope = json.loads(state_path.read_text())
        kept = State.from_document(envelope["document"]).service("auth_service")
        assert (kept.stage, kept.reads_percent, kept.latch is not None) == ("shadowing", 0, True)

    async def main() -> None:
        running = Running(tmp_path, "well", False, keeps=True)
        try:
            await running.supervisor.start()
            await asyncio.wait_for(scenario(running), 60)
        finally:
            await running.supervisor.close()

    asyncio.run(main())


def test_a_latch_survives_a_restart(run: Run) -> None:
    async def scenario(running: Running) -> None:
        assert running.supervisor.guard.is_latched("auth_service")
        status, _ = await running.ask("/api/v1/services/auth_service/shift", reads=10)
        assert status == 409

    run(scenario, latched=True)


def test_refusals_say_what_to_do(run: Run) -> None:
    async def scenario(running: Running) -> None:
        status, problem = await running.ask("/api/v1/services/auth_service/begin")
        assert (status, problem["type"]) == (409, "urn:pgshunt:problem:conflict")
        assert "it is in shared" in problem["detail"]
        assert (await running.ask("/api/v1/services/auth_service/rearm", reason="x"))[0] == 409
        assert (await running.ask("/api/v1/services/nobody"))[0] == 404

    run(scenario)


def test_a_begin_that_is_refused_lists_all_that_is_missing(run: Run) -> None:
    async def scenario(running: Running) -> None:
        running.mover.missing = [
            preflight.Problem(table, "no key", "add one") for table in ("public.a", "public.b")
        ]
        status, problem = await running.ask("/api/v1/services/auth_service/begin")
        assert (status, problem["type"]) == (409, "urn:pgshunt:problem:not_ready")
        assert [each["subject"] for each in problem["problems"]] == ["public.a", "public.b"]
        assert problem["problems"][0]["remedy"] == "add one"

    run(scenario)


def test_a_move_can_be_abandoned(run: Run) -> None:
    async def scenario(running: Running) -> None:
        status, document = await running.ask("/api/v1/services/auth_service/abandon")
        assert (status, document["stage"], document["triggers"]) == (200, "shared", [])

    run(scenario)


def test_a_move_whose_target_is_gone_is_abandoned_when_that_is_said(run: Run) -> None:
    async def scenario(running: Running) -> None:
        running.mover.target_is_gone = True
        status, problem = await running.ask("/api/v1/services/auth_service/abandon")
        assert (status, problem["type"]) == (502, "urn:pgshunt:problem:target_gone")
        assert "pgshunt abandon auth_service --target-is-gone" in problem["remedy"]
        status, document = await running.ask("/api/v1/services/auth_service/abandon", target_is_gone=True)
        assert (status, document["stage"]) == (200, "shared")

    run(scenario)


def test_an_operator_can_roll_back_too(run: Run) -> None:
    async def scenario(running: Running) -> None:
        await running.ask("/api/v1/services/auth_service/shift", reads=50)
        _, document = await running.ask("/api/v1/services/auth_service/rollback", reason="it is Friday")
        assert (document["reads"], document["latch"]["trigger"]) == (0, "manual")
        assert (await running.event("rolled_back"))["evidence"]["reason"] == "it is Friday"
        assert running.supervisor.guard.is_latched("auth_service")

    run(scenario)


def test_a_reload_takes_what_it_can_and_keeps_the_latch(run: Run) -> None:
    async def scenario(running: Running) -> None:
        running.write(errors=1.5, shadow="validate")
        await running.supervisor.reload()
        assert running.supervisor.fleet.table.services[0].shadow_writes == "validate"
        detail = await running.event("reloaded")
        assert detail["restart_needed"] == ()
        assert running.supervisor.guard.judge("auth_service", 0)[0].limit_percent == 1.5
        assert running.supervisor.guard.is_latched("auth_service")

    run(scenario, latched=True)


def test_a_wrong_configuration_keeps_the_old_one(run: Run) -> None:
    async def scenario(running: Running) -> None:
        running.path.write_text("version: 2\n")
        await running.supervisor.reload()
        _, document = await running.ask("/api/v1/status")
        assert any("the last reload failed" in warning for warning in document["warnings"])
        assert running.supervisor.guard.judge("auth_service", 0)[0].limit_percent == 3.0

    run(scenario)


def test_the_dashboard_is_one_document_with_everything(run: Run) -> None:
    async def scenario(running: Running) -> None:
        await running.ask("/api/v1/services/auth_service/shift", reads=50)
        _, document = await running.ask("/api/v1/dashboard")
        (service,) = document["services"]
        assert service["sentence"].startswith("auth_service: 50 % of reads on auth_db")
        assert service["lag_s"] == {"auth_db": 0.1}
        assert [event["kind"] for event in document["events"]] == ["shared_lost", "started"]

    run(scenario)


def test_the_overview_warns_of_a_service_in_trouble(run: Run) -> None:
    async def scenario(running: Running) -> None:
        running.mover.troubles["auth_service"] = "the apply worker is gone"
        _, document = await running.ask("/api/v1/status")
        assert "auth_service: the apply worker is gone" in document["warnings"]

    run(scenario)


def test_a_statement_is_explained_by_the_table_in_force(run: Run) -> None:
    async def scenario(running: Running) -> None:
        _, document = await running.ask("/api/v1/explain?sql=SELECT+*+FROM+public.users&service=auth_service")
        assert document["service"] == "auth_service"
        _, as_user = await running.ask("/api/v1/explain?sql=SELECT+1&as=auth&search_path=%22$user%22")
        assert as_user["reason"] == "no_table"
        assert any(line.startswith("reason") for line in document["lines"])
        assert "could not be read yet" in document["lines"][-1]

    run(scenario)


def test_while_it_drains_it_says_so(run: Run) -> None:
    async def scenario(running: Running) -> None:
        draining = asyncio.ensure_future(running.supervisor.run())
        running.supervisor.stop()
        await draining
        status, document = await running.ask("/api/v1/status")
        assert (status, document["port"]) == (200, running.supervisor.fleet.port)
        status, body = await running.ask("/readyz")
        assert (status, body["reasons"][0]) == (503, "draining")

    run(scenario)


def test_a_configuration_on_a_disk_that_hangs_keeps_the_old_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "RELOAD_S_MAX", 0.05)
    answer = threading.Event()

    async def scenario(running: Running) -> None:
        monkeypatch.setattr(supervisor_module, "load", lambda path: answer.wait())
        await running.supervisor.reload()
        answer.set()
        assert "were not read within" in (await running.event("reload_failed"))["reason"]
        _, document = await running.ask("/api/v1/status")
        assert any("the last reload failed" in warning for warning in document["warnings"])

    run(scenario)


def test_stopping_drains_the_workers(run: Run) -> None:
    async def scenario(running: Running) -> None:
        serving = asyncio.ensure_future(running.supervisor.run())
        running.supervisor.stop()
        await serving
        assert running.supervisor.fleet.live == 0
        assert running.kinds()[-1] == "draining"

    run(scenario)


def test_a_lookup_that_fails_is_told_with_the_first_worker_and_works_with_the_last(run: Run) -> None:
    async def scenario(running: Running) -> None:
        supervisor = running.supervisor
        for worker in (0, 1):
            supervisor._take(worker, {"type": "event", "kind": "lookup_failed", "reason": "no right"})
        _, body = await running.ask("/readyz")
        assert any("no right; see to the role" in reason for reason in body["reasons"])
        supervisor._take(0, {"type": "event", "kind": "lookup_works"})
        assert running.kinds()[-1] == "lookup_failed"
        supervisor._worker_ended(1)
        assert running.kinds().count("lookup_failed") == 1
        assert running.kinds()[-1] == "lookup_works"
        _, body = await running.ask("/readyz")
        assert not any("no right" in reason for reason in body["reasons"])

    run(scenario)


def test_failing_links_are_told_once_and_then_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "SPAN_S", 0.0)

    async def scenario(running: Running) -> None:
        failed = {"type": "event", "kind": "link_failed", "endpoint": "auth_db", "detail": "refused"}
        for worker in range(100):
            running.supervisor._take(worker, dict(failed))
        while running.kinds().count("link_failed") < 2:
            await running.supervisor.events.news(running.supervisor.events.last_id, 10)
        first, others = (
            event.detail for event in running.supervisor.events.after(0) if event.kind == "link_failed"
        )
        assert first == {"worker": 0, "endpoint": "auth_db", "detail": "refused"}
        assert (others["count"], others["worker"]) == (99, 99)

    run(scenario)


def test_who_waits_for_events_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        running = Running(tmp_path, "well", False)
        await running.supervisor.start()
        waited_for = running.supervisor.events._news
        asking = asyncio.create_task(running.ask("/api/v1/events?after=100&wait_s=30"))
        while not waited_for._waiters:  # noqa: ASYNC110 - nothing tells that a request has arrived
            await asyncio.sleep(0.01)
        await asyncio.wait_for(running.supervisor.close(), 20)
        status, answer = await asking
        assert (status, answer["events"]) == (200, [])

    asyncio.run(main())


def test_a_port_that_is_taken_keeps_it_from_starting(tmp_path: Path) -> None:
    async def main() -> None:
        running = Running(tmp_path, "well", False)
        port = running.supervisor.fleet.port
        taken = load(running.path)
        taken = taken.model_copy(update={"listen": taken.listen.model_copy(update={"port": port})})
        with pytest.raises(StartFailed, match=r"listen\.port"):
            Supervisor(taken, running.path, (sys.executable, WORKER, "well"), running.make)
        await running.supervisor.close()

    asyncio.run(main())


def test_workers_that_cannot_start_keep_it_from_starting(run: Run) -> None:
    async def scenario(running: Running) -> None:
        raise AssertionError("it started")

    with pytest.raises(StartFailed, match="before it served"):
        run(scenario, manner="dead")


def test_a_part_that_a_defect_ended_begins_anew_and_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "AGAIN_S", 0.0)

    async def scenario(running: Running) -> None:
        supervisor, again = running.supervisor, asyncio.Event()

        async def ends_twice() -> None:
            if not supervisor.health.defects:
                raise KeyError("lost")
            again.set()
            await asyncio.Event().wait()

        supervisor._begin(supervisor._lasting(ends_twice))
        await again.wait()
        assert (await running.event("defect"))["reason"] == "KeyError('lost')"
        _, document = await running.ask("/api/v1/status")
        assert any("KeyError('lost')" in warning for warning in document["warnings"])

    run(scenario)


def test_what_the_metrics_cannot_take_still_reaches_the_guard(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(running: Running) -> None:
        await running.ask("/api/v1/services/auth_service/shift", reads=50)
        monkeypatch.setattr(running.supervisor.metrics, "add", lambda delta: {}["no such label"])
        with pytest.raises(KeyError):
            running.fail_reads()
        assert (await running.event("rolled_back"))["trigger"] == "error_rate"

    run(scenario)


def test_services_that_have_one_database_are_probed_each(run: Run) -> None:
    async def scenario(running: Running) -> None:
        (service,) = running.mover.table.services
        services = (
            replace(service, stage="reading"),
            replace(service, name="shop_service", stage="reading"),
            replace(service, name="late_service"),
        )
        running.mover.table = replace(running.mover.table, services=services)
        probed = running.supervisor._exposed()
        assert [(one.service, one.endpoint.name) for one in probed] == [
            ("auth_service", "auth_db"),
            ("shop_service", "auth_db"),
        ]

    run(scenario)


def test_a_reload_that_comes_before_the_start_is_over_waits_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        running = Running(tmp_path, "well", latched=False)
        running.write(errors=7.5)
        running.supervisor.reload_soon()
        await asyncio.sleep(0)
        try:
            await running.supervisor.start()
            assert (await running.event("reloaded"))["changed"] == ("rollback.error_rate_percent_max",)
            assert "defect" not in running.kinds()
        finally:
            await running.supervisor.close()

    asyncio.run(main())


def test_heartbeats_that_cannot_be_written_are_told(run: Run) -> None:
    """Copies that were never fresh are not missed by anybody else."""

    async def scenario(running: Running) -> None:
        running.mover.beat_error = "shared: permission denied for database monolith (42501)"
        _, document = await running.ask("/api/v1/status")
        assert any("permission denied" in warning for warning in document["warnings"])

    run(scenario)
