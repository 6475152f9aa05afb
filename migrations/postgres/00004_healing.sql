-- +goose Up
-- What the daemon remembers of trouble, and what operators ask of it.

-- A planned batch may be sent in pieces, when ClickHouse refuses some of its rows. positions lists every row that is still to be
-- delivered; the token is bound to the first `sending` of them (null: to all).
ALTER TABLE sluicebox.batch
    DROP COLUMN pending,
    ADD COLUMN sending integer,
    DROP CONSTRAINT batch_rows_check,
    ADD CONSTRAINT batch_rows_check CHECK (rows >= 0); -- 0: all of them went to the quarantine

ALTER TABLE sluicebox.stream
    ADD COLUMN timeline integer,             -- of the cluster: changes when a standby is promoted, or after a restore to a point in time
    ADD COLUMN trimmed_before timestamptz;   -- settled rows with processed_at before it may have been removed by CDC_RETENTION

-- Rows that an operator has given up for good stay here, so that a backfill leaves them alone.
ALTER TABLE sluicebox.quarantine ADD COLUMN dropped_at timestamptz;

-- One row each time that the slot did not hold every event any more, and the table was read instead; and each time that
-- ClickHouse turned out to lack what it had confirmed.
CREATE TABLE sluicebox.incident (
    id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot     text        NOT NULL REFERENCES sluicebox.stream,
    kind     text        NOT NULL,  -- slot_missing, slot_lost, slot_moved, publication, cluster, timeline, table, unprintable, disk_guard, clickhouse
    reason   text        NOT NULL,
    from_lsn pg_lsn      NOT NULL,  -- settled position when it was noticed
    to_lsn   pg_lsn,                -- where the new slot begins; null: not healed yet, or no slot was lost
    rows     bigint,                -- delivered from the table instead
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz            -- null: still open
);

CREATE INDEX incident_slot ON sluicebox.incident (slot, id DESC);

-- Rows that the daemon is asked to deliver again: by `cdc quarantine retry` and by `cdc audit --repair`. It looks up in ClickHouse
-- first which of them are there already. A row leaves when it is settled, or back in quarantine.
CREATE TABLE sluicebox.redelivery (
    slot         text        NOT NULL REFERENCES sluicebox.stream,
    id           bigint      NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slot, id)
);
