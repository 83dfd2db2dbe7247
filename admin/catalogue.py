"""Keeps the workers' catalogue as the shared database has it.

Until it could be read the catalogue is empty: then every statement goes to its owner and nothing is split,
which is right, if slow. A table created later is known here within seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from pgshunt.config.model import Control
from pgshunt.migration.catalogue import read_catalogue
from pgshunt.migration.servers import Server, ServerError
from pgshunt.routing.table import Catalogue, Endpoint

AGAIN_S = 10.0
AGAIN_AFTER_FAILURE_S = 1.0
READ_S_MAX = 30.0


class CatalogueKeeper:
    """`on_change(catalogue)` is awaited for each new version; `error` says why the last read failed."""

    def __init__(
        self, shared: Endpoint, control: Control, on_change: Callable[[Catalogue], Awaitable[None]]
    ) -> None:
        self.catalogue = Catalogue()
        self.error = "not read yet"
        self._server = Server(shared, control, "catalogue")
        self._on_change = on_change

    async def read(self, timeout_s: float = READ_S_MAX) -> bool:
        """Reads once; True when the catalogue differs from what it was. A failure is kept in `error`."""
        version = self.catalogue.version + 1
        try:
            found = await self._server.run(partial(read_catalogue, version=version), timeout_s)
        except ServerError as error:
            self.error = str(error)
            return False
        self.error = ""
        if replace(found, version=self.catalogue.version) == self.catalogue:
            return False
        self.catalogue = found
        return True

    async def run(self) -> None:
        """Reads again and again until cancelled."""
        while True:
            await asyncio.sleep(AGAIN_AFTER_FAILURE_S if self.error else AGAIN_S)
            if await self.read():
                await self._on_change(self.catalogue)

    async def close(self) -> None:
        await self._server.close()
