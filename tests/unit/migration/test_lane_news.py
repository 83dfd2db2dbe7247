"""A lane's failure is told when it comes and when it is over, and not at every look in between."""

from __future__ import annotations

from pgshunt.migration.lane_news import HEALTHY_LOOKS, LaneNews


def test_a_problem_that_stays_is_told_once() -> None:
    news = LaneNews()
    assert [news.look(problem) for problem in ("", "no worker", "no worker", "no worker")] == [
        None,
        ("lane_failed", "no worker"),
        None,
        None,
    ]


def test_a_worker_that_fails_again_and_again_is_one_failure() -> None:
    news = LaneNews()
    looks = ["no worker", "", ""] * 20 + ["unreachable"] + ["no worker", "", "unreachable"] * 20
    assert [told for told in map(news.look, looks) if told] == [
        ("lane_failed", "no worker"),
        ("lane_failed", "unreachable"),
    ]
    ends = [news.look("") for _ in range(HEALTHY_LOOKS + 1)]
    assert ends == [None] * (HEALTHY_LOOKS - 1) + [("lane_recovered", "no worker"), None]


def test_the_next_failure_is_news_again() -> None:
    news = LaneNews()
    news.look("no worker")
    for _ in range(HEALTHY_LOOKS):
        news.look("")
    assert news.look("no worker") == ("lane_failed", "no worker")
