"""Which tables are not the same behind a statement: by each kind of object that ALTER and DROP can name."""

from __future__ import annotations

import pytest
from postgast.pg_query_pb2 import ObjectType

from pgshunt.routing.alterations import DROPPED_MAX
from pgshunt.routing.classify import classify
from pgshunt.routing.effects import NO_EFFECTS, READ, TRUNCATE, Code, Effects
from pgshunt.routing.grammar import parse, pg
from pgshunt.routing.table import Catalogue

# `b` refers to `a`, `c` is a child of `b`; `i` is an index of `a`, `a_id_seq` the sequence of a column of it;
# columns of `a` and `c` are of type `t`, one of `b` of domain `d`.
RELATIONS = {
    "public.a": "r",
    "public.b": "r",
    "public.c": "r",
    "s.a": "r",
    "public.v": "v",
    "public.a_id_seq": "S",
    "public.free": "S",
}
A, B, C, T = {"public.a"}, {"public.b", "public.c"}, {"public.c"}, {"public.a", "public.c"}
CATALOGUE = Catalogue(
    1,
    RELATIONS,
    belongs={"public.i": "public.a", "s.i": "s.a", "public.a_id_seq": "public.a"},
    typed={"public.t": frozenset(T), "s.d": frozenset(C), "public.d": frozenset({"public.b"})},
    code=Code(
        functions={"f.x": NO_EFFECTS},
        reactions={
            "public.a": {TRUNCATE: Effects(tables={"public.b": TRUNCATE})},
            "public.b": {READ: Effects(tables={"public.c": READ})},
            "public.v": {READ: Effects(tables={"public.a": READ})},
        },
    ),
)
EVERY = set(RELATIONS) - {"public.a_id_seq"}


