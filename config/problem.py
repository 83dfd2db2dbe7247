"""Words a problem of a configuration so that its reader knows where it is and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

Path = tuple[str | int, ...]
"""Keys and list indexes from the top of the file to a value."""


class Severity(StrEnum):
    """How much a problem matters; only an ERROR keeps pgshunt from starting."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a file; both numbers count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to change in a configuration."""

    path: Path
    message: str
    remedy: str
    severity: Severity = Severity.ERROR
    place: Place | None = None
    at_key: bool = False
    """The key itself is wrong, not the value behind it."""
    follows_from: tuple[Path, ...] = ()
    """Other values it was found by: where one of them is wrong itself, this may not be a problem at all."""

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        severity = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        path = f"{dotted(self.path)}: " if self.path else ""
        return f"{place}{severity}{path}{self.message}; {self.remedy}"


class ConfigError(Exception):
    """A configuration that cannot be used. `problems` holds everything found, notes and warnings too."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(path: Path) -> str:
    """`("auth", "users", 0, "name")` → `auth.users[0].name`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def choose(word: str, known: Iterable[str], kind: str) -> str:
    """The remedy for a word that is not among the `known` ones: the nearest, else all of them."""
    names = sorted(known)
    if near := get_close_matches(word, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"{kind}: {', '.join(names)}" if names else f"there are no {kind} here"
