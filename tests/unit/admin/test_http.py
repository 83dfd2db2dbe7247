"""The admin API: every route's protection is taken from the route table, so none can be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pgshunt.admin.events import EventLog
from pgshunt.admin.http import BODY_BYTES_MAX, ROUTES, AdminApi, Document, Route, is_loopback
from pgshunt.admin.metrics import Metrics
from pgshunt.admin.problem import latched, unknown_service
from pgshunt.config.secret import Secret
from pgshunt.routing.table import RoutingTable

TOKEN = "c2VjcmV0"


class Operations:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.not_ready: list[str] = []
        self.called: list[tuple[Any, ...]] = []

    def readiness(self) -> list[str]:
        return self.not_ready

    def status(self) -> Document:
        return {"epoch": 1}

    def services(self) -> list[Document]:
        return [{"name": "auth_service"}]

    def service(self, name: str) -> Document:
        if name != "auth_service":
            raise unknown_service(name, ["auth_service", "dgm_service"])
        return {"name": name}

    def dashboard(self) -> Document:
        return {"services": []}

    async def explain(self, sql: str, service: str, user: str, search_path: str) -> Document:
        return {"sql": sql, "service": service, "as": user, "search_path": search_path}

    def observations(self) -> Document:
        return {"facts": []}

    async def readiness_of(self, name: str) -> Document:
        return self.service(name)

    async def begin(self, name: str) -> Document:
        return self.note("begin", name)

    async def shift(self, name: str, reads_percent: int) -> Document:
        if reads_percent == 99:
            raise latched(name, "latency")
        if reads_percent == 98:
            raise RuntimeError("hidden detail")
        return self.note("shift", name, reads_percent)

    async def rollback(self, name: str, reason: str) -> Document:
        return self.note("rollback", name, reason)

    async def rearm(self, name: str, reason: str) -> Document:
        return self.note("rearm", name, reason)

    async def abandon(self, name: str, target_is_gone: bool) -> Document:
        return self.note("abandon", name, target_is_gone)

    def note(self, *call: Any) -> Document:
        self.called.append(call)
        return {"name": call[1]}


class Api:
    """The API on a free port, and a client that may send the token."""

    def __init__(self, token: str | None) -> None:
        self.operations = Operations()
        self.events = EventLog(None)
        secret = Secret(token) if token else None
        api = AdminApi(self.operations, Metrics(RoutingTable(1, ())), self.events, "127.0.0.1", secret)
        self.runner = web.AppRunner(api.application(), access_log=None)

    async def start(self) -> None:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        self.session = aiohttp.ClientSession()

    async def ask(
        self, method: str, path: str, *, token: str | None = TOKEN, **arguments: Any
    ) -> tuple[int, Any]:
        headers = {**arguments.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        async with self.session.request(method, self.url + path, headers=headers, **arguments) as answer:
            if "json" in answer.content_type:
                return answer.status, await answer.json(content_type=None)
            return answer.status, await answer.text()

    async def close(self) -> None:
        await self.session.close()
        await self.runner.cleanup()


def with_api(scenario: Callable[[Api], Awaitable[None]], token: str | None = TOKEN) -> None:
    async def main() -> None:
        api = Api(token)
        await api.start()
        try:
            await asyncio.wait_for(scenario(api), 30)
        finally:
            await api.close()

    asyncio.run(main())


def path(route: Route) -> str:
    return route.path.replace("{name}", "auth_service")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_route_asks_for_the_token_exactly_when_its_row_says_so(route: Route) -> None:
    async def scenario(api: Api) -> None:
        arguments: dict[str, Any] = {"json": {}} if route.mutates else {}
        for token in (None, "wrong", TOKEN + "x"):
            status, body = await api.ask(route.method, path(route), token=token, **arguments)
            if route.token == "always":
                assert (status, body["type"]) == (401, "urn:pgshunt:problem:unauthorized")
            else:
                assert status == HTTPStatus.OK
        status, _ = await api.ask(route.method, path(route), **arguments)
        assert status not in (401, 403, 404, 405, 500)

    with_api(scenario)


def test_a_token_that_is_no_text_is_wrong() -> None:
    async def scenario(api: Api) -> None:
        host, port = api.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()

    with_api(scenario)


def test_everything_that_changes_something_is_a_post_behind_the_token() -> None:
    for route in ROUTES:
        assert route.mutates == (route.method == "POST")
        assert not route.mutates or route.token == "always"


@pytest.mark.parametrize("route", [r for r in ROUTES if r.mutates], ids=lambda route: route.path)
def test_changes_by_get_or_by_a_form_are_refused(route: Route) -> None:
    async def scenario(api: Api) -> None:
        assert (await api.ask("GET", path(route)))[0] == 405
        status, body = await api.ask("POST", path(route), data={"reads": "50"})
        assert (status, body["type"]) == (415, "urn:pgshunt:problem:not_json")
        assert api.operations.called == []

    with_api(scenario)


def test_without_a_token_only_this_machines_names_are_answered() -> None:
    async def scenario(api: Api) -> None:
        assert (await api.ask("GET", "/api/v1/status", token=None))[0] == 200
        for host, status in (("localhost:1", 200), ("[::1]:1", 200), ("evil.example:1", 421)):
            assert (await api.ask("GET", "/api/v1/status", token=None, headers={"Host": host}))[0] == status

    with_api(scenario, token=None)


def test_an_open_address_needs_a_token() -> None:
    arguments = (Operations(), Metrics(RoutingTable(1, ())), EventLog(None), "0.0.0.0")
    with pytest.raises(ValueError, match="token_file"):
        AdminApi(*arguments, None)
    AdminApi(*arguments, Secret(TOKEN))


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_actions_reach_the_supervisor_with_their_arguments() -> None:
    async def scenario(api: Api) -> None:
        base = "/api/v1/services/auth_service"
        await api.ask("POST", f"{base}/begin", json={})
        await api.ask("POST", f"{base}/shift", json={"reads": 50})
        await api.ask("POST", f"{base}/rollback", json={"reason": "it is late"})
        await api.ask("POST", f"{base}/rearm", json={"reason": "index added"})
        await api.ask("POST", f"{base}/abandon", json={})
        await api.ask("POST", f"{base}/abandon", json={"target_is_gone": True})
        assert api.operations.called == [
            ("begin", "auth_service"),
            ("shift", "auth_service", 50),
            ("rollback", "auth_service", "it is late"),
            ("rearm", "auth_service", "index added"),
            ("abandon", "auth_service", False),
            ("abandon", "auth_service", True),
        ]

    with_api(scenario)


@pytest.mark.parametrize(
    ("action", "body", "status"),
    [
        ("shift", {}, 422),
        ("shift", {"reads": 101}, 422),
        ("shift", {"reads": -1}, 422),
        ("shift", {"reads": "50"}, 422),
        ("shift", {"reads": True}, 422),
        ("shift", {"reads": 50.5}, 422),
        ("shift", {"reads": 50, "force": 1}, 422),
        ("shift", [], 400),
        ("shift", {"reads": 99}, 409),
        ("abandon", {"target_is_gone": 1}, 422),
        ("rearm", {}, 422),
        ("rearm", {"reason": "  "}, 422),
        ("rearm", {"reason": "x" * 501}, 422),
    ],
)
def test_bad_requests_are_told_what_to_do(action: str, body: Any, status: int) -> None:
    async def scenario(api: Api) -> None:
        answered, problem = await api.ask("POST", f"/api/v1/services/auth_service/{action}", json=body)
        assert (answered, problem["status"]) == (status, status)
        assert problem["type"].startswith("urn:pgshunt:problem:")
        assert problem["detail"]
        assert api.operations.called == []

    with_api(scenario)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 30_000,
        b'{"reads": ' * 5_000,
        b'{"reason": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b"1" * 5_000,
    ],
    ids=["torn", "lists", "objects", "not UTF-8", "UTF-16", "number"],
)
def test_a_body_that_is_not_json_is_told_so(body: bytes) -> None:
    async def scenario(api: Api) -> None:
        answered, problem = await api.ask(
            "POST",
            "/api/v1/services/auth_service/rollback",
            data=body,
            headers={"Content-Type": "application/json; charset=nonsense"},
        )
        assert (answered, problem["type"]) == (400, "urn:pgshunt:problem:not_json")
        assert api.operations.called == []

    with_api(scenario)


def test_a_charset_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: Api) -> None:
        answered, _ = await api.ask(
            "POST",
            "/api/v1/services/auth_service/rollback",
            data='{"reason": "naïve"}'.encode(),
            headers={"Content-Type": "application/json; charset=nonsense"},
        )
        assert (answered, api.operations.called) == (200, [("rollback", "auth_service", "naïve")])

    with_api(scenario)


def test_a_latched_service_says_how_to_go_on() -> None:
    async def scenario(api: Api) -> None:
        _, problem = await api.ask("POST", "/api/v1/services/auth_service/shift", json={"reads": 99})
        assert problem["type"] == "urn:pgshunt:problem:latched"
        assert "pgshunt rearm auth_service" in problem["remedy"]

    with_api(scenario)


def test_an_unknown_service_gets_a_suggestion() -> None:
    async def scenario(api: Api) -> None:
        status, problem = await api.ask("GET", "/api/v1/services/auth_servce")
        assert (status, problem["remedy"]) == (404, "did you mean 'auth_service'?")

    with_api(scenario)


def test_an_unknown_path_and_a_huge_body_are_problems_too() -> None:
    async def scenario(api: Api) -> None:
        status, problem = await api.ask("GET", "/api/v1/nothing")
        assert (status, problem["type"]) == (404, "urn:pgshunt:problem:not_found")
        body = b'{"reason": "' + b"x" * BODY_BYTES_MAX + b'"}'
        status, problem = await api.ask(
            "POST",
            "/api/v1/services/auth_service/rearm",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        assert (status, problem["status"]) == (413, 413)

    with_api(scenario)


def test_a_defect_is_answered_without_its_details() -> None:
    async def scenario(api: Api) -> None:
        status, problem = await api.ask("POST", "/api/v1/services/auth_service/shift", json={"reads": 98})
        assert status == 500
        assert "hidden detail" not in str(problem)

    with_api(scenario)


def test_readiness_tells_its_reasons_and_liveness_has_none() -> None:
    async def scenario(api: Api) -> None:
        assert await api.ask("GET", "/readyz") == (200, {"status": "ok", "reasons": []})
        api.operations.not_ready = ["the shared database does not answer"]
        status, body = await api.ask("GET", "/readyz")
        assert (status, body["reasons"]) == (503, ["the shared database does not answer"])
        assert (await api.ask("GET", "/livez"))[0] == 200

    with_api(scenario)


def test_events_can_be_waited_for() -> None:
    async def scenario(api: Api) -> None:
        api.events.add("started")
        _, body = await api.ask("GET", "/api/v1/events")
        assert [event["kind"] for event in body["events"]] == ["started"]
        waiting = asyncio.ensure_future(api.ask("GET", "/api/v1/events?after=1&wait_s=20"))
        await asyncio.sleep(0)
        api.events.add("shifted", "auth_service", reads=50)
        _, body = await waiting
        assert body["events"][0]["detail"] == {"reads": 50}
        assert (await api.ask("GET", "/api/v1/events?after=x"))[0] == 422

    with_api(scenario)


def test_explain_passes_the_statement_on() -> None:
    async def scenario(api: Api) -> None:
        query = {"sql": "SELECT 1 + 1", "service": "auth_service", "as": "auth"}
        status, body = await api.ask("GET", "/api/v1/explain", params=query)
        assert (status, body) == (200, {**query, "search_path": ""})
        assert (await api.ask("GET", "/api/v1/explain"))[0] == 422

    with_api(scenario)
