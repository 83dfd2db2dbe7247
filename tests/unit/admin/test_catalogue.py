"""The catalogue is read again as soon as workers have told of a definition, else only now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pgshunt.admin import catalogue as keeping
from pgshunt.admin.catalogue import CatalogueKeeper
from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server
from pgshunt.routing.table import Catalogue, Endpoint

NEVER_S = 3600.0
LONG_S = 30.0


class Keeping:
    """A keeper that runs, what it published, and the count of definitions it looks at."""

    def __init__(self, server: Server) -> None:
        self.defined = 0
        self.published: asyncio.Queue[Catalogue] = asyncio.Queue()
        self.keeper = CatalogueKeeper(
            Endpoint("shared", "shared", "127.0.0.1", server.port, "postgres", "primary"),
            Control(user=server.user, password=Secret(server.password)),
            self.published.put,
            lambda kind, detail: None,
            lambda: (self.defined,),
        )

    async def next(self) -> Catalogue:
        return await asyncio.wait_for(self.published.get(), LONG_S)


def run(server: Server, story: Callable[[Keeping], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        kept = Keeping(server)
        assert await kept.keeper.read()
        running = asyncio.ensure_future(kept.keeper.run())
        try:
            await story(kept)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await kept.keeper.close()

    asyncio.run(main())


def test_a_definition_is_read_when_workers_have_told_of_it(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "READ_EVERY_S", NEVER_S)
    monkeypatch.setattr(keeping, "ASK_EVERY_S", NEVER_S)

    async def story(kept: Keeping) -> None:
        for count in (1, 2):
            kept.defined = count
            kept.keeper.look()
            assert (await kept.next()).definitions == (count,)

    run(postgres, story)


def test_a_definition_nobody_told_of_is_seen_with_the_next_question(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "READ_EVERY_S", NEVER_S)
    monkeypatch.setattr(keeping, "ASK_EVERY_S", 0.05)

    async def story(kept: Keeping) -> None:
        kept.defined = 1
        assert (await kept.next()).definitions == (1,)

    run(postgres, story)


def test_nothing_is_read_again_while_nothing_is_defined(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "READ_EVERY_S", NEVER_S)
    monkeypatch.setattr(keeping, "ASK_EVERY_S", NEVER_S)

    async def story(kept: Keeping) -> None:
        kept.keeper.look()
        kept.defined = 7
        kept.keeper.look()
        assert (await kept.next()).definitions == (7,)
        assert kept.published.empty()

    run(postgres, story)
