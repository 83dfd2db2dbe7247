# Finds a link for each unit of work.
#
# A unit is what the server treats as one: a simple query, or the extended messages up to Sync. A unit that begins
# without a link is routed; everything behind it goes to the same link until that link is given back.

# Leaves a transaction failed, whatever stands in it.
cdef bytes FAILING = b"Q\0\0\0\x22ROLLBACK TO no_such_savepoint\0"


cdef set SIGNALLED = {"signalled"}


cdef class Unit(Crossing):
    """The unit a session is sending: where it goes, and how it is taken back."""

    cdef int remember_unnamed(self, Entry entry, const uint8_t* body, size_t length, bint whole) except -1:
        raise NotImplementedError("remember_unnamed belongs to Statements")

    cdef Statement find_statement(self, const uint8_t* name, size_t length):
        raise NotImplementedError("find_statement belongs to Statements")

    cdef int send_parse(self, Statement statement, uint8_t action, bytes name) except -1:
        raise NotImplementedError("send_parse belongs to Statements")

    cdef inline bint begins_unit(self) noexcept:
        return self.link is None or (not self.in_batch and not self.routed)

    cdef int acquire(self, Entry entry, bint whole, bint renews=False) except -1:
        """A link for the unit that begins with `entry`; `whole`: all of the unit is here and could be sent again.

        TAKEN: `self.link` is the one (or the session is closing, or skips to Sync). STOP: it must wait.
        """
        cdef Link link = self.link
        cdef EndpointState state
        cdef Pool pool
        cdef int reason
        cdef bint moves
        if link is not None:
            if self.routed:
                return TAKEN
            if entry.epoch != self.relay.epoch:
                self.relay.plan(entry)
            if link.replies.count and (
                    link.changes or (link.unnamed_pending and not renews) or (self.unclear and link.asked is not None)
                    or self.at_copy or (self.status == b"I" and not link.pins and self.turns_away(entry))):
                # Only when the replies are in is it known what the next unit means, which statements the server
                # holds, and whether the unit still belongs to the copy that was asked last.
                self.await_replies()
                return STOP
            moves = self.at_copy and not self.stays(entry, whole)
            if self.loose and not entry.introduces:
                if link.replies.count:
                    self.await_replies()       # if anything has failed, the transaction stays
                    return STOP
                moves = self.status == b"T" and not self.relay.fits(entry, <Session> self, link.pool.state)
                if not moves:
                    self.end_at_copy()
            if not moves:
                self.routed = True
                self.sound = link.replies.count == 0 and self.status != b"E"
                self.unit_on_copy = self.at_copy
                self.answered = False
                self.unit_service = entry.service
                if not self.relay.parted or (
                        self.relay.fits(entry, <Session> self, link.pool.state)
                        and not (entry.kind == KIND_BEGIN and self.is_lent())):
                    reason = REASON_PINNED if link.pins else REASON_TRANSACTION
                elif link.replies.count or self.is_lent():
                    self.routed = False
                    self.await_replies()       # perhaps the transaction ends with one of them
                    return STOP
                else:
                    reason = REASON_BOUND if self.status != b"I" else REASON_KEPT
                self.relay.decided(<Session> self, entry, link.pool.state, reason)
                return TAKEN
            self.move_up()
        if self.settings_failed and entry.stateful:
            self.give_up(entry.shape.resets)
        self.blocked_ns = 0
        self.answered = False
        state = self.relay.route(entry, self, whole)
        self.unit_on_copy = state.index != entry.endpoint and entry.plan_kind == PLAN_SPLIT
        pool = self.relay.pool(self.identity, state)
        link = pool.take(self, entry)
        if link is None:
            self.phase = PHASE_WAITING
            self.first_entry = entry
            pool.wait(self)
            return STOP
        self.attach(link)
        self.lead_in()
        return TAKEN

    cdef bint is_lent(self) except -1:
        """Whether the link is kept for another session's sake only, which it is not for long."""
        return self.status == b"I" and self.link.pins == SIGNALLED

    cdef inline bint turns_away(self, Entry entry) noexcept:
        """Whether a unit outside of any transaction may have to go elsewhere than the one before it went.

        BEGIN waits for what comes behind it, if that may be for several databases.
        """
        return self.link.pool.state.index != entry.endpoint or (
            self.relay.parted and (entry.kind == KIND_BEGIN or entry.plan_kind == PLAN_PROVEN))

    cdef int attach(self, Link link) except -1:
        self.link = link
        self.wait_since_ns = 0
        if self.relay.parted:
            self.fresh_ns = self.relay.freshness[link.pool.state.index]
        link.session = self
        self.routed = True
        self.sound = self.status != b"E"
        return 0

    cdef inline int lead_in(self) except -1:
        """What goes out ahead of the first message on a new link."""
        if self.link.settings is not self.settings:
            self.bring_settings()
        return self.send_begin()

    cdef int send_begin(self) except -1:
        """The BEGIN that was answered long ago goes out before the first message on a new link, as it was sent."""
        cdef const uint8_t* frame = self.begin.data + self.begin.start
        cdef const uint8_t* end = self.begin.data + self.begin.end
        cdef uint32_t index = self.link.replies.count
        if frame == end:
            return 0
        self.link.unnamed_token = self.begin_token     # every simple query drops the unnamed statement
        if self.begin_statement is not None and self.begin_statement.id not in self.link.prepared:
            self.send_parse(self.begin_statement, ACTION_SKIP, None)
        self.begun_statement = self.begin_statement
        self.begun_token = self.begin_token
        self.begin_statement = None
        buffer_append(&self.link.outbound, frame, end - frame)
        self.link_dirty = True
        while frame < end:
            replies_push(&self.link.replies, reply_code(frame[0]), ACTION_SKIP)
            frame += read_uint32(frame + 1) + 1
        while index < self.link.replies.count:
            replies_at(&self.link.replies, index).flags |= FLAG_BEGIN
            index += 1
        introduced, self.introduced = self.introduced, None
        for entry in introduced or ():
            self.note_state((<Entry> entry).shape)
        if self.status == b"E":
            # The client was told of an error since: the server's transaction must have failed as well.
            replies_push(&self.link.replies, REPLY_QUERY, ACTION_SKIP).flags = FLAG_FAILS
            buffer_append(&self.link.outbound, PyBytes_AS_STRING(FAILING), len(FAILING))
        if self.at_copy or self.loose:
            self.keep_begin()
        else:
            buffer_free(&self.begin)
        return 0

    cdef int detach(self) except -1:
        self.link.session = None
        self.link = None
        self.routed = False
        if self.at_copy or self.loose:
            self.end_at_copy()
        buffer_free(&self.replay)
        if buffer_waiting(&self.inbound) or self.phase == PHASE_AWAITING:
            self.relay.resume(self)
        elif self.relay.draining and not buffer_waiting(&self.begin):
            self.relay.leaving(self)
        return self.listen()

    cdef int take_back(self, Pool pool) except -1:
        """The link lent while this session waited is lost before anything was sent on it: another one will do."""
        self.routed = False
        self.link = None
        return pool.wait_on(self)

    cdef inline int mark(self, Reply* reply, Entry entry) except -1:
        self.unit_entry(entry)
        reply.started_ns = self.poller.now_ns
        reply.service = <int16_t> self.unit_service
        reply.op = <uint8_t> self.unit_op
        reply.flags = <uint8_t> self.unit_flags
        return 0

    cdef inline int unit_entry(self, Entry entry) except -1:
        """Counts the unit as what its weightiest statement is, and for the one service it writes; -1: for several."""
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK or entry.kind == KIND_BEGIN:
            if entry.kind == KIND_COMMIT:
                self.unit_flags |= FLAG_COMMIT
            self.end_writes()
        elif entry.writes:
            if not self.unit_flags & FLAG_WRITES:
                self.unit_service = entry.service
            elif self.unit_service != entry.service:
                self.unit_service = -1
            self.unit_op = OP_WRITE
            self.unit_flags |= FLAG_WRITES
            if self.status != b"I" and entry.shape.reason == "transaction_block":
                self.unit_flags |= FLAG_COMMIT     # one of several statements may be the COMMIT
        elif not self.unit_flags & FLAG_WRITES:
            if entry.service >= 0:
                self.unit_service = entry.service
            if self.unit_op == OP_OTHER and entry.kind == KIND_READ:
                self.unit_op = OP_READ
        return 0

    cdef inline int end_unit(self) except -1:
        self.unit_op = OP_OTHER
        self.unit_flags = 0
        self.unit_service = -1
        self.force_owner = False
        self.routed = False
        self.wait_since_ns = 0
        if self.status == b"I":
            self.end_writes()
        return 0

    cdef int record_query(self, Entry entry, const uint8_t* data, size_t here, bint whole) except -1:
        if self.shadow is None:
            self.shadow = self.relay.shadow_unit(self, entry)
        if self.shadow is not None:
            self.shadow.query(entry.shape, (<const char*> data)[5:here - 1] if whole else None)
        return 0

    cdef int record_bind(self, Entry entry, Statement statement, const uint8_t* rest, size_t length,
                         bint whole) except -1:
        cdef bytes body
        if self.shadow is None:
            self.shadow = self.relay.shadow_unit(self, entry)
        if self.shadow is not None:
            if statement is not None:
                body = statement.body
            else:
                body = (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end]
            self.shadow.bind(entry.shape, body, (<const char*> rest)[:length] if whole else None)
        return 0

    cdef int stop_waiting(self) except -1:
        if self.waiting_in is not None:
            self.waiting_in.forget(self)
        return 0

    cdef int refuse_unit(self, str sqlstate, str message, str hint) except -1:
        """No link can be had for the unit that begins: an error, and the session goes on."""
        if buffer_waiting(&self.begin):
            self.status = b"E"
        self.end_at_copy()
        self.write_bytes(self.relay.error_frame("ERROR", sqlstate, message, hint))
        self.forget_signals()
        buffer_free(&self.replay)
        self.unit_on_copy = False
        self.drop_first_unit()
        return 0

    cdef int drop_first_unit(self) except -1:
        """Takes the refused unit out of what was received: one message, or all up to Sync."""
        cdef const uint8_t* data = self.inbound.data + self.inbound.start
        cdef int64_t size = frame_size(data, buffer_waiting(&self.inbound), CLIENT_BODY_BYTES_MAX)
        if size > 0 and (data[0] == b"Q" or data[0] == b"F"):
            self.stream_drop = True
            if <size_t> size > buffer_waiting(&self.inbound):
                self.stream_left = <size_t> size - buffer_waiting(&self.inbound)
            buffer_consume(&self.inbound, min(<size_t> size, buffer_waiting(&self.inbound)))
            self.let_go()
            self.write_bytes(ready_for_query(self.status))
        else:
            self.skip_to_sync = True
        self.end_unit()
        return 0


cdef uint8_t reply_code(uint8_t kind) except 0:
    """What a message of a deferred BEGIN is answered with."""
    if kind == b"P":
        return REPLY_PARSE
    if kind == b"B":
        return REPLY_BIND
    if kind == b"E":
        return REPLY_EXECUTE
    return REPLY_SYNC if kind == b"S" else REPLY_QUERY
