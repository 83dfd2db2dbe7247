# One client connection: reads its messages, finds a link for each unit of work, and answers what needs no server.
#
# A unit is what the server treats as one: a simple query, or the extended messages up to Sync. A unit that begins
# without a link is routed; everything behind it goes to the same link until that link is given back.

cdef enum:
    PHASE_HANDSHAKE = 0      # login; plain Python decides
    PHASE_WELCOME = 1        # authenticated, waits for the server's parameters
    PHASE_READY = 2          # messages are dealt with as they arrive
    PHASE_WAITING = 3        # for a link
    PHASE_AWAITING = 4       # for outstanding replies, because what comes next may belong elsewhere
    PHASE_LEAVING = 5        # the client sends nothing more; what it asked for is still answered
    PHASE_CLOSING = 6        # the last bytes are on their way to the client

    CLIENT_BODY_BYTES_MAX = 0x3fffffff     # PQ_LARGE_MESSAGE_LIMIT of pqcomm.h
    HELD_FRAME_BYTES_MAX = 65536           # larger Bind and CopyData messages are streamed
    REPLAY_BYTES_MAX = 65536
    OUTBOUND_BYTES_MAX = 65536             # local answers that may pile up before reading from the client stops

    OP_READ = 0
    OP_WRITE = 1
    OP_OTHER = 2

    TAKEN = 1                # verdicts of Session.dispatch
    STOP = 0


