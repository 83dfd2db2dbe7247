"""Says from whose session a statement is explained: the schemas in which its names are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgshunt.routing.explain import Explanation
from pgshunt.routing.names import as_user, split_search_path


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """`user`: empty for nobody's; `search_path`: what was asked for, empty for the session's own.

    `own_path` is what the shared database keeps for the user, by itself or in that database: empty if it has
    nothing of its own, None if there is no such role. `unread`: why that is not known.
    """

    user: str = ""
    search_path: str = ""
    own_path: str | None = ""
    unread: str = ""

    def path(self, default: str) -> tuple[str, ...]:
        """`default` is what the database has for everybody, as SHOW prints it."""
        path = split_search_path(self.search_path or self.own_path or default)
        return as_user(self.user, path) if self.user else path

    def document(self, explanation: Explanation, path: tuple[str, ...]) -> dict[str, Any]:
        """An explanation as the admin API gives it, by the path that was taken."""
        lines = explanation.lines()
        if self.user or self.search_path:
            lines.append(f"{'path':<10} {', '.join(path)}" + (f" (as {self.user})" if self.user else ""))
        if self.unread:
            lines.append(f"attention  the search_path of {self.user} could not be read: {self.unread}")
        elif self.own_path is None:
            lines.append(f"attention  the shared database has no role {self.user}")
        return {**explanation.to_dict(), "search_path": list(path), "lines": lines}
