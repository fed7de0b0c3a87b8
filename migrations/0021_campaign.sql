-- +goose Up
-- Campaigns: in the queue, as a filter of the operators' functions, and as a
-- parameter of submit, which also knows TLS-Required: No (RFC 8689 §3) now.
-- A function with one parameter more is another function, so the old ones go.

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
       m.campaign
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


DROP FUNCTION postrider.hold(uuid, text, text, text, text), postrider.release(uuid, text, text, text, text),
    postrider.retry_now(uuid, text, text, text, text), postrider.fail(text, uuid, text, text, text, text),
    postrider.cancel(text, uuid, text, text, text, text),
    postrider.matching(uuid, text, text, text, text, postrider.recipient_state[]);

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION postrider.require_filter(VARIADIC filters text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(array_remove(filters, NULL)) = 0 THEN
        RAISE EXCEPTION 'give at least one of queue_id, domain, reverse_path, site, tenant, campaign'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- matching locks and returns the recipients that are in one of the states,
-- are in no transaction with a remote host, and meet every filter given.
-- Callers ask again for NOT dispatched in their update: what they see may be
-- another version of the row than the one that was locked.
CREATE FUNCTION postrider.matching(p_queue_id uuid, p_domain text, p_reverse_path text, p_site text, p_tenant text,
                                   p_campaign text, p_states postrider.recipient_state[])
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
      AND (p_campaign IS NULL OR m.campaign = p_campaign)
    ORDER BY r.queue_id, r.recipient_no
    FOR UPDATE OF r
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.hold(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                               site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5, $6);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'held', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = r.expires_at
        FROM matching($1, $2, $3, $4, $5, $6, '{queued}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.release(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                  site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5, $6);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'queued', rung = false, released = true, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, $6, '{held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.retry_now(queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                    site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($1::text, $2, $3, $4, $5, $6);
    WITH changed AS (
        UPDATE recipients r
        SET attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false, next_attempt_at = now()
        FROM matching($1, $2, $3, $4, $5, $6, '{queued}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING 1)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION postrider.fail(reason text, queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                               site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($2::text, $3, $4, $5, $6, $7);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'failed', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false,
            next_attempt_at = NULL, final_at = now()
        FROM matching($2, $3, $4, $5, $6, $7, '{queued,held}') x
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
CREATE FUNCTION postrider.cancel(reason text, queue_id uuid DEFAULT NULL, domain text DEFAULT NULL, reverse_path text DEFAULT NULL,
                                 site text DEFAULT NULL, tenant text DEFAULT NULL, campaign text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    SELECT require_filter($2::text, $3, $4, $5, $6, $7);
    WITH changed AS (
        UPDATE recipients r
        SET state = 'cancelled', attempt = r.attempt + 1, worker_id = NULL, slot = NULL, rung = false,
            next_attempt_at = NULL, final_at = now(), final_reported = true
        FROM matching($2, $3, $4, $5, $6, $7, '{queued,held}') x
        WHERE r.queue_id = x.queue_id AND r.recipient_no = x.recipient_no AND NOT r.dispatched
        RETURNING r.queue_id, r.recipient_no, r.attempt),
    logged AS (
        INSERT INTO attempts (queue_id, recipient_nos, attempt, action, phase, started_at, reply)
        SELECT c.queue_id, ARRAY[c.recipient_no], c.attempt, 'cancelled', 'queue', now(), $1 FROM changed c)
    SELECT count(*) FROM changed
$$;
-- +goose StatementEnd

DROP FUNCTION postrider.submit(text, text[], bytea, text, smallint, timestamptz, interval, text, text, text, text, text), postrider.submit(text, text[], text, text, smallint, timestamptz, interval, text, text, text, text, text);

-- +goose StatementBegin
-- submit accepts a message in the caller's own transaction: it is relayed if
-- and only if that transaction commits, and within a second of it. Returns
-- the queue id; the same one again for the same idempotency_key of the tenant
-- within 24 hours. Errors: 22023 for what cannot be sent.
--
-- content is a whole message (RFC 5322) with CR LF at the end of each line;
-- Date, Message-ID and a trace field are added, Bcc is removed. At most
-- submit_settings.max_message_bytes, and 1000 recipients.
CREATE FUNCTION postrider.submit(reverse_path text, recipients text[], content bytea,
                                 tenant text DEFAULT '', priority smallint DEFAULT 0,
                                 send_at timestamptz DEFAULT NULL, lifetime interval DEFAULT '5 days',
                                 notify text DEFAULT '', ret text DEFAULT '', envid text DEFAULT '',
                                 idempotency_key text DEFAULT NULL, traceparent text DEFAULT '',
                                 campaign text DEFAULT '') RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
#variable_conflict use_column
DECLARE
    settings    submit_settings;
    chunk_bytes constant integer := 262144; -- store.ChunkBytes
    id          uuid;
    moment      timestamptz;
    due         timestamptz;
    made        record;
    recipient   text;
    box         record;
    paths       text[]   := '{}';
    domains     text[]   := '{}';
    known       text[]   := '{}';
    utf8        boolean  := false;
    notify_bits smallint := 0;
    word        text;
    print       bytea;
    first       record;
BEGIN
    IF submit.reverse_path IS NULL OR submit.recipients IS NULL OR submit.content IS NULL OR submit.tenant IS NULL
       OR submit.priority IS NULL OR submit.lifetime IS NULL OR submit.notify IS NULL OR submit.ret IS NULL
       OR submit.envid IS NULL OR submit.traceparent IS NULL OR submit.campaign IS NULL THEN
        RAISE EXCEPTION 'submit: only send_at and idempotency_key may be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;

    IF submit.idempotency_key IS NOT NULL THEN
        IF submit.idempotency_key !~ '^[!-~]{1,255}$' THEN
            RAISE EXCEPTION 'idempotency_key: want 1 to 255 printable ASCII characters without a space' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        print := sha256(convert_to(submit.reverse_path || E'\n' || array_to_string(submit.recipients, E'\n') || E'\n\n', 'UTF8') || submit.content);
        PERFORM pg_advisory_xact_lock(idempotency_lock(submit.tenant, submit.idempotency_key));
        SELECT i.queue_id, i.fingerprint INTO first FROM idempotency i
        WHERE i.tenant = submit.tenant AND i.idempotency_key = submit.idempotency_key AND i.accepted_at > clock_timestamp() - interval '24 hours';
        IF FOUND THEN
            IF first.fingerprint <> print THEN
                RAISE EXCEPTION 'idempotency_key %: used for another message', quote_literal(submit.idempotency_key)
                    USING ERRCODE = 'invalid_parameter_value';
            END IF;
            RETURN first.queue_id;
        END IF;
    END IF;

    SELECT * INTO STRICT settings FROM submit_settings;
    IF length(submit.content) > settings.max_message_bytes THEN
        RAISE EXCEPTION 'content has % octets, at most %', length(submit.content), settings.max_message_bytes USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(submit.recipients) NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION '% recipients, want 1 to 1000', cardinality(submit.recipients) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.reverse_path <> '' THEN
        box  := mailbox_of(submit.reverse_path);
        utf8 := submit.reverse_path ~ '[^\x01-\x7f]';
    END IF;
    FOREACH recipient IN ARRAY submit.recipients LOOP
        IF recipient IS NULL THEN
            RAISE EXCEPTION 'a recipient is null' USING ERRCODE = 'null_value_not_allowed';
        END IF;
        box := mailbox_of(recipient);
        CONTINUE WHEN (box.local_part || '@' || box.domain) = ANY (known);
        known   := known || (box.local_part || '@' || box.domain);
        paths   := paths || recipient;
        domains := domains || box.domain;
        utf8    := utf8 OR recipient ~ '[^\x01-\x7f]';
    END LOOP;
    FOREACH word IN ARRAY string_to_array(upper(submit.notify), ',') LOOP
        notify_bits := notify_bits | CASE word WHEN 'NEVER' THEN 1 WHEN 'SUCCESS' THEN 2 WHEN 'FAILURE' THEN 4 WHEN 'DELAY' THEN 8 END;
        IF notify_bits IS NULL OR notify_bits & 1 = 1 AND upper(submit.notify) <> 'NEVER' THEN
            RAISE EXCEPTION 'notify: want NEVER, or some of SUCCESS,FAILURE,DELAY' USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF upper(submit.ret) NOT IN ('', 'FULL', 'HDRS') THEN
        RAISE EXCEPTION 'ret: want FULL or HDRS' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.envid !~ '^[ -~]*$' OR length(submit.envid) > 100 THEN
        RAISE EXCEPTION 'envid: want at most 100 printable ASCII characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.traceparent !~ '^([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$' THEN
        RAISE EXCEPTION 'traceparent: malformed' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.campaign !~ '^[ -~]*$' OR length(submit.campaign) > 100 THEN
        RAISE EXCEPTION 'campaign: want at most 100 printable ASCII characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.lifetime <= interval '0' OR submit.lifetime > interval '30 days' THEN
        RAISE EXCEPTION 'lifetime: want more than nothing and at most 30 days' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF submit.send_at > clock_timestamp() + interval '30 days' THEN
        RAISE EXCEPTION 'send_at: want at most 30 days from now' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    id     := new_queue_id();
    moment := clock_timestamp();
    due    := greatest(moment, submit.send_at);
    made   := content_for_submit(submit.content, id, CASE WHEN cardinality(paths) = 1 THEN paths[1] END, settings.hostname);
    PERFORM ensure_partitions(moment - interval '1 second', moment);

    INSERT INTO messages (queue_id, accepted_at, recipient_count, size_bytes, priority, smtputf8, reverse_path, tenant,
                          body_type, ret, envid, traceparent, message_id, client_hello, protocol, campaign, tls_optional)
    VALUES (id, moment, cardinality(paths), length(made.relayed), submit.priority, utf8 OR NOT made.header_is_ascii, submit.reverse_path,
            submit.tenant, CASE WHEN made.eight_bit THEN '8BITMIME' ELSE '' END, upper(submit.ret), submit.envid, submit.traceparent,
            made.message_id, session_user, 'SQL', submit.campaign,
            split_part(convert_from(submit.content, 'LATIN1'), E'\r\n\r\n', 1) ~* '(^|\r\n)tls-required[ \t]*:\s*no\s*(\r\n|$)');
    INSERT INTO contents (queue_id, chunk_no, content)
    SELECT id, n, substr(made.relayed, n * chunk_bytes + 1, chunk_bytes)
    FROM generate_series(0, (length(made.relayed) - 1) / chunk_bytes) n;
    -- Not rung: the scheduler rings for the rows as soon as it sees them.
    INSERT INTO recipients (queue_id, recipient_no, next_attempt_at, expires_at, priority, notify, domain, forward_path)
    SELECT id, r.no, due, due + submit.lifetime, submit.priority, notify_bits, r.domain, r.path
    FROM unnest(paths, domains) WITH ORDINALITY AS r (path, domain, no);

    IF submit.idempotency_key IS NOT NULL THEN
        INSERT INTO idempotency AS i (tenant, idempotency_key, queue_id, accepted_at, fingerprint)
        VALUES (submit.tenant, submit.idempotency_key, id, moment, print)
        ON CONFLICT (tenant, idempotency_key) DO UPDATE
        SET queue_id = excluded.queue_id, accepted_at = excluded.accepted_at, fingerprint = excluded.fingerprint, receipt = '';
    END IF;
    RETURN id;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- submit of text: lines may end with LF alone, and become CR LF.
CREATE FUNCTION postrider.submit(reverse_path text, recipients text[], content text,
                                 tenant text DEFAULT '', priority smallint DEFAULT 0,
                                 send_at timestamptz DEFAULT NULL, lifetime interval DEFAULT '5 days',
                                 notify text DEFAULT '', ret text DEFAULT '', envid text DEFAULT '',
                                 idempotency_key text DEFAULT NULL, traceparent text DEFAULT '',
                                 campaign text DEFAULT '') RETURNS uuid
LANGUAGE sql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
    SELECT submit($1, $2, convert_to(replace(replace($3, E'\r\n', E'\n'), E'\n', E'\r\n'), 'UTF8'), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
$$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION postrider.submit(text, text[], bytea, text, smallint, timestamptz, interval, text, text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION postrider.submit(text, text[], text, text, smallint, timestamptz, interval, text, text, text, text, text, text) FROM PUBLIC;

-- +goose StatementBegin
DO $$
BEGIN
    GRANT EXECUTE ON FUNCTION postrider.submit(text, text[], bytea, text, smallint, timestamptz, interval, text, text, text, text, text, text) TO postrider_submit;
    GRANT EXECUTE ON FUNCTION postrider.submit(text, text[], text, text, smallint, timestamptz, interval, text, text, text, text, text, text) TO postrider_submit;
    -- Ingress plans the notice that BY asks for (RFC 2852 §4, mode N).
    GRANT INSERT ON postrider.reports TO postrider_ingress;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: rights were not granted: %', SQLERRM;
END $$;
-- +goose StatementEnd
