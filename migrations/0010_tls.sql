-- +goose Up
-- What is known of TLS at other mail systems: policies that they publish, and
-- hosts whose TLS is broken.

ALTER TABLE postrider.routing DROP CONSTRAINT IF EXISTS routing_tls_check;
ALTER TABLE postrider.routing ADD CONSTRAINT routing_tls_check CHECK (tls IN ('none', 'may', 'encrypt', 'verify', 'dane'));

-- MTA-STS policies (RFC 8461), for as long as they hold.
CREATE TABLE postrider.sts_policies (
    domain     text        PRIMARY KEY,
    id         text        NOT NULL, -- of the TXT record that the policy was fetched for
    mode       text        NOT NULL CHECK (mode IN ('none', 'testing', 'enforce')),
    mx         text[]      NOT NULL,
    policy     text[]      NOT NULL, -- its lines, as they were published
    max_age    interval    NOT NULL,
    fetched_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    refresh_at timestamptz NOT NULL, -- when it is to be fetched again
    used_at    timestamptz NOT NULL DEFAULT now() -- to the day
);
CREATE INDEX sts_policies_refresh ON postrider.sts_policies (refresh_at);

-- Addresses whose TLS was seen to be broken. TLS of level may is not tried
-- there until the row has ended or an operator forgets it; no other level
-- and no policy of a domain looks here.
CREATE TABLE postrider.broken_tls (
    address   inet        NOT NULL,
    port      integer     NOT NULL,
    host      text        NOT NULL,
    fault     text        NOT NULL CHECK (fault IN ('starttls', 'large hello')), -- large hello: a smaller ClientHello helps
    evidence  text        NOT NULL, -- what the last handshake failed with
    times     integer     NOT NULL DEFAULT 1,
    first_at  timestamptz NOT NULL DEFAULT now(),
    failed_at timestamptz NOT NULL DEFAULT now(),
    until     timestamptz NOT NULL,
    PRIMARY KEY (address, port)
);

-- +goose StatementBegin
-- forget_broken_tls has TLS tried again at a host or an address; without
-- either at all of them.
CREATE FUNCTION postrider.forget_broken_tls(host text DEFAULT NULL, address inet DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    WITH forgotten AS (
        DELETE FROM broken_tls b
        WHERE ($1 IS NULL OR b.host = lower($1)) AND ($2 IS NULL OR b.address = $2) RETURNING 1)
    SELECT count(*) FROM forgotten
$$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.sts_policies TO postrider_resolver;
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.broken_tls TO postrider_delivery;
    GRANT SELECT ON postrider.sts_policies, postrider.broken_tls TO postrider_reader, postrider_operator;
    GRANT DELETE ON postrider.sts_policies, postrider.broken_tls TO postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
