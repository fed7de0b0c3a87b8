-- +goose Up
-- Parked mail is pulled by turns: of the priorities, of the tenants, of the
-- campaigns of each. So the index of what is parked begins with what takes
-- turns, and a look at it finds all of them, however much of each there is.
-- The columns are written when a recipient is parked, and never by a claim.

ALTER TABLE postrider.recipients
    ADD COLUMN pool     text NOT NULL DEFAULT '',
    ADD COLUMN tenant   text NOT NULL DEFAULT '',
    ADD COLUMN campaign text NOT NULL DEFAULT '';

DROP INDEX postrider.recipients_parked;
CREATE INDEX recipients_parked ON postrider.recipients (slot, site, priority, pool, tenant, campaign, queue_id) WHERE slot IS NOT NULL;
