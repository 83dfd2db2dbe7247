"""Answers workers that ask for columns of a moving table to be added: to both databases, or why not."""

from __future__ import annotations

import logging
from typing import Final

from pgshunt.admin.controller import Controller
from pgshunt.migration.altering import Impossible
from pgshunt.migration.servers import ServerError
from pgshunt.migration.stages import Held
from pgshunt.proxy.channel import Message
from pgshunt.routing.additions import Addition

log = logging.getLogger("pgshunt.admin")

OPERATORS: Final = ("08", "28", "3D", "53", "57P", "58")
"""What is between a server and pgshunt: addresses and roles that are no client's business."""


async def answer(asked: Message, controller: Controller) -> Message:
    """`error`: SQLSTATE, message and hint for the client; None when the columns are there."""
    error: tuple[str, str, str] | None = None
    try:
        await controller.add_columns(Addition.from_dict(asked["addition"]), str(asked["user"]))
    except Impossible as impossible:
        error = impossible.sqlstate, str(impossible), impossible.hint
    except Held as held:
        error = "0A000", str(held), "See where it stands: pgshunt status"
    except ServerError as failed:
        error = _told(failed)
    except Exception:  # whatever it is, a client waits for the answer
        log.exception("defect in adding columns")
        error = "XX000", "pgshunt made a mistake while it added columns", "Its log has the reason."
    return {"type": "added", "question": asked["question"], "error": error}


def _told(failed: ServerError) -> tuple[str, str, str]:
    if not failed.sqlstate.startswith(OPERATORS):
        return failed.sqlstate, f"at {failed.endpoint}: {failed.message}", failed.hint
    log.warning("columns were not added: %s", failed)
    return (
        "08006",
        f"no columns were added: {failed.endpoint} could not be used",
        "pgshunt's log has the reason.",
    )
