"""What breaks behind a switch, and the remedy, by rows; and that traffic decides the order."""

from __future__ import annotations

from typing import Any

import pytest

from pgshunt.migration.catalogue import Table
from pgshunt.migration.couplings import Couplings, Dependent, ForeignKey, Trigger
from pgshunt.migration.observed import Observed
from pgshunt.migration.readiness import NOBODY, Finding, Readiness, assess
from pgshunt.routing.effects import INSERT, OPAQUE, UPDATE, Code, Effects
from pgshunt.routing.table import Catalogue, Service

ORDERS = Service("orders", "orders_db", ("public.orders", "public.lines"), ("public.rates",), users=("shop",))
USERS = Service("users", "users_db", ("public.users",), ("public.lines",), users=("auth",))
GOOD = Table("", "r", "d", "p", False, True, False, (), (), 8192)
EMPTY = Catalogue()
APART = "or do it one database after the other, each in a transaction of its own"
ALL = Couplings({"public.orders": GOOD, "public.lines": GOOD})


def seen(
    reads: str = "", writes: str = "", *, user: str = "shop", kind: str = "statement", calls: int = 1
) -> Any:
    def qualified(names: str) -> list[str]:
        return [f"public.{name}" for name in names.split()]

    return [kind, f"{reads}>{writes}", qualified(reads), qualified(writes), user, "", calls]


def report(*rows: Any, couplings: Couplings = ALL, catalogue: Catalogue = EMPTY) -> Readiness:
    observed = Observed()
    observed.take(rows, 0, 1_800_000_000.0)
    return assess("orders", (ORDERS, USERS), observed, couplings, catalogue)


def found(readiness: Readiness, kind: str) -> Finding:
    (finding,) = [finding for finding in readiness.findings if finding.kind == kind]
    return finding


@pytest.mark.parametrize(
    ("row", "others", "remedies", "remedy"),
    [
        (
            seen("orders users"),
            ("users",),
            ("external_ref",),
            "add external_refs: [users] to orders",
        ),
        (
            seen("orders users stock"),
            ("users", NOBODY),
            ("external_ref",),
            "add external_refs: [stock, users] to orders",
        ),
        (
            seen("users", "orders"),
            ("users",),
            ("external_ref",),
            "add external_refs: [users] to orders",
        ),
        (
            seen("orders users", user="auth"),
            ("users",),
            ("external_ref", "move_together"),
            "add external_refs: [orders] to users, or move it together with users",
        ),
        (
            seen("orders", "users", user="auth"),
            ("users",),
            ("external_ref", "move_together"),
            "add external_refs: [orders] to users, or move it together with users",
        ),
        (
            seen("orders", "stock", user="jobs"),
            (NOBODY,),
            ("move_together", "own_copy"),
            "give stock to orders, or keep the copy of orders",
        ),
        (
            seen("", "orders users"),
            ("users",),
            ("move_together", "apart"),
            f"move it together with users; {APART}",
        ),
        (
            seen("", "orders stock users", kind="transaction"),
            ("users", NOBODY),
            ("move_together", "apart"),
            "move it together with users and give stock to orders, if nobody else writes it; " + APART,
        ),
    ],
)
def test_what_was_seen_has_its_remedy(
    row: Any, others: tuple[str, ...], remedies: tuple[str, ...], remedy: str
) -> None:
    (finding,) = report(row).findings
    assert (finding.others, finding.remedies, finding.remedy) == (others, remedies, remedy)
    assert finding.callers == (((row[4], ""), 1.0),)


@pytest.mark.parametrize(
    "row",
    [
        seen("orders rates"),
        seen("rates", "orders"),
        seen("lines users", user="auth"),
    ],
)
def test_what_external_refs_cover_is_fine(row: Any) -> None:
    readiness = report(row)
    assert readiness.findings == ()
    assert "external_refs cover 1 of the statements over several services' tables" in readiness.fine


def test_what_is_about_others_or_no_longer_crosses_is_left_out() -> None:
    assert report(seen("users stock"), seen("orders lines"), seen("", "orders lines")).findings == ()


def test_traffic_decides_the_order_and_what_has_none_stands_behind() -> None:
    key = ForeignKey("lines_fkey", "public.lines", "public.users")
    readiness = report(
        seen("orders users", calls=5),
        seen("", "orders users", calls=70),
        seen("lines stock", calls=40),
        couplings=Couplings(ALL.tables, (key,)),
    )
    assert [finding.calls_per_minute for finding in readiness.findings] == [70, 40, 5, 0]


