"""`pgshunt serve` with few clients allowed: one too many is told so, whichever worker he would have got."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from support.serve import Serving, configuration

from pgshunt.demo.postgres import Server

ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(61)' AND state = 'active'"


def test_the_clients_of_all_workers_are_limited_together(postgres: Server, tmp_path: Path) -> None:
    """A cancel request is no client: it gets through when there is no room for one."""
    config = configuration(postgres, "postgres", pools={"max_client_conn": 3})
    login = {"dbname": "postgres", "user": postgres.user, "password": postgres.password}
    with Serving(tmp_path, config) as serving, ExitStack() as stack, ThreadPoolExecutor(1) as pool:

        def connect() -> psycopg.Connection:
            return psycopg.connect(host="127.0.0.1", port=serving.port, autocommit=True, **login)  # type: ignore[arg-type]

        clients = [stack.enter_context(connect()) for _ in range(3)]
        with pytest.raises(psycopg.OperationalError, match="too many clients already"):
            connect()
        for client in clients:
            running = pool.submit(client.execute, "SELECT pg_sleep(61)")
            serving.until("it sleeps", lambda: postgres.execute(ASLEEP) == [[1]])
            client.cancel_safe()
            assert isinstance(running.exception(), psycopg.errors.QueryCanceled)
        clients[0].close()
        serving.until("it is gone", lambda: serving.status()["clients"] == 2)
        with connect() as another:
            assert another.execute("SELECT 1").fetchone() == (1,)
