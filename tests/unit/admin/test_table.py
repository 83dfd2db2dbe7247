"""A configuration becomes a routing table whose endpoints keep their places."""

from __future__ import annotations

from typing import Any

from pgshunt.admin.offline import planned
from pgshunt.admin.table import routing_table
from pgshunt.config.model import Config

RAW: dict[str, Any] = {
    "version": 1,
    "shared": {
        "dbname": "monolith",
        "primary": {"host": "one"},
        "replicas": [{"host": "two", "port": 5433}, {"host": "three"}],
    },
    "control": {"user": "pgshunt"},
    "databases": {
        "dgm_db": {"primary": {"host": "four"}},
        "auth_db": {"dbname": "auth", "primary": {"host": "five"}, "replicas": [{"host": "six"}]},
    },
    "services": {
        "auth_service": {
            "database": "auth_db",
            "tables": ["users", "app.tokens"],
            "external_refs": ["audit_logs"],
            "users": ["auth"],
            "shadow_writes": "validate",
            "shadow_percent": 50,
            "reads": 10,
        }
    },
}


def test_endpoints_begin_with_the_shared_primary() -> None:
    table = routing_table(Config.model_validate(RAW))
    assert [
        (endpoint.name, endpoint.host, endpoint.dbname, endpoint.role) for endpoint in table.endpoints
    ] == [
        ("shared", "one", "monolith", "primary"),
        ("shared/1", "two", "monolith", "replica"),
        ("shared/2", "three", "monolith", "replica"),
        ("dgm_db", "four", "dgm_db", "primary"),
        ("auth_db", "five", "auth", "primary"),
        ("auth_db/1", "six", "auth", "replica"),
    ]
    assert table.endpoints[1].port == 5433


def test_no_service_has_moved_whatever_the_plan_says() -> None:
    (service,) = routing_table(Config.model_validate(RAW)).services
    assert (service.stage, service.reads_percent, service.copied) == ("shared", 0, ())
    assert service.tables == ("public.users", "app.tokens")
    assert (service.shadow_writes, service.shadow_percent, service.users) == ("validate", 50.0, ("auth",))


def test_the_plan_shows_every_service_reading() -> None:
    (service,) = planned(Config.model_validate(RAW)).services
    assert (service.stage, service.reads_percent) == ("reading", 10)
    assert service.copied == ("public.users", "app.tokens", "public.audit_logs")
