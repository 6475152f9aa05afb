-- +goose Up
-- The service of cmd/api: an example of a producer, small but whole. A database whose own service has a table of users keeps that one.
-- +goose StatementBegin
DO $$
BEGIN
IF to_regclass('users') IS NOT NULL THEN
    RETURN;
END IF;

CREATE TABLE users (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email      text        NOT NULL,
    first_name text        NOT NULL,
    last_name  text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX users_email_key ON users (lower(email));

-- First answers by Idempotency-Key, written in the transaction that created what they tell of.
CREATE TABLE idempotency_key (
    key          text        PRIMARY KEY,
    request_hash bytea       NOT NULL, -- SHA-256 of method, path and body: the same key with another request is an error
    status       integer     NOT NULL,
    location     text        NOT NULL,
    response     bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX idempotency_key_created_at ON idempotency_key (created_at);
END $$;
-- +goose StatementEnd
