"""The Prometheus registry: one, in the supervisor, to which the workers' deltas are added.

prometheus_client's multiprocess mode is not used: its files of dead processes pile up, and it allows neither
custom collectors nor Info. Labels name what the configuration names, never SQL, clients or row values; of a
SQLSTATE only the class. `backend` is an endpoint's name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pgshunt import __version__
from pgshunt.proxy.channel import LATENCY_EDGES_US, Message
from pgshunt.routing.table import RoutingTable, Stage

SHADOW_RESULTS = ("match", "mismatch", "undecided", "dropped", "error")
TRIGGERS = ("error_rate", "latency", "consistency", "manual")
OPS = ("read", "write", "other")
OUTCOMES = ("ok", "infrastructure_error", "application_error")

_BOUNDS = (*(f"{edge / 1e6:g}" for edge in LATENCY_EDGES_US), "+Inf")

Sample = tuple[tuple[str, ...], float]
Read = Callable[[], Iterable[Sample]]


class _Durations(Collector):
    """A histogram that is fed with counts per bucket instead of single observations."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], tuple[list[int], list[int]]] = {}

    def add(self, labels: tuple[str, str, str], buckets: list[int], sum_us: int) -> None:
        counts, total_us = self._rows.setdefault(labels, ([0] * len(_BOUNDS), [0]))
        for index, count in enumerate(buckets):
            counts[index] += count
        total_us[0] += sum_us

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "pgshunt_query_duration_seconds",
            "Time from the last byte of a request to the first byte of its answer",
            labels=("service", "backend", "op"),
        )
        for labels, (counts, total_us) in self._rows.items():
            cumulative, total = [], 0
            for bound, count in zip(_BOUNDS, counts, strict=True):
                total += count
                cumulative.append((bound, float(total)))
            family.add_metric(labels, cumulative, sum_value=total_us[0] / 1e6)
        yield family


class _Gauges(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self) -> None:
        self._sources: list[tuple[str, str, tuple[str, ...], Read]] = []

    def add(self, name: str, documentation: str, labels: tuple[str, ...], read: Read) -> None:
        self._sources.append((name, documentation, labels, read))

    def collect(self) -> Iterator[Metric]:
        for name, documentation, labels, read in self._sources:
            family = GaugeMetricFamily(name, documentation, labels=labels)
            for values, number in read():
                family.add_metric(values, number)
            yield family


