-- +goose Up
-- A worker has two leases: a short one on its slots, so that others serve its
-- sites soon after it is gone, and a longer one on its claims, whose end may
-- make duplicates. A worker of the version before this one has only the long
-- one: then home_until is null.

ALTER TABLE postrider.workers ADD COLUMN home_until timestamptz;

COMMENT ON COLUMN postrider.workers.home_until IS 'Until then the worker is the home of its slots without renewal; null: until lease_until.';
