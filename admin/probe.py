"""Asks the databases whether they answer, so that one that is down is found when no traffic shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pgshunt.admin.watch import Watch
from pgshunt.config.model import Control
from pgshunt.migration.servers import Link, Server, ServerError, Unreachable
from pgshunt.routing.table import Endpoint

PROBE_S = 0.2
# Longer than the period: on a machine without a core to spare a healthy server may take that long at times.
ANSWER_S = 0.5

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
        self._servers: dict[str, Server] = {}

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        try:
            while True:
                lag_ms = 1000 * max(0.0, loop.time() - due_s)
                await self._round(self._now_probed(), lag_ms)
                due_s = max(due_s + PROBE_S, loop.time())
                await asyncio.sleep(due_s - loop.time())
        finally:
            await self._close(set())

    async def _round(self, probed: list[Probed], lag_ms: float) -> None:
        await self._close({self._shared.name, *(one.endpoint.name for one in probed)} if probed else set())
        if not probed:
            return
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        baseline, *answers = await asyncio.gather(
            self._answers(self._shared), *(self._answers(one.endpoint) for one in probed)
        )
        lag_ms = max(lag_ms, 1000 * (loop.time() - began_s - ANSWER_S))
        for one, answer in zip(probed, answers, strict=True):
            self._watch.probed(
                one.service, candidate_answers=answer, baseline_answers=baseline, loop_lag_ms=lag_ms
            )

    async def _answers(self, endpoint: Endpoint) -> bool:
        server = self._servers.get(endpoint.name)
        if server is None:
            server = self._servers[endpoint.name] = Server(endpoint, self._control, "probe")
        try:
            await asyncio.wait_for(server.run(_probe, ANSWER_S), ANSWER_S)
        except (Unreachable, TimeoutError):
            return False
        except ServerError as error:
            return not error.sqlstate.startswith(_SICK)
        return True

    async def _close(self, kept: set[str]) -> None:
        for name in [name for name in self._servers if name not in kept]:
            await self._servers.pop(name).close()


def _probe(link: Link) -> None:
    link.rows("SELECT 1")
