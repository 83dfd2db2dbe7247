# The relay of one worker: holds what all sessions share, decides each route from the current epoch's table, and
# leaves to plain Python what happens once per connection.

cdef enum:
    STAY_NS_MAX = 10000000             # how long the relay serves sockets before other callbacks get their turn
    STAY_WAIT_MS = 20
    STAY_ROUNDS_WATCHED = 8
    SWEEP_NS = 1000000000              # how often links and identities are looked through
    DOWN_NS = 1000000000               # how long reads avoid an endpoint that could not be connected to


cdef class Relay:
    """See relay.pyi for what the worker may call."""

    cdef Poller poller
    cdef object loop
    cdef int loop_epoll_fd                 # uvloop's own epoll, in which ours is watched
    cdef readonly int index
    cdef readonly int board_workers
    cdef readonly int clients
    cdef readonly int waiting              # sessions in the queues of all pools
    cdef int arriving                      # sessions that wait to be welcomed
    cdef public object on_urgent           # called when the supervisor should hear of the counters now
    cdef public object on_foreign_cancel   # (worker, process id, key) of a cancel request for another worker's session
    cdef public object on_event            # rare things for the event log
    cdef object board
    cdef int64_t[:] freshness
    cdef object policy                     # proxy.policy.Policy: logins, new links, cancels
    cdef object shadows                    # proxy.shadow.Shadows
    cdef readonly object table
    cdef readonly object catalogue
    cdef object placement
    cdef long epoch
    cdef bint splitting                    # some service is read from its own database too
    cdef bint shadowing                    # some service's writes are validated
    cdef list copies                       # per service index: list of endpoint indexes, or None
    cdef readonly list endpoints           # EndpointState
    cdef ShapeCache shapes
    cdef Entry unknown
    cdef Counters counters
    cdef list service_names, endpoint_names, sides, reason_names
    cdef object statements                 # WeakValueDictionary: (text, search path) -> Statement
    cdef long statement_ids, link_numbers, fault_count
    cdef int64_t unnamed_tokens
    cdef readonly set links
    cdef set deadlines                     # sessions that must be done with something by their deadline
    cdef dict keys                         # process id -> session
    cdef list ready                        # sessions to go on with
    cdef bint running
    cdef readonly bint draining
    cdef object drained
    cdef int64_t lag_ns_max, latency_ns_max, wait_ns_max, login_ns_max
    cdef readonly int64_t statement_bytes_max
    cdef readonly int links_per_user_max, links_total_max
    cdef readonly int links_open           # at all endpoints, those being opened included
    cdef int64_t swept_ns                  # when idle links were looked at last
    cdef uint64_t random_state
    cdef uint32_t next_process
    cdef dict error_classes
    cdef dict gauges                       # as they were sent last
    cdef long parses                       # likewise
    cdef bint urgent
    cdef public int loop_tasks             # tasks of the policy's and the shadows' that the Python loop must serve

    def __init__(self, loop, int index, board, start):
        from pgshunt.proxy.policy import Policy
        from pgshunt.proxy.shadow import Shadows
        self.poller = Poller()
        self.loop = loop
        self.index = index
        self.board = board
        self.board_workers = board.workers
        self.freshness = board.freshness
        self.policy = Policy(self, loop, start)
        self.shadows = Shadows(self, loop)
        self.statements = WeakValueDictionary()
        self.links = set()
        self.deadlines = set()
        self.keys = {}
        self.ready = []
        self.endpoints = []
        self.error_classes = {}
        self.random_state = int.from_bytes(os.urandom(8), "big") | 1
        self.next_process = int.from_bytes(os.urandom(3), "big")
        limits = self.policy.limits
        self.links_per_user_max = limits.links_per_user
        self.links_total_max = limits.links_total
        self.latency_ns_max = limits.latency_ms_max * 1_000_000
        self.wait_ns_max = limits.query_wait_timeout_ms * 1_000_000
        self.login_ns_max = limits.login_timeout_ms * 1_000_000
        self.statement_bytes_max = limits.statement_bytes_max
        self.reason_names = list(REASON_CODES)
        if len(self.reason_names) > REASONS_MAX:
            raise AssertionError("more reasons than counters")
        self.shapes = ShapeCache(self.resolve)
        self.unknown = Entry(unknown("not looked at"))
        self.apply(RoutingTable.from_dict(start["table"]), Catalogue.from_dict(start["catalogue"]))
        loop.add_reader(self.poller.epoll_fd, self.run)
        self.loop_epoll_fd = loop._get_backend_id()

    # --- the event loop -------------------------------------------------------------------------------------

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
                    session.resuming = False
                    if session.closed or session.phase >= PHASE_LEAVING or session.phase < PHASE_READY:
                        continue
                    if session.phase == PHASE_WAITING and session.link is not None:
                        session.send_begin()
                    session.phase = PHASE_READY
                    if buffer_waiting(&session.outbound) >= OUTBOUND_BYTES_MAX and session.link is None:
                        continue               # goes on when the client has taken its answers
                    try:
                        if buffer_waiting(&session.inbound):
                            session.feed_inbound()
                        elif session.link is not None:
                            session.link.release_if_done()
                        session.listen()
                        if self.draining and session.link is None and session.phase == PHASE_READY:
                            self.leaving(session)
                    except Exception as error:
                        session.on_fault(error)
        finally:
            self.running = False
        return 0

    # --- routing --------------------------------------------------------------------------------------------

    def apply(self, table, catalogue):
        """Routes by this epoch from the next unit on; transactions go on where they are."""
        cdef Link link
        cdef int index
        before = self.copies
        if not self.endpoints:
            for index, endpoint in enumerate(table.endpoints):
                self.endpoints.append(EndpointState(endpoint, index, self.policy.links_max(endpoint)))
        elif [state.endpoint for state in self.endpoints] != list(table.endpoints):
            raise ValueError("the endpoints of a running worker cannot change")
        if self.counters is None or [service.name for service in table.services] != self.service_names[1:]:
            # Counts go out under the names they were counted for; the worker drains before it applies.
            self.counters = Counters(len(table.services), len(table.endpoints))
            self.forget_services()
        if self.catalogue is None or catalogue.version != self.catalogue.version:
            self.shapes.clear()
            self.prepare_anew()
        self.table = table
        self.catalogue = catalogue
        self.placement = Placement.of(table)
        self.epoch = table.epoch
        self.lag_ns_max = table.lag_ms_max * 1_000_000
        self.service_names = ["", *(service.name for service in table.services)]
        self.endpoint_names = [endpoint.name for endpoint in table.endpoints]
        self.sides = [["baseline"] * len(table.endpoints)]
        for service in table.services:
            self.sides.append([
                "candidate" if endpoint.database == service.database else "baseline" for endpoint in table.endpoints
            ])
        self.copies = [None] * len(table.services)
        for copy in self.placement.copies:
            self.copies[copy.service] = list(copy.endpoints)
        self.splitting = any(copies is not None for copies in self.copies)
        self.shadowing = self.shadows.apply(table)
        self.unknown.epoch = self.epoch
        self.unknown.service = -1
        self.unknown.reason = Reason.UNKNOWN
        if before is not None:
            self.call_back(before)
            for index, copies in enumerate(self.copies):
                if copies is not None and (index >= len(before) or before[index] is None):
                    self.counters.forget_run(index)
        self.run_ready()

    cdef int forget_services(self) except -1:
        """The services are others now: what is under way is counted as nobody's."""
        cdef Link link
        cdef Session session
        cdef uint32_t index
        for link in self.links:
            for index in range(link.replies.count):
                replies_at(&link.replies, index).service = -1
        for session in self.keys.values():
            session.unit_service = -1
            session.shadow = None
        return 0

    cdef int call_back(self, list before) except -1:
        """Reads that hang at a copy which is not to be read any more are asked at the owner instead."""
        cdef Link link
        cdef Session session
        gone = set()
        for index, endpoints in enumerate(before):
            if endpoints is not None and (index >= len(self.copies) or self.copies[index] is None):
                gone.update(endpoints)
        for link in list(self.links):
            session = link.session
            if link.pool.state.index in gone and session is not None and session.may_retry():
                session.retry()
                link.end()
        return 0

    def resolve(self, text, search_path):
        """Makes the shape of a text the cache does not know."""
        try:
            sql = text.decode()
        except UnicodeDecodeError:
            return unknown("not UTF-8")
        return classify(sql, search_path, self.catalogue)

    cdef int plan(self, Entry entry) except -1:
        """Fills in where statements of this shape go in this epoch."""
        plan = decide(entry.shape, self.table, self.placement)
        entry.service = plan.service
        entry.reason = plan.reason
        entry.plan_kind = plan.kind
        if entry.plan_kind == PLAN_SPLIT:
            entry.endpoint = plan.baseline
            entry.percent = plan.percent
        else:
            entry.endpoint = plan.endpoint
        # What the proxy can answer itself keeps the answer in the plan's place.
        entry.plan = COMMAND_COMPLETE.get(local_tag(entry.shape), plan)
        entry.epoch = self.epoch
        return 0

    cdef inline uint64_t random(self) noexcept:
        self.random_state ^= self.random_state << 13
        self.random_state ^= self.random_state >> 7
        self.random_state ^= self.random_state << 17
        return self.random_state >> 11

    cdef EndpointState route(self, Entry entry, Session session, bint whole):
        """The endpoint for a unit that begins with a statement of this shape, outside any transaction."""
        cdef int reason, index
        if entry.epoch != self.epoch:
            self.plan(entry)
        session.unit_service = entry.service
        reason = entry.reason
        if buffer_waiting(&session.begin):
            reason = REASON_TRANSACTION
        elif session.force_owner:
            reason = REASON_RETRIED
        elif entry.plan_kind == PLAN_SPLIT:
            reason = REASON_BASELINE
            if whole and <int> (self.random() % 100) < entry.percent:
                index = self.fresh_copy(entry.service, session, &reason)
                if index >= 0:
                    self.count_route(entry.service, REASON_SPLIT)
                    return <EndpointState> self.endpoints[index]
        self.count_route(entry.service, reason)
        return <EndpointState> self.endpoints[entry.endpoint]

    cdef int fresh_copy(self, int service, Session session, int* reason) except -2:
        """An endpoint of the service's own database that holds all this session has written; -1 if none does."""
        cdef list copies = self.copies[service]
        cdef int count, step, index
        cdef int64_t fresh
        cdef EndpointState state
        cdef uint64_t first
        if copies is None:
            return -1
        count = len(copies)
        first = self.random()
        reason[0] = REASON_NOT_FRESH
        for step in range(count):
            index = copies[(first + step) % count]
            state = <EndpointState> self.endpoints[index]
            if state.down_until_ns > self.poller.now_ns:
                reason[0] = REASON_CANDIDATE_DOWN
                continue
            fresh = self.freshness[index]
            if fresh > session.last_write_ns and self.poller.now_ns - fresh < self.lag_ns_max:
                return index
        return -1

    cdef Pool pool(self, Identity identity, EndpointState state):
        cdef Pool pool
        while len(identity.pools) <= state.index:
            identity.pools.append(None)
        pool = identity.pools[state.index]
        if pool is None:
            pool = Pool(self, state, identity)
            identity.pools[state.index] = pool
            state.pools.append(pool)
        return pool

    cdef int grow_pools(self) except -1:
        """A link less: opens links for those who wait, longest wait first."""
        cdef EndpointState state
        cdef Pool pool
        waiting = []
        for state in self.endpoints:
            for pool in state.pools:
                if pool.opening < len(pool.waiters) + len(pool.identity.arrivals):
                    waiting.append((pool.waiting_since(), len(waiting), pool))
        for _, _, pool in sorted(waiting):
            pool.grow()
        return 0

    cdef Pool longest_waiting(self):
        """The pool in which some session has waited longest; None if nobody waits."""
        cdef EndpointState state
        cdef Pool pool, longest = None
        for state in self.endpoints:
            for pool in state.pools:
                if (pool.waiters or pool.identity.arrivals) and (longest is None or pool.waiting_since() < longest.waiting_since()):
                    longest = pool
        return longest

    cdef Statement statement(self, bytes body, Entry entry, int search_path_id):
        cdef Statement statement = self.statements.get((body, search_path_id))
        if statement is None:
            self.statement_ids += 1
            statement = Statement(self.statement_ids, body, entry)
            self.statements[(body, search_path_id)] = statement
        return statement

    cdef int prepare_anew(self) except -1:
        """Tables have changed: what is parsed from now on must not find a statement planned for what they were."""
        self.statements = WeakValueDictionary()
        return 0

    # --- clients --------------------------------------------------------------------------------------------

    def adopt(self, int fd, *, bint refuse=False):
        """Takes over a connected, non-blocking client socket."""
        cdef Session session
        if self.draining:
            refuse = True
        while True:
            self.next_process = (self.next_process + 1) & 0xffffff
            if self.next_process and self.next_process | <uint32_t> self.index << 24 not in self.keys:
                break
        session = Session(self, fd, self.next_process | <uint32_t> self.index << 24, os.urandom(4))
        self.poller.watch(session)
        self.clients += 1
        self.board.clients[self.index] = self.clients
        self.keys[session.process_id] = session
        session.handshake = self.policy.handshake()
        session.deadline_ns = monotonic_ns() + self.login_ns_max
        self.deadlines.add(session)
        session.refused = refuse

    cdef int shake(self, Session session, bytes data) except -1:
        """Login: the handshake says what to do."""
        for action in session.handshake.receive(data):
            if isinstance(action, Send):
                session.write_bytes(action.data)
            elif isinstance(action, NeedWelcome):
                self.welcome_later(session, action)
            elif isinstance(action, Cancel):
                self.policy.forward_cancel(action.process_id, action.secret_key, session)
                return 0
            else:
                session.finish()
        return 0

    cdef int welcome_later(self, Session session, request) except -1:
        cdef Identity identity
        leftover = session.handshake.leftover
        if session.refused:
            session.fatal("57P03" if self.draining else "53300",
                          "the proxy is shutting down" if self.draining else "sorry, too many clients already",
                          "Try again later, or raise listen.max_client_conn.")
            return 0
        refusal = self.policy.refusal(request)
        if refusal is not None:
            sqlstate, message, hint = refusal
            session.fatal(sqlstate, message, hint)
            return 0
        identity = self.policy.identity(request)
        session.identity = identity
        session.handshake = None
        session.phase = PHASE_WELCOME
        identity.sessions += 1
        session.listen()
        buffer_append(&session.inbound, <const uint8_t*> PyBytes_AS_STRING(leftover), len(leftover))
        if identity.welcome is not None:
            return self.welcome(session)
        identity.arrivals.append(session)
        self.arriving += 1
        self.pool(identity, <EndpointState> self.endpoints[0]).grow()
        return 0

    cdef int welcome(self, Session session) except -1:
        """ParameterStatus to ReadyForQuery: from here on the session speaks for itself."""
        self.deadlines.discard(session)
        session.phase = PHASE_READY
        session.write_bytes(
            session.identity.welcome + b"K\0\0\0\x0c" + session.process_id.to_bytes(4, "big") + session.secret_key
            + ready_for_query(b"I"))
        if buffer_waiting(&session.inbound):
            self.resume(session)
        return session.listen()

    def cancel(self, uint32_t process_id, secret_key):
        """Cancels what the session with this key is running here, or is waiting to run; silently nothing when there
        is none. A transaction of which the BEGIN has not been sent goes on: its error needs a server.
        """
        cdef Session session = self.keys.get(process_id)
        cdef Link link
        if session is None or not compare_digest(session.secret_key, secret_key):
            return None
        link = session.link
        if session.waiting_in is not None and not buffer_waiting(&session.begin):
            session.waiting_in.forget(session)
            session.phase = PHASE_READY
            session.refuse_unit("57014", "canceling statement due to user request", "")
            self.resume(session)
            self.run_ready()
            return None
        if link is None or link.replies.count == 0:
            return None
        link.cancels += 1
        return self.policy.cancel(link, link.pool.state.endpoint, link.process_id, link.secret_key)

    def cancel_due(self, Link link):
        """Whether a cancel request may still be sent: the link must run what the client meant."""
        return link.session is not None and link.replies.count > 0 and not link.closed

    def cancelled(self, Link link):
        """The server has passed the cancel on: from now on it can hit nothing new."""
        link.cancels -= 1
        if not link.closed and link.session is None and link.replies.count == 0 and link.cancels == 0:
            link.rinse()
        self.run_ready()

    def finish_session(self, Session session):
        session.finish()

    cdef list arrived(self, Identity identity):
        """Those who still wait to be welcomed as `identity`; from now on they do not."""
        cdef Session session
        cdef list sessions = [session for session in identity.arrivals if (<Session> session).phase == PHASE_WELCOME]
        self.arriving -= len(identity.arrivals)
        identity.arrivals.clear()
        return sessions

    cdef int session_ended(self, Session session) except -1:
        self.clients -= 1
        if session.identity is not None:
            session.identity.sessions -= 1
        self.board.clients[self.index] = self.clients
        self.keys.pop(session.process_id, None)
        self.deadlines.discard(session)
        if self.draining and self.clients == 0 and self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        return 0

    cdef int leaving(self, Session session) except -1:
        """While draining: a session without a transaction is told to reconnect elsewhere."""
        if session.status == b"I" and not session.in_batch and not session.stream_left:
            session.fatal("57P01", "terminating connection due to administrator command",
                          "The proxy is shutting down; reconnect.")
        return 0

    # --- links ----------------------------------------------------------------------------------------------

    cdef int open_link(self, Pool pool) except -1:
        self.policy.open_link(pool, pool.state.endpoint, pool.identity)
        return 0

    def link_opened(self, Pool pool, int fd, uint32_t process_id, bytes secret_key, welcome):
        """A server connection is logged in; `welcome` is a policy.Welcome, None if that is known already."""
        cdef Link link
        cdef Session session
        pool.opening -= 1
        pool.failures = 0
        pool.state.down_until_ns = 0
        self.link_numbers += 1
        link = Link(self, pool, fd, process_id, secret_key, self.link_numbers)
        self.links.add(link)
        self.poller.watch(link)
        if welcome is not None:
            pool.identity.welcome = welcome.frames
            pool.identity.search_path_id = self.shapes.search_path_id(welcome.search_path)
            pool.identity.plain_text = welcome.plain_text
        if pool.identity.welcome is not None:
            for session in self.arrived(pool.identity):
                self.welcome(session)
        pool.give_back(link)
        self.run_ready()

    def link_failed(self, Pool pool, error):
        """No server connection could be had. Reads go to the owner; what needs this server is told why."""
        cdef Session session
        cdef EndpointState state = pool.state
        pool.opening -= 1
        pool.uncount()
        pool.failures += 1
        self.poller.now_ns = monotonic_ns()
        if error.infrastructure:
            state.down_until_ns = self.poller.now_ns + DOWN_NS
        self.note("link_failed", state, str(error))
        for session in self.arrived(pool.identity) if state.index == 0 else ():
            session.write_bytes(self.policy.login_error(error))
            session.finish()
        if error.sqlstate == "53300" and pool.links > 0:
            return                     # the server is full; the links there are will serve those who wait
        while pool.waiters:
            session = <Session> pool.waiters[0]
            pool.forget(session)
            if state.index != 0:
                self.count_call(session.unit_service, state.index, OP_READ, 0, 1, False,
                                -self.link_numbers - pool.failures)
                self.count_sqlstate(session.unit_service, state.index, error.sqlstate.encode())
                session.force_owner = True
                self.resume(session)
            else:
                session.phase = PHASE_READY
                session.refuse_unit(error.sqlstate, error.message, error.hint or "")
                self.resume(session)
        self.grow_pools()
        self.run_ready()
        self.run()

    # --- counting -------------------------------------------------------------------------------------------

    cdef inline int count_call(self, int service, int endpoint, int op, int64_t took_ns, int error, bint slow_already,
                               long link) except -1:
        self.counters.call(service, endpoint, op, took_ns, error, took_ns > self.latency_ns_max and not slow_already)
        if endpoint != 0 and service >= 0 and self.counters.outcome(service, error == 1, link):
            self.urgent = True
        return 0

    cdef inline int count_route(self, int service, int reason) except -1:
        self.counters.routes[(service + 1) * REASONS_MAX + reason] += 1
        return 0

    cdef int count_sqlstate(self, int service, int endpoint, bytes sqlstate) except -1:
        key = (service, endpoint, sqlstate.decode("ascii", "replace"))
        self.counters.sqlstates[key] = self.counters.sqlstates.get(key, 0) + 1
        self.counters.changed = True
        return 0

    cdef int count_pin(self, str cause) except -1:
        self.counters.pins[cause] = self.counters.pins.get(cause, 0) + 1
        return 0

    cdef int error_class(self, bytes sqlstate) except -1:
        """0 nobody's fault (cancelled), 1 infrastructure, 2 application."""
        known = self.error_classes.get(sqlstate)
        if known is None:
            if len(self.error_classes) > 1000:
                self.error_classes.clear()
            verdict = classify_sqlstate(sqlstate.decode("ascii", "replace"))
            known = {"infrastructure": 1, "application": 2}.get(verdict, 0)
            self.error_classes[sqlstate] = known
        return known

    def drain_counters(self):
        """What was counted since the last call, in the channel's terms; None when nothing changed."""
        cdef Pool pool
        cdef EndpointState state
        shadow = self.shadows.drain_counters()
        links = []
        for state in self.endpoints:
            for pool in state.pools:
                links.append([state.endpoint.name, pool.identity.user, pool.links - pool.idle_count - pool.opening,
                              pool.idle_count, len(pool.waiters)])
        gauges = {"clients": self.clients, "waiting": self.waiting, "links": links, "shapes": self.shapes.size}
        if not self.counters.changed and not shadow and not self.counters.pins and gauges == self.gauges:
            return None
        self.gauges = gauges
        delta = self.counters.drain(self.service_names, self.endpoint_names, self.sides, self.reason_names)
        delta["gauges"] = gauges
        delta["parses"] = self.shapes.misses - self.parses
        self.parses = self.shapes.misses
        delta.update(shadow or {})
        return delta

    # --- time -----------------------------------------------------------------------------------------------

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
                    self.resume(session)
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
                while pool.idle_count and now - (<Link> pool.idle[0]).idle_since_ns > IDLE_NS_MAX:
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

    # --- shadow writes --------------------------------------------------------------------------------------

    cdef object shadow_unit(self, Session session, Entry entry):
        if entry.epoch != self.epoch:
            self.plan(entry)
        if entry.service < 0 or not entry.writes or session.link.pins:
            return None
        return self.shadows.unit(entry.service, session.identity, self.random() / 2.0 ** 53)

    # --- the end --------------------------------------------------------------------------------------------

    async def drain(self, int grace_ms):
        """Closes sessions as they become idle, those left after `grace_ms` with 57P01."""
        cdef Session session
        self.draining = True
        self.drained = self.loop.create_future()
        for session in list(self.keys.values()):
            if session.phase == PHASE_READY and session.link is None and not buffer_waiting(&session.begin):
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
        self.freshness = None

    cdef int note(self, str kind, EndpointState state, str detail) except -1:
        if self.on_event is not None:
            self.on_event({"type": "event", "kind": kind, "endpoint": state.endpoint.name, "detail": detail})
        return 0

    cdef int fault(self, object error) except -1:
        """A bug of ours: it costs the connection it happened on, and it is told."""
        self.fault_count += 1
        log.error("fault in the relay", exc_info=error)
        if self.on_event is not None:
            self.on_event({"type": "event", "kind": "fault", "detail": repr(error)})
        return 0

    cdef bytes error_frame(self, str severity, str sqlstate, str message, str hint):
        return PgError(message, sqlstate=sqlstate, severity=severity, hint=hint).frame()
