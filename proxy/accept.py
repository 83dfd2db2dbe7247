"""Takes clients from the listening sockets and gives each to the live worker that has the fewest.

All workers accept from the same inherited sockets. Connections live for hours, so chance would leave one
worker with most of them: the one that accepts passes the socket (SCM_RIGHTS) into the inbox of the least
loaded. A cancel request, which arrives as a connection of its own, reaches its worker in the same way.

An inbox is a pair of datagram sockets made by the supervisor: its worker reads one end, all others write to
the other, and both ends outlive the worker: what lies unread goes to its successor.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pgshunt.proxy.board import Board

ACCEPTS_MAX = 64  # per wake-up, so that a storm of connects does not hold up the sessions there are
PAUSE_S = 0.1

# What ends by itself when sessions close or memory returns. The socket stays readable, so without a pause
# the loop would spin on it.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# The first byte of a datagram. A cancel goes on with the process id (4 bytes) and the secret key: 4 bytes in
# protocol 3.0, up to 256 in 3.2. A note is what proxy/signals.py makes of it.
_CLIENT, _CANCEL, _NOTE = b"c", b"x", b"n"
_DATAGRAM_BYTES_MAX = 512


def address_of(fd: int) -> str:
    """Where a connection comes from, without its port; empty once the other side has gone."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            return str(connection.getpeername()[0])
    except OSError:
        return ""


class Clients(Protocol):
    """What the acceptor needs of a relay."""

    clients: int

    def adopt(self, fd: int, *, refuse: bool = False) -> None:
        """Takes over a connected non-blocking client; with `refuse` it gets FATAL 53300 and is closed."""

    def cancel(self, process_id: int, secret_key: bytes) -> object:
        """Cancels what the session with this key is running here; silently nothing when there is none."""

    def take_note(self, note: bytes) -> None:
        """Another worker's relay asks or answers."""


class Acceptor:
    """Runs on the worker's event loop between `start` and `stop`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        index: int,
        board: Board,
        relay: Clients,
        *,
        listeners: Sequence[socket.socket],
        inbox: socket.socket,
        peers: Sequence[socket.socket],
        clients_max: int,
        on_exhausted: Callable[[OSError], None],
    ) -> None:
        self.clients_max = clients_max
        self._loop = loop
        self._index = index
        self._board = board
        self._relay = relay
        self._listeners = listeners
        self._inbox = inbox
        self._peers = peers
        self._on_exhausted = on_exhausted
        self._handed = board.handed(index)
        self._accepting = False

    def start(self) -> None:
        """Begins to accept, and to take what others pass."""
        for sock in (*self._listeners, self._inbox, *self._peers):
            sock.setblocking(False)
        while self._take():
            pass
        # What a predecessor took without counting it is lost with it: nothing is on its way here now.
        self._board.received[self._index] = self._board.handed_to(self._index)
        self._loop.add_reader(self._inbox.fileno(), self._receive)
        self._accepting = True
        self._listen()

    def stop(self) -> None:
        """Accepts nothing more and lets go of the listening sockets. The inbox stays open until `close`."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())
                listener.close()

    def close(self) -> None:
        """Takes nothing from the inbox any more."""
        self._loop.remove_reader(self._inbox.fileno())

    def pass_cancel(self, worker: int, process_id: int, secret_key: bytes) -> None:
        """Sends a cancel request on to the worker whose session it names. A full inbox loses it."""
        self._send(worker, _CANCEL + process_id.to_bytes(4, "big") + secret_key)

    def pass_note(self, worker: int, note: bytes) -> bool:
        """Sends a note to another worker's relay; False if its inbox is full, or there is no such worker."""
        return self._send(worker, _NOTE + note)

    def _send(self, worker: int, datagram: bytes) -> bool:
        if not 0 <= worker < len(self._peers):
            return False
        try:
            self._peers[worker].send(datagram)
        except OSError:
            return False
        return True

    # -- accepting ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._accepting:
            for listener in self._listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return  # another worker was quicker, or the queue is empty
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # this client is gone (ECONNABORTED, or an error of its network)
                self._pause()
                self._on_exhausted(error)
                return
            client.setblocking(False)  # not inherited from the listener; it does travel with the descriptor
            self._place(client.detach())

    def _pause(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
        self._loop.call_later(PAUSE_S, self._listen)

    def _place(self, fd: int) -> None:
        """Decides who serves a new client: too many, us, or another worker."""
        if self._board.clients_total() >= self.clients_max:
            self._relay.adopt(fd, refuse=True)
            return
        worker = self._board.least_loaded(self._index, time.monotonic_ns())
        if worker == self._index or not self._hand(fd, worker):
            self._keep(fd)

    def _hand(self, fd: int, worker: int) -> bool:
        """Puts the socket into an inbox; False when that is full or broken, and the socket is still ours."""
        # Counted first: the receiver may be quicker than we are and never counts more than was handed.
        self._handed[worker] += 1
        try:
            socket.send_fds(self._peers[worker], [_CLIENT], [fd])
        except OSError:
            self._handed[worker] -= 1
            return False
        os.close(fd)
        return True

    def _keep(self, fd: int) -> None:
        self._relay.adopt(fd)
        self._board.clients[self._index] = self._relay.clients

    # -- the inbox ------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(ACCEPTS_MAX):
            if not self._take():
                return

    def _take(self) -> bool:
        """Takes one datagram; False when there is none."""
        try:
            body, fds, _, _ = socket.recv_fds(self._inbox, _DATAGRAM_BYTES_MAX, 1)
        except BlockingIOError:
            return False
        if body == _CLIENT:
            self._board.received[self._index] += 1
            # Without a descriptor: the kernel had none left for us (EMFILE), and has closed the client.
            for fd in fds:
                self._keep(fd)
        elif body[:1] == _NOTE:
            self._relay.take_note(body[1:])
        else:
            self._relay.cancel(int.from_bytes(body[1:5], "big"), body[5:])
        return True
