"""The command line. Every command answers with `-o json` too; what goes wrong says what to do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from http import HTTPStatus
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import quote

import click

from pgshunt import __version__
from pgshunt.admin import show
from pgshunt.admin.client import Unreachable
from pgshunt.admin.problem import Problem
from pgshunt.admin.target import DEFAULT_URL, Target
from pgshunt.admin.words import counted
from pgshunt.config import ConfigError, Report, Severity, examine, load
from pgshunt.config.problem import dotted
from pgshunt.migration.servers import ServerError

FOLLOW_S = 20.0

Output = Literal["table", "json"]
Command = TypeVar("Command", bound=Callable[..., Any])


EXIT_CODES = (
    "Exit codes: 0 done, 1 failed (a wrong token too), 2 wrong usage or configuration, 3 rolled back, "
    "4 held until re-armed or in trouble, 5 conflict, 6 unreachable."
)


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    ROLLED_BACK = 3
    HELD = 4
    CONFLICT = 5
    UNREACHABLE = 6


_EXIT_OF_KIND = {
    "latched": Exit.HELD,
    "held": Exit.HELD,
    "conflict": Exit.CONFLICT,
    "not_ready": Exit.FAILED,
    "not_yet": Exit.FAILED,
}
_EXIT_OF_STATUS = {
    HTTPStatus.NOT_FOUND: Exit.USAGE,
    HTTPStatus.UNPROCESSABLE_ENTITY: Exit.USAGE,
    HTTPStatus.CONFLICT: Exit.CONFLICT,
}


_file = click.Path(dir_okay=False, path_type=Path)
_config = click.option("-c", "--config", type=_file, help="The configuration file.")


def _keep_output(context: click.Context, _: click.Parameter, output: Output) -> Output:
    """What goes wrong is told outside the command, and in the form it was asked for."""
    context.ensure_object(dict)["output"] = output
    return output


_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    callback=_keep_output,
    help="How to answer; with json a refusal is an object with the key error.",
)


def _about_a_pgshunt(command: Command) -> Command:
    """Options of the commands that ask a running pgshunt."""
    for option in (
        _output,
        click.option("--token-file", type=_file, help="File that holds the admin token."),
        click.option("--url", envvar="PGSHUNT_ADMIN_URL", help=f"The admin API, {DEFAULT_URL} by default."),
        _config,
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__)
def cli() -> None:
    """Moves services off one shared PostgreSQL, one at a time, with a way back at every point."""


# -- the proxy itself -----------------------------------------------------------------------------------


@cli.command()
@click.option("-c", "--config", type=_file, required=True, help="The configuration file.")
def serve(config: Path) -> None:
    """Run the proxy: SIGTERM drains, SIGHUP reloads the configuration, SIGQUIT ends at once."""
    from pgshunt.admin.serve import run
    from pgshunt.admin.supervisor import StartFailed

    _tell_problems(report := examine(config))
    if report.config is None:
        sys.exit(Exit.USAGE)
    try:
        sys.exit(run(report.config, config))
    except StartFailed as error:
        _fail(Exit.FAILED, str(error))


@cli.command()
@_output
@click.option("-c", "--config", type=_file, required=True, help="The configuration file.")
@click.option("--file-only", is_flag=True, help="Do not ask the databases: the file alone.")
def check(config: Path, file_only: bool, output: Output) -> None:
    """Examine a configuration: every problem at once, with its place and what to do."""
    from pgshunt.admin.asking import ask_servers

    report = examine(config) if file_only else examine(config, ask=ask_servers)
    if output == "json":
        problems = [
            {
                "severity": str(problem.severity),
                "place": str(problem.place or ""),
                "path": dotted(problem.path),
                "message": problem.message,
                "remedy": problem.remedy,
            }
            for problem in report.problems
        ]
        _print_json({"ok": report.config is not None, "problems": problems})
    else:
        _tell_problems(report)
        if report.config is not None:
            click.echo(f"{config} is good: {counted(len(report.config.services), 'service')}")
            click.echo(
                "Whether the databases are ready is for `pgshunt begin` to say: wal_level, free slots, keys "
                "of tables, rights of control.user, the way from server to server"
            )
    sys.exit(Exit.OK if report.config is not None else Exit.USAGE)


@cli.command()
@_output
@click.option(
    "-c", "--config", type=_file, default="pgshunt.yaml", help="The file to write; it must not exist."
)
@click.option(
    "--observed",
    help="What a pgshunt in front of it has seen: address of its admin API, or a file.",
)
@click.argument("url")
def init(url: str, config: Path, observed: str | None, output: Output) -> None:
    """Propose a configuration for the database postgres://user@host/dbname (password: PGPASSWORD)."""
    from pgshunt.admin.init import document, draft_from, observed_by, parse_url, save, told

    try:
        endpoint, control = parse_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from error
    if config.exists():
        raise click.BadParameter(f"{config} exists: name another file", param_hint="--config")
    try:
        seen = observed_by(observed) if observed else None
    except ValueError as error:
        raise click.BadParameter(f"{observed}: {error}", param_hint="--observed") from error
    draft = draft_from(endpoint, control, seen)
    _answer(output, document(draft, config, save(draft, config)), told)


