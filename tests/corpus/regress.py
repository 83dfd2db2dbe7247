"""Compares the tables the classifier names with those PostgreSQL opens, on its own regression scripts.

    make corpus                          the source of the installed PostgreSQL 15, by apt-get
    make corpus ARGS=/path/to/regress    src/test/regress of a source that is there already

psql plays the scripts in their order against a server of its own, through a tap (tap.py). Prints what was not
equal by cause, and every statement that would be routed wrongly; ends with 1 if there is one. What is judged
so and is not stands in expected.py, each with its reason.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from corpus.compare import Comparison
from corpus.source import obtain
from corpus.tap import Tap

from pgshunt.demo.postgres import Servers

SETTINGS = {"max_prepared_transactions": "10", "wal_level": "logical"}
DATABASE = "regression"
PSQL = ("psql", "-X", "-q", "-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on")
SCRIPT_S_MAX = 300


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, help="src/test/regress of PostgreSQL 15")
    parser.add_argument("--only", nargs="+", default=[], metavar="SCRIPT", help="these scripts only")
    parser.add_argument("--list", action="store_true", help="print the conservative statements, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgshunt-corpus-", dir="/tmp") as directory:
        source = arguments.source or obtain(Path(directory))
        comparison, failures = compare(source.resolve(), arguments.only)
    for finding in comparison.findings if arguments.list else comparison.faults():
        print(finding)
    for failure in failures:
        print(failure)
    print(comparison.summary())
    return int(bool(failures or comparison.faults()))


def compare(source: Path, only: list[str]) -> tuple[Comparison, list[str]]:
    """Play the scripts of `source`; what kept one from being played to its end comes second."""
    comparison, failures = Comparison(), []
    with Servers() as servers:
        server = servers.start("regress", SETTINGS, method="trust")
        server.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
        server.execute(f"ALTER DATABASE {DATABASE} SET lc_messages TO 'C'")
        tap = Tap((server.host, server.port), server.dsn, comparison)
        output = servers.directory / "output"
        (output / "results").mkdir(parents=True)
        for part in (output, output / "results"):
            servers.account.own(part)
        for name in only or schedule(source):
            comparison.script = name
            print(name, end=" ", flush=True)
            try:
                play(source, name, tap.port, output)
            except subprocess.TimeoutExpired:
                failures.append(f"{name} took longer than {SCRIPT_S_MAX} s")
        print()
        tap.close()
    return comparison, failures + [repr(failure) for failure in tap.failures]


def schedule(source: Path) -> list[str]:
    """The scripts' names in their order."""
    lines = (source / "parallel_schedule").read_text().splitlines()
    return [name for line in lines if line.startswith("test:") for name in line.split()[1:]]


def play(source: Path, name: str, port: int, output: Path) -> None:
    """Raises subprocess.TimeoutExpired."""
    variables = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": "postgres",
        "PGDATABASE": DATABASE,
        "PGSSLMODE": "disable",
        "PGGSSENCMODE": "disable",
        "PGTZ": "PST8PDT",
        "PGDATESTYLE": "Postgres, MDY",
        "PG_ABS_SRCDIR": str(source),
        "PG_ABS_BUILDDIR": str(output),
        "PG_LIBDIR": "",
        "PG_DLSUFFIX": ".so",
    }
    subprocess.run(
        [*PSQL, "-f", str(source / "sql" / f"{name}.sql")],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=SCRIPT_S_MAX,
        check=False,
    )


if __name__ == "__main__":
    sys.exit(main())
