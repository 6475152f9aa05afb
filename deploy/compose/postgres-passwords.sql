-- The passwords of the roles, out of the URLs that the programs have. They stand there as they are, without %-codes.
\set owner `sed 's|^[^:]*://[^:]*:\([^@]*\)@.*|\1|' /run/secrets/owner_database_url`
\set api `sed 's|^[^:]*://[^:]*:\([^@]*\)@.*|\1|' /run/secrets/api_database_url`
\set daemon `sed 's|^[^:]*://[^:]*:\([^@]*\)@.*|\1|' /run/secrets/cdc_database_url`
\set replication `sed 's|^[^:]*://[^:]*:\([^@]*\)@.*|\1|' /run/secrets/cdc_replication_url`
ALTER ROLE sluicebox_owner PASSWORD :'owner';
ALTER ROLE sluicebox_api PASSWORD :'api';
ALTER ROLE sluicebox_daemon PASSWORD :'daemon';
ALTER ROLE sluicebox_replication PASSWORD :'replication';
