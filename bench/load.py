"""Runs pgbench for one short round and says what came out."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgshunt.demo.postgres import Binaries

MODES = ("simple", "extended", "prepared")
SCALE = 10
USER = "postgres"
DBNAME = "bench"
LOG_SHARE = 0.2
"""Share of the transactions whose latency is kept: enough for a p99, and cheap for pgbench."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one run of pgbench measured."""

    transactions: int
    seconds: float
    latencies_us: tuple[int, ...]
    """Of a sample of the transactions."""

    @property
    def tps(self) -> float:
        return self.transactions / self.seconds


class PgbenchFailed(RuntimeError):
    """pgbench did not end well; the message carries what it printed."""


@dataclass(frozen=True, slots=True)
class Pgbench:
    """The pgbench program and a directory for its logs."""

    program: str
    directory: Path

    def initialise(self, port: int) -> None:
        """Makes pgbench's tables in the database `bench`. Raises PgbenchFailed."""
        self._run("-i", "-q", "-s", str(SCALE), port=port)

    def select_only(
        self, port: int, mode: str, clients: int, seconds: int, *, encrypted: bool = False
    ) -> Round:
        """`pgbench -S` for a time. Raises PgbenchFailed, also if a single client was lost."""
        prefix = self.directory / "latency"
        output = self._run(
            *("-n", "-S", "-M", mode, "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(seconds)),
            *("-l", "--log-prefix", str(prefix), "--sampling-rate", str(LOG_SHARE)),
            port=port,
            sslmode="require" if encrypted else "disable",
        )
        logs = sorted(self.directory.glob("latency.*"))
        # Third field of a line: the time of the transaction in µs.
        latencies = tuple(int(line.split()[2]) for log in logs for line in log.read_text().splitlines())
        for log in logs:
            log.unlink()
        tps = _number(r"tps = ([\d.]+)", output)
        transactions = int(_number(r"transactions actually processed: (\d+)", output))
        return Round(transactions, transactions / tps, latencies)

    def _run(self, *arguments: str, port: int, sslmode: str = "disable") -> str:
        command = [self.program, "-h", "127.0.0.1", "-p", str(port), "-U", USER, *arguments, DBNAME]
        environment = os.environ | {"PGSSLMODE": sslmode}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.directory, env=environment)
        if done.returncode != 0 or "aborted" in done.stderr:
            raise PgbenchFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout


def find_pgbench(binaries: Binaries) -> str:
    """The pgbench of the server's installation, else the one on PATH. Raises FileNotFoundError."""
    beside = Path(binaries.program("pgbench"))
    found = str(beside) if beside.is_file() else shutil.which("pgbench")
    if found is None:
        raise FileNotFoundError("pgbench not found: run make bench-tools")
    return found


def percentile(values: Sequence[int], percent: float) -> int:
    """The smallest value that at least `percent` of `values` do not exceed; 0 for none."""
    if not values:
        return 0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise PgbenchFailed(f"no {pattern!r} in what pgbench printed:\n{text}")
    return float(match[1])
