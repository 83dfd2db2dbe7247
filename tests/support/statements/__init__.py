"""Statements of every kind with the shapes they must have, on the relations that `RELATIONS` names."""

from support.statements.calls import CALLS, SERVER_LOCAL
from support.statements.changes import CHANGES, COPIES, EXPLAINS
from support.statements.definitions import DEFINITIONS
from support.statements.queries import CTES, HINTS, LOCKS, QUERIES, TIME
from support.statements.row import Row
from support.statements.sessions import SESSIONS, TRANSACTIONS
from support.statements.units import UNITS

ROWS = [
    *QUERIES,
    *TIME,
    *HINTS,
    *CTES,
    *LOCKS,
    *CHANGES,
    *DEFINITIONS,
    *COPIES,
    *EXPLAINS,
    *CALLS,
    *SERVER_LOCAL,
    *TRANSACTIONS,
    *SESSIONS,
    *UNITS,
]
PLAIN = [*QUERIES, *TIME, *CTES, *UNITS]
"""Those of which the reads of tables are plain."""

__all__ = ["PLAIN", "ROWS", "Row"]
