"""The tree that is read out of JSON is the one libpg_query gives as protobuf: of the same texts, every field
of every message is equal.
"""

from __future__ import annotations

from typing import Any

import postgast
import pytest

from pgshunt.routing.grammar import parse

SQL = """
WITH RECURSIVE w AS MATERIALIZED (SELECT DISTINCT ON (a) a.b[1:2].c, f(x, VARIADIC y ORDER BY z DESC)
    FILTER (WHERE t) OVER (PARTITION BY p ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
  FROM ONLY s.a AS x (m, n) TABLESAMPLE system (1) JOIN LATERAL g(1) WITH ORDINALITY USING (k) AS j
  GROUP BY GROUPING SETS ((a), ()) HAVING count(*) > 1 LIMIT 5 OFFSET 6 FOR UPDATE OF x SKIP LOCKED)
  SELECT "ü\t\\", '\\ "ü" \x01 \x7f \U0001f418', E'\\t\\n', 0, -1, 1.5, 99999999999, '', b'01', true, NULL
  FROM w
INSERT INTO t (a[1]) OVERRIDING USER VALUE VALUES (1, DEFAULT)
  ON CONFLICT (lower(a)) DO UPDATE SET a = 1 RETURNING *
MERGE INTO t USING u ON a = b WHEN MATCHED THEN UPDATE SET a = 1 WHEN NOT MATCHED THEN INSERT VALUES (1)
CREATE TEMP TABLE t (a int DEFAULT 1 CHECK (a > 0), LIKE u, FOREIGN KEY (a) REFERENCES b) ON COMMIT DROP
CREATE FUNCTION f(INOUT a int = 0, VARIADIC b text[]) LANGUAGE sql SET x = 'y'
  BEGIN ATOMIC SELECT 1; SELECT 2; END
ALTER TABLE a ADD CONSTRAINT n NOT NULL x NOT VALID, ALTER x SET DEFAULT 0
ALTER TABLE a ATTACH PARTITION c FOR VALUES FROM (1) TO (MAXVALUE)
DROP TABLE a.b, "C" CASCADE
FETCH BACKWARD 2147483647 FROM c
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY
SET LOCAL search_path TO a, "b"
EXPLAIN (ANALYZE, COSTS off) SELECT 1; COPY t (a) FROM STDIN WITH (FORMAT csv); SELECT
SELECT JSON_OBJECT('a': b), json_query(a, '$' PASSING b AS c) FROM JSON_TABLE(a, '$' COLUMNS (b int PATH '$'))
GRANT SELECT ON ALL TABLES IN SCHEMA s TO r WITH GRANT OPTION
DO LANGUAGE plpgsql $$BEGIN END$$
"""


def texts() -> list[str]:
    """A line each; one that is indented goes on."""
    return SQL.strip().replace("\n  ", "  ").split("\n")


@pytest.mark.parametrize("sql", texts())
def test_every_field_is_that_of_protobuf(sql: str) -> None:
    assert compared(parse(sql.encode()), postgast.parse(sql)) > 10


def compared(message: Any, expected: Any) -> int:
    """The number of fields that were found equal."""
    assert type(message).__name__ == expected.DESCRIPTOR.name
    count = 0
    for field in expected.DESCRIPTOR.fields:
        value, expected_value = getattr(message, field.name), getattr(expected, field.name)
        if field.message_type is None:
            assert value == expected_value, field.full_name
        elif field.is_repeated:
            assert len(value) == len(expected_value), field.full_name
            count += sum(map(compared, value, expected_value))
        else:
            is_set = expected.HasField(field.name)
            assert message.HasField(field.name) == is_set, field.full_name
            count += compared(value, expected_value) if is_set else 0
        count += 1
    if expected.DESCRIPTOR.name == "Node":
        assert message.WhichOneof("node") == expected.WhichOneof("node")
    return count


def test_of_a_message_that_is_not_there_every_field_is_the_default() -> None:
    absent = parse(b"SELECT 1").stmts[0].stmt.create_stmt.relation
    assert (absent.relname, absent.inh, absent.location, absent.alias.colnames) == ("", False, 0, [])
    assert (absent.HasField("alias"), absent.node) == (False, {"RangeVar": {}})
