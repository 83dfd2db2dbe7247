"""Reads what the code in a database does: its functions, and what its tables' triggers, rules, defaults,
checks, policies, foreign keys and partitions make run.

Functions in SQL and PL/pgSQL are read; those in other languages may do anything. The functions of well-known
extensions (PLAIN_EXTENSIONS) are known not to leave anything behind in a session.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from pgshunt.migration.extensions import FUNCTIONS_OF_EXTENSIONS, PLAIN_EXTENSIONS
from pgshunt.migration.servers import Link
from pgshunt.routing.bodies import READABLE, Reader
from pgshunt.routing.effects import (
    CHANGES,
    DEFINE,
    DELETE,
    IMPLICITLY,
    INSERT,
    NO_CODE,
    NO_EFFECTS,
    OPAQUE,
    READ,
    TRUNCATE,
    UPDATE,
    Code,
    Effects,
    merged,
)
from pgshunt.routing.names import qualified
from pgshunt.routing.table import Catalogue

# Definitions are printed with every name qualified that is not in pg_catalog.
_PATH: Final = "SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)"

_OURS: Final = r"""
  n.nspname <> 'pg_catalog' AND n.nspname NOT LIKE 'pg\_temp\_%' AND n.nspname NOT LIKE 'pg\_toast%'
"""

_SCHEMA: Final = "{} NOT IN (SELECT oid FROM passing_schemas)"
_RELATION: Final = "{} NOT IN (SELECT oid FROM passing_relations)"

# What is temporary is its session's own business, and comes and goes all the time.
_STAMP: Final = rf"""
WITH passing_schemas AS (
  SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\_temp\_%' OR nspname LIKE 'pg\_toast%'),
passing_relations AS (
  SELECT oid FROM pg_class WHERE relnamespace IN (SELECT oid FROM passing_schemas))
SELECT md5(string_agg(kind || ':' || number || ':' || stamp, ' ' ORDER BY kind)) FROM (
  {
    " UNION ALL ".join(
        f"SELECT '{table}' AS kind, count(*) AS number,"
        f" coalesce(sum(hashtext({key}::text || xmin::text)::bigint), 0) AS stamp FROM {table}"
        f" WHERE {lasts}"
        for table, key, lasts in (
            ("pg_proc", "oid", _SCHEMA.format("pronamespace")),
            ("pg_trigger", "oid", _RELATION.format("tgrelid")),
            ("pg_rewrite", "oid", _RELATION.format("ev_class")),
            ("pg_attrdef", "oid", _RELATION.format("adrelid")),
            ("pg_constraint", "oid", _SCHEMA.format("connamespace")),
            ("pg_policy", "oid", _RELATION.format("polrelid")),
            ("pg_operator", "oid", _SCHEMA.format("oprnamespace")),
            ("pg_cast", "oid", "true"),
            ("pg_namespace", "oid", _SCHEMA.format("oid")),
            ("pg_event_trigger", "oid", "true"),
            ("pg_index", "indexrelid", _RELATION.format("indrelid")),
            ("pg_class", "oid", _SCHEMA.format("relnamespace")),
            ("pg_type", "oid", _SCHEMA.format("typnamespace")),
            ("pg_inherits", "inhrelid::text || inhparent", _RELATION.format("inhrelid")),
        )
    )
}) AS counted
"""

_SYSTEM: Final = """
SELECT DISTINCT p.proname::text FROM pg_proc p
WHERE p.pronamespace = 'pg_catalog'::regnamespace AND EXISTS (
  SELECT FROM pg_proc o WHERE o.proname = p.proname
  AND NOT (o.provolatile IN ('i', 's') AND o.pronamespace = 'pg_catalog'::regnamespace AND o.oid < 16384))
"""

_NAMES: Final = f"""
SELECT DISTINCT n.nspname::text, p.proname::text
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OURS}
"""

_FUNCTIONS: Final = f"""
SELECT n.nspname::text, p.proname::text, l.lanname::text, p.prokind::text, p.provolatile::text,
       coalesce(e.extname::text, ''),
       CASE WHEN l.lanname IN ('sql', 'plpgsql') AND p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
     LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
     LEFT JOIN pg_extension e ON e.oid = d.refobjid
WHERE {_OURS}
"""

_AGGREGATES: Final = f"""
SELECT n.nspname::text, p.proname::text, fn.nspname::text, f.proname::text
FROM pg_aggregate a JOIN pg_proc p ON p.oid = a.aggfnoid JOIN pg_namespace n ON n.oid = p.pronamespace,
     LATERAL unnest(ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn,
                          aggminvtransfn, aggmfinalfn]::oid[]) AS used(oid)
     JOIN pg_proc f ON f.oid = used.oid JOIN pg_namespace fn ON fn.oid = f.pronamespace
