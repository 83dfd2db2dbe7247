"""Runs the story: makes its world, plays it, cleans up, and shows what was seen."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pgshunt.demo import evidence
from pgshunt.demo.faults import AUTH
from pgshunt.demo.observed import Record
from pgshunt.demo.operator import Operator
from pgshunt.demo.story import Story
from pgshunt.demo.view import Lines, Picture, narrator
from pgshunt.demo.workload import Workload
from pgshunt.demo.world import LAG_MS_MAX, Databases, Proxy, last_words, running_databases, running_proxy

PAUSE_S = 4.0


def run(fast: bool, as_json: bool) -> int:
    """Plays the story; 0 only if every step of it was observed. With `as_json` the document ends stdout.

    Leaves no process and no file behind, also when it fails or is interrupted (then 130).
    """
    show = narrator(sys.stderr if as_json else sys.stdout)
    record = Record(show)
    code = 1
    try:
        with _interruptible(), running_databases() as databases:
            pids = [server.pid for server in databases.servers.members]
            _started(record, databases)
            with running_proxy(databases) as proxy:
                _play(record, databases, proxy, show, 0.0 if fast else PAUSE_S)
        _cleaned_up(record, databases.servers.directory, [*pids, proxy.process.pid], proxy.process.returncode)
    except KeyboardInterrupt:
        record.problem, code = "interrupted", 130
    except Exception as error:  # noqa: BLE001 - whatever ends the story belongs in its document
        record.problem = f"{type(error).__name__}: {error}"
    if record.problem:
        show.say("\n".join([record.problem, *record.last_words]))
    if as_json:
        print(json.dumps(record.to_document(), indent=2, default=str))
    return 0 if record.ok else code


def _play(record: Record, databases: Databases, proxy: Proxy, show: Lines | Picture, pause_s: float) -> None:
    operator = Operator(proxy.api, AUTH.name, AUTH.database)
    workload = Workload(proxy.host, proxy.port, databases.passwords, LAG_MS_MAX)
    show.follow(proxy.api)
    try:
        Story(record, databases, workload, operator, pause_s).play()
    except Exception:
        record.last_words = last_words(proxy)
        raise
    finally:
        show.unfollow()
        workload.stop()


def _started(record: Record, databases: Databases) -> None:
    [[version]] = databases.shared.execute("SHOW server_version")
    [[replicas]] = databases.auth.execute(
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    )
    record.observe(
        "started",
        "PostgreSQL servers run",
        f"{len(databases.servers.members)} of version {version}, one of them a replica of auth_db",
        replicas == 1,
        postgresql=version,
        servers=len(databases.servers.members),
        replicas_of_auth_db=replicas,
        audit_entries=evidence.audit_entries(databases.shared),
    )


def _cleaned_up(record: Record, directory: Path, pids: Sequence[int | None], exit_code: int) -> None:
    running = [pid for pid in pids if pid is not None and _is_running(pid)]
    record.observe(
        "cleaned_up",
        "cleaned up",
        f"the proxy ended with {exit_code}; "
        + (
            f"still there: {[*running, directory]}"
            if running or directory.exists()
            else "no process and no file is left"
        ),
        not running and not directory.exists() and exit_code == 0,
        processes=running,
        directory_exists=directory.exists(),
        proxy_exit_code=exit_code,
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, or a terminal that closes, ends the story as Ctrl-C does: with everything cleaned up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
