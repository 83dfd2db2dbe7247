# What a server answers: who gets it, what it completes, and what an error makes it skip.

cdef enum:
    SERVER_BODY_BYTES_MAX = 0x3fffffff
    WHOLE_FRAME_BYTES_MAX = 65536      # frames whose content matters are waited for up to this size


cdef class Answers(ReadBack):
    """Reads what the server sends and gives each message to whom it belongs."""

    cdef int on_ready(self) except -1:
        raise NotImplementedError("on_ready belongs to Link")

    cdef int say_goodbye(self) except -1:
        raise NotImplementedError("say_goodbye belongs to Link")

    cdef int out_of_step(self, uint8_t kind) except -2:
        raise NotImplementedError("out_of_step belongs to Link")

    cdef int on_error(self, const uint8_t* data, size_t size) except -2:
        raise NotImplementedError("on_error belongs to Errors")

    cdef int on_readable(self) except -1:
        cdef ssize_t count = self.receive()
        cdef size_t used
        if count <= 0:
            return 0 if count == 0 else self.on_lost()
        if buffer_waiting(&self.inbound):
            buffer_append(&self.inbound, self.poller.scratch, count)
            return self.parse_inbound()
        used = self.parse(self.poller.scratch, count)
        if used < <size_t> count and not self.closed:
            buffer_append(&self.inbound, self.poller.scratch + used, count - used)
        return 0

    cdef int parse_inbound(self) except -1:
        cdef size_t used = self.parse(self.inbound.data + self.inbound.start, buffer_waiting(&self.inbound))
        if not self.closed:
            buffer_consume(&self.inbound, used)
        return 0

    cdef int on_unasked(self, bytes data) except -1:
        """What has come with the end of the login: a notice, or the news that the server closes already."""
        buffer_append(&self.inbound, PyBytes_AS_STRING(data), len(data))
        return self.parse_inbound()

    cdef size_t parse(self, const uint8_t* data, size_t count) except? 0:
        """Deals with the messages in `data`; returns how many bytes need not be seen again."""
        cdef size_t at = 0, here
        cdef int64_t size
        cdef uint8_t kind
        cdef int verdict
        self.run = data
        self.run_length = 0
        while at < count:
            if self.stream_left:
                here = min(count - at, self.stream_left)
                self.stream_left -= here
                if not self.stream_drop:
                    self.pass_on(data + at, here)
                at += here
                continue
            size = frame_size(data + at, count - at, SERVER_BODY_BYTES_MAX)
            if size == 0:
                break
            kind = data[at]
            if size < 0:
                self.out_of_step(kind)
                return count
            here = <size_t> size
            if kind == b"Z" and (size != 6 or count - at > 5 and not is_status(data[at + 5])):
                self.out_of_step(kind)
                return count
            if here > count - at:
                if here > WHOLE_FRAME_BYTES_MAX or (kind == b"D" and self.asked is None) or kind == b"d":
                    here = count - at
                else:
                    break
            if self.replies.count and self.passes(kind):
                if here < <size_t> size:
                    self.stream_left = <size_t> size - here
                    self.stream_drop = False
                self.pass_on(data + at, here)
                at += here
                continue
            if kind == b"E":
                verdict = self.on_error(data + at, here)
            else:
                verdict = self.on_message(kind, data + at, here)
            if self.closed or verdict == VERDICT_DESYNC:
                return count
            if here < <size_t> size:
                self.stream_left = <size_t> size - here
                self.stream_drop = verdict == VERDICT_SKIP
            if verdict == VERDICT_FORWARD:
                self.pass_on(data + at, here)
            at += here
            if kind == b"Z":
                self.flush_run()
                self.on_ready()
                if self.closed:
                    return count
        self.flush_run()
        return at

    cdef inline bint passes(self, uint8_t kind) noexcept:
        """Whether this is one of the many messages that go to the session with nothing else to be done; takes it off
        what is owed if it is a reply. All others are `on_message`'s.
        """
        cdef Reply* head = replies_head(&self.replies)
        cdef Reply* behind
        if head.action != ACTION_FORWARD:
            return False
        if kind == b"D":                   # rows, by far the most there is
            return head.code == REPLY_QUERY or head.code == REPLY_EXECUTE
        if kind == b"T" and head.code == REPLY_QUERY:
            return True
        if not (kind == b"2" and head.code == REPLY_BIND or kind == b"1" and head.code == REPLY_PARSE
                or (kind == b"T" or kind == b"n") and head.code == REPLY_DESCRIBE_PORTAL):
            return False
        if head.flags & ~<uint16_t> FLAG_UNNAMED or self.replies.count == 1:
            return False
        behind = replies_at(&self.replies, 1)
        if behind.action == ACTION_FAKE or behind.code == REPLY_COPY_END:
            return False
        self.unnamed_pending -= head.flags == FLAG_UNNAMED
        replies_pop(&self.replies)
        return True

    cdef inline int pass_on(self, const uint8_t* data, size_t count) except -1:
        """Adds bytes to what goes to the session; adjacent bytes leave in one send."""
        if self.run + self.run_length != data:
            self.flush_run()
            self.run = data
        self.run_length += count
        return 0

    cdef int flush_run(self) except -1:
        cdef Session session = self.session
        cdef size_t length = self.run_length
        if length == 0:
            return 0
        self.run_length = 0
        if session is None:
            return 0
        session.answered = True
        session.active_ns = self.poller.now_ns
        session.write(self.run, length)
        if buffer_waiting(&session.outbound):
            # The client reads slower than the server writes: the server waits.
            self.listen_for(self.interest & ~<uint32_t> EPOLLIN)
            session.blocked_since_ns = self.poller.now_ns
        return 0

    cdef int on_message(self, uint8_t kind, const uint8_t* data, size_t size) except -2:
        cdef int verdict
        cdef Reply head
        if self.replies.count:
            head = replies_head(&self.replies)[0]
            if head.flags & (FLAG_SETTINGS | FLAG_QUESTION):
                if kind == b"N" or kind == b"S":
                    return VERDICT_SKIP        # the client knows, or has never been told otherwise
                if kind == b"D" and head.flags & FLAG_QUESTION:
                    self.on_answer(data, size)
        if self.syncs_unsure and kind != b"N" and kind != b"S" and kind != b"A":
            if kind != b"Z":
                self.syncs_unsure = 0          # the server is beyond them
            elif self.replies.count == 0 or head.code != REPLY_SYNC:
                self.syncs_unsure -= 1
                self.failed = False
                self.status = data[5]
                if self.session is not None:
                    self.session.status = self.status
                return VERDICT_FORWARD
        if kind == b"N" and self.session is not None and self.session.unit_on_copy and announces_end(data, size) and (
                self.session.may_retry() or self.session.survives(<Link> self)):
            return VERDICT_SKIP                # the owner will be asked: of the copy's end the client hears nothing
        verdict = replies_take(&self.replies, kind)
        if kind == b"D":
            return verdict if verdict >= 0 else self.out_of_step(kind)
        if (kind == b"A" and size >= 9 and read_uint32(data + 5) == self.process_id and self.session is not None
                and self.session.process_id_asked != self.process_id):
            # The session's own: a client tells those by the process id it knows, be it from login or because it asked.
            write_uint32(<uint8_t*> data + 5, self.session.process_id)
        if verdict == VERDICT_DESYNC:
            return self.out_of_step(kind)
        if kind == b"C":
            if self.dropping and drops_all(data, size):
                self.drop_all()
            if self.session is not None and self.session.shadow is not None and not verdict & VERDICT_SKIP:
                self.session.shadow.observed(data[5:size - 1])
        if verdict & VERDICT_POPPED:
            if head.flags & FLAG_DESCRIBES:
                self.on_unnamed_described(data, size)
            elif head.code == REPLY_DESCRIBE_STATEMENT and head.action == ACTION_SKIP:
                self.on_described(self.changes.popleft(), data, size)
            elif head.flags & FLAGS_SETTLED:
                self.settle(&head)
            if kind == b"Z":
                self.status = data[5]
                if head.action == ACTION_FORWARD:
                    if self.session is not None:
                        self.session.status = self.status
                    self.unit_done(&head)
                if self.syncs_behind:
                    self.syncs_unsure, self.syncs_behind = self.syncs_behind, 0
            elif self.copying and head.code == REPLY_EXECUTE:
                self.copying = False
                replies_end_copy(&self.replies)
            elif self.replies.count == 0:
                self.wake_session()
            verdict &= ~VERDICT_POPPED
            if self.replies.count and replies_head(&self.replies).action == ACTION_FAKE or (
                    self.replies.count and replies_head(&self.replies).code == REPLY_COPY_END):
                if verdict == VERDICT_FORWARD:
                    self.pass_on(data, size)
                self.answer_fakes()
                return VERDICT_SKIP
        elif kind == b"t" and (head.action == ACTION_SKIP or head.flags & FLAG_DESCRIBES):
            self.parameters = (<const char*> data)[5:size] if size == <size_t> read_uint32(data + 1) + 1 else None
        elif kind == b"G":
            self.copying = True
            if (self.session is None or self.session.phase == PHASE_LEAVING) and self.copy_half_sent():
                # The data this COPY waits for will never come.
                if self.session is None:
                    self.end()
                    return VERDICT_DESYNC
                self.say_goodbye()
            else:
                self.show_fakes()
                if self.session is not None and self.session.phase == PHASE_AWAITING:
                    self.relay.resume(self.session)    # the replies it waits for may lie behind data it is to send
        elif kind == b"C" and self.copying and head.code == REPLY_QUERY:
            self.copying = False
            self.copy_end_used()
        return verdict

    cdef int answer_fakes(self) except -1:
        """The proxy's own answers that are due now go out behind what the server has answered so far."""
        cdef uint8_t code
        self.flush_run()
        while self.replies.count:
            code = replies_head(&self.replies).code
            if code != REPLY_COPY_END:
                if replies_head(&self.replies).action != ACTION_FAKE:
                    break
                self.settle(replies_head(&self.replies))
                if self.session is not None:
                    self.session.write_complete(code)
            replies_pop(&self.replies)
        if self.replies.count == 0:
            self.wake_session()
        return 0

    cdef inline int wake_session(self) except -1:
        """Everything is answered, if not yet to the next ReadyForQuery: the session may wait for just that."""
        if self.session is not None and self.session.phase == PHASE_AWAITING:
            self.relay.resume(self.session)
        return 0

    cdef int show_fakes(self) except -1:
        """A COPY begins, and the client has sent something else than its data: the server must see that too."""
        cdef uint32_t index
        cdef Reply* reply
        for index in range(self.replies.count):
            reply = replies_at(&self.replies, index)
            if reply.code == REPLY_COPY_END and reply.action == ACTION_FORWARD:
                return 0
            if reply.action == ACTION_FAKE:
                # The type is all the server looks at: whatever stands behind it, it closes the connection.
                return self.append_frame((b"P" if reply.code == REPLY_PARSE else b"C") + b"\0\0\0\x06S\0")
        return 0

    cdef int unit_done(self, Reply* reply) except -1:
        """ReadyForQuery for a unit the client sent: its outcome and duration, from round to round, are known."""
        cdef Session session = self.session
        cdef int64_t took = self.poller.now_ns - reply.started_ns
        self.ready_ns = self.poller.now_ns
        if self.defined and self.status == b"I":
            self.defined = False
            self.relay.definitions[self.relay.index] += 1
            self.relay.urgent = True           # the supervisor reads what was defined
        self.instead = False
        if session is None:
            self.unit_error = 0
            return 0                   # nobody waited for it, or it was counted when the owner was asked instead
        if session.blocked_ns:
            took -= session.blocked_ns
            session.blocked_ns = 0
        if (session.at_copy and self.status == b"I") or (session.loose and self.status != b"T"):
            session.end_at_copy()
        if reply.flags & FLAG_WRITES:
            session.transaction_wrote = True
            session.wrote = reply.service if session.wrote in (NOTHING_WRITTEN, reply.service) else -1
        if self.status == b"I" and session.transaction_wrote:
            # Taken after the answer arrived, and before it is passed on: everything committed so far lies before it.
            if session.last_write_at != self.pool.state.database:
                session.last_write_at = self.pool.state.database
                session.earlier_write_ns = session.last_write_ns
            session.last_write_ns = monotonic_ns()
            session.transaction_wrote = False
            if self.relay.causal:
                self.relay.note_write(session)
            session.wrote = NOTHING_WRITTEN
            session.end_writes()
        self.relay.count_call(reply.service, self.pool.state.index, reply.op, took if took > 0 else 0,
                              self.unit_error, reply.flags & FLAG_SLOW, self.number)
        self.unit_error = 0
        return 0


cdef bint drops_all(const uint8_t* data, size_t size) noexcept:
    """Whether this CommandComplete says that all prepared statements are gone."""
    return (size == 17 and memcmp(data + 5, b"DISCARD ALL", 12) == 0
            or size == 20 and memcmp(data + 5, b"DEALLOCATE ALL", 15) == 0)


cdef inline bint is_status(uint8_t status) noexcept:
    return status == b"I" or status == b"T" or status == b"E"
