-- +goose Up
-- A warm-up pauses while a site blocks its source: the days do not count.

ALTER TABLE postrider.sources ADD COLUMN warm_up_paused integer NOT NULL DEFAULT 0 CHECK (warm_up_paused >= 0); -- days

-- +goose StatementBegin
-- block_source takes a source out for a site until then, and counts the days
-- as a pause of its warm-up unless it is paused already.
CREATE FUNCTION postrider.block_source(source text, site text, until timestamptz, reason text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
    UPDATE sources s SET warm_up_paused = s.warm_up_paused + greatest(ceil(extract(epoch FROM $3 - now()) / 86400), 0)::integer
    WHERE s.source = $1 AND s.warm_up_from IS NOT NULL
      AND NOT EXISTS (SELECT FROM source_blocks b WHERE b.source = $1 AND b.blocked_at > now() - interval '1 day');
    INSERT INTO source_blocks (source, site, blocked_until, reason)
    SELECT s.source, $2, $3, $4 FROM sources s WHERE s.source = $1
    ON CONFLICT (source, site) DO UPDATE SET blocked_at = now(), blocked_until = excluded.blocked_until, reason = excluded.reason
$$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
BEGIN
    REVOKE EXECUTE ON FUNCTION postrider.block_source FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION postrider.block_source TO postrider_delivery, postrider_operator;
    GRANT SELECT (warm_up_paused) ON postrider.sources TO postrider_reader;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles are not there: %', SQLERRM;
END $$;
-- +goose StatementEnd
