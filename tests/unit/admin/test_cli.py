"""Each command asks the right question, answers in both forms, and exits with the code its result has."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pgshunt.admin.cli import Exit, cli, main
from pgshunt.admin.problem import not_ready

SERVICE: dict[str, Any] = {
    "name": "auth_service",
    "sentence": "auth_service: 50 % of reads on auth_db",
    "stage": "reading",
    "reads": 50,
    "latch": None,
    "attention": [],
    "shadow": {"match": 3, "undecided": 113},
    "triggers": [{"trigger": "latency", "verdict": "pass", "reason": "0 % of 40 calls were slow"}],
    "calls": {"calls_per_s": 19.5},
    "baseline": {"p95_ms": 1.234},
    "candidate": {"p95_ms": None},
    "lag_s": {"auth_db": 0.1, "auth_db/1": None},
    "progress": {"public.users": {"state": "copying", "rows_copied": 5, "rows_total": 10}},
}
LATE = {**SERVICE, "attention": ["a copy is late: auth_db is 5.2 s behind, limit 1.0 s"]}
LATCHED = {**SERVICE, "latch": {"trigger": "latency", "reason": "P95 over 1 s"}}
EVENT = {
    "id": 7,
    "at": "2026-11-22T12:00:00.123Z",
    "kind": "shifted",
    "service": "auth_service",
    "detail": {
        "reads": 50,
        "tables": ["public.a", "public.b"],
        "lag_s": {"auth_db": None},
        "signal": None,
        "forced": True,
    },
}

PROBLEMS = [
    {"subject": "public.a", "message": "no key", "remedy": "add one"},
    {"subject": "public.b", "message": "unlogged", "remedy": "log it"},
]
ANSWERS: dict[str, Any] = {
    "GET /api/v1/status": (200, {"sentence": "1 service", "warnings": ["slow\ndisk"], "services": [SERVICE]}),
    "GET /api/v1/services/auth_service": (200, SERVICE),
    "GET /api/v1/services/late": (200, LATE),
    "GET /api/v1/services/latched": (200, LATCHED),
    "GET /api/v1/services/nobody": (
        404,
        {"type": "urn:pgshunt:problem:unknown_service", "detail": "no such"},
    ),
    "GET /api/v1/services/locked": (
        401,
        {"type": "urn:pgshunt:problem:unauthorized", "detail": "wrong token"},
    ),
    "POST /api/v1/services/auth_service/begin": (200, SERVICE),
    "POST /api/v1/services/auth_service/shift": (200, SERVICE),
    "POST /api/v1/services/auth_service/rollback": (200, SERVICE),
    "POST /api/v1/services/auth_service/rearm": (200, SERVICE),
    "POST /api/v1/services/auth_service/abandon": (200, SERVICE),
    "POST /api/v1/services/early/begin": (409, not_ready("early", PROBLEMS).to_dict()),
    "POST /api/v1/services/latched/shift": (
        409,
        {"type": "urn:pgshunt:problem:latched", "detail": "rolled back", "remedy": "pgshunt rearm latched"},
    ),
    "POST /api/v1/services/early/shift": (409, {"type": "urn:pgshunt:problem:conflict", "detail": "syncing"}),
    "POST /api/v1/services/broken/shift": (500, {"type": "urn:pgshunt:problem:defect", "detail": "mistake"}),
    "GET /api/v1/events?after=0": (200, {"events": [EVENT], "last_id": 7}),
    "GET /api/v1/explain?sql=SELECT+1": (200, {"lines": ["shape      read", "route      shared 100 %"]}),
}


class Stub(BaseHTTPRequestHandler):
    """Answers from the table and keeps what it was asked."""

    asked: list[tuple[str, str | None, Any]]

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = f"{self.command} {self.path}"
        self.asked.append((key, self.headers["Authorization"], json.loads(body or "null")))
        answer = ANSWERS[key]
        status, document = answer.pop(0) if isinstance(answer, list) else answer
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None, Any]]]:
    """The stub's address in the environment; yields what it was asked."""
    asked: list[tuple[str, str | None, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Stub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("PGSHUNT_ADMIN_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PGSHUNT_ADMIN_TOKEN", "word")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def pgshunt(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["pgshunt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


Asked = list[tuple[str, str | None, Any]]
Patch = pytest.MonkeyPatch
Printed = pytest.CaptureFixture[str]


def test_status_begins_with_a_sentence(api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "status") == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["1 service", "  attention: slow disk"]
    assert lines[-1].split() == [
        "auth_service",
        "reading",
        "50",
        "%",
        "19.5",
        "1.23",
        "ms",
        "-",
        "100",
        "ms",
        "pass",
    ]
    assert api == [("GET /api/v1/status", "Bearer word", None)]


def test_status_of_one_service_shows_triggers_and_progress(
    api: Asked, monkeypatch: Patch, capsys: Printed
) -> None:
    assert pgshunt(monkeypatch, "status", "auth_service") == Exit.OK
    printed = capsys.readouterr().out
    assert "0 % of 40 calls were slow" in printed
    assert "5 of about 10 rows" in printed
    assert "  shadow writes: 3 matched, 113 undecided, 0 differ\n" in printed


@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "auth_service"], ["events"], ["explain", "SELECT 1"]]
)
def test_every_answer_can_be_json(
    arguments: list[str], api: Asked, monkeypatch: Patch, capsys: Printed
) -> None:
    assert pgshunt(monkeypatch, *arguments, "-o", "json") == Exit.OK
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_every_command_that_answers_can_answer_in_json() -> None:
    """`serve` has nothing to answer; `demo`, which is not among these, has --json."""
    answers = [command for command in cli.commands.values() if not command.hidden]
    without = {command.name for command in answers if "output" not in [one.name for one in command.params]}
    assert without == {"serve"}


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["begin", "auth_service"], "begin", {}),
        (["shift", "auth_service", "--reads", "50"], "shift", {"reads": 50}),
        (["rollback", "auth_service", "--reason", "late"], "rollback", {"reason": "late"}),
        (["rearm", "auth_service", "--reason", "mended"], "rearm", {"reason": "mended"}),
        (["abandon", "auth_service"], "abandon", {}),
        (["abandon", "auth_service", "--target-is-gone"], "abandon", {"target_is_gone": True}),
    ],
)
def test_changes(
    arguments: list[str], path: str, body: Any, api: Asked, monkeypatch: Patch, capsys: Printed
) -> None:
    assert pgshunt(monkeypatch, *arguments) == Exit.OK
    assert api == [(f"POST /api/v1/services/auth_service/{path}", "Bearer word", body)]
    assert capsys.readouterr().out.strip() == SERVICE["sentence"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status", "nobody"], Exit.USAGE, "no such"),
        (["shift", "latched", "--reads", "10"], Exit.HELD, "pgshunt rearm latched"),
        (["shift", "early", "--reads", "10"], Exit.CONFLICT, "syncing"),
        (["shift", "broken", "--reads", "10"], Exit.FAILED, "mistake"),
        (["shift", "auth_service", "--reads", "101"], Exit.USAGE, "101"),
        (["shift", "auth_service"], Exit.USAGE, "--reads"),
        (["rearm", "auth_service"], Exit.USAGE, "--reason"),
        (["status", "--url", "http://127.0.0.1:1"], Exit.UNREACHABLE, "is `pgshunt serve` running?"),
        (["status", "--url", "nonsense"], Exit.UNREACHABLE, "http://host:port"),
        (["explain", "--offline", "SELECT 1"], Exit.USAGE, "-c"),
        (["explain", " "], Exit.USAGE, "give the statement"),
    ],
)
def test_failures_have_their_exit_code_and_say_what_to_do(
    arguments: list[str], code: Exit, said: str, api: Asked, monkeypatch: Patch, capsys: Printed
) -> None:
    assert pgshunt(monkeypatch, *arguments) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["status", "nobody"], Exit.USAGE, "unknown_service"),
        (["shift", "latched", "--reads", "10"], Exit.HELD, "latched"),
        (["status", "--url", "nonsense"], Exit.UNREACHABLE, "unreachable"),
        (["status", "--token-file", "/missing"], Exit.FAILED, "failed"),
    ],
)
def test_a_refusal_can_be_json_too(
    arguments: list[str], code: Exit, kind: str, api: Asked, monkeypatch: Patch, capsys: Printed
) -> None:
    assert pgshunt(monkeypatch, *arguments, "-o", "json") == code
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["type"] == f"urn:pgshunt:problem:{kind}"
    assert error["detail"] in printed.err


