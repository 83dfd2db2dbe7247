"""The shape cache: one resolve a key, literals that matter kept apart, bounded in number and bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgshunt.routing._shapes import Entry, ShapeCache, bench_lookup, kinds, plan_kinds
from pgshunt.routing.classify import resolver
from pgshunt.routing.decide import PlanKind
from pgshunt.routing.lexer import strip
from pgshunt.routing.shape import Kind, Shape, unknown
from pgshunt.routing.table import Catalogue

READ = Shape(Kind.READ, reads=frozenset({"public.users"}))


class Resolver:
    """Notes what it was asked; literals matter where there is nextval, and BAD does not parse."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, tuple[str, ...]]] = []

    def __call__(self, sql: bytes, search_path: tuple[str, ...]) -> Shape:
        self.asked.append((sql, search_path))
        if b"BAD" in sql:
            return unknown("unparsable")
        return Shape(
            Kind.READ, reads=READ.reads, literal_sensitive=b"nextval" in sql, reason=sql.decode("latin-1")
        )


@pytest.fixture
def resolve() -> Resolver:
    return Resolver()


def test_ten_thousand_literals_are_one_shape(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    entries = {
        id(cache.find(b"SELECT * FROM users WHERE id = %d AND n = 'x%d'" % (n, n))) for n in range(10_000)
    }
    assert (len(resolve.asked), len(entries), cache.size) == (1, 1, 1)


def test_a_text_that_comes_again_is_found_as_sent(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    for _ in range(5):
        cache.find(b"SELECT * FROM users WHERE id = $1")
    assert (cache.misses, cache.hits_stripped, cache.hits_text) == (1, 1, 3)


def test_a_text_with_other_literals_is_found_by_a_template(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    for number in range(5):
        cache.find(b"SELECT * FROM users WHERE id = %d AND name = 'n%d'" % (number, number))
    assert (cache.misses, cache.hits_stripped, cache.hits_template, cache.hits_text) == (1, 1, 3, 0)


def test_texts_whose_literals_matter_are_kept_apart(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    texts = [b"SELECT nextval('a')", b"SELECT nextval('b')", b"SELECT nextval('c')"]
    for _ in range(3):
        reasons = [cache.find(text).shape.reason.encode() for text in texts]
        assert reasons == texts
    assert [sql for sql, _ in resolve.asked] == texts


def test_a_text_without_a_key_is_known_by_the_whole_of_it(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    for text in (b"SELECT 1a", b"SELECT 2a", b"SELECT 'open", b"\0", b""):
        for _ in range(3):
            assert cache.find(text).shape.reason.encode() == text
    assert cache.misses == 5


def test_a_text_that_does_not_parse_spoils_no_key(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    cache.find(b"SELECT 'BAD'")
    assert cache.find(b"SELECT 'good'").kind == Kind.READ
    cache.find(b"SELECT 'better'")
    assert [sql for sql, _ in resolve.asked] == [b"SELECT 'BAD'", b"SELECT 'good'"]


def test_every_search_path_has_shapes_of_its_own(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    path = cache.search_path(("audit",))
    assert cache.search_path(("audit",)) is path
    assert cache.search_path(("$user", "public")).number == 0
    audit = path.number
    for _ in range(3):
        assert cache.find(b"SELECT 1", 0) is not cache.find(b"SELECT 1", audit)
    assert resolve.asked == [(b"SELECT 1", ("$user", "public")), (b"SELECT 1", ("audit",))]


def test_a_search_path_that_nobody_holds_is_forgotten_and_its_number_not_used_again(
    resolve: Resolver,
) -> None:
    cache = ShapeCache(resolve)
    held = cache.search_path(("held",))
    numbers = {cache.search_path((f"schema_{n}",)).number for n in range(100)}
    assert len(numbers) == 100
    for number in (*numbers, -1, 1_000_000):
        assert cache.find(b"SELECT 1", number).kind == Kind.UNKNOWN
    assert resolve.asked == []
    assert cache.find(b"SELECT 1", held.number).kind == Kind.READ
    assert cache.search_path(("schema_7",)).number not in numbers


def test_clear_forgets_and_leaves_what_others_hold(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    held = [cache.find(b"SELECT a%d" % n) for n in range(100) for _ in range(3)]
    cache.clear()
    assert (cache.size, cache.bytes_kept) == (0, 0)
    assert held[0].shape.reason == "SELECT a0"
    assert cache.find(b"SELECT a0") is not held[0]


def test_it_holds_no_more_keys_than_its_capacity(resolve: Resolver) -> None:
    cache = ShapeCache(resolve, capacity=64)
    for n in range(1_000):
        cache.find(b"SELECT column_%d" % n)
    assert cache.size == 64
    for n in range(1_000):
        assert cache.find(b"SELECT column_%d" % n).shape.reason == f"SELECT column_{n}"


def test_it_holds_no_more_bytes_than_its_bound(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    for n in range(800):
        cache.find(b"SELECT " + b"x" * 60_000 + b"%d FROM t" % n)
    assert cache.bytes_kept <= 32 * 1024 * 1024
    assert 400 < cache.size < 800


def test_what_is_used_survives_the_clock(resolve: Resolver) -> None:
    cache = ShapeCache(resolve, capacity=64)
    hot = cache.find(b"SELECT hot WHERE id = 0")
    for n in range(1_000):
        cache.find(b"SELECT cold_%d" % n)
        assert cache.find(b"SELECT hot WHERE id = %d" % n) is hot


@pytest.mark.parametrize(
    ("length", "asked"), [(4_000, 1), (5_000, 1), (70_000, 1), (1_000_000, 1), (1_100_000, 2)]
)
def test_long_texts(resolve: Resolver, length: int, asked: int) -> None:
    cache = ShapeCache(resolve)
    for letter in (b"a", b"b"):
        cache.find(b"SELECT '" + letter * length + b"'")
    assert len(resolve.asked) == asked


def test_an_error_of_resolve_is_not_kept() -> None:
    def fail(sql: bytes, search_path: tuple[str, ...]) -> Shape:
        raise LookupError(sql)

    cache = ShapeCache(fail)
    for _ in range(2):
        with pytest.raises(LookupError):
            cache.find(b"SELECT 1")
    assert cache.size == 0


def test_resolve_may_look_something_up_itself() -> None:
    def nested(sql: bytes, search_path: tuple[str, ...]) -> Shape:
        if b"outer" in sql:
            cache.find(b"SELECT inner_and_longer_than_before")
            cache.clear()
        return READ

    cache = ShapeCache(nested)
    entry = cache.find(b"SELECT outer")
    assert cache.find(b"SELECT outer") is entry


def test_a_capacity_of_nothing_is_refused(resolve: Resolver) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        ShapeCache(resolve, capacity=1)


def test_an_entry_says_what_its_shape_says() -> None:
    entry = Entry(READ)
    assert (entry.kind, entry.splittable, entry.stateful, entry.writes, entry.read_only) == (
        Kind.READ,
        1,
        0,
        0,
        0,
    )
    assert (entry.epoch, entry.service, entry.plan) == (-1, -1, None)
    entry = Entry(Shape(Kind.SESSION, pins=frozenset({"listen"}), read_only=True))
    assert (entry.splittable, entry.stateful, entry.writes, entry.read_only) == (0, 1, 0, 1)
    assert Entry(unknown("unparsable")).writes
    assert Entry(unknown("unparsable")).unreadable and not entry.unreadable
    assert Entry(Shape(Kind.READ, locks=True)).writes


def test_the_constants_of_the_hot_path_are_the_enums() -> None:
    assert kinds() == {kind.name: int(kind) for kind in Kind}
    assert plan_kinds() == {kind.name: int(kind) for kind in PlanKind}


def test_bench_lookup_counts_fresh_literals(resolve: Resolver) -> None:
    cache = ShapeCache(resolve)
    assert bench_lookup(cache, b"SELECT * FROM users WHERE id = 1000", 500, fresh=True) > 0
    assert (cache.misses, cache.hits_stripped, cache.hits_template, cache.hits_text) == (1, 1, 499, 0)
    with pytest.raises(ValueError, match="no digit"):
        bench_lookup(cache, b"SELECT", 1, fresh=True)


TEXTS = st.sampled_from(
    [
        b"SELECT %d FROM users",
        b"SELECT nextval('s%d')",
        b"INSERT INTO users VALUES (%d)",
        b"SELECT '%d",
        b"SELCT %d",
        b"SELECT %d::regclass",
        b"SET work_mem = %d",
        b"SELECT x%d FROM users",
    ]
)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 9), st.integers(0, 2)), max_size=60), st.integers(2, 8))
@settings(max_examples=150, deadline=None)
def test_a_cached_shape_is_the_shape(asked: list[tuple[bytes, int, int]], capacity: int) -> None:
    """Whatever came before, and whatever was evicted, a lookup gives what classifying would."""
    paths = (("$user", "public"), ("audit",), ())
    resolve = resolver(Catalogue(relations={"public.users": "r", "audit.users": "r"}))
    cache = ShapeCache(resolve, capacity=capacity)
    held = [cache.search_path(path) for path in paths]
    numbers = [path.number for path in held]
    for template, number, path in asked:
        text = template % number
        assert cache.find(text, numbers[path]).shape == resolve(text, paths[path])
        assert cache.size <= capacity


LITERALS = st.sampled_from(
    [
        *(
            b"0",
            b"1",
            b"12",
            b"007",
            b"1_000",
            b"0x1f",
            b"0b1",
            b"1.5",
            b"5.",
            b".5",
            b"1e5",
            b"1a",
            b"$1",
            b"1..2",
        ),
        *(
            b"''",
            b"'a'",
            b"'a b'",
            b"'a''b'",
            b"'a\\'",
            b"'a'\n'b'",
            b"'a' 'b'",
            b"'open",
            b"E'a\\'b'",
            b"x'1f'",
        ),
        *(
            b"$$a$$",
            b"$q$a'1$q$",
            b"U&'a'",
            b"name",
            b"t1",
            b'"q1"',
            b"-- 1 '\n",
            b"/* 'a' 1 */",
            b"N'a'",
            b"?",
            b"",
        ),
    ]
)
BETWEEN = st.sampled_from(
    [
        b"",
        b" ",
        b", ",
        b" = ",
        b"(",
        b")",
        b" WHERE a1 IN (",
        b"), (",
        b"\n",
        b"::int ",
        b".",
        b"..",
        b"-",
        b"e",
        b"_1",
        b"$",
    ]
)


def key_of(text: bytes) -> str:
    key = strip(text)
    return repr(("whole", text) if key is None else key)


@given(
    st.lists(BETWEEN, min_size=2, max_size=6),
    st.lists(st.lists(LITERALS, min_size=5, max_size=5), min_size=2, max_size=12),
)
@settings(max_examples=500, deadline=None)
def test_a_template_takes_no_text_of_another_key(between: list[bytes], filled: list[list[bytes]]) -> None:
    """Texts that differ in what stands at a few places are told apart as their keys are."""
    cache = ShapeCache(lambda sql, _: Shape(Kind.READ, reads=READ.reads, reason=key_of(sql)))
    for literals in filled * 2:
        text = b"".join(part for pair in zip(between, literals, strict=False) for part in pair)
        assert cache.find(text).shape.reason == key_of(text)
