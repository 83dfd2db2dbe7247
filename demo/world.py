"""Sets up what the story plays on: servers, a proxy in front of them, and the proxy's configuration."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pgshunt.admin.client import AdminClient, Unreachable
from pgshunt.admin.problem import Problem
from pgshunt.config.secret import Secret
from pgshunt.demo.data import create_own, create_shared
from pgshunt.demo.postgres import PostgresServer, Server, Servers, free_port
from pgshunt.demo.services import SERVICES, SHARED_DBNAME
from pgshunt.demo.waiting import wait_for

LAG_MS_MAX = 1000  # what routing/table.py promises of a copy that serves reads
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0

SHARED_SETTINGS = {"wal_level": "logical", "max_connections": "300", "max_wal_senders": "20"}

# Servers of their own for the first three; the databases of the others share one more, to be kind to laptops.
OWN_SERVERS = ("auth_db", "constitutional_db", "integrity_db")
COMMON_SERVER = "other_dbs"


class ProxyFailed(RuntimeError):
    """`pgshunt serve` did not start or ended by itself; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Databases:
    """The running servers, filled. `own` by database name."""

    servers: Servers
    shared: PostgresServer
    own: dict[str, PostgresServer]
    auth_replica: PostgresServer
    passwords: dict[str, str]

    @property
    def auth(self) -> PostgresServer:
        return self.own["auth_db"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running `pgshunt serve`."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    api: AdminClient
    log: Path


@contextmanager
def running_databases() -> Iterator[Databases]:
    """Starts and fills all servers; stops and removes them on leaving."""
    passwords = {service.name: secrets.token_urlsafe(12) for service in SERVICES}
    with Servers() as servers, ThreadPoolExecutor() as pool:
        superuser = secrets.token_urlsafe(18)

        def start(name: str) -> PostgresServer:
            return servers.start(name, SHARED_SETTINGS if name == "shared" else None, password=superuser)

        names = ("shared", *OWN_SERVERS, COMMON_SERVER)
        started = dict(zip(names, pool.map(start, names), strict=True))
        create_shared(started["shared"], passwords)
        own = {}
        for service in SERVICES:
            own[service.database] = started.get(service.database, started[COMMON_SERVER])
            create_own(own[service.database], service)
        replica = servers.replica(own["auth_db"], "auth_db_1")
        yield Databases(servers, started["shared"], own, replica, passwords)


@contextmanager
def running_proxy(databases: Databases) -> Iterator[Proxy]:
    """Starts `pgshunt serve` and waits until it is ready; stops it on leaving. Raises ProxyFailed."""
    directory = databases.servers.directory
    token = secrets.token_urlsafe(18)
    config = configuration(databases, free_port(), free_port(), token)
    path, log = directory / "pgshunt.yaml", directory / "pgshunt.log"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgshunt", "serve", "-c", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to hear; the proxy is stopped after its clients
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    adopted = databases.servers.adopt(process.pid)
    api = AdminClient(f"http://{config['admin']['host']}:{config['admin']['port']}", Secret(token))
    proxy = Proxy(process, config["listen"]["host"], config["listen"]["port"], api, log)
    try:
        wait_for("pgshunt is ready", lambda: _is_ready(proxy), READY_TIMEOUT_S)
        yield proxy
    finally:
        stop(proxy)
        adopted.unlink()


def configuration(databases: Databases, port: int, admin_port: int, token: str) -> dict[str, Any]:
    """The pgshunt.yaml of the demo: the eight services, none of them moved."""

    def address(server: Server) -> dict[str, Any]:
        return {"host": server.host, "port": server.port}

    own: dict[str, dict[str, Any]] = {
        name: {"primary": address(server)} for name, server in databases.own.items()
    }
    own["auth_db"]["replicas"] = [address(databases.auth_replica)]
    return {
        "version": 1,
        "listen": {"host": "127.0.0.1", "port": port},
        "auth": {"users": [{"name": name, "password": word} for name, word in databases.passwords.items()]},
        "control": {"user": databases.shared.user, "password": databases.shared.password},
        "shared": {"dbname": SHARED_DBNAME, "primary": address(databases.shared), "max_connections": 300},
        "databases": own,
        "services": {
            service.name: {
                "database": service.database,
                "tables": list(service.tables),
                "external_refs": list(service.external_refs),
                "users": [service.name],
                "shadow_writes": "validate",
            }
            for service in SERVICES
        },
        "pools": {"default_pool_size": 10},
        "admin": {"host": "127.0.0.1", "port": admin_port, "token": token},
        "state": {"path": str(databases.servers.directory / "pgshunt.state.json")},
    }


def stop(proxy: Proxy) -> int:
    """Ends the proxy gracefully, or at last by force, and returns its exit code."""
    if proxy.process.poll() is None:
        proxy.process.send_signal(signal.SIGTERM)
    try:
        return proxy.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(proxy.process.pid, signal.SIGKILL)  # its workers are in the session we gave it
        return proxy.process.wait()


def last_words(proxy: Proxy, lines: int = 20) -> list[str]:
    """Where each service stands by the proxy's own account, and the end of its log."""
    try:
        sentences = [service["sentence"] for service in proxy.api.get("/api/v1/services")["services"]]
    except (Problem, Unreachable) as error:
        sentences = [str(error)]
    return sentences + proxy.log.read_text(errors="replace").splitlines()[-lines:]


def _is_ready(proxy: Proxy) -> bool:
    if proxy.process.poll() is not None:
        log = proxy.log.read_text(errors="replace")
        raise ProxyFailed(f"pgshunt serve ended with {proxy.process.returncode}:\n{log[-2000:]}")
    try:
        proxy.api.get("/readyz")
    except (Problem, Unreachable):
        return False
    return True
