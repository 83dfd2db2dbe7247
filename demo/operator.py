"""Moves one service through the admin API and reads its counters, as the operator of the story."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pgshunt.admin.client import AdminClient
from pgshunt.routing.reason import Reason


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads of a service that the proxy counted, by where they went."""

    shared: int
    own: int

    def since(self, before: Reads) -> Reads:
        return Reads(self.shared - before.shared, self.own - before.own)


STAYED = {
    reason.code for reason in (Reason.NOT_FRESH, Reason.CANDIDATE_DOWN, Reason.LATE, Reason.NO_HEARTBEAT)
}


@dataclass(frozen=True, slots=True)
class Draws:
    """Reads for which the weight decided.

    `stayed` is how many of `own` went to the owner all the same: no copy was up and fresh enough for them.
    """

    shared: int
    own: int
    stayed: int

    def since(self, before: Draws) -> Draws:
        return Draws(self.shared - before.shared, self.own - before.own, self.stayed - before.stayed)

    @property
    def total(self) -> int:
        return self.shared + self.own


@dataclass(frozen=True, slots=True)
class Operator:
    """One service, seen and moved from outside. Raises Problem, Unreachable and OSError."""

    api: AdminClient
    service: str
    database: str

    def state(self) -> dict[str, Any]:
        return dict(self.api.get(f"/api/v1/services/{self.service}"))

    def begin(self) -> None:
        self.api.post(f"/api/v1/services/{self.service}/begin")

    def shift(self, reads_percent: int) -> None:
        self.api.post(f"/api/v1/services/{self.service}/shift", reads=reads_percent)

    def rearm(self, reason: str) -> None:
        self.api.post(f"/api/v1/services/{self.service}/rearm", reason=reason)

    def last_event_id(self) -> int:
        return int(self.api.get("/api/v1/events", after=2**53)["last_id"])

    def rollback_since(self, event_id: int) -> Mapping[str, Any] | None:
        """The event of the service's rollback after another event; None if there was none."""
        events = self.api.get("/api/v1/events", after=event_id)["events"]
        mine = [
            event for event in events if event["service"] == self.service and event["kind"] == "rolled_back"
        ]
        return mine[0] if mine else None

    def reads(self) -> Reads:
        counted: Counter[bool] = Counter()
        for labels, value in self._samples("pgshunt_queries_total"):
            if labels["op"] == "read":
                counted[labels["backend"].split("/")[0] == self.database] += int(value)
        return Reads(shared=counted[False], own=counted[True])

    def draws(self) -> Draws:
        """Up to now; all of an old weight are in it, as workers report before they acknowledge a new one."""
        count: Counter[str] = Counter()
        for labels, value in self._samples("pgshunt_routes_total"):
            count[labels["reason"]] += int(value)
        stayed = sum(count[reason] for reason in STAYED)
        return Draws(shared=count["baseline"], own=count["split"] + stayed, stayed=stayed)

    def shadow_writes(self) -> dict[str, int]:
        """Write transactions tried at the own database, by result."""
        return {
            labels["result"]: int(value) for labels, value in self._samples("pgshunt_shadow_writes_total")
        }

    def _samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        with urllib.request.urlopen(f"{self.api.url}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return [
            (sample.labels, sample.value) for sample in samples if sample.labels["service"] == self.service
        ]


def epoch_seconds(at: str) -> float:
    """An event's time, "2026-11-22T12:00:00.123Z", as seconds since the epoch."""
    return datetime.fromisoformat(at).timestamp()
