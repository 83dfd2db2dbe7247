"""Finds what is wrong with a configuration and only its servers can tell."""

from __future__ import annotations

from collections.abc import Iterator

from pgshunt.admin.table import routing_table
from pgshunt.config.model import Config
from pgshunt.config.ownership import check_tables
from pgshunt.config.problem import Problem, Severity
from pgshunt.migration.catalogue import read_relations
from pgshunt.migration.servers import ServerError, connect

ASK_S_MAX = 30.0


def ask_servers(config: Config) -> Iterator[Problem]:
    """A shared database that does not answer is no error: the file may be right, and is not from here."""
    try:
        link = connect(routing_table(config).endpoints[0], config.control, "check")
        try:
            link.limit(ASK_S_MAX)
            catalogue = read_relations(link)
        finally:
            link.close()
    except ServerError as error:
        yield Problem(
            ("shared", "primary"),
            f"it cannot be asked which tables there are: {error}",
            "see to it and check again, or say --file-only",
            Severity.WARNING,
        )
        return
    yield from check_tables(config, catalogue.tables(), catalogue.relations)
