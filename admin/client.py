"""Calls the admin API for the command line: answers become values, refusals a Problem."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from pgshunt.admin.problem import Problem
from pgshunt.config.secret import Secret

TIMEOUT_S = 10.0


class Unreachable(Exception):
    """Nobody answers at the admin address; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class AdminClient:
    """`url` as in http://127.0.0.1:6433; `token_source`: where the token was found, for messages."""

    url: str
    token: Secret | None = None
    token_source: str = ""

    def get(self, path: str, timeout_s: float = TIMEOUT_S, /, **query: str | float) -> Any:
        """The JSON answer. Raises Problem, Unreachable."""
        asked = {name: value for name, value in query.items() if value != ""}
        return self._ask("GET", f"{path}?{urlencode(asked)}" if asked else path, None, timeout_s)

    def post(self, path: str, timeout_s: float = TIMEOUT_S, /, **body: Any) -> Any:
        """Asks for a change. Raises Problem, Unreachable."""
        return self._ask("POST", path, json.dumps(body), timeout_s)

    def _ask(self, method: str, path: str, body: str | None, timeout_s: float) -> Any:
        connection, folder = self._connection(timeout_s)
        headers = {"Content-Type": b"application/json"} if body is not None else {}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.reveal()}".encode()
        try:
            connection.request(method, folder + path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError:
            raise Unreachable(
                f"{self.url} did not answer within {timeout_s:g} s: what was asked for may go on, "
                "see `pgshunt status` and `pgshunt events`"
            ) from None
        except ValueError:  # which shows the header it does not like
            raise Unreachable(
                f"the token of {self.token_source} cannot be sent: it has control characters"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"no answer from the admin API at {self.url} ({error}): is `pgshunt serve` running? "
                "Give its address with -c or --url"
            ) from error
        finally:
            connection.close()
        try:
            return _value(answer.status, text, self.url)
        except Problem as problem:
            if problem.status is HTTPStatus.UNAUTHORIZED:
                problem.remedy = self._token_remedy()
                problem.more = {"answer": {**problem.more["answer"], "remedy": problem.remedy}}
            raise

    def _connection(self, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
        """Not open yet; with the path that stands before all others."""
        try:
            parts = urlsplit(self.url)
            kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
            if parts.scheme in kinds and parts.hostname:
                connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout_s)
                return connection, parts.path.rstrip("/")
        except (ValueError, http.client.InvalidURL):
            pass
        raise Unreachable(f"{self.url!r} is no address: write http://host:port")

    def _token_remedy(self) -> str:
        """Says which token was sent: of several sources one has won."""
        if self.token is None:
            return "no token was sent: give one with -c, --token-file or PGSHUNT_ADMIN_TOKEN"
        return f"the token of {self.token_source} was sent: give the one that {self.url} is configured with"


def _value(status: int, text: bytes, url: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        raise Unreachable(f"{url} answers, but not as pgshunt's admin API: check address and port") from None
    if status < HTTPStatus.BAD_REQUEST:
        return value
    if not isinstance(value, dict):
        raise Unreachable(f"{url} answers {status}, but not as pgshunt's admin API: check address and port")
    kind = str(value.get("type", "")).rpartition(":")[2]
    raise Problem(
        kind,
        HTTPStatus(status),
        str(value.get("detail", "")),
        str(value.get("remedy", "")),
        {"answer": value},
    )
