"""Which tables are not the same behind a statement."""

from __future__ import annotations

import pytest

from pgshunt.routing.classify import classify
from pgshunt.routing.table import Catalogue

CATALOGUE = Catalogue(1, {"public.a": "r", "public.b": "r", "s.a": "r", "public.v": "v"})


@pytest.mark.parametrize(
    ("sql", "altered"),
    [
        ("ALTER TABLE a ADD COLUMN x int", {"public.a"}),
        ("ALTER TABLE IF EXISTS ONLY s.a DROP COLUMN x", {"s.a"}),
        ("ALTER TABLE a ATTACH PARTITION b DEFAULT", {"public.a", "public.b"}),
        ("ALTER TABLE a DETACH PARTITION b CONCURRENTLY", {"public.a", "public.b"}),
        ("ALTER TABLE a INHERIT b", {"public.a", "public.b"}),
        ("ALTER TABLE a ENABLE ROW LEVEL SECURITY", {"public.a"}),
        ("ALTER TABLE a SET (fillfactor = 70), ALTER x SET STATISTICS 5", set()),
        ("ALTER TABLE a SET (fillfactor = 70), DROP COLUMN x", {"public.a"}),
        ("ALTER TABLE a VALIDATE CONSTRAINT c", set()),
        ("ALTER TABLE a RENAME TO c", {"public.a"}),
        ("ALTER TABLE a RENAME CONSTRAINT x TO y", {"public.a"}),
        ("ALTER TABLE a SET SCHEMA s", {"public.a"}),
        ("ALTER TRIGGER x ON a RENAME TO y", {"public.a"}),
        ("ALTER TYPE x RENAME TO y", set()),
        ("ALTER FUNCTION f() SET SCHEMA s", set()),
        ("CREATE TABLE c PARTITION OF a DEFAULT", {"public.a"}),
        ("CREATE TABLE c (LIKE a INCLUDING ALL)", set()),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON a (x)", {"public.a"}),
        ("CREATE TRIGGER x BEFORE INSERT ON a EXECUTE FUNCTION f()", {"public.a"}),
        ("CREATE RULE r AS ON INSERT TO a DO NOTHING", {"public.a"}),
        ("CREATE POLICY p ON a USING (true)", {"public.a"}),
        ("ALTER POLICY p ON a USING (true)", {"public.a"}),
        ("CREATE VIEW w AS SELECT * FROM a", set()),
        ("DROP TABLE a, s.a CASCADE", {"public.a", "s.a"}),
        ("DROP POLICY p ON a", {"public.a"}),
        ("DROP TRIGGER x ON s.a", {"s.a"}),
        ("DROP SCHEMA s CASCADE", {"s.a"}),
        ("DROP FUNCTION f()", set()),
        ("GRANT SELECT, UPDATE (x) ON a TO r", {"public.a"}),
        ("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM r", {"public.a", "public.b", "public.v"}),
        ("GRANT EXECUTE ON FUNCTION f() TO r", set()),
        ("GRANT r TO s", set()),
        ("VACUUM FULL a", set()),
        ("CLUSTER a", set()),
        ("REINDEX TABLE a", set()),
        ("COMMENT ON TABLE a IS 'x'", set()),
        ("TRUNCATE a", set()),
        ("SELECT 1; ALTER TABLE a ADD x int; ALTER TABLE b ADD x int", {"public.a", "public.b"}),
    ],
)
def test_relations_that_are_changed(sql: str, altered: set[str]) -> None:
    assert classify(sql, ("public",), CATALOGUE).alters == altered
