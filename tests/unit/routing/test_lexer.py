"""Literals are found as PostgreSQL finds them; the compiled twin agrees on every byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postgast import PgQueryError, scan
from postgast import pg_query_pb2 as pg

from pgshunt.routing._shapes import strip_bytes
from pgshunt.routing.lexer import HINT, integers, sample, strip

KEYS = {
    "": "",
    "  SELECT\t1  ": "select ?",
    "SELECT 'it''s', E'\\'', B'01', x'ff', U&'\\0061', N'a'": "select ?, n?",
    "SELECT n'a', 'b'": "select n?",
    "SELECT x'1''2', 'x''2'": "select ??",
    "SELECT 'a'\n  'b', 'c' 'd'": "select ? ?",
    "SELECT 'a' -- more\n -- and more\n 'b'": "select ?",
    "SELECT E'a'\n'\\'' x": "select ? x",
    "SELECT '\\' x": "select ? x",
    "SELECT $$a$$, $t$ $$ $x$ $t$, $1": "select ?",
    "SELECT a$b$c, a1$$": "select a$b$c, a1$$",
    "SELECT 1.5e-10, .5, 1., 1_000, 0x1F, 0b1, 0o7": "select ?",
    "SELECT a[1..10], 1.e5": "select a[?..?], ?",
    "SELECT a.b.c, t.1": "select a.b.c, t?",
    "SELECT -1, - 1, +-1": "select -?, - ?, +-?",
    'SELECT "Mixed""Case", Plain, É': 'select "Mixed""Case", plain, É',
    "SELECT a /* x /* y */ z */ b--c\n,d": "select a b, d",
    "SELECT a*/**/b, a+--\n1, a=-1": "select a* b, a+ ?, a=-?",
    "SELECT a ? 'b', a ?| b, '?'": "select a \x01 ?, a \x01| b, ?",
    "IN (1, 2 ,3,\n4)": "in (?)",
    "VALUES (1,'a'),( 2, 'b' ) , (3,E'c')": "values (?)",
    "VALUES (1, now()), (2, now())": "values (?, now()), (?, now())",
    "VALUES (1), (2) $11, 2": "values (?) ?",
    "f( a , b )": "f(a, b)",
    "SELECT 1; SELECT 2": "select ?; select ?",
    "/* tag */ SELECT 1 -- end": "select ?",
    "IN ($1, $2, 3)": "in (?)",
    "SELECT a$1, b = $1 AND c = '$2'": "select a$1, b = ? and c = ?",
    "SELECT 1 /* pgshunt: primary */": "select ? /*pgshunt: primary*/",
    "--PGSHUNT:Primary \nSELECT (/*pgshunt:\tprimary*/ 1), 2": (
        "/*pgshunt: primary*/ select (/*pgshunt: primary*/ ?), ?"
    ),
    "SELECT 1, /* pgshunt: primary */ 2": "select ?, /*pgshunt: primary*/ ?",
    "SELECT '/* pgshunt: primary */', a /* pgshunt: primary, please */": "select ?, a",
    "SELECT a /* /* pgshunt: primary */ */ --pgshunt: primary.": "select a",
    "SELECT a::int, b := 1, c => 2": "select a::int, b := ?, c => ?",
}

KEYLESS = [
    "SELECT 'open",
    "SELECT E'open\\'",
    'SELECT "open',
    "SELECT $a$open$b$",
    "SELECT /* open /* */",
    "SELECT 1a",
    "SELECT 1_",
    "SELECT 0x",
    "SELECT 1e",
    "SELECT 1.5e+",
    "SELECT $1a",
    "SELECT $",
    "SELECT a{b",
    "SELECT \\",
    "SELECT 1\x00",
    'SELECT U&"a"',
    "SELECT 0b12",
    "SELECT .0b1",
    "SELECT 'a'\n'open",
]

# Pieces in which every rule of the lexer begins, ends or goes wrong.
PIECES = [
    b"'",
    b"''",
    b'"',
    b"--",
    b"/*",
    b"*/",
    b"\n",
    b"\r",
    b" ",
    b"\v",
    b"$",
    b"$$",
    b"$a$",
    b"$1",
    b"1",
    b"0x",
    b"0b1",
    b"1e5",
    b".5",
    b"..",
    b".",
    b"e'",
    b"E'",
    b"\\",
    b"u&'",
    b'U&"',
    b"n'",
    b"x'",
    b"_",
    b"1_0",
    b",",
    b"(",
    b")",
    b"?",
    b"+",
    b"-",
    b"<",
    b"@",
    b";",
    b":",
    b"[",
    b"abc",
    b"\xc3\xa9",
    b"\x80",
    b"\0",
    b"{",
    b"1,2",
    b"(1),(2)",
    b"--pgshunt: primary",
    b"/*pgshunt:",
    b"primary*/",
    b"PRIMARY ",
]
PIECEWISE = st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join)


@pytest.mark.parametrize("text", KEYS)
def test_a_text_has_this_key(text: str) -> None:
    assert strip(text.encode()) == KEYS[text].encode()


@pytest.mark.parametrize("text", KEYLESS)
def test_an_odd_text_has_no_key(text: str) -> None:
    assert strip(text.encode()) is None


@given(PIECEWISE)
@settings(max_examples=1000)
def test_the_sample_of_a_key_has_that_key(text: bytes) -> None:
    key = strip(text)
    assert key is None or b"??" in key or strip(sample(key)) == key


@given(PIECEWISE | st.binary(max_size=40))
@settings(max_examples=3000)
def test_the_compiled_twin_agrees(text: bytes) -> None:
    assert strip_bytes(text) == strip(text)


@pytest.mark.parametrize("text", [*KEYS, *KEYLESS])
def test_the_compiled_twin_agrees_wherever_a_text_is_cut(text: str) -> None:
    raw = text.encode()
    for end in range(len(raw) + 1):
        assert strip_bytes(raw[:end]) == strip(raw[:end])


COMMENTS = (pg.SQL_COMMENT, pg.C_COMMENT)


def spread(text: str) -> bytes:
    """`text` as PostgreSQL's scanner cuts it, one space between tokens. Raises PgQueryError."""
    raw = text.encode()
    return b" ".join(raw[t.start : t.end] for t in scan(text).tokens if t.token not in COMMENTS)


