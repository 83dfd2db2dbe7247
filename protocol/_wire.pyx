# cython: language_level=3
"""The structs of `_wire.pxd` as Python objects, so that one test feeds them and their plain-Python twins."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE


cdef int replies_grow(Replies* replies) except -1:
    """Makes room for twice as many replies, 8 at first."""
    cdef uint32_t index, size = 8 if replies.ring == NULL else (replies.mask + 1) * 2
    cdef Reply* grown = <Reply*> malloc(size * sizeof(Reply))
    if grown == NULL:
        raise MemoryError("replies of a link")
    for index in range(replies.count):
        grown[index] = replies_at(replies, index)[0]
    free(replies.ring)
    replies.ring = grown
    replies.mask = size - 1
    replies.head = 0
    return 0


def scan(bytes data not None, int body_bytes_max):
    """Cuts `data` into frames: ([(type, start, end)...], rest, ok); the twin is `frames.scan`."""
    cdef const uint8_t* base = <const uint8_t*> PyBytes_AS_STRING(data)
    cdef size_t total = PyBytes_GET_SIZE(data)
    cdef size_t at = 0
    cdef int64_t size
    frames = []
    while True:
        size = frame_size(base + at, total - at, body_bytes_max)
        if size < 0:
            return frames, at, False
        if size == 0 or <size_t> size > total - at:
            return frames, at, True
        frames.append((base[at], at, at + size))
        at += size


cdef class ReplyQueue:
    """The expected replies of one link; the twin is `replies.ReplyQueue`."""

    cdef Replies replies

    def __dealloc__(self):
        replies_free(&self.replies)

    def __len__(self):
        return self.replies.count

    def push(self, int code, int action=ACTION_FORWARD):
        replies_push(&self.replies, code, action)

    def head(self):
        """(code, action) of what is owed next, or None."""
        if self.replies.count == 0:
            return None
        return replies_head(&self.replies).code, replies_head(&self.replies).action

    def take(self, int kind):
        """Verdict on a backend message of type byte `kind`; see `ReplyVerdict`."""
        return replies_take(&self.replies, kind)

    def fakes(self):
        """Pops and returns the codes of the proxy's own answers that are due now."""
        due = []
        while self.replies.count:
            if replies_head(&self.replies).code == REPLY_COPY_END:
                replies_pop(&self.replies)
            elif replies_head(&self.replies).action == ACTION_FAKE:
                due.append(replies_head(&self.replies).code)
                replies_pop(&self.replies)
            else:
                break
        return due

    def fail(self):
        """An ErrorResponse arrived: pops what the server will not answer; returns (popped codes, synced).

        `synced` is False when no Sync has been sent yet: the server skips everything up to the next one,
        simple queries too (postgres.c, ignore_till_sync).
        """
        popped = []
        if not replies_fails_to_sync(&self.replies):
            return popped, True
        while self.replies.count and replies_head(&self.replies).code != REPLY_SYNC:
            popped.append(replies_head(&self.replies).code)
            replies_pop(&self.replies)
        return popped, self.replies.count > 0

    def end_copy(self):
        replies_end_copy(&self.replies)


cdef class ByteBuffer:
    """A `Buffer`, for the tests of its arithmetic."""

    cdef Buffer buffer

    def __dealloc__(self):
        buffer_free(&self.buffer)

    def append(self, bytes data not None):
        buffer_append(&self.buffer, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def consume(self, size_t count):
        buffer_consume(&self.buffer, min(count, buffer_waiting(&self.buffer)))

    def waiting(self):
        return (<char*> self.buffer.data)[self.buffer.start:self.buffer.end] if self.buffer.data != NULL else b""
