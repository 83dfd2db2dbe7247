"""Proves how fresh each copy is: a row is counted up in the shared database and looked for at every copy.

Every beat is an UPDATE of the service's row in pgshunt.heartbeat. Its time is taken before it is sent, so
whatever was committed before that time stands before the beat in the log; logical lanes and physical
standbys apply in the log's order. A copy that shows beat k therefore holds everything committed before beat
k was sent. That time, a CLOCK_MONOTONIC reading in ns, is the endpoint's freshness; its distance to now
bounds the replication lag.

Beats of another process, seen after a restart, have no known time and count for nothing. A beat's number is
at least the Unix time in ms, so that it is greater than all before it also after the row was lost or set
back (TRUNCATE, a restored or failed-over server): a copy that still shows an old number proves nothing new.
Threads, not tasks: a server that hangs delays nobody else, and a beat costs no event-loop turn.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pgshunt.config.model import Control
from pgshunt.migration.servers import Link, ServerError, connect
from pgshunt.routing.table import Endpoint

log = logging.getLogger("pgshunt.migration")

TABLE: Final = "pgshunt.heartbeat"
INTERVAL_S: Final = 0.1
WRITE_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final = 1.0
RECONNECT_S: Final = 0.5
LOCKED_NS_MIN: Final = 1_000_000_000
"""A beat of another pgshunt holds the row for a moment, too."""
BEATS_MAX: Final = 600
"""Beats whose time is remembered: a copy that lags by more than a minute is as good as unknown."""

# Waits between reads of a beat that has not arrived: most lanes need 1 to 5 ms, so the first read comes soon.
LOOK_AGAIN_S: Final = (0.002, 0.004, 0.008, 0.016, 0.032)

ANY_SERVICE: Final = ""
"""The row that beats for the shared database's own replicas when no service has a lane."""

_CREATE: Final = (
    "CREATE SCHEMA IF NOT EXISTS pgshunt",
    f"CREATE TABLE IF NOT EXISTS {TABLE} "
    "(service text PRIMARY KEY, beat bigint NOT NULL, sent_at timestamptz NOT NULL)",
)
# No row comes back when somebody has locked the service's: the others must not wait for it.
_BEAT: Final = f"""
WITH beaten AS (
  UPDATE {TABLE} AS row SET beat = greatest(row.beat + 1, :least), sent_at = clock_timestamp()
  WHERE service = (SELECT service FROM {TABLE} WHERE service = :service FOR UPDATE SKIP LOCKED)
  RETURNING beat),
made AS (
  INSERT INTO {TABLE} SELECT :service, :least, clock_timestamp()
  WHERE NOT EXISTS (SELECT FROM {TABLE} WHERE service = :service) ON CONFLICT DO NOTHING RETURNING beat)
SELECT beat FROM beaten UNION ALL SELECT beat FROM made
"""
_LOOK: Final = f"SELECT service, beat FROM {TABLE}"

# Not `off`: the sender of a lane reads only what is flushed. Not `on`: a beat must not wait for synchronous
# standbys.
_WRITER_SETTINGS: Final = {"synchronous_commit": "local"}

Publish = Callable[[int, int], None]
"""publish(endpoint index, CLOCK_MONOTONIC ns; 0 when nothing is known any more). Called from threads."""


def ensure_table(link: Link) -> None:
    """Creates the heartbeat's schema and table where they are missing. Raises ServerError."""
    if link.value(f"SELECT to_regclass('{TABLE}')") is None:
        with link.transaction():
            for statement in _CREATE:
                link.rows(statement)


