-- +goose Up
-- +goose StatementBegin
-- Group roles without login: an installation grants them to its own login
-- roles. Where the owner may not create roles (some hosted Postgres), the
-- grants are left out and the services run as the owner.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['postrider_ingress', 'postrider_resolver', 'postrider_delivery', 'postrider_scheduler',
                                'postrider_bounce', 'postrider_reader', 'postrider_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA postrider TO %I', role);
    END LOOP;

    GRANT INSERT ON postrider.messages, postrider.contents, postrider.recipients TO postrider_ingress;

    GRANT SELECT ON postrider.messages, postrider.recipients, postrider.slots, postrider.workers, postrider.routing TO postrider_resolver;
    GRANT UPDATE ON postrider.recipients TO postrider_resolver;
    GRANT INSERT ON postrider.attempts, postrider.reports TO postrider_resolver;
    GRANT SELECT, INSERT, UPDATE ON postrider.routes TO postrider_resolver;

    GRANT SELECT ON postrider.messages, postrider.contents, postrider.contents_kept, postrider.recipients TO postrider_delivery;
    GRANT UPDATE ON postrider.recipients TO postrider_delivery;
    GRANT SELECT, INSERT, UPDATE ON postrider.attempts TO postrider_delivery;
    GRANT INSERT ON postrider.reports TO postrider_delivery;
    GRANT SELECT, INSERT, UPDATE ON postrider.workers, postrider.slots, postrider.sites, postrider.routes TO postrider_delivery;

    -- The scheduler moves contents, drops partitions and sums the accounts.
    GRANT SELECT ON ALL TABLES IN SCHEMA postrider TO postrider_scheduler;
    GRANT UPDATE ON postrider.recipients, postrider.workers, postrider.slots, postrider.reports TO postrider_scheduler;
    GRANT INSERT ON postrider.attempts, postrider.reports, postrider.contents_kept TO postrider_scheduler;
    GRANT DELETE ON postrider.routes, postrider.sites, postrider.workers TO postrider_scheduler;

    GRANT SELECT ON postrider.messages, postrider.contents, postrider.contents_kept, postrider.recipients, postrider.attempts TO postrider_bounce;
    GRANT INSERT ON postrider.messages, postrider.contents, postrider.recipients TO postrider_bounce;
    GRANT UPDATE ON postrider.recipients TO postrider_bounce;
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.reports TO postrider_bounce;

    GRANT SELECT ON ALL TABLES IN SCHEMA postrider TO postrider_reader, postrider_operator;
    REVOKE SELECT ON postrider.contents, postrider.contents_kept FROM postrider_reader;
    GRANT UPDATE ON postrider.recipients TO postrider_operator;
    GRANT INSERT ON postrider.attempts, postrider.reports TO postrider_operator;
    GRANT INSERT, UPDATE, DELETE ON postrider.routing, postrider.sites TO postrider_operator;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
