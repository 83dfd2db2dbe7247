"""Plays the whole story on real servers and checks every claim of it by looking.

auth_service is copied, its writes are validated, its reads move to a database of its own; four times that
database is broken, the guard takes the reads back, it is repaired and armed again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

from pgshunt.admin.problem import Problem
from pgshunt.demo import evidence
from pgshunt.demo.faults import AUTH, HELD_BACK_S, Fault, faults
from pgshunt.demo.observed import Record
from pgshunt.demo.operator import Operator, epoch_seconds
from pgshunt.demo.services import SERVICES
from pgshunt.demo.view import Lines, Picture, copied, narrator
from pgshunt.demo.waiting import NotSeen, wait_for
from pgshunt.demo.workload import Workload
from pgshunt.demo.world import LAG_MS_MAX, Databases, Proxy, last_words, running_databases, running_proxy

STEPS_OF_READS = (10, 50, 100)

COPY_TIMEOUT_S = 90.0
SEEN_TIMEOUT_S = 30.0
ROLLBACK_TIMEOUT_S = 60.0
AGREED_TIMEOUT_S = 60.0
CAUGHT_UP_TIMEOUT_S = 20.0

# Enough answers for a share to mean something, few enough for a quick story.
OPERATIONS_MIN = 200
READS_MIN = 60
VALIDATED_MIN = 10

# A new weight reaches every worker in this time; what a client had sent before counts as in flight.
SHIFT_MS_MAX = 50

# How far the share of reads may be from the weight. 60 reads at 50 % lie within it but once in a million; at
# 100 % a session that has just written still reads where it wrote, until the copy is past that.
SHARE_PERCENT_OFF_MAX = 35.0
# Reads that a fault holds back end by then; after it, one that still went there would show itself.
IN_FLIGHT_S = HELD_BACK_S + 0.3
AFTERMATH_S = 1.0
PAUSE_S = 4.0


@dataclass(slots=True)
class Story:
    """The pieces that the scenes play with."""

    record: Record
    databases: Databases
    workload: Workload
    operator: Operator
    pause_s: float

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
        self.record.observe(
            "services_work",
            "eight clients get right answers",
            not self.workload.failures() and not self.workload.wrong(),
            answers=self._answers(),
            errors=self._errors(),
            wrong=self.workload.wrong(),
            drivers=sorted({service.driver for service in SERVICES}),
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
        states = evidence.streaming_tables(self.databases.auth, AUTH.database)
        rows = evidence.row_counts(self.databases.auth, AUTH.database, AUTH.tables)
        self.record.observe(
            "auth_is_copied",
            "the copy is complete and streaming",
            bool(seen)
            and set(AUTH.tables) <= set(states)
            and set(states.values()) == {"r"}
            and all(rows.values()),
            stage=stage,
            seconds=round(time.monotonic() - began, 2),
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
            not results.get("mismatch") and not results.get("error"),
            results=results,
            mismatches=self.operator.state()["shadow_mismatches"],
        )

    def reads_move(self) -> None:
        self._scene("Reads move: 10, 50, 100 %.")
        for percent in STEPS_OF_READS:
            refusals = self._when_agreed(partial(self.operator.shift, percent))
            counted, scanned = self.operator.reads(), evidence.read_scans(self.databases)

            def look(
                before: Any = counted, scans: Any = scanned, percent: int = percent
            ) -> tuple[Any, Any] | None:
                reads = self.operator.reads().since(before)
                found = evidence.read_scans(self.databases).since(scans)
                enough = reads.total >= READS_MIN and found.primary + found.replica > 0
                return (
                    (reads, found)
                    if enough and abs(reads.own_percent - percent) <= SHARE_PERCENT_OFF_MAX
                    else None
                )

            reads, scans = wait_for(f"{percent} % of the reads at auth_db", look, SEEN_TIMEOUT_S)
            self.record.observe(
                "reads_move",
                f"{percent} % of auth_service's reads go to auth_db",
                self.operator.state()["reads"] == percent and not self.workload.wrong(),
                weight=percent,
                seen_percent=round(reads.own_percent, 1),
                reads_own=reads.own,
                reads_shared=reads.shared,
                scans_primary=scans.primary,
                scans_replica=scans.replica,
                scans_shared=scans.shared,
                refused_before=len(refusals),
                wrong=self.workload.wrong(),
            )
            self._pause()

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
        before = self.operator.reads()
        time.sleep(AFTERMATH_S)
        after = self.operator.reads().since(before)
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
            f"rolled back by the guard: {fault.trigger}",
            report["trigger"] == fault.trigger
            and why["verdict"] == "fail"
            and state["reads"] == 0
            and state["latch"] is not None
            and not (late or others or after.own or self.workload.wrong())
            and after.shared > 0,
            **{name: value for name, value in report.items() if name != "why"},
            reads_own_after=after.own,
            reads_shared_after=after.shared,
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
            "repaired, compared, armed again",
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
        self.record.observe(
            "everything_is_right",
            "source and target equal, hash chains whole, no wrong answer",
            not (differing or breaks or others or self.workload.wrong()),
            differing_tables=differing,
            rows=evidence.row_counts(self.databases.auth, AUTH.database, AUTH.tables),
            audit_entries=evidence.audit_entries(self.databases.shared),
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

    def _differing(self) -> list[str]:
        return evidence.differing_tables(self.databases, AUTH)

    def _answers(self) -> dict[str, int]:
        return {name: sum(tally.ok.values()) for name, tally in self.workload.tallies.items()}

    def _errors(self) -> dict[str, int]:
        return dict(Counter(failure.sqlstate for failure in self.workload.failures()))


def run(fast: bool, as_json: bool) -> int:
    """Plays the story; 0 only if every step of it was observed. With `as_json` the document ends stdout.

    Leaves no process and no file behind, also when it fails or is interrupted (then 130).
    """
    show = narrator(sys.stderr if as_json else sys.stdout)
    record = Record(show)
    code = 1
    try:
        with _interruptible(), running_databases() as databases:
            pids = [server.pid for server in databases.servers.members]
            _started(record, databases)
            with running_proxy(databases) as proxy:
                _play(record, databases, proxy, show, 0.0 if fast else PAUSE_S)
        _cleaned_up(record, databases.servers.directory, [*pids, proxy.process.pid], proxy.process.returncode)
    except KeyboardInterrupt:
        record.problem, code = "interrupted", 130
    except Exception as error:  # noqa: BLE001 - whatever ends the story belongs in its document
        record.problem = f"{type(error).__name__}: {error}"
    if record.problem:
        show.say("\n".join([record.problem, *record.last_words]))
    if as_json:
        print(json.dumps(record.to_document(), indent=2, default=str))
    return 0 if record.ok else code


def _play(record: Record, databases: Databases, proxy: Proxy, show: Lines | Picture, pause_s: float) -> None:
    operator = Operator(proxy.api, AUTH.name, AUTH.database)
    workload = Workload(proxy.host, proxy.port, databases.passwords, LAG_MS_MAX)
    show.follow(proxy.api)
    try:
        Story(record, databases, workload, operator, pause_s).play()
    except Exception:
        record.last_words = last_words(proxy)
        raise
    finally:
        show.unfollow()
        workload.stop()


def _started(record: Record, databases: Databases) -> None:
    [[version]] = databases.shared.execute("SHOW server_version")
    [[replicas]] = databases.auth.execute(
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    )
    record.observe(
        "started",
        "PostgreSQL servers run",
        replicas == 1,
        postgresql=version,
        servers=len(databases.servers.members),
        replicas_of_auth_db=replicas,
        audit_entries=evidence.audit_entries(databases.shared),
    )


def _cleaned_up(record: Record, directory: Path, pids: Sequence[int | None], exit_code: int) -> None:
    running = [pid for pid in pids if pid is not None and _is_running(pid)]
    record.observe(
        "cleaned_up",
        "the proxy left in order, no process and no file is left",
        not running and not directory.exists() and exit_code == 0,
        processes=running,
        directory_exists=directory.exists(),
        proxy_exit_code=exit_code,
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, or a terminal that closes, ends the story as Ctrl-C does: with everything cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
