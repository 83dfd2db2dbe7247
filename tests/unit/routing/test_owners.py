"""Where shapes go once services have moved: by rows, and by properties over random worlds.

A world is a model that knows nothing of plans: which database has which table, since when it lacks what, and
what each session has written. A plan must never lead where the model says that the answer would be wrong.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shapes import names, read, write

from pgshunt.routing.classify import classify_bytes
from pgshunt.routing.decide import (
    Fixed,
    Place,
    Plan,
    PlanKind,
    Proven,
    Refused,
    Split,
    decide,
    is_tied,
    needs,
)
from pgshunt.routing.placement import Placement, placed
from pgshunt.routing.reason import Reason
from pgshunt.routing.shape import Kind, Shape, executing, unknown
from pgshunt.routing.table import SHARED, Catalogue, Endpoint, RoutingTable, Service

ENDPOINTS = (
    Endpoint("shared", SHARED, "h", 1, "monolith", "primary"),
    Endpoint("auth_db", "auth_db", "h", 2, "auth", "primary"),
    Endpoint("auth_db/1", "auth_db", "h", 3, "auth", "replica"),
    Endpoint("shop_db", "shop_db", "h", 4, "shop", "primary"),
)
AUTH = Service(
    "auth",
    "auth_db",
    ("public.users", "public.roles"),
    ("public.logs",),
    stage="switched",
    copied=("public.users", "public.roles", "public.logs"),
)
SHOP = Service(
    "shop",
    "shop_db",
    ("public.orders",),
    ("public.users",),
    stage="completed",
    copied=("public.orders", "public.users"),
)
LOGS = Service("logging", "logs_db", ("public.logs",))
TABLE = RoutingTable(7, ENDPOINTS, (AUTH, SHOP, LOGS))


def planned(shape: Shape, table: RoutingTable = TABLE) -> Plan:
    return decide(shape, table, Placement.of(table))


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        (read("users"), Split(0, 0, 1, (), (2,), reason=Reason.REPLICA)),
        (read("orders"), Fixed(3, 1, Reason.OWNER_READ)),
        (read("nobodys"), Fixed(0, -1, Reason.UNOWNED)),
        (read(""), Fixed(0, -1, Reason.NO_TABLE)),
        (read("users", locks=True), Fixed(1, 0, Reason.LOCKS)),
        (write("users"), Fixed(1, 0, Reason.OWNER_WRITE)),
        (write("users roles"), Fixed(1, 0, Reason.OWNER_WRITE)),
        (write("logs"), Fixed(0, 2, Reason.OWNER_WRITE)),
        (read("users", volatile=True), Fixed(1, 0, Reason.VOLATILE)),
        (read("", volatile=True), Fixed(0, -1, Reason.VOLATILE)),
        (unknown("unparsable"), Fixed(0, -1, Reason.UNKNOWN)),
        (unknown("unparsable", unread=b"SELEC users_1 FROM user"), Fixed(0, -1, Reason.UNKNOWN)),
        (Shape(Kind.BEGIN), Fixed(0, -1, Reason.TRANSACTION)),
        (Shape(Kind.SESSION, pins=frozenset({"listen"}), meets=True), Fixed(0, -1, Reason.SESSION)),
        (Shape(Kind.READ, names("users") | {"pg_catalog.pg_class"}, local="system_catalogue"),
         Fixed(1, 0, Reason.SERVER_LOCAL)),
        # A temporary table is where its session has made it.
        (Shape(Kind.WRITE, names("users"), frozenset({"temporary"})), Fixed(1, 0, Reason.OWNER_WRITE)),
    ],
)  # fmt: skip
def test_what_has_one_owner_goes_there(shape: Shape, plan: Plan) -> None:
    assert planned(shape) == plan


@pytest.mark.parametrize(
    ("shape", "endpoints"),
    [
        (read("users logs"), (1, 0)),  # the reverse lane's copy, or the external_ref's
        (read("users roles logs"), (1, 0)),  # where more of them are owned goes first
        (read("users nobodys"), (0,)),
        (read("users orders"), (3,)),
        (write("logs", "users"), (0,)),
        (write("users", "logs"), (1,)),
        (write("orders", "users"), (3,)),
        (read("users logs", volatile=True), (1, 0)),
    ],
)
def test_tables_of_several_owners_are_used_where_all_of_them_are(
    shape: Shape, endpoints: tuple[int, ...]
) -> None:
    plan = planned(shape)
    assert isinstance(plan, Proven)
    assert tuple(place.endpoint for place in plan.places) == endpoints
    assert plan.reason is Reason.TOGETHER


def test_what_others_have_written_counts_where_it_is_a_copy() -> None:
    table = replace(TABLE, services=(replace(AUTH, causality="service"), SHOP, LOGS))
    plan = planned(read("users logs"), table)
    assert isinstance(plan, Proven)
    assert plan.places == (Place(1, ()), Place(0, (0, 1)))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (write("users logs"), ("public.logs (owned by logging, on shared)", "one database")),
        (write("users", "nobodys"), ("public.nobodys (nobody's, on shared)", "auth.external_refs")),
        (write("users", "orders"), ("public.orders (owned by shop, on shop_db)", "auth.external_refs")),
        (read("orders nobodys"), ("public.orders (owned by shop, on shop_db)", "shop.external_refs")),
        (read("orders logs users"), ("public.logs", "transaction of its own")),
        (read("users logs", locks=True), ("different databases", "transaction of its own")),
    ],
)
def test_a_refusal_names_tables_owners_databases_and_the_ways_out(
    shape: Shape, told: tuple[str, str]
) -> None:
    plan = planned(shape)
    assert isinstance(plan, Refused)
    assert (plan.endpoint, plan.reason) == (0, Reason.SEVERAL_OWNERS)
    assert told[0] in plan.message
    assert told[1] in plan.hint


def test_who_meets_others_meets_them_at_the_shared_database() -> None:
    plan = planned(read("users", volatile=True, meets=True))
    assert isinstance(plan, Refused)
    assert plan.reason is Reason.SHARED_ONLY
    assert planned(read("nobodys", volatile=True, meets=True)) == Fixed(0, -1, Reason.VOLATILE)


def test_a_name_that_may_mean_a_table_that_has_moved_is_not_guessed_at() -> None:
    plan = planned(Shape(Kind.READ, frozenset({"users"})))
    assert isinstance(plan, Refused)
    assert plan.reason is Reason.OBSCURE
    assert "public.users" in plan.message
    assert planned(Shape(Kind.READ, frozenset({"temporary"}))) == Fixed(0, -1, Reason.UNOWNED)


def test_what_may_use_any_table_is_refused_once_some_have_moved() -> None:
    for shape in (read("nobodys", anywhere=True), unknown("too_large"), read("users", anywhere=True)):
        plan = planned(shape)
        assert isinstance(plan, Refused)
        assert plan.reason is Reason.ANYWHERE
        assert planned(shape, replace(TABLE, services=(LOGS,))).kind is not PlanKind.REFUSED


@pytest.mark.parametrize(
    "sql",
    [
        b"SELECT * FROM users WHERE id=1AND name='x'",
        b"INSERT INTO public.USERS (system_user) VALUES (1)",
        b'SELECT json_exists(a) FROM "users"',
        b"/* pgshunt: primary */ SELECT FROM users)",
        b'DELETE FROM users WHERE note = \'12"\' AND 1=1OR "a"',
    ],
)
def test_what_cannot_be_parsed_is_refused_if_it_names_what_has_moved(sql: bytes) -> None:
    shape = classify_bytes(sql, ("public",), Catalogue())
    plan = planned(shape)
    assert shape.reason == "unparsable"
    assert isinstance(plan, Refused)
    assert (plan.reason, "may use public.users" in plan.message) == (Reason.ANYWHERE, True)
    assert planned(executing(Shape(Kind.WRITE), [shape])).kind is PlanKind.REFUSED
    assert planned(shape, replace(TABLE, services=(SHOP, LOGS))).kind is not PlanKind.REFUSED


def test_a_view_is_where_its_tables_are() -> None:
    placement = Placement.of(TABLE, views=names("of_users of_orders of_logs users"))

    def at(shape: Shape) -> tuple[int, ...]:
        plan = decide(shape, TABLE, placement)
        assert isinstance(plan, Proven)
        return tuple(place.endpoint for place in plan.places)

    assert at(read("of_orders orders")) == (3,)
    assert at(read("of_users users")) == (0, 1), "the shared database is known to have the view"
    assert at(write("of_users users")) == (1,)
    assert at(read("of_orders orders users")) == (3,)
    assert decide(read("of_logs"), TABLE, placement) == Fixed(0, -1, Reason.UNOWNED)
    assert decide(read("of_logs logs"), TABLE, placement) == Fixed(0, 2, Reason.OWNER_READ)
    refused = decide(read("of_orders orders nobodys"), TABLE, placement)
    assert isinstance(refused, Refused)
    assert not placement.has("auth_db", names("of_orders"))
    assert placement.owner("public.users") == "auth_db", "a table that a view has taken the place of"


def test_what_goes_with_a_table_goes_where_it_goes() -> None:
    parents = {"public.users_id_seq": "public.users", "public.users_1": "public.users_0"}
    parents |= {"public.users_0": "public.users", "public.round": "public.round", "public.x": "public.y"}
    placement = Placement.of(TABLE, parents)
    assert {placement.owner(name) for name in names("users_id_seq users_0 users_1")} == {"auth_db"}
    assert {placement.owner(name) for name in names("round x y")} == {SHARED}
    shape = write("users_id_seq", volatile=True)
    assert decide(shape, TABLE, placement) == Fixed(1, 0, Reason.OWNER_WRITE)
    assert not placement.has(SHARED, names("users_id_seq")), "no lane carries a sequence"


def test_definitions_change_at_the_owner_when_no_lane_carries_them() -> None:
    assert planned(write("orders", alters=names("orders"))) == Fixed(3, 1, Reason.OWNER_WRITE)
    carried = planned(write("users", alters=names("users")))
    assert isinstance(carried, Refused)
    assert carried.reason is Reason.FROZEN
    free = replace(TABLE, services=(replace(AUTH, ddl="owner"), replace(SHOP, ddl="owner"), LOGS))
    assert planned(write("users", alters=names("users")), free) == Fixed(1, 0, Reason.OWNER_WRITE)
    referred = planned(
        write("users", alters=names("users")), replace(free, services=(free.services[0], SHOP))
    )
    assert isinstance(referred, Refused)
    assert "shop keeps a copy of it in shop_db" in referred.message


def test_a_service_cannot_have_moved_to_nowhere() -> None:
    with pytest.raises(ValueError, match="gone_db, which has no primary"):
        Placement.of(replace(TABLE, services=(replace(AUTH, database="gone_db"),)))


def test_a_table_that_the_shared_database_has_no_more_is_known() -> None:
    catalogue = Catalogue(relations={"public.logs": "r", "public.users": "v"})
    assert catalogue.holding(TABLE).relations == {
        "public.logs": "r", "public.users": "v", "public.roles": "r", "public.orders": "r"
    }  # fmt: skip
    assert catalogue.holding(replace(TABLE, services=(LOGS,))) is catalogue


# --- the model ----------------------------------------------------------------------------------------

TABLES = tuple(f"public.t{number}" for number in range(6))
DATABASES = ("a", "b", "c")
SETS = st.frozensets(st.sampled_from((*TABLES, "temporary", "pg_catalog.pg_class")), max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> RoutingTable:
    """Services of any stage, with databases of their own or a common one; a table has one owner."""
    owners = {name: draw(st.integers(0, 3)) for name in TABLES}
    services = []
    for number in range(draw(st.integers(1, 3))):
        own = tuple(name for name in TABLES if owners[name] == number)
        refs = tuple(sorted(draw(SETS) & set(TABLES) - set(own)))
        stage = draw(st.sampled_from(["shared", "syncing", "shadowing", "reading", "switched", "completed"]))
        services.append(
            Service(
                f"s{number}",
                draw(st.sampled_from(DATABASES)),
                own,
                refs,
                stage=stage,
                reads_percent=draw(st.sampled_from([0, 1, 50, 100])),
                copied=tuple(name for name in (*own, *refs) if draw(st.integers(0, 4))),
                causality=draw(st.sampled_from(["session", "service"])),
                ddl=draw(st.sampled_from(["refuse", "owner", "both"])),
            )
        )
    endpoints = [Endpoint("shared", SHARED, "h", 1, "m", "primary")]
    for database in (SHARED, *DATABASES):
        if database != SHARED:
            endpoints.append(Endpoint(database, database, "h", 1, "m", "primary"))
        if draw(st.booleans()):
            weight = draw(st.integers(0, 2))
            endpoints.append(Endpoint(f"{database}/1", database, "h", 1, "m", "replica", weight=weight))
    return RoutingTable(1, tuple(endpoints), tuple(services))


SHAPES = st.builds(
    Shape,
    kind=st.sampled_from([Kind.READ, Kind.READ, Kind.WRITE, Kind.COPY_IN, Kind.SESSION, Kind.UNKNOWN]),
    reads=SETS,
    writes=st.just(frozenset()) | SETS,
    locks=st.booleans(),
    volatile=st.booleans(),
    local=st.sampled_from([None, None, "hint"]),
    alters=st.just(frozenset()) | SETS,
    meets=st.sampled_from([False, False, False, True]),
    anywhere=st.sampled_from([False, False, False, False, True]),
).map(
    lambda shape: replace(
        shape,
        kind=Kind.WRITE if shape.alters and shape.kind is Kind.READ else shape.kind,
        volatile=shape.volatile or shape.meets,
    )
)
"""What changes a definition is no read, and neither is what meets other sessions."""


class World:
    """The databases as they really are: who owns a table, where it is kept in step, and up to when."""

    def __init__(self, table: RoutingTable, seed: int) -> None:
        self._table = table
        self.random = random.Random(seed)
        self.now = 1
        self.fresh = [0] * len(table.endpoints)
        self.written: list[tuple[str, int, int]] = []
        """(table, when, by which session)"""
        self.owner = dict.fromkeys(TABLES, SHARED)
        self.copied: set[tuple[str, str]] = set()
        for service in table.services:
            if service.stage in ("switched", "completed"):
                self.owner |= dict.fromkeys(service.tables, service.database)
        for service in table.services:
            for name in service.copied:
                if service.stage in ("reading", "switched", "completed"):
                    self.copied.add((service.database, name))
                if service.stage == "switched" and name in service.tables:
                    self.copied.add((SHARED, name))

    def holds(self, endpoint: Endpoint, name: str) -> bool:
        return self.owner[name] == endpoint.database or (endpoint.database, name) in self.copied

    def pass_time(self) -> None:
        """Copies catch up, each as far as it will."""
        self.now += self.random.randrange(1, 4)
        for index in range(len(self.fresh)):
            if self.random.randrange(2):
                self.fresh[index] = self.random.randrange(self.fresh[index], self.now)

    def unseen(self, index: int, names: frozenset[str], session: int) -> list[str]:
        """What a read there lacks although it must be there."""
        endpoint = self._table.endpoints[index]
        services = {name: service for service in reversed(self._table.services) for name in service.tables}
        lacking = []
        for name, when, by in self.written:
            is_current = self.owner[name] == endpoint.database and endpoint.role == "primary"
            of_all = name in services and services[name].causality == "service"
            if name in names and not is_current and self.fresh[index] <= when and (by == session or of_all):
                lacking.append(name)
        return lacking


class Client:
    """What the data plane knows of one session: when it wrote last, and last elsewhere."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.last = self.earlier = 0
        self.at = SHARED

    def wrote(self, database: str, when: int) -> None:
        if database != self.at:
            self.at, self.earlier = database, self.last
        self.last = when

    def elsewhere(self, database: str) -> int:
        return self.earlier if self.at == database else self.last


