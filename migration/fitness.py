"""Decides which copies take reads for now: dropped when late or down, back once they have kept up a while.

Pure. A heartbeat that is no longer written says nothing about any single copy: that is one fault, told as
one, and what is known of each stays as it is. Meanwhile reads go to owners, which need no proof. What has
been dropped returns when it has been well within its limit for RETURN_S, so that nothing comes and goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pgshunt.routing.reason import Reason

RETURN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """`index` of an endpoint, None for the heartbeat itself; `withheld` None: it is back."""

    index: int | None
    withheld: Reason | None


@dataclass(slots=True)
class _Standing:
    """One endpoint, or the heartbeat: why it is withheld, and since when (s) it has kept up, if it does."""

    withheld: Reason | None = None
    well_since_s: float | None = None
    was_seen: bool = False

    def look(self, now_s: float, why: Reason | None, is_well: bool) -> bool:
        """Takes in what is found now; True if `withheld` has changed."""
        before = self.withheld
        self.well_since_s = (self.well_since_s or now_s) if is_well else None
        if why is not None:
            if self.was_seen:
                self.withheld = why
        elif self.withheld is None:
            self.was_seen = True
        elif self.well_since_s is not None and now_s - self.well_since_s >= RETURN_S:
            self.withheld = None
        return self.withheld is not before


class Fitness:
    """All endpoints that are watched. Times in s of one monotonic clock."""

    def __init__(self, lag_s_max: float) -> None:
        self._lag_s_max = lag_s_max
        self._heartbeat = _Standing()
        self._endpoints: dict[int, _Standing] = {}

    def look(
        self, now_s: float, beat_age_s: float | None, lags_s: Mapping[int, float | None]
    ) -> list[Change]:
        """What has changed. `beat_age_s`: since the last beat was sent; lags of all endpoints watched, None:
        unknown.
        """
        return list(self._look(now_s, beat_age_s, lags_s))

    def withheld(self, index: int) -> Reason | None:
        """Why an endpoint takes no reads; None: it takes them as far as it is fresh enough for a session."""
        standing = self._endpoints.get(index)
        return None if standing is None else self._heartbeat.withheld or standing.withheld

    def dropped(self) -> list[tuple[int, Reason]]:
        """The endpoints that are withheld for reasons of their own."""
        return [(index, one.withheld) for index, one in self._endpoints.items() if one.withheld is not None]

    def _look(
        self, now_s: float, beat_age_s: float | None, lags_s: Mapping[int, float | None]
    ) -> Iterator[Change]:
        for index in self._endpoints.keys() - lags_s.keys():
            if self._endpoints.pop(index).withheld is not None:
                yield Change(index, None)
        if not lags_s:
            self._heartbeat = _Standing()
            return
        limit_s = self._lag_s_max
        # Before any copy can be late: a heartbeat that has stopped must not pass for so many late copies.
        silent = beat_age_s is None or beat_age_s > 0.75 * limit_s
        steady = beat_age_s is not None and beat_age_s < 0.5 * limit_s
        if self._heartbeat.look(now_s, Reason.NO_HEARTBEAT if silent else None, steady):
            yield Change(None, self._heartbeat.withheld)
        if self._heartbeat.withheld is not None:
            return
        for index, lag_s in lags_s.items():
            why = Reason.CANDIDATE_DOWN if lag_s is None else Reason.LATE if lag_s > limit_s else None
            standing = self._endpoints.setdefault(index, _Standing())
            if standing.look(now_s, why, lag_s is not None and lag_s < 0.5 * limit_s):
                yield Change(index, standing.withheld)
