"""Texts made to hurt cost bounded time and memory; what would take more is not parsed, and is a write."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pgshunt.routing import classify as classifying
from pgshunt.routing._shapes import ShapeCache
from pgshunt.routing.classify import classify, classify_bytes, resolver
from pgshunt.routing.grammar import KEY_BYTES_MAX
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Catalogue

PATH = ("$user", "public")
MIB = 1024 * 1024


def nested(opening: bytes, closing: bytes, size: int = KEY_BYTES_MAX) -> bytes:
    """As deep as `size` bytes allow."""
    depth = (size - 30) // len(opening + closing)
    return b"SELECT " + opening * depth + b"a" + closing * depth + b" FROM users"


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        (b"SELECT 1" + b"+1" * 100_000, "too_large"),
        (b"SELECT 1" + b"+1" * 7_000, "too_deep"),
        (b"SELECT " + b"(SELECT " * 1_500 + b"1" + b")" * 1_500, "too_deep"),
        (b"SELECT * FROM users" + b" JOIN roles ON true" * 10_000, "too_large"),
        (b"SELECT * FROM users" + b" JOIN roles ON true" * 800, "too_deep"),
        (b"SELECT nextval('" + b"x" * 300_000 + b"')", "too_large"),
        (b"SELECT '\xff' FROM users", "not_utf8"),
        (nested(b"CASE WHEN b THEN ", b" END"), "too_deep"),
        (nested(b"ARRAY[", b"]"), "too_deep"),
        (nested(b"NOT ", b""), "too_deep"),
        (nested(b"- ", b""), "too_deep"),
        (nested(b"", b"::a"), "too_deep"),
        (nested(b"(", b")", MIB), "too_large"),
        (b"DO $$" + b"x" * MIB + b"$$", "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:24].decode("latin-1"),
)
def test_hostile_texts_are_unknown(sql: bytes, reason: str, catalogue: Catalogue) -> None:
    shape = classify_bytes(sql, PATH, catalogue)
    assert (shape.kind, shape.reason, shape.writing) == (Kind.UNKNOWN, reason, True)


@pytest.mark.parametrize(
    "sql",
    [
        b"SELECT * FROM users WHERE id IN (" + b",".join(b"%d" % n for n in range(100_000)) + b")",
        b"SELECT * FROM users WHERE id IN (" + b",".join(b"$%d" % n for n in range(1, 65_536)) + b")",
        b"SELECT * FROM users WHERE name = '" + b"x" * (MIB - 50) + b"'",
        b"SELECT * FROM users /*" + b"x" * (MIB - 50) + b"*/",
        nested(b"(", b")", 2000),
    ],
    ids=lambda sql: sql[:40].decode(),
)
def test_length_that_literals_are_to_blame_for_is_read(sql: bytes, catalogue: Catalogue) -> None:
    assert classify_bytes(sql, PATH, catalogue) == Shape(Kind.READ, reads=frozenset({"public.users"}))


def test_many_rows_of_literals_are_no_hostile_text(catalogue: Catalogue) -> None:
    sql = "INSERT INTO users VALUES " + ", ".join(f"({n}, 'name {n}')" for n in range(30_000))
    assert classify(sql, PATH, catalogue) == classify("INSERT INTO users VALUES (1, 'a')", PATH, catalogue)


def test_a_long_text_whose_literals_matter_is_read_whole(catalogue: Catalogue) -> None:
    sql = "SELECT nextval('users_id_seq'), '" + "x" * 10_000 + "'"
    assert classify(sql, PATH, catalogue).writes == {"public.users_id_seq"}


@pytest.mark.parametrize(
    ("sql", "kind", "tables"),
    [
        (b"INSERT INTO users VALUES (nextval('users_id_seq'), %s)", Kind.WRITE, {"public.users"}),
        (
            b"INSERT INTO users SELECT %s ON CONFLICT DO NOTHING RETURNING lastval()",
            Kind.WRITE,
            {"public.users"},
        ),
        (b"SELECT 'users'::regclass, %s FROM roles", Kind.WRITE, {"public.roles"}),
        (b"SELECT set_config('app.x', 'y', false), %s FROM roles", Kind.UNKNOWN, set()),
        (b"DO %s", Kind.UNKNOWN, set()),
        (b"INSERT INTO users VALUES (nextval('users_id_seq')); DO %s", Kind.UNKNOWN, set()),
        (b"EXPLAIN (ANALYZE 'off') SELECT pg_advisory_lock(1), %s FROM users", Kind.UNKNOWN, set()),
        (b"SELECT current_timestamp(3), %s FROM users", Kind.UNKNOWN, set()),
        (b"SELECT 'a' 'b', %s FROM users", Kind.UNKNOWN, set()),
        (b"CREATE FUNCTION f() RETURNS int LANGUAGE sql AS %s", Kind.UNKNOWN, set()),
    ],
    ids=lambda value: value[:24].decode() if isinstance(value, bytes) else "",
)
def test_a_text_whose_literals_matter_is_parsed_up_to_a_length(
    sql: bytes, kind: Kind, tables: set[str], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: no more bytes are given to the grammar, however long the text is."""
    parsed: list[int] = []
    parse = classifying.parse

    def noted(text: bytes, key: bytes | None = None) -> object:
        parsed.append(len(text))
        return parse(text, key)

    monkeypatch.setattr(classifying, "parse", noted)
    shape = classify_bytes(sql % (b"'" + b"x" * 240_000 + b"'"), PATH, catalogue)
    assert sum(parsed) < 1000
    assert (shape.kind, shape.reason, shape.writing, shape.literal_sensitive) == (
        kind,
        "too_large",
        True,
        True,
    )
    assert shape.unreadable == (kind is Kind.UNKNOWN)
    assert tables <= shape.tables
    parsed.clear()
    classify_bytes(sql % (b"'" + b"x" * 31_000 + b"'"), PATH, catalogue)
    assert sum(parsed) < 33_000