@pytest.mark.parametrize(
    ("sql", "altered"),
    [
        ("ALTER TABLE a ADD COLUMN x int", A),
        ("ALTER TABLE IF EXISTS ONLY s.a DROP COLUMN x", {"s.a"}),
        ("ALTER TABLE b ADD COLUMN x int", B),
        ("ALTER TABLE ONLY b ADD COLUMN x int", {"public.b"}),
        ("ALTER TABLE a DROP CONSTRAINT p CASCADE", A | {"public.b"}),
        ("ALTER TABLE a ATTACH PARTITION c DEFAULT", T),
        ("ALTER TABLE a DETACH PARTITION c CONCURRENTLY", T),
        ("ALTER TABLE a INHERIT c", T),
        ("ALTER TABLE a ENABLE ROW LEVEL SECURITY", A),
        ("ALTER TABLE a REPLICA IDENTITY FULL", A),
        ("ALTER TABLE a OWNER TO r", A),
        ("ALTER TABLE a SET UNLOGGED", A),
        ("ALTER TABLE a SET ACCESS METHOD heap", A),
        ("ALTER TABLE a ADD CONSTRAINT n NOT NULL x NOT VALID", A),  # as of 18
        ("ALTER TABLE a ALTER CONSTRAINT c NOT ENFORCED", A),  # as of 18
        ("ALTER TABLE a ALTER x SET EXPRESSION AS (1)", A),  # as of 17
        ("ALTER TABLE a ADD CONSTRAINT k PRIMARY KEY (x, y WITHOUT OVERLAPS)", A),  # as of 18
        ("ALTER TABLE a SET (fillfactor = 70), ALTER x SET STATISTICS 5", set()),
        ("ALTER TABLE a SET (fillfactor = 70), DROP COLUMN x", A),
        ("ALTER TABLE a VALIDATE CONSTRAINT c", set()),
        ("ALTER TABLE ALL IN TABLESPACE x SET TABLESPACE y", set()),
        ("ALTER TABLE a RENAME TO z", A),
        ("ALTER TABLE a RENAME CONSTRAINT x TO y", A),
        ("ALTER TABLE a SET SCHEMA s", A),
        ("ALTER INDEX i RENAME TO j", A),
        ("ALTER INDEX s.i ATTACH PARTITION public.i", {"s.a", "public.a"}),
        ("ALTER INDEX i SET (fillfactor = 70)", set()),
        ("ALTER INDEX i DEPENDS ON EXTENSION e", A),
        ("ALTER INDEX nobodys RENAME TO j", {"nobodys"}),
        ("ALTER SEQUENCE a_id_seq AS bigint", A),
        ("ALTER SEQUENCE a_id_seq RESTART WITH 5", set()),
        ("ALTER SEQUENCE a_id_seq RENAME TO z", A),
        ("ALTER SEQUENCE a_id_seq SET LOGGED", A),
        ("ALTER SEQUENCE free OWNED BY a.x", A | {"public.free"}),
        ("ALTER SEQUENCE free OWNED BY NONE", {"public.free"}),
        ("CREATE SEQUENCE z OWNED BY a.x", A),
        ("ALTER VIEW v RENAME TO w", {"public.v"}),
        ("ALTER MATERIALIZED VIEW v SET SCHEMA s", {"public.v"}),
        ("ALTER FOREIGN TABLE a ADD COLUMN x int", A),
        ("ALTER TYPE t ADD VALUE 'x'", T | {"public.t"}),
        ("ALTER TYPE t RENAME VALUE 'x' TO 'y'", T | {"public.t"}),
        ("ALTER TYPE t RENAME TO u", T | {"public.t"}),
        ("ALTER TYPE t ADD ATTRIBUTE x int", T | {"public.t"}),
        ("ALTER TYPE t RENAME ATTRIBUTE x TO y", T | {"public.t"}),
        ("ALTER TYPE t SET SCHEMA s", T | {"public.t"}),
        ("ALTER TYPE t SET (STORAGE = plain)", T | {"public.t"}),
        ("ALTER TYPE nobodys RENAME TO u", {"nobodys"}),
        ("ALTER DOMAIN s.d SET NOT NULL", C | {"s.d"}),
        ("ALTER DOMAIN d RENAME CONSTRAINT x TO y", {"public.b", "public.d"}),
        ("ALTER DOMAIN d RENAME TO e", {"public.b", "public.d"}),
        ("ALTER SCHEMA s RENAME TO u", {"s.a"}),
        ("ALTER SCHEMA s OWNER TO r", set()),
        ("ALTER EXTENSION e ADD TABLE a", A),
        ("ALTER EXTENSION e DROP TYPE t", T | {"public.t"}),
        ("ALTER EXTENSION e DROP FUNCTION f()", set()),
        ("ALTER EXTENSION e UPDATE", set()),
        ("ALTER TRIGGER x ON a RENAME TO y", A),
        ("ALTER TRIGGER x ON a DEPENDS ON EXTENSION e", A),
        ("ALTER RULE x ON a RENAME TO y", A),
        ("ALTER POLICY p ON a USING (true)", A),
        ("ALTER POLICY p ON a RENAME TO q", A),
        ("CREATE TABLE z PARTITION OF a DEFAULT", A),
        ("CREATE FOREIGN TABLE z PARTITION OF a DEFAULT SERVER x", A),
        ("CREATE TABLE z (LIKE a INCLUDING ALL)", set()),
        ("CREATE UNIQUE INDEX CONCURRENTLY z ON a (x)", A),
        ("CREATE TRIGGER x BEFORE INSERT ON a EXECUTE FUNCTION f()", A),
        ("CREATE RULE r AS ON INSERT TO a DO NOTHING", A),
        ("CREATE POLICY p ON a USING (true)", A),
        ("CREATE STATISTICS x ON y, z FROM a", set()),
        ("CREATE VIEW w AS SELECT * FROM a", set()),
        ("DROP TABLE a, s.a", A | {"s.a"}),
        ("DROP TABLE a CASCADE", A | {"public.b"}),
        ("DROP TABLE b", B),
        pytest.param(f"DROP TABLE {', '.join(['b'] * DROPPED_MAX)}", B, id="as many as are looked at"),
        pytest.param(f"DROP TABLE b{', b' * DROPPED_MAX}", EVERY, id="more than are looked at"),
        ("DROP FOREIGN TABLE c", C),
        ("DROP INDEX CONCURRENTLY i", A),
        ("DROP INDEX IF EXISTS i, s.i CASCADE", A | {"s.a", "public.b"}),
        ("DROP SEQUENCE a_id_seq", A),
        ("DROP SEQUENCE free", {"public.free"}),
        ("DROP VIEW v CASCADE", {"public.v"}),
        ("DROP MATERIALIZED VIEW v", {"public.v"}),
        ("DROP TYPE t CASCADE", T | {"public.t"}),
        ("DROP DOMAIN s.d", C | {"s.d"}),
        ("DROP POLICY p ON a", A),
        ("DROP RULE p ON a CASCADE", A),
        ("DROP TRIGGER x ON s.a", {"s.a"}),
        ("DROP SCHEMA s", {"s.a", "s.d"} | C),
        ("DROP SCHEMA s CASCADE", {"s.a", "s.d"} | C),
        ("DROP SCHEMA f CASCADE", EVERY),
        ("DROP FUNCTION f()", set()),
        ("DROP FUNCTION f() CASCADE", EVERY),
        ("DROP OWNED BY r", EVERY),
        ("REASSIGN OWNED BY r TO q", EVERY),
        ("REINDEX INDEX CONCURRENTLY i", A),
        ("REINDEX TABLE a", A),
        ("REINDEX SCHEMA s", {"s.a"}),
        ("REINDEX DATABASE", EVERY),
        ("REINDEX SYSTEM", set()),
        ("GRANT SELECT, UPDATE (x) ON a TO r", A),
        (
            "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM r",
            {name for name in EVERY if name.startswith("public.")},
        ),
        ("GRANT EXECUTE ON FUNCTION f() TO r", set()),
        ("GRANT r TO s", set()),
        ("VACUUM FULL a", set()),
        ("CLUSTER a", set()),
        ("COMMENT ON TABLE a IS 'x'", set()),
        ("SECURITY LABEL ON TABLE a IS 'x'", set()),
        ("TRUNCATE a", set()),
        ("SELECT 1; ALTER TABLE a ADD x int; ALTER TABLE c ADD x int", T),
    ],
)
def test_relations_that_are_changed(sql: str, altered: set[str]) -> None:
    assert classify(sql, ("public",), CATALOGUE).alters == altered


