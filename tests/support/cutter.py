"""A forwarder between a relay and its server that cuts connections, wherever in a message they are."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from random import Random
from types import TracebackType

RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER of no time: what close() sends is RST


class Cutter:
    """Accepts on `address` and passes everything on to `server` and back, until a connection is cut."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Cutter:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ours in (self._listener, *(end for pair in self._pairs for end in pair)):
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            ours.close()

    def cut(self, random: Random) -> bool:
        """Cuts one connection, with RST or FIN towards the relay; False if there is none."""
        with self._lock:
            if not self._pairs:
                return False
            client, server = self._pairs.pop(random.randrange(len(self._pairs)))
        if random.random() < 0.5:
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return True

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server, 30)
                server.settimeout(None)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._pairs.append((client, server))
        answers = threading.Thread(target=_pump, args=(server, client), daemon=True)
        answers.start()
        _pump(client, server)
        answers.join()
        with self._lock, suppress(ValueError):  # cut
            self._pairs.remove((client, server))
        for end in (client, server):
            end.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until the source ends, then ends the sink."""
    with suppress(OSError):  # cut
        while data := source.recv(16_384):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
