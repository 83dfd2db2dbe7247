"""Decides what happens once per connection: who may log in, as whom links are opened, what is cancelled.

The relay moves bytes and counts; everything here runs once for a client or a link and may take its time,
in tasks of the worker's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgshunt.config import tls
from pgshunt.config.model import Auth, Config, ListenTls
from pgshunt.protocol.actions import Action, Close, NeedWelcome
from pgshunt.protocol.authentication import Authenticator, Certificates, Passwords, Trust
from pgshunt.protocol.errors import INVALID_AUTHORIZATION, INVALID_PASSWORD, PgError
from pgshunt.protocol.login import Credential, WeakPassword
from pgshunt.protocol.scram import Proof, parse_verifier
from pgshunt.protocol.startup import Encryption, Handshake
from pgshunt.proxy.accept import address_of
from pgshunt.proxy.connect import LinkError, OpenedLink, open_link, send_cancel
from pgshunt.proxy.lookup import LookupFailed, Verifiers
from pgshunt.proxy.signals import worker_of
from pgshunt.proxy.stream import CANNOT_CONNECT
from pgshunt.proxy.tls import TlsEnd, end_point, first_certificate
from pgshunt.proxy.welcome import Welcome, ask
from pgshunt.routing.table import Endpoint, RoutingTable

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity, Link, Pool, Relay, Session

log = logging.getLogger("pgshunt.policy")

LOGIN_MS_MAX = 10_000
CANCEL_MS_MAX = 5_000
CANCELS_MAX = 64
IDLE_MS_MAX = 600_000  # a link that nobody has needed for so long is closed
FAILED_LOGINS = {INVALID_AUTHORIZATION: "authorization", INVALID_PASSWORD: "password"}
# Longer statements are not parsed: they run at the owner, as writes.
STATEMENT_BYTES_MAX = 16 * 1024 * 1024
# Long statements that one worker is receiving, all clients together.
HELD_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker of several may use."""

    links_total: int
    latency_ms_max: int
    query_wait_timeout_ms: int
    login_timeout_ms: int
    query_timeout_ms: int = 0
    idle_transaction_timeout_ms: int = 0
    client_idle_timeout_ms: int = 0
    statement_bytes_max: int = STATEMENT_BYTES_MAX
    held_bytes_max: int = HELD_BYTES_MAX
    idle_ms_max: int = IDLE_MS_MAX


