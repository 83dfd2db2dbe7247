"""Runs a statement with a secret in it that no server log, statistics view or extension gets to see.

The secret travels as COPY data, which nothing logs, into a temporary table, and a DO block writes it into the
statement: log_statement, log_min_duration_statement, pg_stat_activity and pg_stat_statements show no more
than the block. The context of an error would show the statement inside it, so the block catches every error
and raises it anew. Works for every role: the settings that keep a statement out of the log are a superuser's.
Only a warning cannot be caught, and its context would show the statement: a superuser keeps warnings out of
the log; for other roles the statement must be one that warns of nothing (`hides_warnings`).
"""

from __future__ import annotations

from io import StringIO
from typing import Final

from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literal

# OTHERS leaves out query_canceled, which is how a statement_timeout comes.
_BLOCK: Final = """
DECLARE
    hidden text;
    detail text;
    hint text;
BEGIN
    SELECT secret INTO STRICT hidden FROM pg_temp.pgshunt_hidden;
    EXECUTE format({statement}, hidden);
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM, DETAIL = detail, HINT = hint;
END
"""


def run_hidden(link: Link, statement: str, secret: str) -> None:
    """Runs a statement in which `%L` stands for the secret, as a literal; another % is written %%.

    Within `link.transaction()`. Raises ServerError.
    """
    quoted = '"' + secret.replace('"', '""') + '"'
    if hides_warnings(link):
        link.rows("SET LOCAL log_min_messages = 'error'")
    link.rows("CREATE TEMPORARY TABLE IF NOT EXISTS pgshunt_hidden (secret text) ON COMMIT DROP")
    link.rows("TRUNCATE pg_temp.pgshunt_hidden")
    link.rows("COPY pg_temp.pgshunt_hidden FROM STDIN (FORMAT csv)", stream=StringIO(quoted + "\n"))
    link.rows(f"DO {literal(_BLOCK.format(statement=literal(statement)))}")


def hides_warnings(link: Link) -> bool:
    """Whether a hidden statement may cause a warning."""
    return bool(link.value("SELECT current_setting('is_superuser')") == "on")