@cli.command(hidden=True)
@click.option("--index", type=int, required=True)
@click.option("--channel-fd", type=int, required=True)
@click.option("--board-fd", type=int, required=True)
@click.option("--inbox-fd", type=int, required=True)
@click.option("--listen-fds", required=True)
@click.option("--peer-fds", required=True)
def worker(index: int, channel_fd: int, board_fd: int, inbox_fd: int, listen_fds: str, peer_fds: str) -> None:
    """One worker process; only the supervisor can start it."""
    from pgshunt.admin.logs import log_aside
    from pgshunt.proxy.worker import Inherited, main, parse_fds

    inherited = Inherited(index, channel_fd, board_fd, inbox_fd, parse_fds(listen_fds), parse_fds(peer_fds))
    with log_aside(f"worker {index}: "):
        main(inherited)


# -- asking and changing a running one ------------------------------------------------------------------


@cli.command()
@_about_a_pgshunt
@click.option(
    "--exit-code", is_flag=True, help="Exit 3 if a service is rolled back, 4 if one is held or in trouble."
)
@click.argument("service", required=False)
def status(service: str | None, exit_code: bool, output: Output, **target: Any) -> None:
    """Say where every service stands, or one in full."""
    client = Target(**target).client()
    if service:
        document = client.get(_path(service))
        _answer(output, document, show.service)
        services = [document]
    else:
        document = client.get("/api/v1/status")
        _answer(output, document, show.status)
        services = document["services"]
    if exit_code:
        sys.exit(_exit_of(services))


@cli.command()
@_about_a_pgshunt
@click.argument("service")
def readiness(service: str, output: Output, **target: Any) -> None:
    """Say what would break behind the switch of a service, and what to do about it."""
    document = Target(**target).client().get(_path(service) + "/readiness")
    _answer(output, document, show.readiness)


@cli.command()
@_about_a_pgshunt
@click.option(
    "--wait", is_flag=True, help="Return when the copy is whole and follows (4 if it stops before)."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="With --wait: how long at most; the copy goes on all the same.",
)
@click.argument("service")
def begin(service: str, wait: bool, timeout_s: float, output: Output, **target: Any) -> None:
    """Start copying a service into its own database."""
    if not wait:
        _change(output, target, service, "begin")
        return
    from pgshunt.admin.waiting import copied

    _answer(output, copied(Target(**target).client(), _path(service), timeout_s), _sentence)


@cli.command()
@_about_a_pgshunt
@click.option("--reads", type=click.IntRange(0, 100), required=True, help="Percent of the reads, 0 to 100.")
@click.argument("service")
def shift(service: str, reads: int, output: Output, **target: Any) -> None:
    """Send a share of a service's reads to its own database."""
    _change(output, target, service, "shift", reads=reads)


@cli.command()
@_about_a_pgshunt
@click.option("--reason", default="", help="For the event log.")
@click.argument("service")
def rollback(service: str, reason: str, output: Output, **target: Any) -> None:
    """Send all reads of a service back to the shared database, and hold it there."""
    _change(output, target, service, "rollback", reason=reason)


@cli.command()
@_about_a_pgshunt
@click.option("--reason", required=True, help="Why it is safe to go on; kept in the event log.")
@click.argument("service")
def rearm(service: str, reason: str, output: Output, **target: Any) -> None:
    """Let a service that was rolled back take reads again, from 0 %."""
    _change(output, target, service, "rearm", reason=reason)


@cli.command()
@_about_a_pgshunt
@click.option(
    "--target-is-gone",
    is_flag=True,
    help="Free the shared database even if the own one does not answer or obey.",
)
@click.argument("service")
def abandon(service: str, target_is_gone: bool, output: Output, **target: Any) -> None:
    """Undo the move of a service: no reads, no lane, and no copies in its own database any more."""
    _change(output, target, service, "abandon", **({"target_is_gone": True} if target_is_gone else {}))


