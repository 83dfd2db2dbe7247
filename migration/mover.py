"""Does the steps of one service's move, and keeps its copy under watch.

Holds what runs for the service: connections, lane, verification. Knows nothing of stages, epochs or the
store; the controller decides, this does. Every step may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.migration import likeness, preflight, roles
from pgshunt.migration.catalogue import read_partitions
from pgshunt.migration.definitions import Difference, differences, read_definitions
from pgshunt.migration.heartbeat import Heartbeat
from pgshunt.migration.lane import Lane
from pgshunt.migration.lane_news import LaneNews
from pgshunt.migration.lane_state import TableProgress
from pgshunt.migration.preflight import Problem
from pgshunt.migration.rows import ROWS_SETTINGS
from pgshunt.migration.schema import copy_schema, drop_copies
from pgshunt.migration.servers import Server, ServerError
from pgshunt.migration.sql import quoted
from pgshunt.migration.tally import Tally
from pgshunt.migration.verify import QUERY_TIMEOUT_S, Pace, Verifier, VerifyResult
from pgshunt.routing.table import Endpoint, Service

log = logging.getLogger("pgshunt.migration")

STATUS_S: Final = 2.0
SETTINGS_S: Final = 60.0
RETRY_S: Final = 1.0
FRESH_TIMEOUT_S: Final = 30.0

Tell = Callable[[str, Mapping[str, Any]], object]
"""tell(kind, detail): an event of this service."""


class PreflightFailed(Exception):
    """The move cannot start; `problems` and the message have all that is missing, with its remedy."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(". ".join(map(str, problems)))


class TargetGone(Exception):
    """The service's own database does not let itself be cleaned; `remedy` is the way out."""

    def __init__(self, service: str, reason: str) -> None:
        self.remedy = (
            f"when that is mended: pgshunt abandon {service}; if it never will be, free the shared database "
            f"alone: pgshunt abandon {service} --target-is-gone"
        )
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Options:
    """How moves are done. `passwords` of login roles that may have to be created; `pg_bin` holds pg_dump."""

    pg_bin: Path | None = None
    passwords: Mapping[str, Secret] = field(default_factory=dict)
    copy_timeout_s: float = 7 * 86_400.0
    pace: Pace = field(default_factory=Pace)


