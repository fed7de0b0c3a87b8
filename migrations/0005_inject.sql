-- +goose Up
-- Idempotency of submissions by HTTP, SMTP and SQL, and submission by SQL.

-- A row is made in the transaction that accepts the message. It counts for
-- 24 hours; retire_idempotency removes it later.
CREATE TABLE postrider.idempotency (
    tenant          text        NOT NULL,
    idempotency_key text        NOT NULL,
    queue_id        uuid        NOT NULL, -- of the first message that was accepted under the key
    accepted_at     timestamptz NOT NULL,
    fingerprint     bytea       NOT NULL DEFAULT '', -- of the request; another one is refused
    receipt         bytea       COMPRESSION lz4 NOT NULL DEFAULT '', -- what the client was told
    PRIMARY KEY (tenant, idempotency_key)
);
CREATE INDEX idempotency_old ON postrider.idempotency (accepted_at);

COMMENT ON TABLE postrider.idempotency IS
    'Submissions that were made under a key of the client: the same key within 24 hours gets the first result again.';

-- +goose StatementBegin
-- idempotency_lock is the lock that whoever looks for a key holds until
-- the end of its transaction.
CREATE FUNCTION postrider.idempotency_lock(tenant text, idempotency_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT hashtextextended(tenant || E'\n' || idempotency_key, 7325)
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- retire_idempotency removes up to max_rows keys whose 24 hours are over.
-- Returns their number.
CREATE FUNCTION postrider.retire_idempotency(max_rows integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
DECLARE
    removed integer;
BEGIN
    DELETE FROM idempotency WHERE (tenant, idempotency_key) IN (
        SELECT i.tenant, i.idempotency_key FROM idempotency i
        WHERE i.accepted_at < now() - interval '24 hours'
        ORDER BY i.accepted_at
        LIMIT max_rows
        FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $$;
-- +goose StatementEnd

-- What submit goes by; operators update it. Nobody who submits can.
CREATE TABLE postrider.submit_settings (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    hostname          text    NOT NULL DEFAULT 'localhost' CHECK (hostname ~ '^[A-Za-z0-9._-]{1,255}$'), -- in Received and Message-ID
    max_message_bytes bigint  NOT NULL DEFAULT 26214400 CHECK (max_message_bytes BETWEEN 65536 AND 268435456)
);
INSERT INTO postrider.submit_settings DEFAULT VALUES;

-- +goose StatementBegin
-- new_queue_id makes a UUIDv7 (RFC 9562 §5.7) of this moment.
CREATE FUNCTION postrider.new_queue_id() RETURNS uuid
LANGUAGE sql VOLATILE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
            || '7' || substr(random_hex, 14, 3)
            || to_hex(8 + ('x' || substr(random_hex, 17, 1))::bit(4)::integer % 4) || substr(random_hex, 18, 15))::uuid
    FROM (SELECT replace(gen_random_uuid()::text, '-', '') AS random_hex) r
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- mailbox_of checks a Mailbox (RFC 5321 §4.1.2) and returns its parts. The
-- domain is ASCII: IDNA is not at hand in SQL. The local-part may be UTF-8.
CREATE FUNCTION postrider.mailbox_of(address text, OUT local_part text, OUT domain text)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    label text;
BEGIN
    local_part := substring(address FROM '^(.*)@[^@]*$');
    domain     := substring(address FROM '@([^@]*)$');
    IF local_part IS NULL THEN
        RAISE EXCEPTION 'address %: no domain', quote_literal(address) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- RFC 5321 §4.5.3.1: sizes are in octets.
    IF octet_length(local_part) > 64 OR octet_length(domain) > 255 OR octet_length(address) > 254 THEN
        RAISE EXCEPTION 'address %: longer than 64 octets before the @, 255 behind it, or 254 in all', quote_literal(left(address, 300))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF local_part !~ '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~\u00a0-\U0010ffff-]+(\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~\u00a0-\U0010ffff-]+)*$'
       AND local_part !~ '^"([ !#-\[\]-~\u00a0-\U0010ffff]|\\[ -~])*"$' THEN
        RAISE EXCEPTION 'address %: malformed local-part', quote_literal(address) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF domain ~ '^\[\d{1,3}(\.\d{1,3}){3}\]$' OR domain ~* '^\[IPv6:[0-9a-f:.]+\]$' THEN
        BEGIN
            PERFORM regexp_replace(btrim(domain, '[]'), '^IPv6:', '', 'i')::inet;
        EXCEPTION WHEN invalid_text_representation THEN
            RAISE EXCEPTION 'address %: malformed address literal', quote_literal(address) USING ERRCODE = 'invalid_parameter_value';
        END;
        domain := lower(domain);
        RETURN;
    END IF;
    FOREACH label IN ARRAY string_to_array(domain, '.') LOOP
        IF label !~ '^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?$' OR length(label) > 63 THEN
            RAISE EXCEPTION 'address %: malformed domain (write an international one in A-labels, xn--...)', quote_literal(address)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF domain = '' THEN
        RAISE EXCEPTION 'address %: no domain', quote_literal(address) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    domain := lower(domain);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- content_for_submit checks the content of a message and returns it as it is
-- relayed: our trace field before it, Date and Message-ID where they were
-- missing, Bcc gone. The rest stays octet for octet.
CREATE FUNCTION postrider.content_for_submit(content bytea, queue_id uuid, recipient text, hostname text,
                                             OUT relayed bytea, OUT message_id text, OUT eight_bit boolean, OUT header_is_ascii boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- One character for each octet, so that text functions see them all.
    octets   text;
    header   text;
    body     text;
    field    text;
    kept     text := '';
    name     text;
    seen     text[] := '{}';
    stamp    text := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'Dy, DD Mon YYYY HH24:MI:SS') || ' +0000';
    added    text := '';
BEGIN
    IF position('\x00'::bytea IN content) > 0 THEN
        RAISE EXCEPTION 'content has a NUL' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    octets := convert_from(content, 'LATIN1');
    IF replace(octets, E'\r\n', '') ~ '[\r\n]' THEN
        RAISE EXCEPTION 'content has a bare CR or LF; lines end with CR LF' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF right(octets, 2) <> E'\r\n' THEN
        octets := octets || E'\r\n';
    END IF;
    -- RFC 5322 §2.1.1
    IF EXISTS (SELECT FROM string_to_table(octets, E'\r\n') line WHERE length(line) > 998) THEN
        RAISE EXCEPTION 'content has a line of more than 998 octets' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF left(octets, 2) = E'\r\n' THEN
        header := '';
    ELSIF position(E'\r\n\r\n' IN octets) > 0 THEN
        header := substr(octets, 1, position(E'\r\n\r\n' IN octets) + 1);
    ELSE
        header := octets; -- no body
    END IF;
    body := substr(octets, length(header) + 1);
    IF body = '' THEN
        body := E'\r\n';
    END IF;

    -- Fields, each with its continuation lines (RFC 5322 §2.2.3): the first
    -- octet of a field is no white space.
    FOR field IN SELECT string_to_table(regexp_replace(rtrim(header, E'\r\n'), '\r\n(?![ \t])', E'\x01', 'g'), E'\x01') LOOP
        CONTINUE WHEN field = '';
        name := lower(substring(field FROM '^([!-9;-~]+)[ \t]*:'));
        IF name IS NULL THEN
            RAISE EXCEPTION 'content does not begin with header fields: %', quote_literal(left(field, 100)) USING ERRCODE = 'invalid_parameter_value';
        END IF;
        seen := seen || name;
        CONTINUE WHEN name IN ('bcc', 'resent-bcc'); -- RFC 5322 §3.6.3
        IF name = 'message-id' AND message_id IS NULL THEN
            message_id := substring(field FROM '<[!-~]{1,255}>');
        END IF;
        kept := kept || field || E'\r\n';
    END LOOP;
    IF NOT 'from' = ANY (seen) THEN
        RAISE EXCEPTION 'content has no From field' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT 'date' = ANY (seen) THEN
        added := added || 'Date: ' || stamp || E'\r\n';
    END IF;
    IF NOT 'message-id' = ANY (seen) THEN
        message_id := '<' || queue_id || '@' || hostname || '>';
        added := added || 'Message-ID: ' || message_id || E'\r\n';
    END IF;
    message_id := coalesce(message_id, '');
    header_is_ascii := kept !~ '[^\x01-\x7f]';
    eight_bit := NOT header_is_ascii OR body ~ '[^\x01-\x7f]';
    relayed := convert_to('Received: by ' || hostname || ' (postrider) with SQL id ' || queue_id
        || coalesce(E'\r\n\tfor <' || recipient || '>', '') || E';\r\n\t' || stamp || E'\r\n' || added, 'UTF8')
        || convert_to(kept || body, 'LATIN1');
END $$;
-- +goose StatementEnd

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
                                 idempotency_key text DEFAULT NULL, traceparent text DEFAULT '') RETURNS uuid
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
       OR submit.envid IS NULL OR submit.traceparent IS NULL THEN
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
                          body_type, ret, envid, traceparent, message_id, client_hello, protocol)
    VALUES (id, moment, cardinality(paths), length(made.relayed), submit.priority, utf8 OR NOT made.header_is_ascii, submit.reverse_path,
            submit.tenant, CASE WHEN made.eight_bit THEN '8BITMIME' ELSE '' END, upper(submit.ret), submit.envid, submit.traceparent,
            made.message_id, session_user, 'SQL');
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
                                 idempotency_key text DEFAULT NULL, traceparent text DEFAULT '') RETURNS uuid
