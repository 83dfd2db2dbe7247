"""What the relay may answer otherwise than PostgreSQL, and what it may not."""

from __future__ import annotations

import pytest
from parity.play import is_same
from support.wire import Frame

ABORTED = b"current transaction is aborted, commands ignored until end of transaction block"
KNOWN = {
    "t": Frame("t", b"\0\0"),
    "n": Frame("n", b""),
    "E": Frame("E", b"SERROR\0VERROR\0C25P02\0M" + ABORTED + b"\0Fpostgres.c\0L2500\0\0"),
    "e": Frame("E", b"SERROR\0VERROR\0C25P02\0M" + ABORTED + b"\0Fpostgres.c\0L1500\0\0"),
    "x": Frame("E", b"SERROR\0VERROR\0C25P02\0Mcurrent\0Fpostgres.c\0L1500\0\0"),
    "Z": Frame("Z", b"E"),
    "T": Frame("Z", b"T"),
}


@pytest.mark.parametrize(
    ("direct", "relayed", "same"),
    [
        ("EZ", "eZ", True),
        ("tnEZ", "tneZ", True),
        ("tnEZ", "eZ", True),
        ("tntnEZ", "eZ", True),
        ("tnZ", "eZ", True),
        ("tnZtnEZtnZ", "tnZeZeZ", True),
        ("EZ", "xZ", False),
        ("tnEZ", "xZ", False),
        ("EZ", "tneZ", False),
        ("EZ", "tnZ", False),
        ("tnT", "eT", False),
        ("tnZ", "Z", False),
        ("tnZ", "e", False),
        ("tnEZ", "eZZ", False),
    ],
)
def test_a_refusal_comes_earlier_and_says_the_same(direct: str, relayed: str, same: bool) -> None:
    assert is_same([KNOWN[one] for one in direct], [KNOWN[one] for one in relayed]) is same


def test_what_is_missing_is_missing() -> None:
    assert is_same(None, None)
    assert not is_same([], None)
    assert not is_same(None, [])
