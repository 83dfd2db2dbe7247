"""Watches which copies take reads, and tells workers, metrics and operator of those that take none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pgshunt.admin.controller import Heart
from pgshunt.migration.fitness import Fitness
from pgshunt.routing.reason import Reason

LOOK_S = 0.1
IDLE_S = 1.0
"""Between looks for something to look at."""

Report = Callable[[str, Mapping[str, Any]], object]
"""report(kind, detail): something for the event log."""


class Readable:
    """`cells` are the board's, by endpoint: the Reason why it takes no reads, 0 when it does."""

    def __init__(self, heart: Heart, lag_ms_max: int, cells: memoryview[int], report: Report) -> None:
        self._heart = heart
        self._fitness = Fitness(lag_ms_max / 1000)
        self._cells = cells
        self._report = report

    async def run(self) -> None:
        """Looks ten times a second while there are copies."""
        while True:
            self.look(time.monotonic())
            await asyncio.sleep(LOOK_S if self._heart.watched() else IDLE_S)

    def look(self, now_s: float) -> None:
        """Takes in what the heartbeat has found by now."""
        lags_s = {index: self._heart.lag_s(index) for index in self._heart.watched()}
        for change in self._fitness.look(now_s, self._heart.beat_age_s(), lags_s):
            if change.index is None:
                kind = "heartbeat_stopped" if change.withheld else "heartbeat_resumed"
                self._report(kind, {"reads": "at owners only" if change.withheld else "split again"})
            else:
                kind = "reads_dropped" if change.withheld else "reads_returned"
                detail: dict[str, Any] = {"endpoint": self._heart.table.endpoints[change.index].name}
                if change.withheld:
                    detail |= {"reason": change.withheld.code, "lag_s": lags_s[change.index]}
                self._report(kind, detail)
        for index in range(len(self._cells)):
            self._cells[index] = self.withheld(index) or 0

    def withheld(self, index: int) -> Reason | None:
        """Why an endpoint takes no reads; None when it does, or is no copy."""
        return self._fitness.withheld(index)

    def samples(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """1 for each copy that takes reads, 0 for one that does not."""
        for index in self._heart.watched():
            name = self._heart.table.endpoints[index].name
            yield (name,), float(self.withheld(index) is None)

    def warnings(self) -> list[str]:
        """What an operator should look at."""
        return [
            f"{self._heart.table.endpoints[index].name} takes no reads: {reason.code}"
            for index, reason in sorted(self._fitness.dropped())
        ]
