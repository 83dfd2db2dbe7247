"""The admin HTTP API: a table of routes, bearer token, problem documents.

Changes are POST with a JSON body only, which a web page cannot send to another site unasked. Without a token
the API is for this machine alone: it refuses to listen on any other address, and answers only requests that
name this machine as their Host, so that a web page cannot reach it under a name of its own (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, Protocol

from aiohttp import web

from pgshunt.admin.events import EventLog
from pgshunt.admin.metrics import Metrics
from pgshunt.admin.problem import CONTENT_TYPE, Problem, bad_value
from pgshunt.config.secret import Secret

BODY_BYTES_MAX = 64 * 1024
EVENTS_WAIT_S_MAX = 30.0
EVENTS_MAX = 500
REASON_CHARACTERS_MAX = 500

log = logging.getLogger("pgshunt.admin")

Token = Literal["never", "remote", "always"]
"""When a route asks for the token; "remote": unless the API listens on loopback only."""

Document = dict[str, Any]


class Operations(Protocol):
    """What the supervisor lets an operator see and do. Every method may raise Problem."""

    def readiness(self) -> list[str]:
        """What keeps it from serving; empty when it is ready."""

    def status(self) -> Document: ...

    def services(self) -> list[Document]: ...

    def service(self, name: str) -> Document: ...

    def dashboard(self) -> Document: ...

    async def explain(self, sql: str, service: str, user: str, search_path: str) -> Document: ...

    def observations(self) -> Document: ...

    async def readiness_of(self, name: str) -> Document: ...

    async def begin(self, name: str) -> Document: ...

    async def shift(self, name: str, reads_percent: int) -> Document: ...

    async def rollback(self, name: str, reason: str) -> Document: ...

    async def rearm(self, name: str, reason: str) -> Document: ...

    async def abandon(self, name: str, target_is_gone: bool) -> Document: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One row: who may call it, whether it changes anything, and the method of AdminApi that answers."""

    method: Literal["GET", "POST"]
    path: str
    handler: str
    token: Token
    mutates: bool = False


