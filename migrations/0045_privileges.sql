-- +goose Up
-- Nothing here is for everybody: whoever may connect to the database may not
-- call what runs with the rights of the owner. Each role gets what it uses;
-- a test holds the list. A function of a later migration says so for itself.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA postrider FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA postrider FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA postrider FROM PUBLIC;

-- The sources as people may see them: without the password of a proxy.
CREATE VIEW postrider.source_list AS
SELECT source, ipv4, ipv6, hello, regexp_replace(egress, '//[^/]*@', '//') AS egress,
       warm_up, warm_up_from, warm_up_paused, suspended_until, suspend_reason
FROM postrider.sources;

-- +goose StatementBegin
DO $$
BEGIN
    -- Who accepts a message makes the partitions that it needs.
    GRANT EXECUTE ON FUNCTION postrider.ensure_partitions TO postrider_ingress, postrider_bounce, postrider_scheduler;
    GRANT EXECUTE ON FUNCTION postrider.retire_contents, postrider.retire_history, postrider.retire_idempotency,
        postrider.count_accounts TO postrider_scheduler;
    GRANT EXECUTE ON FUNCTION postrider.idempotency_lock TO postrider_ingress;
    GRANT EXECUTE ON FUNCTION postrider.order_measure, postrider.wake_suspended TO postrider_delivery;

    GRANT EXECUTE ON FUNCTION postrider.hold, postrider.release, postrider.retry_now, postrider.fail, postrider.cancel,
        postrider.reroute, postrider.set_route, postrider.remove_route, postrider.route_again, postrider.suspend_site,
        postrider.resume_site, postrider.order_measure, postrider.cancel_measure, postrider.wake_suspended,
        postrider.forget_broken_tls, postrider.require_filter TO postrider_operator;

    -- What only computes: for those who write queries of their own.
    GRANT EXECUTE ON FUNCTION postrider.first_id, postrider.site_slot TO postrider_reader, postrider_operator;

    GRANT SELECT ON postrider.slots TO postrider_bounce; -- store.Ping
    GRANT SELECT ON postrider.source_list TO postrider_reader, postrider_operator;
    GRANT SELECT (scram_iterations) ON postrider.credentials TO postrider_reader;
    GRANT SELECT ON public.goose_db_version TO postrider_reader, postrider_operator;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles are not there: %', SQLERRM;
END $$;
-- +goose StatementEnd
