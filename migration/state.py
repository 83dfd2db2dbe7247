"""What the migration controller must remember across restarts, as one document.

Runtime state only: which tables a service owns is the configuration's, where the service stands is here, with
the tables that it took along when it set out. What happened on the way is the event log's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

from pgshunt.routing.table import Stage

FORMAT: Final = 1
JOURNAL_MAX: Final = 200

Status = Literal["begun", "done"]


class UnreadableState(Exception):
    """The document is not of a form this version knows; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Latch:
    """A rollback that holds until it is re-armed: what tripped, when (Unix seconds), with which counts."""

    trigger: str
    at: float
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a service's journal: a step, and how far it came."""

    step: str
    status: Status
    at: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Where one service stands. `tables`: those it owned when its move began, which are those that move;
    `copied`: the tables we created at its own database; `is_target_gone`: it is being abandoned without that.
    """

    stage: Stage = "shared"
    reads_percent: int = 0
    latch: Latch | None = None
    tables: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    journal: tuple[Entry, ...] = ()
    is_target_gone: bool = False

    @property
    def is_being_abandoned(self) -> bool:
        """Whether an `abandon` was begun and has to be brought to its end."""
        return bool(self.journal) and (self.journal[-1].step, self.journal[-1].status) == ("abandon", "begun")

    def noted(self, step: str, status: Status, detail: str = "", at: float | None = None) -> ServiceState:
        """The same with one more line in its journal, of now unless told."""
        entry = Entry(step, status, time.time() if at is None else at, detail)
        return replace(self, journal=(*self.journal, entry)[-JOURNAL_MAX:])


@dataclass(frozen=True, slots=True)
class State:
    """Everything: the epoch of the routing table last announced, and the services."""

    epoch: int = 0
    services: Mapping[str, ServiceState] = field(default_factory=dict)

    def service(self, name: str) -> ServiceState:
        return self.services.get(name, ServiceState())

    def with_service(self, name: str, service: ServiceState) -> State:
        return replace(self, services={**self.services, name: service})

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> State:
        """The state in a document; an empty one is the state before anything happened.

        Raises UnreadableState.
        """
        if not document:
            return cls()
        if document.get("format") != FORMAT:
            raise UnreadableState(
                f"state has format {document.get('format')!r}, this version reads {FORMAT}: "
                "use the pgshunt that wrote it"
            )
        try:
            services = {name: _service(fields) for name, fields in document["services"].items()}
            return cls(document["epoch"], services)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableState(f"state does not have the form of format {FORMAT}: {error}") from error


def _service(fields: Mapping[str, Any]) -> ServiceState:
    if fields["stage"] not in get_args(Stage):
        raise ValueError(f"unknown stage {fields['stage']!r}")
    latch = fields["latch"]
    return ServiceState(
        stage=fields["stage"],
        reads_percent=fields["reads_percent"],
        latch=Latch(**latch) if latch else None,
        tables=tuple(fields.get("tables", ())),
        copied=tuple(fields["copied"]),
        journal=tuple(Entry(**entry) for entry in fields["journal"]),
        is_target_gone=fields.get("is_target_gone", False),
    )
