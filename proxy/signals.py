"""Finds the server process behind each process id that a statement is about to signal.

Clients know a session by the process id it was given at login, which no server process has. While a
statement runs that may signal it (`pg_terminate_backend`, `pg_cancel_backend`), the session named keeps one
link, and the process id of that link's server stands in the place of its own: so it is the server that
decides who may signal whom, and that does it. Sessions of another worker are asked for by notes through the
workers' inboxes.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from pgshunt.routing.lexer import integers

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Relay, Session

WORKER_SHIFT: Final = 24
"""The first byte of a session's process id tells its worker, from 1 on; Linux gives out none above 2^22."""

DIGITS_MAX: Final = 32  # of a number, with blanks around it

PLACES_MAX: Final = 64
"""Of a statement's text, and of its parameters, so many numbers are looked up; the rest stay as they are."""

TEXT_BYTES_MAX: Final = 16 * 1024
"""So much of a statement's text is read for them: the worker's other sessions wait meanwhile."""

ANSWER_S_MAX: Final = 5.0
"""How long another worker is waited for. One that is silent for longer has no such session."""

HELD_S_MAX: Final = 5.0
"""So long a statement, or the transaction it stands in, may keep a session that it names to its link."""

AGAIN_S: Final = 0.1
"""What found an inbox full is sent again so often: nothing else says that the session is let go."""

# Kind, worker that sends it, life of the worker that asks, number of the question, process id of the session,
# process id of its server, endpoint or whether it is sure.
_NOTE: Final = struct.Struct(">cBQIIIB")
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
    read = text[:TEXT_BYTES_MAX]
    return _of_sessions(
        (
            Place(offset + start, stop - start, int(text[start:stop]))
            for start, stop in integers(read)
            if stop - start <= DIGITS_MAX and (stop < len(read) or len(read) == len(text))
        ),
        workers,
    )


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
    return _of_sessions(places, workers)


def _of_sessions(places: Iterable[Place], workers: int) -> list[Place]:
    """Those of them that may name sessions, at most PLACES_MAX."""
    return list(islice((place for place in places if 0 <= worker_of(place.number) < workers), PLACES_MAX))


# Who is asked


class Question(NamedTuple):
    """What another worker has been asked for, and by whom."""

    session: Session
    process_id: int
    timeout: asyncio.TimerHandle


class Signals:
    """One worker's questions for the server processes of sessions, its own and others'.

    A worker that is started again takes its predecessor's place and inbox, but not its questions: each has a
    life of its own, by which the others tell them apart.
    """

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self._relay = relay
        self._loop = loop
        self._life = secrets.randbits(64)
        self._questions: dict[int, Question] = {}
        self._last = 0
        self._lives: dict[int, int] = {}  # worker -> its life, as far as it has been heard of
        self._held_for: dict[int, list[int]] = {}  # worker -> process ids of the sessions held for it
        self._unsent: list[tuple[int, bytes]] = []

    def begin(self) -> None:
        """Lets the others know that this worker begins: whatever its predecessor had them hold is let go."""
        for worker in range(self._relay.board_workers):
            if worker != self._relay.index:
                self._send_surely(worker, self._note(_BEGIN))

    def ask(self, session: Session, process_id: int, endpoint: int) -> None:
        """`session` is about to signal the session with `process_id`; the relay hears what is found."""
        worker = worker_of(process_id)
        if worker == self._relay.index:
            self._relay.hold(process_id, endpoint, partial(self._relay.held, session, process_id))
            return
        self._last = (self._last + 1) & 0xFFFFFFFF
        if not self._send(worker, self._note(_HOLD, self._last, process_id, more=endpoint)):
            self._relay.held(session, process_id, 0)
            return
        timeout = self._loop.call_later(ANSWER_S_MAX, self._answered, self._last, process_id, 0)
        self._questions[self._last] = Question(session, process_id, timeout)

    def release(self, process_id: int, *, sure: bool) -> None:
        """The statement that was to signal this session has ended; not `sure`: perhaps it has not."""
        worker = worker_of(process_id)
        if worker == self._relay.index:
            self._relay.release(process_id, sure)
        else:
            self._send_surely(worker, self._note(_RELEASE, 0, process_id, more=sure))

    def take(self, note: bytes) -> None:
        """A note from another worker."""
        kind, worker, life, number, process_id, server_id, more = _NOTE.unpack(note)
        if kind == _HELD:
            if life == self._life and not self._answered(number, process_id, server_id) and server_id:
                self.release(process_id, sure=True)  # too late: nobody waits for it any more
            return
        self._meet(worker, life)
        if kind == _HOLD:
            self._relay.hold(process_id, more, partial(self._answer, worker, life, number, process_id))
        elif kind == _RELEASE:
            held = self._held_for.get(worker, [])
            if process_id in held:
                held.remove(process_id)
                self._relay.release(process_id, bool(more))

    def ended(self, worker: int) -> None:
        """That worker's process has ended: what it was asked it will not answer."""
        for number, question in list(self._questions.items()):
            if worker_of(question.process_id) == worker:
                self._answered(number, question.process_id, 0)

    def _meet(self, worker: int, life: int) -> None:
        """What an earlier life of the worker that speaks had this one hold is let go, or is not held."""
        if self._lives.get(worker) != life:
            self._lives[worker] = life
            for process_id in self._held_for.pop(worker, []):
                self._relay.release(process_id, False)

    def _note(self, kind: bytes, number: int = 0, process_id: int = 0, *, more: int = 0) -> bytes:
        """A note about what this worker asks."""
        return _NOTE.pack(kind, self._relay.index, self._life, number, process_id, 0, more)

    def _send(self, worker: int, note: bytes) -> bool:
        return self._relay.on_note is not None and self._relay.on_note(worker, note)

    def _send_surely(self, worker: int, note: bytes) -> None:
        """Sends it now, or as soon as the inbox has room."""
        if not self._send(worker, note):
            self._unsent.append((worker, note))
            if len(self._unsent) == 1:
                self._loop.call_later(AGAIN_S, self._send_unsent)

    def _send_unsent(self) -> None:
        self._unsent = [(worker, note) for worker, note in self._unsent if not self._send(worker, note)]
        if self._unsent:
            self._loop.call_later(AGAIN_S, self._send_unsent)

    def _answer(self, worker: int, life: int, number: int, process_id: int, server_id: int) -> None:
        """Tells the worker that has asked; a server process that it will not hear of is not kept for it."""
        note = _NOTE.pack(_HELD, self._relay.index, life, number, process_id, server_id, 0)
        if not server_id:
            self._send(worker, note)
        elif self._lives.get(worker) == life and self._send(worker, note):
            self._held_for.setdefault(worker, []).append(process_id)
        else:
            self._relay.release(process_id, True)

    def _answered(self, number: int, process_id: int, server_id: int) -> bool:
        """False if this question is not open any more."""
        question = self._questions.get(number)
        if question is None or question.process_id != process_id:
            return False
        del self._questions[number]
        question.timeout.cancel()
        self._relay.held(question.session, process_id, server_id)
        return True
