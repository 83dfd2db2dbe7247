# What a session's statements leave behind for its next ones: noted as they are sent, brought to each link it gets.

# Functions of the catalogue that the large object calls of libpq name by OID (pg_proc.dat); they leave no state behind.
cdef frozenset LARGE_OBJECT_CALLS = frozenset({715, 764, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004,
                                               3170, 3171, 3172, 3457, 3458, 3459, 3460})


cdef class State(Leaving):
    """The settings a session stands in."""

    cdef inline Entry entry_of(self, const char* text, size_t length):
        if not self.plain_text:
            return self.relay.unread
        return self.relay.shapes.lookup(text, <Py_ssize_t> length, self.search_path_id)

    cdef inline Entry entry_for(self, Statement statement):
        """What a prepared statement does on the search path as it is now."""
        if statement.search_path_id == self.search_path_id:
            if statement.renewal != self.relay.renewals:
                statement.entry = self.entry_of(
                    PyBytes_AS_STRING(statement.body), statement.body.index(b"\0"))
                statement.renewal = self.relay.renewals
            return statement.entry
        return self.entry_of(PyBytes_AS_STRING(statement.body), statement.body.index(b"\0"))

    cdef int name_statements(self) except -1:
        raise NotImplementedError("name_statements belongs to Statements")

    cdef inline int note_statement(self, Entry entry) except -1:
        """A statement is sent that may change what the next ones find."""
        if entry.defines:
            self.link.defined = True
            if entry.shape.makes is not None:
                self.relay.learn(entry.shape.makes)
        if entry.tells_pid:
            self.process_id_asked = self.link.process_id
        if self.unclear and (entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK or entry.kind == KIND_SAVEPOINT
                             or entry.shape.statements > 1):
            self.search_path_id = UNRESOLVED       # what was set may have been taken back
        return self.note_state(entry.shape) if entry.stateful else 0

    cdef Entry what_is_prepared(self, str name):
        """What EXECUTE of this name does now, with the search path and the catalogue as they are; None: not known."""
        cdef bytes text = (self.prepares or {}).get(name.encode())
        return None if text is None else self.entry_of(PyBytes_AS_STRING(text), len(text)).prepared

    cdef int note_state(self, object shape) except -1:
        cdef Link link = self.link
        cdef str name
        if link is not None and link.own_names:
            self.leave_to_server(shape)
        for name in shape.executes:
            entry = self.what_is_prepared(name)
            if entry is not None and entry.stateful:
                self.note_state(entry.shape)
        for name in shape.pins:
            if link.pin(name) and name == "prepared_statements":
                self.name_statements()
        if shape.releases:
            link.doubt(shape.releases)
        for name in shape.touches:
            if settings_of.is_trackable(name):
                link.touch(name, False)
            else:
                link.pin("set_config")
        for name in shape.creates:
            if not settings_of.is_trackable(name):
                link.pin("set_config")
            elif name not in self.settings.values:
                link.touch(name, True)
        if shape.resets:
            known = [*self.settings.values, *(link.touched or ()), *(link.asked or ())]
            for name in settings_of.reset_names(shape.resets, known):
                if settings_of.is_trackable(name):     # any other has pinned the link when it was set
                    link.touch(name, True)
        if shape.obscures or (shape.resets and not self.identity.plain_text):
            self.plain_text = False
            self.unclear = True
        if shape.rereads:
            self.reading = (object(),)     # like nobody else's
            self.unclear = True
        if shape.renames:
            self.search_path_id = UNRESOLVED
            self.unclear = True
        return 0

    cdef int follow_path(self, tuple path) except -1:
        """In an open transaction that owes no answer the search path is what SET makes it, until something may take
        that back: if SET fails nothing behind it runs."""
        if self.status == b"T" and not self.in_batch and self.link.owes_nothing() and "$user" not in path:
            self.search_path = self.relay.shapes.search_path(path)
            self.search_path_id = self.search_path.number
        return 0

    cdef int leave_to_server(self, object shape) except -1:
        """What the server is told to prepare without the session keeping the text is no longer known."""
        for name in shape.prepares if self.prepares is not None else ():
            self.prepares.pop(name.encode(), None)
        return 0

    cdef int take_settings(self, object settings) except -1:
        """The server has told what the session's settings are now."""
        if (settings.values.get("client_encoding") != self.settings.values.get("client_encoding")
                and self.holds_foreign_text()):
            self.link.pin("encoding")      # it cannot be prepared again: its bytes mean something else now
        self.settings = settings
        self.unclear = True
        return 0

    cdef bint holds_foreign_text(self) except -1:
        """Whether a statement is prepared that is not in ASCII."""
        cdef Statement statement
        if buffer_waiting(&self.unnamed):
            if not (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end].isascii():
                return True
        return any([not (<Statement> statement).body.isascii() for statement in (self.statements or {}).values()])

    cdef int clear_up(self) except -1:
        """No statement is under way that might change the settings: what is known of them is so."""
        cdef int before = self.read_path_id
        self.unclear = False
        self.reading = self.settings.reading
        self.plain_text = settings_of.is_plain(self.settings, self.identity.plain_text)
        self.read_committed = settings_of.is_read_committed(self.settings, self.identity.read_committed)
        self.search_path = self.identity.search_path
        if self.settings is not settings_of.BASE:
            self.search_path = self.relay.shapes.search_path(
                settings_of.search_path(self.settings, self.identity.schemas, self.identity.user))
        self.search_path_id = self.search_path.number
        self.read_path_id = self.search_path_id
        if self.search_path_id != before:
            self.renew_unnamed_entry()
        return 0

    cdef int renew_unnamed_entry(self) except -1:
        if self.unnamed_token:
            self.unnamed_entry = self.relay.unread
            if buffer_waiting(&self.unnamed):
                self.unnamed_entry = self.entry_of(
                    <const char*> self.unnamed.data + self.unnamed.start,
                    zero_from(self.unnamed.data, self.unnamed.start, self.unnamed.end) - self.unnamed.start)
        return 0

    cdef int give_up(self, object resets) except -1:
        """What could not be restored is reset: so the client was told to do, and nothing of it is anywhere."""
        names = settings_of.reset_names(resets, self.settings.values)
        self.settings = settings_of.settings(
            {name: value for name, value in self.settings.values.items() if name not in names})
        self.settings_failed = False
        return self.clear_up()

    cdef int bring_settings(self) except -1:
        """Sends what makes the link's settings this session's, ahead of its first message there."""
        cdef Link link = self.link
        cdef bytes sql = settings_of.transition(link.settings, self.settings).encode()
        link.settings = self.settings
        link.unnamed_token = 0             # dropped by every simple query
        replies_push(&link.replies, REPLY_QUERY, ACTION_SKIP).flags = FLAG_SETTINGS
        frame = b"Q" + (len(sql) + 5).to_bytes(4, "big") + sql + b"\0"
        buffer_append(&link.outbound, PyBytes_AS_STRING(frame), len(frame))
        self.link_dirty = True
        return 0

    cdef int settings_refused(self, bytes sqlstate, str message) except -1:
        """The server could not be brought to the session's settings, and has closed: nothing of the session's ran.

        A read that went to a copy goes to the owner; else everything sent is answered with the error.
        """
        cdef Link link = self.link
        cdef uint32_t index
        cdef uint8_t code
        cdef bytes error
        if (<Session> self).may_retry():
            return (<Session> self).retry()
        error = self.relay.error_frame(
            "ERROR", sqlstate.decode("ascii", "replace"), message,
            "The session's settings cannot be restored on another server connection. Reset what the message names"
            " (RESET, DISCARD ALL), or reconnect.")
        self.settings_failed = True
        link.undo_all()
        for index in range(link.replies.count):
            if replies_at(&link.replies, index).flags & FLAG_BEGIN and self.status != b"I" and not self.begin.end:
                # The transaction that was begun in the client's eyes has failed.
                buffer_append(&self.begin, b"Q\0\0\0\x0aBEGIN\0", 11)
                self.begin_token = 0
                self.status = b"E"
        for index in range(link.replies.count):
            code = replies_at(&link.replies, index).code
            if ((code == REPLY_QUERY or code == REPLY_SYNC)
                    and replies_at(&link.replies, index).action == ACTION_FORWARD):
                self.write_bytes(error + ready_for_query(self.status))
        if self.in_batch:
            self.write_bytes(error)
            self.skip_to_sync = True
        link.session = None
        self.link = None
        (<Session> self).end_unit()
        if self.phase == PHASE_LEAVING:
            return self.finish()
        if buffer_waiting(&self.inbound) or self.phase == PHASE_AWAITING:
            self.relay.resume(self)
        return self.listen()
