"""Records one write transaction as the client sends it, for it to be run at the target and compared."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from pgshunt.protocol import messages
from pgshunt.proxy.verdict import Outcome, Statement, compare
from pgshunt.routing.shape import Kind, Shape

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity
    from pgshunt.proxy.shadow import Shadows

UNIT_BYTES_MAX = 256 * 1024

_MODIFIES = re.compile(
    rb"(?:\s|--[^\n]*+\n|(?>/\*.*?\*/))*+(?:insert|update|delete|merge|with)\b", re.IGNORECASE | re.DOTALL
)
_INSERT = re.compile(rb"\s*insert\b(?!.*\bon\s+conflict\b)", re.IGNORECASE | re.DOTALL)


class Unit:
    """One write transaction while it is recorded. Called by the relay for each of its messages."""

    def __init__(self, shadows: Shadows, service: int, identity: Identity) -> None:
        self._shadows = shadows
        self.service = service
        self.identity = identity
        self.began_ns = time.monotonic_ns()
        self.statements: list[Statement] = []
        self.tags: list[bytes] = []
        self.error: str | None = None
        self._bound: tuple[Shape, bytes, bytes | None] | None = None
        self._size = 0
        self._decidable = True
        self._ending: Kind | None = None
        self._run: asyncio.Future[Outcome | None] | None = None

    def query(self, shape: Shape, sql: bytes | None) -> None:
        """A simple query; None: too long to be kept."""
        if sql is None:
            self._decidable = False
        else:
            self._add(shape, sql, messages.query(sql))

    def bind(self, shape: Shape, parse_body: bytes, bind_rest: bytes | None) -> None:
        """Parse and Bind of the statement that the next Execute runs, without their names."""
        self._bound = (shape, parse_body, bind_rest)

    def executed(self, *, last_bound: bool) -> None:
        """The statement bound last is run, or (not `last_bound`) that of a portal with a name."""
        if self._bound is None or not last_bound:
            self._decidable = False
            return
        shape, parse_body, bind_rest = self._bound
        if bind_rest is None:
            self._decidable = False
            return
        frames = (
            _frame(b"P", b"\0" + parse_body)
            + _frame(b"B", b"\0\0" + bind_rest)
            + _frame(b"E", b"\0\0\0\0\0")
            + _frame(b"S", b"")
        )
        self._add(shape, parse_body.partition(b"\0")[0], frames)

    def _add(self, shape: Shape, sql: bytes, frames: bytes) -> None:
        if shape.kind in (Kind.COMMIT, Kind.ROLLBACK):
            self._ending = shape.kind
            return
        self._size += len(frames)
        # Nothing may run at the target that a ROLLBACK there does not undo or that might end our transaction.
        harmless = (
            shape.statements == 1
            and not shape.volatile
            and not shape.stateful
            and (
                (shape.kind is Kind.WRITE and bool(shape.writes) and _MODIFIES.match(sql) is not None)
                or (shape.kind is Kind.READ and bool(shape.reads))
            )
        )
        if not harmless or self._size > UNIT_BYTES_MAX or not self._shadows.holds(self.service, shape):
            self._decidable = False
        else:
            self.statements.append(
                Statement(shape, frames, not shape.reads and _INSERT.match(sql) is not None)
            )

    def sent(self, autocommit: bool) -> None:
        """A unit of the protocol went to the owner; if it is alone or a COMMIT, the transaction ends."""
        ends = autocommit or self._ending is Kind.COMMIT
        if ends and self._decidable and self.statements and self._run is None:
            self._run = self._shadows.launch(self)

    def observed(self, tag: bytes) -> None:
        """CommandComplete from the owner."""
        if len(self.tags) <= len(self.statements):
            self.tags.append(tag)

    def observed_error(self, sqlstate: bytes) -> None:
        self.error = sqlstate.decode(errors="replace")

    def settled(self) -> None:
        """The owner's transaction has ended."""
        if self._ending is Kind.ROLLBACK:
            return
        if self._run is None:
            self._shadows.count(self, "undecided")
            return
        if self._ending is Kind.COMMIT and self.tags and self.tags[-1] in (b"COMMIT", b"ROLLBACK"):
            self.tags.pop()
        self._run.add_done_callback(self._compare)

    def _compare(self, run: asyncio.Future[Outcome | None]) -> None:
        if run.cancelled():
            return
        outcome = run.result()
        if outcome is None:
            return
        verdict = compare(self.statements, self.tags, self.error, outcome)
        self._shadows.count(self, verdict.result, outcome.took_us)
        if verdict.result == "mismatch":
            self._shadows.mismatch(self.service, self.statements, verdict)


def _frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body
