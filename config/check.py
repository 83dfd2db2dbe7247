"""Holds the rules that no value of a configuration can see alone.

A rule says of each problem which other values it follows from: where one of them is wrong by itself,
something else stands in its place here, and the problem may be due to that. Pure: it opens no file and asks
no server.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Final

from pgshunt.config.model import Address, Config, Database, SecretSection, Section
from pgshunt.config.ownership import assign
from pgshunt.config.problem import Path, Problem, Severity, choose
from pgshunt.config.values import DATABASE_NAME, NAME_BYTES_MAX, SERVICE_NAME, is_identifier

Rule = Callable[[Config], Iterator[Problem]]


def check(config: Config) -> list[Problem]:
    """Every problem, of every rule; the places in the file are the caller's to add."""
    return [problem for rule in RULES for problem in rule(config)]


def check_sections(config: Config) -> list[Problem]:
    """What is wrong within single sections; of a configuration as it was written, no secret read yet."""
    return [
        Problem(path, fault.message, fault.remedy, follows_from=_fields(path, fault.fields))
        for path, section in _sections(config, ())
        for fault in section.faults()
    ]


def _sections(value: object, path: Path) -> Iterator[tuple[Path, Section]]:
    items: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, Section):
        yield path, value
        items = value
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, tuple):
        items = enumerate(value)
    for step, inner in items:
        yield from _sections(inner, (*path, step))


def _fields(section: Path, names: Iterable[str]) -> tuple[Path, ...]:
    return tuple((*section, name) for name in names)


def _secrets(path: Path, section: SecretSection) -> tuple[Path, ...]:
    return _fields(path, section.secret_fields())


def _logins(config: Config) -> tuple[Path, ...]:
    """All that says who may log in."""
    names: list[Path] = [("auth", "users", index, "name") for index in range(len(config.auth.users))]
    return *names, *_fields(("auth",), ("users", "users_file", "lookup"))


def _owned_tables(config: Config) -> tuple[Path, ...]:
    return tuple(
        ("services", name, "tables", index)
        for name, service in config.services.items()
        for index in range(len(service.tables))
    )


def _keys_are_names(config: Config) -> Iterator[Problem]:
    for section, names, pattern in (
        ("databases", config.databases, DATABASE_NAME),
        ("services", config.services, SERVICE_NAME),
    ):
        for name in names:
            if re.fullmatch(pattern, name) is None:
                remedy = f"write one that matches {pattern}"
                yield Problem((section, name), "is not a usable name", remedy, at_key=True)
    for name in config.pools.users:
        if not is_identifier(name):
            remedy = f"PostgreSQL's names have 1 to {NAME_BYTES_MAX} bytes"
            yield Problem(("pools", "users", name), "is no user's name", remedy, at_key=True)


def _services_name_known_databases(config: Config) -> Iterator[Problem]:
    for name, service in config.services.items():
        if service.database not in config.databases:
            yield Problem(
                ("services", name, "database"),
                f"there is no database {service.database!r}",
                choose(service.database, config.databases, "databases"),
                follows_from=(("databases",),),
            )


def _names_are_free(config: Config) -> Iterator[Problem]:
    if "shared" in config.databases:
        yield Problem(
            ("databases", "shared"),
            "is the name of the shared database",
            "give this database another name",
            at_key=True,
        )


def _each_database_serves_one_service(config: Config) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for name, service in config.services.items():
        other = first.setdefault(service.database, name)
        if other != name:
            yield Problem(
                ("services", name, "database"),
                f"{service.database} is also the database of {other}: a fault there takes both",
                "give each service a database of its own",
                Severity.WARNING,
                follows_from=(("services", other, "database"),),
            )


def _each_table_has_one_owner(config: Config) -> Iterator[Problem]:
    first: dict[str, Path] = {}
    for name, service in config.services.items():
        for index, table in enumerate(service.tables):
            path: Path = ("services", name, "tables", index)
            other = first.setdefault(table, path)
            if other == path:
                continue
            message, remedy = f"{table} is listed twice", "remove one"
            if other[1] != name:
                message = f"{table} is claimed by {other[1]} too"
                remedy = "leave it with the one that writes it; the other lists it in external_refs"
            yield Problem(path, message, remedy, follows_from=(other,))


