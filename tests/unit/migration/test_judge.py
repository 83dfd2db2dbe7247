"""What a verifier may conclude, checked on a model of a lane that delays but never errs.

The model: a source row with a history of states, a copy that shows any state from the fence on. Whatever the
history and the delays, a faithful copy must never be judged wrong; one that was tampered with must be, once
all is quiet.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pgshunt.migration.rows import Version
from pgshunt.migration.verify import LOOKS_MAX, Look, judge


@st.composite
def faithful(draw: st.DrawFn) -> list[Look]:
    """Looks at a row whose copy follows the log, at moments and with delays of any kind.

    A commit may be visible at the source later than at the copy: then its version is still shown, as touched.
    """
    history = draw(st.lists(st.sampled_from([None, 1, 2]), min_size=1, max_size=8))
    looks: list[Look] = []
    now = 0  # the place in the log up to which the source shows
    for _ in range(LOOKS_MAX):
        source = draw(st.integers(now, len(history) - 1))
        in_flight = draw(st.integers(source, len(history) - 1))  # committed in the log, not yet visible
        target = draw(st.integers(source, len(history) - 1))  # behind the fence: at least what was visible
        hidden = in_flight > source
        target = min(target, in_flight)
        looks.append(
            Look(
                _version(history, source, untouched=not hidden),
                _version(history, target, untouched=True),
                hidden,
            )
        )
        now = max(source, draw(st.integers(source, target)))
    return looks


def _version(history: list[int | None], place: int, untouched: bool) -> Version | None:
    """A version is known by the place in the log that made it."""
    content = history[place]
    if content is None:
        return None
    made = place
    while made and history[made - 1] == content:
        made -= 1
    return Version(content, str(made), untouched)


@given(faithful())
def test_a_faithful_copy_is_never_judged_wrong(looks: list[Look]) -> None:
    for count in range(1, len(looks) + 1):
        verdict = judge(looks[:count])
        assert verdict in ("same", "open")
        if verdict == "same":
            return


@given(
    st.sampled_from([None, Version(1, "a", True), Version(1, "a", False)]),
    st.sampled_from([None, Version(2, "x", True)]),
)
@example(None, Version(2, "x", True))
def test_a_tampered_row_is_found_when_nobody_writes_it(
    source: Version | None, target: Version | None
) -> None:
    if source is None and target is None:
        assert judge([Look(None, None)]) == "same"
        return
    verdicts = [judge([Look(source, target)] * count) for count in range(1, LOOKS_MAX + 1)]
    kind = "missing" if target is None else "extra" if source is None else "different"
    assert verdicts[0] == "open"
    assert verdicts[-1] == kind
    assert set(verdicts) == {"open", kind}


def test_a_row_that_was_there_and_gone_between_two_looks_is_no_proof() -> None:
    assert judge([Look(None, Version(2, "x", True)), Look(None, Version(2, "y", True))]) == "open"


def test_a_commit_that_waits_for_a_standby_is_no_proof() -> None:
    old, new = Version(1, "a", False), Version(2, "x", True)
    assert judge([Look(old, new, hidden=True)] * LOOKS_MAX) == "open"