class Metrics:
    """All series. Workers' deltas go in by `add`; gauges are read from where they are kept, by `gauge`."""

    def __init__(self, table: RoutingTable) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, tuple[str, ...]], Counter] = {}
        self._durations = _Durations()
        self._gauges = _Gauges()
        self._worker_gauges: dict[int, Message] = {}
        self._worker_lag_s: dict[int, float] = {}
        self._queries = self._counter("queries", "Statements answered", "service", "backend", "op", "outcome")
        self._slow = self._counter("slow_queries", "Calls over latency_ms_max", "service", "backend", "op")
        self._errors = self._counter(
            "errors", "Errors by SQLSTATE class", "service", "side", "sqlstate_class"
        )
        self._routes = self._counter("routes", "Routing decisions", "service", "backend", "reason")
        self._shadow = self._counter("shadow_writes", "Write transactions validated", "service", "result")
        self._shadow_s = self._counter("shadow_seconds", "Time spent validating", "service", "result")
        self._pins = self._counter("pins", "Sessions pinned to a link", "cause")
        self._timeouts = self._counter("timeouts", "Limits of time that were passed", "kind")
        self._failed_logins = self._counter("failed_logins", "Clients that were not let in", "reason")
        self._parses = self._counter("parses", "Statement shapes parsed")
        self._rows = self._counter("rows_verified", "Rows compared by verify", "service", "result")
        self._rollbacks = self._counter("rollbacks", "Rollbacks", "service", "trigger")
        self._restarts = self._counter("worker_restarts", "Workers replaced", "worker")
        self._publications = self._counter("table_publications", "Routing tables acknowledged by all workers")
        self.registry.register(self._durations)
        self.registry.register(self._gauges)
        self._register_worker_gauges()
        self._pre_create(table)

    # -- counters -------------------------------------------------------------------------------------

    def add(self, delta: Message) -> None:
        """Adds one worker's delta."""
        worker = delta["index"]
        for service, _, backend, op, calls, infrastructure, application, slow, sum_us, buckets in delta.get(
            "calls", ()
        ):
            for outcome, count in (
                ("ok", calls - infrastructure - application),
                ("infrastructure_error", infrastructure),
                ("application_error", application),
            ):
                self._inc(self._queries, count, service, backend, op, outcome)
            self._inc(self._slow, slow, service, backend, op)
            self._durations.add((service, backend, op), buckets, sum_us)
        for service, side, sqlstate, count in delta.get("sqlstates", ()):
            self._inc(self._errors, count, service, side, sqlstate[:2])
        for service, reason, backend, count in delta.get("routes", ()):
            self._inc(self._routes, count, service, backend, reason)
        for service, result, count, sum_us, _ in delta.get("shadow", ()):
            self._inc(self._shadow, count, service, result)
            self._inc(self._shadow_s, sum_us / 1e6, service, result)
        for cause, count in delta.get("pins", ()):
            self._inc(self._pins, count, cause)
        for kind, count in delta.get("timeouts", ()):
            self._inc(self._timeouts, count, kind)
        for reason, count in delta.get("failed_logins", ()):
            self._inc(self._failed_logins, count, reason)
        self._inc(self._parses, delta.get("parses", 0))
        if "gauges" in delta:
            self._worker_gauges[worker] = delta["gauges"]
        self._worker_lag_s[worker] = delta.get("loop_lag_s", 0.0)

    def rows_verified(self, service: str, equal: int, different: int, undecided: int) -> None:
        for result, count in (("equal", equal), ("different", different), ("undecided", undecided)):
            self._inc(self._rows, count, service, result)

    def rolled_back(self, service: str, trigger: str) -> None:
        self._inc(self._rollbacks, 1, service, trigger)

    def published(self) -> None:
        self._inc(self._publications, 1)

    def worker_ended(self, worker: int) -> None:
        """Its counters stay, what it had in hand is gone."""
        self._inc(self._restarts, 1, str(worker))
        self._worker_gauges.pop(worker, None)
        self._worker_lag_s.pop(worker, None)

    # -- gauges ---------------------------------------------------------------------------------------

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...], read: Read) -> None:
        """Adds a gauge `pgshunt_<name>`; `read` yields its samples at each scrape."""
        self._gauges.add(f"pgshunt_{name}", documentation, labels, read)

    def links(self) -> dict[str, dict[str, int]]:
        """Links of all workers by endpoint: {"auth_db": {"active": 3, "idle": 5, "waiting": 0}}."""
        sums: dict[str, dict[str, int]] = {}
        for gauges in self._worker_gauges.values():
            for endpoint, _, active, idle, waiting in gauges.get("links", ()):
                row = sums.setdefault(endpoint, {"active": 0, "idle": 0, "waiting": 0})
                row["active"] += active
                row["idle"] += idle
                row["waiting"] += waiting
        return sums

    def links_of_worker(self, worker: int, endpoints: set[str]) -> int:
        """Links one worker holds to these endpoints."""
        links = self._worker_gauges.get(worker, {}).get("links", ())
        return sum(active + idle for endpoint, _, active, idle, _ in links if endpoint in endpoints)

    def exposition(self) -> bytes:
        """The text a scrape gets."""
        return generate_latest(self.registry)

    # -- inside ---------------------------------------------------------------------------------------

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"pgshunt_{name}", documentation, labels, registry=self.registry)

    def _inc(self, counter: Counter, amount: float, *labels: str) -> None:
        """Adds to one series; the child is looked up by our own key, which is cheaper than labels()."""
        key = (counter._name, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = counter.labels(*labels) if labels else counter
        if amount:
            child.inc(amount)

    def _register_worker_gauges(self) -> None:
        for name, documentation in (
            ("waiting", "Sessions that wait for a link"),
            ("shapes", "Statement shapes in the cache"),
        ):
            self.gauge(
                f"{name}_current",
                documentation,
                ("worker",),
                lambda name=name: (  # type: ignore[misc]
                    ((str(worker),), gauges.get(name, 0)) for worker, gauges in self._worker_gauges.items()
                ),
            )
        self.gauge(
            "pool_connections",
            "Links by state",
            ("backend", "state"),
            lambda: (
                ((backend, state), count)
                for backend, row in self.links().items()
                for state, count in row.items()
                if state != "waiting"
            ),
        )
        self.gauge(
            "pool_waiting",
            "Sessions that wait for a link of this endpoint",
            ("backend",),
            lambda: (((backend,), row["waiting"]) for backend, row in self.links().items()),
        )
        self.gauge(
            "event_loop_lag_seconds",
            "How late the last tick of a worker's event loop was",
            ("worker",),
            lambda: (((str(worker),), lag_s) for worker, lag_s in self._worker_lag_s.items()),
        )
        self.gauge("build_info", "Version", ("version",), lambda: [((__version__,), 1.0)])
        started_s = time.time()
        self.gauge("start_time_seconds", "Start, Unix time", (), lambda: [((), started_s)])

    def _pre_create(self, table: RoutingTable) -> None:
        """Series at 0 for all that can be foreseen: a first error is then a rise, not a new series."""
        shared = [endpoint.name for endpoint in table.endpoints if endpoint.database == "shared"]
        for service in table.services:
            own = [endpoint.name for endpoint in table.endpoints if endpoint.database == service.database]
            for backend in (*shared, *own):
                for op in OPS:
                    for outcome in OUTCOMES:
                        self._inc(self._queries, 0, service.name, backend, op, outcome)
            for result in SHADOW_RESULTS:
                self._inc(self._shadow, 0, service.name, result)
            for trigger in TRIGGERS:
                self._inc(self._rollbacks, 0, service.name, trigger)
            self.rows_verified(service.name, 0, 0, 0)


def stage_samples(table: RoutingTable) -> Iterator[Sample]:
    """rollout_state: 1 for the stage a service is in, 0 for the others."""
    for service in table.services:
        for stage in get_args(Stage):
            yield (service.name, stage), float(service.stage == stage)
