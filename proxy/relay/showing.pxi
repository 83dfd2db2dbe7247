# SHOW pgshunt.route, which no server can answer: as a simple query, or as a batch of its own.

cdef class Showing(Adding):
    """What a session is told of its own routes."""

    cdef int show_query(self) except -1:
        """TAKEN: it is answered. STOP: it must wait. SHOW_NOT_OURS: in a failed transaction the server says so."""
        if self.link is not None and self.link.replies.count:
            self.await_replies()    # what it is to show, and whether the transaction has failed
            return STOP
        if self.status == b"E":
            return SHOW_NOT_OURS
        self.unnamed_token = 0             # dropped by every simple query
        self.write_bytes(shown.description() + self.relay.show_route(self) + ready_for_query(self.status))
        return TAKEN

    cdef int show_batch(self, const uint8_t* data, size_t available) except -2:
        """Answers a batch that does nothing else, up to its Sync; `consumed_ahead` are its bytes.

        TAKEN, STOP or SHOW_NOT_OURS, as `show_query`. STOP as well while the rest of it is still to come.
        """
        cdef list prepared = []
        cdef int verdict = self.show_messages(data, available, prepared)
        if verdict != TAKEN and prepared:
            for name in prepared:
                del self.statements[name]
            self.last_statement = None
        return verdict

    cdef int show_messages(self, const uint8_t* data, size_t available, list prepared) except -2:
        """`show_batch`; what it has prepared by name on the way is added to `prepared`."""
        cdef size_t at = 0, text, stop, rest, portal_end
        cdef int64_t size
        cdef uint8_t kind
        cdef Entry entry
        cdef bytes answers = b"", name
        if self.link is not None and (self.link.replies.count or self.link.own_names):
            if self.link.own_names:
                return SHOW_NOT_OURS
            self.await_replies()
            return STOP
        if self.status == b"E":
            return SHOW_NOT_OURS
        while True:
            size = frame_size(data + at, available - at, HELD_FRAME_BYTES_MAX)
            if size < 0 or at + size > REPLAY_BYTES_MAX:
                return SHOW_NOT_OURS
            if size == 0 or <size_t> size > available - at:
                return STOP
            kind = data[at]
            if kind == b"S":
                at += size
                break
            if kind == b"P":
                text = parse_header(data + at, size)
                stop = zero_from(data + at, text, size) if text else 0
                if stop == 0:
                    return SHOW_NOT_OURS
                entry = self.entry_of(<const char*> data + at + text, stop - text)
                if entry.kind != KIND_SHOW_ROUTE:
                    return SHOW_NOT_OURS
                name = (<const char*> data)[at + 5:at + text - 1]
                if not name:
                    self.remember_unnamed(entry, data + at + text, size - text, True)
                elif self.statements is not None and name in self.statements:
                    return SHOW_NOT_OURS
                else:
                    if self.statements is None:
                        self.statements = {}
                    self.statements[name] = self.relay.statement(
                        (<const char*> data)[at + text:at + size], entry, self.search_path_id, self.reading, True)
                    prepared.append(name)
                answers += b"1\0\0\0\x04"
            elif kind == b"B":
                rest = bind_header(data + at, size)
                portal_end = zero_from(data, at + 5, at + size) + 1
                if rest == 0 or data[at + 5] != 0 or not self.shows(data + portal_end, at + rest - 1 - portal_end):
                    return SHOW_NOT_OURS
                answers += b"2\0\0\0\x04"
            elif kind == b"D" and size > 6 and data[at + 5] == b"S":
                if not self.shows(data + at + 6, size - 7):
                    return SHOW_NOT_OURS
                answers += b"t\0\0\0\x06\0\0" + shown.description()
            elif kind == b"D" and size == 7:
                answers += shown.description()
            elif kind == b"E" and size == 10:
                answers += self.relay.show_route(<Session> self)
            else:
                return SHOW_NOT_OURS
            at += size
        self.consumed_ahead = at
        self.write_bytes(answers + ready_for_query(self.status))
        return TAKEN

    cdef bint shows(self, const uint8_t* name, size_t length) except -1:
        """Whether the statement of that name is one of these."""
        cdef Statement statement
        if length == 0:
            return self.unnamed_token != 0 and self.unnamed_entry.kind == KIND_SHOW_ROUTE
        statement = self.find_statement(name, length)
        return statement is not None and self.entry_for(statement).kind == KIND_SHOW_ROUTE
