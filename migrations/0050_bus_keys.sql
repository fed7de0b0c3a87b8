-- +goose Up
-- The keys that services sign what they put on the bus with. Whoever reaches
-- NATS without one can neither redirect mail nor have it tried. The readers of
-- this table can: the services, and nobody else.

CREATE TABLE postrider.bus_keys (
    id          integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    secret      bytea       NOT NULL CHECK (octet_length(secret) = 32),
    made_at     timestamptz NOT NULL DEFAULT now(),
    valid_until timestamptz              -- null: the newest of these signs
);

COMMENT ON TABLE postrider.bus_keys IS 'Keys that services sign what they put on the bus with.';

-- +goose StatementBegin
-- Makes a key that signs from now on; the ones before are valid for the
-- overlap. Nothing happens, and the result is null, while the one that signs
-- is younger than older_than. The secret is never seen outside of the table.
CREATE FUNCTION postrider.rotate_bus_key(overlap interval DEFAULT '15 minutes', older_than interval DEFAULT '0') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = postrider, pg_temp AS $$
DECLARE
    made integer;
BEGIN
    LOCK TABLE bus_keys IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM bus_keys WHERE valid_until IS NULL AND made_at > clock_timestamp() - older_than) THEN
        RETURN NULL;
    END IF;
    DELETE FROM bus_keys WHERE valid_until <= clock_timestamp();
    UPDATE bus_keys SET valid_until = LEAST(valid_until, clock_timestamp() + GREATEST(overlap, '0'));
    -- Two random UUIDs have 244 random bits.
    INSERT INTO bus_keys (secret, made_at)
    VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), clock_timestamp())
    RETURNING id INTO made;
    RETURN made;
END $$;
-- +goose StatementEnd

COMMENT ON FUNCTION postrider.rotate_bus_key IS 'Makes the key that signs what is put on the bus; the ones before are valid for the overlap.';

REVOKE ALL ON TABLE postrider.bus_keys FROM PUBLIC;
REVOKE ALL ON FUNCTION postrider.rotate_bus_key FROM PUBLIC;

SELECT postrider.rotate_bus_key();

-- +goose StatementBegin
DO $$
BEGIN
    REVOKE ALL ON TABLE postrider.bus_keys FROM postrider_reader, postrider_operator;
    GRANT SELECT ON postrider.bus_keys
        TO postrider_ingress, postrider_resolver, postrider_delivery, postrider_scheduler, postrider_bounce;
    GRANT EXECUTE ON FUNCTION postrider.rotate_bus_key TO postrider_scheduler, postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
