"""The document: what goes in comes out, and what is not ours is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.migration.state import JOURNAL_MAX, Entry, Latch, ServiceState, State, UnreadableState

TEXT = st.text(max_size=20)
SERVICES = st.builds(
    ServiceState,
    stage=st.sampled_from(["shared", "syncing", "shadowing", "reading"]),
    reads_percent=st.integers(0, 100),
    latch=st.none() | st.builds(Latch, TEXT, st.floats(0, 2e9), st.dictionaries(TEXT, st.integers())),
    copied=st.lists(TEXT).map(tuple),
    journal=st.lists(st.builds(Entry, TEXT, st.sampled_from(["begun", "done"]), st.floats(0, 2e9), TEXT)).map(
        tuple
    ),
)


@given(st.builds(State, epoch=st.integers(0), services=st.dictionaries(TEXT, SERVICES, max_size=4)))
def test_a_state_survives_json(state: State) -> None:
    assert State.from_document(json.loads(json.dumps(state.to_document()))) == state


def test_nothing_is_the_state_before_anything_happened() -> None:
    assert State.from_document({}) == State()
    assert State().service("unknown").stage == "shared"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": 2, "epoch": 1, "services": {}}, "has format 2"),
        ({"format": 1, "services": {}}, "epoch"),
        ({"format": 1, "epoch": 1, "services": {"a": {"stage": "elsewhere"}}}, "unknown stage 'elsewhere'"),
    ],
)
def test_a_document_of_another_form_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(UnreadableState, match=message):
        State.from_document(document)


def test_the_journal_keeps_its_latest_lines() -> None:
    state = ServiceState()
    for number in range(JOURNAL_MAX + 5):
        state = state.noted(f"step {number}", "done")
    assert len(state.journal) == JOURNAL_MAX
    assert state.journal[-1].step == f"step {JOURNAL_MAX + 4}"


def test_an_abandon_that_was_begun_has_to_be_brought_to_its_end() -> None:
    state = ServiceState().noted("abandon", "begun")
    assert state.is_being_abandoned
    assert not state.noted("abandon", "done").is_being_abandoned
