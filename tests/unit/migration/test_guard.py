"""The guard trips on real faults, fast, and never on chance; `pytest -s` prints the simulated table."""

from __future__ import annotations

import json
import math
import random
from statistics import median

import pytest

from pgshunt.migration.detector import CHANCE_MAX, Judgement, Verdict, binomial_tail
from pgshunt.migration.guard import Guard, Run, Stuck, Trip
from pgshunt.migration.window import NOTHING, Counts

SERVICE = "auth_service"


def armed(**limits: float) -> Guard:
    guard = Guard(**limits)
    guard.arm(SERVICE)
    guard.expose(SERVICE, True)
    return guard


def judged(guard: Guard, trigger: str, now_s: float) -> Judgement:
    return next(judgement for judgement in guard.judge(SERVICE, now_s) if judgement.trigger == trigger)


def feed(guard: Guard, now_s: float, candidate: Counts, baseline: Counts = NOTHING) -> list[Trip]:
    guard.count(SERVICE, now_s, candidate, baseline)
    return guard.trips(now_s)


# -- the binomial tail -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calls", "share"), [(20, 0.01), (50, 0.05), (300, 0.01)])
def test_the_tail_equals_the_sum_of_its_terms(calls: int, share: float) -> None:
    for events in range(math.ceil(calls * share) + 1, calls + 1):
        exact = math.fsum(
            math.comb(calls, k) * share**k * (1 - share) ** (calls - k) for k in range(events, calls + 1)
        )
        assert binomial_tail(events, calls, share) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("calls", "share", "events_min"),
    [
        (20, 0.01, 6),
        (50, 0.01, 7),
        (100, 0.01, 9),
        (200, 0.01, 13),
        (600, 0.01, 22),
        (1000, 0.0001, 5),
        (3000, 0.0001, 6),
    ],
)
def test_the_fewest_events_that_are_not_chance(calls: int, share: float, events_min: int) -> None:
    assert binomial_tail(events_min, calls, share) < CHANCE_MAX <= binomial_tail(events_min - 1, calls, share)


# -- D1: hard failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "trips"),
    [
        (Run(5, 5, 2), True),
        (Run(4, 4, 2), False),
        (Run(5, 5, 1), False),
        (Run(5, 5, 1, only_link=True), True),
        (Run(1, 10, 3), True),
        (Run(4, 9, 3), False),
    ],
)
def test_five_in_a_row_or_ten_of_twenty_trip_at_once(run: Run, trips: bool) -> None:
    guard = armed()
    guard.count(SERVICE, 0.0, Counts(calls=1000), NOTHING)
    guard.count(SERVICE, 0.0, Counts(calls=20, infrastructure=run.of_last_20), NOTHING)
    guard.report_run(SERVICE, 0, run)
    assert [trip.judgement.detector for trip in guard.trips(0.0)] == (["D1"] if trips else [])


def test_a_run_at_one_link_of_several_stands_in_the_evidence_of_the_rate() -> None:
    guard = armed()
    guard.report_run(SERVICE, 0, Run(12, 12, 1))
    (trip,) = feed(guard, 0.0, Counts(calls=12, infrastructure=12))
    assert trip.judgement.detector == "D2"
    assert trip.judgement.reason == (
        "100 % of 12 calls failed in the last 10 s, limit 3 %: "
        "12 infrastructure failures in a row, 12 of the last 20, "
        "all at one link of several, which alone is no hard failure"
    )


def test_a_run_from_before_the_service_was_armed_is_not_held_against_it() -> None:
    guard = armed()
    guard.report_run(SERVICE, 0, Run(7, 12, 4))
    assert feed(guard, 1.0, Counts(calls=1, infrastructure=1)) == []


def test_what_a_dead_worker_reported_is_over() -> None:
    guard = armed()
    guard.count(SERVICE, 0.0, Counts(calls=1000, infrastructure=5), NOTHING)
    guard.report_run(SERVICE, 1, Run(5, 5, 2))
    guard.report_stuck(1, {SERVICE: Stuck(50, 500.0)})
    guard.forget_worker(1)
    assert guard.trips(0.0) == []


