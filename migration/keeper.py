"""Changes the controller's state: in the store first, then at the workers.

Only a reduction, less exposure for a service, does not wait for a store that hangs or fails: it is in force
after `KEEP_S` at the latest, is part of whatever is stored from then on, and is stored as soon as that works.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from pgshunt.migration.aside import Aside
from pgshunt.migration.stages import COPY_STAGES
from pgshunt.migration.state import ServiceState, State, UnreadableState
from pgshunt.migration.store import Conflict, Document, Store, StoreError
from pgshunt.routing.table import MOVED, RoutingTable, Service

KEEP_S: Final = 0.25
"""How long a reduction waits to be stored before it is announced: a rollback has a second in all."""
STORE_S_MAX: Final = 5.0
AGAIN_S: Final = 1.0
CONFLICTS_MAX: Final = 5

Result = TypeVar("Result")
PublishTable = Callable[[RoutingTable], Awaitable[None]]
"""publish_table(table): returns when every worker routes by it."""
Change = Callable[[ServiceState], ServiceState]
"""Pure: it is applied again when another writer was first."""
Tell = Callable[[str, Mapping[str, Any]], object]
"""tell(kind, detail): an event."""

log = logging.getLogger("pgshunt.migration")


class Keeper:
    """The state in force, and its copy in the store. `base` is the routing table as configured."""

    def __init__(
        self,
        base: RoutingTable,
        store: Store,
        publish_table: PublishTable,
        tell: Tell = lambda kind, detail: None,
    ) -> None:
        self.base = base
        self.table = base
        """The routing table of the latest epoch announced."""
        self.state = State()
        """What is in force: what the store holds, with the reductions that it does not hold yet."""
        self.unkept = ""
        """Why the store does not hold what is in force; empty when it does."""
        self._store = store
        self._aside = Aside("state store")
        self._publish_table = publish_table
        self._tell = tell
        # Tells a write of ours that came through after we gave it up from another writer's.
        self._writer = uuid.uuid4().hex
        self._withheld: dict[str, frozenset[str]] = {}
        self._generation = 0
        self._kept = State()
        self._reductions: list[Callable[[State], State]] = []
        self._is_sure = True  # that the store holds no more and no less than `_kept`
        self._committing = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._unkept_s = 0.0

    async def load(self) -> None:
        """Raises StoreError, UnreadableState."""
        async with self._turn():
            self._generation, document = await self._aside.run(self._store.read)
        self._kept = State.from_document(document)
        self._refresh()
        self.table = self._table(self._kept.epoch)

    async def close(self) -> None:
        """Ends what runs here. A write that hangs is left to itself."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    def is_kept(self, service: str, entry: object) -> bool:
        """Whether the store holds this line of a service's journal."""
        return entry in self._kept.service(service).journal

    async def note(self, service: str, change: Change) -> None:
        """Keeps a change that the workers need not know. Raises StoreError."""
        await _to_its_end(self._note(partial(_of_service, service=service, change=change)))

    async def change(self, service: str, change: Change) -> int:
        """Keeps a change and announces it as a new epoch, which it returns. Raises StoreError."""
        return await _to_its_end(self._change(partial(_of_service, service=service, change=change)))

    async def reduce(self, service: str, change: Change) -> int:
        """Announces less exposure, kept or not: `unkept` says which. Returns the epoch.

        `change` must suit every state, as it may come upon another writer's.
        """
        return await _to_its_end(self._reduce(partial(_of_service, service=service, change=change)))

    async def keep(self) -> None:
        """Keeps what is in force and is not kept, if there is such. Raises StoreError."""
        if self._reductions or not self._is_sure:
            await _to_its_end(self._note(lambda state: state))

    async def announce(self) -> int:
        """A new epoch with `base` as it is now. What is configured need not be stored."""
        epoch, publishing = self._publish()
        await publishing
        return epoch

    async def withhold(self, service: str, tables: frozenset[str]) -> None:
        """Has the service's copies of exactly these tables not be read. That is announced, and not stored:
        whoever watches them finds it out again.
        """
        if tables != self._withheld.get(service, frozenset()):
            self._withheld[service] = tables
            await _to_its_end(self.announce())

    # How

    async def _note(self, change: Callable[[State], State]) -> None:
        async with self._turn():
            await self._write(change)

    async def _change(self, change: Callable[[State], State]) -> int:
        async with self._turn():
            await self._write(lambda state: self._with_next_epoch(change(state)))
            # Begun in our turn, so that tables go out in the order of their epochs; awaited after it, so that
            # a worker that is slow to answer delays nobody else's change.
            epoch, publishing = self._publish()
        await publishing
        return epoch

    async def _reduce(self, change: Callable[[State], State]) -> int:
        self._reductions.append(change)
        self._refresh()
        await self._try(self._note(self._with_next_epoch), KEEP_S)
        epoch, publishing = self._publish()
        await publishing
        return epoch

    def _publish(self) -> tuple[int, asyncio.Future[None]]:
        """Sends the state in force to the workers, with an epoch that they have not seen."""
        epoch = max(self._kept.epoch, self.table.epoch + 1)
        self.table = self._table(epoch)
        return epoch, asyncio.ensure_future(self._publish_table(self.table))

    def _table(self, epoch: int) -> RoutingTable:
        services = tuple(
            _placed(service, self.state.service(service.name), self._withheld.get(service.name, frozenset()))
            for service in self.base.services
        )
        return replace(self.base, epoch=epoch, services=services)

    def _with_next_epoch(self, state: State) -> State:
        """Never one that the workers have seen, even if another writer's state is older than theirs."""
        return replace(state, epoch=max(state.epoch, self.table.epoch) + 1)

    def _refresh(self) -> None:
        state = self._kept
        for reduction in self._reductions:
            state = reduction(state)
        self.state = state

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One write at a time, and none for ever. Raises StoreError."""
        try:
            async with asyncio.timeout(STORE_S_MAX), self._committing:
                yield
        except TimeoutError:
            raise StoreError(
                f"the state store did not answer within {STORE_S_MAX:g} s: "
                "look after the disk of `state.path`"
            ) from None

    async def _write(self, change: Callable[[State], State]) -> None:
        """Compare-and-set. Another writer's change is read, and ours applied on top of it."""
        for _ in range(CONFLICTS_MAX):
            reductions = len(self._reductions)
            state = change(self.state)
            document: Document = {**state.to_document(), "writer": self._writer}
            self._is_sure = False
            try:
                self._generation = await self._aside.run(
                    partial(self._store.write, document, self._generation)
                )
            except Conflict:
                await self._read_anew()
                continue
            except BaseException:
                # It may have come through all the same, or still do so.
                self._keep_soon()
                raise
            self._kept, self._is_sure = state, True
            del self._reductions[:reductions]
            self._refresh()
            if not self._reductions:
                self._is_kept()
            return
        raise Conflict("others write to the state store all the time")

    async def _read_anew(self) -> None:
        self._generation, document = await self._aside.run(self._store.read)
        if document.get("writer") != self._writer:
            try:
                self._kept = State.from_document(document)
            except UnreadableState as error:
                raise StoreError(str(error)) from error
            self._refresh()

    # What is in force and not kept

    def _keep_soon(self) -> None:
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Tries until the store holds what is in force."""
        while self._reductions or not self._is_sure:
            await asyncio.sleep(AGAIN_S)
            await self._try(self.keep(), STORE_S_MAX)

    async def _try(self, keeping: Awaitable[None], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await keeping
        except TimeoutError:
            self._is_unkept(f"the state store did not answer within {timeout_s:g} s")
        except StoreError as error:
            self._is_unkept(str(error))
        except Exception as error:  # whatever it is, it must not keep a rollback from the workers
            log.exception("defect in keeping the state")
            self._is_unkept(repr(error))

    def _is_unkept(self, reason: str) -> None:
        if not self.unkept:
            self._unkept_s = time.monotonic()
            remedy = "look after the disk of `state.path`: what is in force holds only until a restart"
            self._tell("state_unkept", {"reason": reason, "remedy": remedy})
        self.unkept = reason
        self._keep_soon()

    def _is_kept(self) -> None:
        if self.unkept:
            self.unkept = ""
            self._tell("state_kept", {"after_s": round(time.monotonic() - self._unkept_s, 1)})


async def _to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Goes on to the end when the caller is cancelled: what is stored must be announced, too."""
    return await asyncio.shield(asyncio.ensure_future(work))


def _of_service(state: State, service: str, change: Change) -> State:
    return state.with_service(service, change(state.service(service)))


def _placed(service: Service, state: ServiceState, withheld: frozenset[str]) -> Service:
    """A configured service with where it stands. Only whole copies may be read, and none that is withheld.

    What a service has taken along is its own until it is back, whatever is configured or found meanwhile.
    Once it owns that elsewhere, what the shared database has besides is there and not the service's.
    """
    found = () if state.tables and state.stage in MOVED else service.tables
    return replace(
        service,
        tables=tuple(dict.fromkeys((*state.tables, *found))),
        stage=state.stage,
        reads_percent=state.reads_percent,
        copied=tuple(name for name in state.copied if name not in withheld)
        if state.stage in COPY_STAGES
        else (),
    )
