-- +goose Up
-- The outbox: one row an event, written in the transaction of the business change it tells of. Rows are append-only;
-- delivery changes the pair (processed, processed_at) and nothing else.
--
-- fillfactor 45 leaves room on each page for the second version of each row, so that marking is a HOT update which
-- touches no index. An index that mentions `processed` would undo that: there is none, on purpose.
CREATE TABLE event_outbox (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_type       text        NOT NULL CHECK (event_type <> ''),
    event_date_time  timestamptz NOT NULL DEFAULT now(),
    environment      text        NOT NULL,
    event_context    jsonb       NOT NULL,
    metadata_version integer     NOT NULL DEFAULT 1 CHECK (metadata_version > 0),
    trace_context    text,
    processed        boolean     NOT NULL DEFAULT false,
    processed_at     timestamptz
) WITH (
    fillfactor = 45,
    -- Every row is updated once soon after it is written. Small fixed shares keep vacuum runs short and frequent.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

COMMENT ON TABLE event_outbox IS 'Transactional outbox, delivered to ClickHouse by sluicebox. Append-only.';
COMMENT ON COLUMN event_outbox.id IS 'Identity of the event; event_log.id in ClickHouse.';
COMMENT ON COLUMN event_outbox.trace_context IS 'W3C traceparent of the request that wrote the event.';
COMMENT ON COLUMN event_outbox.processed IS 'True once the event is in ClickHouse. Set by the daemon only.';
