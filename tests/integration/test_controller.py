"""The whole way of a service and back, on real servers, with crashes in between and without a proxy."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.fixtures import Database
from support.moving import CONTROL, EAGER, databases, endpoint

from pgshunt.demo.postgres import Server as Postgres
from pgshunt.migration.controller import MigrationController
from pgshunt.migration.mover import Options, PreflightFailed, TargetGone
from pgshunt.migration.servers import Link, ServerError
from pgshunt.migration.stages import Held, WrongStage
from pgshunt.migration.store import Document, FileStore, StoreError
from pgshunt.migration.verify import VerifyResult
from pgshunt.routing.table import RoutingTable, Service

SERVICE = "auth_service"
_numbers = itertools.count()


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


@dataclass
class Journalled:
    """A FileStore that can fail, or kill the process before or after a write."""

    inner: FileStore
    kill_at: int = -1
    writes: int = 0
    failing: bool = False

    def read(self) -> tuple[int, Document]:
        return self.inner.read()

    def write(self, document: Document, expected_generation: int) -> int:
        if self.failing:
            raise StoreError("no space left on device")
        self.writes += 1
        if self.writes == self.kill_at:
            raise Killed
        return self.inner.write(document, expected_generation)


@dataclass
class World:
    """What the supervisor would be: takes tables, freshness, results and events."""

    shared: Database
    own: Database
    path: Path
    tables: list[RoutingTable] = field(default_factory=list)
    results: list[VerifyResult] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    announced: Callable[[RoutingTable], None] = lambda table: None

    def add(self, kind: str, service: str = "", /, **detail: Any) -> object:
        self.events.append((kind, detail))
        return None

    async def publish(self, table: RoutingTable) -> None:
        self.announced(table)
        self.tables.append(table)

    def controller(self, store: Journalled) -> MigrationController:
        service = Service(SERVICE, "own_db", ("public.users", "public.roles"), external_refs=("public.logs",))
        base = RoutingTable(0, (endpoint(self.shared, "shared"), endpoint(self.own, "own_db")), (service,))
        return MigrationController(
            base,
            CONTROL,
            store,
            self.publish,
            lambda index, at_ns: None,
            self,
            lambda service, result: self.results.append(result),
            Options(pace=EAGER, copy_timeout_s=30),
        )

    def run(
        self, scenario: Callable[[MigrationController, Journalled], Awaitable[None]], **store: Any
    ) -> None:
        """One life of the supervisor."""

        async def life() -> None:
            with FileStore(self.path) as inner:
                journalled = Journalled(inner, **store)
                controller = self.controller(journalled)
                await controller.start()
                try:
                    await scenario(controller, journalled)
                finally:
                    await controller.stop()

        asyncio.run(life())

    def stage(self) -> tuple[str, int]:
        service = self.tables[-1].services[0]
        return service.stage, service.reads_percent


@pytest.fixture
def world(postgres_pair: tuple[Postgres, Postgres], tmp_path: Path) -> Iterator[World]:
    with databases(postgres_pair, f"controller_{next(_numbers)}") as (shared, own):
        shared.execute(
            "CREATE TABLE users (id bigserial PRIMARY KEY, name text); "
            "CREATE TABLE roles (id bigint PRIMARY KEY, owner bigint REFERENCES users); "
            "CREATE TABLE logs (id bigint PRIMARY KEY, user_id bigint REFERENCES users, text text); "
            "INSERT INTO users (name) SELECT 'user ' || i FROM generate_series(1, 1000) i; "
            "INSERT INTO logs SELECT i, i, 'log' FROM generate_series(1, 500) i"
        )
        yield World(shared, own, tmp_path / "state.json")


async def _copied(controller: MigrationController) -> None:
    await controller.begin(SERVICE)
    await controller.settled(SERVICE)


async def _until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Polls what runs in the background; fails after the deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - other threads and servers set no event of ours
            await asyncio.sleep(0.02)


async def _clean(controller: MigrationController) -> None:
    passes = controller.verified(SERVICE)["passes"]
    await _until(lambda: controller.verified(SERVICE)["passes"] >= passes + 2)
    await _until(lambda: bool(controller.verified(SERVICE)["clean"]))


async def _raise(controller: MigrationController, percent: int) -> None:
    """Shifts as soon as the lane is seen at work."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await controller.shift(SERVICE, percent)
            except Held:
                await asyncio.sleep(0.05)


