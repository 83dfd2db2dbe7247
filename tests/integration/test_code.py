"""What the code in a database does, read from PostgreSQL itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from support.fixtures import Database, Server
from support.serve import Serving, configuration

from pgshunt.config.model import Control
from pgshunt.migration.catalogue import read_catalogue
from pgshunt.migration.servers import Link, connect
from pgshunt.routing.classify import classify
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Catalogue, Endpoint

SETUP = """
SET check_function_bodies = off;
CREATE SCHEMA app; CREATE SCHEMA tenant;
CREATE TABLE t (id serial PRIMARY KEY, v text, at timestamptz DEFAULT now());
CREATE TABLE log (id serial PRIMARY KEY, v text);
CREATE TABLE fired (v text); CREATE TABLE checked (v text); CREATE TABLE secured (v text);
CREATE TABLE indexed (v text); CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (parent int REFERENCES parent ON DELETE CASCADE ON UPDATE SET NULL);
CREATE TABLE parts (id int) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9);
CREATE TABLE tenant.inbox (v text); CREATE TABLE "Odd.name" (v text);

CREATE FUNCTION sets() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.x', 'y', false) $$;
CREATE FUNCTION app.reads() RETURNS bigint STABLE LANGUAGE sql AS $$ SELECT count(*) FROM public.t $$;
CREATE FUNCTION app.writes() RETURNS void LANGUAGE plpgsql AS $$
BEGIN INSERT INTO log (v) VALUES ('x'); END $$;
CREATE FUNCTION twice() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN PERFORM app.writes(); RETURN app.reads(); END $$;
CREATE FUNCTION twice(int) RETURNS text LANGUAGE sql AS $$ SELECT sets() $$;
CREATE FUNCTION atomic() RETURNS void BEGIN ATOMIC INSERT INTO log (v) VALUES ('x'); END;
CREATE FUNCTION inbox() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM inbox $$;
CREATE FUNCTION of_tenant() RETURNS bigint LANGUAGE sql SET search_path = tenant AS $$
SELECT count(*) FROM inbox $$;
CREATE FUNCTION any_text(q text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE q; END $$;
CREATE FUNCTION is_fine(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN PERFORM sets(); RETURN true; END $$;
CREATE FUNCTION step(bigint, text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN PERFORM sets(); RETURN 1; END $$;
CREATE AGGREGATE gather(text) (SFUNC = step, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION equals(text, int) RETURNS boolean LANGUAGE sql AS $$ SELECT sets() IS NULL $$;
CREATE OPERATOR === (LEFTARG = text, RIGHTARG = int, FUNCTION = equals);
CREATE FUNCTION on_fired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO log (v) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER t AFTER INSERT OR DELETE ON fired FOR EACH ROW EXECUTE FUNCTION on_fired();
CREATE TRIGGER t AFTER DELETE ON child FOR EACH ROW EXECUTE FUNCTION on_fired();
CREATE TRIGGER t AFTER INSERT ON part FOR EACH ROW EXECUTE FUNCTION on_fired();
ALTER TABLE checked ADD CHECK (is_fine(v));
ALTER TABLE secured ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON secured USING (is_fine(v));
CREATE INDEX ON indexed (is_fine(v));
CREATE VIEW plain AS SELECT v FROM t; CREATE VIEW above AS SELECT v, app.reads() FROM plain;
CREATE MATERIALIZED VIEW stored AS SELECT v FROM plain;
CREATE EXTENSION pg_trgm; CREATE EXTENSION tablefunc;
"""

TRACKED = Shape(Kind.WRITE, volatile=True, local="function", touches=frozenset({"app.x"}), reason="function")


def reading(*tables: str, local: str | None = "function") -> Shape:
    return Shape(Kind.READ, reads=frozenset(tables), local=local)


def writing(*tables: str, reads: tuple[str, ...] = (), **traits: object) -> Shape:
    names = {"writes": frozenset(tables), "reads": frozenset(reads)}
    return replace(Shape(Kind.WRITE, **names), **traits)  # type: ignore[arg-type]


LOGGED = {"local": "function", "reason": "function"}
SHAPES = {
    "SELECT sets()": TRACKED,
    "SELECT gather('x')": TRACKED,
    "SELECT 'x'::text === 1": TRACKED,
    "SELECT twice(1)": replace(TRACKED, reads=frozenset({"public.t"}), writes=frozenset({"public.log"})),
    "SELECT app.reads()": reading("public.t"),
    "SELECT app.writes()": writing("public.log", **LOGGED),
    "SELECT atomic()": writing("public.log", **LOGGED),
    "SELECT inbox()": reading("inbox"),
    "SELECT of_tenant()": reading("tenant.inbox"),
    "SELECT any_text('x')": Shape(
        Kind.WRITE,
        volatile=True,
        local="function",
        pins=frozenset({"function"}),
        anywhere=True,
        reason="function",
    ),
    # Tables
    "INSERT INTO t (v) VALUES ('x')": writing("public.t"),
    "INSERT INTO fired VALUES ('x')": writing("public.fired", "public.log"),
    "DELETE FROM fired": writing("public.fired", "public.log"),
    "UPDATE fired SET v = 'x'": writing("public.fired"),
    "SELECT v FROM fired": reading("public.fired", local=None),
    "DELETE FROM parent": writing("public.parent", "public.child", "public.log"),
    "UPDATE parent SET id = 1": writing("public.parent", "public.child"),
    "INSERT INTO parent VALUES (1)": writing("public.parent"),
    "INSERT INTO parts VALUES (1)": writing("public.parts", "public.part", "public.log"),
    "SELECT 1 FROM parts": reading("public.parts", "public.part", local=None),
    "SELECT 1 FROM part": reading("public.part", local=None),
    "INSERT INTO checked VALUES ('x')": writing("public.checked", touches=frozenset({"app.x"})),
    "INSERT INTO indexed VALUES ('x')": writing("public.indexed", touches=frozenset({"app.x"})),
    "SELECT v FROM checked": reading("public.checked", local=None),
    "SELECT v FROM secured": replace(TRACKED, reads=frozenset({"public.secured"})),
    "SELECT v FROM plain": reading("public.plain", "public.t", local=None),
    "SELECT v FROM above": reading("public.above", "public.plain", "public.t"),
    "INSERT INTO plain VALUES ('x')": writing("public.plain", "public.t", reads=("public.t",)),
    "SELECT v FROM stored": reading("public.stored", local=None),
    "REFRESH MATERIALIZED VIEW stored": writing(
        "public.stored", reads=("public.plain", "public.t"), reason="definition", defines=True
    ),
    'SELECT v FROM "Odd.name"': reading('public."Odd.name"', local=None),
    # Extensions
    "SELECT similarity('a', 'b')": reading(),
    "SELECT 'a' % 'b'": reading(local=None),
    "SELECT set_limit(0.5)": Shape(
        Kind.WRITE,
        volatile=True,
        local="function",
        touches=frozenset({"pg_trgm.similarity_threshold"}),
        reason="function",
    ),
    "SELECT crosstab('SELECT 1')": Shape(
        Kind.WRITE,
        volatile=True,
        local="function",
        pins=frozenset({"function"}),
        anywhere=True,
        reason="function",
    ),
}


@pytest.fixture(scope="module")
def read(postgres: Server) -> Iterator[tuple[Link, Catalogue]]:
    """A connection to the database of SETUP, and its catalogue."""
    postgres.execute("CREATE DATABASE stored_code TEMPLATE template0")
    postgres.execute(SETUP, "stored_code")
    endpoint = Endpoint("shared", "shared", postgres.host, postgres.port, "stored_code", "primary")
    control = Control.model_validate({"user": postgres.user, "password": postgres.password})
    link = connect(endpoint, control, "test")
    try:
        yield link, read_catalogue(link, 1)
    finally:
        link.close()
        postgres.execute("DROP DATABASE stored_code")


@pytest.mark.parametrize("sql", SHAPES)
def test_a_statement_does_what_the_code_behind_it_does(sql: str, read: tuple[Link, Catalogue]) -> None:
    assert classify(sql, ("public",), read[1]) == SHAPES[sql]
    assert classify(sql, ("public",), Catalogue.from_dict(read[1].to_dict())) == SHAPES[sql]


OWN = """
CREATE TABLE t (id int PRIMARY KEY, v text, code varchar);
CREATE FUNCTION plus(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1';
CREATE FUNCTION lower(varchar) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE FUNCTION pg_catalog.put_there(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shown(t) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION any_row(anyelement) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION rows() RETURNS SETOF t STABLE LANGUAGE sql AS 'SELECT * FROM t';
CREATE FUNCTION step(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
CREATE AGGREGATE together(int) (SFUNC = step, STYPE = int, INITCOND = '0');
CREATE FUNCTION alike(varchar, varchar) RETURNS boolean IMMUTABLE LANGUAGE sql AS
 'SELECT pg_catalog.lower($1::text) OPERATOR(pg_catalog.=) pg_catalog.lower($2::text)';
CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = alike);
CREATE OPERATOR >= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = alike);
CREATE OPERATOR @@@ (RIGHTARG = int, FUNCTION = plus);
CREATE FUNCTION as_point(int) RETURNS point IMMUTABLE LANGUAGE sql AS 'SELECT point(1, 2)';
CREATE CAST (int AS point) WITH FUNCTION as_point(int);
CREATE VIEW counted AS SELECT plus(id) FROM t;
CREATE EXTENSION citext; CREATE EXTENSION hstore;
"""


@pytest.fixture(scope="module")
def own(postgres: Server) -> Iterator[tuple[Link, Catalogue]]:
    """A connection to the database of OWN, and its catalogue."""
    postgres.execute("CREATE DATABASE own_code TEMPLATE template0")
    postgres.execute(f"SET allow_system_table_mods = on; {OWN}", "own_code")
    endpoint = Endpoint("shared", "shared", postgres.host, postgres.port, "own_code", "primary")
    control = Control.model_validate({"user": postgres.user, "password": postgres.password})
    link = connect(endpoint, control, "test")
    try:
        yield link, read_catalogue(link, 1)
    finally:
        link.close()
        postgres.execute("DROP DATABASE own_code")


def explain(link: Link, sql: str) -> None:
    """Raises ServerError if PostgreSQL does not take the statement."""
    with link.transaction():
        link.rows(f"SET LOCAL search_path = public; EXPLAIN {sql}")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT plus(id) FROM t",
        "SELECT id FROM t WHERE plus(id) > 1",
        "SELECT id FROM t ORDER BY plus(id)",
        "SELECT id FROM t GROUP BY id HAVING plus(id) > 1",
        "SELECT id FROM t LIMIT plus(1)",
        "SELECT x FROM t, plus(t.id) x",
        "SELECT x FROM t, LATERAL ROWS FROM (plus(t.id), generate_series(1, 2)) x",
        "WITH w AS (SELECT plus(id) FROM t) SELECT 1 FROM w",
        "SELECT (SELECT plus(1)) FROM t",
        "SELECT sum(id) FILTER (WHERE plus(id) > 1) FROM t",
        "SELECT sum(id) OVER (ORDER BY plus(id)) FROM t",
        "SELECT public.plus(id) FROM t",
        "SELECT lower(code) FROM t",
        "SELECT put_there(id) FROM t",
        "SELECT together(id) FROM t",
        "SELECT id FROM rows()",
        "SELECT t.shown FROM t",
        "SELECT (t).shown FROM t",
        "SELECT t.any_row FROM t",
        "SELECT 1 FROM counted",
        "SELECT id FROM t WHERE code = v::varchar",
        "SELECT id FROM t WHERE code IN ('a', 'b')",
        "SELECT id FROM t WHERE code IN (SELECT code FROM t)",
        "SELECT id FROM t WHERE code = ANY (ARRAY['a'])",
        "SELECT id FROM t WHERE code IS DISTINCT FROM 'a'",
        "SELECT nullif(code, 'a') FROM t",
        "SELECT CASE code WHEN 'a' THEN 1 END FROM t",
        "SELECT a.id FROM t a JOIN t b USING (code)",
        "SELECT a.id FROM t a NATURAL JOIN t b",
        "SELECT id FROM t WHERE code BETWEEN 'a' AND 'b'",
        "SELECT id FROM t WHERE code NOT BETWEEN SYMMETRIC 'a' AND 'b'",
        "SELECT @@@ id FROM t",
        "SELECT id FROM t WHERE code OPERATOR(public.=) 'a'",
        "SELECT id::point FROM t",
        "SELECT CAST(id AS point) FROM t",
    ],
)
def test_what_calls_own_code_never_goes_to_a_copy(sql: str, own: tuple[Link, Catalogue]) -> None:
    """Harmless or not: a copy need not have it. The statement is one that PostgreSQL takes."""
    link, catalogue = own
    explain(link, sql)
    assert not classify(sql, ("public",), catalogue).splittable


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT upper(code) FROM t",
        "SELECT id FROM t WHERE v <> 'a' AND id + 1 < 5 AND NOT v ~ 'x'",
        "SELECT sum(id::bigint) FROM t ORDER BY 1",
        "SELECT CASE WHEN id < 1 THEN 1 END FROM t",
        "SELECT id::float8::numeric FROM t",
    ],
)
def test_what_calls_postgresqls_own_alone_may(sql: str, own: tuple[Link, Catalogue]) -> None:
    link, catalogue = own
    explain(link, sql)
    assert classify(sql, ("public",), catalogue).splittable


def test_an_implicit_cast_may_be_anywhere(own: tuple[Link, Catalogue]) -> None:
    link, catalogue = own
    link.rows(
        "BEGIN; SET LOCAL search_path = public; "
        "CREATE FUNCTION to_date(int) RETURNS date IMMUTABLE LANGUAGE sql AS 'SELECT current_date'; "
        "CREATE CAST (int AS date) WITH FUNCTION to_date(int) AS IMPLICIT; COMMIT"
    )
    assert classify("SELECT id FROM t WHERE id < 5", ("public",), catalogue).splittable
    changed = read_catalogue(link, 2, catalogue.code)
    assert not classify("SELECT id FROM t WHERE id < 5", ("public",), changed).splittable
    link.rows("DROP CAST (int AS date); DROP FUNCTION public.to_date(int)")


def test_a_name_is_looked_for_on_the_path_of_its_session(read: tuple[Link, Catalogue]) -> None:
    assert classify("SELECT inbox()", ("tenant", "public"), read[1]).reads == {"tenant.inbox"}
    # Where the path is not known, whatever has the name counts.
    assert classify("INSERT INTO fired VALUES ('x')", (), read[1]).writes == {"fired", "log"}


def test_code_is_read_again_only_when_it_has_changed(read: tuple[Link, Catalogue]) -> None:
    link, catalogue = read
    assert read_catalogue(link, 2, catalogue.code).code is catalogue.code
    link.rows("CREATE FUNCTION public.later() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    code = read_catalogue(link, 2, catalogue.code).code
    assert code.functions.keys() - catalogue.code.functions.keys() == {"public.later"}


def test_what_is_defined_through_one_worker_is_known_to_all(database: Database, tmp_path: Path) -> None:
    """Each worker has one link to lend: what a session leaves on it, the next one would find."""
    database.execute("CREATE TABLE t (v text)")
    server = database.server
    auth = {"users": [{"name": server.user, "password": server.password}]}
    config = configuration(server, database.dbname, auth=auth, pools={"default_pool_size": 2})
    where = f"host=127.0.0.1 dbname={database.dbname} user={server.user} password={server.password}"
    shown = "SELECT current_setting('app.x', true)"
    with Serving(tmp_path, config) as serving, ExitStack() as stack:
        clients = [
            stack.enter_context(psycopg.connect(f"{where} port={serving.port}", autocommit=True))
            for _ in range(4)
        ]
        clients[0].execute(
            "CREATE FUNCTION on_t() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM set_config('app.x', NEW.v, false); RETURN NEW; END $$"
        )
        clients[0].execute("CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION on_t()")
        insert = "INSERT INTO t VALUES ('x')"
        serving.until(
            "the trigger is read",
            lambda: "sets: app.x" in serving.api.get("/api/v1/explain", sql=insert)["traits"],
        )
        for number, client in enumerate(clients):
            client.execute(f"INSERT INTO t VALUES ('{number}')")
        for number, client in enumerate(clients):
            assert client.execute(shown).fetchone() == (str(number),)
        stranger = stack.enter_context(psycopg.connect(f"{where} port={serving.port}", autocommit=True))
        assert stranger.execute(shown).fetchone() == (None,)


def test_what_is_part_of_a_table_is_read_with_its_table(database: Database) -> None:
    database.execute(
        "CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('fine'); CREATE DOMAIN moods AS s.mood[]; "
        "CREATE TYPE pair AS (first s.mood, second int); CREATE TYPE span AS RANGE (subtype = moods); "
        "CREATE TABLE plain (id int GENERATED ALWAYS AS IDENTITY UNIQUE); "
        'CREATE TABLE s."My.table" (id serial, pair pair); CREATE INDEX "My.index" ON s."My.table" (id); '
        "CREATE TABLE parts (span span) PARTITION BY RANGE (span); "
        "CREATE TABLE part PARTITION OF parts DEFAULT; CREATE INDEX on_parts ON parts (span); "
        "CREATE TABLE of_rows (row plain)"
    )
    server = database.server
    endpoint = Endpoint("shared", "shared", server.host, server.port, database.dbname, "primary")
    control = Control.model_validate({"user": server.user, "password": server.password})
    link = connect(endpoint, control, "test")
    try:
        catalogue = read_catalogue(link, 1)
    finally:
        link.close()
    mine = 's."My.table"'
    assert catalogue.belongs == {
        "public.plain_id_seq": "public.plain",
        "public.plain_id_key": "public.plain",
        's."My.table_id_seq"': mine,
        's."My.index"': mine,
        "public.on_parts": "public.parts",
        "public.part_span_idx": "public.part",
    }
    split = {"public.parts", "public.part"}
    types = {name: tables for name, tables in catalogue.typed.items() if name not in catalogue.relations}
    assert types == {
        "s.mood": split | {mine},
        "public.moods": split,
        "public.span": split,
        "public.pair": {mine},
    }
    assert catalogue.typed["public.plain"] == {"public.of_rows"}
    assert catalogue.parts == {"public.part"}
    assert Catalogue.from_dict(catalogue.to_dict()) == catalogue
