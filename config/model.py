"""Says what a configuration is: one frozen model for each section of the file.

Numbers carry their unit in the name. What a single value may be is said in `config.values`; relations between
sections are `config.check`'s. The attribute docstrings become the descriptions in `config/schema.json`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pgshunt.config.secret import REVEAL, Secret
from pgshunt.config.values import (
    WORKERS_MAX,
    BindPort,
    Count,
    DatabaseName,
    Host,
    Identifier,
    Milliseconds,
    OwnedTables,
    Percent,
    Port,
    ServiceName,
    ShadowWrites,
    Table,
    Timeout,
    UserName,
    Verifier,
    Version,
    is_identifier,
)


class Fault(NamedTuple):
    """What is wrong between values of one section, each of which is right by itself."""

    message: str
    remedy: str
    fields: tuple[str, ...]
    """The values it follows from."""


class Section(BaseModel):
    """Every section is immutable, knows all its keys, and never repeats its input in an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    def faults(self) -> Iterator[Fault]:
        """Told by `check` and not by validation, which would hide all other relations of the section."""
        return iter(())


class SecretSection(Section):
    """A section with one secret: inline, in a file, or in an environment variable; at most one of them."""

    secret_name: ClassVar[str]

    def faults(self) -> Iterator[Fault]:
        given = self.given_secrets()
        if len(given) > 1:
            yield Fault(f"has {' and '.join(given)}", "keep one of them", given)

    def given_secrets(self) -> tuple[str, ...]:
        """Those of the three fields that say something; more than one is a fault."""
        return tuple(name for name in self.secret_fields() if getattr(self, name) is not None)

    @classmethod
    def secret_fields(cls) -> tuple[str, str, str]:
        """Names of the three fields: the secret, the file that holds it, the variable that holds it."""
        return cls.secret_name, f"{cls.secret_name}_file", f"{cls.secret_name}_env"

    def with_secret(self, secret: Secret) -> Self:
        """The same section with its secret inline, whatever its source was."""
        inline, file, env = self.secret_fields()
        return self.model_copy(update={inline: secret, file: None, env: None})


class Address(Section):
    """Where one PostgreSQL server listens."""

    host: Host
    port: Port = 5432
    weight: int = Field(default=1, ge=0, le=1000)
    """Share of its database's reads, among the weights of all servers of that database. 0: read only when no
    other of them can be; of the owner's primary that is still the place where all else ends up."""


class Tls(Section):
    """The files and the versions of one side's TLS. Paths are relative to this configuration's folder."""

    certificate_file: Path | None = None
    """PEM: the own certificate, and the intermediate ones behind it."""
    key_file: Path | None = None
    """PEM: the certificate's private key, without a passphrase."""
    ca_file: Path | None = None
    """PEM: the authorities that may have signed the other side's certificate."""
    crl_file: Path | None = None
    """PEM: the certificates that these authorities have revoked, a list by each of a chain's authorities."""
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest version of TLS that is spoken."""

    def faults(self) -> Iterator[Fault]:
        if (self.certificate_file is None) != (self.key_file is None):
            message = "has only one of certificate_file and key_file"
            yield Fault(message, "name both, or none", ("certificate_file", "key_file"))


class ServerTls(Tls):
    """How connections to a database's servers are encrypted; the modes are libpq's sslmode."""

    mode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    """`prefer` takes what the server offers; `require` also verifies if there is a ca_file. The verify modes
    take the system's authorities if there is none."""
    channel_binding: Literal["disable", "prefer", "require"] = "prefer"
    """Whether a SCRAM login is bound to the server's certificate, as libpq's channel_binding."""

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        for name in ("certificate_file", "ca_file", "crl_file"):
            if self.mode in ("disable", "prefer") and getattr(self, name) is not None:
                message = f"{self.mode} makes no use of {name}"
                yield Fault(message, "write require, or a verify mode", ("mode", name))
        if self.mode == "require" and self.crl_file is not None and self.ca_file is None:
            message = "require verifies nothing without authorities, nor looks into crl_file"
            yield Fault(message, "add ca_file, or write a verify mode", ("mode", "crl_file", "ca_file"))


class ListenTls(Tls):
    """How clients' connections are encrypted; the modes are PgBouncer's client_tls_sslmode."""

    mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "disable"
    """`allow` and `prefer`: for clients that ask for it. From `require` on there is no login without.
    `verify-ca` and `verify-full`: nor without a certificate that `ca_file` has signed."""

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        if self.mode != "disable" and self.certificate_file is None and self.key_file is None:
            files = ("certificate_file", "key_file")
            yield Fault(f"{self.mode} needs a certificate", f"add {' and '.join(files)}", ("mode", *files))
        if self.mode.startswith("verify") and self.ca_file is None:
            yield Fault(f"{self.mode} has nothing to verify clients by", "add ca_file", ("mode", "ca_file"))
        if self.crl_file is not None and self.ca_file is None:
            yield Fault("has a crl_file and no authorities", "add ca_file", ("crl_file", "ca_file"))

    @property
    def is_required(self) -> bool:
        return self.mode in ("require", "verify-ca", "verify-full")


