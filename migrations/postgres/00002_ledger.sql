-- +goose Up
-- The ledger: what the daemon must remember to deliver each event exactly once. See internal/ledger.
-- The schema itself is made by `cdc migrate` before the first migration, because the table of applied migrations lives there.

-- One row a replication slot.
CREATE TABLE sluicebox.stream (
    slot                text     PRIMARY KEY,
    -- new: nothing was ever created. backfill: a slot is being created, or its snapshot paged. stream: the slot is complete
    -- from settled_lsn on.
    phase               text     NOT NULL DEFAULT 'new' CHECK (phase IN ('new', 'backfill', 'stream')),
    epoch               bigint   NOT NULL DEFAULT 0,  -- bumped by each daemon that takes the stream; fences the ones before
    holder              text,                         -- the daemon that leads, host:pid; null: released
    heartbeat_at        timestamptz,                  -- the leader's lease
    settled_lsn         pg_lsn   NOT NULL DEFAULT '0/0', -- commit LSN and
    settled_ordinal     bigint   NOT NULL DEFAULT 0,     -- ordinal in it of the last row that is delivered and marked
    acked_lsn           pg_lsn   NOT NULL DEFAULT '0/0', -- the highest LSN the daemon allowed itself to acknowledge
    system_identifier   text,                         -- of the cluster that the LSNs belong to
    publication         text,                         -- identity of the publication: changes whenever it is altered
    outbox              text                          -- schema.table that the slot is for
) WITH (fillfactor = 20);

-- One row a planned batch: the exact rows bound to one ClickHouse deduplication token, stored before anything is sent.
CREATE TABLE sluicebox.batch (
    slot        text          NOT NULL REFERENCES sluicebox.stream,
    seq         bigint        NOT NULL,
    epoch       bigint        NOT NULL,
    token       text          NOT NULL,
    ids         int8multirange NOT NULL,  -- all rows of the batch: what settling marks
    pending     int8multirange,           -- the rows the token is bound to, when not all of ids (the others were found delivered)
    positions   bytea,                    -- (commit LSN, ordinal) of each id, so that a batch sent again is the same to the byte; null once settled
    rows        integer       NOT NULL CHECK (rows > 0),
    bytes       bigint        NOT NULL,
    end_lsn     pg_lsn        NOT NULL,   -- position of the last row
    end_ordinal bigint        NOT NULL,
    ack_lsn     pg_lsn        NOT NULL,   -- may be acknowledged once this batch is settled; 0/0: no commit ends in it
    partition   integer       NOT NULL,   -- ClickHouse partition, YYYYMM
    deadline    timestamptz,              -- ClickHouse refuses the insert after this time on its own clock
    sealed_by   text          NOT NULL,
    state       text          NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'settled')),
    marked      integer,
    planned_at  timestamptz   NOT NULL DEFAULT now(),
    settled_at  timestamptz,
    PRIMARY KEY (slot, seq),
    -- The promise of settling, held by the database: a batch is settled only if every one of its rows was marked.
    CONSTRAINT batch_marked_whole CHECK (state = 'planned' OR (marked IS NOT NULL AND marked = rows))
) WITH (fillfactor = 50);

CREATE INDEX batch_planned ON sluicebox.batch (slot, seq) WHERE state = 'planned';

-- Rows that ClickHouse can never take, with the reason. Their outbox rows stay unprocessed.
CREATE TABLE sluicebox.quarantine (
    slot       text        NOT NULL REFERENCES sluicebox.stream,
    id         bigint      NOT NULL,
    reason     text        NOT NULL,
    lsn        pg_lsn      NOT NULL,
    ordinal    bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slot, id)
);