@cli.command()
@_about_a_pgshunt
@click.option("--after", type=click.IntRange(0), default=0, help="Only events with a greater number.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
def events(after: int, follow: bool, output: Output, **target: Any) -> None:
    """List what happened. With -o json and -f: one object a line."""
    client = Target(**target).client()
    found = client.get("/api/v1/events", after=after)["events"]
    if not follow:
        _answer(output, {"events": found}, lambda document: show.events(document["events"]))
        return
    while True:
        for event in found:
            click.echo(json.dumps(event) if output == "json" else show.event(event))
            after = event["id"]
        found = client.get("/api/v1/events", FOLLOW_S + 10, after=after, wait_s=FOLLOW_S)["events"]


@cli.command()
@_about_a_pgshunt
@click.option(
    "--as", "user", default="", help="As a session of this user sees it: its search_path, and what $user is."
)
@click.option("--service", default="", help="As a session of this service's first user sees it.")
@click.option("--search-path", default="", help="Schemas in which names are looked up.")
@click.option(
    "--offline", is_flag=True, help="Ask no pgshunt: read the catalogue from the shared database (-c)."
)
@click.argument("sql")
def explain(
    sql: str,
    user: str,
    service: str,
    search_path: str,
    offline: bool,
    output: Output,
    config: Path | None,
    **target: Any,
) -> None:
    """Say where a statement goes, and why."""
    if not sql.strip():
        raise click.BadParameter("it is empty: give the statement to explain", param_hint="SQL")
    if offline:
        if config is None:
            raise click.UsageError("--offline needs -c: it says where the shared database is")
        from pgshunt.admin.offline import explain_offline

        document = explain_offline(load(config), sql, user, search_path)
    else:
        client = Target(config=config, **target).client()
        asked = {"sql": sql, "as": user, "service": service, "search_path": search_path}
        document = client.get("/api/v1/explain", **asked)
    _answer(output, document, show.explanation)


# -- small things ---------------------------------------------------------------------------------------


def _change(output: Output, target: dict[str, Any], service: str, action: str, **body: Any) -> None:
    document = Target(**target).client().post(f"{_path(service)}/{action}", 60.0, **body)
    _answer(output, document, _sentence)


def _sentence(document: Any) -> str:
    return str(document["sentence"])


def _path(service: str) -> str:
    """Of a service in the admin API, whatever stands in its name."""
    return f"/api/v1/services/{quote(service, safe='')}"


def _answer(output: Output, document: Any, render: Callable[[Any], str]) -> None:
    if output == "json":
        _print_json(document)
    else:
        click.echo(render(document))


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def _exit_of(services: list[dict[str, Any]]) -> Exit:
    if any(service["latch"] for service in services):
        return Exit.ROLLED_BACK
    held = any(trigger["verdict"] == "fail" for service in services for trigger in service["triggers"])
    return Exit.HELD if held or any(service["attention"] for service in services) else Exit.OK


def _tell_problems(report: Report) -> None:
    for problem in report.problems:
        if problem.severity is not Severity.NOTE:
            click.echo(str(problem), err=True)


def _fail(code: Exit, message: str) -> NoReturn:
    click.echo(f"pgshunt: {message}", err=True)
    sys.exit(code)


def _exit_code(problem: Problem) -> Exit:
    return _EXIT_OF_KIND.get(problem.kind) or _EXIT_OF_STATUS.get(problem.status, Exit.FAILED)


def _error(kind: str, detail: str) -> dict[str, Any]:
    """A failure on this side of the admin API, in the form of its problems."""
    return {
        "type": f"urn:pgshunt:problem:{kind}",
        "title": kind.replace("_", " "),
        "detail": detail,
        "remedy": "",
    }


def main() -> None:
    """Runs the command in sys.argv and exits."""
    asked = {"output": "json"} if _asks_for_json(sys.argv[1:]) else {}
    try:
        sys.exit(cli.main(prog_name="pgshunt", obj=asked, standalone_mode=False))
    except click.Abort:
        code, message, error = Exit.FAILED, "pgshunt: aborted", _error("aborted", "aborted")
    except click.ClickException as wrong:
        wrong.show(usage := StringIO())
        code, message = Exit(wrong.exit_code), usage.getvalue().rstrip()
        error = _error("wrong_usage", wrong.format_message())
    except Problem as problem:
        code, message = _exit_code(problem), f"pgshunt: {problem}"
        error = problem.more.get("answer") or problem.to_dict()
    except Unreachable as unreachable:
        code, message = Exit.UNREACHABLE, f"pgshunt: {unreachable}"
        error = _error("unreachable", str(unreachable))
    except ConfigError as bad:
        code, message, error = Exit.USAGE, str(bad), _error("bad_configuration", str(bad))
    except (OSError, ServerError) as failure:
        code, message, error = Exit.FAILED, f"pgshunt: {failure}", _error("failed", str(failure))
    if asked.get("output") == "json":
        _print_json({"error": error})
    click.echo(message, err=True)
    sys.exit(code)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether -o json is among them: what is wrong with a command line is told before click has read it."""
    options = " ".join(arguments).replace("--output", "-o").replace("=", " ")
    return bool(re.search(r"(^| )-o ?json( |$)", options))
