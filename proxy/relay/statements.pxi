# Prepared statements: the session knows them by the client's names, the servers by names all sessions share.

cdef class Statements(Again):
    """What a session has prepared, on whatever link it finds itself."""

    cdef bint drops_own(self, Entry entry) except -1:
        """Whether it is a DEALLOCATE of what was prepared by messages: the servers know it by another name."""
        cdef str name = entry.shape.deallocates
        if name is None:
            return False
        if name == ALL_STATEMENTS:
            return self.link is None or not self.link.pins
        if self.link is not None and self.link.own_names:
            return False
        key = name.encode()
        return (self.statements is not None and key in self.statements) or (
            self.prepares is not None and key in self.prepares)

    cdef int name_prepares(self) except -1:
        raise NotImplementedError("name_prepares belongs to Prepares")

    cdef bytes drop(self, Entry entry):
        """Forgets what a DEALLOCATE names; returns its CommandComplete. The links keep it for other sessions."""
        cdef str name = entry.shape.deallocates
        self.last_statement = None
        if name == ALL_STATEMENTS:
            self.statements = self.prepares = None
            return COMMAND_COMPLETE["DEALLOCATE ALL"]
        del (self.prepares if self.prepares is not None and name.encode() in self.prepares else self.statements)[
            name.encode()]
        return COMMAND_COMPLETE["DEALLOCATE"]

    cdef int clash(self, bytes name) except -1:
        """Makes the server hold a statement under the client's name, so that it refuses a second one itself.

        It is one that can be prepared in a failed transaction too.
        """
        cdef bytes body = name + b"\0ROLLBACK\0\0\0"
        replies_push(&self.link.replies, REPLY_PARSE, ACTION_SKIP)
        self.insert_bytes(b"P" + (len(body) + 4).to_bytes(4, "big") + body)
        self.clashes = [name, *(self.clashes or ())]
        return 0

    cdef int end_clashes(self) except -1:
        """Behind the Sync of their batch, what `clash` made is closed."""
        for name in self.clashes:
            self.close_at_server(name)
        self.clashes = None
        return self.insert_sync()

    cdef int provide(self, Statement statement) except -1:
        """Gives the link's server a statement of the session that it lacks. STOP: the message is to be offered again.

        Where it was parsed before, the server is asked first whether it still returns what it did: only then is it run.
        A unit that can be sent to the owner instead need not wait for that.
        """
        self.send_parse(statement, ACTION_SKIP, None)
        return self.await_described() if self.link.pool.state.index in statement.described else TAKEN

    cdef int await_described(self) except -1:
        if self.unit_on_copy and buffer_waiting(&self.replay):
            return TAKEN
        self.insert_bytes(b"H\0\0\0\x04")
        self.in_batch = True
        self.await_replies()
        return STOP

    cdef int on_changed(self, Statement statement) except -1:
        """The statement would return something else on this link than it did when the session had it parsed."""
        if self.phase == PHASE_AWAITING:
            self.changed = statement
        elif self.may_retry():
            self.retry()
        return 0

    cdef int refuse_changed(self, bint describe) except -1:
        """Makes the server refuse what the session is told it refuses.

        To Describe PostgreSQL answers with the parameters before it finds out about the rows.
        """
        cdef bytes types
        if describe:
            types = self.changed.described[self.link.pool.state.index][0].partition(b"\0")[2]
            self.write_bytes(b"t" + (len(types) + 4).to_bytes(4, "big") + types)
        self.changed = None
        self.forget_signals()
        replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_FORWARD).flags = FLAG_FAILS
        return self.insert_bytes(describe_statement(b"pgshunt_changed"))

    cdef inline bint is_refused(self, Entry entry) except -1:
        """Whether the statement must not run. In a failed transaction the server itself refuses everything."""
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if self.loose and not entry.introduces:
            self.end_at_copy()
        return (entry.plan_kind == PLAN_REFUSED or self.relay.parted and not self.relay.fits(
            entry, <Session> self, self.link.pool.state)) and self.status != b"E"

    cdef bytes refusal_of(self, Entry entry):
        """The error of a statement that must not run, or not on this link."""
        cdef Link link = self.link
        cdef str database = link.pool.state.endpoint.database
        if entry.plan_kind == PLAN_REFUSED:
            return entry.plan
        if entry.plan_kind == PLAN_PROVEN and self.relay.needs(entry, link.pool.state) is not None:
            message, hint = entry.plan.message, entry.plan.hint
        elif self.status == b"I" and link.pins:
            message, hint = refusal.kept(
                entry.shape, database, link.pins, self.relay.table, self.relay.placement)
        else:
            message, hint = refusal.bound(entry.shape, database, self.relay.table, self.relay.placement)
        return self.relay.error_frame("ERROR", "0A000", message, hint)

    cdef int refuse(self, Entry entry, bint simple) except -1:
        """Makes the server fail where it would have run the statement; the client is told why it must not.

        STOP while the server has other answers to give. Those to what goes ahead of a unit on a new link are not
        waited for: behind them the link would be given back, and the next one may need the same.
        """
        cdef Reply* reply
        if self.link.replies.count and (self.in_batch or self.status == b"E" or not self.link.owes_nothing()):
            if self.in_batch:
                self.insert_bytes(b"H\0\0\0\x04")
            self.await_replies()
            return STOP
        self.link.refusal = (
            self.relay.error_frame("ERROR", "57014", CANCELLED, "") if self.called_off else self.refusal_of(entry))
        self.changed = None
        self.forget_signals()
        reply = replies_push(&self.link.replies, REPLY_QUERY if simple else REPLY_DESCRIBE_STATEMENT, ACTION_FORWARD)
        reply.flags = FLAG_FAILS
        reply.started_ns = self.poller.now_ns
        reply.service = <int16_t> entry.service
        if simple:
            if self.in_batch:
                self.renew_unnamed(reply, True)
            self.link.unnamed_token = self.unnamed_token = 0   # dropped by every simple query
            self.insert_bytes(FAILING)
            self.end_unit()
        else:
            self.in_batch = True
            self.insert_bytes(describe_statement(b"pgshunt_refused"))
        return TAKEN

    cdef int send_parse(self, Statement statement, uint8_t action, bytes name) except -1:
        """Gives the link's server a statement it lacks; `name` is the client's when the client asked for it."""
        cdef tuple described = None if name is not None else statement.described.get(self.link.pool.state.index)
        cdef bytes body = statement.body if described is None else described[0]
        cdef tuple change = (self, name, statement, None)
        cdef uint8_t header[5]
        if statement.id in self.link.doubtful:
            self.close_at_server(statement.name)   # the server may or may not hold it
            self.link.doubtful.discard(statement.id)
        header[0] = b"P"
        write_uint32(header + 1, <uint32_t> (len(statement.name) + 1 + len(body) + 4))
        self.insert(header, 5)
        self.insert(<const uint8_t*> PyBytes_AS_STRING(statement.name), len(statement.name) + 1)
        self.insert_bytes(body)
        self.note_change(replies_push(&self.link.replies, REPLY_PARSE, action), change)
        self.insert_bytes(describe_statement(statement.name))
        self.note_change(replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_SKIP), change)
        self.link.prepared[statement.id] = statement
        return 0

    cdef int close_at_server(self, bytes name) except -1:
        """No error if the server does not hold it."""
        self.insert_bytes(b"C" + (len(name) + 6).to_bytes(4, "big") + b"S" + name + b"\0")
        replies_push(&self.link.replies, REPLY_CLOSE, ACTION_SKIP)
        return 0

    cdef int name_statements(self) except -1:
        """The session asks which statements the server holds: they are to be its own, under the names it gave them.

        From here on the link stays with the session, and what it says about statements goes to the server as it is.
        """
        cdef Statement statement
        cdef bytes name, body
        if (self.status == b"E" and self.link.replies.count == 0) or self.link.failed:
            self.link.pins.discard("prepared_statements")      # the server refuses whatever is asked now
            return 0
        self.link.own_names = True
        if self.link.prepares or self.prepares:
            self.name_prepares()
        self.link.doubtful.update(self.link.prepared)
        self.link.prepared.clear()
        for number in self.link.doubtful:
            self.close_at_server(shared_name(number))
        for name, statement in (self.statements or {}).items():
            self.close_at_server(name)                         # from an attempt that an error undid
            body = name + b"\0" + statement.body
            self.insert_bytes(b"P" + (len(body) + 4).to_bytes(4, "big") + body)
            self.note_change(replies_push(&self.link.replies, REPLY_PARSE, ACTION_SKIP), (self, None, None, None))
            if not self.in_batch:
                self.insert_sync()                             # one that can no longer be prepared fails alone
        if self.in_batch and not self.statements:
            # A last message: if the server skips any of these, it skips this one.
            self.close_at_server(b"pgshunt")
            self.note_change(replies_at(&self.link.replies, self.link.replies.count - 1), (self, None, None, None))
        elif self.link.doubtful and not self.statements:
            self.insert_sync()
        return 0

    cdef int insert_sync(self) except -1:
        self.insert_bytes(b"S\0\0\0\x04")
        replies_push(&self.link.replies, REPLY_SYNC, ACTION_SKIP)
        return 0

    cdef int note_change(self, Reply* reply, tuple change) except -1:
        """What was noted when a message was sent is undone if the server skips it: see Link.undo."""
        reply.flags |= FLAG_CHANGE
        self.link.changes.append(change)
        return 0

    cdef bytes unnamed_body(self):
        return (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end]

    cdef tuple unnamed_now(self):
        cdef bytes body = self.unnamed_body() if self.unnamed_token else None
        return self, None, None, (
            self.link.unnamed_token, self.unnamed_token, self.unnamed_entry, body, self.unnamed_described)

    cdef int renew_unnamed(self, Reply* reply, bint later) except -1:
        """Notes that a message sent changes the server's unnamed statement; `later`: it may be skipped."""
        reply.flags |= FLAG_UNNAMED
        self.link.unnamed_pending += 1
        return self.note_change(reply, self.unnamed_now()) if later else 0

    cdef int restore_unnamed(self, tuple before) except -1:
        self.unnamed_token, self.unnamed_entry, body, self.unnamed_described = before
        self.unnamed.start = self.unnamed.end = 0
        if body:
            buffer_append(&self.unnamed, PyBytes_AS_STRING(body), len(body))
        return 0

    cdef int remember_unnamed(self, Entry entry, const uint8_t* body, size_t length, bint whole) except -1:
        self.relay.unnamed_tokens += 1
        self.unnamed_token = self.relay.unnamed_tokens
        self.unnamed_entry = entry
        self.unnamed_described = None
        self.unnamed.start = self.unnamed.end = 0
        if whole:
            buffer_append(&self.unnamed, body, length)
        else:
            self.link.pins.add("statement")    # too long to be kept here: the link keeps it
            self.relay.count_pin("statement")
        return 0

    cdef Statement find_statement(self, const uint8_t* name, size_t length):
        """The session's statement of that name, or None."""
        if self.statements is None:
            return None
        if (self.last_statement is not None and <size_t> len(self.last_name) == length
                and memcmp(PyBytes_AS_STRING(self.last_name), name, length) == 0):
            return self.last_statement
        cdef bytes key = (<const char*> name)[:length]
        cdef Statement statement = self.statements.get(key)
        if statement is not None:
            self.last_statement = statement
            self.last_name = key
        return statement

    cdef int place_unnamed(self, bint later) except -1:
        """Makes the server's unnamed statement be this session's, or nobody's if it has none.

        STOP, as for `provide`: if it is known what it returned where the client had it parsed.
        """
        cdef Reply* reply
        cdef bytes body
        cdef Statement statement = None
        if self.link.unnamed_token == self.unnamed_token:
            return TAKEN
        if self.unnamed_token == 0:
            # Another session's is still there; the server must say that there is none.
            self.insert_bytes(b"C\0\0\0\x06S\0")
            reply = replies_push(&self.link.replies, REPLY_CLOSE, ACTION_SKIP)
        else:
            body = (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end]
            statement = self.described_unnamed(body)
            if statement is not None:
                body, _ = statement.described[self.link.pool.state.index]
            self.insert_bytes(b"P" + (len(body) + 5).to_bytes(4, "big") + b"\0" + body)
            reply = replies_push(&self.link.replies, REPLY_PARSE, ACTION_SKIP)
        self.renew_unnamed(reply, later)
        self.link.unnamed_token = self.unnamed_token
        if statement is None:
            return TAKEN
        self.insert_bytes(describe_statement(b""))
        self.note_change(replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_SKIP),
                         (self, None, statement, None))
        return self.await_described()

    cdef Statement described_unnamed(self, bytes body):
        """The unnamed statement as it was described at this endpoint; None if it was not, or not in full."""
        cdef Statement statement = Statement(0, body, self.unnamed_entry, self.read_path_id, self.relay.renewals)
        cdef bytes frame
        if self.unnamed_described is None or self.link.pool.state.index not in self.unnamed_described:
            return None
        types, frame = self.unnamed_described[self.link.pool.state.index]
        rows = row_shape(<const uint8_t*> PyBytes_AS_STRING(frame), len(frame))
        if rows is None:
            return None
        statement.described[self.link.pool.state.index] = (body[:body.index(b"\0") + 1] + types, rows)
        return statement

    cdef int have_described(self) except -1:
        """The client has an unnamed statement parsed, and does not bind it at once: it may run on another link."""
        self.insert_bytes(describe_statement(b""))
        replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_SKIP).flags = FLAG_DESCRIBES
        return 0

    cdef int await_drop(self, bint flush) except -1:
        """Behind DISCARD ALL or DEALLOCATE ALL nothing is dealt with before the server has said what became of it.

        `flush`: it would not say so by itself.
        """
        self.link.dropping = True
        self.await_replies()
        return self.insert_bytes(b"H\0\0\0\x04") if flush else 0


cdef bytes describe_statement(bytes name):
    return b"D" + (len(name) + 6).to_bytes(4, "big") + b"S" + name + b"\0"
