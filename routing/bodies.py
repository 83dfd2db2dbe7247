"""Reads what code does: the bodies of functions in SQL and PL/pgSQL, and expressions, rules and code blocks.

A body is read statement by statement as a client's would be; names are left as they stand. What cannot be
read is opaque: it may do anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from types import MappingProxyType
from typing import Any, Final

from pgshunt.routing.dynamic import NAME, Opaque, Variables, texts
from pgshunt.routing.dynamic import TYPES as TYPES_AS_TEXT
from pgshunt.routing.effects import (
    ANY,
    EVENTS,
    NO_EFFECTS,
    OPAQUE,
    VERIFIABLE,
    Effects,
    merged,
    united,
)
from pgshunt.routing.findings import OBSCURING, RENAMING, REREADING, Findings
from pgshunt.routing.functions import OWN, effect_of
from pgshunt.routing.grammar import Unreadable, parse, pg
from pgshunt.routing.names import quoted, split_search_path
from pgshunt.routing.plpgsql import Body, read_body
from pgshunt.routing.signature import header_like
from pgshunt.routing.statements import examine
from pgshunt.routing.table import Catalogue
from pgshunt.routing.walk import walk

READABLE: Final = frozenset({"sql", "plpgsql"})
"""Languages whose bodies are read."""

# A body that the grammar does not take is judged by its words: these may leave state behind. SET only where a
# statement begins, for UPDATE has one as well.
_LEAVES_STATE: Final = re.compile(
    r"\b(listen|unlisten|load|execute|prepare|discard|deallocate|temp|temporary|hold|pg_temp\w*|pg_settings)\b"
    r"|(^|;|\*/|\b(begin|then|else|loop))\s*(set|reset)\b|u&\s*\"",
    re.IGNORECASE,
)
# Nothing here may take longer than in proportion to the body: words are looked at from their beginning only,
# and names no further than they are written out.
_PART: Final = r'"(?:[^"]|""){1,256}+"|[\w$]++'
_CALLED: Final = re.compile(rf"(?<![\w$])((?:{_PART})(?:\s*+\.\s*+(?:{_PART})){{0,3}}+)\s*+\(")
# Literals are found to be left as they are: what looks like a comment in one is none.
_COMMENT: Final = re.compile(
    r"(e'(?:[^'\\]|''|\\.)*+(?:'|\Z)|'(?:[^']|'')*+(?:'|\Z)|"
    r'"(?:[^"]|"")*+(?:"|\Z)|'
    r"\$(\w*+)\$.*?(?:\$\2\$|\Z))|--[^\n]*+|/\*.*?(?:\*/|\Z)",
    re.DOTALL | re.IGNORECASE,
)
TEMPORARY: Final = frozenset({"temp_table"})
BLOCKS_MAX: Final = 8
"""Code blocks within each other that are read."""
ASSIGNED_DEPTH_MAX: Final = 16
"""So many times over, what is assigned to a variable may be made of other variables."""


class Reader:
    """Reads code as it stands in a database: `known` has the names of PostgreSQL's own functions."""

    def __init__(self, known: Catalogue) -> None:
        # Without relations and a search path every name stays as it is written.
        self._known = replace(known, relations=MappingProxyType({}))
        self._read: dict[str, Effects] = {}
        self._blocks = 0  # that what is being read stands in

    def function(self, definition: str) -> Effects:
        """What a function or procedure does, by its definition as pg_get_functiondef prints it."""
        try:
            node = parse(definition.encode()).stmts[0].stmt.create_function_stmt
        except Unreadable:
            return OPAQUE
        return self.created(node)

    def created(self, node: pg.CreateFunctionStmt) -> Effects:
        """What the function does that a statement creates."""
        options = {option.def_elem.defname: option.def_elem.arg for option in node.options}
        defaults = [parameter.function_parameter.defexpr for parameter in node.parameters]
        language = options["language"].string.sval.lower() if "language" in options else "sql"
        if node.HasField("sql_body"):
            effects = self._statements(_flat(node.sql_body))
        elif language not in READABLE or "as" not in options:
            return OPAQUE
        else:
            body = options["as"].list.items[0].string.sval
            effects = self.sql(body) if language == "sql" else self._plpgsql(body, header_like(node))
        effects = reduce(merged, map(self._expression, defaults), effects)
        return self._placed(effects, _path(node))

    def sql(self, text: str) -> Effects:
        """What one or several statements do."""
        known = self._read.get(text)
        if known is None:
            try:
                known = self._statements([statement.stmt for statement in parse(text.encode()).stmts])
            except Unreadable:
                known = OPAQUE
            if known.defines and "pg_temp" in text.lower():  # be it the schema of a function or type
                temporary = Effects(pins=TEMPORARY, releases=TEMPORARY)
                known = merged(known, temporary)
            self._read[text] = known
        return known

    def expression(self, text: str) -> Effects:
        """What it takes to compute an expression, or several with commas between them."""
        return self.sql(f"SELECT {text}")

    def rule(self, definition: str) -> Effects:
        """What a rule does instead of a statement or besides, by its CREATE RULE."""
        try:
            node = parse(definition.encode()).stmts[0].stmt.rule_stmt
        except Unreadable:
            return OPAQUE
        return self.rule_of(node)

    def rule_of(self, node: pg.RuleStmt) -> Effects:
        """What the rule does that a statement creates."""
        condition = self._expression(node.where_clause)
        return merged(self._statements(list(node.actions)), condition)

    def trigger(self, definition: str) -> Effects:
        """What the condition of a trigger does, by its CREATE TRIGGER."""
        try:
            node = parse(definition.encode()).stmts[0].stmt.create_trig_stmt
        except Unreadable:
            return OPAQUE
        return self._expression(node.when_clause)

    def query(self, node: pg.Node) -> Effects:
        """What a query does, as that of a view."""
        return self._statement(node)

    def block(self, node: pg.DoStmt) -> Effects:
        """What a code block does."""
        effects = self._block(node)
        return replace(
            effects, pins=frozenset("code_block" if pin == "function" else pin for pin in effects.pins)
        )

    def _block(self, node: pg.DoStmt) -> Effects:
        options = {option.def_elem.defname: option.def_elem.arg.string.sval for option in node.args}
        readable = options.get("language", "plpgsql").lower() == "plpgsql"
        if not readable or self._blocks >= BLOCKS_MAX:
            return OPAQUE
        self._blocks += 1
        try:
            return self._plpgsql(options.get("as", ""), "DO")
        finally:
            self._blocks -= 1

    def _statements(self, nodes: Iterable[pg.Node]) -> Effects:
        return reduce(merged, map(self._statement, nodes), NO_EFFECTS)

    def _statement(self, node: pg.Node) -> Effects:
        found = Findings((), self._known)
        examine(found, node)
        effects = _effects(found)
        return merged(effects, self._block(node.do_stmt)) if node.HasField("do_stmt") else effects

    def _expression(self, node: pg.Node) -> Effects:
        found = Findings((), self._known)
        walk(found, node)
        return _effects(found)

    def _plpgsql(self, body: str, header: str) -> Effects:
        try:
            cut = read_body(body, header=header)
        except Unreadable:
            return self._by_words(body)
        effects = reduce(merged, map(self.sql, (*cut.statements, *cut.expressions)), NO_EFFECTS)
        variables = _variables(cut)
        for expression in cut.computed:
            effects = merged(effects, self._computed(expression, variables))
        return effects

    def _computed(self, expression: str, variables: Variables) -> Effects:
        """What EXECUTE does with the value of an expression."""
        try:
            found = texts(_select_item(expression), variables)
        except (Opaque, Unreadable, RecursionError):
            return OPAQUE
        return reduce(merged, map(self.sql, found), NO_EFFECTS)

    def _by_words(self, body: str) -> Effects:
        """Which functions it may call can be told from its words; of its tables nothing is known."""
        text = _COMMENT.sub(lambda found: found[1] or " ", body)
        if _LEAVES_STATE.search(text):
            return OPAQUE
        pins, calls, meets = set(), set(), False
        for name in set(_CALLED.findall(text)):
            *schema, last = [_folded(part) for part in re.findall(_PART, name)]
            effect = effect_of(
                schema[-1] if schema else "", last, self._known.safe_functions, self._known.code.system
            )
            meets |= effect.meets
            if effect.pins:
                pins.add(effect.pins if effect.pins in VERIFIABLE else "function")
            if effect is OWN and (schema or self._known.knows_function(last)):
                calls.add(".".join(quoted(part) for part in (*schema, last)))
        code = self._known.code
        calls |= {
            name for behind in (code.operators, code.casts) for names in behind.values() for name in names
        }
        return Effects(
            calls=frozenset(calls),
            tables=MappingProxyType({ANY: EVENTS}),
            pins=frozenset(pins),
            releases=frozenset(pins & VERIFIABLE),
            volatile=True,
            time_dependent=True,
            meets=meets,
            anywhere=True,
        )

    def _placed(self, effects: Effects, path: tuple[str, ...] | None) -> Effects:
        """With the search path it brings along; one that it sets itself makes its names unclear."""
        if RENAMING.isdisjoint(effects.sets | effects.sets_local | effects.resets):
            return replace(effects, path=path)
        return replace(effects, path=())


