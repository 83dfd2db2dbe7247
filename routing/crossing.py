"""Says which shapes touch tables of more than one owner: what breaks when one of the owners moves away.

An owner is a service, or nobody: the shared database keeps what is in no service. Found at plan time, so that
the hot path compares two integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pgshunt.routing.placement import Placement
from pgshunt.routing.shape import Shape

NOBODY: Final = -1
SEVERAL: Final = -2
NOTHING: Final = -3
"""Writes no table. The same number stands in `_shapes.pxd`."""

Relations = Mapping[str, str]
"""As in routing.table.Catalogue."""

HOLDING: Final = frozenset({"r", "p", "m", "f"})
"""Kinds of relation (pg_class.relkind) with rows of their own; sequences go with a table."""

TEXT_LENGTH_MAX: Final = 400
"""Of a shape's text, in characters, where it is shown to people."""


def crosses(shape: Shape, placement: Placement, relations: Relations) -> bool:
    """Whether the statement touches tables of more than one owner."""
    return len(_owners(shape.tables, placement, relations)) > 1


def writer(shape: Shape, placement: Placement, relations: Relations) -> int:
    """The index of the service whose tables it writes or locks, or NOBODY, SEVERAL, NOTHING."""
    owners = _owners(written(shape), placement, relations)
    return SEVERAL if len(owners) > 1 else owners.pop() if owners else NOTHING


def written(shape: Shape) -> frozenset[str]:
    """What only its owner may do: rows that are locked count as written."""
    return shape.tables if shape.locks else shape.writes


def shown_text(key: bytes | None) -> str:
    """What people are shown of a statement: its key, which has no literals, cut to a length.

    Without a key nothing is: what cannot be told from a literal may be somebody's data.
    """
    if key is None:
        return ""
    text = key.decode(errors="replace").replace("\x01", "?")
    return text if len(text) <= TEXT_LENGTH_MAX else text[: TEXT_LENGTH_MAX - 1] + "…"


def holding(tables: Iterable[str], relations: Relations) -> tuple[str, ...]:
    """Those that hold rows, of those the catalogue knows: temporary and system tables move with nobody."""
    return tuple(sorted(table for table in tables if relations.get(table) in HOLDING))


def _owners(tables: Iterable[str], placement: Placement, relations: Relations) -> set[int]:
    return {placement.services.get(table, NOBODY) for table in holding(tables, relations)}
