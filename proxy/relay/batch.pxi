# The messages of the extended protocol, one method for each.

cdef class Batch(Showing):
    """A batch: what a client sends up to Sync."""

    cdef int on_parse(self, const uint8_t* data, size_t here, int64_t size, size_t available) except -1:
        cdef Entry entry, run
        cdef Statement statement
        cdef bytes name
        cdef size_t text = parse_header(data, here)
        cdef size_t stop, ahead
        cdef Reply* reply
        cdef bint whole = here == <size_t> size
        cdef bint later = self.in_batch
        cdef int verdict
        if self.skip_to_sync:
            return TAKEN
        if text == 0:
            self.protocol_error("invalid Parse message")
            return TAKEN
        if whole:
            stop = zero_from(data, text, size)
            if stop == 0 or <int64_t> stop + 3 > size:
                self.protocol_error("invalid Parse message")
                return TAKEN
            entry = run = self.entry_of(<const char*> data + text, stop - text)
            if entry.stateful and self.relay.parted:
                run = self.with_prepared(entry)
        else:
            entry = run = self.relay.unread
        if entry.kind == KIND_SHOW_ROUTE and not self.in_batch:
            verdict = self.show_batch(data, available)
            if verdict != SHOW_NOT_OURS:
                return verdict
        if self.begins_unit():
            if self.may_be_local(entry):
                ahead = self.local_batch(entry, data, size, available)
                if ahead:
                    self.consumed_ahead = ahead
                    return TAKEN
            if self.acquire(run, self.is_whole(data, available), text == 6) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        if (entry.stateful and self.uses_names(entry.shape)) or (text > 6 and (
                self.knows(data + 5, text - 6) if whole else self.is_taken((<const char*> data)[5:text - 1]))):
            self.pin_names()               # while no message is on its way that an error could skip
        if not self.link.failed and self.is_refused(run):
            self.stream_drop = True
            return self.refuse(run, False)
        self.in_batch = True
        if self.link.failed:
            return self.pass_failed(data, here)
        if text == 6:                      # the unnamed statement
            reply = replies_push(&self.link.replies, REPLY_PARSE, ACTION_FORWARD)
            self.renew_unnamed(reply, later)
            self.remember_unnamed(entry, data + text, here - text, whole)
            self.link.unnamed_token = self.unnamed_token
            self.pass_on(data, here)
            if whole and (available == <size_t> size or (data[size] != b"B" and data[size] != b"D")):
                self.have_described()
            return TAKEN
        name = (<const char*> data)[5:text - 1]
        if self.statements is None:
            self.statements = {}
        if not whole or name in self.statements:
            # Sent under the client's own name: nobody else uses such names, so the server answers as it would.
            if name in self.statements and not self.link.own_names:
                self.clash(name)
            replies_push(&self.link.replies, REPLY_PARSE, ACTION_FORWARD)
            self.pass_on(data, here)
            if not whole:
                self.link.pins.add("statement")
                self.relay.count_pin("statement")
            return TAKEN
        statement = self.relay.statement((<const char*> data)[text:size], entry, self.search_path_id, self.reading,
                                         not self.link.defined)
        self.statements[name] = statement
        if self.link.own_names:
            self.note_change(replies_push(&self.link.replies, REPLY_PARSE, ACTION_FORWARD),
                             (self, name, statement, None))
            self.pass_on(data, here)
            return TAKEN
        if statement.id in self.link.prepared and not self.sound:
            # Perhaps to be refused: the server must see it.
            self.close_at_server(statement.name)
        elif statement.id in self.link.prepared:
            if self.link.replies.count == 0:
                self.flush_run()
                self.write_complete(REPLY_PARSE)
            else:
                reply = replies_push(&self.link.replies, REPLY_PARSE, ACTION_FAKE)
                self.note_change(reply, (self, name, statement, None))
            return TAKEN
        self.send_parse(statement, ACTION_FORWARD, name)
        return TAKEN

    cdef int on_bind(self, const uint8_t* data, size_t here, size_t available) except -1:
        cdef size_t rest = bind_header(data, here)
        cdef size_t portal_end, length, ahead, named
        cdef Statement statement = None
        cdef Entry entry
        cdef uint8_t header[5]
        cdef uint32_t size
        cdef bytes body, name
        cdef list places = None, literals = None
        cdef bint later = self.in_batch
        cdef int verdict
        if self.skip_to_sync:
            return TAKEN
        if rest == 0:
            self.protocol_error("invalid Bind message")
            return TAKEN
        portal_end = zero_from(data, 5, here) + 1
        length = rest - 1 - portal_end
        if length:
            statement = self.find_statement(data + portal_end, length)
            if statement is not None:
                entry = self.entry_for(statement)
            else:                              # one that nobody knows, or that only a link that is kept knows
                entry = self.relay.unread if self.may_hold_others() else self.relay.unknown
        else:
            entry = self.unnamed_entry if self.unnamed_token else self.relay.unknown
        if entry.stateful and self.relay.parted:
            entry = self.with_prepared(entry)
        if entry.kind == KIND_SHOW_ROUTE and not self.in_batch:
            verdict = self.show_batch(data, available)
            if verdict != SHOW_NOT_OURS:
                return verdict
        if entry.stateful and entry.signals and here == <size_t> (read_uint32(data + 1) + 1):
            body = statement.body if statement is not None else self.unnamed_body()
            literals = in_text(body.partition(b"\0")[0], 0, self.relay.board_workers)
            places = in_parameters((<const char*> data)[rest:here], rest, self.relay.board_workers)
            if literals or places:
                if self.seek(entry, literals + places) == STOP:
                    return STOP
                if self.called_off:
                    return self.fail_called_off(entry, data, here, False)
        if self.begins_unit():
            if self.may_be_local(entry):
                ahead = self.local_batch(entry, data, here, available)
                if ahead:
                    self.consumed_ahead = ahead
                    return TAKEN
            if self.acquire(entry, self.is_whole(data, available)) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        if (entry.stateful and self.uses_names(entry.shape)) or (
                statement is None and length and self.is_taken((<const char*> data)[portal_end:rest - 1])):
            self.pin_names()
        if not self.link.failed and self.is_refused(entry):
            self.stream_drop = True
            return self.refuse(entry, False)
        self.note_statement(entry)
        self.in_batch = True
        if self.link.failed:
            return self.pass_failed(data, here)
        if data[5] == 0:
            self.bound_entry = entry
            self.portal_left = True
        else:
            if self.portals is None:
                self.portals = {}
            self.portals[(<const char*> data)[5:portal_end - 1]] = entry
        if entry.writes or entry.kind == KIND_COMMIT:
            self.unit_entry(entry)         # the Execute of its portal may come behind another Bind
        if self.loose and data[5] != 0:
            self.end_at_copy()             # a portal that has a name is there for the rest of the transaction
        elif self.loose:
            self.prepare_introduction(entry, statement, data, here)
        if self.shadow is not None or self.relay.shadowing:
            self.record_bind(entry, statement, data + rest, here - rest, here == <size_t> (read_uint32(data + 1) + 1))
        if literals:
            name = self.send_named(body, literals)
        elif statement is None or self.link.own_names:
            if length == 0 and self.changed is not None:
                self.refuse_changed(False)
                return TAKEN
            if length == 0 and self.place_unnamed(later) == STOP:
                return STOP
            if places:
                self.name_servers(data, places)
            replies_push(&self.link.replies, REPLY_BIND, ACTION_FORWARD)
            self.pass_on(data, here)
            return TAKEN
        else:
            if statement.id not in self.link.prepared:
                if statement is self.changed:
                    self.refuse_changed(False)
                    return TAKEN
                if self.provide(statement) == STOP:
                    return STOP
            name = statement.name
        if literals or places:
            self.name_servers(data, places)
        named = len(name)
        size = read_uint32(data + 1) - <uint32_t> length + <uint32_t> named
        header[0] = b"B"
        write_uint32(header + 1, size)
        self.insert(header, 5)
        self.insert(data + 5, portal_end - 5)
        self.insert(<const uint8_t*> PyBytes_AS_STRING(name), named + 1)
        replies_push(&self.link.replies, REPLY_BIND, ACTION_FORWARD)
        self.pass_on(data + rest, here - rest)
        return TAKEN

    cdef int prepare_introduction(self, Entry entry, Statement statement, const uint8_t* data, size_t here) except -1:
        """Parse and Bind as another server would need them, whatever it holds: of the unnamed statement."""
        cdef size_t portal_end = zero_from(data, 5, here) + 1
        cdef size_t rest = bind_header(data, here)
        cdef bytes body
        self.introduction = None
        if entry.introduces == INTRODUCES and here == <size_t> (read_uint32(data + 1) + 1):
            body = self.unnamed_body() if statement is None else statement.body
            self.introduction = frame(b"P", b"\0" + body) + frame(
                b"B", b"\0\0" + (<const char*> data)[rest:here])
        elif entry.introduces != INTRODUCES:
            self.introduction = b""
        return 0

    cdef int on_describe(self, const uint8_t* data, int64_t size, size_t available) except -1:
        cdef Statement statement = None
        cdef Entry entry
        cdef size_t length
        cdef Reply* reply
        cdef bint later = self.in_batch
        if self.skip_to_sync:
            return TAKEN
        if size < 7 or data[size - 1] != 0 or (data[5] != b"S" and data[5] != b"P"):
            self.protocol_error("invalid Describe message")
            return TAKEN
        length = <size_t> size - 7
        entry = self.relay.unknown
        if data[5] == b"S":
            if length:
                statement = self.find_statement(data + 6, length)
                if statement is not None:
                    entry = self.entry_for(statement)
            elif self.unnamed_token:
                entry = self.unnamed_entry
            if entry.stateful and self.relay.parted:
                entry = self.with_prepared(entry)
        if self.begins_unit():
            if self.at_copy and size == 7 and data[5] == b"P" and self.status == b"T" and self.portal_left:
                return self.describe_left(data, size)
            if self.acquire(entry, self.is_whole(data, available)) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        if statement is None and length and data[5] == b"S" and self.is_taken((<const char*> data)[6:size - 1]):
            self.pin_names()
        if data[5] == b"S" and self.relay.parted and not self.link.failed and self.is_refused(entry):
            return self.refuse(entry, False)
        self.in_batch = True
        if self.link.failed:
            return self.pass_failed(data, size)
        if data[5] == b"P":
            replies_push(&self.link.replies, REPLY_DESCRIBE_PORTAL, ACTION_FORWARD)
            self.pass_on(data, size)
            return TAKEN
        if statement is None or self.link.own_names:
            if length == 0 and self.changed is not None:
                self.refuse_changed(True)
                return TAKEN
            if length == 0 and self.place_unnamed(later) == STOP:
                return STOP
            reply = replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_FORWARD)
            if length == 0:
                reply.flags = FLAG_DESCRIBES
            self.pass_on(data, size)
            return TAKEN
        if statement.id not in self.link.prepared:
            if statement is self.changed:
                self.refuse_changed(True)
                return TAKEN
            if self.provide(statement) == STOP:
                return STOP
        self.insert_bytes(describe_statement(statement.name))
        replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_FORWARD)
        return TAKEN

    cdef int describe_left(self, const uint8_t* data, int64_t size) except -1:
        """The portal that is left is where it was bound; what comes behind this may move the transaction."""
        if self.link.replies.count:
            self.await_replies()
            return STOP
        replies_push(&self.link.replies, REPLY_DESCRIBE_PORTAL, ACTION_FORWARD)
        self.pass_on(data, size)
        self.insert_bytes(b"H\0\0\0\x04")      # no Sync may come before the next unit waits for the answer
        return TAKEN

    cdef int on_execute(self, const uint8_t* data, int64_t size) except -1:
        cdef Entry entry = self.bound_entry
        cdef size_t portal_end = zero_from(data, 5, size)
        if self.skip_to_sync:
            return TAKEN
        if size < 10 or portal_end == 0:
            self.protocol_error("invalid Execute message")
            return TAKEN
        if self.begins_unit():
            if self.acquire(self.relay.unknown, False) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        self.in_batch = True
        if self.link.failed:
            return self.pass_failed(data, size)
        if portal_end > 5:
            entry = None if self.portals is None else self.portals.get((<const char*> data)[5:portal_end])
        if (entry is not None and entry.kind == KIND_SESSION and entry.shape.deallocates != ALL_STATEMENTS
                and self.drops_own(entry)):
            name = entry.shape.deallocates.encode()
            statement = self.statements[name]
            completed = self.drop(entry)
            if self.link.replies.count:
                self.note_change(replies_push(&self.link.replies, REPLY_EXECUTE, ACTION_FAKE),
                                 (self, name, statement, None))
            else:
                self.write_bytes(completed)
            return TAKEN
        reply = replies_push(&self.link.replies, REPLY_EXECUTE, ACTION_FORWARD)
        if entry is None or entry.unreadable:
            reply.flags |= FLAG_UNREADABLE
        if entry is not None:
            self.unit_entry(entry)
            self.observe(entry)
        if self.loose:
            if entry is None or self.introduction is None or portal_end > 5 or read_uint32(data + portal_end + 1):
                self.end_at_copy()         # a portal that has not returned all its rows stays, too
            else:
                self.introduce(entry, self.introduction + (<const char*> data)[:size] + b"S\0\0\0\4", -1)
        if self.shadow is not None:
            self.shadow.executed(last_bound=portal_end == 5)
        self.pass_on(data, size)
        if entry is not None and entry.stateful and "prepare" in entry.shape.releases:
            self.await_drop(True)
        return TAKEN

    cdef int on_close(self, const uint8_t* data, int64_t size, size_t available) except -1:
        """Close of a named statement is the session's own business: the link keeps it for the next session."""
        cdef Reply* reply
        cdef bint later = self.in_batch
        if self.skip_to_sync:
            return TAKEN
        if size < 7 or data[size - 1] != 0 or (data[5] != b"S" and data[5] != b"P"):
            self.protocol_error("invalid Close message")
            return TAKEN
        if self.link is not None and self.begins_unit():
            if self.closes_nothing(data, size):
                return self.close_ahead(data, size)
            if self.acquire(self.relay.unknown, False) == STOP:
                return STOP
        self.in_batch = True
        if self.link is not None and self.link.failed:
            return self.pass_failed(data, size)
        kept = (self.link is not None and self.link.prepares and data[5] == b"S" and not self.link.own_names
                and (<const char*> data)[6:size - 1] in self.link.prepares)
        if kept and self.link.replies.count:
            reply = replies_push(&self.link.replies, REPLY_CLOSE, ACTION_FAKE)
        elif kept or self.link is None:
            self.write_complete(REPLY_CLOSE)
            reply = NULL
        else:
            # Under the client's name the server mostly holds nothing, which is no error; what it does hold goes, but
            # for what PREPARE has made there: that the link keeps.
            reply = replies_push(&self.link.replies, REPLY_CLOSE, ACTION_FORWARD)
            self.pass_on(data, size)
        if data[5] == b"P" and size == 7:
            self.portal_left = False
        if data[5] == b"S" and size == 7 and reply != NULL:
            self.renew_unnamed(reply, later)
            self.link.unnamed_token = 0
        return self.forget_statement(data, size, reply)

    cdef bint closes_nothing(self, const uint8_t* data, int64_t size) except -1:
        """Whether this Close begins a unit that may go elsewhere than to the link, whose server need not hear of it.

        It knows no statement by the client's name for it; a transaction at a copy, or one that has named no table yet,
        has no portal with a name.
        """
        if not (self.at_copy or self.loose or self.relay.parted) or (
                self.link.pins or self.link.syncs_unsure or self.link.syncs_behind):
            return False
        return data[5] == b"S" or size > 7 and (self.at_copy or self.loose) and (
            self.portals is None or (<const char*> data)[6:size - 1] not in self.portals)

    cdef int close_ahead(self, const uint8_t* data, int64_t size) except -1:
        """Answers it in the server's stead: the unit begins with what comes next, and goes where that belongs."""
        if self.link.replies.count:
            self.await_replies()               # the unit before may have to be sent again, or fail
            return STOP
        self.write_complete(REPLY_CLOSE)
        return self.forget_statement(data, size, NULL)

    cdef int forget_statement(self, const uint8_t* data, int64_t size, Reply* reply) except -1:
        """The session closes a statement, if that is what it closes; with `reply`, unless the server skips it."""
        cdef Statement statement
        if data[5] != b"S":
            return TAKEN
        if size == 7:
            self.unnamed_token = 0
            return TAKEN
        statement = self.find_statement(data + 6, <size_t> size - 7)
        if statement is None:
            if self.prepares is not None:
                self.prepares.pop((<const char*> data)[6:size - 1], None)
            return TAKEN
        if reply != NULL:
            self.note_change(reply, (self, self.last_name, statement, None))
        del self.statements[self.last_name]
        self.last_statement = None
        return TAKEN

    cdef int on_sync(self, const uint8_t* data, int64_t size) except -1:
        cdef Reply* reply
        if size != 5:
            self.protocol_error("invalid Sync message")
            return TAKEN
        if self.skip_to_sync or self.link is None:
            self.skip_to_sync = False
            self.in_batch = False
            self.write_bytes(ready_for_query(self.status))
            self.end_unit()
            return TAKEN
        if not self.in_batch and self.unit_on_copy and self.link.replies.count:
            self.await_replies()    # of a unit that may have to be sent again, this is not a part
            return STOP
        self.in_batch = False
        self.link.failed = False
        reply = replies_push(&self.link.replies, REPLY_SYNC, ACTION_FORWARD)
        reply.started_ns = self.poller.now_ns
        reply.service = <int16_t> self.unit_service
        reply.op = <uint8_t> self.unit_op
        reply.flags = <uint8_t> self.unit_flags
        if self.shadow is not None:
            self.shadow.sent(self.status == b"I")
        self.pass_on(data, size)
        if self.clashes is not None:
            self.end_clashes()
        self.end_unit()
        return TAKEN
