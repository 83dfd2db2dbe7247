"""The table of stages: every way on has a way back, and reads are only where a copy is whole."""

from typing import get_args

import pytest

from pgshunt.migration.stages import COPY_STAGES, LANE_STAGES, MOVES, STEPS, UNDO, WrongStage, move
from pgshunt.routing.table import MOVED, Stage


def test_every_stage_has_a_row_and_every_move_leads_to_one() -> None:
    assert set(MOVES) == set(get_args(Stage)) - MOVED, "nothing leads to the later stages yet"
    assert {found.to for actions in MOVES.values() for found in actions.values()} <= set(MOVES)


def test_what_undoes_a_move_is_possible_where_the_move_leads() -> None:
    for actions in MOVES.values():
        for found in actions.values():
            assert not found.undone_by or found.undone_by in MOVES[found.to]


def test_from_everywhere_there_is_a_way_back_to_shared() -> None:
    for start in MOVES:
        reached = {start}
        while more := {found.to for stage in reached for found in MOVES[stage].values()} - reached:
            reached |= more
        assert "shared" in reached


def test_reads_are_only_raised_where_a_whole_copy_is() -> None:
    assert {stage for stage, actions in MOVES.items() if "shift" in actions} == COPY_STAGES < LANE_STAGES


def test_a_move_that_is_not_in_the_table_names_the_stages_that_have_it() -> None:
    with pytest.raises(
        WrongStage, match="rollback is not possible in stage shared; it is in reading, shadowing"
    ):
        move("shared", "rollback")


def test_the_lane_is_undone_before_the_tables_it_fills() -> None:
    assert UNDO == ("drop_lane", "drop_copies")
    assert len({step.name for step in STEPS}) == len(STEPS)
