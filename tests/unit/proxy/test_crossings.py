"""What the supervisor is told of crossings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgshunt.proxy.crossings import Crossings
from pgshunt.proxy.settings import BASE
from pgshunt.routing.shape import Kind, Shape


@dataclass(frozen=True)
class Seen:
    """An entry of the shape cache, as far as it is looked at."""

    shape: Shape
    key: bytes = b"SELECT"


@dataclass(frozen=True)
class Caller:
    """An identity."""

    user: str
    name: bytes

    @property
    def parameters(self) -> dict[bytes, bytes]:
        return {b"application_name": self.name}


def test_a_user_whose_name_is_no_text_is_told_in_one() -> None:
    now_s = 0.0
    crossings = Crossings(lambda: now_s)
    entry: Any = Seen(Shape(Kind.READ, frozenset({"public.a", "public.b"})))
    identity: Any = Caller("m\udcfcller", b"sh\xffp")
    crossings.note((entry,), identity, BASE)
    now_s = 2.0
    drained = crossings.drain({"public.a": "r", "public.b": "r"})
    assert drained is not None
    ((_, _, reads, writes, user, application_name, calls),) = drained["crossings"]
    assert (user, application_name) == ("m\ufffdller", "sh\ufffdp")
    assert (reads, writes, calls) == (("public.a", "public.b"), (), 1)
