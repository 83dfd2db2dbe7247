"""The migration controller as the control plane sees it, and how it is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from pgshunt.admin.events import EventLog
from pgshunt.config import Config
from pgshunt.migration.controller import MigrationController
from pgshunt.migration.mover import Options
from pgshunt.migration.stages import Doing
from pgshunt.migration.store import FileStore
from pgshunt.migration.verify import VerifyResult
from pgshunt.routing.additions import Addition
from pgshunt.routing.table import RoutingTable


class Mover(Protocol):
    """What operators ask of it. What it refuses is WrongStage or Held."""

    @property
    def table(self) -> RoutingTable:
        """The latest routing table."""

    async def begin(self, service: str) -> None:
        """Starts, or goes on, copying; returns when that is journalled, not when it is done.

        Raises PreflightFailed.
        """

    async def shift(self, service: str, reads_percent: int) -> None:
        """Returns when every worker routes by it."""

    async def rollback(self, service: str, trigger: str, evidence: Mapping[str, Any]) -> None:
        """Latches, and returns when no worker reads from the service's own database any more."""

    async def rearm(self, service: str, reason: str) -> None:
        """Lifts the latch; the reads stay at 0 %."""

    async def abandon(self, service: str, even_if_target_is_gone: bool = False) -> None:
        """Back to stage shared; returns when lane and copies are gone. Raises TargetGone."""

    def latch(self, service: str) -> Mapping[str, Any] | None:
        """trigger, at, evidence of the rollback that holds."""

    def progress(self, service: str) -> Mapping[str, Any]:
        """Of the copy, by table; empty when none is being made."""

    def verified(self, service: str) -> Mapping[str, Any]:
        """What verification found since the stage began."""

    def trouble(self, service: str) -> str:
        """What holds the service up; empty when nothing does."""

    def doing(self, service: str) -> Doing:
        """What stage syncing stands for now."""

    def lag_s(self, endpoint_index: int) -> float | None:
        """How far behind a copy may be; None unknown."""

    @property
    def beat_error(self) -> str:
        """Why heartbeats cannot be written; empty when they can, or need not."""

    @property
    def unkept(self) -> str:
        """Why the store does not hold what is in force; empty when it does."""


class Heart(Protocol):
    """What it knows about freshness."""

    @property
    def table(self) -> RoutingTable:
        """The latest routing table."""

    def watched(self) -> tuple[int, ...]:
        """The endpoints of which freshness is asked for, by index."""

    def lag_s(self, endpoint_index: int) -> float | None:
        """How far behind a copy may be; None unknown."""

    def beat_age_s(self) -> float | None:
        """How long ago the last heartbeat was sent; None if none was."""


class Controller(Mover, Heart, Protocol):
    """What the supervisor needs of it besides: a mover with a life of its own."""

    async def start(self) -> RoutingTable:
        """Resumes what the state says is under way; the table to begin with. Raises StoreError."""

    async def stop(self) -> None:
        """Ends all of it; nothing is undone."""

    async def add_columns(self, addition: Addition, user: str) -> None:
        """To a table that moves, and to its copies. Raises Impossible, ServerError, Held."""

    async def reconfigure(self, base: RoutingTable) -> None:
        """Takes the live changes of a reload and publishes them."""


class MakeController(Protocol):
    """Makes a controller for a configuration. Raises StoreError."""

    def __call__(
        self,
        config: Config,
        base: RoutingTable,
        publish_table: Callable[[RoutingTable], Awaitable[None]],
        publish_freshness: Callable[[int, int], None],
        events: EventLog,
        verified: Callable[[str, VerifyResult], None],
    ) -> Controller: ...


def migration_controller(
    config: Config,
    base: RoutingTable,
    publish_table: Callable[[RoutingTable], Awaitable[None]],
    publish_freshness: Callable[[int, int], None],
    events: EventLog,
    verified: Callable[[str, VerifyResult], None],
) -> Controller:
    """The one whose state is in the configured file. Raises StoreError."""
    passwords = {user.name: user.password for user in config.auth.users if user.password is not None}
    return MigrationController(
        base,
        config.control,
        FileStore(config.state.path),
        publish_table,
        publish_freshness,
        events,
        verified,
        Options(passwords=passwords),
    )
