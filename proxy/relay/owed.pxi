# What a link's server owes and holds: the replies to come, the prepared statements, and what of both is taken back
# when the server skips messages after an error.

cdef enum:
    STATEMENTS_PER_LINK_MAX = 500

# Marks on an expected reply.
cdef enum:
    FLAG_WRITES = 1          # what it asked for may have changed something
    FLAG_COMMIT = 2          # it ends a transaction: lost, its outcome is unknown
    FLAG_CHANGE = 4          # something was noted when it was sent that must be undone if the server skips it
    FLAG_BEGIN = 8           # the proxy's own BEGIN, sent late
    FLAG_SLOW = 16           # already counted as slow
    FLAG_UNNAMED = 32        # it changes what the server's unnamed statement is
    FLAG_FAILS = 64          # the proxy's own, sent for the error it ends with
    FLAG_TIMED_OUT = 128     # the server was asked to cancel it, for it took too long
    FLAG_SETTINGS = 256      # the proxy's own, brings the link's settings to the session's
    FLAG_QUESTION = 512      # the proxy's own, asks what became of them
    FLAG_UNREADABLE = 1024   # nobody knows what state it leaves behind
    FLAG_PREPARES = 2048     # the client's PREPARE
    FLAG_REMAKES = 4096      # the proxy's own, the session's PREPARE once more
    FLAG_DESCRIBES = 8192    # it tells what the session's unnamed statement takes and returns
    FLAGS_SETTLED = FLAG_CHANGE | FLAG_UNNAMED | FLAG_UNREADABLE | FLAG_QUESTION | FLAG_PREPARES | FLAG_REMAKES

    PREPARES_BYTES_MAX = 65536         # of the texts that one session has prepared in SQL; beyond, it keeps its link
    PREPARES_PER_LINK_MAX = 200

