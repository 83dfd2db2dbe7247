"""Any text of a statement is read alike by both lexers and ends in a shape; any file ends in a report."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pgshunt.config.load import examine
from pgshunt.proxy.signals import in_parameters, in_text
from pgshunt.routing._shapes import strip_bytes
from pgshunt.routing.classify import classify_bytes
from pgshunt.routing.lexer import integers, strip
from pgshunt.routing.table import Catalogue

from .mutations import FUZZED, mutated

STATEMENTS = [
    b"SELECT a.b, count(*) FROM t AS a WHERE x IN (1, 2, 3) AND y = $1 ORDER BY 2; ",
    b"INSERT INTO s.t VALUES (1, 'it''s', E'\\\\n', $$x$$, $t$ y $t$, B'01', U&'\\0061') RETURNING *",
    b'UPDATE "T" SET v = 1.5e-10 /* a /* nested */ comment */ WHERE id = 0x1F -- to the end\n',
    b"SELECT pg_terminate_backend(16777217), '16777218', pg_cancel_backend($1::int)",
    b"WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n ? 'x', n ->> 'y' FROM r",
    b"BEGIN; SET LOCAL app.tenant = '7'; PREPARE p AS SELECT 1; EXECUTE p; COMMIT",
    "SELECT 'é', \"ü\"".encode(),
]
CATALOGUE = Catalogue(0, {"public.t": "r"}, frozenset({"count"}))  # type: ignore[dict-item]
EXAMPLE = (Path(__file__).parents[2] / "config" / "pgshunt.yaml").read_bytes()


@given(mutated(STATEMENTS) | st.binary(max_size=60))
@FUZZED
def test_both_lexers_find_the_same_key(text: bytes) -> None:
    assert strip_bytes(text) == strip(text)


@given(mutated(STATEMENTS) | st.binary(max_size=60))
@FUZZED
def test_any_text_has_a_shape(text: bytes) -> None:
    assert classify_bytes(text, ("public",), CATALOGUE)


@given(mutated(STATEMENTS))
@FUZZED
def test_integers_lie_in_the_text(text: bytes) -> None:
    for start, end in integers(text):
        assert text[start:end].strip().isdigit()
    assert all(0 < place.offset + place.length <= len(text) + 5 for place in in_text(text, 5, 2))


@given(mutated([b"\0\1\0\1\0\1\0\0\0\4\1\0\0\1\0\0", b"\0\0\0\2\0\0\0\x0816777217\xff\xff\xff\xff\0\0"]))
@FUZZED
def test_parameters_lie_in_the_message(body: bytes) -> None:
    assert all(place.offset + place.length <= len(body) for place in in_parameters(body, 0, 2))


@given(mutated([line + b"\n" for line in EXAMPLE.splitlines()]) | mutated([EXAMPLE]))
@FUZZED
def test_any_file_ends_in_a_report(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pgshunt.yaml")
        path.write_bytes(text)
        report = examine(path, {})
    assert report.problems or report.config is not None
