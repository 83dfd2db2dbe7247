"""Each client ends at the worker with the fewest, cancels at the worker they mean, and none is dropped."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from pgshunt.proxy.accept import PAUSE_S, Acceptor
from pgshunt.proxy.board import Board

from .fakes import RecordingRelay


class Fleet:
    """Some workers' acceptors in one process and on one loop, with inboxes as the supervisor makes them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: int, clients_max: int) -> None:
        self.board = Board(None, workers=workers, endpoints=1)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(workers)]
        self.relays = [RecordingRelay(loop, index, self.board, {}) for index in range(workers)]
        self.exhausted: list[OSError] = []
        self.clients: list[socket.socket] = []
        self.started: list[Acceptor] = []
        self.acceptors = [
            Acceptor(
                loop,
                index,
                self.board,
                relay,
                listeners=[self.listener.dup()],
                inbox=self.inboxes[index][0],
                peers=[write for _, write in self.inboxes],
                clients_max=clients_max,
                on_exhausted=self.exhausted.append,
            )
            for index, relay in enumerate(self.relays)
        ]
        for worker in range(workers):
            self.board.alive[worker] = time.monotonic_ns()

    def start(self, *workers: int, accepting: bool = True) -> None:
        """Starts workers; those that do not accept still take what others pass."""
        for worker in workers:
            self.acceptors[worker].start()
            self.started.append(self.acceptors[worker])
            if not accepting:
                self.acceptors[worker].stop()

    def connect(self, clients: int = 1) -> None:
        for _ in range(clients):
            self.clients.append(socket.create_connection(self.listener.getsockname()))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for the relays to have taken something that makes the condition true."""
        while not condition():
            waits = [asyncio.ensure_future(relay.changed.wait()) for relay in self.relays]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait, relay in zip(waits, self.relays, strict=True):
                wait.cancel()
                relay.changed.clear()

    def counts(self) -> list[int]:
        return [relay.clients for relay in self.relays]

    def close(self) -> None:
        for acceptor, relay in zip(self.acceptors, self.relays, strict=True):
            acceptor.stop()
            if acceptor in self.started:
                acceptor.close()
            relay.close()
        for sock in (self.listener, *self.clients, *(end for pair in self.inboxes for end in pair)):
            sock.close()
        self.board.close()


async def turns_until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition is true: for what no relay notices."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


Scenario = Callable[[Fleet], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a scenario with a fleet, and closes it."""

    def run(scenario: Scenario, workers: int = 3, clients_max: int = 1000) -> None:
        async def main() -> None:
            fleet = Fleet(asyncio.get_running_loop(), workers, clients_max)
            try:
                await asyncio.wait_for(scenario(fleet), 20)
            finally:
                fleet.close()

        asyncio.run(main())

    yield run


def test_one_accepting_worker_spreads_clients_evenly(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.start(1, 2, accepting=False)
        fleet.start(0)
        fleet.connect(30)
        await fleet.until(lambda: sum(fleet.counts()) == 30)
        assert fleet.counts() == [10, 10, 10]
        assert list(fleet.board.handed(0)) == [0, 10, 10]
        assert list(fleet.board.received) == [0, 10, 10]

    run(scenario)


def test_a_passed_socket_is_the_clients_connection(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.board.clients[0] = 5
        fleet.start(1, accepting=False)
        fleet.start(0)
        fleet.connect()
        await fleet.until(lambda: fleet.relays[1].clients == 1)
        assert os.get_blocking(fleet.relays[1].adopted[0]) is False
        os.write(fleet.relays[1].adopted[0], b"hello")
        assert fleet.clients[0].recv(5) == b"hello"

    run(scenario, workers=2)


def test_a_client_is_kept_when_the_inbox_is_broken(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.board.clients[0] = 5
        fleet.inboxes[1][0].close()
        fleet.start(0)
        fleet.connect()
        await fleet.until(lambda: fleet.relays[0].clients == 1)
        assert fleet.board.handed_to(1) == 0

    run(scenario, workers=2)


def test_a_client_is_kept_when_the_inbox_is_full(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        write = fleet.inboxes[1][1]
        write.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                write.send(b"c")
        fleet.board.clients[0] = 5
        fleet.start(0)
        fleet.connect()
        await fleet.until(lambda: fleet.relays[0].clients == 1)

    run(scenario, workers=2)


def test_too_many_clients_over_all_workers_are_refused(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.board.clients[1] = 2
        fleet.start(0)
        fleet.connect(3)
        await fleet.until(lambda: len(fleet.relays[0].refused) == 2)
        assert fleet.counts() == [1, 0]
        assert os.get_blocking(fleet.relays[0].adopted[0]) is False

    run(scenario, workers=2, clients_max=3)


def test_a_cancel_request_reaches_the_worker_it_names(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.start(0, 1, 2)
        fleet.acceptors[0].pass_cancel(2, 0x82000007, b"key!")
        await fleet.until(lambda: bool(fleet.relays[2].cancelled))
        assert fleet.relays[2].cancelled == [(0x82000007, b"key!")]
        fleet.acceptors[0].pass_cancel(200, 1, b"key!")
        assert [relay.cancelled for relay in fleet.relays[:2]] == [[], []]

    run(scenario)


def test_a_successor_takes_what_its_predecessor_left_in_the_inbox(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.board.clients[0] = 5
        fleet.start(0)
        fleet.connect(3)
        await turns_until(lambda: fleet.board.handed_to(1) == 3)
        fleet.board.received[1] = 1  # the predecessor died over the first one
        fleet.start(1)
        assert fleet.relays[1].clients == 3
        assert fleet.board.load(1) == 3

    run(scenario, workers=2)


class ExhaustedListener:
    """A listening socket whose accept fails as the kernel's does when there are no descriptors left."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.failures = 0
        self.failing = True

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failing:
            self.failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self.listener.accept()

    def fileno(self) -> int:
        return self.listener.fileno()

    def setblocking(self, flag: bool) -> None:
        self.listener.setblocking(flag)

    def close(self) -> None:
        self.listener.close()


def test_without_descriptors_it_pauses_instead_of_spinning(run: Run) -> None:
    async def scenario(fleet: Fleet) -> None:
        listener = ExhaustedListener(fleet.listener.dup())
        acceptor = Acceptor(
            asyncio.get_running_loop(),
            0,
            fleet.board,
            fleet.relays[0],
            listeners=[listener],  # type: ignore[list-item]
            inbox=fleet.inboxes[0][0],
            peers=[fleet.inboxes[0][1]],
            clients_max=10,
            on_exhausted=fleet.exhausted.append,
        )
        acceptor.start()
        fleet.connect()
        await turns_until(lambda: bool(fleet.exhausted))
        started = time.monotonic()
        listener.failing = False
        await fleet.until(lambda: fleet.relays[0].clients == 1)
        assert listener.failures == len(fleet.exhausted) == 1
        assert time.monotonic() - started > PAUSE_S / 2
        acceptor.stop()
        acceptor.close()

    run(scenario, workers=1)
