"""Tells whether the share of bad calls at the candidate is over its limit, and not by chance.

With a limit of 3 % (errors; it is 5 % for slow calls) and in proportion to it otherwise:

    D2  10 s:  share >= 10 %, at least 10 bad calls                                a sharp regression
    D3  60 s:  share > 3 %, still so in the last 10 s, and not explainable by 1 %  the literal threshold
    D4  fewer than 200 calls in 60 s: D3 over the last 1000 calls or 30 minutes    a quiet service

"Not explainable by 1 %": a service that fails twice as often as its error budget of 0.5 % allows would show
such a count less than once in a million windows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

Trigger = Literal["error_rate", "latency", "consistency"]

CHANCE_MAX = 1e-6

_FAST_EVENTS, _SUSTAINED_EVENTS = 10, 5
_FEW_CALLS_FAST, _FEW_CALLS_SUSTAINED = 20, 200
_DECIDABLE_CALLS = 20  # the smallest sample in which anything but a hard failure is a finding


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One trigger's verdict with what it rests on; `reason` says it in a sentence."""

    trigger: Trigger
    verdict: Verdict
    reason: str
    detector: str | None = None
    window_s: float = 0.0
    numerator: int = 0
    denominator: int = 0
    share_percent: float = 0.0
    limit_percent: float = 0.0
    baseline_numerator: int = 0
    baseline_denominator: int = 0
    chance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record kept in the journal and shown by the admin API."""
        return asdict(self)


@lru_cache(maxsize=4096)
def binomial_tail(events: int, calls: int, share: float) -> float:
    """P(X >= events) for X ~ Binomial(calls, share), exact above the mean; at or below it simply 1.

    Above the mean every term is smaller than the one before by a falling factor, so the sum is short.
    """
    if events <= calls * share:
        return 1.0
    if events > calls or share <= 0.0:
        return 0.0
    term = math.exp(
        math.lgamma(calls + 1)
        - math.lgamma(events + 1)
        - math.lgamma(calls - events + 1)
        + events * math.log(share)
        + (calls - events) * math.log1p(-share)
    )
    total, odds = term, share / (1.0 - share)
    for k in range(events, calls):
        term *= (calls - k) / (k + 1) * odds
        total += term
        if term < total * 1e-12:
            break
    return total


@dataclass(frozen=True, slots=True)
class Sample:
    """Bad calls among all calls of one window, at both sides; `unexplained` bad calls could not be judged."""

    window_s: float
    events: int
    calls: int
    baseline_events: int
    baseline_calls: int
    unexplained: int = 0

    @property
    def share(self) -> float:
        return self.events / self.calls if self.calls else 0.0

    @property
    def baseline_share(self) -> float:
        return self.baseline_events / self.baseline_calls if self.baseline_calls else 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """The limit as a share, and the two numbers that keep their proportion to it."""

    trigger: Trigger
    noun: str
    limit: float

    @property
    def sharp(self) -> float:
        return min(self.limit * 10 / 3, 1.0)

    @property
    def healthy(self) -> float:
        return self.limit / 3

    def detect(self, fast: Sample, sustained: Sample, quiet: Sample) -> tuple[str, Sample] | None:
        """D2, D3 and D4: the detector that fires and the window it saw, or None."""
        if fast.share >= self.sharp and fast.events >= _FAST_EVENTS:
            return "D2", fast
        if fast.share <= self.limit and fast.calls >= _FEW_CALLS_FAST:
            return None
        if self.is_over(sustained):
            return "D3", sustained
        if sustained.calls < _FEW_CALLS_SUSTAINED and self.is_over(quiet):
            return "D4", quiet
        return None

    def is_over(self, sample: Sample) -> bool:
        """Over the limit, and a healthy service at twice its error budget does not explain it."""
        return (
            sample.share > self.limit
            and sample.events >= _SUSTAINED_EVENTS
            and binomial_tail(sample.events, sample.calls, self.healthy) < CHANCE_MAX
        )

    def judgement(
        self, sample: Sample, verdict: Verdict, detector: str | None = None, why: str = ""
    ) -> Judgement:
        """The verdict with the numbers of the sample it was reached on."""
        reason = (
            f"{100 * sample.share:.3g} % of {sample.calls} calls {self.noun} in the last "
            f"{sample.window_s:g} s, limit {100 * self.limit:.3g} %"
        )
        return Judgement(
            trigger=self.trigger,
            verdict=verdict,
            reason=f"{reason}: {why}" if why else reason,
            detector=detector,
            window_s=sample.window_s,
            numerator=sample.events,
            denominator=sample.calls,
            share_percent=100 * sample.share,
            limit_percent=100 * self.limit,
            baseline_numerator=sample.baseline_events,
            baseline_denominator=sample.baseline_calls,
            chance=binomial_tail(sample.events, sample.calls, self.healthy) if sample.calls else None,
        )


def undetected(rule: Rule, samples: tuple[Sample, ...]) -> Judgement:
    """Pass, or inconclusive: too few calls, or too many bad ones that chance or no baseline leaves open."""
    _, sustained, quiet = samples
    sample = sustained if sustained.calls >= _FEW_CALLS_SUSTAINED else quiet
    if sample.calls < _DECIDABLE_CALLS:
        return rule.judgement(sample, Verdict.INCONCLUSIVE, None, "too few calls to decide")
    if sample.events + sample.unexplained > rule.limit * sample.calls:
        why = (
            "may still be chance"
            if not sample.unexplained
            else f"{sample.unexplained} application errors, too little baseline traffic to compare with"
        )
        return rule.judgement(sample, Verdict.INCONCLUSIVE, None, why)
    return rule.judgement(sample, Verdict.PASS, None)


def held(judgement: Judgement, why: str) -> Judgement:
    """A failure that must not be acted on, and why."""
    record = asdict(judgement) | {"verdict": Verdict.INCONCLUSIVE, "reason": f"{judgement.reason}: {why}"}
    return Judgement(**record)
