# Lends links to sessions and takes them back.
#
# A pool holds the links of one endpoint that log in as one identity (user, and the startup parameters that make a
# session's defaults). The pools of one user on one endpoint share a limit, and all pools of an endpoint share another.


cdef int64_t PATIENCE_NS = 250000000            # after this time, sessions of another pool take links from a busy one


cdef class EndpointState:
    """One server address as this worker sees it."""

    cdef readonly object endpoint          # routing.table.Endpoint
    cdef readonly int index
    cdef readonly int links                # open or being opened
    cdef readonly int links_max
    cdef int database                      # its number; the shared one's is 0
    cdef int weight                        # among the endpoints of its database
    cdef bint is_standby
    cdef bint is_judged                    # the guard judges a service's own database by what happens here
    cdef bint owns                         # tables are written here; the database's replicas own nothing
    cdef int64_t down_until_ns             # no reads are sent here before that, after a failure to connect
    cdef int failures                      # to connect, in a row
    cdef bint was_left                     # the reads that hung here have been called back
    cdef readonly list pools
    cdef dict user_links                   # user -> links, those of all of its pools here

    def __cinit__(self, endpoint, int index, int links_max):
        self.endpoint = endpoint
        self.index = index
        self.links_max = links_max
        self.weight = endpoint.weight
        self.is_standby = endpoint.role == "replica"
        self.is_judged = endpoint.database != SHARED and not self.is_standby
        self.pools = []
        self.user_links = {}