def test_three_failed_probes_in_a_row_trip_without_any_traffic() -> None:
    guard = armed()
    for failed in (True, True, False, True, True):
        guard.probe(SERVICE, candidate_answers=not failed, baseline_answers=True)
        assert guard.trips(0.0) == []
    guard.probe(SERVICE, candidate_answers=False, baseline_answers=True)
    (trip,) = guard.trips(0.0)
    assert trip.judgement.detector == "D1"
    assert trip.judgement.reason == "3 probes in a row failed while the baseline answered"


def test_a_hard_failure_comes_first_and_the_rate_only_if_it_is_over_its_limit() -> None:
    def reason(calls: int) -> str:
        guard = armed()
        guard.count(SERVICE, 0.0, Counts(calls=calls, infrastructure=5), NOTHING)
        guard.report_run(SERVICE, 0, Run(5, 5, 2))
        (trip,) = guard.trips(0.0)
        return trip.judgement.reason

    why = "5 infrastructure failures in a row, 5 of the last 20"
    assert reason(1000) == why
    assert reason(50) == f"{why}; 10 % of 50 calls failed in the last 10 s, limit 3 %"


def test_a_probe_of_which_one_side_is_not_known_says_nothing() -> None:
    guard = armed()
    for _ in range(10):
        guard.probe(SERVICE, candidate_answers=None, baseline_answers=True)
        guard.probe(SERVICE, candidate_answers=False, baseline_answers=None)
    assert guard.trips(0.0) == []
    for _ in range(3):
        guard.probe(SERVICE, candidate_answers=None, baseline_answers=None)
        guard.probe(SERVICE, candidate_answers=False, baseline_answers=True)
    assert [trip.service for trip in guard.trips(0.0)] == [SERVICE]


def test_nothing_is_rolled_back_into_a_baseline_that_is_down() -> None:
    guard = armed()
    for _ in range(10):
        guard.probe(SERVICE, candidate_answers=False, baseline_answers=False)
    assert feed(guard, 0.0, Counts(calls=50, infrastructure=50)) == []
    judgement = judged(guard, "error_rate", 0.0)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "baseline does not answer" in judgement.reason
    guard.probe(SERVICE, candidate_answers=False, baseline_answers=True)
    assert [trip.service for trip in guard.trips(0.2)] == [SERVICE]


def test_clients_that_are_served_by_the_baseline_vouch_for_it_when_only_probes_fail() -> None:
    """The control role may be kept out of a shared database that serves everybody else."""
    guard = armed()
    guard.probe(SERVICE, candidate_answers=False, baseline_answers=False)
    assert feed(guard, 0.0, Counts(calls=50, infrastructure=50)) == []
    guard.serve(0.1, failed=False)
    guard.serve(0.2, failed=True)
    guard.serve(0.2, failed=False)  # another worker's answers, perhaps of before
    assert guard.trips(0.2) == []
    guard.serve(0.3, failed=False)
    assert guard.trips(1.1) == guard.trips(1.4) == []
    guard.serve(1.5, failed=False)
    (trip,) = guard.trips(1.5)
    assert (trip.judgement.trigger, trip.judgement.verdict) == ("error_rate", Verdict.FAIL)


# -- D2 to D4: the error rate ------------------------------------------------------------------------------


def test_a_sharp_regression_trips_although_the_minute_looks_well() -> None:
    guard = armed()
    for second in range(50):
        assert feed(guard, float(second), Counts(calls=20)) == []
    assert feed(guard, 58.0, Counts(calls=20)) == []
    assert feed(guard, 59.5, Counts(calls=69, infrastructure=9)) == []
    (trip,) = feed(guard, 59.6, Counts(calls=1, infrastructure=1))
    assert (trip.judgement.detector, trip.judgement.numerator, trip.judgement.denominator) == ("D2", 10, 90)


def test_a_sustained_rate_over_the_limit_trips() -> None:
    guard = armed()
    trips = [feed(guard, second * 1.0, Counts(calls=20, infrastructure=1)) for second in range(60)]
    (found,) = (trip for tripped in trips for trip in tripped)
    assert (found.judgement.detector, found.judgement.window_s) == ("D3", 60.0)


def test_a_burst_that_is_over_does_not_trip_late() -> None:
    guard = armed()
    assert feed(guard, 0.0, Counts(calls=200, infrastructure=9)) == []
    assert feed(guard, 11.0, Counts(calls=20)) == []


