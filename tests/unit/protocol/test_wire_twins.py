"""The compiled frame scan and reply queue against their plain-Python twins: same bytes, same verdicts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.protocol import _wire, frames, replies
from pgshunt.protocol.replies import Action, Code

BODY_MAX = 1000


@given(st.binary(max_size=200))
def test_scan_of_arbitrary_bytes(data: bytes) -> None:
    assert _wire.scan(data, BODY_MAX) == frames.scan(data, BODY_MAX)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=20), st.integers(0, 300))
def test_scan_of_frames_cut_anywhere(messages: list[tuple[int, bytes]], cut: int) -> None:
    whole = b"".join(bytes([kind]) + (len(body) + 4).to_bytes(4) + body for kind, body in messages)
    data = whole[:cut]
    found, rest, intact = _wire.scan(data, BODY_MAX)
    assert (found, rest, intact) == frames.scan(data, BODY_MAX)
    assert intact
    if cut >= len(whole):
        assert [(kind, data[start + 5 : end]) for kind, start, end in found] == messages


@pytest.mark.parametrize("length", [-(2**31), -2, -1, 0, 1, 2, 3, BODY_MAX + 5, 65536, 2**30, 2**31 - 1])
def test_an_impossible_length_is_told_before_anything_behind_it(length: int) -> None:
    data = b"Z\0\0\0\x05I" + b"Q" + (length & 0xFFFFFFFF).to_bytes(4) + b"rest"
    assert _wire.scan(data, BODY_MAX) == frames.scan(data, BODY_MAX) == ([(ord("Z"), 0, 6)], 6, False)


def test_a_million_random_frames_agree() -> None:
    """Frames of random kinds and bodies, in streams of random lengths; some streams break off in an
    impossible length or in the middle of a frame. Only what was looked at is counted."""
    rng = random.Random()
    seed = rng.randrange(2**32)
    rng.seed(seed)
    seen = 0
    while seen < 1_000_000:
        noise = rng.randbytes(300_000)
        parts = []
        at = 0
        for _ in range(rng.choice((1, 10, 1_000, 20_000))):
            body = noise[at : at + rng.randrange(8)]
            at = (at + 9) % 299_000
            parts.append(noise[at : at + 1] + (len(body) + 4).to_bytes(4) + body)
        if rng.random() < 0.3:
            parts.append(rng.randbytes(rng.randrange(1, 12)))
        data = b"".join(parts)
        answer = _wire.scan(data, BODY_MAX)
        assert answer == frames.scan(data, BODY_MAX), f"seed {seed}"
        seen += len(answer[0])


KINDS = b"123tTnDdcHGWCsIZNSAVRK"
STEPS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from(Code), st.sampled_from(Action)),
    st.tuples(st.just("take"), st.sampled_from(KINDS), st.none()),
    st.tuples(st.just("fail"), st.none(), st.none()),
    st.tuples(st.just("fakes"), st.none(), st.none()),
    st.tuples(st.just("end_copy"), st.none(), st.none()),
)


@given(st.lists(STEPS, max_size=60))
def test_reply_queues_agree_step_by_step(steps: list[tuple[str, int, int]]) -> None:
    compiled, plain = _wire.ReplyQueue(), replies.ReplyQueue()
    for step, first, second in steps:
        if step == "push":
            compiled.push(first, second)
            plain.push(first, second)
        elif step == "take":
            assert compiled.take(first) == plain.take(first)
        else:
            assert getattr(compiled, step)() == getattr(plain, step)()
        assert compiled.head() == plain.head()
        assert len(compiled) == len(plain)


@given(st.lists(st.one_of(st.binary(max_size=2000), st.integers(0, 3000)), max_size=40))
def test_a_buffer_keeps_order_whatever_is_put_in_and_taken_out(steps: list[bytes | int]) -> None:
    buffer, expected = _wire.ByteBuffer(), b""
    for step in steps:
        if isinstance(step, bytes):
            buffer.append(step)
            expected += step
        else:
            buffer.consume(step)
            expected = expected[step:]
        assert buffer.waiting() == expected


def test_an_error_in_a_batch_skips_what_the_server_skips() -> None:
    """Up to Sync, a simple query in between included; the Sync is still owed."""
    for queue in (_wire.ReplyQueue(), replies.ReplyQueue()):
        for code in (Code.BIND, Code.EXECUTE, Code.QUERY, Code.SYNC, Code.QUERY):
            queue.push(code)
        assert queue.fail() == ([Code.BIND, Code.EXECUTE, Code.QUERY], True)
        assert queue.head() == (Code.SYNC, Action.FORWARD)


def test_a_sync_that_the_copy_swallowed_is_not_owed() -> None:
    for queue in (_wire.ReplyQueue(), replies.ReplyQueue()):
        for code in (Code.SYNC, Code.COPY_END, Code.SYNC):
            queue.push(code)
        queue.end_copy()
        assert len(queue) == 1
        assert queue.head() == (Code.SYNC, Action.FORWARD)
