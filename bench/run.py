"""Measures pgshunt beside PgBouncer and a direct connection, in one run, and keeps the result.

make bench                      everything, about 15 minutes
make bench ARGS=--quick         one short round of everything
make bench ARGS="--modes simple --clients 16 --targets pgshunt pgbouncer --only throughput"
make bench ARGS="--targets pgshunt-tls pgbouncer-tls"          clients with TLS
"""

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import idle
import machine
import micro
from load import DBNAME, MODES, Pgbench, PgbenchFailed, Round, find_pgbench, percentile
from processes import cpu_us, family
from targets import STARTERS, USUAL, Target, TargetFailed, pgbouncer_version, started

from pgshunt.demo.postgres import PostgresServer, ServerFailed, Servers

RESULTS = Path(__file__).parent / "results"
CLIENTS = (1, 16, 64)
PARTS = ("throughput", "idle", "micro")
REFERENCES = ("pgbouncer", "pgbouncer-tls")
"""What a target is compared with: without encryption, and with."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table: a target in one mode with so many clients, over all rounds."""

    mode: str
    clients: int
    target: str
    tps: float
    """Median of the rounds."""
    p50_us: int
    p99_us: int
    cpu_us_per_transaction: float | None
    """Of all processes of the proxy; None without one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and what to measure."""

    modes: Sequence[str]
    clients: Sequence[int]
    targets: Sequence[str]
    rounds: int
    seconds: int


def throughput(plan: Plan, pgbench: Pgbench, servers: Servers, server: PostgresServer) -> list[Cell]:
    """Every cell of the plan. Targets take turns in short rounds, each round starting with another one."""
    cells: list[Cell] = []
    print(HEADER)
    with started(plan.targets, servers, server) as targets:
        for mode, clients in product(plan.modes, plan.clients):
            able = [target for target in targets if target.supports(mode)]
            rounds: dict[str, list[tuple[Round, int]]] = {target.name: [] for target in able}
            for number in range(plan.rounds):
                turn = number % len(able)
                for target in able[turn:] + able[:turn]:
                    rounds[target.name].append(_round(pgbench, target, mode, clients, plan.seconds))
            measured = [_cell(mode, clients, target, rounds[target.name]) for target in able]
            _print(measured)
            cells += measured
        for target in targets:
            if not all(target.supports(mode) for mode in plan.modes):
                print(f"{target.name} keeps no prepared statements in transaction mode: n/a")
    return cells


def _round(pgbench: Pgbench, target: Target, mode: str, clients: int, seconds: int) -> tuple[Round, int]:
    before = cpu_us(family(target.root)) if target.root else 0
    measured = pgbench.select_only(target.port, mode, clients, seconds, encrypted=target.is_encrypted)
    return measured, cpu_us(family(target.root)) - before if target.root else 0


def _cell(mode: str, clients: int, target: Target, rounds: list[tuple[Round, int]]) -> Cell:
    latencies = [latency for measured, _ in rounds for latency in measured.latencies_us]
    transactions = sum(measured.transactions for measured, _ in rounds)
    cpu = sum(used for _, used in rounds)
    return Cell(
        mode,
        clients,
        target.name,
        round(statistics.median(measured.tps for measured, _ in rounds), 1),
        percentile(latencies, 50),
        percentile(latencies, 99),
        round(cpu / transactions, 2) if target.root else None,
    )


LINE = "{:10}{:>8}  {:15}{:>9}{:>9}{:>9}{:>11}{:>8}"
HEADER = LINE.format("mode", "clients", "target", "tps", "p50 µs", "p99 µs", "CPU µs/tx", "CPU ×")


def _print(cells: list[Cell]) -> None:
    """One block of the table; the last column compares CPU per transaction with PgBouncer's."""
    references = {cell.target: cell.cpu_us_per_transaction for cell in cells if cell.target in REFERENCES}
    for cell in cells:
        cpu = cell.cpu_us_per_transaction
        reference = references.get(REFERENCES[cell.target.endswith("-tls")])
        ratio = f"{cpu / reference:.2f}" if cpu and reference else ""
        figures = (f"{cell.tps:.0f}", cell.p50_us, cell.p99_us, "" if cpu is None else f"{cpu:.1f}", ratio)
        print(LINE.format(cell.mode, cell.clients, cell.target, *figures))
    print(flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, 1000 idle clients")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS)
    parser.add_argument("--targets", nargs="+", choices=tuple(STARTERS), default=USUAL)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--rounds", type=int, help="of each cell (3)")
    parser.add_argument("--seconds", type=int, help="of each round (5)")
    return parser.parse_args()


def main() -> int:
    """Runs the chosen parts, prints them, and writes them to bench/results."""
    arguments = _arguments()
    rounds, seconds, idle_clients = (1, 2, 1000) if arguments.quick else (3, 5, idle.CLIENTS)
    plan = Plan(
        arguments.modes,
        arguments.clients,
        arguments.targets,
        arguments.rounds or rounds,
        arguments.seconds or seconds,
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # inherited by the proxies
    result: dict[str, Any] = {"machine": machine.facts(), "plan": asdict(plan)}
    with Servers() as servers:
        server = servers.start("bench", {"max_connections": "200", "shared_buffers": "256MB"}, method="trust")
        result["machine"]["postgresql"] = server.execute("SHOW server_version")[0][0]
        result["machine"]["pgbouncer"] = ".".join(map(str, pgbouncer_version() or ("none",)))
        for dbname in (DBNAME, "bench_copy"):
            server.create_database(dbname)
        pgbench = Pgbench(find_pgbench(servers.binaries), servers.directory)
        pgbench.initialise(server.port)
        print("\n".join(f"{name}: {fact}" for name, fact in result["machine"].items()), end="\n\n")
        if "throughput" in arguments.only:
            result["throughput"] = [asdict(cell) for cell in throughput(plan, pgbench, servers, server)]
        if "idle" in arguments.only:
            with started([name for name in plan.targets if name != "direct"], servers, server) as targets:
                result["idle"] = [asdict(idle.measure(target, idle_clients)) for target in targets]
            idle.report(result["idle"])
    if "micro" in arguments.only:
        result["micro"] = micro.measure()
        micro.report(result["micro"])
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{result['machine']['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    name = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"written to {name}: commit it with what quotes it, or remove it")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (TargetFailed, PgbenchFailed, ServerFailed, FileNotFoundError) as failure:
        sys.exit(f"bench: {failure}")