def test_foreign_keys_that_leave_or_enter_are_to_be_dropped() -> None:
    keys = (
        ForeignKey("inside", "public.lines", "public.orders"),
        ForeignKey("out", "public.orders", "public.users"),
        ForeignKey("covered", "public.orders", "public.rates"),
        ForeignKey("enters", "public.users", "public.orders"),
    )
    readiness = report(couplings=Couplings(ALL.tables, keys))
    out, covered, enters = readiness.findings
    assert "external_refs: [users]" in out.remedy and "together with users" in out.remedy
    assert "it checks against a copy" in covered.breaks and "external_refs" not in covered.remedy
    assert enters.remedy.startswith("ALTER TABLE users DROP CONSTRAINT enters before the switch")
    assert "1 foreign key stays within the service" in readiness.fine


def test_what_stands_on_tables_of_several_owners_is_found() -> None:
    couplings = Couplings(
        tables={
            "public.orders": GOOD,
            "public.lines": Table("", "r", "d", "p", False, False, False, (), (), 0),
        },
        dependents=(
            Dependent("view", "public.mine", ("public.lines", "public.orders")),
            Dependent("materialized view", "public.both", ("public.orders", "public.users")),
            Dependent("function", "public.rated", ("public.orders", "public.rates")),
        ),
        sequences={"public.numbers": ("public.orders", "public.users"), "public.own": ("public.orders",)},
        publications={"reports": ("public.orders",)},
    )
    catalogue = Catalogue(own_types=frozenset({"public.orders", "public.users"}))
    readiness = report(couplings=couplings, catalogue=catalogue)
    assert [finding.kind for finding in readiness.findings] == [
        "materialized_view",
        "function",
        "sequence",
        "publication",
        "table",
        "type",
    ]
    assert "external_refs: [users]" in found(readiness, "materialized_view").remedy
    assert found(readiness, "function").remedy.startswith("make it in the service's own database")
    assert found(readiness, "sequence").remedy == "give orders a sequence of its own first"
    assert found(readiness, "table").tables == ("public.lines",)


def test_a_table_that_is_not_there_is_told() -> None:
    readiness = report(couplings=Couplings({"public.orders": GOOD}))
    assert found(readiness, "table").what == "public.lines"


@pytest.mark.parametrize(
    ("effects", "others"),
    [
        (Effects(tables={"public.users": UPDATE}), ("users",)),
        (Effects(calls=frozenset({"public.deeper"})), (NOBODY,)),
        (Effects(tables={"public.lines": UPDATE}), None),
        (OPAQUE, ()),
    ],
)
def test_a_trigger_is_judged_by_what_it_touches(effects: Effects, others: tuple[str, ...] | None) -> None:
    catalogue = Catalogue(
        relations=dict.fromkeys(("public.orders", "public.lines", "public.users", "public.stock"), "r"),
        code=Code(
            functions={"public.deeper": Effects(tables={"public.stock": INSERT})},
            reactions={"public.orders": {INSERT: effects}},
        ),
    )
    couplings = Couplings(ALL.tables, triggers=(Trigger("touched", "public.orders", "public.touch"),))
    findings = report(couplings=couplings, catalogue=catalogue).findings
    if others is None:
        assert findings == ()
    else:
        (finding,) = findings
        assert (finding.others, finding.only_look) == (others, others == ())
        assert finding.what == "on public.orders: touched (public.touch)"


def test_code_that_meets_others_or_cannot_be_read_is_told() -> None:
    catalogue = Catalogue(
        relations=dict.fromkeys(("public.orders", "public.users"), "r"),
        code=Code(
            functions={
                "public.told": Effects(meets=True, tables={"public.orders": UPDATE}),
                "public.tells": Effects(calls=frozenset({"told"})),
                "public.notifies": Effects(meets=True, volatile=True),
                "public.others": Effects(meets=True, tables={"public.users": UPDATE}),
                "public.fired": Effects(meets=True, anywhere=True),
                "public.plain": Effects(tables={"public.orders": UPDATE}),
                "public.opaque": OPAQUE,
                "ext.opaque": OPAQUE,
            }
        ),
    )
    couplings = Couplings(ALL.tables, triggers=(Trigger("fires", "public.orders", "public.fired"),))
    readiness = report(couplings=couplings, catalogue=catalogue)
    findings = {finding.what: finding for finding in readiness.findings if finding.kind == "function"}
    assert {what: finding.only_look for what, finding in findings.items()} == {
        "public.told": False,
        "public.tells": False,
        "public.fired": False,
        "public.notifies": True,
        "public.others": True,
        "ext.opaque, public.opaque": True,
    }
    assert "calls of it are refused" in findings["public.tells"].breaks
    assert findings["public.tells"].tables == ("public.orders",)
    assert "sessions LISTEN at the shared one" in findings["public.fired"].breaks
