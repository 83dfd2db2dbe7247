# Waits for sockets and calls the connection that has something to do.
#
# The sockets stand in an epoll of our own, and uvloop watches only that one descriptor: a burst of events costs one
# Python callback, an idle client costs no handle of the loop, and reading and writing happen in C.

cdef enum:
    SCRATCH_BYTES = 65536
    EVENTS_MAX = 128
    READING = EPOLLIN | EPOLLRDHUP | EPOLLET


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef class Poller:
    """One epoll, the connections on it, and the scratch buffer they all receive into."""

    cdef int epoll_fd
    cdef epoll_event events[EVENTS_MAX]
    cdef uint8_t* scratch
    cdef dict connections          # fd -> Connection; keeps alive what epoll points to
    cdef list closed               # connections closed during this round: stale events may still name them
    cdef int64_t now_ns            # when this round began
    cdef bint alone                # no other Python thread would miss the interpreter's lock
    cdef bint woken                # something came for a descriptor that is not ours to serve

    def __cinit__(self):
        self.scratch = <uint8_t*> malloc(SCRATCH_BYTES)
        if self.scratch == NULL:
            raise MemoryError("receive buffer")
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, "epoll_create1")
        self.connections = {}
        self.closed = []
        self.now_ns = monotonic_ns()

    def __dealloc__(self):
        free(self.scratch)
        if self.epoll_fd >= 0:
            close(self.epoll_fd)

    cdef int wake_on(self, int fd) except -1:
        """Ends a stay when something arrives at `fd`. Edge-triggered: told once, whoever serves it or does not."""
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLET
        event.data.ptr = NULL
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        return 0

    cdef void leave(self, int outer_epoll_fd) noexcept:
        """Spares the kernel telling the outer epoll of every event in this one, for as long as this one is waited on.

        Done behind libuv's back: it changes its epoll through io_uring, which hands nested epolls to a kernel thread,
        and a process with a second thread pays for every system call (libuv, src/unix/linux.c).
        """
        epoll_ctl(outer_epoll_fd, EPOLL_CTL_DEL, self.epoll_fd, NULL)

    cdef void join(self, int outer_epoll_fd) noexcept:
        """Undoes `leave`, with the data libuv expects: the descriptor's number."""
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = 0
        event.data.fd = self.epoll_fd
        epoll_ctl(outer_epoll_fd, EPOLL_CTL_ADD, self.epoll_fd, &event)

    cdef int watch(self, Connection connection) except -1:
        cdef epoll_event event
        event.events = connection.interest
        event.data.ptr = <void*> connection
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, connection.fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        self.connections[connection.fd] = connection
        return 0

    cdef int change(self, Connection connection) except -1:
        cdef epoll_event event
        event.events = connection.interest
        event.data.ptr = <void*> connection
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, connection.fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        return 0

    cdef int forget(self, Connection connection) except -1:
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, connection.fd, NULL)
        self.connections.pop(connection.fd, None)
        self.closed.append(connection)
        return 0

    cdef void look_around(self) noexcept:
        self.alone = PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get())) == NULL

    cdef int poll(self, int wait_ms) except -1:
        """Serves what is ready, or becomes ready within `wait_ms`; returns the number of events."""
        cdef int count, index = 0
        cdef epoll_event* event
        cdef Connection connection
        if wait_ms and not self.alone:
            with nogil:
                count = epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, wait_ms)
        else:
            count = epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, wait_ms)
        self.now_ns = monotonic_ns()
        while index < count:
            try:
                while index < count:
                    event = &self.events[index]
                    index += 1
                    if event.data.ptr == NULL:
                        self.woken = True
                        continue
                    connection = <Connection> event.data.ptr
                    if not connection.closed:
                        connection.on_event(event.events)
            except Exception as error:
                connection.survive(error)
        if self.closed:
            self.closed.clear()
        return count if count > 0 else 0


