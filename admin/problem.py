"""Errors of the admin API as RFC 9457 documents: what happened, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

from pgshunt.admin.words import counted

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
        """One line, and one more for each of the `problems` of `not_ready`, which may have come by HTTP."""
        line = f"{self.detail}; {self.remedy}" if self.remedy else self.detail
        listed = self.more.get("answer", self.more).get("problems", ())
        return "\n".join(
            (line, *(f"  {each['subject']}: {each['message']}; {each['remedy']}" for each in listed))
        )

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


def not_ready(service: str, problems: Sequence[Mapping[str, str]]) -> Problem:
    """409: the databases lack something. `problems`: subject, message and remedy of each."""
    return Problem(
        "not_ready",
        HTTPStatus.CONFLICT,
        f"{service} cannot be moved yet, nothing was changed: {counted(len(problems), 'problem')}",
        f"mend what is listed, then: pgshunt begin {service}",
        {"problems": list(problems)},
    )


def conflict(detail: str, remedy: str) -> Problem:
    """409: not in this stage, or somebody else was quicker."""
    return Problem("conflict", HTTPStatus.CONFLICT, detail, remedy)