cdef class Identity:
    """What a link must be logged in as for a session to find its own defaults: user, parameters, search path."""

    cdef readonly str user
    cdef readonly dict parameters          # startup parameters, user and database left out
    cdef public object credential          # protocol.login.Credential or None: what links log in with
    cdef readonly tuple schemas            # its search path as the server tells it, "$user" not replaced
    cdef object search_path                # routing's SearchPath
    cdef readonly bint plain_text          # string literals follow the standard, encoding is ASCII-safe
    cdef readonly bint read_committed      # so are transactions that do not say otherwise
    cdef public object welcome             # ParameterStatus pairs as the server sent them, None until known
    cdef list pools                        # per endpoint index: Pool or None
    cdef readonly list arrivals            # sessions that wait for `welcome`
    cdef int sessions                      # clients logged in as this
    cdef public int links_max              # of its user, at one endpoint

    def __cinit__(self, str user, dict parameters, credential):
        self.user = user
        self.parameters = parameters
        self.credential = credential
        self.pools = []
        self.arrivals = []
        self.plain_text = True
        self.read_committed = False


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
    cdef readonly int failures             # consecutive failures to open a link
    cdef str failure                       # what the last of them was
    cdef int64_t again_ns                  # before that, no other attempt is made as long as links are open
    cdef public bint failing_over

    def __cinit__(self, Relay relay, EndpointState state, Identity identity):
        self.relay = relay
        self.state = state
        self.identity = identity
        self.idle = []
        self.waiters = deque()

    cdef Link take(self, Session session, Entry entry):
        """An idle link, or None: then the session waits, and a link is being opened if the limits allow."""
        cdef Link link
        while self.idle_count:
            link = <Link> self.idle[self.idle_count - 1]
            if link.settings is not session.settings and not self.choose(session, entry):
                return None
            self.idle_count -= 1
            link = <Link> self.idle[self.idle_count]
            link.lies_idle = False
            if not link.broken:        # else its end is on its way
                return link
        return None

    cdef bint choose(self, Session session, Entry entry) except -1:
        """Lays on top of the idle links the one that is nearest to the session's settings.

        False: none can be brought to them, and one has been closed so that another can be opened.
        """
        cdef Link link
        cdef int place, best = -1
        cdef bint alike = False
        cdef object settings = session.settings
        for place in range(self.idle_count - 1, -1, -1):
            link = <Link> self.idle[place]
            if link.settings is settings:
                best = place
                break
            if not alike and link.settings.custom == settings.custom:
                alike = True
                best = place
            elif best < 0 and suits(link, session, entry):
                best = place
        if best < 0:
            (<Link> self.idle[0]).end()
            return False
        self.idle[best], self.idle[self.idle_count - 1] = self.idle[self.idle_count - 1], self.idle[best]
        return True

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
        if session.wait_since_ns == 0:
            session.wait_since_ns = self.relay.poller.now_ns
        session.waiting_in = self
        self.waiters.append(session)
        self.relay.waiting += 1
        return self.grow()

    cdef int wait_on(self, Session session) except -1:
        """The session's turn had come, but nothing came of it: it keeps its place."""
        session.waiting_in = self
        self.waiters.appendleft(session)
        self.relay.waiting += 1
        return self.grow()

    cdef int forget(self, Session session) except -1:
        """The session waits no longer."""
        session.waiting_in = None
        self.waiters.remove(session)
        self.relay.waiting -= 1
        return 0

    cdef int grow(self) except -1:
        """Opens links for those who wait, as far as the limits allow."""
        if self.failures and self.links > self.opening and self.relay.poller.now_ns < self.again_ns:
            return 0                   # the links there are go on to serve
        while self.opening < len(self.waiters) + len(self.identity.arrivals):
            if self.room():
                self.open()
            elif not self.make_room():
                return self.grow_beyond() if self.relay.sessions_held else 0
        return 0

    cdef int grow_beyond(self) except -1:
        """Who waits to signal others may wait for the very links that those keep: then there must be one more."""
        if self.opening == 0 and self.room(BEYOND_MAX + 1) and any(
                [(<Session> session).signalled is not None for session in self.waiters]):
            return self.open()
        return 0

    cdef int open(self, Session session=None) except -1:
        """Opens a link, for whoever waits or for that session."""
        self.opening += 1
        self.links += 1
        self.state.links += 1
        self.state.user_links[self.identity.user] = self.user_links() + 1
        self.relay.links_open += 1
        return self.relay.open_link(self, session)

    cdef int64_t waiting_since(self) except -1:
        """Since when the first of its sessions waits; 0 (before all others) for one that waits to be welcomed."""
        return (<Session> self.waiters[0]).wait_since_ns if self.waiters else 0

    cdef int user_links(self) except -1:
        """Links that all pools of this user have at this endpoint."""
        return self.state.user_links.get(self.identity.user, 0)

    cdef bint room(self, int beyond=0) except -1:
        """Whether one more link may be opened; `beyond`: if the limits were so much higher."""
        return (self.state.links < self.state.links_max + beyond
                and self.relay.links_open < self.relay.links_total_max + beyond
                and self.user_links() < self.identity.links_max + beyond)

    cdef bint overfull(self) except -1:
        """Whether there are more links than the limits allow: some are opened beyond them, for sessions that signal or
        are signalled."""
        return (self.state.links > self.state.links_max or self.relay.links_open > self.relay.links_total_max
                or self.user_links() > self.identity.links_max)

    cdef bint make_room(self) except -1:
        """Closes a link that is idle in another pool and takes up the limit in the way; False if there is none."""
        cdef EndpointState state
        cdef Pool pool
        cdef bint same_user = self.user_links() >= self.identity.links_max
        cdef bint anywhere = not same_user and self.state.links < self.state.links_max
        for state in self.relay.endpoints:
            if state is not self.state and not anywhere:
                continue
            for pool in state.pools:
                if pool is not self and pool.idle_count and (not same_user or pool.identity.user == self.identity.user):
                    (<Link> pool.idle[0]).end()
                    return True
        return not same_user and self.relay.shadows.make_room(-1 if anywhere else self.state.index)

    cdef int give_back(self, Link link) except -1:
        """A link without a session: to whoever waits longest, else to the idle ones."""
        cdef Session session
        if self.relay.waiting and self.waiters:
            if self.relay.waiting + self.relay.arriving > len(self.waiters) and self.blocks_others():
                return link.end()
            if not suits(link, <Session> self.waiters[0], (<Session> self.waiters[0]).first_entry):
                return link.end()      # another one is opened in its place
            session = <Session> self.waiters.popleft()
            self.relay.waiting -= 1
            session.waiting_in = None
            session.attach(link)
            self.relay.resume(session)
            return 0
        if self.relay.draining:
            link.end()
            return 0
        link.idle_since_ns = self.relay.poller.now_ns
        self.lay_down(link)
        if self.relay.waiting or self.relay.arriving:
            self.relay.grow_pools()
        return 0

    cdef int uncount(self) except -1:
        self.links -= 1
        self.state.links -= 1
        self.state.user_links[self.identity.user] -= 1
        self.relay.links_open -= 1
        return 0

    cdef bint blocks_others(self) except -1:
        """Whether a session of another pool has waited longer than ours, for a limit that our links take up.

        Then a link is closed for it: else those whose pool is busy all the time would keep the others out.
        """
        cdef Pool pool = self.relay.longest_waiting()
        if self.relay.poller.now_ns - pool.waiting_since() < PATIENCE_NS:
            return False
        return pool is not self and pool.opening == 0 and not pool.room() and (
            pool.state is self.state and (pool.identity.user == self.identity.user
                                          or self.state.links >= self.state.links_max)
            or self.relay.links_open >= self.relay.links_total_max)

    cdef int gone(self, Link link) except -1:
        """A link was closed."""
        self.uncount()
        if link.lies_idle:
            self.take_away(link)
        if self.relay.waiting or self.relay.arriving:
            self.relay.grow_pools()
        return 0


cdef bint suits(Link link, Session session, Entry entry) except -1:
    """Whether the link can be brought to the session's settings, as far as the statement it begins with can tell."""
    cdef object shape
    if link.settings is session.settings:
        return True
    shape = entry.shape
    return settings_of.reachable(
        link.settings, session.settings,
        frozenset() if shape.tables or shape.local else shape.touches | shape.creates)
