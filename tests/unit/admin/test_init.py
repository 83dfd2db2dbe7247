"""A draft is a good configuration once its variables are set, whatever tables and roles are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgshunt.admin.init import document, observed_by, parse_url, save, told, write_draft
from pgshunt.config import examine
from pgshunt.migration.observed import Observed
from pgshunt.migration.survey import Name, Reference, Replica, Survey
from pgshunt.routing.table import Endpoint

SHARED = Endpoint("shared", "shared", "db.internal", 5433, "mono ${x} lith", "primary")
ODD = tuple(Name("public", name) for name in ("order", "order_$ {a: b}", 'order_"quoted"', "order_ünïcode"))


def survey(*tables: Name, writers: tuple[str, ...] = ()) -> Survey:
    keys = (Reference(tables[0], Name("public", "rates"), True, False),)
    return Survey(tables, frozenset(tables[1:]), keys, dict.fromkeys(tables, writers), 250)


def test_odd_names_survive_the_way_into_the_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "pgshunt.yaml"
    draft = write_draft(SHARED, "pg shunt", survey(*ODD, writers=("a-b", "a_b", "yes")))
    assert [problem for problem in save(draft, path) if problem.severity == "error"] == []
    config = examine(path, dict.fromkeys(draft.variables, "db.example")).config
    assert config is not None
    assert (config.shared.dbname, config.shared.primary.port) == ("mono ${x} lith", 5433)
    assert config.shared.max_connections == 250
    assert config.control.user == "pg shunt"
    assert config.services["order"].tables == (
        "public.order",
        "public.order_$ {a: b}",
        'public."order_""quoted"""',
        "public.order_ünïcode",
    )
    assert config.services["order"].users == ("a-b", "a_b", "yes")
    assert config.databases["order_db"].primary.host == "db.example"
    assert len(set(draft.variables)) == len(draft.variables)
    assert draft.text.count("has no primary key") == 1


def test_where_nobody_else_may_write_the_control_role_is_the_client(tmp_path: Path) -> None:
    draft = write_draft(SHARED, "postgres", survey(Name("public", "alone")))
    assert [problem for problem in save(draft, tmp_path / "new.yaml") if problem.severity == "error"] == []
    assert draft.variables.count("PGSHUNT_CONTROL_PASSWORD") == 1
    assert "#   alone" in draft.text


def test_a_role_that_was_found_goes_before_who_asked_and_is_no_service_s_login(tmp_path: Path) -> None:
    found = replace(survey(*ODD, writers=("web",)), control="mover")
    draft = write_draft(SHARED, "me", found)
    problems = save(draft, tmp_path / "new.yaml")
    config = examine(tmp_path / "new.yaml", dict.fromkeys(draft.variables, "set")).config
    assert config is not None
    assert (config.control.user, [user.name for user in config.auth.users]) == ("mover", ["web"])
    assert "control.user is mover, which is in the database" in told(document(draft, Path("x"), problems))
    alone = replace(survey(Name("public", "alone")), control="mover")
    draft = write_draft(SHARED, "me", alone)
    assert draft.variables == ("PGSHUNT_CONTROL_PASSWORD", "ME_PASSWORD", "PGSHUNT_ADMIN_TOKEN")


def test_a_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "pgshunt.yaml"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        save(write_draft(SHARED, "postgres", survey(*ODD)), path)
    assert path.read_text() == "mine"


def test_a_url_is_read_and_its_password_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "of the environment")
    endpoint, control = parse_url("postgresql://me%40home:p%2Fw@[::1]/mono%20lith")
    assert (endpoint.host, endpoint.port, endpoint.dbname) == ("::1", 5432, "mono lith")
    assert (control.user, control.password and control.password.reveal()) == ("me@home", "p/w")
    _, control = parse_url("postgres://me@host:5433/db")
    assert control.password and control.password.reveal() == "of the environment"


def test_what_the_url_says_of_tls_stands_in_the_file(tmp_path: Path) -> None:
    endpoint, control = parse_url("postgres://me@host/db?sslmode=verify-full&sslrootcert=ca.crt")
    draft = write_draft(endpoint, control.user, survey(*ODD))
    save(draft, tmp_path / "pgshunt.yaml")
    report = examine(tmp_path / "pgshunt.yaml", dict.fromkeys(draft.variables, "set"))
    missing = [problem.path for problem in report.problems if problem.severity == "error"]
    assert missing == [("shared", "tls", "ca_file")]
    assert (
        f"tls: {{ ca_file: {json.dumps(str(Path('ca.crt').absolute()))}, mode: verify-full }}" in draft.text
    )
    assert "tls:" not in write_draft(parse_url("postgres://me@host/db")[0], "me", survey(*ODD)).text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me@host/db", "postgres://"),
        ("postgres://host/db", "a user"),
        ("postgres://me@host", "a database"),
        ("postgres://me@host/db?sslmode=require&target_session_attrs=any", "leave out target_session_attrs"),
        ("postgres://me@host/db?sslmode=allow", "sslmode: "),
        ("postgres://me@host/db?sslmode=prefer&sslrootcert=x", "TLS: prefer makes no use of ca_file"),
        ("postgres://me:secret/word@host/db", "%2F"),
        ("postgres://me@host:70000/db", "65535"),
    ],
)
def test_a_url_that_will_not_do_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)


def test_replicas_are_proposed_and_their_ports_asked_for(tmp_path: Path) -> None:
    standbys = (Replica("10.0.0.7", "walreceiver"), Replica("10.0.0.7", 'odd "}'), Replica("::1", "near"))
    draft = write_draft(SHARED, "me", replace(survey(*ODD), replicas=standbys))
    assert [problem for problem in save(draft, tmp_path / "new.yaml") if problem.severity == "error"] == []
    ports = {name: str(number) for number, name in enumerate(draft.variables, start=6000)}
    config = examine(tmp_path / "new.yaml", ports).config
    assert config is not None
    replicas = [(replica.host, str(replica.port)) for replica in config.shared.replicas]
    wanted = [ports[f"SHARED_REPLICA_{number}_PORT"] for number in (1, 2, 3)]
    assert replicas == list(zip(["10.0.0.7", "10.0.0.7", "::1"], wanted, strict=True))


def test_what_was_observed_is_read_from_a_file(tmp_path: Path) -> None:
    observed = Observed()
    observed.take([["transaction", "", [], ["public.lone", "public.order"], "app", "", 3]], 0, 1.8e9)
    (tmp_path / "seen.json").write_text(json.dumps(observed.to_document()))
    found = survey(*ODD, Name("public", "lone"))
    draft = write_draft(SHARED, "me", found, observed_by(str(tmp_path / "seen.json")))
    assert Name("public", "lone") in draft.proposal.services[0].tables
    assert "lone: written in the same transactions" in draft.text
    with pytest.raises(ValueError, match="no observations"):
        (tmp_path / "seen.json").write_text("{}")
        observed_by(str(tmp_path / "seen.json"))
