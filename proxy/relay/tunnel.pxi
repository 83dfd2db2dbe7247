# A replication connection: a server connection of its own for one client, passed through byte by byte both ways.
#
# Nothing of it is read here. Its protocol goes both ways at once (CopyBoth), and what it asks for (a slot, a base
# backup) belongs to one server: the shared primary.

cdef class Tunnel(Connection):
    """The server's side of a client's replication connection."""

    cdef Relay relay
    cdef Session session
    cdef EndpointState state
    cdef uint32_t process_id
    cdef bytes secret_key

    def __cinit__(self, Relay relay, Session session, EndpointState state, int fd, uint32_t process_id,
                  bytes secret_key, tls_end):
        self.relay = relay
        self.poller = relay.poller
        self.session = session
        self.state = state
        self.fd = fd
        self.process_id = process_id
        self.secret_key = secret_key
        self.interest = READING
        if tls_end is not None:
            self.tls = Tls(tls_end, True)

    cdef int on_readable(self) except -1:
        cdef ssize_t count = self.receive()
        if count <= 0:
            return 0 if count == 0 else self.on_lost()
        self.session.write(self.poller.scratch, count)
        if buffer_waiting(&self.session.outbound):
            self.listen_for(self.interest & ~<uint32_t> EPOLLIN)
        return 0

    cdef int on_drained(self) except -1:
        return self.hang_up() if self.session.cut_off else self.session.listen()

    cdef int hang_up(self) except -1:
        """The client's end is the server's: behind all that was sent, and what the server still says is passed on."""
        if buffer_waiting(&self.outbound) == 0:
            shutdown(self.fd, SHUT_WR)
        return 0

    cdef int on_lost(self) except -1:
        """What the server said last is still sent; it has told the client why, if anything has."""
        return self.session.finish()

    cdef int on_fault(self, object error) except -1:
        self.relay.fault(error)
        return self.session.finish()

    cdef int end(self) except -1:
        if not self.closed:
            self.shut()
            self.relay.release_link(self.state.index)
        return 0
