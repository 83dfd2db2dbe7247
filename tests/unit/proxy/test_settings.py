"""Settings as a value: what an answer makes of them, and the SQL between two of them."""

from __future__ import annotations

import pytest

from pgshunt.proxy.settings import (
    BASE,
    SETTINGS_BYTES_MAX,
    Untrackable,
    answered,
    is_plain,
    is_trackable,
    literal,
    question,
    reachable,
    reset_names,
    search_path,
    settings,
    still_held,
    transition,
)

UTF8 = [b"UTF8", b"UTF8"]


def test_equal_settings_are_one_object() -> None:
    assert settings({"a": "1", "b": "2"}) is settings({"b": "2", "a": "1"})
    assert settings({}) is BASE


@pytest.mark.parametrize(
    ("before", "asked", "row", "after"),
    [
        ({}, {"work_mem": False}, [b"5MB"], {"work_mem": "5MB"}),
        ({"work_mem": "5MB"}, {"work_mem": False}, [b"5MB"], {"work_mem": "5MB"}),
        ({"work_mem": "5MB"}, {"work_mem": True}, [b"4MB"], {}),
        ({"work_mem": "5MB"}, {"work_mem": True}, [b"5MB"], {"work_mem": "5MB"}),  # rolled back
        ({}, {"work_mem": True}, [b"4MB"], {}),
        ({"app.x": "1"}, {"app.x": True}, [b""], {"app.x": ""}),
        ({}, {"app.x": True}, [None], {}),
        ({}, {"a.x": False, "b": False}, ["ü".encode(), b"2"], {"a.x": "ü", "b": "2"}),
    ],
)
def test_an_answer_makes_settings(
    before: dict[str, str], asked: dict[str, bool], row: list[bytes | None], after: dict[str, str]
) -> None:
    assert answered(settings(before), asked, [*UTF8, *row]) is settings(after)


def test_what_cannot_be_carried_elsewhere() -> None:
    with pytest.raises(Untrackable, match="encoding"):
        answered(BASE, {"a.x": False}, [b"LATIN1", b"UTF8", b"\xfc"])
    with pytest.raises(Untrackable, match="settings_size"):
        answered(BASE, {"a.x": False}, [*UTF8, b"x" * SETTINGS_BYTES_MAX])


@pytest.mark.parametrize(
    ("here", "there", "middle"),
    [
        ({"a": "1"}, {}, 'RESET "a"'),
        ({}, {"a": "1"}, "SELECT pg_catalog.set_config('a', E'1', false)"),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, "SELECT pg_catalog.set_config('b', E'3', false)"),
        ({"app.x": "1"}, {}, 'RESET "app"."x"'),
        (
            {"role": "r", "a": "1"},
            {"role": "r", "a": "2"},
            "RESET \"role\"; SELECT pg_catalog.set_config('a', E'2', false),"
            " pg_catalog.set_config('role', E'r', false)",
        ),
        (
            {"a": "1", "session_authorization": "s", "role": "r"},
            {},
            'RESET "role"; RESET "session_authorization"; RESET "a"',
        ),
        (
            {},
            {"role": "r", "session_authorization": "s", "z": "1"},
            "SELECT pg_catalog.set_config('z', E'1', false),"
            " pg_catalog.set_config('session_authorization', E's', false),"
            " pg_catalog.set_config('role', E'r', false)",
        ),
    ],
)
def test_the_way_from_one_to_another(here: dict[str, str], there: dict[str, str], middle: str) -> None:
    expected = f"SET exit_on_error = on; {middle}; RESET exit_on_error"
    assert transition(settings(here), settings(there)) == expected


def test_a_session_that_has_set_exit_on_error_keeps_it() -> None:
    there = settings({"exit_on_error": "on"})
    assert transition(BASE, there) == "SET exit_on_error = on; SET exit_on_error = E'on'"
    assert transition(there, BASE) == "SET exit_on_error = on; RESET exit_on_error"


def test_values_are_written_in_ascii_whatever_they_hold() -> None:
    assert literal("it's \\ ü € 😀\n") == "E'it''s \\\\ \\u00fc \\u20ac \\U0001f600\n'"


def test_names() -> None:
    assert all(map(is_trackable, ("work_mem", "app.tenant_id", "a.b.c", "_x$1")))
    assert not any(map(is_trackable, ("", "a b", "a..b", "a.", "ü.x", "App.x", 'a"b', "1a")))
    assert reset_names({"*", "role"}, ["a", "role", "session_authorization"]) == {"a", "role"}
    assert reset_names({"a"}, ["b"]) == {"a"}


def test_a_custom_parameter_cannot_be_made_to_vanish() -> None:
    tenant, other = settings({"app.x": "1"}), settings({"app.x": "2", "a": "1"})
    assert reachable(tenant, other) and reachable(BASE, tenant) and reachable(settings({"a": "1"}), BASE)
    assert not reachable(tenant, BASE)
    assert reachable(tenant, BASE, frozenset({"app.x"}))


def test_a_question_and_what_still_holds() -> None:
    sql = question(["work_mem"], ["listen", "temp_table"])
    assert sql.startswith(
        "SELECT pg_catalog.current_setting('client_encoding', true),"
        " pg_catalog.current_setting('server_encoding', true),"
        " pg_catalog.current_setting('work_mem', true), EXISTS ("
    )
    assert still_held(["listen", "temp_table"], [*UTF8, b"4MB", b"f", b"t"]) == {"temp_table"}
    assert still_held([], [*UTF8, b"4MB"]) == set()


@pytest.mark.parametrize(
    ("held", "path"),
    [
        ({}, ("joe", "public")),
        ({"search_path": 'a, "B c"'}, ("a", "B c")),
        ({"role": "r"}, ("r", "public")),
        ({"role": "none"}, ("joe", "public")),
        ({"session_authorization": "s", "role": "none"}, ("s", "public")),
        ({"session_authorization": "s", "role": "r", "search_path": '"$user"'}, ("r",)),
    ],
)
def test_the_search_path_in_force(held: dict[str, str], path: tuple[str, ...]) -> None:
    assert search_path(settings(held), ("$user", "public"), "joe") == path


@pytest.mark.parametrize(
    ("held", "base", "plain"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"standard_conforming_strings": "off"}, True, False),
        ({"client_encoding": "SJIS"}, True, False),
        ({"client_encoding": "LATIN1"}, True, True),
        ({"client_encoding": "UTF8"}, False, False),
        ({"client_encoding": "UTF8", "standard_conforming_strings": "on"}, False, True),
    ],
)
def test_whether_statements_can_be_read(held: dict[str, str], base: bool, plain: bool) -> None:
    assert is_plain(settings(held), base) is plain
