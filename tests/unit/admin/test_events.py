"""Events keep their order and ids across restarts, torn lines and full disks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from pathlib import Path

import pytest

from pgshunt.admin import events
from pgshunt.admin.events import EventLog


def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path)
    first.add("started")
    first.add("shifted", "auth_service", reads=50)
    first.flush()
    second = EventLog(path)
    assert [event.kind for event in second.after(0)] == ["started", "shifted"]
    assert second.add("rolled_back", "auth_service").id == 100_001
    second.flush()
    assert [event.id for event in EventLog(path).after(1)] == [2, 100_001]


def test_no_id_is_used_twice_although_a_crash_kept_the_last_events_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    killed = EventLog(path)
    killed.add("started")
    killed.flush()
    written = path.read_bytes()
    shown = killed.add("rolled_back", "auth_service")
    killed.flush()
    path.write_bytes(written)  # as if the line was still on its way
    anew = EventLog(path).add("started")
    assert anew.id > shown.id


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        log = EventLog(tmp_path / "events.jsonl")
        log.add("started")
        log.flush()
    finally:
        os.umask(before)
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path)
    first.add("started")
    first.flush()
    with path.open("a") as file:
        file.write('{"id": 2, "at": "2026')
    log = EventLog(path)
    log.add("shifted")
    log.flush()
    found = [(event.id, event.kind) for event in EventLog(path).after(0)]
    assert found == [(1, "started"), (100_001, "shifted")]


def test_the_file_is_bounded_and_what_it_replaced_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FILE_BYTES_MAX", 1000)
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for number in range(50):
        log.add("counted", number=number)
    log.flush()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * 1200
    kept = EventLog(path).after(0)
    assert kept[-1].id == 50
    assert [event.id for event in kept] == list(range(kept[0].id, 51))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT_MAX", 10)
    log = EventLog(None)
    for _ in range(25):
        log.add("counted")
    assert [event.id for event in log.after(0)] == list(range(16, 26))
    assert [event.id for event in log.latest(3)] == [23, 24, 25]
    assert [event.id for event in log.after(20, 2)] == [21, 22]


def test_an_unwritable_file_stops_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "missing" / "events.jsonl")
    log.add("started")
    log.flush()
    assert "No such file" in log.write_error
    assert [event.kind for event in log.after(0)] == ["started"]


def test_a_line_is_a_json_object_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.add("rolled_back", "auth_service", trigger="latency", evidence={"numerator": 5})
    log.flush()
    record = json.loads(path.read_text())
    assert record.pop("at").endswith("Z")
    assert record == {
        "id": 1,
        "kind": "rolled_back",
        "service": "auth_service",
        "detail": {"trigger": "latency", "evidence": {"numerator": 5}},
    }


def test_news_wakes_everyone_who_waits() -> None:
    async def scenario() -> None:
        log = EventLog(None)
        waiting = [asyncio.ensure_future(log.news(0, 20)) for _ in range(3)]
        await asyncio.sleep(0)
        log.add("started")
        assert [[event.id for event in found] for found in await asyncio.gather(*waiting)] == [[1]] * 3
        assert [event.id for event in await log.news(0, 0)] == [1]
        assert await log.news(1, 0.001) == []

    asyncio.run(scenario())


def test_a_disk_that_hangs_holds_up_nobody_and_costs_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT_MAX", 10)
    answer, begun, write = threading.Event(), threading.Event(), EventLog._write

    def hanging(log: EventLog, path: Path, line: str) -> None:
        begun.set()
        answer.wait()
        write(log, path, line)

    monkeypatch.setattr(EventLog, "_write", hanging)
    log = EventLog(tmp_path / "events.jsonl")
    log.add("first")
    begun.wait(20)
    for _ in range(15):
        log.add("counted")
    assert log.last_id == 16
    assert "5 events are not there: 10 works wait for event log" in log.write_error
    log.flush(0.001)
    answer.set()
    log.flush(20)
    assert [event.id for event in EventLog(tmp_path / "events.jsonl").after(0)] == list(range(2, 12))
    assert log.write_error == ""


def test_an_event_that_no_thread_can_write_is_seen_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    log = EventLog(tmp_path / "events.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        log.add("rolled_back", "auth_service")
    assert [event.kind for event in log.after(0)] == ["rolled_back"]
    assert "1 events are not there: no thread for event log" in log.write_error


def test_the_end_waits_for_nobody_who_waits_for_news() -> None:
    async def scenario() -> None:
        log = EventLog(None)
        waiting = asyncio.ensure_future(log.news(0, 1000))
        await asyncio.sleep(0)
        log.end_waiting()
        assert await waiting == await log.news(0, 1000) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("kind", "level"), [("rolled_back", "WARNING"), ("shifted", "INFO")])
def test_what_somebody_should_look_at_is_a_warning(
    kind: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    EventLog(None).add(kind, "auth_service")
    assert [record.levelname for record in caplog.records] == [level]


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("started", logging.INFO),
        ("worker_restarted", logging.INFO),
        ("shared_back", logging.INFO),
        ("shared_lost", logging.WARNING),
        ("verify_failed", logging.WARNING),
        ("link_failed", logging.WARNING),
        ("worker_unresponsive", logging.WARNING),
    ],
)
def test_trouble_is_logged_as_a_warning(kind: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pgshunt.events"):
        EventLog(None).add(kind, "", why="so")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (level, f'{kind}  {{"why": "so"}}')
    ]
