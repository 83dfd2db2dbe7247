"""Texts of one key have one shape, whatever stands for their literals and between their tokens."""

from __future__ import annotations

import random

import pytest
from postgast import scan
from support.statements import ROWS, Row

from pgshunt.routing.classify import classify
from pgshunt.routing.lexer import strip
from pgshunt.routing.shape import Kind
from pgshunt.routing.table import Catalogue

PATH = ("$user", "public")


LITERALS = {"SCONST", "ICONST", "FCONST", "BCONST", "XCONST", "USCONST"}
STRINGS = (
    "'x'",
    "'it''s'",
    r"E'\''",
    "$$users$$",
    "$a$ $$ $a$",
    "'a'\n'b'",
    "'-- /*'",
    "'true'",
    "'pg_temp'",
    "'public.roles'",
)
NUMBERS = ("0", "7", "1.5", ".5", "1e10", "0x1F", "5000000000", "1_000")


def with_other_literals(sql: str, seed: int) -> str:
    """`sql` with every literal replaced by another of its sort, and with more space between tokens."""
    die = random.Random(seed)
    text = sql.encode()
    parts: list[bytes] = []
    end = 0
    for token in scan(sql).tokens:
        name = token.DESCRIPTOR.fields_by_name["token"].enum_type.values_by_number[token.token].name
        between = text[end : token.start]
        parts.append(between + die.choice((b" ", b"\n", b" /* 'x */ ", b"\t")) if between else b"")
        source = text[token.start : token.end]
        if name in LITERALS:
            source = die.choice(NUMBERS if name in ("ICONST", "FCONST") else STRINGS).encode()
        parts.append(source)
        end = token.end
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    "case", [r for r in ROWS if r.shape.kind is not Kind.UNKNOWN], ids=lambda case: case.sql[:60]
)
def test_texts_of_one_key_have_one_shape(case: Row, catalogue: Catalogue) -> None:
    key = strip(case.sql.encode())
    for seed in range(25):
        other = with_other_literals(case.sql, seed)
        shape = classify(other, PATH, catalogue)
        if shape.reason == "unparsable":
            continue  # PostgreSQL refuses it too; it takes no key (test_shapes).
        if key is None or strip(other.encode()) != key:
            assert 'U&"' in case.sql, f"{other!r} should have the key of {case.sql!r}"
            continue
        assert shape.literal_sensitive == case.shape.literal_sensitive
        if not shape.literal_sensitive:
            assert shape == classify(case.sql, PATH, catalogue), other
