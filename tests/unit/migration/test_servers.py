"""Work given to a server's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.fixtures import Database

from pgshunt.config.model import Control
from pgshunt.migration import servers
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
