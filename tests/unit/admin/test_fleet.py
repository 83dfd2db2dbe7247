"""Workers are kept alive and on one table; real processes with a recording relay."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgshunt.admin import fleet
from pgshunt.admin.fleet import Fleet, FleetError, bind
from pgshunt.config.model import Config
from pgshunt.proxy.channel import Message
from pgshunt.routing.table import Catalogue, Endpoint, RoutingTable

WORKER = str(Path(__file__).with_name("fake_worker.py"))
ENDPOINT = Endpoint("shared", "shared", "127.0.0.1", 5432, "monolith", "primary")


def table(epoch: int) -> RoutingTable:
    return RoutingTable(epoch, (ENDPOINT,))


class Watched:
    """A fleet and what it reported, to be waited for."""

    def __init__(self, manner: str, workers: int) -> None:
        self.reports: list[tuple[str, Mapping[str, Any]]] = []
        self.messages: list[tuple[int, Message]] = []
        self.ended: list[int] = []
        self.fleet = Fleet(
            Config.model_validate(
                {
                    "version": 1,
                    "listen": {"port": 0, "workers": workers},
                    "shared": {"dbname": "monolith", "primary": {"host": "127.0.0.1"}},
                    "control": {"user": "pgshunt", "password": "hidden"},
                }
            ),
            table(1),
            Catalogue(),
            on_message=lambda index, message: self.messages.append((index, message)),
            on_ended=self.ended.append,
            report=lambda kind, detail: self.reports.append((kind, detail)),
            command=(sys.executable, WORKER, manner),
        )

    async def all_live(self) -> None:
        for member in self.fleet.members:
            await self.fleet._until_live(member)


def with_fleet(
    scenario: Callable[[Watched], Awaitable[None]], manner: str = "well", workers: int = 2
) -> None:
    async def main() -> None:
        watched = Watched(manner, workers)
        try:
            await asyncio.wait_for(scenario(watched), 60)
        finally:
            await watched.fleet.stop(0)
            watched.fleet.close()

    asyncio.run(main())


def test_every_worker_starts_and_acknowledges_a_new_table() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        await watched.all_live()
        assert [member.epoch for member in watched.fleet.members] == [1, 1]
        await watched.fleet.publish(table(2), Catalogue())
        assert [member.epoch for member in watched.fleet.members] == [2, 2]
        socket.create_connection(("127.0.0.1", watched.fleet.port)).close()

    with_fleet(scenario)


def test_a_catalogue_is_sent_once_to_each_worker() -> None:
    """It may be large, and a rollback must not wait until every worker has read it again."""
    first, second = Catalogue(version=1), Catalogue(version=2)
    later = replace(second, definitions=(3, 4))

    async def scenario(watched: Watched) -> None:
        watched.fleet.catalogue = first
        await watched.fleet.start()
        await watched.all_live()
        member, _ = watched.fleet.members
        assert member.channel is not None
        sent: list[Message] = []
        send = member.channel.send
        member.channel.send = lambda message: (sent.append(message), send(message))[1]  # type: ignore[method-assign]
        for epoch, catalogue in enumerate((first, first, second, later, later, first), start=2):
            await watched.fleet.publish(table(epoch), catalogue)
        assert [message["table"]["epoch"] for message in sent] == [2, 3, 4, 5, 6, 7]
        versions = [message["catalogue"]["version"] if "catalogue" in message else None for message in sent]
        assert versions == [None, None, 2, None, None, 1]
        assert [sent[place]["definitions"] for place in (1, 3, 4)] == [(), (3, 4), (3, 4)]
        assert [member.epoch for member in watched.fleet.members] == [7, 7]

    with_fleet(scenario)


def test_a_killed_worker_is_replaced_by_one_with_the_latest_table_and_the_other_does_not_notice() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        await watched.all_live()
        await watched.fleet.publish(table(5), Catalogue())
        first, second = watched.fleet.members
        assert second.channel is not None
        told: list[Message] = []
        second.channel.send = told.append  # type: ignore[method-assign]
        killed = first.pid
        os.kill(killed, signal.SIGKILL)
        while first.pid == killed or first.stage != "live":
            await first.moved.wait()
        assert told == [{"type": "worker_ended", "worker": 0}]
        assert (first.epoch, first.restarts, second.restarts) == (5, 1, 0)
        assert watched.ended == [0]
        assert watched.reports == [
            ("worker_ended", {"worker": 0, "pid": killed, "exit_code": -9}),
            ("worker_restarted", {"worker": 0, "pid": first.pid, "restarts": 1}),
        ]

    with_fleet(scenario)


def test_a_worker_that_does_not_acknowledge_is_killed_and_starts_again_with_the_table() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        await watched.all_live()
        deaf = watched.fleet.members[1]
        pid = deaf.pid
        await watched.fleet.publish(table(2), Catalogue())
        assert watched.fleet.members[0].epoch == 2
        assert ("worker_unresponsive", {"worker": 1, "pid": pid, "epoch": 2}) in watched.reports
        while deaf.stage != "live":
            await deaf.moved.wait()
        assert (deaf.epoch, deaf.restarts) == (2, 1)

    with_fleet(scenario, manner="deaf")


def test_a_fleet_that_cannot_start_says_so() -> None:
    async def scenario(watched: Watched) -> None:
        with pytest.raises(FleetError, match="3 times"):
            await watched.fleet.start()

    with_fleet(scenario, manner="dead", workers=1)


def test_a_worker_that_never_comes_to_serve_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "START_S_MAX", 0.3)

    async def scenario(watched: Watched) -> None:
        with pytest.raises(FleetError, match="3 times"):
            await watched.fleet.start()
        assert [kind for kind, _ in watched.reports[:2]] == ["worker_not_ready", "worker_ended"]

    with_fleet(scenario, manner="stuck", workers=1)


def test_killed_while_it_starts_it_waits_for_nobody() -> None:
    async def scenario(watched: Watched) -> None:
        starting = asyncio.ensure_future(watched.fleet.start())
        (member,) = watched.fleet.members
        while member.stage != "starting":
            await member.moved.wait()
        watched.fleet.kill()
        await asyncio.wait_for(starting, 20)

    with_fleet(scenario, workers=1)


def test_a_worker_that_was_being_started_at_the_stop_does_not_stay() -> None:
    async def scenario(watched: Watched) -> None:
        starting = asyncio.ensure_future(watched.fleet.start())
        await asyncio.sleep(0)  # the first step of its keeper
        await asyncio.sleep(0)  # the process is being made
        await asyncio.wait_for(watched.fleet.stop(60_000), 20)
        await starting

    with_fleet(scenario, workers=1)


def test_a_message_that_cannot_be_taken_costs_no_worker() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        (member,) = watched.fleet.members
        assert member.channel is not None
        watched.fleet._on_message = {}.__getitem__  # type: ignore[assignment]
        watched.fleet._take(member, member.channel, {"type": "delta"})
        assert [kind for kind, _ in watched.reports] == ["defect"]

    with_fleet(scenario, workers=1)


def test_a_worker_that_says_what_nobody_expects_is_replaced_like_any_other() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        (member,) = watched.fleet.members
        assert member.process is not None
        take, pid = watched.fleet._take, member.pid

        def lost(*_: object) -> None:
            watched.fleet._take = take  # type: ignore[method-assign]
            raise KeyError("epoch")

        watched.fleet._take = lost  # type: ignore[method-assign]
        await watched.fleet.publish(table(2), Catalogue())
        while member.pid == pid or member.stage != "live":
            await member.moved.wait()
        assert ("defect", {"worker": 0, "reason": "KeyError('epoch')"}) in watched.reports
        assert member.epoch == 2

    with_fleet(scenario, workers=1)


def test_a_stopped_worker_is_found_and_replaced() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        (member,) = watched.fleet.members
        pid = member.pid
        os.kill(pid, signal.SIGSTOP)
        for _ in range(2):
            watched.fleet.board.alive[0] = 1
            watched.fleet.check()
        while member.pid == pid or member.stage != "live":
            await member.moved.wait()
        assert watched.reports[0] == ("worker_silent", {"worker": 0, "pid": pid})

    with_fleet(scenario, workers=1)


def test_a_worker_that_was_stopped_together_with_us_is_not_killed() -> None:
    """A machine or container that was paused goes on: the first to look must not kill the others."""

    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        (member,) = watched.fleet.members
        now_ns = watched.fleet.board.alive[0]
        for _ in range(3):
            watched.fleet.board.alive[0] = 1
            watched.fleet.check()
            watched.fleet.board.alive[0] = now_ns
            watched.fleet.check()
        assert member.process is not None
        assert member.process.returncode is None
        assert watched.reports == []

    with_fleet(scenario, workers=1)


def test_an_acknowledgement_that_comes_behind_a_pause_of_the_whole_machine_is_taken() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        (member,) = watched.fleet.members
        loop = asyncio.get_running_loop()
        publishing = asyncio.ensure_future(watched.fleet.publish(table(2), Catalogue()))
        for _ in range(3):
            await asyncio.sleep(0)  # it is sent, and waited for
        clock, later_s = loop.time, 2 * fleet.ACK_S_MAX
        loop.time = lambda: clock() + later_s  # type: ignore[method-assign]
        await publishing
        assert (member.epoch, watched.reports) == (2, [])

    with_fleet(scenario, workers=1)


def test_it_is_ready_while_one_worker_ticks_and_the_kernel_has_room() -> None:
    async def scenario(watched: Watched) -> None:
        assert (watched.fleet.unready(), watched.fleet.missing()) == ("no worker is live", "")
        await watched.fleet.start()
        await watched.all_live()
        assert watched.fleet.missing() == ""
        first, second = watched.fleet.members
        first.stage = "draining"
        assert (watched.fleet.unready(), watched.fleet.missing()) == ("", "1 of 2 workers live")
        first.stage = "live"
        os.kill(first.pid, signal.SIGSTOP)
        watched.fleet.board.alive[first.index] = 1
        assert watched.fleet.unready() == ""
        os.kill(second.pid, signal.SIGSTOP)
        watched.fleet.board.alive[second.index] = 1
        assert watched.fleet.unready() == "no worker has ticked for 2 s"
        watched.fleet.kill()

    with_fleet(scenario)


def test_a_queue_of_clients_that_is_full_is_seen() -> None:
    (listener,) = bind("127.0.0.1", 0)
    listener.listen(1)
    with listener, socket.create_connection(listener.getsockname()):
        assert not fleet._is_full(listener)
        with socket.create_connection(listener.getsockname()):
            assert fleet._is_full(listener)


def test_stopping_drains_and_leaves_no_process() -> None:
    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        await watched.all_live()
        pids = [member.pid for member in watched.fleet.members]
        await watched.fleet.stop(1000)
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert [kind for kind, _ in watched.reports] == []

    with_fleet(scenario)


def test_neither_arguments_nor_environment_of_a_worker_hold_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_PASSWORD", "hidden")

    async def scenario(watched: Watched) -> None:
        await watched.fleet.start()
        process = Path("/proc") / str(watched.fleet.members[0].pid)
        for name in ("cmdline", "environ"):
            assert b"hidden" not in (process / name).read_bytes()

    with_fleet(scenario, workers=1)


def test_an_address_that_cannot_be_had_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind("127.0.0.1", port)
