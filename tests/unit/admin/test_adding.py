"""Whatever becomes of an addition, the worker that has asked for it is answered."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from pgshunt.admin.adding import answer
from pgshunt.admin.controller import Controller
from pgshunt.migration.altering import Impossible
from pgshunt.migration.servers import ServerError
from pgshunt.migration.stages import Held
from pgshunt.routing.additions import Addition, Column

ADDITION = Addition("public.t", (Column("a", "pg_catalog.int4", False),))


class Ending:
    """A controller that adds nothing, or fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked: list[tuple[Addition, str]] = []

    async def add_columns(self, addition: Addition, user: str) -> list[str]:
        self.asked.append((addition, user))
        if self.error:
            raise self.error
        return []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, None),
        (Impossible("42701", "it is there", "look"), ("42701", "it is there", "look")),
        (ServerError("own_db", "55P03", "locked"), ("55P03", "at own_db: locked", "")),
        (
            Held("svc is being copied"),
            ("0A000", "svc is being copied", "See where it stands: pgshunt status"),
        ),
        (
            KeyError("x"),
            ("XX000", "pgshunt made a mistake while it added columns", "Its log has the reason."),
        ),
    ],
)
def test_every_end_is_an_answer(error: Exception | None, told: Any) -> None:
    controller = Ending(error)
    asked = {"type": "add", "question": "q", "user": "ada", "addition": ADDITION.to_dict()}
    found = asyncio.run(answer(asked, cast(Controller, controller)))
    assert found == {"type": "added", "question": "q", "error": told}
    assert controller.asked == [(ADDITION, "ada")]
