"""Which shapes touch tables of several owners, and what people are shown of their texts."""

from __future__ import annotations

import pytest

from pgshunt.routing._shapes import Entry
from pgshunt.routing.crossing import (
    NOBODY,
    NOTHING,
    SEVERAL,
    TEXT_LENGTH_MAX,
    crosses,
    shown_text,
    writer,
)
from pgshunt.routing.placement import Placement
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Endpoint, RoutingTable, Service

TABLE = RoutingTable(
    1,
    (Endpoint("shared", "shared", "h", 1, "monolith", "primary"),),
    (Service("auth", "auth_db", ("users", "tokens")), Service("shop", "shop_db", ("orders",))),
)
PLACEMENT = Placement.of(TABLE)
RELATIONS = dict.fromkeys(("users", "tokens", "orders", "rates", "countries"), "r") | {
    "logins": "v",
    "users_id_seq": "S",
    "totals": "m",
}


def shape(reads: str = "", writes: str = "", *, locks: bool = False) -> Shape:
    return Shape(Kind.READ, frozenset(reads.split()), frozenset(writes.split()), locks=locks)


@pytest.mark.parametrize(
    ("shape", "is_crossing", "owner"),
    [
        (shape("users tokens"), False, NOTHING),
        (shape("users orders"), True, NOTHING),
        (shape("rates countries"), False, NOTHING),
        (shape("users rates"), True, NOTHING),
        (shape("users pg_temp_table pg_catalog.pg_class"), False, NOTHING),
        (shape("users logins", "users_id_seq"), False, NOTHING),
        (shape("users totals"), True, NOTHING),
        (shape("orders", "users"), True, 0),
        (shape("", "orders"), False, 1),
        (shape("", "rates"), False, NOBODY),
        (shape("", "rates orders"), True, SEVERAL),
        (shape("users orders", locks=True), True, SEVERAL),
        (shape("", "unknown"), False, NOTHING),
        (shape(), False, NOTHING),
    ],
)
def test_owners_are_services_or_nobody(shape: Shape, is_crossing: bool, owner: int) -> None:
    assert crosses(shape, PLACEMENT, RELATIONS) is is_crossing
    assert writer(shape, PLACEMENT, RELATIONS) == owner


def test_the_hot_path_begins_with_nothing_written() -> None:
    entry = Entry(shape("users"))
    assert (entry.crosses, entry.writer, entry.key) == (False, NOTHING, None)


def test_a_text_without_a_key_is_not_shown_and_a_long_one_is_cut() -> None:
    assert shown_text(None) == ""
    assert shown_text(b"select a \x01 b") == "select a ? b"
    assert len(shown_text(b"x" * 999)) == TEXT_LENGTH_MAX
    assert shown_text("é".encode() * 3 + b"\xc3") == "ééé\N{REPLACEMENT CHARACTER}"
