"""psql, the binary: what a script prints is the same directly and through the proxy, errors included."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from drivers.sides import Run, Sides

from pgshunt.demo.binaries import find_binaries

PSQL = Path(find_binaries().program("psql"))
pytestmark = pytest.mark.skipif(not PSQL.is_file(), reason=f"no psql at {PSQL}")

SCRIPT = r"""
\set ON_ERROR_STOP off
\set number {number}
\pset null '(null)'
SELECT id, owner, balance FROM account WHERE session = :number ORDER BY id LIMIT 3;
SELECT 1 AS a \; SELECT 'two' AS b;
SELECT count(*) AS counted FROM account WHERE session = :number \gset
\echo :counted
SELECT 'x' AS one, 1.5 AS two \gdesc
SELECT format('SELECT %s', n) FROM generate_series(1, 3) n \gexec
\d account
\d+ document
\dt
\dT+ mood
\df announce
\sf announce
SELECT announce('from psql');
SELECT nope FROM account;
\errverbose
SELECT 1 / 0;
BEGIN;
UPDATE account SET balance = balance + 1 WHERE session = :number;
SAVEPOINT s;
INSERT INTO account VALUES (:number, 1, 'twice', 0);
SELECT 1;
ROLLBACK TO s;
SELECT sum(balance) FROM account WHERE session = :number;
COMMIT;
SELECT sum(balance) FROM account WHERE session = :number;
\copy account FROM stdin
{number}	900	copied	1
{number}	901	copied	2
\.
\copy (SELECT * FROM account WHERE session = {number} AND id >= 900 ORDER BY id) TO stdout
COPY account FROM stdin;
{number}	1	twice	1
\.
COPY (SELECT owner FROM account WHERE session = {number} ORDER BY id LIMIT 2) TO stdout (FORMAT csv, HEADER);
\set FETCH_COUNT 7
SELECT generate_series(1, 20);
\unset FETCH_COUNT
PREPARE p (int) AS SELECT $1 * 2;
EXECUTE p (21);
DEALLOCATE p;
SET work_mem = '6MB';
SHOW work_mem;
\encoding LATIN1
SELECT 'é', length('é');
\encoding UTF8
CREATE TEMP TABLE scratch (a int);
INSERT INTO scratch SELECT generate_series(1, 5) RETURNING a;
\crosstabview
EXPLAIN (COSTS off) SELECT * FROM account WHERE session = 1 AND id = 1;
DO $$ BEGIN RAISE WARNING 'careful'; END $$;
\q
"""


def psql(run: Run, *options: str, script: str = "", conninfo: str = "") -> subprocess.CompletedProcess[str]:
    target = f"host={run.host} port={run.port} user={run.user} dbname={run.database.dbname} {conninfo}"
    return subprocess.run(
        [str(PSQL), "-X", *options, target],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PGPASSWORD": run.password, "PGCLIENTENCODING": "UTF8", "LC_ALL": "C.UTF-8"},
        check=False,
    )


def test_a_script_prints_the_same(sides: Sides) -> None:
    def programme(run: Run) -> tuple[int, str, str]:
        done = psql(run, "-a", script=SCRIPT.replace("{number}", str(run.number)))
        return done.returncode, done.stdout, done.stderr

    sides.compare(programme)


def test_one_transaction_of_several_commands(sides: Sides) -> None:
    def programme(run: Run) -> tuple[int, str, str]:
        commands = [
            f"UPDATE account SET owner = 'single' WHERE session = {run.number}",
            "SELECT 1 / 0",
            "SELECT 'never reached'",
        ]
        options = [option for command in commands for option in ("-c", command)]
        done = psql(run, "-1", "-v", "ON_ERROR_STOP=1", *options)
        left = psql(
            run, "-At", "-c", f"SELECT DISTINCT owner = 'single' FROM account WHERE session = {run.number}"
        )
        return done.returncode, done.stdout + left.stdout, done.stderr + left.stderr

    sides.compare(programme)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_without_tls(mode: str, sides: Sides) -> None:
    """The proxy has no TLS: a client that prefers it goes on in the clear."""
    done = psql(sides.run(sides.proxy_port), "-At", "-c", "SELECT 'in'", conninfo=f"sslmode={mode}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "")


def test_tls_required(sides: Sides) -> None:
    """It fails as at a PostgreSQL without TLS."""
    answers = []
    for port in (sides.database.server.port, sides.proxy_port):
        done = psql(sides.run(port), "-c", "SELECT 1", conninfo="sslmode=require")
        answers.append((done.returncode, done.stdout, done.stderr.replace(str(port), "PORT")))
    assert answers[1] == answers[0]
    assert "server does not support SSL" in answers[1][2]
