"""A flood of equal reports becomes the first one and counts; what differs is told."""

from __future__ import annotations

from pgshunt.admin import repeats
from pgshunt.admin.repeats import SPAN_S, Repeats

DOWN = {"worker": 0, "endpoint": "auth_db", "detail": "refused"}


def test_the_first_is_told_the_others_are_counted() -> None:
    seen = Repeats()
    reports = ({**DOWN, "worker": worker} for worker in range(500))
    told = [seen.is_first(0.5, "link_failed", "", report) for report in reports]
    assert told == [True] + [False] * 499
    assert list(seen.due(SPAN_S)) == []
    ((kind, service, detail),) = seen.due(SPAN_S + 0.5)
    assert (kind, service) == ("link_failed", "")
    assert detail == {**DOWN, "worker": 499, "count": 499, "within_s": SPAN_S}


def test_while_it_goes_on_only_counts_are_told_and_after_a_quiet_span_it_is_new_again() -> None:
    seen = Repeats()
    told = 0
    for second in range(60):
        told += seen.is_first(second, "link_failed", "", DOWN) + len(list(seen.due(second)))
    assert told == 1 + 5
    assert list(seen.due(60 + SPAN_S)) == [("link_failed", "", {**DOWN, "count": 9, "within_s": 20.0})]
    assert list(seen.due(60 + 2 * SPAN_S)) == []
    assert seen.is_first(60 + 2 * SPAN_S, "link_failed", "", DOWN)


def test_another_kind_service_or_endpoint_is_another_report() -> None:
    seen = Repeats()
    assert all(
        seen.is_first(0, kind, service, {"endpoint": endpoint})
        for kind in ("link_failed", "fault")
        for service in ("", "auth_service")
        for endpoint in ("auth_db", "dgm_db")
    )


def test_what_is_remembered_is_bounded() -> None:
    seen = Repeats()
    told = sum(seen.is_first(0, f"kind {number}", "", {}) for number in range(2 * repeats.KINDS_MAX))
    assert told == repeats.KINDS_MAX
