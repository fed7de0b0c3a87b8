-- +goose Up
-- What holds for header sections at the other doors holds in SQL, too:
-- services/ingress/internal/submission.

-- The name that ingress has; hostname counts where an operator has set it.
ALTER TABLE postrider.submit_settings ADD COLUMN announced text NOT NULL DEFAULT '' CHECK (announced ~ '^[A-Za-z0-9._-]{0,255}$');

-- +goose StatementBegin
-- announce_hostname says what this mail system is called, for Received and
-- Message-ID of what is submitted by SQL.
CREATE FUNCTION postrider.announce_hostname(hostname text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
    UPDATE submit_settings SET announced = $1 WHERE announced <> $1
$$;
-- +goose StatementEnd

-- What was submitted by SQL and not seen by a scheduler, which logs it and
-- begins its trace. A row lives for a quarter of a second.
CREATE TABLE postrider.submitted (queue_id uuid PRIMARY KEY);

-- +goose StatementBegin
-- invisible_in returns the first character of text that nobody sees, or null:
-- format characters, blanks, controls but for those of ASCII. A joiner between letters outside ASCII
-- is one that writing needs.
CREATE FUNCTION postrider.invisible_in(address text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT substring(regexp_replace(address, '([\u00a1-\U0010ffff])[\u200c\u200d](?=[\u00a1-\U0010ffff])', '\1', 'g')
        FROM '[\u007f-\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064\u2066-\u206f\u2800\u3000\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0001\U000e0020-\U000e007f]')
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- mailbox_of checks a Mailbox (RFC 5321 §4.1.2) and returns its parts. The
-- domain is ASCII: IDNA is not at hand in SQL. The local-part may be UTF-8.
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

DROP FUNCTION postrider.content_for_submit(bytea, uuid, text, text);

-- +goose StatementBegin
-- content_for_submit checks the content of a message and returns it as it is
-- relayed: our trace field before it, Date and Message-ID where they were
-- missing, Bcc and what is for us gone. The rest stays octet for octet.
CREATE FUNCTION postrider.content_for_submit(content bytea, queue_id uuid, recipient text, hostname text,
                                             OUT relayed bytea, OUT message_id text, OUT eight_bit boolean,
                                             OUT campaign text, OUT traceparent text, OUT tls_optional boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    max_header constant integer := 262144; -- submission.MaxHeaderBytes
    max_fields constant integer := 1000;   -- submission.MaxHeaderFields
    max_hops   constant integer := 100;    -- RFC 5321 §6.3
    octets   text; -- one character for each octet, so that text functions see them all
    lines    text[];
    fields   text[]  := '{}';
    at       integer := 1; -- where the body begins: the empty line before it
    closed   boolean := false;
    line     text;
    field    text;
    name     text;
    value    text;
    odd      text;
    kept     text[]  := '{}';
    hops     integer := 0;
    froms    integer := 0;
    senders  integer := 0;
    dated    boolean := false;
    stamp    text := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'Dy, DD Mon YYYY HH24:MI:SS') || ' +0000';
    added    text := '';
    body     text;
BEGIN
    message_id := '';
    campaign := '';
    traceparent := '';
    tls_optional := false;
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
    IF EXISTS (SELECT FROM string_to_table(octets, E'\r\n') l WHERE length(l) > 998) THEN
        RAISE EXCEPTION 'content has a line of more than 998 octets' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- Lines that separate messages in a file: "From ann Mon Nov 14 ...".
    WHILE octets ~ '^>*From [ \t]*[^ \t:]' LOOP
        octets := substr(octets, position(E'\r\n' IN octets) + 2);
    END LOOP;

    -- Fields, each with its continuation lines (RFC 5322 §2.2.3). The header
    -- section ends at an empty line, or at a line that is no field.
    lines := string_to_array(left(octets, max_header + 1000), E'\r\n');
    FOREACH line IN ARRAY lines LOOP
        IF line = '' THEN
            closed := at < length(octets);
            EXIT;
        ELSIF line ~ '^[ \t]' AND cardinality(fields) > 0 THEN
            fields[cardinality(fields)] := fields[cardinality(fields)] || E'\r\n' || line;
        ELSIF line ~ '^[!-9;-~]+[ \t]*:' THEN
            fields := fields || line;
        ELSE
            -- A reader who passes over octets that no name has finds a field.
            name := split_part(line, ':', 1);
            odd  := btrim(regexp_replace(name, '[^ -~\t]', '', 'g'), E' \t');
            IF position(':' IN line) > 0 AND name ~ '[^ -~\t]' AND odd <> '' AND odd !~ '[ \t]' THEN
                RAISE EXCEPTION 'malformed name of a header field: %', quote_literal(left(line, 60)) USING ERRCODE = 'invalid_parameter_value';
            END IF;
            EXIT;
        END IF;
        at := at + length(line) + 2;
        IF at > max_header + 1 OR cardinality(fields) > max_fields THEN
            RAISE EXCEPTION 'header section of more than % octets or % fields', max_header, max_fields USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    body := substr(octets, at);
    IF NOT closed THEN
        body := E'\r\n' || body;
    END IF;

    FOREACH field IN ARRAY fields LOOP
        name  := lower(substring(field FROM '^[!-9;-~]+'));
        value := btrim(replace(substr(field, position(':' IN field) + 1), E'\r\n', ''), E' \t');
        odd   := substring(field FROM '[\u0001-\u0008\u000b\u000c\u000e-\u001a\u001c-\u001f\u007f]|\u001b(?![($])');
        IF odd IS NOT NULL THEN
            RAISE EXCEPTION 'control character 0x% in the header field %', lpad(to_hex(ascii(odd)), 2, '0'), quote_ident(name) USING ERRCODE = 'invalid_parameter_value';
        END IF;
        CASE name
            WHEN 'received' THEN
                hops := hops + 1;
            WHEN 'message-id' THEN
                value := left(regexp_replace(coalesce(substring(value FROM '<[^>]*>'), value), '[^ -~]', '?', 'g'), 998);
                CONTINUE WHEN value IN ('', '<>');
                message_id := coalesce(nullif(message_id, ''), value);
            WHEN 'date' THEN
                CONTINUE WHEN value = '';
                dated := true;
            WHEN 'tls-required' THEN -- RFC 8689 §3
                tls_optional := tls_optional OR lower(value) = 'no';
            WHEN 'x-traceparent' THEN
                IF traceparent = '' AND value ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
                    traceparent := value;
                END IF;
                CONTINUE;
            WHEN 'x-postrider-campaign' THEN
                IF campaign = '' AND value ~ '^[ -~]{1,100}$' THEN
                    campaign := value;
                END IF;
                CONTINUE;
            WHEN 'bcc', 'resent-bcc', 'x-idempotency-key' THEN -- RFC 5322 §3.6.3
                CONTINUE;
            WHEN 'from', 'sender', 'resent-from', 'resent-sender' THEN
                froms   := froms + (name = 'from')::integer;
                senders := senders + (name = 'sender')::integer;
                IF position('@' IN value) = 0 AND froms < 2 AND senders < 2 THEN
                    RAISE EXCEPTION '%: no address', name USING ERRCODE = 'invalid_parameter_value';
                END IF;
            ELSE
        END CASE;
        kept := kept || field;
    END LOOP;
    IF hops >= max_hops THEN
        RAISE EXCEPTION 'too many Received fields: the message loops' USING ERRCODE = 'invalid_parameter_value';
    ELSIF froms = 0 THEN
        RAISE EXCEPTION 'need one From field, and there is none' USING ERRCODE = 'invalid_parameter_value';
    ELSIF froms > 1 THEN
        RAISE EXCEPTION 'need one From field, and there are %', froms USING ERRCODE = 'invalid_parameter_value';
    ELSIF senders > 1 THEN
        RAISE EXCEPTION 'need at most one Sender field, and there are %', senders USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT dated THEN
        added := added || 'Date: ' || stamp || E'\r\n';
    END IF;
    IF message_id = '' THEN
        message_id := '<' || queue_id || '@' || hostname || '>';
        added := added || 'Message-ID: ' || message_id || E'\r\n';
    END IF;
    octets := array_to_string(kept, E'\r\n') || E'\r\n' || body;
    eight_bit := octets ~ '[^\x01-\x7f]';
    relayed := convert_to('Received: by ' || hostname || ' (postrider) with SQL id ' || queue_id
        || coalesce(E'\r\n\tfor <' || recipient || '>', '') || E';\r\n\t' || stamp || E'\r\n' || added, 'UTF8')
        || convert_to(octets, 'LATIN1');
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
    made   := content_for_submit(submit.content, id, CASE WHEN cardinality(paths) = 1 THEN paths[1] END,
                                 coalesce(nullif(settings.hostname, 'localhost'), nullif(settings.announced, ''), 'localhost'));
    PERFORM ensure_partitions(moment - interval '1 second', moment);

    INSERT INTO messages (queue_id, accepted_at, recipient_count, size_bytes, priority, smtputf8, reverse_path, tenant,
                          body_type, ret, envid, traceparent, message_id, client_hello, protocol, campaign, tls_optional)
    VALUES (id, moment, cardinality(paths), length(made.relayed), submit.priority, utf8, submit.reverse_path,
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

REVOKE ALL ON FUNCTION postrider.announce_hostname(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION postrider.invisible_in(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION postrider.content_for_submit(bytea, uuid, text, text) FROM PUBLIC;

-- +goose StatementBegin
DO $$
BEGIN
    GRANT EXECUTE ON FUNCTION postrider.announce_hostname(text) TO postrider_ingress;
    GRANT SELECT, UPDATE, DELETE ON postrider.submitted TO postrider_scheduler; -- UPDATE: FOR UPDATE wants it
    GRANT UPDATE (traceparent) ON postrider.messages TO postrider_scheduler;
    GRANT SELECT ON postrider.submitted TO postrider_reader, postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: rights were not granted: %', SQLERRM;
END $$;
-- +goose StatementEnd
