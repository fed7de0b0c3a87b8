-- +goose Up
-- Where mail leaves from (docs/sources.md). Delivery workers read these tables
-- anew every second.

CREATE TABLE postrider.sources (
    source          text        PRIMARY KEY CHECK (source ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    ipv4            inet        CHECK (family(ipv4) = 4 AND masklen(ipv4) = 32),
    ipv6            inet        CHECK (family(ipv6) = 6 AND masklen(ipv6) = 128),
    hello           text        NOT NULL DEFAULT '' CHECK (hello ~ '^([A-Za-z0-9-]+([.][A-Za-z0-9-]+)+)?$'), -- in EHLO; '': POSTRIDER_HOSTNAME
    egress          text        NOT NULL DEFAULT '' CHECK (egress ~ '^((socks5|haproxy)://[^[:space:]/]+:[0-9]+)?$'), -- '': the worker that has the address
    warm_up         text        NOT NULL DEFAULT '', -- a schedule of postrider.warm_ups; '': as much as shaping allows
    warm_up_from    date,                            -- its day 1; null: it has not begun, and the source is not used
    suspended_until timestamptz,
    suspend_reason  text        NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT has_an_address       CHECK (ipv4 IS NOT NULL OR ipv6 IS NOT NULL),
    CONSTRAINT reason_of_suspension CHECK (suspended_until IS NOT NULL OR suspend_reason = '')
);

COMMENT ON TABLE postrider.sources IS 'Addresses that mail leaves from.';

CREATE TABLE postrider.pools (
    pool   text    NOT NULL CHECK (pool ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    source text    NOT NULL REFERENCES postrider.sources ON UPDATE CASCADE,
    weight integer NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000),
    PRIMARY KEY (pool, source)
);
CREATE INDEX pools_of_source ON postrider.pools (source);

COMMENT ON TABLE postrider.pools IS
    'Sources that share some of the mail by weight. Mail without a pool of its own leaves from the pool default, if there is one.';

ALTER TABLE postrider.tenants ADD COLUMN pool text NOT NULL DEFAULT ''; -- that its mail leaves from, unless its route names one

-- Messages per day of a new source, by the day of its life. A day that is not
-- there is like the one before it; behind the last day there is no bound.
CREATE TABLE postrider.warm_ups (
    warm_up  text    NOT NULL CHECK (warm_up ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    provider text    NOT NULL DEFAULT '', -- a provider of shaping, or '': each site that has no line of its own
    day      integer NOT NULL CHECK (day BETWEEN 1 AND 365),
    messages integer NOT NULL CHECK (messages BETWEEN 1 AND 1000000),
    PRIMARY KEY (warm_up, provider, day)
);

COMMENT ON TABLE postrider.warm_ups IS 'How many messages a new source may send to one provider in 24 hours.';

INSERT INTO postrider.warm_ups (warm_up, day, messages)
SELECT 'default', t.day, t.messages
FROM (VALUES (1, 50), (2, 100), (3, 200), (4, 400), (5, 800), (7, 1500), (9, 3000), (11, 6000), (14, 12000), (17, 25000),
             (20, 50000), (24, 100000), (28, 200000)) AS t (day, messages);

-- A source that a provider blocks is not used for that site until then.
CREATE TABLE postrider.source_blocks (
    source        text        NOT NULL REFERENCES postrider.sources ON UPDATE CASCADE ON DELETE CASCADE,
    site          text        NOT NULL,
    blocked_at    timestamptz NOT NULL DEFAULT now(),
    blocked_until timestamptz NOT NULL,
    reason        text        NOT NULL,
    PRIMARY KEY (source, site)
);

COMMENT ON TABLE postrider.source_blocks IS
    'Sources that a site does not want at the moment, by its own words. Delete a row to try again at once.';

-- What other workers may send through a worker.
ALTER TABLE postrider.workers
    ADD COLUMN addresses inet[] NOT NULL DEFAULT '{}', -- of sources, that it has
    ADD COLUMN egress    text   NOT NULL DEFAULT '';   -- host:port of its SOCKS5 listener

CREATE TABLE postrider.egress_keys (
    worker_id integer PRIMARY KEY,
    key       text    NOT NULL
);

COMMENT ON TABLE postrider.egress_keys IS 'What a worker must say to the SOCKS5 listener of another one. For delivery only.';

ALTER TABLE postrider.attempts ADD COLUMN source text NOT NULL DEFAULT '';

CREATE OR REPLACE VIEW postrider.history AS
SELECT a.queue_id,
       n.recipient_no,
       r.forward_path,
       a.attempt,
       a.action,
       a.phase,
       a.status,
       a.reply_code,
       a.reply,
       a.host,
       a.remote,
       a.local,
       a.tls,
       a.site,
       a.started_at,
       a.duration,
       a.next_attempt_at,
       a.uncertain,
       a.untried,
       a.worker_id,
       split_part(m.traceparent, '-', 2) AS trace_id,
       a.source
FROM postrider.attempts a
CROSS JOIN LATERAL unnest(a.recipient_nos) AS n (recipient_no)
JOIN postrider.recipients r ON r.queue_id = a.queue_id AND r.recipient_no = n.recipient_no
JOIN postrider.messages m ON m.queue_id = a.queue_id;

CREATE VIEW postrider.source_health AS
SELECT s.source,
       s.ipv4,
       s.ipv6,
       s.egress <> ''                                                      AS by_proxy,
       (SELECT array_agg(w.worker_id ORDER BY w.worker_id) FROM postrider.workers w
        WHERE w.ended_at IS NULL AND w.lease_until > now()
          AND (s.ipv4 = ANY (w.addresses) OR s.ipv6 = ANY (w.addresses)))  AS workers,
       CASE WHEN s.suspended_until > now() THEN s.suspended_until END      AS suspended_until,
       CASE WHEN s.suspended_until > now() THEN s.suspend_reason ELSE '' END AS suspend_reason,
       s.warm_up,
       CASE WHEN s.warm_up <> '' THEN (now() AT TIME ZONE 'UTC')::date - s.warm_up_from + 1 END AS warm_up_day,
       (SELECT count(*) FROM postrider.source_blocks b WHERE b.source = s.source AND b.blocked_until > now()) AS blocked_at_sites
FROM postrider.sources s;

COMMENT ON VIEW postrider.source_health IS 'Which workers have the address of a source, and what holds it back.';

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT ON postrider.sources, postrider.pools, postrider.warm_ups, postrider.tenants TO postrider_delivery;
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.source_blocks, postrider.egress_keys TO postrider_delivery;
    GRANT SELECT, DELETE ON postrider.egress_keys, postrider.source_blocks TO postrider_scheduler;
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.sources, postrider.pools, postrider.warm_ups, postrider.source_blocks TO postrider_operator;
    GRANT SELECT ON postrider.pools, postrider.warm_ups, postrider.source_blocks, postrider.source_health TO postrider_reader;
    GRANT SELECT ON postrider.source_health TO postrider_operator;
    GRANT SELECT (source, ipv4, ipv6, hello, warm_up, warm_up_from, suspended_until, suspend_reason, created_at)
        ON postrider.sources TO postrider_reader; -- egress may have a password
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles are not there: %', SQLERRM;
END $$;
-- +goose StatementEnd
