"""Looks up users' SCRAM verifiers where the shared database keeps them.

One link of a role that may read them, opened when first needed. A round asks for all users who wait at its
beginning; who comes later waits for the next round. So nobody is judged by what was true before he came, and
a storm of logins costs two questions for each user, not one for each login.

Whether anybody can be asked is tried at the start, and every second after a failure: an operator learns of
it before a client does, and that it is over without one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from pgshunt.config.model import Lookup
from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError, read_error
from pgshunt.protocol.phases import Frontend
from pgshunt.protocol.scram import ScramVerifier, parse_verifier
from pgshunt.proxy.connect import LinkError, OpenedLink, open_link
from pgshunt.routing.table import Endpoint

log = logging.getLogger("pgshunt.lookup")

ROUND_MS_MAX = 5_000
RETRY_S = 1.0
NOBODY = ""
"""Who is asked about to try whether anybody can be: no user has an empty name."""
_TEXT_OID = 25
# What a client sets before it is known reaches no link, this one least of all (CVE-2025-12819).
SETTINGS = {b"search_path": b"pg_catalog, pg_temp", b"application_name": b"pgshunt lookup"}

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class LookupFailed(PgError):
    """Nobody can be asked now, or the question is wrong; the client is not told which."""

    def __init__(self) -> None:
        super().__init__(
            "authentication is not possible now",
            sqlstate="57P03",
            hint="The proxy cannot read the users' verifiers from the shared database. Try again; if that"
            " does not help, have the proxy's operator look at `pgshunt status`, which says why.",
        )


class Verifiers:
    """Asks as the configuration says. `spawn` runs a task of the worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spawn: Spawn,
        endpoint: Endpoint,
        lookup: Lookup,
        report: Callable[[str], None],
    ) -> None:
        """`report` hears why nobody can be asked, once for each reason, and "" when it is over."""
        self._loop = loop
        self._spawn = spawn
        self._report = report
        self._failure = ""
        self._retry: asyncio.TimerHandle | None = None
        self._endpoint = endpoint
        self._role = lookup.user
        self._password = lookup.password.reveal() if lookup.password else None
        self._question = messages.parse(b"", lookup.query.encode(), (_TEXT_OID,))
        self._link: OpenedLink | None = None
        self._waiting: dict[str, asyncio.Future[ScramVerifier | None]] = {}
        self._is_running = False

    async def find(self, user: str) -> ScramVerifier | None:
        """The user's verifier as it is now; None if he cannot log in. Raises LookupFailed."""
        future = self._waiting.get(user)
        if future is None:
            future = self._waiting[user] = self._loop.create_future()
        if not self._is_running:
            self._is_running = True
            self._spawn(self._run())
        return await asyncio.shield(future)

    def start(self) -> None:
        """Tries whether anybody can be asked."""
        self._spawn(self._try())

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._drop_link()

    async def _try(self) -> None:
        with suppress(LookupFailed):  # which was reported
            await self.find(NOBODY)

    def _note(self, failure: str) -> None:
        """How the latest round has ended. `failure` is empty if it was answered."""
        if failure != self._failure:
            self._failure = failure
            self._report(failure)
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._loop.call_later(RETRY_S, self.start) if failure else None

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.socket.close()
            self._link = None

    async def _run(self) -> None:
        """Round after round, while somebody waits."""
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, {}
                await self._round(asked)
        finally:
            self._is_running = False

    async def _round(self, asked: dict[str, asyncio.Future[ScramVerifier | None]]) -> None:
        try:
            async with asyncio.timeout(ROUND_MS_MAX / 1000):
                answers = await self._ask(list(asked))
        except (OSError, PgError) as failure:
            self._drop_link()
            reason = failure.message if isinstance(failure, PgError) else str(failure) or "no answer in time"
            self._note(reason)
            for future in asked.values():
                if not future.done():
                    future.set_exception(LookupFailed())
                    future.exception()  # whoever asked may be gone
            return
        self._note("")
        for user, future in asked.items():
            if not future.done():
                future.set_result(answers[user])

    async def _ask(self, users: list[str]) -> dict[str, ScramVerifier | None]:
        """Raises OSError, PgError. A link that was lost while nobody needed it is opened anew."""
        if self._link is not None:
            try:
                return {user: await self._verifier(self._link, user) for user in users}
            except OSError:
                self._drop_link()
        self._link = await open_link(
            self._loop,
            self._endpoint,
            self._role,
            self._endpoint.dbname,
            SETTINGS,
            self._password,
            ROUND_MS_MAX,
        )
        return {user: await self._verifier(self._link, user) for user in users}

    async def _verifier(self, link: OpenedLink, user: str) -> ScramVerifier | None:
        name = user.encode("utf-8", "surrogateescape")
        parameter = len(name).to_bytes(4, "big") + name
        bind = messages.frame(Frontend.BIND, b"\0\0\0\0\0\x01" + parameter + b"\0\0")
        execute = messages.frame(Frontend.EXECUTE, b"\0" + bytes(4))
        await link.stream.send(self._question + bind + execute + messages.sync())
        return self._read(user, await link.answer())

    def _read(self, user: str, frames: list[tuple[int, bytes]]) -> ScramVerifier | None:
        for kind, body in frames:
            if kind == ord("E"):
                fields = read_error(body)
                if fields.sqlstate == "22021":  # a name that the server's encoding cannot write: nobody's
                    return None
                raise LinkError(fields.message, sqlstate=fields.sqlstate)
            if kind == ord("D"):
                if int.from_bytes(body[2:6], "big", signed=True) < 0:
                    return None
                try:
                    return parse_verifier(body[6:].decode())
                except ValueError:
                    log.warning("the password of %r is not stored as SCRAM-SHA-256: no login", user)
                    return None
        return None
