# One client connection: cuts what it sends into messages, and writes to it.

cdef enum:
    PHASE_HANDSHAKE = 0      # login; plain Python decides
    PHASE_WELCOME = 1        # authenticated, waits for the server's parameters
    PHASE_READY = 2          # messages are dealt with as they arrive
    PHASE_WAITING = 3        # for a link
    PHASE_AWAITING = 4       # for outstanding replies, because what comes next may belong elsewhere
    PHASE_LEAVING = 5        # the client sends nothing more; what it asked for is still answered
    PHASE_CLOSING = 6        # the last bytes are on their way to the client
    PHASE_TUNNEL = 7         # a replication connection: everything is passed through unread

    CLIENT_BODY_BYTES_MAX = 0x3fffffff     # PQ_LARGE_MESSAGE_LIMIT of pqcomm.h
    HELD_FRAME_BYTES_MAX = 65536           # larger Bind and CopyData messages are streamed
    REPLAY_BYTES_MAX = 65536
    OUTBOUND_BYTES_MAX = 65536             # local answers that may pile up before reading from the client stops

    LONG_KEY_BYTES = 32                    # of a cancel key in protocol 3.2: MAX_CANCEL_KEY_LENGTH of procsignal.h

    NOTHING_WRITTEN = -2                   # as the service of a session's writes

    OP_READ = 0
    OP_WRITE = 1
    OP_OTHER = 2

    TAKEN = 1                # verdicts of Session.dispatch
    STOP = 0
    SHOW_NOT_OURS = 2
    NOT_ADDED = 3


