"""pg_dump and pg_restore, in every format, in parallel too: the same dump, the same database."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers.sides import Run, Sides
from support.fixtures import Database
from support.relay import RunningRelay

from pgshunt.demo.binaries import find_binaries

BINARIES = find_binaries()
PROGRAMS = {name: Path(BINARIES.program(name)) for name in ("pg_dump", "pg_restore", "psql")}
pytestmark = pytest.mark.skipif(
    not all(map(Path.is_file, PROGRAMS.values())), reason=f"no {', '.join(PROGRAMS)} at {BINARIES.directory}"
)

CONTENT = """
CREATE SCHEMA stock;
CREATE SEQUENCE stock.number START 7;
CREATE TABLE stock.part (
    id int PRIMARY KEY DEFAULT nextval('stock.number'), label text, weight numeric CHECK (weight > 0)
);
CREATE INDEX part_label ON stock.part (lower(label));
CREATE VIEW stock.heavy AS SELECT * FROM stock.part WHERE weight > 5;
CREATE TABLE stock.entry (part int REFERENCES stock.part, at date) PARTITION BY RANGE (at);
CREATE TABLE stock.entry_2024 PARTITION OF stock.entry FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE FUNCTION stock.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
CREATE TRIGGER touched BEFORE UPDATE ON stock.part FOR EACH ROW EXECUTE FUNCTION stock.touch();
INSERT INTO stock.part (label, weight) SELECT E'part \\t' || n, n FROM generate_series(1, 2000) n;
INSERT INTO stock.entry SELECT n + 6, date '2024-01-01' + n % 300 FROM generate_series(1, 2000) n;
SELECT lo_from_bytea(4711, repeat('large', 1000)::bytea);
"""


def tool(program: str, run: Run, *options: str) -> str:
    """What it printed. It must end well."""
    done = subprocess.run(
        [
            str(PROGRAMS[program]),
            f"--host={run.host}",
            f"--port={run.port}",
            f"--username={run.user}",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PGPASSWORD": run.password},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plain(dump: str) -> str:
    """Without the key that newer releases put around a dump, another one each time."""
    return re.sub(r"^\\(un)?restrict \w+$", "", dump, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def sides(driver_database: Database) -> Iterator[Sides]:
    """A link for each connection of `pg_dump -j`: all of them are in transactions at once."""
    with RunningRelay(driver_database) as relay:
        yield Sides(driver_database, relay.port)


@pytest.fixture
def stocked(sides: Sides) -> Sides:
    sides.database.execute(
        "DROP SCHEMA IF EXISTS stock CASCADE; SELECT lo_unlink(oid) FROM pg_largeobject_metadata"
    )
    sides.database.execute(CONTENT)
    return sides


def test_the_dump_is_the_same(stocked: Sides) -> None:
    dbname = stocked.database.dbname
    direct, proxied = (stocked.run(port) for port in (stocked.database.server.port, stocked.proxy_port))
    for options in ((), ("--inserts", "--schema=stock"), ("--schema-only",), ("--serializable-deferrable",)):
        dump = plain(tool("pg_dump", proxied, *options, dbname))
        assert dump == plain(tool("pg_dump", direct, *options, dbname))
        assert "CREATE TABLE stock.part" in dump


@pytest.mark.parametrize("options", [("-Fc",), ("-Fd",), ("-Fd", "-j2"), ("-Ft",)], ids=" ".join)
def test_restored_through_the_proxy_it_is_the_same(
    options: tuple[str, ...], stocked: Sides, tmp_path: Path
) -> None:
    """Dumped through the proxy, dropped, restored through the proxy: a direct dump shows no difference."""
    dbname, file = stocked.database.dbname, str(tmp_path / "dump")
    direct, proxied = (stocked.run(port) for port in (stocked.database.server.port, stocked.proxy_port))
    before = plain(tool("pg_dump", direct, dbname))
    tool("pg_dump", proxied, *options, f"--file={file}", dbname)
    jobs = options[1:] if "-Fd" in options else ("--single-transaction",)
    tool("pg_restore", proxied, "--clean", "--if-exists", *jobs, f"--dbname={dbname}", file)
    assert plain(tool("pg_dump", direct, dbname)) == before


def test_a_plain_dump_is_restored_by_psql(stocked: Sides, tmp_path: Path) -> None:
    dbname, file = stocked.database.dbname, tmp_path / "dump.sql"
    direct, proxied = (stocked.run(port) for port in (stocked.database.server.port, stocked.proxy_port))
    before = plain(tool("pg_dump", direct, dbname))
    file.write_text(tool("pg_dump", proxied, "--clean", "--if-exists", dbname))
    tool("psql", proxied, "-X", "-q", "-v", "ON_ERROR_STOP=1", f"--file={file}", dbname)
    assert plain(tool("pg_dump", direct, dbname)) == before
