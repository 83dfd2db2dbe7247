"""The classes of a parse tree: messages with the names, types and defaults of libpg_query's protobuf schema.

libpg_query writes a tree as protobuf or as JSON. For protobuf it looks for each node at all 271 kinds that it
may be, which takes three times as long as all the rest. So these read what `nodes.py` makes of the JSON, and
only what is asked for; `given` is that, for what must be fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from postgast import pg_query_pb2 as schema

from pgshunt.routing.nodes import NODE, Fields
from pgshunt.routing.nodes import Node as GivenNode


class Message:
    """One message; its fields are properties, as protobuf's Python classes have them."""

    __slots__ = ("given",)

    json_names: dict[str, str]
    names: dict[str, str]
    """Of the fields; the one by the other."""

    def __init__(self, given: Any = None) -> None:
        self.given = {} if given is None else given

    @property
    def node(self) -> GivenNode:
        """The node that holds it."""
        return type(self).__name__, self.given

    def HasField(self, name: str) -> bool:
        return self.json_names[name] in self.given

    def get(self, json_name: str) -> Any:
        """What is given of a field; None if nothing is."""
        return self.given.get(json_name)


class Node(Message):
    """A message of which one field is set, or none."""

    __slots__ = ()

    @property
    def node(self) -> GivenNode:
        given: GivenNode = self.given
        return given

    def held(self) -> tuple[str, Fields]:
        """The kind of what is in it, "" if nothing is, and its fields."""
        given: GivenNode = self.given
        if isinstance(given, str):
            return "String", {"sval": given}
        return given if isinstance(given, tuple) else ("", {})

    def HasField(self, name: str) -> bool:
        return self.json_names[name] == self.held()[0]

    def WhichOneof(self, name: str) -> str | None:
        """The name of the field that is set."""
        return self.names.get(self.held()[0])

    def get(self, json_name: str) -> Any:
        kind, fields = self.held()
        return fields if kind == json_name else None


def classes() -> SimpleNamespace:
    """A class for each message of the schema, and the number of each value of its enumerations."""
    descriptors = schema.DESCRIPTOR.message_types_by_name
    made: dict[str, Any] = {
        name: Node if name == NODE else type(name, (Message,), {"__slots__": ()}) for name in descriptors
    }
    for name, descriptor in descriptors.items():
        made[name].json_names = {field.name: field.json_name for field in descriptor.fields}
        made[name].names = {field.json_name: field.name for field in descriptor.fields}
        for field in descriptor.fields:
            setattr(made[name], field.name, property(_getter(field, made)))
    for enumeration in schema.DESCRIPTOR.enum_types_by_name.values():
        made.update({value.name: value.number for value in enumeration.values})
    return SimpleNamespace(**made)


def _getter(field: Any, made: Mapping[str, type[Message]]) -> Callable[[Message], Any]:
    name = field.json_name
    default = field.default_value
    if field.message_type is not None:
        kind = made.get(field.message_type.name, Message)
        if field.is_repeated:
            return lambda message: [kind(item) for item in message.get(name) or ()]
        return lambda message: kind(message.get(name))
    if field.enum_type is not None:
        numbers = {value.name: value.number for value in field.enum_type.values}
        return lambda message: numbers.get(message.given.get(name), default)
    return lambda message: message.given.get(name, default)