class Database(Section):
    """One logical PostgreSQL database: a primary and any number of replicas."""

    dbname: Identifier = ""
    """Name of the database on its servers; by default its key in `databases`."""
    primary: Address
    """The only server of this database that takes writes."""
    replicas: tuple[Address, ...] = ()
    """Physical standbys of the primary: they serve reads."""
    max_connections: Count = 100
    """Connections that one server of this database accepts (PostgreSQL's max_connections, 100 by default)."""
    tls: ServerTls = ServerTls()


class Shared(Database):
    """The database that all services use today."""

    dbname: Identifier
    """Name of the database on its servers."""


class Listen(Section):
    """Where clients connect, and how many may."""

    host: Host = "127.0.0.1"
    port: BindPort = 6432
    workers: int = Field(default=0, ge=0, le=WORKERS_MAX)
    """Worker processes; 0 means one for each core."""
    max_client_conn: Count = 5000
    """Clients at once, over all workers. The lower of this and `pools.max_client_conn` holds."""
    login_timeout_ms: Milliseconds = 15_000
    """Time a client has to finish its login."""
    tls: ListenTls = ListenTls()


class User(SecretSection):
    """A login role of the services; the same name and password serve towards the servers."""

    secret_name = "password"

    name: Identifier
    password: Secret | None = None
    password_file: Path | None = None
    """File whose first line is the password; relative to this configuration's folder."""
    password_env: str | None = None
    """Environment variable that holds the password."""
    verifier: Verifier | None = None
    """Instead of the password, as in pg_authid. The client's own proof then serves towards the servers."""

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        given = self.given_secrets()
        if self.verifier is not None and given:
            yield Fault("has a password and a verifier", "keep one of them", ("verifier", *given))


class Lookup(SecretSection):
    """Asks the shared database for the verifiers of users that are not listed, who keep their passwords."""

    secret_name = "password"

    user: Identifier
    """A role that may read them."""
    password: Secret | None = None
    password_file: Path | None = None
    """File whose first line is the password; relative to this configuration's folder."""
    password_env: str | None = None
    """Environment variable that holds the password."""
    query: str = (
        "SELECT CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END"
        " FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin"
    )
    """Finds the verifier of user $1, with search_path pg_catalog. No row, or NULL: there is no login."""


class Auth(Section):
    """How clients prove who they are."""

    method: Literal["scram-sha-256", "cert", "trust"] = "scram-sha-256"
    """`cert`: by the client certificate, whose common name is the user's."""
    trust_remote: bool = False
    """Allows `trust` on an address that other machines can reach."""
    users: tuple[User, ...] = ()
    users_file: Path | None = None
    """More users, as PgBouncer's auth_file lists them: `"name" "password or verifier"`, one in a line."""
    lookup: Lookup | None = None
    certificates: dict[str, tuple[Identifier, ...]] = {}
    """Users that a common name stands for under `cert`, where it is not just the one of that name."""
    failure_delay_ms: int = Field(default=250, ge=0, le=5000)
    """Time after which a failed login is told so; nobody else waits for it."""
    md5_to_servers: bool = False
    """Gives a server that knows no better an MD5 proof of a configured password."""


class Service(Section):
    """Owns tables, and has a database of its own to move to."""

    database: str
    """Key in `databases`."""
    tables: OwnedTables
    """Tables this service owns, by name or by pattern: `auth_*` for those that begin so, `billing.*` for all
    of a schema. Without a schema they are in `public`. A table that a service names is that service's,
    whatever patterns match it; its partitions go with it."""
    external_refs: tuple[Table, ...] = ()
    """Tables of others that this service reads."""
    users: tuple[Identifier, ...] = ()
    """Login roles this service uses: sizes the pools; no statement is routed by them."""
    shadow_writes: ShadowWrites = "off"
    """`validate` also runs a share of the write transactions at the service's own database, rolled back."""
    shadow_percent: Percent = 100.0
    """Share of the write transactions that `validate` runs."""
    ddl: Literal["refuse", "owner", "both"] = "refuse"
    """What becomes of statements that change the definition of this service's tables while it moves: `refuse`
    answers them with an error, `owner` runs them in the shared database alone, `both` adds columns in the
    shared database and in the service's own one, and refuses everything else."""
    reads: int = Field(default=0, ge=0, le=100)
    """Percent of the reads that go to the service's own database once it is in stage `reading`."""
    causality: Literal["session", "service"] = "session"
    """What a read of this service's tables must not precede: the writes of its own session, or (`service`)
    those of any session that comes through this pgshunt."""


