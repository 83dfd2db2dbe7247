"""Where shapes go: by rows, and by properties over random tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shapes import names, read, write

from pgshunt.routing.decide import Fixed, Plan, Refused, Split, decide
from pgshunt.routing.placement import Placement
from pgshunt.routing.reason import REASON_CODES, SENTENCES, Reason
from pgshunt.routing.shape import Kind, Shape, unknown
from pgshunt.routing.table import SHARED, Endpoint, RoutingTable, Service, Stage

ENDPOINTS = (
    Endpoint("shared", SHARED, "h", 1, "monolith", "primary"),
    Endpoint("shared/1", SHARED, "h", 2, "monolith", "replica", weight=0),
    Endpoint("auth_db", "auth_db", "h", 3, "auth", "primary"),
    Endpoint("auth_db/1", "auth_db", "h", 4, "auth", "replica"),
    Endpoint("integrity_db", "integrity_db", "h", 5, "integrity", "primary"),
)
AUTH = Service(
    "auth",
    "auth_db",
    ("public.users", "public.roles"),
    ("public.logs",),
    stage="reading",
    reads_percent=10,
    copied=("public.users", "public.roles"),
)
INTEGRITY = Service(
    "integrity",
    "integrity_db",
    ("public.logs",),
    ("public.users",),
    stage="reading",
    reads_percent=50,
    copied=("public.logs", "public.users"),
)
TABLE = RoutingTable(7, ENDPOINTS, (AUTH, INTEGRITY))
COPIED_AUTH = Split(service=0, percent=10, baseline=0, candidates=(2, 3))
COPIED_INTEGRITY = Split(service=1, percent=50, baseline=0, candidates=(4,))


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        (read("users"), COPIED_AUTH),
        (read("users roles"), COPIED_AUTH),
        (read("users", time_dependent=True), COPIED_AUTH),
        (read("logs"), COPIED_INTEGRITY),
        (read("logs users"), COPIED_INTEGRITY),
        (read("logs users roles"), Fixed(0, -1, Reason.SEVERAL_SERVICES)),
        (read("users nobodys"), Fixed(0, 0, Reason.OWNER_READ)),
        (read("nobodys"), Fixed(0, -1, Reason.UNOWNED)),
        (read(""), Fixed(0, -1, Reason.NO_TABLE)),
        (read("", local="server_state"), Fixed(0, -1, Reason.SERVER_LOCAL)),
        (read("users", local="system_column"), Fixed(0, 0, Reason.SERVER_LOCAL)),
        (read("users", locks=True), Fixed(0, 0, Reason.LOCKS)),
        (write("users"), Fixed(0, 0, Reason.OWNER_WRITE)),
        (write("users", "logs"), Fixed(0, 0, Reason.OWNER_WRITE)),
        (write("users logs"), Fixed(0, -1, Reason.OWNER_WRITE)),
        (write("nobodys"), Fixed(0, -1, Reason.UNOWNED)),
        (write("nobodys", "users"), Fixed(0, 0, Reason.OWNER_WRITE)),
        (write("", "users", volatile=True), Fixed(0, 0, Reason.VOLATILE)),
        (Shape(Kind.COPY_IN, writes=names("logs")), Fixed(0, 1, Reason.OWNER_WRITE)),
        (Shape(Kind.BEGIN), Fixed(0, -1, Reason.TRANSACTION)),
        (Shape(Kind.SAVEPOINT), Fixed(0, -1, Reason.TRANSACTION)),
        (Shape(Kind.SESSION, pins=frozenset({"listen"})), Fixed(0, -1, Reason.SESSION)),
        (Shape(Kind.EMPTY), Fixed(0, -1, Reason.NO_TABLE)),
        (unknown("unparsable"), Fixed(0, -1, Reason.UNKNOWN)),
        (unknown("too_large"), Fixed(0, -1, Reason.TOO_LARGE)),
    ],
)
def test_a_shape_goes_here(shape: Shape, plan: Plan) -> None:
    assert decide(shape, TABLE, Placement.of(TABLE)) == plan


REPLICATED = replace(TABLE, endpoints=(ENDPOINTS[0], replace(ENDPOINTS[1], weight=3), *ENDPOINTS[2:]))


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        (read("users"), replace(COPIED_AUTH, replicas=(1,))),
        (read("logs users roles"), Split(-1, 0, 0, (), (1,), reason=Reason.REPLICA)),
        (read("nobodys"), Split(-1, 0, 0, (), (1,), reason=Reason.REPLICA)),
        (read("users nobodys"), Split(0, 0, 0, (), (1,), reason=Reason.REPLICA)),
        (read(""), Fixed(0, -1, Reason.NO_TABLE)),
        (read("nobodys", locks=True), Fixed(0, -1, Reason.UNOWNED)),
        (write("nobodys"), Fixed(0, -1, Reason.UNOWNED)),
    ],
)
def test_replicas_of_the_owner_take_plain_reads_of_whatever_it_holds(shape: Shape, plan: Plan) -> None:
    assert decide(shape, REPLICATED, Placement.of(REPLICATED)) == plan


def test_a_plan_says_for_whose_writes_a_copy_must_be_fresh() -> None:
    table = replace(TABLE, services=(AUTH, replace(INTEGRITY, causality="service")))
    placement = Placement.of(table)
    assert decide(read("users"), table, placement) == COPIED_AUTH
    assert decide(read("logs"), table, placement) == replace(COPIED_INTEGRITY, after=(0, 2))
    assert decide(read("logs users"), table, placement) == replace(COPIED_INTEGRITY, after=(0, 2))


@pytest.mark.parametrize("stage", ["shared", "syncing", "shadowing"])
def test_only_stage_reading_splits(stage: Stage) -> None:
    table = RoutingTable(
        1,
        ENDPOINTS,
        (Service("auth", "auth_db", AUTH.tables, stage=stage, reads_percent=100, copied=AUTH.copied),),
    )
    assert decide(read("users"), table, Placement.of(table)) == Fixed(0, 0, Reason.OWNER_READ)


def test_a_reference_that_is_not_copied_is_not_read_there() -> None:
    table = RoutingTable(1, ENDPOINTS, (AUTH,))
    assert decide(read("users logs"), table, Placement.of(table)) == Fixed(0, 0, Reason.OWNER_READ)


def test_a_copied_reference_alone_draws_no_reads_of_its_owner() -> None:
    table = RoutingTable(
        1, ENDPOINTS, (Service("auth", "auth_db", AUTH.tables, stage="shadowing"), INTEGRITY)
    )
    assert decide(read("users"), table, Placement.of(table)) == Fixed(0, 0, Reason.OWNER_READ)
    assert decide(read("users logs"), table, Placement.of(table)) == Split(1, 50, 0, (4,))


def test_a_weight_of_zero_or_a_database_without_endpoints_splits_nothing() -> None:
    for service in (
        Service("auth", "auth_db", AUTH.tables, stage="reading", reads_percent=0, copied=AUTH.copied),
        Service("auth", "gone_db", AUTH.tables, stage="reading", reads_percent=50, copied=AUTH.copied),
        Service("auth", SHARED, AUTH.tables, stage="reading", reads_percent=50, copied=AUTH.copied),
    ):
        table = RoutingTable(1, ENDPOINTS, (service,))
        assert isinstance(decide(read("users"), table, Placement.of(table)), Fixed)


@pytest.mark.parametrize("stage", ["syncing", "shadowing", "reading"])
def test_a_moving_table_keeps_its_definition(stage: Stage) -> None:
    shape = write("users", alters=names("users"))
    moving = replace(AUTH, stage=stage)
    plan = decide(shape, replace(TABLE, services=(moving,)), Placement.of(replace(TABLE, services=(moving,))))
    assert isinstance(plan, Refused)
    assert (plan.endpoint, plan.service, plan.reason) == (0, 0, Reason.FROZEN)
    assert "public.users" in plan.message
    assert "services.auth.ddl" in plan.hint
    for free in (replace(moving, stage="shared"), replace(moving, ddl="owner")):
        table = replace(TABLE, services=(free,))
        assert decide(shape, table, Placement.of(table)) == Fixed(0, 0, Reason.OWNER_WRITE)


def test_a_reference_that_is_being_copied_keeps_its_definition() -> None:
    table = replace(TABLE, services=(AUTH, replace(INTEGRITY, stage="shared")))
    plan = decide(write("logs", alters=names("logs")), table, Placement.of(table))
    assert isinstance(plan, Refused)
    assert (plan.service, "auth is moving" in plan.message) == (1, True)


def test_reason_codes_are_stable() -> None:
    assert REASON_CODES[:4] == ("owner_write", "owner_read", "split", "baseline")
    assert [REASON_CODES[reason] for reason in Reason] == [reason.code for reason in Reason]
    assert list(SENTENCES) == list(Reason) == list(range(len(Reason)))


TABLES = st.sampled_from([f"public.t{n}" for n in range(6)])
SETS = st.frozensets(TABLES, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> RoutingTable:
    services = []
    for n in range(draw(st.integers(0, 3))):
        own = draw(SETS)
        services.append(
            Service(
                f"s{n}",
                f"db{n}",
                tuple(own),
                tuple(draw(SETS)),
                stage=draw(st.sampled_from(["shared", "syncing", "shadowing", "reading"])),
                reads_percent=draw(st.integers(0, 100)),
                copied=tuple(draw(SETS)),
                ddl=draw(st.sampled_from(["refuse", "owner", "both"])),
            )
        )
    endpoints = [Endpoint("shared", SHARED, "h", 1, "m", "primary")]
    for n in range(draw(st.integers(0, 3))):
        endpoints.append(Endpoint(f"db{n}", f"db{n}", "h", 1, "m", "primary"))
        endpoints.append(Endpoint(f"db{n}/1", f"db{n}", "h", 1, "m", "replica"))
    return RoutingTable(draw(st.integers(0, 9)), tuple(endpoints), tuple(services))


SHAPES = st.builds(
    Shape,
    kind=st.sampled_from(Kind),
    reads=SETS,
    writes=SETS | st.just(frozenset()),
    locks=st.booleans(),
    volatile=st.booleans(),
    pins=st.sampled_from([frozenset(), frozenset({"listen"})]),
    local=st.sampled_from([None, "system_column"]),
    alters=SETS,
)


@given(tables(), SHAPES)
@settings(max_examples=1500, deadline=None)
def test_a_plan_never_points_where_it_must_not(table: RoutingTable, shape: Shape) -> None:
    plan = decide(shape, table, Placement.of(table))
    moving = [service for service in table.services if service.stage != "shared" and service.ddl != "owner"]
    frozen = {
        name for service in moving for name in (*service.tables, *service.external_refs, *service.copied)
    }
    assert isinstance(plan, Refused) == bool(shape.alters & frozen and not isinstance(plan, Split))
    if isinstance(plan, Refused):
        assert plan.endpoint == 0
        return
    if isinstance(plan, Fixed):
        assert table.endpoints[plan.endpoint] == table.endpoints[0]
        assert -1 <= plan.service < len(table.services)
        return
    service = table.services[plan.service]
    assert shape.kind is Kind.READ
    assert not (shape.writes or shape.locks or shape.volatile or shape.pins or shape.local)
    assert (service.stage, plan.baseline) == ("reading", 0)
    assert 0 < plan.percent == service.reads_percent <= 100
    assert shape.reads and shape.reads <= set(service.copied)
    assert plan.candidates
    assert {table.endpoints[index].database for index in plan.candidates} == {service.database}


@given(tables())
def test_a_table_survives_its_journey(table: RoutingTable) -> None:
    assert RoutingTable.from_dict(table.to_dict()) == table
