-- A login for each service and for people, with no more than it must have
-- (docs/operations.md, Roles). After `postrider migrate up`, as a superuser or
-- the owner with CREATEROLE; again after a change of a password:
--
--   psql "$OWNER_URL" -v ingress=... -v resolver=... -v delivery=... -v scheduler=... -v bounce=... -v operator=... -f logins.sql
--
-- With -v reader=... there is also mta_reader, for people who look and change nothing.
\set ON_ERROR_STOP on
SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', 'mta_' || name, 'postrider_' || name)
FROM unnest(ARRAY['ingress', 'resolver', 'delivery', 'scheduler', 'bounce', 'operator']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mta_' || name) \gexec
ALTER ROLE mta_ingress   PASSWORD :'ingress';
ALTER ROLE mta_resolver  PASSWORD :'resolver';
ALTER ROLE mta_delivery  PASSWORD :'delivery';
ALTER ROLE mta_scheduler PASSWORD :'scheduler';
ALTER ROLE mta_bounce    PASSWORD :'bounce';
ALTER ROLE mta_operator  PASSWORD :'operator';
\if :{?reader}
SELECT 'CREATE ROLE mta_reader LOGIN IN ROLE postrider_reader' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mta_reader') \gexec
ALTER ROLE mta_reader    PASSWORD :'reader';
\endif
