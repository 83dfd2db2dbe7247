"""Feeds the guard with what workers count, verify finds and probes see, and hands on what trips.

Between the channel's messages and the pure guard: it knows which numbers mean what, and keeps, per service,
what the dashboard shows about the last minute.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pgshunt.admin.latency import LastMinute
from pgshunt.migration.guard import Guard, Run, Stuck, Trip
from pgshunt.migration.window import NOTHING, Counts
from pgshunt.proxy.channel import Message

TICK_S = 0.25
MISMATCHES_MAX = 50


@dataclass(slots=True)
class Seen:
    """What is shown about one service besides the guard's judgements. `baseline` and `candidate` are reads at
    either side, `calls` is everything its clients asked."""

    calls: LastMinute = field(default_factory=LastMinute)
    baseline: LastMinute = field(default_factory=LastMinute)
    candidate: LastMinute = field(default_factory=LastMinute)
    shadow: Counter[str] = field(default_factory=Counter)
    mismatches: Counter[tuple[str, ...]] = field(default_factory=Counter)  # (shape, kind, source, target)


class Watch:
    """All services. `on_trip` is called from the event loop, once for each trip."""

    def __init__(
        self,
        guard: Guard,
        *,
        clock: Callable[[], float],
        on_trip: Callable[[Trip], None],
        has_only_link: Callable[[str, int], bool],
        shared: str = "shared",
    ) -> None:
        """`clock`: monotonic seconds. `has_only_link(service, worker)`: whether the worker holds no more than
        one link to the service's own database. `shared`: the endpoint that reads are taken back to."""
        self.guard = guard
        self._clock = clock
        self._on_trip = on_trip
        self._has_only_link = has_only_link
        self._shared = shared
        self._seen: dict[str, Seen] = {}
        self._armed_s: dict[str, float] = {}

    def seen(self, service: str) -> Seen:
        return self._seen.setdefault(service, Seen())

    def arm(self, service: str) -> None:
        """Judges a service by what begins from now on, with no latch."""
        self._armed_s[service] = self._clock()
        self.guard.arm(service)

    def take(self, delta: Message) -> None:
        """One worker's delta. Judges at once: a hard failure does not wait for the tick."""
        now_s, worker = self._clock(), delta["index"]
        self._take_calls(delta, now_s)
        for service, consecutive, of_last_20, links in delta.get("runs", ()):
            run = Run(consecutive, of_last_20, links, self._has_only_link(service, worker))
            self.guard.report_run(service, worker, run)
        if "stuck" in delta:
            self.guard.report_stuck(
                worker, {service: Stuck(calls, limits) for service, calls, limits in delta["stuck"]}
            )
        for service, result, count, _, began_ns in delta.get("shadow", ()):
            self._take_shadow(service, result, count, now_s, began_ns / 1e9)
        for service, *mismatch in delta.get("shadow_mismatches", ()):
            mismatches, key = self.seen(service).mismatches, tuple(map(str, mismatch))
            if key in mismatches or len(mismatches) < MISMATCHES_MAX:
                mismatches[key] += 1
        self.judge()

    def compared(self, service: str, *, equal: int, different: int, undecided: int) -> None:
        """A range of rows that verify has looked at; `different` are confirmed."""
        self.guard.compare(service, self._clock(), equal=equal, different=different, undecided=undecided)
        if different:
            self.judge()

    def probed(self, service: str, *, candidate_answers: bool | None, baseline_answers: bool | None) -> None:
        """One probe of both databases of a service; None: not known."""
        self.guard.probe(service, candidate_answers=candidate_answers, baseline_answers=baseline_answers)
        self.judge()

    def judge(self) -> None:
        """Hands on what trips now."""
        for trip in self.guard.trips(self._clock()):
            self._on_trip(trip)

    async def run(self) -> None:
        """Judges every 250 ms: time alone can decide, too."""
        while True:
            await asyncio.sleep(TICK_S)
            self.judge()

    def _take_calls(self, delta: Message, now_s: float) -> None:
        """The guard judges reads only: what writes do is not a matter of the split. A replica that fails is
        passed over, and its reads are answered elsewhere: that is no failure of the database.
        """
        sums: dict[str, dict[str, Counts]] = {}
        at_shared = NOTHING
        for service, side, endpoint, op, calls, infrastructure, application, slow, _, buckets in delta.get(
            "calls", ()
        ):
            if endpoint == self._shared:
                at_shared += Counts(calls, infrastructure)
            if service:
                self.seen(service).calls.add(now_s, calls, infrastructure + application, buckets)
            if op == "read" and service:
                if side == "replica":
                    side, infrastructure = "candidate", 0
                counts = Counts(calls, infrastructure, application, slow)
                sides = sums.setdefault(service, {"baseline": NOTHING, "candidate": NOTHING})
                sides[side] += counts
                seen = self.seen(service)
                minute = seen.candidate if side == "candidate" else seen.baseline
                minute.add(now_s, calls, infrastructure + application, buckets)
        if at_shared.calls:
            self.guard.serve(now_s, failed=at_shared.infrastructure > 0)
        for service, sides in sums.items():
            self.guard.count(service, now_s, sides["candidate"], sides["baseline"])

    def _take_shadow(self, service: str, result: str, count: int, now_s: float, began_s: float) -> None:
        """A dropped comparison was never made. One that failed for a reason of its own decides nothing.

        One that had begun before the service was armed has seen what has been repaired since.
        """
        self.seen(service).shadow[result] += count
        if began_s < self._armed_s.get(service, began_s):
            return
        equal, different, undecided = (
            count if result == "match" else 0,
            count if result == "mismatch" else 0,
            count if result in ("undecided", "error") else 0,
        )
        if equal or different or undecided:
            self.guard.compare(service, now_s, equal=equal, different=different, undecided=undecided)
