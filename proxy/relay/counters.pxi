# What the worker counts for each statement: plain C integers, turned into Python values a few times a second.

cdef enum:
    BUCKETS = 16
    OPS = 3
    REASONS_MAX = 32

cdef int64_t[BUCKETS - 1] BUCKET_EDGES_NS
BUCKET_EDGES_NS[:] = [
    100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000,
    250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000,
]

cdef struct Calls:
    int64_t count
    int64_t infrastructure
    int64_t application
    int64_t slow
    int64_t total_ns
    int64_t[BUCKETS] buckets

# How a service's own database has fared lately; the guard's hard detector decides from it.
cdef struct Run:
    int64_t failures               # consecutive infrastructure failures
    uint32_t last                  # the last 20 outcomes, newest in bit 0, failure = 1
    long first_link                # the link of the oldest failure among them
    bint several_links
    bint changed


cdef class Counters:
    """The counts of one worker since they were last drained."""

    cdef int services              # of the routing table; row 0 is nobody's, service n has row n + 1
    cdef int endpoints
    cdef Calls* calls
    cdef int64_t* routes           # by service, endpoint and reason
    cdef Run* runs
    cdef dict sqlstates            # (service, endpoint, SQLSTATE) -> count
    cdef dict pins                 # cause -> count
    cdef dict timeouts             # kind -> count
    cdef dict failed_logins        # reason -> count
    cdef bint changed

    def __cinit__(self, int services, int endpoints):
        self.services = services
        self.endpoints = endpoints
        self.calls = <Calls*> calloc((services + 1) * endpoints * OPS, sizeof(Calls))
        self.routes = <int64_t*> calloc((services + 1) * endpoints * REASONS_MAX, sizeof(int64_t))
        self.runs = <Run*> calloc(services + 1, sizeof(Run))
        if self.calls == NULL or self.routes == NULL or self.runs == NULL:
            raise MemoryError("counters")
        self.sqlstates = {}
        self.pins = {}
        self.timeouts = {}
        self.failed_logins = {}

    def __dealloc__(self):
        free(self.calls)
        free(self.routes)
        free(self.runs)

    cdef inline Calls* row(self, int service, int endpoint, int op) noexcept:
        return &self.calls[((service + 1) * self.endpoints + endpoint) * OPS + op]

    cdef inline int routes_of(self, int service) noexcept:
        """Where the routes of a service's statements are counted: then come endpoint and reason."""
        return (service + 1) * self.endpoints * REASONS_MAX

    cdef void call(self, int service, int endpoint, int op, int64_t took_ns, int error, bint slow) noexcept:
        cdef Calls* row = self.row(service, endpoint, op)
        cdef int bucket = 0
        while bucket < BUCKETS - 1 and took_ns > BUCKET_EDGES_NS[bucket]:
            bucket += 1
        row.count += 1
        row.total_ns += took_ns
        row.buckets[bucket] += 1
        row.infrastructure += error == 1
        row.application += error == 2
        row.slow += slow
        self.changed = True

    cdef bint outcome(self, int service, bint failed, long link) noexcept:
        """Notes how a service's own database answered; True when the guard should hear of it now."""
        cdef Run* run = &self.runs[service + 1]
        if not failed and run.failures == 0 and run.last == 0:
            return False
        if failed:
            if run.last == 0:
                run.first_link = link
                run.several_links = False
            elif link != run.first_link:
                run.several_links = True
            run.failures += 1
        else:
            run.failures = 0
        run.last = ((run.last << 1) | <uint32_t> failed) & 0xfffff
        run.changed = True
        return failed

    cdef void forget_run(self, int service) noexcept:
        """Reads of the service begin anew: what failed before says nothing about them."""
        memset(&self.runs[service + 1], 0, sizeof(Run))

    def drain(self, list services, list endpoint_names, list sides, list reasons):
        """The counts as the values of a delta message, and all of them back to zero.

        `sides[service + 1][endpoint]` says whether that endpoint is the service's own ("candidate").
        """
        cdef int service, endpoint, op, bucket, why
        cdef Calls* row
        cdef int64_t* taken
        calls, routes, runs = [], [], []
        for service in range(-1, self.services):
            for endpoint in range(self.endpoints):
                for op in range(OPS):
                    row = self.row(service, endpoint, op)
                    if row.count or row.slow:
                        calls.append([
                            services[service + 1], sides[service + 1][endpoint], endpoint_names[endpoint],
                            ("read", "write", "other")[op], row.count, row.infrastructure, row.application, row.slow,
                            row.total_ns // 1000, [row.buckets[bucket] for bucket in range(BUCKETS)],
                        ])
                        memset(row, 0, sizeof(Calls))
            for endpoint in range(self.endpoints):
                for why in range(len(reasons)):
                    taken = &self.routes[self.routes_of(service) + endpoint * REASONS_MAX + why]
                    if taken[0]:
                        routes.append([services[service + 1], reasons[why], endpoint_names[endpoint], taken[0]])
                        taken[0] = 0
            if self.runs[service + 1].changed:
                self.runs[service + 1].changed = False
                runs.append([
                    services[service + 1], self.runs[service + 1].failures,
                    (<object> self.runs[service + 1].last).bit_count(),
                    2 if self.runs[service + 1].several_links else 1 if self.runs[service + 1].last else 0,
                ])
        sqlstates = [
            [services[key[0] + 1], sides[key[0] + 1][key[1]], key[2], count] for key, count in self.sqlstates.items()
        ]
        pins = [[cause, count] for cause, count in self.pins.items()]
        timeouts = [[kind, count] for kind, count in self.timeouts.items()]
        failed_logins = [[reason, count] for reason, count in self.failed_logins.items()]
        self.failed_logins.clear()
        self.sqlstates.clear()
        self.pins.clear()
        self.timeouts.clear()
        self.changed = False
        return {"calls": calls, "routes": routes, "runs": runs, "sqlstates": sqlstates, "pins": pins,
                "timeouts": timeouts, "failed_logins": failed_logins}
