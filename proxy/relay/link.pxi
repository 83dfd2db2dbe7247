# One server connection as a session borrows it: how it is freed, tidied up, lost and closed.

cdef class Link(Errors):
    """One server connection."""

    cdef int on_ready(self) except -1:
        cdef Session session = self.session
        if self.signalled is not None and self.replies.count == 0 and self.status == b"I":
            self.end_signals(True)
        if session is None:
            if self.replies.count == 0:
                self.rinse()
            return 0
        if self.replies.count == 0:
            self.dropping = False
            if self.syncs_unsure and not session.stream_left:
                return self.find_syncs()
            if self.status == b"I":
                session.portals = None
                if session.shadow is not None:
                    session.shadow.settled()
                    session.shadow = None
                if session.crossed is not None and self.touched is None:
                    session.count_crossings()
            if session.phase == PHASE_LEAVING:
                return session.finish()
            if not self.release_if_done() and session.phase == PHASE_AWAITING:
                self.relay.resume(session)
        return 0

    cdef int end_signals(self, bint sure) except -1:
        """The statements that were to signal other sessions have ended; not `sure`: perhaps they have not."""
        signalled, self.signalled = self.signalled, None
        self.tainted = self.tainted or self.pool.overfull()
        for process_id, _ in signalled:
            self.relay.signals.release(process_id, sure=sure)
        return 0

    cdef int end_old_signals(self, int64_t before_ns) except -1:
        """Sessions that were named before then are let go, though what named them has not ended."""
        while self.signalled and self.signalled[0][1] < before_ns:
            process_id, _ = self.signalled.pop(0)
            self.relay.signals.release(process_id, sure=False)
        return 0

    cdef int find_syncs(self) except -1:
        """Asks for something else than ReadyForQuery: what comes before that tells which Syncs were ignored."""
        replies_push(&self.replies, REPLY_CLOSE, ACTION_SKIP)
        replies_push(&self.replies, REPLY_SYNC, ACTION_SKIP)
        return self.append_frame(b"C\0\0\0\x0dSpgshunt\0S\0\0\0\x04")

    cdef bint release_if_done(self) except -1:
        """Gives the link back when nothing of the session is left on it."""
        cdef Session session = self.session
        if (session is None or self.replies.count or self.status != b"I" or session.in_batch or self.copying
                or session.stream_left or buffer_waiting(&self.outbound) or self.failed):
            return False
        if self.syncs_unsure:
            self.find_syncs()
            return False
        if (self.touched is not None or self.doubted is not None) and self.must_ask():
            if not self.cancels:
                self.ask()             # the answer ends here as well
            return False
        if self.pins:
            return False
        if session.unclear:
            session.clear_up()
        session.detach()
        self.free()
        return True

    cdef int free(self) except -1:
        """The link has no session: back to its pool, unless something about it forbids that."""
        self.listen_for(self.interest | EPOLLIN)
        if self.tainted or self.pins or self.pool.state.index >= len(self.relay.endpoints):
            return self.end()
        if self.cancels:
            return 0                   # the cancel on its way must not hit the next session's statement
        if self.touched is not None:
            return self.ask()          # `rinse` gives it back
        while len(self.prepared) > STATEMENTS_PER_LINK_MAX:
            self.close_oldest_statement()
        if self.replies.count:
            return self.flush()        # the answers to Close come first, then `rinse` gives it back
        self.pool.give_back(self)
        return 0

    cdef int close_oldest_statement(self) except -1:
        cdef Statement statement = self.prepared.pop(next(iter(self.prepared)))
        cdef bytes frame = b"C" + (len(statement.name) + 6).to_bytes(4, "big") + b"S" + statement.name + b"\0"
        replies_push(&self.replies, REPLY_CLOSE, ACTION_SKIP)
        replies_push(&self.replies, REPLY_SYNC, ACTION_SKIP)
        self.append_frame(frame + b"S\0\0\0\x04")
        return 0

    cdef int abandon(self) except -1:
        """The session is gone or has moved on: let the server finish what it was asked, then tidy up.

        What was sent is not cancelled: a direct connection's last statement runs to its end as well when the
        client has gone. A half-sent message or an open batch cannot be finished: the link is closed.
        """
        cdef Session session = self.session
        cdef bint half = session is not None and (session.in_batch or session.stream_left > 0)
        self.session = None
        self.listen_for(self.interest | EPOLLIN)
        if half or self.copy_half_sent() or self.pins or self.tainted:
            return self.end()
        if self.replies.count == 0 and buffer_waiting(&self.outbound) == 0:
            return self.rinse()
        return 0

    cdef int say_goodbye(self) except -1:
        """The client has left in the middle of a batch, a COPY or a message: the server shall answer what it answers
        a client that does, and close."""
        self.goodbye = self.tainted = True
        if not self.session.cut_off:
            return self.append_frame(b"X\0\0\0\x04")
        return self.hang_up() if buffer_waiting(&self.outbound) == 0 else 0

    cdef int hang_up(self) except -1:
        """The client's end is the server's: behind all that was sent."""
        shutdown(self.fd, SHUT_WR)
        return 0

    cdef inline bint torn(self) noexcept:
        """Whether the session has been given a part of a message only."""
        return self.stream_left > 0 and not self.stream_drop

    cdef int rinse(self) except -1:
        """All replies are in: roll back what the session left open, then lend the link again."""
        if self.tainted or self.failed or self.copying or self.syncs_unsure:
            return self.end()
        if self.status != b"I":
            self.unnamed_token = 0             # dropped by every simple query
            replies_push(&self.replies, REPLY_QUERY, ACTION_SKIP)
            return self.append_frame(b"Q\0\0\0\x0dROLLBACK\0")
        return self.free()

    cdef int append_frame(self, bytes frame) except -1:
        return self.write(<const uint8_t*> PyBytes_AS_STRING(frame), len(frame))

    cdef int out_of_step(self, uint8_t kind) except -2:
        """The server sent what nobody asked for; nothing behind it can be attributed."""
        cdef Session session = self.session
        self.flush_run()
        self.session = None
        self.relay.note("link_out_of_step", self.pool.state, f"unexpected message {chr(kind)!r}")
        if session is not None:
            session.link = None
            session.fatal("08P01", f"the server sent an unexpected message of type {chr(kind)!r}",
                          "The connection is closed because its answers can no longer be told apart.")
        self.end()
        return VERDICT_DESYNC

    cdef bint holds_nothing(self):
        """Whether the session has nothing here: what the server still owes, the proxy has asked for itself."""
        cdef Session session = self.session
        cdef uint32_t index
        if (session is None or session.routed or session.in_batch or session.stream_left or self.status != b"I"
                or self.pins or self.touched is not None or self.asked is not None or self.copying or self.failed):
            return False
        for index in range(self.replies.count):
            if replies_at(&self.replies, index).action != ACTION_SKIP:
                return False
        return True

    cdef bint let_session_go(self) except -1:
        """The server goes, and the session, if it has nothing there, need not know: another link will do."""
        cdef Session session = self.session
        if not self.holds_nothing():
            return False
        self.flush_run()
        if session.phase == PHASE_LEAVING:
            session.finish()
            return True
        if session.unclear:
            session.clear_up()
        session.detach()
        return True

    cdef int on_lost(self) except -1:
        """The server closed the connection, or it broke."""
        cdef Session session = self.session
        cdef uint32_t index
        cdef bint unknown = False
        cdef bint autocommit = self.status == b"I"
        cdef Reply* reply
        cdef Reply unit
        self.flush_run()
        if self.let_session_go():
            return self.end()
        for index in range(self.replies.count):
            reply = replies_at(&self.replies, index)
            if reply.flags & FLAG_BEGIN:
                autocommit = False
            if reply.flags & FLAG_COMMIT or (reply.flags & FLAG_WRITES and autocommit):
                unknown = True
        if session is not None and session.in_batch and session.unit_flags & FLAG_COMMIT:
            unknown = True
        if self.copy_half_sent():
            unknown = False            # nothing is committed before the end of the data
        if self.replies.count and session is not None and not self.goodbye:
            unit = self.unit_reply()
            self.relay.count_call(unit.service, self.pool.state.index, unit.op, self.poller.now_ns - unit.started_ns,
                                  1, unit.flags & FLAG_SLOW, self.number)
        if session is None:
            return self.end()
        if session.may_retry():
            session.retry()
            return 0 if self.closed else self.end()
        if session.survives(self):
            session.lose_copy()
            self.session = None
            return self.end()
        session.link = None
        session.torn = self.torn()
        self.session = None
        self.end()
        if session.phase == PHASE_WAITING:
            return session.take_back(self.pool)
        if self.fatal_seen or self.goodbye:
            return session.finish()
        if unknown:
            return session.fatal(
                "08007", "the server went away before it answered; whether the transaction was committed is unknown",
                "Check what it was to change before repeating it.")
        return session.fatal("08006", "the server closed the connection unexpectedly",
                             "Reconnect. An open transaction has been rolled back by the server.")

    cdef int on_fault(self, object error) except -1:
        cdef Session session = self.session
        self.relay.fault(error)
        self.session = None
        self.run_length = 0
        if session is not None:
            session.link = None
            session.torn = self.torn()
            session.fatal("XX000", "pgshunt failed while it handled the server's answer", "Please report this.")
        return self.end()

    cdef int on_drained(self) except -1:
        cdef Session session = self.session
        if session is None:
            if self.replies.count == 0 and not self.closed and not self.lies_idle:
                return self.rinse()
            return 0
        if self.goodbye and session.cut_off:
            return self.hang_up()
        if not self.release_if_done():
            session.listen()
        return 0

    cdef int end(self) except -1:
        """Closes the link; the server rolls back what was open."""
        if self.closed:
            return 0
        if not self.broken and buffer_waiting(&self.outbound) == 0 and self.stream_left == 0:
            self.transmit(<const uint8_t*> b"X\0\0\0\x04", 5)
        self.shut()
        self.changes.clear()
        self.prepared.clear()
        if self.pins:
            self.pins.clear()
        if self.signalled is not None:
            self.end_signals(self.replies.count == 0)
        self.session = None
        self.relay.links.discard(self)
        self.pool.gone(self)
        return 0
