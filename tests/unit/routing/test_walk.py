"""A walk comes by everything that is in a tree, whichever way the fields of a node are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from pgshunt.routing.grammar import parse, pg
from pgshunt.routing.walk import FIELDS, NO_NAMES, Stack, push_fields

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


def listed(node: Any) -> list[Any]:
    found: list[Any] = []
    for field, value in node.ListFields():
        if field.message_type is not None:
            found += value if field.is_repeated else [value]
    return found


@pytest.mark.parametrize("sql", SQL.split(";\n"))
def test_every_field_that_is_set_is_come_by(sql: str) -> None:
    pending: list[Any] = [parse(sql.encode())]
    seen = set()
    while pending:
        node = pending.pop()
        stack: Stack = []
        push_fields(node, NO_NAMES, stack)
        assert [inner for inner, _ in stack] == listed(node)
        seen.add(type(node))
        pending += listed(node)
    assert {FIELDS[kind] is None for kind in seen} == {True, False}  # both ways were gone
    assert pg.Node in seen
