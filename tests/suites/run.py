"""Runs a driver's own test suite directly and through pgshunt in transaction mode; tells where they differ.

    make suites ARGS="psycopg /path/to/psycopg --python /path/to/env/bin/python"

Nothing is fetched: the checkout is there, and the environment holds the driver it belongs to, with what
`Suite.needs` names. The checkout's tests are copied away from its packages, so that they test the installed
driver. A test whose outcomes differ is run again, on both sides: once it fails on neither, it was not
steady, and no difference. Ends with 1 if there is a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pgshunt.demo.postgres import Server, Servers

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.serve import Serving, configuration

SETTINGS = {"wal_level": "logical", "max_prepared_transactions": "10", "max_connections": "200"}
TEST_TIMEOUT_S = 60
ROUNDS_MAX = 3
OUTCOMES = ("passed", "failed", "skipped", "xfailed", "xpassed", "missing")

Outcomes = dict[str, list[str]]  # test -> outcome, reason
Differences = dict[str, tuple[list[str], list[str]]]
MISSING = ["missing", "the run has not come so far"]


@dataclass(frozen=True, slots=True)
class Suite:
    """A project's tests: what of its checkout to copy, what to run of it, what its environment must hold."""

    copied: tuple[str, ...]
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    dsn_variable: str = ""

    def variables(self, server: Server, port: int) -> dict[str, str]:
        """The environment variables by which its tests find the database."""
        if self.dsn_variable:
            address = f"host={server.host} port={port} dbname=postgres"
            return {self.dsn_variable: f"{address} user={server.user} password={server.password}"}
        return {"PGHOST": server.host, "PGPORT": str(port), "PGPASSWORD": server.password}


SUITES = {
    "psycopg": Suite(
        copied=("tests", "tools", "pyproject.toml"),
        arguments=("-m", "not slow", "tests"),
        needs=("psycopg", "psycopg_pool", "pytest_timeout", "anyio", "pproxy"),
        dsn_variable="PSYCOPG_TEST_DSN",
    ),
    # Each of its auth/ tests wants an entry of its own in pg_hba.conf.
    "pg8000": Suite(
        copied=("test", "pyproject.toml", "README.md"),
        arguments=("--ignore-glob=*/auth/*", "test"),
        needs=("pg8000", "pytest_timeout", "pytest_mock", "pytest_benchmark", "pytz"),
    ),
}


@dataclass(frozen=True, slots=True)
class Runner:
    """A suite, copied to `directory`, with the interpreter that runs it."""

    suite: Suite
    directory: Path
    python: Path
    server: Server

    def copy(self, checkout: Path) -> None:
        for name in self.suite.copied:
            source = checkout / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.directory / name)

    def run(self, port: int, arguments: list[str]) -> Outcomes:
        """The outcome of every test, against the server that listens on `port`."""
        file = self.directory / "outcomes.json"
        file.unlink(missing_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "PYTHON"))}
        environment = {
            **inherited,
            **self.suite.variables(self.server, port),
            "OUTCOMES": str(file),
            "PYTHONPATH": str(Path(__file__).parent),
            "PATH": f"{self.python.parent}{os.pathsep}{inherited['PATH']}",  # programs the suite starts
        }
        command = [str(self.python), "-m", "pytest", "-q", "-p", "outcomes", f"--timeout={TEST_TIMEOUT_S}"]
        with (self.directory / "pytest.log").open("a") as log:
            subprocess.run(
                [*command, *arguments],
                cwd=self.directory,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if not file.exists():
            raise SystemExit(f"pytest did not come to its end: {self.directory / 'pytest.log'}")
        outcomes: Outcomes = json.loads(file.read_text())
        return outcomes


def differences(direct: Outcomes, proxied: Outcomes) -> Differences:
    both = {test: (direct.get(test, MISSING), proxied.get(test, MISSING)) for test in {**direct, **proxied}}
    return {test: pair for test, pair in both.items() if pair[0][0] != pair[1][0]}


def recovered(test: str, *runs: Outcomes) -> bool:
    """Whether it is the same in these runs; failing in all may be what an earlier run left behind."""
    outcomes = {run.get(test, MISSING)[0] for run in runs}
    return len(outcomes) == 1 and "failed" not in outcomes


def table(name: str, counts: dict[str, Counter[str]]) -> str:
    """Markdown: a row for each side, a column for each outcome that occurred."""
    seen = [outcome for outcome in OUTCOMES if any(count[outcome] for count in counts.values())]
    rows = [["suite", "side", *seen], ["---"] * (len(seen) + 2)]
    rows += [[name, side, *(f"{count[outcome]:,}" for outcome in seen)] for side, count in counts.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("checkout", type=Path, help="the driver's sources, of the version that is installed")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="of that environment")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and outcomes; else they go")
    parser.add_argument("tests", nargs="*", help="what to run instead of the whole suite, as pytest takes it")
    options = parser.parse_intermixed_args()
    suite = SUITES[options.suite]
    check = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    if subprocess.run([str(options.python), "-c", check, *suite.needs], check=False).returncode:
        parser.error(f"{options.python} must be able to import {', '.join(suite.needs)}")
    with tempfile.TemporaryDirectory(prefix="pgshunt-suite-") as temporary, Servers() as servers:
        directory = options.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        server = servers.start("suite", SETTINGS)
        server.execute("CREATE EXTENSION hstore")
        runner = Runner(suite, directory, options.python, server)
        runner.copy(options.checkout)
        # The suites make roles and change passwords: pgshunt asks the server for verifiers.
        auth = {"lookup": {"user": server.user, "password": server.password}}
        with Serving(directory, configuration(server, "postgres", auth=auth)) as serving:
            ports = {"direct": server.port, "proxied": serving.port}
            arguments = options.tests or [*suite.arguments]
            sides = {side: runner.run(port, arguments) for side, port in ports.items()}
            differing = differences(sides["direct"], sides["proxied"])
            steady = dict(differing)
            for _ in range(ROUNDS_MAX - 1):
                if steady:
                    again = [runner.run(port, list(steady)) for port in ports.values()]
                    steady = {test: pair for test, pair in steady.items() if not recovered(test, *again)}
        (directory / "sides.json").write_text(json.dumps(sides))
    counts = {side: Counter(outcome for outcome, _ in outcomes.values()) for side, outcomes in sides.items()}
    print(table(options.suite, counts))
    for title, tests in (
        ("Differs:", steady),
        ("Differed once:", {test: pair for test, pair in differing.items() if test not in steady}),
    ):
        if tests:
            print(f"\n{title}")
        for test, ((direct, said), (proxied, why)) in sorted(tests.items()):
            print(f"  {test}: {direct} directly, {proxied} proxied: {(why or said).splitlines()[:1]}")
    sys.exit(bool(steady))


if __name__ == "__main__":
    main()
