"""What one link still owes, in order: the plain-Python twin of the compiled reply queue.

The server answers strictly in the order of the requests, so a queue of expected replies says for every
message that arrives whether the client asked for it (forward), the proxy did (skip), or nobody (the
link is out of step and must be closed).
"""

from collections import deque
from enum import IntEnum


class Code(IntEnum):
    """What was asked."""

    PARSE = 1
    BIND = 2
    CLOSE = 3
    DESCRIBE_STATEMENT = 4
    DESCRIBE_PORTAL = 5
    EXECUTE = 6
    SYNC = 7
    QUERY = 8
    COPY_END = 9


class Action(IntEnum):
    """Who gets the answer."""

    FORWARD = 0
    SKIP = 1
    FAKE = 2


DESYNC = -1
POPPED = 2

ASYNCHRONOUS = frozenset(b"NSA")

# Per code: the messages that complete the answer, and those that may come before.
COMPLETES = {
    Code.PARSE: frozenset(b"1"),
    Code.BIND: frozenset(b"2"),
    Code.CLOSE: frozenset(b"3"),
    Code.DESCRIBE_STATEMENT: frozenset(b"Tn"),
    Code.DESCRIBE_PORTAL: frozenset(b"Tn"),
    Code.EXECUTE: frozenset(b"CsI"),
    Code.SYNC: frozenset(b"Z"),
    Code.QUERY: frozenset(b"Z"),
}
CONTINUES = {
    Code.DESCRIBE_STATEMENT: frozenset(b"t"),
    Code.EXECUTE: frozenset(b"DdcHG"),
    Code.QUERY: frozenset(range(256)) - frozenset(b"123tnsZ"),
}


class ReplyQueue:
    """The expected replies of one link."""

    def __init__(self) -> None:
        self._replies: deque[tuple[Code, Action]] = deque()

    def __len__(self) -> int:
        return len(self._replies)

    def push(self, code: int, action: int = Action.FORWARD) -> None:
        self._replies.append((Code(code), Action(action)))

    def head(self) -> tuple[int, int] | None:
        return self._replies[0] if self._replies else None

    def take(self, kind: int) -> int:
        """The verdict on a backend message: DESYNC, or the head's action, or-ed with POPPED."""
        if kind in ASYNCHRONOUS:
            return Action.FORWARD
        if not self._replies:
            return DESYNC
        code, action = self._replies[0]
        if kind in COMPLETES.get(code, ()):
            self._replies.popleft()
            return action | POPPED
        return action if kind in CONTINUES.get(code, ()) else DESYNC

    def fakes(self) -> list[int]:
        """Pops and returns the codes of the proxy's own answers that are due now."""
        due: list[int] = []
        while self._replies:
            code, action = self._replies[0]
            if code != Code.COPY_END:
                if action != Action.FAKE:
                    break
                due.append(code)
            self._replies.popleft()
        return due

    def fail(self) -> tuple[list[int], bool]:
        """An ErrorResponse arrived; see the compiled twin."""
        popped: list[int] = []
        if not self._replies or self._replies[0][0] in (Code.SYNC, Code.QUERY):
            return popped, True
        while self._replies:
            code, _ = self._replies[0]
            if code is Code.SYNC:
                return popped, True
            popped.append(code)
            self._replies.popleft()
        return popped, False

    def end_copy(self) -> None:
        """COPY FROM STDIN under the extended protocol is over; see the compiled twin."""
        while self._replies:
            if self._replies.popleft() == (Code.COPY_END, Action.FORWARD):
                return
