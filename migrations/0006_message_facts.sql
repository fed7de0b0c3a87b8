-- +goose Up
-- What a client may say of its message beyond 0001: the campaign that it
-- belongs to, REQUIRETLS and TLS-Required: No (RFC 8689), BY (RFC 2852).

ALTER TABLE postrider.messages
    ADD COLUMN campaign        text        NOT NULL DEFAULT '',
    ADD COLUMN require_tls     boolean     NOT NULL DEFAULT false,
    ADD COLUMN tls_optional    boolean     NOT NULL DEFAULT false,
    ADD COLUMN deliver_by      timestamptz, -- null: BY was not given
    ADD COLUMN deliver_by_mode text        NOT NULL DEFAULT '' CHECK (deliver_by_mode IN ('', 'R', 'RT', 'N', 'NT'));
