"""Runs a statement with a secret in it that no server log, statistics view or extension gets to see.

The secret is a setting of the connection's start, and a DO block writes it into the statement: neither
log_statement, log_min_duration_statement, pg_stat_activity nor pg_stat_statements shows more than the block.
The context of an error would show the statement inside it (log_min_error_statement does not matter here), so
the block catches every error and raises it anew. Works for every role: the settings that would keep a
statement out of the log are a superuser's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literal

SETTING: Final = "pgshunt.hidden"

# OTHERS leaves out query_canceled, which is how a statement_timeout comes.
_BLOCK: Final = """
DECLARE
    detail text;
    hint text;
BEGIN
    EXECUTE format({statement}, current_setting('{setting}'));
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM, DETAIL = detail, HINT = hint;
END
"""


def hiding(secret: str) -> Mapping[str, str]:
    """The settings of a connection on which `run_hidden` knows the secret."""
    return {SETTING: secret}


def run_hidden(link: Link, statement: str) -> None:
    """Runs a statement in which `%L` stands for the secret, as a literal; another % is written %%.

    It must be one that a transaction block may hold. Raises ServerError.
    """
    link.rows(f"DO {literal(_BLOCK.format(statement=literal(statement), setting=SETTING))}")