cdef class Client(Connection):
    """A client's socket and all the state of its session."""

    cdef Relay relay
    cdef int phase
    cdef object handshake
    cdef Tunnel tunnel                     # of a replication connection, else None
    cdef bint refused                      # too many clients: told so once it has logged in
    cdef bint half_closed                  # it was seen to send nothing more while reading was paused
    cdef bint probed                       # it was sent something that only a client that is there takes
    cdef bint cut_off                      # its end came without Terminate
    cdef Identity identity
    cdef readonly object settings          # proxy.settings.Settings: what deviates from the identity's
    cdef bint unclear                      # a statement is under way that may change what the next four say
    cdef tuple reading                     # what makes a text another statement than for other sessions
    cdef object search_path                # routing's SearchPath, as the settings say
    cdef int search_path_id                # of the one that is in force now
    cdef int read_path_id                  # the one `unnamed_entry` was found on
    cdef bint plain_text                   # statements can be read
    cdef bint settings_failed              # a server has refused them
    cdef Entry first_entry                 # what the session waits for a link with
    cdef readonly uint32_t process_id
    cdef readonly bytes secret_key         # 4 bytes; more for a client that speaks protocol 3.2
    cdef uint32_t process_id_asked         # of the server that it asked last with pg_backend_pid()
    cdef Link link
    cdef uint8_t status                    # as the client knows it: I, T or E
    cdef dict statements                   # client's name -> Statement, made when first needed
    cdef Statement changed                 # one that the link's server may not run: its rows are others by now
    cdef dict prepares                     # name -> text of its PREPARE, or None
    cdef list clashes                      # names of this batch that `clash` was called for, or None
    cdef Statement last_statement
    cdef bytes last_name
    cdef Buffer unnamed                    # body of the last unnamed Parse, without its name
    cdef int64_t unnamed_token             # 0: the session has no unnamed statement
    cdef Entry unnamed_entry
    cdef dict unnamed_described            # endpoint index -> (parameters' types, RowDescription or NoData), or None
    cdef Entry bound_entry                 # what the unnamed portal runs
    cdef bint portal_left                  # a transaction that can be moved has an unnamed portal
    cdef dict portals                      # name -> Entry of what it runs; None if nothing has been bound by name
    cdef Buffer begin                      # the messages of a BEGIN that was answered but not sent yet
    cdef Statement begin_statement         # what they bind, if that was prepared by name
    cdef int64_t begin_token               # what they make of the server's unnamed statement
    cdef bint begin_moves                  # its transaction can be moved up: it may begin at a copy
    cdef bint at_copy                      # the open transaction runs at a copy, and can be moved up
    cdef bint loose                        # the open transaction has named no table yet, and can be begun elsewhere
    cdef list introduced                   # the entries that stand in `begun` behind the BEGIN; None: there are none
    cdef bytes introduction                # Parse and Bind of what the unnamed portal does, if that is such an entry
    cdef bint moved_up                     # the unit that is being routed is why it was
    cdef bint looked                       # what began it without a table has read: its snapshot may be taken
    cdef bint read_committed               # unless its BEGIN says otherwise, a transaction is that
    cdef Buffer begun                      # the BEGIN that was sent, and what has to be done again behind it
    cdef Statement begun_statement
    cdef int64_t begun_token
    cdef bint in_batch                     # extended messages since the last Sync
    cdef bint skip_to_sync                 # the proxy refused something in this batch
    cdef size_t stream_left
    cdef bint stream_drop
    cdef bint torn                         # the client has got a part of a message, and the rest will not come
    cdef bytes farewell                    # an error that goes out behind the last answer
    cdef const uint8_t* run
    cdef size_t run_length
    cdef bint link_dirty                   # bytes stand in the link's outbound that no send was tried for
    cdef size_t consumed_ahead             # bytes a dispatch has dealt with, its own message included
    cdef bint resuming                     # its place in the relay's queue of sessions to go on with holds good
    # The unit being sent: where it goes and why.
    cdef bint routed                       # its route is decided
    cdef bint sound                        # it is known not to begin in a failed transaction
    cdef int unit_service
    cdef int unit_op
    cdef int unit_flags
    cdef bint unit_on_copy
    # The last decision, for SHOW pgshunt.route; `shown_entry` is None before the first.
    cdef Entry shown_entry
    cdef int shown_endpoint
    cdef int shown_reason
    cdef long shown_epoch
    cdef bint force_owner                  # a copy has failed this unit
    cdef bint answered                     # bytes of its answer have gone to the client
    cdef Buffer replay                     # its messages, while it could still be asked elsewhere
    cdef Pool waiting_in
    cdef int64_t held_bytes                # of a statement that is being received
    cdef int64_t wait_since_ns             # since when the unit has waited for a link, wherever; 0: it has not
    cdef int64_t active_ns                 # when it last sent something, or was sent something by a server
    cdef int limited_user                  # its user's place among those whose clients are limited, -1: not
    cdef int64_t deadline_ns               # of login, or of the farewell
    cdef int64_t last_write_ns             # its newest write is older than this
    cdef int last_write_at                 # number of the database that was written
    cdef int64_t earlier_write_ns          # its newest write at any other database is older than this
    cdef int64_t fresh_ns                  # freshness of the link's endpoint when the session got the link
    cdef bint transaction_wrote
    cdef int wrote                         # the service it has written, -1: several, or not known which
    cdef int writer                        # Entry.writer of the first write in its transaction
    cdef Entry first_write
    cdef list writes                       # of a transaction with several writers, the first write of each; else None
    cdef list crossed                      # what is to be counted as crossing owners; None if nothing is
    cdef int64_t blocked_since_ns
    cdef int64_t blocked_ns
    cdef dict signalled                    # process id named by what comes next -> its server's, None: asked; or None
    cdef int signals_at                    # endpoint of those servers
    cdef bint called_off                   # what comes next was cancelled before all of them had been found
    cdef int holds                         # statements under way that may signal this session
    cdef list holders                      # (endpoint, function to be told the server's process id), not yet told
    cdef bint summoned                     # a link is being opened for those
    cdef bint held                         # either makes it one of the relay's `sessions_held`
    cdef object shadow                     # proxy.shadow.Unit being recorded, or None
    cdef object added                      # columns that were asked for: ASKED, then the answer to the client; or None
    cdef int64_t added_ns                  # when they were

    cdef inline void await_replies(self) noexcept:
        """Deals with nothing more until the link tells that its replies are in; a turn given before is void."""
        self.phase = PHASE_AWAITING
        self.resuming = False

    cdef int protocol_error(self, str message) except -1:
        raise NotImplementedError("protocol_error belongs to Leaving")

    cdef int dispatch(self, uint8_t kind, const uint8_t* data, size_t here, int64_t size, size_t available) except -1:
        raise NotImplementedError("dispatch belongs to Session")

    cdef int forget_signals(self) except -1:
        raise NotImplementedError("forget_signals belongs to Signalling")

    cdef int leave_holders(self) except -1:
        raise NotImplementedError("leave_holders belongs to Signalling")

    def __cinit__(self, Relay relay, int fd, uint32_t process_id, bytes secret_key):
        self.relay = relay
        self.poller = relay.poller
        self.fd = fd
        self.interest = READING
        self.process_id = process_id
        self.secret_key = secret_key
        self.status = b"I"
        self.settings = settings_of.BASE
        self.unit_service = -1
        self.writer = WRITES_NOTHING
        self.limited_user = -1
        self.wrote = NOTHING_WRITTEN
        self.unit_op = OP_OTHER

    def __dealloc__(self):
        buffer_free(&self.unnamed)
        buffer_free(&self.begin)
        buffer_free(&self.begun)
        buffer_free(&self.replay)

    cdef int on_readable(self) except -1:
        return self.on_received(self.receive())

    cdef int on_received(self, ssize_t count) except -1:
        """Deals with `count` bytes in the scratch buffer; -1: the client has gone."""
        cdef size_t used
        if count <= 0:
            return 0 if count == 0 else self.on_lost()
        self.active_ns = self.poller.now_ns
        if self.phase != PHASE_READY:
            if self.phase == PHASE_TUNNEL:
                self.tunnel.write(self.poller.scratch, count)
                return self.listen()
            if self.phase == PHASE_HANDSHAKE:
                return self.relay.shake(self, self.handshake.receive(self.poller.scratch[:count]))
            if self.phase < PHASE_LEAVING:
                buffer_append(&self.inbound, self.poller.scratch, count)
            return 0
        if buffer_waiting(&self.inbound):
            buffer_append(&self.inbound, self.poller.scratch, count)
            return self.feed_inbound()
        used = self.feed(self.poller.scratch, count)
        if used < <size_t> count and not self.closed and self.phase < PHASE_LEAVING:
            buffer_append(&self.inbound, self.poller.scratch + used, count - used)
        return self.listen()

    cdef int feed_inbound(self) except -1:
        cdef size_t used
        used = self.feed(self.inbound.data + self.inbound.start, buffer_waiting(&self.inbound))
        if not self.closed:
            buffer_consume(&self.inbound, used)
            self.listen()
        return 0

    cdef int listen(self) except -1:
        """Reads from the client only while what it sends can be dealt with."""
        cdef bint reading
        if self.closed:
            return 0
        if self.phase == PHASE_TUNNEL:
            reading = buffer_waiting(&self.tunnel.outbound) == 0 and not self.cut_off
            return self.listen_for(self.interest | EPOLLIN if reading else self.interest & ~<uint32_t> EPOLLIN)
        reading = ((self.phase == PHASE_READY or self.phase == PHASE_HANDSHAKE)
                   and buffer_waiting(&self.outbound) < OUTBOUND_BYTES_MAX
                   and (self.link is None or buffer_waiting(&self.link.outbound) == 0))
        if reading:
            return self.listen_for(self.interest | EPOLLIN)
        return self.listen_for(self.interest & ~<uint32_t> EPOLLIN)

    cdef size_t feed(self, const uint8_t* data, size_t count) except? 0:
        """Deals with the messages in `data`; returns how many bytes need not be seen again."""
        cdef size_t at = 0, here
        cdef int64_t size
        cdef uint8_t kind
        self.run = data
        self.run_length = 0
        while at < count:
            if self.stream_left:
                here = min(count - at, self.stream_left)
                self.stream_left -= here
                if not self.stream_drop and self.link is not None:
                    self.pass_on(data + at, here)
                at += here
                continue
            size = frame_size(data + at, count - at, CLIENT_BODY_BYTES_MAX)
            if size == 0:
                break
            if size < 0:
                self.invalid_length(read_int32(data + at + 1))
                return count
            kind = data[at]
            here = <size_t> size
            if here > count - at:
                here = self.streamable(kind, data + at, count - at, size)
                if self.closed or self.phase >= PHASE_LEAVING:
                    return count
                if here == 0:
                    break
            self.stream_drop = False
            if self.dispatch(kind, data + at, here, size, count - at) == STOP:
                break
            if self.held_bytes:
                self.let_go()
            if self.phase != PHASE_READY:
                if self.phase >= PHASE_LEAVING:
                    return count
                at += here
                break
            if self.consumed_ahead:
                at += self.consumed_ahead
                self.consumed_ahead = 0
                continue
            if here < <size_t> size:
                self.stream_left = <size_t> size - here
            at += here
        if self.closed or self.phase >= PHASE_LEAVING:
            return count
        self.flush_run()
        if self.link is not None and self.link.replies.count == 0:
            self.link.release_if_done()
        return at

    cdef int invalid_length(self, int32_t length) except -1:
        return self.protocol_error(f"invalid message length of {length} bytes")

    cdef size_t streamable(self, uint8_t kind, const uint8_t* data, size_t available, int64_t size) except? 0:
        """How much of an incomplete message may be dealt with now; 0: wait for the rest."""
        if kind == b"d":
            return available
        if size <= HELD_FRAME_BYTES_MAX:
            return 0
        if (kind == b"Q" or kind == b"P") and size <= self.relay.statement_bytes_max and self.hold(size):
            return 0
        if kind == b"B" or kind == b"F" or kind == b"Q" or kind == b"P":
            # No link is lent for a promise: so much must be here. The names of statement and portal stand in front.
            if available < HELD_FRAME_BYTES_MAX:
                return 0
            if (kind == b"Q" or kind == b"F" or (kind == b"B" and bind_header(data, available) > 0)
                    or (kind == b"P" and parse_header(data, available) > 0)):
                return available
        self.protocol_error(f"message of type {chr(kind)!r} is too long: {size} bytes")
        return available

    cdef bint hold(self, int64_t size) noexcept:
        """Whether there is room to receive a long statement whole, so that it can be read.

        One for which there is none is passed on as it comes, as one that nobody understands.
        """
        if self.held_bytes == 0:
            if self.relay.held_bytes + size > self.relay.held_bytes_max:
                return False
            self.held_bytes = size
            self.relay.held_bytes += size
        return True

    cdef int let_go(self) except -1:
        self.relay.held_bytes -= self.held_bytes
        self.held_bytes = 0
        return 0

    cdef inline int pass_on(self, const uint8_t* data, size_t count) except -1:
        """Adds bytes to what goes to the link; adjacent bytes leave in one send, straight from where they are."""
        if self.run + self.run_length != data:
            self.set_aside_run()
            self.run = data
        self.run_length += count
        return 0

    cdef int set_aside_run(self) except -1:
        """Something will be sent behind the run that does not stand behind it in memory."""
        if self.run_length and self.link is not None:
            buffer_append(&self.link.outbound, self.run, self.run_length)
            self.link_dirty = True
        self.run_length = 0
        return 0

    cdef int flush_run(self) except -1:
        """Sends what has been collected for the link."""
        cdef size_t length = self.run_length
        if self.link is None:
            self.run_length = 0
            return 0
        if not self.link_dirty:
            self.run_length = 0
            return self.link.write(self.run, length) if length else 0
        self.set_aside_run()
        self.link_dirty = False
        return self.link.flush()

    cdef int insert(self, const uint8_t* data, size_t count) except -1:
        """Puts bytes of the proxy's own between the client's messages."""
        self.set_aside_run()
        buffer_append(&self.link.outbound, data, count)
        self.link_dirty = True
        return 0

    cdef int insert_bytes(self, bytes data) except -1:
        return self.insert(<const uint8_t*> PyBytes_AS_STRING(data), len(data))

    cdef int write_bytes(self, bytes data) except -1:
        return self.write(<const uint8_t*> PyBytes_AS_STRING(data), len(data))

    cdef int write_complete(self, uint8_t code) except -1:
        """ParseComplete, CloseComplete or a DEALLOCATE's CommandComplete in the server's stead."""
        if code == REPLY_EXECUTE:
            return self.write_bytes(COMMAND_COMPLETE["DEALLOCATE"])
        return self.write(b"1\0\0\0\x04" if code == REPLY_PARSE else b"3\0\0\0\x04", 5)

    cdef int on_drained(self) except -1:
        if self.phase == PHASE_CLOSING:
            return self.end()
        if self.blocked_since_ns:
            self.blocked_ns += self.poller.now_ns - self.blocked_since_ns
            self.blocked_since_ns = 0
        if self.phase == PHASE_TUNNEL:
            return self.tunnel.listen_for(self.tunnel.interest | EPOLLIN)
        if self.link is not None:
            self.link.listen_for(self.link.interest | EPOLLIN)
        if self.phase == PHASE_READY and buffer_waiting(&self.inbound):
            self.relay.resume(self)
        return self.listen()

    cdef int on_secured(self) except -1:
        end = self.tls.end
        return self.relay.shake(
            self, self.handshake.secured(end.ssl_object.selected_alpn_protocol(), end.common_name()))