@dataclass(slots=True)
class Beats:
    """The committed beats of one service: number and time of each, the latest BEATS_MAX."""

    numbers: deque[int] = field(default_factory=lambda: deque(maxlen=BEATS_MAX))
    times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=BEATS_MAX))
    began_ns: int = field(default_factory=time.monotonic_ns)

    def least(self, unix_ns: int) -> int:
        """What the next number must not be below, whatever the row holds by then."""
        return max(self.latest + 1, unix_ns // 1_000_000)

    def committed(self, number: int, sent_ns: int) -> None:
        self.numbers.append(number)
        self.times_ns.append(sent_ns)

    def time_of(self, seen: int) -> int:
        """When the greatest beat of ours up to `seen` was sent, in ns; 0 if none of them is ours."""
        place = bisect_right(self.numbers, seen)
        return self.times_ns[place - 1] if place else 0

    @property
    def last_ns(self) -> int:
        """When the latest was sent; if there is none yet, when they should have begun."""
        return self.times_ns[-1] if self.times_ns else self.began_ns

    @property
    def latest(self) -> int:
        return self.numbers[-1] if self.numbers else 0


@dataclass(frozen=True, slots=True)
class Watched:
    """An endpoint to read at. `services`: whose lanes fill it; empty for a standby of the shared database."""

    index: int
    endpoint: Endpoint
    services: frozenset[str] = frozenset()


class Heartbeat:
    """Writes beats and watches endpoints until stopped. No method blocks the event loop, except `stop`."""

    def __init__(
        self, shared: Endpoint, control: Control, publish: Publish, interval_s: float = INTERVAL_S
    ) -> None:
        self._shared = shared
        self._control = control
        self._publish = publish
        self._interval_s = interval_s
        self._beats: dict[str, Beats] = {}
        self._changed = threading.Condition()
        self._round = 0
        self._readers: dict[int, _Reader] = {}
        self._writer: threading.Thread | None = None
        self._stopped = threading.Event()
        self._fresh_ns: dict[int, int] = {}
        self._doubted: set[str] = set()
        self._waiters: list[tuple[int, int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._beat_ns = 0
        self.write_error = ""

    @property
    def watching(self) -> tuple[int, ...]:
        """The endpoints that are looked at, by index."""
        return tuple(self._readers)

    def is_locked(self, service: str) -> bool:
        """Whether others' beats are sent and the service's are not: somebody holds a lock on its row."""
        with self._changed:
            beats = self._beats.get(service)
            return beats is not None and self._beat_ns - beats.last_ns > LOCKED_NS_MIN

    def beat_age_s(self) -> float | None:
        """How long ago the last round of beats that were committed was begun; None if there was none."""
        return (time.monotonic_ns() - self._beat_ns) / 1e9 if self._beat_ns else None

    def watch(self, watched: Mapping[int, Watched], also_beat: Iterable[str] = ()) -> None:
        """Replaces what is watched; starts and ends threads as needed.

        Beats flow for the services watched, and for those of `also_beat`: lanes that are still coming up.
        """
        services = {name for one in watched.values() for name in one.services or {ANY_SERVICE}} | {*also_beat}
        with self._changed:
            self._beats = {name: self._beats.get(name, Beats()) for name in services}
        for index in [
            index for index, reader in self._readers.items() if watched.get(index) != reader.watched
        ]:
            reader = self._readers.pop(index)
            reader.stop()
            self._seen(reader.watched, 0)
        for index, one in watched.items():
            if index not in self._readers:
                self._readers[index] = _Reader(self, one, self._control)
        if services and self._writer is None:
            self._writer = threading.Thread(target=self._write, name="heartbeat", daemon=True)
            self._writer.start()

    def doubt(self, service: str) -> None:
        """From here on nothing is known of the endpoints that its lane fills, whatever arrives there."""
        with self._changed:
            self._doubted.add(service)
        for reader in list(self._readers.values()):
            if service in reader.watched.services:
                self._seen(reader.watched, 0)

    def believe(self, service: str) -> None:
        """The next beat that arrives counts again."""
        with self._changed:
            self._doubted.discard(service)

    def stop(self) -> None:
        """Ends all threads and publishes that nothing is known; after it none of them publishes any more."""
        self._stopped.set()
        self.watch({})
        with self._changed:
            self._changed.notify_all()
        if self._writer is not None:
            self._writer.join(WRITE_TIMEOUT_S + 1)

    def freshness_ns(self, index: int) -> int:
        """CLOCK_MONOTONIC ns before which everything is there; 0 unknown."""
        return self._fresh_ns.get(index, 0)

    def lag_s(self, index: int) -> float | None:
        """How far the endpoint may lie behind, one beat's interval included; None unknown."""
        fresh_ns = self.freshness_ns(index)
        return (time.monotonic_ns() - fresh_ns) / 1e9 if fresh_ns else None

    async def waiting(self, index: int, moment_ns: int, timeout_s: float) -> bool:
        """Waits until the endpoint holds all that was committed before `moment_ns`; False if not in time."""
        loop = asyncio.get_running_loop()
        reached: asyncio.Future[None] = loop.create_future()
        waiter = (index, moment_ns, loop, reached)
        with self._changed:
            if self.freshness_ns(index) > moment_ns:
                return True
            self._waiters.append(waiter)
        try:
            await asyncio.wait_for(reached, timeout_s)
        except TimeoutError:
            return False
        finally:
            with self._changed:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return True

    # What follows runs in the threads.

    def _write(self) -> None:
        link: Link | None = None
        next_s = time.monotonic()
        while not self._stopped.is_set():
            try:
                if link is None or link.broken:
                    link = connect(
                        self._shared, self._control, "heartbeat", WRITE_TIMEOUT_S, _WRITER_SETTINGS
                    )
                    link.limit(WRITE_TIMEOUT_S)
                    if ANY_SERVICE in self._beats:  # there may be no lane, whose work this is otherwise
                        ensure_table(link)
                begun_ns = time.monotonic_ns()
                for service, beats in list(self._beats.items()):
                    sent_ns = time.monotonic_ns()
                    for (number,) in link.prepared(_BEAT, service=service, least=beats.least(time.time_ns())):
                        with self._changed:
                            beats.committed(number, sent_ns)
                self.write_error = ""
                self._beat_ns = begun_ns
                with self._changed:
                    self._round += 1
                    self._changed.notify_all()
            except Exception as error:  # whatever it is, the thread must live: no copy is fresh without it
                if not isinstance(error, ServerError):
                    log.exception("defect in beating at %s", self._shared.name)
                    link = None
                self.write_error = str(error)
                next_s = time.monotonic() + RECONNECT_S
            next_s = max(next_s + self._interval_s, time.monotonic())
            self._stopped.wait(next_s - time.monotonic())
        if link is not None:
            link.close()

    def _next_round(self, after: int, stopped: threading.Event) -> int:
        """Blocks until a round of beats after `after` is committed, or the reader is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._round > after or stopped.is_set(), READ_TIMEOUT_S)
            return self._round

    def _freshness_of(self, watched: Watched, seen: Mapping[str, int]) -> tuple[int, bool]:
        """Freshness in ns for the beats seen, and whether these were the latest."""
        with self._changed:
            if watched.services:  # each lane fills its own tables: the endpoint is as fresh as the slowest
                beats = [(self._beats.get(name, Beats()), seen.get(name, 0)) for name in watched.services]
                fresh_ns = min(known.time_of(number) for known, number in beats)
            else:  # a standby replays one log: any row proves all that stands before it
                beats = [(known, seen.get(name, 0)) for name, known in self._beats.items()]
                fresh_ns = max((known.time_of(number) for known, number in beats), default=0)
            return fresh_ns, all(number >= known.latest for known, number in beats)

    def _seen(self, watched: Watched, fresh_ns: int) -> None:
        index = watched.index
        with self._changed:
            if watched.services & self._doubted:
                fresh_ns = 0
            self._publish(index, fresh_ns)  # in our turn: no reader may publish what was seen before a doubt
            self._fresh_ns[index] = fresh_ns
            reached = [waiter for waiter in self._waiters if waiter[0] == index and fresh_ns > waiter[1]]
            self._waiters = [waiter for waiter in self._waiters if waiter not in reached]
        for _, _, loop, future in reached:
            loop.call_soon_threadsafe(_resolve, future)


class _Reader:
    """The thread that looks for beats at one endpoint."""

    def __init__(self, heart: Heartbeat, watched: Watched, control: Control) -> None:
        self.watched = watched
        self._heart = heart
        self._control = control
        self._stopped = threading.Event()
        self._publishing = threading.Lock()
        self._thread = threading.Thread(
            target=self._run, name=f"heartbeat {watched.endpoint.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """From here on nothing is published, even if a read is still under way."""
        with self._publishing:
            self._stopped.set()

    def _run(self) -> None:
        link: Link | None = None
        done = 0
        while not self._stopped.is_set():
            done = self._heart._next_round(done, self._stopped)
            try:
                if link is None or link.broken:
                    link = connect(self.watched.endpoint, self._control, "heartbeat", READ_TIMEOUT_S)
                    link.limit(READ_TIMEOUT_S)
                self._look(link)
            except Exception as error:  # whatever it is, the thread must live
                if not isinstance(error, ServerError):
                    log.exception("defect in looking for beats at %s", self.watched.endpoint.name)
                    link = None
                # Unknown, not merely late: after a crash the server may come back with less than it has
                # shown.
                self._report(0)
                self._stopped.wait(RECONNECT_S)
        if link is not None:
            link.close()

    def _look(self, link: Link) -> None:
        for pause_s in LOOK_AGAIN_S:
            if self._stopped.wait(pause_s):
                return
            seen = dict(link.prepared(_LOOK))
            fresh_ns, latest = self._heart._freshness_of(self.watched, seen)
            self._report(fresh_ns)
            if latest:
                return

    def _report(self, fresh_ns: int) -> None:
        with self._publishing:
            if not self._stopped.is_set():
                self._heart._seen(self.watched, fresh_ns)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
