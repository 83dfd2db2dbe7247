"""What a database answers besides its rows, compared without one."""

from __future__ import annotations

from typing import Any

import pytest

from pgshunt.migration.likeness import Ways, carried, differences, ways
from pgshunt.migration.roles import Admission, Role, shut_out


def found(dbname: str, **changed: Any) -> Ways:
    answer = {
        "dbname": dbname,
        "asked_by": "control",
        "database": {"datcollate": "en_US.UTF-8", "datctype": "en_US.UTF-8"},
        "values": {"timezone": "UTC", "datestyle": "ISO, MDY", "search_path": '"$user", public'},
        "present": ["control", "app"],
        "set": [],
    }
    return ways(answer | changed)


def told(source: Ways, target: Ways, fatal: bool = True) -> list[tuple[str, str]]:
    problems = differences(source, target, {"app"})
    assert all(problem.fatal == fatal for problem in problems)
    return [
        (problem.subject, problem.remedy.removeprefix("run at the own database: ")) for problem in problems
    ]


def test_the_mending_statement_is_for_the_own_database() -> None:
    values = {"timezone": "it's", "datestyle": "ISO, MDY", "search_path": 'app, "Odd one"'}
    assert told(found("shared", values=values), found("own")) == [
        ("own database", """ALTER DATABASE "own" SET "search_path" TO 'app', 'Odd one'"""),
        ("own database", """ALTER DATABASE "own" SET "timezone" TO 'it''s'"""),
    ]


def test_a_setting_of_users_own_making_counts_and_what_is_only_told_does_not() -> None:
    source = found("shared", set=[["", ["app.rows=many", "auto_explain.log_analyze=on"]]])
    target = found("own", set=[["", ["app.else=1", "statement_timeout=1s"]]])
    assert told(source, target) == [
        ("own database", 'ALTER DATABASE "own" RESET "app"."else"'),
        ("own database", """ALTER DATABASE "own" SET "app"."rows" TO '…'"""),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "mended"),
    [
        (["DateStyle=iso,mdy"], ["datestyle=ISO, MDY"], None),
        ([], ["TimeZone=UTC"], None),  # what the database has for everybody
        ([], ["TimeZone=Asia/Tokyo"], "SET \"timezone\" TO 'Asia/Tokyo'"),
        (["TimeZone=Asia/Tokyo"], [], "SET \"timezone\" TO 'UTC'"),
        ([], ["app.tenant=a"], 'SET "app"."tenant" TO \'…\''),
        (["app.tenant=A"], ["app.tenant=a"], 'SET "app"."tenant" TO \'…\''),
        (["search_path=a, b"], ["search_path=A,b"], None),
    ],
)
def test_logins_begin_with_the_same(ours: list[str], theirs: list[str], mended: str | None) -> None:
    source, target = found("shared", set=[["app", theirs]]), found("own", set=[["app", ours]])
    expected = [("role app", f'ALTER ROLE "app" IN DATABASE "own" {mended}')] if mended else []
    assert told(source, target) == expected


def test_what_is_set_in_the_database_goes_before_what_is_set_everywhere_and_is_carried() -> None:
    source = found(
        "shared", set=[["new", ["timezone=Asia/Tokyo", "work_mem=1GB"]], ["new", ["TimeZone=UTC"]]]
    )
    assert carried(source, "new", "own") == ["""ALTER ROLE "new" IN DATABASE "own" SET "timezone" TO 'UTC'"""]
    assert differences(source, found("own"), {"new"}) == []  # it is not there yet


def test_what_the_control_role_hides_is_said() -> None:
    hiding = [["control", ["TimeZone=Asia/Tokyo"]]]
    values = {"timezone": "Asia/Tokyo", "datestyle": "ISO, MDY", "search_path": '"$user", public'}
    assert told(found("shared", set=hiding, values=values), found("own"), fatal=False) == [
        ("own database", "ALTER ROLE … RESET timezone, for the control role")
    ]
    known = [["", ["TimeZone=utc"]], *hiding]
    assert told(found("shared", set=known, values=values), found("own")) == []


@pytest.mark.parametrize(
    ("source", "target", "fatal"),
    [
        ({"datcollate": "en_US.utf8"}, {}, None),
        ({"datcollate": "C"}, {}, True),
        ({"datctype": "C"}, {}, True),
        ({"datlocprovider": "c"}, {}, None),  # 14 knows no other
        ({"datlocprovider": "i", "daticulocale": "de"}, {"datlocprovider": "i", "datlocale": "de"}, None),
        ({"datlocprovider": "i", "daticulocale": "de"}, {"datlocprovider": "i", "datlocale": "fr"}, True),
        ({"datcollversion": "2.31"}, {"datcollversion": "2.36"}, False),
        ({"datcollversion": "2.31"}, {}, None),
    ],
)
def test_locales(source: dict[str, str], target: dict[str, str], fatal: bool | None) -> None:
    same = {"datcollate": "en_US.UTF-8", "datctype": "en_US.UTF-8"}
    sides = found("shared", database=same | source), found("own", database=same | target)
    assert [problem.fatal for problem in differences(*sides, ())] == ([] if fatal is None else [fatal])


@pytest.mark.parametrize(
    ("here", "has_rights", "wrong"),
    [
        (Admission(True, True, True, False), True, ""),
        (Admission(True, True, False, False), True, "may not log in"),
        (Admission(False, False, True, False), True, "may not connect"),
        (Admission(False, True, True, False), False, "would have no rights"),
        (Admission(True, True, True, True), False, ""),
    ],
)
def test_logins_that_would_be_shut_out(here: Admission, has_rights: bool, wrong: str) -> None:
    role = Role("app", True, True, True, (), "", has_rights)
    everything = Admission(True, True, True, True)
    out = shut_out({"app": role}, ["app"], {"app": everything}, {"app": here})
    assert [name for name, _ in out.items()] == (["app"] if wrong else [])
    assert all(what.startswith(wrong) for what, _ in out.values())