# What a server says of a statement whose rows have another shape now than when it was parsed (plancache.c).
cdef bytes STALE_PLAN = b"\0RRevalidateCachedQuery\0"
cdef bytes STALE_PLAN_BODY = (
    b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0Fplancache.c" + STALE_PLAN + b"\0")
cdef bytes STALE_PLAN_FRAME = b"E" + (len(STALE_PLAN_BODY) + 4).to_bytes(4, "big") + STALE_PLAN_BODY


cdef inline bytes shared_name(long id):
    """What all servers call the statement of that number."""
    return b"pgshunt_%d" % id


cdef class Statement:
    """A prepared statement as all sessions and links of a worker share it: one text, one name on the servers."""

    cdef readonly long id
    cdef readonly bytes name
    cdef readonly bytes body           # what follows the name in Parse: text, NUL, parameter types
    cdef readonly Entry entry
    cdef dict described                # endpoint index -> (body with all types, shape of rows), as first parsed there
    cdef int search_path_id            # the one that `entry` was found on
    cdef long renewal                  # and after how many of the relay's
    cdef readonly bint timed           # its text could tell a transaction's time: see `tells_time`
    cdef object __weakref__

    def __cinit__(self, long id, bytes body, Entry entry, int search_path_id, long renewal):
        self.id = id
        self.name = shared_name(id)
        self.body = body
        self.entry = entry
        self.described = {}
        self.search_path_id = search_path_id
        self.renewal = renewal
        self.timed = tells_time(<const uint8_t*> PyBytes_AS_STRING(body), len(body))


cdef class Owed(Connection):
    """A server's socket with what was asked on it."""

    cdef Relay relay
    cdef readonly Pool pool
    cdef readonly long number
    cdef Session session
    cdef Replies replies
    cdef object changes                # deque of what `undo` takes, one per FLAG_CHANGE
    cdef int unnamed_pending           # replies with FLAG_UNNAMED
    cdef dict prepared                 # Statement.id -> Statement the server holds, oldest first
    cdef set doubtful                  # ids of statements that the server may or may not hold
    cdef bytes parameters              # types of the statement that is being described
    cdef int64_t unnamed_token         # whose unnamed statement the server holds, 0: it has none, -1: not known
    cdef uint8_t status                # of the last ReadyForQuery
    cdef bint failed                   # the server skips everything up to the next Sync
    cdef bint copying                  # COPY FROM STDIN is going on
    cdef bint tainted                  # not to be lent again
    cdef bint fatal_seen               # the server said why it closes
    cdef bint goodbye                  # Terminate was sent behind what the session had asked
    cdef bint dropping                 # a statement was sent that drops all prepared statements
    cdef bint defined                  # DDL was sent since the last transaction ended
    cdef dict prepares                 # name -> text of the PREPARE that the server has run
    cdef bytes refusal                 # the ErrorResponse in place of the next one that is wanted, None: STALE_PLAN's
    cdef object making                 # deque of names, one per FLAG_REMAKES
    cdef tuple preparing               # name and text of the PREPARE that is under way
    cdef bint instead                  # the next error tells less than the one the client was told
    cdef bint own_names                # the server knows the session's statements by the session's own names
    cdef int syncs_unsure              # Syncs sent before a COPY failed: read during the copy, and so ignored, or not
    cdef int syncs_behind              # likewise, behind the ReadyForQuery of the query that the COPY stood in
    cdef readonly set pins             # causes why the session keeps this link
    cdef readonly object settings      # proxy.settings.Settings it stands in, those on their way included
    cdef list signalled                # (process id, since when) of sessions that may be signalled from here, or None
    cdef int cancels                   # cancel requests on their way to this server process
    cdef int unit_error                # 0 none, 1 infrastructure, 2 application, 3 cancelled
    cdef readonly uint32_t process_id
    cdef readonly bytes secret_key
    cdef size_t stream_left            # bytes of a frame that is passed on without being held
    cdef bint stream_drop
    cdef const uint8_t* run            # consecutive bytes of this read that are bound for the session
    cdef size_t run_length
    cdef bint lies_idle                # in its pool, lent to nobody
    cdef int64_t idle_since_ns
    cdef int64_t ready_ns              # when it answered a unit in full last
    cdef bint timing_out               # the cancel on its way is for the statement that is marked, and no other

    def __cinit__(self, Relay relay, Pool pool, int fd, uint32_t process_id, bytes secret_key, long number):
        self.relay = relay
        self.poller = relay.poller
        self.pool = pool
        self.fd = fd
        self.interest = READING
        self.process_id = process_id
        self.secret_key = secret_key
        self.number = number
        self.status = b"I"
        self.changes = deque()
        self.prepared = {}
        self.doubtful = set()
        self.prepares = {}
        self.making = deque()
        self.pins = set()
        self.settings = settings_of.BASE

    def __dealloc__(self):
        replies_free(&self.replies)

    cdef Reply* under_way(self) noexcept:
        """The reply that ends the unit the server is at, else the first of a batch without Sync; NULL: none."""
        cdef uint32_t index
        for index in range(self.replies.count):
            if replies_at(&self.replies, index).started_ns:
                return replies_at(&self.replies, index)
        return replies_head(&self.replies) if self.replies.count else NULL

    cdef int settle(self, Reply* reply) except -1:
        """What was noted when the message was sent is so."""
        if reply.flags & FLAG_UNNAMED:
            self.unnamed_pending -= 1
        if reply.flags & FLAG_CHANGE:
            self.changes.popleft()
        return 0

    cdef int skip_failed(self) except -1:
        """Drops the replies that will not come: after an error the server skips everything up to Sync."""
        cdef Reply head
        cdef bint dropped, asked
        if self.copying:
            self.copying = False
            if replies_head(&self.replies).code == REPLY_EXECUTE:
                self.syncs_unsure += self.ignore_syncs()
                replies_end_copy(&self.replies)
                self.failed = not self.has_sync()
                return 0
            self.syncs_behind += self.ignore_syncs()
        if not replies_fails_to_sync(&self.replies):
            return 0
        head = replies_head(&self.replies)[0]
        dropped = head.code == REPLY_PARSE and head.flags & FLAG_UNNAMED
        asked = head.action == ACTION_FORWARD
        skipped = []
        while self.replies.count and replies_head(&self.replies).code != REPLY_SYNC:
            head = replies_head(&self.replies)[0]
            if head.flags & FLAG_CHANGE:
                skipped.append((head.code, head.action, self.changes.popleft()))
            self.unnamed_pending -= (head.flags & FLAG_UNNAMED) != 0
            replies_pop(&self.replies)
        for code, action, change in reversed(skipped):
            self.undo(code, action, change)
        if dropped and not self.unnamed_follows():
            self.unnamed_token = 0             # a Parse that fails has dropped the one before
            if asked and self.session is not None:
                self.session.unnamed_token = 0
        self.failed = self.replies.count == 0
        return 0

    cdef bint in_own_unit(self) noexcept:
        """Whether the server is at extended messages of the proxy's own, behind which a Sync of its own stands."""
        cdef uint32_t index
        for index in range(self.replies.count):
            if (replies_at(&self.replies, index).action != ACTION_SKIP
                    or replies_at(&self.replies, index).code == REPLY_QUERY):
                return False
            if replies_at(&self.replies, index).code == REPLY_SYNC:
                return True
        return False

    cdef int undo_all(self) except -1:
        """Nothing that is owed an answer has reached the server's executor."""
        cdef uint32_t index
        cdef Reply* reply
        noted = []
        for index in range(self.replies.count):
            reply = replies_at(&self.replies, index)
            if reply.flags & FLAG_CHANGE:
                noted.append((reply.code, reply.action, self.changes.popleft()))
        for code, action, change in reversed(noted):
            self.undo(code, action, change)
        return 0

    cdef bint unnamed_follows(self) noexcept:
        """Whether something was sent behind the failed batch that decides what the unnamed statement is."""
        cdef uint32_t index
        cdef Reply* reply
        for index in range(self.replies.count):
            reply = replies_at(&self.replies, index)
            if reply.flags & FLAG_UNNAMED or reply.code == REPLY_QUERY:
                return True
        return False

    cdef int undo(self, int code, int action, tuple change) except -1:
        """The server refused or skipped a message: what was noted when it was sent is not so.

        `change` is (session, name, statement, None) for a named statement parsed or closed, with None for the name
        where the proxy itself parsed or described it; (session, None, None, (link's token, token, entry, body,
        described)) with what the unnamed statement of the link and of the session was before; (session, None, None,
        None) when the session's statements were to get its own names.
        """
        cdef Session session
        cdef Statement statement
        session, name, statement, unnamed = change
        if statement is None and unnamed is None:
            self.own_names = False
            self.tainted = True                # some may have got them
            self.pins.discard("prepared_statements")
            return 0
        if statement is not None and code == REPLY_PARSE and action != ACTION_FAKE:
            self.prepared.pop(statement.id, None)
            self.doubtful.add(statement.id)    # it may hold one from before
            self.tainted = self.tainted or len(self.doubtful) > STATEMENTS_PER_LINK_MAX
        if unnamed is not None:
            self.unnamed_token = unnamed[0]
        if session is not self.session:
            return 0
        session.last_statement = None
        if unnamed is not None:
            session.restore_unnamed(unnamed[1:])
        elif code == REPLY_CLOSE or code == REPLY_EXECUTE:     # of a DEALLOCATE
            if session.statements is None:
                session.statements = {}
            session.statements[name] = statement
        elif name is not None and session.statements is not None and session.statements.get(name) is statement:
            del session.statements[name]
        return 0

    cdef int drop_all(self) except -1:
        """The server holds no named statement any more, the session's own included."""
        self.prepared.clear()
        self.doubtful.clear()
        self.prepares.clear()
        self.own_names = False
        self.pins -= {"prepare", "prepared_statements"}
        if self.session is not None:
            self.session.statements = self.session.prepares = None
            self.session.last_statement = None
        return 0

    cdef int on_described(self, tuple change, const uint8_t* data, size_t size) except -1:
        """What a statement takes and returns on this server: for good, as far as its sessions are concerned.

        `change` as for `undo`. Parsed again after an ALTER TABLE it may return something else; PostgreSQL refuses to
        run it then, unless it was the client that asked for it anew.
        """
        cdef Session session
        cdef Statement statement, renewed
        cdef int index = self.pool.state.index
        session, name, statement, _ = change
        text = statement.body[:statement.body.index(b"\0") + 1]
        rows = row_shape(data, size)
        if rows is None or self.parameters is None or statement.entry.shape.local == "cursor":
            return 0
        found = (text + self.parameters, rows)
        known = statement.described.setdefault(index, found)
        if known == found or (name is None and known[1] == rows):
            return 0
        if statement.id:
            self.prepared.pop(statement.id, None)
            self.doubtful.add(statement.id)
        else:
            self.unnamed_token = -1
        self.relay.prepare_anew()
        if session is not self.session:
            return 0
        session.last_statement = None
        if name is None:
            session.on_changed(statement)
        elif session.statements is not None and session.statements.get(name) is statement:
            renewed = self.relay.statement(statement.body, statement.entry, statement.search_path_id, session.reading,
                                           not self.defined)
            renewed.described[index] = found
            session.statements[name] = renewed
        return 0

    cdef int on_unnamed_described(self, const uint8_t* data, size_t size) except -1:
        """What the session's unnamed statement takes and returns here: for good, as for a named one."""
        cdef Session session = self.session
        if (session is not None and self.parameters is not None and not self.unnamed_pending
                and session.unnamed_token and session.unnamed_token == self.unnamed_token):
            if session.unnamed_described is None:
                session.unnamed_described = {}
            session.unnamed_described.setdefault(
                self.pool.state.index, (self.parameters, (<const char*> data)[:size]))
        return 0

    cdef bint copy_half_sent(self) noexcept:
        """Whether the server waits for COPY data of which the end has not been sent."""
        cdef uint32_t index
        if not self.copying:
            return False
        for index in range(self.replies.count):
            if replies_at(&self.replies, index).code == REPLY_COPY_END:
                if replies_at(&self.replies, index).action == ACTION_FORWARD:
                    return False
        return True

    cdef int ignore_syncs(self) except -1:
        """No answer is expected to Syncs sent before the end of the COPY data; returns how many there were."""
        cdef uint32_t index
        cdef Reply* reply
        cdef int count = 0
        for index in range(self.replies.count):
            reply = replies_at(&self.replies, index)
            if reply.code == REPLY_COPY_END and reply.action == ACTION_FORWARD:
                break
            if reply.code == REPLY_SYNC:
                reply.code, reply.action = REPLY_COPY_END, ACTION_SKIP
                count += 1
        return count

    cdef int copy_end_used(self) except -1:
        """One of several COPYs in a text is over: the first CopyDone was its."""
        cdef uint32_t index
        self.ignore_syncs()
        for index in range(self.replies.count):
            if replies_at(&self.replies, index).code == REPLY_COPY_END:
                if replies_at(&self.replies, index).action == ACTION_FORWARD:
                    replies_at(&self.replies, index).action = ACTION_SKIP
                    return 0
        return 0

    cdef Reply unit_reply(self):
        """What is known of the unit that is being answered: it stands at the reply that will end it."""
        cdef Reply unknown
        cdef uint32_t index
        cdef uint8_t code
        for index in range(self.replies.count):
            code = replies_at(&self.replies, index).code
            if ((code == REPLY_SYNC or code == REPLY_QUERY)
                    and replies_at(&self.replies, index).action == ACTION_FORWARD):
                return replies_at(&self.replies, index)[0]
        memset(&unknown, 0, sizeof(Reply))
        unknown.service = <int16_t> (self.session.unit_service if self.session is not None else -1)
        unknown.op = <uint8_t> (self.session.unit_op if self.session is not None else OP_OTHER)
        unknown.started_ns = self.poller.now_ns
        return unknown

    cdef bint owes_nothing(self) noexcept:
        """Whether the client has been answered everything: what is under way is the proxy's own."""
        cdef uint32_t index
        for index in range(self.replies.count):
            if replies_at(&self.replies, index).action != ACTION_SKIP:
                return False
        return True

    cdef bint runs_clients(self) noexcept:
        """Whether what the server runs was asked by the client, or will be next; while settings are brought it
        must not be cancelled.
        """
        cdef uint32_t index
        for index in range(self.replies.count):
            if replies_at(&self.replies, index).flags & FLAG_SETTINGS:
                return False
            if replies_at(&self.replies, index).action == ACTION_FORWARD:
                return True
        return False

    cdef bint has_sync(self) noexcept:
        return self.replies.count > 0 and replies_head(&self.replies).code == REPLY_SYNC


cdef bytes row_shape(const uint8_t* data, size_t size):
    """Names and types of RowDescription's columns; b"" for NoData, None if not all of it is here.

    Which table a column is from is left out: a table that was dropped and made again serves as well.
    """
    cdef size_t at = 7, stop
    cdef bytes shape = b""
    if data[0] == b"n":
        return shape
    if size != <size_t> read_uint32(data + 1) + 1:
        return None
    while at < size:
        stop = zero_from(data, at, size)
        if stop == 0 or stop + 19 > size:
            return None
        shape += (<const char*> data)[at:stop + 1] + (<const char*> data)[stop + 7:stop + 17]
        at = stop + 19
    return shape