cdef inline int32_t read_int32(const uint8_t* at) noexcept:
    return <int32_t> read_uint32(at)


cdef inline size_t zero_from(const uint8_t* data, size_t at, size_t end) noexcept:
    """Offset of the first zero byte in data[at:end]; 0 if there is none."""
    cdef const void* found
    if at >= end:
        return 0
    found = memchr(data + at, 0, end - at)
    return <size_t> (<const uint8_t*> found - data) if found != NULL else 0


cdef inline size_t parse_header(const uint8_t* data, size_t available) noexcept:
    """Offset of the statement's text in a Parse message; 0: malformed or incomplete."""
    cdef size_t name_end = zero_from(data, 5, available)
    return name_end + 1 if name_end else 0


cdef inline size_t bind_header(const uint8_t* data, size_t available) noexcept:
    """Offset of what follows the statement's name in a Bind message; 0: malformed or incomplete."""
    cdef size_t portal_end = zero_from(data, 5, available)
    cdef size_t name_end
    if portal_end == 0:
        return 0
    name_end = zero_from(data, portal_end + 1, available)
    return name_end + 1 if name_end else 0


cdef bytes ready_for_query(uint8_t status):
    return READY_FOR_QUERY[status]


cdef bytes command_complete(Entry entry):
    """CommandComplete of a transaction statement, None if only a server can carry it out."""
    return entry.plan if isinstance(entry.plan, bytes) else None
