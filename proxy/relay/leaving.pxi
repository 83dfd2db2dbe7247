# How a client's connection ends: by its own word, in silence, or told why.

cdef class Leaving(Client):
    """What is still done for a client that goes, and what it leaves."""

    cdef int stop_waiting(self) except -1:
        raise NotImplementedError("stop_waiting belongs to Unit")

    cdef int protocol_error(self, str message) except -1:
        """What was asked before is still answered, then the client is told and the connection closed."""
        self.farewell = self.relay.error_frame(
            "FATAL", "08P01", message, "The client speaks something else than PostgreSQL's protocol, version 3.")
        return self.leave()

    cdef int fatal(self, str sqlstate, str message, str hint) except -1:
        """Says why and closes; nothing else of this session reaches a server."""
        if self.closed or self.phase == PHASE_CLOSING:
            return 0
        self.flush_run()
        if self.link is not None and self.link.torn():
            self.torn = True
        self.farewell = self.relay.error_frame("FATAL", sqlstate, message, hint)
        return self.finish()

    cdef int finish(self) except -1:
        """Closes once everything has been sent."""
        cdef Link link = self.link
        if self.closed or self.phase == PHASE_CLOSING:
            return 0
        if self.phase == PHASE_TUNNEL:
            self.torn = True               # nobody has read where a message ends
        self.phase = PHASE_CLOSING
        self.stop_waiting()
        self.link = None
        if link is not None:
            link.abandon()
        if self.tunnel is not None:
            self.tunnel.end()
        self.forget_signals()
        if self.farewell is not None and not self.torn:
            self.write_bytes(self.farewell)
        if buffer_waiting(&self.outbound) == 0 or self.broken:
            return self.end()
        if self.farewell is not None:          # else these are answers, which a client may take its time to read
            self.deadline_ns = self.poller.now_ns + 5000000000
            self.relay.deadlines.add(self)
        return self.listen_for(EPOLLOUT)

    cdef int on_lost(self) except -1:
        """The client sends nothing more. It may still read, as one that has shut down its side does."""
        if self.tls is not None and self.tls.failure is not None and not self.tls.established:
            self.relay.count_failed_login("tls")
        if self.broken or (self.phase != PHASE_READY and self.phase != PHASE_TUNNEL):
            return self.end()
        self.cut_off = True
        if self.phase == PHASE_READY:
            return self.leave()
        self.tunnel.hang_up()
        return self.listen()

    cdef int on_hangup(self) except -1:
        return self.end()

    cdef int on_half_closed(self) except -1:
        self.half_closed = True
        return 0

    cdef int probe(self) except -1:
        """Finds out whether a client that sends nothing more is still there.

        One that has closed looks like one that has shut down its side and waits for its answer, until it is sent
        something: then it answers with RST. It is sent a ParameterStatus that it knows.
        """
        cdef bytes welcome = self.identity.welcome
        cdef Py_ssize_t at = welcome.find(b"server_version\0") - FRAME_HEADER
        if at >= 0 and not self.probed:
            self.probed = True
            self.write_bytes(welcome[at:at + 1 + int.from_bytes(welcome[at + 1:at + FRAME_HEADER], "big")])
        return 0

    cdef int leave(self) except -1:
        """Terminate, or the end of what the client sends: what was asked before is carried out and answered."""
        cdef bint unsettled                    # the server may have more to say about what it skips or ignores
        self.flush_run()
        if self.link is None:
            return self.finish()
        unsettled = self.link.failed or self.link.syncs_unsure > 0
        if self.link.replies.count == 0 and buffer_waiting(&self.link.outbound) == 0 and not unsettled:
            return self.finish()
        self.phase = PHASE_LEAVING
        if self.in_batch or unsettled or self.link.copy_half_sent() or (self.stream_left and not self.stream_drop):
            self.link.say_goodbye()
        return self.listen()

    cdef int on_fault(self, object error) except -1:
        self.relay.fault(error)
        self.run_length = 0
        if self.link is not None:
            self.link.tainted = True       # what was noted for it and what was sent to it may differ
        return self.fatal("XX000", "pgshunt failed while it handled this session", "Please report this.")

    cdef int end(self) except -1:
        cdef Link link = self.link
        if self.closed:
            return 0
        self.phase = PHASE_CLOSING
        self.link = None
        self.stop_waiting()
        self.let_go()
        self.shut()
        self.leave_holders()
        self.relay.session_ended(self)
        if link is not None:
            link.abandon()
        if self.tunnel is not None:
            self.tunnel.end()
        self.forget_signals()
        self.statements = None
        self.shadow = None
        return 0