def _effects(found: Findings) -> Effects:
    """What was found of a statement whose names are as they are written."""
    pins = {pin if pin in VERIFIABLE else "function" for pin in found.pins}
    if found.prepares or found.executes or found.deallocates is not None or "prepare" in found.releases:
        pins.add("function")
    if any(NAME in name for name in found.calls | found.touches | found.sets_local | found.resets):
        return OPAQUE
    tables: dict[str, str] = {}
    for table, event in found.events:
        known = ANY if NAME in table else table
        tables[known] = united(tables.get(known, ""), event)
    return Effects(
        calls=frozenset(found.calls),
        tables=MappingProxyType(tables),
        sets=frozenset(found.touches),
        sets_local=frozenset(name for name in found.sets_local if _is_noticed(name)),
        resets=frozenset(found.resets),
        pins=frozenset(pins),
        # What it makes it may well take down again: the server is asked.
        releases=frozenset((pins | found.releases) & VERIFIABLE),
        locks=found.locks,
        volatile=found.volatile or found.is_definition,
        time_dependent=found.time_dependent,
        signals=found.signals,
        meets=found.meets,
        anywhere=found.anywhere or ANY in tables,
        defines=found.is_definition,
    )


def _is_noticed(name: str) -> bool:
    """Whether anything but its value tells that a parameter was set until the transaction ends."""
    return "." in name or name in RENAMING | REREADING | OBSCURING


