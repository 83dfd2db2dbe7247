"""What is noted of one statement while it is looked at, and the shape that comes of it."""

from __future__ import annotations

from typing import Final

from pgshunt.routing.effects import READ
from pgshunt.routing.grammar import pg
from pgshunt.routing.names import is_system, is_temporary, resolve
from pgshunt.routing.nodes import Fields
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Catalogue

RENAMING: Final = frozenset({"search_path", "role", "session_authorization"})
"""Parameters with which a name may mean another table."""
REREADING: Final = frozenset(
    {
        "array_nulls",
        "backslash_quote",
        "bytea_output",
        "client_encoding",
        "datestyle",
        "default_text_search_config",
        "intervalstyle",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "standard_conforming_strings",
        "timezone",
        "timezone_abbreviations",
        "transform_null_equals",
        "xmloption",
    }
)
"""Parameters with which the literals of a statement are read as it is prepared."""
OBSCURING: Final = frozenset({"client_encoding", "standard_conforming_strings"})
"""Parameters with which a text may be cut into other tokens."""


class Findings:
    """What a walk has noted of one statement so far; the fields are those of Shape.

    And what `follow` goes on from: `calls` are the functions called that are not PostgreSQL's own, as named;
    `events` pairs of a table and a way to use it; `sets_local` parameters set until the transaction ends.
    """

    def __init__(self, search_path: tuple[str, ...], catalogue: Catalogue) -> None:
        self.search_path = search_path
        self.catalogue = catalogue
        self.kind = Kind.READ
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.locks = False
        self.volatile = False
        self.time_dependent = False
        self.pins: set[str] = set()
        self.releases: set[str] = set()
        self.local: str | None = None
        self.literal_sensitive = False
        self.read_only: bool | None = None
        self.isolation: str | None = None
        self.chain = False
        self.touches: set[str] = set()
        self.resets: set[str] = set()
        self.creates: set[str] = set()
        self.renames = False
        self.rereads = False
        self.obscures = False
        self.deallocates: str | None = None
        self.prepares: set[str] = set()
        self.executes: set[str] = set()
        self.prepared: Shape | None = None
        self.signals = False
        self.meets = False
        self.anywhere = False
        self.path: tuple[str, ...] | None = None
        self.alters: set[str] = set()
        self.ordered = False
        self.reason = ""
        self.strange = False
        self.is_definition = False
        self.calls: set[str] = set()
        self.volatile_calls: set[str] = set()
        self.events: set[tuple[str, str]] = set()
        self.sets_local: set[str] = set()
        self.runs: set[str] = set()
        self.ranges: set[str] = set()
        self.columns: set[str] = set()

    def shape(self) -> Shape:
        if not self.ranges.isdisjoint(self.columns):
            # A whole row, whose type is the table's own.
            self.local = self.local or "own_types"
        return Shape(
            kind=self.kind,
            reads=frozenset(self.reads),
            writes=frozenset(self.writes),
            locks=self.locks,
            volatile=self.volatile,
            time_dependent=self.time_dependent,
            pins=frozenset(self.pins),
            releases=frozenset(self.releases),
            local=self.local,
            literal_sensitive=self.literal_sensitive,
            read_only=self.read_only,
            isolation=self.isolation,
            chain=self.chain,
            touches=frozenset(self.touches),
            resets=frozenset(self.resets),
            creates=frozenset(self.creates),
            renames=self.renames,
            rereads=self.rereads,
            obscures=self.obscures,
            deallocates=self.deallocates,
            prepares=frozenset(self.prepares),
            executes=frozenset(self.executes),
            prepared=self.prepared,
            signals=self.signals,
            meets=self.meets,
            anywhere=self.anywhere,
            path=self.path,
            defines=self.reason == "definition" and self.local != "temp_table",
            alters=frozenset(self.alters),
            ordered=self.ordered,
            strange=self.strange,
            runs=frozenset(self.runs),
            repeatable=not (self.calls or self.volatile_calls),
            reason=self.reason,
        )

    def named(self, schema: str, name: str) -> str:
        """The full name of a relation that is called so."""
        full = resolve(schema, name, self.search_path, self.catalogue.relations)
        return full if "." in full else resolve(schema, name, self.search_path, self.catalogue.belongs)

    def relation(self, node: pg.RangeVar) -> str:
        """The name of the table a RangeVar stands for, with what its schema implies noted."""
        return self.relation_of_fields(node.given)

    def relation_of_fields(self, node: Fields) -> str:
        """`relation`, by its fields."""
        schema, relname = node.get("schemaname", ""), node.get("relname", "")
        if is_temporary(schema) or node.get("relpersistence") == "t":
            self.pins.add("temp_table")
            self.local = self.local or "temp_table"
        elif is_system(schema, relname):
            self.local = self.local or "system_catalogue"
            if relname == "pg_prepared_statements":
                self.pins.add("prepared_statements")
        name = self.named(schema, relname)
        if self.catalogue.relations.get(name) == "S":
            self.local = self.local or "sequence"  # a standby knows of numbers that were not given out yet
        if name in self.catalogue.own_types:
            self.local = self.local or "own_types"
        self.ranges.add(node["alias"].get("aliasname", "") if "alias" in node else relname)
        return name

    def sets(self, name: str, *, local: bool) -> None:
        """A parameter gets another value, `local`: until the transaction ends.

        A custom parameter is there, and empty, for the rest of the session even where it was set locally.
        """
        if local:
            self.sets_local.add(name)
            if "." in name:
                self.creates.add(name)
        else:
            self.touches.add(name)
            if name == "session_authorization":
                self.touches.add("role")
        self.renames |= name in RENAMING
        self.rereads |= name in REREADING
        self.obscures |= name in OBSCURING

    def uses(self, table: str, events: str) -> None:
        """A table, by its full name, is used in these ways."""
        for event in events:
            (self.reads if event == READ else self.writes).add(table)
            self.events.add((table, event))

    def write(self, reason: str) -> None:
        self.kind = Kind.WRITE
        self.reason = self.reason or reason
