"""Writes the log aside: whoever reads standard error may be slow, and must hold up no process of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from pgshunt.migration.aside import Aside, Crowded

WAITING_MAX: Final = 10_000
FLUSH_S_MAX: Final = 2.0


@contextmanager
def log_aside(who: str = "") -> Iterator[None]:
    """While it lasts, this process logs to standard error, and says in each line who it is."""
    written = LogAside(logging.StreamHandler())
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s %(name)s: {who}%(message)s",
        handlers=[written],
    )
    try:
        yield
    finally:
        written.flush()


class LogAside(logging.Handler):
    """Hands records to another handler in a thread; what it cannot take is lost and counted."""

    def __init__(self, handler: logging.Handler, waiting_max: int = WAITING_MAX) -> None:
        super().__init__()
        self._handler = handler
        self._aside = Aside("log", waiting_max)
        self._lost = 0

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        self._handler.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._aside.submit(partial(self._write, record))
        except Crowded:
            self._lost += 1

    def flush(self) -> None:
        """Waits until what was logged is written, for no longer than `FLUSH_S_MAX`."""
        self._aside.drain(FLUSH_S_MAX)

    def _write(self, record: logging.LogRecord) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            self._handler.handle(logging.makeLogRecord({**fields, "msg": f"{lost} lines were lost here"}))
        self._handler.handle(record)
