"""A reload brings into force what it can and names the rest; no value is ever shown."""

from __future__ import annotations

from typing import Any

from pgshunt.admin.reload import changes, merged
from pgshunt.config.model import Config


def config(**sections: Any) -> Config:
    base: dict[str, Any] = {
        "version": 1,
        "shared": {"dbname": "monolith", "primary": {"host": "127.0.0.1"}},
        "control": {"user": "pgshunt", "password": "first"},
        "databases": {"auth_db": {"primary": {"host": "127.0.0.1", "port": 5433}}},
        "services": {"auth_service": {"database": "auth_db", "tables": ["users"]}},
        "admin": {"token": "one"},
    }
    return Config.model_validate({**base, **sections})


def service(**keys: Any) -> dict[str, Any]:
    return {"auth_service": {"database": "auth_db", "tables": ["users"], **keys}}


def test_nothing_changed() -> None:
    assert not changes(config(), config())


def test_live_changes_take_effect() -> None:
    new = config(
        rollback={"error_rate_percent_max": 1.5, "consistency_percent_min": 99.0},
        services=service(shadow_writes="validate", shadow_percent=50),
        admin={"token": "two"},
    )
    found = changes(config(), new)
    assert found.restart == ()
    assert found.live == (
        "admin.token",
        "rollback.consistency_percent_min",
        "rollback.error_rate_percent_max",
        "services.auth_service.shadow_percent",
        "services.auth_service.shadow_writes",
    )
    assert merged(config(), new) == new


def test_what_needs_a_restart_is_named_and_left_as_it_was() -> None:
    new = config(
        listen={"port": 7000},
        control={"user": "pgshunt", "password": "second"},
        rollback={"error_rate_percent_max": 1.5, "latency_ms_max": 500},
        services={
            **service(tables=["users", "roles"]),
            "dgm_service": {"database": "auth_db", "tables": ["x"]},
        },
    )
    found = changes(config(), new)
    assert found.live == ("rollback.error_rate_percent_max",)
    assert {"listen.port", "control.password", "rollback.latency_ms_max"} < set(found.restart)
    assert "services.auth_service.tables" in found.restart
    assert any(path.startswith("services.dgm_service") for path in found.restart)
    after = merged(config(), new)
    assert after.rollback.error_rate_percent_max == 1.5
    assert after == config(rollback={"error_rate_percent_max": 1.5})


def test_whether_there_is_a_token_is_not_changed_by_a_reload() -> None:
    found = changes(config(), config(admin={}))
    assert found.restart == ("admin.token",)
    assert merged(config(), config(admin={})).admin == config().admin


def test_changed_secrets_are_named_not_shown() -> None:
    found = changes(config(), config(control={"user": "pgshunt", "password": "second"}))
    assert "second" not in repr(found)


def test_the_clients_tls_is_live_whatever_of_it_changes() -> None:
    tls = {"mode": "require", "certificate_file": "/own.crt", "key_file": "/own.key"}
    after = config(listen={"tls": tls})
    found = changes(config(), after)
    assert found.restart == () and "listen.tls.mode" in found.live
    assert merged(config(), after).listen == after.listen
    assert changes(after, config()).restart == ()
