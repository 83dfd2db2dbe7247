"""What was observed is bounded, what gives way is counted, and all of it survives as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.migration import observed as module
from pgshunt.migration.observed import CALLERS_MAX, FACTS_MAX, FORGET_S, Observed

NOW = 1_800_000_000.0


def row(text: str, calls: int = 1, user: str = "app", name: str = "shop") -> list[Any]:
    return ["statement", text, ["public.a", "public.b"], [], user, name, calls]


def test_the_same_from_several_workers_is_one_fact_with_its_callers() -> None:
    observed = Observed()
    observed.take([row("x", 2), row("x", 3, name="jobs")], 0, NOW)
    observed.take([row("x", 4)], 7, NOW + 5)
    (fact,) = observed
    assert (fact.calls, fact.last_at, observed.dropped_calls) == (9, NOW + 5, 7)
    assert fact.ranked() == [(("app", "shop"), 6), (("app", "jobs"), 3)]


def test_a_transaction_is_known_by_its_tables_whatever_its_statements() -> None:
    observed = Observed()
    for text in ("first; second", "third; fourth"):
        observed.take([["transaction", text, [], ["public.a", "public.b"], "app", "", 1]], 0, NOW)
    (fact,) = observed
    assert (fact.calls, fact.text) == (2, "first; second")


def test_the_rarest_give_way_and_are_counted() -> None:
    observed = Observed()
    observed.take([row(f"s{number}", 2) for number in range(FACTS_MAX)], 0, NOW)
    observed.take([row("often", 50), row("rare", 1)], 0, NOW + 1)
    assert len(list(observed)) == FACTS_MAX
    assert {"often"} <= {fact.text for fact in observed}
    assert "rare" not in {fact.text for fact in observed}
    assert (observed.dropped_facts, observed.dropped_calls) == (2, 3)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=200)
)
def test_whatever_comes_memory_is_bounded_and_no_call_is_lost_sight_of(
    calls: list[tuple[int, int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FACTS_MAX", 10)
        patch.setattr(module, "CALLERS_MAX", 4)
        observed = Observed()
        for text, user, count in calls:
            observed.take([row(str(text), count, user=str(user))], 0, NOW)
        kept = list(observed)
    assert len(kept) <= 10
    assert all(len(fact.callers) <= 4 for fact in kept)
    assert sum(fact.calls for fact in kept) + observed.dropped_calls == sum(count for _, _, count in calls)


def test_callers_are_bounded_and_their_calls_stay() -> None:
    observed = Observed()
    for number in range(3 * CALLERS_MAX):
        observed.take([row("x", name=f"pod-{number}")], 0, NOW)
    (fact,) = observed
    assert (len(fact.callers), fact.calls) == (CALLERS_MAX, 3 * CALLERS_MAX)


def test_what_nobody_does_any_more_is_forgotten() -> None:
    observed = Observed()
    observed.take([row("old")], 0, NOW)
    observed.take([row("new")], 0, NOW + FORGET_S)
    observed.forget_old(NOW + FORGET_S)
    assert [fact.text for fact in observed] == ["new"]


def test_a_rate_needs_a_minute() -> None:
    observed = Observed()
    observed.observed_s = 2.0
    assert observed.per_minute(5) == 5
    observed.observed_s = 600.0
    assert observed.per_minute(5) == 0.5


def test_it_survives_as_json() -> None:
    observed = Observed()
    observed.observed_s = 90.0
    observed.take([row("x", 3), row("y", 5, name="naïve")], 2, NOW)
    document = json.loads(json.dumps(observed.to_document()))
    assert Observed.from_document(document).to_document() == observed.to_document() == document


@pytest.mark.parametrize("document", [{}, [], None, {"version": 2}, {"version": 1, "facts": [{}]}])
def test_what_is_none_of_ours_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"no observations of pgshunt|not known here"):
        Observed.from_document(document)
