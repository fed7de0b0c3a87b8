-- +goose Up
-- What each worker may use of the limits that sites share by name. The sum
-- over the workers whose lease runs is never more than the limit. What a worker
-- began counts for a period after its lease has ended, or until another one
-- counts it.

CREATE TABLE postrider.shared_limits (
    name             text     NOT NULL,
    worker_id        integer  NOT NULL,
    connections      integer  NOT NULL,   -- that the worker may have open
    events           integer  NOT NULL,   -- that it may begin in each period
    over_connections integer  NOT NULL,   -- open beyond that
    over_events      integer  NOT NULL,   -- in its window beyond that
    all_connections  integer  NOT NULL,   -- the limit itself, as the worker knows it; 0: none
    all_events       integer  NOT NULL,
    period           interval NOT NULL,
    state            bytea,               -- what it has begun, for who counts that when it is gone; null: short periods are waited out
    saved_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, worker_id)
);

COMMENT ON TABLE postrider.shared_limits IS 'What each worker may use of the limits that sites share by name.';

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.shared_limits TO postrider_delivery;
    GRANT SELECT ON postrider.shared_limits TO postrider_scheduler, postrider_reader, postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
