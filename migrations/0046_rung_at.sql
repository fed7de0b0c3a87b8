-- +goose Up
-- When the first hint for this attempt was published, of a recipient that was
-- due again while that hint might still be on its way: next_attempt_at is then
-- put off, and does not tell it any more. Null in all other cases, so that a
-- recipient that is claimed in time costs nothing.
ALTER TABLE postrider.recipients ADD COLUMN rung_at timestamptz;
