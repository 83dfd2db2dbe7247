"""A relay of its own for a test, in a thread: real sockets, real servers, no supervisor."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import uvloop

from pgshunt.config.model import Control, ServerTls
from pgshunt.migration.catalogue import read_catalogue
from pgshunt.migration.servers import connect
from pgshunt.proxy._relay import Relay
from pgshunt.proxy.board import Board
from pgshunt.routing.table import PLAINTEXT, Catalogue, Endpoint, Role, RoutingTable, Service, Stage
from support.fixtures import Database
from support.hostile import HostileServer

Result = TypeVar("Result")


class RunningRelay:
    """One relay in front of `shared` and its `replicas`; with `copy`, `tables` of the service "svc" can be
    read there too. While `fresh`, all of them are said to hold whatever there is.

    `stage` is that of the service, `external_refs` are tables of others that its database has, too; `others`
    are more services.
    It is the first of `workers`, or the one `beside` another, whose board it shares.
    Use as a context manager. `port` is where clients connect; `shared_port` is that of something in front of
    the shared server. All of `events` and `deltas` are kept.
    """

    def __init__(
        self,
        shared: Database,
        copy: Database | None = None,
        *,
        tables: tuple[str, ...] = (),
        reads_percent: int = 0,
        shadow_writes: str = "off",
        stage: Stage = "reading",
        external_refs: tuple[str, ...] = (),
        others: tuple[Service, ...] = (),
        config: dict[str, Any] | None = None,
        tls: ServerTls = PLAINTEXT,
        replicas: tuple[Database, ...] = (),
        shared_port: int | None = None,
        workers: int = 1,
        beside: RunningRelay | None = None,
    ) -> None:
        self.tls = tls
        self._shared_port = shared_port or shared.server.port
        self.shared, self.copy, self.replicas = shared, copy, replicas
        self.tables = tuple(f"public.{name}" for name in tables)
        self.external_refs = tuple(f"public.{name}" for name in external_refs)
        self.events: list[dict[str, Any]] = []
        self.deltas: list[dict[str, Any]] = []
        self.fresh = True
        self._config = config or {}
        services = (*self._services(stage, reads_percent, shadow_writes), *others)
        self._table = RoutingTable(1, self._endpoints(), services)
        users = self._config.get("pools", {}).get("users", {})
        self._index = 0 if beside is None else beside._index + 1
        self.board = (
            Board(
                None,
                workers=workers,
                endpoints=len(self._table.endpoints),
                users=len(users),
                services=len(self._table.services),
            )
            if beside is None
            else beside.board
        )
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self.port = 0

    def __enter__(self) -> RunningRelay:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._index == 0:
            self.board.close()

    # --- what a test does with it -----------------------------------------------------------------------

    def connect(self, *, timeout_s: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def dsn(self, user: str = "", password: str = "") -> str:
        server = self.shared.server
        return (
            f"host=127.0.0.1 port={self.port} dbname={self.shared.dbname}"
            f" user={user or server.user} password={password or server.password}"
        )

    def call(self, function: Callable[[Relay], Result]) -> Result:
        """Runs `function(relay)` on the relay's own thread."""

        async def run() -> Result:
            return function(self.relay)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def shift(self, reads_percent: int, **changes: Any) -> None:
        """A new epoch with other weights."""
        service, *others = self._table.services
        services = (dataclasses.replace(service, reads_percent=reads_percent, **changes), *others)
        self._table = dataclasses.replace(self._table, epoch=self._table.epoch + 1, services=services)
        self.call(lambda relay: relay.apply(self._table, self._catalogue()))

    def reassign(self, service: Service) -> None:
        """A new epoch in which this is how the service of its name stands."""
        services = tuple(service if one.name == service.name else one for one in self._table.services)
        self._table = dataclasses.replace(self._table, epoch=self._table.epoch + 1, services=services)
        self.call(lambda relay: relay.apply(self._table, self._catalogue()))

    def read_catalogue(self) -> None:
        """A new epoch, in which the relay knows what was defined beside it."""
        self._table = dataclasses.replace(self._table, epoch=self._table.epoch + 1)
        self.call(lambda relay: relay.apply(self._table, self._catalogue()))

    def count(self, section: str, *key: str | None) -> int:
        """The counts of all rows of `section` that begin with `key`, added up; None stands for anything."""
        self.call(self._drain)
        rows = [
            row
            for delta in self.deltas
            for row in delta.get(section, ())
            if all(wanted in (None, found) for wanted, found in zip(key, row, strict=False))
        ]
        return sum(
            row[
                {
                    "calls": 4,
                    "routes": 3,
                    "pins": 1,
                    "sqlstates": 3,
                    "shadow": 2,
                    "timeouts": 1,
                    "failed_logins": 1,
                }[section]
            ]
            for row in rows
        )

    def wait_for(self, condition: Callable[[], bool], what: str, within_s: float = 10) -> None:
        """Polls until `condition()`; fails the test when that takes too long."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {within_s} s")
            time.sleep(0.005)

    # --- the thread -------------------------------------------------------------------------------------

    def _endpoints(self) -> tuple[Endpoint, ...]:
        def endpoint(name: str, database: Database, role: Role = "primary") -> Endpoint:
            server = database.server
            of = name.partition("/")[0]
            port = self._shared_port if database is self.shared else server.port
            return Endpoint(name, of, server.host, port, database.dbname, role, self.tls)

        copies = () if self.copy is None else (endpoint("svc_db", self.copy),)
        replicas = (
            endpoint(f"shared/{number}", replica, "replica")
            for number, replica in enumerate(self.replicas, 1)
        )
        return (endpoint("shared", self.shared), *replicas, *copies)

    def _services(self, stage: Stage, reads_percent: int, shadow_writes: Any) -> tuple[Service, ...]:
        if self.copy is None:
            return ()
        return (
            Service(
                "svc",
                "svc_db",
                self.tables,
                self.external_refs,
                stage=stage,
                reads_percent=reads_percent,
                shadow_writes=shadow_writes,
                copied=self.tables + self.external_refs,
            ),
        )

    def _catalogue(self) -> Catalogue:
        if isinstance(self.shared, HostileServer):
            return Catalogue(self._table.epoch)
        server = self.shared.server
        control = Control.model_validate({"user": server.user, "password": server.password})
        shared = dataclasses.replace(self._table.endpoints[0], port=server.port, tls=PLAINTEXT)
        link = connect(shared, control, "catalogue")
        try:
            definitions = tuple(self.board.definitions)
            return read_catalogue(link, self._table.epoch, definitions=definitions)
        finally:
            link.close()

    def _start_message(self) -> dict[str, Any]:
        server = self.shared.server
        config: dict[str, Any] = {
            "version": 1,
            "shared": {"dbname": self.shared.dbname, "primary": {"host": server.host, "port": server.port}},
            "control": {"user": server.user, "password": server.password},
            "auth": {
                "method": "trust",
                "users": [
                    {"name": server.user, "password": server.password},
                    {"name": "app", "password": "app"},
                ],
            },
        }
        if self.copy is not None:
            target = self.copy.server
            primary = {"host": target.host, "port": target.port}
            config["databases"] = {"svc_db": {"dbname": self.copy.dbname, "primary": primary}}
            tables = [name.partition(".")[2] for name in self.tables]
            config["services"] = {"svc": {"database": "svc_db", "tables": tables}}
        config.update(self._config)
        return {"config": config, "table": self._table.to_dict(), "catalogue": self._catalogue()}

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self.relay = Relay(self._loop, self._index, self.board, self._start_message())
            self.relay.on_event = self.events.append
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            listener.setblocking(False)
            listener.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # clients inherit it, as from the fleet's
            self.port = listener.getsockname()[1]
            self._loop.add_reader(listener.fileno(), self._accept, listener)
            self.relay.wake_on(listener.fileno())
            self._tick()
        except Exception as failure:  # noqa: BLE001 - handed to the test's thread
            self._failure = failure
            self._started.set()
            return
        self._loop.call_soon(self._started.set)
        try:
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(listener.fileno())
            listener.close()
            self.relay.close()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self.relay.adopt(connection.detach())

    def _tick(self) -> None:
        if self.fresh:
            for endpoint in range(len(self._table.endpoints)):
                self.board.freshness[endpoint] = time.monotonic_ns()
        self.relay.tick()
        self._loop.call_later(0.02, self._tick)

    def _drain(self, relay: Relay) -> None:
        delta = relay.drain_counters()
        if delta is not None:
            self.deltas.append(delta)