def choices(
    plan: Plan, table: RoutingTable, world: World, client: Client, last_of: dict[int, int]
) -> list[int]:
    """All endpoints the data plane (relay/owners.pxi, relay/routes.pxi) may choose by this plan, now."""

    def latest(after: tuple[int, ...]) -> int:
        return max((last_of.get(place, 0) for place in after), default=0)

    if isinstance(plan, Refused):
        return []
    if isinstance(plan, Fixed):
        return [plan.endpoint]
    if isinstance(plan, Split):
        must = max(client.last, latest(plan.after))
        copies = [index for index in (*plan.candidates, *plan.replicas) if world.fresh[index] > must]
        return [plan.baseline, *copies]
    return [
        place.endpoint
        for place in plan.places
        if world.fresh[place.endpoint]
        > max(client.elsewhere(table.endpoints[place.endpoint].database), latest(place.after))
    ]


@given(tables(), st.lists(SHAPES, min_size=1, max_size=8), st.integers(0, 1000))
@settings(max_examples=1500, deadline=None)
def test_no_route_leads_to_a_wrong_answer(table: RoutingTable, shapes: list[Shape], seed: int) -> None:
    world = World(table, seed)
    placement = Placement.of(table)
    clients = [Client(0), Client(1)]
    last_of: dict[int, int] = {}
    for shape in [*shapes, *shapes]:
        client = world.random.choice(clients)
        world.pass_time()
        plan = decide(shape, table, placement)
        used = frozenset((shape.tables | shape.alters) & set(TABLES))
        writes = frozenset((used if shape.locks else shape.writes | shape.alters) & set(TABLES))
        for index in choices(plan, table, world, client, last_of):
            endpoint = table.endpoints[index]
            assert all(world.holds(endpoint, name) for name in used)
            assert all(world.owner[name] == endpoint.database for name in writes)
            assert endpoint.role == "primary" or not (shape.writing or shape.locks)
            assert world.unseen(index, used, client.number) == []
            assert endpoint.database == SHARED or not shape.meets
            if not used:
                assert endpoint.database == SHARED
        if writes and (chosen := choices(plan, table, world, client, last_of)):
            world.now += 1
            client.wrote(table.endpoints[chosen[0]].database, world.now)
            for name in writes:
                world.written.append((name, world.now, client.number))
            owners = {placement.services[name] for name in writes if name in placement.services}
            last_of[owners.pop() + 1 if len(owners) == 1 else 0] = world.now


