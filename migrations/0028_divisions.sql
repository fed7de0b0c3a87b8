-- +goose Up
-- Sites that are divided over several slots, and what the parts remember. The
-- first part is the site's row in sites, as before: a worker of the version
-- before this one serves a divided site as if it were whole, so homes above 1
-- must wait until all workers have this version.

CREATE TABLE postrider.divisions (
    site   text       PRIMARY KEY,
    slots  smallint[] NOT NULL,                -- in force, by the order of their portions
    next   smallint[],                         -- set: a change is under way
    agreed smallint[] NOT NULL DEFAULT '{}',   -- of slots: those that keep to the smaller of both portions
    epoch  bigint     NOT NULL,
    known  jsonb      NOT NULL DEFAULT '{}',   -- what one part has learned of the site and all must know
    CONSTRAINT first_part_stays CHECK (next IS NULL OR next[1] = slots[1])
);

COMMENT ON TABLE  postrider.divisions        IS 'Sites whose mail and limits are divided over the homes of several slots; other sites live in one.';
COMMENT ON COLUMN postrider.divisions.next   IS 'In force when all of slots have agreed.';
COMMENT ON COLUMN postrider.divisions.epoch  IS 'Grows with each step of a change.';

CREATE TABLE postrider.site_parts (
    site     text        NOT NULL,
    slot     smallint    NOT NULL,
    state    bytea       NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (site, slot)
);

COMMENT ON TABLE postrider.site_parts IS 'What the parts of divided sites remember for their next homes, except the first ones: see sites.';

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE ON postrider.divisions, postrider.site_parts TO postrider_delivery;
    GRANT SELECT ON postrider.divisions TO postrider_resolver;
    GRANT SELECT, DELETE ON postrider.site_parts TO postrider_scheduler;
    GRANT SELECT ON postrider.divisions, postrider.site_parts TO postrider_reader, postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
