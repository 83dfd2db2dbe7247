"""Shapes as routing has them, written short: tables by their names in the schema public."""

from __future__ import annotations

from pgshunt.routing.shape import Kind, Shape


def names(text: str) -> frozenset[str]:
    return frozenset(f"public.{name}" for name in text.split())


def read(tables: str, **traits: object) -> Shape:
    return Shape(Kind.READ, names(tables), **traits)  # type: ignore[arg-type]


def write(tables: str, reads: str = "", **traits: object) -> Shape:
    return Shape(Kind.WRITE, names(reads), names(tables), **traits)  # type: ignore[arg-type]
