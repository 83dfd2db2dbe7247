"""Carries messages between the supervisor and a worker: length-prefixed JSON over a socketpair.

A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON: one object with a "type".
JSON, because nothing here is hot (a worker sends at most some ten messages a second) and a captured
message can be read by a person.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Self

Message = dict[str, Any]

# Upper edges, in µs, of the latency buckets in a delta; one more bucket counts what is slower.
LATENCY_EDGES_US = (
    *(100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000),
    *(100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000),
)

_LENGTH_BYTES = 4
# A catalogue of a hundred thousand relations is about 5 MB. A length beyond this bound is a defect, not data.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class ChannelError(Exception):
    """The peer sent something that is no message. The channel cannot be read any further."""


def encode(message: Message) -> bytes:
    """The frame of one message. Raises ChannelError when it has no type or is too large to be read back."""
    if not isinstance(message.get("type"), str):
        raise ChannelError("a channel message needs a 'type'")
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MESSAGE_BYTES_MAX:
        raise ChannelError(f"message {message['type']!r} has {len(body)} bytes, limit {MESSAGE_BYTES_MAX}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decode(body: bytes) -> Message:
    """The message in the body of one frame. Raises ChannelError when it is not a JSON object with a type."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ChannelError(f"channel message is not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ChannelError("channel message is not an object with a 'type'")
    return message


class Channel:
    """One end of the socketpair, on the running event loop (asyncio's or uvloop's)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Takes over a connected stream socket."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock))

    @property
    def backlog_bytes(self) -> int:
        """What the peer has not taken yet: a sender of something that can wait looks here first."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, message: Message) -> None:
        """Queues a message. After the peer is gone it is dropped: receive() is where that is noticed."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> Message | None:
        """The next message, or None when the peer has closed its end or died. Raises ChannelError."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if length > MESSAGE_BYTES_MAX:
                raise ChannelError(f"channel message of {length} bytes announced, limit {MESSAGE_BYTES_MAX}")
            return decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def flush(self) -> None:
        """Waits until the peer can take more, so that what was sent last is not lost on exit."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def close(self) -> None:
        """Closes this end; what is queued is still sent while the peer reads."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
