"""What a function does, by its definition. A row says everything: what it does not name has its default."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from pgshunt.routing.bodies import Reader
from pgshunt.routing.effects import ANY, NO_EFFECTS, OPAQUE, Code, Effects
from pgshunt.routing.table import Catalogue

FUNCTION = "CREATE FUNCTION f({}) RETURNS {} LANGUAGE plpgsql AS $$ {} $$"
LOCK = frozenset({"advisory_lock"})
TEMPORARY = frozenset({"temp_table"})


@pytest.fixture(scope="module")
def reader(catalogue: Catalogue) -> Reader:
    named: dict[str, Effects] = dict.fromkeys(("public.g", "public.h"), NO_EFFECTS)
    return Reader(replace(catalogue, code=replace(catalogue.code, functions=MappingProxyType(named))))


def effects(calls: str = "", **fields: Any) -> Effects:
    for name in ("sets", "sets_local", "resets"):
        fields[name] = frozenset(fields.get(name, "").split())
    fields["tables"] = MappingProxyType(fields.get("tables", {}))
    fields.setdefault("anywhere", ANY in fields["tables"])
    return Effects(calls=frozenset(calls.split()), **fields)


BODIES = {
    "NULL": effects(),
    "PERFORM set_config('app.x', 'y', true)": effects(sets_local="app.x", volatile=True),
    "PERFORM set_config('app.x', n, false)": effects(sets="app.x", volatile=True),
    "PERFORM set_config('WORK_MEM', n, true)": effects(volatile=True),
    "PERFORM set_config(n, 'y', false)": effects(pins=frozenset({"function"}), volatile=True),
    "SET app.x = 1": effects(sets="app.x"),
    "SET LOCAL app.x = 1": effects(sets_local="app.x"),
    "RESET app.x": effects(resets="app.x"),
    "SET LOCAL search_path = elsewhere": effects(sets_local="search_path", path=()),
    "RETURN set_config('app.x', n, false)": effects(sets="app.x", volatile=True),
    "IF g() THEN RAISE NOTICE '%', h(); END IF": effects("g h"),
    "WHILE g() LOOP EXIT WHEN h(); END LOOP": effects("g h"),
    "FOR i IN g()..10 BY h() LOOP NULL; END LOOP": effects("g h"),
    "FOR r IN SELECT * FROM t WHERE a = g() LOOP NULL; END LOOP": effects("g", tables={"t": "r"}),
    "CASE g() WHEN h() THEN NULL; END CASE": effects("g h"),
    "RAISE EXCEPTION USING MESSAGE = g()": effects("g"),
    "ASSERT g(), h()": effects("g h"),
    "n := g(); n = h()": effects("g h"),
    "a[g()] := h()": effects("g h"),
    "OPEN c; CLOSE c": effects("g", tables={"t": "r"}),
    "OPEN d FOR SELECT g(); FETCH d INTO n": effects("g"),
    "RETURN (SELECT max(v) FROM public.t)": effects(tables={"public.t": "r"}),
    "BEGIN PERFORM g(); EXCEPTION WHEN others THEN PERFORM h(); END": effects("g h"),
    "SELECT v INTO n FROM t; INSERT INTO t VALUES (1) ON CONFLICT (v) DO UPDATE SET v = 2": effects(
        tables={"t": "riu"}
    ),
    "DELETE FROM t; TRUNCATE u": effects(tables={"t": "d", "u": "t"}),
    "PERFORM 1 FROM t FOR UPDATE": effects(tables={"t": "r"}, locks=True),
    "PERFORM now()": effects(time_dependent=True),
    "PERFORM random()": effects(volatile=True),
    "PERFORM pg_advisory_lock(1)": effects(pins=LOCK, releases=LOCK, volatile=True, meets=True),
    "PERFORM pg_notify('jobs', n)": effects(volatile=True, meets=True),
    "NOTIFY jobs": effects(meets=True),
    "PERFORM nextval('s')": effects(volatile=True),
    "PERFORM nextval(r)": effects(volatile=True, anywhere=True),
    "PERFORM query_to_xml(n, true, true, '')": effects(
        pins=frozenset({"function"}), volatile=True, anywhere=True
    ),
    "PERFORM setseed(0.5)": effects(pins=frozenset({"function"}), volatile=True),
    "LISTEN jobs": effects(pins=frozenset({"listen"}), releases=frozenset({"listen"}), meets=True),
    "LOAD 'x'": effects(pins=frozenset({"function"})),
    "PREPARE p AS SELECT 1": effects(pins=frozenset({"function"})),
    "DEALLOCATE ALL": effects(pins=frozenset({"function"})),
    "CREATE TEMP TABLE x (i int) ON COMMIT DROP": effects(tables={"x": "x"}, volatile=True, defines=True),
    "CREATE TEMP TABLE x (i int)": effects(
        tables={"x": "x"}, pins=TEMPORARY, releases=TEMPORARY, volatile=True, defines=True
    ),
    # EXECUTE
    "EXECUTE 'SET app.x = 1'": effects(sets="app.x"),
    "EXECUTE 'SET app.x = ' || quote_literal(n)": effects(sets="app.x"),
    "EXECUTE format('INSERT INTO %I.%I SELECT $1', s, n) USING g()": effects("g", tables={"*": "i"}),
    "EXECUTE format('INSERT INTO audit.%I VALUES (%L)', n, h())": effects("h", tables={"*": "i"}),
    "EXECUTE 'DELETE FROM ' || quote_ident(n) || ' WHERE id = ' || i": effects(tables={"*": "d"}),
    "EXECUTE 'DELETE FROM ' || r::regclass": effects(tables={"*": "d"}),
    "q := 'SELECT g()'; q2 := q || ' FROM t'; EXECUTE q2": effects("g", tables={"t": "r"}),
    "IF g() THEN q := 'SELECT 1'; ELSE q := format('SELECT 1 FROM %I', n); END IF; EXECUTE q": effects(
        "g", tables={"*": "r"}
    ),
    "EXECUTE CASE WHEN g() THEN 'SELECT 1' ELSE 'SELECT h()' END": effects("g h"),
    "RETURN QUERY EXECUTE 'SELECT v FROM t'": effects(tables={"t": "r"}),
    "FOR r IN EXECUTE 'SELECT v FROM t' LOOP NULL; END LOOP": effects(tables={"t": "r"}),
    "OPEN d FOR EXECUTE 'SELECT v FROM t'": effects(tables={"t": "r"}),
    "EXECUTE n": OPAQUE,
    "EXECUTE 'SELECT 1 FROM t WHERE ' || n": OPAQUE,
    "EXECUTE format('SELECT %I()', n)": OPAQUE,
    "EXECUTE format('SET %I = 1', n)": OPAQUE,
    "EXECUTE format('SELECT %s', n)": OPAQUE,
    "q := 'SELECT 1'; q := q || n; EXECUTE q": OPAQUE,
    "SELECT v INTO q FROM t; EXECUTE q": OPAQUE,
    "q := 'SELECT 1'; SELECT v INTO q FROM t; EXECUTE q": OPAQUE,
    "EXECUTE 'this is no SQL'": OPAQUE,
}
DECLARED = (
    "DECLARE i int; r record; a text[]; q text; q2 text; s name; c CURSOR FOR SELECT * FROM t WHERE v = g();"
    " d refcursor; BEGIN {}; END"
)
IN_EVERY_BODY = effects("g", tables={"t": "r"})
"""The declaration of the cursor."""


@pytest.mark.parametrize("body", BODIES)
def test_a_body_has_these_effects(body: str, reader: Reader) -> None:
    kind = "SETOF text" if "RETURN QUERY" in body else "text"
    read = reader.function(FUNCTION.format("n text", kind, DECLARED.format(body)))
    expected = BODIES[body]
    tables = {name: expected.tables.get(name, "") for name in ("*", "t", *expected.tables)}
    tables["t"] = "".join(event for event in "riudtx" if event in tables["t"] + "r")
    assert read == replace(
        expected,
        calls=expected.calls | IN_EVERY_BODY.calls,
        tables={name: events for name, events in tables.items() if events},
    )


DEFINITIONS = {
    "CREATE FUNCTION f(a int = g()) RETURNS int LANGUAGE sql AS 'UPDATE t SET v = 1; SELECT h()'": effects(
        "g h", tables={"t": "u"}
    ),
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = a, b AS 'SELECT 1 FROM t'": effects(
        tables={"t": "r"}, path=("a", "b")
    ),
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = '' AS 'SELECT 1 FROM a.t'": effects(
        tables={"a.t": "r"}, path=("pg_catalog",)
    ),
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = \"$user\" AS 'SELECT 1'": effects(
        path=()
    ),
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = '1MB' AS 'SELECT 1'": effects(),
    "CREATE FUNCTION f() RETURNS int RETURN public.g() + 1": effects("public.g"),
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC DELETE FROM a.t; SELECT g(); END": effects(
        "g", tables={"a.t": "d"}
    ),
    "CREATE PROCEDURE f(INOUT x int) LANGUAGE plpgsql AS $$BEGIN COMMIT; CALL a.p(x); END$$": effects(
        "a.p", volatile=True
    ),
    "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM g(tg_tag); END$$": effects(
        "g"
    ),
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS 'return 1'": OPAQUE,
    "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x', 'y'": OPAQUE,
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'no SQL'": OPAQUE,
    "no definition": OPAQUE,
    # What PostgreSQL's grammar alone cannot tell: types of the database's own.
    FUNCTION.format(
        "a public.row, b public.kind[], OUT c public.kind, OUT d t.v%TYPE",
        "record",
        "DECLARE e public.t%ROWTYPE; k t.v%TYPE;"
        " BEGIN e.v := g(); a.x := b[1]; SELECT 1, 2 INTO c, d; k := e.v; END",
    ): effects("g"),
    FUNCTION.format("", "TABLE(a public.kind, b t.v%TYPE)", "BEGIN RETURN QUERY SELECT g(), 1; END"): effects(
        "g"
    ),
    FUNCTION.format("a anyelement, VARIADIC b text[]", "SETOF t", "BEGIN RETURN NEXT a; END"): effects(),
    # By its words: a variable of a type that is no record cannot stand beside another.
    FUNCTION.format(
        "", "int", "DECLARE k public.kind; n int; BEGIN SELECT 1, 2 INTO k, n; RETURN g(n); END"
    ): effects("g", tables={"*": "riudtx"}, volatile=True, time_dependent=True),
    FUNCTION.format(
        "", "int", "DECLARE k public.kind; n int; BEGIN SELECT 1, 2 INTO k, n; SET app.x = 1; END"
    ): OPAQUE,
    FUNCTION.format(
        "", "int", "DECLARE k public.kind; n int; BEGIN SELECT 1, set_config(n, '', true) INTO k, n; END"
    ): effects(tables={"*": "riudtx"}, pins=frozenset({"function"}), volatile=True, time_dependent=True),
}


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_definition_has_these_effects(definition: str, reader: Reader) -> None:
    assert reader.function(definition) == DEFINITIONS[definition]


TRIGGERS = {
    "NEW.v := g(NEW.v); NEW.a[h()] := 1; RETURN NEW": effects("g h"),
    "EXECUTE 'INSERT INTO ' || TG_TABLE_NAME || '_log SELECT $1' USING NEW; RETURN NULL": effects(
        tables={"*": "i"}
    ),
    "SELECT g(), 1 INTO NEW.v, NEW.w; RETURN NEW": effects("g"),
    "IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW": effects(),
    "PERFORM '{{},{}},'::text, g(); RETURN NEW": effects("g"),
}


@pytest.mark.parametrize("body", TRIGGERS)
def test_a_trigger_has_these_effects(body: str, reader: Reader) -> None:
    assert reader.function(FUNCTION.format("", "trigger", f"BEGIN {body}; END")) == TRIGGERS[body]


def test_deep_nesting_is_no_error(reader: Reader) -> None:
    for depth in (10, 2_000, 20_000):
        body = "BEGIN " * depth + "NULL;" + " END;" * (depth - 1) + " END"
        assert reader.function(FUNCTION.format("", "void", body)) == (
            NO_EFFECTS if depth == 10 else effects(tables={"*": "riudtx"}, volatile=True, time_dependent=True)
        )


BY_WORDS = effects(tables={"*": "riudtx"}, volatile=True, time_dependent=True)
LONG = 60_000


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("PERFORM '" + "ab" * LONG + "'", NO_EFFECTS),
        ("x := ; PERFORM '" + "ab" * LONG + "'", BY_WORDS),
        ("x := ; " + "a." * LONG + "b", BY_WORDS),
        ("x := ; " + '"' * 2 * LONG, BY_WORDS),
        ("x := ; " + "$a$ " * (LONG // 2) + "$b$", BY_WORDS),
        ("x := ; " + "/*" * LONG, BY_WORDS),
        ("x := ; " + "'" * (2 * LONG - 1), BY_WORDS),
    ],
    ids=["word", "unparsable", "dots", "names", "dollars", "comments", "quotes"],
)
def test_a_long_body_takes_no_longer_than_in_proportion(body: str, found: Effects, reader: Reader) -> None:
    """What a word costs must not grow with its square: these took minutes, and any client can send them."""
    assert reader.function(FUNCTION.format("", "void", f"BEGIN {body}; END")) == found


def test_variables_that_grow_by_each_other_are_not_followed(reader: Reader) -> None:
    """Thirty times four times as long would be more than any memory."""
    grown = "".join(f" v{n + 1} text := v{n} || v{n} || v{n} || v{n};" for n in range(30))
    body = f"DECLARE v0 text := 'SELECT 1';{grown} BEGIN EXECUTE v30; END"
    assert reader.function(FUNCTION.format("", "void", body)) == OPAQUE


@pytest.mark.parametrize(
    "body",
    [
        "EXECUTE app.format('SELECT 1')",  # whatever that makes of it
        "EXECUTE 'SELECT ' || a::app.int4",
        f"EXECUTE format('%{'9' * 5000}$s', 1)",
    ],
)
def test_what_is_executed_is_not_known(body: str, reader: Reader) -> None:
    found = reader.function(FUNCTION.format("a text", "void", f"BEGIN {body}; END"))
    assert found.pins == OPAQUE.pins


@pytest.mark.parametrize(
    "body",
    [
        "DO $b$ BEGIN SET app.x = 1; END $b$",
        "EXECUTE $a$ DO $b$ BEGIN SET app.x = 1; END $b$ $a$",
        "DO $b$ BEGIN DO $c$ BEGIN PERFORM set_config('app.x', '1', false); END $c$; END $b$",
    ],
)
def test_a_code_block_in_a_body_is_read_too(body: str, reader: Reader) -> None:
    assert reader.function(FUNCTION.format("", "void", f"BEGIN {body}; END")) == effects(
        sets="app.x", volatile=True
    )


@pytest.mark.parametrize(
    "made", ["FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "TABLE pg_temp.f ()"]
)
def test_what_is_made_in_the_temporary_schema_keeps_the_link(made: str, reader: Reader) -> None:
    found = reader.function(FUNCTION.format("", "void", f"BEGIN CREATE {made}; END"))
    assert (found.pins, found.releases) == (TEMPORARY, TEMPORARY)


def test_code_blocks_in_each_other_without_end_are_opaque(reader: Reader) -> None:
    body = "SET app.x = 1"
    for depth in range(300):
        body = f"DO $b{depth}$ BEGIN {body}; END $b{depth}$"
    found = reader.function(FUNCTION.format("", "void", f"BEGIN {body}; END"))
    assert found.pins == OPAQUE.pins


def test_what_looks_like_a_comment_in_a_literal_hides_nothing(reader: Reader) -> None:
    for text in ("'--'", "'/*'", "E'\\'--'", '"--"', "$q$--$q$"):
        body = f"BEGIN x := ; PERFORM {text}; EXECUTE q; END"
        assert reader.function(FUNCTION.format("", "void", body)) == OPAQUE


def test_code_travels_as_json() -> None:
    code = Code(
        system=frozenset({"random"}),
        functions=MappingProxyType(
            {"public.f": OPAQUE, "public.g": NO_EFFECTS, "public.h": effects("g", path=())}
        ),
        reactions=MappingProxyType({"public.t": {"i": effects(sets="app.x")}}),
        operators=MappingProxyType({"@@": frozenset({"public.f"})}),
        attributes=MappingProxyType({"f": frozenset({"public.f"})}),
        definitions=effects("public.g"),
        stamp="x",
    )
    assert Code.from_dict(code.to_dict()) == code
