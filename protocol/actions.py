"""What the login of a client asks of whoever owns its socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgshunt.protocol.errors import PgError
from pgshunt.protocol.scram import Proof


@dataclass(frozen=True, slots=True)
class Send:
    """These bytes go to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client asks to cancel another session's statement. It gets no answer, right key or wrong."""

    process_id: int
    secret_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StartTls:
    """From here on the connection is encrypted; `received` of the client's TLS handshake is here already."""

    received: bytes = b""


@dataclass(frozen=True, slots=True)
class NeedWelcome:
    """The client is authenticated and knows it; it lacks ParameterStatus, BackendKeyData and ReadyForQuery.

    `parameters` holds what else the startup packet said, in its order: settings by name, and `options` (the
    command line, unparsed). The session speaks protocol 3.`protocol_minor`. `replication` is `true` or
    `database` where the client asks for a replication connection. `proof` is there if it has proved a
    password.
    """

    user: str
    database: str
    parameters: dict[bytes, bytes]
    protocol_minor: int
    replication: bytes | None = None
    proof: Proof | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class NeedVerifier:
    """Somebody has to be asked what this user's proof is checked against; then `found` goes on."""

    user: str


@dataclass(frozen=True, slots=True)
class Close:
    """The connection ends once everything is sent. `error` is what the client was told, for the log."""

    error: PgError | None = None


Action = Send | Cancel | StartTls | NeedVerifier | NeedWelcome | Close
