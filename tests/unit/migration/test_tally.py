"""What passes of verification prove, and for how long."""

from __future__ import annotations

from pgshunt.migration.tally import RECENT_S_MIN, Tally
from pgshunt.migration.verify import CONFIRMED_MAX, Divergence, VerifyResult, _Total


def passed(
    tally: Tally, began_at: float, ended_at: float, *confirmed: Divergence, undecided: int = 0
) -> None:
    tally.add(VerifyResult("public.users", 100, confirmed, undecided, 1.0), began_at + 1.0)
    tally.add(VerifyResult("", 100, confirmed, undecided, 1.0, is_pass=True), ended_at)


def test_a_pass_is_clean_if_it_began_later_and_found_every_row_equal() -> None:
    tally = Tally()
    assert not tally.is_clean_since(0, 0)
    passed(tally, 100, 160)
    assert tally.is_clean_since(99, 170)
    assert not tally.is_clean_since(100, 170)
    passed(tally, 200, 260, undecided=1)
    assert not tally.is_clean_since(0, 270)
    passed(tally, 300, 360, Divergence("public.users", ("1",), "missing"))
    assert not tally.is_clean_since(0, 370)


def test_why_it_is_not_clean_says_whether_waiting_is_enough() -> None:
    tally = Tally()
    assert "none has ended yet, the next begins soon. Waiting is enough" in tally.unclean(50, 60)
    passed(tally, 100, 160)
    assert "the last clean one began 70 s before it, the next begins soon. Waiting" in tally.unclean(170, 200)
    tally.add(VerifyResult("public.users", 100, (), 0, 1.0), 191.0)
    assert "before it, one is under way for 10 s. Waiting is enough" in tally.unclean(170, 200)
    assert "before it, the one under way began before it. Waiting is enough" in tally.unclean(195, 200)
    assert tally.unclean(99, 1000).startswith("no pass of verification has ended for 840 s. See in")
    passed(tally, 200, 260, undecided=1)
    assert "which ended 5 s ago, or what came since, was not, the next" in tally.unclean(0, 265)
    passed(tally, 300, 360, Divergence("public.users", ("1",), "missing"))
    assert tally.unclean(0, 370).startswith("1 rows differ. Repair the copy")


def test_a_clean_pass_grows_old_unless_another_follows() -> None:
    tally = Tally()
    passed(tally, 100, 160)
    assert tally.is_clean_since(0, 160 + RECENT_S_MIN)
    assert not tally.is_clean_since(0, 161 + RECENT_S_MIN)


def test_where_a_pass_takes_hours_it_is_recent_for_hours() -> None:
    tally = Tally()
    passed(tally, 0.5, 7200)
    assert tally.is_clean_since(0, 3 * 7200 - 1)
    assert not tally.is_clean_since(0, 3 * 7200 + 1)


def test_of_a_pass_with_countless_differences_only_the_first_are_kept() -> None:
    total = _Total()
    for begin in range(0, 5 * CONFIRMED_MAX, 500):
        rows = tuple(Divergence("public.users", (str(key),), "missing") for key in range(begin, begin + 500))
        total.add(VerifyResult("public.users", 500, rows, 0, 0.1))
    tally = Tally()
    tally.add(total.result(), 100.0)
    assert len(tally.open) == CONFIRMED_MAX
    assert tally.open_total == tally.to_dict()["open_total"] == 5 * CONFIRMED_MAX
