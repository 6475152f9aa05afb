-- Roles for ClickHouse: run it in the database of the events, as an administrator, before `cdc migrate`, or again at any time.
-- Then make users: CREATE USER sluicebox IDENTIFIED BY '…' DEFAULT ROLE sluicebox_daemon.

-- cdc migrate: makes the table. It may read and write there, which `cdc migrate` does to note what it has done.
CREATE ROLE IF NOT EXISTS sluicebox_owner;
GRANT CREATE TABLE, DROP TABLE, ALTER TABLE, SELECT, INSERT ON * TO sluicebox_owner;
GRANT TABLE ENGINE ON MergeTree TO sluicebox_owner;

-- CLICKHOUSE_URL of cdc run, cdc doctor and cdc audit.
CREATE ROLE IF NOT EXISTS sluicebox_daemon;
GRANT SELECT, INSERT ON event_log TO sluicebox_daemon;
-- For `cdc doctor`, where the server wants a grant for these (select_from_system_db_requires_grant).
GRANT SELECT ON system.parts TO sluicebox_daemon;
GRANT SELECT ON system.merges TO sluicebox_daemon;
GRANT SELECT ON system.mutations TO sluicebox_daemon;
GRANT SELECT ON system.disks TO sluicebox_daemon;
GRANT SELECT ON system.storage_policies TO sluicebox_daemon;
GRANT SELECT ON system.data_skipping_indices TO sluicebox_daemon;
GRANT SELECT ON system.merge_tree_settings TO sluicebox_daemon;
GRANT SELECT ON system.server_settings TO sluicebox_daemon;

-- What it may cost. Its inserts need little; look-ups after a fault and `cdc audit` the most.
CREATE SETTINGS PROFILE IF NOT EXISTS sluicebox_daemon SETTINGS max_memory_usage = 2000000000 MAX 8000000000 TO sluicebox_daemon;
