"""Proves and checks passwords with SCRAM-SHA-256, in both roles (RFC 5802, RFC 7677).

Only SASLprep comes from `scramp`: its exchanges refuse the empty user name that libpq sends, take no keys
computed before, and refuse iteration counts below 4,096 (PostgreSQL allows any). Where the RFC leaves a
choice, PostgreSQL's auth-scram.c and fe-auth-scram.c decide: the user name inside the exchange is ignored,
and a password that SASLprep refuses is used as it is.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import pbkdf2_hmac, sha256
from hmac import compare_digest, digest

from scramp.utils import ScramException, saslprep

from pgshunt.protocol.errors import (
    FEATURE_NOT_SUPPORTED,
    INVALID_AUTHORIZATION,
    INVALID_PASSWORD,
    ClientProtocolError,
    ServerProtocolError,
)

MECHANISM = b"SCRAM-SHA-256"
MECHANISM_PLUS = b"SCRAM-SHA-256-PLUS"
# The one type of channel binding that PostgreSQL has: to the server's certificate (RFC 5929).
BINDING_TYPE = b"tls-server-end-point"
# PostgreSQL's SCRAM_SHA_256_DEFAULT_ITERATIONS and SCRAM_DEFAULT_SALT_LEN.
ITERATIONS = 4_096
SALT_BYTES = 16
# A server names the count and the client pays for it: some 0.3 s of CPU here, hours at 2³¹ (CVE-2026-42198).
ITERATIONS_MAX = 1_000_000
_NONCE_BYTES = 18
_KEY_BYTES = 32

_PRINTABLE = rb"[!-+\--~]+"
_CLIENT_FIRST = re.compile(
    rb"(?P<binding>[ny]|p=[^,\0]+),(?P<authzid>a=[^,\0]*)?,"
    rb"(?P<bare>(?P<mandatory>m=[^,\0]*,)?n=[^,\0]*,r=(?P<nonce>" + _PRINTABLE + rb")(,[A-Za-z]=[^,\0]*)*)"
)
_CLIENT_FINAL = re.compile(
    rb"(?P<unproved>c=(?P<binding>[^,\0]+),r=(?P<nonce>" + _PRINTABLE + rb")(,[A-Za-oq-z]=[^,\0]*)*)"
    rb",p=(?P<proof>[^,\0]+)"
)
_SERVER_FIRST = re.compile(
    rb"r=(?P<nonce>" + _PRINTABLE + rb"),s=(?P<salt>[^,\0]+),i=(?P<iterations>[1-9][0-9]{0,9})"
    rb"(,[A-Za-z]=[^,\0]*)*"
)
_SERVER_FINAL = re.compile(rb"(?:e=(?P<error>[^,\0]*)|v=(?P<signature>[^,\0]+))(,[A-Za-z]=[^,\0]*)*")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{1,10}):([^:$]+)\$([^:$]+):([^:$]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a password amounts to under one salt and iteration count: enough to log in."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What a server keeps instead of a password: enough to check a login, not to make one."""

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a login has shown: the keys to log in wherever the same verifier is kept, without the password."""

    verifier: ScramVerifier
    keys: ScramKeys


@lru_cache(maxsize=1024)
def derive_keys(password: str, salt: bytes, iterations: int) -> ScramKeys:
    """Keys of a password: about a millisecond of CPU at 4,096 iterations, so they are remembered.

    A server's salt is one for each of its users, hence one entry for each (user, server).
    """
    salted = pbkdf2_hmac("sha256", _prepare(password), salt, iterations)
    return ScramKeys(_hmac(salted, b"Client Key"), _hmac(salted, b"Server Key"))


def make_verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> ScramVerifier:
    """The verifier PostgreSQL would store for this password."""
    keys = derive_keys(password, salt, iterations)
    return ScramVerifier(salt, iterations, sha256(keys.client_key).digest(), keys.server_key)


def parse_verifier(text: str) -> ScramVerifier:
    """A verifier as pg_authid.rolpassword holds it; ValueError if it is of another kind."""
    found = _VERIFIER.fullmatch(text)
    if found is None:
        raise ValueError("not SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>")
    iterations, *encoded = found.groups()
    salt, stored_key, server_key = (_decode(part.encode()) for part in encoded)
    if salt is None or stored_key is None or server_key is None:
        raise ValueError("SCRAM-SHA-256 salt and keys are written in base64")
    if int(iterations) == 0 or len(stored_key) != _KEY_BYTES or len(server_key) != _KEY_BYTES:
        raise ValueError(f"SCRAM-SHA-256 keys are {_KEY_BYTES} bytes, iterations at least 1")
    return ScramVerifier(salt, int(iterations), stored_key, server_key)


class ScramServer:
    """The server's side of one login: `first()` answers the client's first message, `final()` its second."""

    def __init__(
        self,
        verifier: ScramVerifier,
        *,
        doomed: bool = False,
        nonce: bytes | None = None,
        binding: bytes | None = None,
    ) -> None:
        """A `doomed` exchange does the same work and fails: it hides that a user does not exist.

        `binding` is what SCRAM-SHA-256-PLUS is bound to, if that was offered.
        """
        self._verifier = verifier
        self._doomed = doomed
        self._offered = binding
        self._is_bound = False
        self.proof: Proof | None = None
        self._nonce = nonce or _make_nonce()
        self._client_first_bare = b""
        self._server_first = b""
        self._binding = b""

    def choose(self, mechanism: bytes) -> None:
        """The client names its mechanism; ClientProtocolError if that was not offered."""
        self._is_bound = mechanism == MECHANISM_PLUS and self._offered is not None
        if mechanism != MECHANISM and not self._is_bound:
            raise ClientProtocolError("client selected an invalid SASL authentication mechanism")

    def first(self, message: bytes) -> bytes:
        """Answers client-first-message with server-first-message; ClientProtocolError if it is malformed."""
        found = _CLIENT_FIRST.fullmatch(message)
        if found is None:
            raise _malformed("client-first-message")
        if found["authzid"] is not None:
            raise ClientProtocolError(
                "client uses authorization identity, but it is not supported", sqlstate=FEATURE_NOT_SUPPORTED
            )
        if found["mandatory"] is not None:
            raise ClientProtocolError(
                "client requires an unsupported SCRAM extension", sqlstate=FEATURE_NOT_SUPPORTED
            )
        self._binding = b64encode(found["binding"] + b",," + self._bound_to(found["binding"]))
        self._nonce = found["nonce"] + self._nonce
        self._client_first_bare = found["bare"]
        self._server_first = b"r=%b,s=%b,i=%d" % (
            self._nonce,
            b64encode(self._verifier.salt),
            self._verifier.iterations,
        )
        return self._server_first

    def _bound_to(self, flag: bytes) -> bytes:
        """The channel binding data behind this flag; errors as in PostgreSQL's read_client_first_message."""
        if flag.startswith(b"p="):
            if not self._is_bound:
                raise ClientProtocolError(
                    "malformed SCRAM message",
                    detail="The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message"
                    " includes channel binding data.",
                )
            if flag != b"p=" + BINDING_TYPE:
                raise ClientProtocolError(f"unsupported SCRAM channel-binding type {flag[2:]!r}")
            assert self._offered is not None
            return self._offered
        if self._is_bound:
            raise ClientProtocolError(
                "malformed SCRAM message",
                detail="The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include"
                " channel binding data.",
            )
        if flag == b"y" and self._offered is not None:
            # Somebody between us has taken SCRAM-SHA-256-PLUS out of what we offered.
            raise ClientProtocolError(
                "SCRAM channel binding negotiation error",
                sqlstate=INVALID_AUTHORIZATION,
                detail="The client supports SCRAM channel binding but thinks the server does not.  However,"
                " this server does support channel binding.",
            )
        return b""

    def final(self, message: bytes) -> bytes | None:
        """Answers client-final-message with server-final-message, or with None if the proof is wrong.

        Of a right one, `proof` keeps what it has shown.
        """
        found = _CLIENT_FINAL.fullmatch(message)
        if found is None:
            raise _malformed("client-final-message")
        proof = _decode(found["proof"])
        if proof is None or len(proof) != _KEY_BYTES:
            raise _malformed("client-final-message")
        if found["binding"] != self._binding and self._is_bound:
            # The client talks to somebody else's certificate: a man is in the middle.
            raise ClientProtocolError("SCRAM channel binding check failed", sqlstate=INVALID_AUTHORIZATION)
        if found["binding"] != self._binding:
            raise ClientProtocolError("unexpected SCRAM channel-binding attribute in client-final-message")
        if not compare_digest(found["nonce"], self._nonce):
            raise ClientProtocolError("invalid SCRAM response", detail="Nonce does not match.")
        signed = b",".join((self._client_first_bare, self._server_first, found["unproved"]))
        client_key = _xor(proof, _hmac(self._verifier.stored_key, signed))
        proved = compare_digest(sha256(client_key).digest(), self._verifier.stored_key)
        signature = b"v=" + b64encode(_hmac(self._verifier.server_key, signed))
        if not proved or self._doomed:
            return None
        self.proof = Proof(self._verifier, ScramKeys(client_key, self._verifier.server_key))
        return signature


