"""Keeps what workers saw to touch tables of several owners, beside the state, and judges a service by it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pgshunt.config.model import Control
from pgshunt.migration.aside import Aside
from pgshunt.migration.couplings import read_couplings
from pgshunt.migration.observed import Observed
from pgshunt.migration.private_file import write_private
from pgshunt.migration.readiness import Readiness, assess
from pgshunt.migration.servers import Server
from pgshunt.proxy.channel import Message
from pgshunt.routing.table import Catalogue, Endpoint, Service

SAVE_S: Final = 60.0
"""What a crash may lose."""
WRITE_S_MAX: Final = 10.0
CLOSE_S_MAX: Final = 2.0
READ_S_MAX: Final = 8.0


class Observing:
    """`path`: the file; one that cannot be read is put aside by the next save, `error` says why.

    `take` gets the workers' deltas; `run` saves now and then, until cancelled; `close` does once more.
    """

    def __init__(self, path: Path, shared: Endpoint, control: Control) -> None:
        self.error = ""
        self._path = path
        self._server = Server(shared, control, "readiness")
        self._aside = Aside("observations")
        self._observed = self._load()
        self._is_ours = False
        self._looked_s = time.monotonic()

    @property
    def observed(self) -> Observed:
        """All of it up to now."""
        now_s = time.monotonic()
        self._observed.observed_s += now_s - self._looked_s
        self._looked_s = now_s
        return self._observed

    def take(self, delta: Message) -> None:
        if "crossings" in delta:
            self._observed.take(delta["crossings"], delta["crossings_dropped"], time.time())

    async def run(self) -> None:
        self._is_ours = True  # the state beside it is locked; before, another pgshunt may write there
        while True:
            await asyncio.sleep(SAVE_S)
            await self.save()

    async def save(self, timeout_s: float = WRITE_S_MAX) -> None:
        """For its owner only, as statements say much about those who send them.

        What cannot be written stays in memory, and `error` says why.
        """
        self.observed.forget_old(time.time())
        text = json.dumps(self.observed.to_document())  # in ASCII, whatever clients call themselves
        try:
            async with asyncio.timeout(timeout_s):
                await self._aside.run(partial(write_private, self._path, text.encode()))
        except TimeoutError:  # an OSError by descent
            self.error = f"{self._path}: the disk does not answer"
        except OSError as error:
            self.error = f"{self._path}: {error.strerror}"
        else:
            self.error = ""

    async def close(self) -> None:
        if self._is_ours:
            await self.save(CLOSE_S_MAX)
        await self._server.close()

    async def assess(self, name: str, services: Sequence[Service], catalogue: Catalogue) -> Readiness:
        """Asks the shared database what ties the service's tables to others. Raises ServerError."""
        tables = next(service.tables for service in services if service.name == name)
        couplings = await self._server.run(partial(read_couplings, tables=tables), READ_S_MAX)
        return assess(name, services, self.observed, couplings, catalogue)

    def _load(self) -> Observed:
        try:
            document: Any = json.loads(self._path.read_text(encoding="utf-8"))
            return Observed.from_document(document)
        except FileNotFoundError:
            return Observed()
        except (OSError, ValueError) as error:
            self.error = f"{self._path} cannot be read, what it held begins anew: {error}"
            return Observed()
