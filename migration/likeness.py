"""Compares what decides a database's answers besides its rows: its collation, and what sessions begin with.

The latter is set for server, database and logins. It changes with an ALTER at any time, so it is asked again
before a copy answers more reads, and while it is watched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pgshunt.config.model import Control
from pgshunt.migration.preflight import Problem
from pgshunt.migration.servers import connected
from pgshunt.migration.sql import literal, literals, quoted
from pgshunt.routing.names import split_search_path
from pgshunt.routing.table import Endpoint

ASK_TIMEOUT_S: Final = 5.0

COMPARED: Final = (
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "client_encoding",
    "datestyle",
    "default_text_search_config",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "gin_fuzzy_search_limit",
    "intervalstyle",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "row_security",
    "search_path",
    "session_replication_role",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
)
"""Settings that change answers, in lower case; besides them, those of users' own making: with a dot."""

_WORDS: Final = {
    **dict.fromkeys(("true", "yes", "1"), "on"),
    **dict.fromkeys(("false", "no", "0"), "off"),
    **dict.fromkeys(
        ("etc/utc", "utc", "uct", "etc/uct", "zulu", "etc/zulu", "universal", "etc/universal"), "utc"
    ),
}
"""Values that mean the same, each with one of them."""

_ONLY_TOLD: Final = ("auto_explain.", "pg_stat_statements.", "pgaudit.", "plpgsql.")
"""Settings with a dot that change what is logged or checked, and no answer."""

# reset_val has what server and database set, and what is set for the role that asks. A column of pg_database
# that a version lacks is no key of its JSON.
_QUESTION: Final = """
SELECT json_build_object(
  'dbname', current_database(),
  'asked_by', session_user,
  'database', (SELECT to_jsonb(d) FROM pg_database d WHERE datname = current_database()),
  'values', (SELECT json_object_agg(lower(name), reset_val) FROM pg_settings
             WHERE lower(name) = ANY ({names})),
  'present', (SELECT json_agg(rolname) FROM pg_roles),
  'set', (SELECT coalesce(json_agg(json_build_array(coalesce(r.rolname, ''), to_json(s.setconfig))
                                   ORDER BY s.setdatabase), '[]')
          FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
          WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                AND (s.setrole = 0 OR r.oid IS NOT NULL))
)::text
"""

_LOCALE: Final = (
    ("datcollate", "its LC_COLLATE"),
    ("datctype", "its LC_CTYPE"),
    ("provider", "its locale provider"),
    ("locale", "its locale"),
    ("rules", "its ICU rules"),
)


@dataclass(frozen=True, slots=True)
class Ways:
    """How one database answers. Settings are by name in lower case, their values as the server prints them.

    `settings`: of server and database, without `unknown`: those that are hidden behind the asking role's own.
    `of_roles`: what is set for a role, in this database before everywhere. `locale`: keys of _LOCALE and
    `version`; None is what the server's version does not know.
    """

    dbname: str
    locale: Mapping[str, str | None]
    settings: Mapping[str, str]
    unknown: frozenset[str]
    of_roles: Mapping[str, Mapping[str, str]]
    present: frozenset[str]


def read_ways(endpoint: Endpoint, control: Control) -> Ways:
    """Asks a session that begins now: one that is open keeps what it began with. Raises ServerError."""
    with connected(endpoint, control, "settings", ASK_TIMEOUT_S) as link:
        return ways(json.loads(link.value(_QUESTION.format(names=literals(COMPARED)))))


def ways(found: Mapping[str, Any]) -> Ways:
    """Of the answer to _QUESTION; pure."""
    of_roles: dict[str, dict[str, str]] = {}
    for role, assignments in found["set"]:
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            if _matters(name.lower()):
                of_roles.setdefault(role, {})[name.lower()] = value
    of_all = of_roles.pop("", {})
    hidden = {name for name in of_roles.get(found["asked_by"], {}) if name in COMPARED}
    values = {name: value or "" for name, value in found["values"].items() if name not in hidden}
    database = found["database"]
    return Ways(
        dbname=found["dbname"],
        locale={
            "datcollate": database["datcollate"],
            "datctype": database["datctype"],
            "provider": database.get("datlocprovider", "c"),
            "locale": database.get("datlocale") or database.get("daticulocale"),  # until 16
            "rules": database.get("daticurules"),
            "version": database.get("datcollversion"),
        },
        settings={**of_all, **values},
        unknown=frozenset(hidden - of_all.keys()),
        of_roles=of_roles,
        present=frozenset(found["present"]),
    )


def differences(source: Ways, target: Ways, logins: Collection[str]) -> list[Problem]:
    """What gives other answers at the target; pure. `logins` are those that will use it."""
    return [
        *_of_locale(source, target),
        *_of_database(source, target),
        *_of_logins(source, target, sorted(logins)),
    ]