def _references_lead_elsewhere(config: Config) -> Iterator[Problem]:
    named = {table for service in config.services.values() for table in service.external_refs}
    owners = assign(config.services, named)
    owned = {table for tables in owners.tables.values() for table in tables} | owners.contested.keys()
    for name, service in config.services.items():
        for index, table in enumerate(service.external_refs):
            path: Path = ("services", name, "external_refs", index)
            if table in owners.tables[name]:
                yield Problem(
                    path, f"{table} is this service's own table", "remove it here", Severity.WARNING
                )
            elif table not in owned:
                yield Problem(
                    path,
                    f"no service owns {table}: it stays on the shared database",
                    "nothing to do if that is meant",
                    Severity.NOTE,
                    follows_from=_owned_tables(config),
                )


def _service_users_can_log_in(config: Config) -> Iterator[Problem]:
    logins = {user.name for user in config.auth.users}
    if not logins or config.auth.lookup is not None:
        return
    for name, service in config.services.items():
        for index, user in enumerate(service.users):
            if user not in logins:
                yield Problem(
                    ("services", name, "users", index),
                    f"{user!r} is not among auth.users and cannot log in",
                    choose(user, logins, "auth.users"),
                    Severity.WARNING,
                    follows_from=_logins(config),
                )


def _users_are_named_once(config: Config) -> Iterator[Problem]:
    first: dict[str, Path] = {}
    for index, user in enumerate(config.auth.users):
        path: Path = ("auth", "users", index, "name")
        other = first.setdefault(user.name, path)
        if other != path:
            yield Problem(path, f"{user.name!r} is listed twice", "remove one", follows_from=(other,))


def _scram_has_passwords(config: Config) -> Iterator[Problem]:
    if config.auth.method != "scram-sha-256":
        return
    auth, method = config.auth, ("auth", "method")
    if not auth.users and auth.users_file is None and auth.lookup is None:
        remedy = "list the services' login roles, or add auth.lookup"
        yield Problem(
            ("auth", "users"),
            "is empty, so nobody can log in",
            remedy,
            follows_from=(method, *_logins(config)),
        )
    for index, user in enumerate(auth.users):
        if user.verifier is None and not user.given_secrets():
            path: Path = ("auth", "users", index)
            yield Problem(
                path,
                f"{user.name!r} has no password",
                "add password_file, password_env or password",
                follows_from=(method, (*path, "name"), (*path, "verifier"), *_secrets(path, user)),
            )


def _certificates_are_verified(config: Config) -> Iterator[Problem]:
    if config.auth.method == "cert" and not config.listen.tls.mode.startswith("verify"):
        yield Problem(
            ("auth", "method"),
            "cert needs client certificates that were verified",
            "set listen.tls.mode: verify-full, with a ca_file",
            follows_from=(("listen", "tls", "mode"),),
        )


def _trust_stays_local(config: Config) -> Iterator[Problem]:
    if config.auth.method == "trust" and not config.auth.trust_remote and not is_loopback(config.listen.host):
        yield Problem(
            ("auth", "method"),
            f"trust lets everyone who reaches {config.listen.host} in as anyone",
            "use scram-sha-256, listen on 127.0.0.1, or set auth.trust_remote: true",
            follows_from=(("auth", "trust_remote"), ("listen", "host")),
        )


def _admin_is_guarded(config: Config) -> Iterator[Problem]:
    admin = config.admin
    if not is_loopback(admin.host) and not admin.given_secrets():
        yield Problem(
            ("admin", "host"),
            f"{admin.host} can be reached by others and there is no token",
            "add token_file or token_env, or bind to 127.0.0.1",
            follows_from=_secrets(("admin",), admin),
        )


