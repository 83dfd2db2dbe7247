"""Says what a statement does, apart from its literals: the value every routing decision starts from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What a statement is to the proxy. The same numbers stand in `_shapes.pxd`, where the hot path reads
    them.
    """

    EMPTY = 0
    READ = 1
    WRITE = 2
    BEGIN = 3
    COMMIT = 4
    ROLLBACK = 5
    SAVEPOINT = 6
    SESSION = 7
    COPY_IN = 8
    UNKNOWN = 9


@dataclass(frozen=True, slots=True)
class Shape:
    """What one query text does; a text of several statements is one unit.

    `reads` and `writes` hold schema-qualified names ("public.users"); a name the catalogue does not know
    stays as written.

    `pins` is the cause for which a session must keep its link after the transaction (it leaves session state
    behind), and `releases` are the causes that end with it (RESET ALL, UNLISTEN *, DISCARD ALL …). `local`
    names what ties the answer to the server it is asked from (a system view, `ctid`, a cursor …): such a
    statement is never sent to a copy. `literal_sensitive` means that another literal could make another
    shape, so that only the whole text is a key. `read_only`, `isolation` and `chain` belong to transaction
    control: None (False) where nothing was said. `setting` is the configuration parameter that is set or
    reset ("search_path"; "all"; "*" where it cannot be told). `deallocates` is the name of the prepared
    statement that is dropped, "*" for all of them. `defines` is DDL that others may notice: what was
    parsed before may mean something else behind it. `reason` says in a word what made it so, "" for
    a plain statement.
    """

    kind: Kind
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    locks: bool = False
    volatile: bool = False
    time_dependent: bool = False
    pins: str | None = None
    releases: frozenset[str] = frozenset()
    local: str | None = None
    literal_sensitive: bool = False
    read_only: bool | None = None
    isolation: str | None = None
    chain: bool = False
    setting: str | None = None
    deallocates: str | None = None
    defines: bool = False
    statements: int = 1
    ordered: bool = False
    reason: str = ""

    @property
    def tables(self) -> frozenset[str]:
        return self.reads | self.writes

    @property
    def writing(self) -> bool:
        """Whether only the owner may run it: it writes, locks rows, or may do either."""
        return self.kind in _WRITING or self.locks or self.volatile or bool(self.writes)

    @property
    def splittable(self) -> bool:
        """Whether it is a plain read of tables, whose answer is the same wherever those tables are the
        same.
        """
        return (
            self.kind is Kind.READ
            and not self.writing
            and self.pins is None
            and self.local is None
            and bool(self.reads)
        )


_WRITING = frozenset({Kind.WRITE, Kind.COPY_IN, Kind.UNKNOWN})


def unknown(reason: str, *, literal_sensitive: bool = True) -> Shape:
    """The shape of a text nothing is known about: it runs at the owner, as a write."""
    return Shape(Kind.UNKNOWN, volatile=True, literal_sensitive=literal_sensitive, reason=reason)
