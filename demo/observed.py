"""What the story records: each step with what was seen, and the document made of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class StoryFailed(RuntimeError):
    """A step was not observed as it should be; the steps so far say what was seen instead."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `observed` holds JSON values that were seen, `ok` whether they are what the title claims.

    `told` says the same to a person.
    """

    step: str
    title: str
    told: str
    observed: dict[str, Any]
    ok: bool
    at_s: float  # since the story began


class Narrator(Protocol):
    """Shows the story to a person while it happens."""

    def say(self, text: str) -> None:
        """A sentence about what comes next."""

    def show(self, step: Step) -> None:
        """A step that is over."""

    def progress(self, tables: Mapping[str, Any]) -> None:
        """How far the copy of each table has come."""


@dataclass(slots=True)
class Record:
    """The steps in order, and what they add up to."""

    narrator: Narrator
    steps: list[Step] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    workload: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    last_words: list[str] = field(default_factory=list)  # of the proxy, if the story fails
    began: float = field(default_factory=time.monotonic)

    def observe(self, step: str, title: str, told: str, ok: bool, **observed: Any) -> None:
        """Adds a step. Raises StoryFailed if it is not ok: what follows would stand on nothing."""
        done = Step(step, title, told, observed, ok, round(time.monotonic() - self.began, 3))
        self.steps.append(done)
        self.narrator.show(done)
        if not ok:
            raise StoryFailed(f"{step}: not as it should be: {observed}")

    @property
    def ok(self) -> bool:
        return bool(self.steps) and not self.problem and all(step.ok for step in self.steps)

    def to_document(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "problem": self.problem,
            "last_words": self.last_words,
            "duration_s": round(time.monotonic() - self.began, 3),
            "steps": [asdict(step) for step in self.steps],
            "rollbacks": self.rollbacks,
            "workload": self.workload,
        }