def carried(source: Ways, role: str, dbname: str) -> list[str]:
    """The statements that give a role the settings it has at the source, in the database of this name."""
    return [
        _alter(dbname, name, value, role) for name, value in sorted(source.of_roles.get(role, {}).items())
    ]


def _of_locale(source: Ways, target: Ways) -> Iterator[Problem]:
    for key, what in _LOCALE:
        here, there = target.locale[key], source.locale[key]
        if _codeset(here) != _codeset(there):
            yield Problem(
                "own database",
                f"{what} is {here or 'not set'}, at the shared database {there or 'not set'}: "
                "it would sort and compare text otherwise",
                "create it anew from template0, with the locale of the shared one",
            )
    here, there = target.locale["version"], source.locale["version"]
    if here and there and here != there:
        yield Problem(
            "own database",
            f"its collation has version {here}, at the shared database {there}: text may sort otherwise",
            "give both servers the same version of libc or ICU where order matters",
            fatal=False,
        )


def _of_database(source: Ways, target: Ways) -> Iterator[Problem]:
    unknown = source.unknown | target.unknown
    for name in sorted((source.settings.keys() | target.settings.keys()) - unknown):
        here, there = target.settings.get(name), source.settings.get(name)
        if _is_known(name, source, target) and not _is_same(name, here, there):
            yield _differing("own database", target.dbname, name, here, there)
    for name in sorted(unknown):
        yield Problem(
            "own database",
            f"{name} is set for the control role, so the database's own cannot be seen",
            f"ALTER ROLE … RESET {name}, for the control role",
            fatal=False,
        )


def _of_logins(source: Ways, target: Ways, logins: Collection[str]) -> Iterator[Problem]:
    for role in logins:
        if role not in target.present:
            continue  # it is made with what it has at the source
        ours, theirs = target.of_roles.get(role, {}), source.of_roles.get(role, {})
        for name in sorted(ours.keys() | theirs.keys()):
            if not _is_known(name, source, target):
                continue
            here = ours.get(name, target.settings.get(name))
            there = theirs.get(name, source.settings.get(name))
            if not _is_same(name, here, there):
                yield _differing(f"role {role}", target.dbname, name, here, there, role)


def _differing(
    subject: str, dbname: str, name: str, here: str | None, there: str | None, role: str = ""
) -> Problem:
    if "." in name:  # an application's own, which may be a key
        there = there and "…"
        return Problem(
            subject,
            f"{name} is set otherwise at the own database than at the shared one",
            f"run at the own database: {_alter(dbname, name, there, role)}",
        )
    return Problem(
        subject,
        f"{name} is {_told(here)} at the own database, {_told(there)} at the shared one",
        f"run at the own database: {_alter(dbname, name, there, role)}",
    )


def _alter(dbname: str, name: str, value: str | None, role: str = "") -> str:
    database = f"DATABASE {quoted(dbname)}"
    altered = f"ALTER ROLE {quoted(role)} IN {database}" if role else f"ALTER {database}"
    words = ".".join(quoted(part) for part in name.split("."))
    if value is None:
        return f"{altered} RESET {words}"
    if name == "search_path":  # a list of names, and one literal would be one name
        return f"{altered} SET {words} TO {', '.join(map(literal, split_search_path(value))) or literal('')}"
    return f"{altered} SET {words} TO {literal(value)}"


def _matters(name: str) -> bool:
    return name in COMPARED or ("." in name and not name.startswith(_ONLY_TOLD))


def _is_known(name: str, source: Ways, target: Ways) -> bool:
    """Whether both servers have it; nobody's version has those of users' own making."""
    return "." in name or (name in source.settings and name in target.settings)


def _is_same(name: str, one: str | None, other: str | None) -> bool:
    """Each as it was typed in an ALTER, or as the server prints it."""
    if one is None or other is None or "." in name:
        return one == other
    if name == "search_path":
        return split_search_path(one) == split_search_path(other)
    if name.startswith("lc_"):
        return _codeset(one) == _codeset(other)
    return _plain(one) == _plain(other)


def _plain(value: str) -> str:
    """`ISO, MDY` for `iso,mdy`: what is said by case or blanks is no other value of these settings."""
    plain = "".join(value.casefold().split()).removeprefix("pg_catalog.")
    return _WORDS.get(plain, plain)


def _codeset(locale: str | None) -> str | None:
    """`en_US.UTF-8` and `en_US.utf8` are one locale by two names."""
    if locale is None:
        return None
    name, dot, codeset = locale.partition(".")
    return name + dot + codeset.replace("-", "").lower()


def _told(value: str | None) -> str:
    return "not set" if value is None else value or "empty"
