"""Measures what routing costs by itself: looking a shape up, parsing a new one, deciding where it runs."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from pgshunt.routing._shapes import ShapeCache, bench_lookup
from pgshunt.routing.classify import classify, resolver
from pgshunt.routing.decide import decide
from pgshunt.routing.placement import Placement
from pgshunt.routing.table import Catalogue, Endpoint, RoutingTable, Service

PUBLIC = ("public",)
STATEMENTS: Mapping[str, str] = {
    "pgbench -S": "SELECT abalance FROM pgbench_accounts WHERE aid = 1000000;",
    "join of three": (
        "SELECT u.id, u.email, array_agg(p.name) FROM users u JOIN roles r ON r.id = u.role_id "
        "JOIN permissions p ON p.role_id = r.id WHERE u.tenant = 'north' GROUP BY u.id OFFSET 1000000"
    ),
    "join and subselect": (
        "SELECT u.id, u.name, r.name AS role, count(p.id) AS permissions FROM users u "
        "JOIN roles r ON r.id = u.role_id LEFT JOIN permissions p ON p.role_id = r.id "
        "WHERE u.tenant = 'north' AND u.id IN (SELECT s.user_id FROM sessions s WHERE s.seen > '2026-01-01') "
        "GROUP BY u.id, u.name, r.name ORDER BY u.name LIMIT 50 OFFSET 1000000"
    ),
    "20 columns (ORM)": (
        f"""SELECT {", ".join(f'"users"."column_{number}"' for number in range(20))} FROM "users" """
        """WHERE "users"."tenant" = 'north' AND "users"."status" IN ('new', 'active') """
        """ORDER BY "users"."created_at" DESC, "users"."id" ASC LIMIT 50 OFFSET 1000000"""
    ),
    "update": (
        "UPDATE users SET name = 'a', email = 'b', updated_at = now() "
        "WHERE tenant = 'north' AND status <> 'gone' RETURNING id, name, email, updated_at, 1000000"
    ),
    "insert": (
        "INSERT INTO tokens (user_id, kind, value, expires_at) VALUES (17, 'refresh', 'e3b0c442', now()) "
        "ON CONFLICT (user_id) DO UPDATE SET value = excluded.value RETURNING id, 1000000"
    ),
}
"""Each ends in a number of many digits: counted up, it makes texts that were never seen."""
LOOKUPS, PARSES, DECISIONS = 500_000, 500, 20_000


def measure() -> dict[str, dict[str, float]]:
    """Nanoseconds for one statement, by statement and kind of work."""
    table = _table()
    relations = {name: "r" for service in table.services for name in service.tables}
    safe = frozenset({"array_agg", "count", "now"})  # what is not PostgreSQL's own would be followed
    catalogue = Catalogue(version=1, relations=relations, safe_functions=safe, search_path="public")
    placement = Placement.of(table)
    measured = {}
    for name, sql in STATEMENTS.items():
        cache = ShapeCache(resolver(catalogue))
        shape = classify(sql, PUBLIC, catalogue)
        measured[name] = {
            "text_seen_ns": bench_lookup(cache, sql.encode(), LOOKUPS),
            "shape_seen_ns": bench_lookup(cache, sql.encode(), LOOKUPS, True),
            "parse_ns": _time_ns(partial(classify, sql, PUBLIC, catalogue), PARSES),
            "decide_ns": _time_ns(partial(decide, shape, table, placement), DECISIONS),
        }
    return measured


def report(measured: Mapping[str, Mapping[str, float]]) -> None:
    """Prints one line for each statement; times in ns, decisions also by the second."""
    line = "{:19}{:>11}{:>12}{:>10}{:>10}{:>14}"
    print(line.format("ns a statement", "text seen", "shape seen", "parse", "decide", "decisions/s"))
    for name, times in measured.items():
        figures = (
            f"{times[kind]:.0f}" for kind in ("text_seen_ns", "shape_seen_ns", "parse_ns", "decide_ns")
        )
        print(line.format(name, *figures, f"{1e9 / times['decide_ns']:,.0f}"))
    print()


def _time_ns(work: Callable[[], object], count: int) -> float:
    """Time of one run of `work`, the best of three goes: what disturbs a measurement only ever adds to it."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter_ns()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter_ns() - started) / count)
    return best


def _table() -> RoutingTable:
    """Two services, one of them with split reads, so that decisions have something to decide."""
    endpoints = tuple(
        Endpoint(name, database, "127.0.0.1", 5432, database, "primary")
        for name, database in (("shared", "shared"), ("auth_db", "auth_db"), ("bench_db", "bench_db"))
    )
    auth = tuple(f"public.{table}" for table in ("users", "roles", "permissions", "sessions", "tokens"))
    bench = tuple(f"public.pgbench_{table}" for table in ("accounts", "branches", "tellers", "history"))
    services = (
        Service("auth", "auth_db", auth, stage="reading", reads_percent=50, copied=auth),
        Service("bench", "bench_db", bench),
    )
    return RoutingTable(epoch=1, endpoints=endpoints, services=services)


if __name__ == "__main__":
    report(measure())