# libpg_query ends a string at a comment ('a' -- ⏎ 'b'), where PostgreSQL does not; KEYS has that case.
@given(PIECEWISE.filter(lambda raw: not any(piece in raw for piece in (b"\0", b"\x80", b"--"))))
@settings(max_examples=3000)
def test_tokens_end_where_postgresql_ends_them(raw: bytes) -> None:
    key = strip(raw)
    if key is None:
        return
    try:
        tokens = spread(raw.decode())
    except PgQueryError:
        return
    again = strip(tokens)
    assert again is not None
    assert again.replace(b" ", b"") == key.replace(HINT, b"").replace(b" ", b"")


def test_what_postgresql_cannot_scan_to_its_end_has_no_key() -> None:
    for text in ("SELECT 'open", 'SELECT "open', "SELECT /* open", "SELECT $a$ open", "SELECT 1a"):
        with pytest.raises(PgQueryError):
            scan(text)
        assert strip(text.encode()) is None


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT f(12), '34', ' 56 '::int, int '78'", ["12", "34", " 56 ", "78"]),
        ("SELECT 1.5, .5, 1e3, 0x1F, 1_000, x1, $1, E'1', N'1', $$1$$, B'1'", ["1"]),
        ("SELECT 'a 1', 'it''s 1', \"1\", 2 -- 1\n /* 1 */, '1'\n'2'", ["2"]),
        ("SELECT 1, 'open", ["1"]),
    ],
)
def test_integers_are_found_where_they_are_all_of_a_literal(sql: str, found: list[str]) -> None:
    assert [sql[start:end] for start, end in integers(sql.encode())] == found
