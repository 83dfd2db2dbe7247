"""A real `pgshunt serve` for a test: supervisor and workers as processes, on free ports, with a YAML."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pgshunt.admin.client import AdminClient, Unreachable
from pgshunt.admin.problem import Problem
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server, free_port

WITHIN_S = 30.0
POLL_S = 0.02

Document = dict[str, Any]


def address(server: Server) -> Document:
    """As the configuration names a server."""
    return {"host": server.host, "port": server.port}


def configuration(shared: Server, dbname: str, **sections: Any) -> Document:
    """A valid pgshunt.yaml: its superuser is client and control role, two workers, no service."""
    return {
        "version": 1,
        "listen": {"host": "127.0.0.1", "port": free_port(), "workers": 2},
        "auth": {"users": [{"name": shared.user, "password": shared.password}]},
        "control": {"user": shared.user, "password": shared.password},
        "shared": {"dbname": dbname, "primary": address(shared)},
        "admin": {"host": "127.0.0.1", "port": free_port(), "token": secrets.token_urlsafe(12)},
        "state": {"path": "pgshunt.state.json"},
    } | sections


def until(what: str, condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Polls another process until `condition()`; fails the test when that takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s:g} s")
        time.sleep(POLL_S)


class Serving:
    """One `pgshunt serve -c <directory>/pgshunt.yaml`. Use as a context manager.

    On entering it is started; `ready` says if the shared database must be up too, or just the workers. On
    leaving it is told to stop, must exit with 0, and must leave no process behind.
    """

    def __init__(self, directory: Path, config: Document, *, ready: bool = True) -> None:
        self.path = directory / "pgshunt.yaml"
        self.log = directory / "pgshunt.log"
        self.config = config
        self._ready = ready
        self.api = AdminClient(
            f"http://127.0.0.1:{config['admin']['port']}", Secret(config["admin"]["token"])
        )
        self.port: int = config["listen"]["port"]

    def __enter__(self) -> Serving:
        self.write(self.config)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgshunt", "serve", "-c", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that nothing of it can stay behind unseen
            )
        try:
            until("pgshunt serves", self._serves)
        except BaseException:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(WITHIN_S)
            until("no worker is left", lambda: not self.processes(), 5)
        finally:
            if self.processes():
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if kind is None:
            assert code == 0, self.said()

    # -- what a test asks of it -----------------------------------------------------------------------

    def write(self, config: Document | str) -> None:
        """Another configuration, for the next start or reload."""
        text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
        self.path.touch(mode=0o600)
        self.path.write_text(text)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self) -> Document:
        document: Document = self.api.get("/api/v1/status")
        return document

    def workers(self) -> list[Document]:
        workers: list[Document] = self.status()["workers"]
        return workers

    def readiness(self) -> list[str]:
        """What keeps it from serving; empty when it is ready."""
        try:
            self.api.get("/readyz")
        except Problem as unready:
            reasons: list[str] = unready.more["answer"]["reasons"]
            return reasons
        return []

    def events(self, kind: str) -> list[Document]:
        return [event for event in self.api.get("/api/v1/events")["events"] if event["kind"] == kind]

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """As `until`; a failure carries what pgshunt said."""
        try:
            until(what, condition)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def processes(self) -> list[int]:
        """All of its group that are alive, zombies left out."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                _, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            state, _, group = rest.split()[:3]
            if int(group) == self.process.pid and state != "Z":
                found.append(int(entry.name))
        return found

    def _serves(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"pgshunt serve ended with {self.process.returncode}:\n{self.said()}")
        try:
            return not (self._ready and self.readiness()) and all(
                one["stage"] == "live" for one in self.workers()
            )
        except Unreachable:
            return False
