"""Tells what a reload may change while pgshunt runs, and what needs a restart.

A reload is all or nothing: a configuration with an error, or with a change that needs a restart, still brings
its live changes into force, and the rest is named. It never touches stages, weights or latches: those are
runtime state, not configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pgshunt.config.model import Config

# What can be swapped while running; all else is wired into sockets, processes or lanes at start.
LIVE = (
    "rollback.error_rate_percent_max",
    "rollback.consistency_percent_min",
    "services.*.shadow_writes",
    "services.*.shadow_percent",
    "services.*.ddl",
    "admin.token",
)
# A section of which keys may come and go, too.
LIVE_SECTION = "listen.tls."


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys whose values differ, as dotted paths in order; never the values, which may be secret."""

    live: tuple[str, ...]
    restart: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.live or self.restart)


def changes(before: Config, after: Config) -> Changes:
    """What differs between two configurations."""
    old, new = dict(_leaves(before.dump_revealed())), dict(_leaves(after.dump_revealed()))
    differing = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    live = tuple(
        path
        for path in differing
        if path.startswith(LIVE_SECTION) or (path in old and path in new and _is_live(path))
    )
    return Changes(live, tuple(path for path in differing if path not in live))


def merged(before: Config, after: Config) -> Config:
    """The running configuration with the live changes of a new one."""
    services = {
        name: service.model_copy(
            update={
                "shadow_writes": after.services[name].shadow_writes,
                "shadow_percent": after.services[name].shadow_percent,
                "ddl": after.services[name].ddl,
            }
        )
        if name in after.services
        else service
        for name, service in before.services.items()
    }
    rollback = before.rollback.model_copy(
        update={
            "error_rate_percent_max": after.rollback.error_rate_percent_max,
            "consistency_percent_min": after.rollback.consistency_percent_min,
        }
    )
    # Taking the token away, or giving one for the first time, changes who may call: that needs a restart.
    both = before.admin.token is not None and after.admin.token is not None
    admin = before.admin.with_secret(after.admin.token) if both and after.admin.token else before.admin
    listen = before.listen.model_copy(update={"tls": after.listen.tls})
    return before.model_copy(
        update={"services": services, "rollback": rollback, "admin": admin, "listen": listen}
    )


def _is_live(path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in LIVE)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted path. A list is one value: its items have no identity."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
