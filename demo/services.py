"""The eight services: what they own, what they read of others, and the SQL they speak.

Every service has a main table, whose rows carry a key, a version that each write raises by one, and a label
that says both; and a table of details that its transactions add to. That is enough to know of every answer
whether it is right (ledger.py), and it makes the columns of an answer the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Driver = Literal["psycopg_async", "psycopg", "asyncpg", "pg8000"]

SHARED_DBNAME = "monolith"
ACTIVE_ROWS = 200  # rows 1 to 200 of each main table are the workload's; nobody writes the others (seed.sql)

# $1 = chain, $2 = actor and entity_id, $3 = entity, $4 = detail as JSON text.
APPEND_AUDIT = """
    INSERT INTO audit_logs (chain, actor_id, action, entity, entity_id, detail)
    VALUES ($1::text, $2::bigint, 'change', $3::text, $2::bigint, $4::text::jsonb)
    RETURNING id, position, encode(prev_hash, 'hex'), encode(hash, 'hex')"""

# How many details of a row name an audit entry that is about something else: never any.
FOREIGN_ENTRIES = """
    (SELECT count(*) FROM {details} detail JOIN audit_logs entry ON entry.id = detail.audit_log_id
    WHERE {on} AND (entry.entity, entry.entity_id) <> ('{main}', main.id))"""


@dataclass(frozen=True, slots=True)
class Service:
    """One service of the demo.

    `label` and `details_version` are columns, `joins` adds own tables to reads, `details_on` ties a detail to
    a row of the main table. `contradictions` counts, over tables of other services, what must never be.
    `add_detail` takes $1 = key, $2 = version, and $3 = audit entry or NULL if the service `writes_audit`.
    """

    name: str
    database: str
    tables: tuple[str, ...]
    external_refs: tuple[str, ...]
    driver: Driver
    main: str
    label: str
    details: str
    details_on: str
    details_version: str
    contradictions: str
    add_detail: str
    joins: str = ""
    also: tuple[str, ...] = ()  # more statements of the same transaction: $1 = key
    connections: int = 2
    pause_ms: float = 120.0  # between two operations of a connection, on average

    @property
    def writes_audit(self) -> bool:
        return "audit_logs" in self.tables + self.external_refs

    def label_of(self, key: int, version: int) -> str:
        return f"{self.main} {key} at {version}"

    @property
    def read_one(self) -> str:
        return f"SELECT id, version, {self.label} FROM {self.main} WHERE id = $1::bigint"

    @property
    def read_many(self) -> str:
        return f"SELECT count(*), sum(version) FROM {self.main} WHERE id BETWEEN $1::bigint AND $2::bigint"

    @property
    def read_joined(self) -> str:
        return f"""
            SELECT main.id, main.version, main.{self.label},
                count(detail.id), coalesce(max({self.details_version}), 0)
            FROM {self.main} main {self.joins} LEFT JOIN {self.details} detail ON {self.details_on}
            WHERE main.id = $1::bigint GROUP BY main.id"""

    @property
    def read_across(self) -> str:
        counted = self.contradictions.format(details=self.details, on=self.details_on, main=self.main)
        return f"""
            SELECT main.id, main.version, main.{self.label}, {counted}
            FROM {self.main} main WHERE main.id = $1::bigint"""

    @property
    def reads(self) -> tuple[str, ...]:
        """All that it asks without locking or writing anything."""
        return self.read_one, self.read_many, self.read_joined, self.read_across

    @property
    def lock(self) -> str:
        return f"""
            SELECT main.id, main.version FROM {self.main} main
            WHERE main.id BETWEEN $1::bigint AND $2::bigint ORDER BY main.id FOR UPDATE"""

    @property
    def count_details(self) -> str:
        return f"""
            SELECT main.id, count(detail.id)
            FROM {self.main} main LEFT JOIN {self.details} detail ON {self.details_on}
            WHERE main.id BETWEEN $1::bigint AND $2::bigint GROUP BY main.id"""

    @property
    def update(self) -> str:
        return f"""
            UPDATE {self.main} SET version = version + 1, {self.label} = $3::text, updated_at = now()
            WHERE id = $1::bigint AND version = $2::integer RETURNING version"""

    @property
    def insert_duplicate(self) -> str:
        """Fails with 23505, unique_violation."""
        return f"INSERT INTO {self.main} SELECT * FROM {self.main} WHERE id = $1::bigint"


SERVICES = (
    Service(
        name="auth_service",
        database="auth_db",
        tables=("users", "roles", "permissions", "sessions", "tokens"),
        external_refs=("audit_logs",),
        driver="psycopg_async",
        main="users",
        label="display_name",
        joins="JOIN roles ON roles.id = main.role_id",
        details="tokens",
        details_on="detail.user_id = main.id",
        details_version="detail.user_version",
        contradictions=FOREIGN_ENTRIES,
        add_detail="""INSERT INTO tokens (user_id, user_version, audit_log_id)
            VALUES ($1::bigint, $2::integer, $3::bigint)""",
        also=("INSERT INTO sessions (user_id, user_agent) VALUES ($1::bigint, 'workload')",),
        connections=10,
        pause_ms=70.0,
    ),
    Service(
        name="constitutional_ai",
        database="constitutional_db",
        tables=("principles", "validations", "compliance_checks"),
        external_refs=("audit_logs", "user_sessions"),
        driver="asyncpg",
        main="principles",
        label="statement",
        details="validations",
        details_on="detail.principle_id = main.id",
        details_version="detail.principle_version",
        contradictions="""(SELECT count(*) FROM compliance_checks
            LEFT JOIN user_sessions ON user_sessions.id = compliance_checks.user_session_id
            WHERE compliance_checks.principle_id = main.id AND user_sessions.id IS NULL)""",
        add_detail="""INSERT INTO validations (principle_id, principle_version, audit_log_id)
            VALUES ($1::bigint, $2::integer, $3::bigint)""",
        also=(
            """INSERT INTO compliance_checks (principle_id, user_session_id, passed)
            VALUES ($1::bigint, 1, true)""",
        ),
    ),
    Service(
        name="integrity_service",
        database="integrity_db",
        tables=("audit_logs", "integrity_checks", "hash_chains"),
        external_refs=("users", "sessions"),
        driver="pg8000",
        main="integrity_checks",
        label="subject",
        joins="JOIN hash_chains ON hash_chains.name = main.chain",
        details="audit_logs",
        details_on="""(detail.entity, detail.entity_id, detail.action)
            = ('integrity_checks', main.id, 'check')""",
        details_version="(detail.detail ->> 'version')::integer",
        contradictions="""(SELECT count(*) FROM sessions JOIN users ON users.id = sessions.user_id
            WHERE sessions.id = main.session_id AND sessions.user_id <> main.user_id)""",
        add_detail="""INSERT INTO audit_logs (chain, entity, entity_id, action, caused_by, detail)
            VALUES ('integrity_service', 'integrity_checks', $1::bigint, 'check', $3::bigint,
                jsonb_build_object('version', $2::integer))""",
    ),
    Service(
        name="formal_verification",
        database="verification_db",
        tables=("verification_rules", "proof_results", "z3_models"),
        external_refs=("audit_logs",),
        driver="psycopg",
        main="verification_rules",
        label="formula",
        joins="JOIN z3_models ON z3_models.rule_id = main.id",
        details="proof_results",
        details_on="detail.rule_id = main.id",
        details_version="detail.rule_version",
        contradictions=FOREIGN_ENTRIES,
        add_detail="""INSERT INTO proof_results (rule_id, rule_version, audit_log_id)
            VALUES ($1::bigint, $2::integer, $3::bigint)""",
    ),
    Service(
        name="governance_synthesis",
        database="synthesis_db",
        tables=("policies", "synthesis_results", "llm_interactions"),
        external_refs=("users", "audit_logs"),
        driver="asyncpg",
        main="policies",
        label="title",
        details="synthesis_results",
        details_on="detail.policy_id = main.id",
        details_version="detail.policy_version",
        contradictions="""(SELECT count(*) FROM users
            WHERE users.id = main.author_id AND users.email <> format('user%s@example.org', users.id))""",
        add_detail="""INSERT INTO synthesis_results (policy_id, policy_version, audit_log_id)
            VALUES ($1::bigint, $2::integer, $3::bigint)""",
        also=(
            """INSERT INTO llm_interactions (policy_id, user_id, model, request)
            SELECT id, author_id, 'model-0', jsonb_build_object('prompt', 'revise') FROM policies
            WHERE id = $1::bigint""",
        ),
    ),
    Service(
        name="policy_governance",
        database="governance_db",
        tables=("governance_rules", "enforcement_logs", "opa_policies"),
        external_refs=("users", "policies"),
        driver="pg8000",
        main="governance_rules",
        label="expression",
        joins="JOIN opa_policies ON opa_policies.policy_id = main.policy_id",
        details="enforcement_logs",
        details_on="detail.rule_id = main.id",
        details_version="detail.rule_version",
        contradictions="""(SELECT count(*) FROM policies JOIN users ON users.id = policies.author_id
            WHERE policies.id = main.policy_id AND policies.author_id <> main.owner_id)""",
        add_detail="""INSERT INTO enforcement_logs (rule_id, rule_version, policy_id)
            SELECT id, $2::integer, policy_id FROM governance_rules WHERE id = $1::bigint""",
    ),
    Service(
        name="executive_council",
        database="council_db",
        tables=("council_members", "decisions", "voting_records"),
        external_refs=("users", "policies"),
        driver="psycopg",
        main="decisions",
        label="motion",
        details="voting_records",
        details_on="detail.decision_id = main.id",
        details_version="detail.decision_version",
        contradictions="""(SELECT count(*) FROM policies JOIN users ON users.id = policies.author_id
            WHERE policies.id = main.policy_id AND policies.slug <> format('policy-%s', main.policy_id))""",
        add_detail="""INSERT INTO voting_records (decision_id, decision_version, member_id)
            VALUES ($1::bigint, $2::integer, 1 + $2::integer % 7)""",
    ),
    Service(
        name="dgm_service",
        database="dgm_db",
        tables=("improvements", "evolution_logs", "self_modifications"),
        external_refs=("audit_logs", "users"),
        driver="asyncpg",
        main="improvements",
        label="hypothesis",
        details="evolution_logs",
        details_on="detail.improvement_id = main.id",
        details_version="detail.improvement_version",
        contradictions=FOREIGN_ENTRIES,
        add_detail="""INSERT INTO evolution_logs (improvement_id, improvement_version, audit_log_id)
            VALUES ($1::bigint, $2::integer, $3::bigint)""",
        also=("INSERT INTO self_modifications (improvement_id, patch) VALUES ($1::bigint, 'evolved')",),
    ),
)
