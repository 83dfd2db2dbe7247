# Decides each unit's route from the current epoch's table, and counts how it went.

cdef enum:
    STAY_NS_MAX = 10000000             # how long the relay serves sockets before other callbacks get their turn
    STAY_WAIT_MS = 20
    STAY_ROUNDS_WATCHED = 8
    SWEEP_NS = 1000000000              # how often links and identities are looked through
    DOWN_NS = 1000000000               # how long reads avoid an endpoint that could not be connected to
    DOWN_DOUBLINGS_MAX = 4             # that time grows so often while it stays so


cdef class Routes(Owners):
    """Routing table, shapes, endpoints and counts of one worker."""

    cdef object loop
    cdef int loop_epoll_fd                 # uvloop's own epoll, in which ours is watched
    cdef readonly int index
    cdef readonly int clients
    cdef readonly int waiting              # sessions in the queues of all pools
    cdef int arriving                      # sessions that wait to be welcomed
    cdef public object on_urgent           # called when the supervisor should hear of the counters now
    cdef public object on_foreign_cancel   # (worker, process id, key) of a cancel request for another worker's session
    cdef public object on_note             # (worker, note): what proxy.signals says to another worker
    cdef readonly object signals           # proxy.signals.Signals
    cdef public int64_t held_ns_max        # how long a statement may hold a session
    cdef int sessions_held                 # that keep a link because they may be signalled
    cdef public object on_event            # rare things for the event log
    cdef public object on_addition         # a question of proxy.additions for the supervisor
    cdef object additions                  # proxy.additions.Additions
    cdef bint adds                         # columns may be added to some tables that are being moved
    cdef object board
    cdef object policy                     # proxy.policy.Policy: logins, new links, cancels
    cdef object shadows                    # proxy.shadow.Shadows
    cdef object crossings                  # proxy.crossings.Crossings
    cdef readonly object catalogue
    cdef long epoch
    cdef bint splitting                    # some reads have another place to go to than their owner
    cdef bint causal                       # some service's sessions must see what others have written
    cdef bint shadowing                    # some service's writes are validated
    cdef dict copies                       # service index -> indexes of the endpoints it is read from
    cdef dict stuck                        # service index -> (reads that wait too long there, ns they have waited)
    cdef ShapeCache shapes
    cdef Entry unknown                     # of a message that brings no statement
    cdef Entry unread                      # of a statement that nobody has read
    cdef Counters counters
    cdef list service_names, endpoint_names, sides, reason_names
    cdef object statements                 # WeakValueDictionary: (text, search path) -> Statement
    cdef object definitions                # the board's: transactions with DDL that ended, by worker
    cdef object definitions_seen           # how many that were when `statements` began
    cdef long renewals                     # how often what statements do had to be found out anew
    cdef long statement_ids, link_numbers, fault_count
    cdef int64_t unnamed_tokens
    cdef readonly set links
    cdef set deadlines                     # sessions that must be done with something by their deadline
    cdef dict keys                         # process id -> session
    cdef list ready                        # sessions to go on with
    cdef bint running
    cdef readonly bint draining
    cdef object drained
    cdef int64_t latency_ns_max, wait_ns_max, login_ns_max
    cdef int64_t query_ns_max, idle_transaction_ns_max, client_idle_ns_max    # 0: no limit
    cdef readonly int64_t statement_bytes_max
    cdef readonly int64_t held_bytes, held_bytes_max   # of long statements that are being received
    cdef readonly int links_total_max
    cdef readonly int links_open           # at all endpoints, those being opened included
    cdef public int64_t idle_ns_max        # an idle link is closed after this time
    cdef int64_t swept_ns                  # when idle links were looked at last
    cdef uint32_t first_process, next_process
    cdef dict error_classes
    cdef dict gauges                       # as they were sent last
    cdef long parses                       # likewise
    cdef bint urgent
    cdef public int loop_tasks             # tasks of the policy's and the shadows' that the Python loop must serve

    cdef int run_ready(self) except -1:
        raise NotImplementedError("run_ready belongs to Relay")

    def apply(self, table, catalogue):
        """Routes by this epoch from the next unit on; transactions go on where they are."""
        cdef EndpointState state
        cdef int index
        before = self.copies
        placement = Placement.of(table, catalogue.wholes(), catalogue.views())
        moves = before is not None and placement.owners != self.placement.owners
        if moves:
            self.run_ready()               # what has been given a link goes out to the owner it was given it for
        if not self.endpoints:
            for index, endpoint in enumerate(table.endpoints):
                self.endpoints.append(EndpointState(endpoint, index, self.policy.links_max(endpoint)))
            self.group()
        elif [state.endpoint for state in self.endpoints] != list(table.endpoints):
            raise ValueError("the endpoints of a running worker cannot change")
        if self.counters is None or [service.name for service in table.services] != self.service_names[1:]:
            # Counts go out under the names they were counted for; the worker drains before it applies.
            self.counters = Counters(len(table.services), len(table.endpoints))
            self.forget_services()
        self.take_catalogue(catalogue.holding(table))
        self.table = table
        self.placement = placement
        self.parted = self.placement.parted
        self.epoch = table.epoch
        self.lag_ns_max = table.lag_ms_max * 1_000_000
        self.service_names = ["", *(service.name for service in table.services)]
        self.endpoint_names = [endpoint.name for endpoint in table.endpoints]
        self.sides = [["baseline"] * len(table.endpoints)]
        for service in table.services:
            # What a service has moved to is no candidate any more: there is nothing to take its reads back to.
            self.sides.append([
                SIDES[endpoint.role] if endpoint.database == service.database and service.stage not in MOVED
                else "baseline" for endpoint in table.endpoints
            ])
        owners = {SHARED, *placement.owners.values()}
        for state in self.endpoints:
            state.owns = state.endpoint.database in owners and not state.is_standby
        self.copies = {copy.service: copy.endpoints for copy in self.placement.copies}
        self.splitting = bool(self.copies or self.placement.replicas)
        self.causal = any(service.causality == "service" for service in table.services)
        self.shadowing = self.shadows.apply(table)
        self.adds = any([service.ddl == "both" for service in table.services])
        self.unknown.epoch = self.epoch
        self.unknown.service = -1
        self.unknown.reason = Reason.UNKNOWN
        self.unread.epoch = -1
        if before is not None:
            for index in before.keys() - self.copies.keys():
                self.call_back(before[index])
            for index in self.copies.keys() - before.keys():
                self.counters.forget_run(index)
            if moves:
                self.line_up_anew()
        self.run_ready()

    cdef int line_up_anew(self) except -1:
        """Tables have other owners: who waits for a link may have to wait for another one."""
        cdef EndpointState state
        cdef Pool pool
        cdef Session session
        for state in self.endpoints:
            for pool in state.pools:
                for session in list(pool.waiters):
                    pool.forget(session)
                    (<Relay> self).resume(session)
        return 0

    cdef int take_catalogue(self, catalogue) except -1:
        """What was learnt from statements is kept until a catalogue is read behind the end of their transactions."""
        cdef Link link
        before = self.catalogue
        if before is None:
            self.catalogue = catalogue
            return 0
        recent = before.recent
        if (len(catalogue.definitions) > self.index
                and catalogue.definitions[self.index] == self.definitions[self.index]
                and not any([link.defined for link in self.links])):
            recent = NO_CODE
        self.catalogue = replace(catalogue, recent=recent)
        if (catalogue.version != before.version or recent is not before.recent
                or catalogue.relations.keys() != before.relations.keys()):
            self.read_anew()
        return 0

    cdef int learn(self, made) except -1:
        """A statement is sent that adds to the code of the database; it may be used by the next one."""
        self.catalogue = self.catalogue.learned(made)
        return self.read_anew()

    cdef int read_anew(self) except -1:
        """Statements may do something else than they did."""
        cdef Session session
        self.shapes.clear()
        self.prepare_anew()
        self.renewals += 1
        for session in self.keys.values():
            session.renew_unnamed_entry()
        return 0

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
            session.wrote = -1
            session.shadow = None
        self.stuck = {}
        return 0

    cdef int group(self) except -1:
        """Which endpoints are of one database; the databases are numbered as they come."""
        cdef EndpointState state
        numbers = {}
        self.groups = []
        for state in self.endpoints:
            if state.endpoint.database not in numbers:
                numbers[state.endpoint.database] = len(numbers)
                self.groups.append([])
            state.database = numbers[state.endpoint.database]
            self.groups[state.database].append(state)
        return 0

    cdef int call_back(self, tuple gone) except -1:
        """Reads that hang at endpoints which are not to be read any more, or wait for a link there, go to the owner."""
        cdef Link link
        cdef Session session
        cdef Pool pool
        cdef int place
        for link in list(self.links):
            session = link.session
            if link.pool.state.index in gone and session is not None and session.may_retry():
                session.retry()
                link.end()
        for place in gone:
            for pool in (<EndpointState> self.endpoints[place]).pools:
                while pool.waiters:
                    session = <Session> pool.waiters[0]
                    pool.forget(session)
                    session.force_owner = True
                    (<Relay> self).resume(session)
        return 0

    def resolve(self, text, search_path):
        """Makes the shape of a text the cache does not know."""
        try:
            sql = text.decode()
        except UnicodeDecodeError:
            sql = text.decode("latin-1")   # of the names only those in ASCII come out right; no table has the others
        return classify(sql, search_path, self.catalogue)

    cdef int plan(self, Entry entry) except -1:
        """Fills in where statements of this shape go in this epoch."""
        plan = decide(entry.shape, self.table, self.placement)
        entry.service = plan.service
        entry.counters = self.counters.routes_of(plan.service)
        entry.reason = plan.reason
        entry.plan_kind = plan.kind
        if entry.plan_kind == PLAN_SPLIT:
            entry.endpoint = plan.baseline
            entry.percent = plan.percent
            entry.copies = (<EndpointState> self.endpoints[plan.candidates[0]]).database if plan.candidates else -1
            entry.replicated = bool(plan.replicas)
            entry.causal = bool(plan.after)
        elif entry.plan_kind == PLAN_PROVEN:
            entry.endpoint = plan.places[0].endpoint
        else:
            entry.endpoint = plan.endpoint
        entry.tied = self.parted and is_tied(entry.shape, self.placement)
        entry.needs = {}
        # What the proxy can answer itself keeps the answer in the plan's place.
        entry.plan = COMMAND_COMPLETE.get(local_tag(entry.shape), plan)
        # What a view calls is not known here: it may tell the time.
        entry.steady = entry.shape.steady and not any(
            [self.catalogue.relations.get(name) == "v" for name in entry.shape.reads])
        entry.crosses = crosses(entry.shape, self.placement, self.catalogue.relations)
        entry.writer = writer(entry.shape, self.placement, self.catalogue.relations)
        if entry.plan_kind == PLAN_REFUSED:
            entry.plan = self.error_frame("ERROR", "0A000", plan.message, plan.hint)
        entry.epoch = self.epoch
        return 0

    cdef EndpointState route(self, Entry entry, Session session, bint whole):
        """The endpoint for a unit that begins with a statement of this shape, outside any transaction."""
        cdef EndpointState state
        cdef int reason
        if entry.epoch != self.epoch:
            self.plan(entry)
        session.unit_service = entry.service
        session.at_copy = session.loose = False
        reason = entry.reason
        if entry.plan_kind == PLAN_PROVEN:
            session.moved_up = False
            state = self.place(entry, session, &reason)
            return self.decided(session, entry, state, reason)
        if buffer_waiting(&session.begin):
            session.loose = self.parted and entry.introduces and session.status == b"T"
            if session.may_begin_at_copy() and whole and entry.steady and entry.plan_kind == PLAN_SPLIT:
                state = self.split(entry, session)
                session.at_copy = state.index != entry.endpoint
                return state
            reason = REASON_MOVED_UP if session.moved_up else REASON_RETRIED if session.force_owner else (
                REASON_TRANSACTION)
            session.moved_up = False
        elif session.force_owner:
            reason = REASON_RETRIED
        elif entry.plan_kind == PLAN_SPLIT:
            if whole:
                return self.split(entry, session)
            reason = REASON_NOT_WHOLE
        return self.decided(session, entry, <EndpointState> self.endpoints[entry.endpoint], reason)

    cdef EndpointState split(self, Entry entry, Session session):
        """An endpoint for a plain read: the weight says of which database, freshness and weights which of its own."""
        cdef EndpointState state, owner = <EndpointState> self.endpoints[entry.endpoint]
        cdef int64_t after_ns = self.seen_ns(entry, session)
        cdef int reason = REASON_BASELINE, unused
        if entry.copies >= 0 and <int> (self.random() % 100) < entry.percent:
            state = self.choose(<list> self.groups[entry.copies], None, after_ns, &reason)
            if state is not None:
                return self.decided(session, entry, state, REASON_SPLIT)
        if entry.replicated:
            state = self.choose(<list> self.groups[owner.database], owner, after_ns, &unused)
            if state is not owner:
                return self.decided(session, entry, state, REASON_REPLICA)
        return self.decided(session, entry, owner, reason)

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

    cdef Statement statement(self, bytes body, Entry entry, int search_path_id, tuple reading, bint shared):
        """The statement of that text for all sessions that read it alike: on the same path, with equal settings.

        Not `shared`: one of the session's own, as DDL that only it can see demands.
        """
        cdef Statement statement = None
        cdef tuple key = (body, search_path_id, reading)
        definitions = sum(self.definitions)
        if definitions != self.definitions_seen:
            self.definitions_seen = definitions
            self.prepare_anew()
        if shared:
            statement = self.statements.get(key)
        if statement is None:
            self.statement_ids += 1
            statement = Statement(self.statement_ids, body, entry, search_path_id, self.renewals)
            if shared:
                self.statements[key] = statement
        return statement

    cdef int prepare_anew(self) except -1:
        """Tables have changed: what is parsed from now on must not find a statement planned for what they were."""
        self.statements = WeakValueDictionary()
        return 0

    cdef inline int count_call(self, int service, int endpoint, int op, int64_t took_ns, int error, bint slow_already,
                               long link) except -1:
        self.counters.call(service, endpoint, op, took_ns, error, took_ns > self.latency_ns_max and not slow_already)
        if (service >= 0 and (<EndpointState> self.endpoints[endpoint]).is_judged
                and self.counters.outcome(service, error == 1, link)):
            self.urgent = True
        return 0

    cdef inline EndpointState decided(self, Session session, Entry entry, EndpointState state, int reason):
        """Counts a decision, and keeps it for SHOW pgshunt.route."""
        self.counters.routes[entry.counters + state.index * REASONS_MAX + reason] += 1
        session.shown_entry = entry
        session.shown_endpoint = state.index
        session.shown_reason = reason
        session.shown_epoch = self.epoch
        return state

    cdef bytes show_route(self, Session session):
        """What SHOW pgshunt.route is answered: the session's last decision."""
        if session.shown_entry is None:
            return shown.answer(None)
        return shown.answer(explain_shape(
            session.shown_entry.shape, self.table, self.catalogue, self.freshness_of,
            Taken(session.shown_endpoint, Reason(session.shown_reason), session.shown_epoch)))

    def freshness_of(self, int index):
        """How far this endpoint may be behind, as reads are routed by it now."""
        cdef int64_t fresh_ns = self.freshness[index]
        return Freshness(
            (monotonic_ns() - fresh_ns) / 1e9 if fresh_ns else None,
            Reason(self.withheld[index]) if self.withheld[index] else None)

    cdef int count_sqlstate(self, int service, int endpoint, bytes sqlstate) except -1:
        key = (service, endpoint, sqlstate.decode("ascii", "replace"))
        self.counters.sqlstates[key] = self.counters.sqlstates.get(key, 0) + 1
        self.counters.changed = True
        return 0

    cdef int count_timeout(self, str kind) except -1:
        self.counters.timeouts[kind] = self.counters.timeouts.get(kind, 0) + 1
        self.counters.changed = True
        return 0

    cdef int count_failed_login(self, str reason) except -1:
        self.counters.failed_logins[reason] = self.counters.failed_logins.get(reason, 0) + 1
        self.counters.changed = True
        return 0

    cdef int count_pin(self, str cause) except -1:
        self.counters.pins[cause] = self.counters.pins.get(cause, 0) + 1
        return 0

    cdef int note_write(self, Session session) except -1:
        """What the session has just committed is told to all workers, for those whose reads must not precede it."""
        self.writes[self.index * self.written_services + session.wrote + 1] = session.last_write_ns
        session.wrote = NOTHING_WRITTEN
        return 0

    cdef int error_class(self, bytes sqlstate, EndpointState state, bint on_copy) except -1:
        """0 nobody's fault (cancelled), 1 infrastructure, 2 application; `on_copy`: of a unit that went to a copy.

        A table or privilege that is missing is a copy's fault; at the owner it is the statement's. What a standby
        cannot do, or gives up so that it can keep up, its primary can.
        """
        known = self.error_classes.get(sqlstate)
        if known is None:
            if len(self.error_classes) > 1000:
                self.error_classes.clear()
            verdict = classify_sqlstate(sqlstate.decode("ascii", "replace"))
            known = {"infrastructure": 1, "application": 2}.get(verdict, 0)
            self.error_classes[sqlstate] = known
        if known == 1 and state.owns and not on_copy and sqlstate[:2] in (b"42", b"3F", b"3D", b"25"):
            return 2
        return 1 if state.is_standby and sqlstate in STANDBY_STATES else known

    def drain_counters(self):
        """What was counted since the last call, in the channel's terms; None when nothing changed."""
        cdef Pool pool
        cdef EndpointState state
        shadow = self.shadows.drain_counters()
        crossings = self.crossings.drain(self.catalogue.relations)
        links = []
        for state in self.endpoints:
            for pool in state.pools:
                links.append([state.endpoint.name, pool.identity.user, pool.links - pool.idle_count - pool.opening,
                              pool.idle_count, len(pool.waiters)])
        gauges = {"clients": self.clients, "waiting": self.waiting, "links": links, "shapes": self.shapes.size}
        if (not self.counters.changed and not shadow and not crossings and not self.counters.pins
                and gauges == self.gauges):
            return None
        self.gauges = gauges
        delta = self.counters.drain(self.service_names, self.endpoint_names, self.sides, self.reason_names)
        delta["gauges"] = gauges
        delta["stuck"] = [[self.service_names[service + 1], calls, waited_ns / self.latency_ns_max]
                          for service, (calls, waited_ns) in self.stuck.items()]
        delta["parses"] = self.shapes.misses - self.parses
        self.parses = self.shapes.misses
        delta.update(shadow or {})
        delta.update(crossings or {})
        return delta

    cdef object shadow_unit(self, Session session, Entry entry):
        if entry.epoch != self.epoch:
            self.plan(entry)
        if entry.service < 0 or not entry.writes or session.link.pins or session.settings is not settings_of.BASE:
            return None
        return self.shadows.unit(entry.service, session.identity, self.random() / 2.0 ** 53)

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
        return PgError(message, sqlstate=sqlstate, severity=severity, hint=hint or None).frame()
