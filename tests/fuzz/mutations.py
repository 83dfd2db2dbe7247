"""Makes wrong messages out of right ones: a parser is led astray by what is almost as it should be."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZED = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""Some seconds of each test; FUZZ_EXAMPLES says how many inputs it gets."""

ODD_BYTES = [
    b"\0",
    b"\xff",
    b"\x80",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b",",
    b"=",
    b"9" * 5000,
]


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds`, or several in a row, with some bytes changed, repeated, left out or put in."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        match draw(st.sampled_from(("overwrite", "insert", "leave out", "repeat", "count"))):
            case "overwrite":
                data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case "insert":
                data[at:at] = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=8))
            case "leave out":
                del data[at : at + size]
            case "repeat":
                data[at:at] = data[at : at + 4 * size]
            case "count" if at < len(data):
                data[at] = (data[at] + draw(st.sampled_from((-1, 1)))) % 256
    return bytes(data)


@st.composite
def cut(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """`whole` in pieces, as a network may deliver it."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]
