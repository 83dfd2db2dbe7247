# cython: language_level=3
"""The hot path: what happens to every message between a client and a server.

This file is the table of contents; each part stands in a file of its own under proxy/relay/.
"""

import os
from asyncio import wait
from collections import deque
from dataclasses import replace
from hmac import compare_digest
from logging import getLogger
from ssl import SSLError, SSLWantReadError
from weakref import WeakValueDictionary

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

from pgshunt.protocol._wire cimport *
from pgshunt.routing._shapes cimport (
    BEGINS_AS_USUAL,
    BEGINS_READ_COMMITTED,
    INTRODUCES,
    KIND_BEGIN,
    KIND_COMMIT,
    KIND_EMPTY,
    KIND_READ,
    KIND_ROLLBACK,
    KIND_SAVEPOINT,
    KIND_SESSION,
    KIND_SHOW_ROUTE,
    PLAN_PROVEN,
    PLAN_REFUSED,
    PLAN_SPLIT,
    UNRESOLVED,
    WRITES_NOTHING,
    Entry,
    ShapeCache,
)

from pgshunt.protocol.actions import Cancel, NeedVerifier, NeedWelcome, Send, StartTls
from pgshunt.protocol.errors import PgError, classify_sqlstate, read_error, with_hint
from pgshunt.protocol.messages import backend_key_data
from pgshunt.proxy import settings as settings_of
from pgshunt.proxy import shown
from pgshunt.proxy.settings import VERIFIED
from pgshunt.proxy.signals import in_parameters, in_text
from pgshunt.routing.classify import classify
from pgshunt.routing.crossing import crosses, writer
from pgshunt.routing.decide import decide, is_tied, needs
from pgshunt.routing.effects import NO_CODE, VERIFIABLE
from pgshunt.routing.explain import Freshness, Taken, explain_shape
from pgshunt.routing import refusal
from pgshunt.routing.placement import Placement
from pgshunt.routing.reason import REASON_CODES, Reason
from pgshunt.routing.shape import ALL_STATEMENTS, Kind, executing, unknown
from pgshunt.routing.table import MOVED, SHARED, RoutingTable

cdef extern from "Python.h":
    ctypedef struct PyInterpreterState:
        pass
    ctypedef struct PyThreadState:
        pass
    PyInterpreterState* PyInterpreterState_Get()
    PyThreadState* PyInterpreterState_ThreadHead(PyInterpreterState* interpreter)
    PyThreadState* PyThreadState_Next(PyThreadState* thread)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_NOSIGNAL
        SHUT_RD
        SHUT_WR
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    int shutdown(int fd, int how)

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLLET
    ctypedef union epoll_data_t:
        void* ptr
        int fd
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll_fd, epoll_event* events, int events_max, int timeout_ms)

log = getLogger("pgshunt.relay")

READY_FOR_QUERY = {status: b"Z\0\0\0\x05" + status.to_bytes(1, "big") for status in (73, 84, 69)}   # I, T, E
COMMAND_COMPLETE = {
    tag: b"C" + (len(tag) + 5).to_bytes(4, "big") + tag.encode() + b"\0"
    for tag in ("BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "DEALLOCATE", "DEALLOCATE ALL", "ALTER TABLE")
}

cdef int REASON_BASELINE = Reason.BASELINE
cdef int REASON_BOUND = Reason.BOUND
cdef int REASON_CANDIDATE_DOWN = Reason.CANDIDATE_DOWN
cdef int REASON_FROZEN = Reason.FROZEN
cdef int REASON_KEPT = Reason.KEPT
cdef int REASON_LATE = Reason.LATE
cdef int REASON_MOVED_UP = Reason.MOVED_UP
cdef int REASON_NOT_FRESH = Reason.NOT_FRESH
cdef int REASON_NOT_WHOLE = Reason.NOT_WHOLE
cdef int REASON_PINNED = Reason.PINNED
cdef int REASON_REPLICA = Reason.REPLICA
cdef int REASON_RETRIED = Reason.RETRIED
cdef int REASON_SPLIT = Reason.SPLIT
cdef int REASON_TOGETHER = Reason.TOGETHER
cdef int REASON_TRANSACTION = Reason.TRANSACTION

# Of a service's own database the guard judges the primary; a replica that fails is passed over.
SIDES = {"primary": "candidate", "replica": "replica"}

# What a standby says that its primary does not: no such transaction mode, no unlogged tables (0A000), read-only,
# not while in recovery, given up because of what it replays.
cdef frozenset STANDBY_STATES = frozenset({b"0A000", b"25006", b"55000", b"40001", b"40P01"})


def local_tag(shape):
    """The command tag of a statement that needs no server while none has been asked; None for all others."""
    if shape.kind is Kind.BEGIN:
        return "START TRANSACTION" if shape.reason == "start" else "BEGIN"
    if shape.chain or shape.kind not in (Kind.COMMIT, Kind.ROLLBACK) or shape.reason:
        return None
    return shape.kind.name


include "relay/tls.pxi"
include "relay/poller.pxi"
include "relay/counters.pxi"
include "relay/pool.pxi"
include "relay/owed.pxi"
include "relay/readback.pxi"
include "relay/answers.pxi"
include "relay/errors.pxi"
include "relay/link.pxi"
include "relay/tunnel.pxi"
include "relay/client.pxi"
include "relay/leaving.pxi"
include "relay/state.pxi"
include "relay/moving.pxi"
include "relay/crossing.pxi"
include "relay/unit.pxi"
include "relay/local.pxi"
include "relay/again.pxi"
include "relay/statements.pxi"
include "relay/prepares.pxi"
include "relay/signals.pxi"
include "relay/adding.pxi"
include "relay/showing.pxi"
include "relay/batch.pxi"
include "relay/session.pxi"
include "relay/choice.pxi"
include "relay/owners.pxi"
include "relay/routes.pxi"
include "relay/clock.pxi"
include "relay/arrivals.pxi"
include "relay/hub.pxi"
