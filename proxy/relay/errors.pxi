# What an ErrorResponse means: who hears it, what will not be answered because of it, and whether the owner is asked.

cdef class Errors(Answers):
    """The errors of one server connection."""

    cdef bint let_session_go(self) except -1:
        raise NotImplementedError("let_session_go belongs to Link")

    cdef int on_error(self, const uint8_t* data, size_t size) except -2:
        """ErrorResponse: decides who gets it, and what the server will not answer because of it."""
        cdef Reply head, unit
        cdef Session session = self.session
        cdef bytes sqlstate, severity
        cdef bint fatal
        cdef bint on_copy = session is not None and session.unit_on_copy
        cdef int verdict = VERDICT_FORWARD
        self.syncs_unsure = 0                  # the server is beyond them
        severity, sqlstate = error_fields(data + FRAME_HEADER, size - FRAME_HEADER)
        fatal = severity == b"FATAL" or severity == b"PANIC"
        if fatal:
            self.tainted = self.fatal_seen = True
            if self.let_session_go():
                self.end()
                return VERDICT_SKIP
        elif self.replies.count and replies_head(&self.replies).flags & FLAG_FAILS:
            return self.on_wanted_error()
        if self.replies.count:
            if replies_head(&self.replies).flags & FLAG_SETTINGS and not (
                    fatal and self.relay.error_class(sqlstate, self.pool.state, on_copy) == 1):
                return self.on_settings_error(sqlstate, data + FRAME_HEADER, size - FRAME_HEADER, fatal)
            if replies_head(&self.replies).flags & FLAG_QUESTION and not fatal:
                self.on_no_answer(sqlstate)
                return VERDICT_SKIP
            replies_head(&self.replies).flags &= ~(FLAG_UNREADABLE | FLAG_PREPARES)
            if self.instead and replies_head(&self.replies).action == ACTION_FORWARD and not fatal:
                self.instead = False
                self.skip_failed()
                if self.replies.count == 0:
                    self.wake_session()
                return VERDICT_SKIP
        else:
            # Nobody asked: the server is closing this connection (an idle one, or one in a transaction).
            self.tainted = True
            if session is None or session.phase == PHASE_WAITING:
                self.session = None
                if session is not None:
                    session.take_back(self.pool)
                self.end()
                return VERDICT_SKIP
            if session is not None:
                self.relay.count_sqlstate(session.unit_service, self.pool.state.index, sqlstate)
                if session.survives(self):
                    session.lose_copy()
                    self.session = None
                    self.end()
                    return VERDICT_SKIP
                return VERDICT_FORWARD
        head = replies_head(&self.replies)[0]
        if head.action == ACTION_SKIP and not fatal and (
                self.status == b"E" if head.flags & FLAG_BEGIN else self.in_own_unit()):
            self.skip_failed()
            return VERDICT_SKIP
        unit = self.unit_reply()
        self.unit_error = self.relay.error_class(sqlstate, self.pool.state, on_copy)
        self.relay.count_sqlstate(unit.service, self.pool.state.index, sqlstate)
        if self.unit_error == 1 and session is not None and session.may_retry():
            # A copy that cannot answer must not cost the client its read: the owner answers instead.
            self.relay.count_call(unit.service, self.pool.state.index, unit.op, 0, 1, False, self.number)
            self.unit_error = 0
            self.run_length = 0
            self.skip_failed()
            session.retry()
            return VERDICT_SKIP
        if session is not None and session.shadow is not None:
            session.shadow.observed_error(sqlstate)
        if sqlstate == b"0A000" and STALE_PLAN in (<const char*> data)[:size]:
            self.relay.prepare_anew()
        if head.flags & FLAG_BEGIN and self.status == b"T" and not fatal:
            self.instead = True            # of what is done again behind BEGIN: the transaction fails with it
        elif head.flags & FLAG_BEGIN and session is not None and not fatal:
            # The statement behind it may already be running outside the transaction it was meant for.
            self.tainted = True
            session.fatal("08007", "the transaction could not be started at the server",
                          "Reconnect and check what the statement sent last has done before repeating it.")
            return VERDICT_SKIP
        if head.flags & FLAG_REMAKES:
            del self.prepares[self.making[0]]
            self.instead = True
        if sqlstate == b"57014" and self.under_way().flags & FLAG_TIMED_OUT and session is not None:
            self.flush_run()
            session.write_bytes(with_hint((<const char*> data)[FRAME_HEADER:size], self.relay.query_limit()))
            verdict = VERDICT_SKIP
        self.skip_failed()
        if session is None:
            self.tainted = self.tainted or head.action == ACTION_SKIP
        elif self.replies.count == 0:
            session.in_batch = session.in_batch or self.failed     # what comes up to Sync is no unit of its own
            self.wake_session()
        return verdict

    cdef int on_wanted_error(self) except -1:
        """The server has failed, as it should; the client hears the reason why it should, if it is to hear of it."""
        cdef bint queried = replies_head(&self.replies).code == REPLY_QUERY
        cdef bytes told = STALE_PLAN_FRAME if self.refusal is None else self.refusal
        if queried and self.refusal is None:
            return VERDICT_SKIP
        self.refusal = None
        self.unit_error = 2
        self.flush_run()
        if self.session is not None:
            self.session.write_bytes(told)
            if self.session.shadow is not None:
                self.session.shadow.observed_error(b"0A000")
        if not queried:
            self.skip_failed()
            if self.replies.count == 0:
                self.wake_session()
        return VERDICT_SKIP

    cdef int on_settings_error(self, bytes sqlstate, const uint8_t* body, size_t size, bint fatal) except -2:
        """The session's settings could not be brought here; if the error is fatal, nothing behind it runs."""
        cdef Session session = self.session
        self.tainted = True
        self.flush_run()
        if session is not None and not fatal:
            session.fatal("08007", "the session's settings could not be restored at the server",
                          "Reconnect and check what the statement sent last has done before repeating it.")
            return VERDICT_SKIP
        if session is not None:
            self.relay.count_sqlstate(session.unit_service, self.pool.state.index, sqlstate)
            session.settings_refused(sqlstate, read_error((<const char*> body)[:size]).message)
        self.session = None
        self.end()
        return VERDICT_SKIP


cdef tuple error_fields(const uint8_t* data, size_t size):
    """(severity, SQLSTATE) of an ErrorResponse body; either may be missing (CVE-2026-6666): then b""."""
    cdef bytes severity = b"", sqlstate = b""
    cdef size_t at = 0, stop
    cdef uint8_t field
    while at < size and data[at] != 0:
        field = data[at]
        stop = at + 1
        while stop < size and data[stop] != 0:
            stop += 1
        if field == b"V" or (field == b"S" and not severity):
            severity = (<const char*> data)[at + 1:stop]
        elif field == b"C":
            sqlstate = (<const char*> data)[at + 1:stop]
            if severity:
                break
        at = stop + 1
    return severity, sqlstate


cdef bint announces_end(const uint8_t* data, size_t size) except -1:
    """Whether this notice is the last thing the server says: it is told to stop at once, or another of its processes
    has crashed (quickdie in postgres.c; a warning, and then the connection is closed)."""
    sqlstate = error_fields(data + FRAME_HEADER, size - FRAME_HEADER)[1]
    return sqlstate == b"57P01" or sqlstate == b"57P02"
