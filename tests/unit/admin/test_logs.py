"""A log that nobody reads costs lines, and never a moment of whoever logs."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

from pgshunt.admin.logs import LogAside


class Stuck(logging.Handler):
    """Writes into a list, once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.begun = threading.Event(), threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.begun.set()
        self.let.wait()
        self.lines.append(self.format(record))


def logger(aside: LogAside) -> logging.Logger:
    log = logging.Logger("test")
    log.addHandler(aside)
    aside.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    return log


def test_lines_come_out_in_order_as_they_are_formatted() -> None:
    stuck = Stuck()
    stuck.let.set()
    log = logger(aside := LogAside(stuck))
    for number in range(5):
        log.warning("line %d", number)
    aside.flush()
    assert stuck.lines == [f"WARNING line {number}" for number in range(5)]


def test_a_reader_that_is_stuck_holds_up_nobody_and_is_told_what_it_missed() -> None:
    stuck = Stuck()
    log = logger(aside := LogAside(stuck, waiting_max=3))
    log.warning("first")
    stuck.begun.wait(20)
    for number in range(10):
        log.warning("line %d", number)
    stuck.let.set()
    assert aside._aside.drain(20)
    assert stuck.lines == [
        "WARNING first",
        "WARNING 7 lines were lost here",
        *(f"WARNING line {number}" for number in range(3)),
    ]


LOGGING_WORKER = """
import logging
from pgshunt.admin.cli import main
from pgshunt.proxy import worker

def busy(inherited):
    for number in range(1000):
        logging.getLogger("pgshunt.relay").error("%s", "x" * 1000)
    print("served", flush=True)

worker.main = busy
main()
"""


def test_a_worker_goes_on_while_nobody_reads_its_log() -> None:
    descriptors = ("index", "channel-fd", "board-fd", "inbox-fd", "listen-fds", "peer-fds")
    arguments = ["worker", *(f"--{name}=7" for name in descriptors)]
    with subprocess.Popen(
        [sys.executable, "-c", LOGGING_WORKER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"served\n"
        assert b" ERROR pgshunt.relay: worker 7: xxx" in process.stderr.read()
        assert process.wait() == 0
