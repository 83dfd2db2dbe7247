"""Plays a script: session by session on direct connections, and all sessions at once through the relay."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from parity.script import MARKED, Message, Script, Turn
from support.wire import Frame, WireClient, kinds, sqlstate

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

PATIENCE_S = 20.0

Dial = Callable[[], socket.socket]


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    dbname: str


class Answers:
    """What came back on one connection, frame by frame."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._received = bytearray()
        self.frames: list[Frame] = []
        self.ended = False

    def take(self) -> None:
        """Reads once; blocks as the socket does."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
        self._received += data
        at = 0
        while len(self._received) - at >= 5:
            size = 1 + int.from_bytes(self._received[at + 1 : at + 5])
            if len(self._received) - at < size:
                break
            self.frames.append(Frame(chr(self._received[at]), bytes(self._received[at + 5 : at + size])))
            at += size
        del self._received[:at]

    def complete(self, turn: Turn) -> bool:
        """Whether all answers to `turn` have come."""
        if self.ended:
            return True
        if turn.until == "end" or not self.frames:
            return False
        if turn.until == "mark":
            return "".join(frame.kind for frame in self.frames[-len(MARKED) :]) == MARKED
        return any(frame.kind in turn.until for frame in self.frames)

    def reap(self, turn: Turn) -> list[Frame]:
        """The answers to `turn`; what has come behind them belongs to the next."""
        stop = len(self.frames)
        if turn.until not in ("mark", "end"):
            stop = next((at + 1 for at, frame in enumerate(self.frames) if frame.kind in turn.until), stop)
        frames, self.frames = self.frames[:stop], self.frames[stop:]
        return [*frames, Frame("", b"closed")] if self.ended and not self.frames else frames


END = Message("---", b"")

Heard = list[list[list[Frame]]]  # per connection of a session, per turn


def play_direct(turns_of_connections: tuple[tuple[Turn, ...], ...], dial: Dial, login: Login) -> Heard:
    """What PostgreSQL answers to one session."""
    heard: Heard = []
    for turns in turns_of_connections:
        with _log_in(dial, login) as client:
            answers = Answers(client.socket)
            heard.append([])
            for turn in turns:
                if turn.leave is not None:
                    client.socket.sendall(turn.data[: turn.leave])
                    break
                if not answers.ended:
                    _send_all(client.socket, turn.data)
                try:
                    while not answers.complete(turn):
                        answers.take()
                except TimeoutError as silence:
                    sent = "\n  ".join(message.text[:200] for message in turn.messages)
                    raise AssertionError(
                        f"PostgreSQL answers only {answers.frames} to\n  {sent}"
                    ) from silence
                heard[-1].append(answers.reap(turn))
    return heard


def _send_all(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return  # The answers say that the server has hung up.


def _log_in(dial: Dial, login: Login) -> WireClient:
    return WireClient(dial()).log_in(login.user, login.dbname)


class Player:
    """One session through the relay: never blocks, so that one thread plays all sessions."""

    def __init__(
        self, connections: tuple[tuple[Turn, ...], ...], dial: Dial, login: Login, random: Random
    ) -> None:
        self._connections = connections
        self._dial, self._login, self._random = dial, login, random
        self.heard: Heard = []
        self.done = False
        self.socket: socket.socket | None = None
        self._open()

    @property
    def turn(self) -> Turn:
        return self._connections[len(self.heard) - 1][self._turn_number]

    @property
    def wants_to_send(self) -> bool:
        return not self.done and (not self._welcome or self._startup != b"") and bool(self._pieces)

    @property
    def heard_so_far(self) -> str:
        return "".join(frame.kind for frame in self._answers.frames)

    def _open(self) -> None:
        self.socket = self._dial()
        self.socket.setblocking(False)
        self._answers = Answers(self.socket)
        self._welcome = True
        self._startup = messages.startup_message(
            {b"user": self._login.user.encode(), b"database": self._login.dbname.encode()}
        )
        self._pieces = [self._startup]
        self.heard.append([])
        self._turn_number = 0

    def _cut(self) -> None:
        """The turn's bytes, in pieces of random length."""
        turn = self.turn
        data = turn.data if turn.leave is None else turn.data[: turn.leave]
        if len(data) < 300 and self._random.random() < 0.05:
            self._pieces = [data[at : at + 1] for at in range(len(data))]
            return
        cuts = sorted(
            self._random.randrange(len(data) + 1) for _ in range(self._random.choice((0, 0, 1, 2, 5)))
        )
        self._pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]

    def send(self) -> None:
        """Sends the next piece, as far as the socket takes it."""
        assert self.socket is not None
        self._startup = b""
        piece = self._pieces.pop(0)
        try:
            sent = self.socket.send(piece)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            self._pieces.clear()
            return
        if sent < len(piece):
            self._pieces.insert(0, piece[sent:])
        self._maybe_leave()
        self._go_on()

    def take(self) -> None:
        self._answers.take()
        if self._welcome:
            if self._answers.ended:
                raise AssertionError(f"login failed: {self._answers.frames}")
            if self._answers.frames and self._answers.frames[-1].kind == "Z":
                self._answers.frames.clear()
                self._welcome = False
                self._cut()
                self._maybe_leave()
            return
        self._go_on()

    def _go_on(self) -> None:
        """To the next turn, if this one has been sent and answered."""
        if self.done or self._welcome:
            return
        if self.turn.leave is None and (
            self._answers.ended or (not self._pieces and self._answers.complete(self.turn))
        ):
            self._pieces.clear()
            self.heard[-1].append(self._answers.reap(self.turn))
            self._next()

    def _next(self) -> None:
        turns = self._connections[len(self.heard) - 1]
        if self._turn_number + 1 < len(turns):
            self._turn_number += 1
            if self._answers.ended:
                if self.turn.leave is None:
                    self.heard[-1].append([Frame("", b"closed")])
                self._next()
                return
            self._cut()
            self._maybe_leave()
            return
        self._close()

    def _maybe_leave(self) -> None:
        if not self._welcome and not self._pieces and not self.done and self.turn.leave is not None:
            self._close()

    def _close(self) -> None:
        assert self.socket is not None
        if self._random.random() < 0.5:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # RST
        self.socket.close()
        if len(self.heard) < len(self._connections):
            self._open()
        else:
            self.done = True


