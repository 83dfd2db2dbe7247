"""Has a service's own server log in to the shared database, as its subscription will do for the lane.

That server's word counts and not ours: it looks the host up, goes through its own network, and verifies by
the root.crt of its own machine's user.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pgshunt.config.model import Control
from pgshunt.migration.hidden import hides_warnings, run_hidden
from pgshunt.migration.servers import Link, ServerError, Unreachable
from pgshunt.migration.sql import conninfo, quoted
from pgshunt.routing.table import Endpoint

REACH_S_MAX: Final = 15.0
LOCK_MS_MAX: Final = 500
LOCK_NOT_AVAILABLE: Final = "55P03"


class Refusal(NamedTuple):
    """Why a server cannot log in to another, in its own words, and the way out."""

    message: str
    remedy: str


class _Reached(Exception):
    """Takes back what was made only to be tried."""


def connection_of(source: Endpoint, control: Control) -> str:
    """The connection string of a subscription to `source`."""
    password = {"password": control.password.reveal()} if control.password else {}
    return conninfo(
        host=source.host,
        port=source.port,
        dbname=source.dbname,
        user=control.user,
        sslmode=source.tls.mode,
        **password,
    )


def reach(link: Link, connection: str, name: str) -> Refusal | None:
    """Why the server of `link` cannot log in by `connection`; None if it can, or cannot be asked just now.

    Nothing is left behind of the subscription `name` by which it is tried. Raises Unreachable when `link` is
    lost meanwhile.
    """
    escaped = quoted(name).replace("%", "%%")
    try:
        with link.transaction():
            if not hides_warnings(link):  # there is no such publication, and PostgreSQL says so
                return None
            link.rows(f"SET LOCAL lock_timeout = {LOCK_MS_MAX}")
            run_hidden(
                link,
                f"CREATE SUBSCRIPTION {escaped} CONNECTION %L PUBLICATION {escaped} "
                "WITH (create_slot = false, enabled = false, slot_name = NONE, copy_data = false)",
                connection,
            )
            raise _Reached
    except _Reached:
        return None
    except Unreachable:
        raise
    except ServerError as error:
        if error.sqlstate == LOCK_NOT_AVAILABLE:
            return None
        said = " ".join(error.message.split())  # libpq writes lines
        return Refusal(f"its server cannot log in to the shared database: {said}", _remedy(error))


def _remedy(error: ServerError) -> str:
    if "root certificate" in error.message:
        return (
            "put the certificate of the shared database's authority there, readable for the server's user: "
            "its subscription verifies by it"
        )
    if "certificate" in error.message or "SSL" in error.message:
        return "its subscription verifies by root.crt in .postgresql of the server's user: correct that"
    return "host and port under `shared` must mean the same there, and pg_hba.conf must let it in"
