"""Asks pgshunt's admin API, as an operator's script would."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

REQUEST_TIMEOUT_S = 30.0
POLL_S = 0.05

T = TypeVar("T")


class ApiError(RuntimeError):
    """The API refused or did not answer; the message carries its problem document."""


class NotSeen(RuntimeError):
    """What the story waits for did not happen in time; the message says what was seen last."""


@dataclass(frozen=True, slots=True)
class Api:
    """The API at `url`. Every method returns decoded JSON and raises ApiError."""

    url: str
    token: str

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, **body: Any) -> Any:
        return self._ask("POST", path, body)

    def is_ready(self) -> bool:
        try:
            self.get("/readyz")
        except ApiError:
            return False
        return True

    def service(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/api/v1/services/{name}"))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
                text = answer.read()
                is_json = "json" in answer.headers.get("Content-Type", "")
                return json.loads(text) if is_json else text.decode()
        except urllib.error.HTTPError as error:
            raise ApiError(
                f"{method} {path}: {error.code} {error.read().decode(errors='replace')}"
            ) from error
        except OSError as error:
            raise ApiError(f"{method} {path}: {error}") from error


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float) -> T:
    """Polls until `look` returns something. Raises NotSeen."""
    deadline = time.monotonic() + timeout_s
    while (seen := look()) is None:
        if time.monotonic() > deadline:
            raise NotSeen(f"{what}: not seen in {timeout_s:g} s")
        time.sleep(POLL_S)
    return seen
