-- +goose Up
-- The queue. queue_id is a UUIDv7: its time is the partition key of every
-- table that grows with traffic, so a look-up by id reads one partition and
-- retention is DROP TABLE.

CREATE SCHEMA postrider;

-- The final states are the actions of an outcome (RFC 3464 §2.3.3 and ours).
CREATE TYPE postrider.recipient_state AS ENUM
    ('queued', 'held', 'relayed', 'failed', 'expired', 'cancelled');

CREATE TABLE postrider.messages (
    queue_id        uuid        NOT NULL,
    accepted_at     timestamptz NOT NULL,
    recipient_count integer     NOT NULL CHECK (recipient_count > 0),
    size_bytes      bigint      NOT NULL CHECK (size_bytes >= 0),
    priority        smallint    NOT NULL DEFAULT 0,
    smtputf8        boolean     NOT NULL DEFAULT false,
    report_of       uuid,                 -- the message that this DSN reports on
    reverse_path    text        NOT NULL, -- '' is the null reverse-path
    tenant          text        NOT NULL DEFAULT '',
    body_type       text        NOT NULL DEFAULT '' CHECK (body_type IN ('', '7BIT', '8BITMIME', 'BINARYMIME')),
    ret             text        NOT NULL DEFAULT '' CHECK (ret IN ('', 'FULL', 'HDRS')),
    envid           text        NOT NULL DEFAULT '',
    traceparent     text        NOT NULL DEFAULT '',
    message_id      text        NOT NULL DEFAULT '', -- the Message-ID field
    client_address  text        NOT NULL DEFAULT '', -- '' for mail made by postrider itself
    client_hello    text        NOT NULL DEFAULT '',
    protocol        text        NOT NULL DEFAULT '',
    PRIMARY KEY (queue_id)
) PARTITION BY RANGE (queue_id);

CREATE INDEX messages_report_of ON postrider.messages (report_of) WHERE report_of IS NOT NULL;

COMMENT ON TABLE postrider.messages IS 'One row per accepted message: facts that never change.';

-- The content in chunks. lz4 always: the default pglz costs seven times as
-- much (docs/performance.md).
CREATE TABLE postrider.contents (
    queue_id uuid    NOT NULL,
    chunk_no integer NOT NULL,
    content  bytea   COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (queue_id, chunk_no)
) PARTITION BY RANGE (queue_id);

-- Contents of messages that outlive their hour: moved here, so that the
-- hour's partition can be dropped.
CREATE TABLE postrider.contents_kept (
    queue_id uuid    NOT NULL,
    chunk_no integer NOT NULL,
    content  bytea   COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (queue_id, chunk_no)
) PARTITION BY RANGE (queue_id);

CREATE TABLE postrider.recipients (
    queue_id        uuid        NOT NULL,
    recipient_no    integer     NOT NULL CHECK (recipient_no > 0),
    attempt         integer     NOT NULL DEFAULT 0, -- the fence: claims so far
    state           postrider.recipient_state NOT NULL DEFAULT 'queued',
    next_attempt_at timestamptz,                    -- when the scheduler looks at the row again
    expires_at      timestamptz NOT NULL,
    final_at        timestamptz,
    worker_id       integer,                        -- set: claimed
    slot            smallint,                       -- set: parked, together with site
    tries           smallint    NOT NULL DEFAULT 0, -- attempts that ended in a delay
    priority        smallint    NOT NULL DEFAULT 0,
    notify          smallint    NOT NULL DEFAULT 0, -- RFC 3461 §4.1: 1 never, 2 success, 4 failure, 8 delay
    rung            boolean     NOT NULL DEFAULT false, -- a hint for this attempt is or was on the bus
    dispatched      boolean     NOT NULL DEFAULT false, -- a transaction with the remote host began under this claim
    delay_reported  boolean     NOT NULL DEFAULT false,
    final_reported  boolean     NOT NULL DEFAULT false, -- nothing (more) to report of the final state
    site            text,                            -- of the last route, once there was one
    domain          text        NOT NULL,
    forward_path    text        NOT NULL,
    orcpt           text        NOT NULL DEFAULT '',
    PRIMARY KEY (queue_id, recipient_no),
    CONSTRAINT look_while_not_final CHECK ((state IN ('queued', 'held')) = (next_attempt_at IS NOT NULL)),
    CONSTRAINT final_once           CHECK ((state IN ('queued', 'held')) = (final_at IS NULL)),
    CONSTRAINT one_place            CHECK (worker_id IS NULL OR slot IS NULL),
    CONSTRAINT only_queued_moves    CHECK (state = 'queued' OR (worker_id IS NULL AND slot IS NULL)),
    CONSTRAINT parked_by_site       CHECK (slot IS NULL OR site IS NOT NULL),
    CONSTRAINT claimed_dispatch     CHECK (NOT dispatched OR worker_id IS NOT NULL)
) PARTITION BY RANGE (queue_id);

