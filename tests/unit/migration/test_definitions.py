"""What is said of tables whose definitions differ, and which may not be read at the copy then."""

import pytest

from pgshunt.migration.definitions import Columns, Difference, differences

ID = ("id", "bigint not null")
NAME = ("name", "text")


@pytest.mark.parametrize(
    ("shared", "own", "how"),
    [
        ((ID, NAME), (ID,), "public.users lacks name at own_db"),
        ((ID,), (ID, NAME), "public.users still has name at own_db"),
        (
            (ID, NAME),
            (ID, ("name", "text not null")),
            "public.users.name is text at the shared database and text not null at own_db",
        ),
        ((ID, NAME), (NAME, ID), "the columns of public.users stand in another order at own_db"),
    ],
)
def test_the_first_difference_is_named(shared: Columns, own: Columns, how: str) -> None:
    found = differences(
        {"public.users": {"public.users": shared}}, {"public.users": {"public.users": own}}, "own_db"
    )
    assert found == (Difference(frozenset({"public.users"}), how),)


def test_only_tables_that_differ_are_found() -> None:
    users, notes = {"public.users": (ID,)}, {"public.notes": (ID, NAME)}
    shared = {"public.users": users, "public.notes": notes}
    assert differences(shared, {"public.users": dict(users), "public.notes": dict(notes)}, "own_db") == ()
    (difference,) = differences(shared, {"public.users": users, "public.notes": {}}, "own_db")
    assert difference == Difference(frozenset({"public.notes"}), "public.notes is missing at own_db")


def test_a_table_is_found_with_all_its_partitions_where_these_are_others() -> None:
    parts = {"public.log": (ID,), "public.log_1": (ID,)}
    found = differences({"public.log": {"public.log": (ID,)}}, {"public.log": parts}, "own_db")
    assert [difference.tables for difference in found] == [frozenset(parts)]
