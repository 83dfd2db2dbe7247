"""Finds the server process behind each process id that a statement is about to signal.

Clients know a session by the process id it was given at login, which no server process has. While a
statement runs that may signal it (`pg_terminate_backend`, `pg_cancel_backend`), the session named keeps one
link, and the process id of that link's server stands in the place of its own: so it is the server that
decides who may signal whom, and that does it. Sessions of another worker are asked for by notes through the
workers' inboxes.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from pgshunt.routing.lexer import integers

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Relay, Session

WORKER_SHIFT: Final = 24
"""The first byte of a session's process id tells its worker, from 1 on; Linux gives out none above 2^22."""

DIGITS_MAX: Final = 32  # of a number, with blanks around it

ANSWER_S_MAX: Final = 5.0
"""How long another worker is waited for. One that is silent for longer has no such session."""

# Kind, worker that sends it, number of the question, process id of the session, process id of its server,
# endpoint or whether it is sure.
_NOTE: Final = struct.Struct(">cBIIIB")
_HOLD, _HELD, _RELEASE, _BEGIN = b"h", b"k", b"r", b"b"


def first_process_id(worker: int) -> int:
    """The process ids of a worker's sessions are this and the 2^24 - 1 behind it."""
    return (worker + 1) << WORKER_SHIFT


def worker_of(process_id: int) -> int:
    """The worker whose session has this process id; there may be no such worker."""
    return (process_id >> WORKER_SHIFT) - 1


# Where statements name processes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a number stands in a message that may be the process id of a session."""

    offset: int
    length: int
    number: int
    binary: bool = False

    def written(self, process_id: int) -> bytes:
        """Another process id for this place, in as many bytes: if it has fewer digits, blanks fill up."""
        if self.binary:
            return process_id.to_bytes(self.length, "big")
        return str(process_id).encode().ljust(self.length)


def in_text(text: bytes, offset: int, workers: int) -> list[Place]:
    """The places in a statement, which stands at `offset` of its message."""
    places = [
        Place(offset + start, stop - start, int(text[start:stop]))
        for start, stop in integers(text)
        if stop - start <= DIGITS_MAX
    ]
    return [place for place in places if 0 <= worker_of(place.number) < workers]


def in_parameters(body: bytes, offset: int, workers: int) -> list[Place]:
    """The places in what follows the statement's name in a Bind message, at `offset` of that.

    Nothing is found in a message that is not as it should be: the server will say so.
    """
    places = []
    try:
        (formats,) = struct.unpack_from(">H", body)
        codes = struct.unpack_from(f">{formats}h", body, 2)
        at = 2 + 2 * formats
        (count,) = struct.unpack_from(">H", body, at)
        at += 2
        for index in range(count):
            (length,) = struct.unpack_from(">i", body, at)
            at += 4
            value = body[at : at + max(length, 0)]
            binary = bool(codes[index if len(codes) > 1 else 0]) if codes else False
            if binary and length in (4, 8):
                places.append(Place(offset + at, length, int.from_bytes(value, "big"), binary))
            elif not binary and length <= DIGITS_MAX and value.strip().isdigit():
                places.append(Place(offset + at, length, int(value)))
            at += max(length, 0)
    except (struct.error, IndexError):
        return []
    return [place for place in places if 0 <= worker_of(place.number) < workers]


# Who is asked


class Question(NamedTuple):
    """What another worker has been asked for, and by whom."""

    session: Session
    process_id: int
    timeout: asyncio.TimerHandle


class Signals:
    """One worker's questions for the server processes of sessions, its own and others'."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self._relay = relay
        self._loop = loop
        self._questions: dict[int, Question] = {}
        self._last = 0
        self._held_for: dict[int, list[int]] = {}  # worker -> process ids of the sessions held for it

    def begin(self) -> None:
        """Lets the others know that this worker begins: whatever its predecessor had them hold is let go."""
        for worker in range(self._relay.board_workers):
            if worker != self._relay.index:
                self._send(worker, _NOTE.pack(_BEGIN, self._relay.index, 0, 0, 0, 0))

    def ask(self, session: Session, process_id: int, endpoint: int) -> None:
        """`session` is about to signal the session with `process_id`; the relay hears what is found."""
        worker = worker_of(process_id)
        if worker == self._relay.index:
            self._relay.hold(process_id, endpoint, partial(self._relay.held, session, process_id))
            return
        self._last = (self._last + 1) & 0xFFFFFFFF
        note = _NOTE.pack(_HOLD, self._relay.index, self._last, process_id, 0, endpoint)
        if not self._send(worker, note):
            self._relay.held(session, process_id, 0)
            return
        timeout = self._loop.call_later(ANSWER_S_MAX, self._answered, self._last, 0)
        self._questions[self._last] = Question(session, process_id, timeout)

    def release(self, process_id: int, *, sure: bool) -> None:
        """The statement that was to signal this session has ended; not `sure`: perhaps it has not."""
        worker = worker_of(process_id)
        if worker == self._relay.index:
            self._relay.release(process_id, sure)
        else:
            self._send(worker, _NOTE.pack(_RELEASE, self._relay.index, 0, process_id, 0, sure))

    def take(self, note: bytes) -> None:
        """A note from another worker."""
        kind, worker, number, process_id, server_id, more = _NOTE.unpack(note)
        if kind == _HOLD:
            self._relay.hold(process_id, more, partial(self._answer, worker, number, process_id))
        elif kind == _RELEASE:
            held = self._held_for.get(worker, [])
            if process_id in held:
                held.remove(process_id)
                self._relay.release(process_id, bool(more))
        elif kind == _BEGIN:
            for process_id in self._held_for.pop(worker, []):
                self._relay.release(process_id, False)
        elif not self._answered(number, server_id) and server_id:
            self.release(process_id, sure=True)  # too late: nobody waits for it any more

    def _send(self, worker: int, note: bytes) -> bool:
        return self._relay.on_note is not None and self._relay.on_note(worker, note)

    def _answer(self, worker: int, number: int, process_id: int, server_id: int) -> None:
        """Tells the worker that has asked; a server process that it will not hear of is not kept for it."""
        note = _NOTE.pack(_HELD, self._relay.index, number, process_id, server_id, 0)
        if not server_id:
            self._send(worker, note)
        elif self._send(worker, note):
            self._held_for.setdefault(worker, []).append(process_id)
        else:
            self._relay.release(process_id, True)

    def _answered(self, number: int, server_id: int) -> bool:
        """False if this question is not open any more."""
        question = self._questions.pop(number, None)
        if question is None:
            return False
        question.timeout.cancel()
        self._relay.held(question.session, question.process_id, server_id)
        return True
