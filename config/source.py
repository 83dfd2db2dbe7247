"""Reads a YAML text into plain values, and remembers where in the file each of them stands.

Scalars stay texts: the model gives them their type, so a password of 0123 is never taken for a number.
Variables are substituted in scalars after parsing, so their values can change neither the structure nor the
type of anything. A key with nothing behind it counts as left out.
"""

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from pgshunt.config.problem import Path, Place, Problem

Value: TypeAlias = "str | list[Value] | dict[str, Value] | None"

_NULL: Final = "tag:yaml.org,2002:null"
_VARIABLE: Final = re.compile(
    r"\$(?:(?P<literal>\$\{)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}"
    r"|(?P<malformed>\{[^}]*\}?))",
    re.ASCII,
)


class Source:
    """One configuration file, read. `values` is the tree; `problems` what was wrong with it so far.

    `unset`: the values that miss a variable, which is no fault of the file.
    """

    def __init__(self, text: str, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.unset: set[Path] = set()
        self._environ = environ
        self._values_at: dict[Path, Place] = {}
        self._keys_at: dict[Path, Place] = {}
        self._written: dict[Path, str] = {}
        self._open: set[int] = set()
        root = self._compose(text)
        value = self._value(root, ()) if root else {}
        if not isinstance(value, dict):
            self._problem(
                (), "the file is not a mapping", "write `key: value` lines, starting with `version: 1`", root
            )
            value = {}
        self.values: dict[str, Value] = value

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value at `path` stands (or its key); if there is none, where its section does."""
        while path:
            place = self._keys_at.get(path) if key else self._values_at.get(path)
            if place:
                return place
            path, key = path[:-1], True
        return Place(self.file, 1, 1)

    def written(self, path: Path) -> str | None:
        """The scalar at `path` as the file has it: variables not substituted, so that it is safe to print."""
        return self._written.get(path)

    def _compose(self, text: str) -> Node | None:
        try:
            root: Node | None = YAML(typ="safe", pure=True).compose(text)
        except MarkedYAMLError as error:
            context = f"{error.context}: " if error.context else ""
            mark = error.problem_mark or error.context_mark
            self._problem((), f"{context}{error.problem}", "this is not YAML from here on", mark)
        except YAMLError as error:
            self._problem((), str(error).splitlines()[0], "this is not YAML")
        else:
            return root
        return None

    def _value(self, node: Node, path: Path) -> Value:
        self._values_at.setdefault(path, self._mark(node.start_mark))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._problem(path, "contains itself", "write the section out instead of the alias", node)
            return None
        self._open.add(id(node))
        try:
            return self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Value]:
        values: dict[str, Value] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._problem(path, "a key is not a plain word", "write `key: value`", key_node)
                continue
            key, place = key_node.value, self._mark(key_node.start_mark)
            if key in first_line:
                remedy = f"keep this one or the one in line {first_line[key]}"
                self._problem((*path, key), "is given twice", remedy, key_node, at_key=True)
                continue
            first_line[key] = place.line
            self._keys_at[*path, key] = place
            value = self._value(value_node, (*path, key))
            if value is not None:
                values[key] = value
        return values

    def _sequence(self, node: Node, path: Path) -> list[Value]:
        return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: ScalarNode, path: Path) -> str | None:
        if node.style is None and node.tag == _NULL:
            return None
        text: str = node.value
        self._written[path] = text
        return _VARIABLE.sub(lambda match: self._substitute(match, node, path), text)

    def _substitute(self, match: re.Match[str], node: Node, path: Path) -> str:
        if match["literal"]:
            return "${"
        if match["malformed"]:
            remedy = "write ${VAR}, ${VAR:-default} or ${VAR:?message}; $${ is a plain ${"
            self._problem(path, f"{match[0]!r} is not a variable", remedy, node)
            return ""
        name, operator, rest = match["name"], match["operator"], match["rest"]
        value = self._environ.get(name)
        if operator is None:
            if value is None:
                self.unset.add(path)
                remedy = f"set it, or write ${{{name}:-default}}"
                self._problem(path, f"the environment variable {name} is not set", remedy, node)
            return value or ""
        if value:
            return value
        if operator == ":?":
            self.unset.add(path)
            self._problem(
                path, f"the environment variable {name} is empty or not set", rest or "set it", node
            )
            return ""
        return str(rest)

    def _problem(
        self,
        path: Path,
        message: str,
        remedy: str,
        at: Node | StringMark | None = None,
        *,
        at_key: bool = False,
    ) -> None:
        mark = at.start_mark if isinstance(at, Node) else at
        self.problems.append(Problem(path, message, remedy, place=self._mark(mark), at_key=at_key))

    def _mark(self, mark: StringMark | None) -> Place:
        return Place(self.file, mark.line + 1, mark.column + 1) if mark else Place(self.file, 1, 1)
