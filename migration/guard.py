"""Decides from the proxy's own counters whether a service must roll back.

Pure: no I/O and no clock. The supervisor feeds it counts, probes and comparisons and asks for trips; every
judgement carries its numerators, so that a rollback can be explained afterwards. Three triggers, three
verdicts; *inconclusive* never rolls back.

    error_rate   D1  5 infrastructure failures in a row or 10 of 20, over two links (or the only one), or
                     3 failed probes in a row while the baseline's pass; else D2 to D4 of detector.py
    latency      D1  no read has ended for 2 s, and 3 or more have waited for ten times latency_ms_max
                 altogether; else D2 to D4 on the share of slow calls: more than 5 % slow is
                 P95 > latency_ms_max, and two exact counters add up over workers where percentiles do not
    consistency  5 or more confirmed differences, more than 0.1 % of what was compared, and not explainable
                 by noise of a tenth of that

A simulation of healthy and failing services stands in tests/unit/migration/test_guard.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pgshunt.migration.detector import (
    CHANCE_MAX,
    Judgement,
    Rule,
    Sample,
    Verdict,
    binomial_tail,
    held,
    undetected,
)
from pgshunt.migration.window import NOTHING, Counts, Window

SLOW_PERCENT_MAX = 5.0

_RUN_LENGTH, _RUN_OF_20, _RUN_LINKS = 5, 10, 2
_PROBE_RUN = 3
_SERVED_S = 1.0  # for so long clients' answers from the shared database vouch for it, whatever probes find
_STUCK_CALLS, _STUCK_LIMITS, _STALL_S = 3, 10.0, 2.0
_SLOW_RATIO_MIN = 1.5  # slow at the baseline too: a slow query, not a slow database
_DIFFERENCES_MIN, _COMPARED_MIN = 5, 1000
_UNDECIDED_SHARE_MAX = 0.2


@dataclass(frozen=True, slots=True)
class Trip:
    """A service must roll back, now."""

    service: str
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Run:
    """How the last infrastructure failures of a service lie, as one worker saw them.

    `links` is the number of links they happened on; `only_link` when the worker has no other one.
    """

    consecutive: int
    of_last_20: int
    links: int
    only_link: bool = False

    def is_long(self, failures_max: int) -> bool:
        """As many as D1 wants, of no more failures than were counted since the service was armed."""
        return (
            min(self.consecutive, failures_max) >= _RUN_LENGTH
            or min(self.of_last_20, failures_max) >= _RUN_OF_20
        )

    @property
    def is_spread(self) -> bool:
        """Whether it is more than one bad link."""
        return self.links >= _RUN_LINKS or self.only_link

    def __str__(self) -> str:
        return f"{self.consecutive} infrastructure failures in a row, {self.of_last_20} of the last 20"


@dataclass(frozen=True, slots=True)
class Stuck:
    """Reads that wait at the candidate for longer than latency_ms_max and have had nothing of an answer yet.

    `limits` is how long all of them together have waited, in units of that limit.
    """

    calls: int = 0
    limits: float = 0.0


class _Watch:
    """What is known about one service since it was armed."""

    def __init__(self) -> None:
        self.fast = Window(10.0, 0.25)
        self.sustained = Window(60.0, 1.0)
        self.quiet = Window(1800.0, 1.0, calls_max=1000)
        self.total = NOTHING
        # Comparisons in the window's terms: calls are decided ones, infrastructure the confirmed differences,
        # slow the undecided.
        self.compared = Window(900.0, 10.0)
        self.compared_total = NOTHING
        self.runs: dict[int, Run] = {}
        self.stuck: dict[int, Stuck] = {}
        self.ended_s = -math.inf
        self.probe_failures = 0
        self.baseline_answers = True
        self.exposed = False

    def windows(self, now_s: float) -> tuple[Window, Window, Window]:
        windows = self.fast, self.sustained, self.quiet
        for window in windows:
            window.expire(now_s)
        return windows


class Guard:
    """Watches services; a service that trips stays tripped until it is armed again."""

    def __init__(
        self,
        *,
        error_rate_percent_max: float = 3.0,
        consistency_percent_min: float = 99.9,
    ) -> None:
        self._latency = Rule("latency", "were slow", SLOW_PERCENT_MAX / 100)
        self.configure(
            error_rate_percent_max=error_rate_percent_max, consistency_percent_min=consistency_percent_min
        )
        self._served_s = self._unserved_s = -math.inf
        self._watches: dict[str, _Watch] = {}
        self._latched: dict[str, Judgement | None] = {}

    # -- what the supervisor tells -------------------------------------------------------------------

    def configure(self, *, error_rate_percent_max: float, consistency_percent_min: float) -> None:
        """New limits after a reload. Counters, exposure and latches stay: a reload never re-arms."""
        self._errors = Rule("error_rate", "failed", error_rate_percent_max / 100)
        # Rounded, so that 10 in 10,000 does not exceed 0.1 % by a binary fraction.
        self._difference_share_max = round((100 - consistency_percent_min) / 100, 9)

    def arm(self, service: str) -> None:
        """Judges a service by what is counted from now on, with no latch; whether it is exposed stays."""
        self._latched.pop(service, None)
        before = self._watches.get(service)
        self._watches[service] = anew = _Watch()
        anew.exposed = before is not None and before.exposed

    def latch(self, service: str, judgement: Judgement | None = None) -> None:
        """Marks a service as tripped: after a restart, or when a person rolled it back."""
        self._latched[service] = judgement
        self._watches.setdefault(service, _Watch())

    def expose(self, service: str, exposed: bool) -> None:
        """Says whether the candidate serves clients: only then is there something to roll back.

        What was counted before it began to is no evidence against it; what was compared stays.
        """
        watch = self._watches.setdefault(service, _Watch())
        if exposed and not watch.exposed:
            anew = self._watches[service] = _Watch()
            anew.compared, anew.compared_total = watch.compared, watch.compared_total
            watch = anew
        watch.exposed = exposed

    def forget_worker(self, worker: int) -> None:
        """A worker ended: what it reported as going on is over."""
        for watch in self._watches.values():
            watch.runs.pop(worker, None)
            watch.stuck.pop(worker, None)

    def count(self, service: str, now_s: float, candidate: Counts, baseline: Counts) -> None:
        """Adds read calls that ended, of one worker's delta."""
        watch = self._watches.get(service)
        if watch is not None:
            watch.total += candidate
            if candidate.calls:
                watch.ended_s = now_s
            for window in (watch.fast, watch.sustained, watch.quiet):
                window.add(now_s, candidate, baseline)

    def serve(self, now_s: float, *, failed: bool) -> None:
        """Tells how statements of a worker's clients have fared at the shared database since its last delta.

        A failure outweighs what others were answered, perhaps before it, within `_SERVED_S`.
        """
        if failed:
            self._unserved_s = now_s
        else:
            self._served_s = now_s

    def report_run(self, service: str, worker: int, run: Run) -> None:
        """Replaces what a worker last said about failures in a row."""
        if service in self._watches:
            self._watches[service].runs[worker] = run

    def report_stuck(self, worker: int, stuck: Mapping[str, Stuck]) -> None:
        """Replaces what a worker last said of the services whose reads wait."""
        for service, watch in self._watches.items():
            watch.stuck[worker] = stuck.get(service, Stuck())

    def probe(self, service: str, *, candidate_answers: bool | None, baseline_answers: bool | None) -> None:
        """One probe of both sides; None: not known. One that both fail says nothing."""
        watch = self._watches.get(service)
        if watch is None:
            return
        if baseline_answers is not None:
            watch.baseline_answers = baseline_answers
        if candidate_answers:
            watch.probe_failures = 0
        elif candidate_answers is False and baseline_answers:
            watch.probe_failures += 1

    def compare(self, service: str, now_s: float, *, equal: int, different: int, undecided: int) -> None:
        """Adds comparisons of verify and shadow writes; `different` are confirmed divergences only."""
        watch = self._watches.get(service)
        if watch is not None:
            counts = Counts(calls=equal + different, infrastructure=different, slow=undecided)
            watch.compared.add(now_s, counts, NOTHING)
            watch.compared_total += counts

    # -- what it answers ------------------------------------------------------------------------------

    def trips(self, now_s: float) -> list[Trip]:
        """The exposed services that fail now. Each is latched and returned once."""
        tripped = []
        for service, watch in self._watches.items():
            if watch.exposed and service not in self._latched:
                failed = next((j for j in self._judge(watch, now_s) if j.verdict is Verdict.FAIL), None)
                if failed is not None:
                    self._latched[service] = failed
                    tripped.append(Trip(service, failed))
        return tripped

    def judge(self, service: str, now_s: float) -> tuple[Judgement, ...]:
        """All triggers of a service as they stand; () for a service that is not watched."""
        watch = self._watches.get(service)
        return tuple(self._judge(watch, now_s)) if watch is not None else ()

    def is_latched(self, service: str) -> bool:
        return service in self._latched

    # -- how it decides -------------------------------------------------------------------------------

    def _judge(self, watch: _Watch, now_s: float) -> Iterable[Judgement]:
        """In the order of severity. Rolling back into a baseline that is down helps nobody: hold instead.

        That our own role cannot reach it is not enough for that while clients can.
        """
        is_served = now_s - self._served_s <= _SERVED_S < now_s - self._unserved_s
        windows = watch.windows(now_s)
        for judgement in (
            self._judge_errors(watch, windows),
            self._judge_latency(watch, windows, now_s),
            self._judge_consistency(watch, now_s),
        ):
            if judgement.verdict is Verdict.FAIL and not (watch.baseline_answers or is_served):
                yield held(judgement, "the baseline does not answer either, so rolling back would not help")
            else:
                yield judgement

    def _judge_errors(self, watch: _Watch, windows: tuple[Window, Window, Window]) -> Judgement:
        rule = self._errors
        fast, sustained, quiet = samples = tuple(_error_sample(window) for window in windows)
        if watch.probe_failures >= _PROBE_RUN:
            why = f"{watch.probe_failures} probes in a row failed while the baseline answered"
            return _hard_failure(rule, fast, why)
        failures = watch.total.infrastructure
        long = sorted(
            (run for run in watch.runs.values() if run.is_long(failures)), key=lambda run: not run.is_spread
        )
        if long and long[0].is_spread:
            return _hard_failure(rule, fast, str(long[0]))
        found = rule.detect(fast, sustained, quiet)
        if found is not None:
            why = f"{long[0]}, all at one link of several, which alone is no hard failure" if long else ""
            return rule.judgement(found[1], Verdict.FAIL, found[0], why)
        return undetected(rule, samples)

    def _judge_latency(
        self, watch: _Watch, windows: tuple[Window, Window, Window], now_s: float
    ) -> Judgement:
        rule = self._latency
        samples = tuple(_slow_sample(window) for window in windows)
        calls = sum(stuck.calls for stuck in watch.stuck.values())
        limits = sum(stuck.limits for stuck in watch.stuck.values())
        found = rule.detect(*samples)
        if found is None and limits >= _STUCK_LIMITS:
            why = f"{calls} reads have had no answer for {limits / calls:.3g} times the limit on average"
            if calls < _STUCK_CALLS or now_s - watch.ended_s < _STALL_S:
                return rule.judgement(samples[0], Verdict.INCONCLUSIVE, None, why)
            found = "D1", samples[0]
        if found is None:
            return undetected(rule, samples)
        detector, sample = found
        is_known = detector != "D1" or sample.baseline_share > rule.limit
        if is_known and sample.share < _SLOW_RATIO_MIN * sample.baseline_share:
            why = f"the baseline is slow too ({100 * sample.baseline_share:.3g} % of its calls)"
            return rule.judgement(sample, Verdict.INCONCLUSIVE, None, why)
        if detector == "D1":
            return _hard_failure(rule, sample, f"{why}, and none has ended since")
        return rule.judgement(sample, Verdict.FAIL, detector)

    def _judge_consistency(self, watch: _Watch, now_s: float) -> Judgement:
        watch.compared.expire(now_s)
        counts, window_s = watch.compared.candidate, watch.compared.span_s
        if counts.calls < _COMPARED_MIN:
            counts, window_s = watch.compared_total, 0.0
        different, decided, undecided = counts.infrastructure, counts.calls, counts.slow
        share = different / decided if decided else 0.0
        # The limit is ten times what is taken for noise of the comparison itself (0.1 % and 0.01 %).
        chance = binomial_tail(different, decided, self._difference_share_max / 10)
        verdict, why = Verdict.PASS, ""
        if different >= _DIFFERENCES_MIN and share > self._difference_share_max and chance < CHANCE_MAX:
            verdict = Verdict.FAIL
        elif decided == 0:
            verdict, why = Verdict.INCONCLUSIVE, "nothing compared yet"
        elif different:
            verdict, why = Verdict.INCONCLUSIVE, "differences found: look at them before raising the weight"
        elif undecided > _UNDECIDED_SHARE_MAX * (decided + undecided):
            verdict, why = Verdict.INCONCLUSIVE, f"{undecided} comparisons could not be decided"
        reason = (
            f"{different} confirmed differences in {decided} comparisons, limit "
            f"{100 * self._difference_share_max:.3g} %"
        )
        return Judgement(
            trigger="consistency",
            verdict=verdict,
            reason=f"{reason}: {why}" if why else reason,
            detector="comparison" if verdict is Verdict.FAIL else None,
            window_s=window_s,
            numerator=different,
            denominator=decided,
            share_percent=100 * share,
            limit_percent=100 * self._difference_share_max,
            chance=chance if decided else None,
        )


