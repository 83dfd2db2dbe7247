"""Runs a supervisor as this process: its signals, its log, its exit code.

SIGTERM and SIGINT drain (a second one ends at once), SIGHUP reloads the configuration, SIGQUIT ends at once.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from pgshunt.admin.logs import log_aside
from pgshunt.admin.supervisor import Supervisor
from pgshunt.config import Config


def run(config: Config, path: Path) -> int:
    """Serves until told to stop; the exit code. Raises StartFailed."""
    with log_aside():
        return asyncio.run(_serve(config, path))


async def _serve(config: Config, path: Path) -> int:
    supervisor = Supervisor(config, path)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGQUIT, supervisor.quit)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload_soon)
    try:
        await supervisor.start()
        await supervisor.run()
    finally:
        await supervisor.close()
    supervisor.events.add("stopped")
    supervisor.events.flush()
    return 0