def test_a_sample_that_is_no_statement_gives_way_to_the_text(catalogue: Catalogue) -> None:
    sql = "SELECT '" + "x" * classifying.LONG_BYTES + "', current_timestamp(3) FROM users"
    assert classify(sql, PATH, catalogue).reads == {"public.users"}


def test_comments_and_literals_make_no_parse(catalogue: Catalogue) -> None:
    resolve = resolver(catalogue)
    asked = []

    def noted(sql: bytes, search_path: tuple[str, ...]) -> Shape:
        asked.append(sql)
        return resolve(sql, search_path)

    cache = ShapeCache(noted)
    for n in range(100_000):
        cache.find(
            b"/* trace %d */ SELECT id FROM users WHERE id = %d /* span %d */ AND n = 'x%d' -- %d"
            % ((n,) * 5)
        )
        cache.find(b"-- %d\nSELECT id /* /* %d */ */ FROM users" % (n, n))
    assert len(asked) == cache.size == 2


DEEP = """
import threading
from pgshunt.routing.classify import classify_bytes
from pgshunt.routing.table import Catalogue

def read() -> None:
    for piece, closing in ((b"NOT ", b""), (b"(SELECT ", b")"), (b"f(", b")"), (b"((", b"))"), (b"@ ", b"")):
        depth = 16_300 // len(piece + closing)
        sql = b"SELECT " + piece * depth + b"a" + closing * depth
        print(classify_bytes(sql, (), Catalogue()).reason or "plain")

threading.stack_size(2 * 1024 * 1024)
thread = threading.Thread(target=read)
thread.start()
thread.join()
"""


def test_no_depth_that_is_parsed_overflows_a_stack_of_two_mebibytes() -> None:
    process = subprocess.run([sys.executable, "-P", "-c", DEEP], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout.split()) == (
        0,
        ["too_deep", "too_deep", "unparsable", "plain", "too_deep"],
    ), process.stderr
