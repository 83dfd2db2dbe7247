"""The channel carries whole messages, notices a peer's end, and refuses what is no message."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from pgshunt.proxy.channel import MESSAGE_BYTES_MAX, Channel, ChannelError, Message, decode, encode


def with_channel(scenario: Callable[[Channel, socket.socket], Awaitable[None]]) -> None:
    """Runs the scenario with a channel and the raw socket of its peer."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        channel = await Channel.open(ours)
        try:
            await scenario(channel, theirs)
        finally:
            theirs.close()
            await channel.close()

    asyncio.run(run())


def test_messages_arrive_in_order_whatever_their_size() -> None:
    messages: list[Message] = [{"type": "ack", "epoch": n, "text": "ä" * (n * 40_000)} for n in range(4)]

    async def run() -> list[Message | None]:
        ours, theirs = socket.socketpair()
        sender, receiver = await Channel.open(ours), await Channel.open(theirs)
        for message in messages:
            sender.send(message)
        received = [await receiver.receive() for _ in messages]
        await sender.close()
        received.append(await receiver.receive())
        await receiver.close()
        return received

    assert asyncio.run(run()) == [*messages, None]


def test_a_message_is_put_together_from_single_bytes() -> None:
    async def scenario(channel: Channel, peer: socket.socket) -> None:
        receiving = asyncio.ensure_future(channel.receive())
        for byte in encode({"type": "ready", "pid": 1}):
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await receiving == {"type": "ready", "pid": 1}

    with_channel(scenario)


def test_a_peer_that_died_in_the_middle_of_a_message_reads_as_gone() -> None:
    async def scenario(channel: Channel, peer: socket.socket) -> None:
        peer.send(encode({"type": "delta"})[:-1])
        peer.close()
        assert await channel.receive() is None

    with_channel(scenario)


def test_sending_to_a_dead_peer_is_not_an_error() -> None:
    async def scenario(channel: Channel, peer: socket.socket) -> None:
        peer.close()
        for _ in range(3):
            channel.send({"type": "delta"})
            await channel.flush()
        assert await channel.receive() is None

    with_channel(scenario)


def test_an_absurd_length_is_refused_before_it_is_awaited() -> None:
    async def scenario(channel: Channel, peer: socket.socket) -> None:
        peer.send((MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
        with pytest.raises(ChannelError, match="announced"):
            await channel.receive()

    with_channel(scenario)


def test_what_the_peer_has_not_taken_is_the_backlog() -> None:
    async def scenario(channel: Channel, peer: socket.socket) -> None:
        assert channel.backlog_bytes == 0
        channel.send({"type": "delta", "text": "x" * 4_000_000})
        assert channel.backlog_bytes > 1_000_000

    with_channel(scenario)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"{}", b'{"type": 1}', b"\xff"])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(body)


def test_a_message_without_a_type_is_not_sent() -> None:
    with pytest.raises(ChannelError, match="type"):
        encode({"epoch": 1})
