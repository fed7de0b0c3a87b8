-- +goose Up
-- How TLS went with the domains that ask for reports (RFC 8460), by day of
-- UTC, and the reports that are due or were sent.

CREATE TABLE postrider.tls_results (
    day            date   NOT NULL,
    domain         text   NOT NULL, -- of the recipients
    digest         bytea  NOT NULL, -- of all that follows but sessions
    policy_type    text   NOT NULL CHECK (policy_type IN ('tlsa', 'sts', 'no-policy-found')),
    policy_domain  text   NOT NULL,
    policy         text   NOT NULL, -- its lines
    result         text   NOT NULL, -- '' is success, else a result type of RFC 8460 §4.3
    sending_ip     inet,
    receiving_host text   NOT NULL,
    receiving_ip   inet,
    reason         text   NOT NULL,
    sessions       bigint NOT NULL,
    PRIMARY KEY (day, domain, digest)
);

-- One row for each place that a report goes to. next_at is its lease too: who
-- takes a row puts it off, and has it for as long.
CREATE TABLE postrider.tls_reports (
    day     date        NOT NULL,
    domain  text        NOT NULL,
    rua     text        NOT NULL,
    next_at timestamptz, -- null: sent, or given up
    tries   integer     NOT NULL DEFAULT 0,
    sent_at timestamptz,
    trouble text        NOT NULL DEFAULT '', -- with the last try
    PRIMARY KEY (day, domain, rua),
    CHECK (sent_at IS NULL OR next_at IS NULL)
);
CREATE INDEX tls_reports_due ON postrider.tls_reports (next_at) WHERE next_at IS NOT NULL;

-- +goose StatementBegin
DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE ON postrider.tls_results, postrider.tls_reports TO postrider_delivery;
    GRANT SELECT, UPDATE, DELETE ON postrider.tls_results, postrider.tls_reports TO postrider_bounce;
    GRANT SELECT ON postrider.tls_results, postrider.tls_reports TO postrider_reader, postrider_operator;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'postrider: roles were not created: %', SQLERRM;
END $$;
-- +goose StatementEnd
