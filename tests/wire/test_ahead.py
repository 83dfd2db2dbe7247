"""What the proxy sends ahead of a statement goes in one write with it: nothing waits for another answer."""

from __future__ import annotations

import pytest
from support.hostile import COLUMN, IN_TRANSACTION, READY, ROW_DONE, Answer, HostileServer, frame, row
from support.relay import RunningRelay
from support.wire import WireClient, kinds

SET = "SET work_mem = '5MB'"
PREPARE = "PREPARE p AS SELECT 1"
SETTINGS = "SET exit_on_error"
"""How the text begins that brings a link to a session's settings."""

A, B = range(2)
STORIES: dict[str, tuple[list[tuple[int, str]], tuple[int, str], list[str]]] = {
    "BEGIN": ([(A, "BEGIN")], (A, "SELECT 1"), ["BEGIN"]),
    "settings": ([(A, SET)], (B, "SELECT 1"), [SETTINGS]),
    "settings and BEGIN": ([(A, SET), (B, "BEGIN")], (B, "SELECT 1"), [SETTINGS, "BEGIN"]),
    "PREPARE": ([(A, PREPARE), (B, "BEGIN"), (B, "SELECT 1")], (A, "EXECUTE p"), [PREPARE]),
}


def answer(statement: str) -> bytes:
    if "current_setting" in statement:
        return COLUMN + row(b"UTF8", b"UTF8", b"5MB") + frame("C", b"SELECT 1\0") + READY
    if statement == "BEGIN":
        return frame("C", b"BEGIN\0") + IN_TRANSACTION
    if statement.startswith(("SET", "PREPARE")):
        return frame("C", b"SET\0") + READY
    return ROW_DONE + READY


@pytest.mark.parametrize("name", STORIES)
def test_a_server_that_answers_when_it_has_the_statement(name: str) -> None:
    story, last, ahead = STORIES[name]
    is_last = False
    held: list[tuple[str, bytes]] = []

    def script(_kind: str, statement: str) -> Answer:
        if is_last and statement.startswith(tuple(ahead)):
            held.append((statement, answer(statement)))
            return Answer()
        return Answer(
            b"".join(data for _, data in held) + answer(statement) if is_last else answer(statement)
        )

    config = {"pools": {"default_pool_size": 2}}
    with (
        HostileServer(script) as server,
        RunningRelay(server, config=config) as relay,  # type: ignore[arg-type]
        WireClient(relay.connect()) as one,
        WireClient(relay.connect()) as other,
    ):
        clients = [client.log_in("somebody", "somewhere") for client in (one, other)]
        for who, statement in story:
            assert kinds(clients[who].query(statement))[-2:] == "CZ"
        is_last = True
        assert kinds(clients[last[0]].query(last[1])) == "TDCZ"
        assert len(held) == len(ahead)
        assert all(statement.startswith(start) for (statement, _), start in zip(held, ahead, strict=True))