def _flat(node: pg.Node) -> list[pg.Node]:
    """The statements of a body in SQL: RETURN expression, or lists of statements within lists."""
    if node.WhichOneof("node") == "list":
        return [inner for item in node.list.items for inner in _flat(item)]
    if node.WhichOneof("node") == "return_stmt":
        item = ("ResTarget", {"val": node.return_stmt.returnval.given})
        return [pg.Node(("SelectStmt", {"targetList": [item]}))]
    return [node] if node.WhichOneof("node") else []


def _path(node: pg.CreateFunctionStmt) -> tuple[str, ...] | None:
    """The search path a function brings along. One with the schema of a user on it is not known."""
    path: tuple[str, ...] | None = None
    for option in node.options:
        if option.def_elem.defname != "set":
            continue
        setting = option.def_elem.arg.variable_set_stmt
        if setting.name.lower() in ("role", "session_authorization"):
            return ()
        if setting.name.lower() == "search_path":
            values = [value.a_const.sval.sval for value in setting.args]
            path = split_search_path(", ".join(f'"{value}"' for value in values))
            if "$user" in path or setting.kind != pg.VAR_SET_VALUE:
                return ()
    # An empty path is not one that is unknown: only pg_catalog is on it.
    return ("pg_catalog",) if path == () or path == ("",) else path


def _variables(body: Body) -> Variables:
    """For local variables the texts they may hold, as far as that is known."""
    found: dict[str, tuple[str, ...]] = {
        variable.name: (TYPES_AS_TEXT[variable.type],)
        for variable in body.variables
        if variable.type in TYPES_AS_TEXT
    }
    waiting: dict[str, list[Any]] = {}
    for variable in body.variables:
        if variable.assigned and variable.name not in found:
            with suppress(Unreadable):
                waiting[variable.name] = [_select_item(value) for value in variable.assigned]
    # One that is made of others is known when they are; one that is made of itself never is.
    for _ in range(ASSIGNED_DEPTH_MAX):
        known = len(found)
        for name, values in list(waiting.items()):
            with suppress(Opaque, RecursionError):
                found[name] = tuple({text for value in values for text in texts(value, found)})
                del waiting[name]
        if len(found) == known:
            break
    return found


def _select_item(expression: str) -> Any:
    """The node of an expression. Raises Unreadable if it is more than that."""
    statements = parse(f"SELECT {expression}".encode()).stmts
    select = statements[0].stmt.select_stmt
    if len(statements) != 1 or len(select.target_list) != 1 or select.from_clause:
        raise Unreadable("unparsable")
    return select.target_list[0].res_target.val


def _folded(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()
