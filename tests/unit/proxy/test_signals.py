"""Where a message may name a session, and what workers ask each other about theirs."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.proxy import signals
from pgshunt.proxy.signals import Place, Signals, first_process_id, in_parameters, in_text, worker_of

MINE, THEIRS = first_process_id(0) + 7, first_process_id(1) + 7
SERVER = 4321


def test_a_process_id_tells_its_worker() -> None:
    assert [worker_of(first_process_id(worker) + 0xFFFFFF) for worker in (0, 1, 126)] == [0, 1, 126]
    assert worker_of(2**22) == -1
    assert first_process_id(126) + 0xFFFFFF == 2**31 - 1


def test_places_in_a_text_are_filled_up_with_blanks() -> None:
    text = b"SELECT f(%d, '%d', %d, 3)" % (MINE, THEIRS, first_process_id(2))
    places = in_text(text, 5, 2)
    assert [(place.number, text[place.offset - 5 :][: place.length]) for place in places] == [
        (number, b"%d" % number) for number in (MINE, THEIRS)
    ]
    assert places[0].written(SERVER) == b"4321    "
    assert in_text(b"SELECT " + b"9" * 5000, 0, 2) == []


def parameters(formats: list[int], *values: bytes | None) -> bytes:
    body = struct.pack(f">H{len(formats)}hH", len(formats), *formats, len(values))
    for value in values:
        body += struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
    return body + b"\0\0"


@pytest.mark.parametrize(
    ("body", "places"),
    [
        (parameters([], b"%d" % MINE), [Place(8, 8, MINE)]),
        (parameters([1], b"%d" % MINE, struct.pack(">i", MINE)), [Place(22, 4, MINE, True)]),
        (
            parameters([1, 0], struct.pack(">q", MINE), b" %d" % THEIRS),
            [Place(12, 8, MINE, True), Place(24, 9, THEIRS)],
        ),
        (parameters([0], None, b"", b"1", b"x", b"9" * 5000), []),
        (parameters([1, 1], b"\0\1", b"1234", b"12345678"), []),
    ],
)
def test_places_in_parameters(body: bytes, places: list[Place]) -> None:
    assert in_parameters(body, 0, 2) == places
    for place in places:
        assert len(place.written(SERVER)) == place.length


@given(st.binary(max_size=64))
def test_parameters_that_make_no_sense_name_nobody(body: bytes) -> None:
    for place in in_parameters(body, 0, 2):
        assert place.offset + place.length <= len(body)


def test_of_many_numbers_only_the_first_are_looked_up() -> None:
    text = b"SELECT " + b", ".join(b"%d" % (MINE + each) for each in range(5000))
    assert [place.number for place in in_text(text, 5, 2)] == [
        MINE + each for each in range(signals.PLACES_MAX)
    ]
    body = parameters([], *[b"%d" % (MINE + each) for each in range(5000)])
    assert len(in_parameters(body, 0, 2)) == signals.PLACES_MAX


@pytest.mark.parametrize("tail", [b"1", b"%d" % MINE, b"'%d'" % MINE, b"'%d'" % MINE + b"1" * 9])
def test_of_a_long_text_only_the_beginning_is_read(tail: bytes) -> None:
    """A number that is cut there is not taken for another one."""
    for cut in range(1, len(tail) + 1):
        text = (b"SELECT %d" % MINE).ljust(signals.TEXT_BYTES_MAX - cut) + tail + b"0, %d" % MINE
        assert [(place.offset, place.number) for place in in_text(text, 0, 2) if place.offset < 100] == [
            (7, MINE)
        ]
        for place in in_text(text, 0, 2):
            assert text[place.offset - 1 :][: place.length + 2].strip(b" ,'").isdigit()
            assert not text[place.offset + place.length :][:1].isdigit()


class Relay:
    """One worker's relay, as far as signals know it: it holds `session` on `SERVER`, later if `slow`."""

    def __init__(self, index: int, session: int) -> None:
        self.index = index
        self.board_workers = 2
        self.session = session
        self.holds = 0
        self.slow = False
        self.asked: list[Callable[[int], None]] = []
        self.answers: list[tuple[Any, int, int]] = []
        self.on_note: Callable[[int, bytes], bool] | None = None

    def hold(self, process_id: int, endpoint: int, tell: Callable[[int], None]) -> None:
        if process_id != self.session:
            tell(0)
            return
        self.asked.append(tell)
        if not self.slow:
            self.find()

    def find(self) -> None:
        """The session has its link."""
        while self.asked:
            self.holds += 1
            self.asked.pop()(SERVER)

    def held(self, session: Any, process_id: int, server_id: int) -> None:
        self.answers.append((session, process_id, server_id))

    def release(self, process_id: int, sure: bool) -> None:
        self.holds -= process_id == self.session


Pair = tuple[list[Relay], list[Signals], list[tuple[int, bytes]]]


def pair(loop: asyncio.AbstractEventLoop) -> Pair:
    """Two workers, and the notes between them that are under way."""
    relays = [Relay(0, MINE), Relay(1, THEIRS)]
    notes: list[tuple[int, bytes]] = []

    def post(worker: int, note: bytes) -> bool:
        notes.append((worker, note))
        return worker < 2

    for relay in relays:
        relay.on_note = post
    return relays, [Signals(relay, loop) for relay in relays], notes  # type: ignore[arg-type]


def run(scenario: Callable[[Pair], Any]) -> None:
    async def main() -> None:
        result = scenario(pair(asyncio.get_running_loop()))
        if result is not None:
            await result

    asyncio.run(main())