def test_a_quiet_service_is_judged_over_a_longer_time() -> None:
    guard = armed()
    trips = [
        feed(guard, minute * 60.0, Counts(calls=3, infrastructure=1 if minute % 2 else 0))
        for minute in range(29)
    ]
    (found,) = (trip for tripped in trips for trip in tripped)
    assert found.judgement.detector == "D4"


def test_the_configured_limit_scales_the_rules() -> None:
    guard = armed(error_rate_percent_max=30.0)
    for second in range(100):
        assert feed(guard, float(second), Counts(calls=100, infrastructure=20)) == []
    guard.configure(error_rate_percent_max=3.0, consistency_percent_min=99.9)
    assert len(guard.trips(99.0)) == 1


def test_application_errors_that_both_sides_show_are_the_applications() -> None:
    guard = armed()
    for second in range(120):
        both = Counts(calls=50, application=10)
        assert feed(guard, float(second), both, both) == []
    assert judged(guard, "error_rate", 119.0).verdict is Verdict.PASS


def test_application_errors_beyond_the_baseline_count() -> None:
    guard = armed()
    tripped: list[Trip] = []
    for tenth in range(100):
        tripped += feed(guard, tenth / 10, Counts(calls=5, application=tenth % 2), Counts(calls=5))
    (trip,) = tripped
    assert trip.judgement.detector == "D2"


def test_application_errors_without_a_baseline_are_inconclusive() -> None:
    guard = armed()
    for second in range(60):
        assert feed(guard, float(second), Counts(calls=10, application=5)) == []
    judgement = judged(guard, "error_rate", 59.0)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "too little baseline traffic" in judgement.reason


# -- latency -----------------------------------------------------------------------------------------------


def test_more_than_five_percent_slow_calls_trip() -> None:
    guard = armed()
    trips = [feed(guard, float(second), Counts(calls=20, slow=2)) for second in range(60)]
    (found,) = (trip for tripped in trips for trip in tripped)
    assert found.judgement.trigger == "latency"
    assert found.judgement.limit_percent == 5.0


def test_reads_that_wait_for_ever_trip_when_none_ends() -> None:
    """However many there were before: they only count as slow once, and so are a small share of all."""
    guard = armed()
    assert feed(guard, 0.0, Counts(calls=600)) == []
    guard.report_stuck(0, {SERVICE: Stuck(2, 8.0)})
    guard.report_stuck(1, {SERVICE: Stuck(2, 4.0)})
    assert guard.trips(1.9) == []
    (trip,) = guard.trips(2.0)
    assert (trip.judgement.trigger, trip.judgement.detector) == ("latency", "D1")
    assert trip.judgement.reason == (
        "4 reads have had no answer for 3 times the limit on average, and none has ended since"
    )


@pytest.mark.parametrize("stuck", [Stuck(2, 60.0), Stuck(3, 9.9)])
def test_a_few_reads_that_take_long_do_not_trip(stuck: Stuck) -> None:
    guard = armed()
    assert feed(guard, 0.0, Counts(calls=30)) == []
    guard.report_stuck(0, {SERVICE: stuck})
    assert guard.trips(60.0) == []


def test_reads_that_wait_do_not_trip_while_others_end() -> None:
    guard = armed()
    guard.report_stuck(0, {SERVICE: Stuck(20, 400.0)})
    assert [feed(guard, float(second), Counts(calls=200)) for second in range(30)] == [[]] * 30
    latency = guard.judge(SERVICE, 29.5)[1]
    assert latency.verdict is Verdict.INCONCLUSIVE
    assert latency.reason.endswith(": 20 reads have had no answer for 20 times the limit on average")


def test_reads_that_wait_while_the_baseline_is_slow_too_do_not_trip() -> None:
    guard = armed()
    guard.report_stuck(0, {SERVICE: Stuck(4, 40.0)})
    guard.count(SERVICE, 5.0, NOTHING, Counts(calls=50, slow=20))
    assert guard.trips(8.0) == []


def test_calls_that_were_slow_before_they_ended_trip_without_a_single_answer() -> None:
    guard = armed()
    (trip,) = feed(guard, 0.0, Counts(slow=10))
    assert (trip.judgement.trigger, trip.judgement.share_percent) == ("latency", 100.0)


