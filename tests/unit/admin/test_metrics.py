"""What workers count adds up in one registry; labels never hold what users typed."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from pgshunt.admin.metrics import Metrics, stage_samples
from pgshunt.proxy.channel import LATENCY_EDGES_US, Message
from pgshunt.routing.table import Endpoint, RoutingTable, Service

TABLE = RoutingTable(
    1,
    (
        Endpoint("shared", "shared", "127.0.0.1", 1, "monolith", "primary"),
        Endpoint("auth_db", "auth_db", "127.0.0.1", 2, "auth_db", "primary"),
    ),
    (Service("auth_service", "auth_db", ("public.users",), stage="reading", reads_percent=50),),
)


def delta(worker: int, calls: int = 10) -> Message:
    buckets = [0] * (len(LATENCY_EDGES_US) + 1)
    buckets[0], buckets[12], buckets[15] = calls - 2, 1, 1
    return {
        "index": worker,
        "calls": [["auth_service", "candidate", "auth_db", "read", calls, 2, 1, 1, 2_500_000, buckets]],
        "sqlstates": [["auth_service", "candidate", "57P01", 2]],
        "routes": [["auth_service", "split", "auth_db", calls]],
        "shadow": [["auth_service", "match", 4, 8000, 0]],
        "pins": [["listen", 1]],
        "gauges": {"clients": 3, "waiting": 1, "shapes": 7, "links": [["auth_db", "auth", 2, 3, 1]]},
        "parses": 5,
        "loop_lag_s": 0.002,
    }


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"pgshunt_{name}", frozenset(labels.items())]


def test_deltas_of_all_workers_add_up() -> None:
    metrics = Metrics(TABLE)
    metrics.add(delta(0))
    metrics.add(delta(1))
    read = {"service": "auth_service", "backend": "auth_db", "op": "read"}
    assert value(metrics, "queries_total", outcome="ok", **read) == 14
    assert value(metrics, "queries_total", outcome="infrastructure_error", **read) == 4
    assert value(metrics, "queries_total", outcome="application_error", **read) == 2
    assert value(metrics, "routes_total", service="auth_service", backend="auth_db", reason="split") == 20
    assert value(metrics, "shadow_writes_total", service="auth_service", result="match") == 8
    assert value(metrics, "parses_total") == 10
    assert value(metrics, "pins_total", cause="listen") == 2
    assert value(metrics, "errors_total", service="auth_service", side="candidate", sqlstate_class="57") == 4


def test_the_histogram_is_cumulative_and_has_the_limits_edges() -> None:
    metrics = Metrics(TABLE)
    metrics.add(delta(0))
    labels = {"service": "auth_service", "backend": "auth_db", "op": "read"}
    for edge, count in (("0.0001", 8), ("0.05", 8), ("0.1", 8), ("0.5", 8), ("1", 9), ("5", 9), ("+Inf", 10)):
        assert value(metrics, "query_duration_seconds_bucket", le=edge, **labels) == count
    assert value(metrics, "query_duration_seconds_count", **labels) == 10
    assert value(metrics, "query_duration_seconds_sum", **labels) == 2.5


def test_series_exist_before_anything_happens() -> None:
    metrics = Metrics(TABLE)
    for backend in ("shared", "auth_db"):
        labels = {"service": "auth_service", "backend": backend, "op": "write", "outcome": "ok"}
        assert value(metrics, "queries_total", **labels) == 0
    assert value(metrics, "rollbacks_total", service="auth_service", trigger="latency") == 0
    assert value(metrics, "rows_verified_total", service="auth_service", result="different") == 0


def test_gauges_are_those_of_the_workers_that_live() -> None:
    metrics = Metrics(TABLE)
    metrics.add(delta(0))
    metrics.add(delta(1))
    assert value(metrics, "pool_connections", backend="auth_db", state="idle") == 6
    assert metrics.links_of_worker(0, {"auth_db"}) == 5
    metrics.worker_ended(1)
    assert value(metrics, "pool_connections", backend="auth_db", state="idle") == 3
    assert value(metrics, "worker_restarts_total", worker="1") == 1
    assert value(metrics, "parses_total") == 10


def test_a_gauge_is_read_when_it_is_asked_for() -> None:
    metrics = Metrics(TABLE)
    weights = {"auth_service": 0.1}
    metrics.gauge("route_weight_ratio", "", ("service",), lambda: [((n,), w) for n, w in weights.items()])
    metrics.gauge("rollout_state", "", ("service", "state"), lambda: stage_samples(TABLE))
    weights["auth_service"] = 0.5
    assert value(metrics, "route_weight_ratio", service="auth_service") == 0.5
    assert value(metrics, "rollout_state", service="auth_service", state="reading") == 1
    assert value(metrics, "rollout_state", service="auth_service", state="shared") == 0


def test_every_name_has_the_prefix() -> None:
    metrics = Metrics(TABLE)
    metrics.add(delta(0))
    assert all(name.startswith("pgshunt_") for name, _ in samples(metrics))
