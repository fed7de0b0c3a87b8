-- +goose Up
-- The routing table by sender and tenant too, and what else a rule can say:
-- credentials, pools of sources, fallback, hold and discard (docs/routes.md).

-- What we authenticate by at a smart host. Only delivery reads the secret.
CREATE TABLE postrider.relay_credentials (
    name       text        PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
    username   text        NOT NULL CHECK (username <> ''),
    secret     text        NOT NULL CHECK (secret <> ''),
    updated_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE postrider.relay_credentials IS 'What postrider authenticates by at smart hosts.';

-- A change of a rule gives it a new version, so that the stored routes of
-- before are no longer found.
CREATE SEQUENCE postrider.rule_versions AS integer;

ALTER TABLE postrider.routing RENAME TO routing_rules;
ALTER TABLE postrider.routing_rules
    ADD COLUMN sender              text     NOT NULL DEFAULT '' CHECK (sender = lower(sender)),
    ADD COLUMN tenant              text     NOT NULL DEFAULT '',
    ADD COLUMN version             integer  NOT NULL DEFAULT 0,
    ADD COLUMN credential          text     REFERENCES postrider.relay_credentials (name),
    ADD COLUMN pool                text     NOT NULL DEFAULT '',
    ADD COLUMN fallback_hosts      text[]   NOT NULL DEFAULT '{}',
    ADD COLUMN fallback_tls        text     NOT NULL DEFAULT '',
    ADD COLUMN fallback_credential text     REFERENCES postrider.relay_credentials (name),
    ADD COLUMN fallback_tries      smallint NOT NULL DEFAULT 0 CHECK (fallback_tries >= 0),
    ADD COLUMN fallback_after      interval NOT NULL DEFAULT '0' CHECK (fallback_after >= '0'),
    ADD COLUMN hold                text     NOT NULL DEFAULT '', -- why; '' does not hold
    ADD COLUMN discard             text     NOT NULL DEFAULT '', -- why; '' does not discard
    ALTER COLUMN hosts SET DEFAULT '{}',
    DROP CONSTRAINT routing_hosts_check,
    DROP CONSTRAINT routing_tls_check,
    DROP CONSTRAINT routing_pkey,
    ADD CONSTRAINT routing_rules_pkey PRIMARY KEY (domain, sender, tenant),
    ADD CONSTRAINT tls_level           CHECK (tls          IN ('', 'none', 'may', 'encrypt', 'verify')),
    ADD CONSTRAINT fallback_tls_level  CHECK (fallback_tls IN ('', 'none', 'may', 'encrypt', 'verify')),
    -- Secrets leave over verified TLS only.
    ADD CONSTRAINT credential_verified CHECK (credential IS NULL OR (tls = 'verify' AND cardinality(hosts) > 0)),
    ADD CONSTRAINT fallback_verified   CHECK (fallback_credential IS NULL OR (fallback_tls = 'verify' AND cardinality(fallback_hosts) > 0)),
    ADD CONSTRAINT fallback_when       CHECK ((cardinality(fallback_hosts) > 0) = (fallback_tries > 0 OR fallback_after > '0')),
    ADD CONSTRAINT discard_alone       CHECK (discard = '' OR (hold = '' AND cardinality(hosts) = 0 AND cardinality(fallback_hosts) = 0)),
    ADD CONSTRAINT says_something      CHECK (cardinality(hosts) > 0 OR cardinality(fallback_hosts) > 0 OR tls <> '' OR pool <> '' OR hold <> '' OR discard <> '');

COMMENT ON TABLE postrider.routing_rules IS 'The routing table. Change it by set_route and remove_route, which have waiting mail routed again.';

-- What a resolver from before this migration can follow.
CREATE VIEW postrider.routing AS
SELECT domain, hosts, tls, updated_at
FROM postrider.routing_rules
WHERE sender = '' AND tenant = '' AND cardinality(hosts) > 0 AND hold = '' AND credential IS NULL
  AND array_to_string(hosts, ' ') !~ '[*+/]';

COMMENT ON VIEW postrider.routing IS 'The plain rules of routing_rules.';

-- +goose StatementBegin
CREATE FUNCTION postrider.rule_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
BEGIN
    NEW.version := nextval('rule_versions');
    NEW.updated_at := now();
    RETURN NEW;
END $$;
-- +goose StatementEnd

CREATE TRIGGER rule_version BEFORE INSERT OR UPDATE ON postrider.routing_rules
    FOR EACH ROW EXECUTE FUNCTION postrider.rule_version();
UPDATE postrider.routing_rules SET updated_at = updated_at;

-- Routes of parked recipients, by the rule that they come from: two recipients
-- of one domain and site may go differently. Table routes is for processes
-- from before this migration; a later one drops it.
CREATE TABLE postrider.parked_routes (
    domain     text        NOT NULL,
    site       text        NOT NULL,
    rule       integer     NOT NULL, -- version of the rule; 0: none
    route      jsonb       NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (domain, site, rule)
);
CREATE INDEX parked_routes_expired ON postrider.parked_routes (expires_at);

-- Both are null, and cost nothing, for nearly all recipients.
ALTER TABLE postrider.recipients
    ADD COLUMN rule     integer, -- of a parked one: the rule of its route
    ADD COLUMN released boolean; -- by an operator: no rule holds it again

-- +goose StatementBegin
-- route_again has what waits, and a rule may concern, looked up again now.
CREATE FUNCTION postrider.route_again(p_domain text, p_sender text, p_tenant text) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    WITH found AS (
        SELECT r.queue_id, r.recipient_no
        FROM recipients r
        JOIN messages m ON m.queue_id = r.queue_id
        WHERE r.next_attempt_at IS NOT NULL
          AND r.state = 'queued'
          AND NOT r.dispatched
          AND (p_domain IN ('*', r.domain) OR left(p_domain, 2) = '*.' AND right(r.domain, length(p_domain) - 1) = substr(p_domain, 2))
          AND (p_sender = ''
               OR p_sender = '<>' AND m.reverse_path = ''
               OR p_sender IN (lower(m.reverse_path), lower(substring(m.reverse_path FROM '[^@]*$')))
               OR left(p_sender, 2) = '*.' AND right(lower(m.reverse_path), length(p_sender) - 1) = substr(p_sender, 2))
          AND p_tenant IN ('', m.tenant)
        ORDER BY r.queue_id, r.recipient_no
        FOR UPDATE OF r),
    changed AS (
        UPDATE recipients r
        SET attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = now()
        FROM found x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- set_route puts a rule into the routing table, or replaces the one for the
-- same domain, sender and tenant. It returns how many waiting recipients have
-- their way looked up again.
CREATE FUNCTION postrider.set_route(
    domain text DEFAULT '*', sender text DEFAULT '', tenant text DEFAULT '',
    hosts text[] DEFAULT '{}', tls text DEFAULT NULL, credential text DEFAULT NULL, pool text DEFAULT '',
    fallback_hosts text[] DEFAULT '{}', fallback_tls text DEFAULT NULL, fallback_credential text DEFAULT NULL,
    fallback_tries integer DEFAULT 0, fallback_after interval DEFAULT '0',
    hold text DEFAULT '', discard text DEFAULT '') RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    INSERT INTO routing_rules AS r (domain, sender, tenant, hosts, tls, credential, pool,
        fallback_hosts, fallback_tls, fallback_credential, fallback_tries, fallback_after, hold, discard)
    VALUES (lower($1), lower($2), $3, $4,
        coalesce($5, CASE WHEN $6 IS NOT NULL THEN 'verify' WHEN cardinality($4) > 0 THEN 'may' ELSE '' END), $6, $7,
        $8, coalesce($9, CASE WHEN $10 IS NOT NULL THEN 'verify' WHEN cardinality($8) > 0 THEN 'may' ELSE '' END), $10, $11, $12, $13, $14)
    ON CONFLICT ON CONSTRAINT routing_rules_pkey DO UPDATE
    SET hosts = excluded.hosts, tls = excluded.tls, credential = excluded.credential, pool = excluded.pool,
        fallback_hosts = excluded.fallback_hosts, fallback_tls = excluded.fallback_tls, fallback_credential = excluded.fallback_credential,
        fallback_tries = excluded.fallback_tries, fallback_after = excluded.fallback_after, hold = excluded.hold, discard = excluded.discard;
    SELECT route_again(lower($1), lower($2), $3)
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- remove_route takes a rule out of the routing table. It returns how many
-- waiting recipients have their way looked up again; null: there is no such
-- rule.
CREATE FUNCTION postrider.remove_route(domain text DEFAULT '*', sender text DEFAULT '', tenant text DEFAULT '') RETURNS bigint
LANGUAGE plpgsql SET search_path = postrider, pg_temp AS $$
BEGIN
    DELETE FROM routing_rules r WHERE r.domain = lower($1) AND r.sender = lower($2) AND r.tenant = $3;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN route_again(lower($1), lower($2), $3);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- reroute sends a recipient domain by smart hosts from now on; what else a
-- rule for it says stays.
CREATE OR REPLACE FUNCTION postrider.reroute(domain text, hosts text[], tls text DEFAULT 'may') RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    INSERT INTO routing_rules (domain, hosts, tls) VALUES (lower($1), $2, $3)
    ON CONFLICT ON CONSTRAINT routing_rules_pkey DO UPDATE SET hosts = excluded.hosts, tls = excluded.tls;
    SELECT route_again(lower($1), '', '')
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION postrider.release(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                             site text DEFAULT NULL, tenant text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'queued', rung = false, released = true, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, '{held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT ON postrider.routing TO postrider_resolver, postrider_scheduler, postrider_reader, postrider_operator;
    GRANT INSERT, UPDATE, DELETE ON postrider.routing TO postrider_operator;
    GRANT SELECT, INSERT, UPDATE ON postrider.parked_routes TO postrider_resolver, postrider_delivery;
    GRANT SELECT, DELETE ON postrider.parked_routes TO postrider_scheduler;
    GRANT SELECT ON postrider.parked_routes TO postrider_reader, postrider_operator;
    GRANT SELECT ON postrider.relay_credentials TO postrider_delivery;
    GRANT SELECT (name, username, updated_at) ON postrider.relay_credentials TO postrider_reader, postrider_operator;
    GRANT INSERT, UPDATE, DELETE ON postrider.relay_credentials TO postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
