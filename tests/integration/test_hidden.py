"""What a server writes to its log about a statement with a secret in it: never the secret."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fixtures import Database
from support.moving import CONTROL, databases, endpoint

from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server as Postgres
from pgshunt.migration.hidden import run_hidden
from pgshunt.migration.servers import ServerError, connect

WORD = "it's a \"\\\t hidden % word\n\\.\n"
SUBSCRIBE = "CREATE SUBSCRIPTION sub CONNECTION %L PUBLICATION pub WITH (create_slot = false, slot_name = s)"
ORDINARY = Control(user="pgshunt_ordinary", password=Secret("plain"))


@pytest.fixture
def own(postgres_pair: tuple[Postgres, Postgres]) -> Iterator[Database]:
    """A database whose server logs every statement."""
    with databases(postgres_pair, "hidden") as (_, own):
        own.execute("ALTER DATABASE hidden SET log_statement = 'all'")
        own.execute("ALTER DATABASE hidden SET log_min_duration_statement = 0")
        yield own


def log_of(server: Postgres) -> str:
    """Empty where the server's log is not ours to read."""
    path: Path | None = getattr(server, "log", None)
    return path.read_text(errors="replace") if path else ""


def refused(own: Database, control: Control, conninfo: str, timeout_s: float = 10) -> str:
    """The SQLSTATE with which a subscription is refused."""
    link = connect(endpoint(own, "own_db"), control, "test")
    link.limit(timeout_s)
    try:
        with pytest.raises(ServerError) as caught, link.transaction():
            run_hidden(link, SUBSCRIBE, conninfo)
    finally:
        link.close()
    assert "hidden % word" not in str(caught.value)
    return caught.value.sqlstate


def test_the_secret_arrives_as_it_is(own: Database) -> None:
    link = connect(endpoint(own, "own_db"), CONTROL, "test")
    link.rows("CREATE TABLE public.t (word text)")
    with link.transaction():
        for word in (WORD, "another"):
            run_hidden(link, "INSERT INTO public.t VALUES (%L || '%%')", word)
    assert link.rows("SELECT word FROM public.t") == [[WORD + "%"], ["another%"]]
    link.close()


def test_the_log_tells_an_error_without_the_secret_whoever_asks(own: Database) -> None:
    own.server.execute(
        "DO $$ BEGIN CREATE ROLE pgshunt_ordinary LOGIN PASSWORD 'plain'; "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    word = "it's a \\ hidden % word"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        quoted = word.replace("\\", "\\\\").replace("'", "\\'")
        conninfo = f"host=127.0.0.1 port={port} user=u password='{quoted}'"
        assert refused(own, ORDINARY, conninfo) == "42501"
        assert refused(own, CONTROL, conninfo, 0.5) == "57014"  # statement_timeout
    assert refused(own, CONTROL, conninfo) == "08006"  # nobody listens any more
    log = log_of(own.server)
    assert "hidden % word" not in log
    assert not log or "CREATE SUBSCRIPTION sub CONNECTION %L" in log


def test_a_warning_does_not_tell_the_log_what_it_was_about(own: Database) -> None:
    """Its context is the statement, and no block can catch it."""
    link = connect(endpoint(own, "own_db"), CONTROL, "test")
    unconnected = (
        "CREATE SUBSCRIPTION warned CONNECTION %L PUBLICATION pub WITH (connect = false, slot_name = NONE)"
    )
    with link.transaction():
        run_hidden(link, unconnected, "host=127.0.0.1 password='a warned word'")
        link.rows("DROP SUBSCRIPTION warned")
    link.close()
    assert "a warned word" not in log_of(own.server)
