# Sessions that signal others by pg_terminate_backend and pg_cancel_backend, and sessions that are signalled.
#
# The statement waits until the sessions whose process ids it names keep a link each; then the process ids of those
# links' servers take the place of theirs, in the message where it lies. Once the statement has ended they are let go:
# their servers are asked something before another session gets them, which a server that was ended does not answer.

cdef enum:
    HELD_BY_ONE_MAX = 16         # sessions that one transaction names and that are held for it
    HELD_MAX = 64                # sessions of a worker that keep a link at once, or wait for the one they will keep
    BEYOND_MAX = 8               # links that may be opened for them beyond the limits; one more for who signals them
    SERVER_ID_MAX = 0xffffff     # has no more digits than any session's process id has


cdef str CANCELLED = "canceling statement due to user request"


cdef class Signalling(Prepares):
    """Either side of a signal."""

    # --- the one that signals

    cdef int seek(self, Entry entry, list places) except -1:
        """Has the sessions that are named at `places` keep a link each. STOP: not all have been found yet."""
        if self.called_off:
            return TAKEN
        if self.link is not None and self.begins_unit() and self.link.replies.count:
            self.await_replies()               # whether it goes to this link is known when these are in
            return STOP
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if self.signalled is None:
            self.signalled = {}
            # A transaction at a copy moves to the owner with this statement.
            at_link = self.link is not None and not self.at_copy
            self.signals_at = self.link.pool.state.index if at_link else entry.endpoint
        for place in places:
            if place.number == self.process_id or place.number in self.signalled:
                continue
            if self.named_before() + len(self.signalled) >= HELD_BY_ONE_MAX:
                self.signalled[place.number] = 0
            else:
                self.signalled[place.number] = None
                self.relay.signals.ask(self, place.number, self.signals_at)
        if None not in self.signalled.values():
            return TAKEN
        self.await_replies()
        return STOP

    cdef inline Py_ssize_t named_before(self) except -1:
        """How many sessions are held for statements that this one's transaction has sent."""
        return 0 if self.link is None or self.link.signalled is None else len(self.link.signalled)

    cdef bint seeks(self) noexcept:
        """Whether the session waits for those that its next statement is to signal."""
        return self.phase == PHASE_AWAITING and self.signalled is not None

    cdef int call_off(self) except -1:
        """What the session seeks others for is cancelled before it has begun."""
        if self.link is None:
            self.phase = PHASE_READY
            self.refuse_unit("57014", CANCELLED, "")
        else:
            self.called_off = True             # the server must fail in its place: see `fail_called_off`
        return self.relay.resume(self)

    cdef int fail_called_off(self, Entry entry, const uint8_t* data, size_t here, bint simple) except -1:
        """Has the server fail where it would have run the statement. STOP, as for `refuse`."""
        if self.begins_unit():
            if self.acquire(entry, False) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        if self.link.failed:
            return self.pass_failed(data, here)
        return self.refuse(entry, simple)

    cdef int pass_failed(self, const uint8_t* data, size_t here) except -1:
        """The server skips everything up to Sync; it may as well skip this."""
        self.forget_signals()
        self.pass_on(data, here)
        return TAKEN

    cdef int found(self, uint32_t process_id, uint32_t server_id) except -1:
        self.signalled[process_id] = server_id
        if self.phase == PHASE_AWAITING and None not in self.signalled.values():
            self.relay.resume(self)
        return 0

    cdef uint32_t server_of(self, uint32_t process_id) except? 0:
        """The process id that takes the place of a session's; 0 if that stays: of no session, or too long for it."""
        cdef uint32_t server_id
        server_id = self.link.process_id if process_id == self.process_id else self.signalled[process_id]
        if process_id != self.process_id and self.link.pool.state.index != self.signals_at:
            return 0                           # there it would be another process
        return server_id if server_id <= SERVER_ID_MAX else 0

    cdef int name_servers(self, const uint8_t* data, list places) except -1:
        """Puts the servers' process ids into the message, which now goes to the link."""
        cdef bytes written
        cdef uint32_t server_id
        for place in places:
            server_id = self.server_of(place.number)
            if server_id:
                written = place.written(server_id)
                memcpy(<uint8_t*> data + <size_t> place.offset, PyBytes_AS_STRING(written), len(written))
        if self.link.signalled is None:
            self.link.signalled = []
        self.link.signalled.extend(
            [(number, self.poller.now_ns) for number, server_id in self.signalled.items() if server_id])
        self.signalled = None
        return 0

    cdef bytes send_named(self, bytes body, list places):
        """Prepares the statement with the servers' process ids in its text; returns its name.

        What the client has prepared may be run again, when the same process id is that of another session's server.
        """
        cdef bytes name = b"pgshunt_signals"
        cdef uint32_t server_id
        text = bytearray(body)
        for place in places:
            server_id = self.server_of(place.number)
            if server_id:
                text[place.offset:place.offset + place.length] = place.written(server_id)
        self.close_at_server(name)
        self.insert_bytes(frame(b"P", name + b"\0" + bytes(text)))
        replies_push(&self.link.replies, REPLY_PARSE, ACTION_SKIP)
        return name

    cdef int forget_signals(self) except -1:
        """What was to signal others is not sent."""
        self.called_off = False
        if self.signalled is not None:
            signalled, self.signalled = self.signalled, None
            for number, server_id in signalled.items():
                if server_id:
                    self.relay.signals.release(number, sure=True)
        return 0

    # --- the one that is signalled

    cdef int be_held(self, EndpointState state, tell) except -1:
        """Keeps a link to that endpoint, and `tell`s its server's process id, now or later; 0 if there can be none."""
        cdef Pool pool = self.relay.pool(self.identity, state)
        cdef Link link = self.link
        if self.holders is None:
            self.holders = []
        self.holders.append((state.index, tell))
        self.count_held()
        if link is not None and link.pool is not pool and self.may_retry():
            self.retry()                       # a read at a copy, which may go to the owner as well
            link.end()
        if self.link is not None:
            return self.tell_holders()
        if self.summoned:
            return 0
        link = pool.take(self, self.relay.unknown)
        if link is not None:
            self.stay_on(link)
            return 0
        while not pool.room() and pool.make_room():
            pass
        if not pool.room(BEYOND_MAX):
            return self.tell_holders()         # of none
        self.summoned = True
        return pool.open(self)

    cdef bint stay_on(self, Link link) except -1:
        """Takes the link for those who want to signal this session; False if it is not needed."""
        cdef bint waits = self.phase == PHASE_WAITING
        if self.link is not None or self.holders is None or self.closed or self.phase >= PHASE_LEAVING:
            self.tell_holders()
            return False
        if self.waiting_in is not None:
            self.waiting_in.forget(self)
            self.unit_on_copy = self.at_copy = False
        self.attach(link)
        if waits and self.relay.parted and not self.relay.fits(self.first_entry, <Session> self, link.pool.state):
            self.routed = False
            self.await_replies()               # what it waited for a link with is done elsewhere, and later
        elif waits:
            self.relay.resume(self)            # with the unit that it waited for a link with
        else:
            self.routed = False
            self.lead_in()
            self.flush_run()
        self.tell_holders()
        return True

    cdef int tell_holders(self) except -1:
        """Those who want to signal this session hear the process id of the server that it stays on; 0: of none."""
        cdef Link link = self.link
        holders, self.holders = self.holders, None
        for endpoint, tell in holders or ():
            if link is None or self.closed or link.pool.state.index != endpoint:
                tell(0)
                continue
            link.pin("signalled")
            self.holds += 1
            tell(link.process_id)
        return self.count_held()

    cdef int leave_holders(self) except -1:
        """The session has ended: nobody is to signal it any more."""
        self.holds = 0
        return self.tell_holders()

    cdef int count_held(self) except -1:
        cdef bint held = self.holds > 0 or self.holders is not None
        self.relay.sessions_held += held - self.held
        self.held = held
        return 0

    cdef int be_released(self, bint sure) except -1:
        """A statement that was to signal this session has ended; not `sure`: perhaps it has not."""
        cdef Link link = self.link
        self.holds -= 1
        self.count_held()
        if link is None:
            return 0
        link.tainted = link.tainted or not sure or link.pool.overfull()
        if self.holds == 0:
            link.doubt(("signalled",))
            link.release_if_done()
        return 0
