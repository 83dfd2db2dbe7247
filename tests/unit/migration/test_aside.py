"""Work that hangs holds up nobody who does not wait for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pgshunt.migration.aside import Aside, Crowded


def test_works_are_done_in_order_and_answer_with_what_they_return_or_raise() -> None:
    async def scenario() -> None:
        aside, done = Aside("test"), list[int]()
        await asyncio.gather(*(aside.run(lambda number=number: done.append(number)) for number in range(20)))  # type: ignore[misc]
        assert done == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await aside.run(lambda: 1 // 0)
        assert await aside.run(lambda: 7) == 7

    asyncio.run(scenario())


def test_what_waits_behind_a_hung_work_can_be_given_up_and_does_not_pile_up() -> None:
    async def scenario() -> None:
        aside, begun, answer, done = Aside("test", 2), threading.Event(), threading.Event(), list[int]()
        hung = aside.submit(lambda: (begun.set(), answer.wait()))
        await asyncio.to_thread(begun.wait)
        for number in range(10):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aside.run(lambda number=number: done.append(number)), 0.001)  # type: ignore[misc]
        aside.submit(lambda: done.append(100))
        aside.submit(lambda: done.append(101))
        with pytest.raises(Crowded):
            aside.submit(lambda: done.append(102))
        answer.set()
        await asyncio.wrap_future(hung)
        assert await asyncio.to_thread(aside.drain, 20)
        assert done == [100, 101]

    asyncio.run(scenario())


def test_without_a_thread_a_work_is_refused_and_the_next_one_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    aside = Aside("test")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        with pytest.raises(Crowded, match="no thread for test"):
            aside.submit(lambda: 1)
        assert aside.drain(0)
    assert aside.submit(lambda: 2).result(20) == 2


def test_while_there_is_no_work_there_is_no_thread() -> None:
    aside, threads = Aside("test"), list[threading.Thread]()
    for _ in range(2):
        aside.submit(lambda: threads.append(threading.current_thread()))
        assert aside.drain(20)
    for thread in threads:
        thread.join(20)
    assert [thread.is_alive() for thread in threads] == [False, False]
