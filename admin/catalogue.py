"""Keeps the workers' catalogue as the shared database has it.

Until it could be read the catalogue is empty: then every statement goes to its owner and nothing is split,
which is right, if slow. What is created later is known here within seconds, and at once when it was created
through a worker, which counts such transactions on the board. While somebody holds a lock to change a table
it cannot be read: then the workers keep what they have. In between it asks every second whether the shared
database answers: whoever is on duty should hear of it from here, not from the services.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from pgshunt.config.model import Control
from pgshunt.migration.catalogue import read_catalogue, read_search_path
from pgshunt.migration.servers import Link, Server, ServerError
from pgshunt.routing.table import Catalogue, Endpoint

log = logging.getLogger("pgshunt.catalogue")

Result = TypeVar("Result")

READ_EVERY_S = 10.0
ASK_EVERY_S = 1.0
READ_S_MAX = 30.0
ANSWER_S_MAX = 3.0
SHARE_MAX = 0.1
"""Of the time, that is spent on reading after definitions, however many there are."""
FAILURES_TOLD: Final = 2
"""After so many in a row: a lock is mostly gone the next time."""

Report = Callable[[str, Mapping[str, Any]], object]
"""report(kind, detail): something for the event log."""


class CatalogueKeeper:
    """`on_change(catalogue)` is awaited for each new version, and when what it covers is all that is new;
    `error` says why the shared database cannot be used, `behind` why the catalogue could not be read; each is
    empty if it can, or could."""

    def __init__(
        self,
        shared: Endpoint,
        control: Control,
        on_change: Callable[[Catalogue], Awaitable[None]],
        report: Report,
        definitions: Callable[[], tuple[int, ...]] = tuple,
    ) -> None:
        """`report` hears when the shared database cannot be used any more, or for another reason, and when it
        can again. `definitions()` counts the transactions with DDL that each worker has seen end."""
        self.catalogue = Catalogue()
        self.error = "not asked yet"
        self.behind = ""
        self._failures = 0
        self._sqlstate = ""
        self._lost_s = 0.0
        self._server = Server(shared, control, "catalogue")
        self._on_change = on_change
        self._report = report
        self._definitions = definitions
        self._took_s = 0.0
        self._news = asyncio.Event()

    def look(self) -> None:
        """Sees whether something was defined: workers tell of what they count, and count that first."""
        if self._definitions() != self.catalogue.definitions:
            self._news.set()

    async def read(self, timeout_s: float = READ_S_MAX) -> bool:
        """Reads once; True when the catalogue differs from what it was. `error` or `behind` keeps a failure.

        Only what it is about counts for its version; that later definitions are in it as well does not.
        """
        began_s = time.monotonic()
        known = self.catalogue
        found = await self._found(
            partial(
                read_catalogue, version=known.version + 1, before=known.code, definitions=self._definitions()
            ),
            timeout_s,
        )
        self._took_s = time.monotonic() - began_s
        if found is None:
            return False
        if replace(found, version=known.version, definitions=known.definitions) == known:
            found = replace(known, definitions=found.definitions)
        if found == known:
            return False  # and the workers know that it is the same
        self.catalogue = found
        return True

    async def run(self) -> None:
        """Reads and asks again and again until cancelled."""
        read_s = time.monotonic()
        while True:
            if await self._wait_for_news(read_s):
                if await self.read():
                    await self._on_change(self.catalogue)
                read_s = time.monotonic()
            else:
                await self._answers()

    async def _wait_for_news(self, read_s: float) -> bool:
        """Waits until it is time to read again or, False, to ask; it was read last at `read_s`."""
        ask_s = time.monotonic() + ASK_EVERY_S
        while (now_s := time.monotonic()) < (due_s := read_s + self._pause_s()):
            if now_s >= ask_s:
                return False
            self._news.clear()
            try:
                async with asyncio.timeout(min(due_s, ask_s) - now_s):
                    await self._news.wait()
            except TimeoutError:
                continue
        return True

    def _pause_s(self) -> float:
        """How long after the last time to read again, as things are."""
        if self.error:
            return ASK_EVERY_S
        has_news = self._definitions() != self.catalogue.definitions
        return self._took_s * (1 / SHARE_MAX - 1) if has_news else READ_EVERY_S

    async def _found(self, read: Callable[[Link], Result], timeout_s: float) -> Result | None:
        """What was read; None if it could not be, or the shared database cannot be used."""
        try:
            found = await self._server.run(read, timeout_s)
        except Exception as error:  # whatever is wrong with what was read: what there is must be read again
            if not isinstance(error, ServerError):
                log.exception("defect in reading the catalogue")
            if await self._answers():
                self._is_behind(str(error) if isinstance(error, ServerError) else repr(error))
            return None
        self._is_back()
        if self._failures >= FAILURES_TOLD:
            self._report("catalogue_current", {})
        self.behind, self._failures = "", 0
        return found

    async def _answers(self) -> bool:
        """Whether the shared database can be used."""
        try:
            await self._server.run(lambda link: link.rows("SELECT 1"), ANSWER_S_MAX)
        except ServerError as error:
            self._lost(error)
            return False
        self._is_back()
        return True

    def _lost(self, error: ServerError) -> None:
        """Told once for each reason."""
        self.error = str(error)
        if error.sqlstate != self._sqlstate:
            self._lost_s = self._lost_s or time.monotonic()
            self._sqlstate = error.sqlstate
            self._report("shared_lost", {"reason": str(error), "remedy": _remedy(error)})

    def _is_back(self) -> None:
        self.error = ""
        if self._sqlstate:
            self._report("shared_back", {"after_s": round(time.monotonic() - self._lost_s, 1)})
            self._sqlstate, self._lost_s = "", 0.0

    def _is_behind(self, reason: str) -> None:
        self.behind = reason
        if not self.catalogue.version:
            self.error = reason  # clients would be served as if there were no code in it
        self._failures += 1
        if self._failures == FAILURES_TOLD:
            remedy = "see in pg_locks who holds what there; what was defined since is not known until then"
            self._report("catalogue_behind", {"reason": reason, "remedy": remedy})

    async def search_path_of(self, user: str) -> str | None:
        """As `read_search_path` has it. Raises ServerError."""
        return await self._server.run(partial(read_search_path, user=user), ANSWER_S_MAX)

    async def close(self) -> None:
        await self._server.close()


def _remedy(error: ServerError) -> str:
    if error.sqlstate.startswith("28"):
        return error.hint or "correct user and password under `control`, here or at the server, and restart"
    return "see to that server: its services have no other; pgshunt goes on trying"
