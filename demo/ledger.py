"""Knows of every row the workload writes which values an answer may hold, and which not.

Each row is written by one connection only, so its owner knows it exactly. What the proxy promises is then:

- a session sees its own writes, always;
- everybody sees a write once it is older than `lag_ms_max`, and may see it from the moment it was sent;
- a write whose COMMIT was lost is either there or not, until its owner looks again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple


class Value(NamedTuple):
    """What is remembered of a row: both numbers only ever grow."""

    version: int
    details: int


NOTHING = Value(0, 0)


@dataclass(frozen=True, slots=True)
class Known:
    value: Value
    session: int  # the session that wrote or read it
    at: float  # monotonic seconds when it was known to be committed


@dataclass(slots=True)
class _Row:
    known: deque[Known] = field(default_factory=deque)
    attempted: Value = NOTHING


class Ledger:
    """The rows of one service, by key."""

    def __init__(self, lag_ms_max: float) -> None:
        self._lag_s = lag_ms_max / 1000
        self._rows: dict[int, _Row] = {}
        self._doubtful: set[int] = set()

    def settle(self, key: int, value: Value, session: int, now: float) -> None:
        """The owner has read the row where it is written: this, and nothing else, is its value."""
        row = self._rows.setdefault(key, _Row())
        row.known.append(Known(value, session, now))
        row.attempted = value
        self._doubtful.discard(key)

    def current(self, key: int) -> Value:
        """The last value known to be committed."""
        return self._rows[key].known[-1].value

    def is_doubtful(self, key: int) -> bool:
        """Whether the owner must look before it can write again."""
        return key in self._doubtful

    def attempt(self, key: int, details: int) -> Value:
        """The value that a write now sent will give the row: one more version, so many more details."""
        current = self.current(key)
        row = self._rows[key]
        row.attempted = Value(current.version + 1, current.details + details)
        return row.attempted

    def acknowledge(self, key: int, session: int, now: float) -> None:
        """The attempted write is committed."""
        row = self._rows[key]
        row.known.append(Known(row.attempted, session, now))
        while len(row.known) > 1 and row.known[1].at + self._lag_s < now:
            row.known.popleft()

    def undo(self, key: int) -> None:
        """The attempted write is known to be rolled back."""
        self._rows[key].attempted = self.current(key)

    def doubt(self, key: int) -> None:
        """Nobody knows whether the attempted write is committed."""
        self._doubtful.add(key)

    def lowest(self, key: int, session: int, now: float) -> Value:
        """The oldest value that a statement sent now by a session may see."""
        known = self._rows[key].known
        must = [seen for seen in known if seen.session == session or seen.at + self._lag_s < now]
        return must[-1].value if must else known[0].value

    def highest(self, key: int) -> Value:
        """The newest value that an answer arriving now may hold."""
        return self._rows[key].attempted
