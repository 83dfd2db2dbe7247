"""Asks a new link what a session that logs in as it did is to be told, and how its statements are read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError
from pgshunt.protocol.frames import scan
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
                path = await _show(opened, b"SHOW search_path")
    except (OSError, PgError) as failure:
        opened.socket.close()
        raise LinkError(f"lost the server during login: {failure}", sqlstate="08006") from failure
    frames = b"".join(messages.parameter_status(name, value) for name, value in parameters.items())
    plain = (
        parameters.get(b"standard_conforming_strings", b"on") == b"on"
        and parameters.get(b"client_encoding", b"UTF8").decode() not in UNSAFE_ENCODINGS
    )
    return Welcome(frames, split_search_path(path.decode(errors="replace")), plain)


async def _show(opened: OpenedLink, sql: bytes) -> bytes:
    """The one value of a SHOW."""
    await opened.stream.send(messages.query(sql))
    received = b""
    while True:
        data = await opened.stream.receive()
        if not data:
            raise ConnectionResetError("server closed the connection")
        received += data
        frames, _, intact = scan(received, 1 << 20)
        if not intact or any(kind == ord("E") for kind, _, _ in frames):
            raise LinkError("the server refused SHOW search_path", sqlstate="08006")
        if frames and frames[-1][0] == ord("Z"):
            row = next(received[start:end] for kind, start, end in frames if kind == ord("D"))
            return row[11:]  # type, length, one column, its length
