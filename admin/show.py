"""Renders the admin API's documents as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pgshunt.admin.words import duration, span

Document = Mapping[str, Any]


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be; numbers stand to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    numeric = [all(_is_number(row[index]) for row in cells) for index in range(len(headings))]
    lines = []
    for row in (headings, *cells):
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def status(document: Document) -> str:
    """The sentence first, then a line for each service."""
    lines = [document["sentence"]]
    lines += map(_attention, document["warnings"])
    if document["services"]:
        lines += ["", services(document["services"])]
    return "\n".join(lines)


def services(documents: Iterable[Document]) -> str:
    headings = ("SERVICE", "STAGE", "READS", "CALLS/S", "P95 OLD", "P95 NEW", "LAG", "GUARD")
    return table(headings, map(_service_row, documents))


def service(document: Document) -> str:
    """One service in full: where it stands, how far it is from each trigger."""
    lines = [document["sentence"]]
    if document["latch"]:
        lines.append(f"  latched: {document['latch']['trigger']}, {document['latch']['reason']}")
    lines += map(_attention, document["attention"])
    for trigger in document["triggers"]:
        lines.append(f"  {trigger['trigger']:<12} {trigger['verdict']:<13} {trigger['reason']}")
    if document["shadow"]:
        lines.append(f"  shadow writes: {_shadow(document['shadow'])}")
    for name, copied in document["progress"].items():
        lines.append(
            f"  {name:<40} {copied['state']:<12} {copied['rows_copied']} of about {copied['rows_total']} rows"
        )
    return "\n".join(lines)


def events(documents: Iterable[Document]) -> str:
    return "\n".join(map(event, documents))


def event(document: Document) -> str:
    """One line: number, time, what, and the details."""
    detail = _details(document["detail"])
    parts = (f"{document['id']:>6}", document["at"], document["kind"], document["service"], detail)
    return "  ".join(part for part in parts if part)


def readiness(document: Document) -> str:
    """The sentence, a line for each thing that would break, then each with its shape and callers."""
    lines = [document["sentence"], f"  {_looked(document)}"]
    lines += [f"  fine: {sentence}" for sentence in document["fine"]]
    if document["findings"]:
        rows = [
            (
                number,
                finding["calls_per_minute"] if finding["callers"] else "-",
                finding["kind"],
                ", ".join(finding["others"]) or "-",
                ", ".join(finding["tables"]),
            )
            for number, finding in enumerate(document["findings"], start=1)
        ]
        lines += ["", table(("#", "CALLS/MIN", "WHAT", "WITH", "TABLES"), rows)]
    for number, finding in enumerate(document["findings"], start=1):
        lines += ["", *_finding(number, finding)]
    return "\n".join(lines)


def _looked(document: Document) -> str:
    dropped = document["dropped_facts"]
    rare = f"; {dropped} rarer ones let go, {document['dropped_calls']} calls" if dropped else ""
    return f"observed for {span(document['observed_s'])}{rare}"


def _finding(number: int, finding: Document) -> Iterable[str]:
    yield f"{number}. {finding['what'] or finding['kind']}"
    if finding["callers"]:
        callers = [
            f"{caller['user']}{_named(caller)} {caller['calls_per_minute']:g}/min"
            for caller in finding["callers"]
        ]
        yield f"   callers: {', '.join(callers)}"
    yield f"   breaks:  {finding['breaks']}"
    yield f"   remedy:  {finding['remedy']}"


def _named(caller: Document) -> str:
    return f" ({caller['application_name']})" if caller["application_name"] else ""


def explanation(document: Document) -> str:
    """As routing.explain words it."""
    return "\n".join(document["lines"])


def _attention(what: str) -> str:
    """One line, whatever a server or a file has put into it."""
    return f"  attention: {' '.join(what.split())}"


def _service_row(document: Document) -> tuple[object, ...]:
    baseline, candidate = document["baseline"], document["candidate"]
    lags = [lag_s for lag_s in document["lag_s"].values() if lag_s is not None]
    return (
        document["name"],
        document["stage"],
        f"{document['reads']} %",
        document["calls"]["calls_per_s"],
        _milliseconds(baseline["p95_ms"]),
        _milliseconds(candidate["p95_ms"]),
        duration(max(lags)) if lags else "-",
        "rolled back" if document["latch"] else _worst(document["triggers"]),
    )


def _shadow(results: Mapping[str, int]) -> str:
    """`0 matched, 113 undecided, 0 differ`; what was not compared at all only where there is such."""
    compared = f"{results.get('match', 0)} matched, {results.get('undecided', 0)} undecided"
    parts = [compared, f"{results.get('mismatch', 0)} differ"]
    uncompared = {"dropped": "dropped", "error": "failed"}
    parts += [f"{results[result]} {word}" for result, word in uncompared.items() if results.get(result)]
    return ", ".join(parts)


def _worst(triggers: Sequence[Document]) -> str:
    verdicts = [trigger["verdict"] for trigger in triggers]
    return next((verdict for verdict in ("fail", "inconclusive", "pass") if verdict in verdicts), "-")


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else duration(value / 1000)


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _details(detail: Document) -> str:
    return ", ".join(f"{name} {_brief(value)}" for name, value in detail.items())


def _brief(value: object) -> str:
    """A JSON value."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return str(value.get("reason") or f"{{{_details(value)}}}")
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    return str(value)