LANGUAGE sql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
    SELECT submit($1, $2, convert_to(replace(replace($3, E'\r\n', E'\n'), E'\n', E'\r\n'), 'UTF8'), $4, $5, $6, $7, $8, $9, $10, $11, $12)
$$;
-- +goose StatementEnd

-- Whoever may submit may name any reverse-path and tenant: nobody but roles
-- that were given the right.
REVOKE ALL ON FUNCTION postrider.submit(text, text[], bytea, text, smallint, timestamptz, interval, text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION postrider.submit(text, text[], text, text, smallint, timestamptz, interval, text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION postrider.retire_idempotency(integer) FROM PUBLIC;

-- +goose StatementBegin
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'postrider_submit') THEN
        CREATE ROLE postrider_submit NOLOGIN;
    END IF;
    GRANT USAGE ON SCHEMA postrider TO postrider_submit;
    GRANT EXECUTE ON FUNCTION postrider.submit(text, text[], bytea, text, smallint, timestamptz, interval, text, text, text, text, text) TO postrider_submit;
    GRANT EXECUTE ON FUNCTION postrider.submit(text, text[], text, text, smallint, timestamptz, interval, text, text, text, text, text) TO postrider_submit;

    GRANT SELECT, INSERT, UPDATE ON postrider.idempotency TO postrider_ingress;
    GRANT SELECT ON postrider.idempotency, postrider.submit_settings TO postrider_reader, postrider_operator;
    GRANT UPDATE ON postrider.submit_settings TO postrider_operator;
    GRANT EXECUTE ON FUNCTION postrider.retire_idempotency(integer) TO postrider_scheduler;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
