-- +goose Up
-- A local-part may be longer than 64 octets, and one whose dots stand first,
-- last or side by side is stored in quotes, as the other doors have it.

-- +goose StatementBegin
-- mailbox_of checks a Mailbox (RFC 5321 §4.1.2) and returns its parts. The
-- domain is ASCII: IDNA is not at hand in SQL. The local-part may be UTF-8; one
-- whose dots stand first, last or side by side is quoted in what is returned.
CREATE OR REPLACE FUNCTION postrider.mailbox_of(address text, OUT local_part text, OUT domain text)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    label text;
BEGIN
    local_part := substring(address FROM '^(.*)@[^@]*$');
    domain     := substring(address FROM '@([^@]*)$');
    IF local_part IS NULL THEN
        RAISE EXCEPTION 'address %: no domain', quote_literal(address) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF postrider.invisible_in(address) IS NOT NULL THEN
        RAISE EXCEPTION 'address %: U+% is in it, which nobody sees', quote_literal(address), upper(lpad(to_hex(ascii(postrider.invisible_in(address))), 4, '0'))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF local_part ~ '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~.\u00a0-\U0010ffff-]*$' AND btrim(local_part, '.') <> '' THEN
        IF local_part ~ '^\.|\.\.|\.$' THEN
            local_part := '"' || local_part || '"';
        END IF;
    ELSIF local_part !~ '^"([ !#-\[\]-~\u00a0-\U0010ffff]|\\[ -~])*"$' THEN
        RAISE EXCEPTION 'address %: malformed local-part', quote_literal(address) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- RFC 5321 §4.5.3.1.3, in octets. The 64 of a local-part are no limit of ours.
    IF octet_length(domain) > 255 OR octet_length(local_part) + 1 + octet_length(domain) > 254 THEN
        RAISE EXCEPTION 'address %: longer than 254 octets', quote_literal(left(address, 300))
            USING ERRCODE = 'invalid_parameter_value';
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
-- submit accepts a message in the caller's own transaction: it is relayed if
-- and only if that transaction commits, and within a second of it. Returns
-- the queue id; the same one again for the same idempotency_key of the tenant
-- within 24 hours. Errors: 22023 for what cannot be sent.
--
-- content is a whole message (RFC 5322) with CR LF at the end of each line;
-- Date, Message-ID and a trace field are added, Bcc is removed. At most
-- submit_settings.max_message_bytes, and 1000 recipients.
CREATE OR REPLACE FUNCTION postrider.submit(reverse_path text, recipients text[], content bytea,
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
    origin      text     := '';
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
        origin := box.local_part || substring(submit.reverse_path FROM '@[^@]*$');
        utf8 := submit.reverse_path ~ '[^\x01-\x7f]';
    END IF;
    FOREACH recipient IN ARRAY submit.recipients LOOP
        IF recipient IS NULL THEN
            RAISE EXCEPTION 'a recipient is null' USING ERRCODE = 'null_value_not_allowed';
        END IF;
        box := mailbox_of(recipient);
        CONTINUE WHEN (box.local_part || '@' || box.domain) = ANY (known);
        known   := known || (box.local_part || '@' || box.domain);
        paths   := paths || (box.local_part || substring(recipient FROM '@[^@]*$'));
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
    made   := content_for_submit(submit.content, id, CASE WHEN cardinality(paths) = 1 THEN paths[1] END,
                                 coalesce(nullif(settings.hostname, 'localhost'), nullif(settings.announced, ''), 'localhost'));
    PERFORM ensure_partitions(moment - interval '1 second', moment);

    INSERT INTO messages (queue_id, accepted_at, recipient_count, size_bytes, priority, smtputf8, reverse_path, tenant,
                          body_type, ret, envid, traceparent, message_id, client_hello, protocol, campaign, tls_optional)
    VALUES (id, moment, cardinality(paths), length(made.relayed), submit.priority, utf8, origin,
            submit.tenant, CASE WHEN made.eight_bit THEN '8BITMIME' ELSE '' END, upper(submit.ret), submit.envid, coalesce(nullif(submit.traceparent, ''), made.traceparent),
            made.message_id, session_user, 'SQL', coalesce(nullif(submit.campaign, ''), made.campaign), made.tls_optional);
    INSERT INTO submitted (queue_id) VALUES (id);
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