def play_together(script: Script, dial: Dial, login: Login) -> list[Heard]:
    """What the relay answers to all sessions at once, their pieces interleaved at random."""
    random = Random(script.seed + 1)
    players = [Player(connections, dial, login, random) for connections in script.sessions]
    deadline = time.monotonic() + PATIENCE_S
    while not all(player.done for player in players):
        ready = [player for player in players if player.wants_to_send]
        for player in random.sample(ready, min(len(ready), random.randint(1, 2))):
            player.send()
        sockets = {
            player.socket: player for player in players if not player.done and player.socket is not None
        }
        sending = any(player.wants_to_send for player in players)
        poller = select.poll()
        for waiting in sockets:
            poller.register(waiting, select.POLLIN)
        places = {waiting.fileno(): waiting for waiting in sockets}
        for fd, _ in poller.poll(0 if sending else 500):
            player = sockets[places[fd]]
            if player.socket is places[fd]:
                player.take()
        if time.monotonic() > deadline:
            stuck = [
                f"session {number}, connection {len(player.heard) - 1}, turn {len(player.heard[-1])}: "
                f"has got {player.heard_so_far!r} of the answer to\n  "
                + "\n  ".join(m.text[:200] for m in player.turn.messages)
                for number, player in enumerate(players)
                if not player.done
            ]
            raise AssertionError("no answer:\n" + "\n".join(stuck))
    return [player.heard for player in players]


_REFUSED = Frame(
    "E",
    b"SERROR\0VERROR\0C25P02\0"
    b"Mcurrent transaction is aborted, commands ignored until end of transaction block",
)
"""What is said in a failed transaction, without the place in PostgreSQL's source."""
_FAILED = Frame("Z", b"E")
_OF_LIBRARY = re.compile(rb"\0\x03\0\0\0.plpgsql\.", re.DOTALL)
"""A row of SHOW ALL: its first column is a parameter of PL/pgSQL's."""


def _comparable(frames: list[Frame]) -> list[Frame]:
    """Without what docs/compatibility.md says may differ whatever was sent."""
    comparable: list[Frame] = []
    for frame in frames:
        if frame.kind == "D" and _OF_LIBRARY.match(frame.body):
            continue
        if frame.kind == "E" and sqlstate([frame]) == "25P02":
            frame = Frame("E", frame.body.partition(b"\0F")[0])
        comparable.append(frame)
    return comparable


def is_same(direct: list[Frame] | None, relayed: list[Frame] | None) -> bool:
    """Whether the relay has answered as PostgreSQL does.

    In a failed transaction, a statement that the link's server has to be given first is refused as it is
    parsed, not as it is bound or described: one without rows is not described any more.
    """
    if direct is None or relayed is None:
        return direct is relayed
    expected, at = _comparable(direct), 0
    for frame in _comparable(relayed):
        described = at
        while frame == _REFUSED and kinds(expected[at : at + 2]) == "tn":
            at += 2
        if at > described and expected[at : at + 1] == [_FAILED]:
            continue
        if expected[at : at + 1] != [frame]:
            return False
        at += 1
    return at == len(expected)


def first_difference(script: Script, direct: list[Heard], relayed: list[Heard]) -> str | None:
    """Where a session heard something else than PostgreSQL says, in words; None if nowhere."""
    for number, connections in enumerate(script.sessions):
        for place, turns in enumerate(connections):
            expected, heard = direct[number][place], relayed[number][place]
            for step, turn in enumerate(turns):
                wanted = expected[step] if step < len(expected) else None
                got = heard[step] if step < len(heard) else None
                if not is_same(wanted, got):
                    before = [
                        message.text for earlier in turns[:step] for message in (*earlier.messages, END)
                    ]
                    return (
                        f"session {number}, connection {place}, turn {step}\n  before: "
                        + "\n          ".join(text[:200] for text in before)
                        + "\n  sent:   "
                        + "\n          ".join(message.text[:200] for message in turn.messages)
                        + f"\n  PostgreSQL: {_describe(wanted)}\n  relay:      {_describe(got)}"
                    )
    return None


def _describe(frames: list[Frame] | None) -> str:
    if frames is None:
        return "nothing"
    parts = []
    for frame in frames:
        if frame.kind in "EN" and frame.kind:
            error = read_error(frame.body)
            parts.append(f"{frame.kind}[{error.sqlstate} {error.message} {frame.body[-50:]!r}]")
        else:
            parts.append(
                frame.kind + (f"[{frame.body[:40]!r}]" if frame.kind in "DCZ" or not frame.kind else "")
            )
    return " ".join(parts[-40:])


def count_messages(heard: list[Heard]) -> int:
    return sum(len(turn) for session in heard for connection in session for turn in connection)
