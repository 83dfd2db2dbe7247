"""Links that belong to no pool: few, counted among their endpoint's, and closed when nobody needs them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgshunt.proxy.connect import OpenedLink, open_link
from pgshunt.routing.table import Endpoint

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity, Relay

IDLE_S_MAX = 30.0
CONNECT_MS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Spare:
    """A link nobody uses, and since when (time.monotonic)."""

    identity: Identity
    link: OpenedLink
    since_s: float


class SpareLinks:
    """The links of one endpoint, `links_max` of them in all."""

    def __init__(
        self, relay: Relay, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, index: int, links_max: int
    ) -> None:
        self._relay = relay
        self._loop = loop
        self._endpoint = endpoint
        self.index = index
        self._links_max = links_max
        self._links = 0
        self._idle: deque[Spare] = deque()  # oldest first
        self._closed = False

    async def take(self, identity: Identity) -> OpenedLink | None:
        """A link logged in as `identity`; None if there is no room for one. Raises OSError, PgError."""
        for spare in reversed(self._idle):
            if spare.identity is identity:
                self._idle.remove(spare)
                if _is_quiet(spare.link.socket):
                    return spare.link
                self.drop(spare.link)
                break
        if self._links >= self._links_max and not self.make_room():
            return None
        if not self._relay.reserve_link(self.index):
            return None
        self._links += 1
        try:
            return await open_link(
                self._loop,
                self._endpoint,
                identity.user,
                self._endpoint.dbname,
                identity.parameters,
                identity.credential,
                CONNECT_MS_MAX,
            )
        except BaseException:
            self._uncount()
            raise

    def give_back(self, identity: Identity, link: OpenedLink) -> None:
        if self._closed:
            self.drop(link)
        else:
            self._idle.append(Spare(identity, link, time.monotonic()))

    def drop(self, link: OpenedLink) -> None:
        """The link is not fit to be used again."""
        link.socket.close()
        self._uncount()

    def make_room(self) -> bool:
        """Closes the link that has been idle longest; False if there is none."""
        if not self._idle:
            return False
        self.drop(self._idle.popleft().link)
        return True

    def sweep(self) -> None:
        """Closes what has been idle for too long."""
        while self._idle and time.monotonic() - self._idle[0].since_s > IDLE_S_MAX:
            self.make_room()

    def close(self) -> None:
        """Closes what is idle now, and what is given back from now on."""
        self._closed = True
        while self.make_room():
            continue

    def forget(self, identity: Identity) -> None:
        for spare in [spare for spare in self._idle if spare.identity is identity]:
            self._idle.remove(spare)
            self.drop(spare.link)

    def _uncount(self) -> None:
        self._links -= 1
        self._relay.release_link(self.index)


def _is_quiet(connection: socket.socket) -> bool:
    """Whether the server has neither closed the connection nor said anything since."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