FAR_REACHING = {
    pg.OBJECT_ACCESS_METHOD: "ACCESS METHOD x",
    pg.OBJECT_AGGREGATE: "AGGREGATE x (int)",
    pg.OBJECT_CAST: "CAST (a AS b)",
    pg.OBJECT_COLLATION: "COLLATION x",
    pg.OBJECT_EXTENSION: "EXTENSION x",
    pg.OBJECT_FDW: "FOREIGN DATA WRAPPER x",
    pg.OBJECT_FOREIGN_SERVER: "SERVER x",
    pg.OBJECT_FUNCTION: "FUNCTION x (int)",
    pg.OBJECT_LANGUAGE: "LANGUAGE x",
    pg.OBJECT_OPCLASS: "OPERATOR CLASS x USING btree",
    pg.OBJECT_OPERATOR: "OPERATOR + (int, int)",
    pg.OBJECT_OPFAMILY: "OPERATOR FAMILY x USING btree",
    pg.OBJECT_PROCEDURE: "PROCEDURE x (int)",
    pg.OBJECT_ROUTINE: "ROUTINE x (int)",
    pg.OBJECT_TSCONFIGURATION: "TEXT SEARCH CONFIGURATION x",
    pg.OBJECT_TSDICTIONARY: "TEXT SEARCH DICTIONARY x",
    pg.OBJECT_TSPARSER: "TEXT SEARCH PARSER x",
    pg.OBJECT_TSTEMPLATE: "TEXT SEARCH TEMPLATE x",
}
"""Objects on which columns, defaults, indexes and constraints of any table may depend."""
NEAR = {
    pg.OBJECT_CONVERSION: "CONVERSION x",
    pg.OBJECT_EVENT_TRIGGER: "EVENT TRIGGER x",
    pg.OBJECT_PUBLICATION: "PUBLICATION x",
    pg.OBJECT_STATISTIC_EXT: "STATISTICS x",
    pg.OBJECT_TRANSFORM: "TRANSFORM FOR int LANGUAGE sql",
}
"""Objects on which nothing of a table depends."""
ABOVE = {
    pg.OBJECT_DOMAIN: "DOMAIN d",
    pg.OBJECT_FOREIGN_TABLE: "FOREIGN TABLE a",
    pg.OBJECT_INDEX: "INDEX i",
    pg.OBJECT_MATVIEW: "MATERIALIZED VIEW v",
    pg.OBJECT_POLICY: "POLICY p ON a",
    pg.OBJECT_RULE: "RULE r ON a",
    pg.OBJECT_SCHEMA: "SCHEMA s",
    pg.OBJECT_SEQUENCE: "SEQUENCE a_id_seq",
    pg.OBJECT_TABLE: "TABLE a",
    pg.OBJECT_TRIGGER: "TRIGGER x ON a",
    pg.OBJECT_TYPE: "TYPE t",
    pg.OBJECT_VIEW: "VIEW v",
}
"""Those that have rows of their own above."""
ELSEWHERE = {
    *("ROLE", "DATABASE", "TABLESPACE", "SUBSCRIPTION", "USER_MAPPING"),  # statements of their own
    *("LARGEOBJECT", "PARAMETER_ACL", "DEFACL", "PUBLICATION_NAMESPACE", "PUBLICATION_REL"),  # never dropped
    *("AMOP", "AMPROC", "ATTRIBUTE", "COLUMN", "DEFAULT", "DOMCONSTRAINT", "TABCONSTRAINT"),  # by ALTER
}


