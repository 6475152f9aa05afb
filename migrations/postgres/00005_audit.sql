-- +goose Up
-- What `cdc audit` found last, for the daemon to show. One row a stream for an audit of everything, and one for one that --since or --until
-- bounded, which says nothing about the rest.
CREATE TABLE sluicebox.audit (
    slot        text        NOT NULL REFERENCES sluicebox.stream,
    scope       text        NOT NULL CHECK (scope IN ('all', 'part')),
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    differences jsonb       NOT NULL, -- how many events differ, by kind
    PRIMARY KEY (slot, scope)
);
