"""What was seen of crossings is kept, whatever it holds."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from pgshunt.admin import observing as module
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


def test_a_disk_that_hangs_is_told_and_the_next_save_that_succeeds_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, write = threading.Event(), module.write_private

    def hanging(path: Path, content: bytes) -> None:
        answer.wait()
        write(path, content)

    async def scenario() -> None:
        observing = Observing(tmp_path / "observed.json", ENDPOINT, Control(user="pgshunt"))
        await observing.save(0.01)
        assert observing.error == f"{tmp_path / 'observed.json'}: the disk does not answer"
        answer.set()
        await observing.save()
        assert observing.error == ""
        await observing.close()

    monkeypatch.setattr(module, "write_private", hanging)
    asyncio.run(scenario())
