"""Ends of TLS connections whose records a test makes, cuts and looks at; and TLS in front of a server."""

from __future__ import annotations

import _ssl
import ctypes
import select
import socket
import ssl
import threading
from typing import Any

import pytest

from pgshunt.demo.postgres import Server

from .certificates import Authority, Pair

APPLICATION_DATA = 23
# _ssl.c: the SSL* stands behind the object's header and its `Socket`.
_SSL_AT = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
try:
    _key_update: Any = ctypes.CDLL(_ssl.__file__).SSL_key_update
except AttributeError:  # a Python that has OpenSSL inside
    _key_update = None
needs_key_updates = pytest.mark.skipif(_key_update is None, reason="OpenSSL cannot be called by its names")


def trusting(authority: Authority, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def update_keys(end: ssl.SSLObject, *, requested: bool = True) -> None:
    """Sends a KeyUpdate of TLS 1.3, for which Python's ssl has no word; `requested`: and wants one."""
    inner: Any = end._sslobj  # type: ignore[attr-defined]
    pointer = ctypes.c_void_p.from_address(id(inner) + _SSL_AT)
    assert _key_update(pointer, int(requested)) == 1
    end.do_handshake()  # sends it


class Tunnel:
    """A client's end; `sendall` and `recv` are those of the plaintext inside."""

    def __init__(self, connection: socket.socket, authority: Authority) -> None:
        self.socket = connection
        self.arriving, self.leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = trusting(authority, "postgresql")
        self.end = context.wrap_bio(self.arriving, self.leaving, server_hostname="localhost")
        self.records: list[int] = []
        self._received = b""
        while True:
            try:
                self.end.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.socket.sendall(self.leaving.read())
                self.arriving.write(self.socket.recv(65_536))
        self.socket.sendall(self.leaving.read())

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def sealed(self, data: bytes) -> bytes:
        self.end.write(data)
        return self.leaving.read()

    def goodbye(self) -> bytes:
        """close_notify."""
        try:
            self.end.unwrap()
        except ssl.SSLWantReadError:
            return self.leaving.read()
        raise AssertionError("the other side has ended the stream before")

    def new_keys(self) -> bytes:
        """A KeyUpdate that wants another one."""
        update_keys(self.end)
        assert self.leaving.pending
        return self.leaving.read()

    def sendall(self, data: bytes) -> None:
        self.socket.sendall(self.sealed(data))

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return self.end.read(size)
            except ssl.SSLWantReadError:
                data = self.socket.recv(65_536)
                if not data:
                    raise EOFError("closed without close_notify") from None
                self._note(data)
                self.arriving.write(data)

    def _note(self, data: bytes) -> None:
        """Keeps the lengths of the records of application data."""
        self._received += data
        while len(self._received) >= 5:
            kind, length = self._received[0], int.from_bytes(self._received[3:5])
            if len(self._received) < 5 + length:
                return
            if kind == APPLICATION_DATA:
                self.records.append(length)
            self._received = self._received[5 + length :]


class Encrypter:
    """Serves `server` by TLS at `port`, whatever it was built with, and changes its keys all the time.

    With `torn`, every connection is cut in the middle of the record in which the server says that.
    """

    def __init__(self, server: Server, pair: Pair, torn: bytes = b"") -> None:
        self._server, self._torn = server, torn
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._connections: list[threading.Thread] = []
        self.updates = 0

    def __enter__(self) -> Encrypter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in (self._thread, *self._connections):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(threading.Thread(target=self._serve, args=(client,)))
            self._connections[-1].start()

    def _serve(self, client: socket.socket) -> None:
        arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = self._context.wrap_bio(arriving, leaving, server_side=True)
        with client, socket.create_connection((self._server.host, self._server.port)) as server:
            client.recv(8)  # SSLRequest
            client.sendall(b"S")
            established = False
            while True:
                readable, _, _ = select.select([client, server], [], [])
                source = readable[0]
                data = source.recv(65_536)
                if not data:
                    return
                if source is server:
                    if _key_update is not None:
                        update_keys(end)
                        self.updates += 1
                    end.write(data)
                    record = leaving.read()
                    if self._torn and self._torn in data:
                        client.sendall(record[:-9])
                        return
                    client.sendall(record)
                    continue
                arriving.write(data)
                try:
                    if not established:
                        end.do_handshake()
                        established = True
                    while part := end.read(65_536):
                        server.sendall(part)
                    return
                except ssl.SSLWantReadError:
                    if leaving.pending:
                        client.sendall(leaving.read())
                except ssl.SSLError:
                    return  # the client trusts us no more
