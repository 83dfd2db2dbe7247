"""Heartbeats through real lanes and standbys: what is called fresh holds everything committed before."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.fixtures import LOGICAL, Database
from support.moving import CONTROL, TARGET, databases, endpoint, moving

from pgshunt.demo.postgres import Server as Postgres
from pgshunt.demo.postgres import Servers
from pgshunt.migration.heartbeat import TABLE, Heartbeat, Watched, ensure_table
from pgshunt.migration.servers import connect
from pgshunt.routing.table import Endpoint

_numbers = itertools.count()


@pytest.fixture
def pair(postgres_pair: tuple[Postgres, Postgres]) -> Iterator[tuple[Database, Database]]:
    with databases(postgres_pair, f"heartbeat_{next(_numbers)}") as made:
        made[0].execute("CREATE TABLE notes (id bigint PRIMARY KEY)")
        yield made


def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Polls what threads and servers do on their own; fails the test after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not within the deadline"
        threading.Event().wait(0.01)


def test_what_was_committed_before_the_freshness_is_there(pair: tuple[Database, Database]) -> None:
    """The promise sessions rely on, checked against 200 commits."""
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", ("public.notes",)) as running:
            writer, reader = shared.connect(), own.connect()
            checked = 0
            for number in range(200):
                writer.run("INSERT INTO notes VALUES (:id)", id=number)
                committed_ns = time.monotonic_ns()
                if number % 10 == 0:
                    assert await running.heartbeat.waiting(TARGET, committed_ns, 5)
                if running.heartbeat.freshness_ns(TARGET) > committed_ns:
                    checked += 1
                    assert reader.run("SELECT count(*) FROM notes WHERE id = :id", id=number) == [[1]]
            assert checked >= 20
            writer.close()
            reader.close()

    asyncio.run(scenario())


def test_a_copy_that_stops_applying_becomes_stale_and_catches_up(pair: tuple[Database, Database]) -> None:
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", ("public.notes",)) as running:
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 5)
            await running.lane.set_enabled(False)
            assert not await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 0.5)
            lag_s = running.heartbeat.lag_s(TARGET)
            assert lag_s is not None
            assert lag_s > 0.4
            assert not (await running.lane.status()).is_healthy
            await running.lane.set_enabled(True)
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 10)

    asyncio.run(scenario())


def test_a_heartbeat_that_was_lost_makes_no_stale_copy_fresh(pair: tuple[Database, Database]) -> None:
    """The copy still shows a number from before, which must not be taken for one of those that follow."""
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", ("public.notes",)) as running:
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 5)
            await running.lane.set_enabled(False)
            shared.execute(f"TRUNCATE {TABLE}")
            assert not await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 1)
            await running.lane.set_enabled(True)
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 10)

    asyncio.run(scenario())


def test_beats_of_another_process_count_for_nothing(pair: tuple[Database, Database]) -> None:
    """After a restart the value goes on, and what a copy showed before is of unknown age."""
    shared, own = pair
    published: list[tuple[int, int]] = []

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", ("public.notes",)) as running:
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 5)
            running.heartbeat.stop()
            await running.lane.set_enabled(False)
            before = own.execute(f"SELECT beat FROM {TABLE}")
            again = Heartbeat(
                endpoint(shared, "shared"), CONTROL, lambda i, at_ns: published.append((i, at_ns))
            )
            watched = Watched(TARGET, endpoint(own, "own_db"), frozenset({"auth_service"}))
            began_ns = time.monotonic_ns()
            again.watch({TARGET: watched})
            await asyncio.to_thread(_until, lambda: len(published) > 5)
            assert {at_ns for _, at_ns in published} == {0}
            await running.lane.set_enabled(True)
            assert await again.waiting(TARGET, began_ns, 10)
            assert own.execute(f"SELECT beat FROM {TABLE}") > before
            again.stop()
            assert published[-1] == (TARGET, 0)

    asyncio.run(scenario())


def test_the_endpoint_of_two_services_is_as_fresh_as_the_slower_lane(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    shared.execute("CREATE TABLE logs (id bigint PRIMARY KEY)")

    async def scenario() -> None:
        async with (
            moving(shared, own, "auth_service", ("public.notes",)) as first,
            moving(shared, own, "log_service", ("public.logs",)) as second,
        ):
            assert own.execute(f"SELECT service FROM {TABLE} ORDER BY 1") == [
                ["auth_service"],
                ["log_service"],
            ]
            both = Heartbeat(endpoint(shared, "shared"), CONTROL, lambda index, at_ns: None)
            for running in (first, second):
                running.heartbeat.stop()
            services = frozenset({"auth_service", "log_service"})
            both.watch({TARGET: Watched(TARGET, endpoint(own, "own_db"), services)})
            assert await both.waiting(TARGET, time.monotonic_ns(), 5)
            await second.lane.set_enabled(False)
            assert not await both.waiting(TARGET, time.monotonic_ns(), 0.5)
            await second.lane.set_enabled(True)
            assert await both.waiting(TARGET, time.monotonic_ns(), 10)
            both.stop()

    asyncio.run(scenario())


def test_a_locked_row_holds_up_the_beats_of_its_service_only(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    shared.execute("CREATE TABLE logs (id bigint PRIMARY KEY)")

    async def scenario() -> None:
        async with (
            moving(shared, own, "auth_service", ("public.notes",)) as first,
            moving(shared, own, "log_service", ("public.logs",)) as second,
        ):
            second.heartbeat.stop()
            ends = {TARGET: "log_service", TARGET + 1: "auth_service"}
            both = Heartbeat(endpoint(shared, "shared"), CONTROL, lambda index, at_ns: None)
            first.heartbeat.stop()
            both.watch(
                {
                    index: Watched(index, endpoint(own, name), frozenset({name}))
                    for index, name in ends.items()
                }
            )
            for index in ends:
                assert await both.waiting(index, time.monotonic_ns(), 5)
            holder = shared.connect()
            holder.run("BEGIN")
            holder.run(f"SELECT FROM {TABLE} WHERE service = 'log_service' FOR UPDATE")
            locked_ns = time.monotonic_ns()
            await asyncio.to_thread(_until, lambda: both.is_locked("log_service"))
            assert await both.waiting(TARGET + 1, time.monotonic_ns(), 1)
            assert (both.write_error, both.is_locked("auth_service")) == ("", False)
            assert both.freshness_ns(TARGET) < locked_ns
            holder.run("ROLLBACK")
            holder.close()
            assert await both.waiting(TARGET, time.monotonic_ns(), 5)
            assert not both.is_locked("log_service")
            both.stop()

    asyncio.run(scenario())


def test_standbys_beat_too_and_a_dead_one_delays_nobody(servers: Servers) -> None:
    shared = servers.start("heart", LOGICAL)
    standbys = [servers.replica(shared, f"heart_{number}") for number in (1, 2)]
    database = Database(shared, "postgres")
    with databases((shared, shared), "unused_a", "unused_b"):  # makes the control role
        pass
    link = connect(endpoint(database, "shared"), CONTROL, "test")
    ensure_table(link)
    link.close()
    ends = {
        index: Endpoint(f"shared/{index}", "shared", standby.host, standby.port, "postgres", "replica")
        for index, standby in enumerate(standbys, 1)
    }
    published: dict[int, int] = {}
    heartbeat = Heartbeat(endpoint(database, "shared"), CONTROL, published.__setitem__)
    heartbeat.watch({index: Watched(index, end) for index, end in ends.items()})
    try:
        now_ns = time.monotonic_ns()
        _until(lambda: all(heartbeat.freshness_ns(index) > now_ns for index in ends))
        standbys[0].kill()
        _until(lambda: published[1] == 0)
        now_ns = time.monotonic_ns()
        _until(lambda: heartbeat.freshness_ns(2) > now_ns, 1.0)
        standbys[0].start()
        now_ns = time.monotonic_ns()
        _until(lambda: heartbeat.freshness_ns(1) > now_ns)
    finally:
        heartbeat.stop()
