"""Asks a new link what a session that logs in as it did is to be told, and how its statements are read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError
from pgshunt.proxy.connect import LinkError, OpenedLink
from pgshunt.proxy.settings import UNSAFE_ENCODINGS
from pgshunt.routing.names import split_search_path
from pgshunt.routing.shape import READ_COMMITTED

QUESTION = b"SHOW search_path; SHOW default_transaction_isolation"


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a session is told after login, and what its statements mean under its settings.

    `plain_text`: string literals follow the standard and every quote is a quote, so statements can be read.
    `read_committed`: that is what a transaction is whose BEGIN says nothing of its isolation.
    """

    frames: bytes
    search_path: tuple[str, ...]
    plain_text: bool
    read_committed: bool


async def ask(opened: OpenedLink, timeout_ms: int) -> Welcome:
    """What the server tells such a session. Raises LinkError, with the link closed, if it does not."""
    parameters = opened.parameters
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            path, isolation = await _shown(opened)
    except (OSError, PgError) as failure:
        opened.socket.close()
        raise LinkError(f"lost the server during login: {failure}", sqlstate="08006") from failure
    plain = (
        parameters.get(b"standard_conforming_strings", b"on") == b"on"
        and parameters.get(b"client_encoding", b"UTF8").decode() not in UNSAFE_ENCODINGS
    )
    schemas = split_search_path(path.decode(errors="replace"))
    return Welcome(opened.parameter_frames, schemas, plain, isolation.decode() in READ_COMMITTED)


async def _shown(opened: OpenedLink) -> tuple[bytes, bytes]:
    await opened.stream.send(messages.query(QUESTION))
    frames = await opened.answer()
    rows = [body[6:] for kind, body in frames if kind == ord("D")]  # one column, its length
    if len(rows) != 2:
        raise LinkError(f"the server refused {QUESTION.decode()}", sqlstate="08006")
    return rows[0], rows[1]
