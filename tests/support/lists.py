"""Lists that sessions append to and read back, and what must be true of what they were told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


def items(text: str) -> list[int]:
    """A list as the tables of these tests hold it: each item behind a comma."""
    return [int(item) for item in text.split(",") if item]


@dataclass(slots=True)
class History:
    """What sessions were told, and what is wrong with it. `told` has for each list what was appended,
    `undone` what was rolled back, `reads` what was seen and what must have been.
    """

    told: defaultdict[object, set[int]] = field(default_factory=lambda: defaultdict(set))
    undone: defaultdict[object, set[int]] = field(default_factory=lambda: defaultdict(set))
    reads: list[tuple[object, list[int], set[int]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def anomalies(self, final: dict[object, list[int]]) -> list[str]:
        found = list(self.errors)
        for key, seen, must in self.reads:
            if seen != final[key][: len(seen)]:
                found.append(f"list {key}: {seen[-3:]} is no prefix of it")
            if missing := must - set(seen):
                found.append(f"list {key}: read without {sorted(missing)[:3]}")
        for key, values in final.items():
            if missing := self.told[key] - set(values):
                found.append(f"list {key}: lost {sorted(missing)[:3]}")
            if kept := self.undone[key] & set(values):
                found.append(f"list {key}: kept {sorted(kept)[:3]}, which was rolled back")
            if len(set(values)) < len(values):
                found.append(f"list {key}: holds something twice")
        return found