def test_a_query_that_is_slow_on_both_sides_is_held_not_rolled_back() -> None:
    guard = armed()
    for second in range(60):
        assert feed(guard, float(second), Counts(calls=20, slow=4), Counts(calls=20, slow=4)) == []
    judgement = judged(guard, "latency", 59.0)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "baseline is slow too" in judgement.reason


# -- consistency -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("different", "compared", "trips"),
    [(5, 1000, True), (4, 1000, False), (10, 10_000, False), (11, 10_000, True), (5, 100, True)],
)
def test_confirmed_differences_trip_when_they_are_no_noise(
    different: int, compared: int, trips: bool
) -> None:
    guard = armed()
    guard.compare(SERVICE, 0.0, equal=compared - different, different=different, undecided=0)
    assert [trip.judgement.trigger for trip in guard.trips(0.0)] == (["consistency"] if trips else [])


def test_a_single_difference_holds() -> None:
    guard = armed()
    guard.compare(SERVICE, 0.0, equal=99_999, different=1, undecided=0)
    assert guard.trips(0.0) == []
    assert judged(guard, "consistency", 0.0).verdict is Verdict.INCONCLUSIVE


def test_undecided_comparisons_are_no_evidence() -> None:
    guard = armed()
    guard.compare(SERVICE, 0.0, equal=70, different=0, undecided=30)
    judgement = judged(guard, "consistency", 0.0)
    assert (judgement.verdict, judgement.denominator) == (Verdict.INCONCLUSIVE, 70)


def test_few_comparisons_are_summed_since_the_start_of_the_stage() -> None:
    guard = armed()
    guard.compare(SERVICE, 0.0, equal=100, different=5, undecided=0)
    guard.compare(SERVICE, 2000.0, equal=100, different=0, undecided=0)
    assert judged(guard, "consistency", 2000.0).denominator == 205


# -- latching ----------------------------------------------------------------------------------------------


def test_a_trip_is_told_once_and_stays_until_armed_again() -> None:
    guard = armed()
    assert len(feed(guard, 0.0, Counts(calls=50, infrastructure=50))) == 1
    assert feed(guard, 1.0, Counts(calls=50, infrastructure=50)) == []
    assert guard.is_latched(SERVICE)
    guard.arm(SERVICE)
    guard.expose(SERVICE, True)
    assert not guard.is_latched(SERVICE)
    assert feed(guard, 2.0, Counts(calls=1, infrastructure=1)) == []
    assert len(feed(guard, 3.0, Counts(calls=50, infrastructure=50))) == 1


def test_a_reload_does_not_arm() -> None:
    guard = armed()
    guard.latch(SERVICE)
    guard.configure(error_rate_percent_max=1.0, consistency_percent_min=99.0)
    assert guard.is_latched(SERVICE)


def test_without_exposed_clients_there_is_nothing_to_roll_back() -> None:
    guard = armed()
    guard.expose(SERVICE, False)
    assert feed(guard, 0.0, Counts(calls=50, infrastructure=50)) == []
    assert judged(guard, "error_rate", 0.0).verdict is Verdict.FAIL


def test_services_do_not_share_their_fate() -> None:
    guard = armed()
    guard.arm("dgm_service")
    guard.expose("dgm_service", True)
    guard.count("dgm_service", 0.0, Counts(calls=1000), NOTHING)
    guard.count(SERVICE, 0.0, Counts(calls=1000, infrastructure=500), NOTHING)
    assert [trip.service for trip in guard.trips(0.0)] == [SERVICE]


def test_few_calls_are_inconclusive_and_many_good_ones_pass() -> None:
    guard = armed()
    guard.count(SERVICE, 0.0, Counts(calls=19), NOTHING)
    assert judged(guard, "error_rate", 0.0).verdict is Verdict.INCONCLUSIVE
    guard.count(SERVICE, 0.0, Counts(calls=1), NOTHING)
    assert judged(guard, "error_rate", 0.0).verdict is Verdict.PASS


def test_a_judgement_is_a_record_that_json_takes() -> None:
    guard = armed()
    (trip,) = feed(guard, 0.0, Counts(calls=50, infrastructure=50))
    record = json.loads(json.dumps(trip.judgement.to_dict()))
    assert (record["verdict"], record["numerator"], record["denominator"]) == ("fail", 50, 50)


