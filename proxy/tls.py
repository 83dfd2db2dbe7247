"""One end of an encrypted connection: Python's ssl module between two buffers in memory, no socket.

What arrives from the other side is written to `incoming` and read, decrypted, from `ssl_object`; what is
written to `ssl_object` is read, encrypted, from `outgoing`. So the socket's bytes stay in hands that know
which of them came before the handshake.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass

from asn1crypto.x509 import Certificate

RECEIVE_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class TlsEnd:
    """An SSLObject with its two buffers."""

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    ssl_object: ssl.SSLObject

    @classmethod
    def accepting(cls, context: ssl.SSLContext) -> TlsEnd:
        """The server's end, before its handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(incoming, outgoing, context.wrap_bio(incoming, outgoing, server_side=True))

    @classmethod
    def connecting(cls, context: ssl.SSLContext, host: str) -> TlsEnd:
        """The client's end, before its handshake with the server that is known as `host`."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(incoming, outgoing, context.wrap_bio(incoming, outgoing, server_hostname=host))

    def shake_hands(self) -> bool:
        """Goes on with the handshake; whether it is over. Raises ssl.SSLError when it fails."""
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """What `data` says, and whether the other side has ended the stream. Raises ssl.SSLError."""
        self.incoming.write(data)
        parts = []
        try:
            while part := self.ssl_object.read(RECEIVE_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            return b"".join(parts), False
        return b"".join(parts), True

    def encrypt(self, data: bytes) -> bytes:
        """`data` as it goes to the socket."""
        self.ssl_object.write(data)
        return self.outgoing.read()

    def binding(self) -> bytes | None:
        """What a SCRAM login is bound to (`end_point`) when the other side is the server."""
        certificate = self.ssl_object.getpeercert(binary_form=True)
        return end_point(certificate) if certificate else None

    def common_name(self) -> str | None:
        """The common name in the other side's certificate; None without one that was verified."""
        # Typed by hand: the stubs take the pairs for texts.
        subject: tuple[tuple[tuple[str, str], ...], ...]
        subject = (self.ssl_object.getpeercert() or {}).get("subject", ())  # type: ignore[assignment]
        return next((value for part in subject for name, value in part if name == "commonName"), None)


def first_certificate(pem: str) -> bytes:
    """The first certificate of a PEM text, as DER: the own one, by OpenSSL's order. Raises ValueError."""
    _, begin, rest = pem.partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    return ssl.PEM_cert_to_DER_cert(begin + body + end)


def end_point(certificate: bytes) -> bytes | None:
    """Channel binding data of type tls-server-end-point (RFC 5929, section 4.1) for a DER certificate.

    The hash is that of the certificate's signature, SHA-256 in place of MD5 and SHA-1; None for a signature
    that has no hash of its own (Ed25519): then there is no channel binding.
    """
    signature = Certificate.load(certificate)["signature_algorithm"]
    if signature["algorithm"].native in ("ed25519", "ed448"):
        return None
    try:
        name = signature.hash_algo
    except ValueError:
        return None
    return hashlib.new("sha256" if name in ("md5", "sha1") else name, certificate).digest()
