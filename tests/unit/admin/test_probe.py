"""Probes find a database that is down or hung without any traffic, and blame nobody else for it."""

from __future__ import annotations

import asyncio
import socket
import time

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


def trips_after_some_rounds(server: Server, shared_port: int, own_port: int) -> list[Trip]:
    """Probes for some rounds; what tripped."""

    async def main() -> list[Trip]:
        trips: list[Trip] = []
        guard = Guard()
        guard.arm(SERVICE)
        guard.expose(SERVICE, True)
        watch = Watch(guard, clock=time.monotonic, on_trip=trips.append, has_only_link=lambda *_: False)
        rounds = 0
        enough = asyncio.Event()

        def probed() -> list[Probed]:
            nonlocal rounds
            rounds += 1
            if rounds > ROUNDS:
                enough.set()
            return [Probed(SERVICE, endpoint("auth_db", own_port))]

        control = Control(user=server.user, password=Secret(server.password))
        prober = Prober(watch, endpoint("shared", shared_port), control, probed)
        probing = asyncio.ensure_future(prober.run())
        await asyncio.wait_for(enough.wait(), 30)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        return trips

    return asyncio.run(main())


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_a_database_that_refuses_trips(postgres: Server) -> None:
    (trip,) = trips_after_some_rounds(postgres, postgres.port, closed_port())
    assert (trip.service, trip.judgement.detector) == (SERVICE, "D1")


def test_a_database_that_hangs_trips(postgres: Server) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        (trip,) = trips_after_some_rounds(postgres, postgres.port, silent.getsockname()[1])
    assert trip.judgement.detector == "D1"


def test_databases_that_answer_do_not_trip(postgres: Server) -> None:
    assert trips_after_some_rounds(postgres, postgres.port, postgres.port) == []


def test_nothing_trips_when_the_shared_database_is_gone_too(postgres: Server) -> None:
    assert trips_after_some_rounds(postgres, closed_port(), closed_port()) == []