class ScramClient:
    """The client's side of one login: `first()`, then `final()`, then `verify()` the server."""

    def __init__(
        self,
        keys: Callable[[bytes, int], ScramKeys],
        *,
        nonce: bytes | None = None,
        binding: bytes | None = None,
        could_bind: bool = False,
    ) -> None:
        """`keys` is asked with the server's salt and iteration count.

        With `binding`, the exchange is bound to it (SCRAM-SHA-256-PLUS); `could_bind` tells a server that
        offers no such thing that it was looked for.
        """
        self._keys = keys
        self._header = b"p=" + BINDING_TYPE if binding is not None else b"y" if could_bind else b"n"
        self._bound_to = binding or b""
        self._nonce = nonce or _make_nonce()
        self._signature = b""

    def first(self) -> bytes:
        """The client-first-message; without user name (the startup packet has it)."""
        return self._header + b",," + self._first_bare()

    def final(self, message: bytes) -> bytes:
        """Answers server-first-message with client-final-message; ServerProtocolError if it will not do."""
        found = _SERVER_FIRST.fullmatch(message)
        salt = _decode(found["salt"]) if found else None
        if found is None or not salt:
            raise ServerProtocolError("malformed SCRAM server-first-message")
        if not found["nonce"].startswith(self._nonce) or len(found["nonce"]) == len(self._nonce):
            raise ServerProtocolError("server sent a SCRAM nonce that does not continue ours")
        iterations = int(found["iterations"])
        if iterations > ITERATIONS_MAX:
            raise ServerProtocolError(
                f"server asks for {iterations} SCRAM iterations; at most {ITERATIONS_MAX} are computed"
            )
        keys = self._keys(salt, iterations)
        unproved = b"c=" + b64encode(self._header + b",," + self._bound_to) + b",r=" + found["nonce"]
        signed = b",".join((self._first_bare(), message, unproved))
        proof = _xor(keys.client_key, _hmac(sha256(keys.client_key).digest(), signed))
        self._signature = _hmac(keys.server_key, signed)
        return unproved + b",p=" + b64encode(proof)

    def verify(self, message: bytes) -> None:
        """Checks server-final-message: a server that does not know the password cannot sign it."""
        found = _SERVER_FINAL.fullmatch(message)
        if found is None:
            raise ServerProtocolError("malformed SCRAM server-final-message")
        if found["error"] is not None:
            reason = found["error"].decode("utf-8", "replace")
            raise ServerProtocolError(f"server ended the SCRAM exchange: {reason}", sqlstate=INVALID_PASSWORD)
        signature = _decode(found["signature"])
        if signature is None or not self._signature or not compare_digest(signature, self._signature):
            raise ServerProtocolError(
                "server could not prove that it knows the password: wrong SCRAM signature",
                sqlstate=INVALID_PASSWORD,
            )

    def _first_bare(self) -> bytes:
        return b"n=,r=" + self._nonce


def _prepare(password: str) -> bytes:
    try:
        prepared = saslprep(password)
    except ScramException:
        prepared = ""
    return (prepared or password).encode("utf-8", "surrogateescape")


def _make_nonce() -> bytes:
    return b64encode(secrets.token_bytes(_NONCE_BYTES))


def _hmac(key: bytes, message: bytes) -> bytes:
    return digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _decode(encoded: bytes) -> bytes | None:
    try:
        return b64decode(encoded, validate=True)
    except ValueError:
        return None


def _malformed(which: str) -> ClientProtocolError:
    return ClientProtocolError("malformed SCRAM message", detail=f"The {which} does not follow RFC 5802.")
