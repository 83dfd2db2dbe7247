# What happens by the clock: deadlines, waits that last too long, links that nobody needs, statements that are slow.

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
            if session.phase <= PHASE_WELCOME:
                session.fatal("08P01", "authentication was not finished in time",
                              f"The limit is listen.login_timeout_ms, {self.login_ns_max // 1000000} ms.")
            else:
                session.end()
        for state in self.endpoints:
            for pool in state.pools:
                while pool.waiters:
                    session = <Session> pool.waiters[0]
                    if now - session.wait_since_ns < self.wait_ns_max:
                        break
                    pool.forget(session)
                    session.phase = PHASE_READY
                    session.refuse_unit(
                        "53300", f"no connection to {state.endpoint.name} became free in time",
                        "All links of this user's pool are busy. Raise pools.default_pool_size or look for"
                        " transactions that stay open.")
                    (<Relay> self).resume(session)
        if now - self.swept_ns > SWEEP_NS:
            self.swept_ns = now
            self.sweep(now)
        self.count_slow(now)
        self.run_ready()

    cdef int sweep(self, int64_t now) except -1:
        """Closes links that nobody has needed for long, and forgets identities without sessions and links."""
        cdef EndpointState state
        cdef Pool pool
        cdef Identity identity
        unused = set()
        for state in self.endpoints:
            for pool in list(state.pools):
                while pool.idle_count and now - (<Link> pool.idle[0]).idle_since_ns > self.idle_ns_max:
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
        if self.waiting or self.arriving:
            self.grow_pools()
        return 0

    cdef int count_slow(self, int64_t now) except -1:
        """A statement counts as slow the moment it is: one that hangs never completes."""
        cdef Link link
        cdef Reply* reply
        cdef uint32_t index
        for link in self.links:
            for index in range(link.replies.count):
                reply = replies_at(&link.replies, index)
                if reply.started_ns:
                    if (now - reply.started_ns > self.latency_ns_max and not reply.flags & FLAG_SLOW
                            and (link.session is None or not link.session.blocked_since_ns)):
                        reply.flags |= FLAG_SLOW
                        self.counters.row(reply.service, link.pool.state.index, reply.op).slow += 1
                        self.counters.changed = True
                        self.urgent = True
                    break
        return 0
