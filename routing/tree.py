"""The classes of a parse tree: messages with the names, types and defaults of libpg_query's protobuf schema,
read out of its JSON.

libpg_query writes a tree as protobuf or as JSON. For protobuf it looks for each node at all 271 kinds that it
may be, which takes three times as long as all the rest. Only what is asked for of a message is made; `given`
is the JSON beneath, where a node is `{"SelectStmt": {"targetList": […], …}}`: what must be fast reads that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

from postgast import pg_query_pb2 as schema

Given = Mapping[str, Any]

NODE: Final = "Node"
UNSET: Final[Given] = {}


class Message:
    """One message; its fields are properties, as protobuf's Python classes have them."""

    __slots__ = ("given",)

    json_names: dict[str, str]
    names: dict[str, str]
    """Of the fields; the one by the other."""

    def __init__(self, given: Given = UNSET) -> None:
        self.given = given

    @property
    def node(self) -> Given:
        """The JSON of a node that holds it; itself if it is one."""
        name = type(self).__name__
        return self.given if name == NODE else {name: self.given}

    def HasField(self, name: str) -> bool:
        return self.json_names[name] in self.given

    def WhichOneof(self, name: str) -> str | None:
        """Of a node, the name of the one field that is set."""
        for json_name in self.given:
            return self.names[json_name]
        return None


def classes() -> SimpleNamespace:
    """A class for each message of the schema, and the number of each value of its enumerations."""
    descriptors = schema.DESCRIPTOR.message_types_by_name
    made: dict[str, Any] = {name: type(name, (Message,), {"__slots__": ()}) for name in descriptors}
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
            return lambda message: [kind(item) for item in message.given.get(name, ())]
        return lambda message: kind(message.given.get(name, UNSET))
    if field.enum_type is not None:
        numbers = {value.name: value.number for value in field.enum_type.values}
        return lambda message: numbers[message.given[name]] if name in message.given else default
    return lambda message: message.given.get(name, default)


def inner_kinds() -> dict[str, dict[str, str]]:
    """For each kind of message the fields, by their names in JSON, that hold others, and of which kind these
    are.
    """
    return {
        name: {
            field.json_name: field.message_type.name
            for field in descriptor.fields
            if field.message_type is not None
        }
        for name, descriptor in schema.DESCRIPTOR.message_types_by_name.items()
    }
