# Asks a server, once a transaction has ended, what became of the settings that its statements may have changed and
# of the state the session keeps its link for. The client does not wait for the answer; the next session does.

cdef int QUESTIONS_MAX = 3             # asked so often when the answer is cancelled


cdef class ReadBack(Owed):
    """What is known of the state a server is in."""

    cdef dict touched                  # parameters to ask for, name -> whether it was reset and not set; or None
    cdef set doubted                   # pins to ask for, or None
    cdef dict asked                    # what the outstanding question is about; None: none is outstanding
    cdef list asked_causes
    cdef bint renewed                  # a pin that is asked for was set again since
    cdef int questions                 # asked since the last answer

    cdef int append_frame(self, bytes frame) except -1:
        raise NotImplementedError("append_frame belongs to Link")

    cdef int settle(self, Reply* reply) except -1:
        if reply.flags & FLAG_UNREADABLE:
            self.pin("unreadable")
        if reply.flags & FLAG_QUESTION:
            self.asked = None
        if reply.flags & FLAG_REMAKES:
            self.making.popleft()
        if reply.flags & FLAG_PREPARES:
            name, text = self.preparing
            self.prepares[name] = text
            self.tainted = self.tainted or len(self.prepares) > PREPARES_PER_LINK_MAX
            if self.session is not None:
                self.session.prepared(name, text)
        return Owed.settle(self, reply)

    cdef int touch(self, str name, bint reset) except -1:
        """A parameter may have another value once the transaction has ended; `reset`: its default, if any."""
        if self.touched is None:
            self.touched = {}
        if not reset or name not in self.touched:
            self.touched[name] = reset
        return 0

    cdef int doubt(self, object causes) except -1:
        """The state behind these pins may be gone once the transaction has ended."""
        causes = self.pins.intersection(causes, VERIFIED)
        if causes:
            self.doubted = causes | (self.doubted or set())
        return 0

    cdef bint pin(self, str cause) except -1:
        """The session keeps this link; True if that is news."""
        if self.doubted is not None:
            self.doubted.discard(cause)
        if self.asked_causes is not None and cause in self.asked_causes:
            self.renewed = True
        if cause in self.pins:
            return False
        self.pins.add(cause)
        self.relay.count_pin(cause)
        return True

    cdef bint must_ask(self) except -1:
        return (self.touched is not None and not self.pins) or self.doubted is not None

    cdef int ask(self) except -1:
        cdef bytes sql
        self.asked = self.touched or {}
        self.asked_causes = sorted(self.doubted or ())
        self.touched = self.doubted = None
        self.renewed = False
        self.questions += 1
        sql = settings_of.question(list(self.asked), self.asked_causes).encode()
        self.unnamed_token = 0             # dropped by every simple query
        replies_push(&self.replies, REPLY_QUERY, ACTION_SKIP).flags = FLAG_QUESTION
        return self.append_frame(b"Q" + (len(sql) + 5).to_bytes(4, "big") + sql + b"\0")

    cdef int on_answer(self, const uint8_t* data, size_t size) except -1:
        """The one row that answers `ask`."""
        cdef list row
        if <size_t> (read_uint32(data + 1) + 1) > size:
            self.pin("settings_size")
            return 0
        row = row_values(data + 5, size - 5)
        if not self.renewed:
            self.pins.difference_update(set(self.asked_causes) - settings_of.still_held(self.asked_causes, row))
        try:
            settings = settings_of.answered(self.settings, self.asked, row)
        except settings_of.Untrackable as untrackable:
            self.pin(str(untrackable))
            return 0
        self.settings = settings
        if self.session is not None:
            self.session.take_settings(settings)
        self.questions = 0
        return 0

    cdef int on_no_answer(self, bytes sqlstate) except -1:
        """The question ended in an error: it is asked again if it was cancelled, else the state is not known."""
        if sqlstate == b"57014" and self.questions < QUESTIONS_MAX:
            for name, reset in self.asked.items():
                self.touch(name, reset)
            self.doubt(self.asked_causes)
        elif self.asked:
            self.pin("not_told")
        return 0


cdef list row_values(const uint8_t* body, size_t size):
    """The values of a DataRow's body: bytes, or None for NULL."""
    cdef size_t at = 2
    cdef int64_t length
    values = []
    while at + 4 <= size:
        length = <int32_t> read_uint32(body + at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        if at + length > size:
            raise ValueError("a DataRow that ends before its values")
        values.append((<const char*> body)[at:at + length])
        at += length
    return values
