"""What is in force and what is kept, with stores that are slow, hang, fail, or belong to others too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pgshunt.migration import keeper
from pgshunt.migration.keeper import Keeper
from pgshunt.migration.state import ServiceState, State
from pgshunt.migration.store import Conflict, Document, StoreError
from pgshunt.routing.table import Endpoint, RoutingTable, Service, Stage

SERVICE = "auth_service"
BASE = RoutingTable(
    0,
    tuple(Endpoint(name, name, "127.0.0.1", 1, "db", "primary") for name in ("shared", "auth_db")),
    (Service(SERVICE, "auth_db", ("public.users",)),),
)


class ScriptedStore:
    """Compare-and-set in memory, that can fail, hang before it writes, and be written to by others."""

    def __init__(self) -> None:
        self.generation = 1
        self.document: Document = State(7, {SERVICE: ServiceState("reading", 50)}).to_document()
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.hung = threading.Event()

    def read(self) -> tuple[int, Document]:
        return self.generation, self.document

    def write(self, document: Document, expected_generation: int) -> int:
        if not self.open.is_set():
            self.hung.set()
            self.open.wait()
        if self.error:
            raise self.error
        if expected_generation != self.generation:
            raise Conflict(f"at {self.generation}")
        self.generation, self.document = self.generation + 1, document
        return self.generation

    def written_by_another(self, service: ServiceState) -> None:
        state = State.from_document(self.document)
        self.document = replace(state, epoch=state.epoch + 1).with_service(SERVICE, service).to_document()
        self.generation += 1

    @property
    def kept(self) -> ServiceState:
        return State.from_document(self.document).service(SERVICE)


@dataclass
class World:
    store: ScriptedStore = field(default_factory=ScriptedStore)
    tables: list[RoutingTable] = field(default_factory=list)
    told: asyncio.Queue[tuple[str, Mapping[str, Any]]] = field(default_factory=asyncio.Queue)

    async def publish(self, table: RoutingTable) -> None:
        self.tables.append(table)

    def tell(self, kind: str, detail: Mapping[str, Any]) -> None:
        self.told.put_nowait((kind, detail))

    async def kept(self) -> None:
        while (await asyncio.wait_for(self.told.get(), 20))[0] != "state_kept":
            continue

    @property
    def reads(self) -> list[int]:
        """What each epoch announced."""
        return [table.services[0].reads_percent for table in self.tables]


Scenario = Callable[[World, Keeper], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def life() -> None:
        world = World()
        keeping = Keeper(BASE, world.store, world.publish, world.tell)
        await keeping.load()
        try:
            await scenario(world, keeping)
        finally:
            world.store.open.set()
            await keeping.close()

    asyncio.run(life())


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "AGAIN_S", 0.01)


def set_reads(percent: int) -> Callable[[ServiceState], ServiceState]:
    return lambda state: replace(state, reads_percent=percent)


def test_what_is_kept_is_kept_before_it_is_announced() -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        for change, percent in ((keeping.change, 60), (keeping.reduce, 0)):
            epoch = await change(SERVICE, set_reads(percent))
            assert (world.store.kept.reads_percent, world.store.document["epoch"]) == (percent, epoch)
        assert [table.epoch for table in world.tables] == [8, 9]
        assert keeping.unkept == ""

    run(scenario)


def test_copies_that_are_withheld_are_announced_as_not_to_be_read_until_they_are_given_back() -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        copied = ("public.users", "public.notes")
        await keeping.change(SERVICE, lambda state: replace(state, copied=copied))
        await keeping.withhold(SERVICE, frozenset({"public.notes"}))
        await keeping.withhold(SERVICE, frozenset({"public.notes"}))
        await keeping.change(SERVICE, set_reads(60))
        await keeping.withhold(SERVICE, frozenset())
        announced = [table.services[0].copied for table in world.tables]
        assert announced == [copied, copied[:1], copied[:1], copied]
        assert [table.epoch for table in world.tables] == sorted({table.epoch for table in world.tables})
        assert world.store.kept.copied == copied

    run(scenario)


def test_a_reduction_does_not_wait_for_a_store_that_hangs_and_is_kept_when_it_answers() -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        world.store.open.clear()
        await keeping.reduce(SERVICE, set_reads(0))
        assert (world.reads, world.store.kept.reads_percent) == ([0], 50)
        assert "did not answer" in keeping.unkept
        assert (await world.told.get())[0] == "state_unkept"
        world.store.open.set()
        await world.kept()
        assert (world.store.kept.reads_percent, keeping.unkept) == (0, "")

    run(scenario)


def test_a_reduction_does_not_wait_for_another_change_that_the_store_holds_up() -> None:
    """The change comes through in the end, and must not take the reduction back."""

    async def scenario(world: World, keeping: Keeper) -> None:
        world.store.open.clear()
        raising = asyncio.ensure_future(keeping.change(SERVICE, set_reads(100)))
        await asyncio.to_thread(world.store.hung.wait)
        await keeping.reduce(SERVICE, set_reads(0))
        assert (world.reads, raising.done()) == ([0], False)
        world.store.open.set()
        await raising
        await world.kept()
        assert world.reads == [0, 0]
        assert [table.epoch for table in world.tables] == sorted({table.epoch for table in world.tables})
        assert world.store.kept.reads_percent == 0

    run(scenario)


def test_an_unkept_reduction_survives_what_another_writer_has_written() -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        world.store.error = StoreError("no space left on device")
        await keeping.reduce(SERVICE, set_reads(0))
        world.store.written_by_another(ServiceState("reading", 80, copied=("public.users",)))
        world.store.error = None
        await world.kept()
        assert (world.store.kept.reads_percent, world.store.kept.copied) == (0, ("public.users",))
        assert keeping.state.service(SERVICE).reads_percent == 0
        assert await keeping.change(SERVICE, lambda state: state) > world.tables[0].epoch
        assert world.reads == [0, 0]

    run(scenario)


def test_a_change_that_was_given_up_and_comes_through_later_is_not_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "STORE_S_MAX", 0.05)

    async def scenario(world: World, keeping: Keeper) -> None:
        world.store.open.clear()
        with pytest.raises(StoreError, match="did not answer"):
            await keeping.change(SERVICE, set_reads(100))
        assert (await world.told.get())[0] == "state_unkept"
        monkeypatch.setattr(keeper, "STORE_S_MAX", 5.0)
        world.store.open.set()
        await world.kept()
        assert (world.store.kept.reads_percent, keeping.state.service(SERVICE).reads_percent) == (50, 50)
        assert world.tables == []

    run(scenario)


@pytest.mark.parametrize("error", [StoreError("read-only file system"), TypeError("not JSON")])
def test_a_reduction_is_announced_however_the_store_fails(error: Exception) -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        world.store.error = error
        await keeping.reduce(SERVICE, set_reads(0))
        assert world.reads == [0]
        assert str(error) in keeping.unkept
        with pytest.raises(type(error)):
            await keeping.keep()

    run(scenario)


def test_a_change_whose_caller_gave_up_is_announced_all_the_same() -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        announced = asyncio.Event()
        publish = world.publish

        async def published(table: RoutingTable) -> None:
            await publish(table)
            announced.set()

        keeping._publish_table = published
        world.store.open.clear()
        raising = asyncio.ensure_future(keeping.change(SERVICE, set_reads(60)))
        await asyncio.to_thread(world.store.hung.wait)
        raising.cancel()
        world.store.open.set()
        await asyncio.wait_for(announced.wait(), 20)
        assert (world.store.kept.reads_percent, world.reads) == (60, [60])

    run(scenario)


def test_a_configuration_is_announced_whether_the_store_works_or_not() -> None:
    async def scenario(world: World, keeping: Keeper) -> None:
        world.store.error = StoreError("no space left on device")
        keeping.base = replace(BASE, lag_ms_max=5)
        await keeping.announce()
        assert [(table.epoch, table.lag_ms_max) for table in world.tables] == [(8, 5)]

    run(scenario)


def test_a_store_that_hangs_from_the_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "STORE_S_MAX", 0.05)

    async def life() -> None:
        world = World()
        answer = threading.Event()
        world.store.read = lambda: (answer.wait(), world.store.document)  # type: ignore[method-assign]
        keeping = Keeper(BASE, world.store, world.publish)
        with pytest.raises(StoreError, match="did not answer"):
            await keeping.load()
        answer.set()
        await keeping.close()

    asyncio.run(life())


@pytest.mark.parametrize(
    ("stage", "tables"),
    [
        ("syncing", ("public.begun", "public.users")),
        ("reading", ("public.begun", "public.users")),
        ("switched", ("public.begun",)),
        ("completed", ("public.begun",)),
    ],
)
def test_what_is_found_later_is_the_services_until_the_switch(stage: Stage, tables: tuple[str, ...]) -> None:
    """Behind it the service's tables are elsewhere, and what the shared database has besides is not."""

    async def scenario() -> None:
        store = ScriptedStore()
        begun = ServiceState(stage, tables=("public.begun",))
        store.document = State(7, {SERVICE: begun}).to_document()
        keeper = Keeper(BASE, store, ignored)
        await keeper.load()
        assert keeper.table.services[0].tables == tables
        await keeper.close()

    asyncio.run(scenario())


async def ignored(table: RoutingTable) -> None:
    """Stands for workers."""
