"""Names resolve as PostgreSQL resolves them."""

from __future__ import annotations

import pytest

from pgshunt.routing.names import (
    NAME_LENGTH_MAX,
    _qualified,
    named,
    qualified,
    resolve,
    split_qualified,
    split_search_path,
)

RELATIONS = {"public.users": "r", "audit.users": "r", 'audit."a.b"': "r"}


@pytest.mark.parametrize(
    ("schema", "name", "path", "full"),
    [
        ("", "users", ("public", "audit"), "public.users"),
        ("", "users", ("$user", "audit", "public"), "audit.users"),
        ("", "users", (), "users"),
        ("", "a.b", ("audit",), 'audit."a.b"'),
        ("", "public.users", ("public",), '"public.users"'),
        ("", "pg_class", ("public",), "pg_catalog.pg_class"),
        ("x", "users", ("public",), "x.users"),
        ('q"', "t", (), '"q""".t'),
    ],
)
def test_resolve(schema: str, name: str, path: tuple[str, ...], full: str) -> None:
    assert resolve(schema, name, path, RELATIONS) == full


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('"$user", public', ("$user", "public")),
        ('a,B , "C d"', ("a", "b", "C d")),
        ('"a""b"', ('a"b',)),
        ('""', ()),
        ("", ()),
        ("a,", ()),
        ("a b", ()),
    ],
)
def test_split_search_path(text: str, path: tuple[str, ...]) -> None:
    assert split_search_path(text) == path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("users", ("", "users")),
        ("Public.Users", ("public", "users")),
        ('public."Users"', ("public", "Users")),
        ('"a.b"', ("", "a.b")),
        ("a.b.c", None),
        ("", None),
        ("a..b", None),
    ],
)
def test_split_qualified(text: str, parts: tuple[str, str] | None) -> None:
    assert split_qualified(text) == parts


def test_long_names_from_literals_are_not_kept() -> None:
    kept = _qualified.cache_info().currsize
    long = "n" * (NAME_LENGTH_MAX + 1)
    assert (qualified("s", long), qualified(long, "n")) == (f"s.{long}", f"{long}.n")
    assert _qualified.cache_info().currsize == kept


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 1 FROM users", ["users"]),
        ("public.Users", ["users", "Users"]),
        ("UPDATE users_1 SET users2 = 1", []),
        ('"Users"', ["users", "Users"]),
        ('\'6" pipe\', users, "two words"', ["users", "two words"]),
        ("two words", []),
        ('"a""b"', ['a"b']),
        ("größe", ["größe"]),
        ("", []),
    ],
)
def test_named(text: str, found: list[str]) -> None:
    assert named(text, ("users", "Users", "two words", 'a"b', "größe")) == found