WHERE {_OURS} AND fn.nspname <> 'pg_catalog'
"""

# Operators and casts between PostgreSQL's own types (their OIDs are below FirstNormalObjectId) come before
# its own where they fit better: without them a copy would say something else, and not that something lacks.
_OPERATORS: Final = f"""
SELECT DISTINCT o.oprname::text, n.nspname::text, p.proname::text,
       greatest(o.oprleft, o.oprright) < 16384 AND NOT EXISTS (
         SELECT FROM pg_depend d
         WHERE d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e')
FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE {_OURS}
"""

_CASTS: Final = f"""
SELECT t.typname::text, n.nspname::text, p.proname::text, c.castcontext::text = 'i',
       greatest(c.castsource, c.casttarget) < 16384 AND NOT EXISTS (
         SELECT FROM pg_depend d
         WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'e')
FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc JOIN pg_namespace n ON n.oid = p.pronamespace
     JOIN pg_type t ON t.oid = c.casttarget
WHERE {_OURS}
"""

# row.f is f(row) where the row has no such column; f may take rows of any type.
_ATTRIBUTES: Final = f"""
SELECT n.nspname::text, p.proname::text
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_type t ON t.oid = p.proargtypes[0]
WHERE {_OURS} AND p.pronargs - p.pronargdefaults <= 1 AND t.typtype IN ('c', 'p')
"""

_TRIGGERS: Final = """
SELECT n.nspname::text, c.relname::text, t.tgtype, fn.nspname::text, f.proname::text,
       CASE WHEN t.tgqual IS NOT NULL THEN pg_get_triggerdef(t.oid) END
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace fn ON fn.oid = f.pronamespace
WHERE NOT t.tgisinternal AND c.relpersistence <> 't'
"""

_RULES: Final = f"""
SELECT n.nspname::text, c.relname::text, c.relkind::text, r.ev_type::text, pg_get_ruledef(r.oid)
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_OURS} AND n.nspname <> 'information_schema'
"""

# Of expressions only those matter that call something.
_EXPRESSIONS: Final = f"""
SELECT n.nspname::text, c.relname::text, used.events, used.text
FROM (SELECT adrelid, 'iux', pg_get_expr(adbin, adrelid) FROM pg_attrdef
      UNION ALL SELECT conrelid, 'iux', pg_get_expr(conbin, conrelid) FROM pg_constraint
                WHERE contype = 'c' AND conrelid <> 0
      UNION ALL SELECT a.attrelid, 'iux', pg_get_expr(k.conbin, 0) FROM pg_constraint k
                JOIN pg_attribute a ON a.atttypid = k.contypid WHERE k.contypid <> 0
      UNION ALL SELECT indrelid, 'iux', pg_get_expr(indexprs, indrelid) FROM pg_index
                WHERE indexprs IS NOT NULL
      UNION ALL SELECT indrelid, 'iux', pg_get_expr(indpred, indrelid) FROM pg_index
                WHERE indpred IS NOT NULL
      UNION ALL SELECT partrelid, 'iux', pg_get_expr(partexprs, partrelid) FROM pg_partitioned_table
                WHERE partexprs IS NOT NULL
      UNION ALL SELECT polrelid, 'riud', pg_get_expr(polqual, polrelid) FROM pg_policy
      UNION ALL SELECT polrelid, 'riud', pg_get_expr(polwithcheck, polrelid) FROM pg_policy
     ) AS used(relation, events, text)
     JOIN pg_class c ON c.oid = used.relation JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_OURS} AND n.nspname <> 'information_schema' AND used.text ~ '[(]'
"""

_FOREIGN_KEYS: Final = """
SELECT rn.nspname::text, r.relname::text, n.nspname::text, c.relname::text,
       k.confdeltype::text, k.confupdtype::text
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND c.relpersistence <> 't'
"""

_CHILDREN: Final = """
SELECT pn.nspname::text, p.relname::text, n.nspname::text, c.relname::text
FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
     JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
