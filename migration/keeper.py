"""Changes the controller's state: in the store first, then at the workers, never the other way round."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from pgshunt.migration.stages import COPY_STAGES
from pgshunt.migration.state import ServiceState, State
from pgshunt.migration.store import Conflict, Document, Store
from pgshunt.routing.table import RoutingTable, Service

CONFLICTS_MAX: Final = 5

PublishTable = Callable[[RoutingTable], Awaitable[None]]
"""publish_table(table): returns when every worker routes by it."""

Change = Callable[[ServiceState], ServiceState]
"""Pure: it is applied again when another writer was first."""


class Keeper:
    """The state and its copy in the store. `base` is the routing table as configured."""

    def __init__(self, base: RoutingTable, store: Store, publish_table: PublishTable) -> None:
        self.base = base
        self.state = State()
        self._store = store
        self._publish_table = publish_table
        self._generation = 0
        self._announced = 0
        self._is_unkept = False
        self._committing = asyncio.Lock()

    @property
    def table(self) -> RoutingTable:
        """The routing table of the latest epoch."""
        services = tuple(_placed(service, self.state.service(service.name)) for service in self.base.services)
        return replace(self.base, epoch=self.state.epoch, services=services)

    async def load(self) -> None:
        """Raises StoreError, UnreadableState."""
        self._generation, document = await asyncio.to_thread(self._store.read)
        self.state = State.from_document(document)

    async def note(self, service: str, change: Change) -> None:
        """Keeps a change that the workers need not know. Raises StoreError."""
        await self._commit(lambda state: state.with_service(service, change(state.service(service))))

    async def change(self, service: str, change: Change) -> int:
        """Keeps a change and announces it as a new epoch, which it returns. Raises StoreError."""
        return await self._announce(
            lambda state: state.with_service(service, change(state.service(service))), kept=True
        )

    async def change_unkept(self, service: str, change: Change) -> int:
        """The same from memory alone, for less exposure while the store fails; the next change that works
        keeps it.
        """
        return await self._announce(
            lambda state: state.with_service(service, change(state.service(service))), kept=False
        )

    async def keep(self) -> None:
        """Keeps what `change_unkept` could not, if nothing has since. Raises StoreError."""
        if self._is_unkept:
            await self._commit(lambda state: state)

    async def announce(self) -> int:
        """A new epoch with `base` as it is now. Raises StoreError."""
        return await self._announce(lambda state: state, kept=True)

    async def _announce(self, change: Callable[[State], State], kept: bool) -> int:
        def next_epoch(state: State) -> State:
            # Never one that the workers have seen, even if another writer's state, read after a conflict, is
            # older than what was announced unkept.
            return replace(change(state), epoch=max(state.epoch, self._announced) + 1)

        async with self._committing:
            if kept:
                await self._write(next_epoch)
            else:
                self.state, self._is_unkept = next_epoch(self.state), True
            epoch = self._announced = self.state.epoch
            # Begun under the lock, so that tables go out in the order of their epochs; awaited outside, so
            # that a worker that is slow to answer delays no rollback.
            publishing = asyncio.ensure_future(self._publish_table(self.table))
        await publishing
        return epoch

    async def _commit(self, change: Callable[[State], State]) -> None:
        async with self._committing:
            await self._write(change)

    async def _write(self, change: Callable[[State], State]) -> None:
        """Compare-and-set. Another writer's change is read, and ours applied on top of it."""
        for attempt in range(1, CONFLICTS_MAX + 1):
            state = change(self.state)
            try:
                await self._write_whole(state)
                return
            except Conflict:
                if attempt == CONFLICTS_MAX:
                    raise
                await self.load()

    async def _write_whole(self, state: State) -> None:
        """Goes on to the end when the caller is cancelled: what the store holds must be known here."""
        document: Document = state.to_document()
        writing = asyncio.ensure_future(asyncio.to_thread(self._store.write, document, self._generation))
        try:
            self._generation = await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._generation = await writing
            self.state, self._is_unkept = state, False
            raise
        self.state, self._is_unkept = state, False


def _placed(service: Service, state: ServiceState) -> Service:
    """A configured service with where it stands. Only whole copies may be read."""
    return replace(
        service,
        stage=state.stage,
        reads_percent=state.reads_percent,
        copied=state.copied if state.stage in COPY_STAGES else (),
    )