def deliver(workers: list[Signals], notes: list[tuple[int, bytes]]) -> None:
    while notes:
        worker, note = notes.pop(0)
        workers[worker].take(note)


def test_a_session_of_another_worker_is_held_and_released() -> None:
    def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        workers[0].ask("caller", MINE, 0)  # type: ignore[arg-type]
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        workers[0].ask("caller", THEIRS + 1, 0)  # type: ignore[arg-type]
        assert relays[0].answers == [("caller", MINE, SERVER)]
        deliver(workers, notes)
        assert relays[0].answers[1:] == [("caller", THEIRS, SERVER), ("caller", THEIRS + 1, 0)]
        assert [relay.holds for relay in relays] == [1, 1]
        workers[0].release(MINE, sure=True)
        workers[0].release(THEIRS, sure=False)
        deliver(workers, notes)
        assert [relay.holds for relay in relays] == [0, 0]

    run(scenario)


def test_a_worker_that_is_not_there_has_no_sessions() -> None:
    def scenario(pair: Pair) -> None:
        relays, workers, _ = pair
        workers[0].ask("caller", first_process_id(2), 0)  # type: ignore[arg-type]
        relays[0].on_note = None
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        assert relays[0].answers == [("caller", first_process_id(2), 0), ("caller", THEIRS, 0)]

    run(scenario)


def test_what_a_worker_that_died_had_held_is_let_go() -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        deliver(workers, notes)
        assert relays[1].holds == 1
        successor(pair, asyncio.get_running_loop())
        deliver(workers, notes)
        assert relays[1].holds == 0
        workers[0].release(THEIRS, sure=True)
        deliver(workers, notes)
        assert relays[1].holds == 0

    run(scenario)


def test_an_answer_that_comes_too_late_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        while not relays[0].answers:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert relays[0].answers == [("caller", THEIRS, 0)]
        deliver(workers, notes)
        assert (len(relays[0].answers), relays[1].holds) == (1, 0)

    monkeypatch.setattr(signals, "ANSWER_S_MAX", 0.001)
    run(scenario)


def test_a_release_that_finds_the_inbox_full_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        post, relays[0].on_note = relays[0].on_note, lambda worker, note: False
        workers[0].begin()
        relays[0].on_note = post
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        deliver(workers, notes)
        relays[0].on_note = lambda worker, note: False
        workers[0].release(THEIRS, sure=True)
        deliver(workers, notes)
        assert relays[1].holds == 1
        relays[0].on_note = post
        while len(notes) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        deliver(workers, notes)
        assert relays[1].holds == 0

    monkeypatch.setattr(signals, "AGAIN_S", 0.001)
    run(scenario)


def successor(pair: Pair, loop: asyncio.AbstractEventLoop) -> None:
    """Worker 0 ends and is started again; the notes for it lie in its inbox."""
    relays, workers, _ = pair
    post = relays[0].on_note
    relays[0] = Relay(0, MINE)
    relays[0].on_note = post
    workers[0] = Signals(relays[0], loop)  # type: ignore[arg-type]
    workers[0].begin()


def test_an_answer_for_a_worker_that_died_answers_nothing_of_its_successor() -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        workers[0].ask("dead", THEIRS, 0)  # type: ignore[arg-type]
        workers[1].take(notes.pop(0)[1])
        (answer,) = notes
        notes.clear()
        successor(pair, asyncio.get_running_loop())
        relays[1].slow = True
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        workers[0].take(answer[1])
        assert relays[0].answers == []
        deliver(workers, notes)
        assert relays[1].holds == 0  # what was held for the dead one has been let go
        relays[1].find()
        deliver(workers, notes)
        assert (relays[0].answers, relays[1].holds) == ([("caller", THEIRS, SERVER)], 1)

    run(scenario)


def test_a_worker_that_has_ended_is_not_waited_for() -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        workers[0].ended(2)
        assert relays[0].answers == []
        workers[0].ended(1)
        assert relays[0].answers == [("caller", THEIRS, 0)]
        deliver(workers, notes)  # its successor finds the question in the inbox
        assert (relays[0].answers, relays[1].holds) == ([("caller", THEIRS, 0)], 0)

    run(scenario)


@pytest.mark.parametrize("announced", [True, False])
def test_what_a_worker_that_died_still_waits_for_is_not_held(announced: bool) -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        relays[1].slow = True
        workers[0].ask("dead", THEIRS, 0)  # type: ignore[arg-type]
        deliver(workers, notes)
        successor(pair, asyncio.get_running_loop())
        if not announced:  # the inbox was full
            notes.clear()
            workers[0].ask("caller", THEIRS + 1, 0)  # type: ignore[arg-type]
        deliver(workers, notes)
        relays[1].find()
        deliver(workers, notes)
        assert relays[1].holds == 0
        assert relays[0].answers == [("caller", THEIRS + 1, 0)] * (not announced)

    run(scenario)


def test_only_the_session_that_was_asked_for_is_answered() -> None:
    async def scenario(pair: Pair) -> None:
        relays, workers, notes = pair
        workers[0].ask("caller", THEIRS, 0)  # type: ignore[arg-type]
        (_, asked), *_ = notes
        workers[0].take(signals._NOTE.pack(b"k", 1, signals._NOTE.unpack(asked)[2], 1, THEIRS + 1, SERVER, 0))
        assert relays[0].answers == []
        deliver(workers, notes)
        assert relays[0].answers == [("caller", THEIRS, SERVER)]

    run(scenario)