ROUTES = (
    Route("GET", "/livez", "livez", "never"),
    Route("GET", "/readyz", "readyz", "never"),
    Route("GET", "/metrics", "metrics", "remote"),
    Route("GET", "/api/v1/status", "status", "always"),
    Route("GET", "/api/v1/services", "services", "always"),
    Route("GET", "/api/v1/services/{name}", "service", "always"),
    Route("GET", "/api/v1/services/{name}/readiness", "readiness", "always"),
    Route("GET", "/api/v1/observations", "observations", "always"),
    Route("POST", "/api/v1/services/{name}/begin", "begin", "always", mutates=True),
    Route("POST", "/api/v1/services/{name}/shift", "shift", "always", mutates=True),
    Route("POST", "/api/v1/services/{name}/rollback", "rollback", "always", mutates=True),
    Route("POST", "/api/v1/services/{name}/rearm", "rearm", "always", mutates=True),
    Route("POST", "/api/v1/services/{name}/abandon", "abandon", "always", mutates=True),
    Route("GET", "/api/v1/events", "events", "always"),
    Route("GET", "/api/v1/explain", "explain", "always"),
    Route("GET", "/api/v1/dashboard", "dashboard", "always"),
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address: a name counts when all it resolves to is loopback."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


class AdminApi:
    """The application. Raises ValueError when it would stand open to other machines."""

    def __init__(
        self, operations: Operations, metrics: Metrics, events: EventLog, host: str, token: Secret | None
    ) -> None:
        self._operations = operations
        self._metrics = metrics
        self._events = events
        self.token = token
        self._is_loopback = is_loopback(host)
        if token is None and not self._is_loopback:
            raise ValueError(
                f"admin.host {host} can be reached from other machines: set admin.token_file or "
                "admin.token_env, or listen on 127.0.0.1"
            )

    def application(self) -> web.Application:
        """For a web.AppRunner."""
        application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_problems])
        for route in ROUTES:
            application.router.add_route(route.method, route.path, self._guarded(route))
        return application

    def _guarded(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]] = getattr(
            self, f"_answer_{route.handler}"
        )

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._authorize(request, route)
            if route.mutates and request.content_type != "application/json":
                raise Problem(
                    "not_json",
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "changes are asked for in JSON",
                    "send Content-Type: application/json and a JSON object, {} if there is nothing to say",
                )
            return await handler(request)

        return guarded

    def _authorize(self, request: web.Request, route: Route) -> None:
        if self.token is None:
            if not _names_this_machine(request.host):
                raise Problem(
                    "wrong_host",
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"{request.host!r} is not a name of this machine's loopback",
                    "use 127.0.0.1 or localhost, or configure admin.token_file",
                )
            return
        if route.token == "never" or (route.token == "remote" and self._is_loopback):
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self.token.matches(given.strip()):
            raise Problem(
                "unauthorized",
                HTTPStatus.UNAUTHORIZED,
                "the bearer token is missing or wrong",
                "send Authorization: Bearer and the token that this pgshunt is configured with under `admin`",
            )

    # -- reading --------------------------------------------------------------------------------------

    async def _answer_livez(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _answer_readyz(self, request: web.Request) -> web.Response:
        reasons = self._operations.readiness()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        body = {"status": "not ready" if reasons else "ok", "reasons": reasons}
        return web.json_response(body, status=status)

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.exposition(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _answer_status(self, request: web.Request) -> web.Response:
        return web.json_response(self._operations.status())

    async def _answer_services(self, request: web.Request) -> web.Response:
        return web.json_response({"services": self._operations.services()})

    async def _answer_service(self, request: web.Request) -> web.Response:
        return web.json_response(self._operations.service(request.match_info["name"]))

    async def _answer_readiness(self, request: web.Request) -> web.Response:
        return web.json_response(await self._operations.readiness_of(request.match_info["name"]))

    async def _answer_observations(self, request: web.Request) -> web.Response:
        return web.json_response(self._operations.observations())

    async def _answer_dashboard(self, request: web.Request) -> web.Response:
        return web.json_response(self._operations.dashboard())

    async def _answer_events(self, request: web.Request) -> web.Response:
        after = _number(request.query, "after", 0, 2**53)
        wait_s = _number(request.query, "wait_s", 0, EVENTS_WAIT_S_MAX)
        events = await self._events.news(int(after), wait_s) if wait_s else self._events.after(int(after))
        found = [event.to_dict() for event in events[:EVENTS_MAX]]
        return web.json_response({"events": found, "last_id": self._events.last_id})

    async def _answer_explain(self, request: web.Request) -> web.Response:
        sql = request.query.get("sql", "")
        if not sql.strip():
            raise bad_value("there is no SQL to explain", "add ?sql=SELECT…")
        service, user, path = (request.query.get(name, "") for name in ("service", "as", "search_path"))
        return web.json_response(await self._operations.explain(sql, service, user, path))

    # -- changing -------------------------------------------------------------------------------------

    async def _answer_begin(self, request: web.Request) -> web.Response:
        await _body(request, {})
        return web.json_response(await self._operations.begin(request.match_info["name"]))

    async def _answer_abandon(self, request: web.Request) -> web.Response:
        body = await _body(request, {"target_is_gone": bool})
        gone = bool(body.get("target_is_gone", False))
        return web.json_response(await self._operations.abandon(request.match_info["name"], gone))

    async def _answer_shift(self, request: web.Request) -> web.Response:
        body = await _body(request, {"reads": int})
        reads = body.get("reads")
        if not isinstance(reads, int) or not 0 <= reads <= 100:
            raise bad_value(
                "reads is missing or not a whole percentage", 'send {"reads": n} with n from 0 to 100'
            )
        return web.json_response(await self._operations.shift(request.match_info["name"], reads))

    async def _answer_rollback(self, request: web.Request) -> web.Response:
        body = await _body(request, {"reason": str})
        reason = _reason(body, required=False)
        return web.json_response(await self._operations.rollback(request.match_info["name"], reason))

    async def _answer_rearm(self, request: web.Request) -> web.Response:
        body = await _body(request, {"reason": str})
        reason = _reason(body, required=True)
        return web.json_response(await self._operations.rearm(request.match_info["name"], reason))


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whatever goes wrong is answered with a problem document; the unforeseen without its details."""
    try:
        return await handler(request)
    except Problem as problem:
        return _answer(problem)
    except web.HTTPException as error:
        status = HTTPStatus(error.status)
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _answer(Problem(status.name.lower(), status, error.reason), allowed)
    except Exception:  # one request's defect must not end the connection without an answer
        log.exception("defect in %s %s", request.method, request.path)
        return _answer(
            Problem("defect", HTTPStatus.INTERNAL_SERVER_ERROR, "pgshunt made a mistake", "see its log")
        )


def _answer(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    challenge = {"WWW-Authenticate": "Bearer"} if problem.status is HTTPStatus.UNAUTHORIZED else {}
    return web.json_response(
        problem.to_dict(),
        status=problem.status,
        content_type=CONTENT_TYPE,
        headers={**challenge, **(headers or {})},
    )


def _names_this_machine(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _number(query: Mapping[str, str], name: str, least: float, most: float) -> float:
    try:
        number = float(query.get(name, least))
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise bad_value(f"{name} is no number from {least:g} to {most:g}", "correct or leave it out")
    return number


async def _body(request: web.Request, fields: Mapping[str, type]) -> Document:
    """The JSON object sent, if it has no other keys than these."""
    try:
        body = json.loads((await request.read()).decode() or "{}")  # JSON is UTF-8, whatever the charset says
    except (ValueError, RecursionError) as error:
        raise Problem("not_json", HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Problem("not_json", HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    for name, value in body.items():
        if name not in fields:
            raise bad_value(f"{name!r} is not known here", f"fields: {', '.join(fields) or 'none'}")
        if type(value) is not fields[name]:  # a bool is an int to isinstance
            raise bad_value(f"{name} has the wrong type", f"send a {fields[name].__name__}")
    return body


def _reason(body: Document, *, required: bool) -> str:
    reason = str(body.get("reason", "")).strip()
    if required and not reason:
        raise bad_value("reason is missing", 'say why it is safe again: {"reason": "…"}')
    if len(reason) > REASON_CHARACTERS_MAX:
        raise bad_value("reason is too long", f"at most {REASON_CHARACTERS_MAX} characters")
    return reason