def test_help_names_the_exit_codes(monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "--help") == Exit.OK
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{code:d} " in said.partition("Exit codes:")[2] for code in Exit)


def test_what_a_move_lacks_is_told_line_by_line(api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "begin", "early") == Exit.FAILED
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("pgshunt: early cannot be moved yet, nothing was changed: 2 problems; ")
    assert lines == ["  public.a: no key; add one", "  public.b: unlogged; log it"]


@pytest.mark.parametrize(
    ("stages", "code", "said"),
    [
        (["copying", "shadowing"], Exit.OK, "new is copied"),
        (["copying_stopped"], Exit.HELD, "then: pgshunt begin new --wait"),
        (["copying", "abandoning"], Exit.CONFLICT, "pgshunt status new"),
        (["shared"], Exit.CONFLICT, "it was abandoned meanwhile"),
    ],
)
def test_begin_can_wait_for_the_copy(
    stages: list[str], code: Exit, said: str, api: Asked, monkeypatch: Patch, capsys: Printed
) -> None:
    def answer(what: str) -> tuple[int, Any]:
        stage = what if what in ("shared", "shadowing") else "syncing"
        doing = what if stage == "syncing" else ""
        return 200, {"name": "new", "sentence": "new is copied", "stage": stage, "doing": doing}

    path = "/api/v1/services/new"
    questions = [f"GET /api/v1/events?after={at}&wait_s=20.0" for at in range(7, 7 + len(stages))]
    answers = {f"POST {path}/begin": answer("copying"), f"GET {path}": [answer(stage) for stage in stages]}
    answers[f"GET /api/v1/events?after={2**53}"] = (200, {"events": [], "last_id": 7})
    for at, question in enumerate(questions, 8):
        answers[question] = (200, {"events": [], "last_id": at})
    monkeypatch.setattr(f"{__name__}.ANSWERS", answers)
    assert pgshunt(monkeypatch, "begin", "new", "--wait") == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    asked = [one for one, _, _ in api]
    polled = [one for question in questions for one in (question, f"GET {path}")]
    assert asked == [f"GET /api/v1/events?after={2**53}", f"POST {path}/begin", *polled]


