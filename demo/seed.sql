-- Some thousand rows, the same every time. Rows 1 to 200 of each service's main table are the workload's; nobody
-- writes the others.

INSERT INTO roles (id, name, description) VALUES
    (1, 'citizen', 'reads what is public'), (2, 'analyst', 'reads everything'), (3, 'author', 'writes policies'),
    (4, 'council', 'approves'), (5, 'auditor', 'reads and checks'), (6, 'operator', 'administers');

INSERT INTO permissions (id, role_id, resource, action)
    SELECT row_number() OVER (ORDER BY roles.id, resource, action), roles.id, resource, action
    FROM roles, unnest(ARRAY['policy', 'principle', 'rule', 'audit']) resource,
        unnest(ARRAY['read', 'write', 'approve', 'administer']) WITH ORDINALITY AS actions (action, level)
    WHERE level <= 1 + roles.id / 2;

INSERT INTO users (id, email, display_name, password_hash, role_id, created_at, updated_at)
    SELECT id, format('user%s@example.org', id), format('users %s at 1', id), md5('password' || id), 1 + id % 6, at, at
    FROM generate_series(1, 1500) id, LATERAL (SELECT timestamptz '2026-01-01' + id * interval '1 minute' AS at) t;

INSERT INTO sessions (id, user_id, address, user_agent, created_at, expires_at)
    SELECT md5('session' || n)::uuid, 1 + n % 1500, inet '10.0.0.0' + n, 'agent/' || n % 7, at, at + interval '12 hours'
    FROM generate_series(1, 3000) n, LATERAL (SELECT timestamptz '2026-02-01' + n * interval '1 minute' AS at) t;

INSERT INTO user_sessions (id, user_id, device, started_at)
    SELECT id, id, 'device ' || id % 9, timestamptz '2026-03-01' + id * interval '1 minute'
    FROM generate_series(1, 500) id;

INSERT INTO hash_chains (name) VALUES
    ('auth_service'), ('constitutional_ai'), ('integrity_service'), ('formal_verification'),
    ('governance_synthesis'), ('policy_governance'), ('executive_council'), ('dgm_service');

INSERT INTO audit_logs (chain, actor_id, session_id, action, entity, entity_id, detail)
    SELECT 'auth_service', 1 + n % 1500, md5('session' || n)::uuid, 'issue', 'users', 1 + n % 1500,
        jsonb_build_object('version', 1)
    FROM generate_series(1, 2000) n ORDER BY n;

INSERT INTO tokens (user_id, user_version, token_hash, audit_log_id, issued_at, expires_at)
    SELECT entity_id, 1, sha256(convert_to('token' || id, 'UTF8')), id, at, at + interval '1 hour'
    FROM audit_logs, LATERAL (SELECT timestamptz '2026-02-01' + id * interval '1 minute' AS at) t ORDER BY id;

INSERT INTO integrity_checks (id, chain, subject, user_id, session_id)
    SELECT id, 'integrity_service', format('integrity_checks %s at 1', id), id, md5('session' || id - 1)::uuid
    FROM generate_series(2, 300) id
    UNION ALL SELECT 1, 'integrity_service', 'integrity_checks 1 at 1', 1, NULL;

INSERT INTO principles (id, slug, statement, weight)
    SELECT id, 'principle-' || id, format('principles %s at 1', id), (id % 1000) / 1000.0
    FROM generate_series(1, 400) id;

INSERT INTO validations (principle_id, principle_version, score)
    SELECT 1 + n % 400, 1, (n % 100) / 100.0 FROM generate_series(1, 800) n;

INSERT INTO compliance_checks (principle_id, user_session_id, passed)
    SELECT 1 + n % 400, 1 + n % 500, n % 11 <> 0 FROM generate_series(1, 800) n;

INSERT INTO verification_rules (id, name, formula)
    SELECT id, 'rule-' || id, format('verification_rules %s at 1', id) FROM generate_series(1, 300) id;

INSERT INTO z3_models (id, rule_id, smt_lib)
    SELECT id, id, format('(declare-const x%s Int) (assert (> x%s 0))', id, id) FROM generate_series(1, 300) id;

INSERT INTO proof_results (rule_id, rule_version, z3_model_id, duration_ms)
    SELECT 1 + n % 300, 1, 1 + n % 300, n % 997 FROM generate_series(1, 600) n;

INSERT INTO policies (id, slug, title, author_id)
    SELECT id, 'policy-' || id, format('policies %s at 1', id), id FROM generate_series(1, 400) id;

INSERT INTO synthesis_results (policy_id, policy_version, confidence)
    SELECT 1 + n % 400, 1, (n % 100) / 100.0 FROM generate_series(1, 800) n;

INSERT INTO llm_interactions (policy_id, user_id, model, request, tokens)
    SELECT 1 + n % 400, 1 + n % 1500, 'model-' || n % 3, jsonb_build_object('prompt', 'draft ' || n), n % 4096
    FROM generate_series(1, 800) n;

INSERT INTO governance_rules (id, policy_id, expression, owner_id)
    SELECT id, id, format('governance_rules %s at 1', id), id FROM generate_series(1, 300) id;

INSERT INTO enforcement_logs (rule_id, rule_version, policy_id)
    SELECT id, 1, id FROM (SELECT 1 + n % 300 AS id FROM generate_series(1, 900) n) t;

INSERT INTO opa_policies (id, policy_id, rego, bundle)
    SELECT id, id, format('package policy_%s default allow = false', id), 'bundle-' || id % 5
    FROM generate_series(1, 300) id;

INSERT INTO council_members (id, user_id, seat, appointed)
    SELECT id, 1000 + id, 'seat-' || id, date '2026-01-01' + id FROM generate_series(1, 7) id;

INSERT INTO decisions (id, policy_id, motion)
    SELECT id, id, format('decisions %s at 1', id) FROM generate_series(1, 300) id;

INSERT INTO voting_records (decision_id, decision_version, member_id, vote)
    SELECT decision.id, 1, member.id, CASE WHEN decision.id % member.id = 0 THEN 'yes' ELSE 'no' END
    FROM decisions decision, council_members member WHERE member.id <= 3;

INSERT INTO improvements (id, slug, hypothesis, proposed_by)
    SELECT id, 'improvement-' || id, format('improvements %s at 1', id), id FROM generate_series(1, 300) id;

INSERT INTO evolution_logs (improvement_id, improvement_version, fitness)
    SELECT 1 + n % 300, 1, (n % 100) / 100.0 FROM generate_series(1, 600) n;

INSERT INTO self_modifications (improvement_id, patch)
    SELECT 1 + n % 300, 'patch ' || n FROM generate_series(1, 300) n;

-- Keys given above have not moved the sequences.
SELECT setval(pg_get_serial_sequence(format('%I', entity), 'id'), 100000)
FROM unnest(ARRAY['users', 'integrity_checks', 'principles', 'verification_rules', 'policies', 'governance_rules',
    'decisions', 'improvements']) entity;
ANALYZE;
