-- +goose Up
-- What operators read and call. CLI, API and console use the same views and
-- functions.

CREATE VIEW postrider.queue AS
SELECT r.queue_id,
       r.recipient_no,
       r.state,
       CASE WHEN r.state = 'held'            THEN 'held'
            WHEN r.dispatched                THEN 'in transaction'
            WHEN r.worker_id IS NOT NULL     THEN 'claimed'
            WHEN r.slot IS NOT NULL          THEN 'parked'
            ELSE 'waiting' END                       AS place,
       m.reverse_path,
       r.forward_path,
       r.domain,
       r.site,
       m.tenant,
       r.priority,
       m.size_bytes,
       m.accepted_at,
       now() - m.accepted_at                         AS age,
       r.tries,
       CASE WHEN r.worker_id IS NULL AND r.slot IS NULL AND r.state = 'queued'
            THEN r.next_attempt_at END               AS next_attempt_at,
       r.expires_at,
       r.worker_id,
       last.status                                   AS last_status,
       last.reply                                    AS last_reply,
       last.host                                     AS last_host,
       split_part(m.traceparent, '-', 2)             AS trace_id
FROM postrider.recipients r
JOIN postrider.messages m USING (queue_id)
LEFT JOIN LATERAL (
    SELECT a.status, a.reply, a.host
    FROM postrider.attempts a
    WHERE a.queue_id = r.queue_id AND r.recipient_no = ANY (a.recipient_nos)
    ORDER BY a.started_at DESC
    LIMIT 1
) last ON true
WHERE r.next_attempt_at IS NOT NULL;

COMMENT ON VIEW postrider.queue IS 'Every recipient that has no final state yet, with its last reply.';

CREATE VIEW postrider.queue_by_site AS
SELECT coalesce(r.site, '')                                                              AS site,
       count(*)                                                                          AS recipients,
       count(*) FILTER (WHERE r.state = 'held')                                          AS held,
       count(*) FILTER (WHERE r.state = 'queued' AND r.worker_id IS NULL AND r.slot IS NULL) AS waiting,
       count(*) FILTER (WHERE r.slot IS NOT NULL)                                        AS parked,
       count(*) FILTER (WHERE r.worker_id IS NOT NULL)                                   AS claimed,
       min(m.accepted_at)                                                                AS oldest_accepted_at,
       s.suspended_until,
       s.suspend_reason
FROM postrider.recipients r
JOIN postrider.messages m USING (queue_id)
LEFT JOIN postrider.sites s ON s.site = r.site AND s.suspended_until > now()
WHERE r.next_attempt_at IS NOT NULL
GROUP BY coalesce(r.site, ''), s.suspended_until, s.suspend_reason;

COMMENT ON VIEW postrider.queue_by_site IS 'The queue summed by site; site is empty before the first look-up.';

CREATE VIEW postrider.accounting AS
SELECT m.accepted, r.queued, r.relayed, r.failed, r.expired, r.cancelled,
       m.accepted - r.queued - r.relayed - r.failed - r.expired - r.cancelled AS unaccounted
FROM (SELECT coalesce(sum(recipient_count), 0)::bigint AS accepted FROM postrider.messages) m,
     (SELECT count(*) FILTER (WHERE state IN ('queued', 'held')) AS queued,
             count(*) FILTER (WHERE state = 'relayed')           AS relayed,
             count(*) FILTER (WHERE state = 'failed')            AS failed,
             count(*) FILTER (WHERE state = 'expired')           AS expired,
             count(*) FILTER (WHERE state = 'cancelled')         AS cancelled
      FROM postrider.recipients) r;

COMMENT ON VIEW postrider.accounting IS
    'Recipients of the retained history: accepted = queued + final; unaccounted is 0. Accepted comes from messages, the rest from recipients.';

CREATE VIEW postrider.history AS
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
       split_part(m.traceparent, '-', 2) AS trace_id
FROM postrider.attempts a
CROSS JOIN LATERAL unnest(a.recipient_nos) AS n (recipient_no)
JOIN postrider.recipients r ON r.queue_id = a.queue_id AND r.recipient_no = n.recipient_no
JOIN postrider.messages m ON m.queue_id = a.queue_id;

COMMENT ON VIEW postrider.history IS 'What every attempt said about every recipient.';

