"""Holds the rules that no section of a configuration can see alone.

Pure: it opens no file and asks no server.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Final

from pgshunt.config.model import Address, Config, Database
from pgshunt.config.problem import Path, Problem, Severity, choose

Rule = Callable[[Config], Iterator[Problem]]


def check(config: Config) -> list[Problem]:
    """Every problem, of every rule; the places in the file are the caller's to add."""
    return [problem for rule in RULES for problem in rule(config)]


def _services_name_known_databases(config: Config) -> Iterator[Problem]:
    for name, service in config.services.items():
        if service.database not in config.databases:
            yield Problem(
                ("services", name, "database"),
                f"there is no database {service.database!r}",
                choose(service.database, config.databases, "databases"),
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
            )


def _each_table_has_one_owner(config: Config) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for name, service in config.services.items():
        for index, table in enumerate(service.tables):
            path: Path = ("services", name, "tables", index)
            if table not in owner:
                owner[table] = name
            elif owner[table] == name:
                yield Problem(path, f"{table} is listed twice", "remove one")
            else:
                yield Problem(
                    path,
                    f"{table} is claimed by {owner[table]} too",
                    "leave it with the one that writes it; the other lists it in external_refs",
                )


def _references_lead_elsewhere(config: Config) -> Iterator[Problem]:
    owned = {table for service in config.services.values() for table in service.tables}
    for name, service in config.services.items():
        for index, table in enumerate(service.external_refs):
            path: Path = ("services", name, "external_refs", index)
            if table in service.tables:
                yield Problem(
                    path, f"{table} is this service's own table", "remove it here", Severity.WARNING
                )
            elif table not in owned:
                yield Problem(
                    path,
                    f"no service owns {table}: it stays on the shared database",
                    "nothing to do if that is meant",
                    Severity.NOTE,
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
                )


def _users_are_named_once(config: Config) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, user in enumerate(config.auth.users):
        if user.name in seen:
            yield Problem(("auth", "users", index, "name"), f"{user.name!r} is listed twice", "remove one")
        seen.add(user.name)


def _scram_has_passwords(config: Config) -> Iterator[Problem]:
    if config.auth.method != "scram-sha-256":
        return
    auth = config.auth
    if not auth.users and auth.users_file is None and auth.lookup is None:
        remedy = "list the services' login roles, or add auth.lookup"
        yield Problem(("auth", "users"), "is empty, so nobody can log in", remedy)
    for index, user in enumerate(auth.users):
        if user.verifier is None and all(getattr(user, field) is None for field in user.secret_fields()):
            yield Problem(
                ("auth", "users", index),
                f"{user.name!r} has no password",
                "add password_file, password_env or password",
            )


def _certificates_are_verified(config: Config) -> Iterator[Problem]:
    if config.auth.method == "cert" and not config.listen.tls.mode.startswith("verify"):
        yield Problem(
            ("auth", "method"),
            "cert needs client certificates that were verified",
            "set listen.tls.mode: verify-full, with a ca_file",
        )


def _trust_stays_local(config: Config) -> Iterator[Problem]:
    if config.auth.method == "trust" and not config.auth.trust_remote and not is_loopback(config.listen.host):
        yield Problem(
            ("auth", "method"),
            f"trust lets everyone who reaches {config.listen.host} in as anyone",
            "use scram-sha-256, listen on 127.0.0.1, or set auth.trust_remote: true",
        )


def _admin_is_guarded(config: Config) -> Iterator[Problem]:
    admin = config.admin
    if not is_loopback(admin.host) and all(getattr(admin, field) is None for field in admin.secret_fields()):
        yield Problem(
            ("admin", "host"),
            f"{admin.host} can be reached by others and there is no token",
            "add token_file or token_env, or bind to 127.0.0.1",
        )


def _ports_are_apart(config: Config) -> Iterator[Problem]:
    listen, admin = config.listen, config.admin
    if listen.port and (listen.host, listen.port) == (admin.host, admin.port):
        yield Problem(("admin", "port"), f"{admin.port} is listen.port too", "choose another port")


def _each_endpoint_belongs_to_one_database(config: Config) -> Iterator[Problem]:
    first: dict[tuple[str, int, str], Path] = {}
    for path, database, address in _endpoints(config):
        key = (address.host, address.port, database.dbname)
        other = first.setdefault(key, path)
        if other != path:
            where = f"{address.host}:{address.port}/{database.dbname}"
            owner = other[0] if other[0] == "shared" else f"databases.{other[1]}"
            yield Problem(path, f"{where} is already an endpoint of {owner}", "name another server or dbname")


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
            )


def _limits_leave_connections(config: Config) -> Iterator[Problem]:
    limits = config.pools.server_connections
    path: Path = ("pools", "server_connections")
    if limits.available <= 0:
        yield Problem(
            path,
            "nothing is left of total after reserved and monitoring",
            f"raise total above {limits.reserved + limits.monitoring}, or lower the others",
        )
    elif (wanted := _links_wanted(config)) > limits.available:
        yield Problem(
            path,
            f"full pools take {wanted} server connections, {limits.available} are left for them",
            "lower pools.default_pool_size or raise total, else sessions wait for links",
            Severity.WARNING,
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
