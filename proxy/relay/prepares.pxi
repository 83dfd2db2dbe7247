# Statements prepared in SQL: PREPARE's text belongs to the session, and is run again on a link whose server lacks it.
#
# Their names are the client's own on the servers too. A link keeps what a session has left, and a session that uses
# the name for something else has it closed first.

# Pins of links whose statements are all known.
cdef set WITHOUT_STATEMENTS = {*VERIFIABLE, "signalled", "seed", "set_config", "encoding", "prepare"}


cdef class Prepares(Statements):
    """What a session has prepared by PREPARE."""

    cdef Entry executed(self, Entry entry):
        """What EXECUTE runs, if that is all that need be known of it; else `entry`, or what `with_prepared` says."""
        cdef object shape = entry.shape
        cdef Entry found
        cdef bytes text
        if (shape.reason != "execute" or shape.statements > 1 or shape.volatile or shape.local
                or len(shape.executes) != 1):
            return self.with_prepared(entry)
        for name in shape.executes:
            if self.prepares is not None and (self.at_copy or self.may_begin_at_copy()):
                text = self.prepares.get(name.encode(), b"")
                if tells_time(<const uint8_t*> PyBytes_AS_STRING(text), len(text)):
                    return self.with_prepared(entry)
            found = self.what_is_prepared(name)
            return self.with_prepared(entry) if found is None else found

    cdef Entry with_prepared(self, Entry entry):
        """Where tables have moved: PREPARE and EXECUTE with the tables of what they name, to be run there."""
        cdef object shape = entry.shape
        cdef Entry found
        cdef Statement statement
        cdef list run = [] if shape.prepared is None else [shape.prepared]
        if not self.relay.parted:
            return entry
        for name in shape.executes:
            found = self.what_is_prepared(name)
            if found is None and self.statements is not None:
                statement = self.statements.get(name.encode())
                found = None if statement is None else self.entry_for(statement)
            if found is not None:
                run.append(found.shape)
            elif name not in shape.prepares and name != ALL_STATEMENTS and self.may_hold_others():
                run.append(None)
        return Entry(executing(shape, run)) if run else entry

    cdef bint may_hold_others(self) except -1:
        """Whether the link's server may hold statements that the session has not been told of."""
        return self.link is not None and bool(self.link.pins) and not self.link.pins <= WITHOUT_STATEMENTS

    cdef bint uses_names(self, object shape) except -1:
        """Whether it says something of statements prepared in SQL."""
        if shape.prepares or shape.executes or "prepared_statements" in shape.pins:
            return True
        return bool(shape.deallocates) and self.is_taken(shape.deallocates.encode())

    cdef bint knows(self, const uint8_t* name, size_t length) except -1:
        """Whether a message names a statement that was prepared in SQL."""
        return self.prepares is not None and not self.link.own_names and (<const char*> name)[:length] in self.prepares

    cdef bint is_taken(self, bytes name) except -1:
        """Whether the link's server may hold, by a client's name for it, what SQL or another session has prepared."""
        if self.link.own_names:
            return False
        return (name in self.link.prepares or name.startswith(b"pgshunt_")
                or (self.prepares is not None and name in self.prepares))

    cdef int pin_names(self) except -1:
        """From here on the link stays with the session, its server knows all statements by the session's names."""
        if self.link.pin("prepared_statements"):
            self.name_statements()
        return 0

    cdef int bring_names(self, object shape) except -1:
        """Makes what a simple query names be on this link what it is to this session."""
        cdef dict held = self.link.prepares
        cdef bytes key, text
        if self.link.own_names:
            return 0
        for name in shape.executes | shape.prepares | ({shape.deallocates} if shape.deallocates else set()):
            key = name.encode()
            if self.in_batch or not name.isascii() or shape.statements > 1 or key.startswith(b"pgshunt_") or (
                    self.statements is not None and key in self.statements):
                self.pin_names()
                return self.leave_to_server(shape)
            text = (self.prepares or {}).get(key)
            if key in held and held[key] != text:
                del held[key]
                self.close_at_server(key)
                self.insert_sync()
            if text is not None and key not in held and self.status != b"E":
                held[key] = text
                self.link.making.append(key)
                self.insert_query(text, FLAG_REMAKES)
        return 0

    cdef int insert_query(self, bytes text, uint16_t flag) except -1:
        self.insert_bytes(b"Q" + (len(text) + 5).to_bytes(4, "big") + text + b"\0")
        replies_push(&self.link.replies, REPLY_QUERY, ACTION_SKIP).flags = flag
        self.link.unnamed_token = 0
        return 0

    cdef int name_prepares(self) except -1:
        """Makes the link's server hold what the session has prepared in SQL, and nothing of others'."""
        cdef bytes key, text
        for key in self.link.prepares:
            self.close_at_server(key)
        self.link.prepares.clear()
        for key, text in (self.prepares or {}).items():
            # By messages, with names of their own: the client may be in the middle of a batch.
            self.insert_bytes(
                frame(b"P", b"pgshunt\0" + text + b"\0\0\0") + frame(b"B", b"pgshunt\0pgshunt\0\0\0\0\0\0\0")
                + frame(b"E", b"pgshunt\0\0\0\0\0") + frame(b"C", b"Ppgshunt\0") + frame(b"C", b"Spgshunt\0"))
            for code in (REPLY_PARSE, REPLY_BIND, REPLY_EXECUTE, REPLY_CLOSE, REPLY_CLOSE):
                replies_push(&self.link.replies, code, ACTION_SKIP)
        return 0 if self.in_batch else self.insert_sync()

    cdef int await_prepare(self, Reply* reply, object shape, bytes text) except -1:
        """Behind PREPARE nothing is dealt with before the server has said what became of it."""
        if self.link.own_names:
            return 0
        name, = shape.prepares
        reply.flags |= FLAG_PREPARES
        self.link.preparing = (name.encode(), text)
        self.await_replies()
        return 0

    cdef int prepared(self, bytes key, bytes text) except -1:
        if self.prepares is None:
            self.prepares = {}
        self.prepares[key] = text
        if sum(map(len, self.prepares.values())) > PREPARES_BYTES_MAX:
            self.link.pin("prepare")
        return 0


cdef bytes frame(bytes kind, bytes body):
    return kind + (len(body) + 4).to_bytes(4, "big") + body
