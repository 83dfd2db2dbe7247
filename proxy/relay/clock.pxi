# What happens by the clock: deadlines, waits that last too long, links that nobody needs, statements that are slow.

cdef enum:
    CANCEL_NS_MAX = 5000000000         # how long a server may take to end a statement it was asked to cancel
    PROBE_NS = 100000000               # who waits longer for a link and sends nothing more may have gone


cdef class Clock(Routes):
    """The relay's time."""

    def tick(self):
        """Every 100 ms: login deadlines, waits that last too long, statements that are slow already."""
        cdef Session session
        cdef EndpointState state
        cdef Pool pool
        cdef int64_t now = monotonic_ns()
        self.poller.now_ns = now
        for session in [session for session in self.deadlines if (<Session> session).deadline_ns < now]:
            self.deadlines.discard(session)
            if session.phase <= PHASE_WELCOME and self.draining:
                (<Arrivals> self).turn_away(session)
            elif session.phase <= PHASE_WELCOME:
                self.count_timeout("login")
                session.fatal("08P01", "authentication was not finished in time",
                              f"The limit is listen.login_timeout_ms, {self.login_ns_max // 1000000} ms.")
            else:
                session.end()
        for state in self.endpoints:
            for pool in state.pools:
                for session in [one for one in pool.waiters if now - (<Session> one).wait_since_ns >= self.wait_ns_max]:
                    pool.forget(session)
                    if session.unit_on_copy:
                        session.wait_since_ns = 0      # the owner has not been asked yet
                        session.force_owner = True
                        (<Relay> self).resume(session)
                        continue
                    self.count_timeout("query_wait")
                    session.phase = PHASE_READY
                    session.refuse_unit(
                        "53300", f"no connection to {state.endpoint.name} became free in time",
                        f"The limit is pools.query_wait_timeout_ms, {self.wait_ns_max // 1000000} ms. " + (
                            f"Another connection could not be opened: {pool.failure}" if pool.failures else
                            "All links of this user's pool are busy: raise pools.default_pool_size or look for"
                            " transactions that stay open."))
                    (<Relay> self).resume(session)
                for session in pool.waiters:
                    if session.half_closed and now - session.wait_since_ns > <int64_t> PROBE_NS:
                        session.probe()
        if now - self.swept_ns > SWEEP_NS:
            self.swept_ns = now
            self.sweep(now)
            self.end_idle(now)
        self.watch_statements(now)
        self.watch_copies()
        self.run_ready()

    cdef int watch_copies(self) except -1:
        """An endpoint that nobody reaches any more lets go of the reads that hang there."""
        cdef EndpointState state
        if self.withheld is None:              # the relay is closed
            return 0
        for state in self.endpoints:
            if self.withheld[state.index] != REASON_CANDIDATE_DOWN:
                state.was_left = False
            elif not state.was_left:
                state.was_left = True
                self.call_back((state.index,))
        return 0

    cdef int sweep(self, int64_t now) except -1:
        """Closes links that nobody has needed for long, and forgets identities without sessions and links."""
        cdef EndpointState state
        cdef Pool pool
        cdef Identity identity
        unused = set()
        for state in self.endpoints:
            for pool in list(state.pools):
                while pool.idle_count and (
                        now - (<Link> pool.idle[0]).idle_since_ns > self.idle_ns_max or pool.overfull()):
                    (<Link> pool.idle[0]).end()
                if pool.identity.sessions == 0:
                    unused.add(pool.identity)
        for identity in unused:
            if not any([(<Pool> pool).links for pool in identity.pools if pool is not None]):
                for pool in identity.pools:
                    if pool is not None:
                        pool.state.pools.remove(pool)
                self.policy.forget(identity)
                self.shadows.forget(identity)
        self.shadows.sweep()
        if self.waiting or self.arriving:
            self.grow_pools()
        return 0

    cdef int end_idle(self, int64_t now) except -1:
        """Clients that ask nothing: inside of a transaction they hold a link, outside they only take up room."""
        cdef Session session
        cdef int64_t idle_ns
        if not self.idle_transaction_ns_max and not self.client_idle_ns_max:
            return 0
        for session in list(self.keys.values()):
            if session.phase != PHASE_READY or buffer_waiting(&session.outbound):
                continue
            idle_ns = now - session.active_ns
            if session.link is not None and session.link.replies.count:
                continue
            if session.status != b"I" or session.in_batch:
                if self.idle_transaction_ns_max and idle_ns > self.idle_transaction_ns_max:
                    self.count_timeout("idle_transaction")
                    session.fatal("25P03", "terminating connection due to idle-in-transaction timeout",
                                  "The limit is pools.idle_transaction_timeout_ms,"
                                  f" {self.idle_transaction_ns_max // 1000000} ms.")
            elif self.client_idle_ns_max and idle_ns > self.client_idle_ns_max:
                self.count_timeout("client_idle")
                session.fatal("57P05", "terminating connection due to idle-session timeout",
                              f"The limit is pools.client_idle_timeout_ms, {self.client_idle_ns_max // 1000000} ms.")
        return 0

    cdef int watch_statements(self, int64_t now) except -1:
        """A statement counts as slow the moment it is: one that hangs never completes. Later it is cancelled."""
        cdef Link link
        cdef Reply* reply
        cdef int64_t began_ns
        cdef bint late
        cdef dict stuck = {}
        for link in list(self.links):
            if link.signalled is not None:
                link.end_old_signals(now - self.held_ns_max)
            reply = link.under_way()
            if reply == NULL:
                continue
            late = reply.started_ns and now - reply.started_ns > self.latency_ns_max
            if (late and reply.op == OP_READ and link.session is not None and not link.session.answered
                    and link.pool.state.index in self.copies.get(reply.service, ())):
                calls, waited_ns = stuck.get(reply.service, (0, 0))
                stuck[reply.service] = calls + 1, waited_ns + now - reply.started_ns
            if late and not reply.flags & FLAG_SLOW and (
                    link.session is None or not link.session.blocked_since_ns):
                reply.flags |= FLAG_SLOW
                self.counters.row(reply.service, link.pool.state.index, reply.op).slow += 1
                self.counters.changed = True
                self.urgent = True
            if self.query_ns_max and (reply.started_ns or link.session is not None):
                # What was sent behind another unit has its time from when that one was answered; a batch without Sync
                # from when something of it was sent or answered last.
                began_ns = max(reply.started_ns if reply.started_ns else link.session.active_ns, link.ready_ns)
                if now - began_ns > self.query_ns_max:
                    self.end_statement(link, reply, now - began_ns)
        if stuck or self.stuck:
            self.stuck = stuck
            self.counters.changed = True
        return 0

    cdef str query_limit(self):
        """What a client is told whose statement was cancelled: the server does not know of our limit."""
        return (f"The limit is pools.query_timeout_ms, {self.query_ns_max // 1000000} ms;"
                " raise it if the statement may take longer.")

    cdef int end_statement(self, Link link, Reply* reply, int64_t took_ns) except -1:
        """Past its time a statement is cancelled; one that goes on regardless loses its client and its link."""
        cdef Session session = link.session
        if not reply.flags & FLAG_TIMED_OUT:
            reply.flags |= FLAG_TIMED_OUT
            self.count_timeout("query")
            if session is not None:
                link.cancels += 1
                link.timing_out = True
                self.policy.cancel(link, link.pool.state.endpoint, link.process_id, link.secret_key)
        elif took_ns > self.query_ns_max + <int64_t> CANCEL_NS_MAX:
            if session is not None:
                link.tainted = True
                session.fatal("57014", "canceling statement due to query timeout",
                              self.query_limit() + " The server did not answer the request to cancel.")
            if not link.closed:
                link.end()
        return 0
