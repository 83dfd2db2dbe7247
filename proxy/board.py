"""The board: shared memory in which workers and supervisor read each other's numbers without asking.

It is one mapping of 64-bit cells, handed to the workers as a file descriptor. Every cell has exactly one
writer, and an aligned 64-bit store is atomic on every platform CPython runs on, so nothing is locked.

    freshness[endpoint]   CLOCK_MONOTONIC ns, 0 = unknown: this endpoint holds everything that was committed
                          at the owner before that moment. Written by the supervisor.
    clients[worker]       sessions the worker holds
    received[worker]      sockets the worker has taken out of its inbox, ever
    alive[worker]         CLOCK_MONOTONIC ns of the worker's last tick, 0 = not running
    definitions[worker]   transactions with DDL that the worker has seen end, ever
    withheld[endpoint]    why this endpoint takes no reads for now, a routing.reason.Reason; 0: it does take
                          them. Written by the supervisor.
    writes[worker][service]  CLOCK_MONOTONIC ns of the last commit with a write of the service that the worker
                          has seen, where sessions of some service must read what others have written.
                          Service n has place n + 1, place 0 is for writes that may be any service's.
    handed[from][to]      sockets `from` has put into the inbox of `to`, ever. Written by `from`.
    sessions[worker][user]  sessions the worker holds of a user whose number is limited

A socket that has been handed but not received is in flight: it counts as load of the worker it goes to, so
that a burst of connections is not sent whole to the one worker that was idle when it began.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import time

_CELL_BYTES = 8
# Sections start on a cache line of 64 bytes, so that writers of different sections do not collide.
_LINE_CELLS = 8

# Ten missed ticks of 100 ms: a worker that long silent is stopped or stuck and gets no new clients.
ALIVE_NS_MAX = 1_000_000_000


def _lines(cells: int) -> int:
    return -(-cells // _LINE_CELLS) * _LINE_CELLS


def _shared_file(size: int) -> int:
    """A file descriptor of `size` zero bytes that has no name."""
    if sys.platform == "linux":
        fd = os.memfd_create("pgshunt-board")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


class Board:
    """The mapping, with one memoryview of format 'q' per section.

    `fd` is None to make a new board (all zero), else the inherited descriptor of an existing one. Raises
    ValueError when that descriptor is not as large as a board of these dimensions.
    """

    def __init__(
        self, fd: int | None, *, workers: int, endpoints: int, users: int = 0, services: int = 0
    ) -> None:
        sections = (
            *(endpoints, workers, workers, workers, workers),
            *(endpoints, workers * (1 + services)),
            *(workers * workers, workers * users),
        )
        size = sum(map(_lines, sections)) * _CELL_BYTES
        self.fd = _shared_file(size) if fd is None else fd
        self.workers = workers
        self.endpoints = endpoints
        self.users = users
        self.services = 1 + services
        if os.fstat(self.fd).st_size != size:
            raise ValueError(f"board has {os.fstat(self.fd).st_size} bytes, expected {size}")
        memory = memoryview(mmap.mmap(self.fd, size)).cast("q")
        views = []
        start = 0
        for cells in sections:
            views.append(memory[start : start + cells])
            start += _lines(cells)
        self.freshness, self.clients, self.received, self.alive, self.definitions, *rest = views
        self.withheld, self.writes, self._handed, self._sessions = rest

    def handed(self, worker: int) -> memoryview[int]:
        """The row of `worker`: for each worker, the sockets it has handed to it."""
        return self._handed[worker * self.workers : (worker + 1) * self.workers]

    def handed_to(self, worker: int) -> int:
        """Sockets that anyone has put into the inbox of `worker`, ever."""
        return sum(self._handed[worker :: self.workers])

    def sessions_add(self, worker: int, user: int, change: int) -> int:
        """Counts sessions of a limited user that `worker` has taken or lost; returns those of all workers."""
        self._sessions[worker * self.users + user] += change
        return sum(self._sessions[user :: self.users])

    def load(self, worker: int) -> int:
        """Sessions the worker holds plus those on their way to it."""
        return self.clients[worker] + max(0, self.handed_to(worker) - self.received[worker])

    def clients_total(self) -> int:
        """Sessions of all workers, with those in flight: what max_client_conn is compared with."""
        return sum(self.load(worker) for worker in range(self.workers))

    def least_loaded(self, own: int, now_ns: int | None = None) -> int:
        """The live worker with the fewest sessions; `own` when it is among them (passing a socket costs)."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        best, best_load = own, self.load(own)
        for worker in range(self.workers):
            if worker != own and now_ns - self.alive[worker] < ALIVE_NS_MAX:
                load = self.load(worker)
                if load < best_load:
                    best, best_load = worker, load
        return best

    def vacate(self, worker: int) -> None:
        """The supervisor clears the cells of a worker that has ended; nobody else writes them now.

        What lies unread in its inbox is kept by the socketpair and goes to its successor.
        """
        self.clients[worker] = 0
        self.alive[worker] = 0
        for user in range(self.users):
            self._sessions[worker * self.users + user] = 0

    def close(self) -> None:
        """Closes the descriptor. The memory itself stays mapped as long as anyone holds a view of it."""
        os.close(self.fd)
