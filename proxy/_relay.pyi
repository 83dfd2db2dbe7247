import asyncio
from collections.abc import Callable
from typing import Any

from pgshunt.config.model import ListenTls
from pgshunt.protocol.actions import Action
from pgshunt.protocol.errors import PgError
from pgshunt.protocol.login import Credential
from pgshunt.protocol.scram import ScramVerifier
from pgshunt.proxy.board import Board
from pgshunt.proxy.connect import LinkError
from pgshunt.proxy.tls import TlsEnd
from pgshunt.proxy.welcome import Welcome
from pgshunt.routing.table import Catalogue, RoutingTable

class Session:
    """One client connection; `fd` is its socket."""

    fd: int

class Link:
    """One server connection."""

class Identity:
    """What a link must be logged in as for a session to find its own defaults."""

    user: str
    parameters: dict[bytes, bytes]
    credential: Credential | None
    welcome: bytes | None
    links_max: int
    def __init__(self, user: str, parameters: dict[bytes, bytes], credential: Credential | None) -> None: ...

class Pool:
    """The links of one (endpoint, identity)."""

class Relay:
    """The hot path of one worker: sessions, links, and the routes between them."""

    index: int
    board_workers: int
    clients: int
    waiting: int
    held_bytes: int
    draining: bool
    idle_ns_max: int
    held_ns_max: int
    links: set[Link]
    links_open: int
    on_urgent: Callable[[], None] | None
    on_foreign_cancel: Callable[[int, int, bytes], None] | None
    on_note: Callable[[int, bytes], bool] | None
    on_event: Callable[[dict[str, Any]], None] | None
    on_addition: Callable[[dict[str, Any]], None] | None
    catalogue: Catalogue
    def __init__(
        self, loop: asyncio.AbstractEventLoop, index: int, board: Board, start: dict[str, Any]
    ) -> None: ...
    loop_tasks: int
    def run(self) -> None: ...
    def wake_on(self, fd: int) -> None: ...
    def apply(self, table: RoutingTable, catalogue: Catalogue) -> None: ...
    def adopt(self, fd: int, *, refuse: bool = False) -> None: ...
    def cancel(self, process_id: int, secret_key: bytes) -> asyncio.Task[None] | None: ...
    def hold(self, process_id: int, endpoint: int, tell: Callable[[int], None]) -> None: ...
    def held(self, session: Session, process_id: int, server_id: int) -> None: ...
    def release(self, process_id: int, sure: bool) -> None: ...
    def announce(self) -> None: ...
    def worker_ended(self, worker: int) -> None: ...
    def take_note(self, note: bytes) -> None: ...
    def added(self, question: str, error: tuple[str, str, str] | None) -> None: ...
    def cancel_due(self, link: Link) -> bool: ...
    def cancelled(self, link: Link, *, told: bool = True) -> None: ...
    def finish_session(self, session: Session) -> None: ...
    def verifier_found(
        self, session: Session, verifier: ScramVerifier | None, failure: PgError | None = None
    ) -> None: ...
    def refuse_login(self, session: Session, actions: list[Action]) -> None: ...
    def link_opened(
        self,
        pool: Pool,
        fd: int,
        process_id: int,
        secret_key: bytes,
        welcome: Welcome | None,
        tls_end: TlsEnd | None = None,
        leftover: bytes = b"",
        session: Session | None = None,
    ) -> None: ...
    def reserve_link(self, index: int) -> bool: ...
    def release_link(self, index: int) -> None: ...
    def tunnel_opened(
        self,
        session: Session,
        fd: int,
        process_id: int,
        secret_key: bytes,
        welcome: bytes,
        tls_end: TlsEnd | None,
        leftover: bytes,
    ) -> None: ...
    def tunnel_failed(self, session: Session, error: LinkError) -> None: ...
    def link_failed(self, pool: Pool, error: LinkError, session: Session | None = None) -> None: ...
    def drain_counters(self) -> dict[str, Any] | None: ...
    def reload_tls(self, listen: ListenTls) -> None: ...
    def tick(self) -> None: ...
    async def drain(self, grace_ms: int) -> None: ...
    def close(self) -> None: ...

def local_tag(shape: object) -> str | None: ...