@given(tables(), SHAPES)
@settings(max_examples=1000, deadline=None)
def test_what_may_run_somewhere_is_not_refused_and_the_other_way_round(
    table: RoutingTable, shape: Shape
) -> None:
    """`needs` says of each database what `decide` says of all; and what is tied nowhere has no tables."""
    placement = Placement.of(table)
    plan = decide(shape, table, placement)
    databases = {endpoint.database for endpoint in table.endpoints}
    possible = {name for name in databases if needs(shape, name, table, placement) is not None}
    if isinstance(plan, Proven):
        assert {table.endpoints[place.endpoint].database for place in plan.places} == possible
    elif isinstance(plan, Refused):
        assert plan.reason in (Reason.FROZEN, Reason.SEVERAL_OWNERS, Reason.SHARED_ONLY, Reason.ANYWHERE)
        assert plan.reason is not Reason.SEVERAL_OWNERS or not possible
        assert plan.message
        assert plan.hint
    elif placed(shape.tables | shape.alters):
        at = plan.baseline if isinstance(plan, Split) else plan.endpoint
        assert table.endpoints[at].database in possible
    if not is_tied(shape, placement):
        assert not placement.parted or not placed(shape.tables | shape.alters)


@given(tables())
def test_owners_change_with_the_stage_and_nothing_else(table: RoutingTable) -> None:
    """Through all stages a table has one owner, and it changes once."""
    name, service = TABLES[0], replace(table.services[0], tables=(TABLES[0],))
    stages = ("shared", "syncing", "shadowing", "reading", "switched", "completed")
    owners = [
        Placement.of(replace(table, services=(replace(service, stage=stage),))).owner(name)
        for stage in stages
    ]
    assert owners == [SHARED] * 4 + [service.database] * 2
    assert sum(before != after for before, after in pairwise(owners)) == 1
