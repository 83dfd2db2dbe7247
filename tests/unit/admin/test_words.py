"""Amounts read well over their whole range."""

from __future__ import annotations

import pytest

from pgshunt.admin.words import counted, duration, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0000004, "0 ms"),
        (0.00123, "1.23 ms"),
        (0.0456, "45.6 ms"),
        (0.31, "310 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (5.23, "5.2 s"),
        (12345.6, "12345.6 s"),
    ],
)
def test_durations_have_the_unit_that_fits_and_no_exponent(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.9, "60 s"),
        (60.0, "1 min"),
        (3599.0, "59 min"),
        (11520.0, "3 h 12 min"),
        (439_200.0, "5 d 2 h"),
    ],
)
def test_spans_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_one_is_no_plural() -> None:
    assert [counted(number, "service") for number in (0, 1, 2)] == ["0 services", "1 service", "2 services"]
