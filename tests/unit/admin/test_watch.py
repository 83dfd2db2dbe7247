"""The watch tells the guard the right numbers, and hands on a trip once, at once."""

from __future__ import annotations

from typing import Any

from pgshunt.admin import show
from pgshunt.admin.document import Standing, sentence, service_document, summary
from pgshunt.admin.watch import MISMATCHES_MAX, Watch
from pgshunt.migration.guard import Guard, Trip
from pgshunt.proxy.channel import LATENCY_EDGES_US, Message
from pgshunt.routing.table import Service

SERVICE = "auth_service"


class Scene:
    """A watch with a clock that stands still until it is set."""

    def __init__(self, *, only_link: bool = False) -> None:
        self.now_s = 1000.0
        self.trips: list[Trip] = []
        self.guard = Guard()
        self.guard.arm(SERVICE)
        self.guard.expose(SERVICE, True)
        self.watch = Watch(
            self.guard,
            clock=lambda: self.now_s,
            on_trip=self.trips.append,
            has_only_link=lambda service, worker: only_link,
        )

    def calls(
        self, side: str, op: str = "read", calls: int = 0, infrastructure: int = 0, slow: int = 0
    ) -> Message:
        buckets = [0] * (len(LATENCY_EDGES_US) + 1)
        buckets[5] = calls
        return {
            "index": 0,
            "calls": [[SERVICE, side, "auth_db", op, calls, infrastructure, 0, slow, 0, buckets]],
        }

    def standing(self, **more: Any) -> Standing:
        judgements = self.guard.judge(SERVICE, self.now_s)
        service = more.pop(
            "service", Service(SERVICE, "auth_db", ("public.users",), stage="reading", reads_percent=50)
        )
        return Standing(service, judgements, self.watch.seen(SERVICE), **more)


def test_failing_reads_at_the_candidate_trip_with_the_delta_that_tells() -> None:
    scene = Scene()
    scene.watch.take(scene.calls("candidate", calls=50, infrastructure=50))
    (trip,) = scene.trips
    assert (trip.service, trip.judgement.trigger, trip.judgement.numerator) == (SERVICE, "error_rate", 50)
    scene.watch.take(scene.calls("candidate", calls=50, infrastructure=50))
    assert len(scene.trips) == 1


def test_what_clients_are_answered_at_the_shared_database_goes_before_probes_of_it() -> None:
    for infrastructure, tripped in ((1, 0), (0, 1)):
        scene = Scene()
        scene.watch.probed(SERVICE, candidate_answers=False, baseline_answers=False)
        scene.watch.take(scene.calls("candidate", calls=50, infrastructure=50))
        assert scene.trips == []
        answered = scene.calls("baseline", "write", calls=9, infrastructure=infrastructure)
        answered["calls"][0][0:3] = ["", "baseline", "shared"]  # nobody's statements count as well
        scene.watch.take(answered)
        assert len(scene.trips) == tripped


def test_writes_and_the_baseline_do_not_trip() -> None:
    scene = Scene()
    scene.watch.take(scene.calls("baseline", calls=50, infrastructure=50))
    scene.watch.take(scene.calls("candidate", "write", calls=50, infrastructure=50))
    assert scene.trips == []


def test_a_replica_that_fails_trips_nothing() -> None:
    """Its reads are answered elsewhere; that they are slow there is the database's."""
    scene = Scene()
    for _ in range(20):
        scene.now_s += 1
        scene.watch.take(scene.calls("replica", calls=50, infrastructure=50))
    assert scene.trips == []
    scene.watch.take(scene.calls("replica", calls=500, slow=500))
    assert [trip.judgement.trigger for trip in scene.trips] == ["latency"]


def test_a_hard_run_trips_and_a_single_link_counts_when_it_is_the_only_one() -> None:
    for only_link, tripped in ((True, 1), (False, 0)):
        scene = Scene(only_link=only_link)
        healthy = scene.calls("candidate", calls=1000)
        failing = scene.calls("candidate", calls=5, infrastructure=5)
        scene.watch.take(healthy)
        scene.watch.take({**failing, "runs": [[SERVICE, 5, 5, 1]]})
        assert len(scene.trips) == tripped


