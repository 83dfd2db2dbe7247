"""A worker process with a recording relay, which behaves as its first argument says.

    python fake_worker.py MANNER --index=0 --channel-fd=…

MANNER: "well", "deaf" (worker 1 never acknowledges a table), "dead" (exits at once), "stuck" (never serves).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "proxy"))

from fakes import RecordingRelay

from pgshunt.proxy.worker import Inherited, main, parse_fds
from pgshunt.routing.table import Catalogue, RoutingTable


class DeafRelay(RecordingRelay):
    """Hangs when it gets a new table."""

    def apply(self, table: RoutingTable, catalogue: Catalogue) -> None:
        time.sleep(60)


def inherited(arguments: list[str]) -> Inherited:
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    return Inherited(
        int(options["index"]),
        int(options["channel-fd"]),
        int(options["board-fd"]),
        int(options["inbox-fd"]),
        parse_fds(options["listen-fds"]),
        parse_fds(options["peer-fds"]),
    )


if __name__ == "__main__":
    manner, arguments = sys.argv[1], inherited(sys.argv[2:])
    if manner == "dead":
        sys.exit(3)
    if manner == "stuck":
        time.sleep(60)
    main(arguments, DeafRelay if manner == "deaf" and arguments.index == 1 else RecordingRelay)
