"""One worker process: runs a relay on uvloop and keeps it in step with the supervisor.

The supervisor starts it with inherited descriptors and nothing else; configuration and secrets come over the
channel. It ends in one of three ways: told to stop (drains, bounded by the given grace), SIGTERM (the same),
or the end of the channel, which means that the supervisor died: nobody would restart or re-route it, so it
stops accepting, lets its sessions finish what they do, and exits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import uvloop

from pgshunt.config.model import Config, ListenTls
from pgshunt.proxy.accept import Acceptor, Clients
from pgshunt.proxy.board import Board
from pgshunt.proxy.channel import Channel, Message
from pgshunt.routing.table import Catalogue, RoutingTable

TICK_S = 0.1
DELTA_S = 0.2  # between two deltas while nothing is urgent
URGENT_S = 0.01  # the shortest time between two deltas, however many calls fail
BACKLOG_BYTES_MAX = 256 * 1024  # a supervisor that reads no more does not make us hoard: counters just add up
GRACE_MS = 30_000


class Relay(Clients, Protocol):
    """The compiled hot path as the worker sees it (proxy/_relay.pyx)."""

    on_urgent: Callable[[], None] | None
    on_foreign_cancel: Callable[[int, int, bytes], None] | None
    on_note: Callable[[int, bytes], bool] | None
    on_event: Callable[[Message], None] | None
    on_addition: Callable[[Message], None] | None

    def added(self, question: str, error: tuple[str, str, str] | None) -> None:
        """Answers the session that asked for columns: they are there, or SQLSTATE, message and hint."""

    def apply(self, table: RoutingTable, catalogue: Catalogue) -> None:
        """Routes by this table from the next statement on."""

    def announce(self) -> None:
        """Lets the other workers know that this one begins."""

    def worker_ended(self, worker: int) -> None:
        """Waits for nothing more from that one."""

    def wake_on(self, fd: int) -> None:
        """Leaves the loop its turn as soon as something arrives at `fd`."""

    def tick(self) -> None:
        """Does what time brings, every 100 ms: timeouts, links that have been idle too long."""

    def drain_counters(self) -> dict[str, Any] | None:
        """What was counted since the last call, in the channel's terms; None when nothing changed."""

    def reload_tls(self, listen: ListenTls) -> None:
        """Meets new clients and servers with what the certificates' files hold now. Raises OSError."""

    async def drain(self, grace_ms: int) -> None:
        """Closes sessions as they become idle, those left after `grace_ms` with 57P01; close() ends it."""

    def close(self) -> None:
        """Closes everything at once."""


MakeRelay = Callable[[asyncio.AbstractEventLoop, int, Board, Message], Relay]


def _compiled_relay(loop: asyncio.AbstractEventLoop, index: int, board: Board, start: Message) -> Relay:
    from pgshunt.proxy._relay import Relay as CompiledRelay

    return CompiledRelay(loop, index, board, start)


@dataclass(frozen=True, slots=True)
class Inherited:
    """The descriptors a worker is started with. `peer_fds[i]` writes to the inbox of worker i."""

    index: int
    channel_fd: int
    board_fd: int
    inbox_fd: int
    listen_fds: tuple[int, ...]
    peer_fds: tuple[int, ...]

    def arguments(self) -> list[str]:
        """As command-line options of `pgshunt worker`; none of them is a secret."""
        return [
            f"--index={self.index}",
            f"--channel-fd={self.channel_fd}",
            f"--board-fd={self.board_fd}",
            f"--inbox-fd={self.inbox_fd}",
            f"--listen-fds={','.join(map(str, self.listen_fds))}",
            f"--peer-fds={','.join(map(str, self.peer_fds))}",
        ]

    def fds(self) -> tuple[int, ...]:
        """All of them, to be passed on."""
        return (self.channel_fd, self.board_fd, self.inbox_fd, *self.listen_fds, *self.peer_fds)


