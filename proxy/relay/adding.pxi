# Columns for a table that is being moved: the supervisor adds them to both databases, and the session waits.

cdef object ASKED = "asked"
cdef str MAY_BE_ADDED = "The columns may still be added: look whether they are there before you repeat it."


cdef class Adding(Signalling):
    """A session whose ALTER TABLE … ADD COLUMN goes to no link of its own."""

    cdef bint may_add(self, Entry entry) except -1:
        """Whether the statement would be refused for what may be an addition."""
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        return entry.plan_kind == PLAN_REFUSED and entry.reason == REASON_FROZEN

    cdef int add_columns(self, Entry entry, const uint8_t* data, size_t here) except -1:
        """TAKEN: it is answered. STOP: it must wait. NOT_ADDED: it is dealt with like any other."""
        cdef object answer = self.added
        cdef bint failed
        if answer is None:
            if self.link is not None and self.link.replies.count:
                self.await_replies()           # whether a transaction is open is known when these are in
                return STOP
            if self.link is not None or self.in_batch or self.status != b"I" or self.search_path is None:
                return NOT_ADDED
            if not self.relay.additions.ask(
                    self, (<const char*> data)[5:here - 1], self.identity, self.settings.values,
                    self.search_path.names if self.search_path_id != UNRESOLVED else ()):
                return NOT_ADDED
            self.added = answer = ASKED
            self.added_ns = self.poller.now_ns
        if answer is ASKED:
            self.await_replies()
            return STOP
        self.added = None
        failed = answer.startswith(b"E")
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if not failed:  # an error may be any server's, and says nothing of the shared database
            self.relay.count_call(
                entry.service, 0, OP_OTHER, self.poller.now_ns - self.added_ns, 0, False, 0)
            self.relay.definitions[self.relay.index] += 1
        self.relay.urgent = True               # the supervisor reads what was defined
        self.unnamed_token = 0                 # dropped by every simple query
        self.write_bytes(answer + ready_for_query(self.status))
        return TAKEN
