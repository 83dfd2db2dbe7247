"""Tells the first of many equal reports at once, and of those that follow only how many there were.

A database that is down fails every link of every worker, and one event each would drown the event log in the
very minutes in which it is read. Pure: every call names the moment, in monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

SPAN_S: Final = 10.0
KINDS_MAX: Final = 500

Key = tuple[str, str, str]


@dataclass(slots=True)
class _Span:
    began_s: float
    count: int = 0
    detail: Mapping[str, Any] | None = None


class Repeats:
    """Reports are equal when kind, service and endpoint are; the detail of the latest one stands for all."""

    def __init__(self) -> None:
        self._spans: dict[Key, _Span] = {}

    def is_first(self, now_s: float, kind: str, service: str, detail: Mapping[str, Any]) -> bool:
        """Whether the report is to be told now; if not, it is counted."""
        key = (kind, service, str(detail.get("endpoint", "")))
        span = self._spans.get(key)
        if span is None and len(self._spans) < KINDS_MAX:
            self._spans[key] = _Span(now_s)
            return True
        if span is None:
            return False
        span.count += 1
        span.detail = detail
        return False

    def due(self, now_s: float) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Kind, service and detail, with `count` and `within_s`, of what was repeated in a span that is over.

        What was not is forgotten: the next such report is a first one.
        """
        for key in [key for key, span in self._spans.items() if now_s - span.began_s >= SPAN_S]:
            span = self._spans.pop(key)
            if span.count:
                self._spans[key] = _Span(now_s)
                more = {"count": span.count, "within_s": round(now_s - span.began_s, 1)}
                yield key[0], key[1], {**(span.detail or {}), **more}
