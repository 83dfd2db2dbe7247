"""What was seen of crossings is kept, whatever it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pgshunt.admin.observing import Observing
from pgshunt.config.model import Control
from pgshunt.routing.table import Endpoint

ENDPOINT = Endpoint("shared", "shared", "127.0.0.1", 1, "monolith", "primary")


def test_a_client_whose_name_is_no_text_keeps_nothing_from_being_saved(tmp_path: Path) -> None:
    row = ["statement", "SELECT", ["public.a", "public.b"], [], "m\udcfcller", "shop \udcff", 3]

    async def scenario() -> None:
        observing = Observing(tmp_path / "observed.json", ENDPOINT, Control(user="pgshunt"))
        observing.take({"crossings": [row], "crossings_dropped": 0})
        await observing.save()
        await observing.close()
        assert observing.error == ""
        again = Observing(tmp_path / "observed.json", ENDPOINT, Control(user="pgshunt"))
        assert again.observed.to_document()["facts"][0]["callers"] == [["m\udcfcller", "shop \udcff", 3]]
        await again.close()

    asyncio.run(scenario())
