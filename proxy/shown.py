"""Words the answer to SHOW pgshunt.route, which no server knows: the frames a client gets in its place."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pgshunt.protocol import messages
from pgshunt.routing.explain import Explanation

TEXT_OID = 25
COLUMNS = (b"name", b"setting")


def answer(explanation: Explanation | None) -> bytes:
    """Rows of (name, setting), as SHOW ALL has them, and CommandComplete; no row before the first route."""
    rows = () if explanation is None else explanation.facts()
    return b"".join((*map(_row, rows), messages.command_complete(b"SHOW")))


def description() -> bytes:
    """RowDescription of these rows."""
    # For each column: name, no table, no number in it, its type, of any length, no modifier, as text.
    columns = (messages.text(name) + struct.pack("!ihihih", 0, 0, TEXT_OID, -1, -1, 0) for name in COLUMNS)
    return messages.frame(ord("T"), struct.pack("!h", len(COLUMNS)) + b"".join(columns))


def _row(values: Iterable[str]) -> bytes:
    encoded = [value.encode("ascii", "backslashreplace") for value in values]
    fields = (struct.pack("!i", len(value)) + value for value in encoded)
    return messages.frame(ord("D"), struct.pack("!h", len(encoded)) + b"".join(fields))
