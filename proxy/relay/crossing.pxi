# What touches tables of several owners is noted, for `pgshunt readiness`.

cdef enum:
    CROSSED_MAX = 64                   # in one transaction; more are counted at once


cdef class Crossing(Moving):
    """The statements and transactions of a session that would not fit into one service's database."""

    cdef inline int observe(self, Entry entry) except -1:
        """Notes what touches tables of several owners: a statement, or the writes of a transaction."""
        if entry.crosses:
            self.note_crossing((entry,))
        if entry.writer != WRITES_NOTHING and entry.writer != self.writer:
            self.note_writer(entry)
        return 0

    cdef int note_writer(self, Entry entry) except -1:
        cdef Entry before
        if self.writer == WRITES_NOTHING:
            self.writer = entry.writer
            self.first_write = entry
            return 0
        if self.writes is None:
            self.writes = [self.first_write]
        for before in self.writes:
            if before.writer == entry.writer:
                return 0
        self.writes.append(entry)
        return 0

    cdef inline int end_writes(self) except -1:
        """The transaction is at its end, whichever."""
        self.writer = WRITES_NOTHING
        if self.writes is not None:
            self.note_crossing(tuple(self.writes))
            self.writes = None
        return 0

    cdef int note_crossing(self, tuple what) except -1:
        """It is counted once the server has answered, and with that told what the session is called by now."""
        if self.crossed is None:
            self.crossed = []
        self.crossed.append(what)
        return self.count_crossings() if len(self.crossed) >= CROSSED_MAX else 0

    cdef int count_crossings(self) except -1:
        for what in self.crossed:
            self.relay.crossings.note(what, self.identity, self.settings)
        self.crossed = None
        return 0
