"""Starts what is measured: a direct connection, pgshunt, PgBouncer."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from certificate import make_certificate
from load import DBNAME, USER

from pgshunt.demo.account import Account
from pgshunt.demo.postgres import PostgresServer, Servers

POOL_SIZE = 20
MAX_CLIENTS = 6000
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
PREPARED_SINCE = (1, 21)
"""First PgBouncer that keeps prepared statements in transaction mode (its NEWS.md)."""


class TargetFailed(RuntimeError):
    """A proxy did not start; the message carries its log."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that pgbench connects to. `root` is the process whose family is charged for the work."""

    name: str
    port: int
    root: int | None
    prepared: bool = True
    is_encrypted: bool = False

    def supports(self, mode: str) -> bool:
        return mode != "prepared" or self.prepared


@contextmanager
def started(names: Sequence[str], servers: Servers, server: PostgresServer) -> Iterator[list[Target]]:
    """The named targets, side by side in front of `server`; what is not installed is left out."""
    with ExitStack() as stack:
        yield [target for name in names if (target := stack.enter_context(STARTERS[name](servers, server)))]


@contextmanager
def _direct(servers: Servers, server: PostgresServer) -> Iterator[Target]:
    yield Target("direct", server.port, None)


@contextmanager
def _pgshunt(
    servers: Servers, server: PostgresServer, name: str, workers: int, encrypted: bool = False
) -> Iterator[Target]:
    port, admin_port = free_port(), free_port()
    config = servers.directory / f"{name}.yaml"
    document = _pgshunt_config(server, port, admin_port, workers, config)
    if encrypted:
        certificate, key = make_certificate(servers.directory)
        files = {"certificate_file": str(certificate), "key_file": str(key)}
        document["listen"]["tls"] = {"mode": "require", **files}
    config.write_text(json.dumps(document))
    command = [sys.executable, "-P", "-m", "pgshunt", "serve", "-c", str(config)]
    ready = f"http://127.0.0.1:{admin_port}/readyz"
    with _running(command, servers.directory / f"{name}.log", lambda: _answers(ready)) as pid:
        yield Target(name, port, pid, is_encrypted=encrypted)


def _pgshunt_config(
    server: PostgresServer, port: int, admin_port: int, workers: int, config: Path
) -> dict[str, Any]:
    """Routing as in earnest: pgbench's tables belong to a service, which is in stage `shared`."""
    address = {"host": server.host, "port": server.port}
    limits = {"max_connections": 500, "primary": address}
    return {
        "version": 1,
        "listen": {"port": port, "workers": workers, "max_client_conn": MAX_CLIENTS},
        "auth": {"method": "trust", "users": [{"name": USER, "password": server.password}]},
        "control": {"user": USER, "password": server.password},
        "shared": {"dbname": DBNAME, **limits},
        "databases": {"bench_db": {"dbname": "bench_copy", **limits}},
        "services": {
            "bench": {
                "database": "bench_db",
                "tables": [f"pgbench_{kind}" for kind in ("accounts", "branches", "tellers", "history")],
            }
        },
        "pools": {"default_pool_size": POOL_SIZE, "max_client_conn": MAX_CLIENTS},
        "admin": {"port": admin_port},
        "state": {"path": str(config.with_suffix(".state.json"))},
    }


@contextmanager
def _pgbouncer(
    servers: Servers, server: PostgresServer, name: str, encrypted: bool = False
) -> Iterator[Target | None]:
    program, version = find_pgbouncer(), pgbouncer_version()
    if program is None or version is None:
        yield None
        return
    port = free_port()
    users = servers.directory / f"{name}.users"
    users.write_text(f'"{USER}" "{server.password}"\n')
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": users,
        "pool_mode": "transaction",
        "default_pool_size": POOL_SIZE,
        "max_client_conn": MAX_CLIENTS,
        "log_connections": 0,
        "log_disconnections": 0,
        "log_stats": 0,
    }
    if version >= PREPARED_SINCE:
        settings["max_prepared_statements"] = 100
    if encrypted:
        certificate, key = make_certificate(servers.directory)
        for file in (certificate, key):
            servers.account.own(file)
        settings["client_tls_sslmode"] = "require"
        settings |= {"client_tls_cert_file": certificate, "client_tls_key_file": key}
    config = servers.directory / f"{name}.ini"
    lines = [
        "[databases]",
        f"{DBNAME} = host={server.host} port={server.port} dbname={DBNAME}",
        "[pgbouncer]",
        *(f"{name} = {value}" for name, value in settings.items()),
    ]
    config.write_text("\n".join(lines) + "\n")
    for file in (users, config):
        servers.account.own(file)
    log = servers.directory / f"{name}.log"
    with _running([program, str(config)], log, lambda: _accepts(port), servers.account) as pid:
        yield Target(name, port, pid, prepared=version >= PREPARED_SINCE, is_encrypted=encrypted)


def find_pgbouncer() -> str | None:
    """PgBouncer on PATH, or where Debian installs it and only root's PATH looks."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def pgbouncer_version() -> tuple[int, int] | None:
    """Major and minor version of the installed PgBouncer, None without one. Raises TargetFailed."""
    if (program := find_pgbouncer()) is None:
        return None
    output = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"PgBouncer (\d+)\.(\d+)", output)
    if match is None:
        raise TargetFailed(f"{program} --version says {output!r}")
    return int(match[1]), int(match[2])


@contextmanager
def _running(
    command: list[str], log: Path, is_ready: Callable[[], bool], account: Account | None = None
) -> Iterator[int]:
    """A process that has become ready, by its pid; ended on leaving.

    Each has a session of its own, as a daemon has: Linux shares the processor out among sessions first
    (autogroup), and one that shared pgbench's would be preempted three times as often.
    """
    with log.open("w") as output:
        spawn = account.spawn if account else partial(subprocess.Popen, start_new_session=True)
        process = spawn(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise TargetFailed(f"{' '.join(command)} did not start:\n{log.read_text()}")
            time.sleep(POLL_S)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Starter = Callable[[Servers, PostgresServer], AbstractContextManager[Target | None]]

STARTERS: Mapping[str, Starter] = {
    "direct": _direct,
    "pgshunt": partial(_pgshunt, name="pgshunt", workers=1),
    "pgshunt-cores": partial(_pgshunt, name="pgshunt-cores", workers=0),
    "pgbouncer": partial(_pgbouncer, name="pgbouncer"),
    "pgshunt-tls": partial(_pgshunt, name="pgshunt-tls", workers=1, encrypted=True),
    "pgbouncer-tls": partial(_pgbouncer, name="pgbouncer-tls", encrypted=True),
}
"""`pgshunt` has one worker, as PgBouncer is one process; `pgshunt-cores` has one for each core. Clients of
the targets with `-tls` are encrypted; these run when they are asked for.
"""

USUAL = tuple(name for name in STARTERS if not name.endswith("-tls"))
