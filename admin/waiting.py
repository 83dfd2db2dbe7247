"""Waits, over the admin API, until a copy that was begun is whole: woken by events, not by a clock."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any, Final

from pgshunt.admin.client import AdminClient
from pgshunt.admin.problem import Problem, conflict, held

NEWS_S: Final = 20.0
"""How long one question for news stays open; the API answers sooner when there is some."""
ANSWER_S: Final = 10.0
BEGIN_S: Final = 60.0
LAST_ID: Final = 2**53


def copied(client: AdminClient, path: str, timeout_s: float) -> Any:
    """Begins the service at `path` of the API and returns its document once it is copied.

    Raises Problem: what `begin` raises; `held` if the copy stops, `conflict` if somebody abandons it,
    `not_yet` when the time is over. Raises Unreachable.
    """
    end_s = time.monotonic() + timeout_s
    last_id = client.get("/api/v1/events", after=LAST_ID)["last_id"]
    document = client.post(f"{path}/begin", BEGIN_S)
    while document["stage"] == "syncing":
        name = document["name"]
        if document["doing"] == "copying_stopped":
            raise held(document["sentence"], f"then: pgshunt begin {name} --wait")
        if document["doing"].startswith("abandoning"):
            raise conflict(document["sentence"], f"see where it stands: pgshunt status {name}")
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise Problem(
                "not_yet",
                HTTPStatus.GATEWAY_TIMEOUT,
                f"{name} is not copied within {timeout_s:g} s",
                f"the copy goes on, see: pgshunt status {name}",
            )
        wait_s = min(NEWS_S, left_s)
        last_id = client.get("/api/v1/events", wait_s + ANSWER_S, after=last_id, wait_s=wait_s)["last_id"]
        document = client.get(path)
    if document["stage"] == "shared":
        raise conflict(document["sentence"], "it was abandoned meanwhile")
    return document
