"""Keeps what was seen to touch tables of more than one owner, in bounded memory, and as JSON over restarts.

The rarest are let go when there is no room, and counted: what is left is what a switch would break most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

FACTS_MAX: Final = 300
CALLERS_MAX: Final = 20
"""Kept of each fact; the rarest give way, and what they called stays in the fact's own count."""
FORGET_S: Final = 40 * 86_400.0
"""After this time unseen a fact is over: longer than the month after which a job comes again."""
RATE_S_MIN: Final = 60.0
"""A rate is not told from less time than this."""

Kind = Literal["statement", "transaction"]
Caller = tuple[str, str]
"""User and application_name."""
Key = tuple[str, str, tuple[str, ...], tuple[str, ...]]


@dataclass(slots=True)
class Fact:
    """A statement by its shape, or a transaction by the tables it writes, and who sends it.

    `text` has no literals; of a transaction it is the first one seen. Times are seconds since 1970.
    """

    kind: Kind
    text: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    calls: int = 0
    last_at: float = 0.0
    callers: dict[Caller, int] = field(default_factory=dict)

    @property
    def tables(self) -> frozenset[str]:
        return frozenset(self.reads + self.writes)

    def add(self, caller: Caller, calls: int, at: float) -> None:
        self.calls += calls
        self.last_at = max(self.last_at, at)
        if caller not in self.callers and len(self.callers) >= CALLERS_MAX:
            del self.callers[min(self.callers, key=self.callers.__getitem__)]
        self.callers[caller] = self.callers.get(caller, 0) + calls

    def ranked(self) -> list[tuple[Caller, int]]:
        """The callers, most calls first."""
        return sorted(self.callers.items(), key=lambda item: (-item[1], item[0]))


class Observed:
    """All facts. `now` is seconds since 1970, everywhere.

    `observed_s` is for how long somebody has looked, restarts left out; `dropped_calls` what facts had
    counted that were let go, and what workers could not keep.
    """

    def __init__(self) -> None:
        self.observed_s = 0.0
        self.dropped_facts = 0
        self.dropped_calls = 0
        self._facts: dict[Key, Fact] = {}

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts.values())

    def take(self, rows: Iterable[list[Any]], dropped: int, now: float) -> None:
        """Rows of a worker's delta, as proxy.crossings words them."""
        self.dropped_calls += dropped
        for kind, text, reads, writes, user, application_name, calls in rows:
            self._fact(kind, text, tuple(reads), tuple(writes)).add((user, application_name), calls, now)
        while len(self._facts) > FACTS_MAX:
            self._let_go()

    def per_minute(self, calls: int) -> float:
        """What so many calls are in a minute of the time observed."""
        return calls * 60 / max(self.observed_s, RATE_S_MIN)

    def forget_old(self, now: float) -> None:
        """Lets go what nobody has done for long: it was mended, or its service is gone."""
        self._facts = {key: fact for key, fact in self._facts.items() if now - fact.last_at < FORGET_S}

    def to_document(self) -> dict[str, Any]:
        """As JSON values, most calls first."""
        facts = sorted(self._facts.values(), key=lambda fact: -fact.calls)
        return {
            "version": 1,
            "observed_s": round(self.observed_s, 1),
            "dropped_facts": self.dropped_facts,
            "dropped_calls": self.dropped_calls,
            "facts": [
                {
                    "kind": fact.kind,
                    "text": fact.text,
                    "reads": list(fact.reads),
                    "writes": list(fact.writes),
                    "calls": fact.calls,
                    "last_at": round(fact.last_at, 1),
                    "callers": [[*caller, calls] for caller, calls in fact.ranked()],
                }
                for fact in facts
            ],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Observed:
        """Raises ValueError when it is none of ours."""
        observed = cls()
        try:
            if document["version"] != 1:
                raise ValueError(f"version {document['version']} is not known here")
            observed.observed_s = float(document["observed_s"])
            observed.dropped_facts = int(document["dropped_facts"])
            observed.dropped_calls = int(document["dropped_calls"])
            for one in document["facts"]:
                fact = observed._fact(one["kind"], one["text"], tuple(one["reads"]), tuple(one["writes"]))
                fact.calls, fact.last_at = int(one["calls"]), float(one["last_at"])
                fact.callers = {(user, name): int(calls) for user, name, calls in one["callers"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no observations of pgshunt: {error!r}") from error
        return observed

    def _fact(self, kind: Kind, text: str, reads: tuple[str, ...], writes: tuple[str, ...]) -> Fact:
        """A transaction is known by its tables, whatever the statements."""
        key = (kind, "" if kind == "transaction" else text, reads, writes)
        if key not in self._facts:
            self._facts[key] = Fact(kind, text, reads, writes)
        return self._facts[key]

    def _let_go(self) -> None:
        """The rarest; of several, the one that was not seen for longest."""
        key = min(self._facts, key=lambda key: (self._facts[key].calls, self._facts[key].last_at))
        self.dropped_facts += 1
        self.dropped_calls += self._facts.pop(key).calls