COMMENT ON TABLE postrider.recipients IS
    'The queue. A queued recipient waits (no worker, no slot), is parked by site (slot), or is claimed (worker_id).';

CREATE INDEX recipients_due     ON postrider.recipients (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX recipients_parked  ON postrider.recipients (slot, site, priority DESC, queue_id) WHERE slot IS NOT NULL;
CREATE INDEX recipients_claimed ON postrider.recipients (worker_id) WHERE worker_id IS NOT NULL;

-- History, append-only: what one transaction said about the recipients that
-- it treated alike.
CREATE TABLE postrider.attempts (
    queue_id        uuid        NOT NULL,
    recipient_nos   integer[]   NOT NULL,
    attempt         integer     NOT NULL,
    action          text        NOT NULL CHECK (action IN ('relayed', 'delayed', 'failed', 'expired', 'cancelled')),
    phase           text        NOT NULL,
    status          text        NOT NULL DEFAULT '', -- enhanced status code, RFC 3463
    reply_code      smallint    NOT NULL DEFAULT 0,  -- 0: the remote host said nothing
    uncertain       boolean     NOT NULL DEFAULT false, -- the remote host may have taken the message: RFC 1047
    untried         boolean     NOT NULL DEFAULT false, -- no attempt was made
    worker_id       integer,
    started_at      timestamptz NOT NULL,
    duration        interval    NOT NULL DEFAULT '0',
    next_attempt_at timestamptz,
    reply           text        NOT NULL DEFAULT '',
    host            text        NOT NULL DEFAULT '',
    remote          text        NOT NULL DEFAULT '', -- address:port
    local           text        NOT NULL DEFAULT '',
    tls             text        NOT NULL DEFAULT '',
    site            text        NOT NULL DEFAULT ''
) PARTITION BY RANGE (queue_id);

CREATE INDEX attempts_of ON postrider.attempts (queue_id);

-- Work for bounce: a message that may have something to report at due_at.
-- What is to be reported stands in recipients; a second row does no harm.
CREATE TABLE postrider.reports (
    report_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue_id  uuid        NOT NULL,
    kind      text        NOT NULL DEFAULT 'final' CHECK (kind IN ('final', 'delay')),
    due_at    timestamptz NOT NULL
);
CREATE INDEX reports_due ON postrider.reports (due_at);
CREATE INDEX reports_of  ON postrider.reports (queue_id);

-- Delivery processes. An id is never used again, so a claim names one life
-- of one process.
CREATE TABLE postrider.workers (
    worker_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text        NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL,
    ended_at    timestamptz                          -- set when the claims are taken back
);
CREATE INDEX workers_live ON postrider.workers (lease_until) WHERE ended_at IS NULL;

-- Each slot has one home at a time. Epoch grows with each new home.
CREATE TABLE postrider.slots (
    slot        smallint    PRIMARY KEY,
    worker_id   integer,
    epoch       bigint      NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO postrider.slots (slot) SELECT generate_series(0, 63);

-- What is known of a site beyond the life of its home.
CREATE TABLE postrider.sites (
    site            text        PRIMARY KEY,
    slot            smallint    NOT NULL,
    state           bytea,                           -- of the home worker: limits and breaker
    saved_at        timestamptz NOT NULL DEFAULT now(),
    suspended_until timestamptz,
    suspend_reason  text        NOT NULL DEFAULT ''
);
CREATE INDEX sites_of_slot ON postrider.sites (slot);

-- Resolved routes of parked recipients.
CREATE TABLE postrider.routes (
    domain     text        NOT NULL,
    site       text        NOT NULL,
    route      jsonb       NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (domain, site)
);

-- The routing table of operators: a recipient domain ("example.com",
-- "*.example.com" for names below it, "*" for all) to smart hosts in order.
CREATE TABLE postrider.routing (
    domain     text        PRIMARY KEY CHECK (domain = lower(domain) AND domain <> ''),
    hosts      text[]      NOT NULL CHECK (cardinality(hosts) > 0), -- "host:port"
    tls        text        NOT NULL DEFAULT 'may' CHECK (tls IN ('none', 'may', 'encrypt', 'verify')),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- +goose StatementBegin
-- first_id is the smallest UUIDv7 of a moment: the bound of a partition.
CREATE FUNCTION postrider.first_id(moment timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- ensure_partition makes one partition of a table. A partition is made aside
-- and attached, which does not lock out those who write to its siblings.
CREATE FUNCTION postrider.ensure_partition(parent text, leaf text, lower_bound timestamptz, upper_bound timestamptz)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
DECLARE
    permission record;
BEGIN
    IF to_regclass('postrider.' || leaf) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('postrider.partition'));
    -- Not to_regclass: it may remember its first answer.
    IF EXISTS (SELECT FROM pg_class c WHERE c.relname = leaf AND c.relnamespace = 'postrider'::regnamespace) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE postrider.%I (LIKE postrider.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)', leaf, parent);
    IF parent = 'recipients' THEN
        -- Claims and dispatches update rows in place while there is room on
        -- the page, and the queue's head is updated all the time.
        EXECUTE format('ALTER TABLE postrider.%I SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2)', leaf);
    ELSIF parent IN ('contents', 'contents_kept') THEN
        -- Keep a compressed chunk of up to 8 KB in the row: no TOAST table
        -- and no second index for most mail.
        EXECUTE format('ALTER TABLE postrider.%I SET (toast_tuple_target = 8160)', leaf);
    END IF;
    -- Services name the leaf in their statements, so it needs its own grants.
    FOR permission IN
        SELECT a.grantee::regrole AS grantee, a.privilege_type
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = to_regclass('postrider.' || parent) AND a.grantee <> 0 AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON postrider.%I TO %s', permission.privilege_type, leaf, permission.grantee);
    END LOOP;
    EXECUTE format('ALTER TABLE postrider.%I ATTACH PARTITION postrider.%I FOR VALUES FROM (%L) TO (%L)',
        parent, leaf, first_id(lower_bound), first_id(upper_bound));
    RETURN true;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- ensure_partitions makes the partitions that ids of [from_time, to_time]
-- need: days for the queue and its history, hours for contents.
CREATE FUNCTION postrider.ensure_partitions(from_time timestamptz, to_time timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
DECLARE
    made   integer := 0;
    moment timestamp;
    parent text;
BEGIN
    FOR moment IN SELECT generate_series(date_trunc('day', from_time AT TIME ZONE 'UTC'), to_time AT TIME ZONE 'UTC', '1 day') LOOP
        FOREACH parent IN ARRAY ARRAY['messages', 'recipients', 'attempts', 'contents_kept'] LOOP
            made := made + ensure_partition(parent, parent || '_' || to_char(moment, 'YYYYMMDD'),
                moment AT TIME ZONE 'UTC', (moment + interval '1 day') AT TIME ZONE 'UTC')::integer;
        END LOOP;
    END LOOP;
    FOR moment IN SELECT generate_series(date_trunc('hour', from_time AT TIME ZONE 'UTC'), to_time AT TIME ZONE 'UTC', '1 hour') LOOP
        made := made + ensure_partition('contents', 'contents_' || to_char(moment, 'YYYYMMDDHH24'),
            moment AT TIME ZONE 'UTC', (moment + interval '1 hour') AT TIME ZONE 'UTC')::integer;
    END LOOP;
    RETURN made;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- retire_contents drops the oldest hour of contents that ended at or before
-- the given moment; contents that are still needed move to contents_kept.
-- Returns the number of partitions dropped, 0 or 1: each hour is a transaction
-- of its own.
CREATE FUNCTION postrider.retire_contents(before timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    leaf    text;
    retired integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('postrider.retire')) THEN
        RETURN 0; -- another scheduler is at it
    END IF;
    FOR leaf IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'postrider.contents'::regclass
          AND c.relname <= 'contents_' || to_char(before AT TIME ZONE 'UTC' - interval '1 hour', 'YYYYMMDDHH24')
        ORDER BY c.relname
        LIMIT 1
    LOOP
        -- Readers go on while the contents move; a late writer waits.
        EXECUTE format('LOCK TABLE postrider.%I IN SHARE MODE', leaf);
        EXECUTE format('INSERT INTO postrider.contents_kept SELECT c.* FROM postrider.%I c WHERE EXISTS (
            SELECT FROM postrider.recipients r
            WHERE r.queue_id = c.queue_id AND (r.next_attempt_at IS NOT NULL OR NOT r.final_reported))', leaf);
        EXECUTE format('DROP TABLE postrider.%I', leaf);
        retired := retired + 1;
    END LOOP;
    RETURN retired;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- retire_history drops the days of the queue and its history that end at or
-- before the given moment and have nothing left to do. Returns the number of
-- days dropped.
CREATE FUNCTION postrider.retire_history(before timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    day     text;
    open    boolean;
    retired integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('postrider.retire')) THEN
        RETURN 0; -- another scheduler is at it
    END IF;
    FOR day IN
        SELECT right(c.relname, 8) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'postrider.recipients'::regclass
          AND c.relname <= 'recipients_' || to_char(before AT TIME ZONE 'UTC' - interval '1 day', 'YYYYMMDD')
        ORDER BY c.relname
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM postrider.%I WHERE next_attempt_at IS NOT NULL)
                            OR EXISTS (SELECT FROM postrider.%I WHERE NOT final_reported)',
            'recipients_' || day, 'recipients_' || day) INTO open;
        CONTINUE WHEN open;
        EXECUTE format('DROP TABLE postrider.%I, postrider.%I, postrider.%I, postrider.%I',
            'contents_kept_' || day, 'attempts_' || day, 'recipients_' || day, 'messages_' || day);
        retired := retired + 1;
    END LOOP;
    RETURN retired;
END $$;
-- +goose StatementEnd
