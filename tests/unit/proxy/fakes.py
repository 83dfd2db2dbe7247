"""A relay that keeps a record instead of relaying: what worker and supervisor are tested with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from pgshunt.proxy.board import Board
from pgshunt.proxy.channel import Message
from pgshunt.routing.table import Catalogue, RoutingTable


class RecordingRelay:
    """Has the interface of proxy.worker.Relay. Adopted clients stay open until close()."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, index: int, board: Board | None, start: Message
    ) -> None:
        self.index = index
        self.start = start
        self.adopted: list[int] = []
        self.refused: list[int] = []
        self.cancelled: list[tuple[int, bytes]] = []
        self.notes: list[bytes] = []
        self.ended: list[int] = []
        self.epochs: list[int] = []
        self.catalogues: list[tuple[int, tuple[int, ...]]] = []
        self.counters: dict[str, Any] | None = None
        self.drained_ms: int | None = None
        self.ticks = 0
        self.on_urgent: Callable[[], None] | None = None
        self.on_foreign_cancel: Callable[[int, int, bytes], None] | None = None
        self.on_note: Callable[[int, bytes], bool] | None = None
        self.on_event: Callable[[Message], None] | None = None
        self.on_addition: Callable[[Message], None] | None = None
        self.answers: list[tuple[str, object]] = []
        self.changed = asyncio.Event()

    @property
    def clients(self) -> int:
        return len(self.adopted)

    def adopt(self, fd: int, *, refuse: bool = False) -> None:
        if refuse:
            self.refused.append(fd)
            os.close(fd)
        else:
            self.adopted.append(fd)
        self.changed.set()

    def cancel(self, process_id: int, secret_key: bytes) -> None:
        self.cancelled.append((process_id, secret_key))
        self.changed.set()

    def announce(self) -> None:
        """It has nothing to say to others."""

    def worker_ended(self, worker: int) -> None:
        self.ended.append(worker)
        self.changed.set()

    def take_note(self, note: bytes) -> None:
        self.notes.append(note)
        self.changed.set()

    def apply(self, table: RoutingTable, catalogue: Catalogue) -> None:
        self.epochs.append(table.epoch)
        self.catalogues.append((catalogue.version, catalogue.definitions))

    def added(self, question: str, error: object) -> None:
        self.answers.append((question, error))
        self.changed.set()

    def tick(self) -> None:
        self.ticks += 1

    def wake_on(self, fd: int) -> None:
        """Nothing here ever keeps the loop from its turn."""

    def drain_counters(self) -> dict[str, Any] | None:
        counters, self.counters = self.counters, None
        return counters

    async def drain(self, grace_ms: int) -> None:
        self.drained_ms = grace_ms
        self.close()

    def close(self) -> None:
        for fd in self.adopted:
            os.close(fd)
        self.adopted.clear()