cdef class Connection:
    """A non-blocking socket with what was received but not used, and what was not taken by the kernel yet.

    Both are plaintext; `tls` stands between them and the socket, None on a connection that is not encrypted.
    """

    cdef Poller poller
    cdef readonly int fd
    cdef uint32_t interest
    cdef bint closed
    cdef bint broken               # a send failed: the next event closes the connection
    cdef bint unread               # the last receive may have left something behind
    cdef Tls tls
    cdef Buffer inbound
    cdef Buffer outbound

    def __dealloc__(self):
        buffer_free(&self.inbound)
        buffer_free(&self.outbound)
        if self.fd >= 0 and not self.closed:
            close(self.fd)

    cdef int on_event(self, uint32_t events) except -1:
        if events & EPOLLOUT:
            self.flush()
            if self.closed:
                return 0
        if events & EPOLLIN and self.interest & EPOLLIN:
            self.on_readable()
            if (self.unread or events & EPOLLRDHUP) and not self.closed and self.interest & EPOLLIN:
                self.poller.change(self)       # what is still there, the end included, makes a new event
            return 0
        if events & (EPOLLHUP | EPOLLERR):
            # What the peer sent before it went is read first, but not while reading is held back on purpose.
            return self.on_readable() if self.interest & EPOLLIN else self.on_hangup()
        if events & EPOLLRDHUP and not self.interest & EPOLLIN:
            return self.on_half_closed()
        return 0

    cdef int on_readable(self) except -1:
        raise NotImplementedError("a connection must read")

    cdef int on_lost(self) except -1:
        raise NotImplementedError("a connection must end")

    cdef int on_hangup(self) except -1:
        """Nothing can be sent any more, and reading is paused: what came before is read when that is over, and the
        end behind it."""
        return 0

    cdef int on_half_closed(self) except -1:
        """The peer sends nothing more, and reading is paused."""
        return 0

    cdef int on_drained(self) except -1:
        """All that was waiting in `outbound` has been sent."""
        return 0

    cdef int on_secured(self) except -1:
        """The TLS handshake is over."""
        return 0

    cdef int on_fault(self, object error) except -1:
        raise NotImplementedError("a connection must survive its faults")

    cdef int end(self) except -1:
        raise NotImplementedError("a connection must end")

    cdef int survive(self, object error) except -1:
        """A fault costs the connection it happened on. One more while it is told of, or ended, is only logged: the
        events of the others are here only once."""
        try:
            self.on_fault(error)
        except Exception as another:
            log.error("fault in the relay, behind %r", error, exc_info=another)
            try:
                self.end()
            except Exception as last:
                log.error("fault in the relay, the connection is cut", exc_info=last)
                self.shut()
        return 0

    cdef inline int listen_for(self, uint32_t interest) except -1:
        if interest != self.interest and not self.closed:
            self.interest = interest
            self.poller.change(self)
        return 0

    cdef int write(self, const uint8_t* data, size_t count) except -1:
        """Sends what the socket takes now; the rest waits in `outbound` for it to become writable."""
        cdef ssize_t sent = 0
        if count == 0 or self.broken or self.closed:
            return 0
        if buffer_waiting(&self.outbound) == 0:
            sent = self.transmit(data, count)
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    self.broken = True
                    self.listen_for(self.interest | EPOLLIN)
                    return 0
                sent = 0
            if <size_t> sent == count:
                return 0
        buffer_append(&self.outbound, data + sent, count - sent)
        self.listen_for(self.interest | EPOLLOUT)
        return 0

    cdef int flush(self) except -1:
        cdef ssize_t sent
        if self.broken:
            buffer_free(&self.outbound)
        while buffer_waiting(&self.outbound):
            sent = self.transmit(self.outbound.data + self.outbound.start, buffer_waiting(&self.outbound))
            if sent <= 0:
                if sent == 0 or errno == EAGAIN or errno == EINTR:
                    self.listen_for(self.interest | EPOLLOUT)
                    return 0
                self.broken = True
                buffer_free(&self.outbound)
                self.listen_for(self.interest | EPOLLIN)
                break
            buffer_consume(&self.outbound, sent)
        if self.tls is not None and self.tls.push(self.fd) == 0:
            return self.listen_for(self.interest | EPOLLOUT)
        self.listen_for(self.interest & ~<uint32_t> EPOLLOUT)
        self.on_drained()
        return 0

    cdef inline ssize_t transmit(self, const uint8_t* data, size_t count) except -2:
        """send(2), encrypted if need be."""
        if self.tls is None:
            return send(self.fd, data, count, MSG_NOSIGNAL)
        return self.tls.send(self.fd, data, count)

    cdef inline ssize_t receive(self) except -2:
        """Bytes now in the poller's scratch buffer; 0: nothing yet; -1: the peer has gone."""
        cdef size_t room = SCRATCH_BYTES if self.tls is None else CIPHERTEXT_BYTES_MAX
        cdef ssize_t count = recv(self.fd, self.poller.scratch, room, 0)
        self.unread = count == <ssize_t> room
        if count > 0:
            return count if self.tls is None else self.decrypt(count)
        if count < 0 and (errno == EAGAIN or errno == EINTR):
            self.unread = errno == EINTR
            return 0
        return -1

    cdef ssize_t decrypt(self, size_t count) except -2:
        """What `receive` returns when `count` encrypted bytes stand in the scratch buffer."""
        self.tls.arrived(self.poller.scratch, count)
        return self.unseal()

    cdef ssize_t unseal(self) except -2:
        cdef ssize_t count
        if not self.tls.established:
            self.tls.shake_hands()
            if self.tls.established:
                self.on_secured()
                if self.closed:
                    return 0
        count = -1 if self.tls.failure is not None else 0
        if self.tls.established:
            count = self.tls.decrypt(self.poller.scratch, SCRATCH_BYTES)
        if self.tls.push(self.fd) == 0:        # what TLS itself has to say
            self.listen_for(self.interest | EPOLLOUT)
        if count > 0 and self.tls.ended:
            # The rest is told as for a stream in plaintext: the next read finds the end.
            shutdown(self.fd, SHUT_RD)
            self.unread = True
        return count

    cdef int shut(self) except -1:
        if not self.closed:
            if self.tls is not None and not self.broken and buffer_waiting(&self.outbound) == 0:
                self.tls.say_goodbye(self.fd)
            self.closed = True
            self.poller.forget(self)
            close(self.fd)
            buffer_free(&self.inbound)
            buffer_free(&self.outbound)
        return 0
