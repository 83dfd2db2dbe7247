"""A log that nobody reads costs lines, and never a moment of whoever logs."""

from __future__ import annotations

import logging
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
