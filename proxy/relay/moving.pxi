# Moves a transaction up: one that has only read plainly at a copy, at READ COMMITTED, goes on at the owner. So does
# one that has named no table yet, if the table it names belongs to another database.
#
# Each of its statements sees what is committed as it begins, and nothing of those so far is left that the next would
# miss: no lock, no cursor, no setting, no time that was told. So the copy's half is rolled back, and the BEGIN is sent
# once more, to the owner.

# Prepares a statement without a name that reads nothing; that takes a snapshot.
cdef bytes EMPTY_READ = b"P\0\0\0\x1a\0SELECT WHERE false\0\0\0"


cdef class Moving(State):
    """Where an open transaction runs, and whether it can go on elsewhere."""

    cdef inline bint may_begin_at_copy(self) noexcept:
        """Whether a transaction is open that no server has seen yet, and that may be moved up."""
        return (self.begin_moves and buffer_waiting(&self.begin) > 0 and self.status == b"T"
                and not self.force_owner)

    cdef int note_begin(self, Entry entry) except -1:
        self.moved_up = self.looked = False
        self.begin_moves = entry.begins == BEGINS_READ_COMMITTED or (
            entry.begins == BEGINS_AS_USUAL and self.read_committed)
        return 0

    cdef bint stays(self, Entry entry, bint whole) except -1:
        """Whether the next unit of a transaction that runs at a copy can run there as well.

        What it does not stay for is done at the owner, and with it the rest of the transaction.
        """
        if not whole or not (entry.steady or entry.ends or entry.kind == KIND_EMPTY):
            return False
        return not entry.steady or self.relay.is_read_at(entry, <Session> self, self.link.pool.state)

    cdef inline bint is_timed(self, Entry entry, const uint8_t* data, size_t size) noexcept:
        """Whether a plain read could tell a transaction that may run at a copy its time."""
        return ((self.at_copy or self.link is None and self.may_begin_at_copy() and self.relay.splitting)
                and entry.steady and tells_time(data, size))

    cdef int keep_begin(self) except -1:
        """The deferred BEGIN has been sent to a copy: it may be needed once more."""
        buffer_free(&self.begun)
        self.begun = self.begin
        self.begin = Buffer(NULL, 0, 0, 0)
        self.portal_left = False
        return 0

    cdef int begin_again(self) except -1:
        """The transaction is as if no server had seen it; it runs at the owner from here on."""
        buffer_free(&self.begin)
        self.begin = self.begun
        self.begun = Buffer(NULL, 0, 0, 0)
        self.begin_statement = self.begun_statement
        self.begin_token = self.begun_token
        self.begin_moves = False
        self.at_copy = self.loose = False
        return 0

    cdef int end_at_copy(self) except -1:
        """The transaction has ended, or stays where it is."""
        self.at_copy = self.loose = False
        self.introduced = None
        self.begun_statement = None
        buffer_free(&self.begun)
        return 0

    cdef int introduce(self, Entry entry, bytes messages, int64_t token) except -1:
        """These messages are sent before it is known where the transaction is to run: they go wherever it goes."""
        self.looked = self.looked or entry.kind == KIND_READ
        if entry.introduces != INTRODUCES:
            return 0
        if buffer_waiting(&self.begun) + <size_t> len(messages) > REPLAY_BYTES_MAX:
            return self.end_at_copy()
        if self.introduced is None:
            self.introduced = []
        self.introduced.append(entry)
        self.begun_token = token
        return buffer_append(&self.begun, PyBytes_AS_STRING(messages), len(messages))

    cdef int move_up(self) except -1:
        """Leaves the copy, which rolls back. All its replies are in."""
        cdef Link link = self.link
        self.flush_run()
        self.begin_behind_reads()
        self.link = None
        link.abandon()
        return 0

    cdef int begin_behind_reads(self) except -1:
        """`begin_again` where the copy has answered: the owner is to know of a read, for SET TRANSACTION would come too
        late, and of the unnamed portal, which has no rows left. Where nothing was read nothing is: what the transaction
        will see, if it sees the same all along, is not settled before it reads."""
        cdef bint looked = self.at_copy or self.looked
        self.begin_again()
        self.moved_up = True
        if not looked:
            return 0
        self.begin_token = -1
        buffer_append(&self.begin, PyBytes_AS_STRING(EMPTY_READ), len(EMPTY_READ))
        if self.portal_left:
            buffer_append(&self.begin, b"B\0\0\0\x0c\0\0\0\0\0\0\0\0", 13)
        return buffer_append(&self.begin, b"S\0\0\0\x04", 5)

    cdef bint survives(self, Link link) noexcept:
        """Whether a transaction whose copy has gone, while it was asked nothing, goes on at the owner."""
        return (self.at_copy and link.replies.count == 0 and not self.in_batch and self.status != b"I"
                and (self.phase == PHASE_READY or self.phase == PHASE_AWAITING))

    cdef int lose_copy(self) except -1:
        self.begin_behind_reads()
        self.link = None
        self.routed = False
        if self.phase == PHASE_AWAITING:
            self.relay.resume(<Session> self)
        return self.listen()


cdef bint tells_time(const uint8_t* data, size_t size) noexcept:
    """Whether the messages hold one of the texts that PostgreSQL reads as a time of its own (datetime.c): now, today,
    tomorrow, yesterday. A statement may compare a column with them, and a parameter may be one."""
    cdef size_t at
    cdef uint8_t letter
    for at in range(size):
        letter = data[at] | 0x20
        if letter == b"n":
            if at + 3 <= size and is_text(data + at, b"now", 3):
                return True
        elif letter == b"t":
            if at + 5 <= size and is_text(data + at, b"today", 5):
                return True
            if at + 8 <= size and is_text(data + at, b"tomorrow", 8):
                return True
        elif letter == b"y" and at + 9 <= size and is_text(data + at, b"yesterday", 9):
            return True
    return False


cdef inline bint is_text(const uint8_t* data, const char* text, size_t length) noexcept:
    """Whether `data` begins with this text, in letters of whatever case."""
    cdef size_t at
    for at in range(length):
        if data[at] | 0x20 != <uint8_t> text[at]:
            return False
    return True
