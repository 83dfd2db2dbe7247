"""Counts what verification found, over the window in which the guard judges it.

The window is 15 minutes, or everything since the stage began while fewer than 1000 rows were compared in it
(reference: consistency trigger, docs on guards). A row is counted each time it is compared, and each time it is confirmed wrong.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from pgshunt.migration.verify import Divergence, VerifyResult

WINDOW_S: Final = 900.0
ROWS_MIN: Final = 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """Numerators and denominators: rows compared and decided, confirmed wrong, undecided."""

    compared: int = 0
    confirmed: int = 0
    undecided: int = 0

    @property
    def consistency_percent(self) -> float | None:
        """None before anything was compared."""
        return 100.0 * (1 - self.confirmed / self.compared) if self.compared else None

    def plus(self, result: VerifyResult) -> Counts:
        return Counts(
            self.compared + result.rows_compared - result.undecided,
            self.confirmed + len(result.confirmed),
            self.undecided + result.undecided,
        )


@dataclass(slots=True)
class Consistency:
    """The results of one service since its stage began. Times are CLOCK_MONOTONIC seconds, given by the caller."""

    passes: int = 0
    last_pass_at_s: float | None = None
    open_divergences: tuple[Divergence, ...] = ()
    since_stage_began: Counts = Counts()
    _results: deque[tuple[float, VerifyResult]] = field(default_factory=deque)

    def add(self, result: VerifyResult, now_s: float) -> None:
        """Takes a range into the counts; a whole pass says what is open now."""
        if result.is_pass:
            self.passes += 1
            self.last_pass_at_s = now_s
            self.open_divergences = result.confirmed
            return
        self.since_stage_began = self.since_stage_began.plus(result)
        self._results.append((now_s, result))
        while self._results and self._results[0][0] < now_s - WINDOW_S:
            self._results.popleft()

    def counts(self, now_s: float) -> Counts:
        """The counts the guard judges."""
        window = Counts()
        for at_s, result in self._results:
            if at_s >= now_s - WINDOW_S:
                window = window.plus(result)
        return window if window.compared >= ROWS_MIN else self.since_stage_began

    @property
    def is_clean(self) -> bool:
        """Whether the last pass was whole and found nothing wrong."""
        return self.last_pass_at_s is not None and not self.open_divergences
