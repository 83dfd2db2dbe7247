"""Answers workers that ask for columns of a moving table to be added: to both databases, or why not."""

from __future__ import annotations

import logging

from pgshunt.admin.controller import Controller
from pgshunt.migration.altering import Impossible
from pgshunt.migration.servers import ServerError
from pgshunt.migration.stages import Held
from pgshunt.proxy.channel import Message
from pgshunt.routing.additions import Addition

log = logging.getLogger("pgshunt.admin")


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
        error = failed.sqlstate, f"at {failed.endpoint}: {failed.message}", failed.hint
    except Exception as defect:  # whatever it is, a client waits for the answer
        log.exception("defect in adding columns")
        error = "XX000", f"pgshunt made a mistake: {defect!r}", "See its log."
    return {"type": "added", "question": asked["question"], "error": error}
