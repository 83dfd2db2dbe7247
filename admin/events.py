"""The event log: what happened, in order, with numbers to ask by; kept in a file of JSON lines.

Each event is one line `{"id": 7, "at": "2026-11-22T12:00:00.123Z", "kind": "rolled_back", "service": …, …}`.
The ids go on where the file ends, so a reader that asks for what came after 7 is right across restarts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("pgshunt.events")

KEPT_MAX = 2000
FILE_BYTES_MAX = 4 * 1024 * 1024
WARNINGS = frozenset(
    {"failed", "lane_failed", "rolled_back", "reload_failed", "state_unkept", "worker_ended"}
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
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._news = asyncio.Event()
        self.write_error = ""
        if path is not None:
            for file in (_old(path), path):
                self._kept.extend(_events_in(file))
        self.last_id = self._kept[-1].id if self._kept else 0

    def add(self, kind: str, service: str = "", /, **detail: Any) -> Event:
        """Appends an event; on disk when this returns, as far as a crash of this process is concerned."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.last_id += 1
        event = Event(self.last_id, at, kind, service, detail)
        self._kept.append(event)
        self._write(event)
        level = logging.WARNING if kind in WARNINGS else logging.INFO
        log.log(level, "%s %s %s", kind, service, json.dumps(detail, default=str))
        news, self._news = self._news, asyncio.Event()
        news.set()
        return event

    def after(self, last_id: int, count_max: int = KEPT_MAX) -> list[Event]:
        """The oldest `count_max` events with a greater id."""
        return [event for event in self._kept if event.id > last_id][:count_max]

    def latest(self, count_max: int) -> list[Event]:
        """The newest events, oldest first."""
        return list(self._kept)[-count_max:]

    async def news(self, last_id: int, timeout_s: float) -> list[Event]:
        """As `after`, but waits for an event when there is none yet; [] when the time is over."""
        if self.last_id <= last_id:
            try:
                await asyncio.wait_for(self._news.wait(), timeout_s)
            except TimeoutError:
                return []
        return self.after(last_id)

    def _write(self, event: Event) -> None:
        if self._path is None:
            return
        line = json.dumps(event.to_dict(), separators=(",", ":"), default=str) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # A crash can leave half a line: what follows must not become part of it.
                file.write(line if file.tell() == 0 or _ends_line(self._path) else "\n" + line)
                size = file.tell()
            if size > FILE_BYTES_MAX:
                self._path.replace(_old(self._path))
            self.write_error = ""
        except OSError as error:
            self.write_error = f"{self._path}: {error.strerror}"


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
