"""pgbench fills its tables through the proxy and runs in every mode: no transaction fails, the sums agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from drivers.sides import Run, Sides

from pgshunt.demo.binaries import find_binaries

PGBENCH = Path(find_binaries().program("pgbench"))
pytestmark = pytest.mark.skipif(not PGBENCH.is_file(), reason=f"no pgbench at {PGBENCH}")

CLIENTS = 8
TRANSACTIONS = 150  # of each client


def pgbench(run: Run, *options: str) -> str:
    """What it printed on both channels. It must end well."""
    command = [
        str(PGBENCH),
        "-h",
        run.host,
        "-p",
        str(run.port),
        "-U",
        run.user,
        *options,
        run.database.dbname,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={"PGPASSWORD": run.password}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def filled(sides: Sides) -> Run:
    """Tables made and filled through the proxy: DDL, COPY, VACUUM, primary and foreign keys."""
    run = sides.run(sides.proxy_port)
    pgbench(run, "-i", "-I", "dtgvpf", "-s", "1")
    return run


def test_the_tables_are_filled(filled: Run) -> None:
    counts = "SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_tellers),"
    keys = " (SELECT count(*) FROM pg_constraint WHERE conrelid::regclass::text LIKE 'pgbench%')"
    assert filled.database.execute(counts + keys) == [[100_000, 10, 8]]


def test_the_tables_are_filled_by_the_server(filled: Run) -> None:
    pgbench(filled, "-i", "-I", "dtGvpf", "-s", "1")
    assert filled.database.execute("SELECT count(*), sum(abalance) FROM pgbench_accounts") == [[100_000, 0]]


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
@pytest.mark.parametrize("script", ["tpcb-like", "select-only"])
def test_no_transaction_fails(script: str, mode: str, filled: Run) -> None:
    """A thread for each client: PQprepare blocks its thread, and with it those clients of the thread whose
    transactions hold the links it waits for.
    """
    database = filled.database
    before = database.execute("SELECT count(*) FROM pgbench_history")[0][0]
    printed = pgbench(
        filled,
        "-b",
        script,
        "-M",
        mode,
        "-n",
        "-c",
        str(CLIENTS),
        "-j",
        str(CLIENTS),
        "-t",
        str(TRANSACTIONS),
    )
    wanted = CLIENTS * TRANSACTIONS
    assert f"number of transactions actually processed: {wanted}/{wanted}" in printed
    failed = re.search(r"number of failed transactions: (\d+)", printed)
    assert failed is None or failed[1] == "0"
    assert "error" not in printed.lower()
    if script == "tpcb-like":
        sums = database.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)"
        )[0]
        assert len(set(sums)) == 1
        assert database.execute("SELECT count(*) FROM pgbench_history") == [[before + wanted]]


def test_a_connection_for_each_transaction(filled: Run) -> None:
    printed = pgbench(filled, "-b", "select-only", "-n", "-C", "-c", str(CLIENTS), "-t", "10")
    assert "number of transactions actually processed: 80/80" in printed


def test_pipelines(filled: Run, tmp_path: Path) -> None:
    """\\startpipeline … \\endpipeline in one transaction, in both extended modes."""
    script = tmp_path / "pipeline.sql"
    script.write_text(
        "\\set aid random(1, 100000)\n\\startpipeline\nBEGIN;\n"
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"
        "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
        "UPDATE pgbench_accounts SET abalance = abalance - 1 WHERE aid = :aid;\nEND;\n\\endpipeline\n"
    )
    before = filled.database.execute("SELECT sum(abalance) FROM pgbench_accounts")
    for mode in ("extended", "prepared"):
        clients = ("-c", str(CLIENTS), "-j", str(CLIENTS))
        printed = pgbench(filled, "-f", str(script), "-M", mode, "-n", *clients, "-t", "30")
        assert "number of transactions actually processed: 240/240" in printed
    assert filled.database.execute("SELECT sum(abalance) FROM pgbench_accounts") == before
