"""Errors of the admin API as RFC 9457 documents: what happened, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

CONTENT_TYPE = "application/problem+json"


@dataclass(slots=True)
class Problem(Exception):
    """`kind` is the last part of the type URI and what a program should look at; `remedy` says what to do."""

    kind: str
    status: HTTPStatus
    detail: str
    remedy: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.detail}; {self.remedy}" if self.remedy else self.detail

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "type": f"urn:pgshunt:problem:{self.kind}",
            "title": self.kind.replace("_", " "),
            "status": int(self.status),
            "detail": self.detail,
            "remedy": self.remedy,
            **self.more,
        }


def unknown_service(name: str, known: Iterable[str]) -> Problem:
    """404, with the nearest name there is."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"services: {', '.join(names) or 'none configured'}"
    return Problem("unknown_service", HTTPStatus.NOT_FOUND, f"there is no service {name!r}", remedy)


def bad_value(detail: str, remedy: str) -> Problem:
    """422."""
    return Problem("bad_value", HTTPStatus.UNPROCESSABLE_ENTITY, detail, remedy)


def latched(service: str, trigger: str) -> Problem:
    """409: a rollback holds."""
    return Problem(
        "latched",
        HTTPStatus.CONFLICT,
        f"{service} was rolled back ({trigger}) and holds until it is re-armed",
        f'look at `pgshunt events`, mend the cause, then: pgshunt rearm {service} --reason "…"',
    )


def held(detail: str, remedy: str) -> Problem:
    """409: something has to be mended first."""
    return Problem("held", HTTPStatus.CONFLICT, detail, remedy)


def conflict(detail: str, remedy: str) -> Problem:
    """409: not in this stage, or somebody else was quicker."""
    return Problem("conflict", HTTPStatus.CONFLICT, detail, remedy)
