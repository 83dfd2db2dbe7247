"""The stages of a service as a table: what leads from one to the next, and what undoes it.

shared → syncing → shadowing → reading. The later stages (switched, completed) add rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pgshunt.routing.table import Stage


@dataclass(frozen=True, slots=True)
class Move:
    """One row: the stage it leads to, and the action that takes it back (empty: it is itself a way back)."""

    to: Stage
    undone_by: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of stage `syncing`, journalled before it is done; may be done again after a crash."""

    name: str
    undone_by: str
    does: str


# abandon goes through syncing: a lane that is being taken down is like one that is being made, no reads use
# it.
MOVES: Final[Mapping[Stage, Mapping[str, Move]]] = {
    "shared": {"begin": Move("syncing", "abandon")},
    "syncing": {
        "begin": Move("syncing", "abandon"),
        "synced": Move("shadowing", "abandon"),
        "abandon": Move("syncing"),
        "abandoned": Move("shared", "begin"),
    },
    "shadowing": {
        "shift": Move("reading", "stop_reading"),
        "stop_reading": Move("shadowing"),
        "rollback": Move("shadowing", "rearm"),
        "rearm": Move("shadowing", "rollback"),
        "abandon": Move("syncing"),
    },
    "reading": {
        "shift": Move("reading", "stop_reading"),
        "stop_reading": Move("shadowing"),
        "rollback": Move("shadowing", "rearm"),
        "abandon": Move("syncing"),
    },
}

STEPS: Final = (
    Step("preflight", "", "asks both servers, as `begin` did, for everything that would stop the move later"),
    Step(
        "roles", "", "creates the service's roles at its own database; they stay, for roles are the cluster's"
    ),
    Step("schema", "drop_copies", "creates the tables there, and what they need"),
    Step("grants", "drop_copies", "gives the roles their rights on the tables"),
    Step("publication", "drop_lane", "names the tables whose changes the lane carries"),
    Step("slot", "drop_lane", "keeps the shared database's log from the moment the copy starts"),
    Step("subscription", "drop_lane", "starts the copy and, after it, the stream of changes"),
    Step("copy", "drop_lane", "waits until every table is copied and streaming"),
    Step("fresh", "", "waits until a heartbeat has come through the lane"),
)

UNDO: Final = tuple(dict.fromkeys(step.undone_by for step in reversed(STEPS) if step.undone_by))
"""What takes the steps back, last one first."""

LANE_STAGES: Final[frozenset[Stage]] = frozenset({"syncing", "shadowing", "reading"})
"""Stages in which a lane exists or is being made."""

COPY_STAGES: Final[frozenset[Stage]] = frozenset({"shadowing", "reading"})
"""Stages in which every table of the service has a whole copy."""


Doing = Literal["", "copying", "copying_stopped", "abandoning", "abandoning_stopped"]
"""What stage `syncing` stands for now: a lane that is being made, or taken down, or left half done."""


class WrongStage(Exception):
    """The action has no row for the stage the service is in; the message names the ones that have."""


class Held(WrongStage):
    """The stage allows it, but something is in the way: a latch, a sick lane, a copy that differs."""


def move(stage: Stage, action: str) -> Move:
    """The row for an action. Raises WrongStage."""
    found = MOVES.get(stage, {}).get(action)
    if found is None:
        possible = sorted(stage for stage, actions in MOVES.items() if action in actions)
        raise WrongStage(f"{action} is not possible in stage {stage}; it is in {', '.join(possible)}")
    return found