cdef class Session(Connection):
    cdef Relay relay
    cdef int phase
    cdef object handshake
    cdef bint refused                      # too many clients: told so once it has logged in
    cdef Identity identity
    cdef readonly uint32_t process_id
    cdef readonly bytes secret_key
    cdef Link link
    cdef uint8_t status                    # as the client knows it: I, T or E
    cdef dict statements                   # client's name -> Statement, made when first needed
    cdef Statement last_statement
    cdef bytes last_name
    cdef Buffer unnamed                    # body of the last unnamed Parse, without its name
    cdef int64_t unnamed_token             # 0: the session has no unnamed statement
    cdef Entry unnamed_entry
    cdef Entry bound_entry                 # what the next Execute runs
    cdef Buffer begin                      # a BEGIN that was answered but not sent yet
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
    cdef bint resuming                     # stands in the relay's queue of sessions to go on with
    # The unit being sent: where it goes and why.
    cdef bint routed                       # its route is decided
    cdef bint sound                        # it is known not to begin in a failed transaction
    cdef bint aborted                      # it is known to begin in one
    cdef int unit_service
    cdef int unit_op
    cdef int unit_flags
    cdef bint unit_on_copy
    cdef bint force_owner                  # a copy has failed this unit
    cdef bint answered                     # bytes of its answer have gone to the client
    cdef Buffer replay                     # its messages, while it could still be asked elsewhere
    cdef Pool waiting_in
    cdef int64_t wait_since_ns
    cdef int64_t deadline_ns               # of login, or of the farewell
    cdef int64_t last_write_ns             # its newest write is older than this
    cdef bint transaction_wrote
    cdef int64_t blocked_since_ns
    cdef int64_t blocked_ns
    cdef object shadow                     # proxy.shadow.Unit being recorded, or None

    def __cinit__(self, Relay relay, int fd, uint32_t process_id, bytes secret_key):
        self.relay = relay
        self.poller = relay.poller
        self.fd = fd
        self.interest = EPOLLIN
        self.process_id = process_id
        self.secret_key = secret_key
        self.status = b"I"
        self.unit_service = -1
        self.unit_op = OP_OTHER

    def __dealloc__(self):
        buffer_free(&self.unnamed)
        buffer_free(&self.begin)
        buffer_free(&self.replay)

    # --- from the client ------------------------------------------------------------------------------------

    cdef int on_readable(self) except -1:
        cdef ssize_t count = self.receive()
        cdef size_t used
        if count <= 0:
            return 0 if count == 0 else self.on_lost()
        if self.phase != PHASE_READY:
            if self.phase == PHASE_HANDSHAKE:
                return self.shake(self.poller.scratch[:count])
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
        reading = ((self.phase == PHASE_READY or self.phase == PHASE_HANDSHAKE) and buffer_waiting(&self.outbound) < OUTBOUND_BYTES_MAX
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
                self.protocol_error(f"invalid message length of {read_int32(data + at + 1)} bytes")
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
            if self.closed or self.phase >= PHASE_LEAVING:
                return count
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

    cdef size_t streamable(self, uint8_t kind, const uint8_t* data, size_t available, int64_t size) except? 0:
        """How much of an incomplete message may be dealt with now; 0: wait for the rest."""
        if kind == b"d":
            return available
        if size <= HELD_FRAME_BYTES_MAX:
            return 0
        if kind == b"B" or kind == b"F":
            # Portal and statement names stand at the front; parameters are not looked at.
            if available > 1024 and (kind == b"F" or bind_header(data, available) > 0):
                return available
            if available < HELD_FRAME_BYTES_MAX:
                return 0
        if (kind == b"Q" or kind == b"P") and size > self.relay.statement_bytes_max:
            if kind == b"Q" or parse_header(data, available) > 0:
                return available
            if available < HELD_FRAME_BYTES_MAX:
                return 0
        elif kind == b"Q" or kind == b"P":
            return 0
        self.protocol_error(f"message of type {chr(kind)!r} is too long: {size} bytes")
        return available

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

    # --- messages -------------------------------------------------------------------------------------------

    cdef int dispatch(self, uint8_t kind, const uint8_t* data, size_t here, int64_t size, size_t available) except -1:
        """Deals with one message of which `here` of `size` bytes are at `data` (`available` with those behind it).

        TAKEN: it is dealt with. STOP: it must be offered again, once a link or outstanding replies have come.
        """
        if (self.link is not None and self.link.copying and kind != b"d" and kind != b"c" and kind != b"f"
                and kind != b"S" and kind != b"H" and kind != b"X" and self.link.copy_half_sent()):
            self.pass_on(data, here)       # the server will say that this has no place in COPY data, and close
            return TAKEN
        if kind == b"Q":
            return self.on_query(data, here, size)
        if kind == b"B":
            return self.on_bind(data, here, available)
        if kind == b"E":
            return self.on_execute(data, size)
        if kind == b"S":
            return self.on_sync(data, size)
        if kind == b"D":
            return self.on_describe(data, size, available)
        if kind == b"P":
            return self.on_parse(data, here, size, available)
        if kind == b"d" or kind == b"c" or kind == b"f":
            return self.on_copy(kind, data, here)
        if kind == b"C":
            return self.on_close(data, size, available)
        if kind == b"H":
            if self.link is not None and not self.skip_to_sync:
                self.pass_on(data, size)
            return TAKEN
        if kind == b"X":
            self.leave()
            return TAKEN
        if kind == b"F":
            return self.on_function_call(data, here)
        self.protocol_error(f"invalid frontend message type {kind}")
        return TAKEN

    cdef int on_query(self, const uint8_t* data, size_t here, int64_t size) except -1:
        cdef Entry entry
        cdef Reply* reply
        cdef bint whole = here == <size_t> size
        if self.skip_to_sync:
            return TAKEN
        if whole and (size < 6 or data[size - 1] != 0):
            self.protocol_error("a query must end with a zero byte")
            return TAKEN
        entry = self.entry_of(<const char*> data + 5, here - 6) if whole else self.relay.unknown
        if self.link is None and not self.in_batch:
            if entry.kind == KIND_BEGIN or entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK:
                if self.answer_locally(entry, data, size):
                    self.unnamed_token = 0
                    self.write_bytes(command_complete(entry) + ready_for_query(self.status))
                    return TAKEN
        if entry.kind == KIND_SESSION and not self.in_batch and self.drops_own(entry):
            if self.link is not None and self.link.replies.count:
                # Whether the transaction has failed is known when the replies are in.
                self.phase = PHASE_AWAITING
                return STOP
            if self.status != b"E":
                self.unnamed_token = 0
                self.write_bytes(self.drop(entry) + ready_for_query(self.status))
                return TAKEN
        if self.begins_unit():
            if self.acquire(entry, whole) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING:
                return TAKEN
        if self.unit_on_copy and not self.in_batch and self.link.replies.count == 0:
            self.keep_replay(data, size)
        self.note_statement(entry)
        if self.link.failed:
            return self.pass_failed(data, here)
        reply = replies_push(&self.link.replies, REPLY_QUERY, ACTION_FORWARD)
        self.mark(reply, entry)
        if self.in_batch:
            self.note_change(reply, self.unnamed_now())
        self.link.unnamed_token = 0        # a simple query drops the server's unnamed statement
        self.unnamed_token = 0
        if self.shadow is not None or self.relay.shadowing:
            self.record_query(entry, data, here, whole)
            if self.shadow is not None:
                self.shadow.sent(self.status == b"I")
        self.pass_on(data, here)
        self.end_unit()
        return TAKEN

    cdef int pass_failed(self, const uint8_t* data, size_t here) except -1:
        """The server skips everything up to Sync; it may as well skip this."""
        self.pass_on(data, here)
        return TAKEN

    cdef int on_parse(self, const uint8_t* data, size_t here, int64_t size, size_t available) except -1:
        cdef Entry entry
        cdef Statement statement
        cdef bytes name
        cdef size_t text = parse_header(data, here)
        cdef size_t stop, ahead
        cdef Reply* reply
        cdef bint whole = here == <size_t> size
        cdef bint later = self.in_batch
        if self.skip_to_sync:
            return TAKEN
        if text == 0:
            self.protocol_error("invalid Parse message")
            return TAKEN
        if whole:
            stop = zero_from(data, text, size)
            if stop == 0 or <int64_t> stop + 3 > size:
                self.protocol_error("invalid Parse message")
                return TAKEN
            entry = self.entry_of(<const char*> data + text, stop - text)
        else:
            entry = self.relay.unknown
        if self.begins_unit():
            ahead = self.local_batch(entry, data, size, available)
            if ahead:
                self.consumed_ahead = ahead
                return TAKEN
            if (self.link is not None and self.link.replies.count and text > 6
                    and self.find_statement(data + 5, text - 6) is not None):
                # Why it is refused depends on the transaction's state.
                self.phase = PHASE_AWAITING
                return STOP
            if self.acquire(entry, self.link is None and self.whole_batch(data, available) > 0) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        self.in_batch = True
        self.note_pin(entry)
        if self.link.failed:
            return self.pass_failed(data, here)
        if text == 6:                      # the unnamed statement
            reply = replies_push(&self.link.replies, REPLY_PARSE, ACTION_FORWARD)
            reply.flags = FLAG_UNNAMED
            if later:
                self.note_change(reply, self.unnamed_now())
            self.remember_unnamed(entry, data + text, here - text, whole)
            self.link.unnamed_token = self.unnamed_token
            self.pass_on(data, here)
            return TAKEN
        name = (<const char*> data)[5:text - 1]
        if self.statements is None:
            self.statements = {}
        if not whole or name in self.statements:
            # Sent under the client's own name: nobody else uses such names, so the server answers as it would.
            if name in self.statements and (not self.aborted or entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK):
                self.clash(name)
            replies_push(&self.link.replies, REPLY_PARSE, ACTION_FORWARD)
            self.pass_on(data, here)
            if not whole:
                self.link.pins.add("statement")
                self.relay.count_pin("statement")
            return TAKEN
        statement = self.relay.statement((<const char*> data)[text:size], entry, self.identity.search_path_id)
        self.statements[name] = statement
        if statement.id in self.link.prepared and not self.sound:
            # Perhaps to be refused: the server must see it.
            self.close_at_server(statement)
        elif statement.id in self.link.prepared:
            if self.link.replies.count == 0:
                self.flush_run()
                self.write_complete(REPLY_PARSE)
            else:
                reply = replies_push(&self.link.replies, REPLY_PARSE, ACTION_FAKE)
                self.note_change(reply, (self, name, statement, None))
            return TAKEN
        self.send_parse(statement, ACTION_FORWARD, name)
        return TAKEN

    cdef bint drops_own(self, Entry entry):
        """Whether it is a DEALLOCATE of what was prepared by messages: the servers know it by another name."""
        cdef str name = entry.shape.deallocates
        if name is None:
            return False
        if name == "*":
            return self.link is None or not self.link.pins
        return self.statements is not None and name.encode() in self.statements

    cdef bytes drop(self, Entry entry):
        """Forgets what a DEALLOCATE names; returns its CommandComplete. The links keep it for other sessions."""
        cdef str name = entry.shape.deallocates
        self.last_statement = None
        if name == "*":
            self.statements = None
            return COMMAND_COMPLETE["DEALLOCATE ALL"]
        del self.statements[name.encode()]
        return COMMAND_COMPLETE["DEALLOCATE"]

    cdef int clash(self, bytes name) except -1:
        """Makes the server hold a statement under the client's name, so that it refuses a second one itself."""
        cdef Statement statement = self.statements[name]
        cdef bytes body = name + b"\0" + statement.body
        replies_push(&self.link.replies, REPLY_PARSE, ACTION_SKIP)
        self.insert_bytes(b"P" + (len(body) + 4).to_bytes(4, "big") + body)
        self.link.tainted = True
        return 0

    cdef int send_parse(self, Statement statement, uint8_t action, bytes name) except -1:
        """Gives the link's server a statement it lacks; `name` is the client's when the client asked for it."""
        cdef uint8_t header[5]
        if self.link.forgotten:
            self.close_at_server(statement)    # it may or may not have dropped this one
        header[0] = b"P"
        write_uint32(header + 1, <uint32_t> (len(statement.name) + 1 + len(statement.body) + 4))
        self.insert(header, 5)
        self.insert(<const uint8_t*> PyBytes_AS_STRING(statement.name), len(statement.name) + 1)
        self.insert(<const uint8_t*> PyBytes_AS_STRING(statement.body), len(statement.body))
        self.note_change(replies_push(&self.link.replies, REPLY_PARSE, action), (self, name, statement, None))
        self.link.prepared[statement.id] = statement
        return 0

    cdef int close_at_server(self, Statement statement) except -1:
        """No error if the server does not hold it."""
        self.insert_bytes(b"C" + (len(statement.name) + 6).to_bytes(4, "big") + b"S" + statement.name + b"\0")
        replies_push(&self.link.replies, REPLY_CLOSE, ACTION_SKIP)
        return 0

    cdef int note_change(self, Reply* reply, tuple change) except -1:
        """What was noted when a message was sent is undone if the server skips it: see Link.undo."""
        reply.flags |= FLAG_CHANGE
        self.link.changes.append(change)
        return 0

    cdef tuple unnamed_now(self):
        cdef bytes body = None
        if self.unnamed_token:
            body = (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end]
        return self, None, None, (self.unnamed_token, self.unnamed_entry, body)

    cdef int restore_unnamed(self, tuple before) except -1:
        self.unnamed_token, self.unnamed_entry, body = before
        self.unnamed.start = self.unnamed.end = 0
        if body:
            buffer_append(&self.unnamed, PyBytes_AS_STRING(body), len(body))
        return 0

    cdef int remember_unnamed(self, Entry entry, const uint8_t* body, size_t length, bint whole) except -1:
        self.relay.unnamed_tokens += 1
        self.unnamed_token = self.relay.unnamed_tokens
        self.unnamed_entry = entry
        self.unnamed.start = self.unnamed.end = 0
        if whole:
            buffer_append(&self.unnamed, body, length)
        else:
            self.link.pins.add("statement")    # too long to be kept here: the link keeps it
            self.relay.count_pin("statement")
        return 0

    cdef Statement find_statement(self, const uint8_t* name, size_t length):
        """The session's statement of that name, or None."""
        if self.statements is None:
            return None
        if (self.last_statement is not None and <size_t> len(self.last_name) == length
                and memcmp(PyBytes_AS_STRING(self.last_name), name, length) == 0):
            return self.last_statement
        cdef bytes key = (<const char*> name)[:length]
        cdef Statement statement = self.statements.get(key)
        if statement is not None:
            self.last_statement = statement
            self.last_name = key
        return statement

    cdef int on_bind(self, const uint8_t* data, size_t here, size_t available) except -1:
        cdef size_t rest = bind_header(data, here)
        cdef size_t portal_end, length, ahead, named
        cdef Statement statement = None
        cdef Entry entry
        cdef uint8_t header[5]
        cdef uint32_t body
        cdef bint later = self.in_batch
        if self.skip_to_sync:
            return TAKEN
        if rest == 0:
            self.protocol_error("invalid Bind message")
            return TAKEN
        portal_end = zero_from(data, 5, here) + 1
        length = rest - 1 - portal_end
        if length:
            statement = self.find_statement(data + portal_end, length)
            entry = statement.entry if statement is not None else self.relay.unknown
        else:
            entry = self.unnamed_entry if self.unnamed_token else self.relay.unknown
        if self.begins_unit():
            ahead = self.local_batch(entry, data, here, available)
            if ahead:
                self.consumed_ahead = ahead
                return TAKEN
            if self.acquire(entry, self.link is None and self.whole_batch(data, available) > 0) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        self.in_batch = True
        self.bound_entry = entry
        self.note_statement(entry)
        if self.link.failed:
            return self.pass_failed(data, here)
        if entry.writes or entry.kind == KIND_COMMIT:
            self.unit_entry(entry)         # the Execute of its portal may come behind another Bind
        if self.shadow is not None or self.relay.shadowing:
            self.record_bind(entry, statement, data + rest, here - rest, here == <size_t> (read_uint32(data + 1) + 1))
        if statement is None:
            if length == 0:
                self.place_unnamed(later)
            replies_push(&self.link.replies, REPLY_BIND, ACTION_FORWARD)
            self.pass_on(data, here)
            return TAKEN
        if statement.id not in self.link.prepared:
            self.send_parse(statement, ACTION_SKIP, None)
        named = len(statement.name)
        body = read_uint32(data + 1) - <uint32_t> length + <uint32_t> named
        header[0] = b"B"
        write_uint32(header + 1, body)
        self.insert(header, 5)
        self.insert(data + 5, portal_end - 5)
        self.insert(<const uint8_t*> PyBytes_AS_STRING(statement.name), named + 1)
        replies_push(&self.link.replies, REPLY_BIND, ACTION_FORWARD)
        self.pass_on(data + rest, here - rest)
        return TAKEN

    cdef int place_unnamed(self, bint later) except -1:
        """Makes the server's unnamed statement be this session's, or nobody's if it has none."""
        cdef uint8_t header[6]
        cdef Reply* reply
        if self.link.unnamed_token == self.unnamed_token:
            return 0
        if self.unnamed_token == 0:
            # Another session's is still there; the server must say that there is none.
            self.insert_bytes(b"C\0\0\0\x06S\0")
            reply = replies_push(&self.link.replies, REPLY_CLOSE, ACTION_SKIP)
        else:
            header[0] = b"P"
            write_uint32(header + 1, <uint32_t> (buffer_waiting(&self.unnamed) + 5))
            header[5] = 0
            self.insert(header, 6)
            self.insert(self.unnamed.data + self.unnamed.start, buffer_waiting(&self.unnamed))
            reply = replies_push(&self.link.replies, REPLY_PARSE, ACTION_SKIP)
        if later:
            self.note_change(reply, self.unnamed_now())
        self.link.unnamed_token = self.unnamed_token
        return 0

    cdef int on_describe(self, const uint8_t* data, int64_t size, size_t available) except -1:
        cdef Statement statement = None
        cdef Entry entry
        cdef size_t length
        cdef bint later = self.in_batch
        if self.skip_to_sync:
            return TAKEN
        if size < 7 or data[size - 1] != 0 or (data[5] != b"S" and data[5] != b"P"):
            self.protocol_error("invalid Describe message")
            return TAKEN
        length = <size_t> size - 7
        entry = self.relay.unknown
        if data[5] == b"S":
            if length:
                statement = self.find_statement(data + 6, length)
                if statement is not None:
                    entry = statement.entry
            elif self.unnamed_token:
                entry = self.unnamed_entry
        if self.begins_unit():
            if self.acquire(entry, self.link is None and self.whole_batch(data, available) > 0) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        self.in_batch = True
        if self.link.failed:
            return self.pass_failed(data, size)
        if data[5] == b"P":
            replies_push(&self.link.replies, REPLY_DESCRIBE_PORTAL, ACTION_FORWARD)
            self.pass_on(data, size)
            return TAKEN
        if statement is None:
            if length == 0:
                self.place_unnamed(later)
            replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_FORWARD)
            self.pass_on(data, size)
            return TAKEN
        if statement.id not in self.link.prepared:
            self.send_parse(statement, ACTION_SKIP, None)
        self.insert_bytes(b"D" + (len(statement.name) + 6).to_bytes(4, "big") + b"S" + statement.name + b"\0")
        replies_push(&self.link.replies, REPLY_DESCRIBE_STATEMENT, ACTION_FORWARD)
        return TAKEN

    cdef int on_execute(self, const uint8_t* data, int64_t size) except -1:
        if self.skip_to_sync:
            return TAKEN
        if size < 10:
            self.protocol_error("invalid Execute message")
            return TAKEN
        if self.begins_unit():
            if self.acquire(self.relay.unknown, False) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING or self.skip_to_sync:
                return TAKEN
        self.in_batch = True
        if self.link.failed:
            return self.pass_failed(data, size)
        if (self.bound_entry is not None and self.bound_entry.kind == KIND_SESSION
                and self.bound_entry.shape.deallocates != "*" and self.drops_own(self.bound_entry)):
            name = self.bound_entry.shape.deallocates.encode()
            statement = self.statements[name]
            completed = self.drop(self.bound_entry)
            if self.link.replies.count:
                self.note_change(replies_push(&self.link.replies, REPLY_EXECUTE, ACTION_FAKE),
                                 (self, name, statement, None))
            else:
                self.write_bytes(completed)
            return TAKEN
        replies_push(&self.link.replies, REPLY_EXECUTE, ACTION_FORWARD)
        if self.bound_entry is not None:
            self.unit_entry(self.bound_entry)
        if self.shadow is not None:
            self.shadow.executed()
        self.pass_on(data, size)
        return TAKEN

    cdef int on_close(self, const uint8_t* data, int64_t size, size_t available) except -1:
        """Close of a statement is the session's own business: the link keeps it for the next session."""
        cdef tuple change = None
        cdef Statement statement
        cdef Reply* reply
        cdef bint later = self.in_batch
        if self.skip_to_sync:
            return TAKEN
        if size < 7 or data[size - 1] != 0 or (data[5] != b"S" and data[5] != b"P"):
            self.protocol_error("invalid Close message")
            return TAKEN
        if self.link is not None and self.begins_unit() and self.acquire(self.relay.unknown, False) == STOP:
            return STOP
        self.in_batch = True
        if self.link is not None and self.link.failed:
            return self.pass_failed(data, size)
        if data[5] == b"S" and size > 7:
            statement = self.find_statement(data + 6, <size_t> size - 7)
            if statement is not None:
                change = (self, self.last_name, statement, None)
                del self.statements[self.last_name]
                self.last_statement = None
        elif data[5] == b"S" and later and self.link is not None:
            change = self.unnamed_now()
        if self.link is not None and (
                data[5] == b"P" or (size == 7 and self.link.unnamed_token == self.unnamed_token)):
            reply = replies_push(&self.link.replies, REPLY_CLOSE, ACTION_FORWARD)
            if data[5] == b"S":
                self.unnamed_token = self.link.unnamed_token = 0
            self.pass_on(data, size)
        elif self.link is not None and self.link.replies.count:
            reply = replies_push(&self.link.replies, REPLY_CLOSE, ACTION_FAKE)
        else:
            reply = NULL
            self.write_complete(REPLY_CLOSE)
        if data[5] == b"S" and size == 7:
            self.unnamed_token = 0
        if reply != NULL and change is not None:
            self.note_change(reply, change)
        return TAKEN

    cdef int on_sync(self, const uint8_t* data, int64_t size) except -1:
        cdef Reply* reply
        if size != 5:
            self.protocol_error("invalid Sync message")
            return TAKEN
        if self.skip_to_sync or self.link is None:
            self.skip_to_sync = False
            self.in_batch = False
            self.write_bytes(ready_for_query(self.status))
            self.end_unit()
            return TAKEN
        self.in_batch = False
        self.link.failed = False
        reply = replies_push(&self.link.replies, REPLY_SYNC, ACTION_FORWARD)
        reply.started_ns = self.poller.now_ns
        reply.service = <int16_t> self.unit_service
        reply.op = <uint8_t> self.unit_op
        reply.flags = <uint8_t> self.unit_flags
        if self.shadow is not None:
            self.shadow.sent(self.status == b"I")
        self.pass_on(data, size)
        self.end_unit()
        return TAKEN

    cdef int on_copy(self, uint8_t kind, const uint8_t* data, size_t here) except -1:
        if self.link is None or (self.link.replies.count == 0 and not self.link.copying):
            # What a client sends behind a COPY that has failed; the server would ignore it as well.
            self.stream_drop = True
            return TAKEN
        if kind != b"d" and self.link.replies.count:
            replies_push(&self.link.replies, REPLY_COPY_END, ACTION_FORWARD)
        self.pass_on(data, here)
        return TAKEN

    cdef int on_function_call(self, const uint8_t* data, size_t here) except -1:
        cdef Reply* reply
        if self.skip_to_sync:
            return TAKEN
        if self.begins_unit():
            if self.acquire(self.relay.unknown, False) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING:
                return TAKEN
        if self.link.failed:
            return self.pass_failed(data, here)
        reply = replies_push(&self.link.replies, REPLY_QUERY, ACTION_FORWARD)
        self.mark(reply, self.relay.unknown)
        self.pass_on(data, here)
        self.end_unit()
        return TAKEN

    # --- routing --------------------------------------------------------------------------------------------

    cdef inline Entry entry_of(self, const char* text, size_t length):
        if not self.identity.plain_text:
            return self.relay.unknown
        return self.relay.shapes.lookup(text, <Py_ssize_t> length, self.identity.search_path_id)

    cdef inline bint begins_unit(self):
        return self.link is None or (not self.in_batch and not self.routed)

    cdef int acquire(self, Entry entry, bint whole) except -1:
        """A link for the unit that begins with `entry`; `whole`: all of the unit is here and could be sent again.

        TAKEN: `self.link` is the one (or the session is closing, or skips to Sync). STOP: it must wait.
        """
        cdef Link link = self.link
        cdef EndpointState state
        cdef Pool pool
        if link is not None:
            if self.routed:
                return TAKEN
            if link.replies.count and (link.changes or (
                    self.status == b"I" and not link.pins and link.pool.state.index != 0)):
                # Only when the replies are in is it known which statements the server holds, and whether the next
                # unit still belongs to the copy that was asked last.
                self.phase = PHASE_AWAITING
                return STOP
            if entry.epoch != self.relay.epoch:
                self.relay.plan(entry)
            self.routed = True
            self.sound = link.replies.count == 0 and self.status != b"E"
            self.aborted = link.replies.count == 0 and self.status == b"E"
            self.unit_on_copy = False
            self.unit_service = entry.service
            self.relay.count_route(entry.service, REASON_PINNED if link.pins else REASON_TRANSACTION)
            return TAKEN
        self.blocked_ns = 0
        self.answered = False
        state = self.relay.route(entry, self, whole)
        self.unit_on_copy = state.index != 0
        pool = self.relay.pool(self.identity, state)
        link = pool.take()
        if link is None:
            self.phase = PHASE_WAITING
            pool.wait(self)
            return STOP
        self.attach(link)
        self.send_begin()
        return TAKEN

    cdef int attach(self, Link link) except -1:
        self.link = link
        link.session = self
        self.routed = self.sound = True
        self.aborted = False
        return 0

    cdef int send_begin(self) except -1:
        """The BEGIN that was answered long ago goes out before the first message on a new link."""
        if buffer_waiting(&self.begin):
            replies_push(&self.link.replies, REPLY_QUERY, ACTION_SKIP).flags = FLAG_BEGIN
            buffer_append(&self.link.outbound, self.begin.data + self.begin.start, buffer_waiting(&self.begin))
            self.link.unnamed_token = 0    # dropped by every simple query
            self.link_dirty = True
            buffer_free(&self.begin)
        return 0

    cdef int detach(self) except -1:
        self.link.session = None
        self.link = None
        self.routed = False
        buffer_free(&self.replay)
        if buffer_waiting(&self.inbound) or self.phase == PHASE_AWAITING:
            self.relay.resume(self)
        elif self.relay.draining and not buffer_waiting(&self.begin):
            self.relay.leaving(self)
        return self.listen()

    cdef int take_back(self) except -1:
        """The link lent while this session waited is lost before anything was sent on it: another one will do."""
        self.link = None
        self.routed = False
        self.phase = PHASE_AWAITING
        return self.relay.resume(self)

    cdef inline int mark(self, Reply* reply, Entry entry) except -1:
        self.unit_entry(entry)
        reply.started_ns = self.poller.now_ns
        reply.service = <int16_t> self.unit_service
        reply.op = <uint8_t> self.unit_op
        reply.flags = <uint8_t> self.unit_flags
        return 0

    cdef inline int unit_entry(self, Entry entry) except -1:
        """Counts the unit as what its weightiest statement is."""
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if entry.service >= 0:
            self.unit_service = entry.service
        if entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK or entry.kind == KIND_BEGIN:
            if entry.kind == KIND_COMMIT:
                self.unit_flags |= FLAG_COMMIT
        elif entry.writes:
            self.unit_op = OP_WRITE
            self.unit_flags |= FLAG_WRITES
            if self.status != b"I" and entry.shape.reason == "transaction_block":
                self.unit_flags |= FLAG_COMMIT     # one of several statements may be the COMMIT
        elif self.unit_op == OP_OTHER and entry.kind == KIND_READ:
            self.unit_op = OP_READ
        return 0

    cdef inline int end_unit(self) except -1:
        self.unit_op = OP_OTHER
        self.unit_flags = 0
        self.unit_service = -1
        self.force_owner = False
        self.routed = False
        return 0

    cdef int note_statement(self, Entry entry) except -1:
        """State that outlives the transaction keeps the link to this session."""
        if entry.releases:
            self.forget_state(entry.shape.releases)
        return self.note_pin(entry)

    cdef inline int note_pin(self, Entry entry) except -1:
        if entry.pins and entry.shape.pins not in self.link.pins:
            self.link.pins.add(entry.shape.pins)
            self.relay.count_pin(entry.shape.pins)
        return 0

    cdef int forget_state(self, object releases) except -1:
        """DEALLOCATE ALL and DISCARD ALL drop statements that other sessions believe this link's server to hold."""
        if "prepare" in releases:
            self.link.tainted = self.link.forgotten = True
            self.link.prepared.clear()
            self.statements = None
            self.last_statement = None
        return 0

    cdef bint answer_locally(self, Entry entry, const uint8_t* frame, int64_t size) except -1:
        """BEGIN waits for the first statement; COMMIT and ROLLBACK of a transaction nobody has seen need no server."""
        if entry.epoch != self.relay.epoch:
            self.relay.plan(entry)
        if command_complete(entry) is None:
            return False
        if entry.kind == KIND_BEGIN:
            if self.status != b"I" or buffer_waiting(&self.begin):
                return False
            buffer_append(&self.begin, frame, size)
            self.status = b"T"
            return True
        if not buffer_waiting(&self.begin):
            return False
        buffer_free(&self.begin)
        self.status = b"I"
        return True

    cdef size_t local_batch(self, Entry entry, const uint8_t* data, int64_t size, size_t available) except? 0:
        """Answers [Parse] Bind [Describe] Execute of BEGIN, COMMIT or ROLLBACK without a server.

        Returns the bytes dealt with, 0 if this is something else. What follows (Sync, or a statement in the same
        batch, as pgjdbc sends it) is dealt with as usual.
        """
        cdef size_t at = 0, text, rest, stop
        cdef int64_t here
        cdef uint8_t kind
        cdef bytes answers = b"", sql
        cdef bint executed = False
        if self.link is not None or (
                entry.kind != KIND_BEGIN and entry.kind != KIND_COMMIT and entry.kind != KIND_ROLLBACK):
            return 0
        while not executed:
            here = frame_size(data + at, available - at, HELD_FRAME_BYTES_MAX)
            if here <= 0 or <size_t> here > available - at:
                return 0
            kind = data[at]
            if kind == b"P" and at == 0 and data[5] == 0:
                answers += b"1\0\0\0\x04"
            elif kind == b"B" and bind_header(data + at, here) > 0 and data[at + 5] == 0 and (at == 0 or data[at + 6] == 0):
                answers += b"2\0\0\0\x04"
            elif kind == b"D" and at > 0 and here == 7 and data[at + 5] == b"P":
                answers += b"n\0\0\0\x04"
            elif kind == b"E" and at > 0 and here == 10:
                executed = True
            else:
                return 0
            at += here
        if data[0] == b"P":
            text = 6
            stop = zero_from(data, text, size)
            sql = (<const char*> data)[text:stop]
            self.remember_unnamed(entry, data + text, size - text, True)
        else:
            rest = bind_header(data, size)
            stop = zero_from(data, 5, size) + 1
            if rest - 1 > stop:
                sql = (<bytes> self.find_statement(data + stop, rest - 1 - stop).body).partition(b"\0")[0]
            else:
                sql = (<const char*> self.unnamed.data + self.unnamed.start)[:]
        sql = b"Q" + (len(sql) + 5).to_bytes(4, "big") + sql + b"\0"
        if not self.answer_locally(entry, <const uint8_t*> PyBytes_AS_STRING(sql), len(sql)):
            return 0
        self.in_batch = False
        self.write_bytes(answers + command_complete(entry))
        return at

    cdef size_t whole_batch(self, const uint8_t* data, size_t available) except? 0:
        """Bytes of the batch up to its Sync if all of it is here and every statement in it is a plain read that
        the same copy may answer; else 0."""
        cdef size_t at = 0, text, stop, rest, name
        cdef int64_t size
        cdef uint8_t kind
        cdef Entry entry, first = None
        cdef Statement statement
        if not self.relay.splitting or self.status != b"I" or self.force_owner:
            return 0
        while True:
            size = frame_size(data + at, available - at, HELD_FRAME_BYTES_MAX)
            if size <= 0 or <size_t> size > available - at or at + size > REPLAY_BYTES_MAX:
                return 0
            kind = data[at]
            if kind == b"S":
                if first is None:
                    return 0
                self.replay.start = self.replay.end = 0
                buffer_append(&self.replay, data, at + size)
                return at + size
            if kind == b"P":
                if size < 8 or data[at + 5] != 0:
                    return 0
                stop = zero_from(data, at + 6, at + size)
                if stop == 0:
                    return 0
                entry = self.entry_of(<const char*> data + at + 6, stop - at - 6)
            elif kind == b"B":
                rest = bind_header(data + at, size)
                if rest == 0:
                    return 0
                name = zero_from(data + at, 5, size) + 1
                if rest - 1 > name:
                    statement = self.find_statement(data + at + name, rest - 1 - name)
                    if statement is None:
                        return 0
                    entry = statement.entry
                elif first is not None:
                    entry = first
                elif self.unnamed_token:
                    entry = self.unnamed_entry
                else:
                    return 0
            elif kind == b"D" and size > 7 and data[at + 5] == b"S":
                statement = self.find_statement(data + at + 6, size - 7)
                if statement is None:
                    return 0
                entry = statement.entry
            elif kind == b"D" or kind == b"E":
                entry = None
            else:
                return 0
            if entry is not None:
                if not entry.splittable:
                    return 0
                if first is None:
                    first = entry
                elif entry is not first:
                    return 0
            at += size

    cdef int keep_replay(self, const uint8_t* data, int64_t size) except -1:
        self.replay.start = self.replay.end = 0
        if size <= REPLAY_BYTES_MAX:
            buffer_append(&self.replay, data, size)
        return 0

    cdef bint may_retry(self):
        """Whether the unit went to a copy, whole, and the client has not seen any of its answer."""
        return (self.unit_on_copy and not self.answered and not self.in_batch and self.status == b"I"
                and buffer_waiting(&self.replay) > 0 and self.phase != PHASE_CLOSING)

    cdef int retry(self) except -1:
        """Asks the owner what a copy could not answer."""
        cdef Link link = self.link
        cdef Buffer again
        link.session = None
        self.link = None
        self.routed = False
        self.force_owner = True
        again = self.replay
        self.replay = Buffer(NULL, 0, 0, 0)
        buffer_append(&again, self.inbound.data + self.inbound.start, buffer_waiting(&self.inbound))
        buffer_free(&self.inbound)
        self.inbound = again
        self.phase = PHASE_AWAITING
        self.relay.resume(self)
        return 0

    # --- shadow writes --------------------------------------------------------------------------------------

    cdef int record_query(self, Entry entry, const uint8_t* data, size_t here, bint whole) except -1:
        if self.shadow is None:
            self.shadow = self.relay.shadow_unit(self, entry)
        if self.shadow is not None:
            self.shadow.query(entry.shape, (<const char*> data)[5:here - 1] if whole else None)
        return 0

    cdef int record_bind(self, Entry entry, Statement statement, const uint8_t* rest, size_t length,
                         bint whole) except -1:
        cdef bytes body
        if self.shadow is None:
            self.shadow = self.relay.shadow_unit(self, entry)
        if self.shadow is not None:
            if statement is not None:
                body = statement.body
            else:
                body = (<const char*> self.unnamed.data)[self.unnamed.start:self.unnamed.end]
            self.shadow.bind(entry.shape, body, (<const char*> rest)[:length] if whole else None)
        return 0

    # --- to the client --------------------------------------------------------------------------------------

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
        if self.link is not None:
            self.link.listen_for(self.link.interest | EPOLLIN)
        if self.phase == PHASE_READY and buffer_waiting(&self.inbound):
            self.relay.resume(self)
        return self.listen()

    # --- the ends of a session ------------------------------------------------------------------------------

    cdef int protocol_error(self, str message) except -1:
        """What was asked before is still answered, then the client is told and the connection closed."""
        self.farewell = self.relay.error_frame(
            "FATAL", "08P01", message, "The client speaks something else than PostgreSQL's protocol, version 3.")
        return self.leave()

    cdef int fatal(self, str sqlstate, str message, str hint) except -1:
        """Says why and closes; nothing else of this session reaches a server."""
        if self.closed or self.phase == PHASE_CLOSING:
            return 0
        self.flush_run()
        if self.link is not None and self.link.torn():
            self.torn = True
        self.farewell = self.relay.error_frame("FATAL", sqlstate, message, hint)
        return self.finish()

    cdef int finish(self) except -1:
        """Closes once everything has been sent."""
        cdef Link link = self.link
        if self.closed or self.phase == PHASE_CLOSING:
            return 0
        self.phase = PHASE_CLOSING
        self.stop_waiting()
        self.link = None
        if link is not None:
            link.abandon()
        if self.farewell is not None and not self.torn:
            self.write_bytes(self.farewell)
        if buffer_waiting(&self.outbound) == 0 or self.broken:
            return self.end()
        self.deadline_ns = self.poller.now_ns + 5000000000
        self.relay.deadlines.add(self)
        return self.listen_for(EPOLLOUT)

    cdef int stop_waiting(self) except -1:
        if self.waiting_in is not None:
            self.waiting_in.forget(self)
        return 0

    cdef int refuse_unit(self, str sqlstate, str message, str hint) except -1:
        """No link can be had for the unit that begins: an error, and the session goes on."""
        if buffer_waiting(&self.begin) or self.in_batch:
            return self.fatal(sqlstate, message, hint)
        self.write_bytes(self.relay.error_frame("ERROR", sqlstate, message, hint))
        self.drop_first_unit()
        return 0

    cdef int drop_first_unit(self) except -1:
        """Takes the refused unit out of what was received: one message, or all up to Sync."""
        cdef const uint8_t* data = self.inbound.data + self.inbound.start
        cdef int64_t size = frame_size(data, buffer_waiting(&self.inbound), CLIENT_BODY_BYTES_MAX)
        if size > 0 and (data[0] == b"Q" or data[0] == b"F"):
            self.stream_drop = True
            if <size_t> size > buffer_waiting(&self.inbound):
                self.stream_left = <size_t> size - buffer_waiting(&self.inbound)
            buffer_consume(&self.inbound, min(<size_t> size, buffer_waiting(&self.inbound)))
            self.write_bytes(ready_for_query(self.status))
        else:
            self.skip_to_sync = True
        self.end_unit()
        return 0

    cdef int on_lost(self) except -1:
        """The client sends nothing more. It may still read, as one that has shut down its side does."""
        if self.broken or self.phase != PHASE_READY:
            return self.end()
        return self.leave()

    cdef int on_hangup(self) except -1:
        return self.end()

    cdef int leave(self) except -1:
        """Terminate, or the end of what the client sends: what was asked before is carried out and answered."""
        self.flush_run()
        if self.link is None or (self.link.replies.count == 0 and buffer_waiting(&self.link.outbound) == 0):
            return self.finish()
        if self.stream_left:
            return self.end()
        self.phase = PHASE_LEAVING
        if self.in_batch or self.link.copy_half_sent():
            self.link.say_goodbye()
        return self.listen()

    cdef int on_fault(self, object error) except -1:
        self.relay.fault(error)
        self.run_length = 0
        if self.link is not None:
            self.link.tainted = True       # what was noted for it and what was sent to it may differ
        return self.fatal("XX000", "pgshunt failed while it handled this session", "Please report this.")

    cdef int end(self) except -1:
        cdef Link link = self.link
        if self.closed:
            return 0
        self.phase = PHASE_CLOSING
        self.link = None
        self.stop_waiting()
        self.shut()
        self.relay.session_ended(self)
        if link is not None:
            link.abandon()
        self.statements = None
        self.shadow = None
        return 0

    # --- login ----------------------------------------------------------------------------------------------

    cdef int shake(self, bytes data) except -1:
        self.relay.shake(self, data)
        return 0


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