class Mover:
    """One service on its way. `trouble` says what holds it up now; `copied` is set by `find_tables`."""

    def __init__(
        self,
        service: Service,
        shared: Endpoint,
        own: tuple[int, Endpoint],
        control: Control,
        heartbeat: Heartbeat,
        options: Options,
        tell: Tell,
        verified: Callable[[VerifyResult], None],
        withhold: Callable[[frozenset[str]], Awaitable[None]],
    ) -> None:
        """`service` with the tables that move; `own`: index and endpoint of its own database's primary;
        `withhold(tables)`: the copies of these, and of no others, are not to be read.
        """
        self._service = service
        self._options = options
        self._heartbeat = heartbeat
        self._tell = tell
        self._verified = verified
        self._withhold = withhold
        self._own_index, endpoint = own
        self.own_tables = service.tables
        self.tables = tuple(dict.fromkeys((*service.tables, *service.external_refs)))
        self._source, self._target = (
            Server(end, control, f"lane {service.name}") for end in (shared, endpoint)
        )
        self._reading, self._comparing = (
            Server(end, control, "verify", ROWS_SETTINGS) for end in (shared, endpoint)
        )
        self.lane = Lane(service.name, self.tables, self._source, self._target)
        self.tally = Tally()
        self.progress: dict[str, dict[str, Any]] = {}
        self.trouble = ""
        self.differing: tuple[Difference, ...] = ()
        self._verify_trouble = ""
        self._verify_gap = ""
        self._settings_trouble = ""
        self._watching: list[asyncio.Task[None]] = []

    @property
    def target(self) -> Endpoint:
        """Where the copy is."""
        return self._target.endpoint

    # The steps of stage `syncing`, by name in stages.STEPS

    async def find_tables(self) -> tuple[str, ...]:
        """The service's tables and their partitions: everything that will exist at its own database."""
        return await self._source.run(partial(read_partitions, names=self.tables))

    async def preflight(self, copied: Sequence[str]) -> list[Problem]:
        """What is only worth knowing. Raises PreflightFailed for the rest, all of it at once."""
        read = partial(preflight.read_facts, lane=self.lane.name, tables=self.tables)
        source, target = await asyncio.gather(self._source.run(read), self._target.run(read))
        problems = preflight.check(self.lane.name, self.tables, source, target, copied)
        wanted = await self._roles()
        present = await self._target.run(roles.roles_present)
        held = await self._target.run(roles.read_memberships)
        own = self._target.endpoint.name
        problems += [
            Problem(
                f"role {name}",
                f"{own} lacks it, and its password cannot be read",
                "give it in `auth.users`, let the control role read pg_authid, or create the role there",
                fatal=wanted[name].is_named,
            )
            for name in roles.roles_without_password(wanted, present, self._options.passwords)
        ]
        problems += [
            Problem(
                f"role {name}",
                f"it has rights as a member of {group} at the shared database, and is no member at {own}",
                f"run there, if it may have all that {group} has: GRANT {quoted(group)} TO {quoted(name)}",
                fatal=name in self._service.users,
            )
            for name, group in roles.memberships_lacking(wanted, present, held)
        ]
        admissions = partial(roles.read_admissions, names=wanted)
        admitted = await asyncio.gather(self._source.run(admissions), self._target.run(admissions))
        problems += [
            Problem(f"role {name}", f"at {own} it {wrong}", remedy, fatal=wanted[name].is_named)
            for name, (wrong, remedy) in roles.shut_out(wanted, self._service.users, *admitted).items()
        ]
        problems += await self.other_ways(wanted)
        fatal = [problem for problem in problems if problem.fatal]
        if fatal:
            raise PreflightFailed(fatal)
        return problems

    async def other_ways(self, wanted: Mapping[str, roles.Role] | None = None) -> list[Problem]:
        """What gives other answers at the service's own database than its rows. Raises ServerError.

        `wanted`: its roles, if they are known.
        """
        if wanted is None:
            wanted = await self._roles()
        source, target = await self._ways()
        logins = [role.name for role in wanted.values() if role.login and role.is_named]
        return likeness.differences(source, target, logins)

    async def require_reachable(self) -> None:
        """Tries the way that the lane will take. Raises PreflightFailed, ServerError."""
        if refusal := await self.lane.refusal():
            raise PreflightFailed([Problem("own database", *refusal)])

    async def create_roles(self) -> None:
        wanted = await self._roles()
        source, target = await self._ways()
        settings = {name: likeness.carried(source, name, target.dbname) for name in wanted}
        await self._target.run(
            partial(roles.create_roles, roles=wanted, passwords=self._options.passwords, settings=settings)
        )

    async def create_schema(self) -> tuple[str, ...]:
        """Foreign keys that were left out."""
        copied = await copy_schema(self._source, self._target, self.tables, self._options.pg_bin)
        return copied.dropped_foreign_keys

    async def grant(self) -> None:
        grants = await self._source.run(partial(roles.read_grants, tables=await self.find_tables()))
        await self._target.run(partial(roles.give, grants=grants))

    async def wait_copied(self) -> None:
        await self.lane.wait_ready(self._options.copy_timeout_s, self._report)

    async def wait_fresh(self) -> None:
        """Raises TimeoutError with what to look at."""
        if not await self._heartbeat.waiting(self._own_index, time.monotonic_ns(), FRESH_TIMEOUT_S):
            raise TimeoutError(
                f"no heartbeat came through the lane within {FRESH_TIMEOUT_S:g} s; "
                f"{self._heartbeat.write_error or 'see ' + (await self.lane.status()).problem}"
            )

    async def drop_lane(self, even_if_target_is_gone: bool) -> None:
        """Raises TargetGone, ServerError, LaneFailed."""
        try:
            await self.lane.drop()
        except ServerError as error:
            if error.endpoint != self._target.endpoint.name:
                raise
            if not even_if_target_is_gone:
                raise TargetGone(self._service.name, str(error)) from error
            await self.lane.drop_at_source()
            self._tell("subscription_left", {"subscription": self.lane.name, "error": str(error)})

    async def drop_copies(self, copied: Sequence[str], even_if_target_is_gone: bool) -> None:
        """Raises TargetGone."""
        try:
            await self._target.run(partial(drop_copies, tables=copied))
        except ServerError as error:
            if not even_if_target_is_gone:
                raise TargetGone(self._service.name, str(error)) from error
            self._tell("copies_left", {"tables": list(copied), "error": str(error)})

    # Watching

    def watch(self) -> None:
        """Verifies without end, and looks at the lane; until `close`."""
        if not self._watching:
            watches = (self._verify(), self._look_at_lane(), self._look_at_settings())
            self._watching = [asyncio.create_task(each) for each in watches]
            for task in self._watching:
                task.add_done_callback(self._watch_ended)

    async def unwatch(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching = []

    async def close(self) -> None:
        """Ends what runs here; nothing at the databases changes."""
        await self.unwatch()
        for server in (self._source, self._target, self._reading, self._comparing):
            await server.close()

    async def _verify(self) -> None:
        verifier = Verifier(self.tables, self._reading, self._comparing, self._fence, self._options.pace)
        while True:
            try:
                async for result in verifier.run():
                    self._verify_trouble = ""
                    if result.is_pass:
                        self._verify_gap = _gap(result.not_compared)
                    self.tally.add(result, time.time())
                    self._verified(result)
            except ServerError as error:
                if not self._verify_trouble:
                    self._tell("verify_failed", {"error": str(error)})
                self._verify_trouble = f"verification is held up: {error}"
                self.tally.interrupted()
            await asyncio.sleep(RETRY_S)

    async def _look_at_lane(self) -> None:
        news = LaneNews()
        while True:
            try:
                problem = (await self.lane.status()).problem
            except ServerError as error:
                problem = str(error)
            if told := news.look(problem):
                kind, about = told
                self._tell(kind, {"problem": about})
            await self.look_at_definitions()
            held_up = problem or self._verify_trouble or self._settings_trouble or self._verify_gap
            self.trouble = _differ(self.differing) or held_up
            await asyncio.sleep(STATUS_S)

    async def look_at_definitions(self) -> None:
        """Withholds tables from being read at the copy that are not defined alike in both databases, or that
        somebody may read there only.

        Where a server cannot be asked, what was found before holds.
        """
        read = partial(read_definitions, tables=self.tables)
        try:
            shared, own = await asyncio.gather(self._source.run(read), self._target.run(read))
            given = await self._target.run(partial(roles.read_grants, tables=self.tables))
            refused = await self._source.run(partial(roles.read_refused, grants=given))
        except ServerError:
            return
        found = (*differences(shared, own, self.target.name), *_more_rights(refused, self.target.name))
        await self._withhold(frozenset().union(*(difference.tables for difference in found)))
        if found != self.differing:
            self.differing = found
            if found:
                how = [difference.how for difference in found]
                self._tell("definitions_differ", {"how": how, "reads": "at the shared database only"})
            else:
                self._tell("definitions_alike", {"reads": "split again"})

    async def _look_at_settings(self) -> None:
        while True:
            await asyncio.sleep(SETTINGS_S)
            try:
                found = [str(each) for each in await self.other_ways() if each.fatal]
            except ServerError:
                continue  # the lane's status tells of a server that does not answer
            if found and not self._settings_trouble:
                self._tell("settings_differ", {"found": found})
            self._settings_trouble = ". ".join(found)

    def _watch_ended(self, task: asyncio.Task[None]) -> None:
        """No watch ends by itself: a defect is told, and the copy no longer passes for verified."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("defect while watching %s", self._service.name, exc_info=error)
            self.trouble = self._verify_trouble = f"it is no longer watched: {error!r}; restart pgshunt"
            self.tally.clean_since = None
            self._tell("defect", {"error": repr(error)})

    async def _fence(self, moment_ns: int, timeout_s: float) -> bool:
        return await self._heartbeat.waiting(self._own_index, moment_ns, timeout_s)

    def _report(self, progress: list[TableProgress]) -> None:
        self.progress = {
            each.table: {name: value for name, value in asdict(each).items() if name != "table"}
            for each in progress
        }

    async def _roles(self) -> dict[str, roles.Role]:
        tables = await self.find_tables()
        grants = await self._source.run(partial(roles.read_grants, tables=tables))
        grantees = {grant.role for grant in grants if grant.role != "public"}
        users = self._service.users
        return await self._source.run(partial(roles.read_roles, grantees=grantees, users=users))

    async def _ways(self) -> tuple[likeness.Ways, likeness.Ways]:
        """Of the shared and of the service's own database."""
        asked = [
            asyncio.to_thread(likeness.read_ways, server.endpoint, server.control)
            for server in (self._source, self._target)
        ]
        source, target = await asyncio.gather(*asked)
        return source, target


def _more_rights(refused: Sequence[roles.Grant], place: str) -> Iterator[Difference]:
    for grant in refused:
        what = f"{grant.relation}.{grant.column}" if grant.column else grant.relation
        how = f"{grant.role} may read {what} at {place} and not at the shared database"
        yield Difference(frozenset({grant.relation}), how)


def _differ(found: Sequence[Difference]) -> str:
    if not found:
        return ""
    tables = ", ".join(difference.how for difference in found)
    return f"read at the shared database only, until both are alike: {tables}"


def _gap(tables: Sequence[str]) -> str:
    if not tables:
        return ""
    return (
        f"verification could not compare {', '.join(tables)} within {QUERY_TIMEOUT_S:g} s: "
        "a large table needs a primary key, a locked one is looked at again"
    )
