"""Plays the whole story on real servers and checks every claim of it by looking.

auth_service is copied, its writes are validated, its reads move to a database of its own; four times that
database is broken, the guard takes the reads back, it is repaired and armed again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

from pgshunt.admin.problem import Problem
from pgshunt.demo import evidence
from pgshunt.demo.chance import expected
from pgshunt.demo.faults import AUTH, HELD_BACK_S, Fault, faults
from pgshunt.demo.observed import Record
from pgshunt.demo.operator import Draws, Operator, epoch_seconds
from pgshunt.demo.services import SERVICES
from pgshunt.demo.view import copied
from pgshunt.demo.waiting import NotSeen, wait_for
from pgshunt.demo.workload import Workload
from pgshunt.demo.world import Databases

STEPS_OF_READS = (10, 50, 100)

COPY_TIMEOUT_S = 90.0
SEEN_TIMEOUT_S = 30.0
ROLLBACK_TIMEOUT_S = 60.0
AGREED_TIMEOUT_S = 60.0
CAUGHT_UP_TIMEOUT_S = 20.0

# Enough to mean something, few enough for a quick story. (Of 150 draws at 10 %, at least one is won.)
OPERATIONS_MIN = 200
DRAWS_MIN = 150
VALIDATED_MIN = 10

# A new weight reaches every worker in this time; what a client had sent before counts as in flight.
SHIFT_MS_MAX = 50

# Reads that a fault holds back end by then; after it, one that still went there would show itself.
IN_FLIGHT_S = HELD_BACK_S + 0.3
AFTERMATH_S = 1.0


@dataclass(slots=True)
class Story:
    """The pieces that the scenes play with."""

    record: Record
    databases: Databases
    workload: Workload
    operator: Operator
    pause_s: float
    read_logs: tuple[evidence.ReadLog, evidence.ReadLog] = field(init=False)  # primary, replica
    drawn: dict[int, list[Draws]] = field(init=False)

    def __post_init__(self) -> None:
        primary, replica = self.databases.auth, self.databases.auth_replica
        self.read_logs = evidence.ReadLog(primary, AUTH), evidence.ReadLog(replica, AUTH)
        self.drawn = {percent: [] for percent in STEPS_OF_READS}

    def play(self) -> None:
        """All scenes in order. Raises StoryFailed at the first that is not as it should be."""
        self.services_work()
        self.auth_is_copied()
        self.writes_are_validated()
        self.reads_move()
        for fault in faults(self.databases.shared, self.databases.auth, self.databases.auth_replica):
            self.fault_and_rollback(fault)
            self.repair_and_rearm(fault)
            self.reads_move()
        self.everything_is_right()

    # -- scenes ----------------------------------------------------------------------------------------

    def services_work(self) -> None:
        self._scene("Eight services work on one database; all they know is the proxy's address.")
        self.workload.start()
        wait_for(
            "every service gets answers",
            lambda: self.workload.succeeded() >= OPERATIONS_MIN and all(self._answers().values()),
            SEEN_TIMEOUT_S,
        )
        drivers = sorted({service.driver for service in SERVICES})
        self.record.observe(
            "services_work",
            "eight services get right answers",
            f"{_sum(self._answers())} answers, {_errors_in_words(self._errors())}, "
            f"{self.workload.wrong()} wrong; drivers {', '.join(drivers)}",
            not self.workload.failures() and not self.workload.wrong(),
            answers=self._answers(),
            errors=self._errors(),
            wrong=self.workload.wrong(),
            drivers=drivers,
        )

    def auth_is_copied(self) -> None:
        self._scene(
            "auth_service gets a copy of its tables in a database of its own, by logical replication."
        )
        began = time.monotonic()
        seen: list[Any] = []
        self.operator.begin()

        def look() -> str | None:
            state = self.operator.state()
            progress = state.get("progress") or {}
            if progress and (not seen or seen[-1] != progress):
                seen.append(progress)
                self.record.narrator.progress(progress)
            return state["stage"] if state["stage"] == "shadowing" else None

        stage = wait_for("auth_service is copied", look, COPY_TIMEOUT_S)
        seconds = time.monotonic() - began
        states = evidence.streaming_tables(self.databases.auth, AUTH.database)
        rows = evidence.row_counts(self.databases.auth, AUTH.database, AUTH.tables)
        self.record.observe(
            "auth_is_copied",
            "the copy is complete and streaming",
            f"{_sum(rows)} rows of its {len(rows)} tables in {seconds:.1f} s",
            bool(seen)
            and set(AUTH.tables) <= set(states)
            and set(states.values()) == {"r"}
            and all(rows.values()),
            stage=stage,
            seconds=round(seconds, 2),
            rows=rows,
            subscription_states=states,
            progress=[copied(each) for each in seen],
        )

    def writes_are_validated(self) -> None:
        self._scene("Writes are tried at the new database as well, and rolled back there.")

        def look() -> dict[str, int] | None:
            results = self.operator.shadow_writes()
            return results if results.get("match", 0) >= VALIDATED_MIN else None

        results = wait_for("shadow writes match", look, SEEN_TIMEOUT_S)
        self.record.observe(
            "writes_are_validated",
            "shadow writes agree",
            f"{results['match']} transactions did the same there, {results.get('mismatch', 0)} did not; "
            f"{results.get('undecided', 0)} undecided (they lock rows, or the copy already had them)",
            not results.get("mismatch") and not results.get("error"),
            results=results,
            mismatches=self.operator.state()["shadow_mismatches"],
        )

    def reads_move(self) -> None:
        self._scene("Reads move: 10, 50, 100 %.")
        # No read goes to auth_db now: from here on the proxy and PostgreSQL's logs count the same reads.
        quiet = self.operator.reads().own, sum(self._logged())
        for percent in STEPS_OF_READS:
            refusals = self._when_agreed(partial(self.operator.shift, percent))
            self._reads_go(percent, quiet, len(refusals))
            self._pause()

    def _reads_go(self, percent: int, quiet: tuple[int, int], refused: int) -> None:
        """Reads are drawn by weight, and go there by the proxy's account and by PostgreSQL's."""
        drawn_before, logged_before = self.operator.draws(), self._logged()

        def look() -> tuple[Draws, tuple[int, int]] | None:
            draws, logged = self.operator.draws().since(drawn_before), self._logged()
            return (draws, logged) if draws.total >= DRAWS_MIN and logged != logged_before else None

        draws, logged = wait_for(f"{DRAWS_MIN} reads drawn at {percent} %", look, SEEN_TIMEOUT_S)
        self.drawn[percent].append(draws)
        likely = expected(draws.total, percent)
        primary, replica = logged[0] - logged_before[0], logged[1] - logged_before[1]
        low, counted, high = self._accounts(quiet)
        self.record.observe(
            "reads_move",
            f"{percent} % of auth_service's reads",
            f"{draws.own} of {draws.total} drawn for auth_db (likely {_span(likely)}), "
            f"{draws.stayed} of them too soon after a write; by their own logs its primary ran {primary}, "
            f"its replica {replica}",
            draws.own in likely
            and low <= counted <= high
            and self.operator.state()["reads"] == percent
            and not self.workload.wrong(),
            weight=percent,
            drawn_own=draws.own,
            drawn_shared=draws.shared,
            drawn_own_likely=[likely[0], likely[-1]],
            not_fresh=draws.stayed,
            logged_primary=primary,
            logged_replica=replica,
            counted_in_all=counted,
            logged_in_all=[low, high],
            refused_before=refused,
            wrong=self.workload.wrong(),
        )

    def fault_and_rollback(self, fault: Fault) -> None:
        self._scene(f"A fault: {fault.title}.")
        event_before = self.operator.last_event_id()
        injected_at = time.time()
        fault.inject()
        event = wait_for(
            "the guard rolls back", lambda: self.operator.rollback_since(event_before), ROLLBACK_TIMEOUT_S
        )
        rolled_back_at = epoch_seconds(event["at"])
        time.sleep(IN_FLIGHT_S)
        before, logged = self.operator.reads(), self._logged()
        time.sleep(AFTERMATH_S)
        after = self.operator.reads().since(before)
        silent = self._logged() == logged
        state = self.operator.state()
        failures = [each for each in self.workload.failures() if each.ended_at >= injected_at]
        late = [each for each in failures if each.started_at > rolled_back_at + SHIFT_MS_MAX / 1000]
        others = [each for each in failures if each.service != AUTH.name]
        why = event["detail"]["evidence"]
        report = {
            "fault": fault.title,
            "trigger": event["detail"]["trigger"],
            "reason": why["reason"],
            "at": event["at"],
            "fault_to_rollback_ms": round((rolled_back_at - injected_at) * 1000),
            "why": why,
            "clients_saw": dict(Counter(each.sqlstate for each in failures)),
            "clients_saw_after_rollback": len(late),
            "other_services_saw": len(others),
        }
        self.record.rollbacks.append(report)
        self.record.observe(
            "rolled_back",
            f"rolled back by the guard after {report['fault_to_rollback_ms']} ms",
            f"{fault.trigger}: {why['reason']}; clients saw {_errors_in_words(report['clients_saw'])}",
            report["trigger"] == fault.trigger
            and why["verdict"] == "fail"
            and state["reads"] == 0
            and state["latch"] is not None
            and not (late or others or after.own or self.workload.wrong())
            and silent
            and after.shared > 0,
            **{name: value for name, value in report.items() if name != "why"},
            reads_own_after=after.own,
            reads_shared_after=after.shared,
            auth_db_logs_none_after=silent,
            wrong=self.workload.wrong(),
        )
        self._pause()

    def repair_and_rearm(self, fault: Fault) -> None:
        self._scene("Repaired and armed again.")
        fault.repair()
        refusals = self._when_agreed(lambda: self.operator.rearm(f"repaired: {fault.title}"))
        state = self.operator.state()
        self.record.observe(
            "rearmed",
            "compared and armed again",
            armed_after(refusals),
            state["latch"] is None and state["reads"] == 0,
            latch=state["latch"],
            reads=state["reads"],
            refused_before=len(refusals),
            first_refusal=refusals[0] if refusals else None,
        )

    def everything_is_right(self) -> None:
        self._scene("The services stop; the databases are compared.")
        self.workload.stop()
        self.record.workload = self.workload.to_dict()
        try:
            wait_for("all rows have arrived", lambda: not self._differing(), CAUGHT_UP_TIMEOUT_S)
        except NotSeen:
            pass  # which tables differ is said below
        differing = self._differing()
        breaks = evidence.chain_breaks(self.databases.shared)
        others = [each for each in self.workload.failures() if each.service != AUTH.name]
        rows = evidence.row_counts(self.databases.auth, AUTH.database, AUTH.tables)
        entries = evidence.audit_entries(self.databases.shared)
        shares = {percent: _total(draws) for percent, draws in self.drawn.items()}
        self.record.observe(
            "everything_is_right",
            "everything is right",
            f"{_sum(rows)} rows are equal on the shared database, auth_db and its replica; "
            f"{entries} audit entries in whole chains; "
            f"{self.workload.succeeded()} answers, {self.workload.wrong()} of them wrong",
            not (differing or breaks or others or self.workload.wrong())
            and all(draws.own in expected(draws.total, percent) for percent, draws in shares.items()),
            differing_tables=differing,
            rows=rows,
            audit_entries=entries,
            drawn_own_of={percent: [draws.own, draws.total] for percent, draws in shares.items()},
            chain_breaks=breaks,
            answers=self.workload.succeeded(),
            wrong=self.workload.wrong(),
            errors=self._errors(),
        )

    # -- how -------------------------------------------------------------------------------------------

    def _scene(self, text: str) -> None:
        self.record.narrator.say(text)

    def _pause(self) -> None:
        """Time for a person to look at it."""
        time.sleep(self.pause_s)

    def _when_agreed(self, ask: Callable[[], None]) -> list[str]:
        """Asks until pgshunt no longer refuses with 409, and returns its refusals.

        It is right to refuse until verification has seen a repair, or all rows before all reads.
        """
        refusals: list[str] = []

        def agreed() -> bool:
            try:
                ask()
            except Problem as problem:
                if problem.status is not HTTPStatus.CONFLICT:
                    raise
                refusals.append(str(problem))
                return False
            return True

        try:
            wait_for("pgshunt agrees", agreed, AGREED_TIMEOUT_S, every_s=0.5)
        except NotSeen as error:
            raise NotSeen(f"{error}; it says: {refusals[-1:]}") from None
        return refusals

    def _logged(self) -> tuple[int, int]:
        """Reads that auth_db's primary and replica have run, by their own logs."""
        return self.read_logs[0].count(), self.read_logs[1].count()

    def _accounts(self, quiet: tuple[int, int]) -> tuple[int, int, int]:
        """Reads at auth_db since a quiet moment: in the logs, by the proxy's count, in the logs after that.

        A read is logged when it begins and counted when it is answered: the count must lie between the two.
        """
        counted, logged = quiet
        low = sum(self._logged()) - logged
        wait_for(
            f"pgshunt counts {low} reads at auth_db",
            lambda: self.operator.reads().own - counted >= low,
            SEEN_TIMEOUT_S,
        )
        return low, self.operator.reads().own - counted, sum(self._logged()) - logged

    def _differing(self) -> list[str]:
        return evidence.differing_tables(self.databases, AUTH)

    def _answers(self) -> dict[str, int]:
        return {name: sum(tally.ok.values()) for name, tally in self.workload.tallies.items()}

    def _errors(self) -> dict[str, int]:
        return dict(Counter(failure.sqlstate for failure in self.workload.failures()))


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _total(draws: Iterable[Draws]) -> Draws:
    """All rounds of one weight as one."""
    shared, own, stayed = (sum(numbers) for numbers in zip(*map(astuple, draws), strict=True))
    return Draws(shared, own, stayed)


def _span(numbers: range) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]} only"


def armed_after(refusals: Sequence[str]) -> str:
    """When it could be armed: not before the copy is fresh, and its rows have been compared and are equal."""
    if not refusals:
        return "at once"
    reason = refusals[0].partition(". ")[0].partition(";")[0]
    return f"at attempt {len(refusals) + 1}, once the copy was sound again; before, pgshunt refused: {reason}"


def _errors_in_words(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} errors {sqlstate}" for sqlstate, count in errors.items()) or "no error"