def test_waiting_for_the_copy_has_an_end(api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    copying = (200, {"name": "new", "sentence": "", "stage": "syncing", "doing": "copying"})
    news = (200, {"events": [], "last_id": 7})
    path = "/api/v1/services/new"
    answers: dict[str, Any] = {f"POST {path}/begin": copying, f"GET /api/v1/events?after={2**53}": news}
    monkeypatch.setattr(f"{__name__}.ANSWERS", answers)
    assert pgshunt(monkeypatch, "begin", "new", "--wait", "--timeout", "1e-9") == Exit.FAILED
    assert "the copy goes on, see: pgshunt status new" in capsys.readouterr().err


def test_a_rolled_back_service_can_be_an_exit_code(api: Asked, monkeypatch: Patch) -> None:
    assert pgshunt(monkeypatch, "status", "latched", "--exit-code") == Exit.ROLLED_BACK
    assert pgshunt(monkeypatch, "status", "latched") == Exit.OK
    assert pgshunt(monkeypatch, "status", "--exit-code") == Exit.OK


def test_trouble_is_shown_and_can_be_an_exit_code(api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "status", "late", "--exit-code") == Exit.HELD
    assert "attention: a copy is late" in capsys.readouterr().out


def test_events_are_lines(api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "events") == Exit.OK
    assert capsys.readouterr().out.split() == [
        "7",
        "2026-11-22T12:00:00.123Z",
        "shifted",
        "auth_service",
        *("reads", "50,", "tables", "[public.a,", "public.b],", "lag_s", "{auth_db", "-},"),
        *("signal", "-,", "forced", "yes"),
    ]


def test_the_token_comes_from_a_file_too(api: Asked, monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("filed\nsecond line")
    assert pgshunt(monkeypatch, "status", "--token-file", str(tmp_path / "token")) == Exit.OK
    assert api[0][1] == "Bearer filed"


@pytest.mark.parametrize(
    ("variable", "sent"), [("word\n", "word"), ("wörd", "wörd"), ("word\r\n", "word"), ("☃", "☃")]
)
def test_the_token_of_the_environment_is_its_first_line_in_any_language(
    api: Asked, monkeypatch: Patch, variable: str, sent: str
) -> None:
    monkeypatch.setenv("PGSHUNT_ADMIN_TOKEN", variable)
    assert pgshunt(monkeypatch, "status") == Exit.OK
    assert (api[0][1] or "").encode("latin-1").decode() == f"Bearer {sent}"


def test_a_token_that_cannot_be_sent_is_not_shown(api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    monkeypatch.setenv("PGSHUNT_ADMIN_TOKEN", "wo\rrd")
    assert pgshunt(monkeypatch, "status", "-o", "json") == Exit.UNREACHABLE
    printed = capsys.readouterr()
    assert "PGSHUNT_ADMIN_TOKEN cannot be sent" in json.loads(printed.out)["error"]["detail"]
    assert "rrd" not in printed.out + printed.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://[::1", "http://a b/", "http://h:99999"])
def test_an_address_that_is_none_is_told(url: str, api: Asked, monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "status", "--url", url) == Exit.UNREACHABLE
    assert f"{url!r} is no address: write http://host:port" in capsys.readouterr().err


def test_a_name_with_anything_in_it_stays_a_name(api: Asked, monkeypatch: Patch) -> None:
    ANSWERS["GET /api/v1/services/a%2Fb%20%C3%A9%3F"] = (200, SERVICE)
    assert pgshunt(monkeypatch, "status", "a/b é?") == Exit.OK


GOOD = """
version: 1
shared: {dbname: monolith, primary: {host: 127.0.0.1}}
control: {user: pgshunt}
auth: {method: trust}
admin: {token: hidden}
"""


def test_check_tells_every_problem_at_once(monkeypatch: Patch, capsys: Printed, tmp_path: Path) -> None:
    path = tmp_path / "pgshunt.yaml"
    path.write_text(GOOD)
    assert pgshunt(monkeypatch, "check", "--file-only", "-c", str(path)) == Exit.OK
    assert "ready is for `pgshunt begin` to say" in capsys.readouterr().out
    path.write_text(GOOD.replace("user: pgshunt", "usr: pgshunt").replace("version: 1", "version: 7"))
    assert pgshunt(monkeypatch, "check", "-c", str(path)) == Exit.USAGE
    said = capsys.readouterr().err
    assert "pgshunt.yaml:2:10" in said
    assert "did you mean 'user'?" in said
    assert pgshunt(monkeypatch, "check", "-c", str(path), "-o", "json") == Exit.USAGE
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert len(document["problems"]) >= 2
    assert "control.usr" in {problem["path"] for problem in document["problems"]}


def test_who_asks_a_running_one_needs_its_address_and_token_alone(
    api: Asked, monkeypatch: Patch, capsys: Printed, tmp_path: Path
) -> None:
    port = urlsplit(os.environ["PGSHUNT_ADMIN_URL"]).port
    for variable in ("PGSHUNT_ADMIN_URL", "PGSHUNT_ADMIN_TOKEN"):
        monkeypatch.delenv(variable)
    path = tmp_path / "pgshunt.yaml"
    path.write_text(
        f"""
version: 1
shared: {{dbname: monolith, primary: {{host: "${{SHARED_HOST:?the host}}", port: "${{SHARED_PORT}}"}}}}
control: {{user: pgshunt, password_env: CONTROL_UNSET}}
auth: {{users: [{{name: app, password_env: APP_UNSET}}], users_file: nowhere}}
listen: {{tls: {{mode: require, certificate_file: no.crt, key_file: no.key}}}}
admin: {{port: {port}, token_env: TOKEN}}
"""
    )
    asked = ("shift", "auth_service", "--reads", "50", "-c", str(path))
    assert pgshunt(monkeypatch, *asked) == Exit.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "admin.token_env: the environment variable TOKEN is empty or not set" in line
    monkeypatch.setenv("PGSHUNT_ADMIN_TOKEN", "given")
    assert pgshunt(monkeypatch, *asked) == Exit.OK
    monkeypatch.delenv("PGSHUNT_ADMIN_TOKEN")
    monkeypatch.setenv("TOKEN", "mine")
    assert pgshunt(monkeypatch, *asked) == Exit.OK
    assert [token for _, token, _ in api] == ["Bearer given", "Bearer mine"]
    assert pgshunt(monkeypatch, "check", "--file-only", "-c", str(path)) == Exit.USAGE
    told = capsys.readouterr().err
    assert all(
        name in told for name in ("SHARED_HOST", "SHARED_PORT", "CONTROL_UNSET", "APP_UNSET", "no.crt")
    )
    path.write_text(path.read_text().replace("version: 1", "version: 7"))
    assert pgshunt(monkeypatch, *asked) == Exit.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "version" in line


def test_serve_refuses_a_wrong_configuration(monkeypatch: Patch, capsys: Printed, tmp_path: Path) -> None:
    path = tmp_path / "pgshunt.yaml"
    path.write_text("version: 7\n")
    assert pgshunt(monkeypatch, "serve", "-c", str(path)) == Exit.USAGE
    assert "version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("shift", "auth_service", "-o", "json"), "--reads"),
        (("shift", "auth_service", "--reads", "200", "--output=json"), "200"),
        (("status", "-ojson", "--nonsense"), "--nonsense"),
        (("nonsense", "-o", "json"), "nonsense"),
    ],
)
def test_a_wrong_command_line_is_told_in_the_form_asked_for(
    monkeypatch: Patch, capsys: Printed, arguments: tuple[str, ...], told: str
) -> None:
    assert pgshunt(monkeypatch, *arguments) == Exit.USAGE
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["type"] == "urn:pgshunt:problem:wrong_usage"
    assert told in error["detail"]
    assert "Usage: pgshunt" in printed.err


def test_a_wrong_command_line_is_told_once_on_standard_error(monkeypatch: Patch, capsys: Printed) -> None:
    assert pgshunt(monkeypatch, "shift", "auth_service", "--reads", "many") == Exit.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("Usage:") == 1


@pytest.mark.parametrize("source", ["variable", "file", "none"])
def test_a_refused_token_is_told_with_where_it_was_found(
    api: Asked, monkeypatch: Patch, capsys: Printed, tmp_path: Path, source: str
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("word\n")
    if source == "none":
        monkeypatch.delenv("PGSHUNT_ADMIN_TOKEN")
    given = ("--token-file", str(token_file)) if source == "file" else ()
    assert pgshunt(monkeypatch, "status", "locked", "-o", "json", *given) == Exit.FAILED
    remedy = json.loads(capsys.readouterr().out)["error"]["remedy"]
    told = {"variable": "the token of PGSHUNT_ADMIN_TOKEN", "file": f"the token of {token_file}"}
    assert told.get(source, "no token was sent") in remedy
