"""The catalogue's keeper on a real server: what it says where the catalogue cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from support.fixtures import Database
from support.moving import endpoint

from pgshunt.admin import catalogue as catalogue_module
from pgshunt.admin.catalogue import CatalogueKeeper
from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.migration.servers import Link
from pgshunt.routing.table import Catalogue

Told = list[tuple[str, Mapping[str, Any]]]


async def _changed(catalogue: Catalogue) -> None: ...


def _keeper(database: Database, told: Told) -> CatalogueKeeper:
    control = Control(user=database.server.user, password=Secret(database.server.password))
    return CatalogueKeeper(
        endpoint(database, "shared"), control, _changed, lambda kind, detail: told.append((kind, detail))
    )


def test_what_is_temporary_changes_nothing_in_the_catalogue(database: Database) -> None:
    """Else every report that sorts something in a temporary table has all code read again."""
    database.execute(
        "CREATE TYPE mood AS ENUM ('well'); CREATE TABLE base (id serial PRIMARY KEY, of mood); "
        "CREATE VIEW seen AS SELECT id FROM base; "
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
    )

    async def scenario() -> None:
        keeper = _keeper(database, [])
        assert await keeper.read()
        known = keeper.catalogue
        session = database.connect()
        session.run(
            "CREATE TEMP TABLE sorted (id serial PRIMARY KEY, of mood, moods mood[], "
            "note text DEFAULT now()::text, CHECK (id > 0)); "
            "CREATE TEMP TABLE part (parent int REFERENCES sorted ON DELETE CASCADE) INHERITS (sorted); "
            "CREATE TEMP VIEW looked AS SELECT * FROM seen JOIN sorted USING (id); "
            "CREATE TYPE pg_temp.pair AS (a mood, b int); "
            "CREATE DOMAIN pg_temp.few AS int CHECK (VALUE < 9); "
            "CREATE FUNCTION pg_temp.one() RETURNS int LANGUAGE sql AS 'SELECT 1'; "
            "ALTER TABLE sorted ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON sorted USING (true); "
            "CREATE INDEX ON sorted (lower(note)) WHERE id > 0; "
            "CREATE TRIGGER t BEFORE INSERT ON sorted FOR EACH ROW EXECUTE FUNCTION noted(); "
            "CREATE RULE r AS ON DELETE TO sorted DO ALSO SELECT 1"
        )
        assert not await keeper.read()
        assert keeper.catalogue is known
        session.run("CREATE INDEX ON base (of)")
        assert await keeper.read()
        assert keeper.catalogue.code is not known.code
        session.close()
        await keeper.close()

    asyncio.run(scenario())


def test_a_lock_on_a_table_keeps_the_catalogue_old_but_not_the_database_from_being_used(
    database: Database,
) -> None:
    """A long ALTER TABLE is no reason to take every pgshunt out of service."""
    database.execute("CREATE TABLE base (id int); CREATE VIEW seen AS SELECT id FROM base")
    told: Told = []

    async def scenario() -> None:
        keeper = _keeper(database, told)
        locking = database.connect()
        locking.run("BEGIN; LOCK TABLE base IN ACCESS EXCLUSIVE MODE")
        assert not await keeper.read()
        assert "lock timeout" in keeper.behind
        assert keeper.error == keeper.behind  # nothing at all is known yet
        locking.run("ROLLBACK")
        assert await keeper.read()
        assert (keeper.behind, keeper.error) == ("", "")
        known = keeper.catalogue
        database.execute("CREATE VIEW later AS SELECT id FROM seen")
        locking.run("BEGIN; LOCK TABLE base IN ACCESS EXCLUSIVE MODE")
        for _ in range(2):
            assert not await keeper.read()
        assert "lock timeout" in keeper.behind
        assert (keeper.error, keeper.catalogue) == ("", known)
        locking.run("ROLLBACK")
        assert await keeper.read()
        assert "public.later" in keeper.catalogue.relations
        assert (keeper.behind, keeper.error) == ("", "")
        await keeper.close()
        locking.close()

    asyncio.run(scenario())
    assert [kind for kind, _ in told] == ["catalogue_behind", "catalogue_current"]


def test_a_catalogue_that_takes_too_long_in_all_is_no_reason_either(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is answered in time, all of them are not."""
    told: Told = []

    def slow(link: Link, **_: object) -> Catalogue:
        for _ in range(1000):
            link.rows("SELECT pg_sleep(0.1)")
        return Catalogue()

    async def scenario() -> None:
        keeper = _keeper(database, told)
        assert await keeper.read()
        monkeypatch.setattr(catalogue_module, "read_catalogue", slow)
        assert not await keeper.read(0.2)
        assert "no answer within 0.2 s" in keeper.behind
        assert keeper.error == ""
        await keeper.close()

    asyncio.run(scenario())


def test_a_defect_in_reading_keeps_the_catalogue_as_it_is_and_the_keeper_alive(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Told = []

    def broken(*_: object, **__: object) -> Catalogue:
        raise RecursionError("a body like no other")

    async def scenario() -> None:
        keeper = _keeper(database, told)
        assert await keeper.read()
        with monkeypatch.context() as patch:
            patch.setattr(catalogue_module, "read_catalogue", broken)
            assert not await keeper.read()
        assert "a body like no other" in keeper.behind
        assert (keeper.error, keeper.catalogue.version) == ("", 1)
        assert not await keeper.read()
        assert (keeper.behind, keeper.error) == ("", "")
        await keeper.close()

    asyncio.run(scenario())
