"""The vocabulary of routing: why a statement went where it went, as a number, a word and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Reason(IntEnum):
    """The numbers are counter indexes: append, never renumber."""

    OWNER_WRITE = 0
    OWNER_READ = 1
    SPLIT = 2
    BASELINE = 3
    UNOWNED = 4
    NO_TABLE = 5
    UNKNOWN = 6
    TOO_LARGE = 7
    VOLATILE = 8
    LOCKS = 9
    SERVER_LOCAL = 10
    SEVERAL_SERVICES = 11
    TRANSACTION = 12
    SESSION = 13
    NOT_FRESH = 14
    PINNED = 15
    CANDIDATE_DOWN = 16
    RETRIED = 17
    NOT_WHOLE = 18
    LATE = 19
    NO_HEARTBEAT = 20
    REPLICA = 21
    MOVED_UP = 22
    FROZEN = 23
    HINT = 24
    TOGETHER = 25
    SEVERAL_OWNERS = 26
    BOUND = 27
    KEPT = 28
    SHARED_ONLY = 29
    OBSCURE = 30
    ANYWHERE = 31

    @property
    def code(self) -> str:
        """The word that stands in metrics, logs, `pgshunt explain` and SHOW pgshunt.route."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        return SENTENCES[self]


REASON_CODES: Final = tuple(reason.code for reason in Reason)

SENTENCES: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.OWNER_WRITE: "A write goes to the owner of what it writes.",
        Reason.OWNER_READ: "No database but the owner holds everything this reads and takes reads now.",
        Reason.SPLIT: "A plain read, and a copy holds every table it names.",
        Reason.BASELINE: "A plain read whose weight, this time, meant the owner's primary.",
        Reason.UNOWNED: "Nobody owns these tables, so they stay on the shared database.",
        Reason.NO_TABLE: "It names no table.",
        Reason.UNKNOWN: "It could not be understood, so it is treated as a write.",
        Reason.TOO_LARGE: "It is too large to be parsed, so it is treated as a write.",
        Reason.VOLATILE: "It calls something that may write.",
        Reason.LOCKS: "It locks rows or tables, which only the owner can do.",
        Reason.SERVER_LOCAL: "Its answer depends on the server it is asked from.",
        Reason.SEVERAL_SERVICES: "It reads tables of several services, and no copy holds all of them.",
        Reason.TRANSACTION: "It belongs to a transaction, and goes where that runs.",
        Reason.SESSION: "It is about the session, not about tables.",
        Reason.NOT_FRESH: "No copy was known to hold what had been written before.",
        Reason.PINNED: "The session keeps its server connection, because state of its own is on it.",
        Reason.CANDIDATE_DOWN: "No copy could be reached.",
        Reason.RETRIED: "It failed at a copy and was asked again at the owner.",
        Reason.NOT_WHOLE: "It came in pieces, or parses under a name: at a copy it could not be asked again.",
        Reason.LATE: "Every copy was further behind than reads.lag_ms_max.",
        Reason.NO_HEARTBEAT: "No heartbeat is written, so no copy is known to be fresh.",
        Reason.REPLICA: "A plain read, and a replica of the owner takes a share of those.",
        Reason.MOVED_UP: "Its transaction had only read a copy, or named no table, and went on at the owner.",
        Reason.FROZEN: "It would change the definition of a table that is being moved: refused.",
        Reason.HINT: "A comment in it asks for the primary of the owner.",
        Reason.TOGETHER: "Its tables have several owners, and this database holds the others' as copies.",
        Reason.SEVERAL_OWNERS: "Its tables are owned by several databases, and none may do it all: refused.",
        Reason.BOUND: "Its transaction runs at a database that lacks its tables: refused.",
        Reason.KEPT: "The session keeps a connection to a database that lacks its tables: refused.",
        Reason.SHARED_ONLY: "It meets other sessions at the shared database; its tables have moved: refused.",
        Reason.OBSCURE: "It may mean a table that has moved, which only the search path would tell: refused.",
        Reason.ANYWHERE: "Nobody can tell which tables it uses, and some have moved: refused.",
    }
)
