"""Compares a service's copy with the shared database, row by row, while both are in use.

Ranges of keys are hashed on both sides. Where the hashes differ the rows are looked at one by one, and a row
counts as divergent only when lag cannot explain it (`judge`). What cannot be decided is
reported as undecided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

from pgshunt.migration.rows import (
    Key,
    Layout,
    Version,
    are_commits_hidden,
    hashes_of,
    next_key,
    read_layouts,
    sum_of,
    versions_of,
    whole_sum_of,
)
from pgshunt.migration.servers import Link, Result, Server, ServerError

LOOKS_MAX: Final = 4
"""A first look and up to three more; a row that keeps changing is undecided then."""
SUSPECTS_MAX: Final = 500
"""Rows looked at in one go; of a range with more the rest follows in further goes."""
CONFIRMED_MAX: Final = 1000
"""Rows of a pass that are named: a copy that was emptied may lack millions."""
QUERY_TIMEOUT_S: Final = 30.0
QUERY_CANCELED: Final = "57014"

Kind = Literal["missing", "extra", "different", "multiset"]
Verdict = Literal["same", "missing", "extra", "different", "open"]
Fence = Callable[[int, float], Awaitable[bool]]
"""fence(moment_ns, timeout_s): waits until the target holds all committed before; False if not in time."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A row of the copy that is wrong for sure.

    `key`: its key's columns as text; empty for a table without key.
    """

    table: str
    key: Key
    kind: Kind


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """One range compared, or with `is_pass` the sum of a whole pass over all tables.

    `duration_s` without pauses; `not_listed`: confirmed ones of a pass beyond CONFIRMED_MAX; `not_compared`:
    tables that did not answer in time, which makes them undecided.
    """

    table: str
    rows_compared: int
    confirmed: tuple[Divergence, ...]
    undecided: int
    duration_s: float
    is_pass: bool = False
    tables_without_key: tuple[str, ...] = ()
    not_listed: int = 0
    not_compared: tuple[str, ...] = ()

    @property
    def confirmed_total(self) -> int:
        return len(self.confirmed) + self.not_listed


@dataclass(frozen=True, slots=True)
class Pace:
    """How much load verification may make: `duty` is the share of time in which it works."""

    rows_per_chunk: int = 5_000
    duty: float = 0.2
    chunk_pause_s_min: float = 0.01
    pass_pause_s: float = 1.0
    fence_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a row: the source before the fence, the target after it. None: no such row there."""

    source: Version | None
    target: Version | None
    hidden: bool = False  # the source may have commits that it does not show yet


def judge(looks: Sequence[Look]) -> Verdict:
    """What the looks at one row prove; "open" if nothing yet. Pure.

    A copy that is read behind the fence shows a state that the source had at the fence or later. So it is
    wrong if it differs although the source's row version was there before the fence and is still there at
    the next look: the source was in that one state all the time. A version is only proof if no commit in
    flight can have replaced it: nobody has touched it (xmax 0), or else it holds for one look more while no
    commit is hidden. An absent row has no version; there the copy's own must still be the same behind a
    second fence, when the source has been seen without the row in between.
    """
    last = looks[-1]
    if _content(last.source) == _content(last.target):
        return "same"
    if len(looks) >= 2:
        before = looks[-2]
        untouched = last.source is not None and last.source == before.source and last.source.is_untouched
        if untouched and _content(before.target) != _content(before.source):
            return _kind(before)
    if len(looks) >= 3:
        three = looks[-3:]
        steady = len({look.source for look in three}) == 1 and len({look.target for look in three}) == 1
        if steady and not any(look.hidden for look in three):
            return _kind(last)
    return "open"


def _content(version: Version | None) -> int | None:
    return version.hashed if version is not None else None


def _kind(look: Look) -> Literal["missing", "extra", "different"]:
    if look.target is None:
        return "missing"
    return "extra" if look.source is None else "different"