class ServerConnections(Section):
    """How many server connections pgshunt may hold in all."""

    total: Count = 1200
    reserved: int = Field(default=200, ge=0)
    """Kept free for others: superusers, jobs, services that do not go through pgshunt yet."""
    monitoring: int = Field(default=50, ge=0)
    """Kept for heartbeats, lanes and probes."""

    @property
    def available(self) -> int:
        """What is left for the services' statements; `config.check` makes sure that it is above 0."""
        return self.total - self.reserved - self.monitoring


class PoolUser(Section):
    """What one user may have, where that differs from the rest."""

    max_client_conn: Count | None = None
    """Clients of this user at once, over all workers; without it only the limit for all users holds."""
    pool_size: Count | None = None
    """Links of this user at one endpoint, in place of `default_pool_size`."""


class Pools(Section):
    """How links to the servers are shared, and how long they may be held."""

    mode: Literal["transaction"] = "transaction"
    default_pool_size: Count = 20
    """Links of one pool, which belongs to one endpoint and one user."""
    max_client_conn: Count = 5000
    """Clients at once, over all workers, under the word PgBouncer's users know."""
    query_wait_timeout_ms: Milliseconds = 120_000
    """Longest wait for a link; then the client gets an error."""
    query_timeout_ms: Timeout = 0
    """Longest time a statement may take. Past it the server is asked to cancel it; 0: no limit."""
    idle_transaction_timeout_ms: Timeout = 0
    """Longest time a client may keep a link without asking anything, as in a transaction it has left open;
    then its connection is closed. 0: no limit."""
    client_idle_timeout_ms: Timeout = 0
    """Longest time a client may ask nothing outside of a transaction; then its connection is closed.
    0: no limit."""
    users: dict[UserName, PoolUser] = {}
    """Limits of single users, by name."""
    server_connections: ServerConnections = ServerConnections()

    @property
    def limited_users(self) -> dict[str, int]:
        """Users whose clients are counted, with how many of them there may be."""
        return {
            name: user.max_client_conn
            for name, user in self.users.items()
            if user.max_client_conn is not None
        }


class Reads(Section):
    """Which copies and replicas may answer reads."""

    lag_ms_max: int = Field(default=1000, ge=500)
    """How far one of them may be behind; further, it takes no reads until it has kept up for a while."""


class Rollback(Section):
    """Thresholds past which the guard takes a service's reads back to the shared database."""

    error_rate_percent_max: Percent = 3.0
    latency_ms_max: Milliseconds = 1000
    consistency_percent_min: Percent = 99.9


class Control(SecretSection):
    """The role with which the supervisor logs in to every database: lanes, heartbeats, verification."""

    secret_name = "password"

    user: Identifier
    password: Secret | None = None
    password_file: Path | None = None
    """File whose first line is the password; relative to this configuration's folder."""
    password_env: str | None = None
    """Environment variable that holds the password."""


class Admin(SecretSection):
    """The HTTP API and dashboard of the operators."""

    secret_name = "token"

    host: Host = "127.0.0.1"
    port: BindPort = 6433
    token: Secret | None = None
    token_file: Path | None = None
    """File whose first line is the bearer token; relative to this configuration's folder."""
    token_env: str | None = None
    """Environment variable that holds the bearer token."""


class State(Section):
    """Where stages, weights and trips of the guard outlive the process."""

    path: Path = Path("pgshunt.state.json")
    """Relative to this configuration's folder."""


def _default_dbnames(databases: object) -> object:
    """A database that does not say its name on the servers is called there as it is here."""
    if not isinstance(databases, dict):
        return databases
    return {
        name: {"dbname": name, **database} if isinstance(database, dict) and is_identifier(name) else database
        for name, database in databases.items()
    }


class Config(Section):
    """The whole configuration of one pgshunt."""

    version: Version
    """Version of this format."""
    shared: Shared
    control: Control
    databases: Annotated[dict[DatabaseName, Database], BeforeValidator(_default_dbnames)] = {}
    """The services' own databases, by name."""
    services: dict[ServiceName, Service] = {}
    listen: Listen = Listen()
    auth: Auth = Auth()
    pools: Pools = Pools()
    reads: Reads = Reads()
    rollback: Rollback = Rollback()
    admin: Admin = Admin()
    state: State = State()

    @property
    def max_client_conn(self) -> int:
        """Clients at once, over all workers."""
        return min(self.listen.max_client_conn, self.pools.max_client_conn)

    def dump_revealed(self) -> dict[str, Any]:
        """JSON values with the secrets in clear: for `Config.model_validate` behind a private channel."""
        return self.model_dump(mode="json", exclude_none=True, context=REVEAL)
