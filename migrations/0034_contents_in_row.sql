-- +goose Up

-- Content is compressed as soon as a row would be longer than 2 KB, and stays
-- in the row as long as that fits a page: no TOAST table and no second index
-- for most mail. A toast_tuple_target of 8160 did the second only: a row that
-- is shorter is not even compressed, so content of 4 KiB took a page of its
-- own. MAIN does both. Partitions that exist keep their old way.
ALTER TABLE ONLY postrider.contents      ALTER COLUMN content SET STORAGE MAIN;
ALTER TABLE ONLY postrider.contents_kept ALTER COLUMN content SET STORAGE MAIN;

-- +goose StatementBegin
-- ensure_partition makes one partition of a table. A partition is made aside
-- and attached, which does not lock out those who write to its siblings.
CREATE OR REPLACE FUNCTION postrider.ensure_partition(parent text, leaf text, lower_bound timestamptz, upper_bound timestamptz)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
DECLARE
    permission record;
BEGIN
    IF to_regclass('postrider.' || leaf) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('postrider.partition'));
    -- Not to_regclass: it may remember its first answer.
    IF EXISTS (SELECT FROM pg_class c WHERE c.relname = leaf AND c.relnamespace = 'postrider'::regnamespace) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE postrider.%I (LIKE postrider.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)', leaf, parent);
    IF parent = 'recipients' THEN
        -- Claims and dispatches update rows in place while there is room on
        -- the page, and the queue's head is updated all the time.
        EXECUTE format('ALTER TABLE postrider.%I SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2)', leaf);
    END IF;
    -- Services name the leaf in their statements, so it needs its own grants.
    FOR permission IN
        SELECT a.grantee::regrole AS grantee, a.privilege_type
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = to_regclass('postrider.' || parent) AND a.grantee <> 0 AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON postrider.%I TO %s', permission.privilege_type, leaf, permission.grantee);
    END LOOP;
    EXECUTE format('ALTER TABLE postrider.%I ATTACH PARTITION postrider.%I FOR VALUES FROM (%L) TO (%L)',
        parent, leaf, first_id(lower_bound), first_id(upper_bound));
    RETURN true;
END $$;
-- +goose StatementEnd
