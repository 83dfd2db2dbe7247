from collections.abc import Callable
from typing import Any

from pgshunt.routing.shape import Shape

class Entry:
    shape: Shape
    kind: int
    splittable: bool
    stateful: bool
    unreadable: bool
    writes: bool
    defines: bool
    tells_pid: bool
    read_only: bool
    epoch: int
    plan_kind: int
    service: int
    endpoint: int
    percent: int
    reason: int
    plan: Any
    crosses: bool
    writer: int
    key: bytes | None
    prepared: Entry | None
    def __init__(self, shape: Shape) -> None: ...

class SearchPath:
    number: int
    names: tuple[str, ...]

class ShapeCache:
    hits_text: int
    hits_template: int
    hits_stripped: int
    misses: int
    def __init__(
        self, resolve: Callable[[bytes, tuple[str, ...]], Shape], capacity: int = 10_000
    ) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def bytes_kept(self) -> int: ...
    def search_path(self, names: tuple[str, ...]) -> SearchPath: ...
    def find(self, text: bytes, search_path_id: int = 0) -> Entry: ...
    def clear(self) -> None: ...

def kinds() -> dict[str, int]: ...
def plan_kinds() -> dict[str, int]: ...
def strip_bytes(text: bytes) -> bytes | None: ...
def bench_lookup(cache: ShapeCache, text: bytes, count: int, fresh: bool = False) -> float: ...
