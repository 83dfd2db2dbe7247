"""Session settings as a value, and the SQL that asks a server for them and brings it to them.

A session's settings are the configuration parameters that deviate from what its identity logs in with. What
a statement did to them is not guessed from its text: the server is asked once the transaction has ended, so
that rollbacks and savepoints come out right. Names are in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from weakref import WeakValueDictionary

from pgshunt.routing.findings import RENAMING, REREADING
from pgshunt.routing.names import split_search_path
from pgshunt.routing.shape import READ_COMMITTED

SETTINGS_BYTES_MAX: Final = 65_536
"""Of one session's settings, names and values; with more, it keeps its link."""

WHO: Final = ("session_authorization", "role")
"""Set last, in this order, and reset first: who may set the others is the user that logged in."""

# Client encodings in which a byte below 0x80 can be part of a character, so that a quote or a backslash
# cannot be told by its byte (PostgreSQL's PG_VALID_FE_ENCODING-only encodings, mb/pg_wchar.h).
UNSAFE_ENCODINGS: Final = frozenset({"SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"})

VERIFIED: Final = {
    "listen": "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
    "advisory_lock": "EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory'"
    " AND pid = pg_catalog.pg_backend_pid())",
    "hold_cursor": "EXISTS (SELECT FROM pg_catalog.pg_cursors)",
    # 2615 is pg_namespace: whatever lies in the schema depends on it.
    "temp_table": "EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 2615"
    " AND refobjid = pg_catalog.pg_my_temp_schema())",
    # Nobody signals it any more. A server that answers is not one that was ended.
    "signalled": "false",
}
"""Per cause of a pin that the server can be asked for: whether it still holds."""

_NAME: Final = re.compile(r"[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)*")


class Untrackable(ValueError):
    """Settings that cannot be brought to another link; the text is the cause for the pin."""


class Settings:
    """Immutable, and equal ones are the same object: see `settings`.

    `custom` are the names with a dot. Once such a parameter was set it exists, empty at least, for as long as
    the connection. `reading` is what makes the same text another statement.
    """

    __slots__ = ("__weakref__", "custom", "reading", "values")

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = dict(values)
        self.custom = frozenset(name for name in values if "." in name)
        self.reading = tuple(
            sorted((name, value) for name, value in values.items() if name in RENAMING | REREADING)
        )

    def __repr__(self) -> str:
        return f"Settings({self.values})"


_known: WeakValueDictionary[tuple[tuple[str, str], ...], Settings] = WeakValueDictionary()


def settings(values: Mapping[str, str]) -> Settings:
    """The one Settings of these values."""
    key = tuple(sorted(values.items()))
    found = _known.get(key)
    if found is None:
        found = _known[key] = Settings(values)
    return found


BASE: Final = settings({})


def is_trackable(name: str) -> bool:
    """Whether a parameter of this name can be asked for and set without knowing how it is written."""
    return _NAME.fullmatch(name) is not None


def reset_names(resets: Iterable[str], known: Iterable[str]) -> set[str]:
    """The names that a Shape's `resets` stand for; "*" for those of `known` that RESET ALL resets."""
    names = set(resets)
    if "*" in names:
        names.remove("*")
        names.update(name for name in known if name not in WHO)
    return names


# Asking


def question(names: Sequence[str], causes: Sequence[str]) -> str:
    """A query for what `answered` and `still_held` read; one row."""
    columns = [
        f"pg_catalog.current_setting('{name}', true)"
        for name in ("client_encoding", "server_encoding", *names)
    ]
    columns += [VERIFIED[cause] for cause in causes]
    return "SELECT " + ", ".join(columns)