"""

_EVENT_TRIGGERS: Final = """
SELECT n.nspname::text, p.proname::text
FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace
"""

# Bits of pg_trigger.tgtype (catalog/pg_trigger.h).
_TRIGGER_EVENTS: Final = {4: INSERT, 8: DELETE, 16: UPDATE, 32: TRUNCATE}
# pg_rewrite.ev_type
_RULE_EVENTS: Final = {"1": READ, "2": UPDATE, "3": INSERT, "4": DELETE}
_CASCADES: Final = {"c": DELETE, "n": UPDATE, "d": UPDATE}


def read_code(link: Link, catalogue: Catalogue, before: Code = NO_CODE) -> Code:
    """The code of the database that `catalogue` is of, in the transaction that is open; `before` if nothing
    of it has changed since. Raises ServerError.
    """
    link.value(_PATH)
    stamp = link.value(_STAMP)
    if stamp == before.stamp:
        return before
    system = frozenset(name for (name,) in link.rows(_SYSTEM))
    names = [qualified(*row) for row in link.rows(_NAMES)]
    named = Code(system=system, functions=dict.fromkeys(names, NO_EFFECTS))
    reader = Reader(replace(catalogue, code=named))
    functions = _functions(link, reader)
    operators: dict[str, frozenset[str]] = {}
    for operator, *function, decides in link.rows(_OPERATORS):
        if decides or functions[qualified(*function)] != NO_EFFECTS:
            operators[operator] = operators.get(operator, frozenset()) | {qualified(*function)}
    casts: dict[str, frozenset[str]] = {}
    for target, *function, is_implicit, decides in link.rows(_CASTS):
        if decides or functions[qualified(*function)] != NO_EFFECTS:
            for name in (target, IMPLICITLY) if is_implicit and decides else (target,):
                casts[name] = casts.get(name, frozenset()) | {qualified(*function)}
    attributes: dict[str, frozenset[str]] = {}
    for schema, name in link.rows(_ATTRIBUTES):
        attributes[name] = attributes.get(name, frozenset()) | {qualified(schema, name)}
    code = replace(named, functions=functions, operators=operators, casts=casts, attributes=attributes)
    reader = Reader(replace(catalogue, code=code))
    reactions: dict[str, dict[str, Effects]] = {}
    for table, events, effects in _reactions(link, reader):
        known = reactions.setdefault(table, {})
        for event in events if effects != NO_EFFECTS else "":
            known[event] = merged(known.get(event, effects), effects)
    called = frozenset(qualified(*function) for function in link.rows(_EVENT_TRIGGERS))
    return Code(
        system=system,
        functions=MappingProxyType(functions),
        reactions=MappingProxyType({table: events for table, events in reactions.items() if events}),
        operators=MappingProxyType(operators),
        casts=MappingProxyType(casts),
        attributes=MappingProxyType(attributes),
        definitions=Effects(calls=called),
        stamp=stamp,
    )


def _functions(link: Link, reader: Reader) -> dict[str, Effects]:
    functions: dict[str, Effects] = {}
    for schema, name, language, kind, volatility, extension, definition in link.rows(_FUNCTIONS):
        effects = _function(reader, name, language, kind, volatility, extension, definition)
        full = qualified(schema, name)
        functions[full] = merged(functions[full], effects) if full in functions else effects
    for schema, name, *called in link.rows(_AGGREGATES):
        full = qualified(schema, name)
        functions[full] = merged(functions[full], Effects(calls=frozenset({qualified(*called)})))
    return functions


def _function(
    reader: Reader,
    name: str,
    language: str,
    kind: str,
    volatility: str,
    extension: str,
    definition: str | None,
) -> Effects:
    known = FUNCTIONS_OF_EXTENSIONS.get((extension, name))
    if known is not None:
        return known
    if kind == "a":
        return NO_EFFECTS  # the functions it is made of follow
    if extension in PLAIN_EXTENSIONS:
        return Effects(volatile=True) if volatility == "v" else NO_EFFECTS
    return OPAQUE if language not in READABLE or definition is None else reader.function(definition)


def _reactions(link: Link, reader: Reader) -> Iterable[tuple[str, str, Effects]]:
    """Tables, ways to use them, and what runs then."""
    for schema, table, bits, *function, definition in link.rows(_TRIGGERS):
        events = "".join(event for bit, event in _TRIGGER_EVENTS.items() if bits & bit)
        called = Effects(calls=frozenset({qualified(*function)}))
        # A condition cannot do more than call functions.
        condition = NO_EFFECTS if definition is None else reader.trigger(definition)
        yield qualified(schema, table), events, merged(called, condition)
    for schema, table, kind, event, definition in link.rows(_RULES):
        effects = reader.rule(definition)
        if kind == "m":
            yield qualified(schema, table), DEFINE, effects  # REFRESH; to read it runs nothing
            continue
        if kind != "v" or event != "1":
            yield qualified(schema, table), _RULE_EVENTS[event], effects
            continue
        yield qualified(schema, table), READ, effects
        for change in CHANGES:
            # What is written to a view that updates itself is written to its table.
            written = dict.fromkeys(effects.tables, change)
            yield qualified(schema, table), change, merged(effects, Effects(tables=MappingProxyType(written)))
    for schema, table, events, text in link.rows(_EXPRESSIONS):
        yield qualified(schema, table), events, _of_an_expression(reader.expression(text))
    for schema, table, *referring, deleted, updated in link.rows(_FOREIGN_KEYS):
        name = qualified(*referring)
        if deleted in _CASCADES:
            yield qualified(schema, table), DELETE, _used(name, _CASCADES[deleted])
        if updated in ("c", "n", "d"):
            yield qualified(schema, table), UPDATE, _used(name, UPDATE)
        yield qualified(schema, table), TRUNCATE, _used(name, TRUNCATE)
    for schema, table, *child in link.rows(_CHILDREN):
        for event in READ + CHANGES:
            yield qualified(schema, table), event, _used(qualified(*child), event)


def _used(table: str, events: str) -> Effects:
    return Effects(tables=MappingProxyType({table: events}))


def _of_an_expression(effects: Effects) -> Effects:
    """Without what is of no interest where a row is written anyway: nextval, now()."""
    return replace(effects, volatile=False, time_dependent=False, locks=False)
