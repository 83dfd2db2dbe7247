"""Which moment a beat stands for, and that beats go on."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.config.model import Control
from pgshunt.migration import heartbeat
from pgshunt.migration.heartbeat import BEATS_MAX, Beats, Heartbeat
from pgshunt.routing.table import Endpoint


def test_a_beat_that_is_not_ours_has_no_time() -> None:
    beats = Beats()
    assert beats.time_of(5) == 0
    beats.committed(7, 700)
    assert (beats.time_of(6), beats.time_of(7), beats.time_of(8)) == (0, 700, 700)


def test_a_beat_whose_commit_is_not_known_counts_as_the_one_before() -> None:
    beats = Beats()
    beats.committed(1, 100)
    beats.committed(3, 300)  # 2 was sent, and the connection lost
    assert beats.time_of(2) == 100


def test_a_number_is_above_all_before_it_even_if_clock_and_row_go_back() -> None:
    beats = Beats()
    assert beats.least(5_000_000) == 5
    beats.committed(5, 100)
    assert (beats.least(9_000_000), beats.least(2_000_000)) == (9, 6)


@given(st.lists(st.integers(1, 3), max_size=2 * BEATS_MAX), st.integers(0, 3000))
def test_the_time_is_that_of_the_greatest_remembered_beat_not_above_what_was_seen(
    steps: list[int], seen: int
) -> None:
    beats, number, sent = Beats(), 0, {}
    for step in steps:
        number += step
        sent[number] = len(sent) + 1
        beats.committed(number, sent[number])
    remembered = list(sent)[-BEATS_MAX:]
    assert beats.time_of(seen) == max((sent[beat] for beat in remembered if beat <= seen), default=0)


def test_a_defect_does_not_end_the_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "RECONNECT_S", 0.01)
    tries = threading.Semaphore(0)

    def connect(*arguments: object) -> None:
        tries.release()
        raise NotImplementedError("a server nobody foresaw")

    monkeypatch.setattr(heartbeat, "connect", connect)
    control = Control.model_validate({"user": "pgshunt", "password": "hidden"})
    shared = Endpoint("shared", "shared", "127.0.0.1", 1, "db", "primary")
    heart = Heartbeat(shared, control, lambda index, moment_ns: None, 0.01)
    heart.watch({}, ["auth_service"])
    assert all(tries.acquire(timeout=20) for _ in range(3))
    assert "nobody foresaw" in heart.write_error
    heart.stop()
