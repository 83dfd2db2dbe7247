"""Decides what about a lane is news: a problem when it comes, and its end when it lasts.

PostgreSQL starts the worker of a subscription that fails again and again (every wal_retrieve_retry_interval,
5 s by default), and in between it looks healthy. Told at each look, one failure would fill the event log.
"""

from __future__ import annotations

from typing import Final, Literal

HEALTHY_LOOKS: Final = 6
"""In a row end the problem: at one look every 2 s, that is longer than PostgreSQL waits between two tries."""

News = tuple[Literal["lane_failed", "lane_recovered"], str]


class LaneNews:
    """One lane. Every look says whether it is news."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._healthy = 0

    def look(self, problem: str) -> News | None:
        """What to tell of a look that found `problem`, empty for none: kind and problem.

        Of one failure each problem is told once, and at its end the first of them.
        """
        if problem:
            self._healthy = 0
            if problem in self._told:
                return None
            self._told.append(problem)
            return "lane_failed", problem
        self._healthy += 1
        if not self._told or self._healthy < HEALTHY_LOOKS:
            return None
        first, self._told = self._told[0], []
        return "lane_recovered", first
