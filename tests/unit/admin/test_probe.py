"""Probes find a database that is down or hung without any traffic, and blame nobody else for it."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from pgshunt.admin.probe import Probed, Prober
from pgshunt.admin.watch import Watch
from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server
from pgshunt.migration.guard import Guard, Trip
from pgshunt.routing.table import Endpoint

SERVICE = "auth_service"
ROUNDS = 6


def endpoint(name: str, port: int) -> Endpoint:
    return Endpoint(name, name, "127.0.0.1", port, "postgres", "primary")


def trips_of(
    server: Server,
    shared_port: int,
    own_port: int,
    stall_s: float = 0.0,
    rounds_max: int = 1000,
    services: tuple[str, ...] = (SERVICE,),
) -> list[Trip]:
    """Probes until something trips, for no more than so many rounds; `stall_s`: how late the loop is."""

    async def main() -> list[Trip]:
        trips: list[Trip] = []
        enough = asyncio.Event()

        def tripped(trip: Trip) -> None:
            trips.append(trip)
            if len(trips) == len(services):
                enough.set()

        guard = Guard()
        for service in services:
            guard.arm(service)
            guard.expose(service, True)
        watch = Watch(guard, clock=time.monotonic, on_trip=tripped, has_only_link=lambda *_: False)
        rounds = 0

        def probed() -> list[Probed]:
            nonlocal rounds
            rounds += 1
            if rounds > rounds_max:
                enough.set()
            return [Probed(service, endpoint("auth_db", own_port)) for service in services]

        async def stall() -> None:
            while stall_s:
                time.sleep(stall_s)  # noqa: ASYNC251 - this is what is tried
                await asyncio.sleep(0)

        control = Control(user=server.user, password=Secret(server.password))
        prober = Prober(watch, endpoint("shared", shared_port), control, probed)
        tasks = [asyncio.ensure_future(prober.run()), asyncio.ensure_future(stall())]
        await asyncio.wait_for(enough.wait(), 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return trips

    return asyncio.run(main())


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("stall_s", [0.0, 0.15])
def test_a_database_that_refuses_trips(postgres: Server, stall_s: float) -> None:
    (trip,) = trips_of(postgres, postgres.port, closed_port(), stall_s)
    assert (trip.service, trip.judgement.detector) == (SERVICE, "D1")


@pytest.mark.parametrize("stall_s", [0.0, 0.15])
def test_a_database_that_hangs_trips(postgres: Server, stall_s: float) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        (trip,) = trips_of(postgres, postgres.port, silent.getsockname()[1], stall_s)
    assert trip.judgement.detector == "D1"


@pytest.mark.parametrize("stall_s", [0.0, 0.15])
def test_databases_that_answer_do_not_trip(postgres: Server, stall_s: float) -> None:
    assert trips_of(postgres, postgres.port, postgres.port, stall_s, ROUNDS) == []


def test_nothing_trips_when_the_shared_database_is_gone_too(postgres: Server) -> None:
    assert trips_of(postgres, closed_port(), closed_port(), rounds_max=ROUNDS) == []


def test_probing_begins_when_there_is_something_to_probe(postgres: Server) -> None:
    async def main() -> int:
        asked: asyncio.Queue[int] = asyncio.Queue()
        exposed: list[Probed] = []

        def probed() -> list[Probed]:
            asked.put_nowait(len(exposed))
            return exposed

        watch = Watch(Guard(), clock=time.monotonic, on_trip=print, has_only_link=lambda *_: False)
        control = Control(user=postgres.user, password=Secret(postgres.password))
        prober = Prober(watch, endpoint("shared", postgres.port), control, probed)
        task = asyncio.ensure_future(prober.run())
        assert await asyncio.wait_for(asked.get(), 60) == 0
        exposed.append(Probed(SERVICE, endpoint("auth_db", postgres.port)))
        prober.look()
        rounds = [await asyncio.wait_for(asked.get(), 60) for _ in range(2)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return sum(rounds)

    assert asyncio.run(main()) == 2


def test_a_database_of_several_services_that_hangs_trips_each_of_them(postgres: Server) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        trips = trips_of(postgres, postgres.port, silent.getsockname()[1], services=(SERVICE, "shop_service"))
    assert [trip.service for trip in trips] == [SERVICE, "shop_service"]
