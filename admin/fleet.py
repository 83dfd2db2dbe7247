"""Keeps the worker processes running and all of them on the same routing table.

It owns what must outlive a worker: the listening sockets, the board and the inboxes. A worker that ends is
replaced, with a pause that doubles while it keeps ending early; one that does not acknowledge a table in time
is killed, because a worker that routes by an old table would be worse than none, and so is one that does not
come to serve, or no longer ticks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pgshunt.admin.words import counted
from pgshunt.config.model import Config
from pgshunt.config.values import WORKERS_MAX
from pgshunt.proxy.board import Board
from pgshunt.proxy.channel import Channel, ChannelError, Message
from pgshunt.proxy.worker import Inherited
from pgshunt.routing.table import Catalogue, RoutingTable

log = logging.getLogger("pgshunt.fleet")

ACK_S_MAX = 2.0
ACK_PARTS = 4
"""In so many parts it is waited for: a pause of this whole machine, in which clocks go on, takes one."""
SILENT_S_MAX = 10.0
TICKED_S_MAX = 2.0  # a worker ticks every 100 ms
START_S_MAX = 30.0  # a machine without a core to spare may take seconds to import
PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 5.0
STARTS_MAX = 3
HEALTHY_S = 10.0  # a worker that lived this long ended for a new reason: the pause starts over
BACKLOG = 4096  # the kernel lowers it to net.core.somaxconn

WORKER_COMMAND = (sys.executable, "-m", "pgshunt", "worker")

# Secrets may be in the environment under any name, so a worker gets only what an interpreter needs.
_PASSED_ON = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})
_PASSED_ON_PREFIXES = ("LC_", "PYTHON", "COV_", "COVERAGE_")

_TCP_INFO = struct.Struct("=24x2I")  # up to tcpi_unacked and tcpi_sacked

Stage = Literal["starting", "live", "ended"]
Report = Callable[[str, Mapping[str, Any]], object]
"""report(kind, detail): something for the event log."""


@dataclass(slots=True)
class Member:
    """One worker's place: its process and channel while there is one, and how it has fared."""

    index: int
    stage: Stage = "ended"
    pid: int = 0
    epoch: int = 0
    restarts: int = 0
    started_s: float = 0.0
    pause_s: float = PAUSE_S_MIN
    channel: Channel | None = None
    process: asyncio.subprocess.Process | None = None
    greeted: bool = False
    catalogue: Catalogue | None = None  # that it was sent last
    silent: bool = False  # at the last check
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # set at each change of epoch or stage

    def kill(self) -> None:
        """SIGKILL, unless the process has ended."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of the host, on one port. Raises OSError, naming the address.

    Accepted sockets inherit the options set here (Linux), which saves a call for each client.
    """
    sockets: list[socket.socket] = []
    addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound = sockets[0].getsockname()[1] if sockets else port
            sock.bind((address[0], bound, *address[2:]))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            for opened in (sock, *sockets):
                opened.close()
            raise OSError(error.errno, f"cannot listen on {address[0]}:{port}: {error.strerror}") from error
        sockets.append(sock)
    return sockets


class FleetError(Exception):
    """No worker can be started; what a worker said about it is on standard error."""


