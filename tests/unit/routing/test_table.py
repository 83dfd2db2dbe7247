"""Values that travel as JSON come back the same, and placement says what the table says."""

from __future__ import annotations

import json

from pgshunt.routing.placement import Placement
from pgshunt.routing.table import SHARED, Catalogue, Endpoint, RoutingTable, Service

TABLE = RoutingTable(
    3,
    (
        Endpoint("shared", SHARED, "10.0.0.1", 5432, "monolith", "primary"),
        Endpoint("auth_db", "auth_db", "10.0.0.2", 5432, "auth", "primary"),
        Endpoint("auth_db/1", "auth_db", "10.0.0.3", 5432, "auth", "replica"),
    ),
    (
        Service(
            "auth",
            "auth_db",
            ("public.users",),
            ("public.logs",),
            ("auth",),
            "reading",
            10,
            "validate",
            12.5,
            ("public.users",),
        ),
    ),
    lag_ms_max=500,
)


def test_a_routing_table_survives_json() -> None:
    assert RoutingTable.from_dict(json.loads(json.dumps(TABLE.to_dict()))) == TABLE


def test_a_catalogue_survives_json() -> None:
    catalogue = Catalogue(
        *(4, {"public.users": "r"}, frozenset({"lower", "abs"}), "public"),
        *(frozenset({"int4", "text"}), frozenset({"public.users"})),
    )
    assert Catalogue.from_dict(json.loads(json.dumps(catalogue.to_dict()))) == catalogue


def test_placement_owner_is_the_shared_database() -> None:
    placement = Placement.of(TABLE)
    assert placement.owner("public.users") == placement.owner("public.nobodys") == SHARED
    assert dict(placement.services) == {"public.users": 0}
    assert dict(placement.owner_endpoints) == {SHARED: 0, "auth_db": 1}


def test_placement_copies_are_what_the_lane_copied() -> None:
    (copies,) = Placement.of(TABLE).copies
    assert (copies.service, copies.percent, copies.tables, copies.endpoints) == (
        0,
        10,
        {"public.users"},
        (1, 2),
    )
