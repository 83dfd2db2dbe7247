# cython: language_level=3
"""Buffers, frames and expected replies as C structs: what the hot path touches for every message."""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove


# ---------------------------------------------------------------------------------------------------
# Buffer: bytes between `start` and `end` are waiting; what lies before `start` has been consumed.
# An empty buffer holds no memory, so an idle client costs none.

cdef struct Buffer:
    uint8_t* data
    size_t start
    size_t end
    size_t size


cdef inline size_t buffer_waiting(Buffer* buffer) noexcept nogil:
    return buffer.end - buffer.start


cdef inline void buffer_free(Buffer* buffer) noexcept nogil:
    free(buffer.data)
    buffer.data = NULL
    buffer.start = buffer.end = buffer.size = 0


cdef inline uint8_t* buffer_reserve(Buffer* buffer, size_t count) noexcept nogil:
    """Room for `count` more bytes behind `end`; NULL when memory is exhausted."""
    cdef size_t waiting = buffer.end - buffer.start
    cdef size_t wanted
    cdef uint8_t* grown
    if buffer.size - buffer.end >= count:
        return buffer.data + buffer.end
    if buffer.size - waiting >= count and buffer.start >= waiting:
        memcpy(buffer.data, buffer.data + buffer.start, waiting)
        buffer.start = 0
        buffer.end = waiting
        return buffer.data + waiting
    wanted = 512
    while wanted < waiting + count:
        wanted *= 2
    grown = <uint8_t*> malloc(wanted)
    if grown == NULL:
        return NULL
    if waiting:
        memcpy(grown, buffer.data + buffer.start, waiting)
    free(buffer.data)
    buffer.data = grown
    buffer.size = wanted
    buffer.start = 0
    buffer.end = waiting
    return grown + waiting


cdef inline int buffer_append(Buffer* buffer, const void* source, size_t count) except -1:
    cdef uint8_t* room
    if count == 0:
        return 0
    room = buffer_reserve(buffer, count)
    if room == NULL:
        raise MemoryError(f"{count} bytes for a connection's buffer")
    memcpy(room, source, count)
    buffer.end += count
    return 0


cdef inline void buffer_consume(Buffer* buffer, size_t count) noexcept nogil:
    buffer.start += count
    if buffer.start >= buffer.end:
        buffer_free(buffer)


# ---------------------------------------------------------------------------------------------------
# Frames: one type byte, then a big-endian int32 length that counts itself but not the type byte.

cdef enum:
    FRAME_HEADER = 5

cdef inline uint32_t read_uint32(const uint8_t* at) noexcept nogil:
    return (<uint32_t> at[0] << 24) | (<uint32_t> at[1] << 16) | (<uint32_t> at[2] << 8) | at[3]


cdef inline void write_uint32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t> (value >> 24)
    at[1] = <uint8_t> (value >> 16)
    at[2] = <uint8_t> (value >> 8)
    at[3] = <uint8_t> value


cdef inline int64_t frame_size(const uint8_t* at, size_t available, uint32_t body_bytes_max) noexcept nogil:
    """Bytes of the frame at `at`, type byte included; 0: header incomplete; -1: impossible length."""
    cdef uint32_t length
    if available < FRAME_HEADER:
        return 0
    length = read_uint32(at + 1)
    if length < 4 or length - 4 > body_bytes_max:
        return -1
    return <int64_t> length + 1


# ---------------------------------------------------------------------------------------------------
# Replies: the FIFO of what one link still owes (reference: PgBouncer's outstanding requests).

cdef enum ReplyCode:
    REPLY_NONE = 0
    REPLY_PARSE = 1
    REPLY_BIND = 2
    REPLY_CLOSE = 3
    REPLY_DESCRIBE_STATEMENT = 4
    REPLY_DESCRIBE_PORTAL = 5
    REPLY_EXECUTE = 6
    REPLY_SYNC = 7
    REPLY_QUERY = 8          # simple query and function call: everything up to ReadyForQuery
    REPLY_COPY_END = 9       # marks where the client's CopyDone or CopyFail stands; owes nothing

cdef enum ReplyAction:
    ACTION_FORWARD = 0       # the client asked, the client gets it
    ACTION_SKIP = 1          # the proxy asked, nobody gets it
    ACTION_FAKE = 2          # the client asked, the proxy answers; never sent to the server

cdef enum ReplyVerdict:
    VERDICT_DESYNC = -1      # the server sent what nobody asked for
    VERDICT_FORWARD = 0
    VERDICT_SKIP = 1
    VERDICT_POPPED = 2       # or-ed in: the head was answered in full

