"""Verification between real servers: every planted divergence is found, and lag is never mistaken for one."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.fixtures import Database
from support.moving import EAGER, databases, moving

from pgshunt.demo.postgres import Server as Postgres
from pgshunt.migration import verify
from pgshunt.migration.verify import Divergence, Verifier, VerifyResult

_numbers = itertools.count()

SCHEMA = """
CREATE TABLE accounts (id bigint PRIMARY KEY, owner text NOT NULL,
    balance numeric NOT NULL, at timestamptz, f float8);
CREATE TABLE members (team text, person int, payload jsonb, PRIMARY KEY (team, person));
CREATE TABLE heap (a int, b text);
ALTER TABLE heap REPLICA IDENTITY FULL;
INSERT INTO accounts SELECT i, 'owner ' || i, i / 7.0, now() - i * interval '1 s', i / 3.0
    FROM generate_series(1, 3000) i;
INSERT INTO members SELECT 'team ' || i % 50, i, jsonb_build_object('n', i) FROM generate_series(1, 1200) i;
INSERT INTO heap SELECT i % 10, 'x' FROM generate_series(1, 300) i;
"""
TABLES = ("public.accounts", "public.members", "public.heap")


@pytest.fixture(scope="module")
def pair(postgres_pair: tuple[Postgres, Postgres]) -> Iterator[tuple[Database, Database]]:
    with databases(postgres_pair, "verify") as made:
        made[0].execute(SCHEMA)
        for setting in ("DateStyle = 'German'", "extra_float_digits = 0", "TimeZone = 'Asia/Kolkata'"):
            made[1].execute(f"ALTER DATABASE verify SET {setting}")  # must not matter
        yield made


async def _pass(verifier: Verifier) -> VerifyResult:
    results = [result async for result in verifier.run_pass()]
    assert results[-1].is_pass
    assert results[-1].rows_compared == sum(result.rows_compared for result in results[:-1])
    return results[-1]


def test_a_quiet_copy_is_clean_and_every_planted_divergence_is_found_until_repaired(
    pair: tuple[Database, Database],
) -> None:
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "bank_service", TABLES) as running:
            clean = await _pass(running.verifier())
            assert (clean.rows_compared, clean.confirmed, clean.undecided) == (4500, (), 0)
            assert clean.tables_without_key == ("public.heap",)

            own.execute(
                "UPDATE accounts SET balance = 1.0 WHERE id = 7;"
                "DELETE FROM accounts WHERE id = 2999; INSERT INTO accounts VALUES (9000, 'rogue', 1);"
                "UPDATE members SET payload = '{}' WHERE (team, person) = ('team 7', 7); "
                "DELETE FROM heap WHERE ctid = '(0,1)'"
            )
            wrong = (
                Divergence("public.accounts", ("7",), "different"),  # 1.0 is not 1.000
                Divergence("public.accounts", ("2999",), "missing"),
                Divergence("public.accounts", ("9000",), "extra"),
                Divergence("public.members", ("team 7", "7"), "different"),
                Divergence("public.heap", (), "multiset"),
            )
            for _ in range(2):
                found = await _pass(running.verifier())
                assert (found.confirmed, found.undecided) == (wrong, 0)

            own.execute(
                "DELETE FROM accounts WHERE id IN (7, 9000); DELETE FROM members WHERE person = 7; "
                "TRUNCATE heap"
            )
            with closing(own.connect()) as mending:
                for table, condition in (
                    ("accounts", "id IN (7, 2999)"),
                    ("members", "person = 7"),
                    ("heap", "true"),
                ):
                    for (row,) in shared.execute(f"SELECT t::text FROM {table} t WHERE {condition}"):
                        mending.run(f"INSERT INTO {table} SELECT (CAST(:row AS {table})).*", row=row)
            repaired = await _pass(running.verifier())
            assert (repaired.confirmed, repaired.undecided) == ((), 0)

    asyncio.run(scenario())


def test_rows_that_others_hold_locks_on_are_decided_all_the_same(pair: tuple[Database, Database]) -> None:
    """A lock leaves its mark in xmax for ever, as foreign keys do; such a row needs one look more."""
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "bank_service", ("public.accounts",)) as running:
            shared.execute("SELECT id FROM accounts WHERE id = 20 FOR KEY SHARE")
            own.execute("UPDATE accounts SET owner = 'rogue' WHERE id = 20")
            found = await _pass(running.verifier())
            assert found.confirmed == (Divergence("public.accounts", ("20",), "different"),)

    asyncio.run(scenario())


def test_a_copy_with_many_rows_too_many_is_looked_at_in_pieces(pair: tuple[Database, Database]) -> None:
    """All of them at once would not fit into memory, nor into the time a question may take."""
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "bank_service", ("public.accounts",)) as running:
            own.execute("INSERT INTO accounts SELECT i, 'rogue', 1 FROM generate_series(10001, 13000) i")
            own.execute("INSERT INTO accounts SELECT -i, 'rogue', 1 FROM generate_series(1, 700) i")
            results = [result async for result in running.verifier().run_pass()]
            assert max(result.rows_compared for result in results[:-1]) == EAGER.rows_per_chunk
            assert results[-1].confirmed_total == 3700
            assert {wrong.kind for wrong in results[-1].confirmed} == {"extra"}

    asyncio.run(scenario())


def test_a_table_that_does_not_answer_in_time_keeps_no_other_from_being_compared(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "bank_service", ("public.members", "public.accounts")) as running:
            own.execute("DELETE FROM accounts WHERE id = 8")
            with closing(own.connect()) as locking:
                locking.run("BEGIN; LOCK TABLE members IN ACCESS EXCLUSIVE MODE")
                with monkeypatch.context() as patch:
                    patch.setattr(verify, "QUERY_TIMEOUT_S", 0.3)
                    found = await _pass(running.verifier())
                locking.run("ROLLBACK")
            assert (found.not_compared, found.undecided) == (("public.members",), 1)
            assert found.confirmed == (Divergence("public.accounts", ("8",), "missing"),)
            whole = await _pass(running.verifier())
            assert (whole.not_compared, whole.undecided) == ((), 0)

    asyncio.run(scenario())


class Writers(threading.Thread):
    """Changes a few hot rows in every way there is, and puts many back as they were, until told to stop."""

    def __init__(self, database: Database, seed: int) -> None:
        super().__init__(daemon=True)
        self._random = random.Random(seed)
        self._connection = database.connect()
        self._stopping = threading.Event()
        self.writes = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            key = self._random.randint(5001, 5020)
            match self._random.randint(0, 4):
                case 0:
                    sql = f"INSERT INTO accounts VALUES ({key}, 'new', 1) ON CONFLICT DO NOTHING"
                case 1:
                    sql = f"DELETE FROM accounts WHERE id = {key}"
                case 2:  # there and gone again, and the other way round: the end looks like the beginning
                    sql = (
                        f"INSERT INTO accounts VALUES ({key}, 'flicker', 1) ON CONFLICT DO NOTHING; "
                        f"DELETE FROM accounts WHERE id = {key} AND owner = 'flicker'"
                    )
                case 3:
                    sql = f"UPDATE accounts SET balance = balance + 1 WHERE id = {key}"
                case _:
                    sql = "INSERT INTO heap VALUES (1, 'y'); DELETE FROM heap WHERE b = 'y'"
            for statement in sql.split("; "):
                self._connection.run(statement)
                self.writes += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        self._connection.close()


@settings(
    max_examples=3,
    phases=[Phase.explicit, Phase.generate],  # a failure of timing does not shrink
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**32),
    pauses_s=st.lists(st.tuples(st.floats(0.0, 0.4), st.floats(0.05, 0.5)), min_size=2, max_size=4),
)
def test_lag_is_never_mistaken_for_divergence(
    pair: tuple[Database, Database], seed: int, pauses_s: list[tuple[float, float]]
) -> None:
    """The lane is stopped and started at random under writes, while passes run without a pause."""
    shared, own = pair

    async def scenario() -> None:
        async with moving(shared, own, "bank_service", ("public.accounts", "public.heap")) as running:
            writers = Writers(shared, seed)
            writers.start()
            disturbing = asyncio.create_task(disturb(running.lane.set_enabled))
            verifier = running.verifier(replace(EAGER, fence_timeout_s=1.0))
            suspected = 0
            while not disturbing.done():
                result = await _pass(verifier)
                assert result.confirmed == ()
                suspected += result.undecided
            await disturbing
            writers.stop()
            assert writers.writes > 0
            own.execute("UPDATE accounts SET owner = 'rogue' WHERE id = 30")
            assert [found.key for found in (await _pass(verifier)).confirmed] == [("30",)]
            own.execute("UPDATE accounts SET owner = 'owner 30' WHERE id = 30")

    async def disturb(set_enabled: Callable[[bool], Awaitable[None]]) -> None:
        for running_s, stopped_s in pauses_s:
            await asyncio.sleep(running_s)
            await set_enabled(False)
            await asyncio.sleep(stopped_s)
            await set_enabled(True)

    asyncio.run(scenario())
