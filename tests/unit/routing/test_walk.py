"""A walk comes by everything that is in a tree, but for what a visit reads itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgshunt.routing.grammar import parse
from pgshunt.routing.tree import Given
from pgshunt.routing.walk import LEAVES, NO_NAMES, READ_BY_VISITS, Stack, push_fields

SQL = """
WITH w AS (SELECT DISTINCT ON (a) a.b[1:2].c,
                  f(x, VARIADIC y ORDER BY z) FILTER (WHERE t) OVER (PARTITION BY p)
           FROM ONLY s.a AS x (m, n) TABLESAMPLE system (1) JOIN LATERAL g(1) WITH ORDINALITY USING (k) AS j
           WHERE a BETWEEN 1 AND 2 OR NOT b IN (SELECT 1) AND ROW (1, 2) = (3, $1::numeric(10, 2)[])
           GROUP BY GROUPING SETS ((a), ()) HAVING count(*) > 1 WINDOW win AS (ORDER BY q USING < NULLS FIRST)
           ORDER BY 1 LIMIT 5 OFFSET 6 FOR UPDATE OF x SKIP LOCKED)
INSERT INTO t (a[1]) OVERRIDING USER VALUE
SELECT CASE x WHEN 1 THEN COALESCE(a, b) ELSE GREATEST(c, d) END, a COLLATE "C", ARRAY[1],
       XMLELEMENT(NAME y, z)
ON CONFLICT (lower(a)) WHERE b DO UPDATE SET (a, b) = (SELECT 1, 2) WHERE c RETURNING *;
MERGE INTO t USING u ON t.a = u.a
WHEN MATCHED AND b THEN UPDATE SET a = 1 WHEN NOT MATCHED THEN INSERT VALUES (1);
CREATE TABLE t (a int DEFAULT 1 CHECK (a > f(1)), LIKE u, FOREIGN KEY (a) REFERENCES b (c))
PARTITION BY RANGE (a);
SELECT JSON_OBJECT('a': b), json_query(a, '$' PASSING b AS c) FROM JSON_TABLE(a, '$' COLUMNS (b int PATH '$'))
"""


def held(kind: str, fields: Given) -> Iterator[Given]:
    """What is JSON of its own in the fields of a node."""
    for field, value in fields.items():
        if field in READ_BY_VISITS.get(kind, ()) or field == "alias":
            continue
        if isinstance(value, list):
            yield from value
        elif isinstance(value, dict):
            yield value


@pytest.mark.parametrize("sql", SQL.split(";\n"))
def test_every_field_that_is_set_is_come_by(sql: str) -> None:
    pending: Stack = [(statement.stmt.node, NO_NAMES) for statement in parse(sql.encode()).stmts]
    seen = set()
    while pending:
        node, _ = pending.pop()
        for kind, fields in node.items():
            if kind in LEAVES:
                continue
            stack: Stack = []
            push_fields(kind, fields, NO_NAMES, stack)
            expected = list(held(kind, fields))
            # What is no node has come as one.
            assert [
                inner if inner in expected else next(iter(inner.values())) for inner, _ in stack
            ] == expected
            seen.add(kind)
            pending += stack
    assert seen
