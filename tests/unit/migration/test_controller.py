"""What the controller decides when its actions overlap or fail; whole moves are tried on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from pgshunt.config.model import Control
from pgshunt.migration import controller as controller_module
from pgshunt.migration import copying as copying_module
from pgshunt.migration.controller import MigrationController
from pgshunt.migration.mover import TargetGone
from pgshunt.migration.preflight import Problem
from pgshunt.migration.servers import ServerError, Unreachable
from pgshunt.migration.stages import Held, WrongStage
from pgshunt.migration.state import Latch, ServiceState, State
from pgshunt.migration.store import Document, StoreError
from pgshunt.routing.table import Endpoint, RoutingTable, Service

SERVICE = "auth_service"
ENDPOINTS = tuple(Endpoint(name, name, "127.0.0.1", 1, "db", "primary") for name in ("shared", "auth_db"))
BASE = RoutingTable(0, ENDPOINTS, (Service(SERVICE, "auth_db", ("public.users",)),))


@dataclass
class MemoryStore:
    """A store that can be full."""

    state: State
    generation: int = 1
    full: bool = False

    def read(self) -> tuple[int, Document]:
        return self.generation, self.state.to_document()

    def write(self, document: Document, expected_generation: int) -> int:
        if self.full:
            raise StoreError("no space left on device")
        self.state, self.generation = State.from_document(document), self.generation + 1
        return self.generation


@dataclass
class World:
    """A controller that has read its state and runs nothing, with all it announces and tells."""

    standing: ServiceState
    tables: list[RoutingTable] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, kind: str, service: str = "", /, **detail: Any) -> object:
        self.events.append((kind, detail))
        return None

    async def publish(self, table: RoutingTable) -> None:
        self.tables.append(table)

    def run(self, scenario: Callable[[MigrationController, MemoryStore], Awaitable[None]]) -> None:
        async def life() -> None:
            store = MemoryStore(State(7, {SERVICE: self.standing}))
            control = Control.model_validate({"user": "pgshunt", "password": "hidden"})
            controller = MigrationController(
                BASE, control, store, self.publish, lambda index, moment_ns: None, self
            )
            await controller._keeper.load()
            try:
                await scenario(controller, store)
            finally:
                await controller._keeper.close()

        asyncio.run(life())


READING = ServiceState("reading", 50)


async def nothing_found(copied: Sequence[str]) -> list[Problem]:
    return []


async def reached() -> None:
    """Stands for a target whose server logs in to the shared database."""


def test_a_rollback_that_could_not_be_kept_is_kept_when_asked_for_again() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        store.full = True
        with pytest.raises(StoreError):
            await controller.rollback(SERVICE, "manual", {})
        assert [table.services[0].reads_percent for table in world.tables] == [0]
        with pytest.raises(StoreError):
            await controller.rollback(SERVICE, "manual", {})
        store.full = False
        await controller.rollback(SERVICE, "manual", {})
        kept = store.state.service(SERVICE)
        assert (kept.stage, kept.reads_percent, kept.latch is not None) == ("shadowing", 0, True)

    world.run(scenario)


def test_a_rollback_that_is_not_kept_yet_is_marked_in_the_journal_and_told() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        store.full = True
        with pytest.raises(StoreError, match="is rolled back, but that is not kept yet: no space left"):
            await controller.rollback(SERVICE, "manual", {})
        assert [entry["kept"] for entry in controller.journal(SERVICE)] == [False]
        assert [kind for kind, _ in world.events] == ["state_unkept", "rolled_back"]
        store.full = False
        await controller.rollback(SERVICE, "manual", {})
        assert [entry["kept"] for entry in controller.journal(SERVICE)] == [True]
        assert [kind for kind, _ in world.events] == ["state_unkept", "rolled_back", "state_kept"]

    world.run(scenario)


def test_less_reads_do_not_wait_for_the_store_either() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        store.full = True
        with pytest.raises(StoreError, match="reads 10 %, but that is not kept yet"):
            await controller.shift(SERVICE, 10)
        assert [table.services[0].reads_percent for table in world.tables] == [10]

    world.run(scenario)


def test_a_second_rollback_waits_for_the_first_to_reach_the_workers() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        sent, acknowledged = asyncio.Event(), asyncio.Event()

        async def publish(table: RoutingTable) -> None:
            world.tables.append(table)
            sent.set()
            await acknowledged.wait()

        controller._keeper._publish_table = publish
        both = [asyncio.ensure_future(controller.rollback(SERVICE, "manual", {})) for _ in range(2)]
        await asyncio.wait_for(sent.wait(), 20)
        assert [one.done() for one in both] == [False, False]
        acknowledged.set()
        await asyncio.gather(*both)
        assert len(world.tables) == 1

    world.run(scenario)


def test_a_slow_rearm_does_not_lift_the_latch_of_a_later_rollback() -> None:
    world = World(ServiceState("shadowing", 0, Latch("manual", 100.0)))

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        async def overtaken(service: str) -> None:
            """While the lane is looked at, somebody else arms, reads begin, and the guard trips again."""
            later = ServiceState("shadowing", 0, Latch("error_rate", 200.0))
            await controller._keeper.note(service, lambda state: later)

        controller._require_healthy = overtaken  # type: ignore[method-assign]
        clean = SimpleNamespace(tally=SimpleNamespace(is_clean_since=lambda moment, now: True))
        controller._copying.movers[SERVICE] = clean  # type: ignore[assignment]
        with pytest.raises(Held, match="by somebody else"):
            await controller.rearm(SERVICE, "looked at it")
        latch = controller.latch(SERVICE)
        assert latch is not None
        assert latch["trigger"] == "error_rate"

    world.run(scenario)


def test_a_slow_rearm_does_not_hide_that_the_service_is_being_abandoned() -> None:
    """After a crash the copy would be made again that was to be taken down."""
    world = World(ServiceState("shadowing", 0, Latch("manual", 100.0)))

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        async def overtaken(service: str) -> None:
            abandoning = partial(controller_module._abandoning, is_target_gone=False)
            await controller._keeper.change(service, abandoning)

        controller._require_healthy = overtaken  # type: ignore[method-assign]
        clean = SimpleNamespace(tally=SimpleNamespace(is_clean_since=lambda moment, now: True))
        controller._copying.movers[SERVICE] = clean  # type: ignore[assignment]
        with pytest.raises(WrongStage):
            await controller.rearm(SERVICE, "looked at it")
        assert store.state.service(SERVICE).is_being_abandoned

    world.run(scenario)


def test_begun_twice_at_once_it_is_done_once() -> None:
    world, begun = World(ServiceState()), []

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        async def sync(service: str) -> None:
            begun.append(service)
            await asyncio.Event().wait()

        controller._copying._make = sync  # type: ignore[method-assign]
        controller._copying.mover(SERVICE).preflight = nothing_found  # type: ignore[method-assign]
        controller._copying.mover(SERVICE).require_reachable = reached  # type: ignore[method-assign]
        await asyncio.gather(controller.begin(SERVICE), controller.begin(SERVICE))
        await asyncio.sleep(0)
        assert begun == [SERVICE]
        await controller.stop()

    world.run(scenario)


def test_a_step_that_fails_in_a_way_nobody_foresaw_is_told() -> None:
    world = World(ServiceState())

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        async def sync(service: str) -> None:
            raise OSError("no space left on device")

        controller._copying._make = sync  # type: ignore[method-assign]
        controller._copying.mover(SERVICE).preflight = nothing_found  # type: ignore[method-assign]
        controller._copying.mover(SERVICE).require_reachable = reached  # type: ignore[method-assign]
        await controller.begin(SERVICE)
        with pytest.raises(OSError, match="no space"):
            await controller.settled(SERVICE)
        assert world.events[-1][0] == "failed"
        assert "no space" in controller.trouble(SERVICE)
        assert controller.doing(SERVICE) == "copying_stopped"

    world.run(scenario)


def test_a_copy_that_is_no_longer_watched_does_not_pass_for_verified() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        async def broken() -> None:
            raise ValueError("a row nobody foresaw")

        async def looking() -> None:
            await asyncio.Event().wait()

        mover = controller._copying.mover(SERVICE)
        mover._verify, mover._look_at_lane = broken, looking  # type: ignore[method-assign]
        mover.tally.clean_since = 100.0
        mover.watch()
        await asyncio.wait(mover._watching, return_when=asyncio.FIRST_COMPLETED)
        assert [kind for kind, _ in world.events] == ["defect"]
        assert "nobody foresaw" in controller.trouble(SERVICE)
        assert not mover.tally.is_clean_since(0, 100.0)
        await controller.stop()

    world.run(scenario)


def test_where_no_reads_are_to_be_rolled_back_the_way_back_is_named() -> None:
    world = World(ServiceState("syncing"))

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        with pytest.raises(WrongStage, match="the way back from here is: pgshunt abandon auth_service"):
            await controller.rollback(SERVICE, "manual", {})
        assert controller.latch(SERVICE) is None

    world.run(scenario)


@dataclass
class ScriptedLane:
    """The lane of a target that may not answer; a drop waits to be let."""

    answers: bool = True
    name: str = "pgshunt_auth_service"
    let: asyncio.Event = field(default_factory=asyncio.Event)
    drops: list[str] = field(default_factory=list)

    async def drop(self) -> None:
        self.drops.append("begun")
        await self.let.wait()
        if not self.answers:
            raise Unreachable("auth_db", "cannot connect")
        self.drops.append("done")

    async def drop_at_source(self) -> None:
        self.drops.append("done at the source")


def scripted_lane(controller: MigrationController, answers: bool = True) -> ScriptedLane:
    lane = ScriptedLane(answers)
    mover = controller._copying.mover(SERVICE)
    mover.lane = lane  # type: ignore[assignment]

    async def dropped(copied: Sequence[str], even_if_target_is_gone: bool) -> None:
        return None

    mover.drop_copies = dropped  # type: ignore[method-assign]
    return lane


def test_an_abandon_that_the_own_database_does_not_answer_names_the_way_out() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        lane = scripted_lane(controller, answers=False)
        lane.let.set()
        with pytest.raises(TargetGone, match="cannot connect") as refused:
            await controller.abandon(SERVICE)
        assert "pgshunt abandon auth_service --target-is-gone" in refused.value.remedy
        assert "--target-is-gone" in controller.trouble(SERVICE)
        assert controller.doing(SERVICE) == "abandoning_stopped"
        await controller.abandon(SERVICE, even_if_target_is_gone=True)
        assert store.state.service(SERVICE).stage == "shared"
        assert lane.drops[-1] == "done at the source"
        assert [kind for kind, _ in world.events][-2:] == ["subscription_left", "abandoned"]
        assert controller.doing(SERVICE) == controller.trouble(SERVICE) == ""

    world.run(scenario)


def test_a_second_abandon_waits_for_the_first_and_does_not_break_it_off() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        lane = scripted_lane(controller)
        both = [asyncio.create_task(controller.abandon(SERVICE)) for _ in range(2)]
        while not lane.drops:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        lane.let.set()
        await asyncio.gather(*both)
        assert lane.drops == ["begun", "done"]
        assert [entry["step"] for entry in controller.journal(SERVICE)] == ["abandon", "abandon"]

    world.run(scenario)


def test_whoever_waits_for_an_abandon_may_go_away() -> None:
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        lane = scripted_lane(controller)
        waiting = asyncio.create_task(controller.abandon(SERVICE))
        while not lane.drops:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        lane.let.set()
        await controller.settled(SERVICE)
        assert store.state.service(SERVICE).stage == "shared"

    world.run(scenario)


def test_told_that_the_target_is_gone_an_abandon_under_way_begins_anew_without_it() -> None:
    """The first one hangs at the target; both end with the second."""
    world = World(READING)

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        lane = scripted_lane(controller)
        first = asyncio.create_task(controller.abandon(SERVICE))
        while not lane.drops:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        lane.answers = False
        second = asyncio.create_task(controller.abandon(SERVICE, even_if_target_is_gone=True))
        while len(lane.drops) < 2:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        lane.let.set()
        await asyncio.gather(first, second)
        assert lane.drops[-1] == "done at the source"
        assert not store.state.service(SERVICE).is_target_gone

    world.run(scenario)


def test_that_the_target_is_gone_is_remembered_over_a_crash() -> None:
    world = World(
        replace(READING, stage="syncing", reads_percent=0, is_target_gone=True).noted("abandon", "begun")
    )

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        lane = scripted_lane(controller, answers=False)
        lane.let.set()
        await controller.start()
        await controller.settled(SERVICE)
        assert lane.drops[-1] == "done at the source"
        assert store.state.service(SERVICE).stage == "shared"
        await controller.stop()

    world.run(scenario)


def test_an_abandon_that_cannot_be_kept_leaves_the_copy_under_way() -> None:
    world = World(ServiceState("syncing"))

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        async def make(service: str) -> None:
            await asyncio.Event().wait()

        controller._copying._make = make  # type: ignore[method-assign]
        await controller.start()
        store.full = True
        with pytest.raises(StoreError):
            await controller.abandon(SERVICE)
        assert controller.doing(SERVICE) == "copying"
        assert controller._copying.is_working(SERVICE)
        await controller.stop()

    world.run(scenario)


def test_a_step_that_ends_after_its_abandon_was_journalled_does_not_bring_the_copy_back() -> None:
    world = World(ServiceState("syncing").noted("fresh", "begun"))

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        copying = controller._copying

        async def make(service: str) -> None:
            await controller._keeper.note(service, lambda state: state.noted("abandon", "begun"))
            await controller._keeper.change(service, copying_module._synced)

        copying._make = make  # type: ignore[method-assign]
        copying.make(SERVICE)
        await controller.settled(SERVICE)
        assert store.state.service(SERVICE).stage == "syncing"
        assert (world.events, controller.trouble(SERVICE)) == ([], "")

    world.run(scenario)


@pytest.mark.parametrize("error", ["08006", "57P03"])
def test_after_a_restart_a_server_that_is_down_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setattr(copying_module, "AGAIN_S", 0.01)
    world = World(ServiceState("syncing").noted("abandon", "begun"))

    async def scenario(controller: MigrationController, store: MemoryStore) -> None:
        lane = scripted_lane(controller)
        lane.let.set()
        drop, tries = lane.drop, list[str]()

        async def down_at_first() -> None:
            tries.append(controller.trouble(SERVICE))
            if len(tries) < 4:
                raise ServerError("shared", error, "the database system is starting up")
            await drop()

        lane.drop = down_at_first  # type: ignore[method-assign]
        await controller.start()
        assert controller.doing(SERVICE) == "abandoning"
        await controller.settled(SERVICE)
        assert store.state.service(SERVICE).stage == "shared"
        assert "starting up" in tries[-1]
        assert [kind for kind, _ in world.events] == ["failed", "abandoned"]
        assert controller.trouble(SERVICE) == ""
        await controller.stop()

    world.run(scenario)
