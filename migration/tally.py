"""Adds up what verification found about one service since its stage began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pgshunt.migration.verify import Divergence, VerifyResult

SHOWN_MAX: Final = 20
RECENT_S_MIN: Final = 600.0


@dataclass(slots=True)
class Tally:
    """Sums over ranges, and what the last whole pass says. Times are Unix seconds, given by the caller.

    A row counts each time it is compared, and each time it is confirmed wrong, so the ratio holds over any
    number of passes.
    """

    compared: int = 0
    confirmed: int = 0
    undecided: int = 0
    passes: int = 0
    worked_s: float = 0.0
    pass_began_at: float | None = None
    clean_since: float | None = None
    pass_ended_at: float = 0.0
    open: tuple[Divergence, ...] = ()  # the first of them
    open_total: int = 0
    tables_without_key: tuple[str, ...] = ()

    def add(self, result: VerifyResult, now: float) -> None:
        """Takes in a range, or the end of a pass."""
        if self.pass_began_at is None:
            self.pass_began_at = now - result.duration_s
        if not result.is_pass:
            self.compared += result.rows_compared
            self.confirmed += len(result.confirmed)
            self.undecided += result.undecided
            self.worked_s += result.duration_s
            if result.confirmed:
                self.clean_since = None
            return
        self.passes += 1
        self.open, self.open_total = result.confirmed, result.confirmed_total
        self.tables_without_key = result.tables_without_key
        self.clean_since = None if result.confirmed or result.undecided else self.pass_began_at
        self.pass_began_at, self.pass_ended_at = None, now

    def interrupted(self) -> None:
        """The pass under way broke off: it says nothing about the whole."""
        self.pass_began_at = None

    def is_clean_since(self, moment: float, now: float) -> bool:
        """Whether the last pass began after `moment`, was whole, and every row was found equal; and whether
        it is recent: passes follow each other, so where none ended for twice as long as one takes,
        verification is held up.
        """
        if self.clean_since is None or self.clean_since <= moment:
            return False
        took_s = self.pass_ended_at - self.clean_since
        return now - self.pass_ended_at <= max(RECENT_S_MIN, 2 * took_s)

    def unclean(self, moment: float, now: float) -> str:
        """Why `is_clean_since` says no, with what to do: two sentences."""
        if self.open:
            return f"{self.open_total} rows differ. Repair the copy and let verification see it"
        if self.clean_since is not None and self.clean_since > moment:
            age_s = now - self.pass_ended_at
            return f"no pass of verification has ended for {age_s:.0f} s. See in the status what holds it up"
        if not self.passes:
            last = "none has ended yet"
        elif self.clean_since is None:
            last = (
                f"the last one, which ended {now - self.pass_ended_at:.0f} s ago, or what came since, was not"
            )
        else:
            last = f"the last clean one began {moment - self.clean_since:.0f} s before it"
        if self.pass_began_at is None:
            under_way = "the next begins soon"
        elif self.pass_began_at > moment:
            under_way = f"one is under way for {now - self.pass_began_at:.0f} s"
        else:
            under_way = "the one under way began before it"
        return (
            "no whole pass of verification that began after the rollback was clean: "
            f"{last}, {under_way}. Waiting is enough if nothing is wrong: ask again when a pass has ended"
        )

    @property
    def consistency_percent(self) -> float | None:
        """Of the rows decided; None before any was."""
        decided = self.compared - self.undecided
        return 100.0 * (1 - self.confirmed / decided) if decided else None

    def to_dict(self) -> dict[str, Any]:
        """For the status: JSON values."""
        return {
            "rows_compared": self.compared,
            "rows_confirmed": self.confirmed,
            "rows_undecided": self.undecided,
            "passes": self.passes,
            "rows_per_second": round(self.compared / self.worked_s) if self.worked_s else None,
            "consistency_percent": self.consistency_percent,
            "clean": self.clean_since is not None,
            "open": [
                {"table": each.table, "key": list(each.key), "kind": each.kind}
                for each in self.open[:SHOWN_MAX]
            ],
            "open_total": self.open_total,
            "tables_without_key": list(self.tables_without_key),
        }