def test_the_whole_way_and_back(world: World) -> None:
    async def scenario(controller: MigrationController, store: Journalled) -> None:
        with pytest.raises(
            WrongStage, match="shift is not possible in stage shared; it is in reading, shadowing"
        ):
            await controller.shift(SERVICE, 10)
        await _copied(controller)
        assert world.stage() == ("shadowing", 0)
        copied = world.tables[-1].services[0].copied
        assert set(copied) == {"public.users", "public.roles", "public.logs"}
        assert {each["state"] for each in controller.progress(SERVICE).values()} == {"streaming"}

        await _clean(controller)
        for percent in (10, 50, 100):
            await _raise(controller, percent)
            assert world.stage() == ("reading", percent)
        lag_s = controller.lag_s(1)
        assert lag_s is not None
        assert lag_s < 1

        await controller.rollback(SERVICE, "error_rate", {"errors": 12, "calls": 100})
        assert world.stage() == ("shadowing", 0)
        assert (latch := controller.latch(SERVICE)) is not None
        assert latch["evidence"] == {"errors": 12, "calls": 100}
        with pytest.raises(Held, match="rolled back \\(error_rate\\)"):
            await controller.shift(SERVICE, 10)
        await controller.shift(SERVICE, 0)

        await _clean(controller)
        await controller.rearm(SERVICE, "index was missing")
        assert controller.latch(SERVICE) is None
        await _raise(controller, 10)

        await controller.abandon(SERVICE)
        assert world.stage() == ("shared", 0)
        assert world.own.execute("SELECT to_regclass('users'), to_regclass('logs')") == [[None, None]]
        assert world.shared.execute("SELECT count(*) FROM pg_publication") == [[0]]
        await _copied(controller)
        assert world.stage() == ("shadowing", 0)
        await controller.abandon(SERVICE)

    world.run(scenario)
    kinds = [kind for kind, _ in world.events]
    assert kinds.count("rolled_back") == kinds.count("rearmed") == 1
    assert [table.epoch for table in world.tables] == list(range(1, len(world.tables) + 1))
    rolled_back = next(detail for kind, detail in world.events if kind == "rolled_back")
    assert (rolled_back["trigger"], rolled_back["reads_before"]) == ("error_rate", 100)


@pytest.mark.parametrize("kill_at", [1, 2, 6, 9, 13, 16, 20])
def test_killed_at_any_write_the_next_life_brings_it_to_its_end(world: World, kill_at: int) -> None:
    """A begun copy goes on by itself; if it was not even journalled, nothing has happened."""

    async def first(controller: MigrationController, store: Journalled) -> None:
        with pytest.raises(Killed):
            await _copied(controller)

    async def second(controller: MigrationController, store: Journalled) -> None:
        assert controller.table.services[0].stage == ("shared" if kill_at == 1 else "syncing")
        if kill_at == 1:
            await controller.begin(SERVICE)
        await controller.settled(SERVICE)
        assert world.stage() == ("shadowing", 0)
        assert world.own.execute("SELECT count(*) FROM users") == [[1000]]
        await _clean(controller)

    async def third(controller: MigrationController, store: Journalled) -> None:
        assert controller.table.services[0].stage == "shadowing"
        await _clean(controller)
        await controller.abandon(SERVICE)

    world.run(first, kill_at=kill_at)
    world.run(second)
    world.run(third)


HELD_UP = {
    "slot": ("shared", "SELECT pg_create_logical_replication_slot%"),
    "subscription": ("own", "DO %CREATE SUBSCRIPTION%"),
}


@pytest.mark.parametrize("step", HELD_UP)
def test_abandoned_in_the_middle_of_a_statement_nothing_is_left_behind(world: World, step: str) -> None:
    """A lock, or an open write transaction, keeps the server in the statement while the abandon comes."""
    side, statement = HELD_UP[step]
    server = getattr(world, side)
    holder = server.connect()
    holder.run("BEGIN")
    if step == "slot":
        holder.run("CREATE TABLE held_up ()")
    else:
        holder.run("LOCK TABLE pg_subscription IN SHARE MODE")
    running = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '{statement}'"

    async def scenario(controller: MigrationController, store: Journalled) -> None:
        await controller.begin(SERVICE)
        await _until(lambda: server.execute(running) == [[1]])
        abandoning = asyncio.create_task(controller.abandon(SERVICE))
        await _until(lambda: server.execute(running) == [[0]])
        holder.run("ROLLBACK")
        await abandoning
        assert world.stage() == ("shared", 0)

    try:
        world.run(scenario)
    finally:
        holder.close()
    assert world.shared.execute("SELECT slot_name FROM pg_replication_slots") == []
    assert world.own.execute("SELECT subname FROM pg_subscription") == []
    assert world.own.execute("SELECT to_regclass('users')") == [[None]]


