# Answers what needs no server: BEGIN waits for the first statement, and ends with nobody knowing if there is none.

cdef class Local(Unit):
    """Transactions that no server has seen yet."""

    cdef bint answer_locally(self, Entry entry, const uint8_t* frame, int64_t size) except -1:
        """BEGIN waits for the first statement; COMMIT and ROLLBACK of a transaction nobody has seen need no server."""
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if command_complete(entry) is None:
            return False
        if entry.kind == KIND_BEGIN:
            if self.status != b"I" or buffer_waiting(&self.begin):
                return False
            buffer_append(&self.begin, frame, size)
            self.begin_token = 0
            self.status = b"T"
            self.note_begin(entry)
            return True
        if not buffer_waiting(&self.begin):
            return False
        buffer_free(&self.begin)
        self.begin_statement = None
        self.end_at_copy()
        return True

    cdef bytes local_answer(self, Entry entry):
        """CommandComplete of what `answer_locally` has dealt with."""
        cdef bint failed = self.status == b"E"
        if entry.kind != KIND_BEGIN:
            self.status = b"I"
        return COMMAND_COMPLETE["ROLLBACK"] if failed else command_complete(entry)

    cdef inline bint may_be_local(self, Entry entry) noexcept:
        return self.link is None and (
            entry.kind == KIND_BEGIN or entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK)

    cdef size_t local_batch(self, Entry entry, const uint8_t* data, int64_t size, size_t available) except? 0:
        """Answers [Parse] Bind [Describe] Execute of BEGIN, COMMIT or ROLLBACK without a server.

        Returns the bytes dealt with, 0 if this is something else. What follows (Sync, or a statement in the same
        batch, as pgjdbc sends it) is dealt with as usual.
        """
        cdef size_t at = 0, rest, stop
        cdef int64_t here
        cdef uint8_t kind
        cdef bytes answers = b"", frames
        cdef bint executed = False
        cdef Statement statement = None
        while not executed:
            here = frame_size(data + at, available - at, HELD_FRAME_BYTES_MAX)
            if here <= 0 or <size_t> here > available - at:
                return 0
            kind = data[at]
            if kind == b"P" and at == 0 and data[5] == 0:
                answers += b"1\0\0\0\x04"
            elif (kind == b"B" and bind_header(data + at, here) > 0 and data[at + 5] == 0
                    and (at == 0 or data[at + 6] == 0)):
                answers += b"2\0\0\0\x04"
            elif kind == b"D" and at > 0 and here == 7 and data[at + 5] == b"P":
                answers += b"n\0\0\0\x04"
            elif kind == b"E" and at > 0 and here == 10:
                executed = True
            else:
                return 0
            at += here
        if data[0] == b"P":
            self.remember_unnamed(entry, data + 6, size - 6, True)
        else:
            rest = bind_header(data, size)
            stop = zero_from(data, 5, size) + 1
            if rest - 1 > stop:
                statement = self.find_statement(data + stop, rest - 1 - stop)
        frames = b"" if statement is not None else (
            b"P" + (buffer_waiting(&self.unnamed) + 5).to_bytes(4, "big") + b"\0"
            + (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end])
        name = b"" if statement is None else statement.name
        frames += (b"B" + (len(name) + 12).to_bytes(4, "big") + b"\0" + name + b"\0\0\0\0\0\0\0"
                   b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04")
        if not self.answer_locally(entry, <const uint8_t*> PyBytes_AS_STRING(frames), len(frames)):
            return 0
        self.in_batch = False
        if entry.kind == KIND_BEGIN:
            self.begin_statement = statement
            self.begin_token = self.unnamed_token if statement is None else -1
        self.write_bytes(answers + self.local_answer(entry))
        return at
