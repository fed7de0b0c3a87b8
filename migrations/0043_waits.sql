-- +goose Up
-- What the mail of a site waits for that is claimed and not begun: a limit, who
-- set it, and until when. Its home says so while it lasts, every few seconds;
-- what is older than a minute is of a home that has died.
CREATE TABLE postrider.waits (
    site     text NOT NULL,
    slot     smallint NOT NULL,
    reason   text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (site, slot)
);

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.waits TO postrider_delivery;
    GRANT SELECT ON postrider.waits TO postrider_reader, postrider_operator;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles are not there: %', SQLERRM;
END $$;
-- +goose StatementEnd
