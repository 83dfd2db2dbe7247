"""Finds what is wrong with a configuration and only its servers can tell."""

from __future__ import annotations

from collections.abc import Iterator

from pgshunt.admin.table import routing_table
from pgshunt.config.model import Config
from pgshunt.config.ownership import check_tables
from pgshunt.config.problem import Path, Problem, Severity
from pgshunt.migration.catalogue import read_relations
from pgshunt.migration.reaching import connection_of, reach
from pgshunt.migration.servers import ServerError, connected
from pgshunt.routing.table import Endpoint

ASK_S_MAX = 30.0


def ask_servers(config: Config) -> Iterator[Problem]:
    """A server that does not answer is no error: the file may be right, and it reached from elsewhere."""
    endpoints = routing_table(config).endpoints
    try:
        with connected(endpoints[0], config.control, "check", ASK_S_MAX) as link:
            catalogue = read_relations(link)
    except ServerError as error:
        yield _silent(("shared", "primary"), "which tables there are", error)
        return
    yield from check_tables(config, catalogue.tables(), catalogue.relations)
    if config.shared.tls.mode.startswith("verify"):
        used = {service.database for service in config.services.values()}
        for endpoint in endpoints:
            if endpoint.database in used and endpoint.role == "primary":
                yield from _check_certificates(config, endpoints[0], endpoint)


def _check_certificates(config: Config, shared: Endpoint, own: Endpoint) -> Iterator[Problem]:
    """Lanes verify the shared database by files that are on the machines of services' own databases."""
    connection = connection_of(shared, config.control)
    path = ("databases", own.database)
    try:
        with connected(own, config.control, "check", ASK_S_MAX) as link:
            refusal = reach(link, connection=connection, name="pgshunt_check")
    except ServerError as error:
        yield _silent((*path, "primary"), "whether its server verifies the shared database", error)
    else:
        if refusal is not None:
            yield Problem((*path, "primary"), *refusal)


def _silent(path: Path, what: str, error: ServerError) -> Problem:
    message = f"it cannot be asked {what}: {error}"
    return Problem(path, message, "see to it and check again, or say --file-only", Severity.WARNING)
