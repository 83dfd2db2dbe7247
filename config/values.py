"""Says what a single value of a configuration may be, and how one is refused."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from pgshunt.config.names import pattern, qualified
from pgshunt.config.secret import Secret

VERSION: Final = 1
"""Of the format of a configuration file."""
NAME_BYTES_MAX: Final = 63
"""Of PostgreSQL's identifiers: NAMEDATALEN - 1."""
_VERIFIER: Final = r"SCRAM-SHA-256\$[1-9][0-9]*:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+"


def is_identifier(name: str) -> bool:
    """Whether a role or a database can have this name."""
    return 0 < len(name) <= NAME_BYTES_MAX


def _refuse(message: str, remedy: str) -> PydanticCustomError:
    """An error whose context carries the way out; `config.explain` prints both."""
    return PydanticCustomError("refused", "{message}", {"message": message, "remedy": remedy})


def _host(host: str) -> str:
    if host.startswith("/"):
        raise _refuse("names a Unix socket, which is not in this version", "write a host name or an address")
    if not host or any(character.isspace() for character in host):
        raise _refuse("is not a host", "write a host name or an address")
    return host


def _table(name: str) -> str:
    if any(character in name for character in "*?%["):
        raise _refuse("is a pattern", "name each table")
    try:
        return qualified(name)
    except ValueError as error:
        raise _refuse(str(error), 'write table, schema.table, or schema."Table"') from error


def _owned(name: str) -> str:
    if "*" not in name:
        return _table(name)
    try:
        return pattern(name)
    except ValueError as error:
        raise _refuse(str(error), "write `auth_*` or `billing.*`: `*` stands in the table's name") from error


def _at_least_one(tables: tuple[str, ...]) -> tuple[str, ...]:
    """Field's own min_length would also find a list empty of which all items are wrong."""
    if not tables:
        raise _refuse("is empty", "name at least one table")
    return tables


def _version(version: int) -> int:
    if version != VERSION:
        raise _refuse(
            f"this pgshunt reads format {VERSION} only",
            f"write `version: {VERSION}`, or install the pgshunt that this file was written for",
        )
    return version


def _shadow_writes(mode: object) -> object:
    if mode == "ack":
        raise _refuse("'ack' is not in this version", "write off or validate")
    return mode


def _verifier(secret: Secret) -> Secret:
    if re.fullmatch(_VERIFIER, secret.reveal()) is None:
        raise _refuse("is no SCRAM-SHA-256 verifier", "copy rolpassword from pg_authid")
    return secret


Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
WORKERS_MAX = 127
"""The worker stands in the first byte of its sessions' process ids, which are never negative."""
BindPort = Annotated[int, Field(ge=0, le=65535)]
"""0 lets the kernel choose a free one."""
Count = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Milliseconds = Annotated[int, Field(ge=1)]
Timeout = Annotated[int, Field(ge=0)]
"""Milliseconds; 0 waits for ever."""
Table = Annotated[str, AfterValidator(_table)]
OwnedTables = Annotated[
    tuple[Annotated[str, AfterValidator(_owned)], ...],
    AfterValidator(_at_least_one),
    Field(json_schema_extra={"minItems": 1}),
]
Identifier = Annotated[str, Field(min_length=1, max_length=NAME_BYTES_MAX)]
"""Name of a role or database."""
DATABASE_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_-]{0,62}$"
SERVICE_NAME: Final = r"^[a-z_][a-z0-9_]{0,47}$"
"""Slots are named after a service: PostgreSQL allows them a-z, 0-9 and _, and 63 bytes in all."""
# A key that is no name must not hide what stands behind it, so the schema has the patterns and `check` looks.
DatabaseName = Annotated[str, WithJsonSchema({"type": "string", "pattern": DATABASE_NAME})]
ServiceName = Annotated[str, WithJsonSchema({"type": "string", "pattern": SERVICE_NAME})]
UserName = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": NAME_BYTES_MAX})]
Version = Annotated[int, AfterValidator(_version), WithJsonSchema({"type": "integer", "const": VERSION})]
ShadowWrites = Annotated[Literal["off", "validate"], BeforeValidator(_shadow_writes)]
Verifier = Annotated[Secret, AfterValidator(_verifier)]