def _hard_failure(rule: Rule, sample: Sample, why: str) -> Judgement:
    """D1 needs no rate: it is told only where it is over the limit too."""
    judgement = rule.judgement(sample, Verdict.FAIL, "D1")
    return replace(judgement, reason=f"{why}; {judgement.reason}" if sample.share > rule.limit else why)


def _error_sample(window: Window) -> Sample:
    """Infrastructure failures, plus what application errors exceed the concurrent baseline by.

    Under equal rates each application error falls on the candidate with the probability of its share of the
    calls. Only when the split found is no chance does the excess count; without a baseline it never does.
    """
    candidate, baseline = window.candidate, window.baseline
    excess = unexplained = 0
    if candidate.application:
        errors = candidate.application + baseline.application
        calls = candidate.calls + baseline.calls
        ahead = candidate.application * baseline.calls - baseline.application * candidate.calls
        if not baseline.calls:
            unexplained = candidate.application
        elif ahead > 0:
            over = ahead // baseline.calls
            chance = binomial_tail(candidate.application, errors, candidate.calls / calls)
            excess, unexplained = (over, 0) if chance < CHANCE_MAX else (0, over)
    return Sample(
        window.span_s,
        candidate.infrastructure + excess,
        candidate.calls,
        baseline.infrastructure + baseline.application,
        baseline.calls,
        unexplained,
    )


def _slow_sample(window: Window) -> Sample:
    """A worker counts a call as slow the moment it passes the limit, and as a call when it ends."""
    candidate, baseline = window.candidate, window.baseline
    return Sample(
        window.span_s,
        candidate.slow,
        max(candidate.slow, candidate.calls),
        baseline.slow,
        max(baseline.slow, baseline.calls),
    )
