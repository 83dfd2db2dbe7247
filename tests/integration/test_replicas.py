"""Reads over replicas of the shared database: by weight and lag, dropped and returned, real servers all."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.fixtures import LOGICAL
from support.serve import Serving, address, configuration

from pgshunt.demo.postgres import PostgresServer, Servers

DBNAME = "postgres"
TABLES = """
CREATE TABLE item (id int PRIMARY KEY);
INSERT INTO item SELECT generate_series(1, 50);
CREATE UNLOGGED TABLE unlogged_item (id int);
INSERT INTO unlogged_item VALUES (7);
CREATE SEQUENCE numbers;
SELECT nextval('numbers')
"""


@dataclass(frozen=True, slots=True)
class Replicated:
    """A primary and two replicas, with a pgshunt in front of them."""

    primary: PostgresServer
    replicas: tuple[PostgresServer, PostgresServer]
    serving: Serving

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        user, password = self.primary.user, self.primary.password
        return psycopg.connect(
            host="127.0.0.1",
            port=self.serving.port,
            dbname=DBNAME,
            user=user,
            password=password,
            autocommit=True,
        )

    def reads(self) -> Counter[str]:
        """Reads answered so far, by endpoint."""
        counted: Counter[str] = Counter()
        for labels, value in self.samples("pgshunt_queries_total"):
            if labels["op"] == "read":
                counted[labels["backend"]] += int(value)
        return counted

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        with urllib.request.urlopen(f"{self.serving.api.url}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return [(one.labels, one.value) for each in families for one in each.samples if one.name == name]

    def readable(self) -> dict[str, bool]:
        return {labels["backend"]: bool(value) for labels, value in self.samples("pgshunt_endpoint_readable")}

    def where(self, client: psycopg.Connection[tuple[Any, ...]], count: int = 60) -> Counter[str]:
        """Where so many reads are routed, as the session itself is told."""
        found: Counter[str] = Counter()
        for _ in range(count):
            assert client.execute("SELECT count(*) FROM item").fetchone() is not None
            found[dict(client.execute("SHOW pgshunt.route").fetchall())["route"]] += 1  # type: ignore[arg-type]
        return found

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        self.serving.until(what, condition)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event["detail"] for event in self.serving.events(kind)]


@pytest.fixture
def replicated(servers: Servers, tmp_path: Path) -> Iterator[Replicated]:
    primary = servers.start("replicated", LOGICAL)
    primary.execute(TABLES)
    replicas = servers.replica(primary, "replica_1"), servers.replica(primary, "replica_2")
    config = configuration(primary, DBNAME)
    config["shared"]["replicas"] = [
        address(replicas[0]) | {"weight": 2},
        address(replicas[1]) | {"weight": 1},
    ]
    with Serving(tmp_path, config) as serving:
        found = Replicated(primary, replicas, serving)
        serving.until("both replicas are watched", lambda: len(found.readable()) == 2)
        with found.connect() as client:
            serving.until(
                "both replicas are fresh",
                lambda: {"shared/1 100 %", "shared/2 100 %"} <= set(found.where(client)),
            )
        yield found


def delay(replica: PostgresServer, by: str) -> None:
    """Commits are replayed so long after they were made."""
    replica.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{by}'")
    replica.execute("SELECT pg_reload_conf()")


def test_the_story_of_two_replicas(replicated: Replicated) -> None:
    """One story, for the servers take longer to start than to be looked at."""
    primary, (first, second) = replicated.primary, replicated.replicas
    with replicated.connect() as client:
        # By weight: 1 to 2 to 1. 6 standard deviations either side.
        found = replicated.where(client, 400)
        assert set(found) == {"shared 100 %", "shared/1 100 %", "shared/2 100 %"}
        assert 140 < found["shared/1 100 %"] < 260
        assert 48 < found["shared/2 100 %"] < 152
        assert client.execute("SHOW pgshunt.route").fetchall()[-2][1].startswith(("replica: ", "baseline: "))
        document = replicated.serving.api.get("/api/v1/explain", sql="SELECT * FROM item")
        shares = {one["endpoint"]: (one["percent"], one["withheld"]) for one in document["candidates"]}
        assert shares == {"shared": (25.0, ""), "shared/1": (50.0, ""), "shared/2": (25.0, "")}
        assert {one["lag_s"] is None for one in document["candidates"]} == {True, False}

        # Its own writes, at once and every time.
        for number in range(100, 160):
            client.execute("INSERT INTO item VALUES (%s)", [number])
            assert client.execute("SELECT max(id) FROM item").fetchone() == (number,)

        # Late: dropped, and the other one goes on.
        delay(first, "3s")
        replicated.until("the late one is dropped", lambda: not replicated.readable()["shared/1"])
        replicated.until("workers know", lambda: "shared/1 100 %" not in replicated.where(client, 20))
        assert set(replicated.where(client)) == {"shared 100 %", "shared/2 100 %"}
        assert [one["endpoint"] for one in replicated.told("reads_dropped")] == ["shared/1"]
        assert replicated.told("reads_dropped")[0]["reason"] == "late"
        assert "shared/1 takes no reads: late" in replicated.serving.status()["warnings"]
        delay(first, "0")
        replicated.until("it returns", lambda: replicated.readable()["shared/1"])
        assert [one["endpoint"] for one in replicated.told("reads_returned")] == ["shared/1"]

        # Down: no read fails.
        second.stop("immediate")
        for _ in range(200):
            client.execute("SELECT count(*) FROM item")
        replicated.until("the lost one is dropped", lambda: not replicated.readable()["shared/2"])
        assert "shared/2 100 %" not in replicated.where(client)
        assert replicated.told("reads_dropped")[-1]["reason"] == "candidate_down"
        second.start()
        replicated.until("it returns too", lambda: replicated.readable()["shared/2"])

        # The heartbeat stops: one fault, told as one, and reads go to the primary.
        before = len(replicated.told("reads_dropped"))
        holder = primary.connect(DBNAME)
        holder.run("BEGIN")
        holder.run("LOCK TABLE pgshunt.heartbeat IN EXCLUSIVE MODE")
        replicated.until("it is noticed", lambda: len(replicated.told("heartbeat_stopped")) == 1)
        replicated.until("workers know", lambda: set(replicated.where(client, 20)) == {"shared 100 %"})
        for _ in range(5):
            assert set(replicated.where(client, 40)) == {"shared 100 %"}
        holder.run("COMMIT")
        holder.close()
        replicated.until("it is back", lambda: len(replicated.told("heartbeat_resumed")) == 1)
        replicated.until("reads are split again", lambda: len(replicated.where(client)) == 3)
        assert len(replicated.told("reads_dropped")) == before
        assert len(replicated.told("heartbeat_stopped")) == 1

        # What a standby cannot do, or tells otherwise, is asked at the primary.
        for _ in range(20):
            assert client.execute("SELECT id FROM unlogged_item").fetchone() == (7,)
            assert client.execute("SELECT last_value FROM numbers").fetchone() == (1,)
        client.execute("SET default_transaction_isolation = serializable")
        for _ in range(20):
            assert client.execute("SELECT count(*) FROM item").fetchone() == (110,)
