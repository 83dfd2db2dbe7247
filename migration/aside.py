"""Runs blocking work aside, one piece after another, in a daemon thread that is there while there is work.

A disk that hangs must hold up neither the event loop nor the end of the process. The threads of
`asyncio.to_thread` are few, shared by everybody, and waited for at exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class Crowded(Exception):
    """So many works wait already that one more is not taken, or the system has no thread for it."""


class Aside:
    """One thread at most; up to `waiting_max` works wait their turn."""

    def __init__(self, name: str, waiting_max: int = 1000) -> None:
        self._name = name
        self._waiting_max = waiting_max
        self._works: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._is_working = False

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Has the work done in its turn; a work that has not begun can be cancelled. Raises Crowded."""
        future: Future[Result] = Future()
        with self._changed:
            while self._works and self._works[-1][0].cancelled():
                self._works.pop()
            if len(self._works) >= self._waiting_max:
                raise Crowded(f"{len(self._works)} works wait for {self._name}")
            if not self._is_working:
                try:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                except RuntimeError as error:
                    raise Crowded(f"no thread for {self._name}: {error}") from error
                self._is_working = True
            self._works.append((future, work))
        return future

    async def run(self, work: Callable[[], Result]) -> Result:
        """What the work returns or raises. Cancelled, it no longer waits; a work that has begun goes on."""
        return await asyncio.wrap_future(self.submit(work))

    def drain(self, timeout_s: float) -> bool:
        """Blocks until all that was submitted is done; False if that takes longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_working, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._works:
                    self._is_working = False
                    self._changed.notify_all()
                    return
                future, work = self._works.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
                    future.set_exception(error)
