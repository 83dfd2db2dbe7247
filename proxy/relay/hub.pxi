# The relay of one worker: its sessions, links and time. What happens once per connection is left to plain Python.

cdef enum:
    AGAIN_NS = 1000000000              # as long as links are there, a server that refuses one is asked again so often

cdef class Relay(Arrivals):
    """See _relay.pyi for what the worker may call."""

    def __init__(self, loop, int index, board, start):
        from pgshunt.proxy.additions import Additions
        from pgshunt.proxy.crossings import Crossings
        from pgshunt.proxy.policy import Policy
        from pgshunt.proxy.shadow import Shadows
        from pgshunt.proxy.signals import HELD_S_MAX, Signals, first_process_id
        self.poller = Poller()
        self.loop = loop
        self.index = index
        self.board = board
        self.board_workers = board.workers
        self.freshness = board.freshness
        self.withheld = board.withheld
        self.writes = board.writes
        self.written_services = board.services
        self.definitions = board.definitions
        self.definitions_seen = 0
        self.policy = Policy(self, loop, start)
        self.shadows = Shadows(self, loop)
        self.signals = Signals(self, loop)
        self.additions = Additions(self)
        self.crossings = Crossings()
        self.statements = WeakValueDictionary()
        self.links = set()
        self.deadlines = set()
        self.keys = {}
        self.ready = []
        self.endpoints = []
        self.error_classes = {}
        self.stuck = {}
        self.random_state = int.from_bytes(os.urandom(8), "big") | 1
        self.first_process = first_process_id(index)
        self.next_process = int.from_bytes(os.urandom(3), "big")
        limits = self.policy.limits
        self.links_total_max = limits.links_total
        self.idle_ns_max = limits.idle_ms_max * 1_000_000
        self.latency_ns_max = limits.latency_ms_max * 1_000_000
        self.held_ns_max = int(HELD_S_MAX * 1e9)
        self.wait_ns_max = limits.query_wait_timeout_ms * 1_000_000
        self.login_ns_max = limits.login_timeout_ms * 1_000_000
        self.query_ns_max = limits.query_timeout_ms * 1_000_000
        self.idle_transaction_ns_max = limits.idle_transaction_timeout_ms * 1_000_000
        self.client_idle_ns_max = limits.client_idle_timeout_ms * 1_000_000
        self.statement_bytes_max = limits.statement_bytes_max
        self.held_bytes_max = limits.held_bytes_max
        self.reason_names = list(REASON_CODES)
        if len(self.reason_names) > REASONS_MAX:
            raise AssertionError("more reasons than counters")
        self.shapes = ShapeCache(self.resolve)
        self.unknown = Entry(unknown("not looked at"))
        self.unread = Entry(unknown("not_read"))
        self.apply(RoutingTable.from_dict(start["table"]), start["catalogue"])
        loop.add_reader(self.poller.epoll_fd, self.run)
        self.loop_epoll_fd = loop._get_backend_id()

    def run(self):
        """Called by the loop when some socket is ready.

        Under load the next event is microseconds away, and a turn of the Python loop costs more than serving it:
        so the relay goes on by itself for a moment, unless the loop has something to do: a task of the relay's own,
        or what arrives at the descriptors given to `wake_on`.
        """
        cdef int64_t until_ns
        cdef int rounds = 0
        cdef int served = self.poller.poll(0)
        if self.ready:
            self.run_ready()
        until_ns = self.poller.now_ns + STAY_NS_MAX
        self.poller.look_around()
        try:
            while served and not self.loop_tasks and not self.urgent and not self.poller.woken:
                if self.poller.now_ns >= until_ns:
                    break
                rounds += 1
                if rounds == STAY_ROUNDS_WATCHED:
                    self.poller.leave(self.loop_epoll_fd)
                served = self.poller.poll(STAY_WAIT_MS)
                if self.ready:
                    self.run_ready()
        finally:
            if rounds >= STAY_ROUNDS_WATCHED:
                self.poller.join(self.loop_epoll_fd)
        self.poller.woken = False
        if self.urgent:
            self.urgent = False
            if self.on_urgent is not None:
                self.on_urgent()

    def wake_on(self, int fd):
        """What arrives at `fd` is served by the loop at once, however busy the relay is."""
        self.poller.wake_on(fd)

    cdef int resume(self, Session session) except -1:
        """The session can go on with what it has received; done after the current round."""
        if not session.resuming:
            session.resuming = True
            self.ready.append(session)
        return 0

    cdef int run_ready(self) except -1:
        cdef Session session
        cdef list turn
        if self.running:
            return 0
        self.running = True
        try:
            while self.ready:
                turn = self.ready
                self.ready = []
                for session in turn:
                    if not session.resuming:
                        continue
                    session.resuming = False
                    if session.closed or session.phase >= PHASE_LEAVING or session.phase < PHASE_READY:
                        continue
                    if session.waiting_in is not None:
                        continue               # it has gone on by itself, and waits for a link since
                    try:
                        if session.phase == PHASE_WAITING and session.link is not None:
                            session.lead_in()
                        session.phase = PHASE_READY
                        if buffer_waiting(&session.outbound) >= OUTBOUND_BYTES_MAX and session.link is None:
                            continue           # goes on when the client has taken its answers
                        if buffer_waiting(&session.inbound):
                            session.feed_inbound()
                        elif session.link is not None:
                            session.link.release_if_done()
                        session.listen()
                        if self.draining and session.link is None and session.phase == PHASE_READY:
                            self.leaving(session)
                    except Exception as error:
                        session.survive(error)
        finally:
            self.running = False
        return 0

    cdef Pool longest_waiting(self):
        """The pool in which some session has waited longest; None if nobody waits."""
        cdef EndpointState state
        cdef Pool pool, longest = None
        for state in self.endpoints:
            for pool in state.pools:
                if ((pool.waiters or pool.identity.arrivals)
                        and (longest is None or pool.waiting_since() < longest.waiting_since())):
                    longest = pool
        return longest

    def cancel(self, uint32_t process_id, secret_key):
        """Cancels what the session with this key is running here, or is waiting to run; silently nothing when there
        is none.
        """
        cdef Session session = self.keys.get(process_id)
        cdef Link link
        if session is None or not compare_digest(session.secret_key, secret_key):
            return None
        if session.tunnel is not None and not session.tunnel.closed:
            # Nobody else ever uses that server process, so the request can hit nothing else.
            return self.policy.cancel_tunnel(session.tunnel.state.endpoint, session.tunnel.process_id,
                                             session.tunnel.secret_key)
        link = session.link
        if session.added is ASKED:
            self.additions.forget(session)
            session.added = self.error_frame("ERROR", "57014", CANCELLED, MAY_BE_ADDED)
            self.resume(session)
            self.run_ready()
            return None
        if session.waiting_in is not None:
            session.waiting_in.forget(session)
            session.phase = PHASE_READY
            session.refuse_unit("57014", CANCELLED, "")
            self.resume(session)
            self.run_ready()
            return None
        if session.seeks():
            session.call_off()
            self.run_ready()
            return None
        if link is None or not link.runs_clients():
            return None
        link.cancels += 1
        link.timing_out = False
        return self.policy.cancel(link, link.pool.state.endpoint, link.process_id, link.secret_key)

    def added(self, str question, error):
        """The supervisor's answer to a session that adds columns; `error`: SQLSTATE, message and hint, or None."""
        cdef Session session = self.additions.answered(question)
        if session is None or session.closed:
            return
        if error is None:
            session.added = COMMAND_COMPLETE["ALTER TABLE"]
        else:
            sqlstate, message, hint = error
            session.added = self.error_frame("ERROR", sqlstate, message, hint)
        self.resume(session)
        self.run_ready()
        if self.urgent and self.on_urgent is not None:
            self.urgent = False
            self.on_urgent()

    def cancel_due(self, Link link):
        """Whether a cancel request may still be sent: the link must run what the client meant."""
        if link.session is None or not link.runs_clients() or link.closed:
            return False
        return not link.timing_out or link.under_way().flags & FLAG_TIMED_OUT != 0

    def cancelled(self, Link link, *, bint told=True):
        """The server has passed the cancel on: from now on it can hit nothing new. Not `told`: it still may."""
        link.cancels -= 1
        link.tainted = link.tainted or not told
        if not link.closed and link.session is None and link.replies.count == 0 and link.cancels == 0:
            link.rinse()
        elif not link.closed:
            link.release_if_done()
        self.run_ready()

    def hold(self, uint32_t process_id, int endpoint, tell):
        """Has the session with this process id keep a link to that endpoint, which the session's own statements go on
        to use, and `tell`s its server's process id, now or later; 0 if there is no such session or no link.
        """
        cdef Session session = self.keys.get(process_id)
        if session is not None and session.tunnel is not None and endpoint == 0:
            tell(session.tunnel.process_id)    # nobody else ever uses it
        elif session is None or session.identity is None or not PHASE_WELCOME < session.phase < PHASE_CLOSING:
            tell(0)
        elif not session.held and self.sessions_held >= HELD_MAX:
            tell(0)
        else:
            session.be_held(<EndpointState> self.endpoints[endpoint], tell)

    def held(self, Session session, uint32_t process_id, uint32_t server_id):
        """What `session` has asked for is found: that other session's server."""
        if session.signalled is not None and session.signalled.get(process_id, 0) is None:
            session.found(process_id, server_id)
        elif server_id:
            self.signals.release(process_id, sure=True)    # it has ended while it waited

    def release(self, uint32_t process_id, bint sure):
        """A statement that was to signal this session has ended; not `sure`: perhaps it has not."""
        cdef Session session = self.keys.get(process_id)
        if session is not None and session.holds:
            session.be_released(sure)

    def announce(self):
        """Lets the other workers know that this one begins."""
        self.signals.begin()

    def take_note(self, bytes note):
        """What another worker's Signals say."""
        self.signals.take(note)
        self.run_ready()

    def worker_ended(self, int worker):
        """Another worker's process has ended."""
        self.signals.ended(worker)
        self.run_ready()

    def finish_session(self, Session session):
        session.finish()

    cdef int leaving(self, Session session) except -1:
        """While draining: a session without a transaction is told to reconnect elsewhere."""
        if session.status == b"I" and not session.in_batch and not session.stream_left:
            session.fatal("57P01", "terminating connection due to administrator command",
                          "The proxy is shutting down; reconnect.")
        return 0

    cdef int open_link(self, Pool pool, Session session) except -1:
        self.policy.open_link(pool, pool.state.endpoint, pool.identity, session)
        return 0

    def link_opened(self, Pool pool, int fd, uint32_t process_id, bytes secret_key, welcome, tls_end=None,
                    bytes leftover=b"", Session wanting=None):
        """A server connection is logged in; `welcome` is a welcome.Welcome, None if that is known already.

        `tls_end` is the proxy.tls.TlsEnd of one that is encrypted, `leftover` what has come behind ReadyForQuery,
        `wanting` the session it was opened for.
        """
        cdef Link link
        cdef Session session
        pool.opening -= 1
        pool.failures = 0
        pool.state.down_until_ns = pool.state.failures = 0
        self.link_numbers += 1
        link = Link(self, pool, fd, process_id, secret_key, self.link_numbers)
        if tls_end is not None:
            link.tls = Tls(tls_end, True)
        self.links.add(link)
        self.poller.watch(link)
        if welcome is not None:
            pool.identity.welcome = welcome.frames
            pool.identity.schemas = welcome.search_path
            pool.identity.search_path = self.shapes.search_path(
                settings_of.search_path(settings_of.BASE, welcome.search_path, pool.identity.user))
            pool.identity.plain_text = welcome.plain_text
            pool.identity.read_committed = welcome.read_committed
        if pool.identity.welcome is not None:
            for session in self.arrived(pool.identity):
                self.welcome(session)
        if leftover:
            link.on_unasked(leftover)
        if wanting is not None:
            wanting.summoned = False
        if wanting is not None and (wanting.tell_holders() if link.closed else wanting.stay_on(link)):
            pool.grow()                # it does not serve those who wait
        elif wanting is not None and pool.overfull():
            link.end()
        elif not link.closed:
            pool.give_back(link)
        self.run_ready()

    def reserve_link(self, int index):
        """Counts in a link that belongs to no pool; False if the limits leave no room for one."""
        cdef EndpointState state = self.endpoints[index]
        if state.links >= state.links_max or self.links_open >= self.links_total_max:
            return False
        state.links += 1
        self.links_open += 1
        return True

    def release_link(self, int index):
        """A link that `reserve_link` counted in is closed."""
        (<EndpointState> self.endpoints[index]).links -= 1
        self.links_open -= 1
        if self.waiting or self.arriving:
            self.grow_pools()

    def link_failed(self, Pool pool, error, Session wanting=None):
        """No server connection could be had. Reads go to the owner; whom no other link can serve is told why."""
        pool.opening -= 1
        pool.uncount()
        pool.failures += 1
        pool.failure = str(error)
        self.poller.now_ns = monotonic_ns()
        pool.again_ns = self.poller.now_ns + AGAIN_NS
        if error.infrastructure:
            self.link_refused(pool.state)
        self.note("link_failed", pool.state, pool.failure)
        if wanting is not None:
            wanting.summoned = False
            wanting.tell_holders()
        elif error.sqlstate == "53300" and pool.links > 0:
            return                     # the server is full; the links there are, or will be, serve those who wait
        else:
            self.pass_over(pool, error)
            if pool.links == pool.opening:
                self.refuse_line(pool, error)
        self.grow_pools()
        self.run_ready()
        self.run()

    cdef int pass_over(self, Pool pool, error) except -1:
        """Reads that wait for this server as a copy go to the owner."""
        cdef Session session
        if pool.state.index != 0 and pool.waiters:
            # One connection that failed is one failure, however many waited for it.
            session = <Session> pool.waiters[0]
            self.count_call(session.unit_service, pool.state.index, OP_READ, 0, 1, False,
                            -self.link_numbers - pool.failures)
            self.count_sqlstate(session.unit_service, pool.state.index, error.sqlstate.encode())
        for session in list(pool.waiters):
            if session.unit_on_copy:
                pool.forget(session)
                session.force_owner = True
                self.resume(session)
        return 0

    cdef int refuse_line(self, Pool pool, error) except -1:
        """No link is there: all but the last, for whom others are being opened, are told what the server says."""
        cdef Session session
        while len(pool.waiters) + len(pool.identity.arrivals) > pool.opening:
            if pool.identity.arrivals:
                session = <Session> pool.identity.arrivals.pop(0)
                self.arriving -= 1
                if session.phase == PHASE_WELCOME:
                    session.write_bytes(self.policy.login_error(error))
                    session.finish()
            else:
                session = <Session> pool.waiters[0]
                pool.forget(session)
                session.phase = PHASE_READY
                if pool.state.index == 0:      # of others, each connection that failed was counted
                    self.count_refused(session, error.sqlstate.encode())
                session.refuse_unit(error.sqlstate, error.message, error.hint or "")
                self.resume(session)
        return 0

    cdef int count_refused(self, Session session, bytes sqlstate) except -1:
        """A statement for which the shared primary could not be had has failed there."""
        cdef Entry entry = session.first_entry
        self.count_call(session.unit_service, 0,
                        OP_WRITE if entry.writes else OP_READ if entry.kind == KIND_READ else OP_OTHER,
                        0, 1, False, 0)
        return self.count_sqlstate(session.unit_service, 0, sqlstate)

    def reload_tls(self, listen):
        """New clients are met with the certificates of this config.model.ListenTls. Raises OSError."""
        self.policy.reload_tls(listen)

    async def drain(self, int grace_ms):
        """Closes sessions as they become idle, those left after `grace_ms` with 57P01."""
        cdef Session session
        self.draining = True
        self.drained = self.loop.create_future()
        for session in list(self.keys.values()):
            if session.phase <= PHASE_WELCOME:
                self.hasten(session)
            elif session.phase == PHASE_READY and session.link is None and not buffer_waiting(&session.begin):
                self.leaving(session)
        if self.clients:
            await wait([self.drained], timeout=grace_ms / 1000)
        for session in list(self.keys.values()):
            session.fatal("57P01", "terminating connection due to administrator command",
                          "The proxy is shutting down and has waited long enough; reconnect.")

    def close(self):
        """Closes everything at once."""
        cdef Session session
        cdef Link link
        for session in list(self.keys.values()):
            session.end()
        for link in list(self.links):
            link.end()
        self.policy.close()
        self.shadows.close()
        self.loop.remove_reader(self.poller.epoll_fd)
        self.freshness = self.withheld = self.writes = self.definitions = None