-- +goose StatementBegin
-- require_filter refuses a call without any filter: it would mean the whole
-- queue.
CREATE FUNCTION postrider.require_filter(VARIADIC filters text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(array_remove(filters, NULL)) = 0 THEN
        RAISE EXCEPTION 'give at least one of queue_id, domain, reverse_path, site, tenant'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- matching locks and returns the recipients that are in one of the states,
-- are in no transaction with a remote host, and meet every filter given.
CREATE FUNCTION postrider.matching(p_queue_id uuid, p_domain text, p_reverse_path text, p_site text, p_tenant text,
                                   p_states postrider.recipient_state[])
RETURNS TABLE (queue_id uuid, recipient_no integer)
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT r.queue_id, r.recipient_no
    FROM recipients r
    JOIN messages m ON m.queue_id = r.queue_id
    WHERE r.next_attempt_at IS NOT NULL
      AND r.state = ANY (p_states)
      AND NOT r.dispatched
      AND (p_queue_id IS NULL OR r.queue_id = p_queue_id)
      AND (p_domain IS NULL OR r.domain = lower(p_domain))
      AND (p_site IS NULL OR r.site = p_site)
      AND (p_reverse_path IS NULL OR m.reverse_path = p_reverse_path)
      AND (p_tenant IS NULL OR m.tenant = p_tenant)
    ORDER BY r.queue_id, r.recipient_no
    FOR UPDATE OF r
$$;
-- +goose StatementEnd

-- Each function below returns the exact number of recipients it changed. A
-- claimed recipient is taken from its worker by the fence: the worker looks
-- at the row again right before each transaction, so the change holds at
-- once. A recipient in a transaction with the remote host is left alone.

-- +goose StatementBegin
CREATE FUNCTION postrider.hold(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                               site text DEFAULT NULL, tenant text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'held', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = r.expires_at
        FROM matching($1, $2, $3, $4, $5, '{queued}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.release(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                  site text DEFAULT NULL, tenant text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'queued', rung = false, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, '{held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- retry_now makes recipients due at once and has their route looked up again.
CREATE FUNCTION postrider.retry_now(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                    site text DEFAULT NULL, tenant text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5);
    WITH changed AS (
        UPDATE recipients r
        SET attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, '{queued}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- fail ends recipients as if the next hop had refused them; their senders get
-- a DSN with the reason.
CREATE FUNCTION postrider.fail(reason text, queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                               site text DEFAULT NULL, tenant text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($2::text, $3, $4, $5, $6);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'failed', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false,
            next_attempt_at = NULL, final_at = now()
        FROM matching($2, $3, $4, $5, $6, '{queued,held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING r.queue_id, r.recipient_no, r.attempt),
    logged AS (
        INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, status, started_at, reply)
        SELECT c.queue_id, ARRAY[c.recipient_no], c.attempt, 'failed', 'queue', '5.7.0', now(), $1 FROM changed c),
    due AS (
        INSERT INTO reports (queue_id, due_at) SELECT DISTINCT c.queue_id, now() FROM changed c)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- cancel ends recipients without a word to their senders.
CREATE FUNCTION postrider.cancel(reason text, queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                 site text DEFAULT NULL, tenant text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($2::text, $3, $4, $5, $6);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'cancelled', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false,
            next_attempt_at = NULL, final_at = now(), final_reported = true
        FROM matching($2, $3, $4, $5, $6, '{queued,held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no
        RETURNING r.queue_id, r.recipient_no, r.attempt),
    logged AS (
        INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, started_at, reply)
        SELECT c.queue_id, ARRAY[c.recipient_no], c.attempt, 'cancelled', 'queue', now(), $1 FROM changed c)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- reroute sends a recipient domain by smart hosts ("host:port", in order)
-- from now on, and has what waits for it looked up again.
CREATE FUNCTION postrider.reroute(domain text, hosts text[], tls text DEFAULT 'may') RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    INSERT INTO routing (domain, hosts, tls) VALUES (lower($1), $2, $3)
    ON CONFLICT (domain) DO UPDATE SET hosts = excluded.hosts, tls = excluded.tls, updated_at = now();
    SELECT retry_now(domain => $1)
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- site_slot is mail.Site.Slot: FNV-1a of 32 bits, modulo 64.
CREATE FUNCTION postrider.site_slot(site text) RETURNS smallint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    bytes bytea  := convert_to(site, 'UTF8');
    hash  bigint := 2166136261;
BEGIN
    FOR i IN 0 .. length(bytes) - 1 LOOP
        hash := ((hash # get_byte(bytes, i)) * 16777619) & 4294967295;
    END LOOP;
    RETURN hash % 64;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- suspend_site stops transactions with a site for a while. Its mail stays
-- queued; resume_site ends the suspension early.
CREATE FUNCTION postrider.suspend_site(site text, duration interval, reason text) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    INSERT INTO sites (site, slot, suspended_until, suspend_reason)
    VALUES ($1, site_slot($1), now() + $2, $3)
    ON CONFLICT (site) DO UPDATE SET suspended_until = excluded.suspended_until, suspend_reason = excluded.suspend_reason;
    SELECT count(*) FROM recipients r WHERE r.site = $1 AND r.next_attempt_at IS NOT NULL
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.resume_site(site text) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    WITH resumed AS (
        UPDATE sites s SET suspended_until = NULL, suspend_reason = ''
        WHERE s.site = $1 AND s.suspended_until > now() RETURNING 1)
    SELECT count(*) FROM resumed
$$;
-- +goose StatementEnd