def test_calls_that_hang_trip_before_they_end() -> None:
    scene = Scene()
    scene.watch.take({"index": 0, "stuck": [[SERVICE, 4, 9.9]]})
    scene.watch.take({"index": 1, "stuck": []})
    assert scene.trips == []
    scene.watch.take({"index": 0, "stuck": [[SERVICE, 4, 10.1]]})
    assert [trip.judgement.trigger for trip in scene.trips] == ["latency"]


def test_calls_that_hung_and_were_answered_are_no_more_held_against_a_service() -> None:
    scene = Scene()
    for delta in ({"stuck": [[SERVICE, 2, 30.0]]}, {"stuck": []}, {"stuck": [[SERVICE, 1, 30.0]]}):
        scene.watch.take({"index": 0, **delta})
    assert scene.trips == []


def test_shadow_results_and_verified_rows_are_compared() -> None:
    scene = Scene()
    scene.watch.take({"index": 0, "shadow": [[SERVICE, "match", 995, 0, 0], [SERVICE, "dropped", 400, 0, 0]]})
    scene.watch.compared(SERVICE, equal=993, different=4, undecided=3)
    assert scene.trips == []
    scene.watch.take({"index": 0, "shadow": [[SERVICE, "mismatch", 6, 0, 0], [SERVICE, "error", 2, 0, 0]]})
    (trip,) = scene.trips
    assert trip.judgement.trigger == "consistency"
    assert (trip.judgement.numerator, trip.judgement.denominator) == (10, 995 + 997 + 6)


def test_a_comparison_that_began_before_the_service_was_armed_says_nothing_about_it() -> None:
    """A write tried just before a repair is told just after it: once that rolled a service back again."""
    scene = Scene()
    scene.watch.arm(SERVICE)
    scene.guard.expose(SERVICE, True)
    for began_s, tripped in ((999.9, 0), (1000.1, 1)):
        mismatches = [SERVICE, "mismatch", 5, 0, int(began_s * 1e9)]
        scene.watch.take({"index": 0, "shadow": [mismatches]})
        assert len(scene.trips) == tripped
    assert scene.watch.seen(SERVICE).shadow["mismatch"] == 10


def test_probes_trip_without_traffic() -> None:
    scene = Scene()
    for _ in range(3):
        scene.watch.probed(SERVICE, candidate_answers=False, baseline_answers=True)
    assert [trip.judgement.detector for trip in scene.trips] == ["D1"]


def test_mismatched_shapes_are_bounded() -> None:
    scene = Scene()
    for number in range(2 * MISMATCHES_MAX):
        scene.watch.take(
            {"index": 0, "shadow_mismatches": [[SERVICE, f"UPDATE t{number}", "row count", 1, 2]] * 2}
        )
    mismatches = service_document(scene.standing(), scene.now_s)["shadow_mismatches"]
    assert len(mismatches) == MISMATCHES_MAX
    assert mismatches[0] == {
        "shape": "UPDATE t0",
        "kind": "row count",
        "source": "1",
        "target": "2",
        "count": 2,
    }


def test_calls_are_all_that_was_asked_and_the_sides_are_reads() -> None:
    scene = Scene()
    for delta in (
        scene.calls("baseline", calls=30, infrastructure=10),
        scene.calls("candidate", calls=5, infrastructure=5),
        scene.calls("baseline", "write", calls=20),
        scene.calls("baseline", "other", calls=4),
    ):
        scene.watch.take(delta)
    document = service_document(scene.standing(), scene.now_s)
    calls, baseline, candidate = (document[part] for part in ("calls", "baseline", "candidate"))
    assert (calls["calls"], calls["errors"], calls["calls_per_s"]) == (59, 15, 59.0)
    assert (baseline["calls"], candidate["calls"]) == (30, 5)
    headings, row = show.services([document]).splitlines()
    assert row[headings.index("CALLS/S") :].split()[0] == "59.0"


