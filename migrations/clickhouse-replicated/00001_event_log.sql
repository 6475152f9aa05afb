-- +goose Up
-- The same table as in ../clickhouse, on every server of the cluster that the servers' macro {cluster} names: a copy on each replica of a
-- shard, found by the macros {shard} and {replica}. Where inserts are remembered is the one difference. Two daemons on two shards
-- are two streams; nothing is inserted through event_log_all, which would cut a batch in pieces. See docs/scaling.md.
CREATE TABLE IF NOT EXISTS event_log ON CLUSTER '{cluster}' (
    source           LowCardinality(String),
    id               UInt64,
    event_type       LowCardinality(String),
    event_date_time  DateTime64(6, 'UTC'),
    environment      LowCardinality(String),
    event_context    String CODEC(ZSTD(1)),
    metadata_version UInt32,
    trace_id         String,
    lsn              UInt64,
    ordinal          UInt32,
    ingested_at      DateTime64(3, 'UTC') DEFAULT now64(3),
    write_deadline   DateTime('UTC') MATERIALIZED toDateTime('2106-02-07 00:00:00', 'UTC'),
    INDEX lsn_minmax lsn TYPE minmax GRANULARITY 1,
    CONSTRAINT written_in_time CHECK write_deadline >= nowInBlock()
)
ENGINE = ReplicatedMergeTree
PARTITION BY toYYYYMM(event_date_time)
ORDER BY (event_type, event_date_time, id)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 86400, fsync_after_insert = 1, fsync_part_directory = 1,
    concurrent_part_removal_threshold = 1000000;

-- To read all shards at once.
CREATE TABLE IF NOT EXISTS event_log_all ON CLUSTER '{cluster}' AS event_log
ENGINE = Distributed('{cluster}', currentDatabase(), event_log);
