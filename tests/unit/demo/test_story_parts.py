"""The small parts of the demo: percentiles, the record, the services as they stand in the worked example."""

from __future__ import annotations

import io
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest
import yaml

from pgshunt.demo.chance import FALSE_ALARM, expected
from pgshunt.demo.observed import Record, StoryFailed
from pgshunt.demo.services import SERVICES
from pgshunt.demo.story import armed_after
from pgshunt.demo.tally import percentiles
from pgshunt.demo.view import Lines

EXAMPLE = Path(__file__).parents[3] / "config" / "pgshunt.yaml"


def test_percentiles_of_a_hundred() -> None:
    assert percentiles(range(100)) == {"p50": 50, "p95": 95, "p99": 99, "max": 99}
    assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert percentiles([]) == {}


def test_the_services_are_those_of_the_worked_example() -> None:
    example = yaml.safe_load(EXAMPLE.read_text())["services"]
    ours = {
        service.name: (service.database, set(service.tables), set(service.external_refs))
        for service in SERVICES
    }
    assert ours == {
        name: (service["database"], set(service["tables"]), set(service["external_refs"]))
        for name, service in example.items()
    }


def test_a_step_that_is_not_ok_ends_the_story_and_stays_in_the_document() -> None:
    shown = io.StringIO()
    record = Record(Lines(shown))
    record.observe("first", "went well", "three rows", True, rows=3)
    with pytest.raises(StoryFailed, match="second"):
        record.observe("second", "went wrong", "no rows", False, rows=0)
    document = record.to_document()
    assert not document["ok"]
    assert [(step["step"], step["ok"]) for step in document["steps"]] == [("first", True), ("second", False)]
    assert "FAIL" in shown.getvalue() and "went wrong: no rows" in shown.getvalue()


def test_a_share_is_likely_but_for_one_in_a_million() -> None:
    """The edges by the exact sum of the binomial distribution."""
    for draws, percent in ((150, 10), (157, 50), (750, 50)):
        likely = expected(draws, percent)
        share = Fraction(percent, 100)
        chances = [comb(draws, won) * share**won * (1 - share) ** (draws - won) for won in range(draws + 1)]
        assert sum(chances[: likely[0]]) < FALSE_ALARM / 2 < sum(chances[: likely[0] + 1])
        assert sum(chances[likely[-1] + 1 :]) < FALSE_ALARM / 2 < sum(chances[likely[-1] :])
    assert expected(150, 10)[0] == 1
    assert expected(150, 100) == range(150, 151)


def test_a_story_without_steps_is_not_ok() -> None:
    assert not Record(Lines(io.StringIO())).ok


def test_a_refusal_to_arm_is_told_with_its_reason() -> None:
    assert armed_after([]) == "at once"
    refusal = "auth_service cannot be armed: 3 rows differ. Repair the copy and let verification see it"
    assert armed_after([refusal, refusal]) == (
        "at attempt 3, once the copy was sound again; before, pgshunt refused: "
        "auth_service cannot be armed: 3 rows differ"
    )