def _ports_are_apart(config: Config) -> Iterator[Problem]:
    listen, admin = config.listen, config.admin
    if listen.port and (listen.host, listen.port) == (admin.host, admin.port):
        yield Problem(
            ("admin", "port"),
            f"{admin.port} is listen.port too",
            "choose another port",
            follows_from=(("admin", "host"), *_fields(("listen",), ("host", "port"))),
        )


def _each_endpoint_belongs_to_one_database(config: Config) -> Iterator[Problem]:
    first: dict[tuple[str, int, str], Path] = {}
    for path, database, address in _endpoints(config):
        key = (address.host, address.port, database.dbname)
        other = first.setdefault(key, path)
        if other != path:
            where = f"{address.host}:{address.port}/{database.dbname}"
            owner = other[0] if other[0] == "shared" else f"databases.{other[1]}"
            yield Problem(
                path,
                f"{where} is already an endpoint of {owner}",
                "name another server or dbname",
                follows_from=(*_whereabouts(path), *_whereabouts(other)),
            )


def _whereabouts(endpoint: Path) -> tuple[Path, ...]:
    """The three values that say which endpoint it is."""
    database = endpoint[:1] if endpoint[0] == "shared" else endpoint[:2]
    return *_fields(endpoint, ("host", "port")), (*database, "dbname")


def _databases(config: Config) -> Iterator[tuple[Path, Database]]:
    yield ("shared",), config.shared
    for name, database in config.databases.items():
        yield ("databases", name), database


def _endpoints(config: Config) -> Iterator[tuple[Path, Database, Address]]:
    for path, database in _databases(config):
        yield (*path, "primary"), database, database.primary
        for index, replica in enumerate(database.replicas):
            yield (*path, "replicas", index), database, replica


def _pools_fit_their_servers(config: Config) -> Iterator[Problem]:
    size = config.pools.default_pool_size
    for path, database in _databases(config):
        if size > database.max_connections:
            yield Problem(
                (*path, "max_connections"),
                f"{database.max_connections} is less than one pool ({size})",
                "raise it on the server and here, or lower pools.default_pool_size",
                follows_from=(("pools", "default_pool_size"),),
            )


def _limits_leave_connections(config: Config) -> Iterator[Problem]:
    limits = config.pools.server_connections
    path: Path = ("pools", "server_connections")
    totals = _fields(path, ("total", "reserved", "monitoring"))
    if limits.available <= 0:
        yield Problem(
            path,
            "nothing is left of total after reserved and monitoring",
            f"raise total above {limits.reserved + limits.monitoring}, or lower the others",
            follows_from=totals,
        )
    elif (wanted := _links_wanted(config)) > limits.available:
        yield Problem(
            path,
            f"full pools take {wanted} server connections, {limits.available} are left for them",
            "lower pools.default_pool_size or raise total, else sessions wait for links",
            Severity.WARNING,
            follows_from=(
                *totals,
                ("pools", "default_pool_size"),
                *_logins(config),
                *(("services", name, "database") for name in config.services),
            ),
        )


def _links_wanted(config: Config) -> int:
    """Links of all full pools: each login has one at the shared database and one at each of its services."""
    logins = {user.name for user in config.auth.users}
    pools_of: defaultdict[str, set[str]] = defaultdict(set)
    for service in config.services.values():
        pools_of[service.database] |= set(service.users) or logins
    servers = (1 + len(config.shared.replicas)) * len(logins)
    for name, database in config.databases.items():
        servers += (1 + len(database.replicas)) * len(pools_of[name])
    return servers * config.pools.default_pool_size


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


RULES: Final[tuple[Rule, ...]] = (
    _keys_are_names,
    _services_name_known_databases,
    _names_are_free,
    _each_database_serves_one_service,
    _each_table_has_one_owner,
    _references_lead_elsewhere,
    _service_users_can_log_in,
    _users_are_named_once,
    _scram_has_passwords,
    _certificates_are_verified,
    _trust_stays_local,
    _admin_is_guarded,
    _ports_are_apart,
    _each_endpoint_belongs_to_one_database,
    _pools_fit_their_servers,
    _limits_leave_connections,
)