def test_begun_after_half_an_abandon_the_copy_has_no_gap(world: World) -> None:
    """The slot is gone and the subscription is not: what was written meanwhile came through neither."""

    async def scenario(controller: MigrationController, store: Journalled) -> None:
        await _copied(controller)
        lane = controller._copying.mover(SERVICE).lane
        drop_subscription = lane._drop_subscription

        def broken(link: Link) -> None:
            raise ServerError("own_db", "57P03", "the database system is shutting down")

        lane._drop_subscription = broken  # type: ignore[method-assign]
        with pytest.raises(TargetGone, match="shutting down"):
            await controller.abandon(SERVICE)
        lane._drop_subscription = drop_subscription  # type: ignore[method-assign]
        world.shared.execute(
            "INSERT INTO users (name) VALUES ('meanwhile'); DELETE FROM users WHERE id = 900"
        )
        await _copied(controller)
        await _clean(controller)
        assert world.own.execute("SELECT count(*) FROM users WHERE id = 900 OR name = 'meanwhile'") == [[1]]
        await controller.abandon(SERVICE)

    world.run(scenario)


def test_a_latch_and_the_weight_zero_survive_a_restart(world: World) -> None:
    async def first(controller: MigrationController, store: Journalled) -> None:
        await _copied(controller)
        await _clean(controller)
        await _raise(controller, 50)
        await controller.rollback(SERVICE, "latency", {"slow": 9})

    async def second(controller: MigrationController, store: Journalled) -> None:
        assert controller.table.services[0].reads_percent == 0
        latch = controller.latch(SERVICE)
        assert latch is not None
        assert latch["trigger"] == "latency"
        assert controller.journal(SERVICE)[-1]["step"] == "rollback"
        await controller.abandon(SERVICE)
        assert controller.latch(SERVICE) is None
        assert "rollback" in [entry["step"] for entry in controller.journal(SERVICE)]
        await _copied(controller)
        await _raise(controller, 10)
        await controller.abandon(SERVICE)

    world.run(first)
    world.run(second)


def test_a_rollback_is_kept_before_it_is_announced_and_holds_even_if_it_cannot_be_kept(world: World) -> None:
    async def scenario(controller: MigrationController, store: Journalled) -> None:
        await _copied(controller)
        await _clean(controller)
        await _raise(controller, 50)

        def announced(table: RoutingTable) -> None:
            _, document = store.inner.read()
            kept.append((table.epoch, document["epoch"], document["services"][SERVICE]["latch"] is not None))

        kept: list[tuple[int, int, bool]] = []
        world.announced = announced
        store.failing = True
        with pytest.raises(StoreError, match="no space"):
            await controller.rollback(SERVICE, "error_rate", {})
        assert world.stage() == ("shadowing", 0)
        assert kept[-1][2] is False
        store.failing = False
        await _until(lambda: store.inner.read()[1]["services"][SERVICE]["latch"] is not None)
        await _clean(controller)
        await controller.rearm(SERVICE, "disk freed")
        await _raise(controller, 20)
        await controller.rollback(SERVICE, "error_rate", {})
        epoch, stored_epoch, latched = kept[-1]
        assert (stored_epoch, latched) == (epoch, True)
        await controller.abandon(SERVICE)

    world.run(scenario)


def test_a_sick_lane_or_a_copy_that_differs_holds_the_reads(world: World) -> None:
    async def scenario(controller: MigrationController, store: Journalled) -> None:
        await _copied(controller)
        await _clean(controller)
        world.own.execute("UPDATE users SET name = 'rogue' WHERE id = 5")
        await _until(lambda: controller.verified(SERVICE)["open_total"] == 1)
        with pytest.raises(Held, match=r"1 rows of auth_service differ"):
            await controller.shift(SERVICE, 10)
        await controller.rollback(SERVICE, "manual", {})
        with pytest.raises(Held, match=r"cannot be armed: 1 rows differ"):
            await controller.rearm(SERVICE, "hope")
        world.own.execute("UPDATE users SET name = 'user 5' WHERE id = 5")
        await _clean(controller)
        await controller.rearm(SERVICE, "repaired")
        world.own.execute("ALTER SUBSCRIPTION pgshunt_auth_service DISABLE")
        with pytest.raises(Held, match="subscription is disabled"):
            await controller.shift(SERVICE, 10)
        await _until(lambda: "disabled" in controller.trouble(SERVICE))
        await controller.abandon(SERVICE)

    world.run(scenario)
    assert any(kind == "lane_failed" for kind, _ in world.events)