# -- simulation --------------------------------------------------------------------------------------------

TICK_S = 0.1


def poisson(rng: random.Random, mean: float) -> int:
    """Knuth's method; the means here are at most ten."""
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def time_to_trip_s(
    seed: int, calls_per_s: float, bad_share: float, span_s: float, healthy_s: float
) -> float | None:
    """Runs one worker's deltas through a guard: `healthy_s` at 0.5 % errors, then `bad_share`.

    Returns the seconds from the fault to the trip, negative for a false one, None for no trip.
    """
    rng = random.Random(seed)
    guard = armed()
    last_20 = [False] * 20
    consecutive = 0
    for tick in range(int((healthy_s + span_s) / TICK_S)):
        now_s = tick * TICK_S
        share = 0.005 if now_s < healthy_s else bad_share
        results = [rng.random() < share for _ in range(poisson(rng, calls_per_s * TICK_S))]
        if results:
            for failed in results:
                consecutive = consecutive + 1 if failed else 0
            last_20 = (last_20 + results)[-20:]
            guard.report_run(SERVICE, 0, Run(consecutive, sum(last_20), links=3))
            guard.count(SERVICE, now_s, Counts(len(results), sum(results)), Counts(len(results)))
        elif tick % 10:
            continue  # an idle worker sends nothing; the guard still looks once a second
        if guard.trips(now_s):
            return now_s - healthy_s
    return None


HOURS = {0.2: 24.0, 1.0: 6.0, 10.0: 1.0, 100.0: 0.5}


@pytest.mark.parametrize("calls_per_s", HOURS)
def test_a_healthy_service_never_trips(calls_per_s: float) -> None:
    for seed in range(2):
        assert time_to_trip_s(seed, calls_per_s, 0.005, HOURS[calls_per_s] * 3600, 0.0) is None


@pytest.mark.parametrize("healthy_s", [0.0, 60.0], ids=["at once", "after a healthy minute"])
@pytest.mark.parametrize(
    ("calls_per_s", "medians_s_max"),
    [(0.2, (40, 900, 3600)), (1.0, (8, 200, 600)), (10.0, (1, 20, 60)), (100.0, (0.2, 15, 45))],
)
def test_faults_trip_in_bounded_time(
    calls_per_s: float, medians_s_max: tuple[float, ...], healthy_s: float
) -> None:
    medians = []
    for bad_share, bound in zip((1.0, 0.1, 0.05), medians_s_max, strict=True):
        times = [time_to_trip_s(seed, calls_per_s, bad_share, 4 * bound, healthy_s) for seed in range(9)]
        medians.append(median(math.inf if time is None else time for time in times))
    print(
        f"{calls_per_s:5} calls/s, fault after {healthy_s:2.0f} s: "
        f"100 % {medians[0]:.1f} s, 10 % {medians[1]:.1f} s, 5 % {medians[2]:.1f} s"
    )
    assert all(time < bound for time, bound in zip(medians, medians_s_max, strict=True))


def test_what_was_counted_before_reads_began_again_trips_nothing() -> None:
    """Reads were stopped by hand, calls in flight still failed, the database was repaired."""
    guard = armed()
    guard.expose(SERVICE, False)
    guard.count(SERVICE, 0.0, Counts(calls=20, infrastructure=20), NOTHING)
    guard.report_run(SERVICE, 0, Run(20, 20, 3))
    for _ in range(2):
        guard.probe(SERVICE, candidate_answers=False, baseline_answers=True)
    guard.expose(SERVICE, True)
    guard.probe(SERVICE, candidate_answers=False, baseline_answers=True)
    assert not guard.trips(1.0)


def test_armed_while_it_is_exposed_it_is_watched_on() -> None:
    guard = armed()
    guard.arm(SERVICE)
    assert [trip.service for trip in feed(guard, 0.0, Counts(calls=50, infrastructure=50))] == [SERVICE]


def test_what_was_compared_counts_on_when_reads_begin() -> None:
    guard = Guard()
    guard.arm(SERVICE)
    guard.compare(SERVICE, 0.0, equal=1000, different=10, undecided=0)
    guard.expose(SERVICE, True)
    assert [trip.judgement.trigger for trip in guard.trips(1.0)] == ["consistency"]
