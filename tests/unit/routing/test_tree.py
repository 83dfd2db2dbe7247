"""The tree that is read out of JSON is the one libpg_query gives as protobuf: of the same texts, every field
of every message is equal.
"""

from __future__ import annotations

from typing import Any

import postgast
import pytest
from support.texts import SQL

from pgshunt.routing.grammar import parse


@pytest.mark.parametrize("sql", SQL)
def test_every_field_is_that_of_protobuf(sql: str) -> None:
    assert compared(parse(sql.encode()), postgast.parse(sql)) > 10


def compared(message: Any, expected: Any) -> int:
    """The number of fields that were found equal."""
    assert type(message).__name__ == expected.DESCRIPTOR.name
    count = 0
    for field in expected.DESCRIPTOR.fields:
        value, expected_value = getattr(message, field.name), getattr(expected, field.name)
        if field.name == "location" and isinstance(expected_value, int):
            continue  # is left out
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
    assert (absent.HasField("alias"), absent.node) == (False, ("RangeVar", {}))
