-- +goose Up
-- Versions of the shaping file, the sites of its domains, and measures: what
-- automation and operators have ordered for a while. All processes read them
-- every second.

CREATE TABLE postrider.shaping_versions (
    version    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    text       text        NOT NULL CHECK (octet_length(text) <= 4194304),
    note       text        NOT NULL DEFAULT '',
    applied_by text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE postrider.shaping_versions IS 'The shaping files that operators have applied. The last one counts, over presets and POSTRIDER_SHAPING_FILE.';

-- A block of the file holds for all domains that share the mail exchangers of
-- its domain: their site, as resolvers last saw it.
CREATE TABLE postrider.shaping_sites (
    domain     text        PRIMARY KEY,
    site       text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE postrider.measures (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text        NOT NULL CHECK (kind IN ('suspend', 'bounce', 'set')),
    site         text        NOT NULL DEFAULT '',
    source       text        NOT NULL DEFAULT '',
    tenant       text        NOT NULL DEFAULT '',
    campaign     text        NOT NULL DEFAULT '',
    domain       text        NOT NULL DEFAULT '',
    key          text        NOT NULL DEFAULT '',
    value        text        NOT NULL DEFAULT '',
    until        timestamptz NOT NULL,
    reason       text        NOT NULL,
    ordered_by   text        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    cancelled_at timestamptz,
    cancelled_by text        NOT NULL DEFAULT '',
    CONSTRAINT covers_something CHECK (site || source || tenant || campaign || domain <> ''),
    CONSTRAINT a_domain_has_values CHECK (domain = '' OR kind = 'set'), -- hold() keeps the mail of a domain waiting
    CONSTRAINT sets_a_key CHECK ((kind = 'set') = (key <> '') AND (kind = 'set') = (value <> ''))
);

COMMENT ON TABLE postrider.measures IS 'Suspensions, bounces and values that hold for a while: by rules of automation, or by operators.';

-- One measure of a kind for the same mail at a time: it is prolonged.
CREATE UNIQUE INDEX measures_open ON postrider.measures (kind, site, source, tenant, campaign, domain, key) WHERE cancelled_at IS NULL;
CREATE INDEX measures_until ON postrider.measures (until);

CREATE VIEW postrider.suspensions AS
SELECT id, kind, site, source, tenant, campaign, domain, key, value, until, reason, ordered_by, created_at
FROM postrider.measures
WHERE cancelled_at IS NULL AND until > now()
UNION ALL
SELECT NULL, 'suspend', site, '', '', '', '', '', '', suspended_until, suspend_reason, 'suspend_site', NULL
FROM postrider.sites
WHERE suspended_until > now();

COMMENT ON VIEW postrider.suspensions IS 'Every measure that holds now, and sites suspended by suspend_site.';

-- +goose StatementBegin
-- order_measure begins a measure, or prolongs the one that covers the same
-- mail: it never shortens one. What ended a month ago is forgotten.
CREATE FUNCTION postrider.order_measure(kind text, duration interval, reason text, ordered_by text,
                                        site text DEFAULT '', source text DEFAULT '', tenant text DEFAULT '', campaign text DEFAULT '',
                                        domain text DEFAULT '', key text DEFAULT '', value text DEFAULT '') RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    DELETE FROM measures m WHERE m.until < now() - interval '30 days';
    UPDATE measures m SET cancelled_at = m.until, cancelled_by = 'time'
    WHERE m.cancelled_at IS NULL AND m.until <= now()
      AND (m.kind, m.site, m.source, m.tenant, m.campaign, m.domain, m.key) = ($1, $5, $6, $7, $8, lower($9), $10);
    INSERT INTO measures (kind, until, reason, ordered_by, site, source, tenant, campaign, domain, key, value)
    VALUES ($1, now() + $2, $3, $4, $5, $6, $7, $8, lower($9), $10, $11)
    ON CONFLICT (kind, site, source, tenant, campaign, domain, key) WHERE cancelled_at IS NULL
    DO UPDATE SET until = greatest(measures.until, excluded.until), value = excluded.value,
                  reason = excluded.reason, ordered_by = excluded.ordered_by
    RETURNING id
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- wake_suspended has what waits for the end of a suspension that was
-- cancelled looked at again. Each delivery worker calls it once it knows: what
-- it let wait before that must not wait any longer.
CREATE FUNCTION postrider.wake_suspended(id bigint) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    WITH woken AS (
        UPDATE recipients r SET next_attempt_at = now() + interval '1 second', rung = false
        FROM messages g, measures m
        WHERE m.id = $1 AND m.cancelled_at IS NOT NULL AND m.kind = 'suspend' AND m.tenant || m.campaign <> ''
          AND g.queue_id = r.queue_id
          AND r.state = 'queued' AND r.worker_id IS NULL AND r.slot IS NULL AND r.next_attempt_at > now() + interval '1 second'
          AND (m.tenant = '' OR g.tenant = m.tenant)
          AND (m.campaign = '' OR g.campaign = m.campaign)
        RETURNING 1)
    SELECT count(*) FROM woken
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- cancel_measure ends a measure and has what waited for its end tried. It
-- returns whether it was in force.
CREATE FUNCTION postrider.cancel_measure(id bigint, cancelled_by text) RETURNS boolean
LANGUAGE plpgsql SET search_path = postrider, pg_temp AS $$
BEGIN
    UPDATE measures x SET cancelled_at = now(), cancelled_by = $2
    WHERE x.id = $1 AND x.cancelled_at IS NULL AND x.until > now();
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM wake_suspended($1);
    RETURN true;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT ON postrider.shaping_versions, postrider.shaping_sites, postrider.measures
        TO postrider_ingress, postrider_resolver, postrider_delivery, postrider_scheduler, postrider_reader, postrider_operator;
    GRANT SELECT ON postrider.suspensions TO postrider_reader, postrider_operator;
    GRANT INSERT, UPDATE ON postrider.shaping_sites TO postrider_resolver;
    GRANT INSERT, UPDATE, DELETE ON postrider.measures TO postrider_delivery, postrider_operator;
    GRANT INSERT ON postrider.shaping_versions TO postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
