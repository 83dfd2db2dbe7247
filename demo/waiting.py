"""Waits for what another process does, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.05

T = TypeVar("T")


class NotSeen(RuntimeError):
    """What was waited for did not happen in time."""


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float, every_s: float = POLL_S) -> T:
    """Polls until `look` returns something true, and returns that. Raises NotSeen."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise NotSeen(f"{what}: not seen in {timeout_s:g} s")
        time.sleep(every_s)
    return seen
