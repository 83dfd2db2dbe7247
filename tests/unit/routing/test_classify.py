"""What each kind of statement is; test_alterations.py has which definitions it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.statements import PLAIN, ROWS, Row

from pgshunt.routing.classify import classify
from pgshunt.routing.shape import Kind
from pgshunt.routing.table import Catalogue

PATH = ("$user", "public")


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.sql[:60])
def test_a_statement_has_this_shape(case: Row, catalogue: Catalogue) -> None:
    assert replace(classify(case.sql, PATH, catalogue), alters=frozenset()) == case.shape


def test_only_plain_reads_of_tables_may_be_split() -> None:
    splittable = {case.sql for case in ROWS if case.shape.splittable}
    plain = {case.sql for case in PLAIN if case.shape.kind is Kind.READ and case.shape.reads}
    assert splittable == plain


def test_names_resolve_along_the_search_path(catalogue: Catalogue) -> None:
    def reads(*path: str) -> frozenset[str]:
        return classify("SELECT * FROM users, logs", path, catalogue).reads

    assert reads("audit", "public") == {"audit.users", "audit.logs"}
    assert reads("public", "audit") == {"public.users", "audit.logs"}
    assert reads() == {"users", "logs"}


def test_a_call_is_volatile_when_the_catalogue_is_not_known() -> None:
    assert classify("SELECT lower(a) FROM users", PATH, Catalogue()).volatile


@pytest.mark.parametrize(
    ("sql", "local"),
    [
        ("SELECT id FROM audit.logs", "own_types"),
        ("SELECT 1 FROM users WHERE EXISTS (SELECT FROM audit.logs)", "own_types"),
        ("SELECT name::mood FROM users", "own_types"),
        ("SELECT CAST(name AS public.mood[]) FROM users", "own_types"),
        ("SELECT u FROM users u", "own_types"),
        ("SELECT users FROM users", "own_types"),
        ("SELECT (u).id, name FROM users AS u", "own_types"),
        ("SELECT id::text, '{1}'::int[], 'x'::varchar(3), now()::timestamptz FROM users", None),
        ("SELECT u.id, u.* FROM users u", None),
        ("SELECT id FROM users", None),
    ],
)
def test_rows_with_types_of_the_databases_own_stay_at_the_owner(
    sql: str, local: str | None, catalogue: Catalogue
) -> None:
    """Clients are told a type by its OID, and they look it up at the owner."""
    known = frozenset({"int4", "text", "varchar", "timestamptz"})
    catalogue = replace(catalogue, types=known, own_types=frozenset({"audit.logs"}))
    shape = classify(sql, PATH, catalogue)
    assert shape.local == local
    assert shape.splittable == (local is None)
