# What the hot path may cimport: shapes as C values, found without making a Python object.

cimport cython
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    # The values of routing.shape.Kind.
    KIND_EMPTY = 0
    KIND_READ = 1
    KIND_WRITE = 2
    KIND_BEGIN = 3
    KIND_COMMIT = 4
    KIND_ROLLBACK = 5
    KIND_SAVEPOINT = 6
    KIND_SESSION = 7
    KIND_COPY_IN = 8
    KIND_UNKNOWN = 9
    KIND_SHOW_ROUTE = 10

    # The values of routing.decide.PlanKind.
    PLAN_FIXED = 0
    PLAN_SPLIT = 1
    PLAN_REFUSED = 2
    PLAN_PROVEN = 3

    # What a transaction may begin with before it is known where it is to run: what leaves no trace, and what does.
    INTRODUCES_QUIETLY = 1
    INTRODUCES = 2

    # The value of routing.crossing.NOTHING.
    WRITES_NOTHING = -3

    # Whether the transaction of a BEGIN may be moved up: never, by the session's default isolation, always.
    BEGINS_HERE = 0
    BEGINS_AS_USUAL = 1
    BEGINS_READ_COMMITTED = 2

    UNRESOLVED = 1               # number of the empty search path

    SLOTS = 2048                 # texts kept as they were sent


@cython.final
cdef class Entry:
    cdef public object shape
    cdef public int kind
    cdef public bint splittable   # a plain read of at least one table: may go to a copy
    cdef public bint steady       # and leaves nothing behind that its transaction would miss elsewhere
    cdef public bint ends         # a plain COMMIT or ROLLBACK
    cdef public int begins        # BEGIN: a BEGINS_…; else 0
    cdef public int introduces    # INTRODUCES…: its transaction can still go elsewhere behind it; else 0
    cdef public bint stateful     # changes state of its session: SET, LISTEN, a temporary table …; or `signals`
    cdef public bint signals      # cancels or ends what other processes do
    cdef public bint unreadable   # nobody knows what it does
    cdef public bint writes       # writes, locks, volatile or unknown: the owner only
    cdef public bint defines      # DDL
    cdef public bint tells_pid    # asks for the server's process id
    cdef public bint read_only    # BEGIN READ ONLY, SET TRANSACTION READ ONLY
    # The route, filled in by the relay from decide() when `epoch` is not the routing table's.
    cdef public long epoch        # -1: never decided
    cdef public int plan_kind
    cdef public int service       # index into the table's services, -1: none
    cdef public int endpoint
    cdef public int percent
    cdef public int copies        # number of the database that has copies, -1: none
    cdef public bint replicated   # the owner has replicas that take reads
    cdef public bint causal       # must see what other sessions have written
    cdef public int reason
    cdef public int counters      # where the counts of its service begin
    cdef public object plan
    cdef public bint tied         # must not run at any other database, once its transaction runs at one
    cdef public dict needs        # endpoint -> what decide.needs says of its database, as far as it was asked
    cdef public bint crosses      # touches tables of several owners
    cdef public int writer        # as routing.crossing.writer says
    cdef public bytes key         # the beginning of its text without literals, if it may cross
    cdef public Entry prepared    # what PREPARE prepares


# One text as it was sent; a slot of the first level.
ctypedef struct Slot:
    uint64_t hash
    uint64_t seen                 # hash of the last text that passed here without being kept
    char *text
    Py_ssize_t length
    Py_ssize_t room
    int search_path_id
    void *entry


# One key of the second level: a text without its literals, or (whole) a text with them.
ctypedef struct Node:
    uint64_t hash
    char *key
    Py_ssize_t length
    int search_path_id
    int next                      # index of the next node in the chain, -1: last
    bint whole
    bint used                     # since the clock hand last passed
    void *entry                   # NULL: literals matter, look the whole text up


cdef enum:
    LITERALS_MAX = 24

# Where the literals of a text stand that another text may have others for.
ctypedef struct Literals:
    int count
    int[LITERALS_MAX] starts
    int[LITERALS_MAX] stops

ctypedef struct Template:
    char *text
    int length
    int room
    int search_path_id
    Literals literals
    void *entry

# Texts that are alike up to their first literal share a set. A hit makes its template the one that stays.
ctypedef struct TemplateSet:
    Template[2] templates
    int kept


@cython.final
cdef class SearchPath:
    cdef readonly int number
    cdef readonly tuple names
    cdef object __weakref__


@cython.final
cdef class ShapeCache:
    cdef object resolve
    cdef object paths             # names -> SearchPath, while somebody holds it
    cdef object numbers           # number -> SearchPath, likewise
    cdef SearchPath usual_path, unresolved_path
    cdef int next_path
    cdef Entry unknown_path
    cdef uint64_t seed
    cdef uint64_t secret
    cdef Slot *slots
    cdef uint8_t[SLOTS] marks     # a byte of each slot's hash: a text that is new mostly ends here, in few cache lines
    cdef TemplateSet *templates
    cdef Node *nodes
    cdef int *buckets
    cdef uint64_t bucket_mask
    cdef int capacity
    cdef int used
    cdef int hand
    cdef int free_node            # head of the list of nodes not in use
    cdef Py_ssize_t key_bytes
    cdef char *scratch
    cdef Py_ssize_t scratch_room
    cdef readonly long long hits_text
    cdef readonly long long hits_template
    cdef readonly long long hits_stripped
    cdef readonly long long misses

    cdef Entry lookup(self, const char *text, Py_ssize_t length, int search_path_id)
    cdef TemplateSet *_templates(self, const char *text, Py_ssize_t length, int search_path_id) noexcept
    cdef Template *_fitting(self, TemplateSet *templates, const char *text, Py_ssize_t length,
                            int search_path_id) noexcept
    cdef void _make_template(self, TemplateSet *templates, const char *text, Py_ssize_t length,
                             int search_path_id, Literals *literals, void *entry) noexcept
    cdef uint64_t _hash(self, const char *text, Py_ssize_t length, int search_path_id, bint whole) noexcept
    cdef Node *_node(self, const char *key, Py_ssize_t length, uint64_t hash, int search_path_id,
                     bint whole) noexcept
    cdef Entry _miss(self, const char *text, Py_ssize_t length, int search_path_id, Py_ssize_t key_length)
    cdef void _keep(self, Slot *slot, uint64_t hash, const char *text, Py_ssize_t length, int search_path_id,
                    void *entry) noexcept
    cdef int _insert(self, bytes key, int search_path_id, bint whole, Entry entry) except -1
    cdef void _evict(self) noexcept
    cdef void _drop_entries(self) noexcept
    cdef void _forget(self) noexcept
    cdef int _make_room(self, Py_ssize_t length) except -1
