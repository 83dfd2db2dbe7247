"""PostgreSQL servers in containers (POSTGRES=docker), with the interface of the ones that run here.

They are on the host's network: the tests, the proxy, and one server that subscribes to another all reach a
server under the same address.
"""

from __future__ import annotations

import os
from types import TracebackType

import pg8000.exceptions
from testcontainers.core.container import DockerContainer

from pgshunt.demo.postgres import Server, free_port
from pgshunt.demo.waiting import NotSeen, wait_for

IMAGE = os.environ.get("POSTGRES_IMAGE", "postgres:15-alpine")
PASSWORD = "only for a container that lives for minutes"
START_TIMEOUT_S = 60.0


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
        server = Server("127.0.0.1", free_port(), "postgres", PASSWORD)
        options = settings | {"port": str(server.port), "listen_addresses": server.host}
        container = DockerContainer(IMAGE, network_mode="host").with_env("POSTGRES_PASSWORD", PASSWORD)
        container.with_env("POSTGRES_INITDB_ARGS", "--locale=C --encoding=UTF8 --no-sync")
        container.with_command(["postgres", *(f"-c{key}={value}" for key, value in options.items())])
        self.containers.append(container.start())
        try:
            wait_for("the container's server answers", lambda: _answers(server), START_TIMEOUT_S)
        except NotSeen as error:
            output, errors = container.get_logs()
            raise NotSeen(f"{error}: {(output + errors).decode(errors='replace')}") from None
        return server


def _answers(server: Server) -> bool:
    """Not while it sets itself up: the server it runs for that does not listen on TCP."""
    try:
        server.connect().close()
    except (pg8000.exceptions.Error, OSError):
        return False
    return True
