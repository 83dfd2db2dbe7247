"""Tenants told apart by a custom parameter and row level security, many of them on two links."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import psycopg
from drivers.sides import Sides

SESSIONS = 20
TURNS = 25

SETUP = """
CREATE ROLE tenant_reader;
CREATE TABLE belonging (tenant int, v text);
INSERT INTO belonging SELECT t, 'of ' || t FROM generate_series(1, 20) t, generate_series(1, 3);
ALTER TABLE belonging ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON belonging USING (tenant = current_setting('app.current_tenant_id')::int);
GRANT SELECT, INSERT ON belonging TO tenant_reader
"""


def live(sides: Sides, tenant: int) -> list[object]:
    """One session's life: it must never see a row of another tenant, nor work without a tenant."""
    choose = random.Random(tenant)
    wrong: list[object] = []
    keywords = sides.run(sides.proxy_port).keywords
    with psycopg.connect(**keywords, dbname=sides.database.dbname, autocommit=True) as connection:
        connection.execute("SET ROLE tenant_reader")
        connection.execute(f"SET app.current_tenant_id = '{tenant}'")
        for _ in range(TURNS):
            shown = tenant
            kind = choose.randrange(4)
            with connection.transaction(force_rollback=kind == 1):
                if kind == 0:
                    shown = choose.randint(1, SESSIONS)
                    connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(shown)])
                elif kind == 1:
                    shown = choose.randint(1, SESSIONS)
                    connection.execute(f"SET app.current_tenant_id = '{shown}'")
                elif kind == 2:
                    connection.execute("INSERT INTO belonging VALUES (%s, %s)", [tenant, f"of {tenant}"])
                seen = {row[0] for row in connection.execute("SELECT v FROM belonging")}
                if seen != {f"of {shown}"}:
                    wrong.append((tenant, shown, seen))
            owner = connection.execute(
                "SELECT current_user, current_setting('app.current_tenant_id')"
            ).fetchone()
            if owner != ("tenant_reader", str(tenant)):
                wrong.append((tenant, owner))
    return wrong


def test_no_tenant_sees_anothers_rows(sides: Sides) -> None:
    sides.database.execute(SETUP)
    try:
        with ThreadPoolExecutor(SESSIONS) as pool:
            assert [
                wrong
                for found in pool.map(lambda t: live(sides, t), range(1, SESSIONS + 1))
                for wrong in found
            ] == []
    finally:
        sides.database.execute("DROP OWNED BY tenant_reader; DROP ROLE tenant_reader")
