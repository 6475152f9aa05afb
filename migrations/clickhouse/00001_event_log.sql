-- +goose Up
-- A plain MergeTree, so that count() tells the truth. What makes delivery exactly once: the deduplication window (tokens do
-- nothing without one), the deadline constraint (the server itself refuses an insert that wakes too late; nowInBlock() is
-- the time of the write, now() would be that of the query's start) and fsync on insert (acknowledged means on disk).
-- Parts that a merge has replaced are removed one by one: a hundred threads that remove a hundred of them hold up an insert, which wants
-- its place in the same folder, for half a second.
CREATE TABLE event_log (
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
ENGINE = MergeTree
PARTITION BY toYYYYMM(event_date_time)
ORDER BY (event_type, event_date_time, id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1,
    concurrent_part_removal_threshold = 1000000;
