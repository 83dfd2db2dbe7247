"""Services are proposed by schemas, rights, names and foreign keys, and what stands alone is left alone."""

from __future__ import annotations

from pgshunt.migration.propose import Proposed, propose
from pgshunt.migration.survey import Name, Reference, Survey


def names(*tables: str, schema: str = "public") -> tuple[Name, ...]:
    return tuple(Name(schema, table) for table in tables)


def reference(text: str, *, required: bool = True, owned: bool = False) -> Reference:
    """ "child > parent" in `public`."""
    child, parent = names(*text.split(" > "))
    return Reference(child, parent, required, owned)


def survey(
    tables: tuple[Name, ...], *references: Reference, writers: dict[Name, tuple[str, ...]] | None = None
) -> Survey:
    return Survey(tables, frozenset(tables), references, writers or {}, 100)


def groups(found: Survey) -> dict[str, list[str]]:
    return {service.name: [name.table for name in service.tables] for service in propose(found).services}


def test_a_schema_is_a_service_even_with_one_table() -> None:
    tables = (*names("invoices", schema="billing"), *names("a", "b"))
    assert groups(survey(tables)) == {"billing": ["invoices"]}


def test_when_all_is_in_one_schema_it_says_nothing() -> None:
    assert groups(survey(names("a", "b", schema="app"))) == {}


def test_tables_that_begin_with_the_same_word_belong_together_whatever_they_refer_to() -> None:
    found = survey(
        names("order_items", "orders", "policies", "policy_rules", "stock_items", "stock_moves", "tax"),
        reference("stock_moves > orders"),
    )
    assert groups(found) == {
        "orders": ["order_items", "orders"],
        "policies": ["policies", "policy_rules"],
        "stock": ["stock_items", "stock_moves"],
    }
    assert propose(found).unowned == names("tax")


def test_a_table_on_which_none_depends_belongs_to_the_rarer_of_those_it_must_refer_to() -> None:
    found = survey(
        names("decisions", "ledger", "notes", "people", "votes"),
        reference("votes > people"),
        reference("votes > decisions"),
        reference("decisions > people"),
        reference("ledger > people"),
        reference("notes > ledger", required=False),
        reference("notes > people"),
    )
    assert groups(found) == {"decisions": ["decisions", "votes"], "people": ["ledger", "notes", "people"]}


def test_rows_that_are_deleted_with_others_belong_to_them_even_if_something_depends_on_them() -> None:
    found = survey(
        names("baskets", "lines", "lots"),
        reference("lines > baskets", owned=True),
        reference("lots > lines"),
    )
    assert groups(found) == {"baskets": ["baskets", "lines", "lots"]}


def test_tables_that_own_each_other_in_a_circle_end() -> None:
    found = survey(names("a", "b"), reference("a > b", owned=True), reference("b > a", owned=True))
    assert sum(map(len, groups(found).values())) + len(propose(found).unowned) == 2


def test_what_only_one_role_may_write_is_its_own_unless_there_is_one_role_for_all() -> None:
    a, b, c, d = tables = names("a", "b", "c", "d")
    apart = {a: ("shop",), b: ("shop",), c: ("crm",), d: ("crm", "shop")}
    assert groups(survey(tables, writers=apart)) == {"shop": ["a", "b"]}
    assert propose(survey(tables, writers=apart)).services[0].why == "only shop may write them"
    assert groups(survey(tables, writers=dict.fromkeys(tables, ("app",)))) == {}


def test_tables_of_others_that_foreign_keys_name_are_external() -> None:
    orders, people = propose(
        survey(
            names("order_items", "orders", "people", "people_cards"),
            reference("orders > people", required=False),
            reference("order_items > orders"),
            writers={names("orders")[0]: ("web", "batch"), names("order_items")[0]: ("web",)},
        )
    ).services
    assert orders == Proposed(
        "orders",
        "names that begin with order",
        names("order_items", "orders"),
        names("people"),
        ("batch", "web"),
    )
    assert people.external_refs == ()


def test_names_become_such_as_a_service_may_have() -> None:
    tables = (*names("x", schema="2024 Sales"), *names("y"))
    assert list(groups(survey(tables))) == ["service_2024_sales"]


def together(*texts: str) -> tuple[frozenset[Name], ...]:
    return tuple(frozenset(names(*text.split())) for text in texts)


SHOP = names("order_items", "orders", "payment_runs", "payments", "ratings", "user_roles", "users")


def test_what_one_transaction_writes_moves_together() -> None:
    proposal = propose(survey(SHOP), together("orders payments", "ratings users", "gone orders"))
    assert {one.name: [name.table for name in one.tables] for one in proposal.services} == {
        "orders": ["order_items", "orders", "payment_runs", "payments"],
        "users": ["ratings", "user_roles", "users"],
    }
    orders, _ = proposal.services
    assert orders.why == (
        "names that begin with order; payment_runs, payments: written in the same transactions"
    )


def test_a_table_written_with_those_of_many_services_is_context() -> None:
    tables = (*names("audit_log"), *SHOP)
    found = survey(tables)
    everywhere = together("audit_log orders", "audit_log payments", "audit_log users")
    assert propose(found, everywhere).services == propose(found).services
    assert propose(found, everywhere).unowned == names("audit_log", "ratings")
