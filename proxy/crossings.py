"""Counts, in one worker, the statements and transactions that touch tables of more than one owner.

Called for these only. What was counted goes to the supervisor once a second; what is too much of it for one
second is counted as dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pgshunt.routing.crossing import Relations, holding, shown_text, written

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity
    from pgshunt.proxy.settings import Settings
    from pgshunt.routing._shapes import Entry

KINDS_MAX: Final = 256
"""Different crossings, callers told apart, that are kept until they are sent."""
SENT_S: Final = 1.0

_What = tuple["Entry", ...]


class Crossings:
    """`note` is called by the relay; `drain` gives the rows of a delta."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[tuple[_What, Identity, Settings], int] = {}
        self._dropped = 0
        self._sent_s = clock()

    def note(self, what: _What, identity: Identity, settings: Settings) -> None:
        """One statement, or those of a transaction that were each the first to write to their owner."""
        key = (what, identity, settings)
        calls = self._calls.get(key, 0)
        if calls or len(self._calls) < KINDS_MAX:
            self._calls[key] = calls + 1
        else:
            self._dropped += 1

    def drain(self, relations: Relations) -> dict[str, Any] | None:
        """What was noted since the last time, at most once a second; None when there is nothing to say.

        Rows: kind, text, tables read, tables written, user, application_name, calls.
        """
        now_s = self._clock()
        if not self._calls or now_s - self._sent_s < SENT_S:
            return None
        rows = [
            [*_described(what, relations), *_caller(identity, settings), calls]
            for (what, identity, settings), calls in self._calls.items()
        ]
        drained = {"crossings": rows, "crossings_dropped": self._dropped}
        self._calls, self._dropped, self._sent_s = {}, 0, now_s
        return drained


def _described(what: _What, relations: Relations) -> list[Any]:
    writes = holding({table for entry in what for table in written(entry.shape)}, relations)
    text = "; ".join(shown_text(entry.key) for entry in what)
    if len(what) > 1:
        return ["transaction", text, [], writes]
    return ["statement", text, holding(what[0].shape.reads, relations), writes]


def _caller(identity: Identity, settings: Settings) -> tuple[str, str]:
    logged_in_with = identity.parameters.get(b"application_name", b"").decode(errors="replace")
    user = identity.user.encode(errors="surrogateescape").decode(errors="replace")
    return user, settings.values.get("application_name", logged_in_with)
