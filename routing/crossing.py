"""Says which shapes touch tables of more than one owner: what breaks when one of the owners moves away.

An owner is a service, or nobody: the shared database keeps what is in no service. Found at plan time, so that
the hot path compares two integers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from pgshunt.routing.shape import Shape
from pgshunt.routing.table import Placement

NOBODY: Final = -1
SEVERAL: Final = -2
NOTHING: Final = -3
"""Writes no table. The same number stands in `_shapes.pxd`."""

TEXT_LENGTH_MAX: Final = 400
"""Of a shape's text, in characters, where it is shown to people."""


def crosses(shape: Shape, placement: Placement, relations: Collection[str]) -> bool:
    """Whether the statement touches tables of more than one owner."""
    return len(_owners(shape.tables, placement, relations)) > 1


def writer(shape: Shape, placement: Placement, relations: Collection[str]) -> int:
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


def _owners(tables: Iterable[str], placement: Placement, relations: Collection[str]) -> set[int]:
    """Of the tables the catalogue knows: temporary and system ones move with nobody."""
    return {placement.services.get(table, NOBODY) for table in tables if table in relations}
