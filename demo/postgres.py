"""Runs throwaway PostgreSQL servers: as any user, in any container, with nothing left behind.

    with Servers() as servers:
        shared = servers.start("shared", {"wal_level": "logical"})
        replica = shared.replica("shared_1")
        shared.execute("SELECT 1")

Each server is a child process with a system identifier of its own. It listens on 127.0.0.1 and a unix socket.
"""

from __future__ import annotations

import atexit
import ctypes
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pg8000.native import Connection

from pgshunt.demo.account import Account, CommandFailed
from pgshunt.demo.binaries import Binaries, copy_binaries, find_binaries

__all__ = ["Binaries", "PostgresServer", "Server", "ServerFailed", "Servers", "find_binaries", "free_port"]

SUPERUSER = "postgres"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
PORT_ATTEMPTS = 5

# Below the range from which the kernel takes ports of outgoing connections (32768 on Linux), so none of those
# sits on a server's port while it is restarted.
PORTS = range(20_000, 32_000)

Method = Literal["scram-sha-256", "trust"]
StopMode = Literal["smart", "fast", "immediate"]

# Why a start may fail and the next one succeed: the port is another's, or children of a killed postmaster are
# still on their way out (PostgreSQL sees them attached to its shared memory and refuses).
PASSING = ("Address already in use", "is still in use")

STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {  # pg_ctl's own table
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

# Safe for data that nobody will miss: a crash of the machine may lose it, a crash of the server does not.
THROWAWAY = {"fsync": "off", "full_page_writes": "off"}

# Lines of postmaster.pid, counted from 1 (src/include/utils/pidfile.h), and what <sys/ipc.h> calls removal.
SEGMENT_LINE, STATUS_LINE = 7, 8
IPC_RMID = 0

SETTINGS = {
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_connections": "100",
    # Files in the data directory, not in /dev/shm: containers have 64 MB there, and killed servers litter it.
    "dynamic_shared_memory_type": "mmap",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "timezone": "UTC",
}

INCLUDE = "include 'server.conf'\n"
QUOTE = "'"

# Outlives the process that started it: end of file on its input means that process is gone, however it ended.
WATCHDOG = """
cat >/dev/null
for file in "$0"/*/postmaster.pid; do
    [ -f "$file" ] || continue
    kill -QUIT "$(head -n 1 "$file")" 2>/dev/null
    for attempt in 1 2 3 4 5 6 7 8 9 10; do [ -f "$file" ] && sleep 0.2; done
done
for file in "$0"/*.pid; do
    [ -f "$file" ] && kill -TERM "$(cat "$file")" 2>/dev/null
done
rm -rf "$0"
"""


class ServerFailed(CommandFailed):
    """A server did not start; the message carries the end of its log."""


@dataclass(slots=True)
class Server:
    """How to reach a PostgreSQL server as its superuser."""

    host: str
    port: int
    user: str
    password: str

    def connect(self, dbname: str = "postgres", user: str = "", password: str = "") -> Connection:
        """A pg8000 connection in autocommit, the superuser's by default. Raises pg8000.exceptions.Error."""
        user, password = user or self.user, password or self.password
        return Connection(user, host=self.host, port=self.port, database=dbname, password=password)

    def execute(self, sql: str, dbname: str = "postgres", **parameters: Any) -> list[list[Any]]:
        """Runs SQL on a connection of its own and returns the rows.

        Parameters are named (`:name`). Without them `sql` may hold several statements: one transaction.
        """
        connection = self.connect(dbname)
        try:
            return list(connection.run(sql, **parameters) or [])
        finally:
            connection.close()

    def dsn(self, dbname: str = "postgres", user: str = "", password: str = "") -> str:
        """A URL that libpq, psycopg and asyncpg read."""
        login = f"{quote(user or self.user, '')}:{quote(password or self.password, '')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(dbname, '')}"


class PostgresServer(Server):
    """One server: its data directory and its postmaster process."""

    def __init__(
        self,
        binaries: Binaries,
        directory: Path,
        name: str,
        settings: Mapping[str, str] | None = None,
        *,
        user: str = SUPERUSER,
        password: str = "",
        method: Method = "scram-sha-256",
        throwaway: bool = True,
        account: Account | None = None,
    ) -> None:
        """The data goes to `directory/name`; the account that runs the server must be able to reach it.

        No password means a random one. `throwaway` gives up surviving a crash of the machine, for speed.
        """
        super().__init__("127.0.0.1", 0, user, password or secrets.token_urlsafe(18))
        self.binaries = binaries
        self.directory = directory
        self.name = name
        self.settings = {**SETTINGS, **(THROWAWAY if throwaway else {}), **(settings or {})}
        self.method = method
        self.throwaway = throwaway
        self.account = account or Account.choose()
        self.data = directory / name
        self.log = directory / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Returns once the server accepts connections. The first time it gets a data directory and a port.

        Raises ServerFailed.
        """
        if self.pid is not None:
            return
        if not self.data.exists():
            self._initialise()
        ports = [self.port] * PORT_ATTEMPTS if self.port else [free_port() for _ in range(PORT_ATTEMPTS)]
        for attempt, port in enumerate(ports, 1):
            try:
                self._launch(port)
                break
            except ServerFailed as failure:
                if attempt == PORT_ATTEMPTS or not any(passing in str(failure) for passing in PASSING):
                    raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server as pg_ctl's mode of that name does; harmless if it does not run."""
        if self._process is None:
            return
        self._process.send_signal(STOP_SIGNALS[mode])
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Ends the postmaster as a crash would (SIGKILL); its children notice and leave."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Stops the server at once and removes what it left in the machine and on disk."""
        self.stop("immediate")
        if segment := self._postmaster_line(
            SEGMENT_LINE
        ):  # only a killed postmaster leaves this file and its segment
            ctypes.CDLL(None).shmctl(int(segment.split()[1]), IPC_RMID, None)
        shutil.rmtree(self.data, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def replica(self, name: str, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """A running streaming standby of this server, which accepts reads."""
        standby = PostgresServer(
            self.binaries,
            self.directory,
            name,
            {**self.settings, "hot_standby_feedback": "on", **(settings or {})},
            user=self.user,
            password=self.password,
            method=self.method,
            throwaway=self.throwaway,
            account=self.account,
        )
        source = f"host={self.host} port={self.port} user={self.user} application_name={name}"
        self.account.run(
            [
                *(self.binaries.program("pg_basebackup"), "--pgdata", str(standby.data), "--dbname", source),
                *("--wal-method", "stream", "--checkpoint", "fast", "--write-recovery-conf", "--no-sync"),
            ],
            PGPASSWORD=self.password,
        )
        standby.start()
        return standby

    def create_database(self, dbname: str, template: str = "template1") -> None:
        self.execute(f'CREATE DATABASE "{dbname}" TEMPLATE "{template}"')

    def drop_database(self, dbname: str) -> None:
        self.execute(f'DROP DATABASE IF EXISTS "{dbname}" WITH (FORCE)')

    def _initialise(self) -> None:
        password_file = self.directory / f"{self.name}.password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        self.account.own(password_file)
        try:
            self.account.run(
                [
                    *(self.binaries.program("initdb"), "--pgdata", str(self.data), "--username", self.user),
                    *("--pwfile", str(password_file), f"--auth={self.method}", "--no-sync"),
                    *("--encoding", "UTF8", "--locale", "C"),
                ]
            )
        finally:
            password_file.unlink()

    def _launch(self, port: int) -> None:
        self._configure(port)
        with self.log.open("a") as log:
            log_start = log.tell()
            self._process = self.account.spawn(
                [self.binaries.program("postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self.pid is None or time.monotonic() > deadline:
                self.stop("immediate")
                raise ServerFailed(f"{self.name} did not start on port {port}:\n{self._log_since(log_start)}")
            time.sleep(POLL_S)
        self.port = port

    def _is_ready(self) -> bool:
        """Whether our postmaster, not one before it, says in postmaster.pid that it accepts connections."""
        return self._postmaster_line(1) == str(self.pid) and self._postmaster_line(STATUS_LINE) == "ready"

    def _configure(self, port: int) -> None:
        """Writes the settings to a file that postgresql.conf includes, so that ALTER SYSTEM still wins."""
        settings = self.settings | {
            "listen_addresses": self.host,
            "port": str(port),
            "unix_socket_directories": str(self.directory),
        }
        lines = [f"{name} = '{value.replace(QUOTE, QUOTE * 2)}'\n" for name, value in settings.items()]
        (self.data / "server.conf").write_text("".join(lines))
        self.account.own(self.data / "server.conf")
        main = self.data / "postgresql.conf"
        if INCLUDE not in main.read_text():
            with main.open("a") as configuration:
                configuration.write(INCLUDE)

    def _postmaster_line(self, number: int) -> str:
        """A line of postmaster.pid; empty if not there (yet)."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        return lines[number - 1].strip() if len(lines) >= number else ""

    def _log_since(self, position: int) -> str:
        with self.log.open(errors="replace") as log:
            log.seek(position)
            return log.read()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@dataclass(slots=True)
class Servers:
    """Servers that live and go together in a directory under /tmp; closed on leaving or at exit."""

    binaries: Binaries = field(default_factory=find_binaries)
    throwaway: bool = True
    account: Account = field(default_factory=Account.choose)
    directory: Path = field(init=False)
    members: list[PostgresServer] = field(init=False, default_factory=list)
    _watchdog: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # Not $TMPDIR: the path of a unix socket may have 107 bytes, and macOS's is long.
        self.directory = Path(tempfile.mkdtemp(prefix="pgshunt-", dir="/tmp"))
        self.account.own(self.directory)
        command = ["/bin/sh", "-c", WATCHDOG, str(self.directory)]
        self._watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True)
        atexit.register(self.close)
        if not self.account.can_run(self.binaries.program("postgres")):
            self.binaries = copy_binaries(self.binaries, self.directory)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        name: str,
        settings: Mapping[str, str] | None = None,
        *,
        password: str = "",
        method: Method = "scram-sha-256",
    ) -> PostgresServer:
        """A new running server. Raises ServerFailed."""
        server = PostgresServer(
            self.binaries,
            self.directory,
            name,
            settings,
            password=password,
            method=method,
            throwaway=self.throwaway,
            account=self.account,
        )
        self.members.append(server)
        server.start()
        return server

    def replica(self, primary: PostgresServer, name: str) -> PostgresServer:
        """A running streaming standby of one of these servers."""
        standby = primary.replica(name)
        self.members.append(standby)
        return standby

    def adopt(self, pid: int) -> Path:
        """Has the watchdog end (SIGTERM) another process of ours too, while the returned file is there."""
        file = self.directory / f"{pid}.pid"
        file.write_text(str(pid))
        return file

    def close(self) -> None:
        """Stops every server, standbys first, and removes the directory. May be called again."""
        atexit.unregister(self.close)
        for server in reversed(self.members):
            server.remove()
        self.members.clear()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._watchdog and self._watchdog.stdin:
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None
