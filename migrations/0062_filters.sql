-- +goose Up
-- Operators choose recipients also by forward-path, age and last reply, or say
-- that they mean the whole queue. Addresses are compared without regard to
-- case, and * in them stands for any text.

DROP FUNCTION postrider.hold(uuid, text, text, text, text, text), postrider.release(uuid, text, text, text, text, text),
    postrider.retry_now(uuid, text, text, text, text, text), postrider.fail(text, uuid, text, text, text, text, text),
    postrider.cancel(text, uuid, text, text, text, text, text),
    postrider.matching(uuid, text, text, text, text, text, postrider.recipient_state[]);

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION postrider.require_filter(VARIADIC filters text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(array_remove(filters, NULL)) = 0 THEN
        RAISE EXCEPTION 'give at least one of queue_id, domain, reverse_path, forward_path, site, tenant, campaign, older_than, last_reply, or everything => true'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- pattern_of turns an address in which * stands for any text into what LIKE
-- wants. It is to be compared with an address in lower case.
CREATE FUNCTION postrider.pattern_of(address text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT replace(regexp_replace(lower($1), '([\\%_])', '\\\1', 'g'), '*', '%')
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- last_reply is what the last attempt at a recipient came to, with the code of
-- the reply; null before the first.
CREATE FUNCTION postrider.last_reply(queue_id uuid, recipient_no integer) RETURNS text
LANGUAGE sql STABLE SET search_path = postrider, pg_temp AS $$
    SELECT concat_ws(' ', nullif(a.reply_code, 0), nullif(a.reply, ''))
    FROM attempts a
    WHERE a.queue_id = $1 AND $2 = ANY (a.recipient_nos)
    ORDER BY a.started_at DESC
    LIMIT 1
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- matching locks and returns the recipients that are in one of the states,
-- are in no transaction with a remote host, and meet every filter given.
-- Callers ask again for NOT dispatched in their update: what they see may be
-- another version of the row than the one that was locked.
CREATE FUNCTION postrider.matching(p_queue_id uuid, p_domain text, p_reverse_path text, p_site text, p_tenant text, p_campaign text,
                                   p_forward_path text, p_older_than interval, p_last_reply text, p_states postrider.recipient_state[])
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
      AND (p_site IS NULL OR site_within(r.site, p_site))
      AND (p_reverse_path IS NULL OR lower(m.reverse_path) LIKE pattern_of(p_reverse_path))
      AND (p_tenant IS NULL OR m.tenant = p_tenant)
      AND (p_campaign IS NULL OR m.campaign = p_campaign)
      AND (p_forward_path IS NULL OR lower(r.forward_path) LIKE pattern_of(p_forward_path))
      AND (p_older_than IS NULL OR m.accepted_at < now() - p_older_than)
      AND (p_last_reply IS NULL OR strpos(lower(last_reply(r.queue_id, r.recipient_no)), lower(p_last_reply)) > 0)
    ORDER BY r.queue_id, r.recipient_no
    FOR UPDATE OF r
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.hold(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
    site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL, forward_path text DEFAULT NULL,
    older_than interval DEFAULT NULL, last_reply text DEFAULT NULL, everything boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5, $6, $7, $8::text, $9, CASE WHEN $10 THEN 'everything' END);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'held', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = r.expires_at
        FROM matching($1, $2, $3, $4, $5, $6, $7, $8, $9, '{queued}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.release(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
    site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL, forward_path text DEFAULT NULL,
    older_than interval DEFAULT NULL, last_reply text DEFAULT NULL, everything boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5, $6, $7, $8::text, $9, CASE WHEN $10 THEN 'everything' END);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'queued', rung = false, released = true, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, $6, $7, $8, $9, '{held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- retry_now makes recipients due at once and has their route looked up again.
CREATE FUNCTION postrider.retry_now(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
    site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL, forward_path text DEFAULT NULL,
    older_than interval DEFAULT NULL, last_reply text DEFAULT NULL, everything boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5, $6, $7, $8::text, $9, CASE WHEN $10 THEN 'everything' END);
    WITH changed AS (
        UPDATE recipients r
        SET attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, $6, $7, $8, $9, '{queued}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- fail ends recipients as if the next hop had refused them; their senders get
-- a DSN with the reason.
CREATE FUNCTION postrider.fail(reason text, queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
    site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL, forward_path text DEFAULT NULL,
    older_than interval DEFAULT NULL, last_reply text DEFAULT NULL, everything boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($2::text, $3, $4, $5, $6, $7, $8, $9::text, $10, CASE WHEN $11 THEN 'everything' END);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'failed', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false,
            next_attempt_at = NULL, final_at = now()
        FROM matching($2, $3, $4, $5, $6, $7, $8, $9, $10, '{queued,held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
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
    site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL, forward_path text DEFAULT NULL,
    older_than interval DEFAULT NULL, last_reply text DEFAULT NULL, everything boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($2::text, $3, $4, $5, $6, $7, $8, $9::text, $10, CASE WHEN $11 THEN 'everything' END);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'cancelled', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false,
            next_attempt_at = NULL, final_at = now(), final_reported = true
        FROM matching($2, $3, $4, $5, $6, $7, $8, $9, $10, '{queued,held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING r.queue_id, r.recipient_no, r.attempt),
    logged AS (
        INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, started_at, reply)
        SELECT c.queue_id, ARRAY[c.recipient_no], c.attempt, 'cancelled', 'queue', now(), $1 FROM changed c)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- What waits says for what: the end of a suspension, who ordered it and why.
-- The last reply has its code.
CREATE OR REPLACE VIEW postrider.queue AS
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
       split_part(m.traceparent, '-', 2)             AS trace_id,
       m.campaign,
       suspended.text                                AS suspended
FROM postrider.recipients r
JOIN postrider.messages m USING (queue_id)
LEFT JOIN LATERAL (
    SELECT a.status, a.host, concat_ws(' ', nullif(a.reply_code, 0), nullif(a.reply, '')) AS reply
    FROM postrider.attempts a
    WHERE a.queue_id = r.queue_id AND r.recipient_no = ANY (a.recipient_nos)
    ORDER BY a.started_at DESC
    LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT concat(CASE WHEN s.tenant <> '' THEN 'tenant ' || s.tenant || ' ' END, CASE WHEN s.campaign <> '' THEN 'campaign ' || s.campaign || ' ' END,
                  CASE WHEN s.site <> '' THEN 'site ' END, 'suspended until ', to_char(s.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI"Z"'),
                  ' by ', s.ordered_by, ': ' || nullif(s.reason, '')) AS text
    FROM postrider.suspensions s
    WHERE r.state = 'queued' AND s.kind = 'suspend' AND s.source = ''
      AND (s.site = '' OR postrider.site_within(r.site, s.site))
      AND (s.tenant = '' OR s.tenant = m.tenant)
      AND (s.campaign = '' OR s.campaign = m.campaign)
    ORDER BY s.until DESC
    LIMIT 1
) suspended ON true
WHERE r.next_attempt_at IS NOT NULL;

-- +goose StatementBegin
DO $$
BEGIN
    REVOKE EXECUTE ON FUNCTION postrider.hold, postrider.release, postrider.retry_now, postrider.fail, postrider.cancel,
        postrider.matching, postrider.pattern_of, postrider.last_reply FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION postrider.hold, postrider.release, postrider.retry_now, postrider.fail, postrider.cancel,
        postrider.matching, postrider.pattern_of, postrider.last_reply TO postrider_operator;
    GRANT EXECUTE ON FUNCTION postrider.pattern_of, postrider.last_reply TO postrider_reader;
    GRANT EXECUTE ON FUNCTION postrider.site_within TO postrider_reader, postrider_operator;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles are not there: %', SQLERRM;
END $$;
-- +goose StatementEnd
