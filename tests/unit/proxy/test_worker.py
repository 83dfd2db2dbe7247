"""A worker does what the channel says, reports what it counts, and drains however it is ended."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgshunt.config.model import Config
from pgshunt.proxy.board import Board
from pgshunt.proxy.channel import Channel, Message
from pgshunt.proxy.worker import Inherited, Worker, parse_fds
from pgshunt.routing.table import Catalogue, Endpoint, RoutingTable

from .fakes import RecordingRelay

CONFIG = Config.model_validate(
    {
        "version": 1,
        "shared": {"dbname": "monolith", "primary": {"host": "127.0.0.1"}},
        "control": {"user": "pgshunt"},
    }
)


def table(epoch: int) -> RoutingTable:
    return RoutingTable(epoch, (Endpoint("shared", "shared", "127.0.0.1", 5432, "monolith", "primary"),))


def table_message(kind: str, epoch: int) -> Message:
    return {"type": kind, "table": table(epoch).to_dict(), "catalogue": Catalogue().to_dict()}


class Bench:
    """The supervisor's side of one worker that runs on the same loop."""

    channel: Channel
    relay: RecordingRelay
    ended: asyncio.Task[None]

    def __init__(self) -> None:
        self.board = Board(None, workers=1, endpoints=1)
        self.listener = socket.create_server(("127.0.0.1", 0))

    async def begin(self) -> None:
        ours, theirs = socket.socketpair()
        inbox, write = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inherited = Inherited(
            0,
            theirs.fileno(),
            os.dup(self.board.fd),
            inbox.detach(),
            (self.listener.dup().detach(),),
            (write.detach(),),
        )
        self.channel = await Channel.open(ours)
        self.workers_channel = await Channel.open(theirs)
        self.worker = Worker(inherited, self.workers_channel, self.make)
        self.channel.send({**table_message("start", 7), "config": CONFIG.dump_revealed()})
        assert await self.worker.start()
        self.ended = asyncio.ensure_future(self.live())

    async def live(self) -> None:
        await self.worker.run()
        await self.workers_channel.close()

    def make(
        self, loop: asyncio.AbstractEventLoop, index: int, board: Board, start: Message
    ) -> RecordingRelay:
        self.relay = RecordingRelay(loop, index, board, start)
        return self.relay

    async def received(self, kind: str) -> Message:
        while (message := await self.channel.receive()) is not None:
            if message["type"] == kind:
                return message
        raise AssertionError(f"the worker ended without a {kind!r}")


