"""Judges a write transaction that ran at a service's own database too, by what both sides answered.

What cannot be decided is undecided, never a mismatch: the lane may have applied the same rows before or
after, so a unique violation, a lock timeout or another row count can all be innocent. A missing table, a
missing privilege, a type that does not fit can not.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgshunt.routing.shape import Shape

# Errors that another state of the data can explain.
_BY_TIMING = frozenset({"23505", "23503", "23P01", "23001", "23000"})


@dataclass(frozen=True, slots=True)
class Statement:
    """One recorded statement: `frames` run it at the target and end with one ReadyForQuery."""

    shape: Shape
    frames: bytes
    exact_count: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the target said: one tag per statement up to the first error."""

    tags: tuple[bytes, ...]
    sqlstate: str | None
    took_us: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """match, mismatch, undecided or error (the target could not be asked), with both sides' answers."""

    result: str
    source: str = ""
    target: str = ""


def compare(statements: list[Statement], tags: list[bytes], error: str | None, target: Outcome) -> Verdict:
    """Judges one unit by the owner's answers (`tags`, or `error`) and the target's."""
    if error is not None or target.sqlstate is not None:
        source, other = error or "ok", target.sqlstate or "ok"
        if source == other:
            return Verdict("match")
        failed = statements[min(len(target.tags), len(statements) - 1)]
        if error is None and target.sqlstate is not None and definite(target.sqlstate, failed):
            return Verdict("mismatch", source, other)
        return Verdict("undecided", source, other)
    if len(tags) != len(statements) or len(target.tags) != len(statements):
        return Verdict("undecided", f"{len(tags)} answers", f"{len(target.tags)} answers")
    for statement, source_tag, target_tag in zip(statements, tags, target.tags, strict=True):
        if source_tag != target_tag:
            result = "mismatch" if statement.exact_count else "undecided"
            return Verdict(result, source_tag.decode(errors="replace"), target_tag.decode(errors="replace"))
    return Verdict("match")


def definite(sqlstate: str, failed: Statement) -> bool:
    """Whether an error that only the target has can only mean that the two databases differ.

    A value that breaks a rule (22, 23) proves it only if it stood in the statement: `balance = balance - 10`
    breaks one the second time, after the lane has applied it.
    """
    if sqlstate[:2] in ("22", "23"):
        return failed.exact_count and sqlstate not in _BY_TIMING
    return sqlstate[:2] in ("42", "3F", "0A", "25", "26")