cdef struct Reply:
    int64_t started_ns       # when the request was sent (CLOCK_MONOTONIC)
    int16_t service          # whose table it was, -1 for nobody's
    uint8_t code
    uint8_t action
    uint8_t op               # 0 read, 1 write, 2 other
    uint16_t flags           # the relay's own marks

cdef struct Replies:
    Reply* ring
    uint32_t head
    uint32_t count
    uint32_t mask            # ring size - 1, ring size is a power of two


cdef inline void replies_free(Replies* replies) noexcept nogil:
    free(replies.ring)
    replies.ring = NULL
    replies.head = replies.count = replies.mask = 0


cdef inline Reply* replies_head(Replies* replies) noexcept nogil:
    return &replies.ring[replies.head & replies.mask]


cdef inline Reply* replies_at(Replies* replies, uint32_t index) noexcept nogil:
    return &replies.ring[(replies.head + index) & replies.mask]


cdef inline void replies_pop(Replies* replies) noexcept nogil:
    replies.head += 1
    replies.count -= 1


cdef int replies_grow(Replies* replies) except -1


cdef inline Reply* replies_push(Replies* replies, uint8_t code, uint8_t action) except NULL:
    cdef Reply* reply
    if replies.ring == NULL or replies.count > replies.mask:
        replies_grow(replies)
    reply = replies_at(replies, replies.count)
    replies.count += 1
    reply.code = code
    reply.action = action
    reply.started_ns = 0
    reply.service = -1
    reply.op = 2
    reply.flags = 0
    return reply


cdef inline int replies_take(Replies* replies, uint8_t kind) noexcept nogil:
    """What to do with a backend message of type `kind`; pops the head where the message completes it.

    ErrorResponse is not decided here: see `replies_fail`.
    """
    cdef Reply* head
    cdef uint8_t code
    cdef bint complete
    if kind == b'N' or kind == b'S' or kind == b'A':
        return VERDICT_FORWARD       # asynchronous: answers nothing
    if replies.count == 0:
        return VERDICT_DESYNC
    head = replies_head(replies)
    code = head.code
    if code == REPLY_QUERY:
        complete = kind == b'Z'
        if kind == b'1' or kind == b'2' or kind == b'3' or kind == b't' or kind == b'n' or kind == b's':
            return VERDICT_DESYNC
    elif code == REPLY_EXECUTE:
        complete = kind == b'C' or kind == b's' or kind == b'I'
        if not complete and kind != b'D' and kind != b'd' and kind != b'c' and kind != b'H' and kind != b'G':
            return VERDICT_DESYNC
    elif code == REPLY_SYNC:
        complete = kind == b'Z'
        if not complete:
            return VERDICT_DESYNC
    elif code == REPLY_PARSE:
        complete = kind == b'1'
        if not complete:
            return VERDICT_DESYNC
    elif code == REPLY_BIND:
        complete = kind == b'2'
        if not complete:
            return VERDICT_DESYNC
    elif code == REPLY_CLOSE:
        complete = kind == b'3'
        if not complete:
            return VERDICT_DESYNC
    elif code == REPLY_DESCRIBE_STATEMENT:
        complete = kind == b'T' or kind == b'n'
        if not complete and kind != b't':
            return VERDICT_DESYNC
    elif code == REPLY_DESCRIBE_PORTAL:
        complete = kind == b'T' or kind == b'n'
        if not complete:
            return VERDICT_DESYNC
    else:
        return VERDICT_DESYNC
    if not complete:
        return head.action
    kind = head.action
    replies_pop(replies)
    return kind | VERDICT_POPPED


cdef inline bint replies_fails_to_sync(Replies* replies) noexcept nogil:
    """Whether an ErrorResponse now makes the server skip what follows until Sync."""
    cdef uint8_t code
    if replies.count == 0:
        return False
    code = replies_head(replies).code
    return code != REPLY_SYNC and code != REPLY_QUERY


cdef inline void replies_end_copy(Replies* replies) noexcept nogil:
    """COPY FROM STDIN under the extended protocol is over: the server has ignored every Sync it read during
    the copy (protocol chapter, "COPY Operations"), so those sent before CopyDone or CopyFail are not owed.
    """
    cdef uint32_t index, cut = replies.count
    for index in range(replies.count):
        if (replies_at(replies, index).code == REPLY_COPY_END
                and replies_at(replies, index).action == ACTION_FORWARD):
            cut = index + 1
            break
    while cut:
        replies_pop(replies)
        cut -= 1