def with_worker(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        await bench.begin()
        try:
            await asyncio.wait_for(scenario(bench), 20)
        finally:
            await bench.channel.close()
            await bench.ended
            bench.listener.close()
            bench.board.close()

    asyncio.run(main())


def test_it_says_when_it_is_ready_and_hands_the_start_message_to_the_relay() -> None:
    async def scenario(bench: Bench) -> None:
        ready = await bench.received("ready")
        assert (ready["pid"], ready["epoch"]) == (os.getpid(), 7)
        assert bench.relay.start["config"]["control"]["user"] == "pgshunt"
        assert bench.board.alive[0] > 0

    with_worker(scenario)


def test_a_new_table_is_applied_and_then_acknowledged() -> None:
    async def scenario(bench: Bench) -> None:
        bench.channel.send(table_message("table", 8))
        bench.channel.send(table_message("table", 9))
        assert (await bench.received("ack"))["epoch"] == 8
        assert (await bench.received("ack"))["epoch"] == 9
        assert bench.relay.epochs == [8, 9]

    with_worker(scenario)


def test_a_table_without_a_catalogue_goes_with_the_one_before() -> None:
    async def scenario(bench: Bench) -> None:
        message = {"type": "table", "table": table(8).to_dict()}
        bench.channel.send({**message, "definitions": [1]})
        bench.channel.send({**message, "catalogue": Catalogue(version=2).to_dict()})
        bench.channel.send({**message, "definitions": [3]})
        for _ in range(3):
            await bench.received("ack")
        assert bench.relay.catalogues == [(0, (1,)), (2, ()), (2, (3,))]

    with_worker(scenario)


def test_the_relay_hears_that_another_worker_has_ended() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        bench.channel.send({"type": "worker_ended", "worker": 3})
        while not bench.relay.ended:
            await bench.relay.changed.wait()
            bench.relay.changed.clear()
        assert bench.relay.ended == [3]

    with_worker(scenario)


def test_what_the_old_table_decided_is_told_before_the_new_one_is_acknowledged() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        bench.relay.counters = {"parses": 3}
        bench.channel.send(table_message("table", 8))
        told = [await bench.channel.receive(), await bench.channel.receive()]
        assert [message["type"] for message in told if message] == ["delta", "ack"]

    with_worker(scenario)


def test_counters_are_sent_with_the_tick_and_nothing_when_nothing_changed() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        bench.relay.counters = {"parses": 3}
        delta = await bench.received("delta")
        assert (delta["index"], delta["parses"]) == (0, 3)
        ticks = bench.relay.ticks
        while bench.relay.ticks < ticks + 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        bench.worker.stop()
        with pytest.raises(AssertionError, match="without a 'delta'"):
            await bench.received("delta")

    with_worker(scenario)


def test_a_fault_in_a_tick_does_not_end_the_ticking() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        tick, faulted = bench.relay.tick, asyncio.Event()

        def faulty() -> None:
            bench.relay.tick = tick  # type: ignore[method-assign]
            faulted.set()
            raise RuntimeError("a fault of ours")

        bench.relay.tick = faulty  # type: ignore[method-assign]
        await faulted.wait()
        ticks = bench.relay.ticks
        while bench.relay.ticks < ticks + 2:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with_worker(scenario)


def test_an_urgent_count_does_not_wait_for_the_tick() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        ticks = bench.relay.ticks
        for parses in range(1, 4):
            bench.relay.counters = {"parses": parses}
            assert bench.relay.on_urgent is not None
            bench.relay.on_urgent()
            assert (await bench.received("delta"))["parses"] == parses
        assert bench.relay.ticks <= ticks + 1

    with_worker(scenario)


@pytest.mark.parametrize("ending", ["stop", "signal", "supervisor died"])
def test_it_drains_however_it_is_ended(ending: str) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        client = socket.create_connection(bench.listener.getsockname())
        await bench.relay.changed.wait()
        endings: dict[str, Callable[[], Any]] = {
            "stop": lambda: bench.channel.send({"type": "stop", "grace_ms": 1234}),
            "signal": lambda: bench.worker.stop(1234),
            "supervisor died": lambda: asyncio.ensure_future(bench.channel.close()),
        }
        endings[ending]()
        await asyncio.wait({bench.ended})
        assert bench.relay.drained_ms == (30_000 if ending == "supervisor died" else 1234)
        assert client.recv(1) == b""
        assert (bench.board.clients[0], bench.board.alive[0]) == (0, 0)
        client.close()

    with_worker(scenario)


def test_the_last_counters_are_not_lost() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.received("ready")
        bench.relay.counters = {"parses": 5}
        bench.worker.stop()
        assert (await bench.received("delta"))["parses"] == 5

    with_worker(scenario)


def test_descriptors_travel_as_options() -> None:
    inherited = Inherited(2, 3, 4, 5, (6, 7), (8, 9, 10))
    options = dict(option.removeprefix("--").split("=") for option in inherited.arguments())
    assert options == {
        "index": "2",
        "channel-fd": "3",
        "board-fd": "4",
        "inbox-fd": "5",
        "listen-fds": "6,7",
        "peer-fds": "8,9,10",
    }
    assert parse_fds(options["peer-fds"]) == (8, 9, 10)
    assert inherited.fds() == (3, 4, 5, 6, 7, 8, 9, 10)
