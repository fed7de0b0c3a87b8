-- +goose Up
-- Who may relay. A client proves that it has a credential; the credential
-- belongs to a tenant; the tenant owns domains and has limits. ingress reads
-- the rows anew every few seconds, so a change takes effect at once.

CREATE TABLE postrider.tenants (
    tenant              text             PRIMARY KEY CHECK (tenant ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    priority            smallint         NOT NULL DEFAULT 0,     -- of its messages; higher goes first
    messages_per_second double precision NOT NULL DEFAULT 0 CHECK (messages_per_second >= 0), -- at one ingress; 0: no bound
    recipients_per_day  bigint           NOT NULL DEFAULT 0 CHECK (recipients_per_day >= 0),  -- 0: no bound
    bytes_per_day       bigint           NOT NULL DEFAULT 0 CHECK (bytes_per_day >= 0),       -- 0: no bound
    suspended_until     timestamptz,
    suspend_reason      text             NOT NULL DEFAULT '',
    created_at          timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT reason_of_suspension CHECK (suspended_until IS NOT NULL OR suspend_reason = '')
);

COMMENT ON TABLE postrider.tenants IS 'Customers of this installation: whose mail it is, and how much of it may come.';

CREATE TABLE postrider.credentials (
    credential          text             PRIMARY KEY CHECK (credential <> '' AND length(credential) <= 255 AND credential !~ '[[:cntrl:]]'),
    tenant              text             NOT NULL REFERENCES postrider.tenants ON UPDATE CASCADE,
    kind                text             NOT NULL CHECK (kind IN ('password', 'api_key', 'certificate')),
    password            text,            -- argon2id in PHC string format
    scram_salt          bytea,           -- RFC 5802 §3, SHA-256: RFC 7677
    scram_iterations    integer CHECK (scram_iterations >= 4096),
    scram_stored_key    bytea CHECK (length(scram_stored_key) = 32),
    scram_server_key    bytea CHECK (length(scram_server_key) = 32),
    api_key_sha256      bytea CHECK (length(api_key_sha256) = 32),
    certificate         text,            -- 'sha256:' and 64 hex digits of the whole certificate, or a DNS name in it
    reverse_paths       text[]           NOT NULL DEFAULT '{}', -- 'user@example.com', 'example.com', '*.example.com', '*'; none: the tenant's domains
    from_domains        text[]           NOT NULL DEFAULT '{}', -- likewise, of the From field; none: as reverse_paths
    networks            cidr[]           NOT NULL DEFAULT '{}', -- where its clients may be; none: anywhere
    messages_per_second double precision NOT NULL DEFAULT 0 CHECK (messages_per_second >= 0),
    recipients_per_day  bigint           NOT NULL DEFAULT 0 CHECK (recipients_per_day >= 0),
    bytes_per_day       bigint           NOT NULL DEFAULT 0 CHECK (bytes_per_day >= 0),
    expires_at          timestamptz,
    disabled            boolean          NOT NULL DEFAULT false,
    created_at          timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT secret_of_kind CHECK ((password IS NOT NULL) = (kind = 'password')
                                 AND (api_key_sha256 IS NOT NULL) = (kind = 'api_key')
                                 AND (certificate IS NOT NULL) = (kind = 'certificate')),
    CONSTRAINT scram_is_whole CHECK (num_nonnulls(scram_salt, scram_iterations, scram_stored_key, scram_server_key) IN (0, 4)),
    CONSTRAINT scram_is_of_a_password CHECK (scram_salt IS NULL OR kind = 'password')
);

-- A client may write its user name in any case of letters.
CREATE UNIQUE INDEX credentials_name        ON postrider.credentials (lower(credential));
CREATE UNIQUE INDEX credentials_api_key     ON postrider.credentials (api_key_sha256) WHERE api_key_sha256 IS NOT NULL;
CREATE UNIQUE INDEX credentials_certificate ON postrider.credentials (certificate)    WHERE certificate IS NOT NULL;
CREATE INDEX        credentials_of_tenant   ON postrider.credentials (tenant);

COMMENT ON TABLE postrider.credentials IS 'What a client proves itself by. No secret is here, only what verifies one.';

CREATE TABLE postrider.domains (
    domain     text        PRIMARY KEY CHECK (domain = lower(domain) AND domain <> ''), -- 'example.com', or '*.example.com' for names below it
    tenant     text        NOT NULL REFERENCES postrider.tenants ON UPDATE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX domains_of_tenant ON postrider.domains (tenant);

COMMENT ON TABLE postrider.domains IS 'Domains in whose name a tenant may send. A domain has one tenant.';

-- What was taken from tenants, for quotas and bills: kept when a credential
-- or a tenant goes. Each ingress adds to it once a second.
CREATE TABLE postrider.usage (
    day        date   NOT NULL, -- UTC
    tenant     text   NOT NULL,
    credential text   NOT NULL,
    messages   bigint NOT NULL DEFAULT 0,
    recipients bigint NOT NULL DEFAULT 0,
    bytes      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (day, tenant, credential)
) WITH (fillfactor = 70);

COMMENT ON TABLE postrider.usage IS 'Messages, recipients and bytes of content taken per day, tenant and credential; up to a second late.';

-- Failures to authenticate, for all ingress processes together. The score
-- halves with time; a row that has decayed says nothing and is dropped.
CREATE TABLE postrider.auth_failures (
    key          text             PRIMARY KEY, -- 'address 192.0.2.1/32', 'user app', 'client app 192.0.2.1/32'
    score        double precision NOT NULL DEFAULT 0,
    failed_at    timestamptz      NOT NULL DEFAULT now(),
    succeeded_at timestamptz                   -- of a client: its user was last known from there then
) WITH (fillfactor = 70);
CREATE INDEX auth_failures_old ON postrider.auth_failures (failed_at);

COMMENT ON TABLE postrider.auth_failures IS
    'Brute force. Delete a row to let an address or a user try again at once.';

-- Secrets that all processes of an installation share. decoy: of the SCRAM
-- salts that users who do not exist appear to have.
CREATE TABLE postrider.secrets (
    name  text  PRIMARY KEY,
    value bytea NOT NULL
);
INSERT INTO postrider.secrets (name, value)
VALUES ('decoy', sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT ON postrider.tenants, postrider.credentials, postrider.domains, postrider.secrets TO postrider_ingress;
    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.usage, postrider.auth_failures TO postrider_ingress;
    GRANT SELECT ON postrider.slots TO postrider_ingress; -- store.Ping

    GRANT SELECT, INSERT, UPDATE, DELETE ON postrider.tenants, postrider.credentials, postrider.domains TO postrider_operator;
    GRANT SELECT ON postrider.usage TO postrider_operator;
    GRANT SELECT, DELETE ON postrider.auth_failures TO postrider_operator;

    GRANT SELECT ON postrider.tenants, postrider.domains, postrider.usage, postrider.auth_failures TO postrider_reader;
    GRANT SELECT (credential, tenant, kind, certificate, reverse_paths, from_domains, networks, messages_per_second,
                  recipients_per_day, bytes_per_day, expires_at, disabled, created_at) ON postrider.credentials TO postrider_reader;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE NOTICE 'postrider: roles are not there: %', SQLERRM;
END $$;
-- +goose StatementEnd
