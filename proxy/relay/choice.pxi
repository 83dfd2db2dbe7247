# Chooses among the endpoints that may answer a read: by weight, of those that are known to be fresh enough.

cdef class Choice:
    """What a choice is made from. Owners need no proof; all others are as fresh as the board says."""

    cdef Poller poller
    cdef readonly list endpoints           # EndpointState
    cdef list groups                       # by database: its endpoints
    cdef int64_t[:] freshness              # the board's, by endpoint
    cdef int64_t[:] withheld               # the board's, by endpoint: the Reason why it takes no reads; 0: it does
    cdef int64_t[:] writes                 # the board's, by worker and service: the last write
    cdef int written_services              # cells of a worker in `writes`; the first is for what may be anybody's
    cdef readonly int board_workers
    cdef int64_t lag_ns_max
    cdef uint64_t random_state

    cdef inline uint64_t random(self) noexcept:
        self.random_state ^= self.random_state << 13
        self.random_state ^= self.random_state >> 7
        self.random_state ^= self.random_state << 17
        return self.random_state >> 11

    cdef inline bint holds(self, EndpointState state, int64_t after_ns, int* reason) except -1:
        """Whether a copy may be read by one who must see all that was written up to `after_ns`; if not, why."""
        cdef int64_t fresh_ns = self.freshness[state.index]
        if self.withheld[state.index]:
            reason[0] = <int> self.withheld[state.index]
        elif state.down_until_ns > self.poller.now_ns:
            reason[0] = REASON_CANDIDATE_DOWN
        elif fresh_ns <= after_ns:
            reason[0] = REASON_NOT_FRESH
        elif self.poller.now_ns - fresh_ns >= self.lag_ns_max:
            reason[0] = REASON_LATE
        else:
            return True
        return False

    cdef EndpointState choose(self, list group, EndpointState owner, int64_t after_ns, int* reason):
        """One of `group` by weight; None if none of them may be read. What has no weight is there for that case."""
        cdef EndpointState state, chosen = None
        cdef int64_t total = 0
        for state in group:
            if state is owner or self.holds(state, after_ns, reason):
                total += state.weight
                if chosen is None or (state.weight and <int64_t> (self.random() % total) < state.weight):
                    chosen = state
        return chosen

    cdef int64_t written_ns(self, tuple services) except -1:
        """When any session, of any worker, last wrote something of these services (places in the board's rows)."""
        cdef int64_t latest_ns = 0
        cdef int worker, service
        for service in services:
            for worker in range(self.board_workers):
                latest_ns = max(latest_ns, self.writes[worker * self.written_services + service])
        return latest_ns

    cdef int link_refused(self, EndpointState state) except -1:
        """Nobody is sent to an endpoint that could not be connected to, the longer the more often that happened."""
        state.failures = min(state.failures + 1, DOWN_DOUBLINGS_MAX)
        state.down_until_ns = self.poller.now_ns + (DOWN_NS << (state.failures - 1))
        return 0
