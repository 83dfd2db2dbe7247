"""Feeds a parser as h11's tests do: whole, byte by byte, and torn in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

Cut = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def torn(data: bytes) -> Iterator[bytes]:
    middle = len(data) // 2
    yield from (data[:middle], b"", data[middle:])


@pytest.fixture(params=[whole, byte_by_byte, torn], ids=lambda cut: cut.__name__)
def cut(request: pytest.FixtureRequest) -> Cut:
    """How one delivery of bytes is divided into receives."""
    chosen: Cut = request.param
    return chosen
