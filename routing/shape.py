"""Says what a statement does, apart from its literals: the value every routing decision starts from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from pgshunt.routing.effects import Code

# What DEALLOCATE ALL names: no name in SQL is empty.
ALL_STATEMENTS: Final = ""


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
    SHOW_ROUTE = 10


@dataclass(frozen=True, slots=True)
class Shape:
    """What one query text does; a text of several statements is one unit.

    `reads` and `writes` hold schema-qualified names ("public.users"); a name the catalogue does not know
    stays as written.

    `pins` are the causes for which a session must keep its link after the transaction (it leaves state
    behind that cannot be made again elsewhere), and `releases` are the causes that may end with it
    (UNLISTEN, DISCARD ALL …). `local` names what ties the answer to the server it is asked from (a system
    view, `ctid`, a cursor, a type made there …): such a statement is never sent to a copy.
    `literal_sensitive` means that another literal could make another shape, so that only the whole text is a
    key. `read_only`, `isolation` and `chain` belong to transaction control: None (False) where nothing was
    said. `deallocates` is the name of the prepared statement that is dropped, ALL_STATEMENTS for all of
    them; `prepares` and `executes` are the names that PREPARE gives and EXECUTE uses, `prepared` is what
    PREPARE prepares. `signals`: it may cancel or end the processes whose ids it names.
    `meets`: it meets other sessions elsewhere than in tables (LISTEN, NOTIFY, advisory locks), and finds them
    at the same server only. `anywhere`: it may use tables that nobody can tell (by code that cannot be read,
    by names that are made up as it runs). `unread` is a text that cannot be parsed: perhaps bad SQL, perhaps
    what another version of PostgreSQL takes, about any table it names. `defines` is DDL that others may
    notice: what was parsed before may mean something else behind it; `makes` is what such a statement adds to
    the code of the database, `alters` are the relations that are not the same behind it. `strange` means that
    it calls a function nobody knows (yet); `runs` are the functions of the database's own that it may make
    run; `repeatable`: what it calls does the same again. `reason` says in a word what made it so, "" for a
    plain statement.

    Configuration parameters, in lower case: `touches` are those that may keep another value behind the
    transaction, `resets` those that may go back to their default ("*": all but role and
    session_authorization), `creates` custom ones that exist behind it, if only with an empty value. Behind
    it, be it only in this transaction, a name may mean another table (`renames`), a literal another value
    (`rereads`), a text may be cut into other tokens (`obscures`). `path` is the search path as SET gives it.
    """

    kind: Kind
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    locks: bool = False
    volatile: bool = False
    time_dependent: bool = False
    pins: frozenset[str] = frozenset()
    releases: frozenset[str] = frozenset()
    local: str | None = None
    literal_sensitive: bool = False
    read_only: bool | None = None
    isolation: str | None = None
    chain: bool = False
    touches: frozenset[str] = frozenset()
    resets: frozenset[str] = frozenset()
    creates: frozenset[str] = frozenset()
    renames: bool = False
    rereads: bool = False
    obscures: bool = False
    path: tuple[str, ...] | None = None
    deallocates: str | None = None
    prepares: frozenset[str] = frozenset()
    executes: frozenset[str] = frozenset()
    prepared: Shape | None = None
    signals: bool = False
    meets: bool = False
    anywhere: bool = False
    unread: bytes = b""
    defines: bool = False
    alters: frozenset[str] = frozenset()
    statements: int = 1
    ordered: bool = False
    strange: bool = False
    runs: frozenset[str] = field(default=frozenset(), compare=False)
    repeatable: bool = field(default=True, compare=False)
    makes: Code | None = field(default=None, compare=False)
    reason: str = ""

    @property
    def tables(self) -> frozenset[str]:
        return self.reads | self.writes

    @property
    def stateful(self) -> bool:
        """Whether it may change the state of its session."""
        settings = self.touches or self.resets or self.creates
        names = self.prepares or self.executes or self.deallocates is not None
        behind = self.renames or self.rereads or self.obscures
        return bool(self.pins or self.releases or settings or names or behind)

    @property
    def unreadable(self) -> bool:
        """Whether nobody knows what it does to its session, either."""
        return self.strange or (self.kind is Kind.UNKNOWN and not self.stateful)

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
            and not self.pins
            and self.local is None
            and bool(self.reads)
        )

    @property
    def introduces(self) -> bool:
        """Whether a transaction may begin with it before it is known where that is to run: it names no table,
        and can be done again at another server as it was done here.
        """
        leaves = self.pins or self.releases or self.touches or self.resets or self.prepares or self.executes
        bound = self.tables or self.alters or self.meets or self.signals or self.anywhere
        alone = self.statements == 1 and not bound
        if leaves or not alone or self.time_dependent or not self.repeatable or self.local in _LOCAL:
            return False
        if self.kind is Kind.SESSION:
            return self.reason in ("set_local", "set_transaction", "show")
        sets = self.reason == "volatile:set_config"
        return self.kind is Kind.SAVEPOINT or sets or (self.kind is Kind.READ and not self.writing)

    @property
    def steady(self) -> bool:
        """Whether a transaction at READ COMMITTED that has done this at a copy can go on elsewhere as if it
        had not begun: a plain read that tells no time.
        """
        return self.splittable and not self.time_dependent and not self.stateful


READ_COMMITTED: Final = frozenset({"read committed", "read uncommitted"})
"""Isolation levels at which each statement sees what is committed as it begins; PostgreSQL has but one."""

_LOCAL: Final = frozenset({"backend_pid", "cursor", "function", "temp_table", "reads_by_name"})
"""Of `local`, what cannot be forgotten of a statement without tables."""

_WRITING = frozenset({Kind.WRITE, Kind.COPY_IN, Kind.UNKNOWN})


def unknown(reason: str, *, literal_sensitive: bool = True, unread: bytes = b"") -> Shape:
    """The shape of a text nothing is known about: it runs at the owner, as a write. It may use any table, or
    if it is `unread`, those it names.
    """
    return Shape(
        Kind.UNKNOWN,
        volatile=True,
        literal_sensitive=literal_sensitive,
        anywhere=reason != "unparsable",
        unread=unread,
        reason=reason,
    )


def executing(shape: Shape, run: Collection[Shape | None]) -> Shape:
    """A statement that executes others, or prepares one, with the tables of those, so that it runs where they
    are; None stands for one that nobody knows.
    """
    known = [one for one in run if one is not None]
    if shape.kind is Kind.SESSION:  # PREPARE runs nothing yet
        return replace(shape, reads=shape.reads.union(*(one.tables for one in known)))
    return replace(
        shape,
        reads=shape.reads.union(*(one.reads for one in known)),
        writes=shape.writes.union(*(one.writes for one in known)),
        locks=shape.locks or any(one.locks for one in known),
        volatile=shape.volatile or any(one.volatile for one in known),
        meets=shape.meets or any(one.meets for one in known),
        unread=b" ".join(one.unread for one in known),
        anywhere=shape.local != "hint" and (None in run or any(one.anywhere for one in (shape, *known))),
    )
