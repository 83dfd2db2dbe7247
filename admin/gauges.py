"""The gauges that show where things stand, read from where that is kept at each scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pgshunt.admin.controller import Mover
from pgshunt.admin.fleet import Fleet
from pgshunt.admin.metrics import Metrics, Sample, stage_samples
from pgshunt.admin.operations import Health
from pgshunt.admin.watch import Watch
from pgshunt.migration.detector import Verdict


def add_gauges(metrics: Metrics, fleet: Fleet, mover: Mover, watch: Watch, health: Health) -> None:
    """Adds them to the registry."""

    def clients() -> Iterator[Sample]:
        for worker, count in enumerate(fleet.board.clients):
            yield (str(worker),), float(count)

    def weights() -> Iterator[Sample]:
        for service in mover.table.services:
            yield (service.name,), service.reads_percent / 100

    def latches() -> Iterator[Sample]:
        for service in mover.table.services:
            yield (service.name,), float(mover.latch(service.name) is not None)

    def lags() -> Iterator[Sample]:
        for index, endpoint in enumerate(mover.table.endpoints):
            lag_s = mover.lag_s(index)
            if lag_s is not None:
                yield (endpoint.name,), lag_s

    def inconclusive() -> Iterator[Sample]:
        for service in mover.table.services:
            for judgement in watch.guard.judge(service.name, time.monotonic()):
                undecided = judgement.verdict is Verdict.INCONCLUSIVE
                yield (service.name, judgement.trigger), float(undecided)

    by_service = ("service",)
    metrics.gauge("clients", "Client sessions", ("worker",), clients)
    metrics.gauge("workers_live", "Workers that serve clients", (), lambda: [((), fleet.live)])
    metrics.gauge("epoch", "Routing table in force", (), lambda: [((), mover.table.epoch)])
    metrics.gauge("route_weight_ratio", "Share of reads for the service's own database", by_service, weights)
    metrics.gauge("rollback_latched", "1 while a rollback holds", by_service, latches)
    metrics.gauge(
        "state_unkept",
        "1 while the state store does not hold what is in force",
        (),
        lambda: [((), float(bool(mover.unkept)))],
    )
    metrics.gauge("replication_lag_seconds", "How far behind a copy may be", ("backend",), lags)
    metrics.gauge(
        "rollout_state",
        "1 for the stage a service is in",
        ("service", "state"),
        lambda: stage_samples(mover.table),
    )
    metrics.gauge(
        "trigger_inconclusive", "1 while a trigger cannot decide", ("service", "trigger"), inconclusive
    )
    metrics.gauge(
        "config_last_reload_successful",
        "0 after a reload that failed",
        (),
        lambda: [((), float(not health.reload_error))],
    )
