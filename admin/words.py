"""Words amounts for people: durations in the unit that fits, counts with their noun."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`0.00123` → `1.23 ms`, `0.31` → `310 ms`, `75.04` → `75.0 s`."""
    milliseconds = 1000 * seconds
    if milliseconds >= 999.5:
        return f"{seconds:.1f} s"
    digits = 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2
    return f"{round(milliseconds, digits):g} ms"


def span(seconds: float) -> str:
    """How long something went on: `42 s`, `14 min`, `3 h 12 min`, `5 d 2 h`."""
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86_400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def counted(number: int, noun: str) -> str:
    """`1 service`, `2 services`; of a noun whose plural takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
