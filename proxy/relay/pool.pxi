# Lends links to sessions and takes them back.
#
# A pool holds the links of one endpoint that log in as one identity (user, and the startup parameters that make a
# session's defaults). The pools of one user on one endpoint share a limit, and all pools of an endpoint share another.


cdef class EndpointState:
    """One server address as this worker sees it."""

    cdef readonly object endpoint          # routing.table.Endpoint
    cdef readonly int index
    cdef readonly int links                # open or being opened
    cdef readonly int links_max
    cdef int64_t down_until_ns             # no reads are sent here before that, after a failure to connect
    cdef readonly list pools

    def __cinit__(self, endpoint, int index, int links_max):
        self.endpoint = endpoint
        self.index = index
        self.links_max = links_max
        self.pools = []


cdef class Identity:
    """What a link must be logged in as for a session to find its own defaults: user, parameters, search path."""

    cdef readonly str user
    cdef readonly dict parameters          # startup parameters, user and database left out
    cdef readonly object password          # str or None
    cdef readonly int search_path_id
    cdef readonly bint plain_text          # string literals follow the standard, encoding is ASCII-safe
    cdef public object welcome             # ParameterStatus pairs as the server sent them, None until known
    cdef list pools                        # per endpoint index: Pool or None
    cdef readonly list arrivals            # sessions that wait for `welcome`

    def __cinit__(self, str user, dict parameters, password):
        self.user = user
        self.parameters = parameters
        self.password = password
        self.pools = []
        self.arrivals = []
        self.plain_text = True


cdef class Pool:
    """The links of one (endpoint, identity)."""

    cdef Relay relay
    cdef readonly EndpointState state
    cdef readonly Identity identity
    cdef list idle                         # a stack in fixed places: `idle_count` of them are taken
    cdef readonly int idle_count
    cdef object waiters                    # deque of sessions, first come first served
    cdef readonly int links
    cdef readonly int opening
    cdef public int failures               # consecutive failures to open a link
    cdef public bint failing_over

    def __cinit__(self, Relay relay, EndpointState state, Identity identity):
        self.relay = relay
        self.state = state
        self.identity = identity
        self.idle = []
        self.waiters = deque()

    cdef Link take(self):
        """An idle link, or None: then the session waits, and a link is being opened if the limits allow."""
        cdef Link link
        if self.idle_count == 0:
            return None
        self.idle_count -= 1
        link = <Link> self.idle[self.idle_count]
        link.lies_idle = False
        return link

    cdef int lay_down(self, Link link) except -1:
        link.lies_idle = True
        if self.idle_count < len(self.idle):
            self.idle[self.idle_count] = link
        else:
            self.idle.append(link)
        self.idle_count += 1
        return 0

    cdef int take_away(self, Link link) except -1:
        """A link that lies idle is closed: it leaves its place, those above move down."""
        cdef int place = self.idle.index(link)
        del self.idle[place]
        self.idle_count -= 1
        link.lies_idle = False
        return 0

    cdef int wait(self, Session session) except -1:
        session.wait_since_ns = self.relay.poller.now_ns
        session.waiting_in = self
        self.waiters.append(session)
        self.relay.waiting += 1
        self.grow()
        return 0

    cdef int forget(self, Session session) except -1:
        """The session waits no longer."""
        session.waiting_in = None
        self.waiters.remove(session)
        self.relay.waiting -= 1
        return 0

    cdef int grow(self) except -1:
        """Opens links for those who wait, as far as the limits allow."""
        while self.opening < len(self.waiters) + len(self.identity.arrivals):
            if not self.room():
                return 0
            self.open()
        return 0

    cdef int open(self) except -1:
        self.opening += 1
        self.links += 1
        self.state.links += 1
        self.relay.open_link(self)
        return 0

    cdef bint room(self) except -1:
        """Whether one more link may be opened; closes an idle one of another identity if that makes room."""
        cdef Pool pool
        cdef Link link
        cdef int user_links = 0
        for pool in self.state.pools:
            if pool.identity.user == self.identity.user:
                user_links += pool.links
        if user_links < self.relay.links_per_user_max and self.state.links < self.state.links_max:
            return True
        for pool in self.state.pools:
            if pool is self or not pool.idle_count:
                continue
            if user_links < self.relay.links_per_user_max or pool.identity.user == self.identity.user:
                link = <Link> pool.idle[0]
                link.end()
                return True
        return False

    cdef int give_back(self, Link link) except -1:
        """A link without a session: to whoever waits longest, else to the idle ones."""
        cdef Session session
        cdef Pool pool
        while self.relay.waiting and self.waiters:
            session = <Session> self.waiters.popleft()
            self.relay.waiting -= 1
            if session.closed or session.waiting_in is not self:
                continue
            session.waiting_in = None
            session.attach(link)
            self.relay.resume(session)
            return 0
        if self.relay.draining:
            link.end()
            return 0
        link.idle_since_ns = self.relay.poller.now_ns
        self.lay_down(link)
        for pool in self.state.pools:
            # Sessions of another identity may be waiting for the limit this link takes up.
            if pool is not self and ((self.relay.waiting and pool.waiters) or pool.identity.arrivals):
                pool.grow()
        return 0

    cdef int gone(self, Link link) except -1:
        """A link was closed."""
        cdef Pool pool
        self.links -= 1
        self.state.links -= 1
        if link.lies_idle:
            self.take_away(link)
        for pool in self.state.pools:
            if pool.waiters or pool.identity.arrivals:
                pool.grow()
        return 0
