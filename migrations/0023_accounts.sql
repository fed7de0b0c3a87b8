-- +goose Up
-- The accounts by hour of acceptance, so that the metrics need not sum the
-- whole history once a minute: an hour whose recipients are all final does not
-- change any more. The view accounting goes on reading everything.

CREATE TABLE postrider.accounts (
    hour       timestamptz PRIMARY KEY,
    accepted   bigint      NOT NULL,
    queued     bigint      NOT NULL,
    relayed    bigint      NOT NULL,
    failed     bigint      NOT NULL,
    expired    bigint      NOT NULL,
    cancelled  bigint      NOT NULL,
    counted_at timestamptz NOT NULL
);

COMMENT ON TABLE postrider.accounts IS 'Recipients by hour of acceptance, as they were when last counted. The metrics come from here.';

-- +goose StatementBegin
-- count_accounts counts the hours that are due, one transaction in the whole
-- cluster at a time: the latest two each time, those with unfinished mail every
-- 10 minutes, all others once a day, for whatever somebody may have done to
-- them. It returns the number of hours counted.
CREATE FUNCTION postrider.count_accounts() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
DECLARE
    first  timestamptz;
    due    timestamptz;
    counts integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('postrider.accounts')) THEN
        RETURN 0; -- another scheduler is at it
    END IF;
    SELECT to_date(min(right(c.relname, 8)), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' INTO first
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'postrider.messages'::regclass;
    DELETE FROM accounts a WHERE a.hour < first OR first IS NULL; -- their day was dropped
    FOR due IN
        SELECT h.hour
        FROM generate_series(first, date_trunc('hour', now(), 'UTC') + interval '1 hour', '1 hour') AS h (hour) -- clocks may be ahead
        LEFT JOIN accounts a ON a.hour = h.hour
        WHERE a.hour IS NULL
           OR h.hour > now() - interval '2 hours'
           OR a.counted_at < now() - CASE WHEN a.queued > 0 THEN interval '10 minutes' ELSE interval '1 day' END
    LOOP
        -- One statement, so that both tables are seen at one moment.
        INSERT INTO accounts AS a (hour, accepted, queued, relayed, failed, expired, cancelled, counted_at)
        SELECT due, m.accepted, r.queued, r.relayed, r.failed, r.expired, r.cancelled, now()
        FROM (SELECT coalesce(sum(recipient_count), 0) AS accepted FROM messages
              WHERE queue_id >= first_id(due) AND queue_id < first_id(due + interval '1 hour')) m,
             (SELECT count(*) FILTER (WHERE state IN ('queued', 'held')) AS queued,
                     count(*) FILTER (WHERE state = 'relayed')           AS relayed,
                     count(*) FILTER (WHERE state = 'failed')            AS failed,
                     count(*) FILTER (WHERE state = 'expired')           AS expired,
                     count(*) FILTER (WHERE state = 'cancelled')         AS cancelled
              FROM recipients
              WHERE queue_id >= first_id(due) AND queue_id < first_id(due + interval '1 hour')) r
        ON CONFLICT (hour) DO UPDATE
        SET accepted = excluded.accepted, queued = excluded.queued, relayed = excluded.relayed, failed = excluded.failed,
            expired = excluded.expired, cancelled = excluded.cancelled, counted_at = excluded.counted_at;
        counts := counts + 1;
    END LOOP;
    RETURN counts;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT ON postrider.accounts TO postrider_scheduler, postrider_reader, postrider_operator;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: accounts are for the owner alone: %', SQLERRM;
END $$;
-- +goose StatementEnd
