"""Asks the databases whether they answer, so that one that is down is found when no traffic shows it.

Each is asked in a thread of its own, which also takes the time: how late our event loop is says nothing about
a database. A thread that is late itself is late for both sides, and then nothing is decided.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from pgshunt.admin.watch import Watch
from pgshunt.config.model import Control
from pgshunt.migration.aside import Aside
from pgshunt.migration.servers import Link, ServerError, Unreachable, connect
from pgshunt.routing.table import Endpoint

PROBE_S = 0.2
# Longer than the period: on a machine without a core to spare a healthy server may take that long at times.
ANSWER_S = 0.5
# A login costs us more than the server, so it may take longer: once it is through, questions are quick.
LOGIN_S = 2.0

log = logging.getLogger("pgshunt.probe")

# SQLSTATE classes of a server that cannot work; a refused login is our own configuration, not its health.
_SICK = ("57P", "58", "XX")


@dataclass(frozen=True, slots=True)
class Probed:
    """A service to probe, at the primary of its own database."""

    service: str
    endpoint: Endpoint


class Prober:
    """Asks the shared database and the services' own ones, every 200 ms, whether they answer.

    `now_probed` names the services whose reads are exposed; nothing is probed while there are none.
    """

    def __init__(
        self, watch: Watch, shared: Endpoint, control: Control, now_probed: Callable[[], list[Probed]]
    ) -> None:
        self._watch = watch
        self._shared = shared
        self._control = control
        self._now_probed = now_probed
        self._askers: dict[str, _Asker] = {}
        self._changed = asyncio.Event()

    def look(self) -> None:
        """What is to be probed may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        try:
            while True:
                self._changed.clear()
                if probed := self._now_probed():
                    await self._round(probed)
                    due_s = max(due_s + PROBE_S, loop.time())
                    await asyncio.sleep(due_s - loop.time())
                else:
                    self._close(set())
                    await self._changed.wait()
        finally:
            self._close(set())

    async def _round(self, probed: list[Probed]) -> None:
        self._close({self._shared.name, *(one.endpoint.name for one in probed)})
        # Several services may have one database, which is asked once.
        endpoints = {one.endpoint.name: one.endpoint for one in probed}
        baseline, *found = await asyncio.gather(
            self._asker(self._shared).answers(), *(self._asker(one).answers() for one in endpoints.values())
        )
        answers = dict(zip(endpoints, found, strict=True))
        for one in probed:
            answer = answers[one.endpoint.name]
            self._watch.probed(one.service, candidate_answers=answer, baseline_answers=baseline)

    def _asker(self, endpoint: Endpoint) -> _Asker:
        if endpoint.name not in self._askers:
            self._askers[endpoint.name] = _Asker(endpoint, self._control)
        return self._askers[endpoint.name]

    def _close(self, kept: set[str]) -> None:
        for name in [name for name in self._askers if name not in kept]:
            self._askers.pop(name).close()


class _Asker:
    """One server and the thread that asks it."""

    def __init__(self, endpoint: Endpoint, control: Control) -> None:
        self._endpoint = endpoint
        self._control = control
        self._aside = Aside(f"probe {endpoint.name}")
        self._link: Link | None = None
        self._asked: Future[bool] | None = None
        self._began_s = 0.0

    async def answers(self) -> bool | None:
        """Whether the server works and answers within `ANSWER_S`; None if the question was not put to it yet.

        A question that is open still stands for the next time.
        """
        if self._asked is None:
            self._began_s = 0.0
            self._asked = self._aside.submit(self._ask)
        asked = self._asked
        await asyncio.wait({asyncio.wrap_future(asked)}, timeout=ANSWER_S)
        if asked.done():
            self._asked = None
            if error := asked.exception():  # a defect of ours says nothing about the server
                log.error("defect in probing %s", self._endpoint.name, exc_info=error)
                return None
            return asked.result()
        is_late = self._began_s and time.monotonic() - self._began_s >= ANSWER_S
        return False if is_late else None

    def close(self) -> None:
        """Breaks off the question."""
        if self._link is not None:
            self._link.abort()
        self._aside.submit(self._close_link)

    def _ask(self) -> bool:
        self._began_s = time.monotonic()
        try:
            if self._link is None or not self._link.is_idle():
                self._close_link()
                self._link = connect(self._endpoint, self._control, "probe", LOGIN_S)
                self._link.limit(ANSWER_S)
            asked_s = time.monotonic()
            self._link.rows("SELECT 1")
        except Unreachable:
            return False
        except ServerError as error:
            return not error.sqlstate.startswith(_SICK)
        return time.monotonic() - asked_s <= ANSWER_S

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
