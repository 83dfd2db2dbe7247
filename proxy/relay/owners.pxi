# Where a statement may run whose tables have several owners, or whose session is at a database already.
#
# The copies that it needs must hold what was written elsewhere. What was written at the database itself is there.

cdef class Owners(Choice):
    """What is known of the databases that own tables."""

    cdef readonly object table
    cdef object placement
    cdef bint parted                       # some tables are owned by another database than the shared one

    cdef inline int64_t seen_ns(self, Entry entry, Session session) except -1:
        """Up to when all that was written must be in what this session reads by such a statement."""
        if entry.causal:
            return max(session.last_write_ns, self.written_ns(entry.plan.after))
        return session.last_write_ns

    cdef bint is_read_at(self, Entry entry, Session session, EndpointState state) except -1:
        """Whether a plain read may be answered there, whatever the weights say."""
        cdef int unused
        if entry.plan_kind != PLAN_SPLIT or not (
                entry.copies == state.database
                or entry.replicated and (<EndpointState> self.endpoints[entry.endpoint]).database == state.database):
            return False
        return self.holds(state, self.seen_ns(entry, session), &unused)

    cdef EndpointState place(self, Entry entry, Session session, int* reason):
        """Where all tables of a statement are that has no owner of them all; where it is refused if they are nowhere.
        """
        cdef EndpointState state
        for place in entry.plan.places:
            state = <EndpointState> self.endpoints[place.endpoint]
            if self.is_complete(session, state, place.after, reason):
                reason[0] = REASON_TOGETHER
                return state
        return <EndpointState> self.endpoints[entry.endpoint]

    cdef bint fits(self, Entry entry, Session session, EndpointState state) except -1:
        """Whether the statement may run there, where its session has a link."""
        cdef int unused
        if entry.plan_kind != PLAN_PROVEN and (not entry.tied or state.index == entry.endpoint):
            return True
        if entry.plan_kind == PLAN_SPLIT and session.unit_on_copy:
            return True                        # it was chosen for this statement, or its transaction stays there
        if state.is_standby:
            return False
        after = self.needs(entry, state)
        return after is not None and self.is_complete(session, state, after, &unused)

    cdef object needs(self, Entry entry, EndpointState state):
        """What `decide.needs` says of the endpoint's database; found once in an epoch."""
        cdef object after
        try:
            return entry.needs[state.index]
        except KeyError:
            after = entry.needs[state.index] = needs(
                entry.shape, state.endpoint.database, self.table, self.placement)
            return after

    cdef bint is_complete(self, Session session, EndpointState state, tuple after, int* reason) except -1:
        """Whether the copies there hold what this session, and others as far as `after` says, wrote elsewhere."""
        cdef int64_t written_ns = (
            session.earlier_write_ns if session.last_write_at == state.database else session.last_write_ns)
        if after:
            written_ns = max(written_ns, self.written_ns(after))
        if session.status != b"I" and session.link is not None and session.fresh_ns <= written_ns:
            reason[0] = REASON_NOT_FRESH       # its snapshot may be of when it came to the link
            return False
        return self.holds(state, written_ns, reason)
