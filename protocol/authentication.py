"""Says how clients prove who they are, and what a proof is checked against."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hmac import digest
from typing import Literal, Protocol

from pgshunt.protocol.scram import ITERATIONS, SALT_BYTES, ScramVerifier, make_verifier

Method = Literal["trust", "scram-sha-256", "cert"]


class Authenticator(Protocol):
    """Asked once for each login."""

    @property
    def method(self) -> Method:
        """What every client has to go through, known or not."""

    @property
    def looks_up(self) -> bool:
        """Whether a user without a verifier here may have one elsewhere."""

    def verifier(self, user: str) -> ScramVerifier | None:
        """What the user's proof is checked against; None if there is no such user."""

    def admits(self, certificate_name: str, user: str) -> bool:
        """Whether the holder of a certificate with this common name may log in as this user."""

    def mock_verifier(self, user: str) -> ScramVerifier:
        """What a user who does not exist is shown, the same at every attempt."""


class Trust:
    """Lets everybody in under the name they give: for local use."""

    method: Method = "trust"
    looks_up = False

    def admits(self, certificate_name: str, user: str) -> bool:
        return True

    def verifier(self, user: str) -> ScramVerifier | None:
        return None

    def mock_verifier(self, user: str) -> ScramVerifier:
        raise LookupError("nobody has to prove anything under trust")


class Certificates:
    """Lets those in whose client certificate TLS has verified, as the user the certificate names.

    `users` maps a common name to the users it stands for, where these are not just the one of that name.
    """

    method: Method = "cert"
    looks_up = False

    def __init__(self, users: Mapping[str, Collection[str]]) -> None:
        self._users = users

    def admits(self, certificate_name: str, user: str) -> bool:
        return user in self._users.get(certificate_name, (certificate_name,))

    def verifier(self, user: str) -> ScramVerifier | None:
        return None

    def mock_verifier(self, user: str) -> ScramVerifier:
        raise LookupError("nobody has to prove a password by certificate")


class Passwords:
    """Checks passwords by SCRAM-SHA-256, and does not tell which users exist.

    A salt is derived from the user's name and `secret`, for users who exist and for those who do not. It is
    the same in all workers if they are given the same secret, so neither a second attempt nor another
    worker tells them apart. Verifiers are made at once, about a millisecond of CPU for each user, so that
    no login takes longer than one that is bound to fail.
    """

    method: Method = "scram-sha-256"

    def __init__(
        self,
        passwords: Mapping[str, str],
        secret: bytes,
        verifiers: Mapping[str, ScramVerifier] | None = None,
        *,
        looks_up: bool = False,
    ) -> None:
        """`secret`: at least 16 random bytes, the same in all workers of one proxy, and after a restart.

        `verifiers` are of users whose password is not known here; with `looks_up`, others have theirs
        elsewhere.
        """
        if len(secret) < 16:
            raise ValueError(f"authentication secret of {len(secret)} bytes, at least 16 are needed")
        self._secret = secret
        self._verifiers = {user: make_verifier(given, self._salt(user)) for user, given in passwords.items()}
        self._verifiers |= verifiers or {}
        self.looks_up = looks_up

    def admits(self, certificate_name: str, user: str) -> bool:
        return False

    def verifier(self, user: str) -> ScramVerifier | None:
        return self._verifiers.get(user)

    def mock_verifier(self, user: str) -> ScramVerifier:
        # The keys are never shown; a login against them fails whatever the proof.
        return ScramVerifier(self._salt(user), ITERATIONS, bytes(32), bytes(32))

    def _salt(self, user: str) -> bytes:
        return digest(self._secret, user.encode("utf-8", "surrogateescape"), "sha256")[:SALT_BYTES]
