"""The event log: what happened, in order, with numbers to ask by; kept in a file of JSON lines.

Each event is one line `{"id": 7, "at": "2026-11-22T12:00:00.123Z", "kind": "rolled_back", "service": …, …}`.
Each run's ids begin behind all that the runs before may have shown, also where a crash kept the last of them
from the file: a reader that asks for what came after 7 is right across restarts.
The file is written aside: a disk that hangs costs lines of it, and never the event loop's time.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pgshunt.migration.aside import Aside, Crowded
from pgshunt.migration.private_file import private

log = logging.getLogger("pgshunt.events")

KEPT_MAX = 2000
FILE_BYTES_MAX = 4 * 1024 * 1024
IDS_OF_A_RUN = 100_000
"""Far more than can have been shown and not be in the file: a full queue, and what a hung disk costs."""
FLUSH_S_MAX = 2.0
WARNINGS = frozenset(
    {
        *(
            "accept_paused",
            "catalogue_behind",
            "columns_in_doubt",
            "columns_lacking",
            "copies_left",
            "defect",
            "definitions_differ",
            "failed",
            "lane_failed",
            "link_failed",
        ),
        *("link_out_of_step", "login_failed", "lookup_failed", "orphaned", "reload_failed", "rolled_back"),
        *("shared_lost", "state_unkept", "subscription_left", "tls_reload_failed", "verify_failed"),
        *("worker_ended", "worker_garbled", "worker_not_ready", "worker_not_started", "worker_silent"),
        "worker_unresponsive",
    }
)
"""The kinds that somebody should look at; the others are logged at level INFO."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `detail` holds JSON values; `service` is empty for what concerns none."""

    id: int
    at: str
    kind: str
    service: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at": self.at,
            "kind": self.kind,
            "service": self.service,
            "detail": self.detail,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Event:
        """Raises KeyError, TypeError or ValueError when the record is no event."""
        return cls(
            int(record["id"]),
            str(record["at"]),
            str(record["kind"]),
            str(record["service"]),
            dict(record["detail"]),
        )


class EventLog:
    """The latest events in memory, all of the latest 4 to 8 MB in `path` and `path` + ".old".

    A file that cannot be written does not stop anything: `write_error` says why, events go on in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._aside = Aside("event log", KEPT_MAX)
        self._unwritten = 0
        self._is_ending = False
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._news = asyncio.Event()
        self.write_error = ""
        if path is not None:
            for file in (_old(path), path):
                self._kept.extend(_events_in(file))
        self.last_id = (self._kept[-1].id // IDS_OF_A_RUN + 1) * IDS_OF_A_RUN if self._kept else 0

    def add(self, kind: str, service: str = "", /, **detail: Any) -> Event:
        """Appends an event; it is seen at once, and on its way to the disk when this returns."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.last_id += 1
        event = Event(self.last_id, at, kind, service, detail)
        self._kept.append(event)
        self._begin_writing(event)
        level = logging.WARNING if kind in WARNINGS else logging.INFO
        log.log(level, "%s %s %s", kind, service, json.dumps(detail, default=str))
        self._wake()
        return event

    def after(self, last_id: int, count_max: int = KEPT_MAX) -> list[Event]:
        """The oldest `count_max` events with a greater id."""
        return [event for event in self._kept if event.id > last_id][:count_max]

    def latest(self, count_max: int) -> list[Event]:
        """The newest events, oldest first."""
        return list(self._kept)[-count_max:]

    async def news(self, last_id: int, timeout_s: float) -> list[Event]:
        """As `after`, but waits for an event when there is none yet; [] when the time or the log is over."""
        if self.last_id <= last_id and not self._is_ending:
            try:
                await asyncio.wait_for(self._news.wait(), timeout_s)
            except TimeoutError:
                return []
        return self.after(last_id)

    def end_waiting(self) -> None:
        """Nobody waits for news any longer: they would hold up the end of the process."""
        self._is_ending = True
        self._wake()

    def flush(self, timeout_s: float = FLUSH_S_MAX) -> None:
        """Blocks until what was added is written, for no longer than `timeout_s`."""
        if not self._aside.drain(timeout_s):
            self.write_error = f"{self._path}: the disk does not answer"

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _begin_writing(self, event: Event) -> None:
        if self._path is None:
            return
        line = json.dumps(event.to_dict(), separators=(",", ":"), default=str) + "\n"
        try:
            self._aside.submit(partial(self._write, self._path, line))
        except Crowded as crowded:
            self._unwritten += 1
            self.write_error = f"{self._path}: {self._unwritten} events are not there: {crowded}"

    def _write(self, path: Path, line: str) -> None:
        try:
            with open(path, "a", encoding="utf-8", opener=private) as file:
                # A crash can leave half a line: what follows must not become part of it.
                file.write(line if file.tell() == 0 or _ends_line(path) else "\n" + line)
                size = file.tell()
            if size > FILE_BYTES_MAX:
                path.replace(_old(path))
            self.write_error = ""
        except OSError as error:
            self.write_error = f"{path}: {error.strerror}"


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _events_in(path: Path) -> Iterator[Event]:
    """The events of a file, without lines that are torn."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield Event.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
