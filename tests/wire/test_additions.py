"""A session that adds columns to a moving table waits for the supervisor's answer, and nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import SYNC, WireClient, bind, execute, kinds, parse, sqlstate

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

ALTER = "ALTER TABLE t ADD COLUMN more int DEFAULT 5"
REFUSED = "0A000"

Asked = list[dict[str, Any]]


@pytest.fixture
def relay(database_pair: tuple[Database, Database]) -> Iterator[RunningRelay]:
    for database in database_pair:
        database.create_app()
        database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)")
    with RunningRelay(*database_pair, tables=("t",), reads_percent=100) as running:
        running.shift(100, ddl="both")
        yield running


@pytest.fixture
def asked(relay: RunningRelay) -> Asked:
    """What the supervisor would be asked."""
    questions: Asked = []
    relay.call(lambda it: setattr(it, "on_addition", questions.append))
    return questions


def log_in(relay: RunningRelay) -> WireClient:
    return WireClient(relay.connect()).log_in("app", relay.shared.dbname)


@pytest.fixture
def client(relay: RunningRelay, asked: Asked) -> Iterator[WireClient]:
    with log_in(relay) as connected:
        yield connected


def answer(relay: RunningRelay, asked: Asked, error: tuple[str, str, str] | None = None) -> dict[str, Any]:
    relay.wait_for(lambda: bool(asked), "it has asked")
    question = asked.pop(0)
    relay.call(lambda it: it.added(question["question"], error))
    return question


def test_it_is_answered_when_the_columns_are_there(
    relay: RunningRelay, asked: Asked, client: WireClient
) -> None:
    client.send(messages.query(ALTER.encode()))
    with log_in(relay) as other:
        assert other.value("SELECT count(*) FROM t") == "0"
    before = sum(relay.board.definitions)
    question = answer(relay, asked)
    frames = client.until_ready()
    assert (kinds(frames), frames[0].body, frames[1].body) == ("CZ", b"ALTER TABLE\0", b"I")
    assert sum(relay.board.definitions) == before + 1
    columns = [["more", 'pg_catalog."int4" DEFAULT 5', False]]
    named = {"table": "public.t", "written": '"t"', "path": ["app", "public"]}
    assert (question["user"], question["addition"]) == ("app", named | {"columns": columns})
    assert client.value("SELECT 7") == "7"


def test_an_error_is_the_statements(relay: RunningRelay, asked: Asked, client: WireClient) -> None:
    client.send(messages.query(ALTER.encode()))
    answer(relay, asked, ("55P03", "somebody has a lock", "Wait."))
    frames = client.until_ready()
    error = read_error(frames[0].body)
    assert (kinds(frames), error.sqlstate, error.hint) == ("EZ", "55P03", "Wait.")
    assert client.value("SELECT 7") == "7"


def test_answers_stay_in_order(relay: RunningRelay, asked: Asked, client: WireClient) -> None:
    queries = ("SELECT 1 FROM other", ALTER, "SELECT 2", ALTER, "SELECT 3")
    client.send(*(messages.query(sql.encode()) for sql in queries))
    assert kinds(client.until_ready()) == "TCZ"
    answer(relay, asked)
    assert [kinds(client.until_ready()) for _ in range(2)] == ["CZ", "TDCZ"]
    answer(relay, asked, ("42701", "it is there", ""))
    assert [kinds(client.until_ready()) for _ in range(2)] == ["EZ", "TDCZ"]


def test_who_has_gone_is_not_waited_for(relay: RunningRelay, asked: Asked) -> None:
    with log_in(relay) as gone:
        gone.send(messages.query(ALTER.encode()))
        relay.wait_for(lambda: bool(asked), "it has asked")
    answer(relay, asked)
    relay.wait_for(lambda: relay.call(lambda it: it.clients) == 0, "it is gone")
    relay.call(lambda it: it.added("no such question", None))
    with log_in(relay) as other:
        assert other.value("SELECT 7") == "7"


def test_a_cancel_request_is_heard_and_the_late_answer_is_not(
    relay: RunningRelay, asked: Asked, client: WireClient
) -> None:
    queries = (ALTER, "SELECT 7")
    client.send(*(messages.query(sql.encode()) for sql in queries))
    relay.wait_for(lambda: bool(asked), "it has asked")
    relay.call(lambda it: it.cancel(client.process_id, client.secret_key))
    frames = client.until_ready()
    error = read_error(frames[0].body)
    assert (kinds(frames), error.sqlstate) == ("EZ", "57014")
    assert "may still be added" in (error.hint or "")
    assert kinds(client.until_ready()) == "TDCZ"
    answer(relay, asked)
    assert client.value("SELECT 8") == "8"


@pytest.mark.parametrize(
    "before",
    [
        "BEGIN",
        "BEGIN; SELECT 1 FROM other",
        "SET ROLE app",
        "SET search_path = public, pg_catalog",
        "LISTEN a",
    ],
)
def test_a_session_that_is_more_than_its_user_is_refused(
    asked: Asked, client: WireClient, before: str
) -> None:
    client.query(before)
    frames = client.query(ALTER)
    error = read_error(frames[0].body)
    assert error.sqlstate == REFUSED
    assert "Only ADD COLUMN is done in both databases" in (error.hint or "")
    assert asked == []


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t DROP COLUMN id",
        "ALTER TABLE t ADD more serial",
        "CREATE INDEX ON t (id)",
        f"{ALTER}; SELECT 1",
        f"INSERT INTO other VALUES (1); {ALTER}",
    ],
)
def test_whatever_else_it_does_is_refused(
    relay: RunningRelay, asked: Asked, client: WireClient, sql: str
) -> None:
    assert sqlstate(client.query(sql)) == REFUSED
    assert asked == []
    assert relay.shared.execute("SELECT count(*) FROM other") == [[0]]


def test_a_batch_is_refused(asked: Asked, client: WireClient) -> None:
    client.send(parse("", ALTER) + bind("", "") + execute() + SYNC)
    assert sqlstate(client.until_ready()) == REFUSED
    assert asked == []


def test_a_failed_transaction_is_told_so(asked: Asked, client: WireClient) -> None:
    client.query("BEGIN")
    client.query("SELECT 1 / 0")
    assert sqlstate(client.query(ALTER)) == "25P02"
    assert client.query("ROLLBACK")[-1].body == b"I"
    assert asked == []


def test_a_new_epoch_changes_nothing_for_who_waits(
    relay: RunningRelay, asked: Asked, client: WireClient
) -> None:
    client.send(messages.query(ALTER.encode()))
    relay.wait_for(lambda: bool(asked), "it has asked")
    relay.shift(0, stage="shared", ddl="refuse")
    answer(relay, asked)
    assert kinds(client.until_ready()) == "CZ"