def answered(before: Settings, asked: Mapping[str, bool], row: Sequence[bytes | None]) -> Settings:
    """The settings a server says to stand in; it stood in `before` when `asked` was asked.

    `asked` tells for each name whether it was reset and not set: then another value than before is the
    default. Raises Untrackable.
    """
    client_encoding, server_encoding, *answers = row
    values = dict(before.values)
    for (name, reset), answer in zip(asked.items(), answers, strict=False):
        if answer is None:
            values.pop(name, None)
            continue
        if not answer.isascii() and (client_encoding, server_encoding) != (b"UTF8", b"UTF8"):
            raise Untrackable("encoding")
        value = answer.decode()
        if reset and "." not in name and before.values.get(name) != value:
            values.pop(name, None)
        else:
            values[name] = value
    if sum(len(name) + len(value) for name, value in values.items()) > SETTINGS_BYTES_MAX:
        raise Untrackable("settings_size")
    return settings(values)


def still_held(causes: Sequence[str], row: Sequence[bytes | None]) -> set[str]:
    """Those of `causes` whose state the server still has."""
    return {cause for cause, held in zip(causes, row[len(row) - len(causes) :], strict=True) if held != b"f"}


# Replaying


def reachable(here: Settings, there: Settings, ignored: frozenset[str] = frozenset()) -> bool:
    """Whether a server can be brought from `here` to `there`. A custom parameter cannot be made to vanish;
    `ignored` ones are about to be set anyway.
    """
    return here.custom <= there.custom or here.custom <= there.custom | ignored


def transition(here: Settings, there: Settings) -> str:
    """A simple query that brings a server from `here` to `there`.

    If any part of it fails the server closes the connection (exit_on_error makes an error fatal), so that no
    statement behind it runs with other settings than its own.
    """
    gone = [name for name in here.values if name not in there.values]
    changed = {name: value for name, value in there.values.items() if here.values.get(name) != value}
    for name in WHO:
        if name in here.values and name not in gone:
            gone.append(name)
        if name in there.values:
            changed[name] = there.values[name]
    # Who resets a role must do it before anything else, and the session's user before the role is set.
    gone.sort(key=lambda name: WHO[::-1].index(name) if name in WHO else len(WHO))
    order = sorted(changed, key=lambda name: WHO.index(name) + 1 if name in WHO else 0)
    assign = ", ".join(
        f"pg_catalog.set_config('{name}', {literal(changed[name])}, false)"
        for name in order
        if name != "exit_on_error"
    )
    parts = ["SET exit_on_error = on"]
    parts += [f"RESET {_identifier(name)}" for name in gone if name != "exit_on_error"]
    if assign:
        parts.append(f"SELECT {assign}")
    own = there.values.get("exit_on_error")
    parts.append("RESET exit_on_error" if own is None else f"SET exit_on_error = {literal(own)}")
    return "; ".join(parts)


def literal(value: str) -> str:
    """A string constant in ASCII that means the same under all settings; not ASCII: for a server in UTF8."""
    escaped = "".join(_escaped(character) for character in value)
    return f"E'{escaped}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\\\" if character == "\\" else "''"
    code = ord(character)
    if code < 0x80:
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _identifier(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


# What they mean


def search_path(held: Settings, base: tuple[str, ...], user: str) -> tuple[str, ...]:
    """The schemas in which unqualified names are looked for; `base` and `user` are the identity's."""
    text = held.values.get("search_path")
    schemas = base if text is None else split_search_path(text)
    role = held.values.get("role", "none")
    name = role if role != "none" else held.values.get("session_authorization", user)
    return tuple(name if schema == "$user" else schema for schema in schemas)


def is_read_committed(held: Settings, base: bool) -> bool:
    """Whether a transaction whose BEGIN says nothing of its isolation is READ COMMITTED."""
    isolation = held.values.get("default_transaction_isolation")
    return base if isolation is None else isolation in READ_COMMITTED


def is_plain(held: Settings, base: bool) -> bool:
    """Whether string literals follow the standard and every quote is a quote: statements can be read."""
    conforming = held.values.get("standard_conforming_strings")
    encoding = held.values.get("client_encoding")
    return (base if conforming is None else conforming == "on") and (
        base if encoding is None else encoding not in UNSAFE_ENCODINGS
    )