def test_the_document_shows_old_against_new_and_the_distance_to_each_trigger() -> None:
    scene = Scene()
    scene.watch.take(scene.calls("candidate", calls=40))
    scene.watch.take(scene.calls("baseline", calls=60))
    document = service_document(scene.standing(lag_s={"auth_db": 0.1}), scene.now_s)
    assert (document["baseline"]["calls"], document["candidate"]["calls"]) == (60, 40)
    assert document["candidate"]["p95_ms"] == 4.875
    assert [trigger["trigger"] for trigger in document["triggers"]] == [
        "error_rate",
        "latency",
        "consistency",
    ]
    error_rate = document["triggers"][0]
    assert (error_rate["verdict"], error_rate["denominator"], error_rate["limit_percent"]) == (
        "pass",
        40,
        3.0,
    )


def test_sentences() -> None:
    scene = Scene()
    assert sentence(scene.standing(lag_s={"auth_db": 0.12, "auth_db/1": 0.31})) == (
        "auth_service: 50 % of reads on auth_db, writes on the shared database, shadow writes off, "
        "copy at most 310 ms behind"
    )
    shared = Service(SERVICE, "auth_db", ("public.users",))
    assert sentence(scene.standing(service=shared)) == "auth_service: everything on the shared database"
    latched = scene.standing(service=shared, latch={"trigger": "latency"}, trouble="auth_db does not answer")
    assert sentence(latched).endswith(
        "rolled back (latency) and held until re-armed, auth_db does not answer"
    )
    syncing = Service(SERVICE, "auth_db", ("public.users",), stage="syncing")
    assert sentence(scene.standing(service=syncing, doing="copying")) == (
        "auth_service: being copied to auth_db, all statements on the shared database"
    )
    stopped = scene.standing(service=syncing, doing="copying_stopped", trouble="the disk\nis full")
    assert sentence(stopped) == (
        "auth_service: the copy to auth_db has stopped, all statements on the shared database, "
        "the disk is full, when that is mended `pgshunt begin auth_service` goes on from there"
    )
    left = scene.standing(service=syncing, doing="abandoning_stopped", trouble="auth_db does not answer")
    assert sentence(left) == (
        "auth_service: abandoned, but not all of its copy at auth_db is taken down, "
        "all statements on the shared database, auth_db does not answer, "
        "`pgshunt abandon auth_service` goes on from there"
    )
    assert summary([], 0, 2, 7) == "0 services (none of them moving), epoch 7"
    documents = [service_document(standing, scene.now_s) for standing in (scene.standing(), latched)]
    assert summary(documents, 1, 2, 7) == (
        "2 services (1 reading), 1 of 2 workers live, epoch 7; rolled back: auth_service"
    )


def test_a_late_copy_is_told_and_not_said_to_take_the_reads() -> None:
    scene = Scene()
    assert scene.standing(lag_s={"auth_db": 1.0}).attention == ()
    late = scene.standing(lag_s={"auth_db": 5.23}, trouble="the apply worker is gone")
    assert "50 % of reads on auth_db, writes on the shared database, but the copy is late" in sentence(late)
    assert service_document(late, scene.now_s)["attention"] == [
        "the apply worker is gone",
        "a copy is late: auth_db is 5.2 s behind, limit 1.0 s; its reads stay at the owner",
    ]
    one_of_two = scene.standing(lag_s={"auth_db": 0.1, "auth_db/1": None})
    assert "late" not in sentence(one_of_two)
    assert one_of_two.attention == ("a copy is late: auth_db/1 is of unknown freshness, limit 1.0 s",)
    idle = Service(SERVICE, "auth_db", ("public.users",), stage="reading", reads_percent=0)
    assert scene.standing(service=idle, lag_s={"auth_db": 5.0}).attention == ()