class Fleet:
    """All workers. `on_message(index, message)` gets their deltas and events, `on_ended(index)` their end.

    Raises OSError when the listening address cannot be had.
    """

    def __init__(
        self,
        config: Config,
        table: RoutingTable,
        catalogue: Catalogue,
        *,
        on_message: Callable[[int, Message], None],
        on_ended: Callable[[int], None],
        report: Report,
        command: Sequence[str] = WORKER_COMMAND,
        login_secret: bytes = b"",
    ) -> None:
        """`login_secret` is what the workers make the salts of users from who do not exist."""
        self.config = config
        self.table = table
        self.catalogue = catalogue
        self._on_message = on_message
        self._on_ended = on_ended
        self._report = report
        self._command = command
        self._login_secret = login_secret or secrets.token_bytes(32)
        count = config.listen.workers or min(os.cpu_count() or 1, WORKERS_MAX)
        self.listeners = bind(config.listen.host, config.listen.port)
        self.port = int(self.listeners[0].getsockname()[1])
        """Where clients connect; of interest when the configuration says 0."""
        self.board = Board(
            None,
            workers=count,
            endpoints=len(table.endpoints),
            users=len(config.pools.limited_users),
            services=len(table.services),
        )
        self.members = [Member(index) for index in range(count)]
        self._inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in self.members]
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def live(self) -> int:
        return sum(member.stage == "live" for member in self.members)

    async def start(self) -> None:
        """Starts all workers; returns when the first one serves clients, or the fleet is to stop.

        Raises FleetError when none can.
        """
        self._keepers = [asyncio.ensure_future(self._keep(member)) for member in self.members]
        waits = [asyncio.ensure_future(self._until_live(member)) for member in self.members]
        done, late = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in late:
            wait.cancel()
        for wait in done:
            wait.result()

    async def publish(self, table: RoutingTable, catalogue: Catalogue) -> float:
        """Makes every worker route by this table; returns the seconds it took.

        When it returns, no worker uses an older one: a worker that has not acknowledged after 2 s was killed.
        """
        began_s = time.monotonic()
        # Sent without waiting for anything, so that a worker that is slow to acknowledge one table delays the
        # next one for nobody else.
        self.table, self.catalogue = table, catalogue
        told = [member for member in self.members if member.greeted]
        # A large catalogue takes a worker long to read, and its clients wait meanwhile: once is enough.
        message: Message = {"type": "table", "table": table.to_dict()}
        brief = message | {"definitions": catalogue.definitions}
        whole = None
        for member in told:
            assert member.channel is not None
            known = member.catalogue
            if known is not None and replace(known, definitions=catalogue.definitions) == catalogue:
                member.channel.send(brief)
            else:
                whole = whole or message | {"catalogue": catalogue.to_dict()}
                member.channel.send(whole)
            member.catalogue = catalogue
        await asyncio.gather(*(self._until_acknowledged(member, table.epoch) for member in told))
        return time.monotonic() - began_s

    def tell(self, worker: int, message: Message) -> None:
        """Sends something to one worker; if it has just ended, nobody waits for it."""
        member = self.members[worker]
        if member.greeted and member.channel is not None:
            member.channel.send(message)

    def reload(self, config: Config) -> None:
        """Has every worker read its certificates again, and meet clients with those of this configuration."""
        self.config = config
        message = {"type": "tls", "listen": config.listen.tls.model_dump(mode="json", exclude_none=True)}
        for member in self.members:
            if member.greeted and member.channel is not None:
                member.channel.send(message)

    def unready(self) -> str:
        """Why a client that connects now would not be served; empty when it would be.

        One worker is enough: all of them accept on the same sockets. It must have ticked lately, and the
        kernel must have room for one more client that waits to be accepted.
        """
        if not self.live:
            return "no worker is live"
        lately_ns = time.monotonic_ns() - int(TICKED_S_MAX * 1e9)
        ticked = [self.board.alive[member.index] for member in self.members if member.stage == "live"]
        if max(ticked) < lately_ns:
            return f"no worker has ticked for {TICKED_S_MAX:g} s"
        if any(_is_full(listener) for listener in self.listeners):
            return "the queue of clients that wait to be accepted is full"
        return ""

    def missing(self) -> str:
        """How many workers are live while others are missing; empty if all are, or none: see `unready`."""
        if 0 < self.live < len(self.members):
            return f"{self.live} of {counted(len(self.members), 'worker')} live"
        return ""

    def check(self) -> None:
        """Kills workers that have not ticked for 10 s: stopped, or caught in something endless.

        One that was found so for the first time may have been stopped together with us.
        """
        silent_ns = time.monotonic_ns() - int(SILENT_S_MAX * 1e9)
        for member in self.members:
            before = member.silent
            member.silent = member.stage == "live" and 0 < self.board.alive[member.index] < silent_ns
            if before and member.silent:
                self._report("worker_silent", {"worker": member.index, "pid": member.pid})
                member.kill()

    async def stop(self, grace_ms: int) -> None:
        """Drains all workers and waits for them to end; those left 2 s after the grace are killed."""
        self._stopping = True
        for listener in self.listeners:
            listener.close()
        for member in self.members:
            if member.greeted and member.channel is not None:
                member.channel.send({"type": "stop", "grace_ms": grace_ms})
            elif member.stage == "starting":
                member.kill()
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=grace_ms / 1000 + ACK_S_MAX)
            self.kill()
            if late:
                await asyncio.wait(late)

    def kill(self) -> None:
        """SIGKILL to every worker: for SIGQUIT, and for those that do not drain. None is replaced."""
        self._stopping = True
        for member in self.members:
            member.kill()
            self._move(member, member.stage, member.epoch)  # whoever waits for it looks again

    def close(self) -> None:
        """Gives back the descriptors; after `stop` or `kill`."""
        for keeper in self._keepers:
            keeper.cancel()
        for sock in (*self.listeners, *(end for pair in self._inboxes for end in pair)):
            sock.close()
        self.board.close()

    # -- one worker -----------------------------------------------------------------------------------

    async def _keep(self, member: Member) -> None:
        """Runs one worker after another in this place until the fleet stops."""
        while not self._stopping:
            try:
                await self._live(member)
            except OSError as error:  # no process or no descriptors to be had
                self._report("worker_not_started", {"worker": member.index, "reason": str(error)})
            except Exception as error:  # whatever it is: without its keeper the worker would stay away
                log.exception("defect in keeping worker %d", member.index)
                self._report("defect", {"worker": member.index, "reason": repr(error)})
            if not self._stopping:
                lived_s = time.monotonic() - member.started_s
                if lived_s > HEALTHY_S:
                    member.pause_s = PAUSE_S_MIN
                await asyncio.sleep(member.pause_s)
                member.pause_s = min(2 * member.pause_s, PAUSE_S_MAX)
                member.restarts += 1

    async def _live(self, member: Member) -> None:
        """The life of one worker process, from its start to its end."""
        self.board.vacate(member.index)
        member.started_s = time.monotonic()
        late = asyncio.get_running_loop().call_later(START_S_MAX, self._end_late_start, member)
        try:
            await self._spawn(member)
            await self._listen(member)
        finally:
            late.cancel()
            await self._bury(member)

    def _end_late_start(self, member: Member) -> None:
        if member.stage == "starting":
            self._report("worker_not_ready", {"worker": member.index, "pid": member.pid})
            member.kill()

    async def _spawn(self, member: Member) -> None:
        ours, theirs = socket.socketpair()
        member.channel = await Channel.open(ours)
        inherited = Inherited(
            index=member.index,
            channel_fd=theirs.fileno(),
            board_fd=self.board.fd,
            inbox_fd=self._inboxes[member.index][0].fileno(),
            listen_fds=tuple(listener.fileno() for listener in self.listeners),
            peer_fds=tuple(write.fileno() for _, write in self._inboxes),
        )
        with theirs:
            member.process = await asyncio.create_subprocess_exec(
                *self._command,
                *inherited.arguments(),
                pass_fds=inherited.fds(),
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(),
            )
        member.pid = member.process.pid
        self._move(member, "starting", 0)

    async def _listen(self, member: Member) -> None:
        """Answers the hello, and takes what the worker says until its channel ends."""
        assert member.channel is not None
        try:
            while (message := await member.channel.receive()) is not None:
                self._take(member, member.channel, message)
        except ChannelError as error:
            self._report("worker_garbled", {"worker": member.index, "pid": member.pid, "reason": str(error)})
            member.kill()

    def _take(self, member: Member, channel: Channel, message: Message) -> None:
        kind = message["type"]
        if kind == "hello" and self._stopping:
            member.kill()  # it was being started when the others were told to stop
        elif kind == "hello":
            channel.send(
                {
                    "type": "start",
                    "table": self.table.to_dict(),
                    "catalogue": self.catalogue.to_dict(),
                    "config": self.config.dump_revealed(),
                    "login_secret": self._login_secret.hex(),
                }
            )
            member.greeted, member.catalogue = True, self.catalogue
        elif kind == "ready":
            self._move(member, "live", message["epoch"])
            if member.restarts:
                detail = {"worker": member.index, "pid": member.pid, "restarts": member.restarts}
                self._report("worker_restarted", detail)
        elif kind == "ack":
            self._move(member, member.stage, message["epoch"])
        else:
            try:
                self._on_message(member.index, message)
            except Exception as error:  # a worker is worth more than what it counted
                log.exception("defect in taking %r of worker %d", kind, member.index)
                self._report("defect", {"worker": member.index, "reason": repr(error)})

    async def _bury(self, member: Member) -> None:
        """The channel has ended, so the process is ending; one that is not is no use to anyone."""
        member.greeted = False
        for other in self.members:
            if other.greeted and other.channel is not None:
                other.channel.send({"type": "worker_ended", "worker": member.index})
        code: int | None = None
        if member.process is not None:
            try:
                code = await asyncio.wait_for(member.process.wait(), ACK_S_MAX)
            except TimeoutError:
                member.kill()
                code = await member.process.wait()
        if member.channel is not None:
            await member.channel.close()
        member.channel = member.process = None
        self._move(member, "ended", 0)
        self.board.vacate(member.index)
        self._on_ended(member.index)
        if not self._stopping:
            self._report("worker_ended", {"worker": member.index, "pid": member.pid, "exit_code": code})

    # -- small things ---------------------------------------------------------------------------------

    @staticmethod
    def _move(member: Member, stage: Stage, epoch: int) -> None:
        member.stage, member.epoch = stage, epoch
        moved, member.moved = member.moved, asyncio.Event()
        moved.set()

    async def _until_live(self, member: Member) -> None:
        """Raises FleetError when the worker has ended STARTS_MAX times before it served."""
        while member.stage != "live" and not self._stopping:
            if member.restarts >= STARTS_MAX:
                raise FleetError(
                    f"worker {member.index} ended {member.restarts} times before it served a client"
                )
            await member.moved.wait()

    async def _until_acknowledged(self, member: Member, epoch: int) -> None:
        """Returns when the worker routes by this epoch or has ended."""
        pid = member.pid

        async def acknowledged() -> None:
            while member.stage != "ended" and member.pid == pid and member.epoch < epoch:
                await member.moved.wait()

        for _ in range(ACK_PARTS):
            with suppress(TimeoutError):
                await asyncio.wait_for(acknowledged(), ACK_S_MAX / ACK_PARTS)
                return
        self._report("worker_unresponsive", {"worker": member.index, "pid": pid, "epoch": epoch})
        member.kill()
        await acknowledged()


def _is_full(listener: socket.socket) -> bool:
    """Of a listening socket, Linux's tcp_info tells how many wait (tcpi_unacked) and may (tcpi_sacked)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    waiting, waiting_max = _TCP_INFO.unpack(info)
    return bool(waiting > waiting_max)


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
