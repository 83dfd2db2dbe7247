"""Asks a new link what a session that logs in as it did is to be told, and how its statements are read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError
from pgshunt.proxy.connect import LinkError, OpenedLink
from pgshunt.proxy.settings import UNSAFE_ENCODINGS
from pgshunt.routing.names import split_search_path


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a session is told after login, and what its statements mean under its settings.

    `plain_text`: string literals follow the standard and every quote is a quote, so statements can be read.
    """

    frames: bytes
    search_path: tuple[str, ...]
    plain_text: bool


async def ask(opened: OpenedLink, timeout_ms: int) -> Welcome:
    """What the server tells such a session. Raises LinkError, with the link closed, if it does not."""
    parameters = opened.parameters
    try:
        path = parameters.get(b"search_path")  # reported since PostgreSQL 18
        if path is None:
            async with asyncio.timeout(timeout_ms / 1000):
                path = await _search_path(opened)
    except (OSError, PgError) as failure:
        opened.socket.close()
        raise LinkError(f"lost the server during login: {failure}", sqlstate="08006") from failure
    plain = (
        parameters.get(b"standard_conforming_strings", b"on") == b"on"
        and parameters.get(b"client_encoding", b"UTF8").decode() not in UNSAFE_ENCODINGS
    )
    return Welcome(opened.parameter_frames, split_search_path(path.decode(errors="replace")), plain)


async def _search_path(opened: OpenedLink) -> bytes:
    await opened.stream.send(messages.query(b"SHOW search_path"))
    frames = await opened.answer()
    if any(kind == ord("E") for kind, _ in frames):
        raise LinkError("the server refused SHOW search_path", sqlstate="08006")
    row = next(body for kind, body in frames if kind == ord("D"))
    return row[6:]  # one column, its length
