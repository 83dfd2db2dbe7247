"""Runs the eight services against one address and keeps count of what they saw."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from pgshunt.demo.client import Chain, Client
from pgshunt.demo.drivers import Address
from pgshunt.demo.ledger import Ledger
from pgshunt.demo.services import ACTIVE_ROWS, SERVICES, SHARED_DBNAME
from pgshunt.demo.tally import FailedOperation, Tally

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class WorkloadFailed(RuntimeError):
    """The clients did not start or did not stop in time; the message says which and what they saw."""


class Workload:
    """All clients, on an event loop in a thread of its own. A context manager: leaving stops them."""

    def __init__(self, host: str, port: int, passwords: Mapping[str, str], lag_ms_max: float = 1000) -> None:
        """`passwords` by service name, also its login role; `lag_ms_max` as the proxy promises it."""
        self.tallies = {service.name: Tally(service.name, service.driver) for service in SERVICES}
        self._clients: list[Client] = []
        for service in SERVICES:
            address = Address(host, port, service.name, passwords[service.name], SHARED_DBNAME)
            ledger, chain, tally = Ledger(lag_ms_max), Chain(), self.tallies[service.name]
            each = ACTIVE_ROWS // service.connections
            every = range(1, 1 + each * service.connections)
            for first in every[::each]:
                own = range(first, first + each)
                self._clients.append(Client(service, address, own, every, ledger, chain, tally))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="workload")
        self._stop = asyncio.Event()
        self._all_ready = threading.Event()

    def __enter__(self) -> Workload:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once every client is connected and has read its rows. Raises WorkloadFailed."""
        self._thread.start()
        if not self._all_ready.wait(READY_TIMEOUT_S):
            seen = {name: dict(tally.errors) for name, tally in self.tallies.items() if not tally.connects}
            self.stop()
            raise WorkloadFailed(
                f"clients without a connection after {READY_TIMEOUT_S} s, and their errors: {seen}"
            )

    def stop(self) -> None:
        """Lets every client finish what it is doing and say goodbye. Raises WorkloadFailed if one hangs."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                raise WorkloadFailed(f"clients still wait for an answer {STOP_TIMEOUT_S} s after the stop")

    def failures(self) -> list[FailedOperation]:
        """All failed operations so far, in the order in which they ended."""
        found = [failure for tally in self.tallies.values() for failure in list(tally.failures)]
        return sorted(found, key=lambda failure: failure.ended_at)

    def wrong(self) -> int:
        return sum(tally.wrong for tally in self.tallies.values())

    def succeeded(self) -> int:
        return sum(sum(tally.ok.values()) for tally in self.tallies.values())

    def to_dict(self) -> dict[str, Any]:
        return {name: tally.to_dict() for name, tally in self.tallies.items()}

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._work())
        finally:
            self._loop.close()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.begin(self._stop))
        if not self._stop.is_set():
            self._all_ready.set()
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.work(self._stop))
