"""PostgreSQL servers in containers (POSTGRES=docker), with the interface of the ones that run here."""

from __future__ import annotations

import os
from types import TracebackType

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from pgshunt.demo.postgres import Server

IMAGE = os.environ.get("POSTGRES_IMAGE", "postgres:15-alpine")
PASSWORD = "only for a container that lives for minutes"

# The image starts a server for its own set-up first, and logs the same line for it.
READY = LogMessageWaitStrategy("database system is ready to accept connections", times=2)


class DockerServers:
    """Starts containers and removes them on leaving."""

    def __init__(self) -> None:
        self.containers: list[DockerContainer] = []

    def __enter__(self) -> DockerServers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container in self.containers:
            container.stop()

    def start(self, name: str, settings: dict[str, str]) -> Server:
        """A running server; `name` is only there to be like Servers.start."""
        command = " ".join(["postgres", *(f"-c {key}={value}" for key, value in settings.items())])
        container = DockerContainer(IMAGE).with_env("POSTGRES_PASSWORD", PASSWORD).with_exposed_ports(5432)
        container = container.with_env("POSTGRES_INITDB_ARGS", "--locale=C --encoding=UTF8 --no-sync")
        container.with_command(command).waiting_for(READY).start()
        self.containers.append(container)
        return Server(
            container.get_container_host_ip(), int(container.get_exposed_port(5432)), "postgres", PASSWORD
        )