class Verifier:
    """Compares the tables of one service, pass after pass."""

    def __init__(
        self, tables: Sequence[str], source: Server, target: Server, fence: Fence, pace: Pace | None = None
    ) -> None:
        """The servers must have been made with `rows.ROWS_SETTINGS`; `fence` is the target's heartbeat."""
        self._tables = tuple(tables)
        self._source = source
        self._target = target
        self._fence = fence
        self._pace = pace or Pace()

    async def run(self) -> AsyncIterator[VerifyResult]:
        """Passes without end, a result for each range and one for each pass. Raises ServerError."""
        while True:
            async for result in self.run_pass():
                yield result
            await asyncio.sleep(self._pace.pass_pause_s)

    async def run_pass(self) -> AsyncIterator[VerifyResult]:
        """Every table once; the last result sums them up. Raises ServerError."""
        total = _Total()
        for layout in await self._source.run(lambda link: read_layouts(link, self._tables)):
            if not layout.key:
                total.without_key.append(layout.table)
            async for result in self._compared(layout):
                total.add(result)
                yield result
                await asyncio.sleep(self._pause_s(result.duration_s))
        yield total.result()

    async def _compared(self, layout: Layout) -> AsyncIterator[VerifyResult]:
        """A table's ranges. One that takes too long, or is locked, does not hold the others up."""
        began_s = time.monotonic()
        try:
            async for result in self._compare_table(layout):
                yield result
        except ServerError as error:
            if error.sqlstate != QUERY_CANCELED:
                raise
            took_s = time.monotonic() - began_s
            yield VerifyResult(layout.table, 0, (), 1, took_s, not_compared=(layout.table,))

    async def _compare_table(self, layout: Layout) -> AsyncIterator[VerifyResult]:
        after: Key | None = None
        while True:
            began_s = time.monotonic()
            up_to = await self._up_to(layout, after) if layout.key else None
            if layout.key:
                source, target = await self._both(partial(sum_of, layout=layout, after=after, up_to=up_to))
            else:
                source, target = await self._both(partial(whole_sum_of, layout=layout))
            confirmed: tuple[Divergence, ...] = ()
            undecided = 0
            if source != target:
                if layout.key:
                    confirmed, undecided = await self._look_closer(layout, after, up_to)
                else:
                    confirmed, undecided = await self._look_again(layout)
            rows = max(source.rows, target.rows)
            yield VerifyResult(layout.table, rows, confirmed, undecided, time.monotonic() - began_s)
            if up_to is None:
                return
            after = up_to

    async def _look_closer(
        self, layout: Layout, after: Key | None, up_to: Key | None
    ) -> tuple[tuple[Divergence, ...], int]:
        """The rows of a range that differ for sure, and the number that could not be decided."""
        source, target = await self._both(partial(hashes_of, layout=layout, after=after, up_to=up_to))
        suspects = [key for key in source.keys() | target.keys() if source.get(key) != target.get(key)]
        confirmed: list[Divergence] = []
        undecided = 0
        for start in range(0, len(suspects), SUSPECTS_MAX):
            verdicts = await self._judge(layout, suspects[start : start + SUSPECTS_MAX])
            undecided += sum(verdict == "open" for verdict in verdicts.values())
            confirmed += [
                Divergence(layout.table, key, verdict)
                for key, verdict in verdicts.items()
                if verdict != "same" and verdict != "open"
            ]
        return tuple(sorted(confirmed, key=lambda divergence: divergence.key)), undecided

    async def _judge(self, layout: Layout, suspects: Sequence[Key]) -> dict[Key, Verdict]:
        looks: dict[Key, list[Look]] = {key: [] for key in suspects}
        verdicts: dict[Key, Verdict] = dict.fromkeys(suspects, "open")
        for _ in range(LOOKS_MAX):
            doubtful = [key for key, verdict in verdicts.items() if verdict == "open"]
            if not doubtful:
                break
            read = partial(versions_of, layout=layout, keys=doubtful)
            source = await self._source.run(read, QUERY_TIMEOUT_S)
            if not await self._fence(time.monotonic_ns(), self._pace.fence_timeout_s):
                break  # the copy lags: nothing can be decided now
            target = await self._target.run(read, QUERY_TIMEOUT_S)
            hidden = await self._source.run(are_commits_hidden)
            for key in doubtful:
                looks[key].append(Look(source.get(key), target.get(key), hidden))
                verdicts[key] = judge(looks[key])
        return verdicts

    async def _look_again(self, layout: Layout) -> tuple[tuple[Divergence, ...], int]:
        """A table without a key as a whole: wrong if both sides held the same row versions over three looks.

        Versions, not contents: a table that changes to and fro may look the same three times.
        """
        read = partial(whole_sum_of, layout=layout)
        looks: set[tuple[int, int]] = set()
        for _ in range(3):
            source = await self._source.run(read, QUERY_TIMEOUT_S)
            if not await self._fence(time.monotonic_ns(), self._pace.fence_timeout_s):
                return (), 1
            target = await self._target.run(read, QUERY_TIMEOUT_S)
            if source == target:
                return (), 0
            looks.add((source.versions, target.versions))
        if len(looks) > 1 or await self._source.run(are_commits_hidden):
            return (), 1
        return (Divergence(layout.table, (), "multiset"),), 0

    async def _up_to(self, layout: Layout, after: Key | None) -> Key | None:
        """Where the next range ends, so that neither side has more rows in it than a chunk; None: nowhere.

        A copy may have any number of rows where the source has few: those of a table that was just emptied.
        """
        find = partial(next_key, layout=layout, after=after, rows=self._pace.rows_per_chunk)
        up_to = await self._source.run(partial(find, up_to=None), QUERY_TIMEOUT_S)
        return await self._target.run(partial(find, up_to=up_to), QUERY_TIMEOUT_S) or up_to

    async def _both(self, work: Callable[[Link], Result]) -> tuple[Result, Result]:
        return await asyncio.gather(
            self._source.run(work, QUERY_TIMEOUT_S), self._target.run(work, QUERY_TIMEOUT_S)
        )

    def _pause_s(self, worked_s: float) -> float:
        return max(self._pace.chunk_pause_s_min, worked_s * (1 / self._pace.duty - 1))


@dataclass(slots=True)
class _Total:
    """Adds up the ranges of a pass."""

    rows: int = 0
    undecided: int = 0
    duration_s: float = 0.0
    confirmed: list[Divergence] = field(default_factory=list)
    not_listed: int = 0
    not_compared: list[str] = field(default_factory=list)
    without_key: list[str] = field(default_factory=list)

    def add(self, result: VerifyResult) -> None:
        self.rows += result.rows_compared
        self.undecided += result.undecided
        self.duration_s += result.duration_s
        listed = result.confirmed[: CONFIRMED_MAX - len(self.confirmed)]
        self.confirmed += listed
        self.not_listed += len(result.confirmed) - len(listed)
        self.not_compared += result.not_compared

    def result(self) -> VerifyResult:
        return VerifyResult(
            table="",
            rows_compared=self.rows,
            confirmed=tuple(self.confirmed),
            undecided=self.undecided,
            duration_s=self.duration_s,
            is_pass=True,
            tables_without_key=tuple(self.without_key),
            not_listed=self.not_listed,
            not_compared=tuple(self.not_compared),
        )
