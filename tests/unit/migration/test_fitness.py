"""Which copies take reads: as rows of time, and by random histories."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgshunt.migration.fitness import RETURN_S, Change, Fitness
from pgshunt.routing.reason import Reason

TICK_S = 0.1
BEATING = 0.05


class Watched:
    """Two endpoints with a limit of 1 s, looked at every 100 ms."""

    def __init__(self) -> None:
        self.fitness = Fitness(1.0)
        self.now_s = 100.0
        self.changes: list[Change] = []

    def look(
        self,
        first: float | None,
        second: float | None = 0.1,
        beat_age_s: float | None = BEATING,
        times: int = 1,
    ) -> list[Change]:
        found: list[Change] = []
        for _ in range(times):
            self.now_s += TICK_S
            found += self.fitness.look(self.now_s, beat_age_s, {1: first, 2: second})
        return found

    @property
    def withheld(self) -> tuple[Reason | None, Reason | None]:
        return self.fitness.withheld(1), self.fitness.withheld(2)


def test_one_that_is_late_is_dropped_and_returns_when_it_has_kept_up() -> None:
    watched = Watched()
    assert watched.look(0.1, times=5) == []
    assert watched.look(0.9, times=5) == []
    assert watched.look(1.1, times=5) == [Change(1, Reason.LATE)]
    assert watched.withheld == (Reason.LATE, None)
    assert watched.look(0.9, times=50) == [], "within the limit is not yet well"
    assert watched.look(0.1, times=9) == []
    assert watched.look(1.1) + watched.look(0.1, times=9) == [], "the time begins anew"
    assert watched.look(0.1, times=3) == [Change(1, None)]
    assert watched.withheld == (None, None)


def test_one_that_is_down_says_so() -> None:
    watched = Watched()
    watched.look(0.1)
    assert watched.look(None) == [Change(1, Reason.CANDIDATE_DOWN)]
    assert watched.look(2.0) == [Change(1, Reason.LATE)]


def test_one_that_was_never_seen_is_no_news() -> None:
    watched = Watched()
    assert watched.look(None, times=5) + watched.look(0.1) == []
    assert watched.withheld == (None, None)


def test_a_heartbeat_that_stops_is_one_fault() -> None:
    watched = Watched()
    watched.look(0.1, times=5)
    stopped = [
        change for age in range(1, 40) for change in watched.look(age / 10, age / 10, beat_age_s=age / 10)
    ]
    assert stopped == [Change(None, Reason.NO_HEARTBEAT)]
    assert watched.withheld == (Reason.NO_HEARTBEAT,) * 2
    assert watched.fitness.dropped() == []
    back = watched.look(0.1, times=20)
    assert back == [Change(None, None)]
    assert watched.withheld == (None, None)


def test_a_heartbeat_that_stumbles_makes_nothing_flap() -> None:
    """One beat a second and nothing between: withheld once, and for good."""
    watched = Watched()
    watched.look(0.1, times=5)
    changes = [
        change
        for tick in range(200)
        for change in watched.look(tick % 10 / 10, tick % 10 / 10, beat_age_s=tick % 10 / 10)
    ]
    assert changes == [Change(None, Reason.NO_HEARTBEAT)]


def test_what_is_no_longer_watched_is_forgotten() -> None:
    watched = Watched()
    watched.look(0.1)
    watched.look(3.0)
    assert watched.fitness.look(watched.now_s, BEATING, {2: 0.1}) == [Change(1, None)]
    assert watched.fitness.look(watched.now_s, None, {}) == []
    assert watched.withheld == (None, None)


LAGS = st.sampled_from([None, 0.1, 0.4, 0.6, 0.99, 1.01, 5.0])


@given(st.lists(st.tuples(st.sampled_from([None, 0.05, 0.4, 0.7, 0.9]), LAGS, LAGS), max_size=80))
def test_whatever_happens_nothing_returns_sooner_than_it_may(
    history: list[tuple[float | None, float | None, float | None]],
) -> None:
    """And an endpoint that is late, as far as the heartbeat can tell, takes no reads."""
    watched = Watched()
    dropped_s: dict[int | None, float] = {}
    seen = set()
    for beat_age_s, first, second in history:
        for change in watched.look(first, second, beat_age_s):
            if change.withheld is None:
                assert watched.now_s - dropped_s.pop(change.index) >= RETURN_S - TICK_S / 10
            else:
                dropped_s.setdefault(change.index, watched.now_s)
        for index, lag_s in ((1, first), (2, second)):
            late = lag_s is None or lag_s > 1
            if late and index in seen:
                assert watched.fitness.withheld(index) is not None
            if not late and watched.fitness.withheld(index) is None:
                seen.add(index)