class Worker:
    """A relay, an acceptor and a channel, from the start message to the end."""

    def __init__(self, inherited: Inherited, channel: Channel, make_relay: MakeRelay) -> None:
        self._inherited = inherited
        self._channel = channel
        self._make_relay = make_relay
        self._loop = asyncio.get_running_loop()
        self._stopping: asyncio.Future[int] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._urgent: asyncio.TimerHandle | None = None
        self._sent_s = 0.0
        self._lag_s = 0.0  # how late the loop was, at worst since then

    def stop(self, grace_ms: int = GRACE_MS) -> None:
        """Asks the worker to drain and end. The second time: now."""
        if not self._stopping.done():
            self._stopping.set_result(grace_ms)
        else:
            self._relay.close()

    async def start(self) -> bool:
        """Says hello, sets up by the start message and accepts; False when the supervisor ended before that.

        The start message is the answer to the hello, so that what it says is not old when it is read.
        """
        self._channel.send({"type": "hello", "pid": os.getpid()})
        start = await self._channel.receive()
        if start is None:
            return False
        self._set_up(start)
        self._channel.send({"type": "ready", "pid": os.getpid(), "epoch": start["table"]["epoch"]})
        return True

    async def run(self) -> None:
        """Serves until told to stop, then drains. Raises what went wrong with the supervisor's messages."""
        obeying = asyncio.ensure_future(self._obey())
        try:
            grace_ms = await self._stopping
            self._acceptor.stop()
            await self._relay.drain(grace_ms)
        finally:
            self._tear_down()
            await self._channel.flush()
            if not obeying.cancel():
                obeying.result()

    def _set_up(self, start: Message) -> None:
        index = self._inherited.index
        peers = [socket.socket(fileno=fd) for fd in self._inherited.peer_fds]
        config = Config.model_validate(start["config"])
        self._board = Board(
            self._inherited.board_fd,
            workers=len(peers),
            endpoints=len(start["table"]["endpoints"]),
            users=len(config.pools.limited_users),
            services=len(start["table"]["services"]),
        )
        self._catalogue = Catalogue.from_dict(start["catalogue"])
        self._relay = self._make_relay(
            self._loop, index, self._board, {**start, "catalogue": self._catalogue}
        )
        self._acceptor = Acceptor(
            self._loop,
            index,
            self._board,
            self._relay,
            listeners=[socket.socket(fileno=fd) for fd in self._inherited.listen_fds],
            inbox=socket.socket(fileno=self._inherited.inbox_fd),
            peers=peers,
            clients_max=config.max_client_conn,
            on_exhausted=self._report_exhausted,
        )
        self._relay.on_urgent = self._send_soon
        self._relay.on_foreign_cancel = self._acceptor.pass_cancel
        self._relay.on_note = self._acceptor.pass_note
        self._relay.announce()
        self._relay.on_event = self._send_event
        self._relay.on_addition = self._channel.send  # never dropped: a session waits for the answer
        for fd in (*self._inherited.listen_fds, self._inherited.inbox_fd, self._inherited.channel_fd):
            self._relay.wake_on(fd)
        self._tick(self._loop.time())
        self._acceptor.start()

    def _tear_down(self) -> None:
        """The last counters still reach the supervisor; then the board shows an empty place."""
        for timer in (self._timer, self._urgent):
            if timer is not None:
                timer.cancel()
        self._acceptor.close()
        self._send_delta()
        self._relay.close()
        self._board.clients[self._inherited.index] = 0
        self._board.alive[self._inherited.index] = 0

    # -- what the supervisor says -----------------------------------------------------------------------

    async def _obey(self) -> None:
        """Does what the supervisor says, until it says no more or something that is no message."""
        try:
            while (message := await self._channel.receive()) is not None:
                if message["type"] == "table":
                    self._apply(message)
                elif message["type"] == "added":
                    self._relay.added(message["question"], message["error"])
                elif message["type"] == "tls":
                    self._reload_tls(message)
                elif message["type"] == "worker_ended":
                    self._relay.worker_ended(message["worker"])
                elif message["type"] == "stop":
                    self.stop(message["grace_ms"])
        finally:
            if not self._stopping.done():
                self._stopping.set_result(GRACE_MS)

    def _apply(self, message: Message) -> None:
        table = RoutingTable.from_dict(message["table"])
        self._send_delta()  # what the old table decided is told before it is said to be gone
        if "catalogue" in message:
            self._catalogue = Catalogue.from_dict(message["catalogue"])
        else:
            self._catalogue = replace(self._catalogue, definitions=tuple(message["definitions"]))
        self._relay.apply(table, self._catalogue)
        self._channel.send({"type": "ack", "epoch": table.epoch})

    def _reload_tls(self, message: Message) -> None:
        """The supervisor has tried the files; a worker that still cannot use them keeps what it has."""
        try:
            self._relay.reload_tls(ListenTls.model_validate(message["listen"]))
        except OSError as error:
            self._channel.send({"type": "event", "kind": "tls_reload_failed", "reason": str(error)})

    # -- what it reports --------------------------------------------------------------------------------

    def _tick(self, due_s: float) -> None:
        """Every 100 ms. `due_s` is when it should have run: the difference is how late the loop is."""
        now_s = self._loop.time()
        next_s = max(due_s + TICK_S, now_s)
        self._timer = self._loop.call_at(next_s, self._tick, next_s)  # first: no fault may end the ticking
        self._relay.tick()
        self._board.clients[self._inherited.index] = self._relay.clients
        # Zero from the stop on, so that nobody passes us a client any more.
        self._board.alive[self._inherited.index] = 0 if self._stopping.done() else time.monotonic_ns()
        self._lag_s = max(self._lag_s, now_s - due_s)
        if now_s - self._sent_s > DELTA_S - TICK_S / 2:
            self._send_delta()

    def _send_soon(self) -> None:
        """The relay counted something that must not wait for the tick. Called any number of times."""
        if self._urgent is None:
            self._urgent = self._loop.call_at(
                max(self._loop.time(), self._sent_s + URGENT_S), self._send_delta
            )

    def _send_delta(self) -> None:
        self._urgent = None
        if self._channel.backlog_bytes > BACKLOG_BYTES_MAX:
            return
        delta = self._relay.drain_counters()
        if delta:
            self._sent_s = self._loop.time()
            self._channel.send(
                {"type": "delta", "index": self._inherited.index, **delta, "loop_lag_s": self._lag_s}
            )
            self._lag_s = 0.0

    def _send_event(self, event: Message) -> None:
        """What a supervisor that reads no more will never see is not hoarded for it."""
        if self._channel.backlog_bytes <= BACKLOG_BYTES_MAX:
            self._channel.send(event)

    def _report_exhausted(self, error: OSError) -> None:
        self._send_event({"type": "event", "kind": "accept_paused", "reason": error.strerror})


async def serve(inherited: Inherited, make_relay: MakeRelay = _compiled_relay) -> None:
    """Runs the worker on the current loop until it ends."""
    channel = await Channel.open(socket.socket(fileno=inherited.channel_fd))
    worker = Worker(inherited, channel, make_relay)
    try:
        if await worker.start():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
            await worker.run()
    finally:
        await channel.close()


def main(inherited: Inherited, make_relay: MakeRelay = _compiled_relay) -> None:
    """The whole life of a worker process. Ctrl-C in a terminal reaches us too: it is the supervisor's."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    uvloop.run(serve(inherited, make_relay))


def parse_fds(text: str) -> tuple[int, ...]:
    """ "3,4,5" → (3, 4, 5). Raises ValueError."""
    return tuple(int(fd) for fd in text.split(",") if fd)