def test_a_move_goes_on_with_the_tables_it_began_with(world: World) -> None:
    """A table that a pattern matches meanwhile is the service's, but nothing copies it; at first none was."""
    new = "public.user_names"

    async def scenario(controller: MigrationController, store: Journalled) -> None:
        base = replace(controller.table, services=(replace(controller.table.services[0], tables=()),))
        await controller.reconfigure(base)
        with pytest.raises(PreflightFailed, match="there is none that its patterns match"):
            await controller.begin(SERVICE)
        mine = ("public.users", "public.roles")
        await controller.reconfigure(replace(base, services=(replace(base.services[0], tables=mine),)))
        await _copied(controller)
        world.shared.execute("CREATE TABLE user_names (id int PRIMARY KEY)")
        await controller.reconfigure(
            replace(base, services=(replace(base.services[0], tables=(mine[0], new)),))
        )
        (service,) = controller.table.services
        assert service.tables == (*mine, new)
        assert set(service.copied) == {*mine, "public.logs"}

    async def next_life(controller: MigrationController, store: Journalled) -> None:
        await controller.reconfigure(
            replace(controller.table, services=(Service(SERVICE, "own_db", (), ("public.logs",)),))
        )
        assert set(controller.table.services[0].tables) == {"public.users", "public.roles"}
        await _clean(controller)
        await controller.abandon(SERVICE)
        assert controller.table.services[0].tables == ()

    world.run(scenario)
    world.run(next_life)


def test_what_preflight_finds_refuses_the_begin_before_anything_is_changed(world: World) -> None:
    world.shared.execute("ALTER TABLE roles DROP CONSTRAINT roles_pkey; DROP TABLE logs")

    async def scenario(controller: MigrationController, store: Journalled) -> None:
        with pytest.raises(
            PreflightFailed, match=r"public\.roles: without replica identity .*; add a primary key"
        ) as refused:
            await controller.begin(SERVICE)
        assert {each.subject for each in refused.value.problems} == {"shared database", "public.roles"}
        assert controller.table.services[0].stage == "shared"
        assert (store.writes, controller.journal(SERVICE), world.events) == (0, (), [])
        world.shared.execute("ALTER TABLE roles ADD PRIMARY KEY (id); CREATE TABLE logs (id int PRIMARY KEY)")
        await _copied(controller)
        assert controller.trouble(SERVICE) == ""
        await controller.abandon(SERVICE)

    world.run(scenario)


def test_a_database_that_would_answer_otherwise_is_refused_with_what_mends_it(world: World) -> None:
    shared, own = world.shared, world.own
    app = f"{shared.dbname}_app"
    shared.execute(
        f"ALTER DATABASE {shared.dbname} SET timezone = 'Europe/Berlin'; CREATE ROLE {app} LOGIN; "
        f'ALTER DATABASE {shared.dbname} SET search_path = "$user", app, public; '
        f"GRANT SELECT ON users TO {app}"
    )
    own.execute(
        f"CREATE ROLE {app} LOGIN; ALTER ROLE {app} SET datestyle = 'German'; "
        f"REVOKE CONNECT ON DATABASE {own.dbname} FROM PUBLIC"
    )

    async def scenario(controller: MigrationController, store: Journalled) -> None:
        with pytest.raises(PreflightFailed) as refused:
            await controller.begin(SERVICE)
        remedies = {
            each.subject + " " + each.message.split()[0]: each.remedy for each in refused.value.problems
        }
        assert remedies.keys() == {
            "own database search_path",
            "own database timezone",
            f"role {app} datestyle",
            f"role {app} at",
        }
        for remedy in remedies.values():
            own.execute(remedy.partition("run at the own database: ")[2] or "SELECT 1")
        with pytest.raises(PreflightFailed, match="may not connect; GRANT CONNECT") as refused:
            await controller.begin(SERVICE)
        assert len(refused.value.problems) == 1
        own.execute(f"GRANT CONNECT ON DATABASE {own.dbname} TO {app}")
        await _copied(controller)
        await _raise(controller, 1)
        own.execute(f"ALTER DATABASE {own.dbname} SET bytea_output = 'escape'")
        with pytest.raises(Held, match=r"would give other answers: .*bytea_output is escape"):
            await controller.shift(SERVICE, 2)
        await controller.shift(SERVICE, 0)
        await controller.abandon(SERVICE)

    try:
        world.run(scenario)
    finally:
        for database in (shared, own):
            database.execute(f"DROP OWNED BY {app}; DROP ROLE {app}")


def test_a_database_with_another_collation_is_refused(world: World) -> None:
    own = world.own
    own.server.execute(f"DROP DATABASE {own.dbname} WITH (FORCE)")
    [[collation]] = world.shared.execute(
        "SELECT datcollate FROM pg_database WHERE datname = current_database()"
    )
    other = "C.UTF-8" if collation == "C" else "C"
    own.server.execute(f"CREATE DATABASE {own.dbname} TEMPLATE template0 LC_COLLATE '{other}'")

    async def scenario(controller: MigrationController, store: Journalled) -> None:
        with pytest.raises(
            PreflightFailed, match=f"its LC_COLLATE is {other}, at the shared database {collation}"
        ):
            await controller.begin(SERVICE)

    world.run(scenario)
