# Clients that arrive: from an accepted socket through login and welcome to a session, or to a replication tunnel.

cdef enum:
    DRAINING_LOGIN_NS_MAX = 500000000      # how long a login may still take when the proxy shuts down

cdef class Arrivals(Clock):
    """Who comes to this worker, and who goes."""

    def adopt(self, int fd, *, bint refuse=False):
        """Takes over a connected, non-blocking client socket."""
        cdef Session session
        while True:
            self.next_process = (self.next_process + 1) & 0xffffff
            if self.first_process | self.next_process not in self.keys:
                break
        session = Session(self, fd, self.first_process | self.next_process, os.urandom(4))
        self.poller.watch(session)
        self.clients += 1
        self.board.clients[self.index] = self.clients
        self.keys[session.process_id] = session
        session.handshake = self.policy.handshake()
        session.deadline_ns = monotonic_ns() + self.login_ns_max
        self.deadlines.add(session)
        session.refused = refuse
        if self.draining:
            self.hasten(session)

    cdef int hasten(self, Session session) except -1:
        """The proxy shuts down before the login is over: the client is told, soon if it says nothing itself."""
        if session.phase == PHASE_WELCOME:
            return self.turn_away(session)
        session.deadline_ns = min(session.deadline_ns, monotonic_ns() + <int64_t> DRAINING_LOGIN_NS_MAX)
        return 0

    cdef int turn_away(self, Session session) except -1:
        return session.fatal("57P03", "the proxy is shutting down", "Connect again: another one may be there.")

    cdef int shake(self, Session session, list actions) except -1:
        """Login: does what the handshake says is to be done."""
        failed = self.policy.refuse_later(session, actions)
        if failed is not None:
            return self.count_failed_login(failed)
        return self.act(session, actions)

    cdef int act(self, Session session, list actions) except -1:
        for action in actions:
            if isinstance(action, Send):
                session.write_bytes(action.data)
            elif isinstance(action, StartTls):
                self.start_tls(session, action.received)
            elif isinstance(action, NeedVerifier):
                self.policy.look_up(session, action.user)
            elif isinstance(action, NeedWelcome):
                self.welcome_later(session, action)
            elif isinstance(action, Cancel):
                self.policy.forward_cancel(action.process_id, action.secret_key, session)
                return 0
            else:
                session.finish()
        return 0

    def verifier_found(self, Session session, verifier, failure=None):
        """The answer to NeedVerifier; `failure` is the PgError a client is told if there can be none."""
        if session.closed or session.phase != PHASE_HANDSHAKE:
            return                             # it has not waited
        if failure is None:
            self.shake(session, session.handshake.found(verifier))
        else:
            self.count_failed_login("lookup")
            session.fatal(failure.sqlstate, failure.message, failure.hint)
        self.run_ready()

    def refuse_login(self, Session session, actions):
        """Tells a client that its login has failed, if it is still there."""
        if not session.closed and session.phase == PHASE_HANDSHAKE:
            self.act(session, actions)

    cdef int start_tls(self, Session session, bytes received) except -1:
        """From here on the client's connection is encrypted; `received` of it has arrived."""
        if buffer_waiting(&session.outbound):
            return session.end()               # it has not even taken our answer
        session.tls = Tls(self.policy.tls_end(), False)
        if received:
            session.tls.arrived(<const uint8_t*> PyBytes_AS_STRING(received), len(received))
            session.on_received(session.unseal())
        return 0

    cdef int welcome_later(self, Session session, request) except -1:
        cdef Identity identity
        leftover = session.handshake.leftover
        if self.draining:
            return self.turn_away(session)
        if session.refused:
            session.fatal("53300", "sorry, too many clients already",
                          "Try again later, or raise listen.max_client_conn and pools.max_client_conn: the lower"
                          " holds.")
            return 0
        refusal = self.policy.refusal(request)
        if refusal is not None:
            sqlstate, message, hint = refusal
            session.fatal(sqlstate, message, hint)
            return 0
        limited = self.policy.limited(request.user)
        if limited is not None:
            session.limited_user, most = limited
            if self.board.sessions_add(self.index, session.limited_user, 1) > most:
                session.fatal("53300", f'too many connections for role "{request.user}"',
                              f"The limit is pools.users.{request.user}.max_client_conn, {most}.")
                return 0
        session.handshake = None
        session.phase = PHASE_WELCOME
        if request.protocol_minor >= 2:
            session.secret_key = os.urandom(LONG_KEY_BYTES)
        if request.replication is not None:
            buffer_append(&session.inbound, <const uint8_t*> PyBytes_AS_STRING(leftover), len(leftover))
            return self.dig_tunnel(session, request)
        identity = self.policy.identity(request)
        session.identity = identity
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
        session.clear_up()
        session.write_bytes(
            session.identity.welcome + backend_key_data(session.process_id, session.secret_key)
            + ready_for_query(b"I"))
        if buffer_waiting(&session.inbound):
            (<Relay> self).resume(session)
        return session.listen()

    cdef int dig_tunnel(self, Session session, request) except -1:
        """A replication connection gets a server connection of its own, if the limits have room for it."""
        cdef EndpointState shared = self.endpoints[0]
        if not (<Relay> self).reserve_link(shared.index):
            session.fatal("53300", "no connection to the shared database is free for replication",
                          "Raise shared.max_connections or pools.server_connections.total.")
            return 0
        self.count_pin("replication")
        session.listen()
        self.policy.open_tunnel(session, shared.endpoint, request)
        return 0

    def tunnel_opened(self, Session session, int fd, uint32_t process_id, bytes secret_key, bytes welcome, tls_end,
                      bytes leftover):
        """The server connection of a replication client is logged in; `welcome` is what the server told it, and
        `leftover` came behind its ReadyForQuery."""
        cdef EndpointState shared = self.endpoints[0]
        cdef Tunnel tunnel = Tunnel(self, session, shared, fd, process_id, secret_key, tls_end)
        self.poller.watch(tunnel)
        if session.closed or session.phase != PHASE_WELCOME:
            tunnel.end()
            return
        self.deadlines.discard(session)
        session.tunnel = tunnel
        session.phase = PHASE_TUNNEL
        session.write_bytes(welcome + backend_key_data(session.process_id, session.secret_key)
                            + ready_for_query(b"I") + leftover)
        if buffer_waiting(&session.inbound):
            tunnel.write(session.inbound.data + session.inbound.start, buffer_waiting(&session.inbound))
            buffer_free(&session.inbound)
        session.listen()

    def tunnel_failed(self, Session session, error):
        (<Relay> self).release_link(0)
        if not session.closed:
            session.write_bytes(self.policy.login_error(error))
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
        if session.limited_user >= 0:
            self.board.sessions_add(self.index, session.limited_user, -1)
        self.keys.pop(session.process_id, None)
        self.deadlines.discard(session)
        if self.draining and self.clients == 0 and self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        return 0