def test_every_kind_of_object_is_here() -> None:
    """As the grammar knows them, which is that of PostgreSQL 18."""
    known = {ObjectType.Name(kind) for kind in (*FAR_REACHING, *NEAR, *ABOVE)}
    known |= {f"OBJECT_{name}" for name in ELSEWHERE}
    assert set(ObjectType.keys()) == known | {"OBJECT_TYPE_UNDEFINED"}
    for kind, text in (FAR_REACHING | NEAR | ABOVE).items():
        (statement,) = parse(f"DROP {text}".encode()).stmts
        assert statement.stmt.drop_stmt.remove_type == kind


@pytest.mark.parametrize("text", FAR_REACHING.values())
def test_what_goes_along_with_it_may_be_of_any_table(text: str) -> None:
    assert classify(f"DROP {text}", ("public",), CATALOGUE).alters == set()
    assert classify(f"DROP {text} CASCADE", ("public",), CATALOGUE).alters == EVERY


@pytest.mark.parametrize("text", NEAR.values())
def test_nothing_of_a_table_goes_along_with_it(text: str) -> None:
    assert classify(f"DROP {text} CASCADE", ("public",), CATALOGUE).alters == set()


@pytest.mark.parametrize(
    "sql",
    [
        *(f"DROP {text}" for text in ("ROLE r", "USER r", "GROUP r", "DATABASE d", "TABLESPACE x")),
        *("DROP SUBSCRIPTION x", "DROP USER MAPPING FOR r SERVER s"),
        *(f"ALTER {text} RENAME TO y" for text in (*FAR_REACHING.values(), *NEAR.values())
          if not text.startswith(("ACCESS", "CAST", "EXTENSION", "OPERATOR +", "TRANSFORM"))),
        *("ALTER DATABASE d SET x = 1", "ALTER DATABASE d REFRESH COLLATION VERSION", "ALTER ROLE r NOLOGIN"),
        *("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO r", "ALTER GROUP r ADD USER x"),
        *("ALTER LARGE OBJECT 1 OWNER TO r", "ALTER OPERATOR + (int, int) SET (RESTRICT = NONE)"),
        *("ALTER SUBSCRIPTION x DISABLE", "ALTER PUBLICATION x ADD TABLE a", "ALTER SYSTEM SET x = 1"),
        *("ALTER TABLESPACE x RENAME TO y", "ALTER USER MAPPING FOR r SERVER s OPTIONS (SET x 'y')"),
        *("ALTER TEXT SEARCH CONFIGURATION x DROP MAPPING FOR y", "ALTER STATISTICS x SET STATISTICS 5"),
        *("ALTER FUNCTION x (int) STRICT", "ALTER OPERATOR FAMILY x USING btree DROP OPERATOR 1 (int, int)"),
        *("ALTER COLLATION x REFRESH VERSION", "ALTER EVENT TRIGGER x DISABLE"),
        "ALTER EXTENSION x SET SCHEMA s",
    ],
)  # fmt: skip
def test_no_table_is_another_behind_it(sql: str) -> None:
    parse(sql.encode())
    assert classify(sql, ("public",), CATALOGUE).alters == set()
