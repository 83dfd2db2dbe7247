# A read that a copy cannot answer is asked again, of the owner: kept until the client has seen any of its answer.

cdef class Again(Local):
    """The unit as it could be sent once more."""

    cdef size_t whole_batch(self, const uint8_t* data, size_t available) except? 0:
        """Bytes of the batch up to its Sync if all of it is here and every statement in it is a plain read that
        the same copy may answer; else 0."""
        cdef size_t at = 0, text, stop, rest, name
        cdef int64_t size
        cdef uint8_t kind
        cdef Entry entry, first = None
        cdef Entry unnamed = self.unnamed_entry if self.unnamed_token else None
        cdef Statement statement
        cdef bint inside = self.status != b"I"
        cdef bint parsed = False, bound = False
        if inside and not self.at_copy and not self.may_begin_at_copy():
            return 0
        while True:
            size = frame_size(data + at, available - at, HELD_FRAME_BYTES_MAX)
            if size <= 0 or <size_t> size > available - at or at + size > REPLAY_BYTES_MAX:
                return 0
            kind = data[at]
            if kind == b"S":
                if first is None or inside and (bound or tells_time(data, at + size)):
                    return 0                   # a portal that is to be run by a later batch must be there then
                self.replay.start = self.replay.end = 0
                buffer_append(&self.replay, data, at + size)
                return at + size
            if kind == b"P":
                if size < 8 or data[at + 5] != 0:
                    return 0
                stop = zero_from(data, at + 6, at + size)
                if stop == 0:
                    return 0
                entry = unnamed = self.entry_of(<const char*> data + at + 6, stop - at - 6)
                parsed = True
            elif kind == b"B":
                rest = bind_header(data + at, size)
                if rest == 0 or inside and data[at + 5] != 0:
                    return 0                   # a portal that has a name is there for the rest of the transaction
                bound = True
                name = zero_from(data + at, 5, size) + 1
                if rest - 1 > name:
                    statement = self.find_statement(data + at + name, rest - 1 - name)
                    if statement is None or inside and statement.timed:
                        return 0
                    entry = self.entry_for(statement)
                elif unnamed is None or inside and not parsed and tells_time(
                        self.unnamed.data + self.unnamed.start, buffer_waiting(&self.unnamed)):
                    return 0
                else:
                    entry = unnamed
            elif kind == b"D" and size > 7 and data[at + 5] == b"S":
                statement = self.find_statement(data + at + 6, size - 7)
                if statement is None:
                    return 0
                entry = self.entry_for(statement)
            elif kind == b"D" or kind == b"H" and size == 5:
                entry = None                   # pg8000 asks for all that is there before its Sync
            elif kind == b"E":
                if inside and (size != 10 or read_uint32(data + at + 6) != 0):
                    return 0                   # and so is one that has not returned all its rows
                bound = False
                entry = None
            else:
                return 0
            if entry is not None:
                if not (entry.splittable or inside and entry.ends):
                    return 0
                if first is None:
                    first = entry
                elif entry is not first:
                    return 0
            at += size

    cdef inline bint is_whole(self, const uint8_t* data, size_t available) except -1:
        """Whether the batch that begins here, if it may go to a copy, is all of it here and fit for that.

        While answers are due it will be asked again: what could be sent once more is still the unit before.
        """
        return self.relay.splitting and not self.force_owner and (
            self.link is None or (self.at_copy and self.link.replies.count == 0)) and (
            self.whole_batch(data, available) > 0)

    cdef int keep_replay(self, const uint8_t* data, int64_t size) except -1:
        self.replay.start = self.replay.end = 0
        if size <= REPLAY_BYTES_MAX:
            buffer_append(&self.replay, data, size)
        return 0

    cdef bint may_retry(self) noexcept:
        """Whether the unit went to a copy, whole, and the client has not seen any of its answer."""
        return (self.unit_on_copy and not self.answered and not self.in_batch and (self.status == b"I" or self.at_copy)
                and buffer_waiting(&self.replay) > 0 and self.phase != PHASE_CLOSING and self.phase != PHASE_WAITING)

    cdef int retry(self) except -1:
        """Asks the owner what a copy could not answer."""
        cdef Link link = self.link
        cdef Buffer again
        link.session = None
        self.link = None
        self.routed = False
        self.force_owner = True
        if self.at_copy:
            self.begin_again()
        again = self.replay
        self.replay = Buffer(NULL, 0, 0, 0)
        buffer_append(&again, self.inbound.data + self.inbound.start, buffer_waiting(&self.inbound))
        if self.phase == PHASE_LEAVING:
            buffer_append(&again, b"X\0\0\0\x04", 5)
        buffer_free(&self.inbound)
        self.inbound = again
        self.await_replies()
        self.relay.resume(self)
        return 0
