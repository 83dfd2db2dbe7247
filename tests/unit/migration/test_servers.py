"""Work given to a server's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.fixtures import Database
from support.moving import endpoint

from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.migration import servers
from pgshunt.migration.catalogue import read_columns
from pgshunt.migration.rows import ROWS_SETTINGS, Layout, versions_of
from pgshunt.migration.servers import Server, ServerError, Unreachable, connect
from pgshunt.routing.table import Endpoint


def test_work_that_was_given_up_before_it_began_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DROP that its caller takes for failed must not come minutes later."""
    monkeypatch.setattr(servers, "GRACE_S", 0.0)
    control = Control.model_validate({"user": "pgshunt", "password": "hidden"})
    server = Server(Endpoint("own_db", "own_db", "127.0.0.1", 1, "own_db", "primary"), control, "test")
    answered, done = threading.Event(), []

    def at_once(work: Callable[[Any], object], *_: object) -> object:
        return work(None)

    monkeypatch.setattr(server, "_work", at_once)

    async def scenario() -> None:
        with pytest.raises(Unreachable):
            await server.run(lambda link: answered.wait(), 0.01)
        with pytest.raises(Unreachable):
            await server.run(lambda link: done.append("DROP"), 0.01)
        answered.set()
        await server.run(lambda link: done.append("SELECT"), 10)

    asyncio.run(scenario())
    assert done == ["SELECT"]


def test_work_that_was_given_up_while_it_connected_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control.model_validate({"user": "pgshunt", "password": "hidden"})
    server = Server(Endpoint("own_db", "own_db", "127.0.0.1", 1, "own_db", "primary"), control, "test")
    connecting, answered, done = threading.Event(), threading.Event(), []

    class Connected:
        def limit(self, timeout_s: float) -> None: ...

        def abort(self) -> None: ...

        def close(self) -> None:
            done.append("closed")

    def slow(*arguments: object) -> Connected:
        connecting.set()
        answered.wait()
        return Connected()

    monkeypatch.setattr(servers, "connect", slow)

    async def scenario() -> None:
        creating = asyncio.ensure_future(server.run(lambda link: done.append("CREATE")))
        await asyncio.to_thread(connecting.wait)
        creating.cancel()
        await asyncio.wait({creating})
        answered.set()
        assert await asyncio.to_thread(server._thread.drain, 20)

    asyncio.run(scenario())
    assert done == ["closed"]


def test_a_password_that_is_missing_is_asked_for(database: Database) -> None:
    server = database.server
    control = Control.model_validate({"user": server.user})
    endpoint = Endpoint("shared", "shared", server.host, server.port, database.dbname, "primary")
    with pytest.raises(ServerError, match="asks for a password") as raised:
        connect(endpoint, control, "test")
    assert raised.value.sqlstate == "28000"
    assert "PGPASSWORD" in raised.value.hint


def _control(database: Database) -> Control:
    return Control(user=database.server.user, password=Secret(database.server.password))


def test_an_operator_that_a_user_made_does_not_run_with_our_rights(database: Database) -> None:
    """CVE-2018-1058: `nspname || '.'` would find one that fits better than PostgreSQL's own."""
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE ran (as_whom text);"
        "CREATE FUNCTION public.caught(name, name) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO ran VALUES (current_user); RETURN ''; END $$;"
        "CREATE OPERATOR public.|| (LEFTARG = name, RIGHTARG = name, FUNCTION = public.caught)"
    )
    link = connect(endpoint(database, "shared"), _control(database), "test")
    assert read_columns(link, ["public.t"]) == {"public.t": (("id", "integer not null"),)}
    link.close()
    assert database.execute("SELECT count(*) FROM ran") == [[0]]


def test_a_backslash_in_a_key_ends_no_literal(database: Database) -> None:
    """Where a database has standard_conforming_strings off, as old applications want it."""
    key = "\\')); SELECT 1/0; --"
    database.execute(f"ALTER DATABASE {database.dbname} SET standard_conforming_strings = off")
    database.execute("CREATE TABLE t (key text PRIMARY KEY)")
    database.execute("INSERT INTO t VALUES (:key)", key=key)
    link = connect(endpoint(database, "shared"), _control(database), "test", settings=ROWS_SETTINGS)
    layout = Layout("public.t", ("key",), ("key",), ("pg_catalog.text",))
    assert list(versions_of(link, layout, [(key,)])) == [(key,)]
    link.close()
