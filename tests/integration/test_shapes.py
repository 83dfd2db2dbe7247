"""The statements whose shapes the tests tell, compared with what PostgreSQL opens when it runs them."""

from __future__ import annotations

import socket

from corpus.compare import Comparison
from corpus.judge import Verdict
from corpus.tap import Tap
from support.statements import ROWS
from support.wire import COPY_DONE, WireClient

from pgshunt.demo.postgres import Servers
from pgshunt.protocol import messages

SCHEMA = """
CREATE TABLE roles (id int PRIMARY KEY, name text, a int, user_id int, x int);
CREATE TABLE policies (id int PRIMARY KEY, name text);
CREATE TABLE users (
    id int PRIMARY KEY, name text, a int, b int, x int, n int, r int, data jsonb, role_id int, user_id int,
    d timestamptz, born timestamptz
);
CREATE SEQUENCE users_id_seq;
CREATE TABLE "Users" (id int);
CREATE TABLE "odd.name" (id int);
CREATE VIEW active_users AS SELECT * FROM users WHERE a > 0;
CREATE SCHEMA audit;
CREATE TABLE audit.users (LIKE public.users);
CREATE TABLE audit.logs (LIKE public.users);
CREATE FUNCTION my_function(int) RETURNS int LANGUAGE sql AS 'SELECT count(*)::int FROM public.policies';
CREATE PROCEDURE tidy(int) LANGUAGE sql AS 'DELETE FROM public.roles';
"""


def test_no_statement_opens_what_its_shape_does_not_tell(servers: Servers) -> None:
    # One of them recurses for ever.
    server = servers.start("shapes", {"statement_timeout": "300ms"}, method="trust")
    server.execute(SCHEMA)
    comparison = Comparison()
    tap = Tap((server.host, server.port), server.dsn, comparison, keeps=False)
    with WireClient(socket.create_connection(("127.0.0.1", tap.port), 30)) as client:
        client.log_in(server.user, "postgres")
        for row in ROWS:
            run(client, row.sql)
    tap.close()
    assert [
        str(finding) for finding in comparison.findings if finding.judgement.verdict is Verdict.UNSAFE
    ] == []
    assert tap.failures == []
    assert comparison.counts[Verdict.EQUAL] > 150, comparison.summary()


def run(client: WireClient, sql: str) -> None:
    """Copies nothing in; what fails is not compared."""
    client.send(messages.query(sql.partition("\0")[0].encode()))
    while (frame := client.frame()).kind != "Z":
        if frame.kind == "G":
            client.send(COPY_DONE)
