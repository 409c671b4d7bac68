-- +goose Up

-- One row for every account that is or was erased. It names nobody but by an id
-- that leads nowhere once the erasure is complete.
CREATE TABLE erasures (
    id           TEXT PRIMARY KEY,   -- also of its receipt
    subject      TEXT NOT NULL UNIQUE,
    job_id       TEXT NOT NULL,
    requested_at BIGINT NOT NULL,
    due_at       BIGINT NOT NULL,
    step         TEXT NOT NULL,      -- the last that is done; empty: none yet
    late_until   BIGINT NOT NULL,    -- until when late work may leave something
    failures     INTEGER NOT NULL,   -- since the last step
    failure      TEXT NOT NULL,      -- code of the newest; empty: it goes on
    work         TEXT NOT NULL,      -- JSON: when each step was done, and counts by store
    secret       BYTEA,              -- SHA-256 of what opens the receipt; NULL: nothing does
    receipt      BYTEA,              -- signed JSON
    receipt_at   BIGINT NOT NULL,    -- 0: none yet
    completed_at BIGINT NOT NULL     -- 0: open
);

CREATE INDEX erasures_open ON erasures (due_at) WHERE completed_at = 0;
CREATE INDEX erasures_old ON erasures (completed_at) WHERE completed_at > 0;

-- Records of erased people that a hold keeps, each sealed anew with the key of its
-- exception: the person's own is destroyed.
CREATE TABLE erasure_exceptions (
    id           TEXT PRIMARY KEY,   -- also names its key in the vault
    erasure_id   TEXT NOT NULL,
    subject      TEXT NOT NULL,
    table_name   TEXT NOT NULL,
    row_id       TEXT NOT NULL,
    parent_table TEXT NOT NULL,      -- the record it is part of, whose holds keep it too; empty: none
    parent_row   TEXT NOT NULL,
    kept_at      BIGINT NOT NULL,
    resealed_at  BIGINT NOT NULL,    -- 0: not yet, or the hold came after the key was destroyed
    ended_at     BIGINT NOT NULL,    -- 0: it is kept
    UNIQUE (erasure_id, table_name, row_id)
);

CREATE INDEX erasure_exceptions_open ON erasure_exceptions (subject, table_name) WHERE ended_at = 0;
