# The messages a client may send: which method deals with each, and those outside of the extended protocol.

cdef class Session(Batch):
    """One client connection."""

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
        self.unknown_message(kind)
        return TAKEN

    cdef int unknown_message(self, uint8_t kind) except -1:
        # On its own, for the words it puts together would cost `dispatch` registers with every message.
        return self.protocol_error(f"invalid frontend message type {kind}")

    cdef int on_query(self, const uint8_t* data, size_t here, int64_t size) except -1:
        cdef Entry entry, outer
        cdef Reply* reply
        cdef list places = None
        cdef bint whole = here == <size_t> size
        cdef int verdict
        if self.skip_to_sync:
            return TAKEN
        if whole and (size < 6 or data[size - 1] != 0):
            self.protocol_error("a query must end with a zero byte")
            return TAKEN
        entry = outer = self.entry_of(<const char*> data + 5, here - 6) if whole else self.relay.unread
        if outer.stateful and (self.prepares is not None or self.relay.parted):
            entry = self.executed(outer)
        if self.added is not None or self.relay.adds and whole and self.may_add(entry):
            verdict = self.add_columns(entry, data, here)
            if verdict != NOT_ADDED:
                return verdict
        if entry.stateful and entry.signals and whole:
            places = in_text((<const char*> data)[5:here - 1], 5, self.relay.board_workers)
            if places:
                if self.seek(entry, places) == STOP:
                    return STOP
                if self.called_off:
                    return self.fail_called_off(entry, data, here, True)
        if self.link is None and not self.in_batch:
            if entry.kind == KIND_BEGIN or entry.kind == KIND_COMMIT or entry.kind == KIND_ROLLBACK:
                if self.answer_locally(entry, data, size):
                    self.unnamed_token = 0
                    self.write_bytes(self.local_answer(entry) + ready_for_query(self.status))
                    return TAKEN
        if entry.kind == KIND_SHOW_ROUTE and not self.in_batch:
            verdict = self.show_query()
            if verdict != SHOW_NOT_OURS:
                return verdict
        if entry.kind == KIND_SESSION and not self.in_batch and self.drops_own(entry):
            if self.link is not None and self.link.replies.count:
                # Whether the transaction has failed is known when the replies are in.
                self.await_replies()
                return STOP
            if self.status != b"E":
                self.unnamed_token = 0
                self.portal_left = False
                self.write_bytes(self.drop(entry) + ready_for_query(self.status))
                return TAKEN
        if self.begins_unit():
            if self.acquire(entry, whole and not self.is_timed(entry, data, here), True) == STOP:
                return STOP
            if self.phase == PHASE_CLOSING:
                return TAKEN
        if self.unit_on_copy and not self.in_batch and self.link.owes_nothing():
            self.keep_replay(data, size)
        if not self.link.failed and self.is_refused(entry):
            self.stream_drop = True
            return self.refuse(entry, True)
        self.note_statement(entry)
        if entry.stateful and entry.shape.path is not None:
            self.follow_path(entry.shape.path)
        if self.link.failed:
            return self.pass_failed(data, here)
        if places:
            self.name_servers(data, places)
        if outer.stateful:
            self.bring_names(outer.shape)
        reply = replies_push(&self.link.replies, REPLY_QUERY, ACTION_FORWARD)
        self.mark(reply, entry)
        self.observe(entry)
        if entry.unreadable:
            reply.flags |= FLAG_UNREADABLE
        if self.loose:
            if whole and entry is outer:
                self.introduce(entry, (<const char*> data)[:size], 0)
            else:
                self.end_at_copy()
        if self.in_batch:
            self.renew_unnamed(reply, True)
        self.link.unnamed_token = 0        # a simple query drops the server's unnamed statement
        self.unnamed_token = 0
        if entry.kind != KIND_EMPTY:
            self.portal_left = False       # and if there is anything in it, the unnamed portal
        if self.shadow is not None or self.relay.shadowing:
            self.record_query(entry, data, here, whole)
            if self.shadow is not None:
                self.shadow.sent(self.status == b"I")
        self.pass_on(data, here)
        if outer.stateful:
            if "prepare" in outer.shape.releases:
                self.await_drop(False)
            elif outer.shape.prepared is not None:
                self.await_prepare(reply, outer.shape, (<const char*> data)[5:size - 1])
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
        if self.loose:
            self.end_at_copy()
        known = here >= 9 and read_int32(data + 5) in LARGE_OBJECT_CALLS
        if not known and self.is_refused(self.relay.unread):
            self.stream_drop = True
            return self.refuse(self.relay.unread, True)
        reply = replies_push(&self.link.replies, REPLY_QUERY, ACTION_FORWARD)
        self.mark(reply, self.relay.unknown)
        if not known:
            reply.flags |= FLAG_UNREADABLE
        self.pass_on(data, here)
        self.end_unit()
        return TAKEN
