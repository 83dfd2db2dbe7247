"""Keeps reads from copies that may lack columns of the shared database, until they have them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from pgshunt.config.model import Control
from pgshunt.migration.altering import Impossible, complete
from pgshunt.migration.copying import Events
from pgshunt.migration.definitions import read_definitions
from pgshunt.migration.heartbeat import Heartbeat
from pgshunt.migration.servers import Link, Server, ServerError
from pgshunt.routing.additions import Addition
from pgshunt.routing.table import Endpoint

log = logging.getLogger("pgshunt.migration")

AGAIN_S: Final = 1.0

Columns = set[tuple[str, str]]
"""Table, as in the catalogue, and column."""


class Wholeness:
    """`troubles`: what each copy in doubt lacks, or why that is not known, by service."""

    def __init__(self, shared: Endpoint, control: Control, heartbeat: Heartbeat, events: Events) -> None:
        self._shared = shared
        self._control = control
        self._heartbeat = heartbeat
        self._events = events
        self._owed: dict[str, list[Addition]] = {}
        self._doubted: set[str] = set()
        self._proving: dict[str, asyncio.Task[None]] = {}
        self.troubles: dict[str, str] = {}

    def doubt(self, service: str, copy: Endpoint, tables: Sequence[str], *owed: Addition) -> None:
        """No reads for the service's copy until it has all columns of the shared database.

        What is `owed` it is given, as soon as that works.
        """
        self._heartbeat.doubt(service)
        self._doubted.add(service)
        self._owed.setdefault(service, []).extend(owed)
        if service not in self._proving:
            self._proving[service] = asyncio.create_task(self._prove(service, copy, tables))

    async def forget(self, service: str) -> None:
        """The copy is to be no more."""
        if (task := self._proving.pop(service, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._believe(service)

    async def close(self) -> None:
        for service in list(self._proving):
            await self.forget(service)

    async def _prove(self, service: str, copy: Endpoint, tables: Sequence[str]) -> None:
        source, target = (Server(end, self._control, "alter") for end in (self._shared, copy))
        try:
            while service in self._doubted:
                self._doubted.remove(service)  # what we see answers no doubt that comes while we look
                if why := await self._why_not(service, source, target, tables):
                    self._doubted.add(service)
                    self.troubles[service] = f"its copy takes no reads until it has all columns: {why}"
                    await asyncio.sleep(AGAIN_S)
        finally:
            await source.close()
            await target.close()
        if self.troubles.get(service):
            self._events.add("columns_complete", service, endpoint=copy.name)
        del self._proving[service]
        self._believe(service)

    async def _why_not(self, service: str, source: Server, target: Server, tables: Sequence[str]) -> str:
        """Empty when nothing is lacking, after what was owed has been given."""
        try:
            lacking = await _lacking(source, target, tables)
            for addition in self._owed[service] if lacking else ():
                columns = [column for column in addition.columns if (addition.table, column.name) in lacking]
                if columns:
                    await complete(replace(addition, columns=tuple(columns)), target)
                    lacking -= {(addition.table, column.name) for column in columns}
        except (ServerError, Impossible) as error:
            return str(error)
        except Exception as defect:  # whatever it is, the copy stays in doubt, and that is told
            log.exception("defect in comparing columns")
            return f"they could not be compared: {defect!r}"
        if not lacking:
            return ""
        named = ", ".join(f"{table}.{column}" for table, column in sorted(lacking))
        return f"it lacks {named}. Repeat the statement that added it, or add it there"

    def _believe(self, service: str) -> None:
        self._owed.pop(service, None)
        self._doubted.discard(service)
        self.troubles.pop(service, None)
        self._heartbeat.believe(service)


async def _lacking(source: Server, target: Server, tables: Sequence[str]) -> Columns:
    read = partial(_columns, tables=tables)
    there, here = await asyncio.gather(source.run(read), target.run(read))
    return there - here


def _columns(link: Link, tables: Sequence[str]) -> Columns:
    found = read_definitions(link, tables).values()
    return {(part, name) for parts in found for part, columns in parts.items() for name, _ in columns}