def share(total: int, workers: int, index: int) -> int:
    """The part of a limit that worker `index` may use. The parts add up to it, but nobody gets nothing."""
    return max(1, total // workers + (index < total % workers))


class Policy:
    """One worker's rules, made from the start message of the supervisor."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop, start: dict[str, Any]) -> None:
        config = Config.model_validate(start["config"])
        self._relay = relay
        self._loop = loop
        self._config = config
        self._workers = max(1, relay.board_workers)
        self._identities: dict[tuple[object, ...], Identity] = {}
        kind = WeakPassword if config.auth.md5_to_servers else str
        self._passwords = {
            user.name: kind(user.password.reveal()) for user in config.auth.users if user.password is not None
        }
        secret = bytes.fromhex(start["login_secret"]) if "login_secret" in start else os.urandom(32)
        self._authenticator = _authenticator(config.auth, self._passwords, secret)
        self._proofs: dict[str, Proof] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._verifiers: Verifiers | None = None
        if config.auth.lookup is not None:
            shared = RoutingTable.from_dict(start["table"]).endpoints[0]
            self._verifiers = Verifiers(loop, self._spawn, shared, config.auth.lookup, self._lookup_changed)
            self._verifiers.start()
        self._encryption: Encryption | None = None
        self._tls_context: ssl.SSLContext | None = None
        self.reload_tls(config.listen.tls)
        self._cancels = 0
        servers = config.pools.server_connections
        self.limits = Limits(
            links_total=share(
                servers.total - servers.reserved - servers.monitoring, self._workers, relay.index
            ),
            latency_ms_max=config.rollback.latency_ms_max,
            query_wait_timeout_ms=config.pools.query_wait_timeout_ms,
            login_timeout_ms=config.listen.login_timeout_ms,
            query_timeout_ms=config.pools.query_timeout_ms,
            idle_transaction_timeout_ms=config.pools.idle_transaction_timeout_ms,
            client_idle_timeout_ms=config.pools.client_idle_timeout_ms,
        )
        self._limited = {
            name: (number, limit) for number, (name, limit) in enumerate(config.pools.limited_users.items())
        }

    def links_max(self, endpoint: Endpoint) -> int:
        """How many links this worker may open to `endpoint`."""
        database = self._config.shared
        if endpoint.database in self._config.databases:
            database = self._config.databases[endpoint.database]  # type: ignore[assignment]
        return share(database.max_connections, self._workers, self._relay.index)

    def links_of_user_max(self, user: str) -> int:
        """How many links this worker may open to one endpoint for `user`."""
        pools = self._config.pools
        limits = pools.users.get(user)
        size = pools.default_pool_size if limits is None or limits.pool_size is None else limits.pool_size
        return share(size, self._workers, self._relay.index)

    # --- clients --------------------------------------------------------------------------------------------

    def handshake(self) -> Handshake:
        return Handshake(self._authenticator, encryption=self._encryption)

    def tls_end(self) -> TlsEnd:
        """Our end of a connection whose client was promised TLS."""
        assert self._tls_context is not None
        return TlsEnd.accepting(self._tls_context)

    def reload_tls(self, listen: ListenTls) -> None:
        """Clients that come from now on are met with these certificates, and servers with what their files
        hold now; connections there are keep theirs. Raises OSError when a file will not do: then nothing has
        changed.
        """
        context, encryption = None, None
        if listen.mode != "disable":
            assert listen.certificate_file is not None
            context = tls.accepting(listen)
            certificate = first_certificate(listen.certificate_file.read_text())
            encryption = Encryption(listen.is_required, end_point(certificate))
        self._tls_context, self._encryption = context, encryption
        tls.forget()

    def look_up(self, session: Session, user: str) -> None:
        """Finds what the proof of `session` is checked against; the relay hears of the outcome."""
        self._spawn(self._look_up(session, user))

    async def _look_up(self, session: Session, user: str) -> None:
        assert self._verifiers is not None
        try:
            verifier = await self._verifiers.find(user)
        except LookupFailed as failure:
            self._relay.verifier_found(session, None, failure)
        else:
            self._relay.verifier_found(session, verifier)

    def _lookup_changed(self, failure: str) -> None:
        event = {"kind": "lookup_failed", "reason": failure} if failure else {"kind": "lookup_works"}
        if self._relay.on_event is not None:
            self._relay.on_event({"type": "event", **event})

    def refuse_later(self, session: Session, actions: list[Action]) -> str | None:
        """What failed, if `actions` are a failed login: they follow later, so guessing takes its time."""
        last = actions[-1] if actions else None
        if not isinstance(last, Close) or last.error is None:
            return None
        failed = FAILED_LOGINS.get(last.error.sqlstate)
        if failed is not None:
            if self._relay.on_event is not None:
                told = {"client": address_of(session.fd), "reason": last.error.message}
                self._relay.on_event({"type": "event", "kind": "login_failed", **told})
            delay_s = self._config.auth.failure_delay_ms / 1000
            self._loop.call_later(delay_s, self._relay.refuse_login, session, actions)
        return failed

    def refusal(self, request: NeedWelcome) -> tuple[str, str, str] | None:
        """(SQLSTATE, message, hint) if an authenticated client asks for what is not served."""
        if request.replication != b"true" and request.database != self._config.shared.dbname:
            return (
                "3D000",
                f'database "{request.database}" does not exist',
                f'This proxy serves the database "{self._config.shared.dbname}".',
            )
        return None

    def limited(self, user: str) -> tuple[int, int] | None:
        """(place on the board, how many) if the clients of this user are limited."""
        return self._limited.get(user)

    def identity(self, request: NeedWelcome) -> Identity:
        """The identity of a session: those that ask for the same share links, while the server's own settings
        for their role stay as they are.
        """
        from pgshunt.proxy._relay import Identity

        user = request.user
        if request.proof is not None and request.proof != self._proofs.get(user):
            self._prove(user, request.proof)
        defaults = self._relay.catalogue.defaults_of(user)
        key = (user, frozenset(request.parameters.items()), defaults)
        identity = self._identities.get(key)
        if identity is None:
            credential = self._passwords.get(user) or self._proofs.get(user)
            identity = self._identities[key] = Identity(user, request.parameters, credential)
            identity.links_max = self.links_of_user_max(user)
        return identity

    def _prove(self, user: str, proof: Proof) -> None:
        """Links log in with what the client has shown last: after a change of the password, the new one."""
        self._proofs[user] = proof
        if user not in self._passwords:
            for identity in self._identities.values():
                if identity.user == user:
                    identity.credential = proof

    def forget(self, identity: Identity) -> None:
        """Nobody uses it any more: no session, no link."""
        self._identities = {key: other for key, other in self._identities.items() if other is not identity}
        if not any(other.user == identity.user for other in self._identities.values()):
            self._proofs.pop(identity.user, None)

    def login_error(self, error: LinkError) -> bytes:
        """What a client is told whose login failed at the server: the server's own words if it had any."""
        if error.error_frame is not None:
            return error.error_frame
        return PgError(
            error.message,
            sqlstate=error.sqlstate,
            severity="FATAL",
            hint=error.hint or "The proxy is up, the server behind it is not. Try again.",
        ).frame()

    # --- links ----------------------------------------------------------------------------------------------

    def open_link(self, pool: Pool, endpoint: Endpoint, identity: Identity, session: Session | None) -> None:
        """Opens a link in the background, for `session` if it is given; the relay hears of the outcome."""
        self._spawn(self._open(pool, endpoint, identity, session))

    async def _open(
        self, pool: Pool, endpoint: Endpoint, identity: Identity, session: Session | None
    ) -> None:
        try:
            opened, welcome = await self._log_in(
                endpoint,
                identity.user,
                identity.parameters,
                identity.credential,
                is_first=identity.welcome is None,
            )
        except LinkError as error:
            self._relay.link_failed(pool, error, session)
        else:
            fd = opened.socket.detach()
            self._relay.link_opened(
                pool,
                fd,
                opened.process_id,
                opened.secret_key,
                welcome,
                opened.stream.tls,
                opened.leftover,
                session,
            )

    async def _log_in(
        self,
        endpoint: Endpoint,
        user: str,
        parameters: Mapping[bytes, bytes],
        credential: Credential | None,
        is_first: bool = False,
    ) -> tuple[OpenedLink, Welcome | None]:
        """A connection to a server; the first of an identity is asked for its welcome. Raises LinkError."""
        try:
            opened = await open_link(
                self._loop, endpoint, user, endpoint.dbname, parameters, credential, LOGIN_MS_MAX
            )
            if is_first and opened.leftover:
                opened.socket.close()
                raise LinkError(
                    f"{endpoint.name} sent something behind its first ReadyForQuery", sqlstate="08P01"
                )
            return opened, await ask(opened, LOGIN_MS_MAX) if is_first else None
        except LinkError:
            raise
        except PgError as error:
            raise LinkError(error.message, sqlstate=error.sqlstate) from error
        except Exception as fault:
            log.exception("opening a connection to %s", endpoint.name)
            raise LinkError(f"cannot open a connection: {fault!r}", sqlstate="XX000") from fault

    # --- replication connections ----------------------------------------------------------------------------

    def open_tunnel(self, session: Session, endpoint: Endpoint, request: NeedWelcome) -> None:
        """Opens a server connection for one replication client; the relay hears of the outcome."""
        self._spawn(self._open_tunnel(session, endpoint, request))

    async def _open_tunnel(self, session: Session, endpoint: Endpoint, request: NeedWelcome) -> None:
        assert request.replication is not None
        parameters = {**request.parameters, b"replication": request.replication}
        credential = self._passwords.get(request.user) or request.proof
        try:
            opened, _ = await self._log_in(endpoint, request.user, parameters, credential)
        except LinkError as error:
            self._relay.tunnel_failed(session, error)
        else:
            self._relay.tunnel_opened(
                session,
                opened.socket.detach(),
                opened.process_id,
                opened.secret_key,
                opened.parameter_frames,
                opened.stream.tls,
                opened.leftover,
            )

    def cancel_tunnel(
        self, endpoint: Endpoint, process_id: int, secret_key: bytes
    ) -> asyncio.Task[None] | None:
        """Cancels what a replication connection runs."""
        if self._cancels >= CANCELS_MAX:
            return None
        self._cancels += 1
        return self._spawn(self._cancel_tunnel(endpoint, process_id, secret_key))

    async def _cancel_tunnel(self, endpoint: Endpoint, process_id: int, secret_key: bytes) -> None:
        try:
            await self._send_cancel(endpoint, process_id, secret_key)
        finally:
            self._cancels -= 1

    # --- cancels --------------------------------------------------------------------------------------------

    def forward_cancel(self, process_id: int, secret_key: bytes, session: Session) -> None:
        """A client asks to cancel; `session` is the connection it asks on, open until the server was told.

        The process id tells whose session it is for.
        """
        owner = worker_of(process_id)
        if owner != self._relay.index:
            if self._relay.on_foreign_cancel is not None:
                self._relay.on_foreign_cancel(owner, process_id, secret_key)
            self._relay.finish_session(session)
            return
        task = self._relay.cancel(process_id, secret_key)
        if task is None:
            self._relay.finish_session(session)
        else:
            task.add_done_callback(lambda _: self._relay.finish_session(session))

    def cancel(
        self, link: Link, endpoint: Endpoint, process_id: int, secret_key: bytes
    ) -> asyncio.Task[None] | None:
        """Cancels what `link` runs. The link is lent to nobody else until the server was told."""
        if self._cancels >= CANCELS_MAX:
            self._relay.cancelled(link)
            return None
        self._cancels += 1
        return self._spawn(self._cancel(link, endpoint, process_id, secret_key))

    async def _cancel(self, link: Link, endpoint: Endpoint, process_id: int, secret_key: bytes) -> None:
        told = True
        try:
            if self._relay.cancel_due(link):
                failure = await self._send_cancel(endpoint, process_id, secret_key)
                # Perhaps only the answer is late: the link must serve nobody else.
                told = failure is None or failure.sqlstate == CANNOT_CONNECT
        finally:
            self._cancels -= 1
            self._relay.cancelled(link, told=told)

    async def _send_cancel(self, endpoint: Endpoint, process_id: int, secret_key: bytes) -> LinkError | None:
        try:
            await send_cancel(self._loop, endpoint, process_id, secret_key, CANCEL_MS_MAX)
        except LinkError as error:
            log.warning("a cancel request did not reach %s: %s", endpoint.name, error)
            return error
        return None

    # --- tasks ----------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        self._relay.loop_tasks += 1
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._relay.loop_tasks -= 1

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._verifiers is not None:
            self._verifiers.close()


def _authenticator(auth: Auth, passwords: Mapping[str, str], secret: bytes) -> Authenticator:
    match auth.method:
        case "trust":
            return Trust()
        case "cert":
            return Certificates(auth.certificates)
        case _:
            return Passwords(
                passwords,
                secret,
                {
                    user.name: parse_verifier(user.verifier.reveal())
                    for user in auth.users
                    if user.verifier is not None
                },
                looks_up=auth.lookup is not None,
            )
