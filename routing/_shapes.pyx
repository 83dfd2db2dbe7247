"""Finds the shape of a query text without making a Python object: by the text as sent, then by its key.

The first level is an array of texts, one per hash; a text is kept when it comes a second time, so that texts
with fresh literals do not push out the ones that repeat. The second level is a hash table of keys
(lexer.strip), evicted by a clock hand. Where literals matter the key leads to a marker, and the whole text is
looked up in the same table. Between the two stand templates (_templates.pxi): they spare a text with fresh
literals the making of its key. Hashes are keyed per process against made collisions, and every hit is
compared in full.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy

import os
import time
from weakref import WeakValueDictionary

from pgshunt.routing.shape import READ_COMMITTED, Kind, unknown

include "_hash.pxi"
include "_classes.pxi"
include "_templates.pxi"
include "_lexer.pxi"

cdef enum:
    TEXT_BYTES_MAX = 4096             # longer texts are not kept as sent: 8 MiB at most for the first level
    KEY_BYTES_MAX = 65536             # longer keys are not kept
    KEYS_BYTES_MAX = 33554432         # all keys together
    STRIP_BYTES_MAX = 1048576         # longer texts go to the classifier as they are
    SCRATCH_BYTES_KEPT = 65536
    SHOWN_BYTES = 512                 # of a key, that people may be shown
    WHOLE = 0x5bd1e995                # sets keys that are whole texts apart from stripped ones


cdef class Entry:
    """A shape in C values, and the route decided for it in one epoch."""

    def __init__(self, shape):
        self.shape = shape
        self.kind = int(shape.kind)
        self.splittable = shape.splittable
        self.steady = shape.steady
        self.ends = shape.kind in (Kind.COMMIT, Kind.ROLLBACK) and not shape.chain and not shape.reason
        self.begins = BEGINS_HERE
        if shape.kind is Kind.BEGIN and shape.read_only is not False:
            if shape.isolation is None:
                self.begins = BEGINS_AS_USUAL
            elif shape.isolation in READ_COMMITTED:
                self.begins = BEGINS_READ_COMMITTED
        self.introduces = 0
        if shape.introduces:
            quiet = shape.kind is Kind.READ or shape.reason == "show"
            self.introduces = INTRODUCES_QUIETLY if quiet else INTRODUCES
        self.stateful = shape.stateful or shape.signals
        self.signals = shape.signals
        self.unreadable = shape.unreadable
        self.writes = shape.writing
        self.defines = shape.defines
        self.tells_pid = shape.local == "backend_pid"
        self.read_only = shape.read_only is True
        self.epoch = -1
        self.service = -1
        self.plan = None
        self.writer = WRITES_NOTHING
        self.prepared = None if shape.prepared is None else Entry(shape.prepared)


cdef class SearchPath:
    """Schemas in the order in which names are looked for. The number is never given to another one."""

    def __init__(self, number, names):
        self.number = number
        self.names = names


cdef class ShapeCache:
    """Query texts to entries, bounded in number and bytes. `resolve(sql, search_path)` makes the shape that
    is missing.

    A search path is known by its number as long as somebody holds it (`search_path`); without one every shape is
    unknown. 0 is PostgreSQL's default, "$user", public; on UNRESOLVED no unqualified name is found.
    """

    def __cinit__(self, resolve, capacity=10_000):
        if capacity < 2:
            raise ValueError(f"capacity of a shape cache is {capacity}; it must be at least 2")
        cdef uint64_t buckets = 16
        while buckets < <uint64_t>capacity * 2:
            buckets *= 2
        self.capacity = capacity
        self.bucket_mask = buckets - 1
        self.slots = <Slot *>calloc(SLOTS, sizeof(Slot))
        self.templates = <TemplateSet *>calloc(TEMPLATE_SETS, sizeof(TemplateSet))
        self.nodes = <Node *>calloc(capacity, sizeof(Node))
        self.buckets = <int *>malloc(buckets * sizeof(int))
        self.scratch = <char *>malloc(SCRATCH_BYTES_KEPT)
        self.scratch_room = SCRATCH_BYTES_KEPT
        if (
            self.slots == NULL or self.templates == NULL or self.nodes == NULL or self.buckets == NULL
            or self.scratch == NULL
        ):
            raise MemoryError
        self._forget()

    def __init__(self, resolve, capacity=10_000):
        self.resolve = resolve
        self.paths = WeakValueDictionary()
        self.numbers = WeakValueDictionary()
        self.unknown_path = Entry(unknown("search_path"))
        self.usual_path = self.search_path(("$user", "public"))
        self.unresolved_path = self.search_path(())
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.secret = int.from_bytes(os.urandom(8), "little") | 1

    def __dealloc__(self):
        cdef int i
        if self.slots != NULL and self.templates != NULL and self.nodes != NULL and self.buckets != NULL:
            self._drop_entries()
            for i in range(SLOTS):
                free(self.slots[i].text)
            for i in range(TEMPLATE_SETS):
                free(self.templates[i].templates[0].text)
                free(self.templates[i].templates[1].text)
        free(self.slots)
        free(self.templates)
        free(self.nodes)
        free(self.buckets)
        free(self.scratch)

    @property
    def size(self):
        """Keys kept, markers and whole texts included."""
        return self.used

    @property
    def bytes_kept(self):
        """Bytes of all keys of the second level."""
        return self.key_bytes

    def search_path(self, names):
        """The SearchPath of a tuple of schema names. It is forgotten when nobody holds it any more."""
        cdef SearchPath path = self.paths.get(names)
        if path is None:
            path = SearchPath(self.next_path, names)
            self.next_path += 1
            self.paths[names] = self.numbers[path.number] = path
        return path

    def find(self, text, search_path_id=0):
        """The entry of a query text (bytes), as `lookup` gives it to the hot path."""
        cdef bytes kept = text
        return self.lookup(PyBytes_AS_STRING(kept), PyBytes_GET_SIZE(kept), search_path_id)

    def clear(self):
        """Forget every shape, as when the catalogue changed. Entries that others hold live on; search path
        numbers stay.
        """
        self._drop_entries()
        self._forget()

    cdef Entry lookup(self, const char *text, Py_ssize_t length, int search_path_id):
        cdef uint64_t hash = 0, key_hash
        cdef Py_ssize_t key_length
        cdef Slot *slot = NULL
        cdef Node *node = NULL
        cdef TemplateSet *templates = NULL
        cdef Template *template
        cdef Literals literals
        cdef SearchPath path
        if length <= TEXT_BYTES_MAX:
            hash = self._hash(text, length, search_path_id, False)
            slot = &self.slots[hash & (SLOTS - 1)]
            if (
                self.marks[hash & (SLOTS - 1)] == <uint8_t>(hash >> 56) and slot.entry != NULL
                and slot.hash == hash and slot.length == length
                and slot.search_path_id == search_path_id and memcmp(slot.text, text, length) == 0
            ):
                self.hits_text += 1
                return <Entry>slot.entry
        if length <= TEMPLATE_BYTES_MAX:
            templates = self._templates(text, length, search_path_id)
            template = self._fitting(templates, text, length, search_path_id)
            if template != NULL:
                self.hits_template += 1
                return <Entry>template.entry
        if length > STRIP_BYTES_MAX:
            path = self.numbers.get(search_path_id)
            if path is None:
                return self.unknown_path
            self.misses += 1
            return Entry(self.resolve(PyBytes_FromStringAndSize(text, length), path.names))

        if length > self.scratch_room // 2:
            self._make_room(2 * length)
        literals.count = 0
        key_length = strip(<Cursor>text, length, <unsigned char *>self.scratch, &literals)
        if key_length >= 0:
            key_hash = self._hash(self.scratch, key_length, search_path_id, False)
            node = self._node(self.scratch, key_length, key_hash, search_path_id, False)
        if node != NULL and node.entry != NULL and templates != NULL and literals.count:
            self._make_template(templates, text, length, search_path_id, &literals, node.entry)
        if node == NULL or node.entry == NULL:
            key_hash = self._hash(text, length, search_path_id, True)
            node = self._node(text, length, key_hash, search_path_id, True)
        if node != NULL:
            self.hits_stripped += 1
            self._keep(slot, hash, text, length, search_path_id, node.entry)
            return <Entry>node.entry
        if slot != NULL:
            slot.seen = hash
        return self._miss(text, length, search_path_id, key_length)

    cdef Entry _miss(self, const char *text, Py_ssize_t length, int search_path_id, Py_ssize_t key_length):
        # The key is copied before Python code runs: that code may look something up and use the scratch
        # buffer.
        cdef bytes sql = PyBytes_FromStringAndSize(text, length)
        cdef bytes key = None
        cdef SearchPath path = self.numbers.get(search_path_id)
        if path is None:
            return self.unknown_path
        if key_length >= 0:
            key = PyBytes_FromStringAndSize(self.scratch, key_length)
        self.misses += 1
        shape = self.resolve(sql, path.names)
        cdef Entry entry = Entry(shape)
        if key is not None and (entry.writes or len(shape.reads) > 1):
            entry.key = key[:SHOWN_BYTES]
        if key is not None and not shape.literal_sensitive:
            self._insert(key, search_path_id, False, entry)
            return entry
        # A text that does not parse says nothing about others of its key, so it leaves no marker.
        if key is not None and entry.kind != KIND_UNKNOWN:
            self._insert(key, search_path_id, False, None)
        self._insert(sql, search_path_id, True, entry)
        return entry

    cdef void _keep(self, Slot *slot, uint64_t hash, const char *text, Py_ssize_t length, int search_path_id,
                    void *entry) noexcept:
        cdef char *room
        cdef void *before
        if slot == NULL:
            return
        if slot.seen != hash:
            slot.seen = hash
            return
        if slot.room < length:
            room = <char *>realloc(slot.text, length)
            if room == NULL:
                return
            slot.text = room
            slot.room = length
        before = slot.entry
        memcpy(slot.text, text, length)
        slot.length = length
        slot.hash = hash
        self.marks[hash & (SLOTS - 1)] = <uint8_t>(hash >> 56)
        slot.search_path_id = search_path_id
        slot.entry = entry
        Py_INCREF(<object>entry)
        if before != NULL:
            Py_DECREF(<object>before)

    cdef TemplateSet *_templates(self, const char *text, Py_ssize_t length, int search_path_id) noexcept:
        """Where templates stand that begin like this text."""
        cdef Py_ssize_t alike = _first_literal(<Cursor>text, length)
        return &self.templates[self._hash(text, alike, search_path_id, False) & (TEMPLATE_SETS - 1)]

    cdef Template *_fitting(self, TemplateSet *templates, const char *text, Py_ssize_t length,
                            int search_path_id) noexcept:
        cdef Template *template
        cdef int i
        for i in range(2):
            template = &templates.templates[i]
            if (
                template.entry != NULL and template.search_path_id == search_path_id
                and _fits(template, <Cursor>text, length)
            ):
                templates.kept = i
                return template
        return NULL

    cdef void _make_template(self, TemplateSet *templates, const char *text, Py_ssize_t length,
                             int search_path_id, Literals *literals, void *entry) noexcept:
        cdef Template *template
        cdef char *room
        cdef void *before
        templates.kept = 1 - templates.kept
        template = &templates.templates[templates.kept]
        if template.room < length:
            room = <char *>realloc(template.text, length)
            if room == NULL:
                return
            template.text = room
            template.room = <int>length
        before = template.entry
        memcpy(template.text, text, length)
        template.length = <int>length
        template.search_path_id = search_path_id
        template.literals = literals[0]
        template.entry = entry
        Py_INCREF(<object>entry)
        if before != NULL:
            Py_DECREF(<object>before)

    cdef uint64_t _hash(self, const char *text, Py_ssize_t length, int search_path_id, bint whole) noexcept:
        cdef uint64_t seed = self.seed ^ WHOLE if whole else self.seed
        return shapes_hash(text, length, seed + <uint64_t>search_path_id, self.secret)

    cdef Node *_node(self, const char *key, Py_ssize_t length, uint64_t hash, int search_path_id,
                     bint whole) noexcept:
        cdef int i = self.buckets[hash & self.bucket_mask]
        cdef Node *node
        while i >= 0:
            node = &self.nodes[i]
            if (
                node.hash == hash and node.length == length and node.whole == whole
                and node.search_path_id == search_path_id and memcmp(node.key, key, length) == 0
            ):
                node.used = True
                return node
            i = node.next
        return NULL

    cdef int _insert(self, bytes key, int search_path_id, bint whole, Entry entry) except -1:
        cdef Py_ssize_t length = PyBytes_GET_SIZE(key)
        cdef const char *text = PyBytes_AS_STRING(key)
        cdef uint64_t hash = self._hash(text, length, search_path_id, whole)
        cdef Node *node
        cdef char *copy
        cdef int i
        if length > KEY_BYTES_MAX or self._node(text, length, hash, search_path_id, whole) != NULL:
            return 0
        copy = <char *>malloc(length if length else 1)
        if copy == NULL:
            raise MemoryError
        while self.used == self.capacity or self.key_bytes + length > KEYS_BYTES_MAX:
            self._evict()
        i = self.free_node
        node = &self.nodes[i]
        self.free_node = node.next
        memcpy(copy, text, length)
        node.key = copy
        node.length = length
        node.hash = hash
        node.search_path_id = search_path_id
        node.whole = whole
        node.used = False
        node.entry = NULL
        if entry is not None:
            Py_INCREF(entry)
            node.entry = <void *>entry
        node.next = self.buckets[hash & self.bucket_mask]
        self.buckets[hash & self.bucket_mask] = i
        self.used += 1
        self.key_bytes += length
        return 0

    cdef void _evict(self) noexcept:
        # The hand clears the mark of what was used since it last came by, and takes the first that was not.
        cdef Node *node = &self.nodes[self.hand]
        cdef int *link
        cdef void *entry
        while node.key == NULL or node.used:
            node.used = False
            self.hand = (self.hand + 1) % self.capacity
            node = &self.nodes[self.hand]
        link = &self.buckets[node.hash & self.bucket_mask]
        while link[0] != self.hand:
            link = &self.nodes[link[0]].next
        link[0] = node.next
        self.used -= 1
        self.key_bytes -= node.length
        entry = node.entry
        free(node.key)
        node.key = NULL
        node.entry = NULL
        node.next = self.free_node
        self.free_node = self.hand
        if entry != NULL:
            Py_DECREF(<object>entry)

    cdef void _drop_entries(self) noexcept:
        cdef void *entry
        cdef int i
        for i in range(SLOTS):
            entry = self.slots[i].entry
            self.slots[i].entry = NULL
            self.slots[i].seen = 0
            if entry != NULL:
                Py_DECREF(<object>entry)
        for i in range(2 * TEMPLATE_SETS):
            entry = self.templates[i // 2].templates[i % 2].entry
            self.templates[i // 2].templates[i % 2].entry = NULL
            if entry != NULL:
                Py_DECREF(<object>entry)
        for i in range(self.capacity):
            entry = self.nodes[i].entry
            free(self.nodes[i].key)
            self.nodes[i].key = NULL
            self.nodes[i].entry = NULL
            if entry != NULL:
                Py_DECREF(<object>entry)

    cdef void _forget(self) noexcept:
        # Every node on the free list, every chain empty.
        cdef int i
        cdef uint64_t bucket
        for i in range(self.capacity):
            self.nodes[i].next = i + 1
        for bucket in range(self.bucket_mask + 1):
            self.buckets[bucket] = -1
        self.free_node = 0
        self.used = 0
        self.hand = 0
        self.key_bytes = 0

    cdef int _make_room(self, Py_ssize_t length) except -1:
        cdef char *room = <char *>realloc(self.scratch, length)
        if room == NULL:
            raise MemoryError
        self.scratch = room
        self.scratch_room = length
        return 0


def kinds():
    """The kinds of statement as the hot path knows them, by name."""
    return {
        "EMPTY": KIND_EMPTY,
        "READ": KIND_READ,
        "WRITE": KIND_WRITE,
        "BEGIN": KIND_BEGIN,
        "COMMIT": KIND_COMMIT,
        "ROLLBACK": KIND_ROLLBACK,
        "SAVEPOINT": KIND_SAVEPOINT,
        "SESSION": KIND_SESSION,
        "COPY_IN": KIND_COPY_IN,
        "UNKNOWN": KIND_UNKNOWN,
        "SHOW_ROUTE": KIND_SHOW_ROUTE,
    }


def plan_kinds():
    """The kinds of plan as the hot path knows them, by name."""
    return {"FIXED": PLAN_FIXED, "SPLIT": PLAN_SPLIT, "REFUSED": PLAN_REFUSED, "PROVEN": PLAN_PROVEN}


def strip_bytes(text):
    """lexer.strip, compiled: the key of a query text (bytes), or None."""
    cdef bytes kept = text
    cdef bytes key = PyBytes_FromStringAndSize(NULL, 2 * PyBytes_GET_SIZE(kept))
    cdef Py_ssize_t length = strip(
        <Cursor>PyBytes_AS_STRING(kept), PyBytes_GET_SIZE(kept), <unsigned char *>PyBytes_AS_STRING(key), NULL
    )
    return None if length < 0 else key[:length]


def bench_lookup(ShapeCache cache, text, int count, bint fresh=False):
    """Nanoseconds per lookup of `text`. With `fresh` the last run of digits in it is counted up each time."""
    cdef bytearray copy = bytearray(text)
    cdef char *at = copy
    cdef Py_ssize_t length = len(copy), last = length - 1, digit
    while last >= 0 and not c'0' <= at[last] <= c'9':
        last -= 1
    if fresh and last < 0:
        raise ValueError("the text holds no digit to count up")
    cache.lookup(at, length, 0)
    started = time.perf_counter_ns()
    for _ in range(count):
        if fresh:
            digit = last
            while digit >= 0 and at[digit] == c'9':
                at[digit] = c'0'
                digit -= 1
            if digit >= 0 and c'0' <= at[digit] < c'9':
                at[digit] += 1
        cache.lookup(at, length, 0)
    return (time.perf_counter_ns() - started) / count
