"""Whether a service's own server reaches the shared database is found out before a lane is made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.certificates import Authority, start_encrypting
from support.fixtures import Database
from support.moving import CONTROL, databases, endpoint
from support.serve import address, configuration

from pgshunt.admin.cli import Exit, main
from pgshunt.config.model import ServerTls
from pgshunt.demo.postgres import Server as Postgres
from pgshunt.demo.postgres import Servers
from pgshunt.migration.dump import DumpFailed, dump_script, find_programs
from pgshunt.migration.heartbeat import Heartbeat
from pgshunt.migration.mover import Mover, Options, PreflightFailed
from pgshunt.migration.reaching import connection_of, reach
from pgshunt.migration.servers import Server
from pgshunt.routing.table import Endpoint, Service


@dataclass(frozen=True, slots=True)
class Verifying:
    """A shared database with TLS, whose certificate the own one's server has no authority to verify by."""

    shared: Database
    own: Database
    authority: Path

    def source(self) -> Endpoint:
        tls = ServerTls.model_validate({"mode": "verify-full", "ca_file": self.authority})
        return replace(endpoint(self.shared, "shared"), tls=tls)


@pytest.fixture
def pair(postgres_pair: tuple[Postgres, Postgres]) -> Iterator[tuple[Database, Database]]:
    with databases(postgres_pair, "reaching") as both:
        yield both


@pytest.fixture(scope="module")
def verifying(servers: Servers, postgres_pair: tuple[Postgres, Postgres]) -> Iterator[Verifying]:
    directory = servers.directory / "verified_by"
    directory.mkdir()
    authority = Authority(directory)
    issued = authority.issue("server", "shared", "127.0.0.1", "localhost")
    settings = {"ssl_cert_file": str(issued.certificate), "ssl_key_file": str(issued.key)}
    own = (directory, issued.certificate, issued.key)
    server = start_encrypting(servers, "verified", {**settings, "wal_level": "logical"}, own)
    with databases((server, postgres_pair[1]), "verifying") as (shared, target):
        shared.execute("CREATE TABLE users (id int PRIMARY KEY)")
        yield Verifying(shared, target, authority.file)
    server.stop("immediate")


def subscriptions(database: Database) -> int:
    return int(database.execute("SELECT count(*) FROM pg_subscription WHERE subname LIKE '%reaching'")[0][0])


async def asked(source: Endpoint, own: Endpoint) -> Any:
    server = Server(own, CONTROL, "test")
    try:
        connection = connection_of(source, CONTROL)
        return await server.run(partial(reach, connection=connection, name="100% reaching"))
    finally:
        await server.close()


def test_nothing_is_left_of_what_is_tried(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    assert asyncio.run(asked(endpoint(shared, "shared"), endpoint(own, "own_db"))) is None
    assert subscriptions(own) == 0
    wrong = replace(endpoint(shared, "shared"), port=1)
    refusal = asyncio.run(asked(wrong, endpoint(own, "own_db")))
    assert "its server cannot log in to the shared database" in refusal.message
    assert "port 1 failed" in refusal.message
    assert (
        refusal.remedy
        == "host and port under `shared` must mean the same there, and pg_hba.conf must let it in"
    )
    assert subscriptions(own) == 0


def test_preflight_names_a_root_certificate_that_is_not_there(verifying: Verifying) -> None:
    own = endpoint(verifying.own, "own_db")
    mover = Mover(
        Service("auth", "own_db", ("public.users",)),
        verifying.source(),
        (1, own),
        CONTROL,
        Heartbeat(verifying.source(), CONTROL, lambda index, at_ns: None),
        Options(),
        lambda kind, detail: None,
        lambda result: None,
        lambda tables: asyncio.sleep(0),
    )

    async def scenario() -> None:
        try:
            assert await mover.preflight(()) == []
            await mover.require_reachable()
        finally:
            await mover.close()

    with pytest.raises(PreflightFailed) as failed:
        asyncio.run(scenario())
    (problem,) = failed.value.problems
    assert problem.subject == "own database"
    assert 'root certificate file "' in problem.message and "root.crt" in problem.message
    assert problem.remedy.startswith("put the certificate of the shared database's authority there")


def test_the_schema_is_read_by_the_system_s_authorities_where_no_others_are_named(
    verifying: Verifying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_dump would look for a root.crt of ours, and find none."""

    async def dumped(mode: str) -> str:
        tls = ServerTls.model_validate({"mode": mode, "channel_binding": "require"})
        source = replace(verifying.source(), tls=tls)
        return await dump_script(await find_programs(14), source, CONTROL, lambda entry: True)

    monkeypatch.setenv("SSL_CERT_FILE", str(verifying.authority))
    for mode in ("verify-ca", "verify-full"):
        assert "CREATE TABLE public.users" in asyncio.run(dumped(mode))
    (tmp_path / f"{'0' * 8}.0").write_bytes(verifying.authority.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert "CREATE TABLE public.users" in asyncio.run(dumped("verify-full"))
    monkeypatch.setenv("SSL_CERT_DIR", "/nowhere")
    with pytest.raises(DumpFailed, match="certificate"):
        asyncio.run(dumped("verify-full"))


def test_check_names_it_too(
    verifying: Verifying,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert CONTROL.password is not None
    config = configuration(verifying.shared.server, verifying.shared.dbname)
    config["control"] = {"user": CONTROL.user, "password": CONTROL.password.reveal()}
    config["shared"]["tls"] = {"mode": "verify-full", "ca_file": str(verifying.authority)}
    own = {"primary": address(verifying.own.server), "dbname": verifying.own.dbname}
    config["databases"] = {"auth_db": own, "unused_db": {"primary": {"host": "127.0.0.1", "port": 1}}}
    config["services"] = {"auth": {"database": "auth_db", "tables": ["users"]}}

    def checked() -> tuple[int, list[str]]:
        path = tmp_path / "pgshunt.yaml"
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setattr("sys.argv", ["pgshunt", "check", "-c", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err.splitlines()

    code, (said, *more) = checked()
    assert (code, more) == (Exit.USAGE, [])
    assert ": databases.auth_db.primary: its server cannot log in to the shared database" in said
    assert 'root certificate file "' in said and ".yaml:" in said
    config["shared"]["tls"]["mode"] = "require"
    assert checked() == (Exit.OK, [])
    config["shared"]["tls"]["ca_file"] = str(tmp_path / "nowhere.crt")
    code, (said, *_) = checked()
    assert code == Exit.USAGE
    assert "shared.tls.ca_file" in said and "No such file or directory" in said
