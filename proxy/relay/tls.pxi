# Encryption of one connection, between its buffers and its socket.
#
# Python's ssl module does the work, in two buffers in memory (proxy/tls.py), so that what came before the handshake
# cannot be taken for what came through it. A read decrypts all that has arrived: nothing waits inside that no event
# would tell of.

cdef enum:
    # What one read may add to a record that had arrived in part; together they fit into the scratch buffer.
    CIPHERTEXT_BYTES_MAX = 32768
    # Sealed at a time: bounds what the buffers in memory grow to, as they never shrink.
    SEALED_BYTES_MAX = 16384
    # PostgreSQL's own records are no longer (PQ_SEND_BUFFER_SIZE). libpq reads 8 kB at a time; what it then still holds
    # of a longer record, a program that waits for the socket never hears of.
    RECORD_BYTES_MAX = 8192

cdef object WantRead = SSLWantReadError
cdef object TlsFailure = SSLError


cdef class Tls:
    """One connection's TLS end."""

    cdef readonly object end               # proxy.tls.TlsEnd
    cdef object incoming
    cdef object outgoing
    cdef object read
    cdef object write
    cdef bint established                  # the handshake is over
    cdef bint ended                        # nothing more will come: close_notify, or a failure
    cdef readonly str failure              # why it cannot go on; None while it can
    cdef Buffer wire                       # encrypted, not taken by the kernel yet
    cdef size_t sealed                     # so many bytes of plaintext stand in `wire`

    def __cinit__(self, end, bint established):
        self.end = end
        self.incoming = end.incoming
        self.outgoing = end.outgoing
        # What the methods of the same name call: a Python frame less for each record.
        methods = getattr(end.ssl_object, "_sslobj", end.ssl_object)
        self.read = methods.read
        self.write = methods.write
        self.established = established

    def __dealloc__(self):
        buffer_free(&self.wire)

    cdef int arrived(self, const uint8_t* data, size_t count) except -1:
        """Takes encrypted bytes from the socket."""
        self.incoming.write(PyMemoryView_FromMemory(<char*> data, count, PyBUF_READ))
        return 0

    cdef int shake_hands(self) except -1:
        """Goes on with the handshake, if it is not over."""
        try:
            self.established = self.end.shake_hands()
        except TlsFailure as error:
            self.fail(error)
        return 0

    cdef int fail(self, object error) except -1:
        self.failure = (error.reason or str(error)).lower().replace("_", " ")
        self.ended = True
        return 0

    cdef ssize_t decrypt(self, uint8_t* into, size_t room) except -2:
        """Plaintext of what has arrived; -1: the other side has ended the stream, or it is broken.

        `room` is at least what one read and the rest of one record can amount to.
        """
        cdef size_t count = 0, part
        try:
            while True:
                part = self.read(room - count, PyMemoryView_FromMemory(<char*> into + count, room - count, PyBUF_WRITE))
                if part == 0:
                    break                  # close_notify
                count += part
                if not self.incoming.pending:
                    return count           # all in whole records, so the last one has been read to its end
        except WantRead:
            return count
        except TlsFailure as error:
            self.fail(error)
        self.ended = True
        return count if count else -1

    cdef ssize_t send(self, int fd, const uint8_t* data, size_t count) except -2:
        """As send(2), for plaintext; 0: the kernel takes nothing now. What stood in front when fewer were taken than
        were offered is sealed already, and must be offered first again."""
        cdef size_t done = 0
        cdef int pushed
        if not self.established:
            return count                   # the handshake has failed or is late: nothing can be said
        while True:
            pushed = self.push(fd)
            if pushed < 0:
                return -1
            if pushed == 0:
                return done
            done += self.sealed
            self.sealed = 0
            if done >= count:
                return done
            self.seal(data + done, min(count - done, <size_t> SEALED_BYTES_MAX))

    cdef int seal(self, const uint8_t* data, size_t count) except -1:
        cdef size_t at = 0, part
        while at < count:
            part = min(count - at, <size_t> RECORD_BYTES_MAX)
            self.write(PyMemoryView_FromMemory(<char*> data + at, part, PyBUF_READ))
            at += part
        self.sealed = count
        return 0

    cdef int push(self, int fd) except -2:
        """Gives the kernel what is encrypted. 1: it has taken all; 0: not yet; -1: it will not, see errno."""
        cdef bytes ciphertext
        cdef size_t count
        cdef ssize_t taken
        if buffer_waiting(&self.wire):
            taken = send(fd, self.wire.data + self.wire.start, buffer_waiting(&self.wire), MSG_NOSIGNAL)
            if taken < 0:
                return 0 if errno == EAGAIN or errno == EINTR else -1
            buffer_consume(&self.wire, taken)
            if buffer_waiting(&self.wire):
                return 0
        if not self.outgoing.pending:
            return 1
        ciphertext = self.outgoing.read()
        count = len(ciphertext)
        taken = send(fd, PyBytes_AS_STRING(ciphertext), count, MSG_NOSIGNAL)
        if taken < 0:
            if errno != EAGAIN and errno != EINTR:
                return -1
            taken = 0
        if <size_t> taken < count:
            buffer_append(&self.wire, PyBytes_AS_STRING(ciphertext) + taken, count - taken)
            return 0
        return 1

    cdef int say_goodbye(self, int fd) except -1:
        """close_notify, behind all that was sent; nothing if something of that is left: then the end is not clean."""
        if not self.established or self.failure is not None or buffer_waiting(&self.wire):
            return 0
        try:
            self.end.ssl_object.unwrap()
        except TlsFailure:
            pass                           # WantRead among it: the other side's close_notify is not waited for
        self.push(fd)
        return 0
