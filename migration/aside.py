"""Runs blocking work aside, one piece after another, in a daemon thread.

A disk that hangs must hold up neither the event loop nor the end of the process. The threads of
`asyncio.to_thread` are few, shared by everybody, and waited for at exit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class Aside:
    """One thread, started with its first work; any number of works wait their turn."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._works: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Has the work done in its turn. A work that has not begun can be cancelled."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._works.put((future, work))
        return future

    async def run(self, work: Callable[[], Result]) -> Result:
        """What the work returns or raises. Cancelled, it no longer waits; a work that has begun goes on."""
        return await asyncio.wrap_future(self.submit(work))

    def close(self) -> None:
        """Ends the thread after the works that wait; does not wait for it."""
        self._works.put(None)

    def _run(self) -> None:
        while (given := self._works.get()) is not None:
            future, work = given
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
                    future.set_exception(error)
