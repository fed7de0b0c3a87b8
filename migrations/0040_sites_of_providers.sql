-- Sites of providers: "provider:NAME/SET" is one set of mail exchangers of a
-- provider that has limits for all of its sets. They share a slot, and
-- operators name all of them by "provider:NAME".

-- +goose Up
-- +goose StatementBegin
-- site_slot is mail.Site.Slot: FNV-1a of 32 bits, modulo 64; of a site of a
-- provider, that of the provider.
CREATE OR REPLACE FUNCTION postrider.site_slot(site text) RETURNS smallint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    bytes bytea  := convert_to(CASE WHEN starts_with(site, 'provider:') THEN split_part(site, '/', 1) ELSE site END, 'UTF8');
    hash  bigint := 2166136261;
BEGIN
    FOR i IN 0 .. length(bytes) - 1 LOOP
        hash := ((hash # get_byte(bytes, i)) * 16777619) & 4294967295;
    END LOOP;
    RETURN hash % 64;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- site_within is mail.Site.Within: the site is the named one, or one of the
-- provider that is named.
CREATE FUNCTION postrider.site_within(site text, named text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN site = named OR (starts_with(site, 'provider:') AND split_part(site, '/', 1) = named);
-- +goose StatementEnd

-- +goose StatementBegin
-- suspend_site stops transactions with a site, or with all sites of a
-- provider, for a while. Their mail stays queued; resume_site ends the
-- suspension early.
CREATE OR REPLACE FUNCTION postrider.suspend_site(site text, duration interval, reason text) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    INSERT INTO sites (site, slot, suspended_until, suspend_reason)
    VALUES ($1, site_slot($1), now() + $2, $3)
    ON CONFLICT (site) DO UPDATE SET suspended_until = excluded.suspended_until, suspend_reason = excluded.suspend_reason;
    SELECT count(*) FROM recipients r WHERE site_within(r.site, $1) AND r.next_attempt_at IS NOT NULL
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION postrider.resume_site(site text) RETURNS bigint
LANGUAGE sql SET search_path = postrider, pg_temp AS $$
    WITH resumed AS (
        UPDATE sites s SET suspended_until = NULL, suspend_reason = ''
        WHERE site_within(s.site, $1) AND s.suspended_until > now() RETURNING 1)
    SELECT count(*) FROM resumed
$$;
-- +goose StatementEnd
