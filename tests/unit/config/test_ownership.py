"""Which tables a service owns: by name, by pattern, and by neither when two claim them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from pgshunt.config import Config, Problem, Severity, examine
from pgshunt.config.model import Service
from pgshunt.config.names import matcher, pattern
from pgshunt.config.ownership import assign, check_tables

THERE = {
    "public.auth_users",
    "public.auth_log",
    "public.users",
    'public."auth.odd"',
    "public.Auth_Upper",
    "billing.invoices",
    "billing.auth_x",
    'billing."a""b"',
}


@pytest.mark.parametrize(
    ("text", "written", "matched"),
    [
        ("auth_*", "public.auth_*", {"public.auth_users", "public.auth_log"}),
        ("AUTH_*", "public.auth_*", {"public.auth_users", "public.auth_log"}),
        ("auth*", "public.auth*", {"public.auth_users", "public.auth_log", 'public."auth.odd"'}),
        ("*_log", "public.*_log", {"public.auth_log"}),
        ("*u*s", "public.*u*s", {"public.auth_users", "public.users"}),
        ("billing.*", "billing.*", {"billing.invoices", "billing.auth_x", 'billing."a""b"'}),
        ('"billing".*', "billing.*", {"billing.invoices", "billing.auth_x", 'billing."a""b"'}),
        ('"Billing".*', "Billing.*", set()),
        ("bill.*", "bill.*", set()),
    ],
)
def test_a_pattern_is_folded_and_stays_in_its_schema(text: str, written: str, matched: set[str]) -> None:
    assert pattern(text) == written
    assert set(filter(matcher(written), THERE)) == matched


@pytest.mark.parametrize("text", ["a.b.*", "b*.users", '"a*"', "users", "", "a b*", "x*.*"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        pattern(text)


def services(**tables: Iterable[str]) -> Mapping[str, Service]:
    return {name: Service(database=f"{name}_db", tables=tuple(listed)) for name, listed in tables.items()}


def test_names_stand_as_they_are_and_patterns_for_what_there_is() -> None:
    found = assign(services(auth=["auth_users", "auth_*", "not_made_yet"], bill=["billing.*"]), THERE)
    assert found.tables["auth"] == ("public.auth_users", "public.not_made_yet", "public.auth_log")
    assert set(found.tables["bill"]) == {"billing.invoices", "billing.auth_x", 'billing."a""b"'}
    assert found.contested == {}
    assert assign(services(auth=["auth_*"]), ()).tables == {"auth": ()}


def test_a_name_goes_before_all_patterns() -> None:
    for order in (("auth", "log"), ("log", "auth")):
        listed = {"auth": ["auth_*"], "log": ["auth_log"]}
        found = assign(services(**{name: listed[name] for name in order}), THERE)
        assert found.tables == {"auth": ("public.auth_users",), "log": ("public.auth_log",)}


def test_what_patterns_of_two_services_match_is_nobodys() -> None:
    found = assign(services(auth=["auth_*", "auth*"], log=["*_log", "users"]), THERE)
    assert found.tables == {"auth": ('public."auth.odd"', "public.auth_users"), "log": ("public.users",)}
    assert found.contested == {"public.auth_log": {"auth": (0, 1), "log": (0,)}}


# -- as `check` tells it ------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """The problems of two services' tables, by place, where the shared database has the tables THERE."""

    def run(minimal: str, auth: str) -> list[str]:
        path = tmp_path / "pgshunt.yaml"
        path.write_text(minimal.replace("[users, roles]", auth).replace("[audit_logs]", "[billing.*]"))

        def ask(config: Config) -> Iterable[Problem]:
            return check_tables(config, THERE, {*THERE, "public.a_view"})

        report = examine(path, {}, ask)
        assert (report.config is None) == any(one.severity is Severity.ERROR for one in report.problems)
        return [str(one).replace(f"{tmp_path}/", "") for one in report.problems]

    return run


@pytest.mark.parametrize(
    ("auth", "problems"),
    [
        ("[auth_*, users, a_view]", []),
        (
            "[users, userz]",
            [
                "pgshunt.yaml:9:45: services.auth.tables[1]: the shared database has no table public.userz; "
                "did you mean 'public.users'?"
            ],
        ),
        (
            "[users], external_refs: [zzz]",
            [
                "pgshunt.yaml:9:62: services.auth.external_refs[0]: the shared database has no table "
                "public.zzz; create it, or correct the name",
                "pgshunt.yaml:9:62: note: services.auth.external_refs[0]: no service owns "
                "public.zzz: it stays on the shared database; nothing to do if that is meant",
            ],
        ),
        (
            "[users, dgm_*]",
            [
                "pgshunt.yaml:9:45: warning: services.auth.tables[1]: no table matches public.dgm_*; "
                "correct it, unless its tables are still to be made"
            ],
        ),
        (
            "[billing.auth*, billing.inv*]",
            [
                "pgshunt.yaml:10:40: services.audit.tables[0]: billing.auth_x matches, and it matches a "
                "pattern of auth too; name it in one of the two: a name goes before all patterns",
                "pgshunt.yaml:10:40: services.audit.tables[0]: billing.invoices matches, and it matches a "
                "pattern of auth too; name it in one of the two: a name goes before all patterns",
            ],
        ),
        ("[billing.auth_x]", []),
        ("[users], external_refs: [billing.invoices]", []),
        (
            "[billing.*]",
            [
                "pgshunt.yaml:10:40: services.audit.tables[0]: billing.* is claimed by auth too; leave it "
                "with the one that writes it; the other lists it in external_refs"
            ],
        ),
    ],
)
def test_each_problem_has_its_place(
    auth: str, problems: list[str], minimal: str, told: Callable[[str, str], list[str]]
) -> None:
    assert sorted(told(minimal, auth)) == sorted(problems)
